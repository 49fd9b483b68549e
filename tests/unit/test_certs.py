"""Certificates of a federation: OpenSSL accepts what was made, and what is wrong is refused in a sentence."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from midhaul.cli import main
from midhaul.errors import ConfigError
from midhaul.federation import certs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certs")
    certs.make(made, ["hub.example", "10.0.0.5"], ["a", "b"])
    return made


def shaken(server: Path, root: Path, client: Path | None, name: str = "localhost") -> str:
    """Shakes hands over a pair of sockets; gives the client's name that the server saw. Raises: ssl.SSLError."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(server / "server.crt", server / "server.key")
    here.load_verify_locations(server / "ca.crt")
    here.verify_mode = ssl.CERT_REQUIRED if client else ssl.CERT_NONE
    there = ssl.create_default_context(cafile=str(root / "ca.crt"))
    if client is not None:
        there.load_cert_chain(client.with_suffix(".crt"), client.with_suffix(".key"))
    left, right = socket.socketpair()
    seen: list[str | Exception] = []

    def serve() -> None:
        try:
            with here.wrap_socket(left, server_side=True) as peer:
                subject = (peer.getpeercert() or {}).get("subject", ((("", ""),),))
                seen.append(str(subject[0][0][1]))  # type: ignore[index]
                peer.sendall(b"ok")
        except (OSError, ssl.SSLError) as error:
            seen.append(error)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with there.wrap_socket(right, server_hostname=name) as peer:
            peer.recv(2)
    finally:
        right.close()
        thread.join()
    if isinstance(seen[0], Exception):
        raise seen[0]
    return seen[0]


def test_openssl_accepts_what_was_made(folder: Path) -> None:
    for name, purpose in (("server", "sslserver"), ("gateways/a", "sslclient")):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", folder / "ca.crt"]
        subprocess.run([*command, folder / f"{name}.crt"], check=True, capture_output=True)
    assert shaken(folder, folder, folder / "gateways" / "a") == "a"
    assert shaken(folder, folder, None, "hub.example") == ""
    assert shaken(folder, folder, None, "10.0.0.5") == ""


def test_another_host_another_authority_and_a_forged_key_are_refused(folder: Path, tmp_path: Path) -> None:
    certs.make(tmp_path, gateways=["a"])
    with pytest.raises(ssl.SSLError, match="Hostname mismatch"):
        shaken(folder, folder, None, "other.example")
    with pytest.raises(ssl.SSLError, match="verify failed"):
        shaken(folder, tmp_path, None)
    with pytest.raises(ssl.SSLError):  # signed, but by an authority that the server doesn't know
        shaken(folder, folder, tmp_path / "gateways" / "a")
    forged = tmp_path / "forged"
    forged.mkdir()
    shutil.copy(folder / "ca.crt", forged)
    shutil.copy(folder / "gateways" / "a.crt", forged / "server.crt")
    shutil.copy(folder / "gateways" / "a.key", forged / "server.key")
    with pytest.raises(ssl.SSLError):  # a gateway's certificate is none of a server
        shaken(forged, folder, None)


def test_nobody_else_may_read_a_key(folder: Path) -> None:
    secret = [*folder.rglob("*.key"), *folder.rglob("*.ssh")]
    assert len(secret) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert not any(b"PRIVATE" in path.read_bytes() for path in [*folder.rglob("*.crt"), *folder.rglob("*.pub")])


def test_flower_gets_the_same_key(folder: Path) -> None:
    own = serialization.load_pem_private_key((folder / "gateways" / "a.key").read_bytes(), None)
    ssh = serialization.load_ssh_private_key((folder / "gateways" / "a.ssh").read_bytes(), None)
    public = serialization.load_ssh_public_key((folder / "gateways" / "a.pub").read_bytes())
    assert own.public_key() == ssh.public_key() == public
    assert (
        subprocess.run(["openssl", "ec", "-in", folder / "gateways" / "a.key", "-noout"], check=False).returncode == 0
    )


def test_a_gateway_is_added_and_nothing_else_changes(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert certs.make(folder, gateways=["a"]).rows == ()
    assert [row[0] for row in certs.make(folder, gateways=["c"]).rows] == [
        f"gateways/c.{e}" for e in ("crt", "key", "ssh", "pub")
    ]
    assert all(path.read_bytes() == data for path, data in before.items())
    assert shaken(folder, folder, folder / "gateways" / "c") == "c"
    assert certs.names(folder) == ("a", "b", "c")


def test_a_gateways_machine_needs_its_own_files_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("ca.crt", "gateways/a.crt", "gateways/a.key"):
        shutil.copy(folder / name, tmp_path)
    here, there = certs.read(tmp_path, "a"), certs.read(folder, "server")
    assert here.root == there.root
    assert here.key != there.key
    assert certs.names(tmp_path) == ("a",)


def test_what_is_wrong_in_a_folder_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ca.crt can't be read .*make it with `midhaul certs`"):
        certs.read(tmp_path, "a")
    for name in ("ca.crt", "ca.key", "server.crt", "server.key"):
        shutil.copy(folder / name, tmp_path)
    shutil.copy(folder / "gateways" / "a.key", tmp_path / "server.key")
    with pytest.raises(ConfigError, match=r"server.key is not the key of server.crt"):
        certs.read(tmp_path, "server")
    (tmp_path / "server.key").write_text("?")
    with pytest.raises(ConfigError, match="no private key in PEM"):
        certs.read(tmp_path, "server")
    (tmp_path / "server.crt").write_text("?")
    with pytest.raises(ConfigError, match="no certificate in PEM"):
        certs.read(tmp_path, "server")
    shutil.copy(folder / "server.key", tmp_path / "ca.key")
    with pytest.raises(ConfigError, match=r"is not the key of ca\.crt"):
        certs.make(tmp_path, gateways=["d"])

    monkeypatch.setattr(certs, "now", lambda: datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
    with pytest.raises(ConfigError, match=r"expired on 20\d\d-\d\d-\d\d"):
        certs.read(folder, "server")
    with pytest.raises(ConfigError, match=r"the authority in .* expired on"):
        certs.make(folder, gateways=["d"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--hosts", "a b"], "no host name"),
        (["--gateways", "../x"], "a name is of letters"),
        (["--gateways", "server"], "not ca or server"),
        (["--days", "0"], "--days 0"),
        (["--days", "9999"], "from 1 to 825"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certs", str(tmp_path / "new"), *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_tells_what_is_whose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certs", str(tmp_path), "--hosts", "10.0.0.5", "--gateways", "a,b", "--days", "30"]) == 0
    said = capsys.readouterr().out
    until = f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30):%Y-%m-%d}"
    assert f"valid until {until}" in said
    assert "gateways/b.key" in said
    assert main(["certs", str(tmp_path), "--gateways", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == []
    assert main(["certs", str(tmp_path), "--hosts", "10.0.0.6"]) == 2
    (tmp_path / "file").write_text("")
    assert main(["certs", str(tmp_path / "file")]) == 2
