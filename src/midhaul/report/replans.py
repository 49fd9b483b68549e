"""How a run was planned again while it was under way: when, why, what changed, and what was left of its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midhaul.changes import Change, Setting, said
from midhaul.errors import CheckpointError
from midhaul.goals import COSTS, SAID, Limit, shown
from midhaul.report.spent import MAX_DEVICES


def changes(one: Change) -> list[str]:
    """Says what is done otherwise from the next round on."""
    return said(one.was, one.setting, one.last) or ["nothing"]


def forecasts(one: Change, limits: Sequence[Limit]) -> list[str]:
    """Says of each limited cost what the run was to come to, and is to come to, of how much."""
    return [
        f"{shown(cost, one.after[cost])} in place of {shown(cost, one.before[cost])}, of {shown(cost, most)} "
        f"{SAID[cost]}"
        for cost, most in limits
        if cost in one.before and cost in one.after
    ]


def read(table: object, where: str) -> Change | None:
    """Gives a new plan of a JSON table; None for one from before it was told why. Raises: CheckpointError."""
    try:
        if not isinstance(table, dict):
            raise TypeError
        if "because" not in table:
            return None
        before, after = ({cost: _number(table[name][cost]) for cost in COSTS} for name in ("before", "after"))
        gone = tuple(int(_number(device)) for device in table["gone"])
        because = tuple(_line(line) for line in table["because"])
        if table["short"] not in COSTS or not isinstance(table["kept"], bool) or len(gone) > MAX_DEVICES:
            raise ValueError
        each = (_setting(table["was"]), _setting(table["setting"]))
        at, last = int(_number(table["round"])), int(_number(table.get("last", 0)))
        why = _line(table.get("why", ""))
        return Change(at, *each, why, table["kept"], table["short"], because, gone, before, after, last)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{where}: 'replans' aren't as a run writes them; repeat that run, or leave its folder out"
        ) from None


def read_forecast(table: object, where: str) -> dict[str, float]:
    """Gives what a run was to come to as of a round, of each cost; nothing of none. Raises: CheckpointError."""
    if table is None:
        return {}
    try:
        if not isinstance(table, dict):
            raise TypeError
        return {cost: _number(table[cost]) for cost in COSTS}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{where}: 'forecast' isn't as a run writes it; repeat that run, or leave its folder out"
        ) from None


def _setting(table: Any) -> Setting:
    bits = tuple(int(_number(value)) for value in table["bits"])
    held = tuple(_line(value) for value in table.get("held", ()))
    if max(len(bits), len(held)) > MAX_DEVICES:
        raise ValueError
    return Setting(int(_number(table["cohort"])), _number(table["deadline_s"]), bits, held)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1e300:
        raise ValueError
    return float(value)


def _line(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError
    return value
