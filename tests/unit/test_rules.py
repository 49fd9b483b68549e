"""How a device learns, on a model of one weight whose every number can be checked by hand, and against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midhaul import budget, ops, rng, rules
from midhaul.devices import profiles
from midhaul.errors import EngineError
from midhaul.message import Message, Op
from midhaul.program import Indices, Population, Program
from midhaul.runtime import gradients
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.tree import Tree

KEY = rng.key(0, 1, 0, rng.Use.BATCH)
PLAIN: dict[str, Any] = {"lr": 1.0, "batch": 0, "loss": "mse", "train": "whole", "send": "whole"}
MAML: dict[str, Any] = {
    **PLAIN,
    "rule": "maml",
    "inner_train": "whole",
    "inner_lr": 0.1,
    "inner_steps": 1,
    "support": 1,
}


class Scale(nn.Module):
    """Logits (w x, 0): two classes, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.w, torch.zeros_like(x)], dim=1)


def slope(settings: dict[str, Any]) -> float:
    """Gives how far one step of rate 1 goes from w = 0.3, on both engines: rows x = 2 and x = 1, both of class 0."""
    x, y = torch.tensor([[2.0], [1.0]]), torch.tensor([0, 0])
    program = Program(Scale(), (1,))
    population = Population(x, y, (np.arange(2),), (np.arange(2),), (), True)
    ends = [
        engine.exchange(Message(Op.FIT, program.initial, settings=settings), key=KEY).tree["w"]
        for engine in (Loop(program, population), Stacked(program, population))
    ]
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    return 0.3 - ends[0].item()


# The loss of a row is (w x - 1)^2 / 2: slope x (w x - 1), second derivative x^2. The support is the row x = 2: its
# slope at 0.3 is -0.8, so the inner loop with rate 0.1 ends at 0.38, where the slope of the query, x = 1, is -0.62.


def test_first_order_maml_by_hand() -> None:
    assert slope(MAML) == pytest.approx(-0.62)


def test_maml_by_hand() -> None:
    """The inner step's own derivative is 1 - 0.1 * 4."""
    assert slope({**MAML, "order": 2}) == pytest.approx(0.6 * -0.62)


def test_finite_differences_are_exact_where_the_loss_is_a_parabola() -> None:
    assert slope({**MAML, "rule": "difference", "noise": 0.1}) == pytest.approx(0.6 * -0.62, abs=1e-5)


def test_the_moreau_envelope_by_hand() -> None:
    """Both rows: slope -1.15 / 2 at 0.3 twice over. One inner step of 0.05 goes 0.05 * 0.75 away, the pull is 15."""
    first = (-0.8 - 0.7) / 2
    moreau = {**PLAIN, "rule": "moreau", "inner_lr": 0.05, "proximal_mu": 15.0}
    away = -0.05 * first
    assert slope({**moreau, "inner_steps": 1}) == pytest.approx(-15.0 * away)
    away -= 0.05 * (first + 2.5 * away + 15.0 * away)
    assert slope({**moreau, "inner_steps": 2}) == pytest.approx(-15.0 * away)
    # In the limit the personal weight solves 2.5 d - 0.75 + 15 d = 0.
    assert slope({**moreau, "inner_steps": 200}) == pytest.approx(-15.0 * 0.75 / 17.5)
    with pytest.raises(EngineError, match="inner_steps"):
        slope({**moreau, "inner_steps": 0})


def test_without_an_inner_step_maml_is_the_gradient_of_the_query() -> None:
    assert slope({**MAML, "inner_steps": 0}) == pytest.approx(-0.7)
    assert slope({**MAML, "inner_lr": 0.0, "order": 2}) == pytest.approx(-0.7)
    assert slope({**MAML, "inner_lr": 0.0, "support": 0}) == slope(PLAIN)


def test_the_support_and_the_query() -> None:
    def sizes(num: int, support: float, **more: Any) -> list[int]:
        return [len(part) for part in rules.parts(np.arange(num), {"rule": "maml", "support": support, **more})]

    assert sizes(10, 4) == [4, 6]
    assert sizes(10, 0.2) == [2, 8]
    assert sizes(10, 0) == [10, 10]
    assert sizes(4, 4) == [2, 2]  # none would be left to ask about
    assert sizes(1, 4) == sizes(1, 0.5) == [1, 1]
    assert sizes(2, 0.1) == [1, 1]
    assert [len(part) for part in rules.parts(np.arange(7), {"support": 3})] == [7]
    shuffled = np.array([3, 0, 2, 1])
    assert rules.parts(shuffled, {"rule": "maml", "support": 2})[0].tolist() == [0, 1]
    assert rules.parts(shuffled, {"rule": "maml", "support": 2, "batch": 4})[0].tolist() == [3, 0]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(EngineError, match="no rule 'mamml' to learn by; did you mean 'maml'"):
        slope({**MAML, "rule": "mamml"})


class Curved(nn.Module):
    """Smooth, so that differences are near to its derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


@pytest.mark.parametrize("inner", ["", "last."], ids=["maml", "anil"])
@pytest.mark.parametrize("on", ["slow", "fast"])
def test_mamls_gradient_against_finite_differences(on: str, inner: str) -> None:
    """Three inner steps, in double precision: every entry of the gradient, or that of ANIL."""
    with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
        program = Program(Curved().double(), (3,))
        x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))
    settings = {**MAML, "loss": "cross_entropy", "inner_lr": 0.5, "inner_steps": 3, "order": 2, "support": 4}
    names = tuple(name for name in program.names("whole") if name.startswith(inner))
    parts = rules.parts(np.arange(8), settings)
    weights = program.initial

    def loss(now: Tree, rows: Indices) -> Tensor:
        return ops.row_losses(program.call(now, x[rows], training=True)[0], y[rows], None, settings).mean()

    def after(start: Tree) -> float:
        now = {name: value.detach() for name, value in start.items()}
        for _ in range(3):
            leaves = {name: value.clone().requires_grad_(True) for name, value in now.items()}
            found = torch.autograd.grad(loss(leaves, parts[0]), [leaves[name] for name in names])
            now.update({name: now[name] - 0.5 * slope for name, slope in zip(names, found, strict=True)})
        return float(loss(now, parts[1]))

    if on == "slow":
        slopes, value = rules.RULES["maml"](loss, weights, parts, names, settings)
    else:
        learn = gradients.of(settings, names)
        slopes, (value, _) = learn(lambda now, rows: (loss(now, rows), {}), weights, parts)
    assert float(value.detach()) == pytest.approx(after(weights), abs=1e-12)
    for name, found in slopes.items():
        for place in np.ndindex(*found.shape):
            step = torch.zeros_like(found)
            step[place] = 1e-5
            ends = [after({**weights, name: weights[name] + sign * step}) for sign in (1.0, -1.0)]
            assert found[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


def test_what_a_rule_takes_of_a_device() -> None:
    """Passes a row of a step: two steps of a support of a quarter and a query of the rest; all rows both with 0."""
    first = {**MAML, "inner_steps": 2, "support": 0.25}
    assert rules.cost(PLAIN) == rules.PLAIN
    assert rules.cost(first) == rules.Cost(2 * 0.25 + 0.75, copies=1)
    assert rules.cost({**first, "support": 0}) == rules.Cost(3.0, copies=1)
    assert rules.cost({**first, "support": 4, "batch": 16}) == rules.cost(first)
    assert rules.cost({**first, "order": 2}) == rules.Cost(3 * 2 * 0.25 + 0.75, copies=3, tangents=True)
    assert rules.cost({**first, "rule": "difference"}) == rules.Cost(3 * 0.25 + 0.75, copies=2)
    assert rules.cost({**first, "rule": "moreau"}) == rules.Cost(2.0, copies=1)
    module, board = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), profiles.get("stm32l4")
    names = [name for name, _ in module.named_parameters()]
    plain, near, exact = (
        budget.plan(module, (6,), board, Op.FIT, train=names, learning=learning)
        for learning in (rules.PLAIN, rules.cost(first), rules.cost({**first, "order": 2}))
    )
    weights = 4 * (6 * 8 + 8 + 8 * 3 + 3)  # 332 bytes, of which the arena makes 336
    assert near.sram_bytes - plain.sram_bytes == weights + 4
    activations = exact.sram_bytes - plain.sram_bytes - 3 * (weights + 4)
    assert 4 * 8 <= activations <= 4 * (6 + 8 + 8 + 3)  # one layer writes over another's input
    assert near.macs == round(1.25 * plain.macs)
    assert plain.estimate == ""
    assert "rule isn't run by the device runtime" in exact.estimate
