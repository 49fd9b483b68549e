"""A run that is planned again: what it looks at, what it changes, that it keeps its limits and can be resumed."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from power_cut import cut_and_resumed

from midhaul import plan, plant, replan, report, train
from midhaul.changes import Change
from midhaul.config import Config
from midhaul.errors import CheckpointError, ConfigError
from midhaul.goals import COSTS, Limit, goal
from midhaul.replan import Replan, Setting
from midhaul.report import forecasts, replans
from midhaul.report.runs import Round
from midhaul.runtime.ledger import Ledger

SMALL = Config().replace(
    data_name="digits", data_partition="iid", data_num_devices=8, data_test="shared", data_max_rows=60,
    fleet_board="stm32l4,nrf52840", fleet_cohort=0.5, tiny_model="mlp", tiny_options={"hidden": [16]},
    scheme_lr=0.1, run_rounds=8, link_radio="cat_m1", link_up="delta,quantise:8",
)  # fmt: skip
LAW = {"top": 0.9, "fall": 0.5, "speed": 1.0}


def within(text: str, **changes: object) -> Config:
    return SMALL.replace(run_within=text, run_replan_every=1, **changes)


def told_by(config: Config, out: Path | None = None) -> tuple[train.Summary, list[str]]:
    lines: list[str] = []
    summary = train.run(config, out, tell=lines.append).summary
    return summary, [line for line in lines if re.match(r"round \d+: ", line)]


def test_a_run_within_its_limits_is_the_run_that_it_was(tmp_path: Path) -> None:
    plain, (watched, lines) = train.run(SMALL).summary, told_by(within("joules=1000,hours=9"), tmp_path / "run")
    assert watched["model_sha256"] == plain["model_sha256"]
    assert watched["device_joules"] == plain["device_joules"]
    assert watched["replans"] == []
    assert lines == []
    assert "replans" not in plain
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["replanned"] for line in metrics] == [None] * 8


@pytest.mark.parametrize(
    ("cost", "share", "said"),
    [
        ("joules", 0.8, "of all devices"),
        ("joules", 0.6, "devices a round in place of 4"),
        ("uplink_bytes", 0.7, "bits"),
    ],
)
def test_a_run_that_would_spend_too_much_is_planned_again_and_does_not(
    cost: str, share: float, said: str, tmp_path: Path
) -> None:
    name = {"joules": "device_joules"}.get(cost, cost)
    most = share * train.run(SMALL).summary[name]
    ended, lines = told_by(within(f"{cost}={most:.9g}"), tmp_path / "run")
    assert 0.7 * most <= ended[name] <= most
    assert ended["rounds"] == 8
    assert ended["replans"][0]["round"] == 2
    assert ended["replans"][0]["why"] == lines[0]
    assert said in " ".join(lines)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[1]["replanned"] == lines[0]


def test_a_change_says_what_ran_short_why_and_what_the_run_comes_to(tmp_path: Path) -> None:
    """Three of eight batteries end early on, and each device that is left is asked as often as before."""
    most = 0.6 * train.run(SMALL).summary["device_joules"]
    free = train.run(SMALL.replace(fleet_cohort=1.0, run_rounds=2)).summary
    each = max(sum(own) for own in zip(*free["spent"]["joules"].values(), strict=True))
    config = within(f"joules={most:.9g},hours=1", fleet_battery_j=1.1 * each, fleet_battery_spread=0.7, run_rounds=9)
    ended, _ = told_by(config.replace(run_expected={"joules": most / 90, "rounds": 5}), tmp_path / "run")
    change, *_ = ended["replans"]
    assert change["short"] == "joules"
    assert change["was"]["cohort"] == 4 > change["setting"]["cohort"]
    assert change["before"]["joules"] > most >= change["after"]["joules"]
    gone = [device for device, at in enumerate(ended["spent"]["gone"]) if at is not None and at <= change["round"]]
    assert change["gone"] == gone
    assert gone
    assert f"left with an empty battery: {', '.join(map(str, gone))}" in change["because"][0]
    assert "were expected" in change["because"][1]
    assert change["because"][-1] == "9 rounds are needed where 5 were expected"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["forecast"] is None  # nobody looks after the first round, in which models travel
    at = lines[change["round"] - 1]
    assert at["forecast"] == change["after"]
    page = report.write([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Held to its limits" in page
    assert html.escape(change["because"][0]) in page
    assert "What was left of each limit" in page
    assert f"round {change['round']}: joules short" in report.table([tmp_path / "run"])


def test_what_the_picture_shows_of_a_forecast_is_a_step_where_there_was_a_new_plan() -> None:
    told = Setting(2, 0.0, (), ())
    costs = dict.fromkeys(COSTS, 0.0)
    plain = Round(0, None, 0, 0, 0.0)
    rounds = [replace(plain, round=n, device_joules=float(n), simulated_seconds=0.0) for n in (1, 2, 3)]
    rounds[1:] = [
        replace(rounds[1], forecast={**costs, "joules": 5.0}),
        replace(rounds[2], forecast={**costs, "joules": 6.0}),
    ]
    change = Change(2, told, told, "", True, "joules", (), (), {**costs, "joules": 9.0}, {**costs, "joules": 5.0})
    assert forecasts.steps(rounds, {2: change}, "joules") == ([2, 2, 3], [9.0, 5.0, 6.0])
    assert forecasts.picture(rounds, (), [change], "x") == ""
    assert "energy" in forecasts.picture(rounds, (Limit("joules", 6.0),), [change], "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"short": "money"}, "'replans'"), ({"because": ["a\nb"]}, "'replans'"), ({"before": {}}, "'replans'"),
     ({"was": {"cohort": -1, "deadline_s": 0, "bits": []}}, "'replans'")],
)  # fmt: skip
def test_a_new_plan_that_no_run_writes_is_refused_by_the_report(changes: dict[str, object], words: str) -> None:
    told = {"cohort": 1, "deadline_s": 0.0, "bits": [8]}
    costs = dict.fromkeys(COSTS, 1.0)
    table = {"round": 2, "was": told, "setting": told, "kept": True, "short": "joules", "because": ["so"], "gone": []}
    table |= {"before": costs, "after": costs}
    assert replans.read(table, "here") is not None
    assert replans.read({"round": 2, "why": "of an older version"}, "here") is None
    with pytest.raises(CheckpointError, match=words):
        replans.read({**table, **changes}, "here")


def test_a_resumed_run_was_planned_again_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    most = 0.5 * train.run(SMALL).summary["device_joules"]
    config = within(f"joules={most:.9g}", run_checkpoint_every=3, fleet_selection="frugal")
    whole = train.run(config, tmp_path / "whole").summary
    resumed = cut_and_resumed(config, tmp_path / "cut", after=5).summary
    assert whole["replans"]
    for name in ("model_sha256", "device_joules", "simulated_seconds", "uplink_bytes", "replans"):
        assert resumed[name] == whole[name], name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_what_nothing_keeps_is_said_with_the_nearest_and_the_run_goes_on_or_ends() -> None:
    most = 0.3 * train.run(SMALL).summary["device_joules"]
    hopeless = within(f"joules={most / 3:.9g}")
    on, lines = told_by(hopeless)
    assert on["rounds"] == 8
    assert "which is the nearest" in lines[0]
    assert on["replans"][0]["kept"] is False
    ended, lines = told_by(hopeless.replace(run_when_over="stop"))
    assert ended["rounds"] == 2
    assert lines[-1].endswith("the run ends here")


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_is_to_stop_goes_on_by_the_nearest_plan_for_the_rounds_that_its_limits_allow(
    every: int, tmp_path: Path
) -> None:
    """Bits, cohorts and all don't keep 40 rounds within what 2.6 of them take, but more than 2.6."""
    plain = [train.run(SMALL.replace(run_rounds=num)).summary["uplink_bytes"] for num in (2, 3)]
    most = plain[0] + 0.6 * (plain[1] - plain[0])
    short = within(f"uplink_bytes={most:.9g}", run_when_over="stop", run_rounds=40, run_evaluate_every=every)
    ended, lines = told_by(short, tmp_path / "whole")
    first, *_ = ended["replans"]
    assert (first["round"], first["kept"]) == (2, True)
    assert 2 < ended["rounds"] < 40
    assert ended["rounds"] == ended["replans"][-1]["last"] <= first["last"]
    assert f"round {first['last']} is the last: the limits allow {first['last'] - 2} of 38 more" in lines[0]
    assert ended["uplink_bytes"] <= most
    metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["round"] == ended["rounds"]
    assert metrics[-1]["accuracy"] == ended["accuracy"]
    assert f"round {first['last']} is the last" in report.table([tmp_path / "whole"]).replace("\n  ", " ")
    resumed = cut_and_resumed(short, tmp_path / "cut", after=3).summary
    for name in ("model_sha256", "rounds", "uplink_bytes", "replans"):
        assert resumed[name] == ended[name], name
    assert train.run(short, tmp_path / "whole", resume=True).summary["rounds"] == ended["rounds"]


def test_a_run_that_ends_before_its_time_is_tested_all_the_same(tmp_path: Path) -> None:
    ended, _ = told_by(within("joules=1e-6", run_when_over="stop", run_evaluate_every=5), tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["round"] == ended["rounds"] == 2
    assert last["accuracy"] == ended["accuracy"] > 0.0


def test_who_is_left_of_the_fleet_is_told() -> None:
    """Six of eight batteries last for about two rounds; the run was to have all eight in each."""
    free = train.run(SMALL.replace(fleet_cohort=1.0, run_rounds=2)).summary
    most = max(sum(each) for each in zip(*free["spent"]["joules"].values(), strict=True))
    config = within("uplink_bytes=9000", fleet_cohort=1.0, fleet_battery_j=1.2 * most, fleet_battery_spread=0.4)
    ended, lines = told_by(config)
    assert any(at is not None for at in ended["spent"]["gone"])
    assert any("of 8 devices are left" in line for line in lines)


def watching(config: Config) -> Replan:
    found = Replan(plant.build(config))
    found.begin(Ledger())
    return found


def test_the_law_is_moved_to_what_was_measured() -> None:
    """0.9 - 0.5 / n says 0.65 at round 2; 0.55 is 0.1 less, so that 0.7 = 0.8 - 0.5 / n is reached in round 5."""
    config = within("joules=9", run_expected=LAW, run_target_accuracy=0.7, run_stop_at_target=True, run_rounds=40)
    found = watching(config)
    found.accuracies, found.paces = [None, 0.55], [1.0, 1.0]
    law = found._law()
    assert law is not None
    assert law.top == pytest.approx(0.8)
    assert found._rounds_to_go(38) == (3, True)
    found.pace = 0.5  # a round does half of what those before did
    assert found._rounds_to_go(38) == (6, True)
    found.accuracies = [0.0, 0.1]  # 0.55 less: the top falls to below the target, which isn't reached
    assert found._rounds_to_go(38) == (38, False)
    law = [0.8 - 0.6 / n for n in range(1, 11)]
    found.accuracies, found.paces, found.pace = list(law), [1.0] * 10, 1.0
    own = found._law()
    assert own is not None  # ten of its own count, and not what was expected
    assert own.top == pytest.approx(0.8, abs=0.01)


def test_what_a_round_costs_leaves_the_first_out() -> None:
    found = watching(within("joules=9"))
    spent = dict.fromkeys(found.costs[0], 0.0)
    found.costs = [{**spent, "joules": value} for value in (0.0, 5.0, 6.0, 7.5)]
    assert found._each()["joules"] == pytest.approx(1.25)  # from 5 J to 7.5 J in two rounds
    assert found._excess(found._each(), 2) == (pytest.approx(10.0 / 9.0 - 1.0), "joules")


def test_costs_that_are_off_but_within_the_limits_are_told_once() -> None:
    config = within("joules=1000", run_expected={"joules": 1e-6, "rounds": 8})
    ended, lines = told_by(config)
    assert ended["replans"] == []
    assert len(lines) == 1
    assert "where 1.0 uJ were expected" in lines[0]


def test_a_checkpoint_of_another_run_is_refused() -> None:
    found = watching(within("joules=9"))
    found.setting = Setting(2, 0.0, (4,) * 8)
    again = watching(within("joules=9"))
    again.restore(found.dump())
    assert again.costs == found.costs
    with pytest.raises(CheckpointError, match="planned again"):
        again.restore({"costs": [{}]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_replan_every": 1}, r"set it, for example 'joules=20,hours=6'"),
        ({"run_within": "joule=3"}, r"run\.within 'joule=3' is no limit"),
        ({"run_within": "joules=3,joules=4"}, "limits the same cost twice"),
        ({"run_expected": {"tops": 0.5}}, r"run\.expected has 'tops'.*top"),
        ({"run_expected": {"top": "high"}}, r"run\.expected\.top must be a number"),
        ({"run_expected": {"speed": 0.0}}, r"run\.expected\.speed is 0\.0.*above 0"),
        ({"run_within": "joules=3", "run_replan_every": 1, "fleet_mode": "fedbuff"}, "no cohorts to plan again"),
    ],
)
def test_what_cannot_be_planned_again_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replan.check(Config().replace(**changes))


def test_a_plan_writes_what_its_run_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: [])
    given = SMALL.replace(fleet_board="stm32l4", fleet_cohort=1.0)
    found = plan.plan(given, goal("accuracy=0.2", "joules=50,bytes=3MB"), schemes=["fedavg"])
    run = found.config.run
    assert run.within == "joules=50,bytes=3000000"
    assert run.replan_every == 1
    assert run.expected["rounds"] == found.chosen[1].rounds
    first, more = (train.run(given.replace(scheme_name="fedavg", run_rounds=rounds)).summary for rounds in (1, 2))
    assert run.expected["joules"] == pytest.approx(more["device_joules"] - first["device_joules"], rel=0.02)
    ended, lines = told_by(found.config)
    assert ended["replans"] == []
    assert lines == []


@pytest.mark.parametrize("scheme", ["heterofl", "fedavg"])
def test_a_plan_lets_its_run_deal_out_models_anew_where_that_is_asked_for_and_can_be(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: [])
    monkeypatch.setattr("midhaul.plan.search.recipes", lambda *rest: [])
    lines: list[str] = []
    asked = SMALL.replace(fleet_cohort=1.0, run_rounds=4, run_replan_models=True)
    found = plan.plan(asked, goal("accuracy=0.2", "joules=50"), schemes=[scheme], tell=lines.append)
    assert found.config.run.replan_models == (scheme == "heterofl")
    assert any("run.replan_models is left out of the config" in line for line in lines) == (scheme == "fedavg")
    Replan(plant.build(found.config))  # which refuses what can't be
    without = plan.plan(asked, goal("accuracy=0.2"), schemes=[scheme])
    assert not without.config.run.replan_models
    replan.check(without.config)


def test_a_plan_of_rounds_without_cohorts_writes_limits_that_its_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: [])
    given = SMALL.replace(fleet_mode="fedbuff", fleet_cohort=1.0, link_up="none", run_rounds=4)
    found = plan.plan(given, goal("accuracy=0.15", "joules=50"), schemes=["fedavg"])
    assert found.config.run.within == "joules=50"
    replan.check(found.config)
