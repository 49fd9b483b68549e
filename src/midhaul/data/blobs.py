"""Blobs: as many devices as one asks for, of as many rows as one asks for, to try how a run scales.

Shape letters: N rows, F numbers of a row, C classes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from midhaul import rng
from midhaul.data.dataset import Dataset, levels_of
from midhaul.data.sources import Description
from midhaul.errors import ConfigError
from midhaul.rng import Use

_MAX_BYTES = 2**36
_STEP = 1 / 32  # between two levels
_TABLE = 2**20  # bytes of noise; a row's begins at a place of its own
_BLOCK = 2**16  # rows that are made at once

DESCRIPTION = Description(
    name="blobs",
    what="classes that are round clouds, a byte a number: devices and rows by the million, to try how a run scales",
    shape="x [N, *shape] of 256 levels in -4..4; 100 devices of 50 rows unless told",
    key="device",
    licence="none needed: the numbers are drawn here",
    source="drawn by midhaul",
    citation="none: a class's centre is drawn evenly, and noise of two even parts is added",
)


def load(
    folder: Path | None = None,
    *,
    shape: str = "64",
    classes: int = 10,
    num_devices: int = 100,
    rows: int = 50,
    test_rows: int = 1000,
    seed: int = 0,
) -> Dataset:
    """Gives `rows` rows on each device, and `test_rows` that are held out, all of the same classes.

    The code of a number is 4 (a + b) + the centre of its class, a and b drawn from 0..15 and the centre from 0..135; it
    stands for (code - 128) / 32.
    Raises: ConfigError if a number is out of range.

    >>> load(shape="1,4,4", num_devices=3, rows=2, test_rows=1).x.shape
    (7, 1, 4, 4)
    """
    sizes = _sizes(shape)
    num, width = num_devices * rows + test_rows, math.prod(sizes)
    for name, value, low, high in (
        ("classes", classes, 1, 10_000),
        ("num_devices", num_devices, 1, 10_000_000),
        ("rows", rows, 1, 1_000_000),
        ("test_rows", test_rows, 1, 1_000_000),
    ):
        if not low <= value <= high:
            raise ConfigError(f"blobs: {name} is {value}; it must lie in {low}..{high}")
    if num * width > _MAX_BYTES:
        raise ConfigError(f"blobs: {num} rows of {width} bytes are over {_MAX_BYTES} bytes; take fewer or smaller ones")
    key = rng.key(seed, 0, rng.SERVER, Use.SYNTHETIC)
    centre_CF = rng.integers(key.at(1), classes * width, 136).astype(np.uint8).reshape(classes, width)
    drawn = rng.integers(key.at(2), _TABLE + width, 256).astype(np.uint8)
    noise = np.lib.stride_tricks.sliding_window_view(4 * ((drawn >> 4) + (drawn & 15)), width)
    x, y = np.empty((num, width), np.uint8), np.empty(num, np.int64)
    for first in range(0, num, _BLOCK):
        own = rng.key(seed, 1 + first // _BLOCK, rng.SERVER, Use.SYNTHETIC)
        part = slice(first, min(first + _BLOCK, num))
        many = part.stop - first
        y[part] = rng.integers(own.at(1), many, classes)
        np.add(centre_CF[y[part]], noise[rng.integers(own.at(2), many, _TABLE)], out=x[part])
    device = np.repeat(np.arange(num_devices + 1), [rows] * num_devices + [test_rows])
    return Dataset(
        name=DESCRIPTION.name,
        x=x.reshape(num, *sizes),
        y=y,
        device=device,
        device_names=(*(f"device {place}" for place in range(num_devices)), "test rows"),
        held_out=device == num_devices,
        class_names=tuple(str(label) for label in range(classes)),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.name,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=num,
        levels=levels_of(_STEP, -128 * _STEP),
    )


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) > 3:
        raise ConfigError(f"blobs: the option shape is {text!r}; write one to three sizes such as 64 or 1,28,28")
    return tuple(int(part) for part in parts)
