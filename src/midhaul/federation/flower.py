"""A run as Flower's apps, over its Message API: a ServerApp that runs the scheme, a ClientApp that is a gateway.

SuperLink and SuperNodes give membership, TLS, authentication of nodes and the runs' management. A message of Flower
takes seconds and a process, so with the transport `stream` each SuperNode is sent one message, with the address and the
token of the run: it starts a ClientApp that lives as long as the run and opens the stream. With `messages` each
exchange is a message of its own (`messages.py`).

Limits: a SuperNode does one message at a time. A run of Flower doesn't survive its SuperLink; `resume = true` in a new
one goes on from midhaul's own checkpoint.
"""

from __future__ import annotations

import logging
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from midhaul import config as settings
from midhaul import train
from midhaul.config import Config
from midhaul.errors import ConfigError, DependencyError, EngineError, MidhaulError
from midhaul.federation import join, messages, serve
from midhaul.federation.join import Rounds, Share
from midhaul.federation.messages import Content, Messages
from midhaul.federation.serve import Invitation, Place
from midhaul.fleet import Held
from midhaul.kit import Kit
from midhaul.plant import Engine
from midhaul.runtime.firmware import Firmware

RECORD = "midhaul"
POLL_S = 0.5
LAST_S = 20.0  # for the SuperNodes to say that they are done
PATIENCE_S = 600.0
_log = logging.getLogger("flwr")


def load(name: str) -> Any:
    """Gives a module of Flower. Raises: DependencyError without it."""
    try:
        return import_module(name)
    except ImportError:
        raise DependencyError("Flower isn't installed; install midhaul[flower]") from None


def server_app(config: str) -> Any:
    """Gives the ServerApp of a run whose config is this TOML; run.config says transport, listen, tls, out and so on."""
    app = load("flwr.serverapp").ServerApp()

    def main(grid: Any, context: Any) -> None:
        told = settings.from_table(tomllib.loads(config), where="the run's config")
        try:
            _run(grid, told, config, dict(context.run_config))
        except MidhaulError as error:
            _log.error("midhaul: %s", error)
            raise SystemExit(2) from None

    app.main()(main)
    return app


def client_app() -> Any:
    """Gives the ClientApp: a gateway with the devices that its SuperNode's --node-config names."""
    app, flower = load("flwr.clientapp").ClientApp(), load("flwr.app")

    def train(message: Any, context: Any) -> Any:
        said = dict(message.content[RECORD])
        try:
            done = _serve(said, _share(context.node_config), f"supernode-{context.node_id}")
        except MidhaulError as error:
            done = {"error": str(error)}
        return flower.Message(flower.RecordDict({RECORD: flower.ConfigRecord(done)}), reply_to=message)

    app.train()(train)
    return app


class GridCourier:
    """Flower's grid as a courier. `timeout_s` is how long the answers of one exchange are waited for."""

    def __init__(self, grid: Any, timeout_s: float) -> None:
        self.grid, self.timeout_s, self.flower = grid, timeout_s, load("flwr.app")

    def nodes(self) -> list[int]:
        return sorted(self.grid.get_node_ids())

    def message(self, node: int, content: Mapping[str, Any]) -> Any:
        record = self.flower.RecordDict({RECORD: self.flower.ConfigRecord(dict(content))})
        return self.flower.Message(record, dst_node_id=node, message_type="train")

    def carry(self, contents: Mapping[int, Content]) -> dict[int, Content]:
        sent = [self.message(node, content) for node, content in contents.items()]
        return dict(map(read, self.grid.send_and_receive(sent, timeout=self.timeout_s)))


def read(reply: Any) -> tuple[int, Content]:
    """Gives a reply's node, and what it says or why it failed."""
    node = int(reply.metadata.src_node_id)
    if reply.has_error():
        return node, {"error": f"Flower says: {reply.error.reason or reply.error.code}"}
    return node, dict(reply.content[RECORD])


class _Usher(threading.Thread):
    """Sends each SuperNode that comes the message that starts its ClientApp, and hears how these end."""

    def __init__(self, courier: GridCourier, invitation: Invitation, tell: Callable[[str], None]) -> None:
        super().__init__(name="usher", daemon=True)
        self.courier, self.tell = courier, tell
        root = {} if invitation.root is None else {"root": invitation.root}
        told = {"address": invitation.address, "token": invitation.token, "config": invitation.config}
        self.content = {"kind": "session", **told, **root}
        self.sent: dict[int, str] = {}  # the message of each node that hasn't answered
        self._seen: set[int] = set()
        self._over = threading.Event()

    def run(self) -> None:
        end = float("inf")
        while time.monotonic() < end and not (self._over.is_set() and not self.sent):
            if self._over.is_set() and end == float("inf"):
                end = time.monotonic() + LAST_S
            if not self._over.is_set():
                self._invite()
            self._hear()
            self._over.wait(POLL_S) if not self._over.is_set() else time.sleep(POLL_S)

    def end(self) -> None:
        """Waits until the SuperNodes have said that they are done."""
        self._over.set()
        self.join()

    def _invite(self) -> None:
        for node in self.courier.nodes():
            if node not in self._seen:
                self._seen.add(node)
                (self.sent[node],) = self.courier.grid.push_messages([self.courier.message(node, self.content)])

    def _hear(self) -> None:
        for reply in self.courier.grid.pull_messages(list(self.sent.values())) if self.sent else ():
            node, said = read(reply)
            self.sent.pop(node, None)
            self.tell(f"SuperNode {node}: {said.get('error') or said.get('done')!s}")


def _run(grid: Any, config: Config, text: str, options: dict[str, Any]) -> None:
    transport, out = str(options["transport"]), Path(str(options["out"])).absolute()
    courier, resume, tell = GridCourier(grid, config.fleet.deadline_s), bool(options["resume"]), _log.info
    num = int(options["nodes"])
    if transport == "messages":

        def reach(kit: Kit, simulated: Engine) -> Held:
            fleet = Messages(kit.groups, simulated.population, courier, text, simulated=simulated, tell=tell)
            _meet(fleet, courier, num, tell)
            return fleet

        result = train.run(
            config.replace(run_engine="gateways"), out, resume=resume, tell=tell, reach=reach, progress=_progress(tell)
        )
    elif transport == "stream":
        tls = Path(str(options["tls"])) if options["tls"] else None
        ushers: list[_Usher] = []

        def opened(invitation: Invitation) -> None:
            ushers.append(_Usher(courier, invitation, tell))
            ushers[0].start()

        try:
            result = serve.serve(
                config,
                out,
                Place.of(str(options["listen"]), tls),
                resume=resume,
                num_gateways=num,
                tell=tell,
                progress=_progress(tell),
                opened=opened,
            )
        finally:
            for usher in ushers:
                usher.end()
    else:
        raise ConfigError(f"transport is {transport!r}; it is stream or messages")
    from midhaul import report

    page = report.write([out], out / "report.html")
    tell("accuracy %.4f, model_sha256 %s", result.summary["accuracy"], result.summary["model_sha256"])
    tell(f"report: {page}")


def _meet(fleet: Messages, courier: GridCourier, num: int, tell: Callable[[str], None]) -> None:
    """Waits for the SuperNodes that hold the run's devices. Raises: EngineError at the end of its patience."""
    end, known = time.monotonic() + PATIENCE_S, 0
    while fleet.missing() and not 0 < num <= len({*fleet.holder.values()}):
        if len(nodes := courier.nodes()) > known:
            known = len(nodes)
            fleet.meet()
            tell(f"{len({*fleet.holder.values()})} SuperNodes; nobody holds {len(fleet.missing())} devices")
        elif time.monotonic() > end:
            raise EngineError(
                f"after {PATIENCE_S:g} s no SuperNode holds device {fleet.missing()[0]}; start those that do"
            )
        time.sleep(POLL_S)


def _serve(said: dict[str, Any], share: Share, name: str) -> dict[str, Any]:
    """Does what a message asks of a SuperNode. Raises: MidhaulError."""
    built = join.build(str(said["config"]), share)
    try:
        if said["kind"] != "session":
            return dict(messages.answer(built, said, gives_rows=share.gives_rows))
        began, rounds = time.monotonic(), Rounds(_log.info, name)
        root, token = said.get("root"), str(said["token"])
        gateway = join.gateway_of(built, str(said["address"]), token, name, root, share, PATIENCE_S, rounds)
        gateway.run()
        rounds.end()
        return {"done": f"{gateway.done} turns in {time.monotonic() - began:.1f} s"}
    finally:
        if isinstance(built.engine, Firmware):
            built.engine.close()


def _share(node: Mapping[str, Any]) -> Share:
    known = {"data", "share", "devices", "engine", "gives_rows"}
    if odd := [name for name in node if name not in known]:
        raise ConfigError(f"--node-config has {odd[0]}; midhaul knows {', '.join(sorted(known))}")
    data, share, devices, engine = (str(node.get(name, "")) for name in ("data", "share", "devices", "engine"))
    return Share(data, share, devices, engine, gives_rows=bool(node.get("gives_rows", False)))


def _progress(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    def progress(label: str, done: int, total: int) -> None:
        if label == "rounds":
            tell(f"round {done} of {total}")

    return progress
