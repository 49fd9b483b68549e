"""The frames of many devices' replies at once, where these are of one layout: what `frame.pack` makes of each.

A cohort that trains one model answers with tensors of the same names and shapes, so all its frames are as long and
differ in a few fields. They are made as one array, field by field, which saves the time of a frame's making a device.

Shape letters: D devices, L bytes of a frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, Op, Replies
from midhaul.tree import Tree

_DEVICE, _WEIGHT = slice(16, 20), slice(24, 32)  # where a frame's header has them


@dataclass(frozen=True)
class Frames:
    """The frames of a cohort's replies, and what comes out of them.

    Shapes: `data` [D, L] uint8; `sound` [D], False where a frame would be refused, since a number isn't finite; `tree`
    [D, ...], which float32 goes through to the bit. `kinds` are the bytes of one frame by kind.
    """

    data: npt.NDArray[np.uint8]
    sound: npt.NDArray[np.bool_]
    kinds: dict[str, int]
    tree: Tree

    @property
    def num_bytes(self) -> int:
        """The bytes of one frame."""
        return int(self.data.shape[1])


def pack(op: Op, round: int, replies: Replies) -> Frames | None:
    """Gives the frames of replies; None where they aren't of one layout (rows, tensors that aren't of float32).

    Raises: FrameError for what the wire has no place for.
    """
    tree = {name: value.detach().contiguous() for name, value in replies.tree.items()}
    if not len(replies) or any(n in ROW_KINDS or v.dtype != torch.float32 for n, v in tree.items()):
        return None
    if not (bool(torch.isfinite(replies.weight).all()) and bool((replies.weight >= 0.0).all())):
        return None
    first = replies.reply(0)
    sent = Frame(op, True, round, replies.devices[0], {}, first.tree, first.weight, first.metrics)
    pattern = np.frombuffer(frame.pack(sent), np.uint8)
    num, sound = len(replies), np.ones(len(replies), np.bool_)
    data = np.empty((num, len(pattern)), np.uint8)
    data[:] = pattern
    data[:, _DEVICE] = np.asarray(replies.devices, "<u4").view(np.uint8).reshape(num, 4)
    data[:, _WEIGHT] = replies.weight.numpy().astype("<f8").view(np.uint8).reshape(num, 8)
    place = frame.HEADER_BYTES
    for value in tree.values():
        place += frame.TENSOR_BYTES + 4 * (value.ndim - 1)
        flat = value.reshape(num, -1).numpy()
        size = 4 * flat.shape[1]
        data[:, place : place + size] = flat.astype("<f4", copy=False).view(np.uint8)
        sound &= np.isfinite(flat).all(1)
        place += size
    for values in replies.metrics.values():
        place += frame.METRIC_BYTES
        each = values.numpy().astype("<f8")
        sound &= np.isfinite(each)
        data[:, place - 8 : place] = each.view(np.uint8).reshape(num, 8)
    sums = [zlib.crc32(row[: -frame.CRC_BYTES].data) for row in data]
    data[:, -frame.CRC_BYTES :] = np.asarray(sums, "<u4").view(np.uint8).reshape(num, frame.CRC_BYTES)
    return Frames(data, sound, frame.bytes_by_kind(sent), tree)
