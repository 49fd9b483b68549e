"""What a gateway shows at the server's door, so that the server knows who it is before it tells anything.

A pass says who asks for what and when, with random bytes so that no two are alike. Under TLS it is signed by the
gateway's own key, and its certificate comes along; on a loopback it is sealed with a secret that only this user of this
machine can read. A pass is good for a minute, and once.

Source: ECDSA on P-256 with SHA-256, FIPS 186-5; HMAC, RFC 2104; both from memory.
Limits: clocks may differ by `WINDOW_S`; a server that starts anew has forgotten which passes it has seen, and only
their time tells.
"""

from __future__ import annotations

import base64
import datetime
import hmac
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from midhaul.errors import EngineError
from midhaul.federation.certs import Material

WINDOW_S = 60.0
MAX_BYTES = 1 << 16
_LABEL = b"midhaul pass 1\n"


class PassError(EngineError):
    """A pass that isn't taken."""


@dataclass(frozen=True)
class Bearer:
    """Who asks: with a key and a certificate of the federation, or with the secret of a loopback."""

    name: str
    material: Material | None = None
    secret: str = ""

    def show(self, what: str) -> bytes:
        """Gives a pass for one request."""
        body = json.dumps(
            {"name": self.name, "what": what, "time": time.time(), "nonce": secrets.token_hex(16)}
        ).encode()
        if self.material is None:
            return _sealed(body, hmac.digest(self.secret.encode(), _LABEL + body, "sha256"), b"")
        key = serialization.load_pem_private_key(self.material.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return _sealed(body, key.sign(_LABEL + body, ec.ECDSA(hashes.SHA256())), self.material.certificate)


@dataclass
class Guard:
    """Looks at passes: `root` is the authority in PEM, `secret` that of a loopback where there is none."""

    root: bytes = b""
    secret: str = ""
    _seen: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, data: bytes, what: str) -> str:
        """Gives the name of who shows a pass. Raises: PassError, in one sentence, for one that isn't good."""
        try:
            if len(data) > MAX_BYTES:
                raise ValueError
            table = json.loads(data)
            body, proof, certificate = (base64.b64decode(table[name]) for name in ("body", "proof", "certificate"))
            said = json.loads(body)
            name, wanted, at, nonce = (said[field] for field in ("name", "what", "time", "nonce"))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise PassError("a pass isn't one; install the same midhaul on both sides") from None
        if not isinstance(name, str) or not isinstance(nonce, str) or not isinstance(at, float):
            raise PassError("a pass isn't one; install the same midhaul on both sides")
        shown = name if name.isprintable() and len(name) <= 64 else "?"
        if self.root:
            self._check_signed(shown, body, proof, certificate)
        elif not hmac.compare_digest(proof, hmac.digest(self.secret.encode(), _LABEL + body, "sha256")):
            raise PassError(f"{shown} doesn't have this server's secret; join as the user that runs `midhaul serve`")
        if wanted != what:
            raise PassError(f"{shown} shows a pass for {wanted!r} and wants {what}")
        now = time.time()
        if not abs(now - at) <= WINDOW_S:  # a time that is no number isn't now
            raise PassError(
                f"{shown} shows a pass of {abs(now - at):.0f} s {'ago' if at < now else 'ahead'}: it was replayed, or "
                "the clocks differ; set both right"
            )
        with self._lock:
            if nonce in self._seen:
                raise PassError(f"{shown} shows a pass that was shown before: a message was replayed")
            self._seen = {old: until for old, until in self._seen.items() if until > now}
            self._seen[nonce] = now + 2 * WINDOW_S
        return shown

    def _check_signed(self, name: str, body: bytes, proof: bytes, certificate: bytes) -> None:
        root = x509.load_pem_x509_certificate(self.root)
        try:
            shown = x509.load_pem_x509_certificate(certificate)
            key = shown.public_key()
            shown.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            raise PassError(
                f"the certificate that {name} shows is not signed by this federation's authority; make its key with "
                "`midhaul certs` in the server's folder"
            ) from None
        now = datetime.datetime.now(datetime.UTC)
        if not shown.not_valid_before_utc <= now <= shown.not_valid_after_utc:
            raise PassError(
                f"the certificate that {name} shows is valid from {shown.not_valid_before_utc:%Y-%m-%d} to "
                f"{shown.not_valid_after_utc:%Y-%m-%d}, not today; make a new one with `midhaul certs`"
            )
        common = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not common or common[0].value != name:
            raise PassError(
                f"{name} shows a certificate of {str(common[0].value) if common else 'nobody'}; use its own"
            )
        try:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(proof, _LABEL + body, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, AssertionError):
            raise PassError(f"{name} doesn't hold the key of the certificate that it shows: it is forged") from None


def _sealed(body: bytes, proof: bytes, certificate: bytes) -> bytes:
    table: dict[str, Any] = {"body": body, "proof": proof, "certificate": certificate}
    return json.dumps({name: base64.b64encode(value).decode() for name, value in table.items()}).encode()
