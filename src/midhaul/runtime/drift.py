"""Drift: devices whose data change during a run, the detector that each carries, and the memory of what was before.

A detector is fed with a device's error on its test rows after each round, row by row, and fires when the error rises.
The device then asks to be in the cohort, so that the same scheme trains it again.
Source of the detectors, which are the `river` library's: Page, "Continuous inspection schemes", Biometrika 1954 (with
Hinkley's test of the mean), and Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing", SIAM
conference on data mining 2007.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from midhaul import rng
from midhaul.config import Config, FleetConfig
from midhaul.errors import CheckpointError, ConfigError
from midhaul.kit import Scheme
from midhaul.message import Replies
from midhaul.program import Indices, Population

_MIN_ROWS = 30  # seen before a detector may fire
_TOLERANCE = 0.05  # a rise of the error below this is none
_CONFIDENCE = 0.002  # ADWIN's delta, as its authors' tools have it


def check(config: Config, scheme: Scheme, *, own_test: bool) -> None:
    """Refuses what makes no sense. Raises: ConfigError."""
    fleet, data = config.fleet, config.data
    if data.drift_round and config.run.engine == "firmware":
        raise ConfigError("devices on firmware keep the rows they were given; set data.drift_round = 0")
    if data.drift_round and scheme.part == "local":
        raise ConfigError(f"{scheme.name} tells its devices something of each row, so these can't drift")
    if fleet.replay and not data.drift_round:
        raise ConfigError("fleet.replay keeps rows from before a drift; set data.drift_round as well, or leave it at 0")
    if fleet.detector == "none":
        return
    detector(fleet)
    if not own_test:
        raise ConfigError("fleet.detector watches each device's error on rows of its own; set data.test = 'device'")
    if config.run.evaluate_every != 1:
        raise ConfigError("fleet.detector is fed after each round; set run.evaluate_every = 1")


def drifted(population: Population, config: Config, num_classes: int) -> tuple[Population, Population]:
    """Gives the population before and after its drift; both lie over the same, longer array of rows.

    The drifting devices are drawn from the run's seed. Their training rows become others, their test rows too where
    these are their own; beside the new ones they keep `fleet.replay` rows of the past to train on.
    """
    seed, data, population = config.run.seed, config.data, population.plain()
    key = rng.key(seed, 0, rng.SERVER, rng.Use.DRIFT)
    devices = range(len(population.train))
    chosen = rng.choose(key, max(1, round(data.drift_devices * len(devices))), devices)
    if population.classes:
        raise ConfigError("devices whose classes have numbers of their own can't drift; set data.drift_round = 0")
    if data.drift == "sign" and not population.x.is_floating_point():
        raise ConfigError("tokens have no sign that could change; set data.drift = 'labels'")
    if data.drift == "labels" and num_classes < 2:
        raise ConfigError("with one class there is no other name for it; set data.drift = 'sign'")
    move = 1 + int(rng.integers(key.at(1), 1, num_classes - 1)[0]) if data.drift == "labels" else 0
    x, y = [population.x], [population.y]
    end = len(population.y)
    train, test = list(population.train), list(population.test)

    def changed(rows: Indices) -> Indices:
        nonlocal end
        places = torch.from_numpy(rows)
        x.append(-population.x[places] if data.drift == "sign" else population.x[places])
        y.append((population.y[places] + move) % num_classes if data.drift == "labels" else population.y[places])
        end += len(rows)
        return np.arange(end - len(rows), end, dtype=np.int64)

    for device in chosen:
        past = population.train[device]
        kept = rng.permutation(rng.key(seed, 0, device, rng.Use.DRIFT), len(past))[: config.fleet.replay]
        train[device] = np.concatenate([changed(past), past[kept]])
        if population.own_test:
            test[device] = changed(population.test[device])
    before = replace(population, x=torch.cat(x), y=torch.cat(y))
    return before, replace(before, train=tuple(train), test=tuple(test))


def detector(fleet: FleetConfig) -> Any:
    """Gives a new detector. Raises: ConfigError if `river` isn't installed."""
    try:
        from river import drift
    except ImportError:
        raise ConfigError("fleet.detector needs river; install midhaul[drift]") from None
    if fleet.detector == "adwin":
        adwin: Any = drift.ADWIN
        return adwin(delta=_CONFIDENCE)
    return drift.PageHinkley(min_instances=_MIN_ROWS, delta=_TOLERANCE, threshold=fleet.detector_threshold, mode="up")


@dataclass
class Watch:
    """The devices' detectors, and who asks to be in the cohort until when. A run that goes on is fed the past again."""

    fleet: FleetConfig
    detectors: dict[int, Any] = field(default_factory=dict)
    seen: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # rows and errors since a detector was new
    until: dict[int, int] = field(default_factory=dict)
    alarms: list[dict[str, int]] = field(default_factory=list)

    def see(self, tested: Replies, number: int) -> None:
        """Feeds each device's detector with what it got wrong in a round; one that fires begins anew."""
        for device, rows, correct in zip(
            tested.devices, tested.metrics["rows"].tolist(), tested.metrics["correct"].tolist(), strict=True
        ):
            told = (int(rows), int(rows - correct))
            self.seen.setdefault(device, []).append(told)
            if self._fires(device, *told):
                self.alarms.append({"round": number, "device": device})
                self.until[device] = number + self.fleet.detector_rounds
                self.seen.pop(device)
                self.detectors.pop(device)

    def asking(self, number: int) -> frozenset[int]:
        """Gives the devices that ask to be in a round's cohort."""
        return frozenset(device for device, last in self.until.items() if number <= last)

    def dump(self) -> dict[str, Any]:
        """Gives all that a run needs to go on."""
        seen, until = ({str(d): value for d, value in table.items()} for table in (self.seen, self.until))
        return {"seen": seen, "until": until, "alarms": self.alarms}

    def restore(self, table: dict[str, Any]) -> None:
        """Puts back what `dump` gave. Raises: CheckpointError for what it can't have given."""
        try:
            self.until = {int(device): int(last) for device, last in table["until"].items()}
            self.alarms = [{name: int(value) for name, value in alarm.items()} for alarm in table["alarms"]]
            self.seen = {int(d): [(int(n), int(e)) for n, e in told] for d, told in table["seen"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError("the checkpoint lacks what the detectors saw; start the run anew") from None
        self.detectors = {}
        for device, told in self.seen.items():
            for rows, errors in told:
                self._fires(device, rows, errors)

    def _fires(self, device: int, rows: int, errors: int) -> bool:
        """Feeds one round's rows, the errors spread evenly among them; tells whether the error was found to rise."""
        found = self.detectors.setdefault(device, detector(self.fleet))
        fired = False
        for place in range(rows):
            before = found.estimation if self.fleet.detector == "adwin" else 0.0
            found.update(float((place + 1) * errors // rows - place * errors // rows))
            # ADWIN cuts its window when the mean falls as well, which is learning.
            rises = self.fleet.detector != "adwin" or found.estimation > before
            fired = fired or bool(found.drift_detected and rises)
        return fired
