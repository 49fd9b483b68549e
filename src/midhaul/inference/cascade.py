"""`midhaul cascade`: a finished run's tiny model answers when it is sure, and its large model when it isn't.

What goes up is the raw input, or features at a cut behind which the large model goes on. An early exit of the tiny
model may answer before it. Thresholds are chosen on calibration rows, for an accuracy or for a budget, and measured on
the others. docs/inference.md says what each figure means.

Shape letters: N queries, C classes.
Source: Wang et al., "IDK cascades", UAI 2018, section 3 (thresholds for an accuracy at the least cost).
Limits: the thresholds are as good as the calibration rows are many and alike to what comes later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from midhaul import __version__, checkpoint
from midhaul.data import Dataset
from midhaul.errors import ConfigError, nearest
from midhaul.inference import gate
from midhaul.inference.answers import Answers
from midhaul.inference.gate import GATES, Floats
from midhaul.inference.held import hear
from midhaul.inference.stages import Ints, Point, Stage, candidates, point, serve, sweep
from midhaul.units import format_joules, format_seconds

FILE = "cascade.json"
DEFAULT = "accuracy=large-0.005"
_BUDGETS = ("bytes", "joules", "seconds")
_CURVE_POINTS = 60


@dataclass(frozen=True)
class Goal:
    """What thresholds are chosen for: at least an accuracy, or at most so many bytes, joules or seconds a query.

    `below_large`: the value is to be taken from the large model's accuracy on the calibration rows.
    """

    what: str
    value: float
    below_large: bool = False

    def __str__(self) -> str:
        if self.what != "accuracy":
            return f"at most {self.value:g} {self.what} a query"
        return f"accuracy of the large model less {self.value:g}" if self.below_large else f"accuracy {self.value:g}"


def goal(target: str = "", budget: str = "") -> Goal:
    """Reads `accuracy=0.95` or `accuracy=large-0.005`, or a budget such as `bytes=200`.

    Raises: ConfigError, in one sentence, for anything else.

    >>> print(goal("accuracy=large-0.005"))
    accuracy of the large model less 0.005
    >>> print(goal(budget="bytes=200"))
    at most 200 bytes a query
    """
    if target and budget:
        raise ConfigError("--target and --budget can't both be kept; give one of them")
    what, sign, text = (target or budget or DEFAULT).partition("=")
    if budget:
        if what not in _BUDGETS or not sign:
            raise ConfigError(f"--budget {budget!r} is not of the form bytes=200{nearest(what, _BUDGETS)}")
    elif what != "accuracy" or not sign:
        raise ConfigError(f"--target {target!r} is not of the form accuracy=0.95 or accuracy=large-0.005")
    relative = re.fullmatch(r"large(?:-(.+))?", text.strip()) if what == "accuracy" else None
    try:
        value = float((relative[1] or 0.0) if relative else text)
    except ValueError:
        raise ConfigError(f"{target or budget}: {text!r} is not a number") from None
    if not 0.0 <= value < float("inf") or (what == "accuracy" and value > 1.0):
        raise ConfigError(
            f"{target or budget}: {value:g} must be {'from 0 to 1' if what == 'accuracy' else '0 or more'}"
        )
    return Goal(what, value, relative is not None)


class Row(NamedTuple):
    """A way to answer, and what it came to on the test rows and on those that thresholds were chosen on."""

    name: str
    gate: str
    test: Point
    calibration: Point


@dataclass(frozen=True)
class Cascade:
    """What `midhaul cascade` found: the ways to answer, the chosen one, and the trade-off of each gate."""

    goal: Goal
    about: dict[str, Any]
    rows: tuple[Row, ...]
    curves: dict[str, list[Point]] = field(repr=False)
    chosen: Row
    notes: tuple[str, ...]

    columns = ("who answers", "sure at", "acc %", "stays %", "B/query", "energy", "mean", "p95")

    @property
    def heading(self) -> str:
        """One line of what was asked."""
        about = self.about
        return (
            f"{about['scheme']} on {about['data']}: {about['test_rows']:,} test rows; thresholds for {self.goal}, "
            f"chosen on {about['calibration_rows']:,} others ({about['apart']})"
        )

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The rows as text."""
        return [_line(row, row is self.chosen) for row in self.rows]

    @property
    def verdict(self) -> str:
        """One sentence: what was chosen, and what it came to."""
        row, test, seen = self.chosen, self.chosen.test, self.chosen.calibration
        large = next((other for other in self.rows if other.name.startswith("large")), None)
        beside = "" if large is None else f" (the large model by itself: {100 * large.test.accuracy:.1f} %)"
        return (
            f"Chosen (*): {row.gate} at {_at(test.thresholds)}. On the test rows {100 * test.accuracy:.1f} % are "
            f"right{beside}, {100 * test.stays:.1f} % of the queries never leave the device, and a query takes "
            f"{test.bytes:.1f} bytes, {format_joules(test.joules)} of the device and {format_seconds(test.seconds)}; "
            f"on the calibration rows it was {100 * seen.accuracy:.1f} % right and {100 * seen.stays:.1f} % stayed."
        )

    def to_table(self) -> dict[str, Any]:
        """Gives all of it as plain values."""
        return {
            "goal": str(self.goal),
            **self.about,
            "rows": [
                {
                    "name": r.name,
                    "gate": r.gate,
                    "chosen": r is self.chosen,
                    **asdict(r.test),
                    "calibration": asdict(r.calibration),
                }
                for r in self.rows
            ],
            "curves": {name: [asdict(each) for each in points] for name, points in self.curves.items()},
            "notes": list(self.notes),
        }


def cascade(
    folder: Path,
    wanted: Goal | None = None,
    changes: Sequence[str] = (),
    *,
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Cascade:
    """Chooses thresholds for the models of a run's folder, and measures; writes cascade.json beside the run.

    `changes` are settings of [inference], as `inference.send=h`. A run of a module or data of one's own is to be given
    them again. Raises: MidhaulError in one sentence.
    """
    wanted = wanted or goal()
    heard = hear(folder, changes, module=module, large_module=large_module, dataset=dataset)
    made = Answers(heard)
    found = _choose(made, wanted)
    checkpoint.write(folder / FILE, json.dumps(found.to_table()).encode())
    return found


def _choose(made: Answers, wanted: Goal) -> Cascade:
    """Gives the ways to answer on the test rows, their thresholds chosen on the calibration rows."""
    heard, stages = made.heard, made.stages
    calibrate, test = np.flatnonzero(heard.calibrates), np.flatnonzero(~heard.calibrates)
    y = heard.y
    seen, unseen = [stage.at(calibrate) for stage in stages], [stage.at(test) for stage in stages]
    rows = [
        Row(name, "", *(point(serve([s.at(part) for s in alone], [], []), y[part]) for part in (test, calibrate)))
        for name, alone in made.alone
    ]
    least = _least(wanted, stages[-1], calibrate, y)
    chosen: dict[str, Row] = {}
    curves: dict[str, list[Point]] = {}
    reached = 0.0
    for name in GATES if made.config.gate == "best" else (made.config.gate,):
        scores = [_scores(name, stage, stages[-1], calibrate, y) for stage in stages[:-1]]
        on_seen, on_unseen = [s[calibrate] for s in scores], [s[test] for s in scores]
        tried = candidates(on_seen)
        points = sweep(seen, on_seen, y[calibrate], tried)
        reached = max(reached, max(each.accuracy for each in points))
        curves[name] = sweep(unseen, on_unseen, y[test], _spread(points))
        best = _best(points, wanted, least)
        if best is not None:
            after = point(serve(unseen, on_unseen, best.thresholds), y[test], best.thresholds)
            chosen[name] = Row(f"by {name}", name, after, best)
    if not chosen:
        raise ConfigError(_missed(wanted, least, reached, rows))
    first = min(chosen, key=lambda name: _cost(chosen[name].calibration, wanted))
    notes = [*made.notes, *(f"No threshold of {name} gets there." for name in curves if name not in chosen)]
    return Cascade(
        wanted, _about(made, calibrate, test), (*rows, *chosen.values()), curves, chosen[first], tuple(notes)
    )


def _scores(name: str, stage: Stage, last: Stage, calibrate: Ints, y: Ints) -> Floats:
    """Gives the scores of all queries by a gate; a learned one is fitted on the calibration rows."""
    own, others = (each.logits.argmax(1).numpy() for each in (stage, last))
    keep = (own == y) | (others != y)
    return gate.build(name, stage.logits[torch.from_numpy(calibrate)], keep[calibrate])(stage.logits)


def _least(wanted: Goal, last: Stage, calibrate: Ints, y: Ints) -> float:
    """Gives the accuracy that is wanted on the calibration rows."""
    large = float((last.logits.argmax(1).numpy() == y)[calibrate].mean())
    return large - wanted.value if wanted.below_large else wanted.value


def _best(points: Sequence[Point], wanted: Goal, least: float) -> Point | None:
    """Gives the cheapest point that is accurate enough, or the most accurate that is cheap enough."""
    if wanted.what == "accuracy":
        good = [each for each in points if each.accuracy >= least - 1e-12]
    else:
        good = [each for each in points if getattr(each, wanted.what) <= wanted.value]
    return min(good, key=lambda each: _cost(each, wanted)) if good else None


def _cost(each: Point, wanted: Goal) -> tuple[float, ...]:
    cheap = (each.bytes, each.joules, each.seconds)
    return (*cheap, -each.accuracy) if wanted.what == "accuracy" else (-each.accuracy, *cheap)


def _spread(points: Sequence[Point]) -> list[tuple[float, ...]]:
    """Gives the thresholds of a trade-off curve: where no other point is both cheaper and more accurate, or, with one
    threshold, all; not more than can be drawn."""
    kept: list[Point] = []
    for each in sorted(points, key=lambda p: (p.joules, -p.accuracy)):
        if len(each.thresholds) == 1 or not kept or each.accuracy > kept[-1].accuracy:
            kept.append(each)
    picked = np.unique(np.linspace(0, len(kept) - 1, min(_CURVE_POINTS, len(kept))).round().astype(int))
    return [kept[place].thresholds for place in picked]


def _missed(wanted: Goal, least: float, reached: float, rows: Sequence[Row]) -> str:
    if wanted.what == "accuracy":
        return (
            f"no threshold comes to an accuracy of {least:.4g} on the calibration rows: the most is {reached:.4g}; "
            "ask for less, or for accuracy=large-0.005"
        )
    cheapest = min(getattr(row.calibration, wanted.what) for row in rows if not row.name.startswith("large"))
    return f"{wanted} is less than the device needs by itself, {cheapest:.3g} {wanted.what}; ask for more"


def _about(made: Answers, calibrate: Ints, test: Ints) -> dict[str, Any]:
    heard, plant, config = made.heard, made.plant, made.config
    mixed = set(heard.device[calibrate].tolist()) & set(heard.device[test].tolist())
    return {
        "version": __version__,
        "scheme": plant.scheme.name,
        "data": plant.dataset.name,
        "seed": plant.config.run.seed,
        "board": ", ".join(dict.fromkeys(group.board.name for group in plant.kit.groups)),
        "radio": ", ".join(dict.fromkeys(group.radio.name for group in plant.kit.groups)),
        "send": made.sends,
        "answer": config.answer,
        "exit": config.exit,
        "server_gmacs": config.server_gmacs,
        "calibration_rows": len(calibrate),
        "test_rows": len(test),
        "apart": "other rows of the same devices" if mixed else "of other devices",
    }


def _line(row: Row, is_chosen: bool) -> tuple[str, ...]:
    each = row.test
    return (
        row.name + (" *" if is_chosen else ""),
        _at(each.thresholds) if each.thresholds else "-",
        f"{100 * each.accuracy:.1f}",
        f"{100 * each.stays:.1f}",
        f"{each.bytes:.1f}",
        format_joules(each.joules),
        format_seconds(each.seconds),
        format_seconds(each.p95_s),
    )


def _at(thresholds: tuple[float, ...]) -> str:
    return " ".join(f"{each:.3f}" if len(thresholds) == 1 else f"{each:.2f}" for each in thresholds)
