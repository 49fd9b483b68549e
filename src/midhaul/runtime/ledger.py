"""What a run has spent so far, by kind of byte, by device, and by what it went into; the checkpoint holds all of it.

Shape letters: D devices named, K devices that have an amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Kinds = dict[str, int]
Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
# What devices spend energy and time on: a board at work, a radio that sends or receives, and all else.
WHATS = ("compute", "transmit", "receive", "idle")
_NONE = -1


class Amounts(Mapping[str, float]):
    """An amount of each device that has one, by its number in text as a checkpoint has it; in arrays, so that those of
    a cohort are read and added to at once.

    They stand in the order in which the devices first had one, and are added up in it.

    >>> spent = Amounts({"7": 1.0})
    >>> spent.add(np.array([2, 7]), np.array([0.5, 0.25]))
    >>> dict(spent), spent.total
    ({'7': 1.25, '2': 0.5}, 1.75)
    """

    def __init__(self, held: Mapping[str, float] | None = None) -> None:
        self._place = np.full(0, _NONE, np.int64)  # of each device, in what follows
        self._devices = np.zeros(0, np.int64)
        self._values = np.zeros(0)
        if held:
            self.add(np.asarray([*map(int, held)], np.int64), np.asarray([*held.values()], np.float64))

    def __getitem__(self, name: str) -> float:
        device = int(name)
        place = self._place[device] if 0 <= device < len(self._place) else _NONE
        if place == _NONE:
            raise KeyError(name)
        return float(self._values[place])

    def __iter__(self) -> Iterator[str]:
        return map(str, self._devices.tolist())

    def __len__(self) -> int:
        return len(self._devices)

    def __repr__(self) -> str:
        return repr(dict(self))

    @property
    def total(self) -> float:
        """All amounts together, added one after another."""
        return float(np.add.accumulate(self._values[: len(self)])[-1]) if len(self) else 0.0

    def of(self, devices: Ints) -> Doubles:
        """Gives the amounts of devices, 0 for those that have none. Shapes: [D]."""
        return np.asarray([self.get(name, 0.0) for name in map(str, devices.tolist())])

    def add(self, devices: Ints, amounts: Doubles | float) -> None:
        """Adds to the amounts of devices, none of which is named twice. Shapes: [D], [D]."""
        places = self._places(devices)
        self._values[places] += amounts

    def add_one(self, device: int, amount: float) -> None:
        """Adds to the amount of a device."""
        if device < len(self._place) and (place := self._place[device]) != _NONE:
            self._values[place] += amount
        else:
            self.add(np.asarray([device], np.int64), amount)

    def _places(self, devices: Ints) -> Ints:
        """Gives where the amounts of devices are; those that have none get one. Shapes: [D]."""
        try:
            places = self._place[devices]
        except IndexError:
            most = int(devices.max())
            more = np.full(most + 1 - len(self._place) + most // 4, _NONE, np.int64)
            self._place = np.concatenate([self._place, more])
            places = self._place[devices]
        if (new := places == _NONE).any():
            fresh, held = devices[new], len(self)
            self._devices = np.concatenate([self._devices, fresh])
            self._place[fresh] = np.arange(held, len(self))
            if len(self) > len(self._values):
                self._values = np.concatenate([self._values, np.zeros(len(self) + len(self) // 4 - len(self._values))])
            places = self._place[devices]
        return places


@dataclass(frozen=True, eq=False)
class Times(Mapping[int, tuple[float, float]]):
    """What an exchange took each device, on air and computing; in arrays. Units: seconds. Shapes: [D] each."""

    at: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    air_s: Doubles = field(default_factory=lambda: np.zeros(0))
    busy_s: Doubles = field(default_factory=lambda: np.zeros(0))

    @cached_property
    def _each(self) -> dict[int, tuple[float, float]]:
        both = zip(self.air_s.tolist(), self.busy_s.tolist(), strict=True)
        return dict(zip(self.at.tolist(), both, strict=True))

    def __getitem__(self, device: int) -> tuple[float, float]:
        return self._each[device]

    def __iter__(self) -> Iterator[int]:
        return iter(self._each)

    def __len__(self) -> int:
        return len(self._each)


@dataclass
class Ledger:
    """What a run has spent so far. Units: bytes, seconds, joules.

    `joules` is of each device, and `joules_of` and `seconds_of` say for each of WHATS what of it went there. `gone`
    tells the round in which a device's battery was empty. `rests` is since when a device has had nothing to do, and
    what that was charged for already.
    """

    kinds_up: Kinds = field(default_factory=dict)
    kinds_down: Kinds = field(default_factory=dict)
    air_seconds: float = 0.0
    compute_seconds: float = 0.0
    joules: Amounts = field(default_factory=Amounts)
    absent: int = 0
    refused: int = 0
    uncovered: int = 0
    updates: int = 0
    simulated_seconds: float = 0.0
    joules_of: dict[str, Amounts] = field(default_factory=lambda: {what: Amounts() for what in WHATS})
    seconds_of: dict[str, Amounts] = field(default_factory=lambda: {what: Amounts() for what in WHATS})
    gone: dict[str, int] = field(default_factory=dict)
    rests: dict[str, list[float]] = field(default_factory=dict)

    @property
    def uplink_bytes(self) -> int:
        """Bytes that the devices sent."""
        return sum(self.kinds_up.values())

    @property
    def downlink_bytes(self) -> int:
        """Bytes that the devices were sent."""
        return sum(self.kinds_down.values())

    @property
    def device_joules(self) -> float:
        """What all devices spent together, for radio and computing."""
        return self.joules.total

    def to_table(self) -> dict[str, Any]:
        """Gives the ledger as plain values, for whoever writes them down at once: what is plain already isn't copied,
        as it holds an entry for each device that ever took part."""
        table = {place.name: getattr(self, place.name) for place in fields(self)}
        parts = {name: {what: dict(each) for what, each in table[name].items()} for name in ("joules_of", "seconds_of")}
        return {**table, **parts, "joules": dict(self.joules)}

    def restore(self, table: Mapping[str, Any]) -> None:
        """Puts the ledger back to where `to_table` found it. Raises: KeyError, TypeError or ValueError for what that
        can't have given."""
        for place in fields(self):
            value = table[place.name]
            if place.name == "joules":
                value = Amounts(value)
            elif place.name in ("joules_of", "seconds_of"):
                value = {what: Amounts(value[what]) for what in WHATS}
            setattr(self, place.name, value)
