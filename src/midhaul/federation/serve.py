"""The server's side of a run on many machines: what `midhaul serve` starts, and what it tells an operator.

The run itself is `train.run` with a fleet of gateways: same schemes, same config, same folder, same report.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midhaul import __version__, train
from midhaul import config as settings
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.federation import certs, desk
from midhaul.federation.certs import Material
from midhaul.federation.claims import spoken
from midhaul.federation.desk import Desk
from midhaul.federation.passes import Guard
from midhaul.fleet import Held
from midhaul.kit import Kit
from midhaul.plant import Engine
from midhaul.runtime import channel
from midhaul.runtime.stream import Gateways
from midhaul.server import Progress
from midhaul.train import Result, Tell

TOLD_S = 10.0  # between two lines about who is missing
_KEPT_S = 0.25


@dataclass
class Standing:
    """How a run is doing, as far as an operator is told."""

    config: Config
    out: Path | None
    began_s: float = field(default_factory=time.time)
    round: int = 0
    phase: str = "starting"
    round_seconds: float = 0.0
    gateways: Gateways | None = None
    desk: Desk | None = None
    _at: float = field(default_factory=time.monotonic)

    def saw(self, number: int) -> None:
        """Is told that a round has ended."""
        now = time.monotonic()
        if number == self.round + 1 and self.round:
            self.round_seconds = now - self._at
        self.round, self._at, self.phase = number, now, "training"

    def to_table(self) -> dict[str, Any]:
        """Gives what `midhaul status` shows. Units: seconds, bytes."""
        found, gateways = _last_line(self.out), self.gateways
        refused = dict(gateways.refused) if gateways is not None else {}
        if self.desk is not None and self.desk.refused:
            refused["pass"] = self.desk.refused
        return {
            "version": __version__,
            "scheme": self.config.scheme.name,
            "data": self.config.data.name,
            "phase": self.phase,
            "round": self.round,
            "rounds": self.config.run.rounds,
            "accuracy": found.get("accuracy"),
            "train_loss": found.get("train_loss"),
            "uplink_bytes": found.get("uplink_bytes", 0),
            "downlink_bytes": found.get("downlink_bytes", 0),
            "round_seconds": self.round_seconds,
            "seconds": time.time() - self.began_s,
            "missing": gateways.missing() if gateways is not None else [],
            "refused": refused,
            "gateways": [peer.to_table() for peer in list(gateways.peers.values())] if gateways is not None else [],
        }


@dataclass(frozen=True)
class Invitation:
    """What a gateway needs to know: where the server is, the run's token and config, and whom to trust, in PEM."""

    address: str
    token: str
    config: str
    root: bytes | None


@dataclass(frozen=True)
class Place:
    """Where a server listens, and with what in hand; without material it is a loopback."""

    host: str
    port: int
    material: Material | None

    @staticmethod
    def of(listen: str, tls: Path | None) -> Place:
        """Gives the place of an address. Raises: ConfigError for one that others can reach without TLS."""
        host, port = desk.parse(listen)
        if tls is None and not desk.is_loopback(host):
            raise ConfigError(
                f"--listen {listen} can be reached from other machines, so it wants --tls FOLDER; make the folder with "
                "`midhaul certs`, or listen at 127.0.0.1"
            )
        return Place(host, port, None if tls is None else certs.read(tls, "server"))


def serve(
    config: Config,
    out: Path,
    place: Place,
    *,
    resume: bool = False,
    num_gateways: int = 0,
    patience_s: float = 0.0,
    tell: Tell = lambda line: None,
    progress: Progress | None = None,
    watched: Callable[[Standing], None] = lambda standing: None,
    opened: Callable[[Invitation], None] = lambda invitation: None,
) -> Result:
    """Waits for gateways and runs a scheme with them; gives what `train.run` gives.

    It begins when every device of the run is with a gateway, or when `num_gateways` are there, whoever is missing.
    `patience_s` is how long it waits for them; 0: without end. `watched` is given the run's standing before it begins,
    `opened` what gateways need to know once it listens.
    Raises: MidhaulError, in one sentence.
    """
    config = config.replace(run_engine="gateways")
    told = settings.to_toml(config.replace(run_engine="stacked"))
    token = secrets.token_hex(32)
    standing = Standing(config, out)
    watched(standing)
    with contextlib.ExitStack() as stack:

        def reach(kit: Kit, simulated: Engine) -> Held:
            secret = secrets.token_hex(32) if place.material is None else ""
            guard = Guard(place.material.root if place.material is not None else b"", secret)
            standing.desk = Desk(guard, lambda: _welcome(told, token), standing.to_table, tell)
            gateways = Gateways(
                kit.groups,
                simulated.population,
                token=token,
                address=desk.joined(place.host, place.port),
                deadline_s=config.fleet.deadline_s,
                quorum=config.fleet.quorum,
                credentials=_credentials(place.material),
                services=(standing.desk.handlers(),),
                simulated=simulated,
                keepalive_s=config.fleet.keepalive_s,
            )
            gateways.tell, gateways.begins_with = tell, num_gateways
            stack.push(lambda kind, *_: gateways.close(says_goodbye=kind is None))
            address = gateways.open()
            standing.gateways = gateways
            if secret:
                stack.enter_context(desk.shared_secret(desk.parse(address)[1], secret))
            safety = "over TLS" if place.material is not None else "on this machine alone"
            tell(f"listening at {address}, {safety}; start `midhaul join {address}` where the devices are")
            standing.phase = "waiting"
            opened(Invitation(address, token, told, None if place.material is None else place.material.root))
            _wait(gateways, patience_s, tell)
            standing.phase = "training"
            return gateways

        def seen(label: str, done: int, total: int) -> None:
            if label == "rounds":
                standing.saw(done)
            if progress is not None:
                progress(label, done, total)

        result = train.run(config, out, resume=resume, tell=tell, progress=seen, reach=reach)
        standing.phase = "done"
    return result


def _wait(gateways: Gateways, patience_s: float, tell: Tell) -> None:
    """Waits until those are there that the run is to begin with. Raises: ConfigError at the end of its patience."""
    began, last = time.monotonic(), time.monotonic() - TOLD_S + 1.0
    while missing := gateways.missing():
        there = gateways.num_here
        if 0 < gateways.begins_with <= there:
            tell(f"beginning with {there} gateways; nobody holds the devices {spoken(tuple(missing))}")
            return
        now = time.monotonic()
        if patience_s and now - began > patience_s:
            raise ConfigError(
                f"after {patience_s:g} s no gateway holds the devices {spoken(tuple(missing))}; start those that do, "
                "or begin without them by --gateways N"
            )
        if now - last > TOLD_S:
            last = now
            tell(f"{there} gateways are here; waiting for those with the devices {spoken(tuple(missing))}")
        time.sleep(_KEPT_S)
    tell(f"all {len({*gateways.devices, *gateways.test_devices})} devices are here")


def _welcome(config: str, token: str) -> dict[str, Any]:
    return {"version": __version__, "config": config, "token": token}


def _credentials(material: Material | None) -> Any:
    if material is None:
        return None
    return channel.load().ssl_server_credentials([(material.key, material.certificate)])


def _last_line(out: Path | None) -> dict[str, Any]:
    """Gives the newest figure of each name in metrics.jsonl."""
    path = out / "metrics.jsonl" if out is not None else None
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        for line in file.read().splitlines():
            with contextlib.suppress(ValueError):
                table = json.loads(line)
                found |= {name: value for name, value in table.items() if value is not None}
    return found
