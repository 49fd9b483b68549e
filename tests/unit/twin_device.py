"""A device in Python that answers frames as the C runtime does, and can be told to fail.

Its flash (blob, rows) outlives a reset, its RAM doesn't. It is as strict as a device: a tensor that it was only lent is
not used again, sets of rows come in order, a new blob empties the store. Its blob is the frame of the frozen tensors.
"""

from __future__ import annotations

import contextlib
import copy
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from midhaul import ops, rng
from midhaul.errors import SliceError
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, Message, Op, Reply
from midhaul.ops import State
from midhaul.program import Examples, Local, Program
from midhaul.runtime.remote import METRICS, SETS, Lost, Place
from midhaul.tree import Tree

BORROWED, NO_BATCH, NO_BLOB, NO_ROOM, ORDER = 101, 102, 103, 104, 105
Fault = Callable[[Frame], str]


@dataclass(frozen=True)
class TwinBlob:
    """What the twin takes for a blob."""

    data: bytes
    model_id: int
    arena_bytes: int = 1000
    row_bytes: int = 32


class TwinBlobs:
    """Makes the twin's blobs, and counts them."""

    def __init__(self, program: Program, fits: tuple[str, ...]) -> None:
        self.program, self.made = program, 0
        self.slices: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys((*fits, "whole", "head", "body", "front")):
            with contextlib.suppress(SliceError):
                self.slices[name] = program.names(name)
        union = {name for spec in fits for name in self.slices[spec]}
        self.trained = tuple(name for name in program.initial if name in union)

    def compile(self, frozen: Tree, packing: int) -> TwinBlob:
        self.made += 1
        data = frame.pack(Frame(Op.LOAD, False, 0, 0, {}, frozen))
        return TwinBlob(data, zlib.crc32(data))


@dataclass
class Twin:
    """One device. `faults` is asked before each message what goes wrong: "" for nothing."""

    program: Program
    blobs: TwinBlobs
    fault: Fault = lambda got: ""
    store_bytes: int = 1 << 20
    arena_bytes: int = 1 << 20
    boots: int = 1
    blob: bytes = b""
    coming: bytearray = field(default_factory=bytearray)
    rows: dict[str, list[tuple[torch.Tensor, int]]] = field(default_factory=lambda: {name: [] for name in SETS})
    ram: Tree = field(default_factory=dict)
    momentum: Tree = field(default_factory=dict)
    borrowed: set[str] = field(default_factory=set)
    stash: Tree = field(default_factory=dict)
    seed: int = 0
    plugged: bool = True
    served: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A torch module is not made for threads: each device has its own.
        self.program = Program(copy.deepcopy(self.program.module), self.program.input_shape)

    def reset(self) -> None:
        """What is in RAM goes; what is in flash stays."""
        self.boots += 1
        self.momentum, self.borrowed, self.stash, self.coming = {}, set(), {}, bytearray()
        self.ram = {name: torch.full_like(self.program.initial[name], 7.0) for name in self.blobs.trained}

    def place(self, number: int) -> Place:
        return Place(f"twin:{number}", lambda: TwinWire(self))

    def answer(self, data: bytes) -> bytes:
        got = frame.unpack(data, [*self.program.initial, "blob"])
        self.served.append(got.op)
        fault = self.fault(got)
        if fault == "unplug":
            self.plugged = False
        if fault == "reset":
            self.reset()
        if fault in ("unplug", "reset"):
            raise Lost("the stream closed")
        if fault == "hang":
            raise Lost("no answer in time")
        if fault == "garbage":
            return b"\x00garbage" * 9
        reply = self._act(got)
        out = Frame(got.op, True, got.round, got.device, {}, reply.tree, reply.weight, reply.metrics)
        return frame.pack(out) if not fault else _lie(fault, out)

    def _act(self, got: Frame) -> Reply:
        if got.op == Op.HELLO:
            self.seed = (int(got.settings["seed_low"]) & 0xFFFFFFFF) | (
                int(got.settings["seed_high"]) & 0xFFFFFFFF
            ) << 32
            return Reply({}, 0.0, self._greeting())
        if got.op == Op.PUSH:
            return self._push(got)
        if got.op == Op.LOAD and got.settings.get("what") == "blob":
            return self._flash(got)
        if not self.blob:
            return _refusal(NO_BLOB)
        if got.op == Op.LOAD and got.settings.get("what") == "momentum":
            self.momentum = dict(got.tree)
            return self._done()
        if got.op == Op.LOAD:
            assert set(got.tree) <= set(self.blobs.trained), "a device was sent a frozen tensor"
            self.ram.update(got.tree)
            self.borrowed -= got.tree.keys()
            self.stash = {}
            return self._done()
        return self._op(got)

    def _greeting(self) -> dict[str, float]:
        numbers = {
            "protocol": 1,
            "model_id": zlib.crc32(self.blob) if self.blob else 0,
            "arena_bytes": self.arena_bytes,
            "slot_bytes": 1 << 20,
            "store_bytes": self.store_bytes,
            **{f"rows_{name}": len(rows) for name, rows in self.rows.items()},
            "num_params": len(self.blobs.trained),
            "packing": 0,
            "boots": self.boots,
        }
        return {name: float(number) for name, number in numbers.items()}

    def _done(self) -> Reply:
        return Reply({}, float(len(self.rows["train"])), {"rows": 0.0})

    def _flash(self, got: Frame) -> Reply:
        if got.settings["step"] == 0:
            self.coming = bytearray()
        if len(self.coming) != got.settings["step"]:
            return _refusal(ORDER)
        self.coming += bytes(got.tree["blob"].to(torch.uint8).tolist())
        if len(self.coming) == got.settings["rows"]:
            self.blob = bytes(self.coming)
            self.rows = {name: [] for name in SETS}
            self.momentum, self.borrowed, self.stash = {}, set(), {}
            self.ram = {name: torch.full_like(self.program.initial[name], 7.0) for name in self.blobs.trained}
        return self._done()

    def _push(self, got: Frame) -> Reply:
        if not self.blob:
            return _refusal(NO_BLOB)
        name = str(got.settings["rows"])
        if got.settings["step"] == 0:
            for later in SETS[SETS.index(name) :]:
                self.rows[later] = []
        if len(self.rows[name]) != got.settings["step"] or any(self.rows[s] for s in SETS[SETS.index(name) + 1 :]):
            return _refusal(ORDER)
        self.rows[name] += list(zip(got.tree["x"], got.tree["y"].tolist(), strict=True))
        if 32 * sum(map(len, self.rows.values())) > self.store_bytes:
            return _refusal(NO_ROOM)
        self.stash = {}
        return Reply({}, float(len(self.rows[name])), {"rows": 0.0})

    def _local(self) -> Local:
        def examples(name: str) -> Examples:
            rows = self.rows[name]
            if not rows:
                return Examples(torch.zeros(0, *self.program.input_shape), torch.zeros(0, dtype=torch.int64))
            return Examples(torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows]))

        return Local(*(examples(name) for name in SETS))

    def _op(self, got: Frame) -> Reply:
        sent = {name for name in got.tree if name not in ROW_KINDS}
        assert sent <= set(self.blobs.trained), "a device was sent a frozen tensor"
        slices = {name: set(names) & set(self.blobs.trained) for name, names in self.blobs.slices.items()} | {
            "none": set()
        }
        needed = slices[str(got.settings.get("send", "none"))] if got.op == Op.READ else set(self.blobs.trained)
        if needed & self.borrowed - sent:
            return _refusal(BORROWED)
        if got.op == Op.READ and got.settings.get("what") == "momentum":
            return Reply(dict(self.momentum), float(len(self.rows["train"])), {"rows": 0.0})
        if got.op == Op.BACKWARD and "rows" not in self.stash:
            return _refusal(NO_BATCH)
        frozen = frame.unpack(self.blob, self.program.initial).tree
        state = State(self._local(), {**frozen, **self.ram}, self.momentum, self.stash)
        key = rng.key(self.seed, got.round, got.device, rng.Use.BATCH)
        after, reply = ops.run(self.program, state, Message(got.op, got.tree, settings=got.settings), key)
        if got.op == Op.FIT:
            trained, away = slices[str(got.settings["train"])], slices[str(got.settings.get("send", "none"))]
            self.borrowed |= sent | (trained & away)
            self.borrowed -= trained - away
        elif got.op != Op.READ:
            self.borrowed |= sent
        self.ram = {name: after.tree[name] for name in self.blobs.trained}
        self.momentum, self.stash = after.momentum, after.stash
        return Reply(
            {n: v for n, v in reply.tree.items() if n in ROW_KINDS or n in self.ram}, reply.weight, reply.metrics
        )


class TwinWire:
    """The way to a twin."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self._check()

    def _check(self) -> None:
        if not self.twin.plugged:
            raise Lost("nothing is there")

    def ask(self, data: bytes, deadline_s: float) -> bytes:
        self._check()
        return self.twin.answer(data)

    def renew(self) -> None:
        self._check()

    def restart(self) -> None:
        self._check()
        self.twin.reset()

    def close(self) -> None:
        pass


def _refusal(code: int) -> Reply:
    return Reply({}, 0.0, {"error": float(code)})


def _lie(how: str, out: Frame) -> bytes:
    """Gives a sound frame that can't be true."""
    tree, metrics, weight, round = dict(out.tree), dict(out.metrics), out.weight, out.round
    name = next(iter(tree), "")
    if how == "shape":
        tree[name] = torch.zeros(*tree[name].shape, 2)
    elif how == "more":
        tree["h"] = torch.zeros(3, 3)
    elif how == "less":
        del tree[name]
    elif how == "weight":
        weight = 1e6
    elif how == "rows":
        metrics["rows"] = 1e6
    elif how == "round":
        round += 1
    elif how == "nan":
        data = bytearray(frame.pack(out))
        at = data.index(tree[name].numpy().tobytes()[:4])
        data[at : at + 4] = struct.pack("<f", float("nan"))
        return bytes(data[:-4]) + struct.pack("<I", zlib.crc32(data[:-4]))
    else:
        raise AssertionError(how)
    return frame.pack(Frame(out.op, True, round, out.device, {}, tree, weight, metrics))


assert "error" in METRICS
