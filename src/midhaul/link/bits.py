"""Whole numbers in as few bits as they need: fields of one width, and places of a long row.

Bits lie from the least of each byte up, and what is left of the last byte is 0. A reader is told how many numbers there
are, so the bytes of each part are known before it is read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midhaul.errors import FrameError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
MOST_LOW_BITS = 24  # of a gap
_F32 = np.dtype("<f4")


class Reader:
    """Takes bytes in order and never past the end."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    @property
    def left(self) -> int:
        return len(self.view)

    def take(self, num: int) -> memoryview:
        if num > len(self.view):
            raise FrameError(f"a coded tensor ends {num - len(self.view)} bytes before its field of {num} bytes does")
        part, self.view = self.view[:num], self.view[num:]
        return part

    def floats(self, num: int) -> Floats:
        values = np.frombuffer(self.take(num * _F32.itemsize), _F32).astype(np.float32)
        if not np.isfinite(values).all():
            raise FrameError("a coded tensor holds numbers that aren't finite; the sender's model diverged or lies")
        return values

    def fields(self, num: int, width: int) -> Ints:
        return unpack(self.take(num_bytes(num, width)), num, width)

    def places(self, num: int, high: int) -> Ints:
        if num > high:
            raise FrameError(f"a coded tensor names {num} of its {high} places")
        return unpack_places(self.take(places_bytes(num, high)), num, high)


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


def unary_bytes(values: Ints) -> int:
    """Gives the bytes of whole numbers in unary."""
    return num_bytes(int(values.sum()) + len(values), 1)


def pack_unary(values: Ints) -> bytes:
    """Gives the bytes of whole numbers in unary: as many ones as each says, and a zero.

    >>> pack_unary(np.array([2, 0, 1])).hex()
    '13'
    """
    marks = np.ones(int(values.sum()) + len(values), np.int64)
    marks[np.cumsum(values + 1) - 1] = 0
    return pack(marks, 1)


def take_unary(reader: Reader, num: int, most: int) -> Ints:
    """Gives `num` numbers in unary that are at most `most` all together, and takes their bytes.

    Raises: FrameError where there are no such numbers.
    """
    near = reader.view[: num_bytes(num + most, 1)]
    marks = np.unpackbits(np.frombuffer(near, np.uint8), bitorder="little")
    ends = np.flatnonzero(marks == 0)[:num]
    if len(ends) < num:
        raise FrameError(f"{num} numbers in unary were announced and {len(ends)} are there")
    used = int(ends[-1]) + 1 if num else 0
    size = num_bytes(used, 1)
    if marks[used : 8 * size].any():
        raise FrameError("the bits behind the last number in unary must be 0")
    reader.take(size)
    return np.asarray(np.diff(ends, prepend=-1) - 1, np.int64)


def low_bits(gaps: Ints) -> int:
    """Gives the low bits to keep of gaps so that `pack_gaps` gives the fewest bytes; of equals the least."""
    sizes = [unary_bytes(gaps >> low) + num_bytes(len(gaps), low) for low in range(MOST_LOW_BITS + 1)]
    return int(np.argmin(sizes))


def pack_gaps(gaps: Ints, low: int) -> bytes:
    """Gives the bytes of whole numbers by Rice's code: all high parts in unary, then all low parts side by side.

    Source: Rice and Plaunt, "Adaptive variable-length coding for efficient compression of spacecraft television data",
    IEEE Trans. Communication Technology 1971; Golomb, "Run-length encodings", IEEE Trans. Information Theory 1966, with
    the divisor 2^low (from memory).
    """
    return pack_unary(gaps >> low) + pack(gaps & ((1 << low) - 1), low)


def take_gaps(reader: Reader, num: int, low: int, most: int) -> Ints:
    """Gives what `pack_gaps` was given, gaps of at most `most` all together. Raises: FrameError for other bytes."""
    return take_unary(reader, num, most >> low) << low | reader.fields(num, low)


def pack_gamma(values: Ints) -> bytes:
    """Gives the bytes of numbers from 1: how many bits follow the highest in unary, all together, then those bits.

    Source: Elias, "Universal codeword sets and representations of the integers", IEEE Trans. Information Theory 1975,
    the code gamma with its two parts apart (from memory).
    """
    lengths = _lengths(values)
    return pack_unary(lengths) + _pack_ragged(values, lengths)


def take_gamma(reader: Reader, num: int, most: int) -> Ints:
    """Gives `num` numbers from 1 to `most`. Raises: FrameError for bytes that aren't such numbers."""
    lengths = take_unary(reader, num, num * (width_of(most) - 1))
    if (lengths > width_of(most) - 1).any():
        raise FrameError(f"a coded level is above {most}")
    total = int(lengths.sum())
    fields = unpack(reader.take(num_bytes(total, 1)), total, 1)
    first = np.cumsum(lengths) - lengths
    values = np.left_shift(1, lengths)
    for place in range(int(lengths.max(initial=0))):
        has = lengths > place
        values[has] |= fields[first[has] + place] << place
    if (values > most).any():
        raise FrameError(f"a coded level is above {most}")
    return values


def _lengths(values: Ints) -> Ints:
    return np.asarray(np.frexp(values.astype(np.float64))[1] - 1, np.int64)


def _pack_ragged(values: Ints, lengths: Ints) -> bytes:
    """Packs the lowest bits of each number, as many as its length says."""
    first, out = np.cumsum(lengths) - lengths, np.zeros(int(lengths.sum()), np.int64)
    for place in range(int(lengths.max(initial=0))):
        has = lengths > place
        out[first[has] + place] = (values[has] >> place) & 1
    return pack(out, 1)
