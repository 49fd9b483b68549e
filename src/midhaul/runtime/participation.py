"""A fleet around a fleet over a link: who takes part in a round, how much of it they do, and how long it takes.

All of it belongs to the run, whatever the scheme: absent devices aren't asked, stragglers are asked for fewer epochs,
late ones are not waited for, and replies count by examples or all alike. The clock is simulated: an exchange lasts as
long as the slowest device on air and computing, each at a speed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from midhaul import rng
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.fleet import Around, Fleet, Group, Part
from midhaul.kit import Kit, Scheme
from midhaul.message import Message, Op, Replies, Setting, gather
from midhaul.runtime.band import Band
from midhaul.runtime.choosing import Choosing
from midhaul.runtime.ledger import Ledger, Times
from midhaul.runtime.spending import Spending


class Metered(Fleet, Protocol):
    """A fleet that says what an exchange took: seconds on air and computing of each device in the last one.

    It is told how slow each device is (`pace`), how much of the round's time it has used, and when that ends.
    """

    ledger: Ledger
    spending: Spending
    band: Band | None
    seconds: Times
    pace: Callable[[int], float] | None
    elapsed: Mapping[int, float]
    deadline_s: float

    def again(self) -> None:
        """Is told that the round is repeated."""
        ...

    def regroup(self, fleet: Fleet, groups: Sequence[Group]) -> None:
        """Is told what lies on the devices from now on, in which engine."""
        ...


def check(scheme: Scheme, config: Config) -> None:
    """Refuses what the scheme doesn't admit, by name. Raises: ConfigError."""
    fleet = config.fleet
    asked = {
        "fleet.cohort": ("cohort", fleet.cohort != 1.0),
        "fleet.stragglers": ("stragglers", fleet.stragglers > 0.0),
        "fleet.dropout": ("dropout", fleet.dropout > 0.0),
        "fleet.round_deadline_s": ("dropout", fleet.round_deadline_s > 0.0),
        "fleet.battery_j": ("dropout", fleet.battery_j != 0.0),
        "fleet.selection": ("cohort", fleet.selection != "random"),
        "fleet.weighting": ("weighting", fleet.weighting != "examples"),
        "fleet.mode": ("asynchronous", fleet.mode != "synchronous"),
    }
    for setting, (name, is_asked) in asked.items():
        if is_asked and name not in scheme.admits:
            admitted = ", ".join(scheme.admits) or "nothing of the kind"
            raise ConfigError(
                f"the scheme {scheme.name} doesn't admit {name}, which {setting} asks for (it admits {admitted}); "
                "leave it at its default, or choose a scheme that admits it (`midhaul schemes`)"
            )
    if fleet.round_deadline_s and fleet.mode != "synchronous":
        raise ConfigError(f"{fleet.mode} waits for nobody, so fleet.round_deadline_s has no sense with it; set it to 0")
    drops = config.scheme.drop_stragglers and not scheme.keeps_stragglers
    if fleet.stragglers and not drops and config.scheme.epochs < 2:
        raise ConfigError("a straggler does some of its epochs, at least 1; set scheme.epochs to at least 2")


def speed(spread: float, device: int, seed: int) -> float:
    """Gives how many times its seconds a device takes: exp(spread x normal), the same for the whole run."""
    return math.exp(spread * float(rng.normal(rng.key(seed, 0, device, rng.Use.SPEED), 1)[0])) if spread else 1.0


class Participation(Around):
    """A fleet whose devices may be absent from a round, late in it, or short of time. Round 0 waits for all.

    `keeps_stragglers`: what a straggler did is taken, whatever scheme.drop_stragglers says. `choosing` says who is in a
    cohort, where that isn't drawn.
    """

    fleet: Metered

    def __init__(
        self, fleet: Metered, kit: Kit, *, keeps_stragglers: bool = False, choosing: Choosing | None = None
    ) -> None:
        self.fleet = fleet
        self.kit = kit
        self.spending, self.band = fleet.spending, fleet.band
        self.choosing = self._ready(choosing)
        self.ledger = fleet.ledger
        self.drops_stragglers = kit.cfg.drop_stragglers and not keeps_stragglers
        self.seconds = Times()
        self.asking: frozenset[int] = frozenset()  # to be in every cohort
        self._round = -1
        self._speeds: dict[tuple[int, int], float] = {}
        self._late: frozenset[int] = frozenset()
        self._elapsed: dict[int, float] = {}  # of each device in this round

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Asks those that take part; gives the replies that came in time."""
        return self.exchange_parts([(message, self.devices if devices is None else devices)], key=key)[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with several messages in one step."""
        if key.round != self._round:
            self._round, self._elapsed = key.round, {}
            self._late = self._stragglers(key)
        given = [gather({}) for _ in parts]
        there: dict[int, Part] = {}
        for number, (message, devices) in enumerate(parts):
            if self._waits_for_all(key):
                near, part = devices, message
            else:
                places = [place for place, device in enumerate(devices) if self._takes_part(device, message, key)]
                near, part = [devices[place] for place in places], message.of_places(places)
            if near:
                there[number] = self._shortened(part, near, key), near
        self.seconds = Times()
        if there:
            began_s = self.ledger.simulated_seconds
            choosing = self.choosing if key.round else None
            if self.spending.states or choosing is not None:
                asked = [device for _, near in there.values() for device in near]
                self.spending.rest_until(asked, began_s)
                before = {device: self.ledger.joules.get(str(device), 0.0) for device in asked}
            spread = self.kit.config.fleet.speed_spread
            self.fleet.pace = (lambda device: self.speed(device, key.seed)) if spread else None
            self.fleet.elapsed, self.fleet.deadline_s = self._elapsed, self._deadline(key)
            replies = self.fleet.exchange_parts(list(there.values()), key=key)
            self._tick(key)
            for device, spent in self.seconds.items() if self.spending.states else ():
                self.spending.rest_from(device, began_s + sum(spent))
            if choosing is not None:
                self._tell(there.values(), replies, before)
            for number, answer in zip(there, replies, strict=True):
                given[number] = self._counted(parts[number][0].op, self._in_time(answer, key))
        return given

    def redeal(self, engine: Fleet, kit: Kit, choosing: Choosing | None) -> None:
        """Is told what lies on the devices from now on, in which engine. Who chooses goes on with what was learned."""
        self.kit = kit
        self.fleet.regroup(engine, kit.groups)
        if choosing is not None and self.choosing is not None:
            choosing.restore(*self.choosing.dump())
        self.choosing = self._ready(choosing)

    def _ready(self, choosing: Choosing | None) -> Choosing | None:
        """Lets who chooses look at batteries, the clock and the devices' speeds."""
        if choosing is not None:
            choosing.is_gone = self.fleet.spending.is_empty
            choosing.now_s = lambda: self.fleet.ledger.simulated_seconds
            choosing.pace = lambda device: self.speed(device, self.kit.config.run.seed)
        return choosing

    def again(self) -> None:
        """Goes back to the beginning of the round, which is to be repeated: what was spent stays spent."""
        self._round = -1
        self.fleet.again()

    def settle(self) -> None:
        """Charges the devices for having had nothing to do until now."""
        self.spending.rest_until(self.devices, self.ledger.simulated_seconds)

    def _tell(self, parts: Iterable[Part], replies: Sequence[Replies], before: dict[int, float]) -> None:
        """Tells who chooses cohorts what came of asking: losses of training, seconds, joules."""
        assert self.choosing is not None
        for (message, asked), answer in zip(parts, replies, strict=True):
            if message.op != Op.FIT:
                continue
            losses = answer.metrics["loss"].tolist() if "loss" in answer.metrics else [None] * len(answer)
            told = dict(zip(answer.devices, losses, strict=True))
            for device in asked:
                joules = self.ledger.joules.get(str(device), 0.0) - before[device]
                self.choosing.saw(device, told.get(device), sum(self.seconds.get(device, (0.0, 0.0))), joules)

    def speed(self, device: int, seed: int) -> float:
        """Gives how many times its seconds a device takes, the same for the whole run."""
        spread = self.kit.config.fleet.speed_spread
        if not spread:
            return 1.0
        if (device, seed) not in self._speeds:
            self._speeds[device, seed] = speed(spread, device, seed)
        return self._speeds[device, seed]

    def _waits_for_all(self, key: rng.Key) -> bool:
        """Tells whether nobody can be absent, late or out of time in this round."""
        fleet = self.kit.config.fleet
        return not key.round or not (self._late or fleet.dropout or fleet.round_deadline_s)

    def _takes_part(self, device: int, message: Message, key: rng.Key) -> bool:
        fleet = self.kit.config.fleet
        if not key.round:
            return True
        if device in self._late:
            if self.drops_stragglers:
                return False
            epoch = int(message.settings.get("epoch", 0))
            if message.op == Op.FORWARD and epoch and epoch >= self._share(device, self.kit.cfg.epochs, key):
                return False
        is_absent = fleet.dropout and rng.uniform(rng.key(key.seed, key.round, device, rng.Use.ABSENCE), 1)[0] < (
            fleet.dropout
        )
        is_over = self._elapsed.get(device, 0.0) > self._deadline(key)
        self.ledger.absent += bool(is_absent or is_over)
        return not (is_absent or is_over)

    def _stragglers(self, key: rng.Key) -> frozenset[int]:
        """Gives those of the round's cohort that have time for only some of their work.

        Source: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, section 5.2.
        """
        if not (self.kit.config.fleet.stragglers and key.round):
            return frozenset()
        cohort = self.kit.cohort(self, key)
        order = rng.permutation(key._replace(use=int(rng.Use.WORK)), len(cohort))
        return frozenset(cohort[place] for place in order[: round(self.kit.config.fleet.stragglers * len(cohort))])

    def _share(self, device: int, full: int, key: rng.Key) -> int:
        """Gives for how much of its work a straggler has time: at least 1, and less than all."""
        stream = rng.key(key.seed, key.round, device, rng.Use.WORK)
        return 1 + int(rng.integers(stream, 1, max(full - 1, 1))[0])

    def _shortened(self, message: Message, devices: Sequence[int], key: rng.Key) -> Message:
        """Gives the message that asks stragglers for fewer epochs, or fewer steps where the work is told in steps."""
        if message.op != Op.FIT or self._late.isdisjoint(devices):
            return message
        asked = [message.for_device(place).settings for place in range(len(devices))]
        name = "steps" if any(settings.get("steps") for settings in asked) else "epochs"
        full = [int(settings.get(name, 1)) for settings in asked]
        short: tuple[Setting, ...] = tuple(
            self._share(device, num, key) if device in self._late else num
            for device, num in zip(devices, full, strict=True)
        )
        return replace(message, each_settings={**message.each_settings, name: short})

    def _tick(self, key: rng.Key) -> None:
        """Moves the clock on by the slowest device of a step, or to the deadline."""
        spent = self.seconds = self.fleet.seconds
        devices, elapsed = spent.at.tolist(), self._elapsed
        before = np.asarray([elapsed.get(device, 0.0) for device in devices]) if elapsed else np.zeros(len(devices))
        after = before + (spent.air_s + spent.busy_s)
        elapsed.update(zip(devices, after.tolist(), strict=True))
        self.ledger.simulated_seconds += float((np.minimum(after, self._deadline(key)) - before).max(initial=0.0))

    def _deadline(self, key: rng.Key) -> float:
        return (self.kit.config.fleet.round_deadline_s if key.round else 0.0) or math.inf

    def _in_time(self, replies: Replies, key: rng.Key) -> Replies:
        """Gives the replies of those that the round waits for."""
        deadline = self._deadline(key)
        if deadline == math.inf:
            return replies
        places = [place for place, device in enumerate(replies.devices) if self._elapsed[device] <= deadline]
        self.ledger.absent += len(replies) - len(places)
        return replies if len(places) == len(replies) else replies.of_places(places)

    def _counted(self, op: Op, replies: Replies) -> Replies:
        """Gives the replies as a mean is to count them: by their examples, or all alike."""
        if self.kit.config.fleet.weighting == "examples" or op not in (Op.FIT, Op.READ):
            return replies
        return replace(replies, weight=(replies.weight > 0.0).to(replies.weight.dtype))
