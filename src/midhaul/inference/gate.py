"""When is a model sure? A score in [0, 1) from its logits; at or above a threshold its answer stands.

A score is never below 0 and never reaches 1, so that at threshold 0 a model is always sure and at threshold 1 never.

Shape letters: N queries, C classes, F features.
Sources: entropy: Teerapittayanon, McDanel and Kung, "BranchyNet: fast inference via early exiting from deep neural
networks", ICPR 2016, algorithm 1. Largest probability as a cascade's "I don't know": Wang, Luo, Crankshaw, Tumanov, Yu
and Gonzalez, "IDK cascades: fast deep learning by learning not to overthink", UAI 2018. Learned: Moothedath, Champati
and Gross, "Online algorithms for hierarchical inference in deep learning applications at the edge", 2023, predicts what
the tiny model gets wrong; here it is what the large one would get right instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Gate = Callable[[Tensor], Floats]

GATES = ("probability", "entropy", "margin", "learned")
_BELOW_ONE = float(np.nextafter(1.0, 0.0))
_STEPS = 50


def probability(logits: Tensor) -> Floats:
    """Gives the largest probability. Shapes: [N, C] -> [N].

    >>> probability(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).round(3)
    array([0.5, 1. ])
    """
    return _score(_chances(logits).max(1))


def entropy(logits: Tensor) -> Floats:
    """Gives 1 less the entropy of the probabilities over the most that C classes can have. Shapes: [N, C] -> [N].

    >>> entropy(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).round(3)
    array([0., 1.])
    """
    p = _chances(logits)
    nats = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    return _score(1.0 - nats / np.log(max(p.shape[1], 2)))


def margin(logits: Tensor) -> Floats:
    """Gives the largest probability less the second. Shapes: [N, C] -> [N].

    >>> margin(torch.log(torch.tensor([[0.6, 0.3, 0.1]]))).round(3)
    array([0.3])
    """
    p = np.sort(_chances(logits), axis=1)
    return _score(p[:, -1] - p[:, -2] if p.shape[1] > 1 else p[:, -1])


def features(logits: Tensor) -> Floats:
    """Gives what the learned gate looks at: the three scores, the gap of the two largest logits, and the largest.

    Shapes: [N, C] -> [N, 5].
    """
    ordered = np.sort(logits.detach().double().numpy(), axis=1)
    gap = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else np.zeros(len(ordered))
    return np.stack([probability(logits), entropy(logits), margin(logits), gap, ordered[:, -1]], axis=1)


@dataclass(frozen=True)
class Learned:
    """A logistic regression on `features`: the chance that sending a query up would not help.

    Shapes: centre, spread, weights [F]; a device needs these 3 F + 1 numbers.
    """

    centre: Floats
    spread: Floats
    weights: Floats
    bias: float

    def __call__(self, logits: Tensor) -> Floats:
        """Gives the score of each query. Shapes: [N, C] -> [N]."""
        z = (features(logits) - self.centre) / self.spread @ self.weights + self.bias
        return _score(0.5 * (1.0 + np.tanh(0.5 * z)))


def fit(logits: Tensor, keep: Bools, ridge: float = 1.0) -> Learned:
    """Fits the learned gate by Newton's method on the log-likelihood less ridge / 2 times the squared weights.

    `keep` says of which queries the answer may stand: it is right, or the next model's is wrong too. The ridge holds
    the weights finite where all queries are alike. Shapes: logits [N, C], keep [N].
    """
    raw = features(logits)
    centre, spread = raw.mean(0), np.maximum(raw.std(0), 1e-6)
    design = np.concatenate([(raw - centre) / spread, np.ones((len(raw), 1))], axis=1)
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 0.5 * (1.0 + np.tanh(0.5 * (design @ weights)))
        slope = design.T @ (keep - chance) - ridge * weights
        curve = (design * (chance * (1.0 - chance))[:, None]).T @ design + ridge * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        # A step that is too long for the quadratic picture is cut; the problem is convex, so this gets there.
        weights = weights + step * min(1.0, 2.0 / max(float(np.linalg.norm(step)), 1e-12))
        if float(np.abs(step).max()) < 1e-10:
            break
    return Learned(centre, spread, weights[:-1], float(weights[-1]))


def build(name: str, logits: Tensor, keep: Bools) -> Gate:
    """Gives a gate by name; the learned one is fitted on these held-out rows."""
    fixed: dict[str, Gate] = {"probability": probability, "entropy": entropy, "margin": margin}
    return fixed[name] if name in fixed else fit(logits, keep)


def _chances(logits: Tensor) -> Floats:
    chances: Floats = torch.softmax(logits.detach().double(), dim=1).numpy()
    return chances


def _score(values: Floats) -> Floats:
    return np.clip(values, 0.0, _BELOW_ONE)
