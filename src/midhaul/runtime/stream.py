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

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from midhaul import rng
from midhaul.errors import EngineError, QuorumError
from midhaul.fleet import Group, Part, Populated
from midhaul.message import Message, Op, Replies, gather, join
from midhaul.program import Population
from midhaul.runtime import about, channel, parcel
from midhaul.runtime.about import About
from midhaul.runtime.door import Door
from midhaul.runtime.envelope import MAX_BYTES, Refusal, Sign
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.parcel import Answer, Ask, Models
from midhaul.runtime.peer import RESTARTED, Job, Peer, Turn
from midhaul.runtime.shadow import Engine, Shadow
from midhaul.tree import Tree

MAX_GATEWAYS = 64
MAX_REPEATS = 10  # of a round below its quorum
_TESTS = (Op.EVALUATE, Op.PREDICT)
Jobs = dict[Peer, deque[Job]]
Reminders = dict[Peer, list[Job]]  # what gateways are told before they are asked anything


class Gateways(Populated):
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
        keepalive_s: float = channel.KEEPALIVE_S,
    ) -> None:
        """`credentials` are those of a gRPC server; None is for a loopback. Port 0 is any that is free. `wait_s` is how
        long a run waits for gateways that hold all devices, None for ever. `simulated` are the same devices here, for
        what only a test asks of them. `services` are gRPC handlers of others, for the same port. `keepalive_s` is that
        of `channel.options`.
        """
        self.population, self.models = population, Models.of(groups)
        self.deadline_s, self.quorum, self.max_bytes = deadline_s, quorum, max_bytes
        self.door = Door(
            self.models,
            population,
            token=token,
            address=address,
            credentials=credentials,
            max_bytes=max_bytes,
            max_gateways=max_gateways,
            services=services,
            keepalive_s=keepalive_s,
        )
        self.shadow = Shadow(groups, population)
        self._before: Tree = {}  # what the shadow knew at the beginning of the round
        self._round, self._attempt = -1, 0
        self._missed: dict[str, str] = {}  # how gateways failed to answer in time in this round: late, or away
        self.wait_s, self.simulated = wait_s, simulated
        self.opened: Callable[[Gateways], None] = lambda gateways: None  # is called once, when it listens

    @property
    def peers(self) -> dict[str, Peer]:
        """The gateways that ever came, by name."""
        return self.door.peers

    @property
    def refused(self) -> Counter[str]:
        """How much of what gateways sent wasn't taken, by kind."""
        return self.door.refused

    @property
    def address(self) -> str:
        return self.door.address

    @property
    def tell(self) -> Callable[[str], None]:
        return self.door.tell

    @tell.setter
    def tell(self, tell: Callable[[str], None]) -> None:
        self.door.tell = tell

    @property
    def begins_with(self) -> int:
        """Gateways that are enough to begin with, whoever is missing; 0: those of every device."""
        return self.door.begins_with

    @begins_with.setter
    def begins_with(self, num: int) -> None:
        self.door.begins_with = num

    @property
    def num_here(self) -> int:
        """How many gateways are there."""
        return self.door.num_here

    def open(self) -> str:
        """Starts to listen, if it doesn't yet; gives the address. Raises: ConfigError, DependencyError."""
        if not self.address:
            self.door.open()
            self.opened(self)
        return self.address

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until those are there that the run begins with. Raises: EngineError after `timeout_s`."""
        self.door.wait(timeout_s)

    def missing(self) -> list[int]:
        """Gives the devices that no gateway holds that is there now."""
        return self.door.missing()

    def close(self, *, says_goodbye: bool = True) -> None:
        """Says goodbye to the gateways, or leaves them looking for the run's next server, and stops to listen."""
        self.door.close(says_goodbye=says_goodbye)

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Sends a message to the gateways of its devices; gives the replies that came until the deadline.

        Raises: QuorumError where fewer devices answered than a round needs; EngineError where going on has no sense.
        """
        return self.exchange_parts([(message, self.devices if devices is None else devices)], key=key)[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with several messages in one step; a gateway does its parts one after another."""
        self.open()
        self._begin(key.round)
        absorbs = any(m.op == Op.LOAD and m.settings.get("rule") == "absorb" for m, _ in parts)
        asked = self._asked(parts)
        memory = {peer: self._reminders(peer) for peer in asked}
        # What is absorbed twice is not the same as once: who starts again in this step begins from before it.
        before = {peer: [self._memory(peer)] for peer in asked} if absorbs else {}
        jobs: Jobs = {}
        for number, (message, devices) in enumerate(parts):
            for peer, job in self._split(number, message, list(devices), key).items():
                jobs.setdefault(peer, deque()).append(job)
        for message, devices in parts:
            if message.op == Op.LOAD:
                self.shadow.load(message, list(devices))
        loads = any(message.op == Op.LOAD for message, _ in parts)
        turns = self._do(jobs, memory, before, forgets=loads)
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
        with (
            self.door.changed
        ):  # nothing is won by asking again before somebody is back, or has done what was asked before
            while self._share_free() < self.quorum and (left := end - time.monotonic()) > 0.0:
                self.door.changed.wait(left)

    def shift(self, population: Population) -> None:
        """Lets the devices have other rows, from now on: those that their gateways know of."""
        self.door.shifted = True  # each gateway is told before it is asked the next thing
        if self.simulated is not None and not isinstance(self.simulated, Firmware):
            self.simulated.shift(population)

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: what `stacked` would give.

        Of a gateway that is away, it is what was known of it last.
        """
        there = [p for p in list(self.peers.values()) if p.knows and p.connection is not None and not p.is_busy]
        job = Job(Sign.DUMP, b"", 0, Sign.STATE, lambda data: parcel.unpack_tree(data, self.max_bytes))
        turns = self._do({peer: deque([job]) for peer in there}, {}, {})
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
        there = [p for p in list(self.peers.values()) if p.connection is not None and not p.is_busy]
        jobs: Jobs = {
            p: deque([Job(Sign.ABOUT, b"", 0, Sign.TOLD, partial(about.read, devices=p.devices))]) for p in there
        }
        return about.merged(turn.answer for turn in self._do(jobs, {}, {}) if turn.kind is None)

    def about(self) -> list[dict[str, Any]]:
        """Gives what an operator wants to know of each gateway, as plain values."""
        return [peer.to_table() for peer in list(self.peers.values())]

    def attendance(self) -> dict[str, list[str]]:
        """Gives the names of the gateways that were here, late or away in this round."""
        found: dict[str, list[str]] = {"here": [], "late": [], "away": []}
        for peer in list(self.peers.values()):
            found[self._missed.get(peer.name) or ("away" if peer.connection is None else "here")].append(peer.name)
        return found

    def _begin(self, round: int) -> None:
        if round != self._round:
            self._missed.clear()
            self._round, self._attempt = round, 0
            if self.quorum:
                self._before = self.shadow.whole()

    def _share_free(self) -> float:
        """Gives the share of the devices that train whose gateways could be asked something now."""
        free = {d for p in self.peers.values() if p.connection is not None and not p.is_busy for d in p.devices}
        return len(free & {*self.devices}) / max(len(self.devices), 1)

    def _asked(self, parts: Sequence[Part]) -> list[Peer]:
        holder = self.door.holder()
        return list({id(p): p for _, devices in parts for d in devices if (p := holder.get(d)) is not None}.values())

    def _split(self, number: int, message: Message, devices: list[int], key: rng.Key) -> dict[Peer, Job]:
        """Gives what each gateway is asked of a message. `number` is that of the part, for `_gathered`."""
        holder, places = self.door.holder(), dict[Peer, list[int]]()
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

    def _reminders(self, peer: Peer) -> list[Job]:
        """Gives what a gateway is told before it is asked anything: whatever it missed."""
        found = []
        if self.door.shifted and not peer.has_shifted:
            found.append(Job(Sign.SHIFT, b"", 0, Sign.DONE, lambda data: None))
        if not peer.knows:
            found.append(self._memory(peer))
        return found

    def _memory(self, peer: Peer) -> Job:
        payload = parcel.pack_tree(self.shadow.of(sorted(peer.devices)))
        return Job(Sign.RESTORE, payload, 0, Sign.DONE, lambda data: None)

    def _do(self, jobs: Jobs, memory: Reminders, before: Reminders, forgets: bool = False) -> list[Turn]:
        """Asks each gateway its jobs in turn, all gateways at the same time, until the deadline; gives what ended.

        `memory` goes before a gateway's jobs; `before` is for one that starts again meanwhile, where what is known by
        then won't do.
        With `forgets`, a gateway that didn't do its jobs lacks what it should remember.
        """
        done: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        end, ended, under_way = time.monotonic() + self.deadline_s, list[Turn](), set[Turn]()
        if jobs and all(peer.is_gone for peer in jobs):
            self._await_any(list(jobs), end)
        for peer, todo in jobs.items():
            todo.extendleft(reversed(memory.get(peer, [])))
            with self.door.changed:
                if peer.is_gone or peer.is_busy:
                    peer.knows = peer.knows and not forgets
                    self._missed[peer.name] = "late" if peer.is_busy and peer.connection is not None else "away"
                else:
                    under_way.add(peer.post(todo.popleft(), self.door.run, done))
        while under_way:
            try:
                turn = done.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            under_way.discard(turn)
            peer, todo = turn.peer, jobs[turn.peer]
            if turn.why == RESTARTED:
                todo.appendleft(turn.job)
                if turn.job.sign == Sign.EXCHANGE:
                    todo.extendleft(before.get(peer) or [self._memory(peer)])
            elif turn.kind is not None:
                ended.append(turn)
                peer.knows = peer.knows and not forgets
                continue
            else:
                ended.append(turn)
                peer.knows = peer.knows or turn.job.sign == Sign.RESTORE
                peer.has_shifted = peer.has_shifted or turn.job.sign == Sign.SHIFT
            if todo:
                with self.door.changed:
                    under_way.add(peer.post(todo.popleft(), self.door.run, done))
        with self.door.changed:
            for turn in under_way:
                if not turn.is_closed:
                    turn.is_closed, peer = True, turn.peer
                    peer.is_gone = peer.connection is None
                    self._missed[peer.name] = "away" if peer.is_gone else "late"
                    peer.knows = peer.knows and not forgets
        return ended

    def _await_any(self, peers: list[Peer], end: float) -> None:
        with self.door.changed:
            while all(peer.is_gone for peer in peers):
                if (left := end - time.monotonic()) <= 0.0:
                    raise EngineError(
                        f"no gateway was there for {self.deadline_s:g} s; see why, then go on with --resume"
                    )
                self.door.changed.wait(left)

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
                self.door.count(turn.peer, Refusal.NON_FINITE, len(answer.unsound))
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


def _joined(parts: list[Replies]) -> Replies:
    """Gives the replies of gateways as one, whoever was first."""
    return join(sorted(parts, key=lambda part: part.devices)) if parts else gather({})
