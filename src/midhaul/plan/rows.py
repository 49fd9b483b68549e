"""Rows to choose on: what is left of a data set without its test rows, with others put aside in their place."""

from __future__ import annotations

import dataclasses

import numpy as np

from midhaul import rng
from midhaul.config import Config
from midhaul.data import Dataset, Federation
from midhaul.errors import ConfigError

_SHARE = 4  # one natural device in so many is put aside
_MOST_ADAPT = 0.9
PART = 0.5  # of what is put aside to choose on, in each draw that confirms


def for_choosing(data: Dataset, federation: Federation, config: Config) -> Dataset:
    """Gives the data set without the rows that the run is tested on, or that new devices adapt on.

    What a run of it is tested on is put aside in the same way as the real test: where that is of other natural devices,
    every fourth device that is left; where the publisher chose rows, a share of each device's, or of all; else nothing
    is marked, and the run's own `data.test` takes its share again.

    Raises: ConfigError for data that are dealt in a way that leaves nothing like the test to choose on.
    """
    if config.data.partition in ("vertical", "episodes"):
        raise ConfigError(
            f"a plan can't choose with data.partition = {config.data.partition!r} yet; "
            "compare schemes by `midhaul compare`"
        )
    places = _untested(data, federation)
    held_out = np.zeros(len(places), bool)
    if by_publisher(data, config):
        held_out = _aside(data, federation, config, places)
    return _of(data, places, held_out)


def for_confirming(data: Dataset, federation: Federation, config: Config, draw: int) -> tuple[Config, Dataset]:
    """Gives another draw of rows put aside, half as many, and the config, with a seed of its own, that tests on them.

    They are marked as the publisher's would be, people or rows that no draw before had until all were; or, where each
    device of a made partition tests on its own rows, or natural ones on shared ones, `data.test` takes half its share.
    """
    places = _untested(data, federation)
    again = config.replace(run_seed=int.from_bytes(key(config, draw).words(2).tobytes(), "little") >> 1)
    if config.data.adapt and not (config.data.partition == "natural" and by_publisher(data, config)):
        # Of half as many rows twice the share, so that new devices adapt on as many as in the run.
        again = again.replace(data_adapt=min(config.data.adapt / PART, _MOST_ADAPT))
    if by_publisher(data, config):
        return again, _of(data, places, _aside(data, federation, config, places, draw, PART))
    natural, shared = config.data.partition == "natural", config.data.test == "shared"
    kept, part = 1.0 - config.data.test_fraction, 1.0 - PART * config.data.test_fraction
    unmarked = natural == shared
    if unmarked:
        again = again.replace(data_test_fraction=1.0 - part)
    if not shared:  # what is asked of a device that tests on its own rows is asked of both together
        least = max(1, int(config.data.min_rows * kept * (1.0 if unmarked else part)))
        most = max(1, round(config.data.max_rows * kept / (part if unmarked else 1.0))) if config.data.max_rows else 0
        again = again.replace(data_max_rows=most, data_min_rows=min(least, most) if most else least)
    if unmarked:
        return again, _of(data, places, np.zeros(len(places), bool))
    marked = _shares(data, config, places, draw, PART, by_device=natural)
    return again.replace(data_test="held_out"), _of(data, places, marked)


def _untested(data: Dataset, federation: Federation) -> np.ndarray:
    """Gives the rows that the run is neither tested on nor adapts new devices on."""
    kept = np.ones(len(data), bool)
    for rows in (*federation.test, *federation.adapt):
        kept[rows] = False
    return np.flatnonzero(kept)


def by_publisher(data: Dataset, config: Config) -> bool:
    """Tells whether the run is tested on the rows that the publisher chose."""
    return bool(data.held_out.any()) and config.data.test in ("auto", "held_out")


def _of(data: Dataset, places: np.ndarray, held_out: np.ndarray) -> Dataset:
    return dataclasses.replace(
        data,
        x=data.x[places],
        y=data.y[places],
        device=data.device[places],
        held_out=held_out,
    )


def _aside(
    data: Dataset, federation: Federation, config: Config, places: np.ndarray, draw: int = 0, part: float = 1.0
) -> np.ndarray:
    """Marks other people where the run's test is of other people, else a share of each device's rows."""
    there = np.unique(data.device[places])
    if config.data.partition == "natural" and not federation.own_test and len(there) > _SHARE:
        whole = max(1, len(there) // _SHARE)
        mixed = there[rng.permutation(key(config), len(there))]
        return np.isin(data.device[places], turn(mixed, whole, max(1, round(part * whole)), draw))
    return _shares(data, config, places, draw, part, by_device=True)


def _shares(
    data: Dataset, config: Config, places: np.ndarray, draw: int, part: float, *, by_device: bool
) -> np.ndarray:
    """Marks a part of the share that is tested, of each natural device's rows or of all."""
    device = data.device[places] if by_device else np.zeros(len(places), np.int64)
    aside = np.zeros(len(places), bool)
    mixed = rng.permutation(key(config), len(places))
    for one in np.unique(device):
        own = mixed[device[mixed] == one]
        whole = config.data.test_fraction * len(own)
        aside[turn(own, round(whole), round(part * whole), draw)] = True
    return aside


def turn(mixed: np.ndarray, whole: int, part: int, draw: int) -> np.ndarray:
    """Gives the rows of a draw: the first `whole` to choose on (draw 0), then `part` a draw until all had theirs.

    >>> [turn(np.arange(7), 2, 2, draw).tolist() for draw in (0, 1, 2, 3)]
    [[0, 1], [2, 3], [4, 5], [6, 0]]
    """
    places = np.arange(whole) if draw == 0 else whole + (draw - 1) * part + np.arange(part)
    return mixed[places % max(len(mixed), 1)]


def key(config: Config, draw: int = 0) -> rng.Key:
    """Gives the stream that rows of a draw are put aside by."""
    return rng.key(config.run.seed, draw, rng.SERVER, rng.Use.CHOICE)
