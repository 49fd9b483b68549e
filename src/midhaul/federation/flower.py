"""A run over Flower's Message API: the ServerApp that runs the scheme, and what a ClientApp (`clientapp.py`) does.

SuperLink and SuperNodes give membership, TLS, authentication of nodes and the runs' management. A message of Flower
takes seconds and a process, so with the transport `stream` each SuperNode is sent one message, with the address and the
token of the run: it starts a ClientApp that lives as long as the run and opens the stream. With `messages` each
exchange is a message of its own (`messages.py`).

Limits: a SuperNode does one message at a time. A run of Flower doesn't survive its SuperLink; `resume = true` in a new
one goes on from midhaul's own checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from midhaul import config as settings
from midhaul import train
from midhaul.config import Config
from midhaul.errors import ConfigError, EngineError, MidhaulError
from midhaul.federation import join, messages, metrics, serve
from midhaul.federation.clientapp import RECORD, load, short
from midhaul.federation.events import Teller
from midhaul.federation.join import Rounds, Share
from midhaul.federation.messages import Content, Messages
from midhaul.federation.serve import Invitation, Place, Standing
from midhaul.fleet import Held
from midhaul.kit import Kit
from midhaul.plant import Engine, Plant
from midhaul.sentences import Sentence
from midhaul.server import Progress
from midhaul.train import Result, Tell

Options = Mapping[str, Any]
Here = Callable[[], set[str]]

POLL_S = 0.5
LAST_S = 20.0  # for the SuperNodes to say that they are done
AWAY_S = 20.0  # after which a SuperNode that isn't at the stream is invited again
PATIENCE_S = 600.0
OPTIONS: dict[str, Any] = {  # of --run-config, for projects that were written before there was one
    "transport": "stream", "listen": "127.0.0.1:9470", "tls": "", "out": "", "nodes": 0, "patience": 0.0,
    "metrics": "", "resume": False, "events": "",
}  # fmt: skip
LEVELS = {"detail": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("flwr")


def server_app(config: str) -> Any:
    """Gives the ServerApp of a run whose config is this TOML; run.config says transport, listen, tls, out and so on."""
    app = load("flwr.serverapp").ServerApp()

    def main(grid: Any, context: Any) -> None:
        options = {**OPTIONS, **context.run_config}
        told = Teller(str(options["events"]))
        try:
            _run(grid, config, options, told)
        except MidhaulError as error:
            _log.error("midhaul: %s", error)
            told("error", error=str(error))
            raise SystemExit(2) from None
        except Exception as error:
            told("error", error=f"the ServerApp failed with {type(error).__name__}: {error}")
            raise
        told("done")

    app.main()(main)
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
        return {int(r.metadata.src_node_id): read(r) for r in self.grid.send_and_receive(sent, timeout=self.timeout_s)}


def read(reply: Any) -> Content:
    """Gives what a reply says, or why it failed."""
    if reply.has_error():
        return {"error": f"Flower says: {reply.error.reason or reply.error.code}"}
    return dict(reply.content[RECORD])


class _Usher(threading.Thread):
    """Sends each SuperNode that comes the message that starts its ClientApp, and hears how these end.

    A SuperNode that isn't at the stream `AWAY_S` seconds after it was invited is invited again, where it is online:
    it was started anew, or its ClientApp has failed.
    """

    def __init__(self, courier: GridCourier, invitation: Invitation, here: Here, tell: Tell) -> None:
        super().__init__(name="usher", daemon=True)
        self.courier, self.here, self.tell = courier, here, tell
        root = {} if invitation.root is None else {"root": invitation.root}
        told = {"address": invitation.address, "token": invitation.token, "config": invitation.config}
        self.content = {"kind": "session", **told, **root}
        self.sent: dict[int, str] = {}  # the message of each node that hasn't answered
        self._asked: dict[int, float] = {}  # when each node was last invited, or seen at the stream
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
        there, now = self.here(), time.monotonic()
        for node in self.courier.nodes():
            if short(node) in there:
                self._asked[node] = now
            elif now - self._asked.get(node, -AWAY_S) >= AWAY_S:
                self._asked[node] = now
                (self.sent[node],) = self.courier.grid.push_messages([self.courier.message(node, self.content)])

    def _hear(self) -> None:
        asked = {message: node for node, message in self.sent.items()}  # Flower answers itself for a node that is gone
        for reply in self.courier.grid.pull_messages(list(asked)) if asked else ():
            if (node := asked.get(reply.metadata.reply_to_message_id)) is None:
                continue
            said = read(reply)
            self.sent.pop(node, None)
            self.tell(f"SuperNode {node}: {said.get('error') or said.get('done')!s}")


def _run(grid: Any, text: str, options: dict[str, Any], told: Teller) -> None:
    config = settings.from_table(tomllib.loads(text), where="the run's config")
    out = Path(str(options["out"] or f"runs/{config.scheme.name}-{config.run.seed}")).absolute()
    courier, transport = GridCourier(grid, config.fleet.deadline_s), str(options["transport"])

    tell, progress = _teller(told), told.progress
    ways = {"stream": _by_stream, "messages": _by_messages}
    if transport not in ways:
        raise ConfigError(f"transport is {transport!r}; it is stream or messages")
    result = ways[transport](courier, config, text, out, options, tell, progress)
    _log.info("accuracy %.4f, model_sha256 %s", result.summary["accuracy"], result.summary["model_sha256"])
    if not options["events"]:  # else who hears them writes it
        from midhaul import report

        _log.info("report: %s", report.write([out], out / "report.html"))


def _by_messages(
    courier: GridCourier, config: Config, text: str, out: Path, options: Options, tell: Tell, progress: Progress
) -> Result:
    fleets: list[Messages] = []

    def reach(kit: Kit, simulated: Engine) -> Held:
        fleet = Messages(kit.groups, simulated.population, courier, text, simulated=simulated, tell=tell)
        _meet(fleet, courier, int(options["nodes"]), float(options["patience"]), tell)
        fleets.append(fleet)
        return fleet

    gateways, resume = config.replace(run_engine="gateways"), bool(options["resume"])
    result = train.run(gateways, out, resume=resume, tell=tell, reach=reach, progress=progress)
    for fleet in fleets:
        courier.timeout_s = LAST_S
        fleet.dismiss()
    return result


def _by_stream(
    courier: GridCourier, config: Config, text: str, out: Path, options: Options, tell: Tell, progress: Progress
) -> Result:
    tls = Path(str(options["tls"])) if options["tls"] else None
    standings: list[Standing] = []
    ushers: list[_Usher] = []

    def here() -> set[str]:
        peers = () if standings[0].gateways is None else list(standings[0].gateways.peers.values())
        return {peer.name.rpartition("-")[2] for peer in peers if peer.connection is not None}

    def opened(invitation: Invitation) -> None:
        ushers.append(_Usher(courier, invitation, here, tell))
        ushers[0].start()

    with contextlib.ExitStack() as stack:

        def dismissed() -> None:
            for usher in ushers:
                usher.end()

        stack.callback(dismissed)

        def watched(standing: Standing) -> None:
            standings.append(standing)
            if options["metrics"]:
                stack.callback(metrics.start(str(options["metrics"]), standing.to_table))

        return serve.serve(
            config,
            out,
            Place.of(str(options["listen"]), tls),
            resume=bool(options["resume"]),
            num_gateways=int(options["nodes"]),
            patience_s=float(options["patience"]),
            tell=tell,
            progress=progress,
            watched=watched,
            opened=opened,
            joins="SuperNodes are invited to it",
        )


def _meet(fleet: Messages, courier: GridCourier, num: int, patience_s: float, tell: Tell) -> None:
    """Waits for the SuperNodes that hold the run's devices. Raises: EngineError at the end of its patience."""
    end, known = time.monotonic() + (patience_s or float("inf")), set[int]()
    while fleet.missing() and not 0 < num <= len({*fleet.holder.values()}):
        here = {*courier.nodes()}
        new, known = here - known, here  # who went away and came back, with other devices perhaps, is asked again
        if new:
            fleet.meet()
            tell(f"{len({*fleet.holder.values()})} SuperNodes; nobody holds {len(fleet.missing())} devices")
        elif time.monotonic() > end:
            raise EngineError(
                f"after {patience_s:g} s no SuperNode holds device {fleet.missing()[0]}; start those that do"
            )
        else:
            time.sleep(POLL_S)


def _teller(told: Teller) -> Tell:
    """Gives what tells a sentence to Flower's log, unless it is a detail, and to the command that started the app."""

    def tell(line: str) -> None:
        level = line.level if isinstance(line, Sentence) else "info"
        _log.log(LEVELS[level], line)
        told.line(line)

    return tell


def hold(said: Mapping[str, Any], node: Mapping[str, Any], name: str, told: Teller) -> dict[str, Any]:
    """Holds a SuperNode's devices at the stream until the run ends, and says what it did. Raises: MidhaulError."""
    began, counts = time.monotonic(), {"turns": 0, "connections": 0}
    run = hashlib.sha256(str(said["token"]).encode()).hexdigest()[:16]
    done: dict[str, Any] = {"devices": [], "has_joined": False, "run": run}
    told("session", run=run)

    tell = _teller(told)
    built: Plant | None = None
    try:
        share = share_of(node)
        built = join.build(str(said["config"]), share)
        rounds, patience_s = Rounds(tell, name), float(node.get("patience", PATIENCE_S))
        address, token = str(said["address"]), str(said["token"])
        gateway = join.gateway_of(built, address, token, name, said.get("root"), share, patience_s, rounds)
        done["devices"] = list(gateway.devices)
        try:
            gateway.run()
        finally:
            counts = {"turns": gateway.done, "connections": gateway.connections}
            done["has_joined"] = gateway.connections > 0
        rounds.end()
        told("ended", **done, **counts)
        return {"done": f"{gateway.done} turns in {time.monotonic() - began:.1f} s"}
    except MidhaulError as error:
        told("ended", error=str(error), **done, **counts)
        raise
    finally:
        join.close(built)


def answer_once(said: Content, node: Mapping[str, Any], told: Teller) -> dict[str, Any]:
    """Gives the answer to a message where nothing outlives it. Raises: MidhaulError."""
    share, built = share_of(node), None
    try:
        built = join.build(str(said["config"]), share)
        return dict(messages.answer(built, said, gives_rows=share.gives_rows, tell=told.line))
    finally:
        join.close(built)


def share_of(node: Mapping[str, Any]) -> Share:
    known = {"data", "share", "devices", "engine", "gives_rows", "set", "name", "patience", "events", "resident"}
    if odd := [name for name in node if name not in known]:
        raise ConfigError(f"--node-config has {odd[0]}; midhaul knows {', '.join(sorted(known))}")
    data, share, devices, engine = (str(node.get(name, "")) for name in ("data", "share", "devices", "engine"))
    try:
        changes = tuple(map(str, json.loads(str(node.get("set") or "[]"))))
    except (ValueError, TypeError):
        raise ConfigError("--node-config has a set that is no list in JSON, such as '[\"data.seed=1\"]'") from None
    return Share(data, share, devices, engine, changes, gives_rows=bool(node.get("gives_rows", False)))
