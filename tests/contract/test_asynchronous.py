"""Asynchronous aggregation: the corners where it is FedAvg, steps worked out by hand, and what it is for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from midhaul import plant, rng, train, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError
from midhaul.link import radio
from midhaul.program import Population
from midhaul.runtime import participation
from midhaul.runtime.asynchronous import Asynchronous, freshness
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.runtime.participation import Participation
from midhaul.schemes import SCHEMES
from midhaul.server import Server
from midhaul.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting
from power_cut import cut_and_resumed

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
ADMITTED = [name for name, scheme in SCHEMES.items() if "asynchronous" in scheme.admits]
QUICK: dict[str, object] = {"scheme_batch": 50, "large_epochs": 1, "scheme_distill_epochs": 1}


def run(
    name: str, on: str, rounds: int = 3, population: Population | None = None, **changes: object
) -> tuple[list[Server], Asynchronous | Participation]:
    """Runs a scheme; gives the server after each round, the first before any, and the fleet."""
    scheme = SCHEMES[name]
    kit, program, everyone = setting(scheme, **{**QUICK, **changes})
    inner = engine(on, program, population or everyone)
    link = OverLink(inner, program, profiles.get("stm32l4"), radio.get("ble"), loss=0.0, retries=0, ledger=Ledger())
    there = Participation(link, kit, keeps_stragglers=scheme.keeps_stragglers)
    fleet = there if kit.config.fleet.mode == "synchronous" else Asynchronous(there, kit)
    servers = [scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))]
    for number in range(1, rounds + 1):
        servers.append(scheme.round(servers[-1], fleet, kit, rng.Key(0, number, rng.SERVER, 0))[0])
    return servers, fleet


@BOTH
@pytest.mark.parametrize("name", ADMITTED)
def test_a_buffer_of_the_whole_cohort_is_synchronous(name: str, on: str) -> None:
    """FedBuff with buffer = cohort has no stale reply: it is FedAvg, to the bit and to the second."""
    plain, clock = run(name, on)
    buffered, other = run(name, on, fleet_mode="fedbuff", fleet_buffer=0)
    assert tree.largest_difference(plain[-1].tree, buffered[-1].tree) == 0.0
    assert isinstance(other, Asynchronous)
    assert other.fleet.ledger.simulated_seconds == pytest.approx(clock.ledger.simulated_seconds)  # type: ignore[union-attr]
    assert other.fleet.ledger.kinds_up == clock.ledger.kinds_up  # type: ignore[union-attr]
    assert not other.flights


@BOTH
@pytest.mark.parametrize("name", ADMITTED)
def test_fedasync_of_one_device_that_counts_in_full_is_synchronous(name: str, on: str) -> None:
    everyone = setting(SCHEMES[name])[2]
    alone = replace(everyone, train=(everyone.train[2],))
    plain, _ = run(name, on, population=alone)
    mixed, _ = run(name, on, population=alone, fleet_mode="fedasync", fleet_mixing=1.0)
    assert tree.largest_difference(plain[-1].tree, mixed[-1].tree) == 0.0


@pytest.mark.parametrize("name", ADMITTED)
@pytest.mark.parametrize("mode", ["fedasync", "fedbuff"])
def test_both_engines_agree_on_stale_replies(name: str, mode: str) -> None:
    slow, fleet = run(name, "loop", 5, fleet_mode=mode, fleet_buffer=2)
    fast, _ = run(name, "stacked", 5, fleet_mode=mode, fleet_buffer=2)
    assert tree.largest_difference(slow[-1].tree, fast[-1].tree) < 1e-5
    assert isinstance(fleet, Asynchronous)
    assert fleet.flights
    assert fleet.version == 5


def by_hand(servers: list[Server], device: int, start: int, round: int) -> Tree:
    """Gives what a device makes of the model of one round, when it is asked in another."""
    kit, program, population = setting(SCHEMES["fedavg"], **QUICK)
    message = kit.fit(servers[start].tree, train="whole", send="whole")
    key = rng.Key(0, round, rng.SERVER, 0)
    return engine("loop", program, population).exchange(message, key=key, devices=(device,)).reply(0).tree


def test_fedasync_by_hand() -> None:
    """The device of one row is first, then that of 7: its reply is one version old, and counts alpha / sqrt(2)."""
    servers, _ = run("fedavg", "loop", 2, fleet_mode="fedasync", fleet_mixing=0.8)
    weight = 0.8 / 2**0.5
    first = tree.add(tree.scale(servers[0].tree, 0.2), tree.scale(by_hand(servers, 0, 0, 1), 0.8))
    second = tree.add(tree.scale(first, 1.0 - weight), tree.scale(by_hand(servers, 1, 0, 1), weight))
    assert tree.largest_difference(servers[1].tree, first) < 1e-6
    assert tree.largest_difference(servers[2].tree, second) < 1e-6


def test_fedbuff_by_hand() -> None:
    """Devices 0 and 1 fill the first buffer. Device 2, from version 0 still, and 0 again fill the second: the older
    update is scaled by 1 / sqrt(2)."""
    servers, _ = run("fedavg", "loop", 2, fleet_mode="fedbuff", fleet_buffer=2, fleet_weighting="uniform")
    steps = [tree.subtract(by_hand(servers, device, 0, 1), servers[0].tree) for device in (0, 1, 2)]
    first = tree.add(servers[0].tree, tree.add(steps[0], steps[1]), alpha=0.5)
    fresh = tree.subtract(by_hand(servers, 0, 1, 2), servers[1].tree)
    second = tree.add(first, tree.add(fresh, steps[2], alpha=2**-0.5), alpha=0.5)
    assert tree.largest_difference(servers[1].tree, first) < 1e-6
    assert tree.largest_difference(servers[2].tree, second) < 1e-6


def test_the_clock_is_that_of_the_events() -> None:
    """Three replies taken one by one: at the times at which each device, alone, would have answered."""
    alone = run("fedavg", "loop", 1)[1]
    assert isinstance(alone, Participation)
    times = [sum(alone.seconds[device]) for device in (0, 1, 2)]
    for number, expected in enumerate(times, start=1):
        fleet = run("fedavg", "loop", number, fleet_mode="fedasync")[1]
        assert isinstance(fleet, Asynchronous)
        ledger = fleet.fleet.ledger
        assert ledger.simulated_seconds == pytest.approx(expected)
        assert ledger.air_seconds + ledger.compute_seconds == pytest.approx(expected)


def test_freshness_falls_as_the_paper_has_it() -> None:
    polynomial, hinge, constant = (
        Config().replace(fleet_staleness=name, fleet_staleness_exponent=0.5, fleet_staleness_grace=2).fleet
        for name in ("polynomial", "hinge", "constant")
    )
    assert [freshness(polynomial, age) for age in (0, 3, 8)] == pytest.approx([1.0, 0.5, 1.0 / 3.0])
    assert [freshness(hinge, age) for age in (0, 2, 3, 4)] == pytest.approx([1.0, 1.0, 1.0 / 1.5, 0.5])
    assert [freshness(constant, age) for age in (0, 9)] == [1.0, 1.0]


def test_no_more_devices_are_under_way_than_the_cohort_counts() -> None:
    fleet = run("fedavg", "stacked", 8, fleet_mode="fedasync", fleet_cohort=2)[1]
    assert isinstance(fleet, Asynchronous)
    assert len(fleet.flights) == 1
    assert fleet.version == 8


FLEET: dict[str, object] = {
    "data_num_devices": 6, "data_partition": "iid", "data_test": "shared", "tiny_options": {"hidden": [16]},
    "scheme_lr": 0.3, "run_rounds": 90, "run_evaluate_every": 3, "data_max_rows": 60,
}  # fmt: skip


def seconds_to(accuracy: float, folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next((line["simulated_seconds"] for line in lines if (line["accuracy"] or 0.0) >= accuracy), float("inf"))


def test_one_slow_device_holds_up_only_those_that_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(participation, "speed", lambda spread, device, seed: 20.0 if device == 0 else 1.0)
    times = {}
    for mode in ("synchronous", "fedbuff", "fedasync"):
        config = Config().replace(**FLEET, fleet_mode=mode, fleet_buffer=4, fleet_speed_spread=1.0)
        train.run(config, tmp_path / mode)
        times[mode] = seconds_to(0.7, tmp_path / mode)
    assert times["synchronous"] < float("inf")
    assert times["fedbuff"] < 0.5 * times["synchronous"]
    assert times["fedasync"] < 0.5 * times["synchronous"]


@BOTH
@pytest.mark.parametrize("mode", ["fedasync", "fedbuff"])
def test_what_is_in_flight_is_in_the_checkpoint(mode: str, on: str, tmp_path: Path) -> None:
    config = Config().replace(
        **{**FLEET, "run_rounds": 6}, fleet_mode=mode, fleet_buffer=2, fleet_speed_spread=1.0, fleet_cohort=4,
        fleet_dropout=0.1, run_engine=on,
    )  # fmt: skip
    whole = train.run(config, tmp_path / "whole").summary
    resumed = cut_and_resumed(config, tmp_path / "cut", after=3).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_deadline_has_no_sense_where_nobody_is_waited_for() -> None:
    with pytest.raises(ConfigError, match=r"fleet\.round_deadline_s"):
        plant.build(Config().replace(fleet_mode="fedbuff", fleet_round_deadline_s=1.0))


def test_a_scheme_of_several_steps_a_round_is_refused() -> None:
    with pytest.raises(ConfigError, match="the scheme split doesn't admit asynchronous"):
        plant.build(Config().replace(scheme_name="split", fleet_mode="fedasync"))
