"""A tiny and a large model answering together: gates, stages with costs worked out by hand, and whole runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from midhaul import config as settings
from midhaul import report, train
from midhaul.cli import main
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError, MidhaulError
from midhaul.inference import exits, gate
from midhaul.inference.answers import Answers
from midhaul.inference.cascade import cascade, goal
from midhaul.inference.held import hear
from midhaul.inference.stages import (
    NOBODY,
    Link,
    Stage,
    candidates,
    on_device,
    on_server,
    point,
    serve,
)
from midhaul.link import radio
from midhaul.models import slices
from midhaul.report.looks import GATE_STYLES
from midhaul.report.runs import GATES, read_run
from midhaul.server import predict

BOARD = profiles.get("stm32l4")
BLE = radio.get("ble")
QUICK = {
    "data_name": "digits",
    "data_partition": "dirichlet",
    "data_num_devices": 4,
    "data_alpha": 3.0,
    "data_max_rows": 60,
    "data_public": 0.2,
    "data_test": "device",
    "data_test_fraction": 0.5,
    "tiny_options": {"hidden": [6]},
    "large_model": "mlp_large",
    "large_epochs": 8,
    "large_options": {"hidden": 32, "depth": 1},
    "scheme_lr": 0.1,
    "scheme_distill_epochs": 8,
    "run_rounds": 2,
}


def run(folder: Path, scheme: str, **changes: Any) -> Path:
    train.run(Config().replace(**{**QUICK, "scheme_name": scheme, **changes}), folder)
    return folder


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "federated", "federated_transfer", link_loss=0.0, run_engine="loop")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(
        tmp_path_factory.mktemp("runs") / "split", "split", scheme_pretrain=True, link_loss=0.0, run_engine="loop"
    )


# Gates


def test_scores_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    assert gate.probability(logits) == pytest.approx([0.7, 1 / 3], abs=1e-6)
    assert gate.margin(logits) == pytest.approx([0.5, 0.0], abs=1e-6)
    nats = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1))
    assert gate.entropy(logits) == pytest.approx([1 - nats / np.log(3), 0.0], abs=1e-6)


@pytest.mark.parametrize("name", gate.GATES)
def test_no_score_is_below_0_or_comes_to_1(name: str) -> None:
    """However sure a model is: at threshold 0 all stays, at 1 nothing does."""
    logits = torch.tensor([[0.0, 0.0], [1e4, -1e4], [0.0, 200.0], [3.0, 3.0]])
    scores = gate.build(name, logits, np.array([True, True, True, False]))(logits)
    assert (scores >= 0.0).all()
    assert (scores < 1.0).all()


def test_the_learned_gate_finds_the_maximum_of_its_likelihood() -> None:
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(size=(300, 4)) * 3)
    keep = gate.probability(logits) + 0.3 * draw.normal(size=300) > 0.7
    found = gate.fit(logits, keep)
    z = (gate.features(logits) - found.centre) / found.spread

    def goodness(weights: np.ndarray, bias: float) -> float:
        value = z @ weights + bias
        return float((keep * value - np.logaddexp(0.0, value)).sum() - 0.5 * (weights @ weights + bias**2))

    best = goodness(found.weights, found.bias)
    for change in np.concatenate([np.eye(6), -np.eye(6)]) * 0.01:
        assert goodness(found.weights + change[:5], found.bias + change[5]) < best
    assert found(logits)[keep].mean() > found(logits)[~keep].mean() + 0.1


@pytest.mark.parametrize("alike", [True, False])
def test_the_learned_gate_stays_finite_where_all_rows_are_alike(alike: bool) -> None:
    logits = torch.randn((20, 3), generator=torch.Generator().manual_seed(0))
    scores = gate.fit(logits, np.full(20, alike))(logits)
    assert ((scores > 0.5) == alike).all()


# Stages


def stages(loss: float = 0.0, answer: str = "label", retries: int = 0) -> list[Stage]:
    """Four queries of two devices: the first model is right on two, the second on three."""
    first = torch.tensor([[3.0, 0.0], [0.2, 0.0], [0.0, 0.1], [0.0, 4.0]])
    second = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    link = Link(BLE, loss, retries, 7, 1e6)
    devices, x = np.array([0, 0, 1, 1]), torch.arange(8.0).reshape(4, 2)
    return [
        on_device(first, 1000, BOARD),
        on_server("x", x, devices, lambda rows: second[(rows[:, 0] / 2).long()], 500, link,
                  answer=answer, macs=100, board=BOARD),
    ]  # fmt: skip


Y = np.array([0, 1, 0, 1])


def test_costs_by_hand() -> None:
    """Header and CRC 36 bytes, a tensor 6 and 4 for each of its dimensions; x is 8 bytes, a label 1."""
    both = stages()
    scores = [gate.probability(both[0].logits)]
    got = serve(both, scores, [0.9])
    assert got.stage.tolist() == [0, 1, 1, 0]
    assert got.answer.tolist() == [0, 1, 0, 1]
    up, down = 36 + 6 + 8 + 8, 36 + 6 + 4 + 1
    assert got.up_bytes.tolist() == [0, up, up, 0]
    assert got.down_bytes.tolist() == [0, down, down, 0]
    tiny_s, more_s = BOARD.seconds(1000), BOARD.seconds(100)
    air_s = 2 * 15e-3 + 8 * (up + down) / 790_000
    assert got.seconds == pytest.approx([tiny_s, *[tiny_s + more_s + air_s + 500 / 1e6] * 2, tiny_s])
    joules = BOARD.joules(1100) + 8 * up / 790_000 * BLE.tx_w + 8 * down / 790_000 * BLE.rx_w
    assert got.joules == pytest.approx([BOARD.joules(1000), joules, joules, BOARD.joules(1000)])
    assert got.macs.tolist() == [1000, 1100, 1100, 1000]
    one = point(got, Y, (0.9,))
    assert (one.accuracy, one.stays, one.bytes, one.macs) == (1.0, 0.5, (up + down) / 2, 1050)
    assert one.p95_s == got.seconds.max()


def test_logits_come_down_if_they_are_wanted() -> None:
    assert stages(answer="logits")[1].down_bytes.tolist() == [36 + 6 + 8 + 8] * 4


@pytest.mark.parametrize(("threshold", "alone"), [(0.0, 0), (1.0, 1)])
def test_at_the_ends_one_model_answers_alone(threshold: float, alone: int) -> None:
    both = stages()
    for name in gate.GATES:
        scores = [gate.build(name, both[0].logits, np.array([True, False, False, True]))(both[0].logits)]
        got = serve(both, scores, [threshold])
        assert got.answer.tolist() == both[alone].logits.argmax(1).tolist()
        assert set(got.stage.tolist()) == {alone}


def test_a_lost_query_is_answered_by_the_stage_before() -> None:
    both = stages(loss=0.6)
    arrived = both[1].arrived
    assert 0 < arrived.sum() < 4, "the draws of this seed lose some"
    got = serve(both, [np.zeros(4)], [1.0])
    assert got.stage.tolist() == arrived.astype(int).tolist()
    assert (got.up_bytes > 0).all(), "what was sent in vain is counted"
    alone = serve(both[1:], [], [])
    assert alone.answer[~arrived].tolist() == [NOBODY] * int((~arrived).sum())
    assert point(alone, Y).accuracy <= arrived.mean()


def test_repeated_frames_are_counted() -> None:
    once, often = stages()[1], stages(loss=0.5, retries=30)[1]
    assert often.arrived.all()
    times = often.up_bytes / once.up_bytes
    assert (times == times.round()).all()
    assert times.max() > 1
    assert (often.seconds >= once.seconds).all()


def test_candidates_have_both_ends() -> None:
    tried = candidates([np.array([0.2, 0.5, 0.5])])
    assert tried == [(0.0,), (0.2,), (0.5,), (1.0,)]
    assert (0.0, 1.0) in candidates([np.array([0.2]), np.array([0.3])])


# Goals


@pytest.mark.parametrize(
    ("target", "budget", "words"),
    [
        ("accuracy=0.9", "bytes=3", "can't both be kept"),
        ("accuracy", "", "not of the form accuracy=0.95"),
        ("acuracy=0.9", "", "not of the form accuracy=0.95"),
        ("accuracy=high", "", "'high' is not a number"),
        ("accuracy=95", "", "must be from 0 to 1"),
        ("accuracy=large-x", "", "is not a number"),
        ("accuracy=nan", "", "must be from 0 to 1"),
        ("", "bites=3", "not of the form bytes=200; did you mean 'bytes'"),
        ("", "bytes=-3", "must be 0 or more"),
        ("", "bytes=inf", "must be 0 or more"),
    ],
)
def test_goals_that_cannot_be(target: str, budget: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        goal(target, budget)


# Whole runs


def test_the_cascade_of_a_run_is_tiny_and_large_at_its_ends(federated: Path) -> None:
    heard = hear(federated)
    made = Answers(heard)
    tiny, large = made.stages
    summary = json.loads((federated / "summary.json").read_text())
    module = heard.plant.kit.program.module
    assert torch.equal(tiny.logits, torch.cat([
        predict(module, exits.own(module, heard.server.tree), heard.x[torch.from_numpy(heard.device == device)])
        for device in range(4)
    ]))  # fmt: skip
    assert torch.equal(large.logits, predict(heard.plant.kit.server_model(), heard.server.large, heard.x))
    for name in gate.GATES:
        scores = [gate.build(name, tiny.logits, tiny.logits.argmax(1).numpy() == heard.y)(tiny.logits)]
        alone, offload = (serve(made.stages, scores, [end]) for end in (0.0, 1.0))
        assert alone.answer.tolist() == tiny.logits.argmax(1).tolist()
        assert offload.answer.tolist() == large.logits.argmax(1).tolist()
        assert point(alone, heard.y).accuracy == summary["accuracy"]
        assert point(offload, heard.y).accuracy == summary["large_accuracy"]
        assert alone.up_bytes.sum() == 0


def test_features_behind_any_cut_are_the_whole_model(federated: Path) -> None:
    heard = hear(federated)
    large = heard.plant.kit.server_model()
    for cut in slices.cut_points(large, (1, 8, 8)):
        made = Answers(hear(federated, ["inference.send=h", f"inference.cut={cut.name}"]))
        assert torch.equal(made.stages[-1].logits, predict(large, heard.server.large, heard.x)), cut.name
        assert made.stages[-1].up_bytes.tolist() == [36 + 6 + 8 + 4 * 32] * len(heard.y)


def test_a_split_runs_features_are_the_whole_split_model(split: Path) -> None:
    """Behind an exit at the cut, sending all is the split model as the run itself tested it."""
    heard = hear(split)
    made = Answers(heard)
    first, behind = made.stages
    front, rear = heard.plant.kit.program.module, heard.plant.kit.server_model()
    h = torch.cat([
        predict(front, exits.own(front, heard.server.tree), heard.x[torch.from_numpy(heard.device == device)])
        for device in range(4)
    ])  # fmt: skip
    assert torch.equal(heard.said, h)
    assert torch.equal(behind.logits, predict(rear, heard.server.large, h))
    sent = serve(made.stages, [gate.entropy(first.logits)], [1.0])
    assert point(sent, heard.y).accuracy == json.loads((split / "summary.json").read_text())["accuracy"]
    assert sent.answer.tolist() == behind.logits.argmax(1).tolist()


def test_an_early_exit_is_the_first_exit_or_the_full_model_at_its_ends(federated: Path) -> None:
    made = Answers(hear(federated, ["inference.send=none", "inference.exit=fc1"]))
    first, whole = made.stages
    scores = [gate.margin(first.logits)]
    early, late = (serve(made.stages, scores, [end]) for end in (0.0, 1.0))
    assert early.answer.tolist() == first.logits.argmax(1).tolist()
    assert late.answer.tolist() == made.heard.said.argmax(1).tolist() == whole.logits.argmax(1).tolist()
    assert (early.up_bytes + late.up_bytes).sum() == 0
    front, head, rest = 64 * 6, 6 * 10, 6 * 10
    assert set(early.macs.tolist()) == {front + head}
    assert set(late.macs.tolist()) == {front + head + rest}
    assert (late.joules > early.joules).all()


@pytest.mark.parametrize("scheme", ["transfer", "sparse_transfer", "fedrep"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_devices_answer_with_models_of_their_own(scheme: str, engine: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", scheme, run_engine=engine)
    heard = hear(folder)
    right = float((heard.said.argmax(1).numpy() == heard.y).mean())
    assert right == json.loads((folder / "summary.json").read_text())["accuracy"]


def test_a_cascade_keeps_its_goal_on_the_calibration_rows(federated: Path) -> None:
    large = cascade(federated).chosen.calibration
    asked = next(row for row in cascade(federated).rows if row.name == "large alone, x").calibration.accuracy
    assert large.accuracy >= asked - 0.005
    for limit in (30.0, 100.0, 200.0):
        chosen = cascade(federated, goal(budget=f"bytes={limit}")).chosen
        assert chosen.calibration.bytes <= limit
    assert cascade(federated, goal(budget="bytes=0")).chosen.test.stays == 1.0


def test_rows_to_calibrate_on_are_never_tested_on(federated: Path, tmp_path: Path) -> None:
    heard = hear(federated)
    assert 0 < heard.calibrates.sum() < len(heard.y)
    # Devices that are all tested on the same new rows put the same rows aside.
    shared = hear(run(tmp_path / "run", "fedper", data_test="shared", scheme_name="fedper"))
    each = [shared.calibrates[shared.device == device] for device in np.unique(shared.device)]
    assert len(each) == 4
    assert all((other == each[0]).all() for other in each)


def test_a_run_on_firmware_can_be_heard(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "fedper", run_engine="firmware", run_devices="host:*2")
    heard = hear(folder)
    right = float((heard.said.argmax(1).numpy() == heard.y).mean())
    assert right == pytest.approx(json.loads((folder / "summary.json").read_text())["accuracy"], abs=0.02)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x.flatten(1))
        return out


def test_a_module_of_ones_own_is_given_again(tmp_path: Path) -> None:
    config = Config().replace(**{**QUICK, "scheme_name": "federated_transfer"})
    train.run(config, tmp_path / "run", module=Own())
    assert cascade(tmp_path / "run", module=Own()).chosen.test.accuracy > 0.5
    with pytest.raises(MidhaulError, match="is to be given that module again"):
        cascade(tmp_path / "run")


# The report


def test_the_report_has_the_trade_off_of_a_run_that_was_asked(federated: Path, tmp_path: Path) -> None:
    found = cascade(federated)
    page = report.write([federated], tmp_path / "report.html").read_text()
    assert "<h2>Answering together</h2>" in page
    for over in ("bytes", "joules", "seconds"):
        assert f'id="s1-c0-{over}-' in page, over
    assert page == report.write([federated], tmp_path / "again.html").read_text()
    assert tuple(found.curves) == tuple(GATE_STYLES) == gate.GATES == GATES
    spots = read_run(federated).cascade
    assert spots is not None
    assert [(spot.name, spot.accuracy, spot.chosen) for spot in spots.spots] == [
        (row.name, row.test.accuracy, row is found.chosen) for row in found.rows
    ]


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("rows", 0, "accuracy"), 1.5, "'accuracy' is 1.5, not a number from 0 to 1"),
        (("rows", 0, "bytes"), -1.0, "'bytes' is -1.0, not a finite number"),
        (("rows", 0, "thresholds"), "0.5", "'thresholds' is '0.5', not a list"),
        (("curves", "psychic"), [], "unknown gate 'psychic'"),
        (("goal",), 3, "'goal' is 3, not a line of text"),
    ],
)
def test_a_damaged_cascade_is_refused(
    where: tuple[Any, ...], value: object, words: str, federated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(federated, folder)
    cascade(folder)
    whole = json.loads((folder / "cascade.json").read_text())
    inner = whole
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (folder / "cascade.json").write_text(json.dumps(whole))
    with pytest.raises(MidhaulError, match=re.escape(words)):
        report.write([folder], tmp_path / "report.html")


# The command line


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    lines = [line for line in said.err.splitlines() if line.startswith("midhaul: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_table_lines_up_and_comes_as_json(federated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cascade", str(federated), "--target", "accuracy=0.5"]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if not line.startswith("report:")]
    assert max(len(line) for line in lines) <= 80
    assert f"report: {federated}/report.html" in said
    assert sum(" *" in line for line in lines if line.startswith("by ")) == 1
    for name in ("tiny alone", "large alone, x", "large alone, h", *(f"by {each}" for each in gate.GATES)):
        assert name in said
    assert main(["cascade", str(federated), "--budget", "bytes=100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((federated / "cascade.json").read_text())
    assert [row["name"] for row in found["rows"] if row["chosen"]] != []
    assert set(found["curves"]) == set(gate.GATES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "accuracy=0.9999"), "no threshold comes to an accuracy of 0.9999"),
        (("--budget", "joules=1e-12"), "is less than the device needs by itself"),
        (("--target", "precision=1"), "is not of the form"),
        (("--set", "inference.gate=sure"), "inference.gate is 'sure', which is not one of its choices"),
        (("--set", "inference.cut=fc9", "--set", "inference.send=h"), "has no layer 'fc9' to cut behind"),
        (("--set", "inference.exit=fc9"), "has no layer 'fc9' to cut behind"),
        (("--set", "inference.send=none"), "set inference.exit"),
    ],
)
def test_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], words: str, federated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "cascade", federated, *arguments)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("fedavg", "has no large model to ask"),
        ("pooled", "devices hold no model that answers"),
        ("split_u", "isn't built for what split_u has on its devices (u) and its server (rear)"),
    ],
)
def test_runs_that_cannot_answer_together(
    scheme: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "cascade", run(tmp_path / "run", scheme))


def test_folders_that_hold_no_run(
    federated: Path, split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not the folder of a run" in refused(capsys, "cascade", tmp_path)
    assert "is not the folder of a run" in refused(capsys, "cascade", tmp_path / "none")
    damaged = tmp_path / "damaged"
    (damaged / "model").mkdir(parents=True)
    (damaged / "config.toml").write_bytes((federated / "config.toml").read_bytes())
    (damaged / "model" / "tiny.safetensors").write_bytes(b"no tensors")
    assert "can't be read; run the config anew" in refused(capsys, "cascade", damaged)
    (damaged / "model" / "tiny.safetensors").write_bytes((split / "model" / "tiny.safetensors").read_bytes())
    assert "is to be given that module again" in refused(capsys, "cascade", damaged)


def test_a_split_run_without_public_data_has_no_exit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run", "split", data_public=0.0)
    assert "an early exit is learned on the server's public data" in refused(capsys, "cascade", folder)


def test_what_is_set_for_inference_changes_no_run(tmp_path: Path) -> None:
    one = Config().replace(**{**QUICK, "scheme_name": "transfer"})
    other = one.replace(inference_gate="margin", inference_calibrate=0.3)
    sums = [train.run(each).summary["model_sha256"] for each in (one, other)]
    assert sums[0] == sums[1]
    assert settings.to_table(other)["inference"]["gate"] == "margin"
    assert dataclasses.replace(other, inference=one.inference) == one


def test_each_device_pays_what_its_own_board_and_radio_cost(tmp_path: Path) -> None:
    made = Answers(hear(run(tmp_path / "run", "federated_transfer", fleet_board="stm32l4,nrf5340")))
    tiny, heard = made.stages[0], made.heard
    for group in heard.plant.kit.groups:
        own = np.isin(heard.device, group.devices)
        assert own.any()
        macs = 64 * 6 + 6 * 10
        assert tiny.joules[own] == pytest.approx(np.full(own.sum(), group.board.joules(macs)))
    assert len(np.unique(tiny.joules)) == 2
    assert torch.equal(tiny.logits, heard.said)
