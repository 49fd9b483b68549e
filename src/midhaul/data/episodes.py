"""Every device a task of a few classes and a few rows of each: what learning to learn is learned from.

A device numbers its classes itself, from 0 and in an order of its own, so that no class means the same everywhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from midhaul import rng
from midhaul.data.dataset import Dataset, Ints
from midhaul.data.partition import Federation
from midhaul.errors import ConfigError, DataError
from midhaul.rng import Key, Use


def episodes(
    dataset: Dataset,
    *,
    ways: int,
    shots: int,
    queries: int,
    num_devices: int,
    new_devices: int,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Federation:
    """Gives `num_devices` tasks to train on, and `new_devices` of classes that none of these has seen to test on.

    A task has `ways` classes, `shots` rows of each to adapt on and `queries` others of each to be asked about. The rows
    of a training device are its `ways * shots` rows to adapt on and then the others; each lot has one row of every
    class, then the next of every class. Tasks share rows. The new classes are those of the publisher's held-out rows
    that occur nowhere else, or where nothing is held out the share `test_fraction` of all classes.

    Raises: ConfigError for a number that is too small, DataError if there are too few classes with enough rows.
    Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching networks for one shot learning", NeurIPS
    2016, section 4.1.
    """
    for name, value, low in (("classes_per_device", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if value < low:
            raise ConfigError(f"{name} is {value}; a task needs at least {low}")
    if num_devices < 1 or new_devices < 1:
        raise ConfigError("episodes need devices to train and new ones to test; set num_devices and new_devices")
    order = np.argsort(dataset.y, kind="stable")
    pools = np.split(order, np.cumsum(np.bincount(dataset.y, minlength=len(dataset.class_names)))[:-1])
    enough = [label for label, pool in enumerate(pools) if len(pool) >= shots + queries]
    if dataset.held_out.any():
        new = [label for label in enough if dataset.held_out[pools[label]].all()]
        old = [label for label in enough if not dataset.held_out[pools[label]].any()]
    else:
        mixed = [enough[p] for p in rng.permutation(rng.key(seed, 0, rng.SERVER, Use.SPLIT), len(enough))]
        num = max(round(test_fraction * len(mixed)), ways)
        new, old = mixed[:num], mixed[num:]
    if min(len(old), len(new)) < ways:
        raise DataError(
            f"{dataset.name}: {len(old)} classes to train on and {len(new)} new ones have {shots + queries} rows, "
            f"tasks of {ways} need as many of both; take fewer classes_per_device, shots or queries"
        )
    tasks = [
        _task(
            rng.key(seed, 0, device, Use.PARTITION), old if device < num_devices else new, pools, ways, shots, queries
        )
        for device in range(num_devices + new_devices)
    ]
    few = ways * shots
    return Federation(
        dataclasses.replace(dataset, ways=ways),
        tuple(rows for _, rows in tasks[:num_devices]),
        tuple(rows[few:] for _, rows in tasks[num_devices:]),
        tuple(rows[:few] for _, rows in tasks[num_devices:]),
        False,
        np.zeros(0, np.int64),
        tuple(f"task {device}" for device in range(num_devices)),
        tuple(f"new task {device}" for device in range(new_devices)),
        classes=tuple(classes for classes, _ in tasks),
    )


def _task(key: Key, labels: list[int], pools: list[Ints], ways: int, shots: int, queries: int) -> tuple[Ints, Ints]:
    """Gives a task's classes in the order of its own numbers, and its rows."""
    drawn, used = list[int](), 0
    while len(drawn) < ways:
        more = rng.integers(key, used + ways, len(labels))[used:].tolist()
        drawn, used = list(dict.fromkeys([*drawn, *more]))[:ways], used + ways
    classes = np.array([labels[place] for place in drawn], np.int64)
    most = max(len(pools[label]) for label in classes)
    words = key.at(1).words(ways * most).reshape(ways, most)
    rows = np.stack(
        [
            pools[label][np.argsort(own[: len(pools[label])], kind="stable")[: shots + queries]]
            for label, own in zip(classes, words, strict=True)
        ]
    )
    return classes, rows.T.reshape(-1)
