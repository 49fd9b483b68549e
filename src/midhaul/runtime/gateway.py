"""A gateway: a fleet on a machine of its own, which keeps one stream to the server open and does what comes over it.

It opens the stream itself, so that it may lie behind a firewall, and opens it again when it was cut. Each turn is done
once: the last answer is kept, and sent again when the server asks for it again.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from midhaul.errors import ConfigError, EngineError, MidhaulError
from midhaul.fleet import Fleet
from midhaul.message import Op
from midhaul.program import Population
from midhaul.runtime import about, channel, hello, parcel, shadow
from midhaul.runtime.envelope import MAX_BYTES, Envelope, Opener, Refused, Sign, seal
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.groups import Groups, kernels_of
from midhaul.runtime.hello import Hello
from midhaul.runtime.loop import Loop
from midhaul.runtime.parcel import Answer, Ask, Models
from midhaul.runtime.shadow import Engine
from midhaul.sentences import Sentence
from midhaul.tree import Tree

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # between two tries to reach the server; each is twice the one before
MAX_ODD = 10  # streams in a row that brought nothing but what can't be read
_DONE, _FAILED = Sign.DONE, Sign.FAILED


@dataclass
class _Memory:
    """What the devices remembered at the beginning of a round, and which repetition of it is under way."""

    round: int = -1
    attempt: int = 0
    whole: Tree | None = None


class Gateway:
    """Devices that serve a run elsewhere.

    `engine` is the fleet that holds them, `models` say what lies on the devices of the whole run. `after` are the rows
    that the devices have once they have drifted. Unless `gives_rows`, no example leaves the gateway, whatever the
    scheme asks. `patience_s` is how long the server may be away.
    """

    def __init__(
        self,
        engine: Engine,
        models: Models,
        *,
        address: str,
        token: str,
        name: str,
        credentials: Any = None,
        after: Population | None = None,
        gives_rows: bool = False,
        max_bytes: int = MAX_BYTES,
        patience_s: float = 600.0,
        options: tuple[tuple[str, Any], ...] = (),
        keepalive_s: float = channel.KEEPALIVE_S,
    ) -> None:
        """`credentials` are those of a gRPC channel; None is for a loopback. `options` are more of the channel's."""
        if not 0 < len(name) <= hello.MAX_NAME or not name.isprintable():
            raise ConfigError(f"a gateway's name has 1 to {hello.MAX_NAME} printable characters, not {name!r}")
        if isinstance(engine, Groups) and any(isinstance(part, Loop) for part in engine.engines):
            raise ConfigError("devices with unlike models behind a gateway want run.engine = 'stacked', not 'loop'")
        for kernels in [] if isinstance(engine, Firmware) else kernels_of(engine):
            kernels.prepare()  # before anything else of this process calls modules
        self.engine, self.models, self.name, self.address = engine, models, name, address
        self.after, self.gives_rows, self.max_bytes, self.patience_s = after, gives_rows, max_bytes, patience_s
        self.tell: Callable[[str], None] = lambda line: None
        self.saw: Callable[[Ask, Answer], None] = lambda ask, answer: None  # each exchange that was done
        self.done = 0  # turns
        self.refused: Counter[str] = Counter()  # what the server sent and wasn't taken, by kind
        self.connections = 0
        self._token, self._credentials, self._options = token, credentials, options
        self._settings = channel.options(keepalive_s)
        self._incarnation = secrets.token_hex(8)
        self._holds = about.holds(engine)
        self._rows = hello.rows_of(engine.population, self.devices)  # as they are before any drift
        self._run, self._last = 0, Envelope(_DONE, 0, 0, 0, b"")
        self._kept = _Memory()
        self._shifted = False
        self._stop = threading.Event()
        self._held = frozenset(self.devices)
        self._call: Any = None

    @property
    def devices(self) -> tuple[int, ...]:
        """The devices that it holds, those that only test among them."""
        fleet: Fleet = self.engine
        return tuple(sorted({*fleet.devices, *fleet.test_devices}))

    def run(self) -> None:
        """Serves until the server says goodbye or `close` is called.

        Raises: EngineError where the server refuses it, or was away for longer than its patience.
        """
        grpc = channel.load()
        wait_s, last = FIRST_WAIT_S, time.monotonic()
        odd, sound = 0, self.done  # streams that couldn't be read since the last turn that was done
        while not self._stop.is_set():
            before = self.connections
            try:
                if self._session(grpc):
                    return
                why = "the stream ended"
            except Refused as error:  # what came can't have been sent so: the next stream may be sound
                why = f"{error.kind} refused: {error}"
                self.refused[str(error.kind)] += 1
                odd, sound = (odd + 1 if self.done == sound else 1), self.done
                if odd == MAX_ODD:
                    raise EngineError(
                        f"the server at {self.address} can't be understood, {odd} times without anything sound between "
                        f"({why}); install the same midhaul on both sides"
                    ) from None
            except grpc.RpcError as error:
                why = _sentence(error)
                if error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED):
                    raise EngineError(f"the server at {self.address} refused gateway {self.name}: {why}") from None
            if self.connections > before:
                wait_s, last = FIRST_WAIT_S, time.monotonic()
                told = f"lost the server at {self.address} ({why}); trying to reach it again"
                self.tell(Sentence(told, "lost", level="warning", gateway=self.name, address=self.address))
            if time.monotonic() - last > self.patience_s:
                raise EngineError(
                    f"the server at {self.address} can't be reached for {self.patience_s:g} s ({why}); check the "
                    "address and whether `midhaul serve` runs there"
                )
            self._stop.wait(wait_s)
            wait_s = min(2.0 * wait_s, LONGEST_WAIT_S)

    def close(self) -> None:
        """Ends `run`, from another thread."""
        self._stop.set()
        if (call := self._call) is not None:
            call.cancel()

    def _session(self, grpc: Any) -> bool:
        """Serves over one stream; tells whether the run has ended. Raises: grpc.RpcError where the stream was cut."""
        options = (*self._settings, *self._options)
        opened = (
            grpc.insecure_channel(self.address, options)
            if self._credentials is None
            else grpc.secure_channel(self.address, self._credentials, options)
        )
        session = _Session(self._take, self.max_bytes)
        try:
            self._call = call = opened.stream_stream(f"/{channel.SERVICE}/{channel.METHOD}")(session)
            if self._stop.is_set():
                return True
            return session.serve(call)
        finally:
            self._call = None
            opened.close()
            session.close()

    def _take(self, envelope: Envelope, opener: Opener) -> Envelope | None:
        """Does what the server says; gives what answers it."""
        if envelope.sign == Sign.CHALLENGE:
            said = Hello(self.name, self._incarnation, self.models.digest, self._rows, holds=self._holds)
            return Envelope(Sign.HELLO, 0, 0, 0, said.pack(self._token, bytes(envelope.payload)))
        if envelope.sign == Sign.WELCOME:
            self._welcome(envelope)
            opener.run = envelope.run
            return None
        return self._answer(envelope) if opener.run else None

    def _welcome(self, envelope: Envelope) -> None:
        if envelope.run != self._run:  # another process than before, or the first
            self._run, self._last, self._kept = envelope.run, Envelope(_DONE, envelope.run, 0, 0, b""), _Memory()
        if bytes(envelope.payload[:1]) == b"\1":
            self._shift()
        self.connections += 1
        told, facts = f"joined the run at {self.address} with {len(self.devices)} devices", {"address": self.address}
        self.tell(Sentence(told, "joined", gateway=self.name, devices=self.devices, **facts))

    def _answer(self, envelope: Envelope) -> Envelope | None:
        """Does a turn, if it wasn't done; gives what answers it."""
        if envelope.seq <= self._last.seq:
            return self._last if envelope.seq == self._last.seq else None
        try:
            sign, payload = self._do(envelope)
        except MidhaulError as error:
            sign, payload = _FAILED, str(error).encode()
            told = f"{envelope.sign.name} of round {envelope.round} can't be done: {error}"
            self.tell(Sentence(told, "failed", level="warning", gateway=self.name, round=envelope.round))
        if len(payload) > self.max_bytes:
            why = f"an answer of {len(payload)} bytes, and at most {self.max_bytes} are sent; raise the bound"
            sign, payload = _FAILED, why.encode()
        self._last = Envelope(sign, envelope.run, envelope.seq, envelope.round, payload)
        self.done += 1
        return self._last

    def _do(self, envelope: Envelope) -> tuple[Sign, bytes]:
        payload = bytes(envelope.payload)
        if envelope.sign == Sign.EXCHANGE:
            ask = parcel.unpack_ask(payload, self.models, self.max_bytes)
            return Sign.REPLIES, parcel.pack_answer(self._exchange(ask), ask.message.op, ask.key.round)
        if envelope.sign == Sign.DUMP:
            return Sign.STATE, parcel.pack_tree(shadow.told(self.engine))
        if envelope.sign == Sign.RESTORE:
            shadow.remind(self.engine, parcel.unpack_tree(payload, self.max_bytes), self.devices)
            self._kept = _Memory()
            return _DONE, b""
        if envelope.sign == Sign.SHIFT:
            self._shift()
            return _DONE, b""
        if envelope.sign == Sign.ABOUT:
            return Sign.TOLD, about.of(self.engine)
        raise EngineError(f"a gateway isn't asked for {envelope.sign.name}")

    def _exchange(self, ask: Ask) -> Answer:
        message = ask.message
        if strange := set(ask.devices) - self._held:
            raise EngineError(f"this gateway doesn't hold device {min(strange)}")
        if message.op == Op.READ and message.settings.get("what") in ("examples", "test") and not self.gives_rows:
            raise EngineError(
                "no example leaves this gateway; start it so that it gives rows, or choose another scheme"
            )
        if ask.keeps:
            self._turn_back(ask)
        answer = parcel.sound(self.engine.exchange(message, key=ask.key, devices=list(ask.devices)))
        self.saw(ask, answer)
        return answer

    def _turn_back(self, ask: Ask) -> None:
        """Keeps what the devices remember where a round begins, and goes back to it where one is repeated."""
        kept, round = self._kept, ask.key.round
        if kept.round != round or kept.whole is None:
            self._kept = _Memory(round, ask.attempt, self.engine.dump())
        elif kept.attempt < ask.attempt:
            self.engine.restore(kept.whole)
            self._kept.attempt = ask.attempt

    def _shift(self) -> None:
        if self._shifted:
            return
        if self.after is None or isinstance(self.engine, Firmware):
            raise EngineError("this gateway's devices have no other rows to drift to; give both sides the same config")
        self.engine.shift(self.after)
        self._shifted = True


class _Session:
    """One stream to the server: an iterator of what the gateway sends.

    gRPC asks for what is to be sent in a thread of its own, so what came is read, done and answered in that one: no
    thread waits for another.
    """

    def __init__(self, take: Callable[[Envelope, Opener], Envelope | None], max_bytes: int) -> None:
        self._take, self._opener = take, Opener(0, max_bytes)
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._parts: Iterator[bytes] = iter(())
        self._working, self._over = threading.Lock(), threading.Event()
        self._is_closed = self._has_ended = False
        self._error: BaseException | None = None

    def serve(self, call: Any) -> bool:
        """Waits until the stream or the run is over; tells which. Raises: what ended the stream."""
        if not call.add_callback(self._over.set):
            self._over.set()
        self._calls.put(call)
        self._over.wait()
        if self._has_ended:
            return True
        with self._working:  # what is under way is done before another stream is opened
            self._is_closed = True
        if self._error is not None:
            raise self._error
        if call.code().value[0]:
            raise call
        return self._has_ended

    def close(self) -> None:
        """Lets the thread that asks for more go, and waits for what it does."""
        self._calls.put(None)
        with self._working:
            self._is_closed = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if (part := next(self._parts, None)) is not None:
            return part
        if self._call is None:
            self._call = self._calls.get()
        with self._working:
            answer = None if self._is_closed or self._call is None else self._next()
        if answer is None:
            self._over.set()
            raise StopIteration
        self._parts = seal(answer)
        return next(self._parts)

    def _next(self) -> Envelope | None:
        """Gives the next answer, None where there is none to come."""
        try:
            for data in self._call:
                envelope = self._opener.open(data)
                if envelope is None:
                    continue
                if envelope.sign == Sign.GOODBYE:
                    self._has_ended = True
                    return None
                if (answer := self._take(envelope, self._opener)) is not None:
                    return answer
        except Exception as error:  # for the thread that waits in `serve`
            self._error = error
        return None


def _sentence(error: Any) -> str:
    return " ".join(str(error.details() or error.code().name).split())[:300]
