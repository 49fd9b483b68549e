"""Devices that differ: several boards in one federation, unlike models side by side, and what each is charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from power_cut import cut_and_resumed
from torch import nn

from midhaul import budget, plant, rng, train, tree, variants
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import BudgetError, ConfigError, EngineError, MidhaulError, ModelError, SliceError
from midhaul.fleet import Group
from midhaul.link import radio
from midhaul.message import Message, Op
from midhaul.models.slices import width
from midhaul.program import Population, Program
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES

BOTH = pytest.mark.parametrize("engine", [Loop, Stacked])
KEY = rng.Key(0, 1, rng.SERVER, 0)


def setting(engine: type[Loop] | type[Stacked]) -> tuple[Groups, tuple[Group, ...]]:
    """Gives four devices, two with a model of 8 hidden units and two with one of 4, on two boards."""
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        whole = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    wide, narrow = Program(whole, (5,)), Program(width(whole, 0.5, (5,))[0], (5,))
    x = torch.from_numpy(rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), 60 * 5).reshape(60, 5)).float()
    rows = tuple(np.arange(10 * d, 10 * d + 5 + d) for d in range(4))
    population = Population(x, (x[:, 0] > 0).long(), rows, (np.arange(40, 60),), (), False)
    groups = (
        Group((0, 2), (4,), wide, profiles.get("stm32l4"), radio.get("ble")),
        Group((1, 3), (), narrow, profiles.get("nrf52840"), radio.get("cat_m1"), width=0.5),
    )
    return Groups(groups, population, engine), groups


def fit() -> Message:
    return Message(Op.FIT, settings={"lr": 0.1, "batch": 4, "epochs": 1, "train": "whole", "send": "whole"})


@BOTH
def test_each_device_does_what_it_would_do_in_a_fleet_of_its_own_kind(engine: type[Loop] | type[Stacked]) -> None:
    fleet, groups = setting(engine)
    assert fleet.devices == (0, 1, 2, 3)
    assert fleet.test_devices == (4,)
    parts = [(replace(fit(), tree=group.program.initial), group.devices) for group in groups]
    for (message, devices), group, up in zip(parts, groups, fleet.exchange_parts(parts, key=KEY), strict=True):
        alone = engine(group.program, fleet.population).exchange(message, key=KEY, devices=devices)
        assert up.devices == alone.devices == devices
        assert tree.largest_difference(up.tree, alone.tree) == 0.0
        assert torch.equal(up.metrics["loss"], alone.metrics["loss"])


@BOTH
def test_replies_are_joined_where_they_are_alike_and_refused_where_not(engine: type[Loop] | type[Stacked]) -> None:
    fleet, groups = setting(engine)
    for group in groups:
        fleet.exchange(Message(Op.LOAD, group.program.initial), key=KEY, devices=(*group.devices, *group.tests))
    scored = fleet.exchange(Message(Op.EVALUATE, settings={"rows": "test"}), key=KEY)
    assert scored.devices == (0, 1, 2, 3)
    assert scored.metrics["rows"].tolist() == [20.0] * 4
    assert scored.metrics["loss"][0] == scored.metrics["loss"][2] != scored.metrics["loss"][1]
    logits = fleet.exchange(Message(Op.PREDICT, {"x": fleet.population.x[:7]}), key=KEY, devices=(3, 0))
    assert logits.devices == (0, 3)
    assert logits.tree["logits"].shape == (2, 7, 3)
    with pytest.raises(MidhaulError, match=r"0\.weight of unlike shapes \(device 0 \(8, 5\), device 1 \(4, 5\)\)"):
        fleet.exchange(Message(Op.READ, settings={"send": "whole"}), key=KEY)
    with pytest.raises(EngineError, match="which its model doesn't have"):
        fleet.exchange(Message(Op.LOAD, groups[0].program.initial), key=KEY)


@BOTH
def test_what_is_one_value_a_device_goes_to_that_device(engine: type[Loop] | type[Stacked]) -> None:
    fleet, groups = setting(engine)
    for group in groups:
        fleet.exchange(Message(Op.LOAD, group.program.initial), key=KEY, devices=group.devices)
    fit_own = Message(Op.FIT, settings={"lr": 0.1, "train": "whole", "batch": 1}, each_settings={"steps": (1, 2, 3, 4)})
    assert fleet.exchange(fit_own, key=KEY, devices=(3, 2, 1, 0)).metrics["rows"].tolist() == [4.0, 3.0, 2.0, 1.0]


@BOTH
def test_what_devices_remember_comes_back(engine: type[Loop] | type[Stacked]) -> None:
    fleet, groups = setting(engine)
    for group in groups:
        fleet.exchange(Message(Op.LOAD, group.program.initial), key=KEY, devices=(*group.devices, *group.tests))
    fleet.exchange(replace(fit(), settings={**fit().settings, "send": "none"}), key=KEY)
    again, _ = setting(engine)
    again.restore(fleet.dump())
    later = KEY._replace(round=2)
    for group in groups:
        once, twice = (f.exchange(fit(), key=later, devices=group.devices) for f in (fleet, again))
        assert tree.largest_difference(once.tree, twice.tree) == 0.0
    with pytest.raises(EngineError, match="another run"):
        again.restore({"own/7/0.weight": torch.zeros(4)})


def charged(parts: bool) -> tuple[Ledger, tuple[Group, ...]]:
    fleet, groups = setting(Loop)
    ledger = Ledger()
    first = groups[0]
    over = OverLink(fleet, first.program, first.board, first.radio, loss=-1.0, retries=0, ledger=ledger, groups=groups)
    asked = [(replace(fit(), tree=group.program.initial), group.devices) for group in groups]
    if parts:
        over.exchange_parts(asked, key=KEY)
    else:
        for message, devices in asked:
            over.exchange(message, key=KEY, devices=devices)
    return ledger, groups


def test_a_device_is_charged_for_its_own_model_on_its_own_board() -> None:
    ledger, groups = charged(parts=True)
    sent = {id(g.program): 4 * tree.num_parameters(g.program.initial) for g in groups}
    assert ledger.kinds_up["weights"] == sum(len(g.devices) * sent[id(g.program)] for g in groups)
    # Forward, gradients of both weights, and of the second layer's input.
    macs = {0: 2 * (5 * 8 + 8 * 3) + 8 * 3, 1: 2 * (5 * 4 + 4 * 3) + 4 * 3}
    for place, group in enumerate(groups):
        for device in group.devices:
            busy_s = (5 + device) * macs[place] * group.board.cycles_per_mac_f32 / group.board.clock_hz
            up = ledger.joules[str(device)] - busy_s * group.board.active_w
            weights = sent[id(group.program)]
            assert up > group.radio.joules_up(weights) + group.radio.joules_down(weights)
            assert up < 1.5 * (group.radio.joules_up(weights) + group.radio.joules_down(weights + 200))


def test_parts_of_one_step_last_as_long_as_the_slowest() -> None:
    one, _ = charged(parts=True)
    two, _ = charged(parts=False)
    assert one.kinds_up == two.kinds_up
    assert one.joules == two.joules
    each = []
    for place in (0, 1):
        fleet, groups = setting(Loop)
        ledger, group = Ledger(), groups[place]
        over = OverLink(fleet, group.program, group.board, group.radio, loss=0.0, retries=0, ledger=ledger)
        over.exchange(replace(fit(), tree=group.program.initial), key=KEY, devices=group.devices)
        each.append(ledger)
    assert one.air_seconds == max(ledger.air_seconds for ledger in each)
    assert one.compute_seconds == max(ledger.compute_seconds for ledger in each)
    assert two.air_seconds == pytest.approx(sum(ledger.air_seconds for ledger in each))


def test_boards_go_round_or_are_counted() -> None:
    assert [b.name for b in variants.boards("stm32l4", 2)] == ["stm32l4"] * 2
    assert [b.name for b in variants.boards("stm32l4, rpi4", 3)] == ["stm32l4", "rpi4", "stm32l4"]
    assert [b.name for b in variants.boards("stm32l4*1,rpi4*2", 3)] == ["stm32l4", "rpi4", "rpi4"]
    with pytest.raises(ConfigError, match="names 4 devices and the data make 3;"):
        variants.boards("stm32l4*2,rpi4*2", 3)
    for text in ("stm32l4*2,rpi4", "stm32l4*0,rpi4*3", "stm32l4*two"):
        with pytest.raises(ConfigError, match="with a count for each"):
            variants.boards(text, 3)
    with pytest.raises(ConfigError, match="stm32l4"):
        variants.boards("stm32l5*3", 3)


SMALL = {
    "data_num_devices": 6, "data_partition": "iid", "data_test": "shared", "data_max_rows": 20,
    "tiny_options": {"hidden": [8]}, "run_rounds": 2,
}  # fmt: skip


def test_boards_may_differ_under_any_scheme_and_change_no_bit(tmp_path: Path) -> None:
    config = Config().replace(**SMALL)
    alike = train.run(config).summary
    mixed = train.run(config.replace(fleet_board="stm32l4*4,rpi4*2"), tmp_path / "run").summary
    assert mixed["model_sha256"] == alike["model_sha256"]
    assert mixed["uplink_bytes"] == alike["uplink_bytes"]
    assert mixed["board"] == "stm32l4, rpi4"
    assert [(g["num_devices"], g["board"], g["radio"]) for g in mixed["groups"]] == [
        (4, "stm32l4", profiles.get("stm32l4").radio),
        (2, "rpi4", profiles.get("rpi4").radio),
    ]
    assert mixed["device_joules"] != alike["device_joules"]


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_run_of_unlike_devices_goes_on_to_the_same_bits(engine: str, tmp_path: Path) -> None:
    config = Config().replace(
        **SMALL,
        scheme_name="heterofl",
        run_engine=engine,
        fleet_board="stm32l4,nrf52840",
        scheme_width_mix="1,0.5,0.25",
    )
    whole = train.run(config, tmp_path / "whole").summary
    assert [g["width"] for g in whole["groups"]] == [1.0, 0.5, 0.25, 1.0, 0.5, 0.25]
    resumed = cut_and_resumed(config, tmp_path / "cut", after=1).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["device_joules"] == whole["device_joules"]


def test_a_device_trains_the_widest_model_that_its_board_has_room_for() -> None:
    config = Config().replace(
        **{**SMALL, "tiny_options": {"hidden": [300]}, "scheme_name": "heterofl", "fleet_board": "stm32l4*4,rpi4*2"}
    )
    built = plant.build(config)
    assert [(g.devices, g.board.name, g.width) for g in built.kit.groups] == [
        ((0, 1, 2, 3), "stm32l4", 0.25),
        ((4, 5), "rpi4", 1.0),
    ]
    assert all(need.fits for need in built.needs)
    assert built.board.name == "stm32l4"
    assert built.kit.groups[1].program is built.kit.program
    tested = plant.build(config.replace(scheme_test_width=0.5)).kit.groups
    assert [(len(g.devices), len(g.tests), g.width) for g in tested] == [(4, 0, 0.25), (2, 0, 1.0), (0, 1, 0.5)]


def test_a_device_is_cut_where_its_board_has_room_for() -> None:
    sizes = {"tiny_options": {"hidden": [64, 200, 32]}, "large_model": "mlp_large"}
    config = Config().replace(
        **{**SMALL, **sizes, "scheme_name": "federated_split_mixed", "fleet_board": "stm32l4,rpi4"}
    )
    built = plant.build(config)
    assert [(g.devices, g.board.name, g.cut) for g in built.kit.groups] == [
        ((0, 2, 4), "stm32l4", "relu1"),
        ((1, 3, 5), "rpi4", "relu3"),
    ]
    assert all(need.fits for need in built.needs)
    named = plant.build(config.replace(scheme_cut="relu1,fc2")).kit.groups
    assert [(g.board.name, g.cut) for g in named] == [("stm32l4", "relu1"), ("rpi4", "fc2")]
    with pytest.raises(BudgetError, match=r"up to 'fc2' needs .* on stm32l4 .* the largest cut that fits is 'relu1'"):
        plant.build(config.replace(scheme_cut="fc2,relu1"))
    with pytest.raises(SliceError, match=r"'fc9' in scheme\.cut is no layer to cut behind"):
        plant.build(config.replace(scheme_cut="fc9"))


def test_devices_may_hold_models_of_unlike_kinds() -> None:
    scheme = replace(SCHEMES["fedavg"], name="for_unlike_models", differs="model", engines=("loop", "stacked"))
    options = {"mlp": {"hidden": [24]}}
    config = Config().replace(**{**SMALL, "tiny_model": "mlp, linear", "tiny_options": options, "fleet_board": "rpi4"})
    built = plant.build(config, scheme=scheme)
    assert [(g.model, g.devices) for g in built.kit.groups] == [("mlp", (0, 2, 4)), ("linear", (1, 3, 5))]
    sizes = [tree.num_parameters(group.program.initial) for group in built.kit.groups]
    assert sizes == [64 * 24 + 24 + 24 * 10 + 10, 64 * 10 + 10]
    assert built.kit.program is built.kit.groups[0].program
    assert isinstance(built.engine, Groups)
    with pytest.raises(ModelError, match="linear has no option"):
        plant.build(config.replace(tiny_options={"linear": {"hidden": [3]}}), scheme=scheme)
    with pytest.raises(ConfigError, match=r"tiny\.options has 'hidden'; of several models it holds a table for each"):
        plant.build(config.replace(tiny_options={"hidden": [3]}), scheme=scheme)


def test_widths_and_cuts_may_be_counted_device_by_device() -> None:
    wide = Config().replace(**SMALL, scheme_name="heterofl", scheme_width_mix="1*1,0.5*3,1*2")
    assert [(g.width, g.devices) for g in plant.build(wide).kit.groups] == [(1.0, (0, 4, 5)), (0.5, (1, 2, 3))]
    with pytest.raises(ConfigError, match=r"scheme\.width_mix names 5 devices and the data make 6"):
        plant.build(wide.replace(scheme_width_mix="1*2,0.5*3"))
    with pytest.raises(ConfigError, match="with a count for each"):
        plant.build(wide.replace(scheme_width_mix="1*2,0.5"))


def test_every_group_must_fit_its_own_board() -> None:
    config = Config().replace(**{**SMALL, "tiny_options": {"hidden": [300]}})
    with pytest.raises(BudgetError, match="stm32l4"):
        plant.build(config.replace(fleet_board="rpi4*5,stm32l4*1"))
    plant.build(config.replace(fleet_board="rpi4"))


def test_what_needs_devices_that_are_alike_says_so() -> None:
    config = Config().replace(**SMALL)
    with pytest.raises(ConfigError, match="runs devices that are alike"):
        plant.build(config.replace(fleet_board="stm32l4,rpi4", run_engine="firmware"))
    with pytest.raises(ConfigError, match="wants the same one on every device"):
        plant.build(config.replace(tiny_model="mlp,linear"))


def test_the_largest_variant_that_fits_is_taken() -> None:
    module = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))

    def needs(variant: variants.Variant, board: profiles.Board) -> budget.Budget:
        narrow = width(module, variant.width, (64,))[0]
        return budget.plan(narrow, (64,), board, Op.FIT, train=[name for name, _ in narrow.named_parameters()])

    found, in_turn = variants.candidates(Config(), "width")
    assert not in_turn
    held = variants.boards("stm32l4,rpi4", 4)
    dealt = variants.deal(found, in_turn, held, needs, enforce=True)
    assert [variant.width for variant in dealt] == [0.25, 1.0, 0.25, 1.0]
    assert not needs(replace(dealt[0], width=0.5), held[0]).fits
    with pytest.raises(BudgetError, match=r"not even the smallest variant .* fits stm32l4: .* B of SRAM over"):
        variants.deal(found[:2], False, held, needs, enforce=True)
    mixed, in_turn = variants.candidates(Config().replace(scheme_width_mix="0.25,0.5"), "width")
    assert [v.width for v in variants.deal(mixed, in_turn, held, needs, enforce=True)] == [0.25, 0.5, 0.25, 0.5]
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        variants.candidates(Config().replace(scheme_width_mix="0.25,2"), "width")
