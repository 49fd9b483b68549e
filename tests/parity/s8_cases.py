"""Random int8 layers and the calls of their C kernels, for the host, the emulator and the benchmark alike."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from midhaul.devices import pack
from midhaul.models import quantise as q
from midhaul.net import Bytes, Kind, Layer, Net, Quantised, Shape, Value

GUARD = 77


@dataclass(frozen=True)
class Case:
    """A layer, the network of it alone, and inputs [1, H, W, C]."""

    layer: Layer
    net: Net
    inputs: list[Bytes]

    def wanted(self) -> Bytes:
        return q.integer_layer(self.layer, self.net, self.inputs)[0]


@dataclass(frozen=True)
class Call:
    """A kernel's name and arguments; `y` and `scratch` have guard bytes behind them, which must stay."""

    name: str
    arguments: list[Any]
    y: Bytes
    scratch: Bytes
    num: int
    scratch_num: int

    def result(self) -> Bytes:
        assert (self.y[self.num :] == GUARD).all(), f"{self.name} wrote behind its output"
        assert (self.scratch[self.scratch_num :] == GUARD).all(), f"{self.name} wrote behind its scratch"
        return self.y[: self.num]


def matrix(
    rng: np.random.Generator,
    kind: Kind,
    source: Shape,
    out_channels: int,
    kernel: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    *,
    clamps: bool = False,
    wide: bool = False,
) -> Case:
    """A dense, conv or depthwise layer; `wide` lets single inputs fill the output's range, so that shifts come in."""
    size = [
        (have + before + after - (tap - 1) * step - 1) // by + 1
        for have, before, after, tap, step, by in zip(
            source[1:], padding[:2], padding[2:], kernel, dilation, stride, strict=True
        )
    ]
    out = (out_channels, 1, 1) if kind == Kind.DENSE else (out_channels, *size)
    depth = source[0] if kind == Kind.CONV else 1
    shape = (out_channels, int(np.prod(source))) if kind == Kind.DENSE else (out_channels, depth, *kernel)
    weight = rng.uniform(-1, 1, shape) * rng.uniform(0.1, 1, (out_channels, *[1] * (len(shape) - 1)))
    taps = int(np.prod(shape[1:]))
    spread = 0.4 * 127 * np.sqrt(taps) * 1.2
    values = (
        Value(source, True, 0.02, int(rng.integers(-128, 128))),
        Value(out, True, float(0.02 * spread / 100) if not wide else 0.02, int(rng.integers(-60, 60))),
    )
    bias = rng.normal(0, 0.5, out_channels)
    numbers = q.requant(weight * 600 if wide else weight, bias, *values)
    if wide:
        few, offset = rng.integers(-1, 2, shape), rng.integers(-9, 9, out_channels)
        numbers = replace(numbers, weight=few.astype(np.int8), bias=offset.astype(np.int32))
    if clamps:
        numbers = replace(numbers, low=-35, high=41)
    layer = Layer(kind, kind.name.lower(), (0,), 1, kernel, stride, padding, dilation, packed=numbers)
    layer = replace(layer, groups=source[0] if kind == Kind.DEPTHWISE else 1)
    return Case(layer, Net(values, (layer,), {}), [_numbers(rng, source)])


def pool(
    rng: np.random.Generator,
    kind: Kind,
    source: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> Case:
    size = [
        (have + before + after - tap) // by + 1
        for have, before, after, tap, by in zip(source[1:], padding[:2], padding[2:], kernel, stride, strict=True)
    ]
    none = np.zeros(0, np.int32)
    numbers = Quantised(None, None, none, none, -100, 90)
    layer = Layer(kind, kind.name.lower(), (0,), 1, kernel, stride, padding, packed=numbers)
    values = (Value(source, True, 0.1, 3), Value((source[0], *size), True, 0.1, 3))
    return Case(layer, Net(values, (layer,), {}), [_numbers(rng, source)])


def add(rng: np.random.Generator, shape: Shape) -> Case:
    values = tuple(Value(shape, True, float(rng.uniform(0.01, 1)), int(rng.integers(-128, 128))) for _ in range(3))
    layer = Layer(Kind.ADD, "add", (0, 1), 2, packed=q.add_requant(*values, low=-40 * values[2].scale))
    return Case(layer, Net(values, (layer,), {}), [_numbers(rng, shape), _numbers(rng, shape)])


def call(case: Case, packing: int) -> Call:
    """Gives the call of a layer's kernel for a packing."""
    layer, net, numbers = case.layer, case.net, case.layer.packed
    assert numbers is not None
    source, out = net.values[layer.inputs[0]], net.values[layer.out]
    weights, table = (np.frombuffer(bytearray(part), np.int8) for part in pack.pack(layer, net, packing))
    scratch_num = pack.scratch_bytes(layer, net, packing)
    y, scratch = (np.full(num + 32, GUARD, np.int8) for num in (out.elements, scratch_num))
    inputs = [np.ascontiguousarray(x) for x in case.inputs]
    limits = np.array([source.zero_point, out.zero_point, numbers.low, numbers.high], np.int32)
    window = geometry(case)
    name = f"mh_{layer.kind.name.lower()}_s8"
    arguments: list[Any]
    if layer.kind == Kind.ADD:
        arguments = [*inputs, table, y, out.elements, limits]
    elif layer.kind == Kind.DENSE:
        arguments = [inputs[0], weights, table, y, source.elements, out.elements, limits, scratch]
    elif layer.kind in (Kind.CONV, Kind.DEPTHWISE):
        arguments = [window, inputs[0], weights, table, y, limits, scratch]
    else:
        arguments = [window, inputs[0], y, numbers.low, numbers.high]
    return Call(name, arguments, y, scratch, out.elements, scratch_num)


def geometry(case: Case) -> Bytes:
    """Gives struct mh_geometry of a layer."""
    layer, source, out = case.layer, case.net.values[0].shape, case.net.values[case.layer.out].shape
    small = (*layer.kernel, *layer.stride, *layer.padding[:2], *layer.dilation)
    return np.frombuffer(bytearray(struct.pack("<6H8BH", *source, *out, *small, layer.groups)), np.int8)


def sizes(case: Case, packing: int) -> tuple[str, list[Any], list[int]]:
    """Gives the call that tells a kernel's sizes, and what it should tell; its last argument is 3 words to fill."""
    layer, net = case.layer, case.net
    told = np.zeros(3, np.uint32)
    weights, table = pack.pack(layer, net, packing)
    wanted = [len(weights), len(table), pack.scratch_bytes(layer, net, packing)]
    first: list[Any] = [geometry(case)]
    if layer.kind == Kind.DENSE:
        first = [net.values[0].elements, net.values[1].elements]
    return f"mh_{layer.kind.name.lower()}_sizes_s8", [*first, told], wanted


def table_layers(rng: np.random.Generator) -> dict[str, Case]:
    """Gives the layers whose instructions are counted."""
    same = (1, 1, 1, 1)
    return {
        "FC 640->128": matrix(rng, Kind.DENSE, (640, 1, 1), 128),
        "conv 3x3 32x32x16->16": matrix(rng, Kind.CONV, (16, 32, 32), 16, (3, 3), padding=same),
        "conv 1x1 25x5x64->64": matrix(rng, Kind.CONV, (64, 25, 5), 64),
        "depthwise 3x3 25x5x64": matrix(rng, Kind.DEPTHWISE, (64, 25, 5), 64, (3, 3), padding=same),
    }


def cases() -> list[Callable[[np.random.Generator], Case]]:
    """Gives makers of layers of every kind and of sizes that end within a group, a word, a vector or a band."""
    found: list[Callable[[np.random.Generator], Case]] = []
    for num_in, num_out in ((1, 1), (7, 5), (16, 4), (24, 3), (37, 9), (130, 17)):
        found.append(lambda r, i=num_in, o=num_out: matrix(r, Kind.DENSE, (i, 1, 1), o, clamps=i == 37))
    found.append(lambda r: matrix(r, Kind.DENSE, (3, 4, 2), 6))
    found.append(lambda r: matrix(r, Kind.DENSE, (3, 1, 1), 6, wide=True))
    maps: list[tuple[Shape, int, Any]] = [
        ((1, 8, 8), 3, {"kernel": (3, 3), "padding": (1, 1, 1, 1)}),
        ((4, 5, 5), 4, {"kernel": (3, 3), "padding": (1, 1, 1, 1)}),
        ((16, 6, 7), 5, {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1)}),
        ((8, 9, 9), 2, {"kernel": (3, 3), "dilation": (2, 3), "padding": (2, 3, 2, 3)}),
        ((3, 7, 5), 7, {"kernel": (5, 3), "stride": (1, 2), "padding": (4, 2, 4, 2), "clamps": True}),
        ((12, 3, 3), 8, {}),
        ((10, 1, 5), 9, {"stride": (1, 2)}),
        ((20, 3, 3), 8, {"padding": (1, 1, 1, 1)}),
        ((64, 2, 2), 6, {"clamps": True}),
        ((2, 1, 30), 4, {"kernel": (1, 5), "stride": (1, 3), "padding": (0, 2, 0, 1)}),
        ((1, 3, 3), 5, {"wide": True}),
    ]
    for shape, outs, more in maps:
        found.append(lambda r, s=shape, o=outs, m=more: matrix(r, Kind.CONV, s, o, **m))
    maps = [
        ((5, 6, 6), 5, {"kernel": (3, 3), "padding": (1, 1, 1, 1)}),
        ((16, 5, 7), 16, {"kernel": (3, 3), "padding": (1, 1, 1, 1), "clamps": True}),
        ((20, 9, 8), 20, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 0, 0)}),
        ((33, 4, 4), 33, {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 0, 1, 1)}),
        ((4, 6, 6), 12, {"kernel": (3, 3), "stride": (1, 2), "padding": (1, 1, 1, 1)}),
        ((6, 22, 3), 12, {"kernel": (22, 1)}),
        ((3, 40, 40), 3, {"kernel": (3, 3), "padding": (1, 1, 1, 1)}),
        ((2, 60, 50), 2, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}),
        ((7, 1, 20), 7, {"kernel": (1, 4), "dilation": (1, 3), "padding": (0, 4, 0, 5)}),
        ((18, 8, 5), 18, {"kernel": (5, 2), "stride": (3, 1), "dilation": (1, 2), "padding": (2, 1, 2, 1)}),
        ((17, 2, 2), 17, {"wide": True}),
    ]
    for shape, outs, more in maps:
        found.append(lambda r, s=shape, o=outs, m=more: matrix(r, Kind.DEPTHWISE, s, o, **m))
    for kind in (Kind.MAX_POOL, Kind.AVERAGE_POOL):
        found.append(lambda r, k=kind: pool(r, k, (5, 6, 7), (2, 3), (2, 2), (0, 1, 1, 1)))
        found.append(lambda r, k=kind: pool(r, k, (16, 5, 4), (5, 4), (1, 1), (0, 0, 0, 0)))
    found += [lambda r: add(r, (3, 4, 5)), lambda r: add(r, (16, 2, 3))]
    return found


def _numbers(rng: np.random.Generator, shape: Shape) -> Bytes:
    channels, height, width = shape
    return rng.integers(-128, 128, (1, height, width, channels)).astype(np.int8)
