"""A run that is stopped goes on to the same bits; a damaged checkpoint is found and the one before it used."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from midhaul import budget, checkpoint, plant, train
from midhaul.checkpoint import Checkpoint
from midhaul.cli import main
from midhaul.config import Config
from midhaul.errors import CheckpointError, ConfigError, EngineError
from midhaul.message import Op
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.native import library
from midhaul.schemes import SCHEMES
from midhaul.server import Server

QUICK = {
    "data_num_devices": 6, "data_partition": "dirichlet", "data_test": "shared", "data_public": 0.2,
    "data_max_rows": 60,
    "tiny_options": {"hidden": [16]}, "large_model": "mlp_large", "large_options": {"hidden": 32, "depth": 1},
    "large_epochs": 2, "scheme_distill_epochs": 2, "scheme_lr": 0.1, "scheme_momentum": 0.5, "run_rounds": 4,
    "fleet_cohort": 0.7, "link_loss": 0.1, "link_retries": 1,
}  # fmt: skip


def config(name: str = "fedavg", **changes: object) -> Config:
    return Config().replace(**{**QUICK, "scheme_name": name, **changes})


class Stopped(Exception):
    """Raised by the test in place of a power cut."""


def stop_after(number: int) -> object:
    def progress(label: str, done: int, total: int) -> None:
        if label == "rounds" and done == number:
            raise Stopped

    return progress


RESUMED = ["local", "pooled", "fedadam", "transfer", "fedrep", "split", "federated_split_v1", "fedgkt"]


# A cluster and gateways are processes of their own: resuming there is in tests/contract, in test_cluster.py,
# test_federation.py and test_serve.py.
ELSEWHERE = ("cluster", "gateways")
ENGINES = [(name, engine) for name in RESUMED for engine in SCHEMES[name].engines if engine not in ELSEWHERE]


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_resumed_equals_uninterrupted_to_the_bit(name: str, engine: str, tmp_path: Path) -> None:
    settings = config(name, run_engine=engine, large_optimizer="adam", run_devices="host:*3")
    if name == "pooled":
        settings = settings.replace(fleet_cohort=1.0)
    whole = train.run(settings, tmp_path / "whole").summary
    for number in (1, 2):
        with pytest.raises(Stopped):
            train.run(settings, tmp_path / "cut", resume=number > 1, progress=stop_after(number))  # type: ignore[arg-type]
    resumed = train.run(settings, tmp_path / "cut", resume=True).summary
    # A device behind an address is connected anew each time, and measures from then on.
    timing = ("wall_seconds", "device_updates_per_s", "device_events", "device_stats")
    assert {k: v for k, v in resumed.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}
    assert {event["what"] for event in resumed["device_events"]} == ({"connected"} if engine == "firmware" else set())
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "whole" / "model").iterdir():
        assert (tmp_path / "cut" / "model" / path.name).read_bytes() == path.read_bytes()


def test_a_run_says_what_computed_its_ops(tmp_path: Path) -> None:
    def told(module: nn.Module, **changes: object) -> tuple[list[str], dict[str, str]]:
        lines: list[str] = []
        done = train.run(config(run_rounds=2, **changes), tell=lines.append, module=module)
        return [line for line in lines if "computed" in line], done.summary["kernels"]

    known = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    assert told(other, run_kernels="torch") == ([], dict.fromkeys(("FIT", "EVALUATE"), "torch: run.kernels is torch"))
    why = "torch: the kernels have no layer Tanh"
    lines, by = told(other)
    assert (sorted(lines), by) == (
        [f"{op} is computed by {why}" for op in ("EVALUATE", "FIT")],
        {"FIT": why, "EVALUATE": why},
    )
    if not library.missing():
        assert told(known) == ([], {"FIT": "native", "EVALUATE": "native"})


def test_of_unlike_models_what_torch_had_to_do_is_told() -> None:
    """resnet8 has sums of layers, which the kernels don't know; the mlp beside it, they do."""
    changes: dict[str, object] = {
        "data_num_devices": 2, "data_max_rows": 10, "fleet_cohort": 1.0, "fleet_check": False, "run_rounds": 1,
        "tiny_model": "resnet8,mlp", "tiny_norm": "group", "tiny_options": {"mlp": {"hidden": [8]}},
    }  # fmt: skip
    by = train.run(config("fedmd", **changes)).summary["kernels"]
    assert by == dict.fromkeys(("EVALUATE", "FIT", "PREDICT"), "torch: its layers aren't a chain")


def test_devices_simulated_beside_firmware_are_computed_as_asked() -> None:
    built = plant.build(config(run_engine="firmware", run_devices="host:*1", run_kernels="torch"))
    assert isinstance(built.engine, Firmware)
    assert built.engine.simulated.kernels.choice == "torch"


def test_killed_five_times_ends_with_the_same_model(tmp_path: Path) -> None:
    table = tmp_path / "c.toml"
    from midhaul import config as settings

    table.write_text(settings.to_toml(config("fedadam", run_rounds=150)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "midhaul", "run", str(table), "--json", "--out"]
    done = subprocess.run([*command, str(tmp_path / "whole")], env=environment, capture_output=True, check=True)
    expected = json.loads(done.stdout)["model_sha256"]
    draw = random.Random(0)
    killed, lengths = 0, []
    out = tmp_path / "cut"
    for _ in range(5):
        running = subprocess.Popen(
            [*command, str(out), "--resume"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        metrics = out / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        # Wait until it is at work, then strike at a random moment.
        while running.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.25))
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            killed += 1
        running.wait()
        lengths.append(metrics.stat().st_size)
    assert killed == 5, "the run ended before it could be killed five times; give it more rounds"
    done = subprocess.run([*command, str(out), "--resume"], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["model_sha256"] == expected
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "json", "gone"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_used(damage: str, tmp_path: Path) -> None:
    settings = config()
    whole = train.run(settings, tmp_path / "whole").summary
    with pytest.raises(Stopped):
        train.run(settings, tmp_path / "cut", progress=stop_after(3))  # type: ignore[arg-type]
    folder = tmp_path / "cut" / "checkpoint"
    assert checkpoint.rounds(folder) == [2, 3]
    tensors, head = folder / "round-000003.safetensors", folder / "round-000003.json"
    data = tensors.read_bytes()
    {
        "flip": lambda: tensors.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]),
        "cut": lambda: tensors.write_bytes(data[:100]),
        "empty": lambda: tensors.write_bytes(b""),
        "json": lambda: head.write_text('{"round": 3}'),
        "gone": lambda: tensors.unlink(),
    }[damage]()
    told: list[str] = []
    half, other = folder / ".round-000004.safetensors.4711", folder / ".nfs4711"
    for path in (half, other):
        path.write_bytes(b"half")
    resumed = train.run(settings, tmp_path / "cut", resume=True, tell=told.append).summary
    assert not half.exists()  # a process that was killed left it half written
    assert other.exists()
    assert any("round 3 is damaged" in line and "the one before it, round 2" in line for line in told)
    assert resumed["model_sha256"] == whole["model_sha256"]


def test_all_checkpoints_damaged_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from midhaul import config as settings

    table = tmp_path / "c.toml"
    table.write_text(settings.to_toml(config()))
    assert main(["run", str(table), "--out", str(tmp_path / "run")]) == 0
    for path in (tmp_path / "run" / "checkpoint").glob("*.safetensors"):
        path.write_bytes(b"not a checkpoint")
    capsys.readouterr()
    assert main(["run", str(table), "--out", str(tmp_path / "run"), "--resume"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("midhaul: ")]
    assert len(said) == 1
    assert "none is left to resume from" in said[0]


def test_another_config_is_not_resumed(tmp_path: Path) -> None:
    train.run(config(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"scheme\.lr = 0\.1 and this config has 0\.2"):
        train.run(config(scheme_lr=0.2), tmp_path / "run", resume=True)


def test_resume_of_nothing_begins_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    train.run(config(), tmp_path / "run", resume=True, tell=told.append)
    assert any("no checkpoint yet" in line for line in told)


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    saved = Checkpoint(1, Server({"w": torch.ones(2)}), {"base/w": torch.ones(2)}, {})
    checkpoint.save(tmp_path, saved)
    found = checkpoint.load(tmp_path, print)
    assert found is not None
    assert found.server.tree["w"].tolist() == [1.0, 1.0]
    plant = train.build(config())
    for dump in ({"base/w": torch.ones(2)}, {"odd/fc1.weight": torch.ones(2)}, {"tree/999/w": torch.ones(2)}):
        with pytest.raises(EngineError, match="of another run"):
            plant.engine.restore(dump)


def test_divergence_is_one_sentence() -> None:
    with pytest.raises((EngineError, ConfigError), match=r"diverged; lower scheme\.lr"):
        train.run(config(scheme_lr=1e30, run_rounds=5, scheme_loss="mse", fleet_cohort=1.0))


def test_same_seed_same_result_other_seed_another(tmp_path: Path) -> None:
    digests = [train.run(config(run_seed=seed)).summary["model_sha256"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_ledger_adds_up() -> None:
    summary = train.run(config("federated_split", fleet_cohort=1.0)).summary
    assert sum(summary["kinds"]["up"].values()) == summary["uplink_bytes"]
    assert sum(summary["kinds"]["down"].values()) == summary["downlink_bytes"]
    assert summary["device_joules"] > 0
    assert summary["air_seconds"] > 0


def test_bytes_are_those_of_the_frames_by_hand() -> None:
    """FedAvg without loss: each round each device gets and sends one model, whose frame can be counted by hand."""
    summary = train.run(config(link_loss=0.0, fleet_cohort=1.0, data_max_rows=0)).summary
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    assert summary["tiny"]["parameters"] == parameters
    assert summary["kinds"]["up"]["weights"] == 4 * 6 * 4 * parameters
    assert summary["kinds"]["down"]["weights"] == 4 * 6 * 4 * parameters
    # 36 bytes of header and CRC, 6 a tensor and 4 a dimension, 12 a metric (rows, loss).
    assert summary["kinds"]["up"]["header"] == 4 * 6 * (36 + 4 * 6 + 4 * 6 + 2 * 12)


def test_the_body_can_be_the_large_models_own() -> None:
    """FTL with body = cut: the frozen layers on the devices are the teacher's, to the bit, and only heads travel."""
    result = train.run(config("federated_transfer", scheme_body="cut", large_epochs=10, scheme_distill_epochs=20))
    server = result.server
    bodies = {name: value for name, value in server.tree.items() if name.startswith("body.")}
    assert bodies
    for name, value in bodies.items():
        assert torch.equal(value, server.large[name.removeprefix("body.")])
    head = 32 * 10 + 10
    assert result.summary["kinds"]["up"]["weights"] % (4 * head) == 0
    assert result.summary["accuracy"] > 0.5


def test_a_teacher_with_batch_norm_teaches_with_the_statistics_it_saw() -> None:
    """FedBN: distilling on the server renews the tiny model's running statistics, as training on a device does."""

    class Normed(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                torch.nn.Flatten(),
                torch.nn.Linear(64, 16),
                torch.nn.BatchNorm1d(16),
                torch.nn.ReLU(),
                torch.nn.Linear(16, 10),
            )

    settings = config("transfer", tiny_norm="fedbn", scheme_tune="none", scheme_distill_epochs=60, large_epochs=30)
    result = train.run(settings.replace(data_max_rows=0), module=Normed())
    assert result.server.tree["2.running_mean"].abs().max() > 0.1
    assert result.summary["accuracy"] > 0.7


def test_the_budgets_bytes_on_air_are_those_that_a_run_is_charged() -> None:
    """One round of FedAvg on six devices, byte for byte."""
    settings = config(link_loss=0.0, fleet_cohort=1.0, run_rounds=1, scheme_batch=16)
    plant = train.build(settings)
    module = plant.kit.program.module
    names = plant.kit.program.names("whole")
    air = budget.air_of(module, plant.kit.program.input_shape, Op.FIT, names)
    summary = train.run(settings).summary
    assert (6 * air.up_bytes, 6 * air.down_bytes) == (summary["uplink_bytes"], summary["downlink_bytes"])


@pytest.mark.parametrize("name", ["split", "split_u", "federated_split"])
def test_halves_that_begin_as_trained_on_public_data_are_ahead(name: str) -> None:
    settings = config(name, run_rounds=1, large_epochs=30, fleet_cohort=1.0, scheme_lr=0.01, large_lr=1e-3)
    cold = train.run(settings).summary["accuracy"]
    warm = train.run(settings.replace(scheme_pretrain=True)).summary["accuracy"]
    assert warm > cold + 0.1
    with pytest.raises(ConfigError, match="needs public data"):
        train.build(settings.replace(scheme_pretrain=True, data_public=0.0))


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train.run(Config().replace(scheme_name="fedavgg"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError):
        train.run(Config().replace(scheme_name="fedavgg"), tmp_path / "old")
    assert (tmp_path / "old").is_dir()


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    for name in ("checkpoint", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("no folder")
        with pytest.raises(CheckpointError, match=rf"{name} can't be made .File exists.; free space"):
            train.run(config(run_rounds=1), tmp_path / name)


def test_a_scheme_with_a_teacher_tells_both_models_accuracies_from_the_start(tmp_path: Path) -> None:
    summary = train.run(config("transfer", run_rounds=2), tmp_path / "run").summary
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert summary["start"] == {name: lines[0][name] for name in ("accuracy", "large_accuracy")}
    # The teacher learns before the first round and never after it.
    assert summary["large_accuracy"] == summary["start"]["large_accuracy"] > 0.2
    alone = train.run(config("fedavg", run_rounds=1), tmp_path / "alone").summary
    assert (alone["large_accuracy"], alone["start"]) == (None, None)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_who_takes_part_is_the_same_in_a_resumed_run(engine: str, tmp_path: Path) -> None:
    settings = config(
        "fedprox", run_engine=engine, fleet_dropout=0.3, fleet_stragglers=0.5, scheme_epochs=3,
        fleet_weighting="uniform", fleet_speed_spread=0.5, fleet_round_deadline_s=3.0,
    )  # fmt: skip
    whole = train.run(settings, tmp_path / "whole").summary
    with pytest.raises(Stopped):
        train.run(settings, tmp_path / "cut", progress=stop_after(2))  # type: ignore[arg-type]
    resumed = train.run(settings, tmp_path / "cut", resume=True).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["simulated_seconds"] == whole["simulated_seconds"] > 0.0
    assert resumed["absent"] == whole["absent"] > 0
