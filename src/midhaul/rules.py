"""How a device learns from the rows of one step: each rule gives the slope that the step goes down.

`sgd`, the default: the gradient of the rows' loss. `maml`: the gradient, for the weights before an inner loop, of the
loss after it (MAML, ANIL, Meta-SGD; first-order MAML and Per-FedAvg). `difference`: the same for one inner step, its
second derivative by finite differences (Per-FedAvg HF). `moreau`: the gradient of the Moreau envelope (pFedMe).
`rates`: each gradient times its own learned rate (Meta-SGD while it adapts). This is the slow version that is obviously
right; `runtime/gradients.py` does the same for many devices side by side.

Sources: Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017,
algorithm 2 and section 5.2 (first order); Li, Zhou, Chen and Li, "Meta-SGD", 2017, algorithm 1; Raghu, Raghu, Bengio
and Vinyals, "Rapid learning or feature reuse?", ICLR 2020, section 4 (ANIL); Fallah, Mokhtari and Ozdaglar,
"Personalized federated learning with theoretical guarantees", NeurIPS 2020, algorithm 1 and section 5; Dinh, Tran and
Nguyen, "Personalized federated learning with Moreau envelopes", NeurIPS 2020, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from midhaul.errors import EngineError, nearest
from midhaul.message import Settings
from midhaul.models.rates import MODEL, RATES
from midhaul.program import Indices
from midhaul.tree import Tree

Loss = Callable[[Tree, Indices], Tensor]
Rule = Callable[[Loss, Tree, tuple[Indices, ...], tuple[str, ...], Settings], tuple[Tree, Tensor]]


@dataclass(frozen=True)
class Cost:
    """What a rule takes of a device beside plain SGD.

    `passes`: forward and backward passes for each row of a step. `copies`: tensors as large as the trained weights that
    are kept beside the weights and the sum of gradients. `tangents`: activations are kept twice, for a second
    derivative.
    """

    passes: float = 1.0
    copies: int = 0
    tangents: bool = False


PLAIN = Cost()


def name_of(settings: Settings) -> str:
    """Gives the rule that a message asks for. Raises: EngineError for one that there isn't."""
    name = str(settings.get("rule", "sgd"))
    if name not in RULES:
        raise EngineError(f"there is no rule {name!r} to learn by{nearest(name, RULES)}")
    return name


def parts(rows: Indices, settings: Settings) -> tuple[Indices, ...]:
    """Gives the rows of a step as its rule uses them: all together, or the support and the query.

    `support` is the number of rows of the support, or below 1 their share; the rest is the query. With 0, and where
    there is a single row, all are both. Where there are no more rows than that, half of them are the support. With all
    rows in a step (`batch` 0) the support are the device's first rows, so that who deals the rows can say which.

    >>> parts(np.arange(5), {"rule": "maml", "support": 2})
    (array([0, 1]), array([2, 3, 4]))
    """
    if name_of(settings) not in ("maml", "difference"):
        return (rows,)
    wanted, num = float(settings.get("support", 0.0)), len(rows)
    size = max(round(wanted * num), 1) if 0.0 < wanted < 1.0 else round(wanted)
    size = size if size < num else num // 2
    if not size:
        return rows, rows
    ordered = rows if int(settings.get("batch", 0)) else np.sort(rows)
    return ordered[:size], ordered[size:]


def inner_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Gives the names that an inner loop changes: those of a slice less the learning rates."""
    return tuple(name for name in names if not name.startswith(RATES))


def rate(name: str, weights: Tree, settings: Settings) -> Tensor | float:
    """Gives the learning rate of a parameter in the inner loop: its own where the tree has one (Meta-SGD)."""
    own = RATES + name.removeprefix(MODEL)
    return weights[own] if own in weights and name.startswith(MODEL) else float(settings["inner_lr"])


def cost(settings: Settings) -> Cost:
    """Gives what a rule takes of a device. `order` 2 takes a gradient and a product with the Hessian a step, which is
    two more passes, and keeps the weights of each inner step and the vector that is pulled back through them.
    """
    if settings.get("seeds"):  # two forward passes of the three that a forward and a backward pass cost
        return Cost(2.0 / 3.0)
    rule, steps = name_of(settings), int(settings.get("inner_steps", 1))
    if rule in ("sgd", "rates"):
        return PLAIN
    wanted = float(settings.get("support", 0.0))
    batch = int(settings.get("batch", 0))
    share = wanted if wanted < 1.0 else min(wanted / batch, 1.0) if batch else 1.0
    inner, query = (share, 1.0 - share) if share else (1.0, 1.0)
    if rule == "maml" and int(settings.get("order", 1)) == 2:
        return Cost(3.0 * steps * inner + query, copies=1 + steps, tangents=True)
    return {
        "maml": Cost(steps * inner + query, copies=1),
        "difference": Cost(3.0 * inner + query, copies=2),
        "moreau": Cost(float(steps), copies=1),
    }[rule]


def _sgd(
    loss: Loss, weights: Tree, rows: tuple[Indices, ...], inner: tuple[str, ...], settings: Settings
) -> tuple[Tree, Tensor]:
    leaves = _leaves(weights)
    value = loss(leaves, rows[0])
    return _gradient(value, leaves), value


def _rates(
    loss: Loss, weights: Tree, rows: tuple[Indices, ...], inner: tuple[str, ...], settings: Settings
) -> tuple[Tree, Tensor]:
    slopes, value = _sgd(loss, weights, rows, inner, settings)
    return {name: slope * rate(name, weights, settings) for name, slope in slopes.items()}, value


def _maml(
    loss: Loss, weights: Tree, rows: tuple[Indices, ...], inner: tuple[str, ...], settings: Settings
) -> tuple[Tree, Tensor]:
    support, query = rows
    exact = int(settings.get("order", 1)) == 2
    leaves = _leaves(weights)
    now = leaves
    for _ in range(int(settings.get("inner_steps", 1))):
        points = [now[name] for name in inner]
        slopes = torch.autograd.grad(loss(now, support), points, create_graph=exact)
        moved = {n: now[n] - rate(n, leaves, settings) * slope for n, slope in zip(inner, slopes, strict=True)}
        now = {**now, **moved} if exact else _leaves({**now, **moved})
    value = loss(now, query)
    return _gradient(value, leaves if exact else now), value


def _difference(
    loss: Loss, weights: Tree, rows: tuple[Indices, ...], inner: tuple[str, ...], settings: Settings
) -> tuple[Tree, Tensor]:
    """The batch of the second derivative is the support, so that this is MAML's gradient as `noise` goes to 0."""
    direction, value = _maml(loss, weights, rows, inner, {**settings, "order": 1, "inner_steps": 1})
    small = float(settings["noise"])
    ends = []
    for sign in (small, -small):
        leaves = _leaves({name: weight + sign * direction[name] for name, weight in weights.items()})
        ends.append(_gradient(loss(leaves, rows[0]), leaves))
    bend = {name: (up - ends[1][name]) / (2.0 * small) for name, up in ends[0].items()}
    return {name: slope - float(settings["inner_lr"]) * bend[name] for name, slope in direction.items()}, value


def _moreau(
    loss: Loss, weights: Tree, rows: tuple[Indices, ...], inner: tuple[str, ...], settings: Settings
) -> tuple[Tree, Tensor]:
    """Follows the personal model's distance from the shared one, which a float holds better than their difference."""
    pull, size = float(settings["proximal_mu"]), float(settings["inner_lr"])
    away = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    first: Tensor | None = None
    for _ in range(int(settings["inner_steps"])):
        leaves = _leaves({name: weight + away[name] for name, weight in weights.items()})
        value = loss(leaves, rows[0])
        first = value if first is None else first
        slopes = _gradient(value, leaves)
        away = {name: far - size * (slopes[name] + pull * far) for name, far in away.items()}
    if first is None:
        raise EngineError("the rule 'moreau' was asked for no inner step; set scheme.inner_steps to at least 1")
    return {name: -pull * far for name, far in away.items()}, first


def _leaves(weights: Tree) -> Tree:
    return {name: value.detach().requires_grad_(True) for name, value in weights.items()}


def _gradient(value: Tensor, leaves: Tree) -> Tree:
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), found, strict=True)
    }


RULES: dict[str, Rule] = {
    "sgd": _sgd,
    "rates": _rates,
    "maml": _maml,
    "difference": _difference,
    "moreau": _moreau,
}
