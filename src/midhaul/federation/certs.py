"""Certificates for a federation of one's own: an authority, the server's certificate, and a key for each gateway.

The folder that `make` writes has
`ca.crt`, `ca.key`            the authority; its key signs, and belongs on no machine of the federation
`server.crt`, `server.key`    what the server shows
`gateways/NAME.crt`, `.key`   what a gateway shows; `.ssh`, `.pub` are the same key as Flower's SuperNodes take it
Every key is on the curve P-256, and readable by its owner alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from midhaul.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_DAYS = 825
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,62})")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*")


@dataclass(frozen=True)
class Material:
    """What one side of a federation has in hand, in PEM. `root` says whom it trusts."""

    root: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Made:
    """What `make` wrote: a row a file, and the day from which none of it is valid."""

    rows: tuple[tuple[str, str, str], ...]
    expires: str

    columns = ("file", "valid until", "what it is for")


def make(folder: Path, hosts: Sequence[str] = (), gateways: Sequence[str] = ("gateway",), days: int = 90) -> Made:
    """Writes an authority and what it signs for a server on `hosts` and for each of `gateways`.

    Where the folder has an authority already, that one signs, and only what isn't there yet is written: so a gateway
    may be added to a federation that runs. Loopback is always among the hosts.
    Raises: ConfigError for a host or name that isn't one, and where the folder can't be written or read.
    """
    _check(hosts, gateways, days)
    _make_folder(folder)
    rows: list[tuple[str, str, str]] = []
    if (folder / "ca.crt").exists():
        root, root_key = _authority(folder)
    else:
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = _signed(_name("midhaul development authority"), root_key, None, days, root_key)
        _write_key(folder / "ca.key", _pem(root_key))
        _write(folder / "ca.crt", root.public_bytes(serialization.Encoding.PEM))
        rows.append(("ca.crt", _day(root), "every machine: whom to trust"))
        rows.append(("ca.key", _day(root), "nobody: it signs; keep it off the federation's machines"))
    if not (folder / "server.crt").exists():
        names = tuple(dict.fromkeys((*LOOPBACK, *hosts)))
        rows += _pair(folder, "server", "the server", root, root_key, days, names)
    elif hosts:
        raise ConfigError(
            f"{folder / 'server.crt'} is there already, so --hosts would change nothing; remove it and server.key first"
        )
    for gateway in gateways:
        if (folder / "gateways" / f"{gateway}.crt").exists():
            continue
        rows += _pair(folder, f"gateways/{gateway}", f"gateway {gateway}", root, root_key, days, ())
    return Made(tuple(rows), _day(root))


def read(folder: Path, who: str) -> Material:
    """Gives what `who`, `server` or the name of a gateway, has in hand, from a folder that `make` wrote.

    A gateway's machine needs ca.crt and its own pair, beside one another or as `make` laid them out.
    Raises: ConfigError where a file is missing, damaged or expired, or a key isn't that of its certificate.
    """
    beside = folder if who == "server" or (folder / f"{who}.crt").exists() else folder / "gateways"
    root, certificate, key = (_read(path) for path in (folder / "ca.crt", beside / f"{who}.crt", beside / f"{who}.key"))
    for name, data in (("ca.crt", root), (f"{who}.crt", certificate)):
        found = _certificate(data, folder / name)
        if now() > found.not_valid_after_utc:
            raise ConfigError(
                f"the certificate {folder / name} expired on {_day(found)}; make a new one with `midhaul certs`"
            )
        if now() < found.not_valid_before_utc:
            raise ConfigError(
                f"the certificate {folder / name} is valid from {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only; "
                "set this machine's clock right"
            )
    try:
        own = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise ConfigError(f"{beside / who}.key is no private key in PEM; make a new one with `midhaul certs`") from None
    if own.public_key() != _certificate(certificate, beside / f"{who}.crt").public_key():
        raise ConfigError(f"{beside / who}.key is not the key of {who}.crt; take both from the same `midhaul certs`")
    return Material(root, certificate, key)


def now() -> datetime.datetime:
    """Gives the time that certificates are held against."""
    return datetime.datetime.now(datetime.UTC)


def names(folder: Path) -> tuple[str, ...]:
    """Gives the gateways that a folder has a pair of."""
    found = {path.stem for place in (folder, folder / "gateways") for path in place.glob("*.crt")}
    return tuple(sorted(found - {"ca", "server"}))


def _check(hosts: Sequence[str], gateways: Sequence[str], days: int) -> None:
    if not 1 <= days <= MOST_DAYS:
        raise ConfigError(f"--days {days} is not from 1 to {MOST_DAYS}; give how long the certificates are to be valid")
    for host in hosts:
        if not _is_address(host) and not _HOST.fullmatch(host):
            raise ConfigError(
                f"--hosts has {host!r}, which is no host name and no IP address; give for example 10.0.0.5"
            )
    for gateway in gateways:
        if not _NAME.fullmatch(gateway) or gateway in ("ca", "server"):
            raise ConfigError(
                f"--gateways has {gateway!r}; a name is of letters, digits, - and _, and not ca or server"
            )


def _make_folder(folder: Path) -> None:
    try:
        (folder / "gateways").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be made ({error.strerror}); choose another") from None


def _pair(
    folder: Path,
    stem: str,
    whose: str,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    days: int,
    hosts: Sequence[str],
) -> list[tuple[str, str, str]]:
    key = ec.generate_private_key(ec.SECP256R1())
    made = _signed(_name(Path(stem).name), key, root, days, root_key, hosts)
    _write_key(folder / f"{stem}.key", _pem(key))
    _write(folder / f"{stem}.crt", made.public_bytes(serialization.Encoding.PEM))
    rows = [(f"{stem}.crt", _day(made), whose), (f"{stem}.key", _day(made), f"{whose} alone")]
    if not hosts:
        ssh = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write_key(folder / f"{stem}.ssh", ssh)
        _write(folder / f"{stem}.pub", public + b"\n")
        rows.append((f"{stem}.ssh", "-", f"{whose} alone: the same key, for Flower"))
        rows.append((f"{stem}.pub", "-", "the server: whom Flower is to let in"))
    return rows


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate | None,
    days: int,
    root_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Gives a certificate of a key; of an authority where `root` is None, of a server where there are hosts.

    Source: RFC 5280, sections 4.2.1.3 (key usage), 4.2.1.6 (names), 4.2.1.9 (basic constraints), from memory.
    """
    began = now().replace(microsecond=0)
    end = began + datetime.timedelta(days=days)
    is_root = root is None
    use = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if root is None else root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(end if root is None else min(end, root.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
        .add_extension(_usage(is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    if hosts:
        alternatives: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host) for host in hosts
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(root_key, hashes.SHA256())


def _usage(is_root: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_root,
        key_cert_sign=is_root,
        crl_sign=is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    root = _certificate(_read(folder / "ca.crt"), folder / "ca.crt")
    if now() > root.not_valid_after_utc:
        raise ConfigError(f"the authority in {folder} expired on {_day(root)}; make a new one in another folder")
    try:
        key = serialization.load_pem_private_key(_read(folder / "ca.key"), None)
    except (ValueError, TypeError):
        raise ConfigError(f"{folder / 'ca.key'} is no private key in PEM; make a new authority elsewhere") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != root.public_key():
        raise ConfigError(f"{folder / 'ca.key'} is not the key of ca.crt; make a new authority in another folder")
    return root, key


def _certificate(data: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{path} is no certificate in PEM; make a new one with `midhaul certs`") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); make it with `midhaul certs`") from None


def _write_key(path: Path, data: bytes) -> None:
    """Writes what nobody else may read, from the moment that it is there."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}); choose another folder") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}); choose another folder") from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
