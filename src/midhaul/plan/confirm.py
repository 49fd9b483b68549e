"""The chosen candidate once more, on rows that it wasn't chosen on: what a plan expects of its accuracy.

The best of many candidates looks better than it is on the rows that it was chosen on, and devices that put a fifth of
their rows aside learn from fewer than the run's will. So the chosen one is simulated again, with other rows put aside
each time, and half as many: their mean is what the run is expected to come to, their deviation says how surely
(repeated random subsampling, as in R. Kohavi, "A study of cross-validation and bootstrap for accuracy estimation and
model selection", IJCAI 1995, section 2; from memory).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from midhaul.data import Dataset
from midhaul.goals import Goal
from midhaul.plan.mixes import for_others
from midhaul.plan.probe import Forecast, Probe, advance, probe
from midhaul.plan.rows import for_confirming
from midhaul.server import Progress


@dataclass(frozen=True)
class Confirmed:
    """Accuracies on each draw of rows put aside, of `num_rows` each, after `rounds`; and whose mean is expected."""

    accuracies: tuple[float, ...]
    num_rows: int
    rounds: int

    @property
    def mean(self) -> float:
        """What the run is expected to come to."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """The sample standard deviation over the draws; 0 of one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def confirm(
    chosen: Probe,
    forecast: Forecast,
    most: int,
    draws: int,
    data: Dataset,
    folder: Path,
    progress: Progress,
) -> Confirmed | None:
    """Simulates the chosen candidate on so many other draws; None where rows can't be put aside in another way.

    It goes on to the round that was expected, however accurate it is before. Raises: MidhaulError where a draw fails.
    """
    rounds, found, num_rows = forecast.rounds or most, [], 0
    for draw in range(1, draws + 1):
        other = for_confirming(data, chosen.plant.federation, chosen.config, draw)
        if other is None:
            return None
        config, aside = other
        candidate = chosen.candidate
        if candidate.mix is not None:
            dealt = for_others(candidate.mix, candidate.config(config), aside)
            candidate = replace(candidate, changes=tuple({**dict(candidate.changes), **dict(dealt)}.items()))
        again = probe(candidate, config, Goal(1.0, (), "joules"), aside, folder / f"draw{draw}")
        advance(again, rounds, rounds, aside, progress)
        found.append(max(again.accuracies))
        num_rows = sum(len(rows) for rows in again.plant.federation.test)
    return Confirmed(tuple(found), num_rows, rounds) if found else None
