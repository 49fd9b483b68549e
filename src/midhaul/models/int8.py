"""A model whose first layers are int8, as the device runs them, and whose last are float32 and can be trained.

Its int8 numbers are buffers, so they travel, are kept and are swapped like any other tensor: the simulation engines and
the firmware work with the very same ones.
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
from torch import Tensor, nn

from midhaul.errors import ModelError
from midhaul.models import quantise, slices
from midhaul.models.translate import translate
from midhaul.net import Kind, Layer, Net, Quantised
from midhaul.tree import Tree

CALIBRATION_ROWS = 512
_PREFIX = "int8."
_MATRIX = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)


class Int8Body(nn.Module):
    """The int8 layers of a quantised net, with the device's very integers.

    Shapes: [B, ...] float32 -> [B, *shape] float32, dequantised; without `shape` [B, C, H, W], or [B, C] where that is
    a vector. Its numbers are buffers: scales [V] and zero points [V] of the values, and for each layer its weight,
    bias, multiplier, shift and limits. The integers are held in float64, which is exact, so results don't depend on the
    order of sums; it works under torch.func.vmap.
    Raises: ModelError for a net without int8 layers, or with more than one value between them and the rest.
    """

    def __init__(self, net: Net, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        ends = [layer for layer in net.layers if layer.kind == Kind.DEQUANTISE]
        if len(ends) != 1:
            raise ModelError(f"an int8 body ends in one dequantised value; this network has {len(ends)}")
        self._net, self._end = net, ends[0]
        channels, height, width = net.values[ends[0].out].shape
        self._shape = shape or ((channels,) if height == width == 1 else (channels, height, width))
        if math.prod(self._shape) != channels * height * width:
            raise ModelError(f"the int8 layers give {channels}x{height}x{width} numbers, not the shape {self._shape}")
        for name, value in numbers(net).items():
            self.register_buffer(name.removeprefix(_PREFIX), value)

    def forward(self, x: Tensor) -> Tensor:
        """Gives the features of a batch."""
        held, net = dict(self.named_buffers()), self._net
        values: dict[int, Tensor] = {0: x.reshape(-1, *net.values[0].shape).to(torch.float32)}
        scales, zeros = held["scales"], held["zero_points"].to(torch.float64)
        for place, layer in enumerate(net.layers[: net.layers.index(self._end)]):
            source = values[layer.inputs[0]]
            if layer.kind == Kind.QUANTISE:
                scaled = source * (1.0 / scales[layer.out])
                near = torch.where(scaled > -1024.0, scaled, -1024.0).clamp(max=1024.0).round().double()
                values[layer.out] = (near + zeros[layer.out]).clamp(-128.0, 127.0)
            elif layer.kind == Kind.RESHAPE:
                values[layer.out] = source.reshape(-1, *net.values[layer.out].shape)
            else:
                inputs = [values[v] for v in layer.inputs]
                values[layer.out] = _layer(layer, inputs, zeros[[*layer.inputs, layer.out]], place, held)
        last = self._end.inputs[0]
        return ((values[last] - zeros[last]).to(torch.float32) * scales[last]).reshape(-1, *self._shape)


class Int8Front(nn.Module):
    """A module with its layers up to the head in int8; the head keeps the names of its parameters.

    Shapes: [B, ...] float32 -> what the module gives. The buffers of its `Int8Body` lie under `int8.`.
    Raises: ModelError for a module that can't be cut before its head, or has no int8 form.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...], calibration: Tensor) -> None:
        super().__init__()
        self.input_shape = input_shape
        points = slices.cut_points(module, input_shape)
        if not points:
            raise ModelError(f"{type(module).__name__} has no body before its head, so none of it can be in int8")
        self.cut = points[-1].name
        _, rear = slices.cut(module, self.cut, input_shape)
        self._feature_shape = points[-1].shape
        self._net = self._quantised(module, None, calibration)
        for name, child in rear.named_children():
            self.add_module(name, child)
        self._rear = (rear,)  # in a tuple, so that its layers are registered once, under their own names
        self.int8 = Int8Body(self._net, self._feature_shape)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the int8 numbers."""
        return tuple(f"{_PREFIX}{name}" for name, _ in self.int8.named_buffers())

    def lowered(self, module: nn.Module, whole: Tree, calibration: Tensor) -> Tree:
        """Gives this module's tree for the float module's: int8 numbers of its body, and its head as it is."""
        net = self._quantised(module, whole, calibration)
        return {**{name: whole[name] for name, _ in self.named_parameters()}, **numbers(net)}

    def device_net(self, whole: Tree | None = None) -> Net:
        """Gives the net of a tree of this module, for the blob."""
        held: Mapping[str, Tensor] = whole or {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return _filled(self._net, held)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the int8 layers exactly, then the rest in float."""
        out: Tensor = self._rear[0](self.int8(x))
        return out

    def _quantised(self, module: nn.Module, whole: Tree | None, calibration: Tensor) -> Net:
        net = translate(module, self.input_shape, whole)
        head = set(slices.names(module, "head", self.input_shape))
        first = next(place for place, layer in enumerate(net.layers) if head & set(layer.weights.values()))
        if first == 0:
            raise ModelError(f"{type(module).__name__} has no layer before its head that could be in int8")
        rows = calibration[:CALIBRATION_ROWS].numpy()
        return quantise.quantise(net, rows, net.layers[first - 1].name)


def numbers(net: Net) -> Tree:
    """Gives the int8 numbers of a quantised net as tensors, in the narrowest type that holds each."""
    found: Tree = {
        f"{_PREFIX}scales": torch.tensor([value.scale for value in net.values], dtype=torch.float32),
        f"{_PREFIX}zero_points": torch.tensor([value.zero_point for value in net.values], dtype=torch.int16),
    }
    for place, layer in enumerate(net.layers):
        packed = layer.packed
        if packed is None:
            continue
        held = {"weight": packed.weight, "bias": packed.bias, "multiplier": packed.multiplier, "shift": packed.shift}
        for role, array in held.items():
            if array is not None and array.size:
                found[f"{_PREFIX}{role}{place}"] = torch.from_numpy(np.ascontiguousarray(array))
        found[f"{_PREFIX}limits{place}"] = torch.tensor([packed.low, packed.high], dtype=torch.int16)
    return found


def _filled(net: Net, whole: Mapping[str, Tensor]) -> Net:
    """Gives the net with the numbers and the float tensors of a tree."""
    scales, zeros = (whole[f"{_PREFIX}{name}"].tolist() for name in ("scales", "zero_points"))
    values = tuple(
        replace(value, scale=float(scale), zero_point=int(zero)) if value.int8 else value
        for value, scale, zero in zip(net.values, scales, zeros, strict=True)
    )
    layers = []
    for place, layer in enumerate(net.layers):
        packed = layer.packed
        if packed is not None:
            low, high = whole[f"{_PREFIX}limits{place}"].tolist()
            packed = Quantised(
                None if packed.weight is None else _array(whole, "weight", place, np.int8),
                None if packed.bias is None else _array(whole, "bias", place, np.int32),
                _array(whole, "multiplier", place, np.int32) if packed.multiplier.size else packed.multiplier,
                _array(whole, "shift", place, np.int32) if packed.shift.size else packed.shift,
                int(low),
                int(high),
            )
        layers.append(replace(layer, packed=packed))
    tensors = {name: whole[name].detach().float().numpy() for name in net.tensors}
    return Net(values, tuple(layers), tensors)


def _array(whole: Mapping[str, Tensor], role: str, place: int, dtype: Any) -> npt.NDArray[Any]:
    return np.asarray(whole[f"{_PREFIX}{role}{place}"].detach().numpy()).astype(dtype)


def _layer(layer: Layer, inputs: list[Tensor], zeros: Tensor, place: int, held: Mapping[str, Tensor]) -> Tensor:
    """Gives a layer's output [B, C, H, W]; `zeros` are the zero points of its inputs and of its output."""
    low, high = held[f"limits{place}"].to(torch.float64)
    x, out = inputs[0], zeros[-1]
    if layer.kind in (Kind.MAX_POOL, Kind.AVERAGE_POOL):
        return torch.minimum(torch.maximum(quantise.pooled(layer, x), low), high)
    bias, multiplier, shift = (held[f"{role}{place}"].long() for role in ("bias", "multiplier", "shift"))
    if layer.kind == Kind.ADD:
        total = inputs[0].long() * multiplier[0] + inputs[1].long() * multiplier[1] + bias[0]
        whole = (total >> shift[0]).double() + out
    else:
        total = _sums(layer, x, held[f"weight{place}"].to(torch.float64), zeros[0])
        wide = ((total.long() + bias[:, None, None]) << shift[:, None, None]) * multiplier[:, None, None]
        whole = ((wide + (1 << 31)) >> 32).double() + out
    return torch.minimum(torch.maximum(whole, low), high)


def _sums(layer: Layer, x: Tensor, weight: Tensor, zero: Tensor) -> Tensor:
    if layer.kind == Kind.DENSE:
        # The weights are in the map's own order, channels last.
        flat = x.permute(0, 2, 3, 1).flatten(1)
        return (flat @ weight.T)[..., None, None].round()
    top, left, bottom, right = layer.padding
    # What lies outside counts as zero: so shift by the zero point, pad, and shift back.
    padded = F.pad(x - zero, (left, right, top, bottom)) + zero
    groups = layer.groups if layer.kind == Kind.DEPTHWISE else 1
    return F.conv2d(padded, weight, None, layer.stride, 0, layer.dilation, groups).round()
