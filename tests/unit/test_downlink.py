"""Ways down in a shared band: by hand, against a linear program, and against every order of a few devices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from midhaul.errors import ConfigError
from midhaul.link.downlink import Downlinks, Served, at_once, broadcast, in_turns

POWER_W = 0.4  # while receiving


def links(bits: list[float], rate: list[float], most: list[float], idle: list[float]) -> Downlinks:
    return Downlinks(*(np.asarray(part, np.float64) for part in (bits, rate, most, idle)))


def drawn(seed: int, num: int, *, wide: bool = False) -> Downlinks:
    draw = np.random.default_rng(seed)
    most = np.full(num, 51.0) if wide else draw.choice([6.0, 25.0, 51.0], num)
    return Downlinks(draw.uniform(1e5, 2e6, num), draw.uniform(5e3, 5e5, num), most, draw.uniform(0.01, 0.2, num))


def spent(links: Downlinks, served: Served) -> float:
    return float((POWER_W * served.receive_s + links.idle_w * served.wait_s).sum())


def last_s(served: Served) -> float:
    return float((served.wait_s + served.receive_s).max())


def test_two_devices_by_hand() -> None:
    """10 blocks; 100 and 200 bits at 1 and 4 bit/s a block: 100 and 50 block-seconds, 15 s in all."""
    two = links([100.0, 200.0], [1.0, 4.0], [10.0, 10.0], [0.1, 0.1])
    once = at_once(two, 10.0)
    assert once.blocks == pytest.approx([20 / 3, 10 / 3])
    assert once.receive_s == pytest.approx([15.0, 15.0])
    turns = in_turns(two, 10.0)
    assert turns.receive_s == pytest.approx([10.0, 5.0])
    assert turns.wait_s == pytest.approx([5.0, 0.0])  # the shorter one first
    cast = broadcast(links([200.0, 200.0], [1.0, 4.0], [10.0, 5.0], [0.1, 0.1]), 10.0)
    assert cast.blocks == pytest.approx([5.0, 5.0])
    assert cast.receive_s == pytest.approx([40.0, 40.0])  # at the worse channel, in the narrower modem's blocks


def test_narrow_modems_receive_beside_one_another() -> None:
    """Three that take 4 of 8 blocks, 8 s each: two at once, then the third."""
    three = links([32.0, 32.0, 32.0], [1.0, 1.0, 1.0], [4.0, 4.0, 4.0], [0.1, 0.1, 0.1])
    turns = in_turns(three, 8.0)
    assert turns.wait_s == pytest.approx([0.0, 0.0, 8.0])
    assert last_s(at_once(three, 8.0)) == pytest.approx(12.0)


def test_who_gets_nothing_neither_waits_nor_receives() -> None:
    none = links([0.0, 10.0], [1.0, 1.0], [4.0, 4.0], [0.1, 0.1])
    for way in (at_once, in_turns, broadcast):
        served = way(none, 4.0)
        assert served.wait_s[0] == served.receive_s[0] == 0.0
        assert served.receive_s[1] == pytest.approx(2.5)
    for way in (at_once, in_turns, broadcast):
        assert len(way(links([], [], [], []), 4.0).wait_s) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_soonest_end_is_that_of_the_linear_program(seed: int) -> None:
    cp = pytest.importorskip("cvxpy")
    given = drawn(seed, 12)
    blocks, pace = cp.Variable(12), cp.Variable()  # pace is 1 over the time
    unit = given.rate_bps / given.bits
    limits = [cp.multiply(unit, blocks) >= pace, cp.sum(blocks) <= 51.0, blocks <= given.most_blocks, blocks >= 0]
    problem = cp.Problem(cp.Maximize(pace), limits)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    served = at_once(given, 51.0)
    assert last_s(served) == pytest.approx(1.0 / float(pace.value), rel=1e-6)
    assert served.blocks.sum() <= 51.0 * (1.0 + 1e-12)
    assert (served.blocks <= given.most_blocks * (1.0 + 1e-12)).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_order_spends_less_than_turns_and_none_of_them_ends_sooner(seed: int) -> None:
    given = drawn(seed, 6, wide=True)
    turns = in_turns(given, 51.0)
    least = np.inf
    for order in itertools.permutations(range(6)):
        begin_s = np.zeros(6)
        begin_s[list(order)] = np.concatenate([[0.0], np.cumsum(turns.receive_s[list(order)])[:-1]])
        least = min(least, spent(given, Served(turns.blocks, begin_s, turns.receive_s)))
    assert spent(given, turns) == pytest.approx(least, rel=1e-12)
    once = at_once(given, 51.0)
    assert last_s(turns) == pytest.approx(last_s(once), rel=1e-9)
    assert spent(given, turns) < spent(given, once)


@pytest.mark.parametrize(("bits", "rate"), [([-1.0], [1.0]), ([1.0], [0.0]), ([np.nan], [1.0]), ([1.0, 1.0], [1.0])])
def test_what_is_no_way_down_is_refused(bits: list[float], rate: list[float]) -> None:
    with pytest.raises(ConfigError, match="a way down takes one"):
        links(bits, rate, [1.0], [0.1])
