"""Runs grouped for a report: by data set, then by scheme and settings, over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from midhaul.errors import CheckpointError
from midhaul.report import spent
from midhaul.report.runs import KINDS, Round, Run, read_run
from midhaul.report.spent import ToTarget

LABEL_CHARACTERS = 22
# Settings that leave what is learned and what it costs as they are; runs that differ only in these are one group.
_SAME_RESULT = ("run.seed", "run.threads", "run.memory", "run.checkpoint_every", "run.keys")


@dataclass(frozen=True)
class Point:
    """The accuracy of a group's seeds at one round: their mean, lowest and highest."""

    x: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def scheme(self) -> str:
        """The scheme's name."""
        return self.runs[0].scheme

    def mean(self, value: Callable[[Run], float]) -> float:
        """Gives the mean over seeds."""
        return statistics.fmean(value(run) for run in self.runs)

    def accuracies(self) -> list[float]:
        """Gives the final accuracy of each seed that has one."""
        return [run.accuracy for run in self.runs if run.accuracy is not None]

    def curve(self, x: Callable[[Round], float]) -> list[Point]:
        """Gives accuracy against x, at the rounds that every seed was evaluated in."""
        seeds = [{r.round: (x(r), r.accuracy) for r in run.rounds if r.accuracy is not None} for run in self.runs]
        points = []
        for number in sorted(set.intersection(*(set(seed) for seed in seeds))):
            at = [seed[number][0] for seed in seeds]
            values = [seed[number][1] for seed in seeds]
            points.append(Point(statistics.fmean(at), statistics.fmean(values), min(values), max(values)))
        return points

    def kind_bytes(self, direction: str) -> dict[str, float]:
        """Gives the bytes of each kind that crossed the link, mean over seeds."""
        return {kind: self.mean(lambda run, kind=kind: run.kinds[direction][kind]) for kind in KINDS}  # type: ignore[misc]


@dataclass(frozen=True)
class Gains:
    """Accuracies of the tiny and of the large model before the first round and at the end, means over seeds."""

    tiny_first: float
    tiny_last: float
    large_first: float
    large_last: float

    @property
    def tiny(self) -> float:
        """What the tiny model gained."""
        return self.tiny_last - self.tiny_first

    @property
    def large(self) -> float:
        """What the large model gained."""
        return self.large_last - self.large_first


@dataclass(frozen=True)
class Row:
    """What a scheme came to, mean over its seeds.

    Units: accuracy from 0 to 1; bytes and joules are of all devices together, memory is of one device. `spread` is the
    sample standard deviation over seeds, None with fewer than two accuracies.
    """

    label: str
    scheme: str
    data: str
    seeds: tuple[int, ...]
    accuracy: float | None
    spread: float | None
    uplink_bytes: float
    downlink_bytes: float
    device_joules: float
    device_sram_bytes: float
    device_flash_bytes: float
    air_seconds: float
    wall_seconds: float
    gains: Gains | None = None
    to_target: ToTarget | None = None


@dataclass(frozen=True)
class Study:
    """All that was run on one data set: what may be compared."""

    data: str
    groups: tuple[Group, ...]

    def rows(self) -> tuple[Row, ...]:
        """Gives a row for each group."""
        return tuple(_row(self.data, group) for group in self.groups)


def read_studies(paths: Sequence[Path]) -> tuple[Study, ...]:
    """Reads run folders and groups them by data set, then by scheme and settings, in the order given.

    Raises: CheckpointError in one sentence if a folder is missing, unfinished or damaged, or if a run is given twice.
    """
    if not paths:
        raise CheckpointError("a report needs at least one run; give the folder of a finished run")
    alike: dict[str, dict[str, list[Run]]] = {}
    for run in map(read_run, paths):
        same = {key: value for key, value in run.settings.items() if key not in _SAME_RESULT}
        identity = json.dumps([run.scheme, run.engine, run.board, same], sort_keys=True, default=str)
        group = alike.setdefault(run.data, {}).setdefault(identity, [])
        twin = next((other for other in group if other.seed == run.seed), None)
        if twin is not None:
            raise CheckpointError(
                f"{run.path} and {twin.path} are the same scheme, settings and seed {run.seed}; leave one of them out"
            )
        group.append(run)
    return tuple(Study(data, _labelled(list(groups.values()))) for data, groups in alike.items())


def _labelled(groups: Sequence[list[Run]]) -> tuple[Group, ...]:
    """Gives each group a label of its own: its scheme, and what else sets it apart if the scheme does not."""
    labels: list[str] = []
    for runs in groups:
        rivals = [other[0] for other in groups if other[0].scheme == runs[0].scheme]
        label = runs[0].scheme
        if len(rivals) > 1:
            keys = differing(rivals)
            told = " ".join(f"{key.rpartition('.')[2]}={runs[0].settings.get(key)}" for key in keys)
            number = next(i for i, rival in enumerate(rivals, start=1) if rival is runs[0])
            fits = told and told.isprintable() and len(label) + len(told) < LABEL_CHARACTERS
            label = f"{label} {told}" if fits else f"{label} #{number}"
        labels.append(label)
    return tuple(Group(label, tuple(runs)) for label, runs in zip(labels, groups, strict=True))


def differing(runs: Sequence[Run]) -> list[str]:
    """Gives the settings that are not the same in all of these runs, leaving out those that change no result."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in _SAME_RESULT)
    return [key for key in keys if any(run.settings.get(key) != runs[0].settings.get(key) for run in runs)]


def _row(data: str, group: Group) -> Row:
    accuracies = group.accuracies()
    return Row(
        label=group.label,
        scheme=group.scheme,
        data=data,
        seeds=tuple(run.seed for run in group.runs),
        accuracy=statistics.fmean(accuracies) if accuracies else None,
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        uplink_bytes=group.mean(lambda run: run.uplink_bytes),
        downlink_bytes=group.mean(lambda run: run.downlink_bytes),
        device_joules=group.mean(lambda run: run.device_joules),
        device_sram_bytes=group.mean(lambda run: run.sram_bytes),
        device_flash_bytes=group.mean(lambda run: run.flash_bytes),
        air_seconds=group.mean(lambda run: run.air_seconds),
        wall_seconds=group.mean(lambda run: run.wall_seconds),
        gains=_gains(group),
        to_target=spent.to_target([run.target for run in group.runs]),
    )


def _gains(group: Group) -> Gains | None:
    """Gives what each of the two models gained, if every seed tested both at both ends."""
    each = [(run.start[0], run.accuracy, run.start[1], run.large_accuracy) for run in group.runs]
    known = [[value for value in ends if value is not None] for ends in each]
    if any(len(ends) < 4 for ends in known):
        return None
    return Gains(*(statistics.fmean(values) for values in zip(*known, strict=True)))
