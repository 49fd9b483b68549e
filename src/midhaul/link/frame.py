"""The bytes of a message: one frame an op, one frame a reply, little-endian, bounded and summed.

The layout is in docs/wire.md. A frame holds numbers for names: a setting travels as its place in `message.SETTINGS`,
a tensor or a metric as the CRC-32 of its name, so both sides need the names beforehand. Nothing of a frame is read
before its length is checked, nothing behind the header before its CRC-32 is.

Limits: CRC-32 finds accidents, not forgers; authentication is the transport's.
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from midhaul.errors import FrameError
from midhaul.link import compress, update
from midhaul.link.compress import Coded
from midhaul.message import ROW_KINDS, SETTINGS, UPDATE, Op, Setting, Settings, kind_of
from midhaul.tree import Tree, all_finite

MAGIC = b"MH"
VERSION = 1
MAX_BYTES = 1 << 28  # what `unpack` takes unless told otherwise: 256 MiB
MAX_DIMS = 8
HEADER = struct.Struct("<2sBBBBHIIIHHd")  # magic version op flags settings tensors total round device metrics 0 weight
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size
CRC_BYTES = CRC.size

_REPLY = 1  # the one flag
_OPS = frozenset(map(int, Op))
_TENSOR = struct.Struct("<IBB")  # id dtype ndim, then ndim times u32, then the data
_METRIC = struct.Struct("<Id")
TENSOR_BYTES, METRIC_BYTES = _TENSOR.size, _METRIC.size  # before a tensor's shape and data; of a metric
_NUMBER = struct.Struct("<BB")  # number and type of a setting, then its value
_INT, _FLOAT, _TEXT = 0, 1, 2
_I32 = struct.Struct("<i")
_F64 = struct.Struct("<d")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U32_MAX = 0xFFFFFFFF


class _Dtype(NamedTuple):
    name: str
    wire: str  # numpy's name of the bytes
    torch: torch.dtype


# The place in this list is the number on the wire: append, never reorder. bf16 travels as the 16 bits it is.
_DTYPES = (
    _Dtype("f32", "<f4", torch.float32),
    _Dtype("f16", "<f2", torch.float16),
    _Dtype("bf16", "<i2", torch.bfloat16),
    _Dtype("i8", "<i1", torch.int8),
    _Dtype("u8", "<u1", torch.uint8),
    _Dtype("i16", "<i2", torch.int16),
    _Dtype("i32", "<i4", torch.int32),
    _Dtype("i64", "<i8", torch.int64),
)
_WIRES = tuple(np.dtype(dtype.wire) for dtype in _DTYPES)
_NATIVE = tuple(wire.newbyteorder("=") for wire in _WIRES)
_NUMBER_OF = {dtype.torch: number for number, dtype in enumerate(_DTYPES)}
_FIRST_INTEGER = 3
_CODED = len(_DTYPES)  # the dtype of a tensor whose data are a u32 length and coded bytes


@dataclass(frozen=True, eq=False)
class Frame:
    """One message to one device, or one device's reply. `coded` has the bytes that travel in place of some tensors."""

    op: Op
    is_reply: bool
    round: int
    device: int
    settings: Settings = field(default_factory=dict)
    tree: Tree = field(default_factory=dict)
    weight: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)


def pack(frame: Frame) -> bytes:
    """Gives the bytes of a frame.

    Integer tensors travel in the smallest of i8, u8, i16, i32, i64 that holds them.
    Raises: FrameError for what the wire has no place for (float64 and bool tensors, integers of a setting beyond
    32 bits, text beyond 65,535 bytes, a setting that isn't finite, two names of the same CRC-32).
    """
    if len(frame.tree) == 1 and not (frame.settings or frame.metrics or frame.coded):
        ((name, value),) = frame.tree.items()
        if value.dtype == torch.float32:
            return _pack_one(frame, name, value)
    body: list[bytes | memoryview] = [_pack_setting(name, value) for name, value in frame.settings.items()]
    _refuse_twins([*frame.tree], "tensors")
    for name, value in frame.tree.items():
        body.extend(_pack_coded(name, frame.coded[name]) if name in frame.coded else _pack_tensor(name, value))
    _refuse_twins([*frame.metrics], "metrics")
    body.extend(_METRIC.pack(_id(name), value) for name, value in frame.metrics.items())
    total = HEADER_BYTES + sum(len(part) for part in body) + CRC_BYTES
    head = _pack_header(frame, total)
    crc = zlib.crc32(head)
    for part in body:
        crc = zlib.crc32(part, crc)
    return b"".join([head, *body, CRC.pack(crc)])


def _pack_one(frame: Frame, name: str, value: Tensor) -> bytes:
    """Gives the bytes of a frame of one float32 tensor and nothing else, as batch after batch has them."""
    head, crc = _begin(frame.op, frame.is_reply, frame.round, frame.device, frame.weight, name, tuple(value.shape))
    data = _bytes_of(value, _DTYPES[0])
    return b"".join((head, data, CRC.pack(zlib.crc32(data, crc))))


@functools.lru_cache(maxsize=256)
def _begin(
    op: Op, is_reply: bool, round: int, device: int, weight: float, name: str, shape: tuple[int, ...]
) -> tuple[bytes, int]:
    """Gives what comes before the data of the one tensor of a frame, and its CRC-32."""
    one = Frame(op, is_reply, round, device, tree={name: torch.empty(shape, device="meta")}, weight=weight)
    tensor = _tensor_head(name, 0, shape)
    total = HEADER_BYTES + len(tensor) + 4 * math.prod(shape) + CRC_BYTES
    head = _pack_header(one, total) + tensor
    return head, zlib.crc32(head)


def unpack(
    data: bytes | memoryview, names: Iterable[str], metrics: Iterable[str] = (), max_bytes: int = MAX_BYTES
) -> Frame:
    """Gives the frame in `data`.

    `names` are the tensors that may come (those of `message.ROW_KINDS`, and an update, always may) and `metrics` the
    metrics; a metric may have a name of either. Integer tensors come back as int64, coded ones as what they stand for,
    with their bytes beside them, the others as they were sent; no tensor shares memory with `data`, and coded ones have
    `max_bytes` in all when they are whole.
    Raises: FrameError, in one sentence, for whatever isn't a whole, sound frame of known names and finite numbers.
    """
    known = _table(frozenset((*names, *metrics)) if metrics else frozenset(names))
    head = _open(data, max_bytes)
    reader = _Reader(memoryview(data)[: len(data) - CRC_BYTES], HEADER_BYTES, max_bytes)
    settings: Settings = {}
    for _ in range(head.num_settings):
        _read_setting(reader, settings)
    tree: Tree = {}
    coded: dict[str, Coded] = {}
    for _ in range(head.num_tensors):
        _read_tensor(reader, known, tree, coded)
    scalars: dict[str, float] = {}
    for _ in range(head.num_metrics):
        _read_metric(reader, known, scalars)
    if reader.left:
        raise FrameError(f"the frame has {reader.left} bytes behind its last field; its counts and its length disagree")
    return Frame(head.op, head.is_reply, head.round, head.device, settings, tree, head.weight, scalars, coded)


class Span(NamedTuple):
    """Where the data of a tensor lie in a frame, and what they are. `dtype` is its number on the wire."""

    name: str
    first: int
    last: int
    dtype: int
    shape: tuple[int, ...]


def spans(data: bytes | memoryview, frame: Frame) -> tuple[Span, ...]:
    """Gives where the tensors of a frame lie in its bytes, which `unpack` took. Limits: none of them is coded."""
    found, place = [], HEADER_BYTES + sum(setting_bytes(value) for value in frame.settings.values())
    for name, value in frame.tree.items():
        _, number, num_dims = _TENSOR.unpack_from(data, place)
        first = place + _TENSOR.size + 4 * num_dims
        place = first + value.numel() * _WIRES[number].itemsize
        found.append(Span(name, first, place, number, tuple(value.shape)))
    return tuple(found)


def tensor_at(data: bytes | memoryview, span: Span) -> Tensor:
    """Gives the tensor whose data lie at a span, as `unpack` would. Raises: FrameError if a number isn't finite."""
    array = np.frombuffer(data, _WIRES[span.dtype], math.prod(span.shape), span.first).reshape(span.shape)
    return _tensor_of(span.name, array.astype(_NATIVE[span.dtype]), _DTYPES[span.dtype])


def sequence(data: bytes) -> list[bytes]:
    """Gives the frames that lie one behind the other. Raises: FrameError where they don't."""
    found, first = [], 0
    while first < len(data):
        if len(data) - first < HEADER_BYTES:
            raise FrameError(f"{len(data) - first} bytes behind the last frame are no frame")
        total = HEADER.unpack_from(data, first)[6]
        if not HEADER_BYTES + CRC_BYTES <= total <= len(data) - first:
            raise FrameError(f"the frame at byte {first} says it has {total} bytes; {len(data) - first} are left")
        found.append(data[first : first + total])
        first += total
    return found


def overhead(tree: Tree) -> int:
    """Gives the bytes around a tree's data in a frame without settings and metrics.

    >>> overhead({}), overhead({"w": torch.zeros(2, 3)})
    (36, 50)
    """
    return HEADER_BYTES + CRC_BYTES + sum(_TENSOR.size + 4 * value.ndim for value in tree.values())


def bytes_by_kind(frame: Frame) -> dict[str, int]:
    """Gives the data bytes of each `message.Kind` present and the rest as "header"; the sum is `len(pack(frame))`.

    Limits: reads integer tensors to know how narrow they travel, packs nothing.
    """
    sums: dict[str, int] = {"header": overhead(frame.tree) + _METRIC.size * len(frame.metrics)}
    sums["header"] += sum(setting_bytes(value) for value in frame.settings.values())
    sums["header"] += _U32.size * len(frame.coded)
    for name, value in frame.tree.items():
        coded = frame.coded.get(name)
        size = len(coded.data) if coded else value.numel() * _wire_dtype(name, value).itemsize
        kind = kind_of(name)
        sums[kind] = sums.get(kind, 0) + size
    return sums


def num_bytes(frame: Frame) -> int:
    """Gives `len(pack(frame))` without packing."""
    return sum(bytes_by_kind(frame).values())


class _Head(NamedTuple):
    op: Op
    is_reply: bool
    round: int
    device: int
    num_settings: int
    num_tensors: int
    num_metrics: int
    weight: float


class _Reader:
    """Takes bytes in order and never past the end; `room` is what coded tensors may still become."""

    def __init__(self, view: memoryview, place: int, room: int) -> None:
        self.view, self.place, self.room = view, place, room

    @property
    def left(self) -> int:
        return len(self.view) - self.place

    def take(self, num: int) -> memoryview:
        if num > self.left:
            raise FrameError(f"a field of {num} bytes at byte {self.place} goes {num - self.left} bytes past the end")
        part = self.view[self.place : self.place + num]
        self.place += num
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))


def _open(data: bytes | memoryview, max_bytes: int) -> _Head:
    if len(data) > max_bytes:
        raise FrameError(f"the frame has {len(data)} bytes; at most {max_bytes} are taken here")
    if len(data) < HEADER_BYTES + CRC_BYTES:
        raise FrameError(f"a frame has at least {HEADER_BYTES + CRC_BYTES} bytes; these are {len(data)}")
    magic, version, op, flags, num_settings, num_tensors, total, round, device, num_metrics, zero, weight = (
        HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise FrameError(f"a frame begins with {MAGIC!r}; this one begins with {magic!r}")
    if version != VERSION:
        raise FrameError(f"the frame has version {version}; this side reads version {VERSION}: update the older one")
    if total != len(data):
        raise FrameError(f"the frame says it has {total} bytes and has {len(data)}; it was cut or two ran together")
    if CRC.unpack_from(data, total - CRC_BYTES)[0] != zlib.crc32(memoryview(data)[: total - CRC_BYTES]):
        raise FrameError("the frame's CRC-32 is wrong: its bytes changed on the way; ask for it again")
    if op not in _OPS:
        raise FrameError(f"the frame asks for op {op}, which doesn't exist; ops are 1 to {max(Op)}")
    if flags & ~_REPLY or zero:
        raise FrameError(f"the frame sets reserved bits (flags {flags}, reserved {zero}); they must be 0")
    if not (math.isfinite(weight) and weight >= 0.0):
        raise FrameError(f"the frame's weight is {weight}; it must be finite and not below 0")
    return _Head(Op(op), bool(flags & _REPLY), round, device, num_settings, num_tensors, num_metrics, weight)


def _pack_header(frame: Frame, total: int) -> bytes:
    counts = (len(frame.settings), len(frame.tree), len(frame.metrics))
    if counts[0] > 0xFF or counts[1] > 0xFFFF or counts[2] > 0xFFFF or total > _U32_MAX:
        raise FrameError(f"a frame can't hold {counts[1]} tensors, {counts[2]} metrics and {total} bytes: send fewer")
    if not (0 <= frame.round <= _U32_MAX and 0 <= frame.device <= _U32_MAX):
        raise FrameError(f"round {frame.round} and device {frame.device} must be 0 to {_U32_MAX}")
    if not (math.isfinite(frame.weight) and frame.weight >= 0.0):
        raise FrameError(f"the weight is {frame.weight}; it must be finite and not below 0")
    return HEADER.pack(
        MAGIC,
        VERSION,
        int(frame.op),
        _REPLY if frame.is_reply else 0,
        counts[0],
        counts[1],
        total,
        frame.round,
        frame.device,
        counts[2],
        0,
        frame.weight,
    )


def _pack_setting(name: str, value: Setting) -> bytes:
    if name not in SETTINGS:
        raise FrameError(f"no op has a setting named {name}")
    number = SETTINGS.index(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise FrameError(f"setting {name} is a {type(value).__name__}; the wire takes whole numbers, floats and text")
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise FrameError(f"setting {name} is {value}; the wire takes whole numbers of 32 bits")
        return _NUMBER.pack(number, _INT) + _I32.pack(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FrameError(f"setting {name} is {value}; it must be finite")
        return _NUMBER.pack(number, _FLOAT) + _F64.pack(value)
    text = value.encode()
    if len(text) > 0xFFFF:
        raise FrameError(f"setting {name} has {len(text)} bytes of text; the wire takes at most 65,535")
    return _NUMBER.pack(number, _TEXT) + _U16.pack(len(text)) + text


def setting_bytes(value: Setting) -> int:
    """Gives the bytes of a setting in a frame."""
    if isinstance(value, str):
        return _NUMBER.size + _U16.size + len(value.encode())
    return _NUMBER.size + (_I32.size if isinstance(value, int) else _F64.size)


def _read_setting(reader: _Reader, settings: Settings) -> None:
    number, type_ = reader.unpack(_NUMBER)
    if number >= len(SETTINGS):
        raise FrameError(f"the frame has setting number {number}; the last one known here is {len(SETTINGS) - 1}")
    name = SETTINGS[number]
    if name in settings:
        raise FrameError(f"the frame has setting {name} twice")
    settings[name] = _read_value(reader, name, type_)


def _read_value(reader: _Reader, name: str, type_: int) -> Setting:
    if type_ == _INT:
        return int(reader.unpack(_I32)[0])
    if type_ == _FLOAT:
        value = float(reader.unpack(_F64)[0])
        if not math.isfinite(value):
            raise FrameError(f"setting {name} is {value}; it must be finite")
        return value
    if type_ != _TEXT:
        raise FrameError(f"setting {name} has type {type_}; types are {_INT} to {_TEXT}")
    (length,) = reader.unpack(_U16)
    try:
        return str(bytes(reader.take(length)), "utf-8")
    except UnicodeDecodeError:
        raise FrameError(f"setting {name} isn't UTF-8 text") from None


def _wire_dtype(name: str, value: Tensor) -> np.dtype[Any]:
    return np.dtype(_DTYPES[_wire_number(name, value)].wire)


def _wire_number(name: str, value: Tensor) -> int:
    number = _NUMBER_OF.get(value.dtype)
    if number is None:
        known = ", ".join(str(dtype.torch).removeprefix("torch.") for dtype in _DTYPES)
        raise FrameError(f"tensor {name} is {value.dtype}; the wire takes {known}: convert it first")
    if number < _FIRST_INTEGER or not value.numel():
        return number if number < _FIRST_INTEGER else _FIRST_INTEGER
    low, high = (int(end) for end in torch.aminmax(value.detach()))
    for place in range(_FIRST_INTEGER, len(_DTYPES)):
        limits = torch.iinfo(_DTYPES[place].torch)
        if limits.min <= low and high <= limits.max:
            return place
    raise AssertionError("int64 holds every integer tensor")


def _pack_tensor(name: str, value: Tensor) -> tuple[bytes, memoryview]:
    number = _wire_number(name, value)
    return _tensor_head(name, number, tuple(value.shape)), _bytes_of(value, _DTYPES[number])


def _tensor_head(name: str, number: int, shape: tuple[int, ...]) -> bytes:
    if len(shape) > MAX_DIMS:
        raise FrameError(f"tensor {name} has {len(shape)} dimensions; the wire takes at most {MAX_DIMS}")
    if any(size > _U32_MAX for size in shape):
        raise FrameError(f"tensor {name} has shape {shape}; the wire takes dimensions of 32 bits")
    return _TENSOR.pack(_id(name), number, len(shape)) + struct.pack(f"<{len(shape)}I", *shape)


def _pack_coded(name: str, coded: Coded) -> tuple[bytes, bytes]:
    shape = coded.shape
    if len(shape) > MAX_DIMS or any(size > _U32_MAX for size in shape):
        raise FrameError(f"tensor {name} has shape {shape}; the wire takes {MAX_DIMS} dimensions of 32 bits")
    head = _TENSOR.pack(_id(name), _CODED, len(shape)) + struct.pack(f"<{len(shape)}I", *shape)
    return head + _U32.pack(len(coded.data)), coded.data


def _bytes_of(value: Tensor, dtype: _Dtype) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1)
    if dtype.torch == torch.bfloat16:
        flat = flat.view(torch.int16)
    array: npt.NDArray[Any] = flat.numpy().astype(np.dtype(dtype.wire), copy=False)
    return memoryview(array.view(np.uint8).data)


def _read_tensor(reader: _Reader, known: dict[int, str], tree: Tree, coded: dict[str, Coded]) -> None:
    number, dtype_number, num_dims = reader.unpack(_TENSOR)
    name = _name_of(number, known, "tensor")
    if name in tree:
        raise FrameError(f"the frame has tensor {name} twice")
    if dtype_number > _CODED:
        raise FrameError(f"tensor {name} has dtype {dtype_number}; dtypes are 0 to {_CODED}")
    if num_dims > MAX_DIMS:
        raise FrameError(f"tensor {name} has {num_dims} dimensions; at most {MAX_DIMS} are taken")
    shape = struct.unpack(f"<{num_dims}I", reader.take(4 * num_dims))
    if dtype_number == _CODED:
        (length,) = reader.unpack(_U32)
        code = bytes(reader.take(length))
        tree[name], coded[name] = _decoded(name, shape, code, reader.room), Coded(shape, code)
        reader.room -= 4 * tree[name].numel()
        return
    if name == UPDATE:
        raise FrameError(f"tensor {name} isn't coded; weights that aren't travel under their own names")
    dtype = _DTYPES[dtype_number]
    wire = _WIRES[dtype_number]
    # A dimension of 0 must not let the others be anything: their product is bounded as if it were 1.
    if math.prod([size or 1 for size in shape]) * wire.itemsize > _U32_MAX:
        raise FrameError(f"tensor {name} of shape {shape} is larger than any frame")
    data = np.frombuffer(reader.take(math.prod(shape) * wire.itemsize), wire).reshape(shape)
    tree[name] = _tensor_of(name, data.astype(_NATIVE[dtype_number]), dtype)


def _decoded(name: str, shape: tuple[int, ...], data: bytes, room: int) -> Tensor:
    if name != UPDATE:
        return compress.decode(shape, data, room)
    if len(shape) != 1:
        raise FrameError(f"tensor {name} has shape {shape}; all weights in one are a vector")
    return torch.from_numpy(update.decode(shape[0], data, room))


def _tensor_of(name: str, array: npt.NDArray[Any], dtype: _Dtype) -> Tensor:
    value = torch.from_numpy(array)
    if dtype.torch == torch.bfloat16:
        value = value.view(torch.bfloat16)
    if not value.is_floating_point():
        return value.to(torch.int64)
    if not all_finite(value):
        raise FrameError(f"tensor {name} holds numbers that aren't finite; the sender's model diverged or lies")
    return value


def _read_metric(reader: _Reader, known: dict[int, str], metrics: dict[str, float]) -> None:
    number, value = reader.unpack(_METRIC)
    name = _name_of(number, known, "metric")
    if name in metrics:
        raise FrameError(f"the frame has metric {name} twice")
    if not math.isfinite(value):
        raise FrameError(f"metric {name} is {value}; the sender's model diverged or lies")
    metrics[name] = value


def _name_of(number: int, known: dict[int, str], what: str) -> str:
    name = known.get(number)
    if name is None:
        raise FrameError(f"the frame has a {what} of unknown id {number:#010x}; both sides need the same model")
    return name


def _id(name: str) -> int:
    return zlib.crc32(name.encode())


def _refuse_twins(names: list[str], what: str) -> None:
    if len({_id(name) for name in names}) != len(names):
        raise FrameError(f"two {what} of the frame have names of the same CRC-32; rename one of {', '.join(names)}")


@functools.lru_cache(maxsize=64)
def _table(names: frozenset[str]) -> dict[int, str]:
    table: dict[int, str] = {}
    for name in sorted(names | ROW_KINDS.keys() | {UPDATE}):
        if (other := table.setdefault(_id(name), name)) != name:
            raise FrameError(f"the names {other} and {name} have the same CRC-32; rename one")
    return table
