"""Tasks of a few classes and a few rows: who holds what, and what the labels mean there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from midhaul import plant, train
from midhaul.config import Config
from midhaul.data import Federation, episodes, load
from midhaul.data.omniglot import turned
from midhaul.errors import ConfigError, DataError
from midhaul.program import Population

WAYS, SHOTS, QUERIES = 3, 2, 4


def tasks(**changes: Any) -> Federation:
    chosen = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "num_devices": 30, "new_devices": 5}
    return episodes(load("digits"), **{**chosen, "test_fraction": 0.4, **changes})


def test_a_task_has_shots_and_queries_of_each_of_its_classes() -> None:
    made = tasks()
    y, few = made.dataset.y, WAYS * SHOTS
    assert len(made.train) == 30
    assert len(made.test) == len(made.adapt) == 5
    whole = [*made.train, *(np.concatenate(parts) for parts in zip(made.adapt, made.test, strict=True))]
    for classes, rows in zip(made.classes, whole, strict=True):
        assert len(set(classes.tolist())) == WAYS
        assert len(set(rows.tolist())) == len(rows) == WAYS * (SHOTS + QUERIES)
        assert y[rows].reshape(-1, WAYS).tolist() == [classes.tolist()] * (SHOTS + QUERIES)
    assert [len(rows) for rows in made.adapt] == [few] * 5
    assert len({tuple(rows.tolist()) for rows in whole}) == 35


def test_new_devices_have_classes_that_nobody_has_seen() -> None:
    made = tasks()
    old, new = (set(np.concatenate(part).tolist()) for part in (made.classes[:30], made.classes[30:]))
    assert len(new) == 4
    assert not old & new
    data = load("digits")
    held = dataclasses.replace(data, held_out=data.y >= 7)
    made = episodes(held, ways=3, shots=1, queries=1, num_devices=4, new_devices=2)
    assert set(np.concatenate(made.classes[4:]).tolist()) == {7, 8, 9}


def test_a_device_numbers_its_classes_itself() -> None:
    made = tasks()
    x, y = torch.from_numpy(made.dataset.x), torch.from_numpy(made.dataset.y)
    people = Population(x, y, made.train, made.test, made.adapt, False, classes=made.classes)
    assert made.dataset.num_classes == WAYS
    for device in (0, 29):
        assert people.local(device).train.y.tolist() == [0, 1, 2] * (SHOTS + QUERIES)
    new = people.local(31)
    assert new.adapt.y.tolist() == [0, 1, 2] * SHOTS
    assert new.test.y.tolist() == [0, 1, 2] * QUERIES
    assert torch.equal(new.test.x, x[made.test[1]])
    # A class that a device doesn't tell apart has no number there.
    other = next(label for label in range(10) if label not in made.classes[0])
    row = torch.from_numpy(np.flatnonzero(made.dataset.y == other)[:1])
    assert people.labels([0], row[None]).tolist() == [[-1]]
    plain = Population(x, y, made.train, made.test, made.adapt, False)
    assert people.labels([0, 31], row[None].expand(2, 1)).shape == (2, 1)
    assert torch.equal(plain.local(0).train.y, y[made.train[0]])


def test_engines_agree_on_labels_of_their_own() -> None:
    small = {
        "data_partition": "episodes", "data_num_devices": 6, "data_new_devices": 4, "data_classes_per_device": 3,
        "data_shots": 1, "data_queries": 3, "data_test_fraction": 0.4, "scheme_name": "fomaml", "scheme_support": 3,
        "scheme_batch": 0, "scheme_lr": 0.1, "scheme_inner_lr": 0.2, "tiny_options": {"hidden": [8]}, "run_rounds": 3,
        "fleet_board": "rpi4",
    }  # fmt: skip
    ends = [train.run(Config().replace(**small, run_engine=on)).summary for on in ("loop", "stacked")]
    assert ends[0]["accuracy_per_device"] == ends[1]["accuracy_per_device"]
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], abs=1e-6)
    assert ends[0]["num_test_rows"] == 4 * 3 * 3
    with pytest.raises(ConfigError, match=r"leave data\.public"):
        plant.build(Config().replace(**{**small, "data_public": 0.2}))


def test_what_episodes_refuse() -> None:
    with pytest.raises(DataError, match="2 new ones have 6 rows, tasks of 9 need as many"):
        episodes(
            dataclasses.replace(load("digits"), held_out=load("digits").y >= 8),
            ways=9, shots=SHOTS, queries=QUERIES, num_devices=2, new_devices=2,
        )  # fmt: skip
    with pytest.raises(DataError, match="fewer classes_per_device, shots or queries"):
        tasks(queries=1000)
    with pytest.raises(ConfigError, match="classes_per_device is 1"):
        tasks(ways=1)
    with pytest.raises(ConfigError, match="set num_devices and new_devices"):
        tasks(new_devices=0)


def test_turned_drawings_are_new_classes() -> None:
    data = load("digits")
    pictures = dataclasses.replace(data, x=data.x.reshape(-1, 1, 8, 8)[:40], y=data.y[:40], device=data.device[:40],
                                   held_out=np.arange(40) >= 30, num_read=40)  # fmt: skip
    more = turned(pictures)
    assert len(more) == 40 + 3 * 30
    assert more.num_classes == 40
    assert int(more.held_out.sum()) == 10
    first, quarter, half = more.x[0, 0], more.x[40, 0], more.x[70, 0]
    assert np.array_equal(quarter, np.rot90(first))
    assert np.array_equal(half, first[::-1, ::-1])
    assert [int(more.y[place] - more.y[0]) for place in (40, 70, 100)] == [10, 20, 30]
