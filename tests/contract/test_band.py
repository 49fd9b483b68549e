"""A band that devices share on the way up: one after another by hand, and in a cell by what its channels carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from power_cut import cut_and_resumed

from midhaul import plant, train
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.link import energy, radio
from midhaul.link.conditions import Conditions, Surroundings
from midhaul.runtime.band import Band, Download, Upload
from midhaul.runtime.ledger import WHATS

NUM = 12
CELL: dict[str, object] = {
    "link_radio": "redcap",
    "link_cell": "umi",
    "link_energy": "states",
    "link_sectors": 1,
    "link_rings": 0,
}


def band(allocation: str, seed: int = 0) -> tuple[Band, dict[int, Conditions]]:
    """Gives the band of a dozen devices in a cell, and their conditions if they sent as their radios have it."""
    radios = {device: radio.get("redcap") for device in range(NUM)}
    around = Surroundings.from_config(Config().replace(**CELL).link, radios, seed)
    assert around is not None
    made = Band(allocation, 4.0, around, {device: energy.get("redcap") for device in range(NUM)})
    return made, around.at(1, 0.0, range(NUM))


def uploads(num: int = NUM) -> dict[int, Upload]:
    return {device: Upload(100_000 + 5_000 * device, 0.1 * (device % 3)) for device in range(num)}


def test_one_after_another_by_hand() -> None:
    """Two devices of 8 kbit on radios of 8 kbit/s, ready at 0 and 0.25 s: the second waits 0.75 s."""
    own = radio.Radio("cat_m1", 8000.0, 8000.0, 0.25, 0.0, 0.37, 0.1, "by hand")
    model = energy.get("cat_m1")
    made = Band("turns", 1.5, None, {0: model, 1: model})
    both = {0: Upload(1000, 0.0), 1: Upload(1000, 0.25)}
    sent = made.share(both, dict.fromkeys((0, 1), Conditions(own)), round=1, now_s=0.0, deadline_s=1e9)
    assert [tuple(one[:2]) for one in sent.values()] == [(0.0, 1.25), (0.75, 1.25)]
    assert sent[1].energy_j == pytest.approx(0.37)  # a second at the power that its figure stands for


@pytest.mark.parametrize("allocation", ["turns", "equal", "min_time", "min_energy"])
def test_what_is_sent_is_what_the_channels_carry(allocation: str) -> None:
    """Together they send no faster than the whole band could, and each spends its circuits' power at least."""
    made, now = band(allocation)
    sent = made.share(uploads(), now, round=1, now_s=0.0, deadline_s=float("inf"))
    assert sorted(sent) == list(range(NUM))
    model = energy.get("redcap")
    assert made.around is not None
    share = made.around.channel(1, 0.0).grid.up_share
    for one in sent.values():
        assert one.send_s > 0.0
        assert one.energy_j >= one.send_s * share * model.circuit_w
        assert one.energy_j <= one.send_s * float(model.transmit_w(model.max_w)) + 1e-9
        assert allocation in ("turns", "min_energy") or one.wait_s == 0.0
    if allocation == "turns":
        begun = sorted((uploads()[d].ready_s + one.wait_s, one.send_s) for d, one in sent.items())
        ends = np.cumsum([length for _, length in begun]) + begun[0][0]
        assert [at for at, _ in begun[1:]] == pytest.approx(ends[:-1].tolist())


def test_the_least_time_is_the_least_and_the_least_energy_the_least() -> None:
    last, spent = {}, {}
    for allocation in ("turns", "equal", "min_time", "min_energy"):
        made, now = band(allocation)
        sent = made.share(uploads(), now, round=1, now_s=0.0, deadline_s=float("inf"))
        last[allocation] = max(uploads()[d].ready_s + one.wait_s + one.send_s for d, one in sent.items())
        spent[allocation] = sum(one.energy_j for one in sent.values())
    assert last["min_time"] < 1.05 * min(last.values())
    assert spent["min_energy"] < 1.05 * min(spent.values())


def test_a_deadline_that_not_all_can_keep_is_told_and_kept_by_the_most() -> None:
    made, now = band("min_energy")
    told: list[str] = []
    made.tell = told.append
    for number in (1, 2):
        sent = made.share(uploads(), now, round=number, now_s=0.0, deadline_s=1.0)
        assert 0 < len(sent) < NUM
        ends = [uploads()[device].ready_s + one.send_s for device, one in sent.items()]
        assert max(ends) < 1.1
    assert len(told) == 1
    assert "can be kept is" in told[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"link_allocation": "turns"}, r"set link\.energy = 'states'"),
        ({"link_allocation": "min_time", "link_energy": "states"}, r"set link\.cell, or link\.allocation = 'turns'"),
        ({"link_allocation": "turns", "link_energy": "states", "fleet_mode": "fedbuff"}, "come and go"),
    ],
)
def test_allocations_without_anything_to_go_by_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plant.build(Config().replace(**changes))


def test_a_run_shares_its_band_and_is_the_same_when_resumed(tmp_path: Path) -> None:
    settings: dict[str, object] = {**CELL, "data_name": "digits", "data_num_devices": 6, "data_max_rows": 40}
    config = Config().replace(**settings, link_allocation="min_energy", run_rounds=4, fleet_speed_spread=0.3)
    whole = train.run(config, tmp_path / "whole").summary
    resumed = cut_and_resumed(config, tmp_path / "parts", after=2).summary
    for name in ("model_sha256", "device_joules", "simulated_seconds", "air_seconds", "spent"):
        assert resumed[name] == whole[name]
    parts = [sum(whole["spent"]["joules"][what]) for what in WHATS]
    assert sum(parts) == pytest.approx(whole["device_joules"])
    alone = train.run(config.replace(link_allocation="own")).summary
    assert sum(whole["spent"]["joules"]["transmit"]) < sum(alone["spent"]["joules"]["transmit"])


def test_a_model_that_all_are_sent_costs_by_the_way_that_the_band_is_shared_down(tmp_path: Path) -> None:
    """At once everyone listens long, in turns each to its own part, and a broadcast is heard once, by its worst."""
    config = Config().replace(
        data_name="digits", data_partition="iid", data_num_devices=NUM, data_max_rows=10, scheme_name="fedavg",
        run_rounds=1, tiny_model="mlp", **CELL,
    )  # fmt: skip
    spent, ended = {}, {}
    for way in ("own", "at_once", "turns", "broadcast"):
        summary = train.run(config.replace(link_allocation_down=way)).summary
        spent[way] = {what: sum(summary["spent"]["joules"][what]) for what in WHATS}
        ended[way] = summary["simulated_seconds"], summary["model_sha256"], summary["downlink_bytes"]
    assert len({told[1:] for told in ended.values()}) == 1  # what is learned and counted doesn't change
    assert spent["turns"]["receive"] < 0.5 * spent["at_once"]["receive"]
    assert spent["at_once"]["transmit"] == spent["own"]["transmit"]
    assert ended["broadcast"][0] < ended["at_once"][0]
    assert spent["broadcast"]["receive"] < spent["at_once"]["receive"]


def test_a_broadcast_of_two_frames_is_one_behind_the_other() -> None:
    made, now = band("own")
    made.down = "broadcast"
    first, second = (Download(5000, tries=dict.fromkeys(range(at, at + 4), 1)) for at in (0, 4))
    alone = made.share_down([first], now, round=1, now_s=0.0)
    both = made.share_down([first, second], now, round=1, now_s=0.0)
    assert alone == {device: both[device] for device in range(4)}
    assert all(both[device].wait_s == pytest.approx(alone[0].send_s, abs=0.05) for device in range(4, 8))
    assert all(both[device].wait_s > 0.0 for device in range(4, 8))
    twice = made.share_down([Download(5000, tries=dict.fromkeys(range(4), 2))], now, round=1, now_s=0.0)
    delay_s = now[0].radio.delay_s
    assert twice[0].send_s - delay_s == pytest.approx(2 * (alone[0].send_s - delay_s))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"link_energy": "transfer"}, "parts a cell's band"), ({"fleet_mode": "fedbuff"}, "devices come and go")],
)
def test_a_way_down_without_a_cell_or_rounds_is_refused(changes: dict[str, object], words: str) -> None:
    config = Config().replace(**{**CELL, "link_allocation_down": "turns", **changes})
    with pytest.raises(ConfigError, match=words):
        plant.build(config.replace(data_name="digits", data_num_devices=2, data_partition="iid", scheme_name="fedavg"))
