"""The rules of `midhaul.rules` as pure functions that torch can map over devices: the stacked engine's half.

A loss is `(weights, part) -> (mean loss, statistics renewed)`; a part is the rows that a rule puts together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad, grad_and_value

from midhaul import rules
from midhaul.errors import EngineError
from midhaul.message import Settings
from midhaul.tree import Tree

Loss = Callable[[Tree, Any], tuple[Tensor, Tree]]
Found = tuple[Tree, tuple[Tensor, Tree]]
Slope = Callable[[Loss, Tree, tuple[Any, ...]], Found]


def of(settings: Settings, inner: tuple[str, ...]) -> Slope:
    """Gives the rule that a message asks for; `inner` are the names that its inner loop changes.

    A rule takes a loss, the weights and the parts of a step, and gives the slopes, the loss and the statistics.
    """

    def sgd(loss: Loss, weights: Tree, parts: tuple[Any, ...]) -> Found:
        found: Found = grad_and_value(loss, has_aux=True)(weights, parts[0])
        return found

    def rates(loss: Loss, weights: Tree, parts: tuple[Any, ...]) -> Found:
        slopes, value = sgd(loss, weights, parts)
        return {name: slope * rules.rate(name, weights, settings) for name, slope in slopes.items()}, value

    def adapted(loss: Loss, weights: Tree, part: Any) -> Tree:
        now = {name: weights[name] for name in inner}
        for _ in range(int(settings.get("inner_steps", 1))):
            slopes, _ = grad(lambda inside: loss({**weights, **inside}, part), has_aux=True)(now)
            now = {name: value - rules.rate(name, weights, settings) * slopes[name] for name, value in now.items()}
        return {**weights, **now}

    def maml(loss: Loss, weights: Tree, parts: tuple[Any, ...]) -> Found:
        support, query = parts
        if int(settings.get("order", 1)) == 2:
            return sgd(lambda start, part: loss(adapted(loss, start, support), part), weights, (query,))
        return sgd(loss, adapted(loss, weights, support), (query,))

    def difference(loss: Loss, weights: Tree, parts: tuple[Any, ...]) -> Found:
        support, query = parts
        small, size = float(settings["noise"]), float(settings["inner_lr"])
        slopes, _ = sgd(loss, weights, (support,))
        near = {n: weight - size * slopes[n] if n in inner else weight for n, weight in weights.items()}
        direction, value = sgd(loss, near, (query,))
        up, down = (
            sgd(loss, {n: weight + sign * direction[n] for n, weight in weights.items()}, (support,))[0]
            for sign in (small, -small)
        )
        return {n: slope - size * ((up[n] - down[n]) / (2.0 * small)) for n, slope in direction.items()}, value

    def moreau(loss: Loss, weights: Tree, parts: tuple[Any, ...]) -> Found:
        pull, size, steps = (
            float(settings["proximal_mu"]),
            float(settings["inner_lr"]),
            int(settings["inner_steps"]),
        )
        if not steps:
            raise EngineError("the rule 'moreau' was asked for no inner step; set scheme.inner_steps to at least 1")
        slopes, first = sgd(loss, weights, parts)
        away = {name: -size * slope for name, slope in slopes.items()}
        for _ in range(steps - 1):
            slopes, _ = sgd(loss, {name: weight + away[name] for name, weight in weights.items()}, parts)
            away = {name: far - size * (slopes[name] + pull * far) for name, far in away.items()}
        return {name: -pull * far for name, far in away.items()}, first

    known: dict[str, Slope] = {
        "sgd": sgd,
        "rates": rates,
        "maml": maml,
        "difference": difference,
        "moreau": moreau,
    }
    return known[rules.name_of(settings)]
