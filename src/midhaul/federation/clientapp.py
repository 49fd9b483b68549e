"""A gateway as Flower's ClientApp. It imports what it needs, since Flower starts a process for each message."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from midhaul.errors import DependencyError, MidhaulError
from midhaul.federation.events import Teller

RECORD = "midhaul"
_log = logging.getLogger("flwr")


def load(name: str) -> Any:
    """Gives a module of Flower. Raises: DependencyError without it."""
    try:
        return import_module(name)
    except ImportError:
        raise DependencyError("Flower isn't installed; install midhaul[flower]") from None


def client_app() -> Any:
    """Gives the ClientApp: a gateway with the devices that its SuperNode's --node-config names."""
    app = load("flwr.clientapp").ClientApp()
    app.train()(handle)
    return app


def handle(message: Any, context: Any) -> Any:
    """Does what a message of the ServerApp asks for; gives Flower's message with the answer, or why there is none."""
    flower = load("flwr.app")
    said, node = dict(message.content[RECORD]), dict(context.node_config)
    told = Teller(str(node.get("events", "")))
    try:
        done = _done(said, node, context.node_id, told)
    except MidhaulError as error:
        _log.error("midhaul: %s", error)
        done = {"error": str(error)}
    except Exception as error:
        told.line(f"the ClientApp failed with {type(error).__name__}: {error}")
        raise
    return flower.Message(flower.RecordDict({RECORD: flower.ConfigRecord(done)}), reply_to=message)


def _done(said: dict[str, Any], node: dict[str, Any], node_id: int, told: Teller) -> dict[str, Any]:
    if said["kind"] == "end":
        told("ended", run="", devices=[], has_joined=False, turns=0, connections=0)
        return {"done": "the run has ended"}
    if said["kind"] == "session":
        from midhaul.federation import flower

        return flower.hold(said, node, f"{node.get('name') or 'supernode'}-{short(node_id)}", told)
    if node.get("resident"):
        from midhaul.federation import resident

        done: dict[str, Any] = resident.ask(str(node["resident"]), said)
    else:
        from midhaul.federation import flower

        done = flower.answer_once(said, node, told)
    if "error" in done:
        told.line(str(done["error"]))
    else:
        told("turn")
    return done


def short(node: int) -> str:
    """Gives a SuperNode's number in the few letters that its gateway's name ends with."""
    return f"{node & 0xFFFFFFFF:08x}"
