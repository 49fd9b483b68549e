"""The device's int8 arithmetic in numpy, from what a blob holds: the same integers as device/src/mh_s8*.c.

Only the plain packing is read; it is the same numbers as the others. Values are HWC, of one example; the arithmetic is
that of device/include/mh_s8.h.

Shape letters: C channels, O of the output, I of the input; H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.devices.arithmetic import Geometry
from midhaul.net import Array, Bytes

Long = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Range:
    """The zero points of an int8 layer's input and output, and the limits of its output, in stored numbers."""

    in_zero: int
    out_zero: int
    low: int
    high: int


def quantise(x_CHW: Array, scale: float, limits: Range) -> Bytes:
    """Gives the stored numbers [H, W, C] of real ones: x / scale, rounded half to even, plus the zero point."""
    with np.errstate(over="ignore"):
        scaled = x_CHW * (np.float32(1) / np.float32(scale))
    near = np.rint(np.clip(np.where(np.isnan(scaled), np.float32(-1024), scaled), -1024, 1024)).astype(np.int64)
    return _clipped(near + limits.out_zero, limits).transpose(1, 2, 0)


def dequantise(x_HWC: Bytes, scale: float, zero_point: int) -> Array:
    """Gives the real numbers [C, H, W] of stored ones."""
    real = (x_HWC.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
    return np.ascontiguousarray(real.transpose(2, 0, 1))


def dense(x: Bytes, w: Bytes, table: npt.NDArray[np.int32], limits: Range) -> Bytes:
    """Gives a dense layer's output. Shapes: x any, w [O, I], table [O, 3] (bias, multiplier, shift) -> [1, 1, O]."""
    return _requantised(w.astype(np.int64) @ x.reshape(-1).astype(np.int64), table, limits)[None, None]


def conv(s: Geometry, x: Bytes, w: Bytes, table: npt.NDArray[np.int32], limits: Range) -> Bytes:
    """Gives a convolution. Shapes: x [H, W, I], w [O, kh, kw, I], table [O, 3] -> [oh, ow, O]."""
    total = np.zeros((s.oh, s.ow, s.oc), np.int64)
    for kh in range(s.kh):
        for kw in range(s.kw):
            total += _tap(s, x, kh, kw, limits.in_zero) @ w[:, kh, kw].astype(np.int64).T
    return _requantised(total, table, limits)


def depthwise(s: Geometry, x: Bytes, w: Bytes, table: npt.NDArray[np.int32], limits: Range) -> Bytes:
    """Gives a depthwise convolution. Shapes: x [H, W, I], w [O, kh, kw], table [O, 3] -> [oh, ow, O]."""
    total = np.zeros((s.oh, s.ow, s.oc), np.int64)
    for kh in range(s.kh):
        for kw in range(s.kw):
            total += np.repeat(_tap(s, x, kh, kw, limits.in_zero), s.oc // s.ic, 2) * w[:, kh, kw].astype(np.int64)
    return _requantised(total, table, limits)


def max_pool(s: Geometry, x: Bytes, limits: Range) -> Bytes:
    """Gives the largest number of each window. Shapes: [H, W, C] -> [oh, ow, C]."""
    taps = [_tap(s, x, kh, kw, -128) for kh in range(s.kh) for kw in range(s.kw)]
    return _clipped(np.max(taps, 0), limits)


def average_pool(s: Geometry, x: Bytes, limits: Range) -> Bytes:
    """Gives the mean of each window's taps inside the map, rounded half away from zero. Shapes: as `max_pool`."""
    taps = [(kh, kw) for kh in range(s.kh) for kw in range(s.kw)]
    total = np.sum([_tap(s, x, *tap, 0) for tap in taps], 0)
    count = np.maximum(np.sum([_tap(s, np.ones_like(x), *tap, 0) for tap in taps], 0), 1)
    return _clipped(np.sign(total) * ((np.abs(total) + count // 2) // count), limits)


def add(a: Bytes, b: Bytes, table: npt.NDArray[np.int32], limits: Range) -> Bytes:
    """Gives a + b in the output's scale; table: bias, the two multipliers, shift."""
    bias, by_a, by_b, shift = (int(v) for v in table)
    total = a.astype(np.int64) * by_a + b.astype(np.int64) * by_b + bias
    return _clipped((total >> shift) + limits.out_zero, limits)


def _tap(s: Geometry, x: npt.NDArray[Any], kh: int, kw: int, padding: int) -> Long:
    """Gives what a tap reads at every place of the output. Shapes: [H, W, C] -> [oh, ow, C]."""
    seen = np.full((s.oh, s.ow, x.shape[2]), padding, np.int64)
    (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
    seen[oh, ow] = x[ih, iw]
    return seen


def _requantised(total: Long, table: npt.NDArray[np.int32], limits: Range) -> Bytes:
    bias, multiplier, shift = (table[:, i].astype(np.int64) for i in range(3))
    wide = ((total + bias) << shift) * multiplier
    return _clipped(((wide + (1 << 31)) >> 32) + limits.out_zero, limits)


def _clipped(whole: Long, limits: Range) -> Bytes:
    return np.clip(whole, limits.low, limits.high).astype(np.int8)
