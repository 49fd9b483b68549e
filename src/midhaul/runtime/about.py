"""What a gateway tells of its devices when a run has ended: what computed, and what happened to those with firmware."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from midhaul.message import Op
from midhaul.runtime.envelope import Refusal, Refused
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.groups import kernels_of
from midhaul.runtime.hello import MAX_HOLDS
from midhaul.runtime.shadow import Engine

MAX_BYTES = 1 << 24
MAX_TEXT = 400
_EVENTS = ("connected", "lost", "reset", "refused", "rejoined")
_EVENT = {"round": int, "device": int, "address": str, "what": str, "reason": str}
_STATS = {
    "device": int, "address": str, "arena_peak_bytes": int, "stack_peak_bytes": int, "store_used_bytes": int,
    "arena_bytes": int,
}  # fmt: skip
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class About:
    """`kernels` say by op what computed it; `events` and `stats` are those of `runtime.firmware.Firmware`."""

    kernels: dict[str, str]
    events: Rows
    stats: Rows


def holds(engine: Engine) -> str:
    """Says what an engine's devices are, as a sentence."""
    if isinstance(engine, Firmware):
        return engine.about[:MAX_HOLDS]
    num = len({*engine.devices, *engine.test_devices})
    return f"{num} simulated device{'' if num == 1 else 's'}"


def of(engine: Engine) -> bytes:
    """Gives what an engine has to tell, as bytes."""
    kernels: dict[str, str] = {}
    for part in [engine.simulated.kernels] if isinstance(engine, Firmware) else kernels_of(engine):
        kernels |= {op: by[:MAX_TEXT] for op, by in part.told().items() if kernels.get(op, "native") == "native"}
    events, stats = (engine.events, engine.stats()) if isinstance(engine, Firmware) else ([], [])
    return json.dumps({"kernels": kernels, "events": events, "stats": stats}).encode()


def read(data: bytes, devices: Collection[int]) -> About:
    """Gives it again, of a gateway that holds these devices. Raises: Refused for whatever isn't it."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError
        table = json.loads(data)
        kernels = {op: by for op, by in table["kernels"].items() if op in Op.__members__}
        if not all(isinstance(by, str) and len(by) <= MAX_TEXT for by in kernels.values()):
            raise ValueError
        events = [_row(row, _EVENT, devices) for row in table["events"]]
        if any(row["what"] not in _EVENTS for row in events):
            raise ValueError
        return About(kernels, events, [_row(row, _STATS, devices) for row in table["stats"]])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Refused(Refusal.MALFORMED, "what a gateway tells of its devices can't be read") from None


def merged(parts: Iterable[About]) -> About:
    """Gives what several gateways told as one: of an op that both kernels and torch did, what torch had to do."""
    kernels, events, stats = dict[str, str](), Rows(), Rows()
    for part in parts:
        kernels |= {op: by for op, by in part.kernels.items() if kernels.get(op, "native") == "native"}
        events += part.events
        stats += part.stats
    return About(
        dict(sorted(kernels.items())),
        sorted(events, key=lambda row: (row["round"], row["device"])),
        sorted(stats, key=lambda row: int(row["device"])),
    )


def _row(row: Any, fields: dict[str, type], devices: Collection[int]) -> dict[str, Any]:
    found = {name: row[name] for name in fields}
    for name, kind in fields.items():
        value = found[name]
        if type(value) is not kind or (isinstance(value, str) and len(value) > MAX_TEXT):
            raise ValueError
        if isinstance(value, int) and not 0 <= value < 2**53:
            raise ValueError
    if found["device"] not in devices:
        raise ValueError
    return found
