"""An update as the product of thin factors, matrix by matrix: PowerSGD's compressor.

Source: Vogels, Karimireddy, Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization",
NeurIPS 2019, algorithm 1: one step of subspace iteration, begun with the factor of the round before (warm start), with
error feedback around it. There the workers' factors are averaged on the way; here each device makes its own.

Shape letters: A rows and B columns of a matrix (a convolution's are its output channels, and all else), R rank.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from midhaul import rng
from midhaul.errors import FrameError
from midhaul.link.bits import Floats, Reader

MAX_RANK = 64
_COUNT = struct.Struct("<H")
_PART = struct.Struct("<IIB")  # rows, columns, rank; rank 0: as they are
Shape = tuple[int, ...]


def pack(vector: Floats, shapes: Sequence[Shape], rank: int, warm: Floats | None, key: rng.Key) -> tuple[bytes, Floats]:
    """Gives the bytes of an update's factors, and all the right factors in a row, to begin with the next time.

    `shapes` are those of the tensors that lie side by side in the vector. What wouldn't be fewer numbers as factors
    travels as it is.
    """
    parts, factors, first, behind = [], [], 0, 0
    begin = rng.normal(key, _warm_size(shapes, rank)).astype(np.float32) if warm is None else warm
    rights = []
    for shape in shapes:
        size = math.prod(shape)
        own, first = vector[first : first + size], first + size
        rows, columns, small = _cut(shape, rank)
        parts.append(_PART.pack(rows, columns, small))
        if not small:
            factors.append(own)
            continue
        right, behind = begin[behind : behind + columns * small].reshape(columns, small), behind + columns * small
        matrix = own.reshape(rows, columns).astype(np.float64)
        left = np.linalg.qr(matrix @ right.astype(np.float64))[0]
        new = (matrix.T @ left).astype(np.float32)
        rights.append(new.reshape(-1))
        factors += [left.astype(np.float32).reshape(-1), rights[-1]]
    head = _COUNT.pack(len(parts)) + b"".join(parts)
    values = np.concatenate(factors)
    if not np.isfinite(values).all():
        raise FrameError("the factors of an update are beyond float32; the sender's model diverged")
    return head + values.astype("<f4").tobytes(), np.concatenate(rights) if rights else np.zeros(0, np.float32)


def unpack(reader: Reader, num: int) -> Floats:
    """Gives the update of factors. Shapes: [num]. Raises: FrameError for what aren't the factors of one."""
    (count,) = _COUNT.unpack(reader.take(_COUNT.size))
    parts = [_PART.unpack(reader.take(_PART.size)) for _ in range(count)]
    if sum(rows * columns for rows, columns, _ in parts) != num or any(rank > MAX_RANK for *_, rank in parts):
        raise FrameError(f"a coded update has factors of another shape than its {num} numbers")
    out, first = np.zeros(num, np.float32), 0
    for rows, columns, rank in parts:
        size = rows * columns
        if rank:
            left, right = reader.floats(rows * rank), reader.floats(columns * rank)
            with np.errstate(over="ignore", invalid="ignore"):
                whole = (left.reshape(rows, rank) @ right.reshape(columns, rank).T).reshape(-1)
            if not np.isfinite(whole).all():
                raise FrameError("a coded update's factors give numbers that aren't finite")
            out[first : first + size] = whole
        else:
            out[first : first + size] = reader.floats(size)
        first += size
    return out


def _cut(shape: Shape, rank: int) -> tuple[int, int, int]:
    """Gives rows, columns and rank of a tensor's factors; rank 0 for one that travels as it is."""
    size = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    columns = size // rows if rows else 0
    small = min(rank, rows, columns)
    return rows, columns, small if small * (rows + columns) < size else 0


def _warm_size(shapes: Sequence[Shape], rank: int) -> int:
    return sum(columns * small for _, columns, small in (_cut(shape, rank) for shape in shapes))
