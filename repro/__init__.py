"""Published figures, run again. `python -m repro.all` runs every module and prints one table.

A module here has `main(arguments) -> list[Row]`: it prints what it does as it goes and gives one row for each target.
A target that is missed is a row that says so; only an error or a broken identity ends with a status other than 0.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from midhaul import train
from midhaul.config import Config
from midhaul.data import Dataset

Main = Callable[[Sequence[str]], "list[Row]"]


@dataclass(frozen=True)
class Row:
    """One target: what was to be reached, what was measured, and whether that is enough.

    `must`: an exact identity, so that a miss is an error.
    """

    what: str
    target: str
    measured: str
    passed: bool
    must: bool = False

    @property
    def verdict(self) -> str:
        """PASS or MISS."""
        return "PASS" if self.passed else "MISS"


def table(rows: Iterable[Row]) -> str:
    """Gives the rows as a Markdown table."""
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.target} | {row.measured} | {row.verdict} |" for row in rows]
    return "\n".join(lines)


def curve(config: Config, dataset: Dataset | None = None) -> list[float]:
    """Runs a config that evaluates after every round; gives the test accuracy after each."""
    with tempfile.TemporaryDirectory() as folder:
        train.run(config, Path(folder) / "run", dataset=dataset)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [json.loads(line) for line in lines]
    return [float(line["accuracy"]) for line in rounds if line["round"]]


def first_at(curve: Sequence[float], wanted: float) -> int | None:
    """Gives the first round after which the accuracy is at least what was wanted.

    >>> first_at([0.5, 0.97, 0.96], 0.97), first_at([0.5], 0.97)
    (2, None)
    """
    return next((number for number, value in enumerate(curve, 1) if value >= wanted), None)
