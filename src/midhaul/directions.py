"""A model moved along directions that are only seeds: a full model that travels as a few thousand numbers.

A direction is a draw of standard normal numbers for every trained parameter, from the run's seed and its own number.
Losses are taken in double precision, since their difference loses half of a float's digits.

Source: Qin, Chen, Qian, Ding, Li and Deng, "Federated full-parameter tuning of billion-sized language models with
communication cost under 18 kilobytes", ICML 2024, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from midhaul import rng
from midhaul.program import Indices
from midhaul.tree import Tree

Loss = Callable[[Tree, Indices], Tensor]


def direction(seed: int, number: int, weights: Tree) -> Tree:
    """Gives the direction of that number, a tensor for each of the weights, in double precision."""
    sizes = [value.numel() for value in weights.values()]
    drawn = rng.normal(rng.key(seed, 0, rng.SERVER, rng.Use.DIRECTION).at(number), sum(sizes))
    parts = torch.split(torch.from_numpy(drawn), sizes)
    pairs = zip(weights.items(), parts, strict=True)
    return {name: part.reshape(value.shape).to(value.device) for (name, value), part in pairs}


def walked(start: Tree, slopes: Tensor, lr: float, seed: int, like: Tree | None = None) -> Tree:
    """Gives start - lr x sum_j slope_j direction_j, in double precision.

    Shapes: slopes [K]. Where `start` is of many devices, [D, ...], `like` is the tree of one.
    """
    now, one, slopes = {name: value.double() for name, value in start.items()}, like or start, slopes.cpu()
    for number in slopes.nonzero()[:, 0].tolist():
        step = lr * float(slopes[number])
        now = {name: now[name] - step * part for name, part in direction(seed, number, one).items()}
    return now


def picked(key: rng.Key, num_steps: int, num_seeds: int) -> list[int]:
    """Gives which direction each of a device's steps of a round looks along. `key` names seed, round and device."""
    own = rng.key(key.seed, key.round, key.device, rng.Use.DIRECTION)
    return [int(number) for number in rng.integers(own, num_steps, num_seeds)]


@torch.no_grad()
def walk(
    loss: Loss, start: Tree, steps: list[Indices], num_seeds: int, small: float, lr: float, key: rng.Key
) -> tuple[Tree, Tensor, float]:
    """Goes a device's steps of a round: the slope along a direction by a central difference, and a step down it.

    Gives the weights after it, the slopes summed by direction [K] float32, and the mean loss of the rows seen.
    """
    now, slopes, total, seen = start, np.zeros(num_seeds), 0.0, 0
    for rows, number in zip(steps, picked(key, len(steps), num_seeds), strict=True):
        way = direction(key.seed, number, now)
        up, down = (float(loss({n: now[n] + sign * way[n] for n in now}, rows)) for sign in (small, -small))
        slope = (up - down) / (2.0 * small)
        now = {name: value - lr * slope * way[name] for name, value in now.items()}
        slopes[number] += slope
        total, seen = total + 0.5 * (up + down) * len(rows), seen + len(rows)
    return now, torch.from_numpy(slopes).float(), total / max(seen, 1)
