"""Arithmetic on trees, by hand."""

import pytest
import torch

from midhaul import tree
from midhaul.errors import MidhaulError


def test_weighted_mean_by_hand() -> None:
    stacked = {"w": torch.tensor([[1.0, 0.0], [3.0, 6.0], [5.0, 0.0]]), "b": torch.tensor([0.0, 4.0, 8.0])}
    mean = tree.weighted_mean(stacked, torch.tensor([1.0, 1.0, 2.0]))
    assert mean["w"].tolist() == [3.5, 1.5]
    assert mean["b"].tolist() == 5.0


def test_weighted_mean_of_one_is_that_one_to_the_bit() -> None:
    value = {"w": torch.randn(1, 1000)}
    assert torch.equal(tree.weighted_mean(value, torch.tensor([37.0]))["w"], value["w"][0])


def test_trees_are_values() -> None:
    first = {"w": torch.ones(2)}
    tree.add(first, first, alpha=3.0)
    tree.scale(first, 5.0)
    tree.merge(first, {"w": torch.zeros(2)})
    assert first["w"].tolist() == [1.0, 1.0]


def test_names_must_agree() -> None:
    with pytest.raises(MidhaulError, match="differ in their names: b, w"):
        tree.add({"w": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(MidhaulError, match="no tensor named x"):
        tree.select({"w": torch.ones(1)}, ["x"])


def test_order_is_the_trees_own() -> None:
    whole = {name: torch.ones(1) for name in ("c", "a", "b")}
    assert list(tree.select(whole, ["b", "c"])) == ["c", "b"]
    assert list(tree.without(whole, ["a"])) == ["c", "b"]
    assert list(tree.merge(whole, {"a": torch.zeros(1)})) == ["c", "a", "b"]


def test_not_a_number_is_infinitely_different_and_not_finite() -> None:
    sound, broken = {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, float("nan")])}
    assert tree.largest_difference(sound, broken) == float("inf")
    assert tree.is_finite(sound)
    assert not tree.is_finite(broken)


def test_sha256_tells_names_shapes_and_values_apart() -> None:
    digests = {
        tree.sha256({"w": torch.zeros(2, 3)}),
        tree.sha256({"w": torch.zeros(3, 2)}),
        tree.sha256({"v": torch.zeros(2, 3)}),
        tree.sha256({"w": torch.zeros(2, 3).double()}),
        tree.sha256({"w": torch.ones(2, 3)}),
    }
    assert len(digests) == 5


def test_stack_and_row_undo_each_other() -> None:
    trees = [{"w": torch.full((2,), float(n))} for n in range(3)]
    assert tree.row(tree.stack(trees), 2)["w"].tolist() == [2.0, 2.0]
    assert tree.num_parameters(trees[0]) == 2
    assert tree.num_bytes(trees[0]) == 8


@pytest.mark.parametrize("shape", [(), (3,), (4095,), (4096,), (62, 1568)])
@pytest.mark.parametrize("num", [1, 2, 50])
def test_the_mean_in_blocks_is_the_mean_in_one(num, shape):
    stacked, weight = torch.randn(num, *shape), torch.rand(num).double()
    share = weight / weight.sum()
    whole = torch.tensordot(share, stacked.double(), dims=([0], [0])).float()
    assert torch.equal(tree.weighted_mean({"w": stacked}, weight)["w"], whole)
