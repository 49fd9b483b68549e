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
    kept = np.ones(len(data), bool)
    for rows in (*federation.test, *federation.adapt):
        kept[rows] = False
    places = np.flatnonzero(kept)
    held_out = np.zeros(len(places), bool)
    if data.held_out.any() and config.data.test in ("auto", "held_out"):
        held_out = _aside(data, federation, config, places)
    return dataclasses.replace(
        data,
        x=data.x[places],
        y=data.y[places],
        device=data.device[places],
        held_out=held_out,
    )


def _aside(data: Dataset, federation: Federation, config: Config, places: np.ndarray) -> np.ndarray:
    key = rng.key(config.run.seed, 0, rng.SERVER, rng.Use.CHOICE)
    device = data.device[places]
    there = np.unique(device)
    if config.data.partition == "natural" and not federation.own_test and len(there) > _SHARE:
        taken = there[rng.permutation(key, len(there))[: len(there) // _SHARE]]
        return np.isin(device, taken)
    aside = np.zeros(len(places), bool)
    mixed = rng.permutation(key, len(places))
    for one in there:
        own = mixed[device[mixed] == one]
        aside[own[: round(config.data.test_fraction * len(own))]] = True
    return aside
