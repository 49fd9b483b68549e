"""The C runtime's model against the reference in Python: whole nets, many steps, the same bits."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midhaul.devices import blob, toolchain
from midhaul.devices.blob import Blob
from midhaul.devices.plan import PlanKind
from midhaul.devices.reference import Reference, Sgd
from midhaul.errors import ModelError
from midhaul.models import quantise
from midhaul.models.adapters import LoRAConv1x1, LoRALinear
from midhaul.models.translate import translate
from midhaul.net import Array, Net


class Residual(nn.Module):
    """Every float kind: convolutions with padding, stride, dilation, depthwise, group norm, pools, a sum, a clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.norm = nn.GroupNorm(2, 6)
        self.point = LoRAConv1x1(nn.Conv2d(6, 6, 1), 2, 3.0)
        self.pool = nn.MaxPool2d(2)
        self.head = LoRALinear(nn.Linear(6 * 2 * 2, 4), 2, 1.0)
        for layer in (self.point, self.head):
            nn.init.normal_(layer.lora_a, std=0.5)
            nn.init.normal_(layer.lora_b, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.deep(x)))
        x = torch.clamp(x + self.point(y), 0.0, 6.0)
        x = nn.functional.avg_pool2d(self.pool(x), 2, 1)
        out: Tensor = self.head(x.flatten(1))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(17, 13), nn.ReLU(), nn.Linear(13, 5))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, stride=2),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (17,), 5),
    "cnn": (small_cnn, (1, 11, 9), 4),
    "residual": (Residual, (2, 11, 12), 4),
}


POINTERS = ("blob", "head", "values", "layers", "params", "plans", "arena")


class Pointers(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in POINTERS)


class Rates(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_float) for name in ("lr", "momentum", "decay", "mu"))


class Runtime:
    """mh_model.h over ctypes, with memory of the sizes that the blob says and not a byte more."""

    def __init__(self, library: ctypes.CDLL, data: bytes, arena_bytes: int) -> None:
        self.c, self.model = library, Pointers()
        self.blob, self.arena = aligned(len(data)), aligned(arena_bytes)
        self.blob[:] = np.frombuffer(data, np.uint8)
        self.arena[:] = 0xAA  # so that nothing rests on memory that begins as 0
        assert self.c.mh_model_check(self._at(self.blob), len(data), arena_bytes) == 0
        self.c.mh_model_open(self._here, self._at(self.blob), self._at(self.arena))
        self.c.mh_model_reset(self._here)
        self.records = blob.read(data)

    def plan(self, kind: PlanKind) -> ctypes.c_void_p:
        self.c.mh_model_plan.restype = ctypes.c_void_p
        found = self.c.mh_model_plan(self._here, int(kind), None, 0)
        assert found
        return ctypes.c_void_p(found)

    def forward(self, plan: ctypes.c_void_p, x: Any, first: int = 0) -> Array:
        if self.c.mh_model_places(self._here, plan, first):
            self.array("mh_model_value", plan, first)[:] = x.reshape(-1)
        else:  # quantised as it comes
            layer = self.records.layers[0]
            out, row = self.records.values[layer.out], np.ascontiguousarray(x, np.float32)
            y = self._at(self.array("mh_model_value", plan, layer.out))
            scale, limits = ctypes.c_float(out.scale), (out.zero_point, layer.qlow, layer.qhigh)
            self.c.mh_quantise_f32_s8(self._at(row), y, out.c, out.h * out.w, scale, *limits)
        self.c.mh_model_forward(self._here, plan)
        return self.array("mh_model_value", plan, self.records.layers[-1].out)

    def train_batch(self, plan: ctypes.c_void_p, rows: Any, labels: list[int], how: Sgd) -> float:
        self.c.mh_cross_entropy_f32.restype = ctypes.c_float
        self.c.mh_model_gradient.restype = ctypes.c_void_p
        self.c.mh_model_zero_sums(self._here, plan)
        total, num = np.float32(0), np.float32(len(rows))
        scale = ctypes.c_float(float(np.float32(1) / num))
        for x, y in zip(rows, labels, strict=True):
            logits = self.forward(plan, x, self.records.header.stored_value)
            g = ctypes.c_void_p(self.c.mh_model_gradient(self._here, plan))
            loss = self.c.mh_cross_entropy_f32(self._at(logits), len(logits), ctypes.c_int32(y), scale, g)
            total = total + np.float32(loss)
            self.c.mh_model_backward(self._here, plan)
        rates = Rates(how.lr, how.momentum, how.decay, how.mu)
        self.c.mh_model_step(self._here, plan, ctypes.byref(rates))
        return float(total / num)

    def weights(self) -> bytes:
        parts = []
        for param in self.records.params:
            parts.append(self.arena[param.weight_offset :][: 4 * param.elements].tobytes())
        return b"".join(parts)

    def keep_start(self) -> None:
        for param in self.records.params:
            size = 4 * param.elements
            self.arena[param.start_offset :][:size] = self.arena[param.weight_offset :][:size]

    def array(self, function: str, plan: ctypes.c_void_p, value: int) -> Any:
        record = self.records.values[value]
        found = getattr(self.c, function)
        found.restype = ctypes.c_void_p
        at = found(self._here, plan, value) - self.arena.ctypes.data
        size = record.c * record.h * record.w
        dtype = np.int8 if record.dtype else np.float32
        return self.arena[at : at + size * np.dtype(dtype).itemsize].view(dtype)

    @property
    def _here(self) -> Any:
        return ctypes.byref(self.model)

    @staticmethod
    def _at(array: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)


def aligned(num: int) -> Any:
    memory = np.zeros(num + 16, np.uint8)
    start = -memory.ctypes.data % 16
    return memory[start : start + num]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(toolchain.host_library()))


def compiled(net: Net, trained: list[str], **more: Any) -> Blob:
    return blob.compile(net, {"whole": trained}, fits=("whole",), momentum=True, keeps_start=True, **more)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", [Sgd(0.05), Sgd(0.02, 0.9, 0.01, 0.1)], ids=["plain", "full"])
def test_200_steps_give_the_same_bits(library: ctypes.CDLL, model: str, how: Sgd) -> None:
    make, shape, classes = MODELS[model]
    torch.manual_seed(3)
    net = translate(make(), shape)
    made = compiled(net, list(net.tensors))
    reference, runtime = Reference(made.data), Runtime(library, made.data, made.arena_bytes)
    ours, theirs = reference.plan(PlanKind.TRAIN, "whole"), runtime.plan(PlanKind.TRAIN)
    stream = np.random.default_rng(5)
    runtime.keep_start()
    begin = reference.digest()
    for _ in range(200):
        rows = stream.standard_normal((2, *shape)).astype(np.float32)
        labels = [int(y) for y in stream.integers(-1, classes, 2)]
        assert reference.train_batch(ours, list(rows), labels, how) == runtime.train_batch(theirs, rows, labels, how)
    assert reference.digest() != begin
    assert b"".join(w.tobytes() for w in reference.weights) == runtime.weights()


@pytest.mark.parametrize("model", MODELS)
def test_the_first_steps_are_torch_s(model: str) -> None:
    make, shape, classes = MODELS[model]
    torch.manual_seed(3)
    module = make()
    net = translate(module, shape)
    reference = Reference(compiled(net, list(net.tensors)).data)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    stream = np.random.default_rng(5)
    plan = reference.plan(PlanKind.TRAIN)
    for _ in range(5):
        rows = stream.standard_normal((3, *shape)).astype(np.float32)
        labels = [int(y) for y in stream.integers(0, classes, 3)]
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(torch.from_numpy(rows)), torch.tensor(labels))
        loss.backward()
        optimiser.step()
        assert reference.train_batch(plan, list(rows), labels, Sgd(0.05, 0.9)) == pytest.approx(loss.item(), rel=1e-4)
    for name, ours in zip(net.tensors, reference.weights, strict=True):
        np.testing.assert_allclose(ours, module.get_parameter(name).detach(), rtol=1e-3, atol=1e-5)


def test_an_int8_body_and_a_float_head(library: ctypes.CDLL) -> None:
    torch.manual_seed(3)
    net = translate(small_cnn(), (1, 11, 9))
    stream = np.random.default_rng(5)
    last = next(layer for layer in reversed(net.layers) if not layer.weights).name
    net = quantise.quantise(net, stream.standard_normal((32, 1, 11, 9)).astype(np.float32), upto=last)
    made = compiled(net, list(net.tensors))
    reference, runtime = Reference(made.data), Runtime(library, made.data, made.arena_bytes)
    assert made.stored != 0
    stores, theirs = reference.plan(PlanKind.STORE), runtime.plan(PlanKind.STORE)
    trains, trains_too = reference.plan(PlanKind.TRAIN), runtime.plan(PlanKind.TRAIN)
    for _ in range(20):
        x = 2 * stream.standard_normal((1, 11, 9)).astype(np.float32)
        kept = reference.forward(stores, x)[made.stored]
        runtime.forward(theirs, x)
        same = runtime.array("mh_model_value", theirs, made.stored).copy()
        np.testing.assert_array_equal(kept.reshape(-1), same)
        labels = [int(stream.integers(0, 4))]
        loss = reference.train_batch(trains, [kept], labels, Sgd(0.05))
        assert loss == runtime.train_batch(trains_too, same[None], labels, Sgd(0.05))
    assert b"".join(w.tobytes() for w in reference.weights) == runtime.weights()


def test_other_packings_are_refused() -> None:
    torch.manual_seed(3)
    net = translate(small_cnn(), (1, 11, 9))
    rows = np.random.default_rng(5).standard_normal((32, 1, 11, 9)).astype(np.float32)
    made = blob.compile(quantise.quantise(net, rows), {}, packing=1, stored=0)
    reference = Reference(made.data)
    with pytest.raises(ModelError, match="packing=0"):
        reference.forward(reference.plan(PlanKind.INFER), rows[0])
    with pytest.raises(ModelError, match="a row has 99 numbers; this one has 98"):
        reference.forward(reference.plan(PlanKind.INFER), np.zeros(98))
    with pytest.raises(ModelError, match="no TRAIN plan"):
        reference.plan(PlanKind.TRAIN)
