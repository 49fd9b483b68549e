"""A plan: what it is told, what it expects of a curve, what it may look at, and that a run keeps to what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midhaul import cli, plan, train
from midhaul.config import Config
from midhaul.curves import curve
from midhaul.data import Federation, federate, load
from midhaul.errors import ConfigError
from midhaul.goals import Limit, goal
from midhaul.plan import confirm, rows, search, table
from midhaul.plan import probe as probes
from midhaul.plan.candidates import Candidate, changes
from midhaul.plan.expected import Confirmed, Draws
from midhaul.plan.mixes import for_others
from midhaul.plan.probe import Forecast
from midhaul.plan.twins import twin

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
    marked: list[np.ndarray] = []
    seeds: set[int] = set()
    for draw in (1, 2):
        config, left = rows.for_confirming(data, federation, DIGITS, draw)
        assert config.data.test == "held_out"
        assert config.run.seed not in {DIGITS.run.seed, *seeds}
        seeds.add(config.run.seed)
        assert len(left) == len(data) - len(federation.test[0])
        assert left.held_out.sum() == round(0.1 * len(left))  # half of the fifth that is put aside to choose on
        marked.append(left.held_out)
        assert not {row.tobytes() for row in left.x} & tested
    assert not (marked[0] & marked[1]).any()


def test_devices_of_a_made_partition_test_on_half_as_many_of_their_own_rows() -> None:
    data, own = load("digits"), DIGITS.replace(data_test="device", data_max_rows=100)
    federation = federate(data, partition="iid", num_devices=4, test="device", max_rows=100, seed=0)
    config, left = rows.for_confirming(data, federation, own, 1)
    asked = config.data
    again = federate(left, partition="iid", num_devices=4, test=asked.test, test_fraction=asked.test_fraction,
                     max_rows=asked.max_rows, seed=config.run.seed)  # fmt: skip
    assert again.own_test
    assert [len(each) for each in federation.train] == [80] * 4
    assert all(79 <= len(each) <= 81 for each in again.train)
    assert all(8 <= len(each) <= 10 for each in again.test)  # a tenth of 89 in place of a fifth of 100, by class
    made = twin(federation, own, 1, 4)
    assert made is not None
    assert [len(part) for part in made.federation.train] == [70] * 4
    assert [len(part) for part in made.federation.test] == [10] * 4
    for rest, aside, whole in zip(made.federation.train, made.federation.test, federation.train, strict=True):
        assert sorted([*rest, *aside]) == whole.tolist()


def test_new_devices_adapt_on_as_many_rows_where_half_are_put_aside() -> None:
    data, adapting = load("digits"), DIGITS.replace(data_adapt=0.1)
    federation = federate(data, partition="iid", num_devices=4, test="shared", adapt=0.1, seed=0)
    config, left = rows.for_confirming(data, federation, adapting, 1)
    again = federate(left, partition="iid", num_devices=4, test="held_out", adapt=config.data.adapt, seed=0)
    # 36 of the run's 359; a fifth of a tenth of the 1,438 rows that are left
    assert [len(part) for part in federation.adapt] == [36]
    assert 27 <= sum(map(len, again.adapt)) <= 31
    assert twin(federation, adapting, 1, 4) is None


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
    changed, left = rows.for_confirming(data, federation, config, 1)
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

    others: list[int] = []
    for draw in (1, 2):
        _, left = rows.for_confirming(data, federation, config, draw)
        others += np.unique(left.device[left.held_out]).tolist()
    assert len(set(others)) == len(others) == 2
    assert not set(others) & aside
    # The run itself without one of its people, whose rows are tested; nobody of the run's test, each in turn.
    seen = set()
    for draw in range(1, 9):
        made = twin(federation, config, draw, 8)
        assert made is not None
        assert not made.is_whole
        (tested,) = {int(one) for part in made.federation.test for one in data.device[part]}
        assert made.federation.num_devices == 7
        assert tested not in {int(data.device[part[0]]) for part in made.federation.train}
        seen.add(tested)
    assert seen == set(range(8))


def test_the_run_itself_is_tested_on_rows_that_nobody_has_where_there_are_enough() -> None:
    data = load("digits")

    def of(max_rows: int) -> tuple[Federation, Config]:
        config = DIGITS.replace(data_max_rows=max_rows)
        return federate(data, partition="iid", num_devices=4, test="shared", max_rows=max_rows, seed=0), config

    federation, config = of(100)
    made = twin(federation, config, 1, 4)
    assert made is not None
    assert made.is_whole
    assert made.federation.train is federation.train
    (tested,) = made.federation.test
    assert len(tested) == len(data) - 400 - len(federation.test[0])
    assert not np.isin(tested, np.concatenate([*federation.train, *federation.test])).any()
    # Else a tenth of each device's in turn: none twice until all had their turn.
    federation, config = of(0)
    seen: list[int] = []
    for draw in range(1, 5):
        made = twin(federation, config, draw, 4)
        assert made is not None
        assert not made.is_whole
        (tested,) = made.federation.test
        for kept, own in zip(made.federation.train, federation.train, strict=True):
            assert len(kept) == len(own) - round(0.1 * len(own))
            assert sorted([*kept, *tested[np.isin(tested, own)]]) == own.tolist()
        seen += tested.tolist()
    assert len(set(seen)) == len(seen)


def test_a_device_that_tests_itself_keeps_its_rows_where_it_has_others_that_it_was_not_dealt() -> None:
    data = load("digits")
    device = (np.arange(len(data)) >= 100).astype(np.int64)  # 100 rows of one person, 1,697 of the other
    data = replace(data, device=device, device_names=("few", "many"), key="person")
    config = DIGITS.replace(data_partition="natural", data_test="device", data_num_devices=0, data_max_rows=100)
    federation = federate(data, partition="natural", test="device", max_rows=100, seed=0)
    made = twin(federation, config, 1, 4)
    assert made is not None
    assert not made.is_whole
    assert [len(part) for part in made.federation.test] == [10, 10]
    assert [len(part) for part in made.federation.train] == [70, 80]
    for part, person in zip(made.federation.test, (0, 1), strict=True):
        assert (device[part] == person).all()
        assert not np.isin(part, federation.test[person]).any()


def test_what_a_run_is_expected_to_come_to() -> None:
    """Two draws, 0.7 and 0.9: s^2 = 0.02, of which 1.5 parts, and 0.16 / 400 of the run's rows: 0.03 + 0.0004."""
    assert Confirmed((0.8,), 1600, 3, 400).error == pytest.approx(0.0005**0.5)  # one draw: of rows alone
    found = Confirmed((0.7, 0.9), 100, 3, 400)
    assert found.mean == pytest.approx(0.8)
    assert found.error == pytest.approx(0.0304**0.5)
    assert found.sure == pytest.approx(0.7)  # 0.1 x sqrt(2) / sqrt(2) below the mean
    low, high = found.interval()
    assert (low, high) == (0.0, 1.0)  # two draws tell next to nothing
    # The run itself: only rows differ. 1.645 errors of 0.16 x (1/400 + 1/1600) = 0.0005
    itself = Confirmed((0.8,), 1600, 3, 400, is_whole=True)
    assert itself.interval() == pytest.approx((0.8 - 1.6449 * 0.0005**0.5, 0.8 + 1.6449 * 0.0005**0.5), abs=1e-5)
    assert itself.sure == pytest.approx(0.8 - 0.0001**0.5)
    unsteady = replace(itself, others=Confirmed((0.5, 0.8), 1600, 3, 400))
    assert unsteady.mean == itself.mean
    assert unsteady.sure == pytest.approx(0.5)
    draws = Draws(((0.6, 0.7, 0.9),), 10_000, 10_000, True)
    assert draws.first(0.69) == 2  # 0.7 less sqrt(0.21 / 10,000) = 0.0046
    assert draws.first(0.699) == 3
    assert draws.first(0.8) == 3
    assert draws.first(0.95) is None


def test_intervals_hold_as_often_as_they_say() -> None:
    """Runs that differ by 3 points, four draws of 300 rows, a test of 1,000: nine of ten lie where it was said."""
    mixed, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        each = np.clip(mixed.normal(0.7, 0.03, 5), 0.0, 1.0)
        draws = tuple(float(mixed.binomial(300, p)) / 300 for p in each[:4])
        low, high = Confirmed(draws, 300, 1, 1000).interval()
        inside += low <= mixed.binomial(1000, each[4]) / 1000 <= high
    assert 0.88 <= inside / 1000 <= 0.96


def test_a_choice_that_other_rows_do_not_bear_out_falls_and_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def told(tried: probes.Probe, wanted: float, rounds: int, *_: object) -> Draws:
        name = tried.candidate.label
        asked.append(name)
        level = {"half the cohort": 0.3, "as given": 0.95}.get(name, 0.45)
        return Draws(((level,) * rounds,) * 2, 1000, 1000)

    cheaper = [("half the cohort", (("fleet_cohort", 0.5),)), ("4 x the epochs", (("scheme_epochs", 4),))]
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: cheaper)
    monkeypatch.setattr("midhaul.plan.search.confirm", told)
    found = plan.plan(DIGITS.replace(run_rounds=4), goal("accuracy=0.5", "", "bytes"), schemes=["fedavg"], draws=2)
    assert found.chosen[0].candidate.label == "as given" == asked[-1]
    assert found.confirmed is not None
    assert found.meets
    assert found.chosen[1].rounds == 1
    fell = [tried.candidate.label for tried, _ in found.fell]
    assert sorted(fell) == sorted(asked[:-1])
    assert "half the cohort" in fell
    said = " ".join(table.sentences(found))
    assert "Tried there as well, and not chosen: " in said
    assert "fedavg: half the cohort (30.0 %, or" in said
    assert [row[0] for row in table.rows(found)].count("x") == len(fell)
    # None is borne out: the one that is nearest by the mean less a standard error, and it is said.
    never = plan.plan(DIGITS.replace(run_rounds=4), goal("accuracy=0.99", "", "bytes"), schemes=["fedavg"], draws=2)
    assert never.chosen[0].candidate.label == "as given"
    assert not never.meets
    said = " ".join(table.sentences(never))
    assert "candidates tried on other rows surely reaches 99 % accuracy; fedavg: as given comes nearest" in said
    assert "That isn't surely the target: less a standard error it is 95.0 %" in said


def test_a_choice_that_cannot_be_tried_on_other_rows_leaves_the_next_a_folder_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = confirm._one

    def one(tried: probes.Probe, *rest: Any) -> probes.Probe:
        found = kept(tried, *rest)
        if tried.candidate.label != "as given":
            raise ConfigError("the model is no longer finite")
        return found

    cheaper = [("half the cohort", (("fleet_cohort", 0.5),))]
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: cheaper)
    monkeypatch.setattr("midhaul.plan.confirm._one", one)
    found = plan.plan(DIGITS.replace(run_rounds=4), goal("accuracy=0.3", "", "bytes"), schemes=["fedavg"], draws=1)
    assert [one.candidate.label for one in found.refused] == ["half the cohort"]
    assert found.chosen[0].candidate.label == "as given"
    assert found.confirmed is not None


def test_a_draw_that_was_right_on_all_of_its_rows_stays_there() -> None:
    found = probes.probe(Candidate("fedavg"), DIGITS, goal("accuracy=0.9"), load("digits"), Path("unused"))
    early = replace(found, accuracies=[0.5, 1.0])
    late = replace(found, accuracies=[0.2, 0.4, 0.3, 0.8])
    draws = confirm._draws([early, late], found, 4)
    assert draws.best == ((0.5, 1.0, 1.0, 1.0), (0.2, 0.4, 0.4, 0.8))
    assert draws.at(4).mean == pytest.approx(0.9)


def test_boards_dealt_by_count_are_dealt_to_fewer_devices_in_proportion() -> None:
    data = load("digits")
    people = np.arange(len(data)) % 12
    named = tuple(f"person {number}" for number in range(12))
    data = replace(data, device=people.astype(np.int64), device_names=named, held_out=people >= 8, key="person")
    config = DIGITS.replace(
        data_partition="natural", data_test="held_out", data_num_devices=0, fleet_board="stm32l4*6,nrf52840*2"
    )
    federation = federate(data, partition="natural", test="held_out", seed=0)
    left = rows.for_choosing(data, federation, config)
    # Six people are left: one of four of them has the other board, and of eight the last two had.
    assert dict(for_others(None, config, 8, left)) == {"fleet_board": "stm32l4*4,nrf52840*2"}
    assert for_others(None, config, 8, data) == ()
    assert for_others(None, config.replace(fleet_board="stm32l4"), 8, left) == ()


def test_a_plan_for_boards_dealt_by_count_where_people_are_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits")
    people = np.arange(len(data)) % 12
    named = tuple(f"person {number}" for number in range(12))
    data = replace(data, device=people.astype(np.int64), device_names=named, held_out=people >= 8, key="person")
    monkeypatch.setattr("midhaul.plan.search.load", lambda name, **options: data)
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: [])
    given = DIGITS.replace(
        data_partition="natural", data_test="held_out", data_num_devices=0, fleet_board="stm32l4*6,nrf52840*2",
        run_rounds=4,
    )  # fmt: skip
    found = plan.plan(given, goal("accuracy=0.3"), schemes=["fedavg"], draws=2)
    assert not found.refused
    assert found.config.fleet.board == "stm32l4*6,nrf52840*2"
    assert found.confirmed is not None
    assert len(found.confirmed.accuracies) == 2


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
    arguments = [
        "plan",
        str(given),
        "--target",
        "accuracy=0.8",
        "--within",
        "bytes=2MB,joules=5",
        "--out",
        str(out),
        "--draws",
        "2",
    ]
    assert cli.main([*arguments, "--schemes", "fedavg,transfer", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["meets"]
    expected = told["expected"]
    assert len(expected["accuracies"]) == 2
    assert expected["rounds"] == told["candidates"][0]["rounds"]
    assert len(expected["others"]["accuracies"]) == 2
    assert any(f"{expected['num_rows']} rows" in line for line in told["sentences"])
    low, high = expected["interval"]
    assert low < expected["mean"] < high
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
    assert "the 1.0 uJ that were given" in table.sentences(found)[0]
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
