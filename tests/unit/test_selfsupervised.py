"""The start without labels: rows are told apart, the head stays as drawn, the same key gives the same model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from midhaul import rng, selfsupervised, tree
from midhaul.errors import ConfigError
from midhaul.models import large
from midhaul.server import Optimizer

KEY = rng.key(0, 0, rng.SERVER, rng.Use.PUBLIC)


def learned(module: nn.Module, x: Tensor, epochs: int, seed: int = 0) -> tree.Tree:
    key = KEY._replace(seed=seed)
    return selfsupervised.contrast(
        module, tuple(x.shape[1:]), x, Optimizer("adam", 3e-3), epochs=epochs, batch=16, key=key
    )


def signals(num: int = 48) -> Tensor:
    with rng.torch_seed(KEY):
        return torch.randn(num, 3, 1) * torch.sin(torch.arange(32) * torch.rand(num, 3, 1) * 2.0)


def build() -> nn.Module:
    with rng.torch_seed(KEY):
        return large.build("resnet1d", (3, 32), 4, channels=[8, 16])


def test_the_body_learns_and_the_head_does_not() -> None:
    module = build()
    head = selfsupervised.head_names(module, (3, 32))
    start = tree.of(module)
    after = learned(module, signals(), epochs=1)
    assert set(after) == set(start) - set(head)
    assert all(not torch.equal(value, start[name]) for name, value in after.items())
    assert tree.largest_difference(tree.of(module), start) == 0.0


def test_two_views_of_a_row_lie_nearer_each_other_than_before() -> None:
    x = signals()

    def share(parameters: tree.Tree) -> float:
        """Of how many rows the other view is the nearest of all, by what the body gives."""
        module = build()
        module.load_state_dict({**tree.of(module), **parameters})
        module.head = nn.Identity()
        with rng.torch_seed(KEY), torch.no_grad():
            one, two = (
                torch.nn.functional.normalize(module(selfsupervised.view(x)) - module(x).mean(0)) for _ in range(2)
            )
        return float(((one @ two.T).argmax(1) == torch.arange(len(x))).float().mean())

    assert share(learned(build(), x, epochs=15)) > share({}) + 0.1


def test_the_key_decides() -> None:
    one, same, other = (learned(build(), signals(), epochs=1, seed=seed) for seed in (0, 0, 1))
    assert tree.largest_difference(one, same) == 0.0
    assert tree.largest_difference(one, other) > 1e-4


def test_views_of_vectors_and_tokens_take_their_places_from_other_rows() -> None:
    for x in (torch.arange(40.0).reshape(8, 5), torch.arange(40).reshape(8, 5)):
        with rng.torch_seed(KEY):
            seen = selfsupervised.view(x)
        assert seen.dtype == x.dtype
        assert 0 < int((seen != x).sum()) < x.numel()
        assert all(set(seen[:, place].tolist()) <= set(x[:, place].tolist()) for place in range(5))


def test_a_block_of_a_signal_is_wiped_out_in_all_its_channels() -> None:
    with rng.torch_seed(KEY):
        seen = selfsupervised.view(torch.ones(6, 3, 40))
    wiped = seen == 0.0
    assert (wiped.sum(2) == 10).all()
    assert (wiped[:, :1] == wiped).all()
    with rng.torch_seed(KEY):
        assert ((selfsupervised.view(torch.ones(6, 1, 8, 12)) == 0.0).flatten(1).sum(1) == 6).all()


class Shortcut(nn.Module):
    """A head that sees the input beside the body's output: nothing lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([x, self.body(x)], 1))
        return out


def test_a_model_that_cannot_be_cut_before_its_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set scheme\.large_start = 'drawn'"):
        learned(Shortcut(), torch.zeros(8, 5), epochs=1)
