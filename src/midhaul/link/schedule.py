"""Who gets how much of a shared band, and sends with what power: the least energy by a deadline, or the least time.

Devices send at once, each in a part of its own of the band (FDMA), or one after another in all of it (TDMA). Of b Hz
and p watts one gets b log2(1 + g p / b) bits a second; g is its gain over the noise, in Hz a watt: the bandwidth in
which one watt at its antenna arrives as strong as the noise. A device begins to send when its computing is done,
`ready_s`, and must have sent `bits` by the deadline. It spends t (P0 + p / eta) over the t seconds that it sends.

Of a bandwidth the energy is V(b), with the best of all times t; V is convex and falling, so the optimum has one slope
-V'(b_k) = lambda for all who get more than they need at least, and lambda is found by a search on a line. Let x be
ln 2 times the bits a second and Hz, phi(x) = (x - 1) e^x + 1, a = ln 2 times the bits, c = 1 / (eta g). Then

- who uses all its time T:         -V' = c T phi(x),         b = a / (T x), where x = 1 + W((lambda / (c T) - 1) / e);
- who ends sooner, P0 is so large: -V' = P0 a / (b^2 x),     b = P0 eta g / phi(x);
- who sends with all its power:    -V' = (P0 + p / eta) a dr/db / r^2, with r(b) = b ln(1 + g p / b).

Limits: g is the same in every part of the band and stays while a device sends; rates are Shannon's, so a gap to what
codes reach belongs into g (an infinite number of Hz is worth g p / ln 2 bits a second).
Source: the first case without P0 is the usual one, as in Yang et al., "Energy efficient federated learning over
wireless communication networks", IEEE Trans. Wireless Commun. 2021, section III (from memory); the other two follow
from the same conditions, worked out here.

Shape letters: K devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from midhaul.errors import ConfigError
from midhaul.link.lambert import falling, phi, phi_inverse, rising, slope_of_snr, snr_of_rate
from midhaul.units import format_seconds

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_STEPS = 100  # of a bisection, which ends sooner where it is at the last bit


class ScheduleError(ConfigError):
    """A deadline that can't be kept. `nearest_s` is the soonest that can be; infinite if none can."""

    def __init__(self, message: str, nearest_s: float) -> None:
        super().__init__(message)
        self.nearest_s = nearest_s


@dataclass(frozen=True)
class Uplinks:
    """What devices have to send, and with what. Shapes: [K] each.

    Units: bits; seconds from the beginning until a device is ready to send; `gain_hz_w` Hz a watt; watts. `max_w` is
    the most at the antenna, `circuit_w` P0, `efficiency` eta.
    """

    bits: Array
    ready_s: Array
    gain_hz_w: Array
    max_w: Array
    circuit_w: Array
    efficiency: Array

    def __post_init__(self) -> None:
        shape = np.shape(self.bits)
        for part in fields(self):
            value = np.asarray(getattr(self, part.name), np.float64)
            object.__setattr__(self, part.name, value)
            strict = part.name in ("gain_hz_w", "max_w", "efficiency")
            low = bool((value > 0.0).all()) if strict else bool((value >= 0.0).all())
            if value.shape != shape or value.ndim != 1 or not low or np.isnan(value).any():
                wanted = "above 0" if strict else "not below 0"
                raise ConfigError(f"an allocation takes one {part.name} a device, each {wanted}")
            if part.name != "efficiency" and np.isinf(value).any():
                raise ConfigError(f"an allocation takes finite numbers of {part.name}; some are infinite")

    def __len__(self) -> int:
        return len(self.bits)

    def of(self, chosen: Mask | npt.NDArray[np.int64]) -> Uplinks:
        """Gives some of them."""
        return Uplinks(*(getattr(self, part.name)[chosen] for part in fields(self)))


@dataclass(frozen=True)
class Allocation:
    """Who sends in how many Hz, with what power, for how long, when it is done, what it spends. Shapes: [K] each."""

    bandwidth_hz: Array
    power_w: Array
    send_s: Array
    finish_s: Array
    joules: Array

    @property
    def last_s(self) -> float:
        """When the last one is done."""
        return float(self.finish_s.max(initial=0.0))


def gain_of_rate(rate_bps: float, bandwidth_hz: float, power_w: float) -> float:
    """Gives the gain in Hz a watt at which so much bandwidth and power come to this rate.

    >>> round(gain_of_rate(3e6, 1e6, 0.5))  # 3 bit/s/Hz is a signal of 7 times the noise
    14000000
    """
    return math.expm1(math.log(2.0) * rate_bps / bandwidth_hz) * bandwidth_hz / power_w


def equal(links: Uplinks, bandwidth_hz: float, deadline_s: float = math.inf) -> Allocation:
    """Gives each the same bandwidth; each then sends with the power and for the time that cost it least.

    Who can't make the deadline sends with all its power and is late. Without a deadline nobody hurries, but for what
    its circuits draw meanwhile; one that draws nothing sends with all its power.
    """
    sending = links.bits > 0.0
    share = np.where(sending, _band(bandwidth_hz) / max(int(sending.sum()), 1), 0.0)
    return _sent(links, share, deadline_s)


def min_time(links: Uplinks, bandwidth_hz: float) -> Allocation:
    """Gives the bandwidths with which the last one is done soonest: all send with all power, and end together.

    One that is ready only after all others could have ended keeps its part of the band to itself until then.
    """
    last_s = soonest(links, bandwidth_hz)
    return _sent(links, _scaled(_least_bandwidth(links, last_s), bandwidth_hz), last_s, hurry=True)


def soonest(links: Uplinks, bandwidth_hz: float) -> float:
    """Gives the soonest deadline that all can keep. Raises: ConfigError for a band without bandwidth."""
    band = _band(bandwidth_hz)
    if not (links.bits > 0.0).any():
        return float(links.ready_s.max(initial=0.0))
    sending = links.of(links.bits > 0.0)
    low = float((sending.ready_s + sending.bits * math.log(2.0) / (sending.gain_hz_w * sending.max_w)).max())
    high = max(_sent(sending, np.full(len(sending), band / len(sending)), 0.0, hurry=True).last_s, low)
    for _ in range(_STEPS):  # a shorter time needs more bandwidth
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if float(_least_bandwidth(sending, middle).sum()) <= band else (middle, high)
    return max(high, float(links.ready_s.max()))


def min_energy(links: Uplinks, bandwidth_hz: float, deadline_s: float) -> Allocation:
    """Gives the bandwidths, powers and times with which all are done by the deadline for the least energy together.

    Raises: ScheduleError for a deadline that can't be kept, with the soonest that can be.
    """
    band = _band(bandwidth_hz)
    if not deadline_s < math.inf:
        raise ConfigError(
            "the least energy is that by a deadline; without one the slowest would be the best, so set one"
        )
    sending = links.bits > 0.0
    least = _least_bandwidth(links, deadline_s)
    if float(least.sum()) > band * (1.0 + 1e-12) or bool((links.ready_s > deadline_s).any()):
        nearest_s = soonest(links, bandwidth_hz)
        num = f"{len(links)} devices" if len(links) > 1 else "a device alone"
        raise ScheduleError(
            f"{num} can't have sent all by {format_seconds(deadline_s)} in {band / 1e6:.4g} MHz; the soonest "
            f"deadline that can be kept is {nearest_s:.6g} s",
            nearest_s,
        )
    if not sending.any():
        return _sent(links, np.zeros(len(links)), deadline_s)
    share = np.zeros(len(links))
    share[sending] = _Slopes(links.of(sending), least[sending], deadline_s).bandwidth(band)
    return _sent(links, share, deadline_s)


def admitted(links: Uplinks, bandwidth_hz: float, deadline_s: float) -> Mask:
    """Gives the most devices that can all keep the deadline: those that need least of the band. Shapes: [K]."""
    least = _least_bandwidth(links, deadline_s)
    order = np.argsort(least, kind="stable")
    fits = np.cumsum(least[order]) <= _band(bandwidth_hz)
    chosen = np.zeros(len(links), np.bool_)
    chosen[order[fits]] = True
    return chosen & (links.ready_s <= deadline_s)


def in_turns(links: Uplinks, bandwidth_hz: float, deadline_s: float = math.inf) -> Allocation:
    """Gives each the whole band for a while, one after another as they become ready (TDMA), for the least energy.

    What a second of the band is worth adds to what the circuits draw in it: each sends as if its P0 were larger by the
    least price at which all are done by the deadline. Where it can't be kept all send with all power, and the last are
    late. With circuits that draw much this costs far less than parts of the band side by side, as nobody sends for
    long. Limits: with one price for all it is the optimum for devices that are ready at once, else near it.
    """
    band = np.where(links.bits > 0.0, _band(bandwidth_hz), 0.0)
    order = np.argsort(links.ready_s, kind="stable")

    def priced(price_w: float) -> Allocation:
        hurry = math.isinf(price_w)
        dearer = links if hurry else replace(links, circuit_w=links.circuit_w + price_w)
        alone = _sent(dearer, band, math.inf, hurry=hurry)
        finish = links.ready_s.copy()
        free_s = 0.0
        for place in order[links.bits[order] > 0.0]:
            free_s = finish[place] = max(free_s, links.ready_s[place]) + alone.send_s[place]
        joules = alone.send_s * (links.circuit_w + alone.power_w / links.efficiency)
        return replace(alone, finish_s=finish, joules=joules)

    def late(log_price: float) -> float:
        return priced(math.exp(log_price)).last_s - deadline_s

    calm, low, high = priced(0.0), -60.0, 60.0
    if calm.last_s <= deadline_s and (math.isinf(deadline_s) or bool((links.circuit_w > 0.0).all())):
        return calm
    if late(high) > 0.0:
        return priced(math.inf)
    while high - low > 1e-12 * max(1.0, abs(high)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if late(middle) > 0.0 else (low, middle)
    return priced(math.exp(high))


def cheapest(links: Uplinks, bandwidth_hz: float, deadline_s: float) -> Allocation:
    """Gives what spends less by the deadline: all side by side in parts of the band, or one after another in all of it.

    Raises: ScheduleError for a deadline that can be kept in neither way, with the soonest that can be side by side.
    """
    turns = in_turns(links, bandwidth_hz, deadline_s)
    try:
        beside = min_energy(links, bandwidth_hz, deadline_s)
    except ScheduleError:
        if turns.last_s <= deadline_s * (1.0 + 1e-9):
            return turns
        raise
    late = turns.last_s > deadline_s * (1.0 + 1e-9)
    return beside if late or beside.joules.sum() <= turns.joules.sum() else turns


class _Slopes:
    """The bandwidth of each device at which its energy falls by lambda joules a Hz."""

    def __init__(self, links: Uplinks, least: Array, deadline_s: float) -> None:
        self.a = links.bits * math.log(2.0)
        self.time_s = deadline_s - links.ready_s
        self.c = 1.0 / (links.efficiency * links.gain_hz_w)
        self.kappa = links.circuit_w * links.efficiency * links.gain_hz_w
        self.top = links.gain_hz_w * links.max_w  # Hz in which full power is as strong as the noise
        self.full_j = links.circuit_w + links.max_w / links.efficiency  # a second at full power
        self.circuit_w, self.least = links.circuit_w, least
        # Where all its time is no longer the best of times, and where full power is the best of powers.
        infinite = np.full(len(links), math.inf)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x_time = falling(lambda x: self.kappa * x / phi(x), self.a / self.time_s)
            x_full = falling(lambda x: self.kappa / self.top * np.expm1(x) / phi(x), np.ones(len(links)))
            b_time = np.where(self.kappa > 0.0, self.kappa / phi(x_time), infinite)
            b_full = np.where(self.kappa > 0.0, self.kappa / phi(x_full), infinite)
        self.b_time = np.maximum(b_time, least)
        self.b_full = np.maximum(b_full, least)
        never = b_full <= b_time  # full power is the best as soon as all time isn't
        hurried = b_full <= least
        self.b_time = np.where(hurried, least, np.where(never, self.b_full, self.b_time))
        self.b_full = np.maximum(self.b_full, self.b_time)
        # The slopes at these places; energy is convex, so they fall with the bandwidth.
        self.at_least = np.where(hurried, self._slope_full(least), self._slope_time(least))
        self.at_time = np.minimum(np.where(hurried, self.at_least, self._slope_time(self.b_time)), self.at_least)
        self.at_full = np.minimum(np.where(np.isinf(self.b_full), 0.0, self._slope_full(self.b_full)), self.at_time)

    def bandwidth(self, band: float) -> Array:
        """Gives the bandwidths that fill the band with one lambda for all."""

        def over(log_slope: float) -> float:
            return math.log(float(self.of(math.exp(log_slope)).sum()) / band)

        high = float(np.log(self.at_least.max()))
        if float(self.least.sum()) >= band * (1.0 - 1e-12) or not math.isfinite(high):
            return self.least
        low = high - 1.0
        while over(low) < 0.0:
            low -= 2.0 * (high - low)
            if low < -700.0:  # nobody's energy falls any more: whatever is left of the band is of no use
                return self.of(math.exp(-700.0))
        if over(high) >= 0.0:
            return self.least
        from scipy.optimize import brentq  # here alone: a run without a shared band need not wait for it

        root = brentq(over, low, high, xtol=1e-15 * max(1.0, abs(high)), rtol=8.9e-16, maxiter=200)
        share = self.of(math.exp(root))
        above = share - self.least
        return np.asarray(self.least + above * min(1.0, (band - self.least.sum()) / above.sum()))

    def of(self, slope: float) -> Array:
        """Gives each one's bandwidth for a lambda."""
        share = self.least.copy()
        timed = (slope < self.at_least) & (slope >= self.at_time) & (self.at_time < self.at_least)
        share[timed] = (self.a / self.time_s)[timed] / phi_inverse(slope / (self.c * self.time_s)[timed])
        free = (slope < self.at_time) & (slope >= self.at_full)
        if free.any():
            target = slope * self.kappa[free] ** 2 / (self.circuit_w * self.a)[free]
            share[free] = self.kappa[free] / phi(rising(lambda x: phi(x) ** 2 / x, target))
        full = slope < self.at_full
        if full.any():
            target = slope * self.top[full] ** 2 / (self.full_j * self.a)[full]
            share[full] = self.top[full] / rising(slope_of_snr, target, high=80.0)
        return np.maximum(share, self.least)

    def _slope_time(self, b: Array) -> Array:
        return self.c * self.time_s * phi(self.a / (b * self.time_s))

    def _slope_full(self, b: Array) -> Array:
        return self.full_j * self.a / self.top**2 * slope_of_snr(self.top / b)


def _least_bandwidth(links: Uplinks, deadline_s: float) -> Array:
    """Gives the bandwidth with which each is done by the deadline at full power; infinite where none will do."""
    left = deadline_s - links.ready_s
    top = links.gain_hz_w * links.max_w
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(left > 0.0, links.bits * math.log(2.0) / (left * top), 1.0)
        need = np.where(y < 1.0, top / snr_of_rate(y), math.inf)
    return np.where(links.bits > 0.0, need, 0.0)


def _sent(links: Uplinks, share: Array, deadline_s: float, *, hurry: bool = False) -> Allocation:
    """Gives what comes of bandwidths: each sends for the time that costs it least, in a hurry with all its power."""
    sending = links.bits > 0.0
    band = np.where(sending, share, 1.0)
    a, top = links.bits * math.log(2.0), links.gain_hz_w * links.max_w
    fastest = np.where(sending, a / (band * np.log1p(top / band)), 0.0)
    send = fastest
    if not hurry:
        kappa = links.circuit_w * links.efficiency * links.gain_hz_w
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            best = np.where(kappa > 0.0, a / (band * phi_inverse(kappa / band)), math.inf)
        left = deadline_s - links.ready_s
        latest = np.where(np.isinf(left), best, np.minimum(best, left))
        send = np.where(np.isfinite(latest), np.maximum(fastest, latest), fastest)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        rate = np.where(send > 0.0, a / (send * band), 0.0)
        power = np.where(send <= fastest, links.max_w, band / links.gain_hz_w * np.expm1(rate))
    power = np.where(sending, power, 0.0)
    joules = send * (links.circuit_w + power / links.efficiency)
    return Allocation(np.where(sending, share, 0.0), power, send, links.ready_s + send, joules)


def _scaled(share: Array, band: float) -> Array:
    """Gives bandwidths that fill the band, where rounding left some of it."""
    total = float(share.sum())
    return share * (band / total) if total > 0.0 else share


def _band(bandwidth_hz: float) -> float:
    if not 0.0 < bandwidth_hz < math.inf:
        raise ConfigError(f"a shared band has a bandwidth above 0 Hz, not {bandwidth_hz}; set link.bandwidth_mhz")
    return float(bandwidth_hz)
