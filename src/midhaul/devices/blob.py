"""The model blob: a network, its plans and its weights as one flat file that a device runs in place.

The layout is device/include/mh_blob.h, field by field; docs/blob.md describes it. `compile` makes the bytes, `read`
takes them apart again for the Python reference and for tests.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from midhaul.devices import pack, plan
from midhaul.devices.plan import Plan, Resident
from midhaul.errors import ModelError
from midhaul.net import Array, Kind, Layer, Net

MAGIC = 0x3142484D
VERSION = 1
NONE16 = 0xFFFF
NONE32 = 0xFFFFFFFF
MAX_BYTES = 1 << 26

HEADER = struct.Struct("<IHHIIHHHHIIIIHHHHIIII")
VALUE = struct.Struct("<BBHHHfi")
LAYER = struct.Struct("<BBHHHBBBBBBBBBBHffbbHffHHHHIIIIII")
PARAM = struct.Struct("<IIB3x4HIIII")
PLAN = struct.Struct("<BBHIIIIIIIIII")
_CRC_AT = 12
_MODEL_AT = 56
_KINDS_NEED_KERNEL = (Kind.CONV, Kind.DEPTHWISE, Kind.MAX_POOL, Kind.AVERAGE_POOL)


@dataclass(frozen=True)
class Blob:
    """A compiled model: its bytes, and what went into them."""

    data: bytes = field(repr=False)
    net: Net = field(repr=False)
    trained: tuple[str, ...]
    resident: Resident
    plans: tuple[Plan, ...]
    stored: int
    model_id: int

    @property
    def arena_bytes(self) -> int:
        """The bytes of the arena that every plan fits."""
        return max([self.resident.bytes, *(plan.arena_bytes for plan in self.plans)])

    @property
    def row_bytes(self) -> int:
        """What a row takes in the device's store: the stored value, a label of 16 bits, up to a multiple of 4."""
        return -(-(self.net.values[self.stored].bytes + 2) // 4) * 4


def compile(
    net: Net,
    slices: Mapping[str, Collection[str]],
    *,
    fits: Collection[str] = (),
    splits: Collection[str] = (),
    momentum: bool = False,
    keeps_start: bool = False,
    packing: int = 0,
    stored: int | None = None,
    num_classes: int | None = None,
) -> Blob:
    """Gives the blob of a network.

    `slices` gives the parameters of each slice that messages name; `fits` are those that FIT or ADAPT train, `splits`
    those that BACKWARD trains. What any of them trains lies in the arena, the rest in the blob. `stored` is the value
    that the device keeps of a row, found by `plan.stored_value` unless given. `num_classes` is 0 for the device's half
    of a split model.
    Raises: ModelError for a slice or a size that the device can't have.
    """
    parts = {name: frozenset(names) for name, names in slices.items()}
    union: frozenset[str] = frozenset()
    for name in (*fits, *splits):
        if name not in parts:
            raise ModelError(f"there is no slice {name!r} to train; slices are {', '.join(parts)}")
        union |= parts[name]
    if unknown := sorted(union - set(net.tensors)):
        raise ModelError(f"the device has no float tensor {unknown[0]!r} to train; it is folded, frozen or in int8")
    trained = tuple(name for name in net.tensors if name in union)
    kept = plan.resident(net, union, momentum=momentum, keeps_start=keeps_start)
    at = plan.stored_value(net, union) if stored is None else stored

    def scratch(layer: Layer, of: Net) -> int:
        return pack.scratch_bytes(layer, of, packing)

    plans = [plan.infer(net, kept, at, scratch)]
    if at:
        plans.append(plan.store(net, kept, at, scratch))
    plans += [plan.train(net, kept, at, scratch, slice=name, trained=parts[name]) for name in fits]
    plans += [plan.train(net, kept, at, scratch, slice=name, trained=parts[name], split=True) for name in splits]
    plans += [
        plan.infer(net, kept, at, scratch, slice=name, sent=names & union)
        for name, names in parts.items()
        if name not in fits and name not in splits
    ]
    classes = num_classes
    if classes is None:
        classes = 0 if splits else net.values[net.output].elements
    data, model_id = _Writer(net, trained, kept, tuple(plans), at, classes, packing).done()
    if len(data) > MAX_BYTES:
        raise ModelError(f"the model's blob would have {len(data):,} bytes; at most {MAX_BYTES:,} are taken")
    return Blob(data, net, trained, kept, tuple(plans), at, model_id)


class _Writer:
    """Lays out the parts one after another and fills in the offsets."""

    def __init__(
        self,
        net: Net,
        trained: tuple[str, ...],
        kept: Resident,
        plans: tuple[Plan, ...],
        stored: int,
        classes: int,
        packing: int,
    ) -> None:
        self.net, self.trained, self.kept, self.plans = net, trained, kept, plans
        self.stored, self.classes, self.packing = stored, classes, packing
        self.number = {name: place for place, name in enumerate(trained)}
        self.body = bytearray()
        self.seen: dict[bytes, int] = {}
        tables = (VALUE.size * len(net.values), LAYER.size * len(net.layers))
        self.values_at = HEADER.size
        self.layers_at = self.values_at + tables[0]
        self.params_at = self.layers_at + tables[1]
        self.plans_at = self.params_at + PARAM.size * len(trained)
        self.data_at = -(-(self.plans_at + PLAN.size * len(plans)) // 16) * 16

    def done(self) -> tuple[bytes, int]:
        values = b"".join(self._value(place) for place in range(len(self.net.values)))
        layers = b"".join(self._layer(layer) for layer in self.net.layers)
        params = b"".join(self._param(name) for name in self.trained)
        plans = b"".join(self._plan(one) for one in self.plans)
        self._align(16)
        arena_bytes = max([self.kept.bytes, *(one.arena_bytes for one in self.plans)])
        total = self.data_at + len(self.body)
        counts = (len(self.net.values), len(self.net.layers), len(self.trained), len(self.plans))
        places = (self.values_at, self.layers_at, self.params_at, self.plans_at)
        head = HEADER.pack(
            *(MAGIC, VERSION, HEADER.size, total, 0, *counts, *places),
            *(self.stored, self.classes, self.packing, 0, self.kept.bytes, arena_bytes, 0, 0),
        )
        whole = bytearray((head + values + layers + params + plans).ljust(self.data_at, b"\0") + self.body)
        model_id = zlib.crc32(whole)
        struct.pack_into("<I", whole, _MODEL_AT, model_id)
        struct.pack_into("<I", whole, _CRC_AT, zlib.crc32(whole))
        return bytes(whole), model_id

    def _align(self, num: int) -> None:
        self.body.extend(bytes(-len(self.body) % num))

    def _put(self, data: bytes, align: int = 4) -> int:
        """Appends data, or finds the same data again; gives its offset."""
        if not data:
            return NONE32
        if data not in self.seen:
            self._align(align)
            self.seen[data] = self.data_at + len(self.body)
            self.body.extend(data)
            self._align(4)
        return self.seen[data]

    def _value(self, place: int) -> bytes:
        value = self.net.values[place]
        if max(value.shape) > 0xFFFF:
            raise ModelError(f"a value of shape {value.shape} is too long for a device; at most 65,535 a side")
        return VALUE.pack(int(value.int8), int(value.int8), *value.shape, value.scale, value.zero_point)

    def _layer(self, layer: Layer) -> bytes:
        sizes = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
        if max(sizes) > 0xFF or min(sizes) < 0:
            raise ModelError(f"layer {layer.name} has a kernel, stride, padding or dilation beyond 255: {sizes}")
        params = {role: self.number.get(name, NONE16) for role, name in layer.weights.items()}
        frozen = {
            role: NONE32 if name in self.number else self._put(_floats(self.net.tensors[name]), 16)
            for role, name in layer.weights.items()
        }
        requant, low, high = NONE32, -128, 127
        if layer.packed is not None:
            weights, table = pack.pack(layer, self.net, self.packing)
            frozen["weight"], requant = self._put(weights, 16), self._put(table, 16)
            low, high = layer.packed.low, layer.packed.high
        rank = self.net.tensors[layer.weights["lora_a"]].shape[0] if "lora_a" in layer.weights else 0
        roles = ("weight", "bias", "lora_a", "lora_b")
        inputs = (*layer.inputs, NONE16)[:2]
        limits = (max(layer.low, -3.0e38), min(layer.high, 3.0e38)) if layer.clamps else (0.0, 0.0)
        return LAYER.pack(
            *(int(layer.kind), int(layer.clamps), *inputs, layer.out, *sizes, layer.groups, *limits, low, high),
            *(rank, layer.eps, layer.lora_scale),
            *(params.get(role, NONE16) for role in roles),
            *(frozen.get(role, NONE32) for role in roles),
            *(requant, 0),
        )

    def _param(self, name: str) -> bytes:
        value = self.net.tensors[name]
        if value.ndim > 4:
            raise ModelError(f"the tensor {name} has {value.ndim} dimensions; a device takes at most 4")
        shape = (*value.shape, 0, 0, 0, 0)[:4]
        return PARAM.pack(
            zlib.crc32(name.encode()),
            value.size,
            value.ndim,
            *shape,
            self._put(_floats(value), 16),
            self.kept.weights[name],
            self.kept.velocities.get(name, NONE32),
            self.kept.starts.get(name, NONE32),
        )

    def _plan(self, one: Plan) -> bytes:
        text = one.slice.encode()
        return PLAN.pack(
            int(one.kind),
            len(text),
            0,
            self._put(text.ljust(-(-len(text) // 4) * 4, b"\0")),
            self._put(_flags(name in one.trained for name in self.trained)),
            self._put(_flags(name in one.sent for name in self.trained)),
            one.arena_bytes,
            self._put(_flags(int(step) for step in one.steps)),
            self._put(_words(one.values.get(v, NONE32) for v in range(len(self.net.values)))),
            self._put(_words(one.grads.get(v, NONE32) for v in range(len(self.net.values)))),
            self._put(_words(one.sums.get(name, NONE32) for name in self.trained)),
            one.scratch_offset,
            one.scratch_bytes,
        )


def _floats(value: Array) -> bytes:
    return np.ascontiguousarray(value, "<f4").tobytes()


def _flags(numbers: Any) -> bytes:
    data = bytes(int(number) for number in numbers)
    return data + bytes(-len(data) % 4)


def _words(numbers: Any) -> bytes:
    return np.asarray(list(numbers), "<u4").tobytes()


class Header(NamedTuple):
    """The fields of struct mh_blob."""

    magic: int
    version: int
    header_bytes: int
    total_bytes: int
    crc32: int
    num_values: int
    num_layers: int
    num_params: int
    num_plans: int
    values_at: int
    layers_at: int
    params_at: int
    plans_at: int
    stored_value: int
    num_classes: int
    packing: int
    zero: int
    persist_bytes: int
    arena_bytes: int
    model_id: int
    zero2: int


class ValueRecord(NamedTuple):
    """The fields of struct mh_value."""

    dtype: int
    layout: int
    c: int
    h: int
    w: int
    scale: float
    zero_point: int


class LayerRecord(NamedTuple):
    """The fields of struct mh_layer."""

    kind: int
    flags: int
    in0: int
    in1: int
    out: int
    kh: int
    kw: int
    sh: int
    sw: int
    pt: int
    pl: int
    pb: int
    pr: int
    dh: int
    dw: int
    groups: int
    low: float
    high: float
    qlow: int
    qhigh: int
    rank: int
    eps: float
    lora_scale: float
    weight: int
    bias: int
    lora_a: int
    lora_b: int
    weight_at: int
    bias_at: int
    lora_a_at: int
    lora_b_at: int
    requant_at: int
    zero: int


class ParamRecord(NamedTuple):
    """The fields of struct mh_param."""

    name_id: int
    elements: int
    ndim: int
    shape: tuple[int, ...]
    initial_at: int
    weight_offset: int
    velocity_offset: int
    start_offset: int


class PlanRecord(NamedTuple):
    """The fields of struct mh_plan, its tables read."""

    kind: int
    slice: str
    trained: tuple[bool, ...]
    sent: tuple[bool, ...]
    arena_bytes: int
    steps: tuple[int, ...]
    values: tuple[int, ...]
    grads: tuple[int, ...]
    sums: tuple[int, ...]
    scratch_offset: int
    scratch_bytes: int


@dataclass(frozen=True)
class Records:
    """A blob taken apart. `data` is the blob, for what lies behind the tables."""

    data: bytes = field(repr=False)
    header: Header
    values: tuple[ValueRecord, ...]
    layers: tuple[LayerRecord, ...]
    params: tuple[ParamRecord, ...]
    plans: tuple[PlanRecord, ...]

    def floats(self, at: int, num: int) -> Array:
        """Gives float32 numbers of the blob. Raises: ModelError beyond its end."""
        return np.frombuffer(self._bytes(at, 4 * num), "<f4").astype(np.float32)

    def _bytes(self, at: int, num: int) -> bytes:
        if at + num > len(self.data):
            raise ModelError(f"the blob says that {num} bytes lie at {at}, which is beyond its end")
        return self.data[at : at + num]


def read(data: bytes) -> Records:
    """Gives a blob's tables. Raises: ModelError, in one sentence, for what isn't a whole blob of this version."""
    if len(data) < HEADER.size or len(data) > MAX_BYTES:
        raise ModelError(f"a blob has {HEADER.size} to {MAX_BYTES:,} bytes; these are {len(data):,}")
    head = Header(*HEADER.unpack_from(data))
    if head.magic != MAGIC or head.version != VERSION:
        raise ModelError("these bytes are no model blob of this version; export the model again")
    if head.total_bytes != len(data) or head.crc32 != zlib.crc32(data[:_CRC_AT] + bytes(4) + data[_CRC_AT + 4 :]):
        raise ModelError("the blob is damaged: its length or its CRC-32 is wrong; export the model again")
    out = Records(data, head, (), (), (), ())

    def table(layout: struct.Struct, at: int, num: int) -> list[tuple[Any, ...]]:
        return list(layout.iter_unpack(out._bytes(at, layout.size * num)))

    def flags(at: int, num: int) -> tuple[int, ...]:
        return tuple(out._bytes(at, num)) if num else ()

    def words(at: int, num: int) -> tuple[int, ...]:
        return tuple(int(v) for v in np.frombuffer(out._bytes(at, 4 * num), "<u4")) if num else ()

    params = tuple(
        ParamRecord(p[0], p[1], p[2], tuple(p[3 : 3 + p[2]]), *p[7:])
        for p in table(PARAM, head.params_at, head.num_params)
    )
    plans = tuple(
        PlanRecord(
            p[0],
            out._bytes(p[3], p[1]).decode() if p[1] else "",
            tuple(map(bool, flags(p[4], head.num_params))),
            tuple(map(bool, flags(p[5], head.num_params))),
            p[6],
            flags(p[7], head.num_layers),
            words(p[8], head.num_values),
            words(p[9], head.num_values),
            words(p[10], head.num_params),
            p[11],
            p[12],
        )
        for p in table(PLAN, head.plans_at, head.num_plans)
    )
    values = tuple(ValueRecord(*v) for v in table(VALUE, head.values_at, head.num_values))
    layers = tuple(LayerRecord(*v) for v in table(LAYER, head.layers_at, head.num_layers))
    return Records(data, head, values, layers, params, plans)
