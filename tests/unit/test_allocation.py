"""Allocations of a shared band: by hand where that can be done, else against cvxpy, and what can't be done."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midhaul.errors import ConfigError
from midhaul.link import schedule
from midhaul.link.schedule import Allocation, ScheduleError, Uplinks

BAND = 2e6


def cell(num: int, seed: int, circuit_w: float = 0.0) -> Uplinks:
    """Gives devices 30 to 250 m from a mast, with shadowing: gains 60 dB apart."""
    draw = np.random.default_rng(seed)
    loss_db = 22.4 + 35.3 * np.log10(draw.uniform(30, 250, num)) + 21.3 * math.log10(3.5) + draw.normal(0, 7, num)
    gain = 10 ** (-loss_db / 10) / 10 ** ((-174 + 9 - 30) / 10) / 2
    ready, bits = draw.uniform(0, 0.3, num), draw.uniform(2e5, 2e6, num)
    return Uplinks(bits, ready, gain, np.full(num, 0.2), np.full(num, circuit_w), np.full(num, 0.3))


def check(links: Uplinks, given: Allocation, band: float, deadline_s: float) -> None:
    """Every bit is sent in time, within the band, with no more power than there is, for the energy that is told."""
    sent = given.send_s * given.bandwidth_hz * np.log2(1 + links.gain_hz_w * given.power_w / given.bandwidth_hz)
    assert sent == pytest.approx(links.bits, rel=1e-9)
    assert given.bandwidth_hz.sum() <= band * (1 + 1e-12)
    assert (given.finish_s <= deadline_s * (1 + 1e-12)).all()
    assert (given.power_w <= links.max_w * (1 + 1e-9)).all()
    told = given.send_s * (links.circuit_w + given.power_w / links.efficiency)
    assert given.joules == pytest.approx(told, rel=1e-12)


def solve(problem: object, **how: object) -> float:
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (pip install midhaul[test])")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # it stops short of 1e-12, not of 1e-8
        warnings.filterwarnings("ignore", message="Objective contains too many subexpressions")
        close = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
        return float(problem.solve(solver=cp.CLARABEL, **close, **how))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seed", "slack"), [(0, 1.02), (1, 1.5), (2, 5.0)])
def test_least_energy_without_circuits_is_the_optimum_of_the_exponential_cone(seed: int, slack: float) -> None:
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (pip install midhaul[test])")
    links = cell(20, seed)
    deadline_s = slack * schedule.soonest(links, BAND)
    ours = schedule.min_energy(links, BAND, deadline_s)
    check(links, ours, BAND, deadline_s)
    time_s, unit = deadline_s - links.ready_s, BAND / len(links)
    b, z = cp.Variable(len(links)), cp.Variable(len(links))  # z = b e^(a / b)
    weights = time_s / (links.efficiency * links.gain_hz_w) * unit
    limits = [cp.ExpCone(cp.Constant(links.bits * math.log(2) / time_s / unit), b, z), cp.sum(b) <= len(links)]
    limits.append(z - b <= links.max_w * links.gain_hz_w / unit)
    best = solve(cp.Problem(cp.Minimize((weights / weights.sum()) @ (z - b)), limits)) * weights.sum()
    assert float(ours.joules.sum()) == pytest.approx(best, rel=1e-6)
    assert ours.bandwidth_hz == pytest.approx(b.value * unit, rel=1e-3)


@pytest.mark.parametrize(("circuit_w", "slack"), [(0.01, 1.05), (0.37, 1.05), (0.37, 1.5), (2.0, 1.05)])
def test_least_energy_with_circuits_is_the_optimum_of_the_geometric_program(circuit_w: float, slack: float) -> None:
    """Times and bandwidths are free; u (e^(a / u) - 1) is a sum of monomials a^n u^(1 - n) / n!."""
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (pip install midhaul[test])")
    links = cell(3, 2, circuit_w)
    deadline_s = slack * schedule.soonest(links, BAND)
    ours = schedule.min_energy(links, BAND, deadline_s)
    check(links, ours, BAND, deadline_s)
    unit, whole_s = BAND / len(links), float((deadline_s - links.ready_s).max())
    b, t = cp.Variable(len(links), pos=True), cp.Variable(len(links), pos=True)
    limits, spent = [cp.sum(b) <= len(links)], []
    for k in range(len(links)):
        load = links.bits[k] * math.log(2) / (unit * whole_s)
        terms = [load**n / math.factorial(n) * (b[k] * t[k]) ** (1 - n) for n in range(1, 30)]
        spent.append(unit * whole_s / (links.efficiency[k] * links.gain_hz_w[k]) * cp.sum(cp.hstack(terms)))
        spent.append(links.circuit_w[k] * whole_s * t[k])
        limits.append(t[k] <= (deadline_s - links.ready_s[k]) / whole_s)
        limits.append(unit / (links.gain_hz_w[k] * links.max_w[k]) * cp.sum(cp.hstack(terms)) / t[k] <= 1)
    best = solve(cp.Problem(cp.Minimize(cp.sum(cp.hstack(spent))), limits), gp=True)
    assert float(ours.joules.sum()) == pytest.approx(best, rel=1e-6)
    assert ours.bandwidth_hz == pytest.approx(b.value * unit, rel=1e-3)


def test_two_alike_share_evenly_and_the_energy_is_that_by_hand() -> None:
    """1 Mbit/s each in 1 MHz is 1 bit/s/Hz: a signal as strong as the noise, 1 / 1e6 Hz/W x 1e6 Hz = 1 W. 2 J each."""
    one = np.ones(2)
    links = Uplinks(1e6 * one, 0 * one, 1e6 * one, 10 * one, 0 * one, 0.5 * one)
    given = schedule.min_energy(links, 2e6, 1.0)
    assert given.bandwidth_hz.tolist() == pytest.approx([1e6, 1e6])
    assert given.power_w.tolist() == pytest.approx([1.0, 1.0])
    assert given.joules.tolist() == pytest.approx([2.0, 2.0])


def test_least_time_by_hand() -> None:
    """Full power is 3 times the noise in 1 MHz: 2 bit/s/Hz. Alike, both have 1 Mbit, so half a second."""
    one = np.ones(2)
    links = Uplinks(1e6 * one, np.array([1.0, 1.0]), 1e6 * one, 3 * one, 0.2 * one, 0.5 * one)
    given = schedule.min_time(links, 2e6)
    assert given.finish_s.tolist() == pytest.approx([1.5, 1.5])
    assert given.joules.tolist() == pytest.approx([0.5 * (0.2 + 6.0)] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_in_the_least_time_all_end_together_and_no_sooner_deadline_can_be_kept(seed: int) -> None:
    links = cell(30, seed, 0.37)
    given = schedule.min_time(links, BAND)
    check(links, given, BAND, given.last_s)
    assert given.finish_s == pytest.approx(given.last_s, rel=1e-9)
    assert given.bandwidth_hz.sum() == pytest.approx(BAND)
    with pytest.raises(ScheduleError) as refused:
        schedule.min_energy(links, BAND, 0.999 * given.last_s)
    assert refused.value.nearest_s == pytest.approx(given.last_s)
    schedule.min_energy(links, BAND, refused.value.nearest_s * (1 + 1e-9))


def test_a_deadline_that_cannot_be_kept_is_told_with_the_nearest() -> None:
    with pytest.raises(ScheduleError, match=r"20 devices can't .* by 100\.0 ms in 2 MHz.*can be kept is 1\."):
        schedule.min_energy(cell(20, 0), BAND, 0.1)
    with pytest.raises(ConfigError, match=r"above 0 Hz, not 0\.0; set link\.bandwidth_mhz"):
        schedule.min_energy(cell(2, 0), 0.0, 10.0)
    with pytest.raises(ConfigError, match="set one"):
        schedule.min_energy(cell(2, 0), BAND, math.inf)


def test_it_saves_a_fifth_of_equal_bandwidth_where_the_band_is_scarce() -> None:
    links = cell(100, 1)
    deadline_s = schedule.equal(links, BAND, 0.0).last_s  # with all power: the soonest with equal bandwidth
    ours, other = schedule.min_energy(links, BAND, deadline_s), schedule.equal(links, BAND, deadline_s)
    check(links, ours, BAND, deadline_s)
    assert other.finish_s.max() <= deadline_s * (1 + 1e-12)
    assert ours.joules.sum() < 0.8 * other.joules.sum()


def test_turns_save_most_where_circuits_draw_much() -> None:
    """With 100 side by side all send for long, and P0 is what they spend; alone in the band each is done soon."""
    links = cell(100, 1, 0.37)
    deadline_s = 2.0 * schedule.equal(links, BAND, 0.0).last_s
    beside, turns = schedule.min_energy(links, BAND, deadline_s), schedule.in_turns(links, BAND, deadline_s)
    other = schedule.equal(links, BAND, deadline_s)
    assert beside.joules.sum() < other.joules.sum()
    assert turns.joules.sum() < 0.2 * other.joules.sum()
    assert schedule.cheapest(links, BAND, deadline_s).joules.sum() == turns.joules.sum()
    quiet = cell(100, 1)
    tight_s = 1.05 * schedule.soonest(quiet, BAND)
    best = schedule.cheapest(quiet, BAND, tight_s)
    assert best.joules.sum() == schedule.min_energy(quiet, BAND, tight_s).joules.sum()


def test_turns_by_hand() -> None:
    """Alike in 1 MHz, full power is 3 times the noise: 0.5 s each. Ready at 0 and 0.2 s: done at 0.5 and 1 s."""
    one = np.ones(2)
    links = Uplinks(1e6 * one, np.array([0.2, 0.0]), 1e6 * one, 3 * one, 0.2 * one, 0.5 * one)
    given = schedule.in_turns(links, 1e6, 0.1)  # too soon: all power
    assert given.finish_s.tolist() == pytest.approx([1.0, 0.5])
    assert given.joules.tolist() == pytest.approx([0.5 * (0.2 + 6.0)] * 2)
    assert given.bandwidth_hz.tolist() == [1e6, 1e6]
    calm = schedule.in_turns(links, 1e6, 100.0)  # each at the power that is best for it, soon enough
    assert calm.last_s < 100.0
    assert calm.joules.sum() < given.joules.sum()
    assert schedule.in_turns(links, 1e6, 2.0).last_s == pytest.approx(2.0)


def test_turns_of_devices_ready_at_once_are_the_optimum_over_times() -> None:
    cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed (pip install midhaul[test])")
    some = cell(6, 7, 0.05)
    links = Uplinks(some.bits, 0 * some.bits, some.gain_hz_w, some.max_w, some.circuit_w, some.efficiency)
    deadline_s = 1.2 * schedule.in_turns(links, BAND, 0.0).last_s
    ours = schedule.in_turns(links, BAND, deadline_s)
    assert ours.last_s == pytest.approx(deadline_s)
    t, z = cp.Variable(6), cp.Variable(6)  # z = t e^(a / (B t)), times in units of the deadline
    load = links.bits * math.log(2) / (BAND * deadline_s)
    limits = [cp.ExpCone(cp.Constant(load), t, z), cp.sum(t) <= 1]
    limits.append(z - t <= cp.multiply(links.max_w * links.gain_hz_w / BAND, t))
    weights = BAND * deadline_s / (links.efficiency * links.gain_hz_w)
    unit = float(ours.joules.sum())
    best = unit * solve(cp.Problem(cp.Minimize((weights @ (z - t) + links.circuit_w * deadline_s @ t) / unit), limits))
    assert unit == pytest.approx(best, rel=1e-6)


def test_circuits_make_it_worth_to_end_before_the_deadline() -> None:
    links = cell(10, 3, 0.37)
    given = schedule.min_energy(links, BAND, 1000.0)
    assert given.last_s < 100.0
    assert schedule.min_energy(cell(10, 3), BAND, 1000.0).finish_s == pytest.approx(1000.0)


def test_who_has_nothing_to_send_gets_nothing() -> None:
    links = cell(5, 4, 0.1)
    idle = Uplinks(np.array([0, *links.bits[1:]]), *[getattr(links, n) for n in list(links.__dataclass_fields__)[1:]])
    for found in (
        schedule.min_energy(idle, BAND, 20.0),
        schedule.equal(idle, BAND, 20.0),
        schedule.min_time(idle, BAND),
    ):
        assert (found.bandwidth_hz[0], found.power_w[0], found.send_s[0], found.joules[0]) == (0.0, 0.0, 0.0, 0.0)
        assert found.bandwidth_hz.sum() == pytest.approx(BAND)
    assert schedule.min_time(links.of(np.zeros(5, bool)), BAND).last_s == 0.0


def test_ten_thousand_devices_are_the_optimum_of_their_own_conditions() -> None:
    """All energies fall alike with a little more bandwidth: nobody could be better off by taking from another."""
    links, band = cell(10_000, 5, 0.1), 1e9
    deadline_s = 1.3 * schedule.soonest(links, band)
    given = schedule.min_energy(links, band, deadline_s)
    check(links, given, band, deadline_s)
    more = schedule._sent(links, given.bandwidth_hz * (1 + 1e-5), deadline_s)
    slope = (given.joules - more.joules) / (1e-5 * given.bandwidth_hz)
    assert np.ptp(slope) / slope.mean() < 1e-3


@given(st.floats(1e-280, 1e280))
def test_phi_is_inverted_near_its_branch_point_and_far_from_it(q: float) -> None:
    x = schedule.phi_inverse(np.array([q]))
    assert float(schedule.phi(x)[0]) == pytest.approx(q, rel=1e-11)


@given(st.floats(1e-9, 1 - 1e-9))
def test_the_signal_for_a_rate_is_found(y: float) -> None:
    s = schedule.snr_of_rate(np.array([y]))
    assert float(np.log1p(s)[0] / s[0]) == pytest.approx(y, rel=1e-9)
    assert schedule.snr_of_rate(np.array([0.0, 1.0])).tolist() == [math.inf, 0.0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.001, 100.0), st.sampled_from([0.0, 1e-6, 0.05, 5.0]), st.floats(3.0, 9.0))
def test_any_cell_gets_an_allocation_that_is_sound_and_no_worse_than_equal(
    seed: int, slack: float, circuit_w: float, log_band: float
) -> None:
    links, band = cell(8, seed, circuit_w), 10.0**log_band
    deadline_s = slack * schedule.soonest(links, band)
    ours, other = schedule.min_energy(links, band, deadline_s), schedule.equal(links, band, deadline_s)
    check(links, ours, band, deadline_s)
    if other.last_s <= deadline_s:
        assert ours.joules.sum() <= other.joules.sum() * (1 + 1e-9)


def test_numbers_that_are_none_are_refused() -> None:
    one = np.ones(1)
    for wrong in (np.array([0.0]), np.array([math.nan]), np.array([math.inf]), np.ones(2)):
        with pytest.raises(ConfigError, match="gain_hz_w"):
            Uplinks(one, one, wrong, one, one, one)
