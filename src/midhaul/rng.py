"""One counter-based source of random numbers: `key(seed, round, device, use)`.

A key names a stream; its numbers are Philox4x32-10 blocks whose Philox key is the 64-bit seed and whose 128-bit
counter is (block, round, device, use). Nothing is carried from call to call, so every engine, in whatever order it
visits the devices, and a resumed run, draw the same numbers. The C twin is the ten-round loop of `philox` below.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
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
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    low, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(_MUL[0]), c2 * np.uint64(_MUL[1])
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(key: Key, num: int) -> npt.NDArray[np.float32]:
    """Gives numbers in [0, 1): the top 24 bits of each word, so float32 holds them exactly. Shapes: [num]."""
    return (key.words(num) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def integers(key: Key, num: int, high: int) -> npt.NDArray[np.int64]:
    """Gives whole numbers in [0, high): the high half of word x high. Shapes: [num]. Limits: bias below high / 2^32."""
    return ((key.words(num).astype(np.uint64) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def normal(key: Key, num: int) -> npt.NDArray[np.float64]:
    """Gives standard normal numbers by Box and Muller's transform, in double precision. Shapes: [num]."""
    pairs = -(-num // 2)
    words = key.words(2 * pairs).astype(np.float64).reshape(pairs, 2)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 1.0) * 2.0**-32))
    angle = 2.0 * np.pi * words[:, 1] * 2.0**-32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:num]


def words_of(seed: int, round: int, devices: npt.NDArray[np.int64], use: Use, num: int, index: int = 0) -> Words:
    """Gives the words of many devices at once: row i is `key(seed, round, devices[i], use).at(index).words(num)`.

    Shapes: [D] -> [D, num] uint32.
    """
    blocks = -(-num // 4)
    counter = np.empty((len(devices), blocks, 4), np.uint32)
    counter[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, :, 1] = round & _MASK
    counter[:, :, 2] = (devices & _MASK).astype(np.uint32)[:, None]
    counter[:, :, 3] = ((int(use) & 0xFF) | (index << 8)) & _MASK
    return philox(counter.reshape(-1, 4), seed).reshape(len(devices), 4 * blocks)[:, :num]


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
    order = list(range(num))
    for step, word in enumerate(key.words(max(num - 1, 0)).tolist()):
        last = num - 1 - step
        other = (word * (last + 1)) >> 32
        order[last], order[other] = order[other], order[last]
    return np.asarray(order, np.int64)


def choose(key: Key, num: int, population: Sequence[int]) -> tuple[int, ...]:
    """Gives `num` members of the population without repetition, in ascending order."""
    order = permutation(key, len(population))[:num]
    return tuple(sorted(population[i] for i in order))


@contextlib.contextmanager
def torch_seed(key: Key) -> Iterator[None]:
    """Runs a block with torch's global generator seeded from the key, then puts the generator back as it was."""
    import torch  # here alone: who reads data or settings needs no tensor library

    high, low = (int(w) for w in key.words(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((high << 32 | low) & 0x7FFFFFFFFFFFFFFF)
        yield
