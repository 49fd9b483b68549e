"""Widths, ranks and cuts dealt anew in a run under way: the same on `loop` and `stacked`, and resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from power_cut import cut_and_resumed

from midhaul import train, tree
from midhaul.changes import Change, Setting
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.replan import Replan
from midhaul.schemes import SCHEMES

BASE = Config().replace(
    data_name="digits", data_partition="iid", data_num_devices=4, data_test="shared", data_max_rows=12,
    fleet_board="stm32l4,nrf52840", tiny_model="mlp", tiny_options={"hidden": [16, 8]}, scheme_lr=0.1, run_rounds=5,
    scheme_momentum=0.5, run_within="joules=1e-6", large_model="mlp_large", large_options={"hidden": 16, "depth": 1},
    run_replan_every=1, run_replan_models=True, link_radio="cat_m1",
)  # fmt: skip
KINDS = {
    "heterofl": ("width 1", "width 0.5", {"scheme_width_mix": "1"}),
    "flexlora": ("rank 4", "rank 2", {"scheme_rank_mix": "4", "scheme_beside": "head"}),
    "flora": ("rank 4", "rank 2", {"scheme_rank_mix": "4", "scheme_beside": "head"}),
    "federated_split_mixed": ("cut relu2", "cut relu1", {"scheme_cut": "relu2"}),
}
SCHEME = pytest.mark.parametrize("name", KINDS)


def config_of(name: str, **changes: object) -> Config:
    return BASE.replace(scheme_name=name, **KINDS[name][2], **changes)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, str]], None]:
    """Lets a run be planned anew after some rounds: a letter a device, L for the larger and S for the smaller part."""

    def set_plans(after: dict[int, str]) -> None:
        def planned(self: Replan, number: int, *rest: object, ends: bool) -> tuple[Change, float]:
            now, kinds = self.setting, KINDS[self.plant.scheme.name]
            held = tuple(kinds["LS".index(letter)] for letter in after[number]) if number in after else now.held
            then = Setting(now.cohort, now.deadline_s, now.bits, held)
            return Change(number, now, then, "so", True, "joules", (), (), {}, {}), 1.0

        monkeypatch.setattr(Replan, "_planned", planned)

    return set_plans


@SCHEME
def test_dealt_anew_it_is_the_same_on_loop_and_stacked_and_resumed_to_the_bit(
    name: str, plans: Callable[[dict[int, str]], None], tmp_path: Path
) -> None:
    plans({2: "LSSL", 4: "SSLL"})
    coded = {} if name == "federated_split_mixed" else {"link_up": "delta,quantise:8"}
    config = config_of(name, run_checkpoint_every=1, fleet_selection="random", **coded)
    whole = train.run(config, tmp_path / "whole")
    assert [change["setting"]["held"][:2] for change in whole.summary["replans"]] == [
        [KINDS[name][0], KINDS[name][1]],
        [KINDS[name][1], KINDS[name][1]],
    ]
    groups = {(group["width"], group["cut"], group["rank"]): group["num_devices"] for group in whole.summary["groups"]}
    assert len(groups) == 2
    resumed = cut_and_resumed(config, tmp_path / "cut", after=3).summary
    for what in ("model_sha256", "device_joules", "simulated_seconds", "uplink_bytes", "replans", "groups"):
        assert resumed[what] == whole.summary[what], what
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "cut")]
    assert lines[0] == lines[1]
    slow = train.run(config.replace(run_engine="loop", link_up="none"))
    fast = train.run(config.replace(link_up="none"))
    assert tree.largest_difference(slow.server.tree, fast.server.tree) < 1e-5
    assert slow.summary["device_joules"] == pytest.approx(fast.summary["device_joules"], rel=1e-9)


@pytest.mark.parametrize("name", ["heterofl", "federated_split_mixed"])
def test_what_is_dealt_to_all_anew_and_back_costs_what_it_should(
    name: str, plans: Callable[[dict[int, str]], None]
) -> None:
    """Up to the round of the new plan nothing differs; from there on the smaller part sends less up."""
    plans({})
    as_it_was = train.run(config_of(name)).summary
    plans({3: "SSSS"})
    less = train.run(config_of(name)).summary
    assert {group["num_devices"] for group in less["groups"]} == {2}
    if name == "federated_split_mixed":  # an earlier cut has more activations and fewer weights
        assert less["kinds"]["up"]["weights"] < as_it_was["kinds"]["up"]["weights"]
        assert less["kinds"]["up"]["activations"] > as_it_was["kinds"]["up"]["activations"]
    else:
        assert less["uplink_bytes"] < as_it_was["uplink_bytes"]


def test_a_new_plan_of_what_there_was_changes_nothing(plans: Callable[[dict[int, str]], None]) -> None:
    plans({})
    as_it_was = train.run(config_of("heterofl")).summary
    plans({2: "LLLL"})
    same = train.run(config_of("heterofl")).summary
    assert same["model_sha256"] == as_it_was["model_sha256"]
    assert same["replans"]


@pytest.mark.parametrize("name", ["heterofl", "flexlora"])
def test_a_run_keeps_its_limit_by_smaller_parts_where_that_loses_less_than_fewer_devices(name: str) -> None:
    free = config_of(name, run_within="joules=1e9")
    most = 0.8 * train.run(free).summary["uplink_bytes"]
    lines: list[str] = []
    ended = train.run(free.replace(run_within=f"uplink_bytes={most:.9g}"), tell=lines.append).summary
    assert ended["uplink_bytes"] <= most
    assert any(KINDS[name][0].split()[0] in line for line in lines if line.startswith("round "))
    assert ended["replans"][0]["setting"]["held"]


@pytest.mark.parametrize("name", ["fedavg", "fedit", "fedmd", "split"])
def test_schemes_that_cannot_go_on_so_are_refused(name: str) -> None:
    assert not SCHEMES[name].redeals
    more = {"tiny_lora_rank": 2} if name == "fedit" else {"data_public": 0.2} if name == "fedmd" else {}
    with pytest.raises(ConfigError, match=f"the scheme {name} can't deal out other widths, cuts or ranks"):
        train.run(BASE.replace(scheme_name=name, **more))
