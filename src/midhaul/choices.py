"""One option for each device of a fleet, so that all together are worth most within what they may take.

An option is a way to take part: a cut, a width, a rank, so many bits. Some of what it takes adds up over the fleet
(joules, bytes), some is the largest of any device (the seconds that a round lasts), some must fit each device by itself
(SRAM, flash). Choosing is a multiple-choice knapsack. `exact` solves it as a mixed integer program. `relaxed` prices
each sum by a Lagrange multiplier, with which every device chooses for itself; the dual is minimised by cutting planes,
and the choice is then repaired to keep the limits and filled up to them. The dual's least value bounds what any choice
is worth, so how far a choice may be from the best is known.

Source: the relaxation, Fisher, "The Lagrangian relaxation method for solving integer programming problems", Management
Science 1981; the cutting planes, Kelley, "The cutting-plane method for solving convex programs", SIAM Journal 1960
(both from memory). Repair and filling are midhaul's own.

Shape letters: D devices, O options, R sums that are limited.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from midhaul.errors import BudgetError, ConfigError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_CUTS = 200  # of cutting planes at most
_PASSES = 200  # of repair, and of filling
_CLOSE = 1e-6  # a share of the dual that is close enough
_EXACT = 5_000  # options of all devices together up to which a choice with a gap is solved exactly
_GAP = 1e-3  # a gap that is not looked at any more
_HAIR = 1e-9  # of a limit: what sums of floats may be over


@dataclass(frozen=True)
class Options:
    """What each device's options are worth and take. Shapes: [D, O] each.

    `sums` add up over the devices, `peaks` are limited for each device alike; `fits` tells which options a device has
    room for. Of choices worth the same the one that takes less of `least`, a name of `sums`, is better.
    """

    value: Array
    sums: Mapping[str, Array] = field(default_factory=dict)
    peaks: Mapping[str, Array] = field(default_factory=dict)
    fits: Flags | None = None
    least: str = ""

    def __post_init__(self) -> None:
        named = {"value": self.value, **self.sums, **self.peaks}
        for name, each in named.items():
            if each.shape != self.value.shape or each.ndim != 2 or not np.isfinite(each).all():
                raise ConfigError(f"options want one finite number of {name} for each device and option")
        if self.fits is not None and self.fits.shape != self.value.shape:
            raise ConfigError("options want to be told of each device and option whether it fits")

    @property
    def room(self) -> Flags:
        """Which options a device has room for."""
        return np.ones(self.value.shape, np.bool_) if self.fits is None else self.fits


@dataclass(frozen=True)
class Choice:
    """An option of each device. Shapes: picks [D].

    `bound` is at least what any choice within the limits is worth. `taken` is what all take together of each sum, and
    the most that one takes of each peak. `over` says how many times over its limit each is, less one: nothing where the
    limits are kept; else this is the nearest that there is, and `bound` is its own value.
    """

    picks: Ints
    value: float
    bound: float
    taken: Mapping[str, float]
    over: Mapping[str, float]

    @property
    def gap(self) -> float:
        """How far the choice may be from the best, as a share of the bound."""
        return max(self.bound - self.value, 0.0) / max(abs(self.bound), 1e-300)


def choose(options: Options, limits: Mapping[str, float]) -> Choice:
    """Gives the best choice within limits, or the nearest to them.

    It is `relaxed`'s, or where that may be more than 0.1 % from the best and devices are few, `exact`'s.
    Raises: BudgetError for a device that has room for no option; ConfigError for a limit on nothing.
    """
    found = relaxed(options, limits)
    if found.over or found.gap <= _GAP or options.value.size > _EXACT:
        return found
    best = exact(options, limits)
    return best if best.value > found.value else Choice(found.picks, found.value, best.bound, found.taken, found.over)


def exact(options: Options, limits: Mapping[str, float]) -> Choice:
    """Gives the best choice by branch and bound, as slow as that may be. Raises: as `choose`."""
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    problem = _Problem(options, limits)
    if problem.is_short:
        return problem.choice(problem.start, problem.worth(problem.start))
    num_devices, num_options = options.value.shape
    one_each = sparse.kron(sparse.eye(num_devices), np.ones((1, num_options)), format="csr")
    constraints = [LinearConstraint(one_each, 1.0, 1.0)]
    if len(problem.use):
        constraints.append(LinearConstraint(problem.use.reshape(len(problem.use), -1), -math.inf, 1.0))
    value = np.where(problem.open, problem.value, 0.0)
    with _quiet():
        solved = milp(
            -value.ravel(),
            integrality=np.ones(options.value.size),
            bounds=Bounds(0.0, problem.open.ravel().astype(np.float64)),
            constraints=constraints,
            options={"mip_rel_gap": 1e-7, "node_limit": 20_000},  # nodes and not seconds: the same on every machine
        )
    if solved.x is None:
        return relaxed(options, limits)
    picks = np.asarray(solved.x.reshape(options.value.shape).argmax(axis=1), np.int64)
    bound = -float(solved.mip_dual_bound) + problem.untied
    return problem.choice(picks, max(bound, problem.worth(picks)))


def relaxed(options: Options, limits: Mapping[str, float]) -> Choice:
    """Gives a good choice within limits, and how far from the best it may be. Raises: as `choose`.

    Limits: the gap is about what one device's options differ by for each sum, so it vanishes with many devices and may
    be wide with few.
    """
    problem = _Problem(options, limits)
    if problem.is_short:
        return problem.choice(problem.start, problem.worth(problem.start))
    price, bound = problem.prices()
    ones = np.ones(len(problem.use))
    best = problem.filled(problem.start, ones)
    for picks in (problem.dearest(price), *problem.seen[-2:], problem.mixed()):
        mended = problem.mended(picks, price, ones)
        if mended is not None:
            mended = problem.filled(mended, ones)
            best = max(best, mended, key=problem.reward)
    return problem.choice(best, max(bound, problem.worth(best)))


class _Problem:
    """A choice to be made, in shares of the limits: `use` [R, D, O] adds up to at most 1."""

    def __init__(self, options: Options, limits: Mapping[str, float]) -> None:
        self.options, self.limits = options, dict(limits)
        for name, most in limits.items():
            if name not in options.sums and name not in options.peaks:
                raise ConfigError(f"nothing is known of {name} that could be limited")
            if not most > 0.0:
                raise ConfigError(f"a limit of {most} {name} leaves nothing to choose; give more than 0")
        room = options.room
        if len(lost := np.flatnonzero(~room.any(axis=1))):
            raise BudgetError(f"device {lost[0]} has room for none of its options; choose a larger board")
        self.over: dict[str, float] = {}
        self.open = room.copy()
        for name, each in options.peaks.items():
            self._close(name, each)
        names = [name for name in options.sums if name in limits and math.isfinite(limits[name])]
        self.use = np.asarray([options.sums[name] / limits[name] for name in names]).reshape(-1, *room.shape)
        self.devices = np.arange(len(room))
        self.value = options.value.astype(np.float64)
        self.untied = 0.0
        if options.least:
            each = options.sums[options.least]
            tie = 1e-7 * float(np.ptp(options.value) or 1.0) / max(float(np.abs(each).max()), 1e-300)
            self.value = self.value - tie * each
            self.untied = tie * float(np.where(self.open, each, -math.inf).max(axis=1).sum())
        self.value = np.where(self.open, self.value, -math.inf)
        self.seen: list[Ints] = []  # what devices chose at each price that was tried
        self.shares = np.zeros(0)  # and how much of each is in the best mixture of them
        self.start, worst = self._leanest()
        self.is_short = worst > 1.0 + _HAIR
        if self.is_short:
            totals = self.total(self.start)
            self.over |= {name: float(t) - 1.0 for name, t in zip(names, totals, strict=True) if t > 1.0 + _HAIR}

    def _close(self, name: str, each: Array) -> None:
        """Closes options beyond the limit of a peak, or beyond the nearest limit that every device can keep."""
        most = self.limits.get(name, math.inf)
        nearest = float(np.where(self.open, each, math.inf).min(axis=1).max(initial=0.0))
        if nearest > most:
            self.over[name] = nearest / most - 1.0
        self.open &= each <= max(most, nearest)

    def worth(self, picks: Ints) -> float:
        """Gives what a choice is worth."""
        return float(self.options.value[self.devices, picks].sum())

    def reward(self, picks: Ints) -> float:
        """Gives what a choice is worth, less where it takes more of what is to be least."""
        return float(self.value[self.devices, picks].sum())

    def total(self, picks: Ints) -> Array:
        """Gives what a choice takes, in shares of the limits. Shapes: [D] -> [R]."""
        return np.asarray(self.use[:, self.devices, picks].sum(axis=1))

    def choice(self, picks: Ints, bound: float) -> Choice:
        """Gives a choice as others see it."""
        at, options = (self.devices, picks), self.options
        taken = {name: float(each[at].sum()) for name, each in options.sums.items()}
        taken |= {name: float(each[at].max(initial=0.0)) for name, each in options.peaks.items()}
        return Choice(picks, self.worth(picks), bound, taken, self.over)

    def dearest(self, price: Array) -> Ints:
        """Gives what every device chooses for itself at these prices. Shapes: [R] -> [D]."""
        return np.asarray((self.value - np.tensordot(price, self.use, 1)).argmax(axis=1), np.int64)

    def prices(self) -> tuple[Array, float]:
        """Gives the prices of the sums at which the dual is least, and a bound on what any choice is worth."""
        num = len(self.use)
        if not num:
            return np.zeros(0), float(np.where(self.open, self.options.value, -math.inf).max(axis=1).sum())
        free = float(self.value.max(axis=1).sum())
        slack = max(1.0 - float(self.total(self.start).max()), 1e-6)
        most = max(free - self.reward(self.start), 0.0) / slack + 1e-12  # Slater: no best price is above this
        best_price, best = np.zeros(num), math.inf
        slopes, heights = [], []
        price = np.zeros(num)
        for _ in range(_CUTS):
            picks = self.dearest(price)
            self.seen.append(picks)
            slope = 1.0 - self.total(picks)
            height = self.reward(picks) + float(price @ slope)
            if height < best:
                best_price, best = price, height
            slopes.append(slope)
            heights.append(height - float(slope @ price))
            price, floor, self.shares = _lowest(np.asarray(slopes), np.asarray(heights), most)
            if best - floor <= _CLOSE * max(abs(best), 1e-12):
                break
        # The bound is of the values themselves, without what breaks ties; any prices give one.
        plain = np.where(self.open, self.options.value, -math.inf) - np.tensordot(best_price, self.use, 1)
        return best_price, float(plain.max(axis=1).sum()) + float(best_price.sum())

    def mixed(self) -> Ints:
        """Gives each device what it chose at one of the prices, as often as the best mixture has that.

        Devices that are alike all choose the same at any price; the mixture is what parts them.
        """
        if not len(self.shares):
            return self.start
        spread = self.devices * 0.6180339887498949 % 1.0  # even, in whatever order devices come
        turn = np.searchsorted(np.cumsum(self.shares) / self.shares.sum(), spread, side="right")
        tried = np.asarray(self.seen[: len(self.shares)])
        return np.asarray(tried[np.minimum(turn, len(tried) - 1), self.devices], np.int64)

    def _leanest(self) -> tuple[Ints, float]:
        """Gives the choice whose worst sum is least, as a share of its limit, and that share."""
        closed = np.where(self.open, 0.0, math.inf)
        num = len(self.use)
        if not num:
            return np.asarray((-self.value).argmin(axis=1), np.int64), 0.0
        best, least = np.zeros(len(self.value), np.int64), math.inf
        slopes: list[Array] = []
        weight, floor = np.full(num, 1.0 / num), 0.0
        for _ in range(_CUTS):
            picks = np.asarray((np.tensordot(weight, self.use, 1) + closed).argmin(axis=1), np.int64)
            totals = self.total(picks)
            if (worst := float(totals.max())) < least:
                best, least = picks, worst
            floor = max(floor, float(weight @ totals))
            if num == 1 or least - floor <= _CLOSE * least:
                return best, least
            slopes.append(totals)
            weight, ceiling = _heaviest(np.asarray(slopes))
            if ceiling - floor <= _CLOSE * max(ceiling, 1e-12):
                break
        low, high = floor, least
        for _ in range(20):  # between what any choice takes and the best that was seen
            if high - low <= 1e-4 * high:
                break
            middle = 0.5 * (low + high)
            mended = self.mended(best, weight, np.full(num, middle), plain=True)
            low, high = (middle, high) if mended is None else (low, middle)
            best = best if mended is None else mended
        return best, float(self.total(best).max())

    def mended(self, picks: Ints, price: Array, limit: Array, *, plain: bool = False) -> Ints | None:
        """Gives the choice with devices switched to leaner options until the limits are kept; None where that fails.

        The sum that is furthest over goes first, by the switches that lose least for what they save; none lifts another
        above its limit. `plain` leaves out what options are worth.
        """
        picks = picks.copy()
        worth = -np.tensordot(price, self.use, 1) + (0.0 if plain else self.value)
        worth = np.where(self.open, worth, -math.inf)
        for _ in range(_PASSES):
            excess = self.total(picks) - limit
            if (excess <= _HAIR * limit).all():
                return picks
            worst = int(excess.argmax())
            more = self.use - self.use[:, self.devices, picks][:, :, None]  # [R, D, O]
            saved = -more[worst]
            loss = np.maximum(worth[self.devices, picks][:, None] - worth, 0.0)
            allowed = self.open & (saved > 0.0)
            for other in range(len(limit)):
                if other != worst:
                    allowed &= more[other] <= max(-excess[other], 0.0)
            rate = np.where(allowed, loss / np.where(allowed, saved, 1.0), math.inf)
            to = rate.argmin(axis=1)
            order = self._order(rate[self.devices, to])
            steps = more[:, order, to[order]].cumsum(axis=1)
            enough = int(np.searchsorted(-steps[worst], excess[worst])) + 1
            others = np.delete(steps, worst, axis=0) <= np.maximum(-np.delete(excess, worst), 0.0)[:, None]
            kept = len(order) if others.all() else int((~others.all(axis=0)).argmax())
            switched = order[: min(enough, max(kept, 1))]
            if not len(switched):
                return None
            picks[switched] = to[switched]
        return None

    def filled(self, picks: Ints, limit: Array) -> Ints:
        """Gives the choice with devices switched to options worth more, as long as the limits are kept."""
        picks = picks.copy()
        for _ in range(_PASSES):
            slack = np.maximum(limit - self.total(picks), 0.0)
            more = self.use - self.use[:, self.devices, picks][:, :, None]
            gain = self.value - self.value[self.devices, picks][:, None]
            allowed = self.open & (gain > 0.0) & (more <= slack[:, None, None]).all(axis=0)
            takes = (np.maximum(more, 0.0) / np.maximum(slack, 1e-12)[:, None, None]).sum(axis=0)
            rate = np.where(allowed, takes / np.where(allowed, gain, 1.0), math.inf)
            to = rate.argmin(axis=1)
            order = self._order(rate[self.devices, to])
            if not len(order):
                return picks
            steps = more[:, order, to[order]].cumsum(axis=1)
            inside = (steps <= slack[:, None]).all(axis=0)
            switched = order[: len(order) if inside.all() else max(int((~inside).argmax()), 1)]
            picks[switched] = to[switched]
        return picks

    def _order(self, rate: Array) -> Ints:
        """Gives the devices that can be switched, the cheapest switch first."""
        order = np.argsort(rate, kind="stable")
        return np.asarray(order[np.isfinite(rate[order])], np.int64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what HiGHS prints now and then past Python out of the standard output, which may be JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _lowest(slopes: Array, heights: Array, most: float) -> tuple[Array, float, Array]:
    """Gives where the highest of some planes is lowest, with coordinates from 0 to `most`; how low; and the planes'
    shares in the mean of them that is level there.

    Shapes: [K, R], [K] -> [R], [K].
    """
    from scipy.optimize import linprog

    num = slopes.shape[1]
    scaled = np.column_stack([slopes * most, -np.ones(len(slopes))])
    solved = linprog(
        np.append(np.zeros(num), 1.0), A_ub=scaled, b_ub=-heights, bounds=[(0.0, 1.0)] * num + [(None, None)]
    )
    return np.asarray(solved.x[:num]) * most, float(solved.fun), np.maximum(-np.asarray(solved.ineqlin.marginals), 0.0)


def _heaviest(slopes: Array) -> tuple[Array, float]:
    """Gives the weights, which add up to 1, at which the least of some weighted means is greatest, and that mean.

    Shapes: [K, R] -> [R].
    """
    from scipy.optimize import linprog

    num = slopes.shape[1]
    solved = linprog(
        np.append(np.zeros(num), -1.0),
        A_ub=np.column_stack([-slopes, np.ones(len(slopes))]),
        b_ub=np.zeros(len(slopes)),
        A_eq=[[1.0] * num + [0.0]],
        b_eq=[1.0],
        bounds=[(0.0, 1.0)] * num + [(None, None)],
    )
    return np.asarray(solved.x[:num]), -float(solved.fun)
