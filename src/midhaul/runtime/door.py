"""Where gateways come in: the port that a run listens at, who is let in, and what each of them says.

A stream begins with a handshake (`hello`). Then one thread writes what the gateway is asked, and one reads what it
answers and gives it to the turn under way (`peer`). gRPC's flow control is the back-pressure: one envelope is made when
the one before is on its way, and nothing is read before what was read is dealt with.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from midhaul import __version__
from midhaul.errors import ConfigError, EngineError
from midhaul.program import Population
from midhaul.runtime import channel, hello
from midhaul.runtime.envelope import Envelope, Opener, Refusal, Refused, Sign, seal
from midhaul.runtime.hello import Hello
from midhaul.runtime.parcel import Models
from midhaul.runtime.peer import RESTARTED, Connection, Peer
from midhaul.sentences import Sentence
from midhaul.units import format_numbers

HANDSHAKE_S = 20.0
FIRST_TOLD_S, TOLD_S = 1.0, 10.0  # of waiting, until who is missing is told, and told again
QUICK_BYTES = 1 << 18  # of an envelope that is dealt with in less time than it takes to wake a thread
TAKEN = b""  # stands for an envelope that was dealt with; none is empty
_SPARE = 4  # streams beside those of gateways: of who comes back before it was missed, and of who is refused


class _Streams:
    """A generic handler of gRPC: makes for each stream what serves it."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self.made = made

    def service(self, details: Any) -> Any:
        return self.made() if details.method == f"/{channel.SERVICE}/{channel.METHOD}" else None


class _Inlet:
    """Where gRPC hands over what came on a stream, in the one thread that waits for all of them.

    What is quick is taken there and then, without waking another thread first. What is large is left to the stream's
    own, with the last part of what came in several, however small. Both never work at a time: the thread asks for the
    next envelope when it is done with the one before.
    """

    def __init__(self, opener: Opener) -> None:
        self.opener = opener
        self.take: Callable[[bytes], None] | None = None  # once the gateway is let in

    def __call__(self, data: bytes) -> bytes:
        if self.take is None or self.opener.has_part or len(data) > QUICK_BYTES:
            return data
        self.take(data)
        return TAKEN


class Door:
    """The gateways of a run, as they come and go.

    `peers` are those that ever came, by name; `refused` counts what wasn't taken, by kind. `changed` is notified when a
    gateway comes, goes, or has done what nobody waited for any more; it is the lock of all that is here.
    """

    def __init__(
        self,
        models: Models,
        population: Population,
        *,
        token: str,
        address: str,
        credentials: Any,
        max_bytes: int,
        max_gateways: int,
        services: Sequence[Any],
        keepalive_s: float = channel.KEEPALIVE_S,
    ) -> None:
        if len(token) < 16:
            raise ConfigError("a run's token has at least 16 characters; secrets.token_hex(16) makes one")
        self.models, self.population, self.max_bytes = models, population, max_bytes
        self.run = secrets.randbits(64) | 1
        self.tell: Callable[[str], None] = lambda line: None
        self.peers: dict[str, Peer] = {}
        self.refused: Counter[str] = Counter()
        self.changed = threading.Condition()
        self.address, self.shifted = "", False
        self.begins_with = 0
        self._holder: dict[int, Peer] | None = None  # of each device, until another gateway comes
        self._token, self._wanted_address = token, address
        self._credentials, self._services = credentials, tuple(services)
        self._options = channel.options(keepalive_s)
        self._most = max_gateways + _SPARE
        self._server: Any = None
        self._is_closing = False
        self._wanted = frozenset({*population.devices, *population.test_devices})

    def open(self) -> str:
        """Starts to listen, if it doesn't yet; gives the address.

        Raises: ConfigError where that can't be; DependencyError without gRPC.
        """
        if self._server is not None:
            return self.address
        grpc = channel.load()
        pool = ThreadPoolExecutor(self._most, "gateway")
        server = grpc.server(
            pool, (_Streams(self._stream), *self._services), options=self._options, maximum_concurrent_rpcs=self._most
        )
        host, _, _ = self._wanted_address.rpartition(":")
        try:
            port = (
                server.add_insecure_port(self._wanted_address)
                if self._credentials is None
                else server.add_secure_port(self._wanted_address, self._credentials)
            )
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(
                f"{self._wanted_address} can't be listened at; another program may have the port: choose another one"
            )
        server.start()
        self._server, self.address = server, f"{host}:{port}"
        return self.address

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until those are there that the run begins with, and tells now and then who is missing.

        Raises: EngineError after `timeout_s`.
        """
        began = time.monotonic()
        end, tells = math.inf if timeout_s is None else began + timeout_s, began + FIRST_TOLD_S
        while missing := self.missing():
            here, now = self.num_here, time.monotonic()
            who, facts = format_numbers(missing), dict[str, Any](gateways=here, missing=missing)
            if 0 < self.begins_with <= here:
                told = f"beginning with {here} gateway{'s' * (here != 1)}; nobody holds the devices {who}"
                self.tell(Sentence(told, "everybody", level="warning", **facts))
                return
            if now >= end:
                raise EngineError(
                    f"after {timeout_s:g} s no gateway holds the devices {who}; start those that do, or begin without "
                    "them (`midhaul serve --gateways N`)"
                )
            if now >= tells:
                tells = now + TOLD_S
                told = f"{here} gateway{' is' if here == 1 else 's are'} here; waiting for those with the devices {who}"
                self.tell(Sentence(told, "waiting", **facts))
            with self.changed:
                if self.missing() == missing and self.num_here == here:
                    self.changed.wait(min(end, tells) - now)
        told = f"all {len(self._wanted)} devices are here"
        self.tell(Sentence(told, "everybody", gateways=self.num_here, missing=[]))

    @property
    def num_here(self) -> int:
        """How many gateways are there."""
        return sum(peer.connection is not None for peer in list(self.peers.values()))

    def missing(self) -> list[int]:
        """Gives the devices that no gateway holds that is there now."""
        held = {d for peer in list(self.peers.values()) if peer.connection is not None for d in peer.devices}
        return [device for device in sorted(self._wanted) if device not in held]

    def holder(self) -> dict[int, Peer]:
        """Gives the gateway of each device that has one."""
        with self.changed:
            if self._holder is None:
                self._holder = {device: peer for peer in self.peers.values() for device in peer.devices}
            return self._holder

    def close(self, *, says_goodbye: bool = True) -> None:
        """Says goodbye to the gateways, or leaves them looking for the run's next server, and stops to listen."""
        if self._server is None:
            return
        with self.changed:
            self._is_closing = True
            for peer in self.peers.values():
                if peer.connection is not None:
                    if says_goodbye:
                        peer.connection.out.put(Envelope(Sign.GOODBYE, self.run, 0, 0, b""))
                    peer.connection.out.put(None)
        self._server.stop(2.0).wait()
        self._server = None

    def _stream(self) -> Any:
        """Gives gRPC what serves one stream."""
        inlet = _Inlet(Opener(self.run, self.max_bytes))
        serve = partial(self._serve, inlet)
        return channel.load().stream_stream_rpc_method_handler(serve, request_deserializer=inlet)

    def _serve(self, inlet: _Inlet, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Is one gateway's stream: the handshake, then what the gateway is asked, while a thread reads its answers."""
        grpc = channel.load()
        nonce = secrets.token_bytes(hello.NONCE_BYTES)
        limit = threading.Timer(HANDSHAKE_S, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            yield from seal(Envelope(Sign.CHALLENGE, self.run, 0, 0, nonce))
            said = Hello.unpack(_first(requests), self._token, nonce)
            peer, connection = self._admit(said, context.peer())
        except Refused as error:
            with self.changed:
                self.refused[str(Refusal.JOIN)] += 1
            told, facts = f"a gateway at {context.peer()} was refused: {error}", {"address": context.peer()}
            self.tell(Sentence(told, "refused", level="warning", kind=str(error.kind), **facts))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except grpc.RpcError:
            return
        finally:
            limit.cancel()
        inlet.take = partial(self._open, peer, inlet.opener)
        args = (peer, connection, inlet.take, requests)
        threading.Thread(target=self._read, args=args, name=f"gateway {peer.name}", daemon=True).start()
        while (envelope := connection.out.get()) is not None:
            yield from seal(envelope)

    def _admit(self, said: Hello, address: str) -> tuple[Peer, Connection]:
        """Takes a gateway in, or back in. Raises: Refused."""
        self._check(said)
        devices, connection = frozenset(said.rows), Connection(address)
        welcome = Envelope(Sign.WELCOME, self.run, 0, 0, bytes([self.shifted]))
        connection.out.put(welcome)
        with self.changed:
            for other in [p for p in self.peers.values() if p.devices & devices or p.name == said.name]:
                is_same = other.name == said.name and other.incarnation == said.incarnation
                if not is_same and other.connection is not None:
                    what = f"device {min(other.devices & devices)}" if other.devices & devices else "that name"
                    raise Refused(
                        Refusal.JOIN,
                        f"{what} is with gateway {other.name}, which is there; gateway {said.name} can't "
                        "have it too: give each other devices and another name",
                    )
            known = self.peers.get(said.name)
            if known is not None and known.incarnation == said.incarnation and known.devices == devices:
                if known.connection is not None:
                    known.connection.out.put(None)
                known.connection, known.is_gone, known.has_shifted = connection, False, self.shifted
                known.reconnections += 1
                known.send(self.run)
                told, event = f"gateway {said.name} is back", "gateway_back"
            else:
                known = self._replace(said, devices, connection)
                told, event = f"gateway {said.name} joined with {len(devices)} devices", "gateway_here"
            self.changed.notify_all()
        self.tell(Sentence(told, event, gateway=said.name, devices=sorted(devices), address=address))
        return known, connection

    def _replace(self, said: Hello, devices: frozenset[int], connection: Connection) -> Peer:
        """Takes in a process that holds nothing yet, in place of those that held its devices; what these were asked is
        to be asked again."""
        peer = Peer(said.name, devices, said.incarnation, said.holds, connection)
        for name, old in list(self.peers.items()):
            if old.devices & devices or name == said.name:
                del self.peers[name]
                if old.name == said.name and old.devices == devices:  # it started again
                    old.incarnation, old.connection, old.is_gone, old.knows = said.incarnation, connection, False, False
                    old.holds = said.holds
                    peer = old
                if old.turn is not None and not old.turn.is_answered:
                    old.turn.is_answered = True
                    if not old.turn.is_closed:
                        lost = None if peer is old else Refusal.FAILED
                        old.turn.end(kind=lost, why=RESTARTED if peer is old else "another gateway took its devices")
        peer.has_shifted = self.shifted
        self.peers[said.name], self._holder = peer, None
        return peer

    def _check(self, said: Hello) -> None:
        if said.version != __version__ or said.model != self.models.digest:
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} has midhaul {said.version} and another model than this run ({__version__}); give "
                "both sides the same version and config",
            )
        if not said.rows or not said.rows.keys() <= self._wanted:
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} holds no device, or one that this run doesn't have; they are 0 to "
                f"{max(self._wanted)}",
            )
        ours = hello.rows_of(self.population, tuple(said.rows))
        if odd := [device for device, rows in said.rows.items() if ours[device] != rows]:
            theirs, own = said.rows[odd[0]], ours[odd[0]]
            what = (
                f"has other rows for device {odd[0]} than this run"
                if theirs[0] == own[0]
                else f"has {theirs[0]} rows to train on for device {odd[0]}, and this run {own[0]}"
            )
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} {what}; give both sides the same data and the same data.* and run.seed",
            )

    def _open(self, peer: Peer, opener: Opener, data: bytes) -> None:
        """Takes an envelope of a gateway; counts and tells why where it isn't taken."""
        try:
            if (envelope := opener.open(data)) is not None:
                self._take(peer, envelope)
        except Refused as error:
            self.count(peer, error.kind)
            told, facts = f"gateway {peer.name}: {error.kind} refused: {error}", {"kind": str(error.kind)}
            self.tell(Sentence(told, "refused", level="warning", gateway=peer.name, **facts))
            self._fail(peer, error)
            with self.changed:
                self.changed.notify_all()

    def _read(
        self, peer: Peer, connection: Connection, take: Callable[[bytes], None], requests: Iterator[bytes]
    ) -> None:
        """Asks for what a gateway sends, one envelope after another, until its stream ends."""
        try:
            with contextlib.suppress(channel.load().RpcError):
                for data in requests:
                    if data is not TAKEN:
                        take(data)
        finally:
            connection.out.put(None)
            with self.changed:
                is_away = peer.connection is connection
                if is_away:
                    peer.connection = None
                    self.changed.notify_all()
        if is_away and not self._is_closing:
            self.tell(Sentence(f"gateway {peer.name} is away", "gateway_away", level="warning", gateway=peer.name))

    def _take(self, peer: Peer, envelope: Envelope) -> None:
        """Takes an answer. Raises: Refused."""
        with self.changed:
            peer.bytes_up += len(envelope.payload)
            turn = peer.place(envelope)
            peer.answers += 1
        if envelope.sign == Sign.FAILED:
            why = bytes(envelope.payload[:1000]).decode(errors="replace")
            raise Refused(Refusal.FAILED, " ".join(why.split()), envelope.seq)
        if envelope.sign != turn.job.wanted:
            raise Refused(Refusal.MALFORMED, f"{turn.job.sign.name} was answered by {envelope.sign.name}", envelope.seq)
        try:
            answer = turn.job.read(bytes(envelope.payload))
        except Refused as error:
            raise Refused(error.kind, str(error), envelope.seq) from None
        with self.changed:
            if turn.is_closed:
                raise Refused(Refusal.LATE, f"an answer to turn {turn.seq} after its deadline")
            turn.end(answer)

    def _fail(self, peer: Peer, error: Refused) -> None:
        """Ends the turn that something refused was the answer to."""
        with self.changed:
            turn = peer.turn
            if turn is not None and error.seq == turn.seq and not turn.is_closed:
                turn.is_answered = True
                turn.end(kind=error.kind, why=str(error))

    def count(self, peer: Peer, kind: Refusal, num: int = 1) -> None:
        """Counts what wasn't taken of a gateway."""
        if num:
            with self.changed:
                peer.refused[str(kind)] += num
                self.refused[str(kind)] += num


def _first(requests: Iterator[bytes]) -> bytes:
    """Gives the payload of a gateway's HELLO. Raises: Refused."""
    opener = Opener(0, hello.MAX_BYTES)
    for data in requests:
        if (envelope := opener.open(data)) is not None:
            if envelope.sign != Sign.HELLO:
                break
            return bytes(envelope.payload)
    raise Refused(Refusal.JOIN, "a stream begins with a HELLO; install the same midhaul on both sides")
