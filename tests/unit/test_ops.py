"""What a device can do, on a model of one weight whose every number can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midhaul import ops, rng
from midhaul.errors import EngineError
from midhaul.message import Message, Op, Reply
from midhaul.ops import State
from midhaul.program import Examples, Local, Population, Program
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked

KEY = rng.key(0, 1, 0, rng.Use.BATCH)


class Scale(nn.Module):
    """Logits (w x, 0): two classes, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.w, torch.zeros_like(x)], dim=1)


def device(x: list[float], y: list[int]) -> State:
    rows = Examples(torch.tensor(x).reshape(-1, 1), torch.tensor(y))
    return State(Local(rows, rows, rows))


def ask(
    state: State, op: Op, tree: dict[str, Tensor] | None = None, **settings: float | int | str
) -> tuple[State, Reply]:
    return ops.run(Program(Scale(), (1,)), state, Message(op, tree or {}, settings=settings), KEY)


def w(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor([value])}


def test_one_step_of_mean_squared_error_by_hand() -> None:
    # logits (2w, 0) against the one-hot (1, 0): loss (2w - 1)^2 / 2, slope 2 (2w - 1) = -0.8 at w = 0.3.
    state, reply = ask(device([2.0], [0]), Op.FIT, w(0.3), lr=0.1, loss="mse", train="whole", send="whole")
    assert reply.tree["w"].item() == pytest.approx(0.38)
    assert reply.metrics["loss"] == pytest.approx(0.08)
    assert reply.weight == 1.0
    assert state.tree == {}


def test_momentum_decay_and_proximal_term_by_hand() -> None:
    two = {"lr": 0.1, "loss": "mse", "train": "whole", "send": "whole", "epochs": 2}
    # First step as above to 0.38 with velocity -0.8; then the slope is -0.48, the velocity 0.5 * -0.8 - 0.48 = -0.88.
    _, reply = ask(device([2.0], [0]), Op.FIT, w(0.3), momentum=0.5, **two)
    assert reply.tree["w"].item() == pytest.approx(0.38 + 0.088)
    # The second slope has mu (w - 0.3) = 0.08 added.
    _, reply = ask(device([2.0], [0]), Op.FIT, w(0.3), proximal_mu=1.0, **two)
    assert reply.tree["w"].item() == pytest.approx(0.38 + 0.048 - 0.008)
    # One step with decay 0.5: slope -0.8 + 0.15.
    _, reply = ask(device([2.0], [0]), Op.FIT, w(0.3), weight_decay=0.5, **{**two, "epochs": 1})
    assert reply.tree["w"].item() == pytest.approx(0.3 + 0.065)


def test_rows_that_are_sent_are_trained_on_by_their_logits_and_own_rows_are_not() -> None:
    # logits (3w, 0) against (1.5, 0): loss (3w - 1.5)^2 / 2 = 0.18 and slope 3 (3w - 1.5) = -1.8 at w = 0.3.
    digest = {"lr": 0.1, "loss": "mse", "train": "whole", "send": "whole", "soft_weight": 1.0}
    sent = {"x": torch.tensor([[3.0]]), "logits": torch.tensor([[1.5, 0.0]])}
    _, reply = ask(device([2.0, 5.0], [0, 1]), Op.FIT, {**w(0.3), **sent}, **digest)
    assert reply.tree["w"].item() == pytest.approx(0.48)
    assert reply.metrics == {"rows": 1.0, "loss": pytest.approx(0.18)}
    assert reply.weight == 1.0
    # Half of the weight on the labels, of which a sent row has none: half of the step.
    _, reply = ask(device([2.0], [0]), Op.FIT, {**w(0.3), **sent}, **{**digest, "soft_weight": 0.5})
    assert reply.tree["w"].item() == pytest.approx(0.39)


@pytest.mark.parametrize("engine", [Loop, Stacked])
def test_rows_that_are_sent_without_their_logits_are_refused(engine: type[Loop] | type[Stacked]) -> None:
    rows, none = np.arange(2), np.arange(0)
    population = Population(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), (rows,), (rows,), (none,), True)
    fleet = engine(Program(Scale(), (1,)), population)
    settings = {"lr": 0.1, "train": "whole", "send": "whole"}
    for tree in ({"x": torch.zeros(2, 1)}, {"x": torch.zeros(2, 1), "logits": torch.zeros(1, 2)}):
        with pytest.raises(EngineError, match="send logits, a row for each of x"):
            fleet.exchange(Message(Op.FIT, {**w(0.3), **tree}, settings=settings), key=KEY)


def test_a_device_keeps_what_it_trained_and_did_not_send() -> None:
    settings = {"lr": 0.1, "loss": "mse", "train": "whole"}
    state, _ = ask(device([2.0], [0]), Op.LOAD, w(0.3))
    kept, reply = ask(state, Op.FIT, send="none", **settings)
    assert reply.tree == {}
    assert kept.tree["w"].item() == pytest.approx(0.38)
    gone, reply = ask(state, Op.FIT, send="whole", **settings)
    assert gone.tree["w"].item() == pytest.approx(0.3)
    assert reply.tree["w"].item() == pytest.approx(0.38)
    assert state.tree["w"].item() == pytest.approx(0.3)


def test_forward_and_backward_step_by_the_gradient_that_comes_back() -> None:
    state, _ = ask(device([2.0], [1]), Op.LOAD, w(0.3))
    state, up = ask(state, Op.FORWARD, rows="train", batch=4, step=0, what="hy")
    assert up.tree["h"].tolist() == [[pytest.approx(0.6), 0.0]]
    assert up.tree["y"].tolist() == [1]
    # dL/dw = g . (x, 0) = 5 * 2.
    after, _ = ask(state, Op.BACKWARD, {"g": torch.tensor([[5.0, 7.0]])}, lr=0.01)
    assert after.tree["w"].item() == pytest.approx(0.2)
    assert after.stash == {}
    with pytest.raises(EngineError, match="no batch in flight"):
        ask(after, Op.BACKWARD, {"g": torch.tensor([[5.0, 7.0]])}, lr=0.01)


def test_nopeek_adds_the_slope_of_the_distance_correlation() -> None:
    """h = (w x, 0) is in proportion to x whatever w is, so that there is nothing to gain: the step is g's alone."""
    state, _ = ask(device([2.0, 1.0, 5.0], [1, 0, 1]), Op.LOAD, w(0.3))
    state, _ = ask(state, Op.FORWARD, rows="train", batch=0)
    g = {"g": torch.tensor([[5.0, 7.0], [0.0, 0.0], [1.0, 0.0]])}
    plain, _ = ask(state, Op.BACKWARD, g, lr=0.01)
    peeked, _ = ask(state, Op.BACKWARD, g, lr=0.01, nopeek=10.0)
    without, _ = ask(state, Op.BACKWARD, g, lr=0.01, nopeek=0.0)
    assert plain.tree["w"].item() == without.tree["w"].item() == pytest.approx(0.3 - 0.01 * 15)
    assert peeked.tree["w"].item() == pytest.approx(plain.tree["w"].item(), abs=1e-5)


def test_forward_past_the_last_batch_is_empty_and_harmless() -> None:
    state, _ = ask(device([2.0], [1]), Op.LOAD, w(0.3))
    state, up = ask(state, Op.FORWARD, rows="train", batch=4, step=9)
    assert up.tree["h"].shape == (0, 2)
    state, _ = ask(state, Op.BACKWARD, {"g": torch.zeros(0, 2)}, lr=0.1)
    assert state.tree["w"].item() == pytest.approx(0.3)


def test_evaluate_and_predict_by_hand() -> None:
    # w = 1: logits (x, 0), so class 0 for x > 0.
    state = device([3.0, -1.0, 2.0], [0, 1, 1])
    _, reply = ask(state, Op.EVALUATE, w(1.0), rows="test", loss="mse")
    assert reply.metrics["correct"] == 2.0
    assert reply.metrics["loss"] == pytest.approx(((3 - 1) ** 2 + (-1) ** 2 + 1**2 + 2**2 + 1**2) / 2 / 3)
    _, reply = ask(state, Op.PREDICT, w(1.0), rows="test")
    assert reply.tree["logits"][:, 0].tolist() == [3.0, -1.0, 2.0]


def test_adapt_tests_the_adapted_model_and_forgets_it() -> None:
    state, _ = ask(device([2.0], [0]), Op.LOAD, w(-0.3))
    settings = {"lr": 0.1, "loss": "mse", "train": "whole", "rows": "test"}
    after, reply = ask(state, Op.ADAPT, **settings, epochs=20)
    assert reply.metrics["correct"] == 1.0
    assert after.tree["w"].item() == pytest.approx(-0.3)
    _, before = ask(state, Op.EVALUATE, rows="test", loss="mse")
    assert before.metrics["correct"] == 0.0


def test_read_gives_weights_or_examples() -> None:
    state, _ = ask(device([2.0, 4.0], [0, 1]), Op.LOAD, w(0.7))
    assert ask(state, Op.READ, send="whole")[1].tree["w"].item() == pytest.approx(0.7)
    sent = ask(state, Op.READ, what="examples")[1].tree
    assert sent["x"].tolist() == [[2.0], [4.0]]
    assert sent["y"].tolist() == [0, 1]


def test_what_a_device_refuses() -> None:
    with pytest.raises(EngineError, match="has no w yet; send LOAD before EVALUATE"):
        ask(device([1.0], [0]), Op.EVALUATE)
    with pytest.raises(EngineError, match=r"was sent v of shape \(1,\)"):
        ask(device([1.0], [0]), Op.LOAD, {"v": torch.ones(1)})
    with pytest.raises(EngineError, match=r"was sent w of shape \(2,\)"):
        ask(device([1.0], [0]), Op.LOAD, {"w": torch.ones(2)})
    with pytest.raises(EngineError, match="has no tail"):
        Program(Scale(), (1,)).call_tail({}, torch.ones(1, 1))


def test_batches_cover_every_row_once_an_epoch() -> None:
    plan = list(ops.batches(KEY, 10, {"batch": 4, "epochs": 2}))
    assert [len(rows) for rows in plan] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(plan[:3]).tolist()) == list(range(10))
    assert [r.tolist() for r in plan[:3]] != [r.tolist() for r in plan[3:]]
    assert [len(r) for r in ops.batches(KEY, 10, {"batch": 0, "epochs": 1})] == [10]
    assert [len(r) for r in ops.batches(KEY, 10, {"batch": 4, "steps": 5})] == [4, 4, 2, 4, 4]
    assert [len(r) for r in ops.batches(KEY, 10, {"batch": 4, "steps": 1, "epochs": 9})] == [4]


def test_distillation_pulls_towards_the_teacher() -> None:
    soft = torch.tensor([[4.0, 0.0]])
    settings = {"lr": 0.5, "train": "whole", "send": "whole", "soft_weight": 1.0, "temperature": 2.0, "epochs": 200}
    _, reply = ask(device([2.0], [1]), Op.FIT, {**w(0.0), "logits": soft}, **settings)
    assert reply.tree["w"].item() == pytest.approx(2.0, abs=1e-3)


def test_clip_update_by_hand() -> None:
    old, new = {"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    clipped = ops.clip_update(new, old, ("a", "b"), 1.0)
    assert clipped["a"].tolist() == pytest.approx([0.6, 0.0])
    assert clipped["b"].tolist() == pytest.approx([0.8])
    assert ops.clip_update(new, old, ("a", "b"), 50.0)["b"].tolist() == [4.0]
