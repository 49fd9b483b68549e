"""The compiled kernels against torch's autograd, by the engine that visits devices one by one."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midhaul import rng, tree
from midhaul.errors import EngineError
from midhaul.message import Message, Op, Replies
from midhaul.models import tiny
from midhaul.models.norm import FedBatchNorm
from midhaul.program import Population, Program, norms_of
from midhaul.runtime.loop import Loop
from midhaul.runtime.native import library
from midhaul.runtime.stacked import Stacked

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())

KEY = rng.Key(3, 2, rng.SERVER, 0)
SIZES = (5, 1, 0, 13)


def drawn(use: int, *shape: int) -> Tensor:
    numbers = rng.normal(rng.key(5, 0, use, rng.Use.SYNTHETIC), int(np.prod(shape)))
    return torch.from_numpy(numbers).float().reshape(shape)


def population(
    shape: tuple[int, ...], classes: int, sizes: Sequence[int] = SIZES, y: Tensor | None = None
) -> Population:
    """Gives devices of these sizes, whose rows lie among each other."""
    total = sum(sizes)
    order = rng.permutation(rng.key(5, 0, 2, rng.Use.SYNTHETIC), total)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    if y is None:
        y = torch.from_numpy(rng.integers(rng.key(5, 0, 1, rng.Use.SYNTHETIC), total, classes))
    return Population(drawn(0, total, *shape), y, rows, rows, (), True)


def own_tensors(module: nn.Module) -> tuple[str, ...]:
    """Gives the names of what lies in batch norms, which stays on its device."""
    norms = norms_of(module)
    return tuple(f"{name}.{own}" for name, norm in norms.items() for own in norm.state_dict())


def both(module: nn.Module, data: Population, message: Message, *, personal: bool = False) -> tuple[Replies, Replies]:
    """Gives what the two engines reply to a message that trains."""
    program = Program(module, tuple(data.x.shape[1:]), personal=own_tensors(module) if personal else ())
    known = Message(message.op, {**program.initial, **message.tree}, settings=message.settings, each=message.each)
    fast = Stacked(program, data, kernels="native")
    return Loop(program, data).exchange(known, key=KEY), fast.exchange(known, key=KEY)


def agree(
    module: nn.Module,
    data: Population,
    *,
    extra: dict[str, Tensor] | None = None,
    personal: bool = False,
    **settings: Any,
) -> Replies:
    plain = {"lr": 0.05, "batch": 4, "epochs": 2, "train": "whole", "send": "whole"}
    slow, fast = both(module, data, Message(Op.FIT, extra or {}, settings={**plain, **settings}), personal=personal)
    assert tree.largest_difference(slow.tree, fast.tree) < 2e-6
    assert torch.equal(slow.metrics["rows"], fast.metrics["rows"])
    assert torch.allclose(slow.metrics["loss"], fast.metrics["loss"], atol=2e-6, rtol=0)
    start = dict(module.named_parameters())
    moved = [float((fast.tree[name][-1] - start[name].detach()).abs().max()) for name in fast.tree]
    assert max(moved) > 1e-3
    return fast


def seeded(*layers: nn.Module) -> nn.Module:
    """Gives a chain whose numbers are drawn, with a loss that isn't flat."""
    module = nn.Sequential(*layers)
    for number, parameter in enumerate(module.parameters()):
        fan = max(parameter[0].numel() if parameter.dim() > 1 else 4, 1)
        parameter.data = drawn(10 + number, *parameter.shape) / fan**0.5
    return module


def conv2(
    inputs: int, outputs: int, kernel: Any = 3, stride: Any = 1, padding: Any = 1, bias: bool = True
) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)


CHAINS: dict[str, tuple[tuple[nn.Module, ...], tuple[int, ...]]] = {
    "dense of one": ((nn.Linear(1, 2),), (1,)),
    "dense odd": ((nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 6)), (7,)),
    "dense wide": ((nn.Linear(64, 62), nn.ReLU6(), nn.Linear(62, 10, bias=False)), (64,)),
    "dense of an image": ((nn.Flatten(), nn.Linear(18, 3)), (2, 3, 3)),
    "two activations": ((nn.Linear(5, 9), nn.ReLU(), nn.ReLU6(), nn.Linear(9, 3)), (5,)),
    "conv of 1": ((conv2(1, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 42, 3)), (1, 7, 6)),
    "conv of 3 and of 17": (
        (conv2(3, 17), nn.ReLU(), conv2(17, 16, bias=False), nn.Flatten(), nn.Linear(16 * 30, 3)),
        (3, 5, 6),
    ),
    "conv without padding": ((conv2(2, 48, 3, 1, 0), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 12, 3)), (2, 5, 6)),
    "conv with strides": (
        (conv2(2, 6, (3, 2), (2, 1), (1, 0)), nn.ReLU(), conv2(6, 9, 3, 2, 1), nn.Flatten(), nn.Linear(135, 4)),
        (2, 9, 10),
    ),
    "conv 1x1": ((conv2(3, 9), nn.ReLU(), conv2(9, 4, 1, 1, 0), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 4, 4)),
    "conv same": ((nn.Conv2d(2, 4, (5, 3), padding="same"), nn.Flatten(), nn.Linear(80, 3)), (2, 4, 5)),
    "conv over all": ((conv2(2, 9, (4, 5), 1, 0), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)), (2, 4, 5)),
    "zeros around": ((nn.ZeroPad2d((1, 2, 0, 1)), conv2(2, 5, 3, 2, 0), nn.Flatten(), nn.Linear(30, 3)), (2, 5, 5)),
    "max pool": (
        (
            conv2(1, 9),
            nn.ReLU(),
            nn.MaxPool2d(2),
            conv2(9, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(10, 3),
        ),
        (1, 9, 4),
    ),
    "max pool that overlaps": (
        (conv2(2, 5), nn.ReLU6(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(45, 3)),
        (2, 5, 6),
    ),
    "mean pool": ((conv2(2, 5), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)), (2, 5, 6)),
    "mean pool behind ReLU": (
        (conv2(2, 5), nn.ReLU(), nn.AvgPool2d((2, 3)), nn.Flatten(), nn.Linear(20, 3)),
        (2, 5, 6),
    ),
    "pool first": ((nn.MaxPool2d(2), conv2(2, 5), nn.Flatten(), nn.Linear(30, 3)), (2, 4, 6)),
    "sequence": (
        (
            *(nn.Conv1d(9, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(32, 6, 5, 2, 2), nn.ReLU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 6)),
        ),
        (9, 23),
    ),
    "group norm": (
        (conv2(2, 18), nn.GroupNorm(3, 18), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 3)),
        (2, 5, 6),
    ),
    "group norm of rows and sequences": (
        (
            # Over all places, the mean of a group of one channel would be 0, and what follows a matter of rounding.
            *(nn.Conv1d(2, 4, 3), nn.GroupNorm(4, 4, affine=False), nn.AvgPool1d(3, 2), nn.AdaptiveAvgPool1d(1)),
            *(nn.Flatten(), nn.GroupNorm(1, 4), nn.Linear(4, 3)),
        ),
        (2, 9),
    ),
    "depthwise": (
        (
            nn.Conv2d(2, 17, 1),
            nn.ReLU(),
            nn.Conv2d(17, 17, 3, (2, 1), 1, groups=17),
            nn.ReLU6(),
            nn.Conv2d(17, 4, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        (2, 5, 6),
    ),
    "depthwise of a sequence": (
        (nn.Conv1d(3, 3, 4, groups=3, bias=False), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 3)),
        (3, 11),
    ),
    "sequence, mean pool": ((nn.Conv1d(2, 4, 3), nn.AvgPool1d(3, 2), nn.Flatten(), nn.Linear(16, 3)), (2, 12)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_training_is_that_of_autograd(name: str) -> None:
    layers, shape = CHAINS[name]
    agree(seeded(*layers), population(shape, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"proximal_mu": 0.5},
        {"momentum": 0.5, "weight_decay": 0.1, "proximal_mu": 0.5},
        {"batch": 0},
        {"batch": 1, "epochs": 1},
        {"batch": 3, "steps": 7},
        {"batch": 3, "step": 2, "epoch": 4, "steps": 3},
        {"loss": "mse"},
        {"train": "bias"},
        {"train": "head"},
    ],
    ids=str,
)
def test_settings_mean_what_they_mean_to_the_slow_engine(settings: dict[str, Any]) -> None:
    module = seeded(conv2(2, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 9), nn.ReLU(), nn.Linear(9, 3))
    agree(module, population((2, 5, 6), 3), **settings)


def test_a_batch_larger_than_the_cache_is_taken_in_parts() -> None:
    data = population((7,), 3, (100, 70))
    agree(seeded(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 3)), data, batch=0, momentum=0.5)
    agree(seeded(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 3)), data, batch=64)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_rows_that_were_sent_are_learned_from_a_teacher(loss: str) -> None:
    extra = {"x": drawn(3, 11, 7), "logits": drawn(4, 11, 3) * 3.0}
    settings = {"loss": loss, "temperature": 3.0, "soft_weight": 1.0}
    agree(seeded(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3)), population((7,), 3), extra=extra, **settings)


NORMS: dict[str, tuple[tuple[nn.Module, ...], tuple[int, ...]]] = {
    "of a row": ((nn.Linear(7, 17), FedBatchNorm(17), nn.ReLU(), nn.Linear(17, 3)), (7,)),
    "of an image": (
        (conv2(1, 5), FedBatchNorm(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 3)),
        (1, 4, 6),
    ),
    "that counts batches": (
        (conv2(2, 17), FedBatchNorm(17, momentum=None), nn.Flatten(), nn.Linear(102, 3)),
        (2, 2, 3),
    ),
    "that keeps nothing": (
        (
            *(nn.Conv1d(2, 9, 3, 2, 1), FedBatchNorm(9, track_running_stats=False), nn.ReLU(), nn.Conv1d(9, 4, 3)),
            *(FedBatchNorm(4, affine=False), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        ),
        (2, 11),
    ),
    "first": ((FedBatchNorm(2), conv2(2, 3), nn.Flatten(), nn.Linear(36, 3)), (2, 3, 4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_is_that_of_autograd(name: str) -> None:
    layers, shape = NORMS[name]
    agree(seeded(*layers), population(shape, 3), personal=True)
    agree(seeded(*layers), population(shape, 3), personal=True, batch=0, momentum=0.5)


def answers(module: nn.Module, data: Population, *messages: Message) -> None:
    """Holds the answers of both engines to a few messages, and what their devices hold afterwards, to each other."""
    program = Program(module, tuple(data.x.shape[1:]), personal=own_tensors(module))
    slow, fast = Loop(program, data), Stacked(program, data, kernels="native")
    for message in (Message(Op.LOAD, program.initial), *messages):
        one, other = slow.exchange(message, key=KEY), fast.exchange(message, key=KEY)
        assert tree.largest_difference(one.tree, other.tree) < 5e-6
        assert torch.equal(one.rows, other.rows)
        for name, value in one.metrics.items():
            assert torch.allclose(value, other.metrics[name], atol=2e-6, rtol=0), name
    held = {f"{d}/{n}": v for d in data.devices for n, v in slow.states[d].tree.items()}
    shared, own = fast.parameters(Message(Op.FIT), list(data.devices))
    whole = {n: own[n] if n in own else shared[n].expand(len(data.devices), *shared[n].shape) for n in program.initial}
    mine = {f"{d}/{n}": value[place] for place, d in enumerate(data.devices) for n, value in whole.items()}
    assert tree.largest_difference(held, mine) < 2e-6


def image_net() -> nn.Module:
    return seeded(conv2(2, 5), FedBatchNorm(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 3))


def test_outputs_and_scores_are_those_of_the_slow_engine() -> None:
    plain = seeded(conv2(2, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 3))
    sent = {"x": drawn(8, 4, 2, 5, 6)}
    asked = [Message(Op.EVALUATE), Message(Op.PREDICT), Message(Op.PREDICT, sent), Message(Op.FORWARD)]
    learn = Message(Op.FIT, settings={"lr": 0.05, "batch": 4, "train": "whole", "send": "none"})
    tune = Message(Op.ADAPT, settings={"lr": 0.05, "batch": 4, "train": "whole"})
    for module in (plain, image_net()):
        answers(module, population((2, 5, 6), 3), *asked, learn, *asked, tune)


def test_statistics_that_were_kept_serve_rows_in_parts() -> None:
    learn = Message(Op.FIT, settings={"lr": 0.05, "batch": 4, "train": "whole", "send": "none"})
    answers(image_net(), population((2, 5, 6), 3, (70, 3)), learn, Message(Op.EVALUATE), Message(Op.PREDICT))


def test_a_split_models_front_goes_forward_and_back() -> None:
    """The slopes at the cut have the cut's own shape: here an image."""
    data = population((2, 5, 6), 3)
    for layers in ((conv2(2, 5), nn.ReLU(), nn.MaxPool2d(2)), (conv2(2, 5), FedBatchNorm(5), nn.ReLU())):
        module = seeded(*layers)
        shape = module(data.x[:2]).shape[1:]
        g = Message(Op.BACKWARD, {}, {"g": drawn(9, len(SIZES), max(SIZES), *shape)}, torch.tensor(SIZES))
        back = replace(g, settings={"lr": 0.1, "train": "front", "momentum": 0.5})
        answers(module, data, Message(Op.FORWARD), back, Message(Op.FORWARD, settings={"what": "hy"}), back)


def test_values_are_hit() -> None:
    data = population((7,), 1, y=drawn(6, sum(SIZES)))
    agree(seeded(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 1)), data, loss="mse")


def test_one_step_worked_out_by_hand() -> None:
    """w = (1, -1), x = 2: logits 2 and -2, p = (s, 1 - s) with s = 1 / (1 + e^-4); for label 1, dw = x (s, -s)."""
    module = nn.Linear(1, 2, bias=False)
    module.weight.data = torch.tensor([[1.0], [-1.0]])
    data = Population(torch.tensor([[2.0]]), torch.tensor([1]), (np.array([0]),), (np.array([0]),), (), True)
    fast = both(module, data, Message(Op.FIT, settings={"lr": 0.5, "train": "whole", "send": "whole"}))[1]
    share = 1.0 / (1.0 + np.exp(-4.0))
    assert fast.tree["weight"].reshape(-1).tolist() == pytest.approx([1.0 - share, -1.0 + share], abs=1e-6)
    assert float(fast.metrics["loss"]) == pytest.approx(np.log(1.0 + np.exp(4.0)), abs=1e-6)


def test_what_is_not_trained_keeps_its_bits() -> None:
    module = seeded(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))
    fast = both(module, population((7,), 3), Message(Op.FIT, settings={"lr": 0.2, "train": "head", "send": "whole"}))[1]
    assert torch.equal(fast.tree["0.weight"][3], dict(module.named_parameters())["0.weight"])


def test_the_number_of_threads_changes_no_bit() -> None:
    module, data = (
        seeded(conv2(1, 9), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 42, 3)),
        population((1, 7, 6), 3, (9,) * 7),
    )
    message = Message(Op.FIT, settings={"lr": 0.2, "batch": 4, "train": "whole", "send": "whole"})
    threads, ends = torch.get_num_threads(), []
    try:
        for num in (1, 2, 5):
            torch.set_num_threads(num)
            ends.append(both(module, data, message)[1].tree)
    finally:
        torch.set_num_threads(threads)
    assert tree.largest_difference(ends[0], ends[1]) == 0.0
    assert tree.largest_difference(ends[0], ends[2]) == 0.0


def test_each_device_starts_from_weights_of_its_own() -> None:
    module, data = seeded(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3)), population((7,), 3)
    each = {"0.weight": drawn(7, len(SIZES), 9, 7)}
    message = Message(Op.FIT, each=each, settings={"lr": 0.2, "train": "whole", "send": "whole"})
    slow, fast = both(module, data, message)
    assert tree.largest_difference(slow.tree, fast.tree) < 2e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    module = seeded(conv2(1, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 3))
    data = population((1, 4, 6), 3, (4, 4))
    data.x[int(data.train[0][1])] = bad
    slow, fast = both(module, data, Message(Op.FIT, settings={"lr": 0.2, "train": "whole", "send": "whole"}))
    for name, value in fast.tree.items():
        assert torch.equal(value.isfinite(), slow.tree[name].isfinite()), name
    assert not bool(fast.tree["4.weight"][0].isfinite().all())
    assert bool(fast.tree["4.weight"][1].isfinite().all())


@pytest.mark.parametrize("num", [0, 1, 2, 5, 64, 1001])
def test_the_order_of_an_epoch_is_that_of_the_slow_engine(num: int) -> None:
    key = rng.Key(2**40 + 7, 9, 12, int(rng.Use.BATCH)).at(3)
    order = (ctypes.c_int64 * max(num, 1))()
    library.load().mk_permutation(key.seed, key.round, key.device, key.use, num, order)
    assert list(order)[:num] == rng.permutation(key, num).tolist()


def reason(module: nn.Module, shape: tuple[int, ...], **settings: Any) -> str:
    """Gives why the kernels refuse, after torch has done it."""
    data, program = population(shape, 2), Program(module, shape)
    fleet = Stacked(program, data)
    plain = {"lr": 0.1, "train": "whole", "send": "whole", "batch": 4}
    fleet.exchange(Message(Op.FIT, program.initial, settings={**plain, **settings}), key=KEY)
    return fleet.kernels.refused.get(Op.FIT, "")


class Twice(nn.Module):
    """A layer that is used twice, and one that is added to what it was given."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.layer, self.head, self.adds = nn.Linear(4, 4), nn.Linear(4, 2), adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        out: Tensor = self.head(y + x if self.adds else self.layer(y))
        return out


def test_what_the_kernels_do_not_know_torch_does_and_says_why() -> None:
    assert reason(nn.Linear(4, 2), (4,)) == ""
    assert "used twice" in reason(Twice(False), (4,))
    assert "aren't a chain" in reason(Twice(True), (4,))
    assert "Tanh" in reason(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (4,))
    assert "groups of several" in reason(
        nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 2)), (4, 2, 2)
    )
    assert "several places" in reason(nn.Sequential(conv2(1, 2), nn.Flatten()), (1, 2, 2))
    assert "AdaptiveAvgPool2d" in reason(
        nn.Sequential(nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten(), nn.Linear(2, 2)), (1, 2, 2)
    )
    assert "dilated" in reason(nn.Sequential(nn.Conv1d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(4, 2)), (1, 4))
    assert "rule" in reason(nn.Linear(4, 2), (4,), rule="maml", inner_lr=0.1, inner_train="whole")


def test_kernels_that_must_be_used_and_can_not_are_an_error() -> None:
    program = Program(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (4,))
    fleet = Stacked(program, population((4,), 2), kernels="native")
    message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "train": "whole", "send": "whole"})
    with pytest.raises(EngineError, match=r"run\.kernels is native.*Tanh"):
        fleet.exchange(message, key=KEY)
    seeds = {"lr": 0.1, "train": "whole", "send": "whole", "seeds": 4, "noise": 1e-3}
    program = Program(nn.Linear(4, 2), (4,))
    fleet = Stacked(program, population((4,), 2), kernels="native")
    with pytest.raises(EngineError, match="can't do FIT: it trains along seeds"):
        fleet.exchange(Message(Op.FIT, {**program.initial, "g": torch.zeros(4)}, settings=seeds), key=KEY)


def test_torch_alone_is_used_if_that_is_asked_for() -> None:
    program, data = Program(tiny.build("mlp", (7,), 3), (7,)), population((7,), 3)
    fleet = Stacked(program, data, kernels="torch")
    message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "train": "whole", "send": "whole"})
    fleet.exchange(message, key=KEY)
    assert fleet.kernels.refused == {Op.FIT: "run.kernels is torch"}


def test_bad_input_never_reaches_the_kernels() -> None:
    program = Program(nn.Linear(4, 2), (4,))
    message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "train": "whole", "send": "whole"})
    data = population((4,), 2)
    far = Population(data.x, data.y, (np.array([999]),), (np.array([0]),), (), True)
    with pytest.raises(EngineError, match="isn't among the"):
        Stacked(program, far, kernels="native").exchange(message, key=KEY)
    wrong = population((4,), 2, y=torch.full((sum(SIZES),), 2))
    with pytest.raises(EngineError, match="label 2"):
        Stacked(program, wrong).exchange(message, key=KEY)
    with pytest.raises(EngineError, match="shape"):
        Stacked(program, population((5,), 2)).exchange(message, key=KEY)
    values = population((4,), 2, y=drawn(6, sum(SIZES)))
    with pytest.raises(EngineError, match="train with the loss mse"):
        Stacked(program, values).exchange(message, key=KEY)
    few = Message(Op.FIT, program.initial, {"logits": drawn(3, 4, 12, 2)}, torch.tensor([12] * 4), message.settings)
    with pytest.raises(EngineError, match="12 rows and trains on 13"):
        Stacked(program, data).exchange(few, key=KEY)


@pytest.mark.parametrize("shape", [(12, 2), (13, 1), (13, 3), (13, 2, 1)])
def test_slopes_of_another_shape_never_reach_the_kernels(shape: tuple[int, ...]) -> None:
    program, data = Program(nn.Linear(4, 2), (4,)), population((4,), 2)
    fleet = Stacked(program, data, kernels="native")
    fleet.exchange(Message(Op.LOAD, program.initial), key=KEY)
    fleet.exchange(Message(Op.FORWARD), key=KEY)
    back = Message(Op.BACKWARD, {}, {"g": drawn(9, 4, *shape)}, torch.tensor(SIZES), {"lr": 0.1, "train": "front"})
    with pytest.raises(EngineError, match=r"its activations' is \(13, 2\)"):
        fleet.exchange(back, key=KEY)
