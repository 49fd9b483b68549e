"""Where the devices of a federation were: a line a gateway, as a report reads and shows it."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from midhaul.errors import CheckpointError
from midhaul.units import format_bytes

_COUNTS = ("answers", "reconnections", "bytes_up", "bytes_down")
HEADS = ("gateway", "devices", "what they are", "answers", "reconnected", "from it", "to it", "refused")


@dataclass(frozen=True)
class Gateway:
    """A gateway of a run: what it held, and what passed between it and the server. Units: bytes."""

    name: str
    num_devices: int
    holds: str  # what its devices are, as a sentence
    answers: int
    reconnections: int
    bytes_up: int
    bytes_down: int
    refused: dict[str, int]  # by kind


def read(value: object, where: str) -> tuple[Gateway, ...]:
    """Gives the gateways of a summary; nothing of a run on one machine. Raises: CheckpointError."""
    try:
        if value is None:
            return ()
        if not isinstance(value, list):
            raise TypeError
        return tuple(_gateway(row) for row in value)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{where}: 'gateways' aren't as a run writes them; repeat that run, or leave its folder out"
        ) from None


def cells(one: Gateway) -> list[str]:
    """Gives a gateway's line of the table under `HEADS`, as HTML."""
    return [
        html.escape(one.name),
        f"{one.num_devices:,}",
        html.escape(one.holds),
        f"{one.answers:,}",
        f"{one.reconnections:,}",
        format_bytes(one.bytes_up),
        format_bytes(one.bytes_down),
        html.escape(", ".join(f"{num:,} {kind}" for kind, num in sorted(one.refused.items())) or "0"),
    ]


def _gateway(row: dict[str, Any]) -> Gateway:
    texts = [row["name"], row.get("holds", "")]  # runs from before it was told have none
    counts = [row[name] for name in _COUNTS]
    devices, refused = row["devices"], row["refused"]
    if not isinstance(devices, list) or not isinstance(refused, dict):
        raise TypeError
    if not all(isinstance(text, str) and text.isprintable() for text in (*texts, *refused)):
        raise ValueError
    if any(type(num) is not int or num < 0 for num in (*counts, *refused.values())):
        raise ValueError
    answers, reconnections, bytes_up, bytes_down = counts
    return Gateway(texts[0], len(devices), texts[1], answers, reconnections, bytes_up, bytes_down, refused)
