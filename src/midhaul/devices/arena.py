"""The memory arena of a device: buffers with lifetimes, placed so that none that live together overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Buffer:
    """Bytes that live from step `first` to step `last`, both included, at `offset` of the arena."""

    name: str
    bytes: int
    first: int
    last: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The first byte behind the buffer."""
        return self.offset + self.bytes

    def meets(self, other: Buffer) -> bool:
        """Tells whether the two live at the same step."""
        return self.first <= other.last and other.first <= self.last


def place(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
    """Gives the buffers with their offsets, one after the other at the lowest offset that is free for it.

    The best of three orders is taken: the largest first, the longest-lived first, the earliest first. The order of the
    buffers in the result is the one given.
    Source: Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020, section 5.
    Limits: not always the smallest arena, never below `live_peak`.

    >>> [b.offset for b in place([Buffer("x", 8, 0, 1), Buffer("h", 16, 1, 2), Buffer("z", 8, 2, 3)])]
    [16, 0, 16]
    """
    given = list(buffers)
    return min((_placed(given, order) for order in _ORDERS), key=peak)


def peak(buffers: Iterable[Buffer]) -> int:
    """Gives the bytes of the arena: the end of the highest buffer."""
    return max((buffer.end for buffer in buffers), default=0)


def live_peak(buffers: Iterable[Buffer]) -> int:
    """Gives the most bytes that live at any one step: no arena can be smaller."""
    known = list(buffers)
    steps = {buffer.first for buffer in known}
    return max((sum(b.bytes for b in known if b.first <= step <= b.last) for step in steps), default=0)


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda buffer: (-buffer.bytes, buffer.first),
    lambda buffer: (buffer.first - buffer.last, -buffer.bytes, buffer.first),
    lambda buffer: (buffer.first, -buffer.bytes),
)


def _placed(given: list[Buffer], order: Callable[[Buffer], tuple[int, ...]]) -> tuple[Buffer, ...]:
    placed: list[Buffer] = []
    offsets: dict[int, int] = {}
    for i in sorted(range(len(given)), key=lambda i: order(given[i])):
        offset = 0
        for other in placed:
            if other.meets(given[i]) and other.bytes and offset + given[i].bytes > other.offset:
                offset = max(offset, other.end)
        offsets[i] = offset
        placed.append(replace(given[i], offset=offset))
        placed.sort(key=lambda buffer: buffer.offset)
    return tuple(replace(buffer, offset=offsets[i]) for i, buffer in enumerate(given))
