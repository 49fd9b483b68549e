"""Who takes part in a round, as arithmetic on arrays: what is known of the devices in, places of those chosen out.

Every rule gets numbers drawn uniformly, one a device, and draws nothing itself; with the same numbers it chooses the
same. Where two are worth the same, the larger draw goes first. Places come in ascending order.

Shape letters: K devices.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def top(worth: Array, num: int, draws: Array) -> Ints:
    """Gives the places of the `num` that are worth most. Shapes: [K], [K] -> [num].

    >>> top(np.array([1.0, 3.0, 3.0, 2.0]), 2, np.array([0.1, 0.2, 0.3, 0.4])).tolist()
    [1, 2]
    """
    return np.sort(np.lexsort((-draws, -worth))[:num])


def round_robin(last: Array, num: int, draws: Array) -> Ints:
    """Gives those that have waited longest; `last` is the round that each was last asked in, 0: never."""
    return top(-last, num, draws)


def best_channel(rate_bps: Array, num: int, draws: Array) -> Ints:
    """Gives those whose channels carry most now.

    Source: Knopp and Humblet, "Information capacity and power control in single-cell multiuser communications", ICC
    1995, whose rule for one sender at a time is taken for the cohort.
    """
    return top(rate_bps, num, draws)


def fedcs(compute_s: Array, up_s: Array, down_s: Array, deadline_s: float, num: int, draws: Array) -> Ints:
    """Gives as many as can be done by the deadline, taken greedily by the time that each adds; at most `num`.

    All receive the model at once, at the rate of the slowest chosen; they train side by side and send one after
    another. Selecting and aggregating take no time here.
    Source: Nishio and Yonetani, "Client selection for federated learning with heterogeneous resources in mobile edge",
    ICC 2019, section III.B, algorithm 3.
    """
    left = np.lexsort((-draws,))
    chosen: list[int] = []
    elapsed_s = slowest_s = 0.0
    while len(left) and len(chosen) < num:
        distribution = np.maximum(slowest_s, down_s[left])
        sending = elapsed_s + up_s[left] + np.maximum(0.0, compute_s[left] - elapsed_s)
        added = distribution - slowest_s + sending - elapsed_s
        place = int(np.argmin(added))
        if distribution[place] + sending[place] < deadline_s:
            chosen.append(int(left[place]))
            elapsed_s, slowest_s = float(sending[place]), float(distribution[place])
        left = np.delete(left, place)
    return np.sort(np.asarray(chosen, np.int64))


def statistical_utility(rows: Array, loss: Array) -> Array:
    """Gives rows x sqrt(mean of the squared losses): how much a device has left to teach.

    Source: Lai et al., "Oort: efficient federated learning via guided participant selection", OSDI 2021, section 4.2.
    Limits: devices tell the mean of their losses, not of the squares; it is taken for the root.
    """
    return rows * np.abs(loss)


def slowness(seconds: Array, preferred_s: float, alpha: float) -> Array:
    """Gives what Oort multiplies a utility by: (T / t)^alpha of those slower than T, 1 of the others.

    Source: Lai et al. 2021, equation 2.

    >>> slowness(np.array([1.0, 4.0]), 2.0, 2.0).tolist()
    [1.0, 0.25]
    """
    return np.where(seconds > preferred_s, (preferred_s / np.maximum(seconds, 1e-300)) ** alpha, 1.0)


def oort(
    utility: Array,
    last: Array,
    seconds: Array,
    expected_s: Array,
    num: int,
    *,
    number: int,
    explore: float,
    preferred_s: float,
    alpha: float,
    draws: Array,
) -> Ints:
    """Gives those worth most by utility and speed, and a share `explore` of ones never asked, fast ones sooner.

    `utility` is what each was last worth, `last` the round of that (0: never asked), `number` the round that is chosen
    for; `seconds` is what each took, `expected_s` what one never asked should take.
    Source: Lai et al. 2021, algorithm 1: utilities are cut at their 95th percentile, grow by sqrt(0.1 ln R / last) with
    the time since, and who comes within 95 % of the last that would be exploited is drawn by utility. Its blacklist of
    devices that were asked often is left out, as their implementation leaves it out unless told (from memory).
    """
    known = np.flatnonzero(last > 0)
    fresh = np.flatnonzero(last == 0)
    exploited = min(len(known), num - min(len(fresh), round(explore * num)))
    chosen = np.zeros(0, np.int64)
    if exploited:
        worth = np.minimum(utility[known], np.quantile(utility[known], 0.95))
        worth = worth + np.sqrt(0.1 * math.log(max(number, 1)) / last[known])
        worth = worth * slowness(seconds[known], preferred_s, alpha)
        least = 0.95 * np.sort(worth)[-exploited]
        pool = worth >= least
        chosen = known[pool][_drawn(worth[pool], exploited, draws[known][pool])]
    new = fresh[_drawn(1.0 / np.maximum(expected_s[fresh], 1e-9), num - exploited, draws[fresh])]
    return np.sort(np.concatenate([chosen, new]))


def pace(gained: list[float], window: int) -> bool:
    """Tells whether Oort is to wait for slower devices: the last `window` rounds gained less than those before.

    Source: Lai et al. 2021, algorithm 1, lines 5 to 7.
    """
    before, now = gained[-2 * window : -window], gained[-window:]
    return len(before) == window and sum(before) > sum(now)


def frugal(utility: Array, last: Array, joules: Array, num: int, *, number: int, thrift: float, draws: Array) -> Ints:
    """Gives those that teach most for their energy, none of them so often that what they teach wears off.

    A device's priority is its utility over joules^thrift, times the rounds since it was asked. In the long run each is
    then asked in proportion to utility / joules^thrift. With a thrift of 1/2 these are the frequencies that make the
    mean of the updates surest for the energy: optimum allocation to strata of unlike cost. With more it spends less,
    and hears less of the dear ones; none is left out for ever.
    Source: the frequencies, Cochran, "Sampling techniques", 3rd edition 1977, section 5.5 (from memory), a stratum a
    device; that the rounds since it was last asked spread them evenly is midhaul's own. Utility as Oort's.
    """
    known = last > 0
    hoped = utility[known].max(initial=0.0) or 1.0
    worth = np.where(known, np.maximum(utility, 1e-3 * hoped), hoped)
    return top(np.log(worth) - thrift * np.log(np.maximum(joules, 1e-12)) + np.log(number - last), num, draws)


def _drawn(weights: Array, num: int, draws: Array) -> Ints:
    """Gives places drawn by their weights, without repetition.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 2006:
    the `num` largest of u^(1 / w) are such a sample.
    """
    with np.errstate(divide="ignore"):
        return top(np.log(np.maximum(draws, 1e-300)) / np.maximum(weights, 1e-300), num, draws)
