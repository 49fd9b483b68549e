"""The search: schemes first, then single changes to the best of them, then what helped put together.

Each stage halves its field again and again: all candidates are simulated for a few rounds, the better half for twice
as many, and so on (K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016, algorithm 1, successive halving; from memory). What is left was simulated until it was as
accurate as wanted, or for all rounds that the run may have: only what fell out early is judged by its curve.

Last, the best is confirmed on other draws of rows and devices. What it came to there takes the place of what was
expected of it; if another candidate is then better, that one is confirmed, and so on, a few times at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from midhaul.config import Config
from midhaul.data import Dataset, load
from midhaul.errors import ConfigError, MidhaulError
from midhaul.goals import COSTS, Goal
from midhaul.offers import Offers, of_fleet
from midhaul.plan.candidates import Candidate, changes, first
from midhaul.plan.confirm import confirm
from midhaul.plan.expected import Confirmed
from midhaul.plan.mixes import for_others, mix, recipes
from midhaul.plan.probe import Forecast, Probe, Refused, advance, price, probe
from midhaul.plan.rows import for_choosing
from midhaul.plant import Plant as Built
from midhaul.plant import build
from midhaul.server import Progress

_FINALISTS = 2  # schemes whose settings are varied
_LEAST = 4  # rounds of the first rung: a curve through fewer says nothing
_CONFIRMED = 6  # candidates that are tried on other rows, at most
_FALLEN = 3  # of a scheme that fell there, after which another scheme's come first
_SPARE = 1.5  # a run may take so many times the rounds that were expected, if the limits allow it
Rank = tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """What was found: every candidate with its forecast, the best first, and the config to run.

    `aim` is the goal that candidates were held to on the `num_aside` rows that they were tested on.
    """

    goal: Goal
    aim: Goal
    num_aside: int
    most: int
    tried: tuple[tuple[Probe, Forecast], ...]
    refused: tuple[Refused, ...]
    config: Config

    @property
    def confirmed(self) -> Confirmed | None:
        """What the chosen one came to on rows that it wasn't chosen on; None where it wasn't tried on others."""
        return self.chosen[1].confirmed

    @property
    def fell(self) -> tuple[tuple[Probe, Forecast], ...]:
        """Those that were better than the chosen one until they were tried on other rows, or not worse there."""
        return tuple(one for one in self.tried[1:] if one[1].confirmed is not None)

    @property
    def chosen(self) -> tuple[Probe, Forecast]:
        """The best, and what is expected of it."""
        return self.tried[0]

    @property
    def meets(self) -> bool:
        """Tells whether the target is expected to be reached within every limit."""
        forecast = self.chosen[1]
        return forecast.rounds is not None and not self.goal.excess(forecast.costs)[0]

    def is_pareto(self, place: int) -> bool:
        """Tells whether no other candidate that reaches the target costs less in joules, seconds and bytes alike."""
        own = self.tried[place][1]
        return own.rounds is not None and not any(
            other.rounds is not None and _dominates(other, own) for _, other in self.tried if other is not own
        )


def _dominates(one: Forecast, other: Forecast) -> bool:
    pairs = [(one.costs[cost], other.costs[cost]) for cost in ("joules", "seconds", "bytes")]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def rank(forecast: Forecast, goal: Goal) -> Rank:
    """Gives what candidates are sorted by: those within all limits by what is to be least; then those that reach the
    target and cost too much, by how much; then those that don't reach it, by how far they stay behind."""
    excess, _ = goal.excess(forecast.costs)
    if forecast.rounds is None:
        return 2.0, goal.accuracy - forecast.sure, forecast.costs[goal.least]
    return (1.0 if excess else 0.0), excess, forecast.costs[goal.least]


def plan(
    given: Config,
    goal: Goal,
    *,
    schemes: Sequence[str] = (),
    most: int = 0,
    draws: int = 0,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Gives the plan for a config.

    A run may take `most` rounds, or as many as the config says. Candidates are chosen by rows put aside from what the
    devices train on (`plan.rows`): the test rows are left for the run. Costs are those of the config's own devices.
    The best one is simulated again on so many other `draws` of such rows, and the next where it isn't the best there
    (`plan.confirm`).
    Raises: MidhaulError in one sentence, if nothing can be tried.
    """
    given = given.replace(run_rounds=most or given.run.rounds)
    data = load(given.data.name, **given.data.options)
    with TemporaryDirectory(prefix="midhaul-plan-") as folder:
        search = _Search(given, goal, data, Path(folder), progress or (lambda label, done, total: None), tell)
        search.stage(first(schemes, given))
        for finalist in search.best(_FINALISTS):
            search.stage([*_changed(finalist), *search.mixed(finalist)], beside=[finalist])
        search.stage(search.together())
        search.confirm(draws)
        return search.plan()


def _changed(tried: Probe) -> list[Candidate]:
    return [tried.candidate.with_change(label, *change) for label, change in changes(tried.candidate, tried.plant)]


def _expected(best: Probe, forecast: Forecast, rounds: int) -> dict[str, float]:
    """Gives what a run is to be held to: its rounds, what each costs, and the law of its accuracy."""
    num, law = forecast.rounds or rounds, best.curve
    first, last = best.costs(1), best.costs(max(num, 2))
    each = {cost: (last[cost] - first[cost]) / (max(num, 2) - 1) for cost in COSTS}
    shape = {"top": law.top, "fall": law.fall, "speed": law.speed} if law.fall > 0.0 else {}
    return {"rounds": float(num), **each, **shape}


class _Search:
    """A search under way."""

    def __init__(
        self,
        given: Config,
        goal: Goal,
        data: Dataset,
        folder: Path,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self.given, self.goal, self.data, self.folder = given, goal, data, folder
        self.aim, self.num_aside = goal, 0
        self.progress, self.tell = progress, tell
        self.most = given.run.rounds
        self.every = max(_LEAST, self.most // 8)
        self.tried: list[Probe] = []
        self.refused: list[Refused] = []
        self.aside: Dataset | None = None
        self.confirmed: dict[int, Forecast] = {}  # by the number of the candidate
        self.offers: dict[tuple[int, bool], Offers] = {}  # of devices' options, by the number of the candidate's plant

    def stage(self, candidates: Sequence[Candidate], beside: Sequence[Probe] = ()) -> None:
        """Tries candidates against one another, and against some that were tried before."""
        before = [one.candidate for one in self.tried] + [one.candidate for one in self.refused]
        known = {(one.scheme, one.changes) for one in before}
        field = list(beside)
        for candidate in candidates:
            if (candidate.scheme, candidate.changes) not in known and (found := self._begun(candidate)):
                self.tried.append(found)
                field.append(found)
        rung = self.every
        while field:
            field = [one for one in field if self._advanced(one, min(rung, self.most))]
            if rung >= self.most:
                break
            field = self._sorted(field)[: max(1, (len(field) + 1) // 2)]
            rung *= 2
        if not self.tried:
            raise ConfigError(f"none of the schemes can be run: {self.refused[0].why}")

    def _begun(self, candidate: Candidate) -> Probe | None:
        """Gives a candidate whose rounds are priced; None for one that can't be run, which is told and kept."""
        try:
            found = self._probe(candidate)
            if self.aside is None:
                self._put_aside(found.plant)
                found = self._probe(candidate)
            assert self.aside is not None
            num = len(found.plant.federation.train)
            found.aside = for_others(candidate.mix, found.plant.config, num, self.aside)
            self.tell(f"trying {candidate.name}")
            price(found, self.data, self.progress)
        except MidhaulError as error:
            self._refuse(candidate, error)
            return None
        return found

    def _probe(self, candidate: Candidate) -> Probe:
        folder = self.folder / str(len(self.tried) + len(self.refused))
        return probe(candidate, self.given, self.aim, self.data, folder)

    def _refuse(self, candidate: Candidate, error: MidhaulError, where: str = "") -> None:
        self.tell(f"{candidate.name}: {where}{error}")
        self.refused.append(Refused(candidate, f"{where}{error}"))

    def _put_aside(self, plant: Built) -> None:
        """Puts rows aside to choose on, and aims higher than the goal by their accuracy's standard error."""
        aside = for_choosing(self.data, plant.federation, plant.config)
        fewer = dict(for_others(None, plant.config, len(plant.federation.train), aside))
        tested = build(plant.config.replace(**fewer), dataset=aside).federation.test
        self.num_aside = sum(len(rows) for rows in tested)
        wanted = self.goal.accuracy
        error = math.sqrt(wanted * (1.0 - wanted) / max(self.num_aside, 1))
        self.aside, self.aim = aside, replace(self.goal, accuracy=min(wanted + error, 1.0))

    def best(self, num: int) -> list[Probe]:
        """Gives the best candidates, of different schemes."""
        by_scheme: dict[str, Probe] = {}
        for one in self._sorted(self.tried):
            by_scheme.setdefault(one.candidate.scheme, one)
        return list(by_scheme.values())[:num]

    def mixed(self, tried: Probe) -> list[Candidate]:
        """Gives candidates in which each device has an option of its own, where devices are unlike."""
        found: list[Candidate] = []
        expected = tried.forecast(self.aim, self.most)
        for recipe in recipes(tried.plant, self.goal, expected.rounds or self.most):
            try:
                key = (id(tried), recipe.with_bits)
                if key not in self.offers:
                    self.offers[key] = of_fleet(tried.plant, tried.config, self.data, with_bits=recipe.with_bits)
                made = mix(recipe, tried.plant, tried.config, self.data, self.offers[key])
            except MidhaulError as error:
                self.tell(f"{tried.candidate.name}: no mix of options: {error}")
                continue
            if made.nearest:
                self.tell(f"{tried.candidate.name}: {made.nearest}")
            found.append(tried.candidate.with_mix(made))
        return found

    def together(self) -> list[Candidate]:
        """Gives the best scheme with all the single changes that each made it better, where there are several."""
        ahead = self._sorted(self.tried)
        scheme = ahead[0].candidate.scheme
        own = [one for one in ahead if one.candidate.scheme == scheme]
        plain = next((place for place, one in enumerate(own) if not one.candidate.changes), len(own))
        merged = Candidate(scheme)
        for one in own[:plain]:
            # The better of two changes of one setting was put in first.
            if not dict(one.candidate.changes).keys() & dict(merged.changes).keys():
                made = one.candidate.mix
                merged = (
                    merged.with_mix(made) if made else merged.with_change(one.candidate.label, *one.candidate.changes)
                )
        return [merged] if plain > 1 else []

    def plan(self) -> Plan:
        """Gives what was found."""
        tried = [(one, self._forecast(one)) for one in self._sorted(self.tried)]
        # What was to be tried on other rows and wasn't, since enough were, isn't better than what was.
        tried.sort(key=lambda one: one[1].confirmed is None and bool(self.confirmed))
        config = self._config(*tried[0])
        return Plan(self.goal, self.aim, self.num_aside, self.most, tuple(tried), tuple(self.refused), config)

    def confirm(self, draws: int) -> None:
        """Tries the best candidate on other rows, until the one that is the best then was: a few at most."""
        for attempt in range(_CONFIRMED if draws else 0):
            ahead = self._sorted(self.tried)
            best = next((one for one in ahead if not self._fallen(one)), ahead[0])
            if id(best) in self.confirmed:
                return
            expected = best.forecast(self.aim, self.most).rounds
            rounds = self.most if expected is None else self._spare(expected)
            self.tell(f"simulating {best.candidate.name} again on other rows")
            folder = self.folder / f"confirm{attempt}"
            try:
                found = confirm(best, self.goal.accuracy, rounds, draws, self.data, folder, self.progress)
            except MidhaulError as error:
                if len(self.tried) == 1:
                    self.tell(f"{best.candidate.name} on other rows: {error}")
                    return
                self.tried.remove(best)
                self._refuse(best.candidate, error, "on other rows: ")
            else:
                self.confirmed[id(best)] = best.confirmed(self.goal, found)

    def _fallen(self, one: Probe) -> bool:
        """Tells whether a candidate was not confirmed, or enough of its scheme weren't for others to come first."""
        if (known := self.confirmed.get(id(one))) is not None:
            return known.rounds is None
        own = [self.confirmed.get(id(other)) for other in self.tried if other.candidate.scheme == one.candidate.scheme]
        return sum(other is not None and other.rounds is None for other in own) >= _FALLEN

    def _forecast(self, one: Probe) -> Forecast:
        return self.confirmed.get(id(one)) or one.forecast(self.aim, self.most)

    def _spare(self, rounds: int) -> int:
        """Gives rounds with some to spare, as many as a run may have."""
        return min(self.most, max(rounds + 1, round(_SPARE * rounds)))

    def _config(self, best: Probe, forecast: Forecast) -> Config:
        """Gives the config to run: with rounds to spare, as many as the limits allow."""
        rounds = self.most
        if forecast.rounds is not None:
            rounds = self._spare(forecast.rounds)
            keeps = not self.goal.excess(forecast.costs)[0]
            while keeps and rounds > forecast.rounds and self.goal.excess(best.costs(rounds))[0]:
                rounds -= 1
        run, again = self.given.run, dict[str, object]()
        if self.goal.limits:
            within = ",".join(f"{cost}={most:.10g}" for cost, most in self.goal.limits)
            again = {"run_within": within, "run_expected": _expected(best, forecast, rounds)}
        every = 1 if self.goal.limits else run.replan_every
        every = every if self.given.fleet.mode == "synchronous" else 0  # other rounds have no cohorts to plan again
        models = run.replan_models and every > 0 and best.plant.redeal is not None
        if run.replan_models and not models:
            why = "it isn't planned again" if not every else "it keeps the widths, cuts and ranks that it began with"
            self.tell(f"{best.candidate.name}: run.replan_models is left out of the config: {why}")
        return best.candidate.config(self.given).replace(
            **again,
            run_replan_every=every,
            run_replan_models=models,
            run_rounds=rounds,
            run_target_accuracy=self.goal.accuracy,
            run_stop_at_target=True,
            run_evaluate_every=1,
        )

    def _sorted(self, field: Sequence[Probe]) -> list[Probe]:
        return sorted(field, key=lambda one: rank(self._forecast(one), self.goal))

    def _advanced(self, one: Probe, rounds: int) -> bool:
        """Goes on with a candidate until a round, if it isn't there; gives False for one that fails on its way."""
        reached = bool(one.accuracies) and max(one.accuracies) >= self.aim.accuracy
        if reached or len(one.accuracies) >= rounds:
            return True
        assert self.aside is not None
        like = next(other for other in self.tried if other.candidate.scheme == one.candidate.scheme)
        try:
            advance(one, rounds, self.every, self.aside, self.progress, like)
        except MidhaulError as error:
            self.tried.remove(one)
            self._refuse(one.candidate, error)
            return False
        return True
