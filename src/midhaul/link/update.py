"""What a device learned, in few bytes: an update coded in stages, and one decoder that trusts none of its bytes.

A setting names the stages in this order, each of them once at most and none of them needed: `delta`; `topk:SHARE`,
`randk:SHARE` or `powersgd:RANK`; `quantise:BITS`, `qsgd:LEVELS`, `sign` or `vote:STEP`; `entropy`. All weights of a
frame travel as one vector: places are told, and levels set, over all of them together. docs/compression.md says what
each is good for, docs/wire.md has the layout, device/src/mh_code.c is the twin of all but `powersgd` and `entropy`.

All that a device computes is in float32, one number after the other, and sums in float64 in the order of the vector, so
that both twins make the same bytes.

Shape letters: N numbers of an update, K of them that travel.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from midhaul import rng
from midhaul.errors import ConfigError, FrameError
from midhaul.link import bits, entropy, lowrank
from midhaul.link.bits import Floats, Ints, Reader

MAX_BYTES = 1 << 28  # what an update may be when it is whole, unless the reader says otherwise
MAX_LEVELS = 1 << 12
MAX_NUM = 1 << 26
KNOWN = (
    "none, or these in this order, with commas between: delta; one of topk:SHARE, randk:SHARE (0 < SHARE <= 1), "
    f"powersgd:RANK; one of quantise:BITS (2 to 8), qsgd:LEVELS (1 to {MAX_LEVELS}), sign, vote:STEP; entropy"
)
_SPARSE, _LOW_RANK, _DENSER = range(3)  # how the bytes begin
_ALL, _BITMAP, _SEEDED, _GAPS = range(4)  # how the places are told; from _GAPS on, so many low bits of a gap
_VALUES = ("plain", "quantise", "qsgd", "sign")  # by number
_HEAD = struct.Struct("<BBI")  # values, places, K
_SEED = struct.Struct("<Q")
_QUANTISE = struct.Struct("<B2f")
_QSGD = struct.Struct("<Hf")
_SCALE = struct.Struct("<f")


@dataclass(frozen=True)
class Stages:
    """How an update is coded. `select` is topk, randk, powersgd or nothing, with its share or rank in `much`; `value`
    is one of the four or plain, with its bits, levels or step in `level`."""

    delta: bool = False
    select: str = ""
    much: float = 1.0
    value: str = "plain"
    level: float = 0.0
    entropy: bool = False

    @property
    def is_biased(self) -> bool:
        """Tells whether what arrives isn't on average what was sent, so that error feedback has something to do."""
        return self.select != "" or self.value == "sign"

    @property
    def coder(self) -> int:
        """The number of the coder of the numbers on the wire; what is voted on are signs."""
        return _VALUES.index("sign" if self.value == "vote" else self.value)

    def kept(self, num: int) -> int:
        """Gives how many of an update's numbers travel."""
        return max(1, round(self.much * num)) if self.select in ("topk", "randk") else num

    def macs(self, num: int) -> int:
        """Gives about how many multiplications coding an update takes a device: one for each stage and number."""
        if self.select == "powersgd":
            return num * (1 + 3 * int(self.much))
        return num * (1 + (self.select == "topk") + (self.value != "plain"))


def parse(text: str, where: str) -> Stages | None:
    """Gives the stages of a setting, None for "none". Raises: ConfigError naming what is known."""
    if text.strip() == "none":
        return None
    found = Stages()
    last = -1
    try:
        for stage in text.split(","):
            name, _, rest = stage.strip().partition(":")
            place, found = _with(found, name, rest, ":" in stage)
            if place <= last:
                raise ValueError
            last = place
    except ValueError:
        raise ConfigError(f"{where} is {text!r}; write {KNOWN}") from None
    if not found.delta and (found.select or found.value in ("qsgd", "sign", "vote")):
        lossy = found.select or found.value
        raise ConfigError(f"{where}: {lossy} of a whole model would leave little of it; put delta before it")
    if found.select == "powersgd" and found.value != "plain":
        raise ConfigError(f"{where}: powersgd's factors travel as they are; leave out {found.value}")
    return found


def differs(up: str, down: str) -> bool:
    """Tells whether differences travel, to what a device was sent: it keeps that meanwhile."""
    found = parse(up, "link.up"), parse(down, "link.down")
    return any(how is not None and how.delta for how in found)


def _with(found: Stages, name: str, rest: str, has_rest: bool) -> tuple[int, Stages]:
    if has_rest != (name in ("topk", "randk", "powersgd", "quantise", "qsgd", "vote")):
        raise ValueError
    if name == "delta":
        return 0, replace(found, delta=True)
    if name in ("topk", "randk"):
        return 1, replace(found, select=name, much=_within(float(rest), 0.0, 1.0))
    if name == "powersgd":
        return 1, replace(found, select=name, much=_within(int(rest), 0, lowrank.MAX_RANK))
    if name == "quantise":
        return 2, replace(found, value=name, level=_within(int(rest), 1, 8))
    if name == "qsgd":
        return 2, replace(found, value=name, level=_within(int(rest), 0, MAX_LEVELS))
    if name == "sign":
        return 2, replace(found, value=name)
    if name == "vote":
        return 2, replace(found, value=name, level=_within(float(rest), 0.0, 1e30))
    if name == "entropy":
        return 3, replace(found, entropy=True)
    raise ValueError


def _within(number: float, above: float, most: float) -> float:
    if not above < number <= most:
        raise ValueError
    return number


def encode(stages: Stages, vector: Floats, key: rng.Key, *, unbiased: bool = False) -> bytes:
    """Gives the bytes of an update. Shapes: [N], N > 0. Roundings and random places are drawn from the key.

    `unbiased` makes randk multiply what it keeps, so that it is the vector on average; error feedback wants it not to.
    Raises: FrameError if a number isn't finite.
    """
    check(vector)
    return _squeezed(stages, _sparse(stages, vector, key, unbiased))


def check(vector: Floats) -> None:
    """Raises: FrameError if a number isn't finite."""
    if not np.isfinite(vector).all():
        raise FrameError("an update to be coded holds numbers that aren't finite; the sender's model diverged")


def factored(stages: Stages, factors: bytes) -> bytes:
    """Gives the bytes of an update that `lowrank` has made factors of."""
    return _squeezed(stages, bytes([_LOW_RANK]) + factors)


def decode(num: int, data: bytes | memoryview, max_bytes: int = MAX_BYTES) -> Floats:
    """Gives the update behind coded bytes. Shapes: [num].

    Raises: FrameError, before anything large is made, for whatever isn't the whole and sound code of such an update.
    """
    if not 1 <= num <= min(MAX_NUM, max_bytes // 4):
        raise FrameError(f"an update of {num} numbers isn't taken here; it may have at most {max_bytes} bytes")
    reader = Reader(memoryview(data))
    kind = reader.take(1)[0]
    if kind == _DENSER:
        # What is inside has no more bytes than plain numbers with all their places would have, or factors of them.
        reader = Reader(memoryview(entropy.unsqueeze(reader.take(reader.left), 64 + 9 * num)))
        kind = reader.take(1)[0]
    if kind not in (_SPARSE, _LOW_RANK):
        raise FrameError(f"an update is coded by way {kind}; ways are {_SPARSE} to {_DENSER}, the last of them once")
    out = lowrank.unpack(reader, num) if kind == _LOW_RANK else _unsparse(reader, num)
    if reader.left:
        raise FrameError(f"a coded update has {reader.left} bytes behind its last field")
    return out


def _squeezed(stages: Stages, body: bytes) -> bytes:
    small = bytes([_DENSER]) + entropy.squeeze(body) if stages.entropy else body
    return small if len(small) < len(body) else body


def vote(updates: Sequence[Floats], step: float) -> Floats:
    """Gives the step that the majority is for, number by number; none where there are as many against it.

    Shapes: [N] each. Each device has a vote for each number that it sent, whatever the number's size.
    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: compressed optimisation for non-convex problems",
    ICML 2018, algorithm 3.
    """
    ballot = np.sum([np.sign(update).astype(np.int64) for update in updates], axis=0)
    return np.asarray(np.sign(ballot) * np.float32(step), np.float32)


def _sparse(stages: Stages, vector: Floats, key: rng.Key, unbiased: bool) -> bytes:
    num, seed = len(vector), 0
    places = np.arange(num, dtype=np.int64)
    values = vector
    if stages.select == "topk":
        places = largest(vector, stages.kept(num))
        values = vector[places]
    elif stages.select == "randk":
        low, high = (int(word) for word in key.at((key.use >> 8) | 1).words(2))
        seed = high << 32 | low
        places, runs = drawn(seed, stages.kept(num), num)
        values = vector[places] * runs.astype(np.float32) if unbiased else vector[places]
    if stages.value == "qsgd":
        head, levels = _rounded(values, int(stages.level), key)
        travels = np.flatnonzero(levels)
        places, levels = places[travels], levels[travels]
        told = bits.pack((levels < 0).astype(np.int64), 1) + bits.pack_gamma(np.abs(levels))
    else:
        head, told = _told(stages, values, key)
    how, where = _SEEDED, _SEED.pack(seed)
    if stages.select != "randk" or stages.value == "qsgd":
        how, where = _pack_places(places, num)
    return b"".join([bytes([_SPARSE]), _HEAD.pack(stages.coder, how, len(places)), head, where, told])


def _unsparse(reader: Reader, num: int) -> Floats:
    number, how, kept = _HEAD.unpack(reader.take(_HEAD.size))
    if number >= len(_VALUES):
        raise FrameError(f"an update's numbers are coded by coder {number}; coders are 0 to {len(_VALUES) - 1}")
    if kept > num:
        raise FrameError(f"a coded update names {kept} of its {num} places")
    name = _VALUES[number]
    head = reader.take({"quantise": _QUANTISE.size, "qsgd": _QSGD.size, "plain": 0}.get(name, _SCALE.size))
    places = _take_places(reader, how, kept, num)
    out = np.zeros(num, np.float32)
    out[places] = _numbers(name, head, reader, kept)
    return out


def largest(vector: Floats, kept: int) -> Ints:
    """Gives the ascending places of the numbers that are largest in absolute value; of equals the first come first.

    Source: Aji and Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017, section 3. Biased, so
    that it wants error feedback: Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018, algorithm 1.
    """
    size = np.abs(vector)
    border = np.partition(size, len(size) - kept)[len(size) - kept]
    above = np.flatnonzero(size > border)
    equal = np.flatnonzero(size == border)[: kept - len(above)]
    return np.sort(np.concatenate([above, equal]))


def drawn(seed: int, kept: int, num: int) -> tuple[Ints, Ints]:
    """Gives a place of each of `kept` even runs, drawn from a seed that travels in place of the places; and the runs.

    Each number is drawn with probability 1 over the length of its run, so that times this it is right on average.
    """
    ends = np.arange(kept + 1, dtype=np.int64) * num // kept
    runs = np.diff(ends)
    words = rng.Key(seed, 0, 0, 0).words(kept).astype(np.uint64)
    return ends[:-1] + ((words * runs.astype(np.uint64)) >> np.uint64(32)).astype(np.int64), runs


def _pack_places(places: Ints, num: int) -> tuple[int, bytes]:
    """Gives how ascending places are told, the shortest way, and the bytes."""
    if len(places) == num:
        return _ALL, b""
    gaps = np.diff(places, prepend=-1) - 1
    low = bits.low_bits(gaps)
    if bits.num_bytes(num, 1) <= bits.unary_bytes(gaps >> low) + bits.num_bytes(len(gaps), low):
        marks = np.zeros(num, np.int64)
        marks[places] = 1
        return _BITMAP, bits.pack(marks, 1)
    return _GAPS + low, bits.pack_gaps(gaps, low)


def _take_places(reader: Reader, how: int, kept: int, num: int) -> Ints:
    if how == _ALL:
        if kept != num:
            raise FrameError(f"a coded update has {kept} of its {num} numbers and no places")
        return np.arange(num, dtype=np.int64)
    if how == _BITMAP:
        places = np.flatnonzero(reader.fields(num, 1))
        if len(places) != kept:
            raise FrameError(f"{kept} places were announced and {len(places)} are marked")
        return places
    if how == _SEEDED:
        (seed,) = _SEED.unpack(reader.take(_SEED.size))
        return drawn(seed, kept, num)[0] if kept else np.zeros(0, np.int64)
    if how > _GAPS + bits.MOST_LOW_BITS:
        raise FrameError(f"an update's places are told in way {how}; ways are 0 to {_GAPS + bits.MOST_LOW_BITS}")
    places = np.cumsum(bits.take_gaps(reader, kept, how - _GAPS, num) + 1) - 1
    if kept and places[-1] >= num:
        raise FrameError(f"a coded update names place {places[-1]} of {num}")
    return np.asarray(places, np.int64)


def _rounded(values: Floats, levels: int, key: rng.Key) -> tuple[bytes, Ints]:
    """Gives QSGD's norm and signed levels: |v| over the norm, rounded stochastically to one of the levels: unbiased.

    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: communication-efficient SGD via gradient quantization and
    encoding", NeurIPS 2017, section 3.1; relative variance at most min(n / s^2, sqrt(n) / s), lemma 3.1. As in its
    section 3.2 places and levels travel in codes that are short for what is small.
    """
    largest_size = np.abs(values).max()
    parts = values / largest_size if largest_size > 0.0 else values  # so that no square is beyond float32
    with np.errstate(over="ignore"):
        norm = largest_size * np.sqrt(np.float32(np.cumsum(np.square(parts.astype(np.float64)))[-1]))
    if not np.isfinite(norm):
        raise FrameError("the norm of an update to be coded is beyond float32; the sender's model diverged")
    share = np.abs(values) / norm if norm > 0.0 else np.zeros_like(values)
    level = _stochastic(share * np.float32(levels), levels, key)
    return _QSGD.pack(levels, float(norm)), np.where(values < 0.0, -level, level)


def _stochastic(numbers: Floats, top: int, key: rng.Key) -> Ints:
    draws = rng.uniform(key, len(numbers))
    return np.minimum((numbers + draws).astype(np.int64), top)


def _told(stages: Stages, values: Floats, key: rng.Key) -> tuple[bytes, bytes]:
    """Gives the head and the bytes of the numbers that travel, all of them in one width."""
    negative = (values < 0.0).astype(np.int64)
    if stages.value == "plain":
        return b"", values.astype("<f4").tobytes()
    if stages.value == "quantise":
        return _quantised(values, negative, int(stages.level), key)
    scale = np.float32(np.cumsum(np.abs(values).astype(np.float64))[-1] / len(values))
    return _SCALE.pack(float(scale)), bits.pack(negative, 1)


def _quantised(values: Floats, negative: Ints, width: int, key: rng.Key) -> tuple[bytes, bytes]:
    """Stochastic k-bit: the sign, and in the other bits one of the even levels between the least and the greatest
    absolute value, rounded stochastically: unbiased.

    Source: Konecny, McMahan, Yu, Richtarik, Suresh, Bacon, "Federated learning: strategies for improving communication
    efficiency", 2016, section 3, with the levels over absolute values, since what topk leaves has no small ones.
    """
    size = np.abs(values)
    low, high, top = size.min(), size.max(), (1 << width - 1) - 1
    step = (high - low) / np.float32(top)
    place = (size - low) / step if step > 0.0 else np.zeros_like(size)
    level = _stochastic(place, top, key)
    return _QUANTISE.pack(width, float(low), float(high)), bits.pack(level << 1 | negative, width)


def _numbers(name: str, head: memoryview, reader: Reader, num: int) -> Floats:
    """Gives the numbers that travelled. Shapes: [K]."""
    if name == "plain":
        return reader.floats(num)
    if name == "quantise":
        width, low, high = _QUANTISE.unpack(head)
        if not 2 <= width <= 8 or not 0.0 <= low <= high < math.inf:
            raise FrameError(f"an update is coded in {width} bits from {low} to {high}, which can't be")
        codes = reader.fields(num, width)
        first, last = np.float32(low), np.float32(high)
        step = (last - first) / np.float32((1 << width - 1) - 1)
        return _signed(np.minimum(first + (codes >> 1).astype(np.float32) * step, last), codes & 1)
    if name == "qsgd":
        top, norm = _QSGD.unpack(head)
        if not 1 <= top <= MAX_LEVELS or not 0.0 <= norm < math.inf:
            raise FrameError(f"an update is coded in {top} levels of a norm of {norm}, which can't be")
        negative = reader.fields(num, 1)
        levels = bits.take_gamma(reader, num, top).astype(np.float32)
        return _signed(np.float32(norm) * (levels / np.float32(top)), negative)
    (scale,) = _SCALE.unpack(head)
    if not 0.0 <= scale < math.inf:
        raise FrameError(f"an update's numbers are plus or minus {scale}, which can't be")
    return _signed(np.full(num, scale, np.float32), reader.fields(num, 1))


def _signed(sizes: Floats, negative: Ints) -> Floats:
    return np.where(negative == 1, -sizes, sizes)
