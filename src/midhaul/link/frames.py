"""The frames of many devices' replies at once, where these are of one layout: what `frame.pack` makes of each.

A cohort that trains one model answers with tensors of the same names and shapes, so all its frames are as long and
differ in a few fields. They are made as one array, field by field, which saves the time of a frame's making a device.

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

from midhaul.errors import FrameError
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, Op, Replies

_DEVICE, _WEIGHT = 16, 24  # where a frame's header has them
_ROUND = slice(12, 16)

Bytes = npt.NDArray[np.uint8]


class Field(NamedTuple):
    """What differs from frame to frame: where it is in each, and the numbers of all. Shapes: values [D, ...]."""

    place: int
    values: npt.NDArray[Any]

    @property
    def size(self) -> int:
        """The bytes of one."""
        return self.values.nbytes // len(self.values)


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
    """The frames of a cohort's replies, and what comes out of them.

    Shapes: `data` [D, L] uint8, None where the bytes aren't kept; `sound` [D], False where a frame would be refused,
    since a number isn't finite. `replies` are what was read of all devices, sound or not; `num_bytes` and `kinds`, by
    kind, are the bytes of one frame.
    """

    data: Bytes | None
    num_bytes: int
    sound: npt.NDArray[np.bool_]
    kinds: dict[str, int]
    replies: Replies


def layout(op: Op, round: int, replies: Replies) -> Layout | None:
    """Gives how the frames of replies are laid out; None where they aren't of one layout (rows, tensors that aren't of
    float32).

    Raises: FrameError for what the wire has no place for.
    """
    weight, num = replies.weight.numpy().astype("<f8", copy=False), len(replies)
    if not num or any(n in ROW_KINDS or v.dtype != torch.float32 for n, v in replies.tree.items()):
        return None
    if not (bool((weight >= 0.0).all()) and bool(np.isfinite(weight).all())):
        return None
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in replies.tree.items())
    pattern, kinds = _pattern(op, shapes, tuple(replies.metrics))
    if not (0 <= round <= 0xFFFFFFFF and min(replies.devices) >= 0 and max(replies.devices) <= 0xFFFFFFFF):
        raise FrameError(f"round {round} and devices to {max(replies.devices)} must be 0 to {0xFFFFFFFF}")
    own = pattern.copy()
    own[_ROUND] = np.asarray([round], "<u4").view(np.uint8)
    fields, place = [Field(_DEVICE, np.asarray(replies.devices, "<u4")), Field(_WEIGHT, weight)], frame.HEADER_BYTES
    for value in replies.tree.values():
        place += frame.TENSOR_BYTES + 4 * (value.ndim - 1)
        numbers = value.detach().contiguous().numpy().astype("<f4", copy=False)
        if numbers.size:
            fields.append(Field(place, numbers))
            place += fields[-1].size
    for values in replies.metrics.values():
        place += frame.METRIC_BYTES
        fields.append(Field(place - 8, np.ascontiguousarray(values.numpy(), "<f8")))
    return Layout(own, tuple(fields), kinds)


@functools.lru_cache(maxsize=64)
def _pattern(
    op: Op, shapes: tuple[tuple[str, tuple[int, ...]], ...], metrics: tuple[str, ...]
) -> tuple[Bytes, dict[str, int]]:
    """Gives the frame of a reply of zeros from device 0 in round 0, and its bytes by kind."""
    nothing = {name: torch.zeros(shape) for name, shape in shapes}
    made = Frame(op, True, 0, 0, {}, nothing, 0.0, dict.fromkeys(metrics, 0.0))
    return np.frombuffer(frame.pack(made), np.uint8), frame.bytes_by_kind(made)


def pack(op: Op, round: int, replies: Replies) -> Frames | None:
    """Gives the frames of replies; None where they aren't of one layout.

    Raises: FrameError for what the wire has no place for.
    """
    made = layout(op, round, replies)
    return None if made is None else written(made, replies)


def written(made: Layout, replies: Replies) -> Frames:
    """Gives the frames of a layout. Limits: of what comes out of one, only that it is finite is looked at."""
    data, sound = np.empty((made.num, len(made.pattern)), np.uint8), np.ones(made.num, np.bool_)
    data[:] = made.pattern
    for place, values in made.fields:
        flat = values.reshape(made.num, -1)
        if values.dtype.kind == "f":
            sound &= np.isfinite(flat).all(1)
        flat = flat.view(np.uint8)
        data[:, place : place + flat.shape[1]] = flat
    sums = [zlib.crc32(row[: -frame.CRC_BYTES].data) for row in data]
    data[:, -frame.CRC_BYTES :] = np.asarray(sums, "<u4").view(np.uint8).reshape(made.num, frame.CRC_BYTES)
    return Frames(data, data.shape[1], sound, made.kinds, came(replies))


def came(replies: Replies) -> Replies:
    """Gives replies as they come out of frames, which float32 and float64 go through to the bit."""
    tree = {name: value.detach().contiguous() for name, value in replies.tree.items()}
    return Replies(replies.devices, tree, torch.zeros_like(replies.rows), replies.weight, replies.metrics)
