"""How a run on many machines is doing, as an operator sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from midhaul.errors import ConfigError
from midhaul.federation import certs, desk
from midhaul.federation.passes import Bearer
from midhaul.units import format_bytes, format_numbers, format_seconds

COLUMNS = ("gateway", "devices", "is", "answers", "back", "from it", "to it", "refused", "address")


def ask(address: str, tls: Path | None, name: str) -> dict[str, Any]:
    """Gives a server's standing (`serve.Standing.to_table`). Raises: EngineError where there is no server to ask."""
    who = Bearer("server", certs.read(tls, "server")) if tls and not name and _is_server(tls) else None
    told = desk.ask(desk.joined(*desk.parse(address)), "Status", who or desk.bearer(address, tls, name))
    if not isinstance(told.get("gateways"), list):
        raise ConfigError(f"the server at {address} told nothing that can be read; install the same midhaul")
    return told


def heading(told: dict[str, Any]) -> str:
    """One line of the run."""
    accuracy = f", accuracy {100 * told['accuracy']:.1f} %" if told["accuracy"] is not None else ""
    rate = f", {format_seconds(told['round_seconds'])} a round" if told["round_seconds"] else ""
    where = f"{told['phase']}, round {told['round']} of {told['rounds']}"
    return f"{told['scheme']} on {told['data']}: {where}{accuracy}{rate}, since {format_seconds(told['seconds'])}"


def rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a gateway."""
    found: list[tuple[str, ...]] = []
    for gateway in told["gateways"]:
        state = "away" if not gateway["is_connected"] else "late" if gateway["is_busy"] else "here"
        sizes = (format_bytes(gateway["bytes_up"]), format_bytes(gateway["bytes_down"]))
        counts = (str(gateway["answers"]), str(gateway["reconnections"]))
        refused = str(sum(gateway["refused"].values()))
        devices = str(len(gateway["devices"]))
        found.append((gateway["name"], devices, state, *counts, *sizes, refused, gateway["address"] or "-"))
    return found


def sentences(told: dict[str, Any]) -> list[str]:
    """What else there is to know."""
    found = []
    if told["missing"]:
        found.append(f"nobody holds the devices {format_numbers(told['missing'])}")
    if told["refused"]:
        found.append("refused: " + ", ".join(f"{num} {kind}" for kind, num in sorted(told["refused"].items())))
    return found


def _is_server(tls: Path) -> bool:
    return (tls / "server.key").exists()
