"""Where a run's joules and seconds went, device by device, and what an accuracy had cost, as a report reads them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midhaul.errors import CheckpointError
from midhaul.runtime.ledger import WHATS
from midhaul.units import format_joules

MAX_DEVICES = 1_000_000


@dataclass(frozen=True)
class Spent:
    """What each device spent on computing, sending, receiving and having nothing to do. Units: joules, seconds.

    `gone` is the round in which a device's battery was empty, None where it isn't.
    """

    names: tuple[str, ...]
    joules: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, tuple[float, ...]]
    gone: tuple[int | None, ...]

    def totals(self, of: str) -> tuple[float, ...]:
        """Gives each device's "joules" or "seconds" of all kinds together."""
        parts = self.joules if of == "joules" else self.seconds
        return tuple(sum(each) for each in zip(*(parts[what] for what in WHATS), strict=True))

    @property
    def num_gone(self) -> int:
        """How many devices' batteries are empty."""
        return len(self.gone) - self.gone.count(None)


@dataclass(frozen=True)
class Target:
    """An accuracy that a run was to reach, and what it had cost by then; None where it wasn't reached.

    Units: seconds simulated, joules of all devices, bytes both ways.
    """

    accuracy: float
    round: int | None
    seconds: float | None
    joules: float | None
    bytes: float | None


@dataclass(frozen=True)
class ToTarget:
    """What an accuracy cost, mean over the seeds that reached it; None where none did."""

    accuracy: float
    num_reached: int
    num_seeds: int
    round: float | None
    seconds: float | None
    joules: float | None
    bytes: float | None


def read(table: object, where: str) -> Spent:
    """Gives where it went, of a JSON table. Raises: CheckpointError naming what isn't as a run writes it."""
    if not isinstance(table, dict):
        raise _wrong(where, "spent")
    names, gone = table.get("names"), table.get("gone")
    if not isinstance(names, list) or len(names) > MAX_DEVICES or not all(isinstance(name, str) for name in names):
        raise _wrong(where, "names")
    if not isinstance(gone, list) or len(gone) != len(names):
        raise _wrong(where, "gone")
    if not all(number is None or (type(number) is int and number >= 0) for number in gone):
        raise _wrong(where, "gone")
    parts = {of: _parts(table.get(of), len(names), where, of) for of in ("joules", "seconds")}
    return Spent(tuple(names), parts["joules"], parts["seconds"], tuple(gone))


def read_target(table: object, where: str) -> Target | None:
    """Gives the target of a JSON table, None for none. Raises: CheckpointError."""
    if table is None:
        return None
    if not isinstance(table, dict) or not _is_number(table.get("accuracy"), 1.0):
        raise _wrong(where, "target")
    names = ("round", "seconds", "joules", "uplink_bytes", "downlink_bytes")
    found = [table.get(name) for name in names]
    if all(value is None for value in found):
        return Target(table["accuracy"], None, None, None, None)
    for name, value in zip(names, found, strict=True):
        if not _is_number(value, 1e300):
            raise _wrong(where, f"target, {name}")
    number, seconds, joules, up, down = (float(value) for value in found if value is not None)
    return Target(table["accuracy"], int(number), seconds, joules, up + down)


def to_target(targets: Sequence[Target | None]) -> ToTarget | None:
    """Gives what an accuracy cost over seeds, None if they had none or not the same."""
    known = [target for target in targets if target is not None]
    if not known or len(known) < len(targets) or len({target.accuracy for target in known}) > 1:
        return None
    hit = [target for target in known if target.round is not None]
    each = [
        statistics.fmean(values) if (values := [getattr(target, name) for target in hit]) else None
        for name in ("round", "seconds", "joules", "bytes")
    ]
    return ToTarget(known[0].accuracy, len(hit), len(known), *each)


def about(spent: Spent) -> str:
    """Says in a sentence or two what most of the energy went into, and whose battery is empty."""
    totals = {what: sum(spent.joules[what]) for what in WHATS}
    whole = sum(totals.values())
    if not whole:
        return "The devices spent no energy that is counted."
    most = max(totals, key=lambda what: totals[what])
    words = {"compute": "computing", "transmit": "sending", "receive": "receiving", "idle": "having nothing to do"}
    told = f"{100 * totals[most] / whole:.0f} % of {format_joules(whole)} went into {words[most]}."
    own = sorted(spent.totals("joules"))
    if len(own) > 1:
        told += f" The device that spent most spent {format_joules(own[-1])}, the one in the middle "
        told += f"{format_joules(own[len(own) // 2])}."
    if spent.num_gone:
        first = min(number for number in spent.gone if number is not None)
        told += f" The batteries of {spent.num_gone:,} of {len(spent.names):,} devices are empty, the first since "
        told += f"round {first}; these are gone."
    return told


def _parts(table: object, num: int, where: str, of: str) -> dict[str, tuple[float, ...]]:
    if not isinstance(table, dict):
        raise _wrong(where, of)
    parts = {}
    for what in WHATS:
        values = table.get(what)
        if not isinstance(values, list) or len(values) != num or not all(_is_number(v, 1e300) for v in values):
            raise _wrong(where, f"{of}, {what}")
        parts[what] = tuple(float(value) for value in values)
    return parts


def _is_number(value: object, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= high


def _wrong(where: str, name: str) -> CheckpointError:
    return CheckpointError(f"{where}: {name!r} isn't as a run writes it; repeat that run, or leave its folder out")
