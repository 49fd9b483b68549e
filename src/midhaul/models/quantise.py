"""Post-training quantisation of a network's first layers to int8, and two exact twins of what the device computes.

`quantise` turns a float `Net` into one whose first layers are int8; `integers` runs them in numpy as the device does,
`models.int8` in torch, for the simulation engines; `fine_tune` trains the float weights with the rounding in the loop
first. The arithmetic is that of device/include/mh_s8.h: per-channel weights, asymmetric values, one rounding.

Source: Jacob et al., CVPR 2018 (arXiv 1712.05877), section 2; Krishnamoorthi 2018 (arXiv 1806.08342), sections 2 and 3.
Shape letters: B rows, C channels, H rows of a map, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from midhaul.errors import ModelError
from midhaul.net import Array, Bytes, Kind, Layer, Net, Quantised, Shape, Value

Ranges = Mapping[int, tuple[float, float]]
Long = npt.NDArray[np.int64]

_MATRIX = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)
_POOLS = (Kind.MAX_POOL, Kind.AVERAGE_POOL)
_LOW, _HIGH, _MOST = -128, 127, 127
_BATCH = 64


def ranges(net: Net, calibration: npt.ArrayLike, *, percentile: float = 100.0) -> Ranges:
    """Gives the least and the greatest number of every value over the calibration rows [N, ...], zero included.

    Below 100, `percentile` cuts the tails: the mean over batches of 64 rows of the percentile and its mirror.
    Raises: ModelError for rows that don't fit the network's input or aren't finite.
    """
    if not 50.0 < percentile <= 100.0:
        raise ModelError(f"a calibration percentile lies above 50 and up to 100, not at {percentile}")
    rows = np.asarray(calibration, np.float32)
    if not len(rows) or rows.size != len(rows) * net.values[0].elements or not np.isfinite(rows).all():
        raise ModelError(
            f"calibration needs finite rows of {net.values[0].elements} numbers each; these have the shape {rows.shape}"
        )
    low: dict[int, list[float]] = {}
    high: dict[int, list[float]] = {}
    weights = {name: torch.as_tensor(value) for name, value in net.tensors.items()}
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            x = torch.as_tensor(rows[start : start + _BATCH]).reshape(-1, *net.values[0].shape)
            for place, value in _run(net, x, weights).items():
                numbers = value.numpy().ravel()
                low.setdefault(place, []).append(float(np.percentile(numbers, 100.0 - percentile)))
                high.setdefault(place, []).append(float(np.percentile(numbers, percentile)))
    join = (min, max) if percentile == 100.0 else (_mean, _mean)
    return {place: (min(0.0, join[0](low[place])), max(0.0, join[1](high[place]))) for place in low}


def quantise(
    net: Net,
    calibration: npt.ArrayLike,
    upto: str | None = None,
    *,
    percentile: float = 100.0,
) -> Net:
    """Gives the network with its layers up to the one named `upto` (None: all) in int8.

    A QUANTISE comes before the first of them and a DEQUANTISE before the first float layer, or at the end. A flatten
    between int8 layers goes, since the dense layer behind it takes its numbers in the map's own order.
    Raises: ModelError for a layer that has no int8 kernel, or a scale that doesn't fit.

    Limits: layers with group norm or LoRA stay float; so cut before them.
    """
    return _Rewriter(net, _prefix(net, upto), ranges(net, calibration, percentile=percentile)).done()


def value_of(shape: Shape, low: float, high: float) -> Value:
    """Gives an int8 value for numbers in [low, high], zero among them, which is exact in it.

    >>> value_of((1, 1, 1), 0.0, 25.5)
    Value(shape=(1, 1, 1), int8=True, scale=0.10000000149011612, zero_point=-128)
    """
    scale = float(np.float32((high - low) / (_HIGH - _LOW))) or 1.0
    return Value(shape, True, scale, int(np.clip(round(_LOW - low / scale), _LOW, _HIGH)))


def requant(
    weight: npt.NDArray[np.floating[Any]],
    bias: npt.NDArray[np.floating[Any]] | None,
    source: Value,
    out: Value,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    name: str = "",
) -> Quantised:
    """Gives the int8 numbers of a dense, conv or depthwise layer. `weight` [out, ...] keeps its shape.

    Raises: ModelError where a channel's sum could leave 32 bits.
    """
    flat = np.asarray(weight, np.float64).reshape(len(weight), -1)
    offset = np.zeros(len(flat)) if bias is None else np.asarray(bias, np.float64)
    scale = np.abs(flat).max(1) / _MOST
    empty = scale == 0.0
    scale = np.where(empty, 2.0**-16 * out.scale / source.scale, scale)
    scale = np.maximum(scale, np.abs(offset) / (source.scale * 2.0**29))
    numbers = np.rint(flat / scale[:, None]).astype(np.int64)
    whole = np.rint(offset / (source.scale * scale)).astype(np.int64) - source.zero_point * numbers.sum(1)
    factor = source.scale * scale / out.scale
    shift = np.zeros(len(flat), np.int64)
    while (over := np.rint(factor * 2.0 ** (32 - shift)) >= 2**31).any():
        shift += over
        if shift.max() > 31:
            raise ModelError(f"layer {name} would need a factor beyond 2^30 from its sums to its output; scale it")
    up, down = np.maximum(numbers, 0).sum(1), np.maximum(-numbers, 0).sum(1)
    most = np.maximum(whole + _HIGH * up - _LOW * down, -(whole + _LOW * up - _HIGH * down))
    if ((most << shift) >= 2**31).any():
        raise ModelError(f"layer {name} has sums beyond 32 bits; it has too many inputs or too large weights for int8")
    return Quantised(
        numbers.astype(np.int8).reshape(weight.shape),
        whole.astype(np.int32),
        np.rint(factor * 2.0 ** (32 - shift)).astype(np.int32),
        shift.astype(np.int32),
        *_stored_limits(out, low, high),
    )


def add_requant(a: Value, b: Value, out: Value, *, low: float = -math.inf, high: float = math.inf) -> Quantised:
    """Gives the int8 numbers of an ADD: y = clip((bias + a * m[0] + b * m[1] >> shift) + zero, low, high).

    Raises: ModelError for inputs whose scales are 2^22 times the output's.
    """
    for shift in range(30, 0, -1):
        both = [round(value.scale / out.scale * 2.0**shift) for value in (a, b)]
        half = 1 << (shift - 1)
        if 255 * sum(both) + half < 2**31:
            bias = half - a.zero_point * both[0] - b.zero_point * both[1]
            offset, factors, shifts = (np.array(v, np.int32) for v in ([bias], both, [shift, shift]))
            return Quantised(None, offset, factors, shifts, *_stored_limits(out, low, high))
    raise ModelError("the inputs of an addition have scales far beyond its output's; calibrate with more rows")


def integers(net: Net, x: npt.ArrayLike) -> dict[int, Bytes]:
    """Gives every int8 value [B, H, W, C] for inputs x [B, ...], as the device stores it.

    Raises: ModelError for a network that doesn't begin with int8 layers.
    """
    first = net.values[0]
    rows = np.asarray(x, np.float32)
    floats: dict[int, Array] = {0: rows.reshape(len(rows), *first.shape)}
    found: dict[int, Bytes] = {}
    for layer in net.layers:
        out = net.values[layer.out]
        if layer.kind == Kind.RESHAPE and layer.inputs[0] in floats:
            floats[layer.out] = floats[layer.inputs[0]].reshape(len(rows), *out.shape)
        elif layer.kind == Kind.QUANTISE:
            found[layer.out] = _to_int8(floats[layer.inputs[0]], out)
        elif out.int8:
            found[layer.out] = integer_layer(layer, net, [found[v] for v in layer.inputs])
    if not found:
        raise ModelError("this network has no int8 layers; quantise it first")
    return found


def dequantised(numbers_BHWC: Bytes, value: Value) -> Array:
    """Gives the real numbers [B, C, H, W] in float32 of an int8 value [B, H, W, C]."""
    real = (numbers_BHWC.astype(np.float32) - np.float32(value.zero_point)) * np.float32(value.scale)
    return np.ascontiguousarray(real.transpose(0, 3, 1, 2))


def integer_layer(layer: Layer, net: Net, inputs: list[Bytes]) -> Bytes:
    """Gives the output [B, H, W, C] of one int8 layer from its inputs [B, H, W, C]: the C kernels' exact twin."""
    numbers, out, x = _packed(layer), net.values[layer.out], inputs[0]
    source = net.values[layer.inputs[0]]
    if layer.kind == Kind.ADD:
        assert numbers.bias is not None
        total = inputs[0].astype(np.int64) * numbers.multiplier[0] + inputs[1].astype(np.int64) * numbers.multiplier[1]
        return _clipped(((total + numbers.bias[0]) >> int(numbers.shift[0])) + out.zero_point, numbers)
    if layer.kind == Kind.DENSE:
        assert numbers.weight is not None
        total = x.reshape(len(x), -1).astype(np.float64) @ numbers.weight.T.astype(np.float64)
        return _requantised(total[:, None, None, :], numbers, out)
    if layer.kind in _POOLS:
        return _pooled(layer, out, x, numbers)
    assert numbers.weight is not None
    padded = _padded(x, layer, source.zero_point).astype(np.float64)
    total = np.zeros((len(x), *out.shape[1:], out.shape[0]))
    for i in range(layer.kernel[0]):
        for j in range(layer.kernel[1]):
            tap = numbers.weight[:, :, i, j].astype(np.float64)
            part = _window(padded, layer, out, i, j)
            if layer.kind == Kind.CONV:
                total += part @ tap.T
            else:
                total += np.repeat(part, out.shape[0] // source.shape[0], 3) * tap[:, 0]
    return _requantised(total, numbers, out)


def _to_int8(x_BCHW: Array, value: Value) -> Bytes:
    inverse = np.float32(1.0) / np.float32(value.scale)
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num(x_BCHW * inverse, nan=-1024.0)
    near = np.rint(np.clip(scaled, -1024.0, 1024.0))
    stored: Bytes = np.clip(near + value.zero_point, _LOW, _HIGH).astype(np.int8)
    return stored.transpose(0, 2, 3, 1)


def _requantised(total: npt.NDArray[np.float64], numbers: Quantised, out: Value) -> Bytes:
    assert numbers.bias is not None
    whole = total.astype(np.int64) + numbers.bias
    wide = (whole << numbers.shift) * numbers.multiplier
    return _clipped(((wide + (1 << 31)) >> 32) + out.zero_point, numbers)


def _clipped(whole: Long, numbers: Quantised) -> Bytes:
    return np.clip(whole, numbers.low, numbers.high).astype(np.int8)


def _padded(x_BHWC: Bytes, layer: Layer, fill: int) -> Bytes:
    top, left, bottom, right = layer.padding
    return np.pad(x_BHWC, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)


def _window(x_BHWC: npt.NDArray[Any], layer: Layer, out: Value, i: int, j: int) -> npt.NDArray[Any]:
    """Gives what tap (i, j) reads for each place of the output."""
    row, column = i * layer.dilation[0], j * layer.dilation[1]
    rows = slice(row, row + (out.shape[1] - 1) * layer.stride[0] + 1, layer.stride[0])
    return x_BHWC[:, rows, column : column + (out.shape[2] - 1) * layer.stride[1] + 1 : layer.stride[1]]


def _pooled(layer: Layer, out: Value, x: Bytes, numbers: Quantised) -> Bytes:
    most = np.full((len(x), *out.shape[1:], out.shape[0]), _LOW, np.int64)
    total = np.zeros_like(most)
    inside = _padded(np.ones_like(x), layer, 0)
    count = np.zeros_like(most)
    padded = _padded(x, layer, 0).astype(np.int64)
    for i in range(layer.kernel[0]):
        for j in range(layer.kernel[1]):
            part, real = _window(padded, layer, out, i, j), _window(inside, layer, out, i, j).astype(np.int64)
            most = np.where(real > 0, np.maximum(most, part), most)
            total += part * real
            count += real
    if layer.kind == Kind.MAX_POOL:
        return _clipped(most, numbers)
    return _clipped(np.sign(total) * ((np.abs(total) + count // 2) // count), numbers)


def pooled(layer: Layer, x: Tensor) -> Tensor:
    """Gives a max pool of a map [B, C, H, W], or an average pool of whole numbers, rounded half away from zero."""
    top, left, bottom, right = layer.padding
    if layer.kind == Kind.MAX_POOL:
        padded = F.pad(x, (left, right, top, bottom), value=-math.inf)
        return F.max_pool2d(padded, layer.kernel, layer.stride, 0, layer.dilation)
    total, count = _sums(layer, x)
    return total.sign() * torch.div(
        total.abs() + torch.div(count, 2, rounding_mode="floor"), count, rounding_mode="floor"
    )


def _sums(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gives each window's sum and the number of its taps inside the map."""
    if layer.dilation != (1, 1):
        raise ModelError(f"layer {layer.name} is an average pool with dilation, which has no kernel")
    top, left, bottom, right = layer.padding
    both = []
    for one in (x, torch.ones_like(x)):
        padded = F.pad(one, (left, right, top, bottom))
        both.append(F.avg_pool2d(padded, layer.kernel, layer.stride, divisor_override=1))
    return both[0], both[1]


def _packed(layer: Layer) -> Quantised:
    if layer.packed is None:
        raise ModelError(f"layer {layer.name} ({layer.kind.name}) has no int8 numbers; quantise the network first")
    return layer.packed


def _stored_limits(out: Value, low: float, high: float) -> tuple[int, int]:
    def stored(number: float, otherwise: int) -> int:
        if not math.isfinite(number):
            return otherwise
        return int(np.clip(np.rint(number / out.scale) + out.zero_point, _LOW, _HIGH))

    return stored(low, _LOW), stored(high, _HIGH)


def _mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _prefix(net: Net, upto: str | None) -> int:
    """Gives the number of layers to quantise."""
    named = [place for place, layer in enumerate(net.layers) if upto is None or layer.name == upto]
    if not named:
        names = ", ".join(layer.name for layer in net.layers)
        raise ModelError(f"there is no layer {upto!r} to quantise up to; the layers are {names}")
    return named[-1] + 1


class _Rewriter:
    """Writes the network anew, with its first `num` layers in int8."""

    def __init__(self, net: Net, num: int, found: Ranges) -> None:
        self.net, self.num, self.found = net, num, found
        self.values: list[Value] = [net.values[0]]
        self.layers: list[Layer] = []
        self.floats: dict[int, int] = {0: 0}
        self.bytes: dict[int, int] = {}
        self.flat: dict[int, Layer] = {}

    def done(self) -> Net:
        for layer in self.net.layers[: self.num]:
            self._int8(layer)
        for layer in self.net.layers[self.num :]:
            inputs = tuple(self._float(value) for value in layer.inputs)
            self.floats[layer.out] = self._new(self.net.values[layer.out])
            self.layers.append(replace(layer, inputs=inputs, out=self.floats[layer.out]))
        last = self._float(self.net.output)
        if not self.bytes:
            raise ModelError("none of the layers to quantise has an int8 kernel; name a later layer")
        assert last == self.layers[-1].out
        used = {name for layer in self.layers for name in layer.weights.values()}
        return Net(
            tuple(self.values),
            tuple(self.layers),
            {name: value for name, value in self.net.tensors.items() if name in used},
        )

    def _new(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _float(self, value: int) -> int:
        """Gives the place of a value as floats."""
        if value not in self.floats and value in self.flat:
            layer = self.flat[value]
            inputs = (self._float(layer.inputs[0]),)
            self.floats[value] = self._new(self.net.values[value])
            self.layers.append(replace(layer, inputs=inputs, out=self.floats[value]))
        elif value not in self.floats:
            source = self.bytes[value]
            self.floats[value] = self._new(Value(self.values[source].shape))
            self.layers.append(Layer(Kind.DEQUANTISE, f"dequantise_{source}", (source,), self.floats[value]))
        return self.floats[value]

    def _stored(self, value: int) -> int:
        """Gives the place of a value in int8."""
        if value not in self.bytes:
            out = value_of(self.net.values[value].shape, *self.found[value])
            self.bytes[value] = self._new(out)
            self.layers.append(Layer(Kind.QUANTISE, "quantise", (self.floats[value],), self.bytes[value]))
        return self.bytes[value]

    def _int8(self, layer: Layer) -> None:
        source = layer.inputs[0]
        if layer.kind == Kind.RESHAPE:
            if source in self.floats:
                self.floats[layer.out] = self._new(self.net.values[layer.out])
                self.layers.append(replace(layer, inputs=(self.floats[source],), out=self.floats[layer.out]))
                return
            others = [one for one in self.net.layers[: self.num] if layer.out in one.inputs and one.kind != Kind.DENSE]
            if others:
                raise ModelError(f"layer {layer.name} reshapes int8 values before {others[0].name}; cut before it")
            self.flat[layer.out] = layer
            return
        if "lora_a" in layer.weights or layer.kind not in (*_MATRIX, *_POOLS, Kind.ADD, Kind.CLAMP):
            what = "LoRA" if "lora_a" in layer.weights else f"kind {layer.kind.name}"
            raise ModelError(
                f"layer {layer.name} has {what}, which has no int8 kernel; quantise up to a layer before it"
            )
        while source in self.flat:
            source = self.flat[source].inputs[0]
        inputs = tuple(self._stored(value) for value in (source, *layer.inputs[1:]))
        first, old = self.values[inputs[0]], self.net.values[layer.out]
        limits = {"low": layer.low, "high": layer.high}
        if layer.kind in (*_POOLS, Kind.CLAMP):
            out = Value(old.shape, True, first.scale, first.zero_point)
            none = np.zeros(0, np.int32)
            numbers = Quantised(None, None, none, none, *_stored_limits(out, **limits))
        elif layer.kind == Kind.ADD:
            out = value_of(old.shape, *self.found[layer.out])
            numbers = add_requant(first, self.values[inputs[1]], out, **limits)
        else:
            out = value_of(old.shape, *self.found[layer.out])
            weight = self.net.tensors[layer.weights["weight"]]
            weight = weight.reshape(len(weight), -1) if layer.kind == Kind.DENSE else _four(weight, layer)
            if layer.kind == Kind.DENSE:
                weight = weight.reshape(-1, *first.shape).transpose(0, 2, 3, 1).reshape(len(weight), -1)
            bias = self.net.tensors[layer.weights["bias"]] if "bias" in layer.weights else None
            numbers = requant(weight, bias, first, out, name=layer.name, **limits)
        self.bytes[layer.out] = self._new(out)
        # a pool over one place is a clamp
        kind = Kind.MAX_POOL if layer.kind == Kind.CLAMP else layer.kind
        self.layers.append(
            replace(layer, kind=kind, inputs=inputs, out=self.bytes[layer.out], weights={}, packed=numbers)
        )


def _four(weight: Any, layer: Layer) -> Any:
    """Gives a convolution's weights as [out, in, kh, kw]; those over a signal have no kh."""
    return weight.reshape(len(weight), -1, *layer.kernel)


def _run(net: Net, x_BCHW: Tensor, weights: Mapping[str, Tensor], faked: _Faked | None = None) -> dict[int, Tensor]:
    """Gives every value [B, C, H, W] of a float network; with `faked`, rounded as int8 would."""
    values = {0: x_BCHW if faked is None else faked.value(0, x_BCHW)}
    for place, layer in enumerate(net.layers):
        out = _float_layer(net, place, [values[v] for v in layer.inputs], weights, faked)
        if layer.clamps:
            out = out.clamp(layer.low, layer.high)
        values[layer.out] = out if faked is None else faked.value(layer.out, out)
    return values


def _float_layer(
    net: Net, place: int, inputs: list[Tensor], weights: Mapping[str, Tensor], faked: _Faked | None
) -> Tensor:
    layer, x = net.layers[place], inputs[0]
    role = {role: weights[name] for role, name in layer.weights.items()}
    shape = net.values[layer.out].shape
    if layer.kind in (Kind.RESHAPE, Kind.CLAMP):
        return x.reshape(-1, *shape)
    if layer.kind == Kind.ADD:
        return x + inputs[1]
    if layer.kind == Kind.GROUP_NORM:
        return F.group_norm(x, layer.groups, role.get("weight"), role.get("bias"), layer.eps)
    if layer.kind == Kind.AVERAGE_POOL:
        total, count = _sums(layer, x)
        return total / count
    if layer.kind == Kind.MAX_POOL:
        return pooled(layer, x)
    if layer.kind not in _MATRIX:
        raise ModelError(f"layer {layer.name} ({layer.kind.name}) isn't float; quantise a float network")
    weight = role["weight"]
    flat = x.flatten(1)
    weight = _four(weight, layer) if layer.kind != Kind.DENSE else weight.reshape(shape[0], -1)
    if faked is not None and place < faked.num:
        weight = faked.weight(weight)
    if layer.kind == Kind.DENSE:
        out = F.linear(flat, weight, role.get("bias"))[..., None, None]
    else:
        top, left, bottom, right = layer.padding
        groups = layer.groups if layer.kind == Kind.DEPTHWISE else 1
        padded = F.pad(x, (left, right, top, bottom))
        out = F.conv2d(padded, weight, role.get("bias"), layer.stride, 0, layer.dilation, groups)
    if "lora_a" in role:
        a, b = (role[name].flatten(1) for name in ("lora_a", "lora_b"))
        x = flat[..., None, None] if layer.kind == Kind.DENSE else x[..., :: layer.stride[0], :: layer.stride[1]]
        out = out + layer.lora_scale * torch.einsum("or,rc,bchw->bohw", b, a, x)
    return out


class _Faked:
    """Rounds weights and values to what int8 could hold, with gradients that pass straight through."""

    def __init__(self, net: Net, num: int, found: Ranges) -> None:
        self.num = num
        inside = [layer for layer in net.layers[:num] if layer.kind in (*_MATRIX, Kind.ADD)]
        places = {0} | {layer.out for layer in inside}
        self.values = {place: value_of(net.values[place].shape, *found[place]) for place in places}

    def value(self, place: int, x: Tensor) -> Tensor:
        if place not in self.values:
            return x
        value = self.values[place]
        kept = x.clamp((_LOW - value.zero_point) * value.scale, (_HIGH - value.zero_point) * value.scale)
        return kept + ((kept / value.scale).round() * value.scale - kept).detach()

    def weight(self, weight: Tensor) -> Tensor:
        scale = (weight.detach().flatten(1).abs().amax(1) / _MOST).clamp(min=1e-30)
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return weight + ((weight / scale).round() * scale - weight).detach()


def fine_tune(
    net: Net,
    x: npt.ArrayLike,
    labels: npt.ArrayLike,
    upto: str | None = None,
    *,
    steps: int = 200,
    rate: float = 1e-3,
    batch: int = 32,
    seed: int = 0,
    percentile: float = 100.0,
) -> Net:
    """Gives the float network trained on with int8 rounding in its first layers, to be quantised then.

    Adam on the cross-entropy of rows x [N, ...] and labels [N], with the ranges of the untuned network; gradients pass
    straight through the rounding (Bengio et al. 2013, arXiv 1308.3432). Quantise with the same `upto`.
    Raises: ModelError as `quantise`.
    """
    rows = np.asarray(x, np.float32)
    faked = _Faked(net, _prefix(net, upto), ranges(net, rows, percentile=percentile))
    weights = {name: torch.tensor(value).requires_grad_() for name, value in net.tensors.items()}
    optimiser = torch.optim.Adam(list(weights.values()), rate)
    source = torch.as_tensor(rows).reshape(-1, *net.values[0].shape)
    target = torch.as_tensor(np.asarray(labels, np.int64))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randint(len(source), (batch,), generator=draw)
        logits = _run(net, source[picked], weights, faked)[net.output].flatten(1)
        optimiser.zero_grad()
        F.cross_entropy(logits, target[picked]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return replace(net, tensors={name: value.detach().numpy() for name, value in weights.items()})
