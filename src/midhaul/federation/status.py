"""How a run on many machines is doing, as an operator sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from midhaul.errors import ConfigError
from midhaul.federation import certs, desk
from midhaul.federation.desk import Unreachable
from midhaul.federation.passes import Bearer
from midhaul.units import format_bytes, format_joules, format_numbers, format_seconds

__all__ = ["COLUMNS", "NOBODY", "Unreachable", "ask", "bar", "heading", "rows", "sentences"]

NOBODY = "no gateway is here yet"
COLUMNS = ("gateway", "devices", "is", "answers", "back", "from it", "to it", "refused", "address")


def ask(address: str, tls: Path | None, name: str, *, comes_again: bool = False) -> dict[str, Any]:
    """Gives a server's standing (`serve.Standing.to_table`). Who `comes_again` is waited for at the run's end.

    Raises: EngineError where there is no server to ask.
    """
    who = Bearer("server", certs.read(tls, "server")) if tls and not name and _is_server(tls) else None
    what = "Watch" if comes_again else "Status"
    told = desk.ask(desk.joined(*desk.parse(address)), what, who or desk.bearer(address, tls, name))
    if not isinstance(told.get("gateways"), list):
        raise ConfigError(f"the server at {address} told nothing that can be read; install the same midhaul")
    return told


def heading(told: dict[str, Any], width: int = 80) -> list[str]:
    """Gives the lines above the table: the run and its phase, how far it is and until when, and what it has come to.

    Units of `width`: characters.
    """
    done, rounds = told["round"], told["rounds"]
    rate = f", {format_seconds(told['round_seconds'])} a round" if told["round_seconds"] else ""
    left = (
        f", {format_seconds(told['seconds_left'])} left" if told["seconds_left"] and told["phase"] == "training" else ""
    )
    words = f" {100 * done // rounds} %{rate}{left}"
    head = f"round {done} of {rounds} "
    lines = [
        f"{told['scheme']} on {told['data']}: {told['phase']}, for {format_seconds(told['seconds'])}",
        f"{head}{bar(done, rounds, max(8, width - len(head) - len(words)))}{words}",
    ]
    found = [
        f"{name} {100 * told[key]:.1f} %"
        for name, key in (("accuracy", "accuracy"), ("large model", "large_accuracy"))
        if told[key] is not None
    ]
    found += [f"{format_bytes(told['uplink_bytes'])} up", f"{format_bytes(told['downlink_bytes'])} down"]
    found += [format_joules(told["device_joules"])]
    if told["checkpoint_s"] is not None:
        found.append(f"checkpoint {format_seconds(max(0.0, told['at_s'] - told['checkpoint_s']))} ago")
    return [*lines, ", ".join(found)] if done or told["accuracy"] is not None else lines


def bar(done: int, total: int, width: int) -> str:
    """Draws how far something is.

    >>> bar(1, 4, 10)
    '[##------]'
    """
    full = (width - 2) * done // total
    return f"[{'#' * full}{'-' * (width - 2 - full)}]"


def rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a gateway."""
    found: list[tuple[str, ...]] = []
    for gateway in told["gateways"]:
        state = "late" if gateway["is_late"] else "at work" if gateway["is_busy"] else "here"
        state = state if gateway["is_connected"] else "away"
        sizes = (format_bytes(gateway["bytes_up"]), format_bytes(gateway["bytes_down"]))
        counts = (str(gateway["answers"]), str(gateway["reconnections"]))
        refused = str(sum(gateway["refused"].values()))
        devices = str(len(gateway["devices"]))
        found.append((gateway["name"], devices, state, *counts, *sizes, refused, _host(gateway["address"])))
    return found


def sentences(told: dict[str, Any]) -> list[str]:
    """What else there is to know."""
    found = []
    if told["missing"]:
        found.append(f"nobody holds the devices {format_numbers(told['missing'])}")
    if told["refused"]:
        found.append("refused: " + ", ".join(f"{num} {kind}" for kind, num in sorted(told["refused"].items())))
    return found


def _host(address: str) -> str:
    """Gives the host of an address of gRPC: what port a gateway calls from says nothing."""
    return unquote(address).partition(":")[2].rpartition(":")[0].removeprefix("[").removesuffix("]") or "-"


def _is_server(tls: Path) -> bool:
    return (tls / "server.key").exists()
