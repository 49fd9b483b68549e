"""A SuperLink whose door is for SuperNodes: `python -m midhaul.federation.gate` with the words of `flower-superlink`.

Flower 1.41 serves three interfaces at one port: for SuperNodes (fleet), for those who submit runs and register keys
(control), and for the processes that run apps (runtime). Only the first asks who is there. So of requests from other
machines this one lets in those of the fleet alone: nobody else can have the server run code, or register a key.

Limits: whoever has an account on the SuperLink's machine is let in, as with Flower, and so is who comes by a port that
something on it forwards, since that seems to come from the machine itself.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

from midhaul.errors import DependencyError

FOR_ALL = ("/v1/fleet/", "/health")
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[None]]


class Gate:
    """Middleware of an ASGI application: a stranger's request that isn't for everybody is answered with 403."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        if scope["type"] in ("http", "websocket") and not is_let_in(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            kind = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": kind})
            await send({"type": "http.response.body", "body": b"only the SuperLink's own machine may ask for this\n"})
            return
        await self.app(scope, receive, send)


def is_let_in(scope: Scope) -> bool:
    """Tells whether a request is for everybody, or comes from this machine."""
    if str(scope["path"]).startswith(FOR_ALL):
        return True
    client, server = (str((scope.get(side) or [""])[0]) for side in ("client", "server"))
    try:
        return ipaddress.ip_address(client).is_loopback or client == server
    except ValueError:
        return False


def main() -> None:
    """Runs the SuperLink. Raises: DependencyError where Flower has no such hook any more."""
    extensions: Any = import_module("flwr.superlink.extensions")
    if not callable(getattr(extensions, "get_middleware", None)):
        raise DependencyError("this Flower has no middleware for its SuperLink; install midhaul[flower]")
    middleware, others = import_module("starlette.middleware").Middleware, extensions.get_middleware
    os.environ["FORWARDED_ALLOW_IPS"] = "127.0.0.1"  # uvicorn's: whose word is taken for whom a request is from
    extensions.get_middleware = lambda: (middleware(Gate), *others())
    import_module("flwr.superlink.cli.flower_superlink").flower_superlink()


if __name__ == "__main__":
    main()
