"""Who is asked in a round, where that isn't drawn: a rule, what it knows of the devices, and what it learned of them.

What a device would take is worked out from its model, board, radio and number of rows, until it has taken part; then
what it took counts. A scheme asks `Kit.cohort`, which asks `Choosing.cohort`; what came of it is told by `saw`. All
that was learned is in the checkpoint.

Shape letters: D devices that train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from midhaul import budget, rng, selection, tree
from midhaul.config import Config
from midhaul.errors import CheckpointError, ConfigError
from midhaul.fleet import Group
from midhaul.kit import Kit, Scheme
from midhaul.link import air
from midhaul.link.radio import Radio
from midhaul.message import Op
from midhaul.models import count
from midhaul.program import Program
from midhaul.selection import Array, Ints
from midhaul.tree import Tree

Radios = Callable[[int, float], Mapping[int, Radio]]  # of a round and a time: each device's, alone in its band
LEARNS = ("oort", "frugal")
EXPLORE_LEAST, EXPLORE_DECAY = 0.2, 0.98  # of Oort's share of new devices, a round
PACER_START, PACER_STEP = 0.3, 0.05  # quantiles of the devices' times: Oort's T, and how it grows (from memory)
_KEPT = ("last", "utility", "seconds", "joules")


@dataclass(frozen=True)
class Expected:
    """What a round should take of each device, wherever its radio is. Shapes: [D]. Units: seconds, joules, bytes."""

    compute_s: Array
    compute_j: Array
    up_bytes: Array
    down_bytes: Array


def check(scheme: Scheme, config: Config) -> None:
    """Refuses a rule that the scheme or the settings leave nothing to choose by. Raises: ConfigError."""
    fleet, rule = config.fleet, config.fleet.selection
    if rule == "random":
        return
    if rule in LEARNS and all(work.op != Op.FIT for work in scheme.work(config.scheme)):
        raise ConfigError(
            f"fleet.selection = {rule!r} goes by the losses that devices tell after training, and those of the scheme "
            f"{scheme.name} tell none; choose random, round_robin or best_channel"
        )
    if rule == "fedcs" and not fleet.round_deadline_s:
        raise ConfigError("fleet.selection = 'fedcs' fills a round up to its deadline; set fleet.round_deadline_s")
    if rule != "fedcs" and fleet.cohort == 1.0:
        raise ConfigError(
            f"with fleet.cohort = 1.0 every device is in every round, and fleet.selection = {rule!r} has nothing to "
            "choose; set fleet.cohort to a smaller share, or to a number of devices"
        )


class Choosing:
    """A rule of choosing at work. `rows` are those that each device trains on, `pace` what its seconds are multiplied
    by."""

    def __init__(self, kit: Kit, scheme: Scheme, rows: Sequence[int], radios: Radios, seed: int) -> None:
        self.fleet = kit.config.fleet
        self.rows = np.asarray(rows, np.float64)
        self.radios = radios
        self.seed = seed
        self.expected = expected(kit, scheme, rows)
        self.is_gone: Callable[[int], bool] = lambda device: False
        self.now_s: Callable[[], float] = lambda: 0.0
        self.pace: Callable[[int], float] = lambda device: 1.0
        self.known: dict[str, Array] = {name: np.zeros(len(rows)) for name in _KEPT}
        self.gained: list[float] = []
        self.quantile = PACER_START
        self._chosen: tuple[int, tuple[int, ...]] = (-1, ())
        self._gain = 0.0

    def cohort(self, num: int, key: rng.Key, devices: Sequence[int]) -> tuple[int, ...]:
        """Gives the devices of a round, the same however often it is asked in it; those without energy aren't asked."""
        if key.round == self._chosen[0]:
            return self._chosen[1]
        there = np.asarray([device for device in devices if not self.is_gone(device)], np.int64)
        chosen: tuple[int, ...] = ()
        if len(there):
            places = self._places(there, min(num, len(there)), key)
            chosen = tuple(int(device) for device in there[places])
        self._end_round()
        self._chosen = key.round, chosen
        self.known["last"][list(chosen)] = key.round
        return chosen

    def saw(self, device: int, loss: float | None, seconds: float, joules: float) -> None:
        """Takes what came of asking a device: the loss that it told, None where it tells none, and what it took."""
        if loss is not None and math.isfinite(loss):
            rows = self.rows[device]
            utility = float(selection.statistical_utility(np.asarray(rows), np.asarray(loss)))
            self.known["utility"][device] = utility
            self._gain += utility
        self.known["seconds"][device], self.known["joules"][device] = seconds, joules

    def dump(self) -> tuple[Tree, dict[str, Any]]:
        """Gives all that was learned, for a checkpoint: tensors, and plain values."""
        table = {"gained": self.gained, "quantile": self.quantile, "gain": self._gain, "round": self._chosen[0]}
        return {name: torch.from_numpy(value.copy()) for name, value in self.known.items()}, {
            **table,
            "chosen": list(self._chosen[1]),
        }

    def restore(self, tensors: Tree, table: Mapping[str, Any]) -> None:
        """Puts back what `dump` gave. Raises: CheckpointError for what it can't have given."""
        try:
            found = {name: tensors[name].numpy().astype(np.float64) for name in _KEPT}
            if any(value.shape != self.rows.shape for value in found.values()):
                raise ValueError
            self.known = found
            self.gained = [float(value) for value in table["gained"]]
            self.quantile, self._gain = float(table["quantile"]), float(table["gain"])
            self._chosen = int(table["round"]), tuple(int(device) for device in table["chosen"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("the checkpoint lacks what was learned of the devices; start the run anew") from None

    def _places(self, there: Ints, num: int, key: rng.Key) -> Ints:
        draws = rng.uniform_of(rng.words_of(key.seed, key.round, there, rng.Use.CHOICE, 1))[:, 0]
        rule, fleet = self.fleet.selection, self.fleet
        last, utility = self.known["last"][there], self.known["utility"][there]
        if rule == "round_robin":
            return selection.round_robin(last, num, draws)
        radios = self.radios(key.round, self.now_s())
        near = [radios[int(device)] for device in there]
        if rule == "best_channel":
            return selection.best_channel(np.asarray([radio.up_bps for radio in near]), num, draws)
        up_s, down_s, compute_s, joules = self._costs(there, near)
        if rule == "fedcs":
            return selection.fedcs(compute_s, up_s, down_s, fleet.round_deadline_s, num, draws)
        if rule == "frugal":
            spent = np.where(self.known["joules"][there] > 0.0, self.known["joules"][there], joules)
            return selection.frugal(utility, last, spent, num, number=key.round, thrift=fleet.thrift, draws=draws)
        total_s = up_s + down_s + compute_s
        took_s = np.where(self.known["seconds"][there] > 0.0, self.known["seconds"][there], total_s)
        return selection.oort(
            utility,
            last,
            took_s,
            total_s,
            num,
            number=key.round,
            explore=max(EXPLORE_LEAST, fleet.explore * EXPLORE_DECAY ** (key.round - 1)),
            preferred_s=float(np.quantile(took_s, self.quantile)),
            alpha=fleet.oort_alpha,
            draws=draws,
        )

    def _costs(self, there: Ints, radios: Sequence[Radio]) -> tuple[Array, Array, Array, Array]:
        """Gives seconds up, down and computing, and joules, of a round with each radio as it is now."""
        need = self.expected
        up, down = need.up_bytes[there], need.down_bytes[there]
        pairs = list(zip(radios, up.tolist(), down.tolist(), strict=True))
        pace = np.asarray([self.pace(int(device)) for device in there])
        up_s = pace * np.asarray([radio.seconds_up(int(sent)) for radio, sent, _ in pairs])
        down_s = pace * np.asarray([radio.seconds_down(int(got)) for radio, _, got in pairs])
        air_j = np.asarray([radio.joules_up(int(sent)) + radio.joules_down(int(got)) for radio, sent, got in pairs])
        return up_s, down_s, pace * need.compute_s[there], need.compute_j[there] + air_j

    def _end_round(self) -> None:
        """Closes the books of the round before: what its devices were worth, and whether Oort waits for slower ones."""
        if self._chosen[0] < 1:
            return
        self.gained.append(self._gain)
        self._gain = 0.0
        window = self.fleet.pacer_rounds
        if len(self.gained) % window == 0 and selection.pace(self.gained, window):
            self.quantile = min(self.quantile + PACER_STEP, 1.0)
        self.gained = self.gained[-2 * window :]


def expected(kit: Kit, scheme: Scheme, rows: Sequence[int]) -> Expected:
    """Gives what a round of the scheme should take of each device.

    Limits: an op trains all of a device's rows `scheme.epochs` times, and what it trains is what travels.
    """
    num = len(rows)
    seconds, joules, up, down = np.zeros(num), np.zeros(num), np.zeros(num), np.zeros(num)
    for group in kit.groups:
        own = list(group.devices)
        held = np.asarray([rows[device] for device in own], np.float64)
        for macs_row, up_row, down_row, up_once, down_once in works(kit, scheme, group):
            examples = held * kit.cfg.epochs
            busy_s = examples * macs_row * group.board.cycles_per_mac_f32 / group.board.clock_hz
            seconds[own] += busy_s
            joules[own] += busy_s * group.board.active_w
            up[own] += examples * up_row + up_once
            down[own] += examples * down_row + down_once
    return Expected(seconds, joules, up, down)


def works(kit: Kit, scheme: Scheme, group: Group) -> Iterator[tuple[float, float, float, float, float]]:
    """Gives for each op of a round its MACs and bytes up and down of an example, and its bytes up and down once."""
    program = group.program
    for work in scheme.work(kit.cfg):
        if work.op == Op.FIT:
            names = program.names(work.train)
            layers = count.layers(program.module, program.input_shape)
            macs = work.learning.passes * budget.macs_per_example(layers, work.op, names)
            crossing = air.of(work.op, tree.select(program.initial, program.sendable(work.train)))
            yield macs, 0.0, 0.0, float(crossing.up_bytes), float(crossing.down_bytes)
        elif work.op in (Op.FORWARD, Op.BACKWARD):
            layers = count.layers(program.front, program.input_shape)
            macs = float(budget.macs_per_example(layers, work.op, program.names("front")))
            batch = kit.cfg.batch or 16
            crossing = air.of(work.op, {}, _smashed(program, batch))
            yield macs, crossing.up_bytes / batch, crossing.down_bytes / batch, 0.0, 0.0


def _smashed(program: Program, batch: int) -> torch.Tensor:
    """Gives a batch at the cut, for its shape."""
    from midhaul.models import trace

    with torch.no_grad(), trace.at_rest(program.front):
        out: torch.Tensor = program.front(trace.example(program.front, program.input_shape, batch))
    return out
