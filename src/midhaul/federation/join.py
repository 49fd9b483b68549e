"""A gateway's side of a run on many machines: what `midhaul join` does.

It shows its pass at the server's desk, gets the run's config and token, makes the same partition of the same data,
holds its share of the devices, and serves until the run ends. A server that starts anew finds it again.
"""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midhaul import config as settings
from midhaul import plant
from midhaul.config import Config
from midhaul.errors import ConfigError, EngineError
from midhaul.federation import claims, desk
from midhaul.federation.desk import Unreachable
from midhaul.link import update
from midhaul.message import Op
from midhaul.plant import Plant
from midhaul.runtime import channel
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.gateway import Gateway
from midhaul.runtime.parcel import Answer, Ask, Models
from midhaul.sentences import Sentence
from midhaul.train import Tell

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0


@dataclass(frozen=True)
class Share:
    """What a gateway has of a run: which devices (`claims.members`), where those are that aren't simulated
    (`run.devices`), and the settings of this machine alone."""

    data: str = ""
    share: str = ""
    devices: str = ""
    engine: str = ""
    changes: tuple[str, ...] = ()
    gives_rows: bool = False


@dataclass(frozen=True)
class Served:
    """What a gateway did until the run ended."""

    name: str
    devices: tuple[int, ...]
    turns: int
    connections: int
    seconds: float

    def to_table(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "devices": list(self.devices),
            "turns": self.turns,
            "connections": self.connections,
            "seconds": self.seconds,
        }


def join(
    address: str,
    share: Share,
    *,
    tls: Path | None = None,
    name: str = "",
    patience_s: float = 600.0,
    tell: Tell = lambda line: None,
) -> Served:
    """Serves a run as a gateway until it ends.

    `patience_s` is how long it looks for a server that isn't there.
    Raises: MidhaulError, in one sentence, where the server refuses it or it can't have what it claims.
    """
    began, token, why, turns, connections = time.monotonic(), "", "", 0, 0
    own = desk.bearer(address, tls, name)
    target = desk.joined(*desk.parse(address))
    while True:
        told = _enrol(target, tls, own.name, patience_s, tell)
        if told["token"] == token:
            raise EngineError(why)
        token = told["token"]
        built = build(told["config"], share)
        root = None if own.material is None else own.material.root
        rounds = Rounds(tell, own.name)
        gateway = gateway_of(built, target, token, own.name, root, share, patience_s, rounds)
        try:
            gateway.run()
            rounds.end()
            tell(Sentence("the run has ended", "end", level="detail", gateway=own.name))
            done, times = turns + gateway.done, connections + gateway.connections
            return Served(own.name, gateway.devices, done, times, time.monotonic() - began)
        except EngineError as error:
            # A server that was started anew has another token: it is asked for it, and everything begins again.
            why, turns, connections = str(error), turns + gateway.done, connections + gateway.connections
        finally:
            close(built)


def gateway_of(
    built: Plant,
    address: str,
    token: str,
    name: str,
    root: bytes | None,
    share: Share,
    patience_s: float,
    rounds: Rounds,
) -> Gateway:
    """Gives the gateway of a plant's devices, which tells `rounds` what it does. `root` is whom to trust, in PEM."""
    gateway = Gateway(
        built.engine,  # type: ignore[arg-type]
        Models.of(built.kit.groups),
        address=address,
        token=token,
        name=name,
        credentials=None if root is None else channel.load().ssl_channel_credentials(root),
        after=built.after,
        gives_rows=share.gives_rows,
        patience_s=patience_s,
        keepalive_s=built.kit.config.fleet.keepalive_s,
    )
    gateway.tell, gateway.saw = rounds.tell, rounds
    rounds.tell(about(built, gateway.devices))
    return gateway


def build(config: str, share: Share) -> Plant:
    """Gives the plant of a gateway's devices from the config that the server told. Raises: MidhaulError."""
    try:
        table = settings.override(tomllib.loads(config), share.changes)
    except tomllib.TOMLDecodeError:
        raise EngineError("the server's config isn't one; install the same midhaul on both sides") from None
    told = settings.from_table(table, where="the server's config")
    return plant.build(
        _own(told, share), members=lambda federation: claims.members(federation, share.data, share.share)
    )


def close(built: Plant | None) -> None:
    """Lets go of the devices with firmware."""
    if built is not None and isinstance(built.engine, Firmware):
        built.engine.close()


def about(built: Plant, devices: tuple[int, ...]) -> str:
    """Says what a gateway has, as a sentence."""
    rows = [len(built.federation.train[d]) for d in devices if d < len(built.federation.train)]
    trains = f"{len(rows)} devices that train on {sum(rows)} rows" if rows else "no device that trains"
    tests = len(devices) - len(rows)
    where = f"; {built.engine.about}" if isinstance(built.engine, Firmware) else ""
    return f"{built.dataset.name}: {trains}" + (f", {tests} that only test" if tests else "") + where


def _own(config: Config, share: Share) -> Config:
    """Gives the config as this machine runs it."""
    engine = share.engine or ("firmware" if share.devices else "stacked")
    if share.devices and engine != "firmware":
        raise ConfigError(f"--devices is for --engine firmware, and the engine is {engine}; leave out --engine")
    up = update.parse(config.link.up, "link.up")
    if engine == "firmware" and config.fleet.quorum and config.link.error_feedback and up is not None and up.is_biased:
        raise ConfigError(
            "what devices with firmware owe lies on them alone, so a round that is below fleet.quorum can't be "
            "repeated as it was; set link.error_feedback = false or fleet.quorum = 0, or simulate the devices"
        )
    changes: dict[str, Any] = {"run_engine": engine}
    return config.replace(**changes, **({"run_devices": share.devices} if share.devices else {}))


def _enrol(address: str, tls: Path | None, name: str, patience_s: float, tell: Tell) -> dict[str, Any]:
    """Shows a pass until somebody is there to look at it. Raises: EngineError at the end of its patience."""
    wait_s, began, has_told = FIRST_WAIT_S, time.monotonic(), False
    while True:
        shown = desk.bearer(address, tls, name)
        try:
            return desk.ask(address, "Join", shown)
        except Unreachable as error:
            if time.monotonic() - began > patience_s:
                raise EngineError(f"{error}, and there was none for {patience_s:g} s; start `midhaul serve`") from None
            if not has_told:
                tell(f"{error} yet; looking for it for up to {patience_s:g} s")
                has_told = True
        except EngineError:
            if desk.bearer(address, tls, name).secret == shown.secret:
                raise  # else what it showed was read before this server had put down its own
        time.sleep(wait_s)
        wait_s = min(2.0 * wait_s, LONGEST_WAIT_S)


class Rounds:
    """Tells a line when a round's test was done: which ops, of how many devices, in which time."""

    def __init__(self, tell: Tell, name: str) -> None:
        self.tell, self.name = tell, name
        self.round, self.ops, self.began = -1, dict[str, int](), time.monotonic()

    def __call__(self, ask: Ask, answer: Answer) -> None:
        if ask.key.round != self.round:
            self.end()
            self.round, self.ops, self.began = ask.key.round, {}, time.monotonic()
        name = Op(ask.message.op).name
        self.ops[name] = self.ops.get(name, 0) + len(answer.replies)
        if name == "EVALUATE":
            self.end()

    def end(self) -> None:
        if self.ops:
            told = ", ".join(f"{num} {name}" for name, num in self.ops.items())
            took_s = time.monotonic() - self.began
            line, number = f"round {self.round}: {told} in {took_s:.2f} s", self.round
            self.tell(Sentence(line, "served", gateway=self.name, round=number, seconds=took_s, answers=self.ops))
        self.ops = {}
