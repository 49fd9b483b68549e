"""An option for each device: by hand, by trying all, by branch and bound, and how far from the best a choice may be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from midhaul.choices import Array, Choice, Options, choose, exact, relaxed
from midhaul.errors import BudgetError, ConfigError

# Two devices, a wide and a narrow model: worth 4 or 1 for 10 or 2 joules on the first, 3 or 2 for 6 or 3 on the second.
PAIR = Options(
    np.array([[4.0, 1.0], [3.0, 2.0]]),
    {"joules": np.array([[10.0, 2.0], [6.0, 3.0]])},
    {"seconds": np.array([[9.0, 2.0], [4.0, 3.0]])},
)


def of_all(options: Options, limits: Mapping[str, float]) -> float:
    """Gives the best value within limits by trying every choice; minus infinity where none is within them."""
    num_devices, num_options = options.value.shape
    devices, best = np.arange(num_devices), -np.inf
    for picks in itertools.product(range(num_options), repeat=num_devices):
        at = (devices, np.array(picks))
        sums = all(options.sums[name][at].sum() <= most + 1e-9 for name, most in limits.items() if name in options.sums)
        peaks = all(options.peaks[name][at].max() <= limits[name] for name in limits if name in options.peaks)
        if sums and peaks and options.room[at].all():
            best = max(best, float(options.value[at].sum()))
    return best


def drawn(seed: int, num_devices: int, num_options: int, num_sums: int, *, alike: bool = False) -> Options:
    """Gives options of growing size: more of one is worth more, less and less so, and takes more."""
    random = np.random.default_rng(seed)
    shape = (num_devices, num_options)
    size = np.sort(random.uniform(0.1, 1.0, num_options))
    board = random.choice([0.5, 1.0, 2.0], (num_devices, 1))

    def spread() -> Array:
        return np.ones(shape) if alike else random.uniform(0.5, 1.5, shape)

    sums = {
        f"sum {number}": board * size * random.uniform(0.8, 1.2, num_options) * spread() for number in range(num_sums)
    }
    return Options(np.sqrt(size) * spread(), sums, {"seconds": board * size * spread()}, random.random(shape) < 0.9)


def between(options: Options, share: float) -> dict[str, float]:
    """Gives limits on the sums, such a share of the way from the least that they can be to the most."""
    closed = np.where(options.room, 0.0, np.inf)
    ends = {
        name: ((each + closed).min(axis=1).sum(), (each - closed).max(axis=1).sum())
        for name, each in options.sums.items()
    }
    return {name: float(low + share * (high - low)) for name, (low, high) in ends.items()}


@pytest.mark.parametrize("solve", [choose, exact, relaxed])
@pytest.mark.parametrize(
    ("limits", "picks"),
    [
        ({}, [0, 0]),
        ({"joules": 16.0}, [0, 0]),
        ({"joules": 15.0}, [0, 1]),  # 4 + 2 for 13 J beats 1 + 3 for 8 J
        ({"joules": 12.0}, [1, 0]),
        ({"joules": 5.0}, [1, 1]),
        ({"seconds": 4.0}, [1, 0]),  # the first is too slow with the wide one
    ],
)
def test_two_devices_by_hand(solve: object, limits: dict[str, float], picks: list[int]) -> None:
    found: Choice = solve(PAIR, limits)  # type: ignore[operator]
    assert found.picks.tolist() == picks
    assert not found.over
    assert found.value <= found.bound + 1e-9


@pytest.mark.parametrize("solve", [choose, exact, relaxed])
def test_what_cannot_be_kept_gives_the_nearest_and_how_far_it_is(solve: object) -> None:
    found: Choice = solve(PAIR, {"joules": 4.0})  # type: ignore[operator]
    assert found.picks.tolist() == [1, 1]
    assert found.taken["joules"] == 5.0
    assert found.over == {"joules": pytest.approx(0.25)}
    late: Choice = solve(PAIR, {"seconds": 2.0})  # type: ignore[operator]
    assert late.over == {"seconds": pytest.approx(0.5)}  # the second can't be done before 3 s
    assert late.taken["seconds"] == 3.0


@pytest.mark.parametrize("num_sums", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_small_choices_are_the_best_of_all(seed: int, num_sums: int) -> None:
    options = drawn(seed, 5, 4, num_sums)
    options = Options(options.value, options.sums, options.peaks, options.room | (np.arange(4) == 0))
    for share in (0.15, 0.5, 0.9):
        limits = {**between(options, share), "seconds": float(np.quantile(options.peaks["seconds"], 0.95))}
        best = of_all(options, limits)
        found = choose(options, limits)
        assert relaxed(options, limits).bound >= best - 1e-9
        if best == -np.inf:
            assert found.over
            continue
        assert found.value == pytest.approx(best, rel=2e-3)
        assert exact(options, limits).value == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("num_sums", [1, 2])
def test_prices_come_near_branch_and_bound(num_sums: int, alike: bool) -> None:
    options = drawn(7, 60, 6, num_sums, alike=alike)
    options = Options(options.value, options.sums)
    for share in (0.2, 0.6):
        limits = between(options, share)
        best, near = exact(options, limits), relaxed(options, limits)
        assert near.value <= best.value * (1.0 + 1e-6)
        assert near.value >= best.value * 0.99
        assert near.bound >= best.value * (1.0 - 1e-6)
        assert all(near.taken[name] <= most * (1.0 + 1e-6) for name, most in limits.items())


@pytest.mark.parametrize("alike", [False, True])
def test_ten_thousand_devices_are_as_near_as_the_bound_shows(alike: bool) -> None:
    options = drawn(3, 10_000, 8, 2, alike=alike)
    options = Options(options.value, options.sums)
    limits = between(options, 0.4)
    found = choose(options, limits)
    assert not found.over
    assert found.gap < 1e-3
    assert all(found.taken[name] <= most * (1.0 + 1e-6) for name, most in limits.items())


def test_several_sums_that_cannot_be_kept_are_over_by_the_least() -> None:
    """Each of four devices takes 3 of one sum or 3 of the other, and both may come to 4: two of each is nearest."""
    first = np.tile([3.0, 0.0], (4, 1))
    options = Options(np.ones((4, 2)), {"up": first, "down": 3.0 - first})
    found = relaxed(options, {"up": 4.0, "down": 4.0})
    assert found.taken == {"up": 6.0, "down": 6.0}
    assert found.over == {"up": pytest.approx(0.5), "down": pytest.approx(0.5)}


def test_of_choices_worth_the_same_the_one_that_takes_least_is_taken() -> None:
    options = Options(np.ones((3, 3)), {"joules": np.array([[3.0, 1.0, 2.0]] * 3)}, least="joules")
    assert choose(options, {}).picks.tolist() == [1, 1, 1]
    assert exact(options, {"joules": 9.0}).picks.tolist() == [1, 1, 1]


def test_a_device_without_room_and_wrong_limits_are_refused() -> None:
    options = Options(np.ones((2, 2)), fits=np.array([[True, False], [False, False]]))
    with pytest.raises(BudgetError, match="device 1 has room for none"):
        choose(options, {})
    with pytest.raises(ConfigError, match="nothing is known of watts"):
        choose(PAIR, {"watts": 1.0})
    with pytest.raises(ConfigError, match="more than 0"):
        choose(PAIR, {"joules": 0.0})
    with pytest.raises(ConfigError, match="finite number of joules"):
        Options(np.ones((1, 2)), {"joules": np.array([[1.0, np.nan]])})
