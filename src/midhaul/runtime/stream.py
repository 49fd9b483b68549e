"""The fleet of many machines: gateways hold the devices, and each keeps one gRPC stream to the server open.

A gateway is a fleet of its own (`stacked`, `cluster`, firmware), so this is a fleet of fleets. An exchange is split by
the gateway that holds a device, done by all at the same time, and put together again in the order of the devices: the
numbers don't depend on who answered first. The other end is `gateway.Gateway`; docs/federation.md has the whole.

What a gateway is asked has its effect once, whatever happens to the connection (`peer.Peer`). An exchange ends at its
deadline with those who answered. A gateway that was away at a deadline isn't waited for until it is back; one that is
still at work isn't asked; and both are told what their devices should remember before they are asked again.

Limits: a gateway's process that dies takes along what its devices trained and didn't send (tensors of their own,
momentum, a batch in flight) since the last checkpoint; they go on from what was known then.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from midhaul import __version__, rng
from midhaul.errors import ConfigError, EngineError, QuorumError
from midhaul.fleet import Group, Part
from midhaul.message import Message, Op, Replies, gather, join
from midhaul.program import Population
from midhaul.runtime import about, channel, hello, parcel
from midhaul.runtime.about import About
from midhaul.runtime.envelope import MAX_BYTES, Envelope, Opener, Refusal, Refused, Sign, seal
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.hello import Hello
from midhaul.runtime.parcel import Answer, Ask, Models
from midhaul.runtime.peer import RESTARTED, Connection, Job, Peer, Turn
from midhaul.runtime.shadow import Engine, Shadow
from midhaul.tree import Tree

HANDSHAKE_S = 20.0
MAX_GATEWAYS = 64
MAX_REPEATS = 10  # of a round below its quorum
_TESTS = (Op.EVALUATE, Op.PREDICT)
_ANSWERS = (Sign.REPLIES, Sign.STATE, Sign.DONE, Sign.TOLD, Sign.FAILED)
Jobs = dict[Peer, deque[Job]]


class Gateways:
    """A fleet whose devices lie behind gateways, which come to it.

    `quorum` is the share of the devices asked that must answer; `groups` say which model a device has, and `population`
    which devices there are and how many rows each has, which a gateway must agree with. `tell` is given a sentence of
    what happens to gateways, from other threads too.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        population: Population,
        *,
        token: str,
        address: str = "127.0.0.1:0",
        deadline_s: float = 120.0,
        quorum: float = 0.0,
        credentials: Any = None,
        max_bytes: int = MAX_BYTES,
        max_gateways: int = MAX_GATEWAYS,
        wait_s: float | None = None,
        simulated: Engine | None = None,
        services: Sequence[Any] = (),
    ) -> None:
        """`credentials` are those of a gRPC server; None is for a loopback. Port 0 is any that is free. `wait_s` is how
        long a run waits for gateways that hold all devices, None for ever. `simulated` are the same devices here, for
        what only a test asks of them. `services` are gRPC handlers of others, for the same port.
        """
        if len(token) < 16:
            raise ConfigError("a run's token has at least 16 characters; secrets.token_hex(16) makes one")
        self.population, self.models = population, Models.of(groups)
        self.deadline_s, self.quorum, self.max_bytes = deadline_s, quorum, max_bytes
        self.run = secrets.randbits(64) | 1
        self.tell: Callable[[str], None] = lambda line: None
        self.peers: dict[str, Peer] = {}
        self.refused: Counter[str] = Counter()  # of all gateways, by kind
        self.shadow = Shadow(groups, population)
        self._before: Tree = {}  # what the shadow knew at the beginning of the round
        self._round, self._attempt = -1, 0
        self._shifted = False
        self._token, self._wanted_address = token, address
        self._credentials, self._max_gateways, self._services = credentials, max_gateways, tuple(services)
        self._lock = threading.Lock()
        self._joined = threading.Condition(self._lock)
        self._server: Any = None
        self.address = ""
        self.wait_s, self.simulated = wait_s, simulated
        self.opened: Callable[[Gateways], None] = lambda gateways: None  # is called once, when it listens
        self.begins_with = 0  # gateways that are enough to begin with, whoever is missing; 0: those of every device

    @property
    def devices(self) -> tuple[int, ...]:
        return self.population.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.population.test_devices

    def open(self) -> str:
        """Starts to listen; gives the address.

        Raises: ConfigError where that can't be; DependencyError without gRPC.
        """
        if self._server is not None:
            return self.address
        grpc = channel.load()
        pool = ThreadPoolExecutor(self._max_gateways + 4, "gateway")
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        handlers = (grpc.method_handlers_generic_handler(channel.SERVICE, {channel.METHOD: handler}),)
        server = grpc.server(
            pool, (*handlers, *self._services), options=channel.OPTIONS, maximum_concurrent_rpcs=self._max_gateways + 4
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
        self.opened(self)
        return self.address

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until every device is held by a gateway that is there. Raises: EngineError after `timeout_s`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._joined:
            while (missing := self.missing()) and not 0 < self.begins_with <= self.num_here:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0.0:
                    raise EngineError(
                        f"no gateway holds device {missing[0]} ({len(missing)} of {len(self.models.programs)} are "
                        f"missing) after {timeout_s:g} s; start the gateways that hold them"
                    )
                self._joined.wait(left)

    @property
    def num_here(self) -> int:
        """How many gateways are there."""
        return sum(peer.connection is not None for peer in list(self.peers.values()))

    def missing(self) -> list[int]:
        """Gives the devices that no gateway holds that is there now."""
        held = {d for peer in list(self.peers.values()) if peer.connection is not None for d in peer.devices}
        return [device for device in sorted({*self.devices, *self.test_devices}) if device not in held]

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Sends a message to the gateways of its devices; gives the replies that came until the deadline.

        Raises: QuorumError where fewer devices answered than a round needs; EngineError where going on has no sense.
        """
        return self.exchange_parts([(message, self.devices if devices is None else devices)], key=key)[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with several messages in one step; a gateway does its parts one after another."""
        self.open()
        self._begin(key.round)
        memory: dict[Peer, Job] = {p: self._reminder(p) for p in self._asked(parts) if not p.knows}
        jobs: Jobs = {}
        for number, (message, devices) in enumerate(parts):
            for peer, job in self._split(number, message, list(devices), key).items():
                jobs.setdefault(peer, deque()).append(job)
        for message, devices in parts:
            if message.op == Op.LOAD:
                self.shadow.load(message, list(devices))
        loads = any(message.op == Op.LOAD for message, _ in parts)
        turns = self._do(jobs, memory, forgets=loads)
        return self._gathered(parts, turns, key)

    def again(self) -> None:
        """Goes back to the beginning of the round, everywhere: it is to be repeated. Raises: EngineError if that was
        done too often."""
        self._attempt += 1
        if self._attempt > MAX_REPEATS:
            raise EngineError(
                f"round {self._round} was below its quorum {MAX_REPEATS} times; see why gateways don't answer, then go "
                "on with --resume"
            )
        self.shadow.restore(self._before)
        end = time.monotonic() + self.deadline_s
        with self._joined:  # nothing is won by asking again before somebody is back, or has done what was asked before
            while self._share_free() < self.quorum and (left := end - time.monotonic()) > 0.0:
                self._joined.wait(left)

    def shift(self, population: Population) -> None:
        """Lets the devices have other rows, from now on: those that their gateways know of."""
        self._shifted = True
        if self.simulated is not None and not isinstance(self.simulated, Firmware):
            self.simulated.shift(population)
        there = [peer for peer in self.peers.values() if not peer.is_gone]
        job = Job(Sign.SHIFT, b"", 0, Sign.DONE, lambda data: None)
        self._settle(self._do({peer: deque([job]) for peer in there}, {}))

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: what `stacked` would give.

        Of a gateway that is away, it is what was known of it last.
        """
        there = [p for p in self.peers.values() if p.knows and p.connection is not None and not p.is_busy]
        job = Job(Sign.DUMP, b"", 0, Sign.STATE, lambda data: parcel.unpack_tree(data, self.max_bytes))
        turns = self._do({peer: deque([job]) for peer in there}, {})
        self._settle(turns)
        self.shadow.keep([(sorted(t.peer.devices), t.answer) for t in turns if t.kind is None and t.is_answered])
        return self.shadow.whole()

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them; each gateway is told before it is asked the next thing."""
        self.shadow.restore(whole)
        for peer in list(self.peers.values()):
            peer.knows = False

    def told(self) -> About:
        """Gives what gateways tell of their devices: what computed, events and figures of firmware."""
        there = [p for p in self.peers.values() if p.connection is not None and not p.is_busy]
        jobs: Jobs = {
            p: deque([Job(Sign.ABOUT, b"", 0, Sign.TOLD, partial(about.read, devices=p.devices))]) for p in there
        }
        return about.merged(turn.answer for turn in self._do(jobs, {}) if turn.kind is None)

    def about(self) -> list[dict[str, Any]]:
        """Gives what an operator wants to know of each gateway, as plain values."""
        return [peer.to_table() for peer in list(self.peers.values())]

    def close(self, *, says_goodbye: bool = True) -> None:
        """Says goodbye to the gateways, or leaves them looking for the run's next server, and stops to listen."""
        if self._server is None:
            return
        with self._lock:
            for peer in self.peers.values():
                if peer.connection is not None:
                    if says_goodbye:
                        peer.connection.out.put(Envelope(Sign.GOODBYE, self.run, 0, 0, b""))
                    peer.connection.out.put(None)
        self._server.stop(2.0).wait()
        self._server = None

    def _begin(self, round: int) -> None:
        if round != self._round:
            self._round, self._attempt = round, 0
            if self.quorum:
                self._before = self.shadow.whole()

    def _share_free(self) -> float:
        """Gives the share of the devices that train whose gateways could be asked something now."""
        free = {d for p in self.peers.values() if p.connection is not None and not p.is_busy for d in p.devices}
        return len(free & {*self.devices}) / max(len(self.devices), 1)

    def _holder(self) -> dict[int, Peer]:
        with self._lock:
            return {device: peer for peer in self.peers.values() for device in peer.devices}

    def _asked(self, parts: Sequence[Part]) -> list[Peer]:
        holder = self._holder()
        return list({id(p): p for _, devices in parts for d in devices if (p := holder.get(d)) is not None}.values())

    def _split(self, number: int, message: Message, devices: list[int], key: rng.Key) -> dict[Peer, Job]:
        """Gives what each gateway is asked of a message. `number` is that of the part, for `_gathered`."""
        holder, places = self._holder(), dict[Peer, list[int]]()
        for place, device in enumerate(devices):
            if (peer := holder.get(device)) is not None:
                places.setdefault(peer, []).append(place)
        shared = parcel.pack_shared(message, key.round)
        jobs = {}
        for peer, held in places.items():
            part = message if len(held) == len(devices) else message.of_places(held)
            ask = Ask(part, tuple(devices[p] for p in held), key, self._attempt, self.quorum > 0.0)

            def read(data: bytes, ask: Ask = ask) -> tuple[int, Ask, Answer]:
                return number, ask, parcel.unpack_answer(data, ask, self.models, self.max_bytes)

            payload = parcel.pack_ask(ask, shared)
            if len(payload) > self.max_bytes:
                raise EngineError(
                    f"{message.op.name} for gateway {peer.name} has {len(payload)} bytes, and at most {self.max_bytes} "
                    "are sent; let a gateway hold fewer devices, or raise the bound on both sides"
                )
            jobs[peer] = Job(Sign.EXCHANGE, payload, key.round, Sign.REPLIES, read)
        return jobs

    def _reminder(self, peer: Peer) -> Job:
        payload = parcel.pack_tree(self.shadow.of(sorted(peer.devices)))
        return Job(Sign.RESTORE, payload, 0, Sign.DONE, lambda data: None)

    def _do(self, jobs: Jobs, memory: dict[Peer, Job], forgets: bool = False) -> list[Turn]:
        """Asks each gateway its jobs in turn, all gateways at the same time, until the deadline; gives what ended.

        With `forgets`, a gateway that didn't do its jobs lacks what it should remember.
        """
        done: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        end, ended, under_way = time.monotonic() + self.deadline_s, list[Turn](), set[Turn]()
        if jobs and all(peer.is_gone for peer in jobs):
            self._await_any(list(jobs), end)
        for peer, todo in jobs.items():
            if peer in memory:
                todo.appendleft(memory[peer])
            with self._lock:
                if peer.is_gone or peer.is_busy:
                    peer.knows = peer.knows and not forgets
                else:
                    under_way.add(peer.post(todo.popleft(), self.run, done))
        while under_way:
            try:
                turn = done.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            under_way.discard(turn)
            peer, todo = turn.peer, jobs[turn.peer]
            if turn.why == RESTARTED:
                todo.appendleft(turn.job)
                if turn.job.sign != Sign.RESTORE:
                    todo.appendleft(memory.get(peer) or self._reminder(peer))
            elif turn.kind is not None:
                ended.append(turn)
                peer.knows = peer.knows and not forgets
                continue
            else:
                ended.append(turn)
                peer.knows = peer.knows or turn.job.sign == Sign.RESTORE
            if todo:
                with self._lock:
                    under_way.add(peer.post(todo.popleft(), self.run, done))
        with self._lock:
            for turn in under_way:
                if not turn.is_closed:
                    turn.is_closed, peer = True, turn.peer
                    peer.is_gone = peer.connection is None
                    peer.knows = peer.knows and not forgets
        return ended

    def _await_any(self, peers: list[Peer], end: float) -> None:
        with self._joined:
            while all(peer.is_gone for peer in peers):
                if (left := end - time.monotonic()) <= 0.0:
                    raise EngineError(
                        f"no gateway was there for {self.deadline_s:g} s; see why, then go on with --resume"
                    )
                self._joined.wait(left)

    def _settle(self, turns: list[Turn]) -> None:
        """Raises: EngineError where a gateway says that it can't."""
        for turn in turns:
            if turn.kind == Refusal.FAILED:
                raise EngineError(f"gateway {turn.peer.name} can't {turn.job.sign.name}: {turn.why}")

    def _gathered(self, parts: Sequence[Part], turns: list[Turn], key: rng.Key) -> list[Replies]:
        answers: list[list[Replies]] = [[] for _ in parts]
        unsound: list[int] = []
        for turn in turns:
            if turn.kind is None and turn.job.sign == Sign.EXCHANGE:
                number, _, answer = turn.answer
                unsound += answer.unsound
                self._count(turn.peer, Refusal.NON_FINITE, len(answer.unsound))
                if len(answer.replies):
                    answers[number].append(answer.replies)
        num_asked = sum(len(devices) for _, devices in parts)
        num_answered = sum(len(replies) for part in answers for replies in part)
        failed = [turn for turn in turns if turn.kind is not None]
        if num_asked and not num_answered:
            if unsound:
                raise EngineError(
                    f"round {key.round}: all {len(unsound)} devices that answered had numbers that are not finite, so "
                    "training diverged; lower scheme.lr (or large.lr for a split scheme)"
                )
            if failed:
                turn = failed[0]
                raise EngineError(
                    f"round {key.round}: gateway {turn.peer.name} can't do {parts[0][0].op.name}: {turn.why}"
                )
        needed = self.quorum if parts and parts[0][0].op not in _TESTS else 0.0
        if num_asked and (not num_answered or num_answered < needed * num_asked):
            raise QuorumError(
                f"round {key.round}: {num_answered} of {num_asked} devices answered within {self.deadline_s:g} s, and "
                f"fleet.quorum wants {max(1, round(needed * num_asked))}; see why gateways are away, then go on with "
                "--resume"
            )
        return [_joined(part) for part in answers]

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
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
            with self._lock:
                self.refused[str(Refusal.JOIN)] += 1
            self.tell(f"a gateway at {context.peer()} was refused: {error}")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except grpc.RpcError:
            return
        finally:
            limit.cancel()
        args = (peer, connection, requests)
        threading.Thread(target=self._read, args=args, name=f"gateway {peer.name}", daemon=True).start()
        while (envelope := connection.out.get()) is not None:
            yield from seal(envelope)

    def _admit(self, said: Hello, address: str) -> tuple[Peer, Connection]:
        """Takes a gateway in, or back in. Raises: Refused."""
        self._check(said)
        devices, connection = frozenset(said.rows), Connection(address)
        welcome = Envelope(Sign.WELCOME, self.run, 0, 0, bytes([self._shifted]))
        connection.out.put(welcome)
        with self._joined:
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
                known.connection, known.is_gone = connection, False
                known.reconnections += 1
                known.send(self.run)
                told = f"gateway {said.name} is back"
            else:
                known = self._replace(said, devices, connection)
                told = f"gateway {said.name} joined with {len(devices)} devices"
            self._joined.notify_all()
        self.tell(told)
        return known, connection

    def _replace(self, said: Hello, devices: frozenset[int], connection: Connection) -> Peer:
        """Takes in a process that holds nothing yet, in place of those that held its devices; what these were asked is
        to be asked again."""
        peer = Peer(said.name, devices, said.incarnation, connection)
        for name, old in list(self.peers.items()):
            if old.devices & devices or name == said.name:
                del self.peers[name]
                if old.name == said.name and old.devices == devices:  # it started again
                    old.incarnation, old.connection, old.is_gone, old.knows = said.incarnation, connection, False, False
                    peer = old
                if old.turn is not None and not old.turn.is_answered:
                    old.turn.is_answered = True
                    if not old.turn.is_closed:
                        lost = None if peer is old else Refusal.FAILED
                        old.turn.end(kind=lost, why=RESTARTED if peer is old else "another gateway took its devices")
        self.peers[said.name] = peer
        return peer

    def _check(self, said: Hello) -> None:
        wanted = {*self.devices, *self.test_devices}
        if said.version != __version__ or said.model != self.models.digest:
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} has midhaul {said.version} and another model than this run ({__version__}); give "
                "both sides the same version and config",
            )
        if not said.rows or not said.rows.keys() <= wanted:
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} holds no device, or one that this run doesn't have; they are 0 to {max(wanted)}",
            )
        ours = hello.counts_of(self.population, tuple(said.rows))
        if odd := [device for device, counts in said.rows.items() if ours[device] != counts]:
            raise Refused(
                Refusal.JOIN,
                f"gateway {said.name} has {said.rows[odd[0]][0]} rows to train on for device {odd[0]}, and this run "
                f"{ours[odd[0]][0]}; give both sides the same data and the same data.* and run.seed",
            )

    def _read(self, peer: Peer, connection: Connection, requests: Iterator[bytes]) -> None:
        """Takes what a gateway sends until its stream ends."""
        opener = Opener(self.run, self.max_bytes)
        with contextlib.suppress(channel.load().RpcError):
            for data in requests:
                try:
                    if (envelope := opener.open(data)) is not None:
                        self._take(peer, envelope)
                except Refused as error:
                    self._count(peer, error.kind)
                    self.tell(f"gateway {peer.name}: {error.kind} refused: {error}")
                    self._fail(peer, error)
                    with self._joined:
                        self._joined.notify_all()
        connection.out.put(None)
        with self._joined:
            if peer.connection is connection:
                peer.connection = None
                self._joined.notify_all()
                self.tell(f"gateway {peer.name} is away")

    def _take(self, peer: Peer, envelope: Envelope) -> None:
        """Takes an answer. Raises: Refused."""
        with self._lock:
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
        with self._lock:
            if turn.is_closed:
                raise Refused(Refusal.LATE, f"an answer to turn {turn.seq} after its deadline")
            turn.end(answer)

    def _fail(self, peer: Peer, error: Refused) -> None:
        """Ends the turn that something refused was the answer to."""
        with self._lock:
            turn = peer.turn
            if turn is not None and error.seq == turn.seq and not turn.is_closed:
                turn.is_answered = True
                turn.end(kind=error.kind, why=str(error))

    def _count(self, peer: Peer, kind: Refusal, num: int = 1) -> None:
        if num:
            with self._lock:
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


def _joined(parts: list[Replies]) -> Replies:
    """Gives the replies of gateways as one, whoever was first."""
    return join(sorted(parts, key=lambda part: part.devices)) if parts else gather({})
