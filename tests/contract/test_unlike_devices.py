"""Identities of schemes whose devices differ: where all are alike, they are the scheme for devices that are alike."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midhaul import rng, train, tree
from midhaul.config import Config
from midhaul.models.window import mean_of_holders, take_window
from midhaul.schemes import SCHEMES
from midhaul.schemes.width import windows
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting
from power_cut import cut_and_resumed

BARE = Config().replace(
    data_name="digits", data_partition="iid", data_num_devices=3, data_max_rows=20, run_rounds=2,
    scheme_name="federated_split_mixed", tiny_model="mlp", tiny_options={"hidden": [12, 8]}, large_optimizer="sgd",
)  # fmt: skip
BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])


def run(name: str, on: str, rounds: int = 3, **changes: object) -> Server:
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **changes)
    fleet = engine(on, program, population, kit.groups)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    return server


@BOTH
@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_at_width_1_it_is_fedavg(name: str, on: str) -> None:
    fedavg = run("fedavg", on)
    assert tree.largest_difference(fedavg.tree, run(name, on, scheme_width_mix="1").tree) == 0.0
    assert tree.largest_difference(fedavg.tree, run(name, on, scheme_width_mix="1,1,0.5").tree) > 1e-4


@BOTH
def test_heterofl_of_one_narrow_width_is_fedavg_of_the_narrow_model(on: str) -> None:
    server = run("heterofl", on, scheme_width_mix="0.5")
    kit, _, population = setting(SCHEMES["heterofl"], scheme_width_mix="0.5")
    (group,) = kit.groups
    narrow = replace(kit, program=group.program)
    fleet, fedavg = engine(on, group.program, population), SCHEMES["fedavg"]
    (own,) = windows([group], kit, rng.Key(0, 1, rng.SERVER, 0), rolls=False)
    alone = Server(take_window(kit.program.initial, own))
    for number in (1, 2, 3):
        alone, _ = fedavg.round(alone, fleet, narrow, rng.Key(0, number, rng.SERVER, 0))
    assert tree.largest_difference(take_window(server.tree, own), alone.tree) == 0.0
    untouched = mean_of_holders(server.tree, [(own, {n: v[None] for n, v in alone.tree.items()}, torch.ones(1))])
    start = mean_of_holders(kit.program.initial, [(own, {n: v[None] for n, v in alone.tree.items()}, torch.ones(1))])
    assert tree.largest_difference(untouched, start) == 0.0


@BOTH
def test_with_one_cut_for_all_it_is_splitfed(on: str) -> None:
    ends = []
    for name in ("federated_split", "federated_split_mixed"):
        kit, program, population = setting(SCHEMES["federated_split_mixed"], scheme_cut="second")
        fleet, scheme = engine(on, program, population, kit.groups), SCHEMES[name]
        server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
        for number in (1, 2, 3):
            server, metrics = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        ends.append((server, metrics, scheme.evaluate(server, fleet, kit, rng.Key(0, 3, rng.SERVER, 0))))
    (one, one_metrics, one_test), (mixed, mixed_metrics, mixed_test) = ends
    assert tree.largest_difference(one.tree, mixed.tree) == 0.0
    assert tree.largest_difference(one.large, mixed.large) == 0.0
    assert one_metrics == mixed_metrics
    assert torch.equal(one_test.metrics["loss"], mixed_test.metrics["loss"])


@BOTH
def test_where_one_device_is_cut_changes_nothing(on: str) -> None:
    """With one device and SGD on both sides a layer learns the same on the device and in the server's copy."""
    sgd = {"large_optimizer": "sgd", "large_lr": 0.05, "large_weight_decay": 0.0, "scheme_lr": 0.05}
    ends = []
    for cut in ("second", "first"):
        kit, program, everyone = setting(SCHEMES["federated_split_mixed"], scheme_momentum=0.9, **sgd)
        group = next(group for group in kit.groups if group.cut == cut)
        alone = replace(everyone, train=(everyone.train[2],))
        kit = replace(kit, groups=(replace(group, devices=(0,), tests=(1, 2)),))
        fleet, scheme = engine(on, program, alone, kit.groups), SCHEMES["federated_split_mixed"]
        server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
        for number in (1, 2, 3):
            server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        ends.append((server, scheme.evaluate(server, fleet, kit, rng.Key(0, 3, rng.SERVER, 0))))
    (deep, deep_test), (early, early_test) = ends
    assert tree.largest_difference(deep.tree, early.tree) < 1e-6
    assert tree.largest_difference(deep.large, early.large) < 1e-6
    assert torch.allclose(deep_test.metrics["loss"], early_test.metrics["loss"], atol=1e-6, rtol=0)
    assert set(early.state["copy"]) - {"count"} == {"m.second.weight", "m.second.bias"}


def test_the_window_of_fedrolex_comes_round() -> None:
    """Of 8 channels, half a round: after 8 rounds each was held 4 times, and the first window is there again."""
    kit, _, _ = setting(SCHEMES["fedrolex"], scheme_width_mix="0.5")
    counts = torch.zeros(8, dtype=torch.int64)
    seen = []
    for number in range(1, 9):
        (own,) = windows(list(kit.groups), kit, rng.Key(0, number, rng.SERVER, 0), rolls=True)
        assert torch.equal(own["first.weight"][0], own["last.weight"][1])
        counts[own["first.weight"][0]] += 1
        seen.append(own["first.weight"][0].tolist())
    assert seen[0] == [0, 1, 2, 3]
    assert seen[5] == [5, 6, 7, 0]
    assert counts.tolist() == [4] * 8
    (again,) = windows(list(kit.groups), kit, rng.Key(0, 9, rng.SERVER, 0), rolls=True)
    assert again["first.weight"][0].tolist() == seen[0]


@BOTH
def test_cuts_with_nothing_to_train_between_them_change_nothing(on: str) -> None:
    """A ReLU between two devices' cuts is on the device or behind the cut: the same numbers either way."""
    alike = train.run(BARE.replace(run_engine=on, scheme_cut="relu2")).server
    mixed = train.run(BARE.replace(run_engine=on, scheme_cut="fc2,relu2,relu2")).server
    assert tree.largest_difference(alike.tree, mixed.tree) < 1e-6
    assert tree.largest_difference(alike.large, mixed.large) < 1e-6


def test_a_run_with_nothing_between_its_cuts_is_resumed(tmp_path: Path) -> None:
    """SGD remembers nothing of no layers, so that the checkpoint has no entry of them."""
    config = BARE.replace(scheme_cut="fc2,relu2,relu2", run_checkpoint_every=1)
    resumed = cut_and_resumed(config, tmp_path / "cut", after=1).summary
    assert resumed["model_sha256"] == train.run(config).summary["model_sha256"]
