"""One device behind an address, as its server knows it: what it was given, what it holds, what it must be given again.

A device keeps less than `midhaul.ops` lets it: the tensors that nothing trains are baked into its blob, and a message's
parameters overwrite those in its RAM. So the server keeps a shadow of each device, and restores before an op what that
op relies on; seen from outside, the device does as `ops` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import EngineError, FrameError
from midhaul.link import frame, refusal
from midhaul.link.compress import Coded
from midhaul.link.frame import Frame
from midhaul.message import HOUSEKEEPING, ROW_KINDS, UPDATE, Message, Op, Reply, Settings
from midhaul.program import Examples, Local, Program
from midhaul.tree import Tree

Answer = TypeVar("Answer")

PROTOCOL = 1
PACKINGS = (0, 1, 2)  # of int8 weights, as mh_blob.h numbers them
CHUNK_BYTES = 8192  # of a blob or of rows in one message
MAX_REPLY_BYTES = 1 << 26
MAX_ROWS = 65535  # of a set, as the device counts them
SETS = ("train", "test", "adapt")  # the order that the rows lie in on a device
HELLO_S = 20.0  # a device that was lost is given this long to say hello, or the deadline if that is shorter
GREETING = (
    "protocol",
    "model_id",
    "arena_bytes",
    "slot_bytes",
    "store_bytes",
    "rows_train",
    "rows_test",
    "rows_adapt",
    "num_params",
    "packing",
    "boots",
)
_STEADY = ("arena_bytes", "slot_bytes", "store_bytes", "packing")
STATS = ("ticks", "arena_peak", "stack_peak", "arena_bytes", "store_used", "frames_refused")
METRICS = tuple(dict.fromkeys(("rows", "loss", "correct", "error", *GREETING, *STATS)))
_ANSWERS: dict[Op, tuple[str, ...]] = {
    Op.FIT: ("rows", "loss"),
    Op.ADAPT: ("rows", "loss", "correct"),
    Op.EVALUATE: ("rows", "loss", "correct"),
}


class Lost(Exception):
    """The device didn't answer in time, or its stream closed."""


class Refused(Exception):
    """The device answered what can't be, or refused what it was asked."""


class Absent(Exception):
    """The device isn't asked: it waits for parameters, or for the next try to reach it."""


class Wire(Protocol):
    """Whole frames to and from one device."""

    def ask(self, data: bytes, deadline_s: float) -> bytes:
        """Sends one message and gives its reply. Raises: Lost."""
        ...

    def renew(self) -> None:
        """Opens a new session, over a new stream where the old one is closed. Raises: Lost."""
        ...

    def restart(self) -> None:
        """Resets the machine. Raises: Lost."""
        ...

    def close(self) -> None: ...


class Compiled(Protocol):
    """What a device is given as its model."""

    @property
    def data(self) -> bytes: ...
    @property
    def model_id(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...


class Blobs(Protocol):
    """Makes blobs: `trained` are the tensors that lie in RAM, `slices` the names that messages may use for them."""

    @property
    def trained(self) -> tuple[str, ...]: ...
    @property
    def slices(self) -> dict[str, tuple[str, ...]]: ...

    def compile(self, frozen: Tree, packing: int) -> Compiled:
        """Gives the blob with these frozen tensors baked in."""
        ...


@dataclass(frozen=True)
class Event:
    """Something that happened to a device: connected, lost, reset, refused, rejoined."""

    round: int
    device: int
    address: str
    what: str
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """Where a device is: its address, and how it is reached."""

    address: str
    open: Callable[[], Wire]


class Remote:
    """A device behind an address.

    `kept` is what the device should hold between ops, as far as the server knows it; `ahead` are the tensors whose
    newest value only the device has; `stale` are those whose place in its RAM holds something else than it should.
    """

    def __init__(
        self,
        device: int,
        place: Place,
        program: Program,
        local: Local,
        blobs: Blobs,
        out_shape: tuple[int, ...],
        *,
        seed: int,
        deadline_s: float,
    ) -> None:
        self.device, self.place = device, place
        self.program, self.local, self.blobs = program, local, blobs
        self.out_shape, self.seed, self.deadline_s = out_shape, seed, deadline_s
        self.trained = frozenset(blobs.trained)
        self.events: list[Event] = []
        self.refused = 0
        self.greeting: dict[str, int] = {}
        self.why_lost = ""
        self.kept: Tree = {}
        self.ahead: set[str] = set()
        self.stale: set[str] = set(self.trained)
        self.momentum: Tree = {}
        self.momentum_ahead = False
        self.momentum_stale = False
        self.in_flight = False
        self.forgot = False
        self.based: Tree = {}  # what the device was last sent to FIT, which coded weights may be a difference to
        self.wire: Wire | None = None
        self._sound = False  # the session is open and nothing went wrong in it
        self._failures = 0
        self._wait = 0
        self._blob: Compiled | None = None
        self._baked: Tree = {}
        self._stored: dict[str, int] = {}

    @property
    def was_connected(self) -> bool:
        """Tells whether the device ever said hello."""
        return bool(self.greeting)

    def exchange(self, message: Message, key: rng.Key) -> Reply | None:
        """Does one op on the device; None if it is absent, which its events tell of. Raises: EngineError."""
        return self._guarded(lambda: self._do(message, key), key.round)

    def settle(self, round: int) -> None:
        """Brings home what only the device knows, if it can be reached."""
        if (self.ahead or self.momentum_ahead) and not self._wait:
            self._guarded(lambda: self._settle(round), round)

    def give(self, kept: Tree, momentum: Tree) -> None:
        """Sets what the device should hold; it is sent when it is needed."""
        self.kept, self.momentum = dict(kept), dict(momentum)
        self.ahead, self.stale = set(), set(self.trained)
        self.momentum_ahead, self.momentum_stale, self.in_flight = False, bool(momentum), False

    def stats(self, round: int) -> dict[str, float] | None:
        """Gives what the device measured of itself, by the names in STATS; None if it isn't there."""
        if not self._sound:
            return None
        return self._guarded(lambda: self._ask(Op.STATS, {}, {}, round).metrics, round)

    def close(self) -> None:
        """Lets go of the device."""
        if self.wire is not None:
            self.wire.close()
        self.wire, self._sound = None, False

    def _guarded(self, act: Callable[[], Answer], round: int) -> Answer | None:
        if self._wait:
            self._wait -= 1
            return None
        try:
            self._connect(round)
            return act()
        except Lost as error:
            self._sound = False
            # The next exchange tries again; one that fails again is left alone for 1, 3, 7, ... exchanges.
            self.why_lost = str(error)
            self._wait = min(2**self._failures - 1, 31)
            self._failures += 1
            if self._failures == 1:
                self._tell(round, "lost", str(error))
        except Refused as error:
            self.refused += 1
            self._forget()
            self._tell(round, "refused", str(error))
        except Absent:
            pass
        return None

    def _tell(self, round: int, what: str, reason: str = "") -> None:
        told = " ".join(reason.split())[:300]
        self.events.append(Event(round, self.device, self.place.address, what, told))

    def _forget(self) -> None:
        """Notes that nothing is known of the device's RAM any more."""
        self.forgot = self.forgot or bool(self.ahead - self.kept.keys()) or self.in_flight
        self.ahead, self.stale, self.based = set(), set(self.trained), {}
        self.momentum_ahead, self.momentum_stale, self.in_flight = False, bool(self.momentum), False

    def _connect(self, round: int) -> None:
        if self._sound:
            return
        found = self._reach(round)
        before, self.greeting = self.greeting, found
        self._sound, self._failures = True, 0
        if not before:
            self._tell(round, "connected")
        else:
            if found["boots"] != before["boots"]:
                self._forget()
                self._tell(round, "reset", "it restarted, so what lay in its RAM is gone")
            self._tell(round, "rejoined")
        if self._blob is not None and found["model_id"] != self._blob.model_id:
            self._blob, self._stored = None, {}
            self._forget()
        # Rows of another run may lie there: only what was given in this run counts, and only if all of it is there.
        self._stored = {name: num for name, num in self._stored.items() if found[f"rows_{name}"] == num}

    def _reach(self, round: int) -> dict[str, int]:
        """Gives what the device says of itself: on a new stream, else in a new session, else after a reset."""
        if self.wire is None:
            self.wire = self.place.open()
            tries: list[Callable[[], object]] = [list]
        else:
            tries = [self.wire.renew, self.wire.restart]
        for number, begin in enumerate(tries):
            try:
                begin()
                return self._hello(round)
            except (Lost, Refused) as error:
                if number == len(tries) - 1:
                    raise Lost(str(error)) from None
        raise AssertionError("the last try gives an answer or raises")

    def _hello(self, round: int) -> dict[str, int]:
        low, high = self.seed & 0xFFFFFFFF, self.seed >> 32
        settings: Settings = {"seed_low": _signed(low), "seed_high": _signed(high)}
        limit_s = min(self.deadline_s, HELLO_S) if self.was_connected else self.deadline_s
        metrics = self._ask(Op.HELLO, settings, {}, round, limit_s).metrics
        if missing := [name for name in GREETING if not 0 <= metrics.get(name, -1.0) < 2**53]:
            raise Refused(f"its HELLO doesn't say {missing[0]}, or a number that can't be")
        found = {name: int(metrics[name]) for name in GREETING}
        if found["protocol"] != PROTOCOL or found["packing"] not in PACKINGS:
            raise Refused(
                f"it speaks protocol {found['protocol']} with packing {found['packing']}, and this side protocol "
                f"{PROTOCOL} with packings {PACKINGS[0]} to {PACKINGS[-1]}; flash the firmware of this version"
            )
        if changed := [name for name in _STEADY if found[name] != self.greeting.get(name, found[name])]:
            raise Refused(f"its {changed[0]} is {found[changed[0]]} and was {self.greeting[changed[0]]}")
        return found

    def _ask(
        self,
        op: Op,
        settings: Settings,
        tree: Tree,
        round: int,
        limit_s: float = 0.0,
        coded: dict[str, Coded] | None = None,
    ) -> Frame:
        """Sends one message and gives the checked reply; tensors are still to be checked against the program."""
        assert self.wire is not None
        data = frame.pack(Frame(op, False, round, self.device, settings, tree, coded=coded or {}))
        raw = self.wire.ask(data, limit_s or self.deadline_s)
        try:
            got = frame.unpack(raw, self.program.initial, METRICS, MAX_REPLY_BYTES)
        except FrameError as error:
            raise Refused(f"its reply to {op.name} is unsound: {error}") from None
        if not got.is_reply or (got.op, got.round, got.device) != (op, round, self.device):
            raise Refused(
                f"it answered {op.name} of round {round} for device {self.device} with {got.op.name} of round "
                f"{got.round} for device {got.device}"
            )
        if "error" in got.metrics:
            raise Refused(f"it refused {op.name}: {refusal.sentence(int(got.metrics['error']))}")
        return got

    def _do(self, message: Message, key: rng.Key) -> Reply:
        if message.op in HOUSEKEEPING:
            raise EngineError(f"a scheme can't ask a device on firmware for {message.op.name}; the engine does")
        if message.settings.get("what") in ("examples", "test"):
            return self._examples("train" if message.settings["what"] == "examples" else "test", key.round)
        known = self.program.initial
        sent = {name: value for name, value in message.tree.items() if name not in ROW_KINDS}
        for name, value in sent.items():
            if name not in known or known[name].shape != value.shape:
                raise EngineError(
                    f"a device was sent {name} of shape {tuple(value.shape)}, which its model doesn't have"
                )
        if message.op == Op.LOAD:
            return self._load(sent, key.round)
        own = {name: value for name, value in sent.items() if name in self.trained}
        settings, round = message.settings, key.round
        trains = self._slice(str(settings.get("train", "front"))) if message.op in _TRAINS else set()
        sends = (
            set(self.program.sendable(str(settings.get("send", "none")))) if message.op in (Op.FIT, Op.READ) else set()
        )
        keeps = trains - sends if message.op in (Op.FIT, Op.BACKWARD) else set()
        if message.op == Op.BACKWARD and not self.in_flight:
            if self.forgot:
                raise Absent
            raise EngineError("a device was sent BACKWARD with no batch in flight; send FORWARD first")
        if self.ahead & (own.keys() | (trains - keeps)):
            self._settle(round)
        self._bake({**self.kept, **sent}, round)
        self._store(message, round)
        self._restore(self.trained - own.keys(), message.op, round)
        # What the op does to the RAM is noted before it is sent: a reply that is lost doesn't undo it.
        self.stale |= own.keys() | (trains - keeps)
        self.ahead -= self.stale
        if message.op != Op.READ and self.in_flight and message.op != Op.BACKWARD:
            self.in_flight = False
        self.ahead |= keeps
        self.stale -= keeps
        if message.op == Op.BACKWARD and float(settings.get("momentum", 0.0)):
            self.momentum_ahead = True
        tree = {**own, **{name: value for name, value in message.tree.items() if name in ROW_KINDS}}
        reply = self._answer(message, tree, settings, round)
        if message.op == Op.FORWARD and settings.get("rows", "train") == "train":
            self.in_flight = True
        if message.op == Op.BACKWARD:
            self.in_flight = False
        if message.op == Op.READ:
            self._note(reply.tree)
        return reply

    def _slice(self, spec: str) -> set[str]:
        """Gives what a message trains by a name. Raises: EngineError for what the blob has no plan for."""
        if spec not in self.blobs.slices:
            raise EngineError(
                f"a device was asked to train {spec!r} and its blob has plans for {', '.join(self.blobs.slices)} only"
            )
        return set(self.blobs.slices[spec])

    def _load(self, sent: Tree, round: int) -> Reply:
        own = {name: value for name, value in sent.items() if name in self.trained}
        frozen = {name: value for name, value in sent.items() if name not in self.trained}
        self._bake({**self.kept, **frozen}, round)
        self._give_rows(("train",), round)
        self.stale |= own.keys()
        self.ahead -= own.keys()
        self.in_flight = False
        reply = self._checked(self._ask(Op.LOAD, {}, own, round), Op.LOAD, {}, len(self.local.train), 0)
        self.kept.update({name: value.detach().clone() for name, value in sent.items()})
        self.stale -= own.keys()
        if all(name in self.kept or name in self.ahead for name in self.program.initial):
            self.forgot = False
        return reply

    def _examples(self, name: str, round: int) -> Reply:
        """Gives the rows that lie on the device."""
        rows = self.local.named(name)
        self._bake(self.kept, round)
        if self._is_parted(name):
            raise EngineError(
                f"device {self.device} ({self.place.address}) has no room for its {len(rows)} rows to test on; "
                "set data.max_rows or choose another board"
            )
        self._give_rows(SETS[: SETS.index(name) + 1], round)
        what = "examples" if name == "train" else "test"
        shapes = {"x": (len(rows), *rows.x.shape[1:]), "y": (len(rows),)}
        return self._checked(self._ask(Op.READ, {"what": what}, {}, round), Op.READ, shapes, len(rows), 0)

    def _note(self, values: Tree) -> None:
        """Notes values that the device was read."""
        for name in values.keys() & self.trained:
            self.kept[name] = values[name]
            self.ahead.discard(name)

    def _settle(self, round: int) -> None:
        if self.ahead:
            self._note(self._read_ahead(round))
        if self.momentum_ahead:
            got = self._ask(Op.READ, {"what": "momentum"}, {}, round)
            names = self.trained if got.tree else frozenset[str]()  # none where it made no step yet
            self.momentum = dict(self._checked(got, Op.READ, self._shapes(names), len(self.local.train), 0).tree)
            self.momentum_ahead = False

    def _read_ahead(self, round: int) -> Tree:
        sound = self.trained - self.stale
        for name, names in self.blobs.slices.items():
            if self.ahead <= set(names) <= sound:
                return self._read({"send": name}, set(names), round).tree
        # A device refuses to read out what it was only lent: it is given back what it should hold there, or anything.
        lent = {name: self.kept.get(name, self.program.initial[name]) for name in self._ordered(self.stale)}
        self._ask(Op.LOAD, {}, lent, round)
        self.stale -= self.kept.keys()
        return self._read({"send": "whole"}, self.trained, round).tree

    def _read(self, settings: Settings, names: set[str] | frozenset[str], round: int) -> Frame:
        got = self._ask(Op.READ, settings, {}, round)
        self._checked(got, Op.READ, self._shapes(names), len(self.local.train), 0)
        return got

    def _restore(self, needed: set[str] | frozenset[str], op: Op, round: int) -> None:
        """Gives the device back what the op relies on and what lies elsewhere. Raises: Absent, EngineError."""
        held = self.kept.keys() | self.ahead
        frozen = self.program.initial.keys() - self.trained
        if missing := [
            name for name in self.program.initial if name in needed - held or name in frozen - self._baked.keys()
        ]:
            if self.forgot:
                raise Absent
            raise EngineError(f"a device has no {missing[0]} yet; send LOAD before {op.name}")
        if lacking := self._ordered(needed & self.stale):
            if op == Op.BACKWARD:
                raise EngineError("a device was sent BACKWARD for a FORWARD that had parameters of its own; send LOAD")
            self._ask(Op.LOAD, {}, {name: self.kept[name] for name in lacking}, round)
            self.stale -= set(lacking)
        if op == Op.BACKWARD or not self.momentum_stale:
            return
        self._ask(Op.LOAD, {"what": "momentum"}, {n: self.momentum[n] for n in self._ordered(self.momentum)}, round)
        self.momentum_stale = False

    def _ordered(self, names: set[str] | frozenset[str] | Tree) -> list[str]:
        return [name for name in self.program.initial if name in names]

    def _bake(self, whole: Tree, round: int) -> None:
        """Sends the device a new blob where its own has other frozen tensors baked in."""
        initial = self.program.initial
        # Whole numbers come off the wire as int64, whatever they are in the model.
        known = {name: v.to(initial[name].dtype) for name, v in whole.items() if name not in self.trained}
        if self._blob is not None and _same(known, self._baked):
            return
        if self.ahead or self.momentum_ahead:
            self._settle(round)
        frozen = {name: known.get(name, initial[name]) for name in initial if name not in self.trained}
        blob = self.blobs.compile(frozen, self.greeting["packing"])
        for need, have, what in (
            (blob.arena_bytes + 2 * len(self.local.train), self.greeting["arena_bytes"], "RAM for its arena"),
            (len(blob.data), self.greeting["slot_bytes"], "flash for its blob"),
        ):
            if need > have:
                raise EngineError(
                    f"device {self.device} ({self.place.address}): the model needs {need:,} bytes of {what} and there "
                    f"are {have:,}; choose a smaller tiny.model, a smaller slice, or another board"
                )
        if self._blob is None and not self._stored and self.greeting["model_id"] == blob.model_id:
            pass  # it kept this very blob in its flash
        else:
            self._blob = None
            for first in range(0, len(blob.data), CHUNK_BYTES):
                part = torch.frombuffer(bytearray(blob.data[first : first + CHUNK_BYTES]), dtype=torch.uint8)
                settings: Settings = {"what": "blob", "step": first, "rows": len(blob.data)}
                self._ask(Op.LOAD, settings, {"blob": part}, round)
            self._stored = {}
        self._blob, self._baked = blob, known
        self.greeting["model_id"] = blob.model_id
        self._forget_ram()

    def _forget_ram(self) -> None:
        self.stale, self.in_flight = set(self.trained), False
        self.momentum_stale = bool(self.momentum)

    def _store(self, message: Message, round: int) -> None:
        """Gives the device the rows that an op needs."""
        if message.op == Op.PREDICT and "x" in message.tree:
            return
        wanted = str(message.settings.get("rows", "test" if message.op in (Op.EVALUATE, Op.PREDICT) else "train"))
        if message.op == Op.ADAPT:
            self._give_rows(SETS, round)
        elif not self._is_parted(wanted):
            self._give_rows(SETS[: SETS.index(wanted) + 1], round)

    def _room(self) -> int:
        """Gives the rows that fit the device's store beside those to train on."""
        assert self._blob is not None
        return min(self.greeting["store_bytes"] // self._blob.row_bytes, MAX_ROWS) - len(self.local.train)

    def _is_parted(self, name: str) -> bool:
        """Tells whether a set is too large for the device's store and goes through it in parts."""
        return name == "test" and len(self.local.test) > self._room()

    def _give_rows(self, names: Sequence[str], round: int) -> None:
        for name in names:
            rows = self.local.named(name)
            if len(rows) and self._stored.get(name) != len(rows):
                self._push(name, rows, round)

    def _push(self, name: str, rows: Examples, round: int) -> None:
        assert self._blob is not None
        if name != "test" and len(rows) > self._room() + len(self.local.train):
            raise EngineError(
                f"device {self.device} ({self.place.address}) has no room for its {len(rows)} rows: "
                f"{self.greeting['store_bytes']:,} bytes hold {max(self._room() + len(self.local.train), 0)}; "
                "set data.max_rows or choose another board"
            )
        for later in SETS[SETS.index(name) :]:
            self._stored.pop(later, None)
        size = max(1, CHUNK_BYTES // max(4 * math.prod(rows.x.shape[1:]), 1))
        for first in range(0, len(rows), size):
            tree = {"x": rows.x[first : first + size], "y": rows.y[first : first + size]}
            self._ask(Op.PUSH, {"rows": name, "step": first}, tree, round)
        self._stored[name] = len(rows)
        self.in_flight = False

    def _answer(self, message: Message, tree: Tree, settings: Settings, round: int) -> Reply:
        """Asks for the op and checks the answer; tests rows that are too many for the store part by part."""
        op = message.op
        wanted = str(settings.get("rows", "test" if op in (Op.EVALUATE, Op.PREDICT) else "train"))
        if op in (Op.EVALUATE, Op.PREDICT, Op.FORWARD) and "x" not in tree and self._is_parted(wanted):
            return self._in_parts(message, tree, round)
        return self._once(message, tree, settings, self.local, round)

    def _in_parts(self, message: Message, tree: Tree, round: int) -> Reply:
        size, test = self._room(), self.local.test
        if size < 1:
            raise EngineError(
                f"device {self.device} ({self.place.address}) has no room for a row to test on beside its "
                f"{len(self.local.train)} rows to train on; set data.max_rows or choose another board"
            )
        self._give_rows(("train",), round)
        parts: list[Reply] = []
        for first in range(0, len(test), size):
            rows = Examples(test.x[first : first + size], test.y[first : first + size])
            self._push("test", rows, round)
            self._stored.pop("test")
            parts.append(self._once(message, tree, message.settings, replace(self.local, test=rows), round))
        return _joined(parts)

    def _once(self, message: Message, tree: Tree, settings: Settings, local: Local, round: int) -> Reply:
        op, known = message.op, self.program.initial
        tree, coded = self._as_coded(message, tree) if op == Op.FIT else (tree, {})
        if op in (Op.FIT, Op.ADAPT):
            self.based = {}
        got = self._ask(op, self._settings_of(op, settings), tree, round, coded=coded)
        num_train = len(local.train)
        if op == Op.READ:
            names = self.program.sendable(str(settings.get("send", "whole")))
            reply = self._checked(got, op, self._shapes(set(names) & self.trained), num_train, 0)
            return replace(reply, tree={n: reply.tree[n] if n in self.trained else self.kept[n] for n in names})
        if op == Op.FIT:
            names = self.program.sendable(str(settings.get("send", "none")))
            if names and set(names) <= self._slice(str(settings.get("train", "front"))) & message.tree.keys():
                self.based = {name: message.tree[name] for name in names}
            shapes = self._shapes(set(names) & self.trained)
            is_coded = "code" in settings
            if is_coded and not set(names) <= self.trained:
                raise EngineError(
                    f"a device on firmware doesn't train all of {settings['send']!r}, so it can't code it"
                )
            if is_coded:
                shapes = {UPDATE: (sum(math.prod(shape) for shape in shapes.values()),)}
            reply = self._checked(got, op, shapes, num_train, -1)
            if not int(settings.get("steps", 0)) and reply.metrics["rows"] != num_train * int(
                settings.get("epochs", 1)
            ):
                raise Refused(f"it says it trained on {reply.metrics['rows']:g} rows and has {num_train}")
            if is_coded:
                return self._uncoded(reply, got, names, message)
            whole = {**known, **self.kept, **message.tree, **reply.tree}
            return replace(reply, tree={name: whole[name] for name in names})
        if op == Op.BACKWARD:
            num = int(tree["g"].shape[0])
            return self._checked(got, op, {}, num, num)
        if op == Op.FORWARD:
            num = self._picked(settings, local)
            shapes = {"h": (num, *self.out_shape)} | ({"y": (num,)} if settings.get("what") == "hy" else {})
            return self._checked(got, op, shapes, num, num)
        num = len(tree["x"]) if "x" in tree else len(local.named(str(settings.get("rows", "test"))))
        if op == Op.PREDICT:
            return self._checked(got, op, {"logits": (num, *self.out_shape)}, num, num)
        return self._checked(got, op, {}, num, num)

    def _as_coded(self, message: Message, tree: Tree) -> tuple[Tree, dict[str, Coded]]:
        """Gives a message's tensors as they travel: coded as the link coded them, if the device holds what they are a
        difference to."""
        how = message.coded[0] if message.coded else None
        sent = self.program.sendable(str(message.settings.get("send", "none")))
        if (
            how is None
            or not how.base
            or how.names != tuple(self._ordered(set(sent)))
            or not set(how.names) <= self.trained
        ):
            return tree, {}
        if not all(name in self.based and torch.equal(self.based[name], how.base[name]) for name in how.names):
            return tree, {}
        num = sum(tree[name].numel() for name in how.names)
        others = {name: value for name, value in tree.items() if name not in how.names}
        return {UPDATE: torch.zeros(num), **others}, {UPDATE: Coded((num,), how.data)}

    def _uncoded(self, reply: Reply, got: Frame, names: tuple[str, ...], message: Message) -> Reply:
        """Gives a reply whose weights came coded, under their names again; the link takes its bytes as they are."""
        is_delta, began = int(message.settings["code"]) >> 8 & 1, {**self.kept, **message.tree}
        parts = torch.split(reply.tree[UPDATE], [self.program.initial[name].numel() for name in names])
        tree = {n: part.reshape(self.program.initial[n].shape) for n, part in zip(names, parts, strict=True)}
        if is_delta:
            tree = {name: began[name] + value for name, value in tree.items()}
        return replace(reply, tree=tree, coded=got.coded[UPDATE].data)

    def _settings_of(self, op: Op, settings: Settings) -> Settings:
        return {"send": "whole", **settings} if op == Op.READ else settings

    def _picked(self, settings: Settings, local: Local) -> int:
        """Gives how many rows a FORWARD is about."""
        source = str(settings.get("rows", "train"))
        num, size = len(local.named(source)), int(settings.get("batch", 0))
        if source != "train" or not size:
            return num
        return max(0, min(size, num - size * int(settings.get("step", 0))))

    def _shapes(self, names: set[str] | frozenset[str]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.program.initial[name].shape) for name in self._ordered(names)}

    def _checked(self, got: Frame, op: Op, shapes: dict[str, tuple[int, ...]], weight: int, rows: int) -> Reply:
        """Gives the reply if it can be true: these tensors and no others, as many rows as it holds (-1: any)."""
        if got.tree.keys() != shapes.keys():
            odd = sorted(got.tree.keys() ^ shapes.keys())[0]
            raise Refused(f"its reply to {op.name} {'has' if odd in got.tree else 'lacks'} the tensor {odd}")
        tree: Tree = {}
        for name, shape in shapes.items():
            value = got.tree[name]
            lead = value.shape[:1] == shape[:1] if name in ROW_KINDS else tuple(value.shape) == shape
            if not lead or value.numel() != math.prod(shape):
                raise Refused(f"its reply to {op.name} has {name} of shape {tuple(value.shape)} where {shape} is due")
            tree[name] = self._typed(name, value.reshape(shape), op)
        metrics = {name: got.metrics[name] for name in _ANSWERS.get(op, ()) if name in got.metrics}
        if op in (Op.LOAD, Op.READ):
            metrics["rows"] = 0.0
        elif op not in _ANSWERS:
            metrics["rows"] = got.metrics.get("rows", got.weight)
        if len(metrics) < len(_ANSWERS.get(op, ("rows",))):
            raise Refused(f"its reply to {op.name} lacks one of its metrics {', '.join(_ANSWERS[op])}")
        if got.weight != weight or (rows >= 0 and metrics["rows"] != rows):
            raise Refused(f"its reply to {op.name} speaks of {got.weight:g} rows where {weight} are due")
        if not 0.0 <= metrics.get("correct", 0.0) <= weight:
            raise Refused(f"it says that {metrics['correct']:g} of {weight} rows are right")
        return Reply(tree, float(weight), metrics)

    def _typed(self, name: str, value: Tensor, op: Op) -> Tensor:
        if name != "y":
            if not value.is_floating_point():
                raise Refused(f"its reply to {op.name} has {name} in whole numbers")
            return value.to(torch.float32)
        most = max((int(rows.y.max()) for s in SETS if len(rows := self.local.named(s))), default=0)
        if value.is_floating_point() or (value.numel() and not -1 <= int(value.min()) <= int(value.max()) <= most):
            raise Refused(f"its reply to {op.name} has labels that its rows don't have")
        return value.to(torch.int64)


_TRAINS = (Op.FIT, Op.ADAPT, Op.BACKWARD)


def _joined(parts: list[Reply]) -> Reply:
    """Gives the reply about rows that were tested in parts."""
    weight = sum(part.weight for part in parts)
    tree = {name: torch.cat([part.tree[name] for part in parts]) for name in parts[0].tree}
    metrics = {name: sum(part.metrics[name] for part in parts) for name in parts[0].metrics}
    if "loss" in metrics:
        metrics["loss"] = sum(part.metrics["loss"] * part.weight for part in parts) / max(weight, 1.0)
    return Reply(tree, weight, metrics)


def _same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(v is other[n] or torch.equal(v, other[n]) for n, v in one.items())


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
