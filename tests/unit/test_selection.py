"""Who takes part, by hand: each rule on a handful of devices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from midhaul import selection

DRAWS = np.array([0.3, 0.9, 0.5, 0.7, 0.1])


def test_those_that_waited_longest_go_first_and_draws_break_ties() -> None:
    last = np.array([3.0, 1.0, 0.0, 2.0, 0.0])
    assert selection.round_robin(last, 3, DRAWS).tolist() == [1, 2, 4]
    assert selection.round_robin(np.zeros(5), 2, DRAWS).tolist() == [1, 3]


def test_round_robin_asks_each_once_in_turn() -> None:
    last, asked = np.zeros(6), []
    for number in range(1, 7):
        places = selection.round_robin(last, 2, np.linspace(0.9, 0.1, 6))
        last[places] = number
        asked += places.tolist()
    assert sorted(asked) == sorted([*range(6), *range(6)])
    assert asked[:6] == [0, 1, 2, 3, 4, 5]


def test_the_best_channels_go_first() -> None:
    assert selection.best_channel(np.array([1e6, 5e6, 2e6, 5e6, 9e6]), 3, DRAWS).tolist() == [1, 3, 4]


def greedy(compute: list[float], up: list[float], down: list[float], deadline: float) -> set[int]:
    """Algorithm 3 of the paper, line by line."""
    left, chosen, theta = set(range(len(up))), set[int](), 0.0

    def distribution(some: set[int]) -> float:
        return max((down[k] for k in some), default=0.0)

    while left:
        x = max(
            left,
            key=lambda k: (
                1.0 / (distribution(chosen | {k}) - distribution(chosen) + up[k] + max(0.0, compute[k] - theta))
            ),
        )
        left.remove(x)
        after = theta + up[x] + max(0.0, compute[x] - theta)
        if distribution(chosen | {x}) + after < deadline:
            theta, chosen = after, chosen | {x}
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_fedcs_is_the_paper_s_algorithm(seed: int) -> None:
    draw = np.random.default_rng(seed)
    compute, up, down = draw.uniform(0, 10, 30), draw.uniform(0.1, 3, 30), draw.uniform(0.1, 2, 30)
    found = selection.fedcs(compute, up, down, 20.0, 30, draw.uniform(size=30))
    assert set(found.tolist()) == greedy(compute.tolist(), up.tolist(), down.tolist(), 20.0)
    assert 5 < len(found) < 30
    assert len(selection.fedcs(compute, up, down, 20.0, 4, draw.uniform(size=30))) == 4
    assert len(selection.fedcs(compute, up, down, 1e-3, 30, draw.uniform(size=30))) == 0


def test_fedcs_by_hand() -> None:
    """A computes 1 s and sends 1 s, B computes 3 s and sends 1 s: at 2 and 4 s. C, 3 s more, is too late."""
    compute, up, down = np.array([1.0, 3.0, 0.0]), np.array([1.0, 1.0, 3.0]), np.array([0.5, 0.5, 0.5])
    assert selection.fedcs(compute, up, down, 5.0, 3, np.zeros(3)).tolist() == [0, 1]


def test_a_utility_is_the_rows_times_the_loss_and_slow_ones_count_less() -> None:
    assert selection.statistical_utility(np.array([10.0, 2.0]), np.array([0.5, 4.0])).tolist() == [5.0, 8.0]
    assert selection.slowness(np.array([5.0, 10.0, 20.0]), 10.0, 2.0).tolist() == [1.0, 1.0, 0.25]


def choose(utility: list[float], last: list[float], num: int, **changes: object) -> list[int]:
    given: dict[str, object] = {
        "seconds": np.ones(len(utility)),
        "expected_s": np.ones(len(utility)),
        "number": 10,
        "explore": 0.0,
        "preferred_s": 1.0,
        "alpha": 2.0,
        "draws": DRAWS[: len(utility)],
    }
    found = selection.oort(np.array(utility), np.array(last), num=num, **{**given, **changes})  # type: ignore[arg-type]
    return found.tolist()  # type: ignore[no-any-return]


def test_oort_exploits_the_most_useful() -> None:
    """Far apart, none but the best two comes within 95 % of the second."""
    assert choose([10.0, 1.0, 100.0, 50.0, 5.0], [9.0] * 5, 2) == [2, 3]


def test_oort_prefers_the_fast_and_those_not_seen_for_long() -> None:
    assert choose([10.0, 9.0], [9.0, 9.0], 1, seconds=np.array([2.0, 1.0])) == [1]
    assert choose([1.0, 1.0], [9.0, 1.0], 1, number=1000) == [1]
    assert choose([1.0, 0.2], [9.0, 1.0], 1, number=1000) == [0]  # 1.28 against 1.03


def test_oort_explores_those_never_asked_by_their_speed() -> None:
    counts = np.zeros(4)
    for seed in range(400):
        draws = np.random.default_rng(seed).uniform(size=4)
        places = choose(
            [5.0, 0.0, 0.0, 0.0], [3.0, 0, 0, 0], 2, explore=0.5, expected_s=np.array([1, 1, 3, 1.0]), draws=draws
        )
        counts[places] += 1
    assert counts[0] == 400
    assert counts[1] + counts[2] + counts[3] == 400
    assert counts[2] == pytest.approx(400 / 7, rel=0.4)


def test_oort_fills_the_round_whatever_there_is() -> None:
    assert len(choose([1.0] * 5, [0.0] * 5, 3, explore=0.2)) == 3
    assert len(choose([1.0] * 5, [1.0] * 5, 3, explore=0.9)) == 3
    assert len(choose([1.0] * 5, [1.0, 0, 0, 0, 0], 5, explore=0.2)) == 5


def test_the_pacer_waits_once_rounds_gain_less() -> None:
    assert not selection.pace([3.0, 3.0, 2.0], 2)
    assert selection.pace([3.0, 3.0, 2.0, 2.0], 2)
    assert not selection.pace([1.0, 1.0, 2.0, 2.0], 2)


def test_frugal_asks_in_proportion_to_utility_over_joules() -> None:
    """Utilities 1, 2 and 1, joules 1, 1 and 4: with a thrift of 1, four, eight and one time of thirteen."""
    utility, joules, last = np.array([1.0, 2.0, 1.0]), np.array([1.0, 1.0, 4.0]), np.zeros(3)
    counts = np.zeros(3)
    for number in range(1, 1301):
        place = selection.frugal(utility, last, joules, 1, number=number, thrift=1.0, draws=DRAWS[:3])
        last[place] = number
        counts[place] += 1
    assert counts.min() > 0
    assert counts[1] > counts[0] > counts[2]


def test_frugal_begins_with_the_cheapest_and_leaves_none_out() -> None:
    joules, last, utility = np.array([1.0, 100.0, 2.0, 50.0]), np.zeros(4), np.zeros(4)
    seen = []
    for number in itertools.count(1):
        place = selection.frugal(utility, last, joules, 1, number=number, thrift=0.5, draws=DRAWS[:4])
        utility[place], last[place] = 1.0, number
        seen.append(int(place[0]))
        if len(set(seen)) == 4:
            break
    assert seen[0] == 0
    assert number < 50
