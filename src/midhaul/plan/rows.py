"""Rows to choose on: what is left of a data set without its test rows, with others put aside in their place."""

from __future__ import annotations

import dataclasses

import numpy as np

from midhaul import rng
from midhaul.config import Config
from midhaul.data import Dataset, Federation
from midhaul.errors import ConfigError

_SHARE = 4  # one natural device in so many is put aside


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
    if _by_publisher(data, config):
        held_out = _aside(data, federation, config, places)
    return _of(data, places, held_out)


def for_confirming(data: Dataset, federation: Federation, config: Config, draw: int) -> tuple[Config, Dataset] | None:
    """Gives another draw of rows put aside, half as many, and the config that tests on them.

    They are marked as the publisher's would be. None where that would test in another way than the run does: where
    each device of a made partition tests on its own rows.
    """
    places = _untested(data, federation)
    if _by_publisher(data, config):
        return config, _of(data, places, _aside(data, federation, config, places, draw, 0.5))
    natural, shared = config.data.partition == "natural", config.data.test == "shared"
    if natural == shared:
        return None
    if natural and config.data.max_rows:  # the cap of a device that tests on its own rows is on both together
        most = max(1, round(config.data.max_rows * (1.0 - config.data.test_fraction)))
        config = config.replace(data_max_rows=most, data_min_rows=min(config.data.min_rows, most))
    marked = _shares(data, config, places, draw, 0.5, by_device=natural)
    return config.replace(data_test="held_out"), _of(data, places, marked)


def _untested(data: Dataset, federation: Federation) -> np.ndarray:
    """Gives the rows that the run is neither tested on nor adapts new devices on."""
    kept = np.ones(len(data), bool)
    for rows in (*federation.test, *federation.adapt):
        kept[rows] = False
    return np.flatnonzero(kept)


def _by_publisher(data: Dataset, config: Config) -> bool:
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
        num = max(1, round(part * (len(there) // _SHARE)))
        taken = there[rng.permutation(_key(config, draw), len(there))[:num]]
        return np.isin(data.device[places], taken)
    return _shares(data, config, places, draw, part, by_device=True)


def _shares(
    data: Dataset, config: Config, places: np.ndarray, draw: int, part: float, *, by_device: bool
) -> np.ndarray:
    """Marks a part of the share that is tested, of each natural device's rows or of all."""
    device = data.device[places] if by_device else np.zeros(len(places), np.int64)
    aside = np.zeros(len(places), bool)
    mixed = rng.permutation(_key(config, draw), len(places))
    for one in np.unique(device):
        own = mixed[device[mixed] == one]
        aside[own[: round(part * config.data.test_fraction * len(own))]] = True
    return aside


def _key(config: Config, draw: int) -> rng.Key:
    return rng.key(config.run.seed, draw, rng.SERVER, rng.Use.CHOICE)
