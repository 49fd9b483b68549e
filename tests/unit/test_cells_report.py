"""The cell in a report: what a run wrote is read back checked, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midhaul import report, train
from midhaul.config import Config
from midhaul.errors import CheckpointError
from midhaul.report import cells, maps

TABLE: dict[str, Any] = {
    "kind": "umi", "inter_site_m": 200.0, "num_devices": 3, "site_x": [0.0, 200.0], "site_y": [0.0, 0.0],
    "x": [10.0, -20.0, 5.0], "y": [0.0, 30.0, -40.0], "indoors": [True, False, True], "served": [True, True, False],
    "ratio_db": [12.0, 3.0, -30.0], "up_bps": [1e6, 2e5, 0.0], "down_bps": [1e7, 3e6, 0.0],
}  # fmt: skip


def test_a_run_in_a_cell_has_its_map_in_the_report(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "data_num_devices": 4, "data_max_rows": 20, "tiny_options": {"hidden": [8]}, "run_rounds": 1,
        "fleet_board": "nrf9160", "link_cell": "uma", "link_radio": "redcap",
    }  # fmt: skip
    train.run(Config().replace(**changes), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "cell.json").read_text())
    assert len(written["x"]) == len(written["up_bps"]) == written["num_devices"] == 4
    text = report.write([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "<h2>The cell</h2>" in text
    assert "its rates are those of a cell above roofs." in text
    assert "4 devices are in a cell above the roofs, with base stations 500 m apart." in text
    assert 'aria-label="Map of the cell"' in text
    assert 'aria-label="How fast the devices are"' in text


def test_a_map_says_who_has_no_coverage() -> None:
    cell = cells.read(TABLE, "t")
    assert cell.num_unserved == 1
    assert "1 have no coverage and never answer" in cells.about(cell)
    assert maps.places(cell, "a").startswith("<svg")
    assert maps.rates(cell, "a").count("Mbit/s") >= 1
    nobody = cells.read({**TABLE, "served": [False] * 3, "up_bps": [0.0] * 3, "down_bps": [0.0] * 3}, "t")
    assert maps.places(nobody, "a").startswith("<svg")
    assert maps.rates(nobody, "a") == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "moon"), ("inter_site_m", -1.0), ("x", [1.0]), ("x", ["a", 1.0, 1.0]), ("up_bps", [-1.0, 0.0, 0.0]),
     ("served", [1, 1, 1]), ("num_devices", 2), ("site_x", []), ("ratio_db", None)],
)  # fmt: skip
def test_a_damaged_map_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match="isn't as a run writes it"):
        cells.read({**TABLE, name: value}, "cell.json")
