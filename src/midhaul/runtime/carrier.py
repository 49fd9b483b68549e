"""What carrying frames between the server and its devices comes to: which are lost, and what each device is charged.

A frame is carried by itself (`carry`), or those of a cohort at once where they are as long as one another
(`carry_alike`): the same draws, charges and order, to the bit.

Shape letters: D devices named, T tries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.fleet import Group
from midhaul.link.conditions import Conditions, Surroundings
from midhaul.runtime.band import Band, Download
from midhaul.runtime.frame_log import Log
from midhaul.runtime.ledger import Doubles, Ints, Kinds, Ledger
from midhaul.runtime.spending import Spending

Flags = npt.NDArray[np.bool_]


@dataclass
class Step:
    """One step of a scheme under way: what each device's radio and its computing took. Units: seconds.

    Shapes: `seconds` and `busy` are by the device's number. `turn` counts the exchanges of the round before this one.
    """

    key: rng.Key
    seconds: Doubles
    busy: Doubles
    turn: int = 0
    uploads: dict[int, int] = field(default_factory=dict)  # bytes that wait for a shared band
    downloads: dict[int, Download] = field(default_factory=dict)  # frames of a shared band, by what tells them apart
    answered: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Many:
    """Devices of a cohort, none of which is there twice. Shapes: `at` [D], the same as an array."""

    devices: Sequence[int]
    at: Ints

    @classmethod
    def of(cls, devices: Sequence[int]) -> Many | None:
        """Gives devices; None where one is there twice."""
        return cls(devices, np.asarray(devices, np.int64)) if len(set(devices)) == len(devices) else None

    def where(self, flags: Flags) -> Many:
        """Gives some of them. Shapes: [D]."""
        return self if flags.all() else Many([d for d, f in zip(self.devices, flags, strict=True) if f], self.at[flags])


class Carrier:
    """Carries frames over the devices' radios. `groups` has the group of every device.

    Below 0, `loss` is each radio's own. `around` is what varies the radios, `band` is shared on the way up.
    """

    def __init__(
        self,
        groups: Mapping[int, Group],
        *,
        loss: float,
        retries: int,
        ledger: Ledger,
        spending: Spending,
        around: Surroundings | None,
        band: Band | None,
        log: Log | None,
    ) -> None:
        self.loss, self.retries = loss, retries
        self.ledger, self.spending = ledger, spending
        self.around, self.band, self.log = around, band, log
        distinct = {id(group): group for group in groups.values()}
        still = {number: Conditions(group.radio) for number, group in distinct.items()}
        self._still = {device: still[id(group)] for device, group in groups.items()}
        self._is_one_kind = len(distinct) == 1
        self._kind = np.zeros(max(groups, default=0) + 1, np.int64)  # the number of each device's group
        numbers = {number: place for place, number in enumerate(distinct)}
        self._kind[[*groups]] = [numbers[id(group)] for group in groups.values()]
        self._now: dict[int, Conditions] = {}  # of the devices in the step under way, where anything varies

    def begin(self, round: int, asked: Sequence[int]) -> None:
        """Finds what the devices' radios are worth in the step that begins."""
        self.spending.round = round
        if self.around is not None:
            self._now = self.around.at(round, self.ledger.simulated_seconds, asked)

    def conditions(self, device: int) -> Conditions:
        """Gives a device's radio as it is now: in its cell or by its trace, else by its own figures."""
        return self._now.get(device) or self._still[device]

    def is_there(self, device: int) -> bool:
        """Tells whether a device can be asked: it is in coverage, and its battery isn't empty."""
        is_served = self.conditions(device).served
        self.ledger.uncovered += not is_served
        return is_served and not self.spending.is_empty(device)

    def all_are_there(self) -> bool:
        """Tells whether no device can be out of coverage or have an empty battery, so that none need be asked for."""
        return not self._now and not self.ledger.gone

    def carry(self, device: int, data: bytes, kinds: Kinds, step: Step, *, up: bool) -> bool:
        """Carries a frame, as often as it takes; tells whether it arrived at a device that is still there."""
        tries, arrived = self._tries(device, len(data), step, up=up)
        self._count(kinds, tries, up=up)
        if up and self.band is not None and self.band.allocation != "own":
            step.uploads[device] = step.uploads.get(device, 0) + tries * len(data)
        elif not up and self.band is not None and self.band.down != "own":
            own = step.downloads.setdefault(id(data), Download(len(data), data)).tries
            own[device] = own.get(device, 0) + tries
        else:
            seconds, energy_j = self.spending.price(device, self.conditions(device), len(data), tries, up=up)
            self.spending.charge(device, _what(up), energy_j, seconds)
            step.seconds[device] += seconds
        if self.log is not None:
            self.log(step.key.round, up, data * tries)
        return arrived and not self.spending.is_empty(device)

    def carry_alike(
        self,
        many: Many,
        num_bytes: int,
        kinds: Kinds,
        step: Step,
        *,
        up: bool,
        frames: Sequence[bytes | memoryview] = (),
    ) -> Flags:
        """Does so with frames of one length, one a device, whose bytes are of the same kinds; `frames` are those bytes,
        if they are logged. Shapes: [D]."""
        tries, arrived = self._tries_alike(many, num_bytes, step, up=up)
        self._count(kinds, int(tries.sum()), up=up)
        if not up and self.band is not None and self.band.down != "own":
            own = step.downloads.setdefault(-len(step.downloads), Download(num_bytes)).tries
            for device, num in zip(many.devices, tries.tolist(), strict=True):
                own[device] = own.get(device, 0) + num
        elif up and self.band is not None and self.band.allocation != "own":
            for device, num in zip(many.devices, tries.tolist(), strict=True):
                step.uploads[device] = step.uploads.get(device, 0) + num * num_bytes
        else:
            seconds, energy_j = self._prices(many, num_bytes, tries, up=up)
            self.spending.charge_all(many.at, _what(up), energy_j, seconds)
            step.seconds[many.at] += seconds
        if self.log is not None:
            for data, num in zip(frames, tries.tolist(), strict=True):
                self.log(step.key.round, up, bytes(data) * num)
        if self.ledger.gone:
            arrived = arrived & ~np.asarray([self.spending.is_empty(device) for device in many.devices])
        return arrived

    def _count(self, kinds: Kinds, tries: int, *, up: bool) -> None:
        """Counts the bytes of a frame as often as it was sent."""
        total = self.ledger.kinds_up if up else self.ledger.kinds_down
        for kind, num in kinds.items():
            total[str(kind)] = total.get(str(kind), 0) + tries * num

    def _tries(self, device: int, num_bytes: int, step: Step, *, up: bool) -> tuple[int, bool]:
        """Gives how often a frame is sent, and whether it arrived at last."""
        loss = self._loss(device, num_bytes, up=up)
        if loss <= 0.0:
            return 1, True
        key = step.key
        stream = rng.key(key.seed, key.round, device, rng.Use.LOSS).at(2 * step.turn + up)
        for number, draw in enumerate(rng.uniform(stream, self.retries + 1)):
            if draw >= loss:
                return number + 1, True
        return self.retries + 1, False

    def _tries_alike(self, many: Many, num_bytes: int, step: Step, *, up: bool) -> tuple[Ints, Flags]:
        """Gives the same of frames of one length. Shapes: [D], [D]."""
        if self.loss >= 0.0 or (self._is_one_kind and not self._now):
            loss = np.full(len(many.at), self._loss(many.devices[0], num_bytes, up=up))
        elif not self._now:
            kinds = self._kind[many.at]
            of_kind = {kind: self._loss(device, num_bytes, up=up) for device, kind in self._first(many, kinds)}
            loss = np.asarray([of_kind[kind] for kind in kinds.tolist()])
        else:
            loss = np.asarray([self._loss(device, num_bytes, up=up) for device in many.devices])
        if not (loss > 0.0).any():
            return np.ones(len(loss), np.int64), np.ones(len(loss), np.bool_)
        key, num = step.key, self.retries + 1
        words = rng.words_of(key.seed, key.round, many.at, rng.Use.LOSS, num, 2 * step.turn + up)
        # As one frame's numbers are compared with its loss: in single precision.
        bound_D1 = loss.astype(np.float32)[:, None]
        came_DT = (rng.uniform_of(words).astype(np.float32) >= bound_D1) | (loss <= 0.0)[:, None]
        arrived = np.asarray(came_DT.any(1))
        return np.where(arrived, came_DT.argmax(1) + 1, num), arrived

    def _loss(self, device: int, num_bytes: int, *, up: bool) -> float:
        return self.loss if self.loss >= 0.0 else self.conditions(device).loss(num_bytes, up=up)

    def _prices(self, many: Many, num_bytes: int, tries: Ints, *, up: bool) -> tuple[Doubles, Doubles]:
        """Gives the seconds and joules of each device. Shapes: [D] -> [D], [D]."""
        named = many.devices
        if self._now:
            each = [
                self.spending.price(device, self.conditions(device), num_bytes, num, up=up)
                for device, num in zip(named, tries.tolist(), strict=True)
            ]
        else:  # devices of one kind pay the same for as many tries
            kinds = tries if self._is_one_kind else self._kind[many.at] * (self.retries + 2) + tries
            first = self._first(many, kinds)
            of_kind = {
                kind: self.spending.price(device, self._still[device], num_bytes, kind % (self.retries + 2), up=up)
                for device, kind in first
            }
            if len(first) == 1:
                seconds, energy_j = of_kind[first[0][1]]
                return np.full(len(kinds), seconds), np.full(len(kinds), energy_j)
            each = [of_kind[kind] for kind in kinds.tolist()]
        both = np.asarray(each, np.float64)
        return both[:, 0], both[:, 1]

    def _first(self, many: Many, kinds: Ints) -> list[tuple[int, int]]:
        """Gives a device of each kind, and the kind."""
        if len(kinds) and (kinds == kinds[0]).all():
            return [(many.devices[0], int(kinds[0]))]
        return [(device, kind) for kind, device in dict(zip(kinds.tolist(), many.devices, strict=True)).items()]


def _what(up: bool) -> str:
    return "transmit" if up else "receive"
