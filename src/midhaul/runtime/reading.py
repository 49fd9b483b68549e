"""Bytes that came from elsewhere, taken in order, and never past their end."""

from __future__ import annotations

import math
import struct
from typing import Any

from midhaul.runtime.envelope import Refusal, Refused

_U32 = struct.Struct("<I")


class Reader:
    """Takes bytes in order and never past the end."""

    def __init__(self, data: bytes) -> None:
        self._view, self._place = memoryview(data), 0

    def take(self, num: int) -> memoryview:
        if num > len(self._view) - self._place:
            raise Refused(Refusal.MALFORMED, f"a field of {num} bytes at byte {self._place} goes past the end")
        part = self._view[self._place : self._place + num]
        self._place += num
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def sized(self) -> memoryview:
        return self.take(self.unpack(_U32)[0])

    def numbers(self, num: int) -> tuple[int, ...]:
        return struct.unpack(f"<{num}I", self.take(4 * num))

    def f64s(self, num: int, name: str) -> tuple[float, ...]:
        values: tuple[float, ...] = struct.unpack(f"<{num}d", self.take(8 * num))
        if not all(map(math.isfinite, values)):
            raise Refused(Refusal.NON_FINITE, f"a reply's {name} isn't finite; the sender's model diverged or lies")
        return values

    def rest(self) -> memoryview:
        return self.take(len(self._view) - self._place)

    def end(self) -> None:
        if left := len(self._view) - self._place:
            raise Refused(Refusal.MALFORMED, f"{left} bytes lie behind the last field")


def text_of(data: memoryview) -> str:
    """Gives a text. Raises: Refused."""
    try:
        return str(bytes(data), "utf-8")
    except UnicodeDecodeError:
        raise Refused(Refusal.MALFORMED, "a text isn't UTF-8") from None
