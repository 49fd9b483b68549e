"""Runs a blob in Python as the C runtime does, bit for bit: the slow, obvious reference of device/src/mh_model.c.

It reads the blob's bytes and nothing else, so it holds the writer to the layout as well as C to the arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.devices import arithmetic, blob, integers
from midhaul.devices.arithmetic import Geometry
from midhaul.devices.blob import NONE16, NONE32, LayerRecord, PlanRecord
from midhaul.devices.integers import Range
from midhaul.devices.plan import PlanKind, Step
from midhaul.errors import ModelError
from midhaul.net import Array, Kind

Values = dict[int, npt.NDArray[Any]]
_POOLS = (Kind.MAX_POOL, Kind.AVERAGE_POOL)


@dataclass(frozen=True)
class Sgd:
    """A step of SGD: w -= lr * (gradient + mu * (w - start) + decay * w), with momentum."""

    lr: float
    momentum: float = 0.0
    decay: float = 0.0
    mu: float = 0.0


class Reference:
    """A device's model: its trained tensors, their velocities and starting values, as lists in the blob's order.

    Values are float32 [C, H, W] or int8 [H, W, C]. Raises: ModelError for bytes that are no blob.
    """

    def __init__(self, data: bytes) -> None:
        self.records = blob.read(data)
        self.weights = [self.records.floats(p.initial_at, p.elements).reshape(p.shape) for p in self.records.params]
        self.velocities = [np.zeros_like(w) for w in self.weights]
        self.starts = [w.copy() for w in self.weights]

    @property
    def output(self) -> int:
        """The last value."""
        return self.records.layers[-1].out

    def plan(self, kind: PlanKind, slice: str | None = None) -> PlanRecord:
        """Gives the plan of a kind for a slice, or for any. Raises: ModelError if the blob has none."""
        for plan in self.records.plans:
            if plan.kind == kind and slice in (None, plan.slice):
                return plan
        raise ModelError(f"the blob has no {kind.name} plan for the slice {slice!r}; name it when it is compiled")

    def keep_start(self) -> None:
        """Takes the weights as they are for those that `Sgd.mu` pulls to, and forgets the velocities: an op begins."""
        self.starts = [w.copy() for w in self.weights]
        self.velocities = [np.zeros_like(w) for w in self.weights]

    def forward(self, plan: PlanRecord, x: npt.ArrayLike) -> Values:
        """Gives every value that a plan makes of one row: x is the stored value, or the input of a STORE plan.

        Raises: ModelError for a row of another size.
        """
        first = 0 if plan.kind == PlanKind.STORE else self.records.header.stored_value
        record = self.records.values[first]
        shape = (record.h, record.w, record.c) if record.dtype else (record.c, record.h, record.w)
        if np.size(x) != record.c * record.h * record.w:
            raise ModelError(f"a row has {record.c * record.h * record.w} numbers; this one has {np.size(x)}")
        values: Values = {first: np.asarray(x, np.int8 if record.dtype else np.float32).reshape(shape)}
        for layer, step in zip(self.records.layers, plan.steps, strict=True):
            # The input of a network that begins in int8 is quantised as it comes; no step says so.
            comes = plan.kind == PlanKind.STORE and layer.kind == Kind.QUANTISE
            if step & Step.FORWARD or comes:
                values[layer.out] = self._forward(layer, values)
        return values

    def backward(self, plan: PlanRecord, values: Values, g: Array, sums: list[Array]) -> None:
        """Adds one row's gradients to the sums; g is the gradient of the last value."""
        grads: dict[int, Array] = {self.output: np.asarray(g, np.float32).reshape(values[self.output].shape)}
        for layer, step in reversed(list(zip(self.records.layers, plan.steps, strict=True))):
            if step & (Step.GRAD_INPUT0 | Step.GRAD_INPUT1 | Step.GRAD_PARAMS):
                self._backward(plan, layer, step, values, grads, sums)

    def zeros(self) -> list[Array]:
        """Gives gradient sums of 0."""
        return [np.zeros_like(w) for w in self.weights]

    def step(self, plan: PlanRecord, sums: list[Array], how: Sgd) -> None:
        """Makes one step of SGD with what the plan trains."""
        for i, trained in enumerate(plan.trained):
            if trained:
                self.weights[i], velocity = arithmetic.sgd(
                    self.weights[i],
                    sums[i],
                    self.velocities[i],
                    self.starts[i],
                    how.lr,
                    how.momentum,
                    how.decay,
                    how.mu,
                )
                self.velocities[i] = self.velocities[i] if velocity is None else velocity

    def train_batch(
        self,
        plan: PlanRecord,
        rows: Sequence[npt.ArrayLike],
        labels: Sequence[int],
        how: Sgd,
        loss: str = "cross_entropy",
        soft: Array | None = None,
        temperature: float = 1.0,
        soft_weight: float = 0.0,
    ) -> float:
        """Makes one step with a batch and gives its mean loss, in float32. `soft` [B, C] are a teacher's logits."""
        num, total, sums = np.float32(len(rows)), np.float32(0), self.zeros()
        scale = float(np.float32(1) / num)
        for place, (x, y) in enumerate(zip(rows, labels, strict=True)):
            values = self.forward(plan, x)
            logits = values[self.output].reshape(-1)
            teacher = None if soft is None else np.asarray(soft[place], np.float32)
            one, g = _loss(loss, logits, y, teacher, temperature, soft_weight, scale)
            total = total + np.float32(one)
            self.backward(plan, values, g, sums)
        self.step(plan, sums, how)
        return float(total / num)

    def digest(self) -> str:
        """Gives the SHA-256 of all trained tensors."""
        return hashlib.sha256(b"".join(np.ascontiguousarray(w, "<f4").tobytes() for w in self.weights)).hexdigest()

    def _forward(self, layer: LayerRecord, values: Values) -> npt.NDArray[Any]:
        kind, x = Kind(layer.kind), values[layer.in0]
        source, out = self.records.values[layer.in0], self.records.values[layer.out]
        limits = Range(source.zero_point, out.zero_point, layer.qlow, layer.qhigh)
        if kind == Kind.QUANTISE:
            return integers.quantise(x, out.scale, limits)
        if kind == Kind.DEQUANTISE:
            return integers.dequantise(x, source.scale, source.zero_point)
        if out.dtype:
            return self._forward_int8(layer, values, limits)
        y: Array = self._forward_float(layer, values).reshape(out.c, out.h, out.w)
        return arithmetic.clamp(y, layer.low, layer.high) if _clamps(layer) else y

    def _forward_float(self, layer: LayerRecord, values: Values) -> Array:
        kind, x, s = Kind(layer.kind), values[layer.in0], self._geometry(layer)
        if kind in (Kind.CLAMP, Kind.RESHAPE):
            return x
        if kind == Kind.ADD:
            total: Array = x + values[layer.in1]
            return total
        if kind in _POOLS:
            return arithmetic.max_pool(s, x) if kind == Kind.MAX_POOL else arithmetic.average_pool(s, x)
        weight, bias = self._tensors(layer)
        if kind == Kind.GROUP_NORM:
            return arithmetic.group_norm(x, weight, bias, layer.groups, layer.eps)
        assert weight is not None
        if kind == Kind.DENSE:
            y = arithmetic.dense(x.reshape(-1), weight, bias).reshape(-1, 1, 1)
        else:
            y = (arithmetic.conv if kind == Kind.CONV else arithmetic.depthwise)(s, x, weight, bias)
        if layer.rank:
            s, a, b = self._adapter(layer)
            y = y + arithmetic.lora(s, x.reshape(s.ic, s.ih, s.iw), a, b, layer.lora_scale)
        return y

    def _forward_int8(self, layer: LayerRecord, values: Values, limits: Range) -> npt.NDArray[np.int8]:
        if self.records.header.packing:
            raise ModelError("the reference reads int8 weights in the plain packing alone; compile with packing=0")
        kind, x, s = Kind(layer.kind), values[layer.in0], self._geometry(layer)
        if kind == Kind.MAX_POOL:
            return integers.max_pool(s, x, limits)
        if kind == Kind.AVERAGE_POOL:
            return integers.average_pool(s, x, limits)
        if kind == Kind.ADD:
            return integers.add(x, values[layer.in1], self._numbers(layer.requant_at, (4,), "<i4"), limits)
        shapes = {
            Kind.DENSE: (s.oc, x.size),
            Kind.CONV: (s.oc, s.kh, s.kw, s.ic),
            Kind.DEPTHWISE: (s.oc, s.kh, s.kw),
        }
        weight, table = (
            self._numbers(layer.weight_at, shapes[kind], "i1"),
            self._numbers(layer.requant_at, (s.oc, 3), "<i4"),
        )
        if kind == Kind.DENSE:
            return integers.dense(x, weight, table, limits)
        return (integers.conv if kind == Kind.CONV else integers.depthwise)(s, x, weight, table, limits)

    def _backward(
        self,
        plan: PlanRecord,
        layer: LayerRecord,
        step: int,
        values: Values,
        grads: dict[int, Array],
        sums: list[Array],
    ) -> None:
        kind, x, s = Kind(layer.kind), values[layer.in0], self._geometry(layer)
        g = grads[layer.out]
        if _clamps(layer):
            g = arithmetic.clamp_grad(values[layer.out], g, layer.low, layer.high)
        into = grads[layer.in0] if step & Step.ADDS0 else None

        def put(value: int, dx: Array, wanted: Step, adds: Step) -> None:
            if step & wanted:
                dx = dx.reshape(values[value].shape)
                grads[value] = grads[value] + dx if step & adds else dx

        def add(param: int, more: Array) -> None:
            if param != NONE16 and plan.trained[param]:
                sums[param] = sums[param] + more.reshape(sums[param].shape)

        if kind in _POOLS:
            if step & Step.GRAD_INPUT0:
                grads[layer.in0] = (
                    arithmetic.max_pool_input(s, g, x, into)
                    if kind == Kind.MAX_POOL
                    else arithmetic.average_pool_input(s, g, into)
                )
            return
        if kind in (Kind.CLAMP, Kind.RESHAPE, Kind.ADD):
            put(layer.in0, g, Step.GRAD_INPUT0, Step.ADDS0)
            put(layer.in1, g, Step.GRAD_INPUT1, Step.ADDS1)
            return
        weight, _ = self._tensors(layer)
        if kind == Kind.GROUP_NORM:
            dx, dw, db = arithmetic.group_norm_grad(x, weight, g, layer.groups, layer.eps)
        else:
            assert weight is not None
            if kind == Kind.DENSE:
                flat = g.reshape(-1)
                dx = arithmetic.dense_input(flat, weight)
                dw, db = arithmetic.dense_params(flat, x.reshape(-1))
            elif kind == Kind.CONV:
                dx = arithmetic.conv_input(s, g, weight)
                dw, db = arithmetic.conv_params(s, g, x)
            else:
                dx = arithmetic.depthwise_input(s, g, weight)
                dw, db = arithmetic.depthwise_params(s, g, x)
        put(layer.in0, dx, Step.GRAD_INPUT0, Step.ADDS0)
        add(layer.weight, dw)
        add(layer.bias, db)
        if layer.rank:
            s, a, b = self._adapter(layer)
            shaped = x.reshape(s.ic, s.ih, s.iw), g.reshape(s.oc, s.oh, s.ow)
            dx, da, db = arithmetic.lora_grad(s, shaped[1], shaped[0], a, b, layer.lora_scale)
            put(layer.in0, dx, Step.GRAD_INPUT0, Step.GRAD_INPUT0)  # an adapter's is always added to its layer's
            add(layer.lora_a, da)
            add(layer.lora_b, db)

    def _geometry(self, layer: LayerRecord) -> Geometry:
        a, z = self.records.values[layer.in0], self.records.values[layer.out]
        sizes = (a.c, a.h, a.w, z.c, z.h, z.w, layer.kh, layer.kw, layer.sh, layer.sw)
        return Geometry(*sizes, layer.pt, layer.pl, layer.dh, layer.dw)

    def _adapter(self, layer: LayerRecord) -> tuple[Geometry, Array, Array]:
        s = self._geometry(layer)
        if layer.kind == Kind.DENSE:
            s = Geometry(s.ic * s.ih * s.iw, 1, 1, s.oc, 1, 1)
        a = self._tensor(layer.lora_a, layer.lora_a_at, (layer.rank, s.ic))
        b = self._tensor(layer.lora_b, layer.lora_b_at, (s.oc, layer.rank))
        if a is None or b is None:
            raise ModelError("the blob has a layer with half an adapter; export the model again")
        return s, a, b

    def _tensors(self, layer: LayerRecord) -> tuple[Array | None, Array | None]:
        s = self._geometry(layer)
        shapes = {
            Kind.DENSE: (s.oc, s.ic * s.ih * s.iw),
            Kind.CONV: (s.oc, s.ic, s.kh, s.kw),
            Kind.DEPTHWISE: (s.oc, 1, s.kh, s.kw),
            Kind.GROUP_NORM: (s.oc,),
        }
        shape = shapes[Kind(layer.kind)]
        return self._tensor(layer.weight, layer.weight_at, shape), self._tensor(layer.bias, layer.bias_at, (s.oc,))

    def _tensor(self, param: int, at: int, shape: tuple[int, ...]) -> Array | None:
        if param != NONE16:
            return self.weights[param].reshape(shape)
        return None if at == NONE32 else self.records.floats(at, int(np.prod(shape))).reshape(shape)

    def _numbers(self, at: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        count = int(np.prod(shape))
        return np.frombuffer(self.records.data, dtype, count, at).reshape(shape)


def _clamps(layer: LayerRecord) -> bool:
    return bool(layer.flags) or layer.kind == Kind.CLAMP


def _loss(
    name: str, logits: Array, y: int, soft: Array | None, temperature: float, soft_weight: float, scale: float
) -> tuple[float, Array]:
    if name == "mse":
        if soft is None:
            return arithmetic.mse(logits, y, scale)
        return arithmetic.mse_distillation(logits, soft, y, soft_weight, scale)
    if soft is None:
        return arithmetic.cross_entropy(logits, y, scale)
    return arithmetic.distillation(logits, soft, y, temperature, soft_weight, scale)
