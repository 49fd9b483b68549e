"""What a run has spent so far, by kind of byte, by device, and by what it went into; the checkpoint holds all of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

Kinds = dict[str, int]
# What devices spend energy and time on: a board at work, a radio that sends or receives, and all else.
WHATS = ("compute", "transmit", "receive", "idle")


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
    joules: dict[str, float] = field(default_factory=dict)
    absent: int = 0
    refused: int = 0
    uncovered: int = 0
    updates: int = 0
    simulated_seconds: float = 0.0
    joules_of: dict[str, dict[str, float]] = field(default_factory=lambda: {what: {} for what in WHATS})
    seconds_of: dict[str, dict[str, float]] = field(default_factory=lambda: {what: {} for what in WHATS})
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
        return sum(self.joules.values())

    def to_table(self) -> dict[str, Any]:
        """Gives the ledger as plain values, for whoever writes them down at once: nothing is copied deeply, as it holds
        an entry for each device that ever took part."""
        return {place.name: getattr(self, place.name) for place in fields(self)}
