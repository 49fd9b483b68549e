"""What the compiled library does with a cohort is what rng and tree do."""

import pytest
import torch

from midhaul import rng, tree
from midhaul.runtime.native import cohort, library

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())


@pytest.mark.parametrize("size", [0, 1, 2, 5, 100, 1000, 2000])
@pytest.mark.parametrize("seed", [0, 3, 2**63 + 5, -1])
def test_a_cohort_is_the_one_that_rng_draws(size, seed):
    stream = rng.Key(seed, 7, rng.SERVER, int(rng.Use.COHORT))
    for num in {0, 1, size // 10, size, size + 3}:
        wanted = rng.first_of_permutation(stream, num, size).tolist()
        assert cohort.first_of_permutation(stream, num, size).tolist() == wanted
        assert rng.choose(stream, num, range(size), cohort.first_of_permutation) == rng.choose(stream, num, range(size))


@pytest.mark.parametrize("shape", [(), (1,), (10,), (16,), (31,), (32, 64), (3, 67), (0,)])
def test_the_mean_is_the_sum_in_double_precision_one_after_another(shape):
    weight = torch.rand(40, dtype=torch.float64)
    value = torch.randn(40, *shape)
    found = cohort.weighted_mean({"w": value}, weight)["w"]
    wanted = torch.zeros(shape, dtype=torch.float64)
    for own, share in zip(value.double(), (weight / weight.sum()).tolist(), strict=True):
        wanted += share * own
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert torch.equal(found, wanted.float())
    assert torch.allclose(found, tree.weighted_mean({"w": value}, weight)["w"], rtol=1e-6, atol=1e-9)


def test_each_product_is_rounded_before_it_is_added():
    """A third of a number and a third of its opposite are nothing; not so where one product keeps all its bits."""
    value = torch.randn(205)
    found = cohort.weighted_mean({"w": torch.stack([value, -value, 0 * value])}, torch.ones(3))["w"]
    assert torch.equal(found, torch.zeros(205))


def test_models_of_more_or_fewer_devices_than_have_a_weight_are_refused_as_tree_does():
    for num in (2, 4):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            cohort.weighted_mean({"w": torch.randn(num, 5)}, torch.ones(3))


def test_a_column_has_the_same_mean_wherever_it_is():
    value, weight = torch.randn(9, 205), torch.rand(9)
    whole = cohort.weighted_mean({"w": value}, weight)["w"]
    for place in range(205):
        assert cohort.weighted_mean({"w": value[:, place]}, weight)["w"] == whole[place]


def test_the_mean_of_one_is_that_one_and_other_types_are_left_to_tree():
    value = {"w": torch.randn(1, 4, 5), "n": torch.tensor([[3, 4]]), "f": torch.randn(1, 6).double()}
    found = cohort.weighted_mean(value, torch.tensor([37.0]))
    assert [*found] == [*value]
    assert all(torch.equal(found[name], value[name][0]) for name in value)
    assert found["n"].dtype == torch.int64


def test_what_is_not_finite_stays_so():
    value = {"w": torch.tensor([[1.0, float("inf")], [float("nan"), 2.0]])}
    found = cohort.weighted_mean(value, torch.ones(2))["w"]
    assert found[0].isnan()
    assert found[1] == float("inf")
