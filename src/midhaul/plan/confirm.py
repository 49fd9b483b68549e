"""A candidate once more, on rows that it wasn't chosen on: what a plan expects of its accuracy.

The best of many candidates looks better than it is on the rows that it was chosen on, and its devices learned from
fewer than the run's will. So it is simulated again in two ways. As the run itself, its own seed and devices, on rows
that the run doesn't use (`plan.twins`): their mean is what the run is expected to come to. And with other seeds, so
with other devices' mixes of rows, other weights to begin with and other cohorts, on other rows each time (`plan.rows`):
a choice that they don't bear out is one that happened to go well.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, islice, repeat
from pathlib import Path

from midhaul.config import Config
from midhaul.data import Dataset, Federation
from midhaul.goals import Goal
from midhaul.plan.expected import Draws
from midhaul.plan.mixes import for_others
from midhaul.plan.probe import Probe, advance, probe
from midhaul.plan.rows import for_confirming
from midhaul.plan.twins import twin
from midhaul.server import Progress


def confirm(
    tried: Probe, wanted: float, rounds: int, draws: int, data: Dataset, folder: Path, progress: Progress
) -> Draws:
    """Simulates a candidate for so many rounds on so many draws in either way, however accurate it is before.

    The run itself with all its rows is the same each time, and is simulated once. Other seeds are not asked where it
    isn't as accurate as wanted.
    Raises: MidhaulError where a draw fails.
    """
    own = _itself(tried, rounds, draws, data, folder, progress)
    if own is not None and own.first(wanted) is None:
        return own
    found = []
    for draw in range(1, draws + 1):
        config, aside = for_confirming(data, tried.plant.federation, tried.plant.config, draw)
        found.append(_one(tried, config, aside, None, rounds, folder / f"other{draw}", progress))
    others = _draws(found, tried, rounds)
    return others if own is None else replace(own, others=others)


def _itself(tried: Probe, rounds: int, draws: int, data: Dataset, folder: Path, progress: Progress) -> Draws | None:
    """Gives the draws of the run itself; None where there are no rows for them."""
    found = []
    for draw in range(1, draws + 1):
        if (made := twin(tried.plant.federation, tried.plant.config, draw, draws)) is None:
            return None
        found.append(_one(tried, tried.plant.config, data, made.federation, rounds, folder / f"own{draw}", progress))
        if made.is_whole:
            return replace(_draws(found, tried, rounds), is_whole=True)
    return _draws(found, tried, rounds)


def _one(
    tried: Probe, config: Config, data: Dataset, held: Federation | None, rounds: int, folder: Path, progress: Progress
) -> Probe:
    """Gives the candidate simulated with other rows put aside, or on a federation that has them aside."""
    dealt = for_others(tried.candidate.mix, config, len(tried.plant.federation.train), data, held)
    candidate = replace(tried.candidate, changes=tuple({**dict(tried.candidate.changes), **dict(dealt)}.items()))
    again = probe(candidate, config, Goal(1.0, (), "joules"), data, folder, held)
    advance(again, rounds, rounds, data, progress)
    return again


def _draws(found: Sequence[Probe], tried: Probe, rounds: int) -> Draws:
    """Gives the best accuracy until each round of each draw; one that was right on all of its rows ended there."""
    best = tuple(tuple(islice(accumulate(chain(one.accuracies, repeat(0.0)), max), rounds)) for one in found)
    num_rows = statistics.fmean(sum(map(len, one.plant.federation.test)) for one in found)
    return Draws(best, round(num_rows), sum(map(len, tried.plant.federation.test)))
