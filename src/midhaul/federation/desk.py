"""The desk at a server's door: it lets gateways in, and tells an operator how the run is doing.

Three calls beside the stream, on the same port: `Join` tells a gateway the run's config and token, `Status` says what
`midhaul status` shows, `Watch` the same to one that comes again. All want a pass (`passes.py`): strangers are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from midhaul import __version__
from midhaul.errors import ConfigError, EngineError
from midhaul.federation import certs
from midhaul.federation.certs import Material
from midhaul.federation.passes import Bearer, Guard, PassError
from midhaul.runtime import channel
from midhaul.sentences import Sentence

SERVICE = "midhaul.Desk"
CALL_S = 20.0
DEFAULT_PORT = 9470
Answer = Callable[[], dict[str, Any]]


class Unreachable(EngineError):
    """A server that isn't there; it may yet come."""


class Desk:
    """The server's side. `joins`, `status` and `watch` give what is told; `tell` is given sentences about the refused.

    It is there for nobody before it is `opened`: who comes earlier comes again.
    """

    def __init__(self, guard: Guard, joins: Answer, status: Answer, watch: Answer, tell: Callable[[str], None]) -> None:
        self.guard, self.tell, self.refused = guard, tell, 0
        self.opened = threading.Event()
        self._answers = {"Join": joins, "Status": status, "Watch": watch}

    def handlers(self) -> Any:
        """Gives what a gRPC server is to serve."""
        grpc = channel.load()
        methods = {name: grpc.unary_unary_rpc_method_handler(self._handler(name)) for name in self._answers}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, what: str) -> Callable[[bytes, Any], bytes]:
        grpc = channel.load()

        def handle(data: bytes, context: Any) -> bytes:
            if not self.opened.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server isn't ready yet")
            try:
                self.guard.check(data, what)
            except PassError as error:
                self.refused += 1
                told = f"a {what.lower()} from {context.peer()} was refused: {error}"
                self.tell(Sentence(told, "refused", level="warning", kind="pass", address=context.peer()))
                context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            return json.dumps(self._answers[what]()).encode()

        return handle


def ask(address: str, what: str, bearer: Bearer) -> dict[str, Any]:
    """Asks a server's desk.

    Raises: Unreachable where there is none yet; EngineError, in a sentence, where it refuses or isn't to be trusted.
    """
    grpc = channel.load()
    with contextlib.ExitStack() as stack:
        material = bearer.material
        opened = (
            grpc.insecure_channel(address, channel.OPTIONS)
            if material is None
            else grpc.secure_channel(address, grpc.ssl_channel_credentials(material.root), channel.OPTIONS)
        )
        stack.callback(opened.close)
        try:
            data: bytes = opened.unary_unary(f"/{SERVICE}/{what}")(bearer.show(what), timeout=CALL_S)
        except grpc.RpcError as error:
            code, said = error.code(), " ".join(str(error.details()).split())[:300]
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                if (why := distrust(address, material)) is not None:
                    raise EngineError(why) from None
                raise Unreachable(f"there is no server at {address}") from None
            is_stranger = code == grpc.StatusCode.UNAUTHENTICATED and material is None
            if is_stranger and read_secret(parse(address)[1]) not in ("", bearer.secret):
                raise Unreachable(f"the server at {address} is another one than a moment ago") from None
            if code == grpc.StatusCode.UNIMPLEMENTED:
                raise EngineError(f"what listens at {address} is no `midhaul serve`; check the address") from None
            raise EngineError(f"the server at {address} refused {bearer.name}: {said}") from None
    try:
        table: dict[str, Any] = json.loads(data)
        version = str(table["version"])
    except (ValueError, TypeError, KeyError):
        raise EngineError(f"what listens at {address} is no `midhaul serve`; check the address") from None
    if version != __version__:
        raise EngineError(f"the server at {address} has midhaul {version}, and this is {__version__}; install the same")
    return table


def bearer(address: str, tls: Path | None, name: str) -> Bearer:
    """Gives who this machine is to a server. Raises: ConfigError where it has nothing to show."""
    host, port = parse(address)
    if tls is not None:
        known = certs.names(tls)
        if not name and len(known) != 1:
            raise ConfigError(
                f"{tls} has the keys of {len(known)} gateways ({', '.join(known) or 'none'}); say by --name which to be"
            )
        own = name or known[0]
        return Bearer(own, certs.read(tls, own))
    if not is_loopback(host):
        raise ConfigError(f"{address} is another machine, so it wants --tls FOLDER with ca.crt and this gateway's key")
    return Bearer(name or f"{socket.gethostname()[:40]}-{os.getpid()}", None, read_secret(port))


def distrust(address: str, material: Material | None) -> str | None:
    """Says why a server that listens isn't one to talk to; None where it doesn't listen, or nothing is wrong.

    gRPC only says that a handshake failed; here the standard library shakes hands, to learn why.
    """
    host, port = parse(address)
    try:
        with socket.create_connection((host, port), timeout=5.0) as plain:
            context = ssl.create_default_context(cadata=None if material is None else material.root.decode())
            context.set_alpn_protocols(["h2"])
            if material is None:
                plain.settimeout(1.0)
                return _unveiled(address, plain, context, host)
            with context.wrap_socket(plain, server_hostname=host):
                return None
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return f"the certificate of the server at {address} has expired; make a new one there with `midhaul certs`"
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
            return (
                f"the certificate of the server at {address} is not for {host}; make one there with `midhaul certs "
                f"FOLDER --hosts {host}`"
            )
        return (
            f"the certificate of the server at {address} is not signed by the authority in ca.crt "
            f"({error.verify_message}); take ca.crt from the server's folder"
        )
    except ssl.SSLError:
        return f"the server at {address} doesn't speak TLS; leave out --tls, or start it with --tls"
    except OSError:
        return None


def _unveiled(address: str, plain: socket.socket, context: ssl.SSLContext, host: str) -> str | None:
    """Says whether who listens would rather speak TLS."""
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(plain, server_hostname=host):
            return f"the server at {address} speaks TLS; give --tls FOLDER with ca.crt and this gateway's key"
    except OSError:
        return None


def parse(address: str, default: int = DEFAULT_PORT) -> tuple[str, int]:
    """Gives host and port of HOST, HOST:PORT or [IPV6]:PORT. Raises: ConfigError for what is none."""
    host, sign, port = address.rpartition(":")
    if not sign or (host.count(":") and not host.startswith("[")):
        host, port = address, str(default)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not int(port) < 65536:
        raise ConfigError(f"{address!r} is no address; write HOST:PORT, for example 127.0.0.1:{default}")
    return host, int(port)


def listens(host: str, port: int) -> bool:
    """Tells whether anything listens at a port."""
    try:
        socket.create_connection((host, port), timeout=5.0).close()
    except OSError:
        return False
    return True


def joined(host: str, port: int) -> str:
    """Gives an address as gRPC takes it.

    >>> joined("::1", 9470)
    '[::1]:9470'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tells whether nobody but this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def secret_path(port: int) -> Path:
    """Gives where the secret of the server on this machine's port lies, for its own user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "midhaul" / "serve" / f"{port}.secret"


@contextlib.contextmanager
def shared_secret(port: int, secret: str) -> Iterator[None]:
    """Lets this user's other processes read a loopback's secret for as long as the server is there.

    The file is locked as long as this process lives, so that what a killed server left behind is known for it.
    """
    path = secret_path(port)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(path.parent)
        new = path.with_suffix(f".{os.getpid()}")
        new.unlink(missing_ok=True)
        file = os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(secret)
        file.flush()
        new.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from None
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_secret(port: int) -> str:
    """Gives the secret of the server on this machine's port, empty where there is none that lives."""
    try:
        with secret_path(port).open() as file:
            return file.read() if _is_held(file) else ""
    except OSError:
        return ""


def _sweep(folder: Path) -> None:
    """Removes what servers left that were killed."""
    for path in folder.glob("*.secret"):
        with contextlib.suppress(OSError), path.open() as file:
            if not _is_held(file):
                path.unlink(missing_ok=True)


def _is_held(file: IO[str]) -> bool:
    """Tells whether the process that wrote a file is still there."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
