"""Whole numbers in as few bits as they need: fields of one width, and places of a long row.

Bits lie from the least of each byte up, and what is left of the last byte is 0. A reader is told how many numbers there
are, so the bytes of each part are known before it is read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midhaul.errors import FrameError

Ints = npt.NDArray[np.int64]


def width_of(highest: int) -> int:
    """Gives the bits of numbers from 0 to `highest`.

    >>> width_of(0), width_of(1), width_of(8)
    (0, 1, 4)
    """
    return max(highest, 0).bit_length()


def num_bytes(num: int, width: int) -> int:
    """Gives the bytes of `num` fields of `width` bits."""
    return -(-num * width // 8)


def pack(values: Ints, width: int) -> bytes:
    """Gives the bytes of numbers in [0, 2^width).

    >>> pack(np.array([1, 2, 3]), 2).hex()
    '39'
    """
    bits = (values.reshape(-1, 1) >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def unpack(data: memoryview | bytes, num: int, width: int) -> Ints:
    """Gives `num` numbers of `width` bits. Raises: FrameError for bytes too few or many, or a rest that isn't 0."""
    if len(data) != num_bytes(num, width):
        raise FrameError(f"{num} fields of {width} bits have {num_bytes(num, width)} bytes; these are {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[num * width :].any():
        raise FrameError("the bits behind the last field must be 0")
    fields = bits[: num * width].reshape(num, width).astype(np.int64)
    return np.asarray(fields @ (1 << np.arange(width, dtype=np.int64)), np.int64)


def places_bytes(num: int, high: int) -> int:
    """Gives the bytes of `num` ascending places below `high`."""
    if not num:
        return 0
    low = _low_bits(num, high)
    return num_bytes(num, low) + num_bytes(num + ((high - 1) >> low) + 1, 1)


def pack_places(places: Ints, high: int) -> bytes:
    """Gives the bytes of ascending places below `high`: about 2 + log2(high / num) bits each.

    Source: Elias, "Efficient storage and retrieval by content and address of static files", J. ACM 1974; Fano 1971. The
    low bits lie side by side; the high ones are a row of bits in which the i-th 1 stands at its place's high part + i.
    """
    num = len(places)
    if not num:
        return b""
    low = _low_bits(num, high)
    marks = np.zeros(num + ((high - 1) >> low) + 1, np.int64)
    marks[(places >> low) + np.arange(num)] = 1
    return pack(places & ((1 << low) - 1), low) + pack(marks, 1)


def unpack_places(data: memoryview | bytes, num: int, high: int) -> Ints:
    """Gives `num` ascending places below `high`. Raises: FrameError for bytes that aren't those of such places."""
    if num > high or len(data) != places_bytes(num, high):
        raise FrameError(f"{num} places of {high} have {places_bytes(num, high)} bytes; these are {len(data)}")
    if not num:
        return np.zeros(0, np.int64)
    low = _low_bits(num, high)
    first = num_bytes(num, low)
    marks = np.flatnonzero(unpack(data[first:], num + ((high - 1) >> low) + 1, 1))
    if len(marks) != num:
        raise FrameError(f"{num} places were announced and {len(marks)} are marked")
    places = (marks - np.arange(num)) << low | unpack(data[:first], num, low)
    if places[-1] >= high or (np.diff(places) <= 0).any():
        raise FrameError(f"the places must ascend and lie below {high}")
    return places


def _low_bits(num: int, high: int) -> int:
    return max(high // num, 1).bit_length() - 1
