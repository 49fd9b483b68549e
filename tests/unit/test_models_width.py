"""Narrow submodels: leading slices by hand, identity at full width, and what can't be narrowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import tree
from midhaul.errors import ModelError
from midhaul.models import large, tiny
from midhaul.models.slices import prepare, put_width, take_width, width

MODELS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("mlp", (3, 5), {"hidden": [8, 6]}),
    ("cnn", (1, 12, 12), {}),
    ("cnn1d", (3, 32), {"norm": "group"}),
    ("dscnn", (1, 21, 10), {"channels": 16}),
    ("resnet8", (3, 16, 16), {}),
    ("mobilenet_v1_025", (3, 32, 32), {}),
    ("eegnet", (4, 64), {}),
]


def prepared(name: str, shape: tuple[int, ...], options: dict[str, Any], norm: str = "group") -> nn.Module:
    return prepare(tiny.build(name, shape, 10, **options), shape, norm).module


def test_slices_by_hand() -> None:
    module = tiny.build("mlp", (5,), 3, hidden=[4])
    narrow, index = width(module, 0.5, (5,))
    assert index == {
        "fc1.weight": (slice(0, 2), slice(0, 5)),
        "fc1.bias": (slice(0, 2),),
        "head.weight": (slice(0, 3), slice(0, 2)),
        "head.bias": (slice(0, 3),),
    }
    assert torch.equal(narrow.get_parameter("head.weight"), module.get_parameter("head.weight")[:, :2])
    x = torch.randn(2, 5)
    hidden = F.relu(F.linear(x, module.fc1.weight[:2], module.fc1.bias[:2]))
    torch.testing.assert_close(narrow(x), F.linear(hidden, module.head.weight[:, :2], module.head.bias))


@pytest.mark.parametrize(("name", "shape", "options"), MODELS)
def test_full_width_is_the_model_itself(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    module = prepared(name, shape, options)
    narrow, index = width(module, 1.0, shape)
    whole = tree.of(module)
    assert tree.largest_difference(tree.of(narrow), whole) == 0.0
    assert tree.largest_difference(take_width(whole, index), whole) == 0.0
    x = torch.randn(2, *shape)
    assert torch.equal(narrow.eval()(x), module.eval()(x))


@pytest.mark.parametrize(("name", "shape", "options"), MODELS)
@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_a_narrow_model_holds_leading_slices_and_runs(
    name: str, shape: tuple[int, ...], options: dict[str, Any], fraction: float
) -> None:
    module = prepared(name, shape, options)
    narrow, index = width(module, fraction, shape)
    whole, sub = tree.of(module), tree.of(narrow)
    assert tree.largest_difference(take_width(whole, index), sub) == 0.0
    assert narrow(torch.randn(2, *shape)).shape == (2, 10)
    assert tree.num_parameters(sub) < tree.num_parameters(whole) * (fraction + 0.15)
    narrow(torch.randn(2, *shape)).sum().backward()
    assert all(p.grad is not None for p in narrow.parameters())


def test_a_narrow_model_is_the_whole_with_its_other_channels_silenced() -> None:
    # With ReLU and no norm a channel of zero weights and bias says nothing, so the whole model then computes the same.
    module = tiny.build("cnn", (1, 8, 8), 3, channels=[4, 6], hidden=[5])
    narrow, index = width(module, 0.5, (1, 8, 8))
    silenced = put_width({n: torch.zeros_like(v) for n, v in tree.of(module).items()}, tree.of(narrow), index)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(torch.func.functional_call(module, silenced, (x,)), narrow(x))


def test_narrower_models_nest() -> None:
    module = prepared("resnet8", (3, 16, 16), {})
    half, outer = width(module, 0.5, (3, 16, 16))
    _, inner = width(half, 0.5, (3, 16, 16))
    direct, index = width(module, 0.25, (3, 16, 16))
    assert index == inner
    twice = take_width(take_width(tree.of(module), outer), inner)
    assert tree.largest_difference(twice, tree.of(direct)) == 0.0


def test_put_puts_back_what_take_took_and_no_more() -> None:
    module = tiny.build("mlp", (5,), 3, hidden=[4])
    _, index = width(module, 0.5, (5,))
    whole = tree.of(module)
    assert tree.largest_difference(put_width(whole, take_width(whole, index), index), whole) == 0.0
    ones = {name: torch.ones_like(value) for name, value in take_width(whole, index).items()}
    merged = put_width(whole, ones, index)
    assert merged["fc1.weight"][:2].eq(1).all()
    assert torch.equal(merged["fc1.weight"][2:], whole["fc1.weight"][2:])
    assert not whole["fc1.weight"].eq(1).any()


def test_statistics_of_batch_norm_are_cut_as_well() -> None:
    module = prepared("dscnn", (1, 21, 10), {"channels": 8}, "fedbn")
    narrow, index = width(module, 0.5, (1, 21, 10))
    assert index["conv_norm.running_var"] == (slice(0, 4),)
    assert narrow.get_buffer("conv_norm.running_var").shape == (4,)


def test_groups_of_group_norm_keep_their_size_where_it_divides() -> None:
    module = nn.Sequential(nn.Conv1d(2, 16, 3), nn.GroupNorm(8, 16), nn.Flatten(), nn.Linear(16 * 6, 2))
    half, _ = width(module, 0.5, (2, 8))
    assert (half[1].num_groups, half[1].num_channels) == (4, 8)
    odd, _ = width(module, 0.3, (2, 8))
    assert (odd[1].num_groups, odd[1].num_channels) == (1, 5)


def test_large_models_of_convolutions_can_be_narrowed() -> None:
    for name, shape in (("resnet1d", (4, 32)), ("resnet2d", (2, 8, 8)), ("mlp_large", (9,))):
        module = large.build(name, shape, 5)
        narrow, _ = width(module, 0.25, shape)
        assert narrow(torch.randn(2, *shape)).shape == (2, 5)


class Joined(nn.Module):
    """Two layers whose outputs are laid side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


class Fixed(nn.Module):
    """A layer whose output is reshaped to numbers that are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4 * 6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 24))


class Broadcast(nn.Module):
    """A shortcut round a layer; the input keeps its channels, so a narrow layer doesn't fit beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.a(x))


@pytest.mark.parametrize(
    ("module", "shape", "fraction", "message"),
    [
        (nn.Linear(4, 2), (4,), 0.0, "above 0 and at most 1"),
        (nn.Linear(4, 2), (4,), 1.5, "above 0 and at most 1"),
        (nn.Sequential(nn.ReLU()), (4,), 0.5, "no layer with parameters"),
        (Joined(), (4,), 0.5, "head doesn't find the channels that are left in front"),
        (Fixed(), (2, 8), 0.5, "full width"),
        (Broadcast(), (4,), 0.5, "full width"),
        (Broadcast(), (4,), 0.25, "can't be narrowed"),
        (nn.Sequential(nn.PReLU(4), nn.Linear(4, 2)), (4,), 0.5, "is a PReLU, which can't be narrowed"),
        (
            nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(48, 2)),
            (4, 8),
            0.5,
            "2 groups of channels",
        ),
    ],
)
def test_what_can_not_be_narrowed(module: nn.Module, shape: tuple[int, ...], fraction: float, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        width(module, fraction, shape)
