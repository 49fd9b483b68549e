"""Runs whose devices are in a cell or follow traces: alike on both engines and resumed, and told if nobody is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from power_cut import cut_and_resumed

from midhaul import train
from midhaul.cli import main
from midhaul.config import Config
from midhaul.errors import ConfigError

QUICK: dict[str, Any] = {
    "data_num_devices": 8, "data_partition": "iid", "data_test": "shared", "data_max_rows": 40,
    "tiny_options": {"hidden": [8]}, "run_rounds": 3, "scheme_lr": 0.1, "fleet_board": "nrf9160", "link_cell": "umi",
}  # fmt: skip
FAR: dict[str, Any] = {
    "link_cell": "uma", "link_inter_site_m": 5000.0, "link_rings": 0, "link_indoors": 0.9, "link_radio": "redcap"
}  # fmt: skip


def config(**changes: Any) -> Config:
    return Config().replace(**{**QUICK, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"link_mobility": "wander", "link_speed_kmh": 60.0, "link_radio": "redcap"},
        {"fleet_board": "nrf9160,stm32l4", "fleet_cohort": 0.6},
        {"scheme_name": "federated_split_v1", "link_radio": "nr_embb", "data_public": 0.2, "scheme_batch": 20},
    ],
    ids=["moving", "mixed boards", "split"],
)
def test_both_engines_and_a_resumed_run_have_the_same_radio(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = train.run(config(**changes), tmp_path / "whole").summary
    slow = train.run(config(**changes, run_engine="loop")).summary
    resumed = cut_and_resumed(config(**changes), tmp_path / "cut", after=1).summary
    for name in ("air_seconds", "simulated_seconds", "device_joules", "uplink_bytes", "absent"):
        assert resumed[name] == whole[name], name
        assert slow[name] == pytest.approx(whole[name], rel=1e-12), name
    assert resumed["model_sha256"] == whole["model_sha256"]
    other = train.run(config(**changes, run_seed=5)).summary
    assert other["air_seconds"] != whole["air_seconds"]


def test_a_cell_that_others_load_takes_longer() -> None:
    quiet, loud = (
        train.run(config(link_radio="redcap", link_load=load, link_indoors=0.0)).summary for load in (0.0, 1.0)
    )
    assert loud["air_seconds"] > 1.2 * quiet["air_seconds"]
    assert loud["model_sha256"] == quiet["model_sha256"]


def test_a_device_without_coverage_does_not_answer_and_the_run_says_so() -> None:
    told: list[str] = []
    far = train.run(config(**FAR), tell=told.append).summary
    line = next(line for line in told if line.startswith("uma cell: 8 devices"))
    assert "out of coverage, which won't answer" in line
    # Those far out miss each of the three rounds; one on the edge may answer in some, or lose its frames.
    assert 0 < 2 * int(line.split()[4]) <= far["uncovered"] <= far["absent"] < 3 * 8


def test_all_without_coverage_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["link.cell=uma", "link.inter_site_m=50000", "link.rings=0", "link.min_distance_m=15000"]
    said = []
    zero, none, far = ["link.bandwidth_mhz=0"], ["link.radio=ble"], ["link.inter_site_m=200000"]
    for told in (settings, *(["link.cell=umi", *one] for one in (zero, none, far))):
        table = tmp_path / "config.toml"
        table.write_text("[fleet]\nboard = 'nrf9160'\n")
        options = [word for setting in told for word in ("--set", setting)]
        assert main(["run", str(table), *options, "--out", str(tmp_path / "run")]) == 2
        said.append(capsys.readouterr().err.strip().splitlines())
    assert "none of the 10 devices in the cell is in coverage" in said[0][-1]
    assert "would be with" not in said[0][-1]  # the least distance leaves no room where base stations are near
    assert "the cell has a bandwidth of 0" in said[1][-1]
    assert "the narrowest channel at 30 kHz has 5 MHz" in said[1][-1]
    assert "no device has a cellular radio" in said[2][-1]
    found = re.search(r"link\.inter_site_m \((\d+) would be with ([\d,]+)\)", said[3][-1])
    assert found, said[3]
    near = [
        "--set",
        "link.cell=umi",
        "--set",
        f"link.inter_site_m={found[2].replace(',', '')}",
        "--set",
        "run.rounds=1",
    ]
    assert main(["run", str(table), *near, "--out", str(tmp_path / "near")]) == 0
    assert f"{10 - int(found[1])} of them out of coverage" in capsys.readouterr().err


def test_a_trace_sets_the_seconds_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time_s,down_kbps,up_kbps\n0,80,8\n10,80,8\n")
    changes = {"link_cell": "none", "link_radio": "redcap", "link_loss": 0.0, "link_trace": str(tmp_path / "t.csv")}
    ran = train.run(config(**changes)).summary
    per_device = ran["uplink_bytes"] / 8 * 8 / 8e3 + ran["downlink_bytes"] / 8 * 8 / 80e3
    assert ran["air_seconds"] == pytest.approx(per_device + 3 * 2 * 0.02, rel=1e-9)
    with pytest.raises(ConfigError, match="not both"):
        train.run(config(**{**changes, "link_cell": "umi"}))
