"""Batteries that empty, radios charged by their states, and rules that choose who takes part."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from midhaul import rng, train, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError
from midhaul.link import energy, radio
from midhaul.runtime.choosing import Choosing, expected
from midhaul.runtime.ledger import WHATS, Ledger
from midhaul.runtime.over_link import OverLink
from midhaul.runtime.participation import Participation, check
from midhaul.runtime.spending import Spending, batteries
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import SIZES, engine, setting
from power_cut import cut_and_resumed

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
RULES = ("round_robin", "best_channel", "fedcs", "oort", "frugal")


def run(name: str, on: str, rounds: int = 2, **changes: object) -> tuple[Server, Participation]:
    """Runs a scheme on three boards stm32l4 with BLE; gives the server and the fleet."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **{"scheme_batch": 50, **changes})
    board, on_air, ledger = profiles.get("stm32l4"), radio.get("ble"), Ledger()
    spending = Spending(
        ledger, kit.groups, states=kit.config.link.energy == "states", battery_j=batteries(kit.config, kit.groups)
    )
    inner = engine(on, program, population)
    link = OverLink(inner, program, board, on_air, loss=0.0, retries=0, ledger=ledger, spending=spending)
    own = dict.fromkeys(population.devices, on_air)
    chosen = kit.config.fleet.selection != "random"
    choosing = Choosing(kit, scheme, SIZES, lambda number, now_s: own, 0) if chosen else None
    fleet = Participation(link, kit, keeps_stragglers=scheme.keeps_stragglers, choosing=choosing)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        fleet.settle()
    return server, fleet


def test_what_devices_spend_is_told_by_what_it_went_into() -> None:
    """By hand: seconds at a board's power, bytes at a radio's; all parts together are what was always counted."""
    _, fleet = run("fedavg", "loop")
    ledger, board, on_air = fleet.ledger, profiles.get("stm32l4"), radio.get("ble")
    for device in ("0", "1", "2"):
        parts = [ledger.joules_of[what].get(device, 0.0) for what in WHATS]
        assert sum(parts) == pytest.approx(ledger.joules[device])
        assert parts[3] == 0.0
        assert parts[0] == pytest.approx(ledger.seconds_of["compute"][device] * board.active_w)
        assert parts[1] == pytest.approx((ledger.seconds_of["transmit"][device] - 2 * on_air.delay_s) * on_air.tx_w)


def test_by_states_a_radio_waits_for_its_turn_and_rests_in_between() -> None:
    plain, model = run("fedavg", "loop")[1].ledger, energy.get("ble")
    fleet = run("fedavg", "loop", link_energy="states")[1]
    ledger = fleet.ledger
    assert ledger.simulated_seconds == plain.simulated_seconds
    sent_s = ledger.seconds_of["transmit"]["0"] - 2 * radio.get("ble").delay_s
    by_hand = float(model.transmit_j(sent_s, 1e-3)) + model.idle_w * 2 * radio.get("ble").delay_s
    assert ledger.joules_of["transmit"]["0"] == pytest.approx(by_hand)
    busy_s = sum(ledger.seconds_of[what]["0"] for what in WHATS[:3])
    assert ledger.seconds_of["idle"]["0"] == pytest.approx(ledger.simulated_seconds - busy_s)
    assert "2" not in ledger.seconds_of["idle"]  # the slowest never waits
    asleep_j = ledger.seconds_of["idle"]["0"] * profiles.get("stm32l4").sleep_w  # the radio is off
    assert ledger.joules_of["idle"]["0"] == pytest.approx(asleep_j)


@BOTH
def test_a_device_whose_battery_is_empty_is_gone(on: str) -> None:
    """Device 2 computes most. With little more than a round of it, its second reply never comes, and it spends no more
    than it had."""
    _, whole = run("fedavg", on, 1, scheme_epochs=8, scheme_batch=0)
    most = whole.ledger.joules["2"]
    _, fleet = run("fedavg", on, 3, scheme_epochs=8, scheme_batch=0, fleet_battery_j=1.5 * most)
    assert fleet.ledger.gone == {"2": 2}
    assert fleet.ledger.joules["2"] == pytest.approx(1.5 * most)
    assert fleet.ledger.absent == 2  # once it didn't answer, once it wasn't asked
    assert sum(fleet.ledger.joules_of[what].get("2", 0.0) for what in WHATS) == pytest.approx(1.5 * most)


def test_a_battery_may_be_the_board_s_own_and_spread() -> None:
    kit, _, _ = setting(SCHEMES["fedavg"], fleet_battery_j=-1.0)
    assert batteries(kit.config, kit.groups) == dict.fromkeys((0, 1, 2), profiles.get("stm32l4").battery_j)
    kit, _, _ = setting(SCHEMES["fedavg"], fleet_battery_j=10.0, fleet_battery_spread=0.5)
    held = batteries(kit.config, kit.groups)
    assert len(set(held.values())) == 3
    assert all(1.0 < value < 100.0 for value in held.values())
    with pytest.raises(ConfigError, match="or -1 for the board's own"):
        batteries(kit.config.replace(fleet_battery_j=-0.5), kit.groups)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_chooses_the_same_on_both_engines_and_no_more_than_asked(rule: str) -> None:
    changes = {"fleet_selection": rule, "fleet_cohort": 0.67, "fleet_round_deadline_s": 100.0}
    _, fleet = run("fedavg", "stacked", 4, **changes)
    _, other = run("fedavg", "loop", 4, **changes)
    assert fleet.choosing is not None
    assert other.choosing is not None
    assert fleet.choosing.known["last"].tolist() == other.choosing.known["last"].tolist()
    assert fleet.ledger.updates == 8


def test_what_is_expected_of_a_device_is_what_it_takes() -> None:
    """Bytes to a few, since the settings' values are others; seconds and joules to the last digit."""
    _, fleet = run("fedavg", "loop", 1, fleet_selection="round_robin", fleet_cohort=3)
    kit, _, _ = setting(SCHEMES["fedavg"], scheme_batch=50)
    need = expected(kit, SCHEMES["fedavg"], SIZES)
    ledger = fleet.ledger
    took = [ledger.seconds_of["compute"][str(device)] for device in range(3)]
    assert need.compute_s.tolist() == pytest.approx(took)
    assert need.compute_j.tolist() == pytest.approx([ledger.joules_of["compute"][str(d)] for d in range(3)])
    assert need.up_bytes.sum() == pytest.approx(ledger.uplink_bytes, rel=0.02)
    assert need.down_bytes.sum() == pytest.approx(ledger.downlink_bytes, rel=0.05)


def test_round_robin_asks_everyone_in_turn() -> None:
    _, fleet = run("fedavg", "loop", 6, fleet_selection="round_robin", fleet_cohort=0.34)
    _, once = run("fedavg", "loop", 1)
    for device in "012":
        spent = [ledger.joules_of["compute"][device] for ledger in (fleet.ledger, once.ledger)]
        assert spent[0] == pytest.approx(2 * spent[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fleet_selection": "oort"}, "nothing to choose"),
        ({"fleet_selection": "fedcs"}, "round_deadline_s"),
        ({"fleet_selection": "frugal", "fleet_cohort": 0.5, "scheme_name": "federated_split"}, "tell none"),
    ],
)
def test_rules_without_anything_to_go_by_are_refused(changes: dict[str, object], told: str) -> None:
    from midhaul import plant

    with pytest.raises(ConfigError, match=told):
        plant.build(Config().replace(**changes))


def test_a_battery_and_a_rule_are_refused_where_a_scheme_does_not_admit_them() -> None:
    scheme = dataclasses.replace(SCHEMES["fedavg"], admits=())
    with pytest.raises(ConfigError, match=r"fleet\.battery_j asks for"):
        check(scheme, Config().replace(fleet_battery_j=1.0))
    with pytest.raises(ConfigError, match=r"fleet\.selection asks for"):
        check(scheme, Config().replace(fleet_selection="round_robin"))


@pytest.mark.parametrize("rule", ["oort", "frugal"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(rule: str, tmp_path: Path) -> None:
    config = Config().replace(
        data_name="digits",
        data_num_devices=5,
        data_max_rows=60,
        fleet_selection=rule,
        fleet_cohort=2,
        fleet_battery_j=0.015,
        fleet_battery_spread=0.5,
        link_energy="states",
        run_rounds=6,
    )
    whole = train.run(config, tmp_path / "whole")
    resumed = cut_and_resumed(config, tmp_path / "parts", after=3)
    assert tree.largest_difference(whole.server.tree, resumed.server.tree) == 0.0
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    gone = [device for line in lines[0].splitlines() for device in json.loads(line)["gone"]]
    assert gone
    assert len(gone) == len(set(gone))
