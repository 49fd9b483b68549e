"""Packs the weights of int8 layers for a target, in the orders that device/include/mh_s8.h lays down."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from midhaul.errors import ModelError
from midhaul.net import Bytes, Kind, Layer, Net, Quantised

BAND_BYTES = 1024
"""A depthwise layer on a DSP target goes by bands of rows whose scratch stays below this, where one row allows it."""
_Number = TypeVar("_Number", bound=np.generic)
_LANES = np.array([0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15])
_MATRIX = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)


class Packing(IntEnum):
    """How int8 weights lie in the blob, by what the target's kernels use. The numbers are in the blob and in C."""

    PLAIN = 0
    DSP = 1
    MVE = 2


def pack(layer: Layer, net: Net, packing: int) -> tuple[bytes, bytes]:
    """Gives the packed weights and the requantisation table of an int8 layer; either may be empty.

    Raises: ModelError for a layer that has no int8 numbers.
    """
    kind, numbers = Packing(packing), _numbers(layer)
    if layer.kind == Kind.ADD:
        bias = _bias(layer, numbers)
        return b"", np.array([bias[0], *numbers.multiplier, numbers.shift[0]], "<i4").tobytes()
    if layer.kind not in _MATRIX:
        return b"", b""
    weight = _ordered(layer, numbers)
    table = np.stack([_bias(layer, numbers), numbers.multiplier, numbers.shift], 1).astype("<i4")
    if layer.kind == Kind.DEPTHWISE:
        if kind != Packing.MVE or layer.groups != len(weight):
            return weight.tobytes(), table.tobytes()
        grouped = _padded(weight, 16, 1).reshape(-1, 16, weight.shape[1]).transpose(0, 2, 1)
        lanes = _padded(table, 16, 1).reshape(-1, 16, 3)[:, _LANES].transpose(0, 2, 1)
        return grouped.tobytes(), lanes.tobytes()
    if kind == Packing.PLAIN:
        return weight.tobytes(), table.tobytes()
    rows, columns = {Packing.DSP: (4 if layer.kind == Kind.DENSE else 2, 4), Packing.MVE: (4, 16)}[kind]
    blocks = _padded(weight, rows, columns)
    blocks = blocks.reshape(len(blocks) // rows, rows, -1, columns).transpose(0, 2, 1, 3)
    table = _padded(table, rows, 1)
    if kind == Packing.MVE:
        table = table.reshape(-1, 4, 3).transpose(0, 2, 1)
    return blocks.tobytes(), table.tobytes()


def scratch_bytes(layer: Layer, net: Net, packing: int) -> int:
    """Gives the bytes of scratch that a layer's kernel needs in the arena. The twins are mh_*_sizes_s8 in C."""
    kind = Packing(packing)
    if layer.packed is None or kind == Packing.PLAIN:
        return 0
    source, out = net.values[layer.inputs[0]], net.values[layer.out]
    kh, kw = layer.kernel
    taps = kh * kw
    if layer.kind == Kind.CONV:
        num = taps * source.shape[0]
        if kind == Packing.DSP:
            return 4 * _up(num, 4) + (_up(num, 4) if source.shape[0] % 4 else 0)
        return 0 if _is_pointwise(layer) else _up(num, 16)
    if layer.kind == Kind.DEPTHWISE:
        if kind == Packing.MVE:
            return 4 * taps + _up(source.shape[0], 16) if layer.groups == out.shape[0] else 0
        line = 2 * _up((out.shape[2] - 1) * layer.stride[1] + (kw - 1) * layer.dilation[1] + 2, 4)
        span = (kh - 1) * layer.dilation[0] + 1
        rows = min(out.shape[1], max(1, (BAND_BYTES // line - span) // layer.stride[0] + 1))
        return line * ((rows - 1) * layer.stride[0] + span)
    return 0


def _numbers(layer: Layer) -> Quantised:
    if layer.packed is None:
        raise ModelError(f"layer {layer.name} has no int8 numbers to pack; quantise the network first")
    return layer.packed


def _bias(layer: Layer, numbers: Quantised) -> npt.NDArray[np.int32]:
    if numbers.bias is None:
        raise ModelError(f"layer {layer.name} is in int8 without a bias, which holds the zero point; quantise it again")
    return numbers.bias


def _ordered(layer: Layer, numbers: Quantised) -> Bytes:
    """Gives the weights as [out, K], K in the order kh, kw, ic; those of a dense layer have their order already."""
    if numbers.weight is None:
        raise ModelError(f"layer {layer.name} is in int8 without weights; quantise the network again")
    weight = numbers.weight
    if weight.ndim == 4:
        weight = weight.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(weight.reshape(len(weight), -1))


def _padded(rows: npt.NDArray[_Number], height: int, width: int) -> npt.NDArray[_Number]:
    extra = ((0, -rows.shape[0] % height), (0, -rows.shape[1] % width))
    return np.pad(rows, extra)


def _is_pointwise(layer: Layer) -> bool:
    return math.prod(layer.kernel) == 1 and layer.stride == (1, 1) and not any(layer.padding)


def _up(num: int, step: int) -> int:
    return -(-num // step) * step
