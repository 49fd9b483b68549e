"""A run under way, planned again: what it cost beside what it was to cost, what is left, and what to change.

After a round what the run has spent is known to the joule, and so is who is left: batteries empty, channels worsen,
some devices are out of coverage. The rounds that are still needed follow from the law that the accuracy was expected to
follow, moved to where it is; what each of them will cost is what the last ones cost. Where that is more than is left,
the cheap part of the plan is made again, by the reckoning of `offers`: how many devices a round asks, how long it waits
for them, and in how many bits each sends (`choices`). None of them touches what the scheme remembers.

Of all that keeps the limits the least change is made, by what a round is worth. A round that is worth w times as much
is taken to do the work of the square root of w rounds: means over more devices err less by that root. It is an
assumption, and the next look corrects what it gets wrong. Where nothing keeps the limits and the run is to end then
(`run.when_over`), it goes on by the nearest for as many rounds as they allow.

Everything follows from the ledger, the accuracies and the config, so a resumed run decides what it would have decided.

Shape letters: D devices that train.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from midhaul.changes import Change, Setting, change_of, costs_of, devices, named, said
from midhaul.choices import Flags, Ints, Options, choose
from midhaul.config import Config
from midhaul.curves import Curve, curve
from midhaul.errors import CheckpointError, ConfigError, nearest
from midhaul.goals import COSTS, SAID, Goal, read_limits, shown
from midhaul.link import update
from midhaul.offers import BITS, Built, Offers, anew, as_dealt, reckoned
from midhaul.plant import Plant
from midhaul.runtime.ledger import Ledger
from midhaul.variants import Variant

_FIXED = (
    "the scheme {scheme} can't deal out other widths, cuts or ranks while it is under way: its devices are alike, or "
    "keep what only they have; set run.replan_models = false (`midhaul schemes` has heterofl, flexlora and others)",
    "devices behind gateways hold the models that these came in with; set run.replan_models = false",
)
_LAW = ("top", "fall", "speed")
_COHORTS = (2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)  # of the present one
_LEVELS = (0.75, 0.5, 0.25, 0.0)  # of the way from the leanest to the present joules, for bits
_WAITED = (0.95, 0.8, 0.6)  # shares of the devices that a deadline lets in
_NEARER = 0.95  # of how far over a limit a run is: what is no nearer than that isn't worth a change
_NAMED = 8  # devices that are named at most
_OWN = 8  # accuracies from which on the run's own law counts and not the expected one


def check(config: Config) -> None:
    """Refuses what can't be planned again. Raises: ConfigError."""
    run = config.run
    read_limits(run.within, "run.within")
    known = ("rounds", *_LAW, *COSTS)
    for name, value in run.expected.items():
        if name not in known:
            raise ConfigError(f"run.expected has {name!r}, which nobody expects{nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"run.expected.{name} must be a number, not {value!r}")
        if name == "speed" and value <= 0.0:
            raise ConfigError(f"run.expected.speed is {value}; an accuracy that goes anywhere has one above 0")
    if run.replan_models and not run.replan_every:
        raise ConfigError("run.replan_models is of a run that is planned again; set run.replan_every, for example 1")
    if not run.replan_every:
        return
    if not run.within:
        raise ConfigError("run.replan_every looks whether run.within is kept; set it, for example 'joules=20,hours=6'")
    if config.fleet.mode != "synchronous":
        raise ConfigError(
            f"with fleet.mode = {config.fleet.mode!r} rounds have no cohorts to plan again; set run.replan_every = 0"
        )


class Replan:
    """What watches a run's costs, and plans again where they run over."""

    def __init__(self, plant: Plant) -> None:
        config = plant.config
        if config.run.replan_models and plant.redeal is None:
            raise ConfigError(_FIXED[config.run.engine == "gateways"].format(scheme=plant.scheme.name))
        self.plant = plant
        self.first = plant.dealt
        self.goal = Goal(config.run.target_accuracy or 1.0, read_limits(config.run.within, "run.within"), "joules")
        self.expected: Mapping[str, float] = config.run.expected
        num = len(plant.engine.devices)
        bits = plant.coding.updates.bits
        self.setting = Setting(plant.kit.cohort_size(num), config.fleet.round_deadline_s, bits)
        self._built: list[Built] = []  # each width, cut or rank that may be dealt anew, once it was asked for
        self.changes: list[Change] = []
        self.costs: list[dict[str, float]] = []  # spent until the end of each round, from round 0 on
        self.accuracies: list[float | None] = []
        self.pace = 1.0  # how many of the first rounds' work a round does now
        self.paces: list[float] = []  # and did in each round so far
        self.has_told = False
        self.is_over = False
        self.forecast: dict[str, float] = {}  # what the run is to come to of each cost, as of the last look; if any

    @property
    def able_bits(self) -> tuple[int, ...]:
        """The bits that devices may be told; none where updates aren't quantised."""
        how = update.parse(self.plant.config.link.up, "link.up")
        if how is None or how.value != "quantise" or self.plant.config.run.engine == "firmware":
            return ()
        return tuple(sorted({*BITS, int(how.level), *self.setting.bits}, reverse=True))

    @property
    def models(self) -> list[Built]:
        """The widths, cuts or ranks that devices may be dealt, the largest first; none where they stay as they are."""
        if self.plant.config.run.replan_models and not self._built:
            self._built = anew(self.plant, self.first)
        return self._built

    @property
    def last(self) -> int:
        """The round that the run ends with: the config's, or an earlier one where its limits allow no more."""
        return next((change.last for change in reversed(self.changes) if change.last), self.plant.config.run.rounds)

    def dealt(self, setting: Setting) -> tuple[Variant, ...]:
        """Gives what of the model lies on each device with a setting."""
        if not setting.held:
            return self.first
        known = {named(variant, self.plant.scheme.differs): variant for variant, _ in self.models}
        if any(held not in known for held in setting.held) or len(setting.held) != len(self.first):
            raise CheckpointError("the checkpoint is of a run whose devices held other models; start the run anew")
        return tuple(known[held] for held in setting.held)

    def begin(self, ledger: Ledger) -> None:
        """Notes what was spent before the first round."""
        self.costs = [_spent(ledger)]

    def after(self, number: int, ledger: Ledger, accuracy: float | None) -> tuple[Change | None, str]:
        """Takes a round that was done; gives what to change, if anything, and a sentence for a person, if any."""
        self.costs.append(_spent(ledger))
        self.accuracies.append(accuracy)
        self.paces.append(self.pace)
        run = self.plant.config.run
        left = self.last - number
        self.forecast = {}
        if number % run.replan_every or number < 2 or not left or self.is_over:
            return None, ""
        each = self._each()
        rounds, ends = self._rounds_to_go(left)
        over, cost = self._excess(each, rounds)
        self.forecast = self._total(each, rounds)
        if over <= 0.0:
            return None, self._drifted(number, each)
        change, pace = self._planned(number, ledger, each, rounds, cost, ends=ends)
        self.is_over = not change.kept and run.when_over == "stop"
        if change.setting == self.setting and not (change.last or self.is_over):  # nothing is nearer: that is said once
            had_told, self.has_told = self.has_told, True
            return None, "" if had_told else change.why
        self.changes.append(change)
        self.setting, self.pace, self.forecast = change.setting, self.pace * pace, dict(change.after)
        return change, change.why

    def _each(self) -> dict[str, float]:
        """Gives what a round costs now: the mean since the last change, without the first, in which models travel."""
        since = self.changes[-1].round if self.changes else min(1, len(self.costs) - 2)
        last, first, num = self.costs[-1], self.costs[since], len(self.costs) - 1 - since
        return {cost: (last[cost] - first[cost]) / num for cost in COSTS}

    def _law(self) -> Curve | None:
        """Gives the law of the accuracy: the expected one moved to what was measured, or the run's own once it has
        enough of them; None where nothing is known."""
        seen = [(place + 1.0, value) for place, value in enumerate(self.accuracies) if value is not None]
        if not seen:
            return None
        at, values = zip(*seen, strict=True)
        filled = tuple(np.interp(np.arange(1.0, len(self.accuracies) + 1.0), at, values).tolist())
        if len(seen) >= _OWN or not all(name in self.expected for name in _LAW):
            return curve(filled)
        top, fall, speed = (float(self.expected[name]) for name in _LAW)
        moved = float(np.mean([value - (top - fall * round**-speed) for round, value in seen[-3:]]))
        return Curve(filled, min(top + moved, 1.0), fall, speed)

    def _rounds_to_go(self, left: int) -> tuple[int, bool]:
        """Gives how many more rounds are expected, and whether they end at the target and not with the last round."""
        law, wanted = self._law(), self.plant.config.run.target_accuracy
        if law is None or not wanted or not self.plant.config.run.stop_at_target:
            return left, False
        done = len(self.accuracies)
        first = law.first(wanted, 10 * (done + left))
        if first is None:
            return left, False
        # The law is of rounds like those so far; the next may do more or less.
        rounds = max(1, math.ceil((first - done) * float(np.mean(self.paces)) / self.pace))
        return min(rounds, left), rounds <= left

    def _excess(self, each: Mapping[str, float], rounds: int) -> tuple[float, str]:
        return self.goal.excess(self._total(each, rounds))

    def _total(self, each: Mapping[str, float], rounds: int) -> dict[str, float]:
        """Gives what the run comes to with so many rounds more."""
        spent = self.costs[-1]
        return {cost: spent[cost] + rounds * each[cost] for cost in COSTS}

    def _drifted(self, number: int, each: Mapping[str, float]) -> str:
        """Says once that a round costs other than was expected, where the limits are kept all the same."""
        margin = self.plant.config.run.replan_margin
        for cost, _ in self.goal.limits:
            wanted = float(self.expected.get(cost, 0.0))
            if wanted and abs(each[cost] / wanted - 1.0) > margin and not self.has_told:
                self.has_told = True
                return (
                    f"round {number}: a round takes {shown(cost, each[cost])} of {cost} where {shown(cost, wanted)} "
                    "were expected; the run stays within its limits, so nothing is changed"
                )
        return ""

    def _planned(
        self, number: int, ledger: Ledger, each: Mapping[str, float], rounds: int, cost: str, *, ends: bool
    ) -> tuple[Change, float]:
        """Gives the least change with which the limits are kept, or the nearest to them, and what it makes of the pace.

        `ends` tells whether the rounds are those until the target, which more work in each makes fewer.
        """
        bits = self.able_bits
        found = self._offers(bits, number + 1, ledger.simulated_seconds)
        there = np.asarray([str(device) not in ledger.gone for device in range(len(found.value))])
        there &= found.value.max(axis=1) > 0.0
        left = f"{int(there.sum())} of {len(there)} devices are left; " if not there.all() else ""
        most = next(limit.most for limit in self.goal.limits if limit.cost == cost)
        spent, needed = shown(cost, self.costs[-1][cost]), shown(cost, rounds * each[cost])
        more = "1 more round" if rounds == 1 else f"{rounds} more rounds"
        why = f"round {number}: {left}{spent} of {shown(cost, most)} {SAID[cost]} are spent, {more} would take {needed}"
        now = self._reckoned(found, there, bits, self.setting)
        present = self._excess(each, rounds)[0]
        best, chosen, pace, takes, num = (present, 0.0, each[cost]), self.setting, 1.0, dict(each), rounds
        for setting in self._settings(found, there, bits):
            then = self._reckoned(found, there, bits, setting)
            if then.worth <= 0.0:
                continue
            ratio = then.worth / now.worth if now.worth > 0.0 else 1.0
            to_go = min(max(1, math.ceil(rounds / math.sqrt(ratio))), self.last - number)
            to_go = to_go if ends else rounds
            costs = {c: each[c] * (then.costs[c] / now.costs[c] if now.costs[c] else 1.0) for c in COSTS}
            over, _ = self._excess(costs, to_go)
            rank = (over, abs(math.log(ratio)), costs[cost])
            if rank < best and (over <= 0.0 or over < _NEARER * present):
                best, chosen, pace, takes, num = rank, setting, math.sqrt(ratio), costs, to_go
        kept, stops = best[0] <= 0.0, self.plant.config.run.when_over == "stop"
        allowed = self._allowed(takes, num) if stops and not kept else 0
        last = number + allowed if allowed else 0
        changed = ", ".join(said(self.setting, chosen, last))
        told = f"{why}; from here on {changed}" if changed else f"{why}; nothing is changed"
        if allowed:
            told += f": the limits allow {allowed} of {num} more"
            kept, num = True, allowed
        elif not kept:
            told += f", which is the nearest: {100.0 * best[0]:.2g} % over a limit even so"
            told += "; the run ends here" if stops else ""
        because = self._because(ledger, found, there, bits, each[cost], cost, rounds)
        gone = tuple(sorted(int(device) for device in ledger.gone))
        before, after = self._total(each, rounds), self._total(takes, num)
        return Change(number, self.setting, chosen, told, kept, cost, because, gone, before, after, last), pace

    def _allowed(self, each: Mapping[str, float], rounds: int) -> int:
        """Gives how many of so many rounds, which cost so much each, keep all limits."""
        return next((num for num in range(rounds, 0, -1) if not self._excess(each, num)[0]), 0)

    def _because(
        self, ledger: Ledger, found: Offers, there: Flags, bits: Sequence[int], each: float, cost: str, rounds: int
    ) -> tuple[str, ...]:
        """Says what of the run is other than at its start, or than was expected; where nothing is, that it isn't."""
        told: list[str] = []
        margin, number = self.plant.config.run.replan_margin, len(self.accuracies)
        known = self.changes[-1].gone if self.changes else ()
        if fresh := sorted(int(device) for device in ledger.gone if int(device) not in known):
            names = ", ".join(map(str, fresh[:_NAMED])) + (", ..." if len(fresh) > _NAMED else "")
            told.append(f"{devices(len(fresh))} left with an empty battery: {names}")
        away = int((~there).sum()) - len(ledger.gone)
        if away > 0:
            told.append(f"{devices(away)} out of coverage or without rows")
        if self.plant.around is not None:
            first, unit = self._offers(bits, 1, 0.0), "seconds" if cost == "seconds" else "joules"
            at = np.arange(len(there)), self._places(self.setting, bits)
            took, takes = (float((getattr(one, unit)[at] * there).sum()) for one in (first, found))
            if took > 0.0 and abs(takes / took - 1.0) > margin:
                told.append(
                    f"with the channels as they are the same round takes {takes / took:.2g} times the {unit} it did"
                )
        wanted = float(self.expected.get(cost, 0.0))
        if wanted and each / wanted - 1.0 > margin:
            told.append(f"a round takes {shown(cost, each)} where {shown(cost, wanted)} were expected")
        expected = int(self.expected.get("rounds", 0))
        if expected and number + rounds > expected:
            told.append(f"{number + rounds} rounds are needed where {expected} were expected")
        never = "nothing is other than it was: the rounds that are left never fitted into the limit"
        told = told or ["what is left takes more than the last new plan reckoned" if self.changes else never]
        return tuple(told)

    def _settings(self, found: Offers, there: Flags, bits: Sequence[int]) -> Iterator[Setting]:
        """Gives what may be changed to: cohorts, deadlines and bits that the scheme admits, the present ones first."""
        admits, now = self.plant.scheme.admits, self.setting
        cohorts = [now.cohort]
        if "cohort" in admits:
            most = len(found.value)
            cohorts += [min(max(1, round(share * now.cohort)), most) for share in _COHORTS]
        deadlines = [now.deadline_s]
        if "dropout" in admits and any(limit.cost == "seconds" for limit in self.goal.limits):
            slowest = found.seconds[there].max(axis=1) if there.any() else np.zeros(0)
            deadlines += [] if not len(slowest) else [float(f"{np.quantile(slowest, share):.4g}") for share in _WAITED]
        for own, held in self._ways(found, there, bits):
            for deadline_s in dict.fromkeys(deadlines):
                for cohort in dict.fromkeys(cohorts):
                    yield Setting(cohort, deadline_s, own, held)

    def _ways(self, found: Offers, there: Flags, bits: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """Gives each device's bits and model as they are, and the best by what a round may take, from now to the least.

        Where time is limited, the slowest is one of the sums; a device that is gone stays as it is.
        """
        present = self.setting.bits, self.setting.held
        if found.value.shape[1] == 1:
            return [present]
        now = self._places(self.setting, bits)
        at = np.arange(len(now)), now
        room = found.fits.copy()
        room[at] = True
        sums = {name: getattr(found, name) * there[:, None] for name in ("joules", "uplink_bytes", "downlink_bytes")}
        peaks = {"seconds": found.seconds * there[:, None]}
        ways = [present]
        for name in (*sums, *peaks):
            each = sums[name] if name in sums else peaks[name]
            leanest = np.where(room, each, math.inf).min(axis=1)
            taken, least = (float(own.sum() if name in sums else own.max()) for own in (each[at], leanest))
            if name not in ("joules", "uplink_bytes") and not (self.models and self._is_limited(name)):
                continue
            for level in _LEVELS:
                limit = least + level * (taken - least)
                options = Options(found.value, sums, peaks, room, "joules")
                picks = choose(options, {name: limit} if limit > 0.0 else {}).picks
                ways.append(self._way(found, np.where(there, picks, now) if self.models else picks))
        return list(dict.fromkeys(ways))

    def _is_limited(self, name: str) -> bool:
        own = {"downlink_bytes": ("bytes", "downlink_bytes")}.get(name, (name,))
        return any(limit.cost in own for limit in self.goal.limits)

    def _way(self, found: Offers, picks: Ints) -> tuple[tuple[int, ...], tuple[str, ...]]:
        offers = [found.offers[place] for place in picks]
        bits = tuple(offer.bits for offer in offers) if self.able_bits else self.setting.bits
        dealt = [offer.variant for offer in offers]
        moved = tuple(named(variant, self.plant.scheme.differs) for variant in dealt) if self.models else ()
        return bits, moved

    def _offers(self, bits: Sequence[int], number: int, time_s: float) -> Offers:
        """Gives what each device may be told to hold and to send in, with its radio as it is in a round."""
        if not self.models:
            return as_dealt(self.plant, bits or (0,), number, time_s)
        return reckoned(self.plant, self.models, tuple(bits or (0,)), number, time_s)

    def _places(self, setting: Setting, bits: Sequence[int]) -> Ints:
        """Gives the place of each device's model and bits among those that it may have."""
        how = update.parse(self.plant.config.link.up, "link.up")
        num = len(self.first)
        level = int(how.level) if how is not None else 0
        own = setting.bits or (level,) * num
        places = [bits.index(value) if bits else 0 for value in own]
        if self.models:
            known = {variant: place for place, (variant, _) in enumerate(self.models)}
            kinds = [known[variant] for variant in self.dealt(setting)]
            places = [kind * max(len(bits), 1) + place for kind, place in zip(kinds, places, strict=True)]
        return np.asarray(places, np.int64)

    def _reckoned(self, found: Offers, there: Flags, bits: Sequence[int], setting: Setting) -> _Reckoned:
        return _Reckoned(found, there, self._places(setting, bits), setting)

    def dump(self) -> dict[str, Any]:
        """Gives all that is remembered, for a checkpoint, as plain values."""
        return {
            "changes": [change.to_table() for change in self.changes],
            "costs": self.costs,
            "accuracies": self.accuracies,
            "pace": self.pace,
            "paces": self.paces,
            "has_told": self.has_told,
            "is_over": self.is_over,
            "forecast": self.forecast,
        }

    def restore(self, table: Mapping[str, Any]) -> None:
        """Puts back what `dump` gave. Raises: CheckpointError for what it can't have given."""
        try:
            self.costs = [{cost: float(each[cost]) for cost in COSTS} for each in table["costs"]]
            self.accuracies = [None if value is None else float(value) for value in table["accuracies"]]
            self.pace, self.paces = float(table["pace"]), [float(value) for value in table["paces"]]
            self.has_told, self.is_over = bool(table["has_told"]), bool(table["is_over"])
            self.forecast = costs_of(table["forecast"])
            self.changes = [change_of(each) for each in table["changes"]]
            self.setting = self.changes[-1].setting if self.changes else self.setting
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError("the checkpoint lacks how the run was planned again; start the run anew") from None


class _Reckoned:
    """What a round costs and is worth with a setting, by the reckoning: a device is in it as often as chance has it."""

    def __init__(self, found: Offers, there: Flags, places: Ints, setting: Setting) -> None:
        at = np.arange(len(there)), places
        share = setting.cohort / len(there)
        seconds = found.seconds[at]
        late = setting.deadline_s or math.inf
        self.worth = share * float((found.value[at] * there * (seconds <= late)).sum())
        sums = [name for name in COSTS if name != "seconds"]
        self.costs = {name: share * float((getattr(found, name)[at] * there).sum()) for name in sums}
        # The slowest of so many that are drawn is about this quantile of all; the round waits no longer than it may.
        drawn = max(share * float(there.sum()), 1.0)
        near = seconds[there] if there.any() else np.zeros(1)
        slow = float(np.quantile(near, drawn / (drawn + 1.0) if share < 1.0 else 1.0))
        self.costs["seconds"] = min(slow, late)


def _spent(ledger: Ledger) -> dict[str, float]:
    up, down = float(ledger.uplink_bytes), float(ledger.downlink_bytes)
    each = (float(ledger.device_joules), float(ledger.simulated_seconds), up + down, up, down)
    return dict(zip(COSTS, each, strict=True))
