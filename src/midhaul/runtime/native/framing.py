"""The frames of a cohort's replies, or the one that it is sent, by the compiled library: written and read in one call.

The bytes are those of `link.frames.pack`, which does it where there is no compiler.

Shape letters: D devices, L bytes of a frame.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import numpy.typing as npt

from midhaul.link import frames
from midhaul.link.frames import Bytes, Frames, Layout
from midhaul.message import Op, Replies
from midhaul.runtime.native import library
from midhaul.runtime.native.library import Fields

_KINDS = {
    np.dtype(name): kind for name, kind in (("u4", library.BYTES), ("f4", library.FLOATS), ("f8", library.DOUBLES))
}


def pack(op: Op, round: int, replies: Replies, *, keeps: bool = False) -> Frames | None:
    """Gives the frames of replies, their bytes if it `keeps` them; None where they aren't of one layout.

    Raises: FrameError for what the wire has no place for.
    """
    made = frames.layout(op, round, replies)
    return None if made is None else written(made, keeps=keeps)


def written(made: Layout, *, keeps: bool) -> Frames:
    """Gives the frames of a layout, their bytes if it `keeps` them."""
    if sys.byteorder != "little" or library.missing():
        return frames.written(made)
    size = len(made.pattern)
    data, sound = np.empty((made.num if keeps else 1, size), np.uint8), np.empty(made.num, np.bool_)
    library.load().mk_frames_through(ctypes.byref(job(made, data, sound)))
    return Frames(data if keeps else None, size, sound, made.kinds)


def job(made: Layout, data: Bytes, sound: npt.NDArray[np.bool_]) -> Fields:
    """Gives what the library is told of frames. All three must live as long as it is used. Shapes: data [D, L], or
    [1, L] where each frame is written over the one before it; sound [D]."""
    rows = [[own.address, own.place, own.size, _KINDS[own.values.dtype]] for own in made.fields]
    listed = np.array(rows, np.int64)  # mk_field, one behind another
    whole = Fields(listed.ctypes.data, made.pattern.ctypes.data, data.ctypes.data, sound.ctypes.data)
    whole.num, whole.size, whole.num_fields = made.num, data.shape[1], len(rows)
    whole.step = data.shape[1] if len(data) == made.num else 0
    whole.listed = listed
    return whole
