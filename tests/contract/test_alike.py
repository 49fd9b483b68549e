"""What is done for a cohort at once charges, loses and delivers as what is done for one device after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midhaul import plant, rng
from midhaul.config import Config
from midhaul.link import frames
from midhaul.message import Replies
from midhaul.runtime.carrier import Many
from midhaul.runtime.ledger import Ledger
from midhaul.train import behind_link
from midhaul.tree import Tree

CONFIG = Config().replace(
    data_num_devices=6, data_max_rows=20, tiny_options={"hidden": [4]}, link_loss=0.4, link_retries=1, run_rounds=3
)
RUNS: dict[str, dict[str, Any]] = {
    "losses": {},
    "each radio's own losses": {"link_loss": -1.0, "link_radio": "wifi_esp32"},
    "no losses": {"link_loss": 0.0},
    "batteries": {"fleet_battery_j": 6e-4, "fleet_battery_spread": 0.5},
    "states of radios": {"link_energy": "states", "link_radio": "redcap"},
    "speeds and absent devices": {"fleet_speed_spread": 0.5, "fleet_dropout": 0.3, "fleet_cohort": 4.0},
    "a cell": {"link_cell": "umi", "link_radio": "redcap", "link_loss": -1.0},
    "a band": {
        "link_energy": "states",
        "link_allocation": "equal",
        "link_cell": "umi",
        "link_radio": "redcap",
    },
    "stragglers": {"scheme_name": "fedprox", "fleet_stragglers": 0.5, "scheme_epochs": 3},
    "halves": {"scheme_name": "federated_split"},
}


class Spoiled:
    """An engine of whose devices one answers with numbers that aren't finite."""

    def __init__(self, engine: plant.Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def exchange(self, *given: object, **named: object) -> Replies:
        up = self.engine.exchange(*given, **named)  # type: ignore[arg-type]
        tree = {name: value.clone() for name, value in up.tree.items()}
        if 2 in up.devices and "head.bias" in tree:
            tree["head.bias"][up.devices.index(2), 0] = float("nan")
        return replace(up, tree=tree)


def run(config: Config = CONFIG, out: Path | None = None) -> tuple[Tree, Ledger]:
    built, ledger = plant.build(config), Ledger()
    built = replace(built, engine=Spoiled(built.engine))  # type: ignore[arg-type]
    fleet = behind_link(built, ledger, out)
    server = built.scheme.init(fleet, built.kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, 4):
        server, _ = built.scheme.round(server, fleet, built.kit, rng.Key(0, number, rng.SERVER, 0))
        fleet.settle()
    return {**server.tree, **{f"large/{name}": value for name, value in server.large.items()}}, ledger


def test_replies_side_by_side_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ledger = run()
    monkeypatch.setattr(frames, "layout", lambda *_: None)
    monkeypatch.setattr(frames, "alone", lambda *_: None)
    wanted, slow = run()
    assert ledger == slow
    assert ledger.refused
    assert ledger.absent > ledger.refused
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", RUNS)
def test_a_cohort_at_once_is_charged_as_its_devices_one_by_one(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = CONFIG.replace(**RUNS[name], link_keep_frames=True)
    (tmp_path / "fast").mkdir()
    (tmp_path / "slow").mkdir()
    made, ledger = run(config, tmp_path / "fast")
    monkeypatch.setattr(Many, "of", classmethod(lambda cls, devices: None))
    wanted, slow = run(config, tmp_path / "slow")
    assert ledger.to_table() == slow.to_table()
    assert list(ledger.joules) == list(slow.joules)  # in the order in which they are added up
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    kept, logged = (sorted((tmp_path / way / "frames").glob("*")) for way in ("fast", "slow"))
    assert [path.name for path in kept] == [path.name for path in logged]
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in logged]
    assert ledger.uplink_bytes
    assert bool(ledger.gone) == (name == "batteries")
