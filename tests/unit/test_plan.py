"""A plan: what it is told, what it expects of a curve, what it may look at, and that a run keeps to what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midhaul import cli, plan, train
from midhaul.config import Config
from midhaul.curves import curve
from midhaul.data import federate, load
from midhaul.errors import ConfigError
from midhaul.goals import Limit, goal
from midhaul.plan import probe as probes
from midhaul.plan import rows, search, table
from midhaul.plan.candidates import Candidate, changes
from midhaul.plan.probe import Forecast

DIGITS = Config().replace(
    data_name="digits", data_partition="iid", data_num_devices=4, data_test="shared", fleet_board="stm32l4",
    tiny_model="linear", scheme_lr=0.1, scheme_batch=32, run_rounds=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("target", "within", "least", "said"),
    [
        ("0.9", "", "", "accuracy=0.9"),
        ("accuracy=90", "", "", "at most 1"),
        ("accuracy=nan", "", "", "not a number"),
        ("accuracy=0.9", "epsilon=4", "", "privacy"),
        ("accuracy=0.9", "joule=4", "", "joules"),
        ("accuracy=0.9", "joules=0", "", "nothing to spend"),
        ("accuracy=0.9", "seconds=60,hours=1", "", "twice"),
        ("accuracy=0.9", "bytes=many", "", "not a size"),
        ("accuracy=0.9", "", "watts", "no cost"),
    ],
)
def test_a_wrong_goal_is_refused_in_one_sentence(target: str, within: str, least: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        goal(target, within, least)


def test_a_goal_reads_units_and_tells_what_is_over() -> None:
    found = goal("accuracy=0.9", "joules=20,hours=6,uplink_bytes=3MB")
    assert found.limits == (Limit("joules", 20.0), Limit("seconds", 21600.0), Limit("uplink_bytes", 3e6))
    assert found.least == "joules"
    costs = {"joules": 30.0, "seconds": 1.0, "uplink_bytes": 1.0}
    assert found.excess(costs) == (0.5, "joules")
    assert found.excess({**costs, "joules": 20.0}) == (0.0, "")


def test_a_curve_goes_on_along_its_power_law() -> None:
    law = [0.9 - 0.5 * n**-0.8 for n in range(1, 11)]
    found = curve(law)
    assert found.top == pytest.approx(0.9, abs=1e-3)
    assert found.best(40) == pytest.approx(0.9 - 0.5 * 40**-0.8, abs=1e-3)
    assert found.first(0.6, 100) == 2  # 0.9 - 0.5 x 2^-0.8 = 0.613: seen
    # 0.5 n^-0.8 = 0.02 at n = 25^1.25 = 55.9: ahead
    assert found.first(0.88, 100) in (55, 56, 57)
    assert found.first(0.88, 40) is None
    assert found.first(0.95, 10**6) is None


def test_few_points_promise_nothing() -> None:
    found = curve([0.2, 0.5, 0.6])
    assert found.best(1000) == 0.6
    assert found.first(0.61, 1000) is None


def test_rows_to_choose_on_leave_the_test_rows_out() -> None:
    data = load("digits")
    federation = federate(data, partition="iid", num_devices=4, test="shared", seed=0)
    left = rows.for_choosing(data, federation, DIGITS)
    tested = {data.x[row].tobytes() for row in federation.test[0]} - {
        data.x[row].tobytes() for row in federation.train[0]
    }
    assert len(left) == len(data) - len(federation.test[0])
    assert not tested & {row.tobytes() for row in left.x}


def test_a_choice_is_confirmed_on_other_rows_each_time() -> None:
    data = load("digits")
    federation = federate(data, partition="iid", num_devices=4, test="shared", seed=0)
    trained = {data.x[row].tobytes() for part in federation.train for row in part}
    tested = {data.x[row].tobytes() for row in federation.test[0]} - trained
    marked = []
    for draw in (1, 2):
        other = rows.for_confirming(data, federation, DIGITS, draw)
        assert other is not None
        config, left = other
        assert config.data.test == "held_out"
        assert len(left) == len(data) - len(federation.test[0])
        assert left.held_out.sum() == round(0.1 * len(left))  # half of the fifth that is put aside to choose on
        marked.append(left.held_out)
        assert not {row.tobytes() for row in left.x} & tested
    assert (marked[0] & marked[1]).sum() < 0.3 * marked[0].sum()
    own = DIGITS.replace(data_test="device")
    assert rows.for_confirming(data, federate(data, partition="iid", num_devices=4, seed=0), own, 1) is None


def test_devices_that_test_themselves_are_confirmed_on_their_own_rows() -> None:
    data = load("digits")
    data = replace(
        data,
        device=(np.arange(len(data)) % 6).astype(np.int64),
        device_names=tuple(f"person {number}" for number in range(6)),
        key="person",
    )
    config = DIGITS.replace(data_partition="natural", data_test="device", data_num_devices=0, data_max_rows=100)
    federation = federate(data, partition="natural", test="device", max_rows=100, seed=0)
    other = rows.for_confirming(data, federation, config, 1)
    assert other is not None
    changed, left = other
    again = federate(left, partition="natural", test="held_out", max_rows=changed.data.max_rows, seed=0)
    assert again.own_test
    assert [len(part) for part in again.train] == [len(part) for part in federation.train] == [80] * 6
    assert all(len(part) for part in again.test)


def test_where_the_test_is_of_other_people_other_people_are_put_aside() -> None:
    data = load("digits")
    people = np.arange(len(data)) % 12
    named = tuple(f"person {number}" for number in range(12))
    data = replace(data, device=people.astype(np.int64), device_names=named, held_out=people >= 8, key="person")
    config = DIGITS.replace(data_partition="natural", data_test="held_out", data_num_devices=0)
    federation = federate(data, partition="natural", test="held_out", seed=0)
    left = rows.for_choosing(data, federation, config)
    aside, kept = set(left.device[left.held_out].tolist()), set(left.device[~left.held_out].tolist())
    assert len(aside) == 2
    assert len(kept) == 6
    assert not aside & kept
    assert (aside | kept) == set(range(8))


def test_candidates_within_the_limits_come_first_then_those_over_then_those_behind() -> None:
    wanted = goal("accuracy=0.9", "joules=10")

    def of(joules: float, rounds: int | None, accuracy: float) -> Forecast:
        costs = {"joules": joules, "seconds": 1.0, "bytes": 1.0, "uplink_bytes": 1.0, "downlink_bytes": 0.0}
        return Forecast(rounds, True, accuracy, costs)

    order = [
        of(5.0, 3, 0.91),
        of(9.0, 2, 0.99),
        of(11.0, 2, 0.99),
        of(90.0, 2, 0.99),
        of(1.0, None, 0.89),
        of(1.0, None, 0.5),
    ]
    assert sorted(reversed(order), key=lambda one: search.rank(one, wanted)) == order


def test_costs_are_those_of_the_run_to_the_byte(tmp_path: Path) -> None:
    data = load("digits")
    tried = probes.probe(Candidate("fedavg"), DIGITS, goal("accuracy=0.99"), data, tmp_path)
    probes.price(tried, data, lambda label, done, total: None)
    ended = train.run(DIGITS.replace(scheme_name="fedavg"), dataset=data).summary
    expected = tried.costs(8)
    assert expected["uplink_bytes"] == ended["uplink_bytes"]
    assert expected["downlink_bytes"] == ended["downlink_bytes"]
    assert expected["joules"] == pytest.approx(ended["device_joules"], rel=1e-9)
    assert expected["seconds"] == pytest.approx(ended["simulated_seconds"], rel=1e-9)


def test_a_candidate_that_begins_like_another_ends_as_if_it_had_begun_anew(tmp_path: Path) -> None:
    data, wanted = load("digits"), goal("accuracy=1")
    quick = {"large_model": "mlp_large", "large_epochs": 1, "scheme_distill_epochs": 1, "data_public": 0.3}
    given = DIGITS.replace(**quick, run_rounds=4)
    plain = Candidate("federated_transfer")
    changed = plain.with_change("updates in 8 bits", ("link_up", "delta,quantise:8"))
    found: list[probes.Probe] = []
    done: list[set[str]] = []
    for candidate, name, alike in ((plain, "plain", False), (changed, "anew", False), (changed, "alike", True)):
        labels: set[str] = set()
        tried = probes.probe(candidate, given, wanted, data, tmp_path / name)
        told = lambda label, done, total, labels=labels: labels.add(label)  # noqa: E731
        probes.advance(tried, 4, 4, data, told, found[0] if alike else None)
        found.append(tried)
        done.append(labels)
    assert len(found[0].accuracies) == 4
    assert found[2].accuracies == found[1].accuracies
    assert "the large model learns" in done[1]
    assert done[2] == {"rounds"}


def test_a_candidate_that_fails_on_its_way_is_told_and_the_others_go_on() -> None:
    told: list[str] = []
    wild = DIGITS.replace(scheme_lr=1e30, run_rounds=4, tiny_model="mlp", large_model="mlp_large")
    with pytest.raises(ConfigError, match="none of the schemes can be run"):
        plan.plan(wild, goal("accuracy=0.9"), schemes=["fedavg"], tell=told.append)
    found = plan.plan(
        wild.replace(data_public=0.3, large_epochs=1),
        goal("accuracy=0.5"),
        schemes=["fedavg", "pooled"],
        tell=told.append,
    )
    assert found.refused[0].candidate == Candidate("fedavg")
    assert "fedavg" not in {tried.candidate.scheme for tried, _ in found.tried}
    assert found.chosen[0].candidate.scheme == "pooled"
    assert sum(line.startswith("fedavg: as given: ") for line in told) == 2


def test_a_rate_that_falls_is_planned_for_like_any_other(tmp_path: Path) -> None:
    falling = DIGITS.replace(scheme_lr_schedule="step", scheme_lr_milestones="6", scheme_lr_warmup=4)
    tried = probes.probe(Candidate("fedavg"), falling, goal("accuracy=0.9"), load("digits"), tmp_path)
    probes.price(tried, load("digits"), lambda label, done, total: None)
    assert len(tried.prices) == 4


def test_a_run_that_is_to_stop_wants_a_target() -> None:
    with pytest.raises(ConfigError, match=r"set run\.target_accuracy"):
        train.run(DIGITS.replace(run_stop_at_target=True))


def test_single_changes_are_those_that_the_scheme_admits() -> None:
    data = load("digits")
    wanted = goal("accuracy=0.9")

    def labels(scheme: str) -> list[str]:
        config = DIGITS.replace(tiny_model="mlp", tiny_options={"hidden": [16, 8]}, large_model="mlp_large")
        tried = probes.probe(Candidate(scheme), config, wanted, data, Path("unused"))
        return [label for label, _ in changes(tried.candidate, tried.plant)]

    averaging, relay = labels("fedavg"), labels("split")
    assert "updates in 8 bits" in averaging
    assert not any("cut" in label or "activations" in label for label in averaging)
    assert "activations in 4 bits" in relay
    assert any("cut at" in label for label in relay)


def test_a_run_of_the_written_config_meets_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = tmp_path / "given.toml", tmp_path / "plan.toml"
    from midhaul import config as settings

    given.write_text(settings.to_toml(DIGITS), encoding="utf-8")
    arguments = ["plan", str(given), "--target", "accuracy=0.8", "--within", "bytes=2MB,joules=5", "--out", str(out)]
    assert cli.main([*arguments, "--schemes", "fedavg,transfer", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["meets"]
    expected = told["expected"]
    assert len(expected["accuracies"]) == 2
    assert expected["rounds"] == told["candidates"][0]["rounds"]
    assert f"Simulated again on 2 other draws of {expected['num_rows']} rows" in told["sentences"][-1]
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert told["page"] == str(out.with_suffix(".html"))
    for words in ("Accuracy against bytes on the link", ">target 80 %<", "1 fedavg", "limit", "Not tried"):
        assert words in page, words
    # transfer needs public rows, which this config has none of: refused by name, not dropped
    assert [one["scheme"] for one in told["refused"]] == ["transfer"]
    best = told["candidates"][0]
    assert best["scheme"] == "fedavg"
    assert best["bytes"] <= 2e6
    summary = train.run(settings.read(out)).summary
    assert summary["target"]["round"] is not None
    assert summary["target"]["joules"] <= 5.0
    assert summary["uplink_bytes"] + summary["downlink_bytes"] <= 2e6


def test_what_nothing_meets_gives_the_nearest_and_says_so(tmp_path: Path) -> None:
    wanted = goal("accuracy=0.2", "joules=0.000001")
    found = plan.plan(DIGITS.replace(run_rounds=4), wanted, schemes=["local"])
    assert not found.meets
    assert "over the 1.0 uJ of joules" in table.sentences(found)[0]
    assert "The limits don't allow a single round: the nearest, the first of local" in table.sentences(found)[1]
    plain = next(tried for tried, _ in found.tried if not tried.candidate.changes)
    between = (plain.costs(2)["joules"] + plain.costs(3)["joules"]) / 2
    some = replace(found, goal=goal("accuracy=1", f"joules={between}"))
    alone = replace(some, tried=((plain, plain.forecast(some.goal, 4)),))
    best = 100.0 * plain.curve.best(2)
    assert f"What the limits allow is {best:.1f} %, by local: as given in 2 rounds" in table.sentences(alone)[1]
    never = plan.plan(DIGITS.replace(run_rounds=4), goal("accuracy=1"), schemes=["fedavg"])
    assert never.chosen[1].rounds is None
    assert "in 4 rounds" in table.sentences(never)[0]


def test_a_run_ends_at_its_target_and_a_resumed_one_stays_there(tmp_path: Path) -> None:
    config = DIGITS.replace(run_target_accuracy=0.6, run_stop_at_target=True, run_rounds=50)
    ended = train.run(config, tmp_path / "run").summary
    assert ended["rounds"] == ended["target"]["round"] < 50
    again = train.run(config, tmp_path / "run", resume=True).summary
    assert again["model_sha256"] == ended["model_sha256"]
    assert again["rounds"] == ended["rounds"]
