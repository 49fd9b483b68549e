"""What can be changed in a run that is under way, and a decision to change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from midhaul.units import format_seconds
from midhaul.variants import Variant


@dataclass(frozen=True)
class Setting:
    """What can be changed while a run is under way: devices in a round, seconds that it waits for them (0: for all),
    each device's bits, none where they are as link.up says, and the width, cut or rank of what it holds, none where
    they are as they were dealt."""

    cohort: int
    deadline_s: float
    bits: tuple[int, ...]
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """A decision: the setting from the next round on, why and what in a sentence, and whether limits are kept by it.

    `was` is the setting until then, `short` the cost that would have run over, `because` what of the run is other than
    it was or was expected to be, a sentence each. `gone` are devices whose batteries are empty. `before` and `after`
    are what the run would come to without the change and is to come to with it, of each cost. `last` is the round that
    the run ends with from now on, as its limits allow no more; 0 where it keeps those that it had.
    """

    round: int
    was: Setting
    setting: Setting
    why: str
    kept: bool
    short: str
    because: tuple[str, ...]
    gone: tuple[int, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    last: int = 0

    def to_table(self) -> dict[str, Any]:
        """Gives it as plain values."""
        table = dataclasses.asdict(self)
        for name in ("was", "setting"):
            table[name] |= {part: list(table[name][part]) for part in ("bits", "held")}
        return {**table, "because": list(self.because), "gone": list(self.gone)}


def named(variant: Variant, differs: str) -> str:
    """Gives what of the model lies on a device by what sets it apart.

    >>> named(Variant(width=0.5), "width"), named(Variant(rank=4), "rank")
    ('width 0.5', 'rank 4')
    """
    value = getattr(variant, differs)
    return f"{differs} {value:g}" if differs == "width" else f"{differs} {value}"


def setting_of(table: Mapping[str, Any]) -> Setting:
    """Gives the setting of a table. Raises: KeyError, TypeError, ValueError for what is none."""
    bits, held = tuple(int(value) for value in table["bits"]), tuple(str(value) for value in table["held"])
    return Setting(int(table["cohort"]), float(table["deadline_s"]), bits, held)


def costs_of(table: Mapping[str, Any]) -> dict[str, float]:
    """Gives costs of a table. Raises: AttributeError, TypeError, ValueError for what are none."""
    return {cost: float(value) for cost, value in table.items()}


def devices(num: int) -> str:
    """Says so many devices."""
    return "1 device" if num == 1 else f"{num:,} devices"


def change_of(table: Mapping[str, Any]) -> Change:
    """Gives the change of a table. Raises: AttributeError, KeyError, TypeError, ValueError for what is none."""
    return Change(
        int(table["round"]),
        setting_of(table["was"]),
        setting_of(table["setting"]),
        str(table["why"]),
        bool(table["kept"]),
        str(table["short"]),
        tuple(map(str, table["because"])),
        tuple(int(device) for device in table["gone"]),
        costs_of(table["before"]),
        costs_of(table["after"]),
        int(table["last"]),
    )


def said(now: Setting, then: Setting, last: int = 0) -> list[str]:
    """Says what changes, and which round is the `last` from now on, if one is; nothing of settings that are alike.

    >>> said(Setting(4, 0.0, (8, 8)), Setting(1, 0.0, (4, 4)), 9)
    ['1 device a round in place of 4', 'updates in 4 bits on 2 devices', 'round 9 is the last']
    """
    told = [f"{devices(then.cohort)} a round in place of {now.cohort:,}"] if then.cohort != now.cohort else []
    if then.deadline_s != now.deadline_s:
        most = f"at most {format_seconds(then.deadline_s)}" if then.deadline_s else "all"
        told.append(f"a round waits for {most}")
    if then.bits != now.bits:
        counts = {value: then.bits.count(value) for value in sorted(set(then.bits), reverse=True)}
        told.append("updates in " + ", ".join(f"{value} bits on {num}" for value, num in counts.items()) + " devices")
    if then.held != now.held:
        kinds = sorted(set(then.held), reverse=True)
        told.append(", ".join(f"{kind} on {devices(then.held.count(kind))}" for kind in kinds))
    return [*told, f"round {last} is the last"] if last else told
