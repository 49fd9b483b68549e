"""Payloads that are like the one before: a batch after another has the same devices, rows and shapes, and new numbers.

What such payloads share is read and checked once. Of the next one it is compared, byte for byte; what is left to do is
its frame's CRC-32, its numbers, and whether these are finite. Whatever differs is read from the beginning, and it is
there that faults are told.
"""

from __future__ import annotations

import zlib
from typing import Any

from midhaul.errors import FrameError
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.tree import Tree

MAX_TENSORS = 8  # of a payload that is remembered: with more, reading them is most of the work


class Again:
    """A payload that was read, but for its tensors; `made` is what else was made of it."""

    def __init__(self, data: bytes, first: int, spans: tuple[frame.Span, ...], made: Any) -> None:
        """The payload's last frame, whose tensors lie at `spans`, begins at byte `first` and ends with the payload."""
        self.made, self._first, self._size, self._spans = made, first, len(data), spans
        ends = [0, *(first + span.last for span in spans)]
        begins = [*(first + span.first for span in spans), len(data) - frame.CRC_BYTES]
        self._shared = tuple((a, b, data[a:b]) for a, b in zip(ends, begins, strict=True))

    def read(self, data: bytes) -> Tree | None:
        """Gives the tensors of a payload that differs in nothing else; None for another, or an unsound one."""
        if len(data) != self._size or any(data[a:b] != shared for a, b, shared in self._shared):
            return None
        body = memoryview(data)[self._first :]
        crc = zlib.crc32(body[: -frame.CRC_BYTES])
        if frame.CRC.unpack_from(body, len(body) - frame.CRC_BYTES)[0] != crc:
            return None
        try:
            return {span.name: frame.tensor_at(body, span) for span in self._spans}
        except FrameError:
            return None


def remember(data: bytes, first: int, whole: Frame, made: Any) -> Again | None:
    """Gives what the next payload may be compared with; None where that wouldn't pay."""
    if not whole.tree or len(whole.tree) > MAX_TENSORS or whole.coded:
        return None
    return Again(data, first, frame.spans(memoryview(data)[first:], whole), made)
