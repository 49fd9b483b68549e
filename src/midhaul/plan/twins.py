"""The run itself, tested on rows that it doesn't use: its seed, its devices, and nearly all or all of their rows.

A run is the same run each time it is simulated, so what its own devices come to tells more of it than other devices
would. Where the data have rows that no device was dealt, nothing is taken from what the run learns from; elsewhere a
part is put aside in turn, a tenth of each device's rows or a few people, so that the devices keep nearly all
(cross-validation: R. Kohavi, IJCAI 1995, section 2; from memory).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from midhaul import rng
from midhaul.config import Config
from midhaul.data import Federation
from midhaul.plan.rows import PART, by_publisher, key, turn

_MOST = 4  # times as many rows as the run is tested on, where there are so many that nobody has
_FEWEST = 4  # devices of which one can be spared


@dataclass(frozen=True)
class Twin:
    """Who holds which rows, and whether those to learn from are the run's own, all of them."""

    federation: Federation
    is_whole: bool


def twin(federation: Federation, config: Config, draw: int, draws: int) -> Twin | None:
    """Gives the run's devices with others of their rows, or other people, to test on in each of so many draws.

    None where none are like the run's test: new devices that adapt, and episodes.
    """
    natural = config.data.partition == "natural"
    if federation.classes or any(map(len, federation.adapt)):
        return None
    spare = _spare(federation, config)
    if federation.own_test:
        return _own_rows(federation, config, spare, draw, draws)
    if natural and config.data.test != "shared":
        return _other_people(federation, config, draw)
    wanted = sum(map(len, federation.test))
    mixed = spare[rng.permutation(key(config), len(spare))]
    if len(mixed) >= PART * wanted:
        return Twin(_tested(federation, (np.sort(mixed[: _MOST * wanted]),)), True)
    cut = [_cut(rows, config, round(PART * config.data.test_fraction * len(rows)), draw) for rows in federation.train]
    aside = np.sort(np.concatenate([aside for _, aside in cut]))
    return Twin(_tested(replace(federation, train=tuple(kept for kept, _ in cut)), (aside,)), False)


def _spare(federation: Federation, config: Config) -> np.ndarray:
    """Gives the rows that nobody has and that no test is of."""
    data = federation.dataset
    free = ~data.held_out if by_publisher(data, config) else np.ones(len(data), bool)
    for rows in (*federation.train, *federation.test, *federation.adapt, federation.public):
        free[rows] = False
    return np.flatnonzero(free)


def _own_rows(federation: Federation, config: Config, spare: np.ndarray, draw: int, draws: int) -> Twin:
    """Gives each device half as many rows to test on as it has in the run: its own that it wasn't dealt, where there
    are as many for every draw, else of those that it learns from: in a made partition no others are like them."""
    device = federation.dataset.device
    if config.data.partition != "natural":
        spare = spare[:0]
    trains, tests, is_whole = [], [], True
    for train, test in zip(federation.train, federation.test, strict=True):
        num = min(round(PART * len(test)), len(train) - 1)
        others = spare[device[spare] == device[train[0]]]
        if len(others) >= num * draws:
            mixed = others[rng.permutation(key(config), len(others))]
            kept, aside = train, np.sort(turn(mixed, 0, num, draw))
        else:
            kept, aside = _cut(train, config, num, draw)
            is_whole = False
        trains.append(kept)
        tests.append(aside)
    return Twin(_tested(replace(federation, train=tuple(trains)), tuple(tests)), is_whole)


def _other_people(federation: Federation, config: Config, draw: int) -> Twin | None:
    """Gives the run without some of its people, all of whose rows are tested."""
    num = len(federation.train)
    if num < _FEWEST:
        return None
    taken = turn(rng.permutation(key(config), num), 0, max(1, round(PART * num / _FEWEST)), draw)
    kept = [device for device in range(num) if device not in taken]
    data = federation.dataset
    people = [int(data.device[federation.train[device][0]]) for device in sorted(taken.tolist())]
    free = ~data.held_out
    tests = tuple(np.flatnonzero(free & (data.device == person)) for person in people)
    left = replace(
        federation,
        train=tuple(federation.train[device] for device in kept),
        device_names=tuple(federation.device_names[device] for device in kept),
    )
    return Twin(_tested(left, tests, tuple(data.device_names[person] for person in people)), False)


def _cut(rows: np.ndarray, config: Config, num: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives the rows that stay, and those of the draw's turn."""
    aside = np.sort(turn(rows[rng.permutation(key(config), len(rows))], 0, num, draw))
    return np.setdiff1d(rows, aside), aside


def _tested(
    federation: Federation, tests: tuple[np.ndarray, ...], names: tuple[str, ...] = ("rows put aside",)
) -> Federation:
    names = federation.device_names if federation.own_test else names
    empty = np.zeros(0, np.int64)
    return replace(federation, test=tests, adapt=tuple(empty for _ in tests), test_names=names)
