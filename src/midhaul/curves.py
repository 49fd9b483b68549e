"""Where a learning curve goes: a power law through the accuracies seen so far.

Source: the form a - b n^-c is `pow3` of Domhan, Springenberg and Hutter, "Speeding up automatic hyperparameter
optimization of deep neural networks by extrapolation of learning curves", IJCAI 2015, table 1 (from memory), fitted
here by least squares alone, without their ensemble of forms and without their posterior.

Limits: what is said of rounds far beyond those seen is a guess; `Curve.seen` tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEW = 4  # a law of three numbers says nothing of fewer points


@dataclass(frozen=True)
class Curve:
    """Accuracies after rounds 1, 2, ..., and the law through them: top - fall * n ** -speed."""

    seen: tuple[float, ...]
    top: float
    fall: float
    speed: float

    def best(self, rounds: int) -> float:
        """Gives the best accuracy until a round: seen, or where it lies ahead by the law, never below what was seen."""
        most = max(self.seen[:rounds])
        return most if rounds <= len(self.seen) else max(most, self.top - self.fall * rounds**-self.speed)

    def first(self, accuracy: float, most: int) -> int | None:
        """Gives the first round that is as accurate, of `most`; None if none is, or is expected to be."""
        for number, value in enumerate(self.seen, 1):
            if value >= accuracy:
                return number if number <= most else None
        if self.top <= accuracy or self.fall <= 0.0:
            return None
        ahead = math.log(self.fall / (self.top - accuracy)) / self.speed
        if ahead > math.log(max(most, 1)):
            return None
        number = max(len(self.seen) + 1, math.ceil(math.exp(ahead)))
        return number if number <= most else None


def curve(seen: Sequence[float]) -> Curve:
    """Fits the law. Shapes: seen [n], accuracies from 0 to 1 after each round, n at least 1.

    With fewer than four points nothing is expected beyond the best of them.
    """
    points = tuple(float(value) for value in seen)
    flat = Curve(points, max(points), 0.0, 1.0)
    if len(points) < _FEW or max(points) == min(points):
        return flat
    from scipy.optimize import curve_fit

    rounds, values = np.arange(1.0, len(points) + 1.0), np.asarray(points)

    def law(n: np.ndarray, top: float, fall: float, speed: float) -> np.ndarray:
        return np.asarray(top - fall * n**-speed)

    start = (min(1.0, values.max() + 0.01), max(values.max() - values[0], 0.01), 0.7)
    try:
        (top, fall, speed), _ = curve_fit(
            law, rounds, values, start, bounds=((0.0, 0.0, 0.1), (1.0, 1.0, 3.0)), sigma=rounds**-0.5
        )
    except RuntimeError:
        return flat
    return Curve(points, float(top), float(fall), float(speed))
