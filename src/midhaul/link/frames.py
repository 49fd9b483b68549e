"""The frames of many devices' replies at once, where these are of one layout: what `frame.pack` makes of each.

A cohort that trains one model answers with tensors of the same names and shapes, so all its frames are as long and
differ in a few fields. They are made as one array, field by field, which saves the time of a frame's making a device.
A frame down, of a layout that the round before had, is made in the same way.

Shape letters: D devices, L bytes of a frame, S bytes of a field.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from midhaul.errors import FrameError
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, Op, Replies, Setting
from midhaul.tree import Tree

_DEVICE, _WEIGHT = 16, 24  # where a frame's header has them
_ROUND = slice(12, 16)
_U32_MAX = 0xFFFFFFFF

Bytes = npt.NDArray[np.uint8]


class Field(NamedTuple):
    """What differs from frame to frame: where it is in each, the numbers of all, the bytes of one, and where in memory
    the numbers lie. Shapes: values [D, ...]."""

    place: int
    values: npt.NDArray[Any]
    size: int
    address: int

    @classmethod
    def of(cls, place: int, value: Tensor, size: int) -> Field:
        """Gives the field of a tensor, which lies in memory as it travels but for the order of a number's bytes."""
        return cls(place, value.numpy(), size, value.data_ptr())


@dataclass(frozen=True)
class Layout:
    """What frames of one layout are made of. Shapes: `pattern` [L], a frame of which the fields stand for nothing.

    `fields` are the device's number, the weight, the tensors and the metrics, in the order of their places; `kinds` the
    bytes of one frame by kind.
    """

    pattern: Bytes
    fields: tuple[Field, ...]
    kinds: dict[str, int]

    @property
    def num(self) -> int:
        """How many frames there are."""
        return len(self.fields[0].values)


@dataclass(frozen=True)
class Frames:
    """Frames of one layout. Who reads one that is sound has what was written, to the bit.

    Shapes: `data` [D, L] uint8, None where the bytes aren't kept; `sound` [D], False where a frame would be refused,
    since a number isn't finite. `num_bytes` and `kinds`, by kind, are the bytes of one frame.
    """

    data: Bytes | None
    num_bytes: int
    sound: npt.NDArray[np.bool_]
    kinds: dict[str, int]


def layout(op: Op, round: int, replies: Replies) -> Layout | None:
    """Gives how the frames of replies are laid out; None where they aren't of one layout (rows, tensors that aren't of
    float32).

    Raises: FrameError for what the wire has no place for.
    """
    num, weight = len(replies), replies.weight.to(torch.float64).contiguous()
    if not num or not _is_plain(replies.tree):
        return None
    if not (weight.numpy().min() >= 0.0 and weight.numpy().max() < np.inf):  # so neither is NaN
        return None
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in replies.tree.items())
    first = (_devices(replies.devices), Field.of(_WEIGHT, weight, 8))
    values = [*replies.tree.values(), *(values.to(torch.float64) for values in replies.metrics.values())]
    return _template(op, True, (), "", shapes, tuple(replies.metrics)).filled(round, first, values)


def alone(made: Frame) -> Layout | None:
    """Gives how a frame without metrics is laid out; None where some of it is coded, a row or not of float32.

    Raises: FrameError for what the wire has no place for.
    """
    if made.coded or made.metrics or made.weight or not _is_plain(made.tree):
        return None
    shapes = tuple((name, tuple(value.shape)) for name, value in made.tree.items())
    # 1, 1.0 and True are the same key of a dictionary and other bytes in a frame, so their text is in the key too.
    settings = tuple(made.settings.items())
    template = _template(made.op, made.is_reply, settings, repr(settings), shapes, ())
    return template.filled(made.round, (_devices((made.device,)),), [*made.tree.values()])


def _is_plain(stacked: Tree) -> bool:
    return not any(name in ROW_KINDS or value.dtype != torch.float32 for name, value in stacked.items())


def _devices(devices: tuple[int, ...]) -> Field:
    if not (min(devices) >= 0 and max(devices) <= _U32_MAX):
        raise FrameError(f"devices {min(devices)} to {max(devices)} must be 0 to {_U32_MAX}")
    numbers = np.asarray(devices, np.uint32)
    return Field(_DEVICE, numbers, 4, numbers.__array_interface__["data"][0])


class _Template(NamedTuple):
    """A frame of zeros of device 0 in round 0: its length, its bytes by kind, the place and size of each tensor and
    metric, and the bytes around them with their places. It is kept, and these are few however large a model is."""

    num_bytes: int
    kinds: dict[str, int]
    places: tuple[tuple[int, int], ...]
    around: tuple[tuple[int, Bytes], ...]

    def filled(self, round: int, first: tuple[Field, ...], values: list[Tensor]) -> Layout:
        """Gives the layout of frames of these tensors and metrics. Shapes: values [D, ...], or of one frame alone."""
        if not 0 <= round <= _U32_MAX:
            raise FrameError(f"round {round} must be 0 to {_U32_MAX}")
        own = np.zeros(self.num_bytes, np.uint8)
        for place, part in self.around:
            own[place : place + len(part)] = part
        own[_ROUND] = np.asarray([round], "<u4").view(np.uint8)
        each = zip(self.places, values, strict=True)
        fields = [Field.of(place, value.detach().contiguous(), size) for (place, size), value in each if size]
        return Layout(own, (*first, *fields), self.kinds)


@functools.lru_cache(maxsize=64)
def _template(
    op: Op,
    is_reply: bool,
    settings: tuple[tuple[str, Setting], ...],
    settings_told: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    metrics: tuple[str, ...],
) -> _Template:
    nothing = {name: torch.zeros(shape) for name, shape in shapes}
    made = Frame(op, is_reply, 0, 0, dict(settings), nothing, 0.0, dict.fromkeys(metrics, 0.0))
    place, places = frame.HEADER_BYTES + sum(frame.setting_bytes(value) for _, value in settings), []
    for value in nothing.values():
        place += frame.TENSOR_BYTES + 4 * value.ndim
        places.append((place, 4 * value.numel()))
        place += 4 * value.numel()
    for _ in metrics:
        place += frame.METRIC_BYTES
        places.append((place - 8, 8))
    whole = np.frombuffer(frame.pack(made), np.uint8)
    ends, begins = [0, *(place + size for place, size in places)], [*(place for place, _ in places), len(whole)]
    around = tuple((end, whole[end:begin].copy()) for end, begin in zip(ends, begins, strict=True) if end < begin)
    return _Template(len(whole), frame.bytes_by_kind(made), tuple(places), around)


def pack(op: Op, round: int, replies: Replies) -> Frames | None:
    """Gives the frames of replies; None where they aren't of one layout.

    Raises: FrameError for what the wire has no place for.
    """
    made = layout(op, round, replies)
    return None if made is None else written(made)


def written(made: Layout) -> Frames:
    """Gives the frames of a layout. Limits: of what comes out of one, only that it is finite is looked at."""
    data, sound = np.empty((made.num, len(made.pattern)), np.uint8), np.ones(made.num, np.bool_)
    data[:] = made.pattern
    for place, values, size, _ in made.fields:
        flat = values.reshape(made.num, -1).astype(values.dtype.newbyteorder("<"), copy=False)
        if values.dtype.kind == "f":
            sound &= np.isfinite(flat).all(1)
        data[:, place : place + size] = flat.view(np.uint8)
    sums = [zlib.crc32(row[: -frame.CRC_BYTES].data) for row in data]
    data[:, -frame.CRC_BYTES :] = np.asarray(sums, "<u4").view(np.uint8).reshape(made.num, frame.CRC_BYTES)
    return Frames(data, data.shape[1], sound, made.kinds)


def came(whole: Tree) -> Tree:
    """Gives tensors as they come out of sound frames, which float32 goes through to the bit."""
    return {name: value.detach().contiguous() for name, value in whole.items()}
