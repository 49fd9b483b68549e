"""One counter-based source of random numbers: `key(seed, round, device, use)`.

A key names a stream; its numbers are Philox4x32-10 blocks whose Philox key is the 64-bit seed and whose 128-bit
counter is (block, round, device, use). Nothing is carried from call to call, so every engine, in whatever order it
visits the devices, and a resumed run, draw the same numbers. The C twin is the ten-round loop of `philox` below.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_MUL_0, _MUL_1, _LOW, _SHIFT = np.uint64(_MUL[0]), np.uint64(_MUL[1]), np.uint64(_MASK), np.uint64(32)
SERVER = 0xFFFFFFFF  # the device number of draws that the server makes for itself


class Use(IntEnum):
    """What a stream is for. The numbers are on the wire and in C: append, never renumber."""

    INIT = 1
    BATCH = 2
    COHORT = 3
    LOSS = 4
    PARTITION = 5
    SPLIT = 6
    WORK = 7
    ORDER = 8
    DROPOUT = 9
    NOISE = 10
    SYNTHETIC = 11
    PUBLIC = 12
    CODE = 13
    ABSENCE = 14
    SPEED = 15
    TOKEN = 16
    DRIFT = 17
    DIRECTION = 18
    POSITION = 19
    SHADOW = 20
    SIGHT = 21
    WALL = 22
    FADING = 23
    MOVE = 24
    TRACE = 25
    NEIGHBOUR = 26
    BATTERY = 27
    CHOICE = 28


class Key(NamedTuple):
    """The name of one stream of random numbers."""

    seed: int
    round: int
    device: int
    use: int

    def at(self, index: int) -> Key:
        """Gives the stream of the same use for the index-th time in a round (an epoch, an exchange)."""
        return self._replace(use=(self.use & 0xFF) | (index << 8))

    def words(self, num: int) -> Words:
        """Gives the first `num` 32-bit words of the stream. Shapes: [num] uint32."""
        blocks = -(-num // 4)
        counter = np.empty((blocks, 4), np.uint32)
        counter[:, 0] = np.arange(blocks, dtype=np.uint32)
        counter[:, 1:] = (self.round & _MASK, self.device & _MASK, self.use & _MASK)
        return philox(counter, self.seed).reshape(-1)[:num]


First = Callable[[Key, int, int], npt.NDArray[np.int64]]


def key(seed: int, round: int, device: int, use: Use) -> Key:
    """Gives the key of what `device` draws in `round` for one `use`.

    >>> [int(w) for w in key(7, 0, 3, Use.BATCH).words(2)] == [int(w) for w in key(7, 0, 3, Use.BATCH).words(4)[:2]]
    True
    """
    return Key(seed, round, device, int(use))


def philox(counter: Words, seed: int) -> Words:
    """Gives the Philox4x32-10 blocks of many counters under one 64-bit seed. Shapes: [B, 4] -> [B, 4] uint32.

    >>> [f"{int(w):08x}" for w in philox(np.zeros((1, 4), np.uint32), 0)[0]]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = (np.array(counter[:, i], np.uint64) for i in range(4))
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for k0, k1 in _round_keys(seed):  # in place: for some hundred blocks, memory for what comes between costs as much
        np.multiply(c0, _MUL_0, p0)
        np.multiply(c2, _MUL_1, p1)
        np.bitwise_xor(np.right_shift(p1, _SHIFT, c0), c1, c0)
        np.bitwise_xor(c0, k0, c0)
        np.bitwise_xor(np.right_shift(p0, _SHIFT, c2), c3, c2)
        np.bitwise_xor(c2, k1, c2)
        np.bitwise_and(p1, _LOW, c1)
        np.bitwise_and(p0, _LOW, c3)
    blocks = np.empty((len(counter), 4), np.uint32)
    for place, word in enumerate((c0, c1, c2, c3)):
        blocks[:, place] = word
    return blocks


@functools.lru_cache(maxsize=16)
def _round_keys(seed: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    """Gives the keys of the ten rounds."""
    low, high = seed & _MASK, (seed >> 32) & _MASK
    return tuple(
        (np.uint64((low + _WEYL[0] * number) & _MASK), np.uint64((high + _WEYL[1] * number) & _MASK))
        for number in range(10)
    )


def uniform(key: Key, num: int) -> npt.NDArray[np.float32]:
    """Gives numbers in [0, 1): the top 24 bits of each word, so float32 holds them exactly. Shapes: [num]."""
    return (key.words(num) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def integers(key: Key, num: int, high: int) -> npt.NDArray[np.int64]:
    """Gives whole numbers in [0, high): the high half of word x high. Shapes: [num]. Limits: bias below high / 2^32."""
    return ((key.words(num).astype(np.uint64) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def normal(key: Key, num: int) -> npt.NDArray[np.float64]:
    """Gives standard normal numbers by Box and Muller's transform, in double precision. Shapes: [num]."""
    return normal_of(key.words(num + num % 2))[:num]


def words_of(seed: int, round: int, devices: npt.NDArray[np.int64], use: Use, num: int, index: int = 0) -> Words:
    """Gives the words of many devices at once: row i is `key(seed, round, devices[i], use).at(index).words(num)`.

    Shapes: [D] -> [D, num] uint32.
    """
    names = np.empty((len(devices), 3), np.uint32)
    names[:, 0] = round & _MASK
    names[:, 1] = devices & _MASK
    names[:, 2] = ((int(use) & 0xFF) | (index << 8)) & _MASK
    return _side_by_side(names, seed, num)


def uniform_of(words: Words) -> npt.NDArray[np.float64]:
    """Gives numbers in [0, 1) of 24 bits, as `uniform` has them. Shapes: any."""
    return (words >> np.uint32(8)).astype(np.float64) * 2.0**-24


def normal_of(words: Words) -> npt.NDArray[np.float64]:
    """Gives standard normal numbers, as `normal` has them. Shapes: [..., 2n] -> [..., 2n]."""
    radius = np.sqrt(-2.0 * np.log((words[..., 0::2].astype(np.float64) + 1.0) * 2.0**-32))
    angle = words[..., 1::2].astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(words.shape)


def permutation(key: Key, num: int) -> npt.NDArray[np.int64]:
    """Gives an order of 0..num-1, by Fisher and Yates's shuffle from the last place down. Shapes: [num].

    >>> sorted(permutation(key(1, 0, 0, Use.BATCH), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return _shuffled(key, num, num)


def _shuffled(key: Key, num: int, size: int) -> npt.NDArray[np.int64]:
    """Gives the first `num` places of `permutation(key, size)`. Shapes: [num]."""
    order = list(range(size))
    drawn = key.words(max(size - 1, 0)).astype(np.uint64)
    ends: npt.NDArray[np.uint64] = np.arange(size, 1, -1).astype(np.uint64)
    others = ((drawn * ends) >> _SHIFT).tolist()
    behind = max(size - max(num, 1), 0)  # steps whose last place isn't asked for, so nothing need be put there
    for other, held in zip(others[:behind], reversed(order)):  # as it is by then  # noqa: B905
        order[other] = held
    for last, other in zip(range(size - behind - 1, 0, -1), others[behind:], strict=True):
        order[last], order[other] = order[other], order[last]
    return np.asarray(order[:num], np.int64)


def permutations(keys: Sequence[Key], num: int) -> npt.NDArray[np.int64]:
    """Gives `permutation(key, num)` of each key, made side by side. Shapes: [K, num].

    >>> keys = [key(1, 0, device, Use.BATCH) for device in range(3)]
    >>> all(np.array_equal(order, permutation(k, 9)) for k, order in zip(keys, permutations(keys, 9), strict=True))
    True
    """
    order = np.tile(np.arange(num, dtype=np.int64), (len(keys), 1))
    drawn, rows = words(keys, max(num - 1, 0)).astype(np.uint64), np.arange(len(keys))
    for step in range(num - 1):
        last = num - 1 - step
        other = ((drawn[:, step] * np.uint64(last + 1)) >> np.uint64(32)).astype(np.int64)
        taken = order[rows, other]
        order[rows, other] = order[:, last]
        order[:, last] = taken
    return order


def words(keys: Sequence[Key], num: int) -> Words:
    """Gives the first `num` words of each key's stream, all of one seed. Shapes: [K, num] uint32."""
    if not keys:
        return np.zeros((0, num), np.uint32)
    names = np.array([[k.round & _MASK, k.device & _MASK, k.use & _MASK] for k in keys], np.uint32)
    return _side_by_side(names, keys[0].seed, num)


def _side_by_side(names: Words, seed: int, num: int) -> Words:
    """Gives the first words of streams named by round, device and use. Shapes: [K, 3] -> [K, num] uint32."""
    blocks = -(-num // 4)
    counter = np.empty((len(names), blocks, 4), np.uint32)
    counter[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, :, 1:] = names[:, None]
    return philox(counter.reshape(-1, 4), seed).reshape(len(names), 4 * blocks)[:, :num]


def choose(key: Key, num: int, population: Sequence[int], first: First | None = None) -> tuple[int, ...]:
    """Gives `num` members of the population without repetition, in ascending order; `first` does what
    `first_of_permutation` does."""
    places = (first or first_of_permutation)(key, num, len(population))
    return tuple(sorted([population[place] for place in places.tolist()]))


def first_of_permutation(key: Key, num: int, size: int) -> npt.NDArray[np.int64]:
    """Gives the first `num` places of `permutation(key, size)` without shuffling them all. Shapes: [num].

    Step t of the shuffle swaps places last = size - 1 - t and other <= last. So what ends in place p is what place
    other(p) held before step last = p; that is its own number, unless an earlier step had put something there, the
    latest of which is that with the smallest last > p and the same other: what place last held before that step.

    >>> stream = key(5, 0, 0, Use.COHORT)
    >>> np.array_equal(first_of_permutation(stream, 3, 900), permutation(stream, 900)[:3])
    True
    """
    num = min(num, size)
    if size < 1536 or 2 * num > size:
        return _shuffled(key, num, size)
    last = np.arange(size - 1, 0, -1)
    other = np.zeros(size, np.int64)
    other[1:] = ((key.words(size - 1).astype(np.uint64) * (last + 1).astype(np.uint64)) >> np.uint64(32))[::-1]
    at, below = other[:num].copy(), np.arange(num)  # the place whose content is sought, before which step
    sought = np.arange(num)
    while len(sought):
        # Few steps touch the places that are sought: one look at all finds them, and they are sorted by (other, last).
        wanted = np.zeros(size, np.bool_)
        wanted[at[sought]] = True
        steps = np.flatnonzero(wanted[other])
        if not len(steps):
            break
        steps = np.sort((other[steps] << 32) | steps)  # both are below 2^31
        found = np.searchsorted(steps, (at[sought] << 32) | (below[sought] + 1))
        step = steps[np.minimum(found, len(steps) - 1)]
        goes_on = (found < len(steps)) & (step >> 32 == at[sought])
        sought, step = sought[goes_on], step[goes_on] & 0xFFFFFFFF
        at[sought], below[sought] = step, step
    return at


@contextlib.contextmanager
def torch_seed(key: Key) -> Iterator[None]:
    """Runs a block with torch's global generator seeded from the key, then puts the generator back as it was."""
    import torch  # here alone: who reads data or settings needs no tensor library

    high, low = (int(w) for w in key.words(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((high << 32 | low) & 0x7FFFFFFFFFFFFFFF)
        yield
