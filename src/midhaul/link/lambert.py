"""What an allocation of bandwidth inverts: Lambert's W where it has all of its digits, and rising functions.

Shape letters: K devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_STEPS = 100  # of a search, which ends sooner where it is at the last bits
_SERIES = 1e-2  # below this (x - 1) e^x + 1 is taken by its series, as its terms cancel


def phi(x: Array) -> Array:
    """Gives (x - 1) e^x + 1 for x >= 0, to the last digits also near 0, where it is x^2 / 2. Shapes: [K] -> [K]."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        far = x * np.exp(x) - np.expm1(x)
        near = x * x * (0.5 + x * (1.0 / 3.0 + x * (0.125 + x * (1.0 / 30.0 + x * (1.0 / 144.0 + x / 840.0)))))
    return np.where(x < _SERIES, near, np.where(np.isnan(far), np.inf, far))


def phi_inverse(q: Array) -> Array:
    """Gives the x >= 0 with (x - 1) e^x + 1 = q: 1 + W((q - 1) / e). Shapes: [K] -> [K].

    Near its branch point -1 / e, W has half of its digits at best; the start is then its series there, and steps of
    Newton's method on ln phi give the rest.
    """
    from scipy.special import lambertw  # here alone: a run without a shared band need not wait for it

    q = np.asarray(q, np.float64)
    root = np.sqrt(2.0 * np.maximum(q, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(q < 1e-3, root * (1.0 - root / 3.0), 1.0 + lambertw((q - 1.0) / math.e).real)
        for _ in range(4):
            value = phi(x)
            x = np.where(q > 0.0, x - value * np.log(value / q) / (x * np.exp(x)), 0.0)
    return np.asarray(x)


def snr_of_rate(y: Array) -> Array:
    """Gives the s > 0 with ln(1 + s) / s = y for 0 < y < 1; infinite at 0, 0 from 1 on. Shapes: [K] -> [K].

    It is -W_-1(-y e^-y) / y - 1, and near the branch point what Newton's method makes of 2 (1 - y).
    """
    from scipy.special import lambertw

    y = np.asarray(y, np.float64)
    inner = np.clip(y, 1e-300, 1.0 - 1e-16)
    with np.errstate(over="ignore", invalid="ignore"):
        far = -lambertw(-inner * np.exp(-inner), -1).real / inner - 1.0
        s = np.where(inner > 0.999, 2.0 * (1.0 - inner), far)
        for _ in range(3):
            small = s < 1e-4
            log = np.where(small, 1.0 - s * (0.5 - s * (1.0 / 3.0 - s / 4.0)), np.log1p(s) / s)
            slope = np.where(small, -0.5 + 2.0 * s / 3.0, (1.0 / (1.0 + s) - log) / s)
            s = np.maximum(s - (log - inner) / slope, 1e-300)
    return np.where(y >= 1.0, 0.0, np.where(y <= 0.0, np.inf, s))


def slope_of_snr(s: Array) -> Array:
    """Gives s^2 (ln(1 + s) - s / (1 + s)) / ln(1 + s)^2: what 1 / r falls by with the bandwidth, at a full power."""
    with np.errstate(over="ignore", invalid="ignore"):
        log = np.log1p(s)
        near = s * s * (0.5 - s * (2.0 / 3.0 - s * (0.75 - s * 0.8)))
        return np.asarray(s * s * np.where(s < 1e-3, near, log - s / (1.0 + s)) / (log * log))


def falling(function: Callable[[Array], Array], target: Array) -> Array:
    """Gives the x > 0 with function(x) = target, for a falling function. Shapes: [K] -> [K]."""
    return rising(lambda x: 1.0 / function(x), 1.0 / target)


def rising(function: Callable[[Array], Array], target: Array, high: float = 6.5) -> Array:
    """Gives the x > 0 with function(x) = target, for a rising one: Newton's steps on the logarithms, in a bracket.

    `high` bounds ln x: e^6.5 is as far as e^x can be taken.
    """
    target = np.asarray(target, np.float64)
    below, above = np.full(target.shape, -80.0), np.full(target.shape, high)
    z = np.zeros(target.shape)
    wanted = np.log(target)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for _ in range(_STEPS):
            value = np.log(function(np.exp(z))) - wanted
            beside = np.log(function(np.exp(z + 1e-6))) - wanted
            below, above = np.where(value < 0.0, z, below), np.where(value < 0.0, above, z)
            step = z - value * 1e-6 / (beside - value)
            after = np.where((step > below) & (step < above), step, 0.5 * (below + above))
            done = bool((np.abs(after - z) <= 1e-14 * np.maximum(1.0, np.abs(z))).all())
            z = after
            if done:
                break
    return np.exp(z)
