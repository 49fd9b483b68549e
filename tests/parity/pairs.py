"""A device in C and its twin in Python, which get the same messages: what tests of ops share."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from midhaul import ops, rng
from midhaul.devices import blob
from midhaul.link import frame, refusal, update
from midhaul.link.frame import Frame
from midhaul.link.packet import PacketLink
from midhaul.link.update import Stages
from midhaul.message import ROW_KINDS, Message, Op, Reply, Settings
from midhaul.models import mlperf, slices, tiny
from midhaul.models.adapters import add_lora
from midhaul.models.translate import translate
from midhaul.ops import State
from midhaul.program import Examples, Local, Program
from midhaul.rng import Use
from midhaul.runtime.updates import Updates

SEED = 0x1234567890ABCDEF
KEY = bytes(range(32))
METRICS = (
    *("rows", "loss", "correct", "error", "protocol", "model_id", "arena_bytes", "slot_bytes", "store_bytes"),
    *("rows_train", "rows_test", "rows_adapt", "num_params", "packing", "boots"),
    *("ticks", "arena_peak", "stack_peak", "store_used", "frames_refused"),
)
CLOSE = 1e-5
DEVICE = Path(__file__).parents[2] / "device"
CODES = {
    name.removeprefix("MH_ERROR_"): int(code)
    for name, code in re.findall(r"(MH_ERROR_\w+) = (\d+)", (DEVICE / "include" / "mh_error.h").read_text())
}


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def opened(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    lib.mh_host_open.restype = ctypes.c_void_p
    lib.mh_host_open.argtypes = [ctypes.c_uint32] * 3 + [ctypes.c_char_p, ctypes.c_uint64]
    lib.mh_host_exchange.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_uint32,
        ctypes.c_char_p,
        ctypes.c_uint32,
    ]
    lib.mh_host_close.argtypes = lib.mh_host_restart.argtypes = lib.mh_host_waiting.argtypes = [ctypes.c_void_p]
    return lib


class Device:
    """A device in this process, spoken to in sealed packets."""

    def __init__(
        self,
        lib: ctypes.CDLL,
        *,
        arena: int = 1 << 20,
        slot: int = 1 << 19,
        store: int = 1 << 21,
        key: bytes | None = KEY,
        names: tuple[str, ...] = (),
    ) -> None:
        self.lib = lib
        self.handle = lib.mh_host_open(arena, slot, store, key, 7)
        self.key, self.names = key, names
        self.link = PacketLink(key)
        self._raw(self.link.open())
        assert self.link.is_open

    def _raw(self, data: bytes) -> list[bytes]:
        out = ctypes.create_string_buffer(1 << 16)
        found = []
        num = self.lib.mh_host_exchange(self.handle, data, len(data), out, len(out))
        while num > 0:
            found += self.link.feed(out.raw[:num])
            num = self.lib.mh_host_exchange(self.handle, b"", 0, out, len(out))
        assert num == 0
        return found

    def answers(self, data: bytes) -> list[Frame]:
        """Gives the replies to the bytes of a frame."""
        return [frame.unpack(raw, self.names, METRICS) for raw in self._raw(self.link.pack(data))]

    def ask(self, op: Op, settings: Any = None, values: Any = None, round: int = 0, device: int = 0) -> Frame:
        (reply,) = self.answers(frame.pack(Frame(op, False, round, device, settings or {}, values or {})))
        assert reply.is_reply
        assert (reply.op, reply.round, reply.device) == (op, round, device)
        return reply

    def refused(self, op: Op, settings: Any = None, values: Any = None) -> str:
        """Gives why the device refuses."""
        reply = self.ask(op, settings, values)
        assert (reply.weight, reply.tree, set(reply.metrics)) == (0.0, {}, {"error"})
        return next(str(name) for name, code in CODES.items() if code == reply.metrics["error"])

    def hello(self, seed: int = SEED) -> dict[str, float]:
        parts = {"seed_low": signed(seed & 0xFFFFFFFF), "seed_high": signed(seed >> 32)}
        return self.ask(Op.HELLO, parts).metrics

    def upload(self, data: bytes, chunk: int = 4096) -> Frame:
        for at in range(0, len(data), chunk):
            part = torch.frombuffer(bytearray(data[at : at + chunk]), dtype=torch.uint8)
            settings = {"what": "blob", "step": at, "rows": len(data)}
            reply = self.ask(Op.LOAD, settings, {"blob": part})
            assert "error" not in reply.metrics, refusal.sentence(int(reply.metrics["error"]))
        return reply

    def push(self, local: Local, chunk: int = 16) -> None:
        for name in ("train", "test", "adapt"):
            rows = local.named(name)
            for step, at in enumerate(range(0, len(rows), chunk)):
                values = {"x": rows.x[at : at + chunk], "y": rows.y[at : at + chunk]}
                reply = self.ask(Op.PUSH, {"rows": name, "step": step}, values)
                assert reply.metrics == {"rows": float(min(at + chunk, len(rows)))}

    def restart(self) -> None:
        self.lib.mh_host_restart(self.handle)
        self.link = PacketLink(self.key)
        self._raw(self.link.open())

    def close(self) -> None:
        self.lib.mh_host_close(self.handle)


def net(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """Gives a model, the shape of its input, and its classes."""
    with rng.torch_seed(rng.key(3, 0, 0, Use.INIT)):
        if name == "mlp":
            return tiny.build("mlp", (8,), 4, hidden=[12]), (8,), 4
        if name == "cnn1d":
            return tiny.build("cnn1d", (3, 24), 4, channels=[6, 8]), (3, 24), 4
        if name == "cnn1d-norm":
            return tiny.build("cnn1d", (3, 24), 4, channels=[8, 8], norm="group"), (3, 24), 4
        if name == "cnn":
            return tiny.build("cnn", (1, 8, 8), 5, channels=[3, 4], hidden=[10], kernel=3), (1, 8, 8), 5
        if name == "dscnn":
            return (
                slices.prepare(mlperf.dscnn((1, 12, 8), 4, channels=8), (1, 12, 8), norm="group").module,
                (1, 12, 8),
                4,
            )
        if name == "resnet":
            return Residual(), (2, 6, 6), 3
        if name == "lora":
            module = tiny.build("mlp", (8,), 4, hidden=[12, 10])
            return add_lora(module, 2, 4.0, "linear", rng.key(5, 0, 0, Use.INIT)), (8,), 4
        module = Pointwise()
        return add_lora(module, 3, 6.0, "all", rng.key(5, 0, 0, Use.INIT)), (3, 10), 4


class Residual(nn.Module):
    """Two ways that meet again, with a pool of means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.stem(x))
        b = torch.relu(self.inner(a) + a)
        out: Tensor = self.head(self.pool(b).flatten(1))
        return out


class Pointwise(nn.Module):
    """A convolution of kernel 1 along time, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv1d(3, 6, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.relu(self.point(x)).mean(2))
        return out


def rows(shape: tuple[int, ...], classes: int, num: int, seed: int) -> Examples:
    own = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (num,), generator=own)
    x = torch.randn((num, *shape), generator=own) + 0.5 * y.reshape(-1, *[1] * len(shape))
    return Examples(x, y)


class Pair:
    """A device in C and its twin in Python, which get the same messages."""

    def __init__(
        self,
        lib: ctypes.CDLL,
        name: str,
        num: int,
        *,
        fits: tuple[str, ...] = ("whole",),
        splits: tuple[str, ...] = (),
        cut: str = "",
        unlabelled: bool = False,
        key: bytes | None = KEY,
        **limits: int,
    ) -> None:
        module, shape, classes = net(name)
        if cut:
            module, _ = slices.cut(module, cut, shape)
        self.program = Program(module.eval(), shape)
        parts = {part: self.program.names(part) for part in {*fits, *splits, "whole"}}
        train = rows(shape, classes, num, 1)
        if unlabelled and num:
            train.y[::3] = -1
        self.local = Local(train, rows(shape, classes, 9, 2), rows(shape, classes, min(num, 6), 3))
        union = {n for part in (*fits, *splits) for n in parts[part]}
        graph = translate(self.program.module, shape, self.program.initial, trained=union)
        self.blob = blob.compile(
            graph,
            parts,
            fits=fits,
            splits=splits,
            momentum=True,
            keeps_start=True,
            num_classes=0 if cut else classes,
        )
        self.state = State(self.local, tree=dict(self.program.initial))
        self.device = Device(lib, names=tuple(self.program.initial), key=key, **limits)
        self.number = 4
        self.device.hello()
        self.device.upload(self.blob.data)
        self.device.push(self.local)

    def both(self, op: Op, settings: Any = None, values: Any = None, round: int = 2) -> tuple[Reply, Frame]:
        """Does an op on both, holds the device to its twin, and gives both answers."""
        message = Message(op, values or {}, settings=settings or {})
        key = rng.key(SEED, round, self.number, Use.BATCH)
        self.state, want = ops.run(self.program, self.state, message, key)
        known = set(self.blob.trained) | set(ROW_KINDS)
        sent = {n: v for n, v in (values or {}).items() if n in known}
        got = self.device.ask(op, settings, sent, round, self.number)
        assert "error" not in got.metrics, refusal.sentence(int(got.metrics["error"]))
        self.same(want, got)
        return want, got

    def same(self, want: Reply, got: Frame) -> None:
        assert got.weight == want.weight
        assert set(got.metrics) == set(want.metrics)
        for name, value in want.metrics.items():
            assert got.metrics[name] == pytest.approx(value, rel=CLOSE, abs=1e-6), name
        assert set(got.tree) == set(want.tree)
        for name, tensor in want.tree.items():
            close(got.tree[name], tensor, name)

    def weights(self) -> None:
        """Compares all that both have learnt."""
        got = self.device.ask(Op.READ, {"send": "whole"})
        assert set(got.tree) == set(self.blob.trained)
        for name, value in got.tree.items():
            close(value, self.state.tree[name], name)


def close(got: Tensor, want: Tensor, name: str) -> None:
    assert (got.numel(), got.shape[0]) == (want.numel(), want.shape[0]), name
    if not want.numel():
        return
    bound = CLOSE * max(1.0, float(want.abs().max()))
    assert float((got.reshape(want.shape).double() - want.double()).abs().max()) <= bound, name


def stages(text: str) -> Stages:
    how = update.parse(text, "here")
    assert how is not None
    return how


def told(how: Stages, turn: int, *, feeds_back: bool) -> Settings:
    """Gives the settings that tell a device to code its reply to FIT."""
    return Updates(how, error_feedback=feeds_back).asked(Message(Op.FIT, settings=FIT), turn, device=0)


FIT: Settings = {"lr": 0.05, "batch": 4, "epochs": 2, "train": "whole", "send": "whole"}
