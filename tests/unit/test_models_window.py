"""Windows of channels: which places a narrower model has, and the mean over those who hold an entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from midhaul import rng, tree
from midhaul.models import tiny
from midhaul.models.slices import take_width, width
from midhaul.models.window import blocks, mean_of_holders, take_window, window


def test_the_mean_is_over_those_who_hold_an_entry_by_hand() -> None:
    whole = {"w": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])}
    size = {"w": (1, 1)}
    wide = window(whole, {"w": torch.zeros(2, 2)}, size, 0)
    narrow = window(whole, {"w": torch.zeros(1, 1)}, size, 0)
    parts = [
        (wide, {"w": torch.full((2, 2, 2), 10.0)}, torch.tensor([1.0, 1.0])),
        (narrow, {"w": torch.full((1, 1, 1), 40.0)}, torch.tensor([1.0])),
    ]
    mean = mean_of_holders(whole, parts)["w"]
    assert mean.tolist() == [[20.0, 10.0, 3.0], [10.0, 10.0, 6.0], [7.0, 8.0, 9.0]]
    nobody = [(narrow, {"w": torch.full((1, 1, 1), 40.0)}, torch.tensor([0.0]))]
    assert mean_of_holders(whole, nobody)["w"].tolist() == whole["w"].tolist()


def test_one_part_that_holds_all_is_the_weighted_mean_to_the_bit() -> None:
    draw = torch.from_numpy(rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), 7 * 60)).float().reshape(7, 12, 5)
    whole, weight = {"w": draw[0]}, torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], dtype=torch.float64)
    own = window(whole, whole, {"w": (1, 1)}, 5)
    found = mean_of_holders(whole, [(own, {"w": draw}, weight)])
    assert tree.largest_difference(found, tree.weighted_mean({"w": draw}, weight)) == 0.0


CASES = {
    "mlp": (lambda: tiny.build("mlp", (4, 3), 5, hidden=[8, 6]), (4, 3)),
    "cnn": (lambda: tiny.build("cnn", (1, 8, 8), 5, channels=[4, 6], hidden=[8]), (1, 8, 8)),
    "norm": (lambda: nn.Sequential(tiny.build("cnn1d", (3, 16), 8, norm="group")), (3, 16)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("start", [0, 3])
def test_a_window_of_a_model_runs_and_shares_its_channels(name: str, start: int) -> None:
    """A whole model whose channels are turned by `start` computes the same, and its leading part is the window."""
    build, shape = CASES[name]
    with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
        module = build()
    narrow, index = width(module, 0.5, shape)
    whole, size = tree.of(module), blocks(module, shape)
    own = window(whole, tree.of(narrow), size, start)
    if start == 0:
        assert tree.largest_difference(take_window(whole, own), take_width(whole, index)) == 0.0
    turned = {n: turn(v, size[n], start) for n, v in whole.items()}
    if name != "norm":
        x = torch.from_numpy(rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), 6 * int(torch.tensor(shape).prod())))
        x = x.float().reshape(6, *shape)
        same = torch.func.functional_call(module, turned, (x,))
        assert torch.allclose(same, module(x), atol=1e-5)
    assert tree.largest_difference(take_width(turned, index), take_window(whole, own)) == 0.0


def turn(value: torch.Tensor, size: tuple[int, ...], start: int) -> torch.Tensor:
    for axis, block in enumerate(size):
        value = value.roll(-(start % (value.shape[axis] // block)) * block, axis)
    return value


def test_behind_a_flattened_map_a_channel_is_many_places() -> None:
    module = CASES["cnn"][0]()
    size = blocks(module, (1, 8, 8))
    assert size["conv1.weight"] == (1, 1, 5, 5)
    assert size["conv2.weight"] == (1, 1, 5, 5)
    assert size["fc1.weight"] == (1, 4)
    assert size["head.weight"] == (5, 1)
    assert size["head.bias"] == (5,)
