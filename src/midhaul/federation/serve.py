"""The server's side of a run on many machines: what `midhaul serve` starts, and what it tells an operator.

The run itself is `train.run` with a fleet of gateways: same schemes, same config, same folder, same report.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections import deque
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
from midhaul.federation.desk import Desk
from midhaul.federation.passes import Guard
from midhaul.fleet import Held
from midhaul.kit import Kit
from midhaul.plant import Engine
from midhaul.runtime import channel
from midhaul.runtime.stream import Gateways
from midhaul.sentences import Sentence
from midhaul.server import Progress
from midhaul.train import Result, Tell

LINGER_S = 5.0
RECENT = 10  # rounds whose mean says how long one takes
_PHASES = {"listening": "waiting", "everybody": "training", "round": "training", "end": "done"}
_FIGURES = [
    *("round", "rounds", "accuracy", "large_accuracy", "train_loss"),
    *("uplink_bytes", "downlink_bytes", "device_joules"),
]


@dataclass
class Standing:
    """How a run is doing, as far as an operator is told: what the run's sentences say, and who is here."""

    config: Config
    began_s: float = field(default_factory=time.time)
    phase: str = "starting"
    figures: dict[str, Any] = field(default_factory=dict)  # the newest of each
    checkpoint_s: float | None = None
    gateways: Gateways | None = None
    desk: Desk | None = None
    _watched_s: float = -math.inf
    _has_told_end: threading.Event = field(default_factory=threading.Event)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def hear(self, line: str) -> None:
        """Is told what a run tells."""
        if not isinstance(line, Sentence):
            return
        self.phase = _PHASES.get(line.event, self.phase)
        if line.event in ("start", "round"):
            self.figures |= {name: line.facts[name] for name in _FIGURES if line.facts.get(name) is not None}
        if line.event == "round":
            self._took.append(float(line.facts["seconds"]))
        if line.event == "checkpoint":
            self.checkpoint_s = time.time()

    def to_watcher(self) -> dict[str, Any]:
        """Gives `to_table` to one that comes again."""
        self._watched_s = time.monotonic()
        if self.phase == "done":
            self._has_told_end.set()
        return self.to_table()

    def linger(self) -> None:
        """Waits until who watches the run has heard of its end: soon nobody is there to be asked."""
        if time.monotonic() - self._watched_s < LINGER_S:
            self._has_told_end.wait(LINGER_S)

    def to_table(self) -> dict[str, Any]:
        """Gives what `midhaul status` shows. Units: seconds, seconds since 1970, bytes, joules.

        `round_seconds` is the mean of the last rounds, `seconds_left` what the others then take; None before the first.
        """
        found, gateways, took = self.figures, self.gateways, list(self._took)
        refused = dict(gateways.refused) if gateways is not None else {}
        if self.desk is not None and self.desk.refused:
            refused["pass"] = self.desk.refused
        each_s = sum(took) / len(took) if took else None
        done, rounds = int(found.get("round", 0)), int(found.get("rounds", self.config.run.rounds))
        return {
            "version": __version__,
            "scheme": self.config.scheme.name,
            "data": self.config.data.name,
            "phase": self.phase,
            "round": done,
            "rounds": rounds,
            **{name: found.get(name) for name in ("accuracy", "large_accuracy", "train_loss")},
            **{name: found.get(name, 0) for name in ("uplink_bytes", "downlink_bytes", "device_joules")},
            "round_seconds": each_s,
            "seconds_left": None if each_s is None else each_s * (rounds - done),
            "began_s": self.began_s,
            "seconds": time.time() - self.began_s,
            "checkpoint_s": self.checkpoint_s,
            "at_s": time.time(),
            "missing": gateways.missing() if gateways is not None else [],
            "refused": refused,
            "gateways": gateways.about() if gateways is not None else [],
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
    joins: str = "",
) -> Result:
    """Waits for gateways and runs a scheme with them; gives what `train.run` gives.

    It begins when every device of the run is with a gateway, or when `num_gateways` are there, whoever is missing.
    `patience_s` is how long it waits for them; 0: without end. `watched` is given the run's standing before it begins,
    `opened` what gateways need to know once it listens. `joins` tells a person how they come, if not by `midhaul join`.
    Raises: MidhaulError, in one sentence.
    """
    config = config.replace(run_engine="gateways")
    told = settings.to_toml(config.replace(run_engine="stacked"))
    token = secrets.token_hex(32)
    standing = Standing(config)
    watched(standing)

    def told_too(line: str) -> None:
        standing.hear(line)
        tell(line)
        if standing.phase == "done":
            standing.linger()

    with contextlib.ExitStack() as stack:

        def reach(kit: Kit, simulated: Engine) -> Held:
            secret = secrets.token_hex(32) if place.material is None else ""
            guard = Guard(place.material.root if place.material is not None else b"", secret)
            standing.desk = Desk(guard, lambda: _welcome(told, token), standing.to_table, standing.to_watcher, told_too)
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
                wait_s=patience_s or None,
            )
            gateways.tell, gateways.begins_with = told_too, num_gateways
            stack.push(lambda kind, *_: gateways.close(says_goodbye=kind is None))
            address = gateways.open()
            standing.gateways = gateways
            if secret:
                stack.enter_context(desk.shared_secret(desk.parse(address)[1], secret))
            standing.desk.opened.set()
            safety = "over TLS" if place.material is not None else "on this machine alone"
            how = joins or f"start `midhaul join {address}` where the devices are"
            line = f"listening at {address}, {safety}; {how}"
            told_too(Sentence(line, "listening", address=address, tls=place.material is not None))
            opened(Invitation(address, token, told, None if place.material is None else place.material.root))
            return gateways

        return train.run(config, out, resume=resume, tell=told_too, progress=progress, reach=reach)


def _welcome(config: str, token: str) -> dict[str, Any]:
    return {"version": __version__, "config": config, "token": token}


def _credentials(material: Material | None) -> Any:
    if material is None:
        return None
    return channel.load().ssl_server_credentials([(material.key, material.certificate)])
