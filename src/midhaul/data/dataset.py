"""What a loader gives: rows, labels, and the natural device of each row.

Shape letters: N rows, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Refused:
    """A row that was set aside: its 1-based line in a text file, or its 1-based row in an array, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Labelled rows that know which device they came from.

    Shapes: `x` [N, ...] float32, or [N, L] int64 tokens where `vocabulary` is above 0, or bytes where there are
    `levels` [256] float32, the numbers that they stand for; `y` [N] class numbers; `device` [N] places in
    `device_names`; `held_out` [N], True where the publisher puts the row in the test set.
    `key` says what a natural device is ("subject", "writer" ...); it is empty where the data have none.
    `num_read` counts the rows before bad ones went to `refused`. `centre` and `spread` are the constants that the
    channels of three-axis sensors were scaled by: x = (raw - centre) / spread. `ways`: how many classes each device
    tells apart by numbers of its own, where it does; 0: `y` means the same everywhere.

    Raises: DataError if shapes, types or ranges contradict each other, or if a number is not finite.
    """

    name: str
    x: npt.NDArray[Any]
    y: Ints
    device: Ints
    device_names: tuple[str, ...]
    held_out: Bools
    class_names: tuple[str, ...]
    licence: str
    source: str
    citation: str
    key: str
    num_read: int
    refused: tuple[Refused, ...] = ()
    vocabulary: int = 0
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    ways: int = 0
    levels: Floats | None = None

    def __post_init__(self) -> None:
        num = len(self.x)
        if num == 0:
            raise DataError(f"{self.name} holds no usable row{_why(self.refused)}")
        coded = self.levels is not None
        wanted = np.dtype(np.int64 if self.vocabulary else np.uint8 if coded else np.float32)
        if self.x.dtype != wanted or self.x.ndim < 2 or 0 in self.x.shape:
            raise DataError(f"{self.name}: x is {self.x.dtype} {self.x.shape}; it must be {wanted} [N, ...], not empty")
        for field, values in (("y", self.y), ("device", self.device), ("held_out", self.held_out)):
            if values.shape != (num,):
                raise DataError(f"{self.name}: {field} has shape {values.shape}, but x has {num} rows")
        _in_range(self.name, "class", self.y, len(self.class_names))
        _in_range(self.name, "device", self.device, len(self.device_names))
        if self.vocabulary:
            _in_range(self.name, "token", self.x, self.vocabulary)
        elif self.levels is not None and (self.levels.dtype != np.float32 or self.levels.shape != (256,)):
            raise DataError(f"{self.name}: levels are {self.levels.dtype} {self.levels.shape}, not float32 (256,)")
        elif not _is_finite(self.x if self.levels is None else self.levels):
            raise DataError(f"{self.name}: x holds a number that is not finite; such rows must be set aside")

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, rows: Any = slice(None)) -> npt.NDArray[Any]:
        """Gives some rows of x, or all, as a model takes them."""
        picked: npt.NDArray[Any] = self.x[rows]
        return picked if self.levels is None else self.levels[picked]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one row of x."""
        return tuple(int(size) for size in self.x.shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of classes that a model tells apart: all, seen or not, or those that a device numbers itself."""
        return self.ways or len(self.class_names)


def levels_of(step: float, first: float = 0.0) -> Floats:
    """Gives the numbers that bytes stand for, evenly apart. Shapes: [256].

    >>> levels_of(0.5, -1.0)[:3].tolist()
    [-1.0, -0.5, 0.0]
    """
    return (first + step * np.arange(256)).astype(np.float32)


def number(values: npt.NDArray[Any] | Sequence[str]) -> tuple[Ints, tuple[str, ...]]:
    """Gives each value its place among the sorted distinct values, and their names.

    >>> number(["b", "a", "b"])
    (array([1, 0, 1]), ('a', 'b'))
    """
    distinct, place = np.unique(np.asarray(values), return_inverse=True)
    return place.reshape(-1).astype(np.int64), tuple(str(value) for value in distinct.tolist())


def _is_finite(x: npt.NDArray[Any]) -> bool:
    with np.errstate(invalid="ignore"):  # inf - inf; a sum in double precision can't overflow, and needs no copy of x
        return math.isfinite(float(np.sum(x, dtype=np.float64)))


def _in_range(name: str, what: str, values: npt.NDArray[Any], high: int) -> None:
    low, top = int(values.min()), int(values.max())
    if low < 0 or top >= high:
        raise DataError(f"{name}: a {what} number lies outside 0..{high - 1} (they span {low}..{top})")


def _why(refused: tuple[Refused, ...]) -> str:
    if not refused:
        return ""
    return f": all {len(refused)} were set aside, the first ({refused[0].line}) because {refused[0].reason}"
