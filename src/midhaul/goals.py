"""What a plan is to reach, and within what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from midhaul.config import parse_bytes
from midhaul.errors import ConfigError, nearest
from midhaul.units import format_bytes, format_joules, format_seconds

# What a run costs. Joules are of all devices together, seconds simulated; bytes cross the link, up and down.
COSTS = ("joules", "seconds", "bytes", "uplink_bytes", "downlink_bytes")
_TIMES = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
_KNOWN = ("joules", *_TIMES, "bytes", "uplink_bytes", "downlink_bytes")


class Limit(NamedTuple):
    """The most that a run may cost of one of COSTS."""

    cost: str
    most: float


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach, the limits to reach it within, and the cost to have least of."""

    accuracy: float
    limits: tuple[Limit, ...]
    least: str

    def excess(self, costs: Mapping[str, float]) -> tuple[float, str]:
        """Gives how many times over its limit the worst cost is, less one, and which it is; 0 and "" within all."""
        over = [(costs[cost] / most - 1.0, cost) for cost, most in self.limits]
        worst = max(over, default=(0.0, ""))
        return worst if worst[0] > 0.0 else (0.0, "")

    def __str__(self) -> str:
        within = " and ".join(f"{shown(cost, most)} {SAID[cost]}" for cost, most in self.limits)
        return f"{100.0 * self.accuracy:g} % accuracy" + (f" within {within}" if within else "")


SAID = {
    "joules": "of all devices",
    "seconds": "of simulated time",
    "bytes": "on the link",
    "uplink_bytes": "uplink",
    "downlink_bytes": "downlink",
}


def shown(cost: str, value: float) -> str:
    """Gives a cost as people read it.

    >>> shown("joules", 12.0), shown("seconds", 75.0), shown("uplink_bytes", 1536)
    ('12.0 J', '1m15s', '1.5 KiB')
    """
    if cost == "joules":
        return format_joules(value)
    return format_seconds(value) if cost == "seconds" else format_bytes(value)


def goal(target: str, within: str = "", least: str = "") -> Goal:
    """Reads --target, --within and --least.

    >>> goal("accuracy=0.9", "hours=2").limits
    (Limit(cost='seconds', most=7200.0),)

    Raises: ConfigError in one sentence.
    """
    name, _, text = target.partition("=")
    if name.strip() != "accuracy":
        raise ConfigError(f"--target {target!r} is not of the form accuracy=0.9")
    accuracy = _number("--target accuracy", text)
    if not 0.0 < accuracy <= 1.0:
        raise ConfigError(f"--target accuracy={text} is not a share of the test rows; give one above 0 and at most 1")
    limits = read_limits(within)
    if least and least not in COSTS:
        raise ConfigError(f"--least {least!r} is no cost{nearest(least, COSTS)}; choose among {', '.join(COSTS)}")
    return Goal(accuracy, limits, least or (limits[0].cost if limits else "joules"))


def read_limits(within: str, where: str = "--within") -> tuple[Limit, ...]:
    """Reads what a run may cost: joules=20,hours=6. Raises: ConfigError in one sentence."""
    limits = tuple(_limit(part, where) for part in within.split(",") if part.strip())
    if len({limit.cost for limit in limits}) < len(limits):
        raise ConfigError(f"{where} {within!r} limits the same cost twice; name each once")
    return limits


def _limit(part: str, where: str) -> Limit:
    name, sign, text = (piece.strip() for piece in part.partition("="))
    if name == "epsilon":
        raise ConfigError(f"{where} epsilon can't be planned for: no scheme here adds noise for privacy yet")
    if name not in _KNOWN or not sign:
        raise ConfigError(
            f"{where} {part.strip()!r} is no limit{nearest(name, _KNOWN)}; write for example joules=20,hours=6"
        )
    if name.endswith("bytes"):
        most, cost = float(parse_bytes(text)), name
    else:
        most, cost = _number(f"{where} {name}", text) * _TIMES.get(name, 1.0), "seconds" if name in _TIMES else name
    if most <= 0.0:
        raise ConfigError(f"{where} {name}={text} leaves nothing to spend; give more than 0")
    return Limit(cost, most)


def _number(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{what}={text} is not a number")
    return value
