"""A network as the device runs it: a list of layers over values with three axes, free of torch's modules.

`models.translate` makes one from a module, `models.quantise` turns its first layers into int8, `devices.blob` packs it.
The kinds and their arithmetic are those of device/include/mh_blob.h.

Shape letters: C channels, H rows, W columns of one example; a vector is [C, 1, 1], a signal [C, 1, W].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int8]
Words = npt.NDArray[np.int32]


class Kind(IntEnum):
    """What a layer computes. The numbers are in the blob and in C."""

    DENSE = 1
    CONV = 2
    DEPTHWISE = 3
    MAX_POOL = 4
    AVERAGE_POOL = 5
    CLAMP = 6
    ADD = 7
    GROUP_NORM = 8
    RESHAPE = 9
    QUANTISE = 10
    DEQUANTISE = 11


@dataclass(frozen=True)
class Value:
    """What a layer gives for one example; of int8, the real number is scale * (stored - zero_point)."""

    shape: Shape
    int8: bool = False
    scale: float = 0.0
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """The numbers of it."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes of it in the arena."""
        return self.elements * (1 if self.int8 else 4)


@dataclass(frozen=True)
class Layer:
    """One layer: value `out` from the values `inputs`.

    `kernel`, `stride`, `dilation` are (H, W); `padding` is (top, left, bottom, right). `low` and `high` clamp the
    output where `clamps`. `weights` names the tensors by role: weight, bias, lora_a, lora_b; what a folded batch norm
    changed keeps the name of the layer's own tensor. `packed` holds what an int8 layer has in their place.
    """

    kind: Kind
    name: str
    inputs: tuple[int, ...]
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    low: float = -math.inf
    high: float = math.inf
    eps: float = 0.0
    lora_scale: float = 0.0
    weights: Mapping[str, str] = field(default_factory=dict)
    packed: Quantised | None = None

    @property
    def clamps(self) -> bool:
        """Tells whether the output is clamped."""
        return self.low != -math.inf or self.high != math.inf


@dataclass(frozen=True)
class Quantised:
    """The numbers of an int8 layer.

    Shapes: weight [out, ...] int8 in torch's order (for a dense layer behind a map: in the map's HWC order); bias [out]
    int32, with the input's zero point folded in; shift [out] and multiplier [out] int32: the output is
    clip(((acc << shift) * multiplier + 2^31 >> 32) + zero_point, low, high). ADD and pools use what they need.
    """

    weight: Bytes | None
    bias: Words | None
    multiplier: Words
    shift: Words
    low: int
    high: int


@dataclass(frozen=True)
class Net:
    """Values, layers in the order they run, and the tensors that they use. Value 0 is the input.

    `tensors` holds the float tensors by name, in torch's shapes; an int8 layer's aren't in it.
    """

    values: tuple[Value, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, Array]

    @property
    def output(self) -> int:
        """The place of the last value."""
        return self.layers[-1].out if self.layers else 0

    def users(self, value: int) -> list[int]:
        """Gives the places of the layers that read a value."""
        return [place for place, layer in enumerate(self.layers) if value in layer.inputs]


def macs(net: Net, layer: Layer) -> int:
    """Gives the multiply-accumulates of a layer for one example, padded taps included."""
    out, source = net.values[layer.out], net.values[layer.inputs[0]]
    rank = 0
    if "lora_a" in layer.weights:
        rank = net.tensors[layer.weights["lora_a"]].shape[0]
    extra = rank * (source.shape[0] + out.shape[0])
    if layer.kind == Kind.DENSE:
        return source.elements * out.elements + rank * (source.elements + out.elements)
    if layer.kind == Kind.CONV:
        return out.elements * source.shape[0] * math.prod(layer.kernel) + extra * math.prod(out.shape[1:])
    if layer.kind == Kind.DEPTHWISE:
        return out.elements * math.prod(layer.kernel)
    return 0
