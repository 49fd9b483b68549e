"""The device's float32 arithmetic in numpy, the same bits as device/src/mh_*f32.c: the slow, obvious twin.

Each sum runs over its index in the order that device/include/mh_f32.h gives, one product and one addition at a time;
what is done at once is done over outputs that don't depend on one another. All arrays are float32, of one example.

Shape letters: C channels, O of the output, I of the input; H rows, W columns, N numbers, R an adapter's rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from midhaul.net import Array

_ZERO, _ONE = np.float32(0), np.float32(1)


class Geometry(NamedTuple):
    """A window that slides over a map, as `mh_geometry`: input [ic, ih, iw], output [oc, oh, ow], kernel [kh, kw].

    Strides sh, sw; padding pt at the top and pl at the left; dilation dh, dw. Taps outside of the map are left out.
    """

    ic: int
    ih: int
    iw: int
    oc: int
    oh: int
    ow: int
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    pt: int = 0
    pl: int = 0
    dh: int = 1
    dw: int = 1

    def rows(self, kh: int) -> tuple[slice, slice]:
        """Gives the rows of the output that a tap reaches inside the map, and the input's rows that it reads there."""
        return _reach(self.oh, self.ih, self.sh, kh * self.dh - self.pt)

    def columns(self, kw: int) -> tuple[slice, slice]:
        """Gives the same for columns."""
        return _reach(self.ow, self.iw, self.sw, kw * self.dw - self.pl)


def exp(x: npt.ArrayLike) -> Array:
    """Gives e^x of each number; within 1 unit in the last place."""
    x = _array(x)
    with np.errstate(all="ignore"):
        safe = np.where((x > -104) & (x <= 89), x, _ZERO)
        turns = safe * np.float32(1.44269504)
        n = np.where(turns < 0, turns - np.float32(0.5), turns + np.float32(0.5)).astype(np.int32)
        whole = n.astype(np.float32)
        r = (safe - whole * np.float32(0.693359375)) - whole * np.float32(-2.12194440e-4)
        p = np.full_like(r, 1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * r + np.float32(c)
        p = (p * (r * r) + r) + _ONE
        half = np.trunc(n / 2).astype(np.int32)
        y = (p * _power_of_two(half)) * _power_of_two(n - half)
    y = np.where(x > 89, np.float32(np.inf), np.where(x <= -104, _ZERO, y))
    return _array(np.where(np.isnan(x), x, y))


def log(x: npt.ArrayLike) -> Array:
    """Gives the natural logarithm of each number; within 1 unit in the last place."""
    x = _array(x)
    with np.errstate(all="ignore"):
        tiny = (x > 0) & (x < np.float32(2.0**-126))
        usual = (x > 0) & np.isfinite(x)
        bits = np.where(usual, np.where(tiny, x * np.float32(8388608), x), _ONE).astype(np.float32).view(np.uint32)
        e = np.where(tiny, -23, 0) + (bits >> 23).astype(np.int32) - 126
        m = ((bits & 0x007FFFFF) | 0x3F000000).astype(np.uint32).view(np.float32)
        low = m < np.float32(0.707106781)
        e = np.where(low, e - 1, e)
        m = np.where(low, (m + m) - _ONE, m - _ONE)
        z = m * m
        p = np.full_like(m, 7.0376836292e-2)
        for c in _LOG:
            p = p * m + np.float32(c)
        whole = e.astype(np.float32)
        y = p * (m * z)
        y = y + whole * np.float32(-2.12194440e-4)
        y = y - np.float32(0.5) * z
        y = (m + y) + whole * np.float32(0.693359375)
    y = np.where(x == 0, np.float32(-np.inf), np.where(x < 0, np.float32(np.nan), y))
    return _array(np.where(usual | (x <= 0), y, x))


def dense(x: Array, w: Array, b: Array | None) -> Array:
    """Gives b + w x. Shapes: x [I], w [O, I], b [O] or None -> [O]."""
    start = np.zeros(len(w), np.float32) if b is None else b
    return _array(np.add.accumulate(np.concatenate([start[:, None], w * x], 1), 1)[:, -1])


def dense_input(g: Array, w: Array) -> Array:
    """Gives the gradient of the input. Shapes: g [O], w [O, I] -> [I]."""
    return _total(w * g[:, None], 0)


def dense_params(g: Array, x: Array) -> tuple[Array, Array]:
    """Gives what is added to the gradients of weight and bias. Shapes: g [O], x [I] -> [O, I], [O]."""
    return _array(g[:, None] * x), g


def conv(s: Geometry, x: Array, w: Array, b: Array | None) -> Array:
    """Gives a convolution. Shapes: x [I, H, W], w [O, I, kh, kw], b [O] or None -> [O, oh, ow]."""
    y = _start(s, b)
    for ic in range(s.ic):
        for kh in range(s.kh):
            for kw in range(s.kw):
                (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
                y[:, oh, ow] += w[:, ic, kh, kw][:, None, None] * x[ic, ih, iw]
    return y


def conv_input(s: Geometry, g: Array, w: Array) -> Array:
    """Gives the gradient of a convolution's input. Shapes: g [O, H, W], w [O, I, kh, kw] -> [I, H, W]."""
    dx = np.zeros((s.ic, s.ih, s.iw), np.float32)
    for oc in range(s.oc):
        for kh in range(s.kh):
            for kw in range(s.kw):
                (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
                dx[:, ih, iw] += w[oc, :, kh, kw][:, None, None] * g[oc, oh, ow]
    return dx


def conv_params(s: Geometry, g: Array, x: Array) -> tuple[Array, Array]:
    """Gives what is added to the gradients of weight and bias. Shapes: g [O, oh, ow], x [I, H, W] -> as w, b."""
    dw = np.zeros((s.oc, s.ic, s.kh, s.kw), np.float32)
    for kh in range(s.kh):
        for kw in range(s.kw):
            (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
            seen = x[:, ih, iw].reshape(s.ic, -1)
            for oc in range(s.oc):
                dw[oc, :, kh, kw] = _total(g[oc, oh, ow].reshape(1, -1) * seen, 1)
    return dw, _total(g.reshape(s.oc, -1), 1)


def depthwise(s: Geometry, x: Array, w: Array, b: Array | None) -> Array:
    """Gives a depthwise convolution. Shapes: x [I, H, W], w [O, 1, kh, kw], b [O] or None -> [O, H, W]."""
    y, times = _start(s, b), s.oc // s.ic
    for kh in range(s.kh):
        for kw in range(s.kw):
            (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
            y[:, oh, ow] += w[:, 0, kh, kw][:, None, None] * np.repeat(x[:, ih, iw], times, 0)
    return y


def depthwise_input(s: Geometry, g: Array, w: Array) -> Array:
    """Gives the gradient of a depthwise convolution's input. Shapes: g [O, H, W], w [O, 1, kh, kw] -> [I, H, W]."""
    dx, times = np.zeros((s.ic, s.ih, s.iw), np.float32), s.oc // s.ic
    for place in range(times):
        for kh in range(s.kh):
            for kw in range(s.kw):
                (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
                dx[:, ih, iw] += w[place::times, 0, kh, kw][:, None, None] * g[place::times, oh, ow]
    return dx


def depthwise_params(s: Geometry, g: Array, x: Array) -> tuple[Array, Array]:
    """Gives what is added to the gradients of weight and bias. Shapes: g [O, oh, ow], x [I, H, W] -> as w, b."""
    dw, wide = np.zeros((s.oc, 1, s.kh, s.kw), np.float32), np.repeat(x, s.oc // s.ic, 0)
    for kh in range(s.kh):
        for kw in range(s.kw):
            (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
            dw[:, 0, kh, kw] = _total((g[:, oh, ow] * wide[:, ih, iw]).reshape(s.oc, -1), 1)
    return dw, _total(g.reshape(s.oc, -1), 1)


def max_pool(s: Geometry, x: Array) -> Array:
    """Gives the largest number of each window. Shapes: [C, H, W] -> [C, oh, ow]."""
    return np.take_along_axis(x.reshape(s.ic, -1), _largest(s, x), 1).reshape(s.ic, s.oh, s.ow)


def max_pool_input(s: Geometry, g: Array, x: Array, into: Array | None = None) -> Array:
    """Gives the gradient of a max pool's input, added to `into`. Shapes: g [C, oh, ow], x and into [C, H, W]."""
    dx = (np.zeros_like(x) if into is None else into.copy()).reshape(s.ic, -1)
    places, flat = _largest(s, x), g.reshape(s.ic, -1)
    for c in range(s.ic):
        np.add.at(dx[c], places[c], flat[c])
    return dx.reshape(x.shape)


def average_pool(s: Geometry, x: Array) -> Array:
    """Gives the mean of each window's taps inside the map. Shapes: [C, H, W] -> [C, oh, ow]."""
    y = np.zeros((s.ic, s.oh, s.ow), np.float32)
    for kh in range(s.kh):
        for kw in range(s.kw):
            (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
            y[:, oh, ow] += x[:, ih, iw]
    return y * _shares(s)


def average_pool_input(s: Geometry, g: Array, into: Array | None = None) -> Array:
    """Gives the gradient of an average pool's input, added to `into`. Shapes: g [C, oh, ow], into [C, H, W]."""
    dx = np.zeros((s.ic, s.ih, s.iw), np.float32) if into is None else into.copy()
    share = g * _shares(s)
    for oh in range(s.oh):
        rows = [r for r in range(oh * s.sh - s.pt, oh * s.sh - s.pt + s.kh * s.dh, s.dh) if 0 <= r < s.ih]
        for ow in range(s.ow):
            first = ow * s.sw - s.pl
            columns = [c for c in range(first, first + s.kw * s.dw, s.dw) if 0 <= c < s.iw]
            dx[:, np.array(rows)[:, None], columns] += share[:, oh, ow][:, None, None]
    return dx


def clamp(x: Array, low: float, high: float) -> Array:
    """Gives each number moved into [low, high]; any shape."""
    y = np.where(x < np.float32(low), np.float32(low), x)
    return _array(np.where(y > np.float32(high), np.float32(high), y))


def clamp_grad(y: Array, g: Array, low: float, high: float) -> Array:
    """Gives g where low < y < high, else 0; y is what `clamp` gave."""
    return _array(np.where((y > np.float32(low)) & (y < np.float32(high)), g, _ZERO))


def group_norm(x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float) -> Array:
    """Gives the numbers of each group of channels with mean 0 and variance 1, then weighed. Shapes: x [C, ...]."""
    y = _centred(x, groups, eps)[0].reshape(len(x), -1)
    if weight is not None:
        y = y * weight[:, None]
    if bias is not None:
        y = y + bias[:, None]
    return _array(y).reshape(x.shape)


def group_norm_grad(x: Array, weight: Array | None, g: Array, groups: int, eps: float) -> tuple[Array, Array, Array]:
    """Gives the gradient of the input, and what is added to those of weight and bias. Shapes: x and g [C, ...]."""
    xhat, rstd = _centred(x, groups, eps)
    channels = g.reshape(len(x), -1)
    u = channels if weight is None else channels * weight[:, None]
    dweight, dbias = _total(channels * xhat.reshape(channels.shape), 1), _total(channels, 1)
    u = u.reshape(xhat.shape)
    n = np.float32(xhat.shape[1])
    slope, turn = _total(u, 1)[:, None] / n, _total(u * xhat, 1)[:, None] / n
    return _array(((u - slope) - xhat * turn) * rstd).reshape(x.shape), dweight, dbias


def lora(s: Geometry, x: Array, a: Array, b: Array, scale: float) -> Array:
    """Gives what an adapter adds to its layer's output. Shapes: x [I, H, W], a [R, I], b [O, R] -> [O, oh, ow]."""
    down, up = _adapter(s, len(a))
    return _array(np.float32(scale) * conv(up, conv(down, x, a[:, :, None, None], None), b[:, :, None, None], None))


def lora_grad(s: Geometry, g: Array, x: Array, a: Array, b: Array, scale: float) -> tuple[Array, Array, Array]:
    """Gives what an adapter adds to the gradients of its input, of a and of b. Shapes: as x, a, b."""
    down, up = _adapter(s, len(a))
    t = conv(down, x, a[:, :, None, None], None)
    db = np.float32(scale) * conv_params(up, g, t)[0][:, :, 0, 0]
    u = np.float32(scale) * conv_input(up, g, b[:, :, None, None])
    return conv_input(down, u, a[:, :, None, None]), conv_params(down, u, x)[0][:, :, 0, 0], _array(db)


def cross_entropy(logits: Array, y: int, scale: float) -> tuple[float, Array]:
    """Gives the loss of one row and its gradient times `scale`; both 0 where y < 0. Shapes: [N] -> [N]."""
    if y < 0:
        return 0.0, np.zeros_like(logits)
    e, total, top = _exponentials(logits, _ONE)
    g = (e * (_ONE / total) - _one_hot(y, len(logits))) * np.float32(scale)
    return float(log(total) - (logits[y] - top)), _array(g)


def mse(logits: Array, y: int, scale: float) -> tuple[float, Array]:
    """Gives the mean squared distance from the one-hot label and its gradient times `scale`; both 0 where y < 0."""
    n = np.float32(len(logits))
    d = np.zeros_like(logits) if y < 0 else logits - _one_hot(y, len(logits))
    return float(_total(d * d, 0) / n), _array(d * ((np.float32(2) / n) * np.float32(scale)))


def distillation(
    logits: Array, soft: Array, y: int, temperature: float, soft_weight: float, scale: float
) -> tuple[float, Array]:
    """Gives `models.losses.distillation` of one row and its gradient times `scale`. Shapes: [N] -> [N]."""
    part, t, rate = np.float32(soft_weight), np.float32(temperature), np.float32(scale)
    hard, g = cross_entropy(logits, y, float(rate * (_ONE - part)))
    factor = _ONE / t
    teacher, sum_t, top_t = _exponentials(soft, factor)
    student, sum_s, top_s = _exponentials(logits, factor)
    p = teacher * (_ONE / sum_t)
    gap = ((soft * factor - top_t) - log(sum_t)) - ((logits * factor - top_s) - log(sum_s))
    g = g + _array(student * (_ONE / sum_s) - p) * ((part * t) * rate)
    loss = (_ONE - part) * np.float32(hard) + (part * (t * t)) * _total(p * gap, 0)
    return float(loss), _array(g)


def mse_distillation(logits: Array, soft: Array, y: int, soft_weight: float, scale: float) -> tuple[float, Array]:
    """Gives the mse loss of one row mixed with the squared distance of the two models' logits, and its gradient."""
    part, rate, n = np.float32(soft_weight), np.float32(scale), np.float32(len(logits))
    hard, g = mse(logits, y, float(rate * (_ONE - part)))
    d = logits - soft
    g = g + d * ((np.float32(2) / n) * (rate * part))
    loss = (_ONE - part) * np.float32(hard) + part * (_total(d * d, 0) / n)
    return float(loss), _array(g)


def sgd(
    w: Array,
    slope: Array,
    velocity: Array | None,
    start: Array | None,
    lr: float,
    momentum: float = 0.0,
    decay: float = 0.0,
    mu: float = 0.0,
) -> tuple[Array, Array | None]:
    """Gives the weights and the velocities after one step down the slope; the order is that of `mh_sgd_f32`."""
    if np.float32(mu) and start is not None:
        slope = slope + np.float32(mu) * (w - start)
    if np.float32(decay):
        slope = slope + np.float32(decay) * w
    if np.float32(momentum) and velocity is not None:
        slope = velocity = _array(velocity * np.float32(momentum) + slope)
    return _array(w - np.float32(lr) * slope), velocity


_LOG = (
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def _array(x: npt.ArrayLike) -> Array:
    return np.asarray(x, np.float32)


def _total(parts: Array, axis: int) -> Array:
    """Gives the sum from 0 along an axis, one after the other; the last 0 turns a sum of -0s into the 0 that it is."""
    if parts.shape[axis] == 0:
        return _array(np.zeros(np.delete(parts.shape, axis), np.float32))
    return _array(np.take(np.add.accumulate(parts, axis), -1, axis) + _ZERO)


def _power_of_two(n: npt.NDArray[np.int32]) -> Array:
    return ((n + 127) << 23).astype(np.int32).view(np.float32)


def _reach(out: int, size: int, stride: int, offset: int) -> tuple[slice, slice]:
    first = max(0, -(offset // stride))
    last = max(first, min(out, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, last), slice(start, start + (last - first - 1) * stride + 1 if last > first else start, stride)


def _start(s: Geometry, b: Array | None) -> Array:
    start = np.zeros(s.oc, np.float32) if b is None else b
    return _array(np.broadcast_to(start[:, None, None], (s.oc, s.oh, s.ow))).copy()


def _largest(s: Geometry, x: Array) -> npt.NDArray[np.int64]:
    """Gives the place in its channel of the first of the largest numbers of each window. Shapes: -> [C, oh * ow]."""
    best = np.full((s.ic, s.oh, s.ow), -1, np.int64)
    top = np.zeros((s.ic, s.oh, s.ow), np.float32)
    for kh in range(s.kh):
        for kw in range(s.kw):
            (oh, ih), (ow, iw) = s.rows(kh), s.columns(kw)
            at = np.arange(s.ih * s.iw).reshape(s.ih, s.iw)[ih, iw]
            seen = x[:, ih, iw]
            wins = (best[:, oh, ow] < 0) | (seen > top[:, oh, ow])
            top[:, oh, ow] = np.where(wins, seen, top[:, oh, ow])
            best[:, oh, ow] = np.where(wins, at, best[:, oh, ow])
    return np.maximum(best, 0).reshape(s.ic, -1)


def _shares(s: Geometry) -> Array:
    """Gives 1 / the number of taps inside the map, for each window. Shapes: -> [oh, ow]."""
    rows, columns = np.zeros(s.oh, np.float32), np.zeros(s.ow, np.float32)
    for kh in range(s.kh):
        rows[s.rows(kh)[0]] += 1
    for kw in range(s.kw):
        columns[s.columns(kw)[0]] += 1
    return _array(_ONE / (rows[:, None] * columns))


def _centred(x: Array, groups: int, eps: float) -> tuple[Array, Array]:
    """Gives (x - mean) * rstd and rstd. Shapes: [C, ...] -> [groups, n], [groups, 1]."""
    flat = x.reshape(groups, -1)
    n = np.float32(flat.shape[1])
    d = flat - _total(flat, 1)[:, None] / n
    rstd = _ONE / np.sqrt(_total(d * d, 1)[:, None] / n + np.float32(eps))
    return _array(d * rstd), _array(rstd)


def _adapter(s: Geometry, rank: int) -> tuple[Geometry, Geometry]:
    """Gives the two 1x1 convolutions of an adapter: down to the rank, and up from it."""
    down = Geometry(s.ic, s.ih, s.iw, rank, s.oh, s.ow, sh=s.sh, sw=s.sw)
    return down, Geometry(rank, s.oh, s.ow, s.oc, s.oh, s.ow)


def _exponentials(x: Array, factor: np.float32) -> tuple[Array, Array, Array]:
    top = _array(x[np.argmax(x)] * factor)
    e = exp(x * factor - top)
    return e, _total(e, 0), top


def _one_hot(y: int, n: int) -> Array:
    return _array(np.arange(n) == y)
