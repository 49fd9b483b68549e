"""Lifetimes of activations: by hand for small models, and against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from midhaul.devices import dataflow
from midhaul.errors import BudgetError


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


class Residual(nn.Module):
    """Two convolutions with a way around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 2, 1)
        self.second = nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(x))
        return torch.relu(self.second(a) + a).mean(2)


def lives(module: nn.Module, shape: tuple[int, ...], train: str = "", **how: bool) -> dict[str, tuple[int, int, int]]:
    """Gives (bytes, first, last) of each buffer; `train` is a space-separated list of names, or "all"."""
    names = [name for name, _ in module.named_parameters()] if train == "all" else train.split()
    nodes = dataflow.trace(module, torch.zeros(1, *shape), names)
    return {b.name: (b.bytes, b.first, b.last) for b in dataflow.lifetimes(nodes, **how)}


def test_an_inference_holds_a_value_until_its_last_reader() -> None:
    assert lives(mlp(), (4,)) == {"input_1": (16, 0, 1), "_0": (12, 1, 3), "_2": (8, 3, 3)}


def test_training_holds_what_the_backward_reads() -> None:
    # Steps: 0 x, 1 linear, 2 relu (in place), 3 linear, 4 loss, 5 back of 3, 6 back of 2, 7 back of 1.
    assert lives(mlp(), (4,), "all", trains=True) == {
        "input_1": (16, 0, 7),
        "_0": (12, 1, 6),
        "gradient of _0": (12, 5, 7),
        "_2": (8, 3, 4),
        "gradient of _2": (8, 4, 5),
    }


def test_a_frozen_prefix_is_let_go_at_once() -> None:
    assert lives(mlp(), (4,), "2.weight 2.bias", trains=True) == {
        "input_1": (16, 0, 1),
        "_0": (12, 1, 5),
        "_2": (8, 3, 4),
        "gradient of _2": (8, 4, 5),
    }


def test_training_biases_keeps_no_inputs() -> None:
    found = lives(mlp(), (4,), "0.bias 2.bias", trains=True)
    assert found["input_1"] == (16, 0, 1)
    assert found["_0"] == (12, 1, 6)  # the mask of the ReLU


def test_a_residual_keeps_both_ways_alive() -> None:
    # 0 x, 1 first, 2 relu, 3 second, 4 add, 5 relu, 6 mean
    found = lives(Residual(), (1, 5))
    assert found["first"] == (40, 1, 4)
    assert found["second"] == (40, 3, 4)
    assert found["add"] == (40, 4, 6)
    found = lives(Residual(), (1, 5), "all", trains=True)
    assert found["gradient of first"] == (40, 10, 13)  # from the add's backward on


def test_a_split_device_holds_the_gradient_of_its_output_in_the_callers_buffer() -> None:
    front = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert lives(front, (4,), holds_output=True) == {"input_1": (16, 0, 1)}
    assert lives(front, (4,), "all", trains=True, holds_output=True) == {"input_1": (16, 0, 5), "_0": (12, 1, 4)}


def test_the_tail_of_a_u_shape_gets_and_gives_its_input_in_the_callers_buffer() -> None:
    found = lives(nn.Linear(4, 3), (4,), "weight bias", trains=True, holds_input=True)
    assert found == {"linear": (12, 1, 2), "gradient of linear": (12, 2, 3)}


@pytest.mark.parametrize(("build", "shape"), [(mlp, (4,)), (conv, (1, 4, 4)), (Residual, (1, 5))])
def test_what_is_kept_past_the_loss_is_what_autograd_saves(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    module = build()
    own = {value.data_ptr() for value in module.parameters()}
    saved: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        if value.is_floating_point() and value.untyped_storage().data_ptr() not in own:
            saved[value.untyped_storage().data_ptr()] = value.numel() * 4
        return value

    x = torch.randn(1, *shape)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        out = module(x)
    nodes = dataflow.trace(module, x, [name for name, _ in module.named_parameters()])
    kept = [b for b in dataflow.lifetimes(nodes, trains=True) if b.first < len(nodes) < b.last]
    assert sorted(b.bytes for b in kept) == sorted(saved.values())
    assert out.shape[0] == 1


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_forward_that_depends_on_the_data_is_refused_in_a_sentence() -> None:
    with pytest.raises(BudgetError, match=r"memory of Branching can't be planned.*fleet\.check = false"):
        dataflow.trace(Branching(), torch.zeros(1, 2), ())


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = mlp()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    dataflow.trace(module, torch.zeros(1, 4), ("0.weight",))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_zeros_around_what_a_convolution_reads_take_no_buffer() -> None:
    module = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 1, 2), nn.ZeroPad2d(1), nn.ReLU())
    found = lives(module, (1, 4, 4))
    assert found == {"input_1": (64, 0, 2), "_1": (64, 2, 3), "_2": (144, 3, 4)}


def test_tokens_and_adapters_are_followed() -> None:
    module = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(6, 2))
    nodes = dataflow.trace(module, torch.zeros(1, 2, dtype=torch.int64), ["0.weight"])
    found = {b.name: (b.bytes, b.first, b.last) for b in dataflow.lifetimes(nodes, trains=True)}
    assert found["input_1"] == (8, 0, 7)  # which rows of the table have a gradient
    assert found["gradient of _0"] == (24, 5, 7)
    assert found["_0"] == (24, 1, 3)  # the frozen layer behind it needs no activations
