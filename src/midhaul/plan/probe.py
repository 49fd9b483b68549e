"""A candidate tried: how accurate it becomes, on rows put aside, and what a round of it costs the real devices."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from midhaul import config as settings
from midhaul import train
from midhaul.config import Config
from midhaul.curves import Curve, curve
from midhaul.data import Dataset, Federation
from midhaul.goals import COSTS, Goal
from midhaul.plan.candidates import Candidate
from midhaul.plan.expected import Confirmed, Draws
from midhaul.plant import Plant, build
from midhaul.server import Progress

_PRICED = 4  # rounds whose cost is counted: the first, and three to see what each more costs
_START = "start"  # the folder with the checkpoint of round 0
_LATER = ("link_", "fleet_cohort", "scheme_epochs")
Costs = dict[str, float]


class _Enough(Exception):
    """A run has come as far as it was wanted to."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a run: the rounds until the target, None if it isn't reached; the best accuracy; the cost.

    `seen` says whether the rounds were simulated to the end, or are the curve's. Costs are of these rounds, or of all
    that the run may have. `confirmed` is what it came to on other rows, if it was tried there: then rounds, accuracy
    and costs are by that, and the target has to be reached by the mean less its standard error.
    """

    rounds: int | None
    seen: bool
    accuracy: float
    costs: Costs
    confirmed: Confirmed | None = None

    @property
    def sure(self) -> float:
        """What candidates are held to: the accuracy, less its standard error where that is known."""
        return self.accuracy if self.confirmed is None else self.confirmed.sure


class Refused(NamedTuple):
    """A candidate that can't be run, and why."""

    candidate: Candidate
    why: str


@dataclass
class Probe:
    """One candidate, as far as it was simulated, in a folder of its own.

    `held` is who holds which rows where that isn't by the config. `aside` are settings beside its own on the rows that
    are left, where there are other devices than in the run.
    """

    candidate: Candidate
    config: Config
    plant: Plant
    folder: Path
    held: Federation | None = None
    accuracies: list[float] = field(default_factory=list)
    prices: list[Costs] = field(default_factory=list)
    aside: tuple[tuple[str, Any], ...] = ()

    @property
    def begins_alike(self) -> bool:
        """Tells whether what it changes leaves all that happens before the first round as the scheme has it."""
        return all(name.startswith(_LATER) for name, _ in self.candidate.changes)

    @property
    def curve(self) -> Curve:
        """The law through what was seen."""
        return curve(self.accuracies)

    def costs(self, rounds: int) -> Costs:
        """Gives what so many rounds cost: as counted, and on along the mean of the later rounds that were counted."""
        known = self.prices
        if rounds <= len(known):
            return known[rounds - 1]
        last, first = known[-1], known[0]
        more = (rounds - len(known)) / (len(known) - 1) if len(known) > 1 else 0.0
        return {cost: last[cost] + more * (last[cost] - first[cost]) for cost in COSTS}

    def forecast(self, goal: Goal, most: int) -> Forecast:
        """Gives what is expected of a run of at most so many rounds."""
        found = self.curve
        rounds = found.first(goal.accuracy, most)
        return Forecast(
            rounds,
            rounds is not None and rounds <= len(found.seen),
            found.best(rounds or most),
            self.costs(rounds or most),
        )

    def confirmed(self, goal: Goal, draws: Draws) -> Forecast:
        """Gives what is expected by other draws: the rounds until it is surely as accurate, or what all come to."""
        rounds = draws.first(goal.accuracy)
        found = draws.at(rounds or draws.rounds)
        return Forecast(rounds, True, found.mean, self.costs(found.rounds), found)


def probe(
    candidate: Candidate, given: Config, goal: Goal, data: Dataset, folder: Path, held: Federation | None = None
) -> Probe:
    """Gives a candidate that is yet to be tried, on the config's federation of the data, or on another.

    What it comes to is of one way to run, so nothing is planned again on its way.
    Raises: MidhaulError for one that can't be.
    """
    config = candidate.config(given).replace(
        run_engine="stacked",
        run_devices="",
        run_target_accuracy=goal.accuracy,
        run_stop_at_target=True,
        run_replan_every=0,
        run_replan_models=False,
        run_tensorboard=False,
        link_keep_frames=False,
    )
    return Probe(candidate, config, build(config, dataset=data, federation=held), folder, held)


def price(tried: Probe, data: Dataset, progress: Progress) -> None:
    """Counts what the first rounds cost the devices that the run will have.

    The server's models are hardly trained for it: of the devices' bytes, time and joules only entropy coding and rules
    that choose by loss depend on that. The accuracy on the test rows is not looked at.
    """
    rounds = min(_PRICED, tried.config.run.rounds)
    config = tried.config.replace(
        run_rounds=rounds,
        run_evaluate_every=rounds,
        run_checkpoint_every=rounds,
        run_target_accuracy=0.0,
        run_stop_at_target=False,
        scheme_lr_schedule="constant",
        scheme_lr_milestones="",
        scheme_lr_warmup=0,
        large_epochs=min(1, tried.config.large.epochs),
        scheme_distill_epochs=min(1, tried.config.scheme.distill_epochs),
        scheme_hint_epochs=min(1, tried.config.scheme.hint_epochs),
    )
    folder = tried.folder / "price"
    train.run(config, folder, dataset=data, progress=progress)
    for line in _lines(folder):
        up, down = float(line["uplink_bytes"]), float(line["downlink_bytes"])
        each = (float(line["device_joules"]), float(line["simulated_seconds"]), up + down, up, down)
        tried.prices.append(dict(zip(COSTS, each, strict=True)))


def advance(
    tried: Probe, rounds: int, every: int, data: Dataset, progress: Progress, like: Probe | None = None
) -> None:
    """Goes on with a candidate until a round, or until it is as accurate as wanted on the rows put aside.

    `every` divides all rounds that a candidate is stopped after: then there is a checkpoint to go on from. `like` is
    another that begins alike: what the server learned there before the first round is taken from it.
    """
    folder, start = tried.folder / "run", tried.folder / _START

    def stop(label: str, done: int, total: int) -> None:
        progress(label, done, rounds if label == "rounds" else total)
        if label == "rounds" and done == 1 and not start.exists():
            shutil.copytree(folder / "checkpoint", start)
        if label == "rounds" and done >= rounds:
            raise _Enough

    often = {**dict(tried.aside), "run_evaluate_every": 1, "run_checkpoint_every": every}
    known = like.folder / _START if like is not None and tried.begins_alike else None
    if known is not None and known.exists() and not folder.exists():
        shutil.copytree(known, folder / "checkpoint")
        shutil.copy(known.with_name("run") / "metrics.jsonl", folder)
        (folder / "config.toml").write_text(settings.to_toml(tried.plant.config.replace(**often)), encoding="utf-8")
    with contextlib.suppress(_Enough):
        now, begun = tried.config.replace(**often), folder.exists()
        train.run(now, folder, dataset=data, federation=tried.held, resume=begun, progress=stop)
    tried.accuracies = [float(line["accuracy"]) for line in _lines(folder)]


def _lines(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["round"] >= 1]
