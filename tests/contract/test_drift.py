"""Drift: it is found soon, it is not found where there is none, and the device that asks again recovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from power_cut import cut_and_resumed

from midhaul import plant, train
from midhaul.config import Config
from midhaul.errors import BudgetError, ConfigError
from midhaul.message import Replies
from midhaul.program import Population
from midhaul.runtime import drift
from midhaul.runtime.drift import Watch

pytest.importorskip("river")
DETECTORS = pytest.mark.parametrize("name", ["page_hinkley", "adwin"])
# One device of five a round. Device 0 is drawn in rounds 5, 8 to 11 and 13, and from the drift on not before the end.
FLEET: dict[str, Any] = {
    "data_num_devices": 5, "data_partition": "iid", "data_test": "device", "tiny_options": {"hidden": [16]},
    "scheme_name": "local", "scheme_lr": 0.3, "scheme_epochs": 3, "run_rounds": 18, "run_seed": 7, "fleet_cohort": 0.2,
    "data_drift_devices": 0.2,
}  # fmt: skip


def answers(*errors: int) -> Replies:
    """Gives the test of devices that got so many of their rows wrong."""
    rows = 20
    wrong, num = torch.tensor(errors, dtype=torch.float64), len(errors)
    counts = torch.full((num,), float(rows), dtype=torch.float64)
    metrics = {"rows": counts, "correct": counts - wrong, "loss": wrong / rows}
    return Replies(tuple(range(num)), {}, counts.long(), counts, metrics)


def watch(name: str) -> Watch:
    return Watch(Config().replace(fleet_detector=name, fleet_detector_rounds=3).fleet)


@DETECTORS
def test_a_detector_finds_a_rise_and_neither_noise_nor_learning(name: str) -> None:
    """Device 0 gets 2 of 20 wrong, then 14. Device 1 learns: 18 wrong at first, 1 at last. Device 2 wavers."""
    watching = watch(name)
    for number in range(1, 31):
        watching.see(answers(2 if number <= 20 else 14, max(1, 18 - number), 2 + number % 3), number)
        if watching.alarms:
            break
    assert [alarm["device"] for alarm in watching.alarms] == [0]
    found = watching.alarms[0]["round"]
    assert 21 <= found <= 23
    assert [watching.asking(number) for number in (found + 1, found + 3, found + 4)] == [{0}, {0}, set()]


@DETECTORS
def test_a_detector_goes_on_from_a_checkpoint(name: str) -> None:
    told = [answers(2 if number <= 12 else 14) for number in range(1, 18)]
    whole, resumed = watch(name), watch(name)
    for number, replies in enumerate(told, start=1):
        whole.see(replies, number)
        resumed.see(replies, number)
        fresh = watch(name)
        fresh.restore(resumed.dump())
        resumed = fresh
    assert whole.alarms == resumed.alarms != []


def final(folder: Path, **changes: Any) -> dict[str, Any]:
    return train.run(Config().replace(**{**FLEET, **changes}), folder).summary


@DETECTORS
def test_a_device_whose_detector_fires_recovers(name: str, tmp_path: Path) -> None:
    alone = final(tmp_path / "alone", data_drift_round=14)
    helped = final(tmp_path / "helped", data_drift_round=14, fleet_detector=name)
    (alarm,) = helped["drift_alarms"]
    assert alarm["device"] == 0
    assert 14 <= alarm["round"] <= 16
    assert alone["accuracy_per_device"]["values"][0] < 0.2
    assert helped["accuracy_per_device"]["values"][0] > 0.7
    assert helped["accuracy_per_device"]["values"][1:] == alone["accuracy_per_device"]["values"][1:]


@DETECTORS
def test_no_alarm_without_drift(name: str, tmp_path: Path) -> None:
    assert final(tmp_path / "calm", fleet_detector=name)["drift_alarms"] == []


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_drifting_run_is_resumed_to_the_bit(engine: str, tmp_path: Path) -> None:
    config = Config().replace(
        **FLEET, data_max_rows=60, data_drift_round=9, fleet_detector="page_hinkley", fleet_replay=4, run_engine=engine
    )
    whole = train.run(config, tmp_path / "whole").summary
    resumed = cut_and_resumed(config, tmp_path / "cut", after=12).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_drifted_device_has_its_rows_anew_and_some_of_the_past() -> None:
    rows = (np.arange(4), np.arange(4, 8))
    population = Population(torch.arange(8.0)[:, None], torch.arange(8) % 3, rows, (rows[0][:2], rows[1][:2]), (), True)
    config = Config().replace(data_drift_round=1, data_drift_devices=0.5, fleet_replay=2)
    before, after = drift.drifted(population, config, 3)
    moved = next(device for device in (0, 1) if not np.array_equal(after.train[device], population.train[device]))
    assert np.array_equal(after.train[1 - moved], population.train[1 - moved])
    old, new = before.local(moved), after.local(moved)
    assert torch.equal(new.train.x[:4], old.train.x)
    assert len(set(((new.train.y[:4] - old.train.y) % 3).tolist()) - {0}) == 1
    assert set(after.train[moved][4:].tolist()) < set(population.train[moved].tolist())
    assert torch.equal(new.test.x, old.test.x)
    assert not (new.test.y == old.test.y).any()
    turned = drift.drifted(population, config.replace(data_drift="sign"), 3)[1].local(moved)
    assert torch.equal(turned.train.x[:4], -old.train.x)
    assert torch.equal(turned.train.y[:4], old.train.y)


def test_the_memory_of_the_past_is_counted_and_refused_where_it_does_not_fit() -> None:
    """A row of digits: 64 values of 4 bytes and a label, 260 bytes."""
    config = Config().replace(**FLEET, data_drift_round=5)
    none, some = (plant.build(config.replace(fleet_replay=rows)).need for rows in (0, 100))
    assert some.flash_bytes - none.flash_bytes == 100 * 260
    with pytest.raises(BudgetError, match=r"lower fleet\.replay"):
        plant.build(config.replace(fleet_replay=5000))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fleet_detector": "adwin", "data_test": "shared"}, r"data\.test"),
        ({"fleet_detector": "adwin", "run_evaluate_every": 2}, r"run\.evaluate_every"),
        ({"fleet_replay": 5}, r"data\.drift_round"),
        ({"data_drift_round": 5, "run_engine": "firmware"}, r"data\.drift_round"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plant.build(Config().replace(**{**FLEET, **changes}))
