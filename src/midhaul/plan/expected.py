"""What a run is expected to come to, by other runs like it: their mean, and how far off it the run may be."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Confirmed:
    """Accuracies after `rounds` on draws of rows put aside, of `num_rows` each, whose mean is what the run is expected
    to come to on its `num_tested`.

    With `is_whole` the draws are the run itself: only the rows that it is tested on are others. `others` are runs of
    other seeds, with other devices and other weights to begin with; None where the accuracies are of such runs.
    """

    accuracies: tuple[float, ...]
    num_rows: int
    rounds: int
    num_tested: int
    is_whole: bool = False
    others: Confirmed | None = None

    @property
    def mean(self) -> float:
        """What the run is expected to come to."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """The sample standard deviation over the draws; 0 of one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    @property
    def error(self) -> float:
        """The standard error of the run's own accuracy about the mean: of runs, and of its own rows.

        A run is off the mean of the draws by s^2 (1 + 1 / draws), which has the draws' own rows in it, and by p (1 - p)
        over the rows that it is tested on. The run itself is off by both kinds of rows alone; of one other draw no more
        is known. Limits: s^2 has the draws' rows in it where only the run's belong, so it is rather too wide.
        """
        return math.sqrt(self._runs + self._rows)

    @property
    def sure(self) -> float:
        """The mean less its own standard error: of the run, or of other seeds' runs if that is less.

        The error of a mean over draws is their deviation over the root of their number, of one draw that of its rows.
        """
        num, p = len(self.accuracies), self.mean
        error = self.spread / math.sqrt(num) if num > 1 else math.sqrt(p * (1.0 - p) / max(self.num_rows, 1))
        return p - error if self.others is None else min(p - error, self.others.sure)

    def interval(self, share: float = 0.9) -> tuple[float, float]:
        """Gives what such a share of runs come to.

        Source: Student's interval for one more draw, its degrees of freedom those of Welch and Satterthwaite, as only
        the deviation of runs is estimated and that of rows is binomial (from memory).
        """
        from scipy.stats import norm, t

        free = math.inf if not self._runs else (len(self.accuracies) - 1) * (1.0 + self._rows / self._runs) ** 2
        times = float((t(free) if free < 1e6 else norm).ppf(0.5 + 0.5 * share))
        return max(self.mean - times * self.error, 0.0), min(self.mean + times * self.error, 1.0)

    @property
    def _runs(self) -> float:
        """The variance of a run about the mean of the draws; 0 where it isn't estimated."""
        return 0.0 if self.is_whole else self.spread**2 * (1.0 + 1.0 / len(self.accuracies))

    @property
    def _rows(self) -> float:
        """The variance of the rows that the run is tested on, and of the draw's where it isn't in that of runs."""
        p, num = self.mean, max(self.num_rows, 1)
        own = p * (1.0 - p) / max(self.num_tested, 1)
        return own + (p * (1.0 - p) / num if self.is_whole or len(self.accuracies) == 1 else 0.0)


@dataclass(frozen=True)
class Draws:
    """The best accuracy until each round, of each draw, as Confirmed has them. Shapes: `best` [draws][rounds]."""

    best: tuple[tuple[float, ...], ...]
    num_rows: int
    num_tested: int
    is_whole: bool = False
    others: Draws | None = None

    @property
    def rounds(self) -> int:
        """How many rounds all draws have."""
        own = min(map(len, self.best))
        return own if self.others is None else min(own, self.others.rounds)

    def at(self, rounds: int) -> Confirmed:
        """Gives what was found after so many rounds."""
        accuracies = tuple(one[rounds - 1] for one in self.best)
        others = None if self.others is None else self.others.at(rounds)
        return Confirmed(accuracies, self.num_rows, rounds, self.num_tested, self.is_whole, others)

    def first(self, accuracy: float) -> int | None:
        """Gives the first round after which the mean less its standard error is as accurate."""
        return next((n for n in range(1, self.rounds + 1) if self.at(n).sure >= accuracy), None)
