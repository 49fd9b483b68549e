"""The command line, as a person and as a program meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from midhaul.cli import main
from midhaul.schemes import SCHEMES

QUICK = """
[data]
name = "digits"
partition = "dirichlet"
num_devices = 4
max_rows = 60
public = 0.2
test = "device"
[tiny]
model = "mlp"
options = { hidden = [16] }
[large]
model = "mlp_large"
epochs = 2
options = { hidden = 16, depth = 4 }
[scheme]
lr = 0.1
distill_epochs = 2
width_mix = "1,0.5"
inner_steps = 1
[run]
rounds = 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return path


def sets(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must be refused; gives its sentence."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("midhaul: ")]
    assert len(lines) == 1
    assert "Traceback" not in said.err + said.out
    return lines[0]


def test_run_writes_its_folder_and_says_where(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", str(config), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "fedavg" in said
    assert f"report: {out}/report.html" in said
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith("report:"))
    for name in ("config.toml", "metrics.jsonl", "summary.json", "report.html", "model/tiny.safetensors"):
        assert (out / name).exists(), name
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    summary = json.loads((out / "summary.json").read_text())
    wanted = (
        "scheme engine data board num_devices rounds seed accuracy accuracy_per_device loss uplink_bytes "
        "downlink_bytes air_seconds device_joules device_flash_bytes device_sram_bytes wall_seconds "
        "device_updates_per_s model_sha256"
    )
    assert set(wanted.split()) <= summary.keys()
    assert summary["uplink_bytes"] == lines[-1]["uplink_bytes"] > 0
    assert summary["num_devices"] == 4
    assert set(summary["accuracy_per_device"]) >= {"min", "median", "max"}


def test_compare_makes_one_folder_a_scheme_and_seed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    chosen = ("local", "fedavg", "federated_transfer", "federated_split")
    names = ",".join(chosen)
    assert main(["compare", str(config), "--schemes", names, "--seeds", "0,1", "--out", str(out), "--json"]) == 0
    summaries = json.loads(capsys.readouterr().out)
    assert [(s["scheme"], s["seed"]) for s in summaries] == [(name, seed) for name in chosen for seed in (0, 1)]
    assert (out / "report.html").exists()
    assert len({s["model_sha256"] for s in summaries}) == len(summaries)
    assert all((out / f"{name}-seed{seed}" / "summary.json").exists() for name in chosen for seed in (0, 1))
    assert main(["compare", str(config), "--schemes", names, "--seeds", "0,1", "--out", str(out), "--resume"]) == 0
    assert "has ended; kept as it is" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_runs_from_a_config(name: str, config: Path, tmp_path: Path) -> None:
    own = ["tiny.lora_rank=2"] if SCHEMES[name].adapters else []
    own += ["data.partition=vertical", "data.public=0.0"] if SCHEMES[name].large == "joint" else []
    assert main(["run", str(config), *sets(f"scheme.name={name}", *own), "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["scheme"] == name
    assert 0.0 < summary["accuracy"] <= 1.0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("scheme.name=fedavgg", "there is no scheme 'fedavgg'; did you mean 'fedavg'?"),
        ("scheme.larning_rate=1", "unknown key scheme.larning_rate"),
        ("tiny.model=mpl", "there is no tiny model 'mpl'; did you mean 'mlp'?"),
        ("data.name=digit", "there is no data set 'digit'; did you mean 'digits'?"),
        ("fleet.board=stm32", "stm32"),
        ("link.radio=blue", "blue"),
        ("data.name=npz:nowhere.npz", "there is no file nowhere.npz"),
        ("tiny.options.hidden=[4000]", "B over"),
        ("tiny.options.width=3", "has no option 'width'"),
        ("scheme.slice=tail", "there is no slice 'tail'"),
        ("run.memory=lots", "is not a size"),
        ("run.memory=10MB", "before a device is trained"),
    ],
)
def test_one_sentence_and_exit_code_2(
    setting: str, words: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "run", config, "--set", setting, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--engine", "firmwear"),
            "run.engine is 'firmwear', which is not one of its choices; did you mean 'firmware'?",
        ),
        (("--devices", "host:"), "--devices is for --engine firmware, and the engine is stacked"),
        (("--memory", "4 potatoes"), "is not a size; write for example 512MB or 4GB"),
        (("--memory", "1000"), "run.memory is 1000, and libraries, data and models take"),
        (
            ("--engine", "firmware", "--devices", "quemu:cortex-m4"),
            "isn't the address of a device; did you mean 'qemu'?",
        ),
        (("--engine", "firmware", "--devices", "host:*9"), "names 9 addresses and the data make 4 devices"),
        (("--engine", "firmware", "--devices", "serial:/dev/ttyACM0"), "there is no key for serial:/dev/ttyACM0"),
        (
            ("--engine", "firmware", *sets("scheme.name=split_u")),
            "the scheme split_u can't run on the engine firmware; use loop or stacked",
        ),
        (("--engine", "firmware", *sets("run.keys=nowhere")), "the file of keys nowhere can't be read"),
    ],
)
def test_devices_that_cannot_be(
    arguments: tuple[str, ...], words: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, "run", config, *arguments, "--out", tmp_path / "run")


def test_a_run_on_firmware_says_where_its_devices_are(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(config), "--engine", "firmware", "--devices", "host:*2", "--out", str(tmp_path / "run")]
    assert main(["run", *arguments]) == 0
    assert "2 devices run the C runtime (2 of host:); the other 2 are simulated" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(event["device"], event["what"]) for event in summary["device_events"]] == [
        (0, "connected"),
        (1, "connected"),
    ]
    assert "<h2>Devices on firmware</h2>" in (tmp_path / "run" / "report.html").read_text()


def test_a_cut_that_does_not_exist(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(
        capsys, "run", config, "--set", "scheme.name=split", "--set", "scheme.cut=fc9", "--out", tmp_path / "run"
    )
    assert "no layer 'fc9' to cut behind" in said


def test_a_model_that_does_not_fit_is_refused_with_the_number(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(
        capsys,
        "run",
        config,
        "--set",
        "tiny.options.hidden=[400]",
        "--set",
        "fleet.board=stm32l1",
        "--out",
        tmp_path / "run",
    )
    assert "B over; the largest slice that fits is 'head'" in said
    compared = refused(
        capsys,
        "compare",
        config,
        "--schemes",
        "transfer,fedavg",
        "--set",
        "tiny.options.hidden=[400]",
        "--set",
        "fleet.board=stm32l1",
        "--out",
        tmp_path / "two",
    )
    assert "B over" in compared
    assert not (tmp_path / "two" / "transfer-seed0").exists(), "nothing runs before everything is checked"


def arrays(path: Path, **changes: object) -> Path:
    """An npz that the project has never seen: 12 features, 4 classes, devices named by strings."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(240, 12)).astype(np.float32)
    y = (x[:, 0] > 0) * 2 + (x[:, 1] > 0)
    device = np.array(["kitchen", "cellar", "attic"])[np.arange(240) % 3]
    np.savez(path, **{"x": x, "y": y.astype(np.int64), "device": device, **changes})  # type: ignore[arg-type]
    return path


def test_arrays_never_seen_before_train_and_report(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = arrays(tmp_path / "mine.npz"), tmp_path / "run"
    natural = sets(f"data.name=npz:{path}", "data.public=0", "data.partition=auto", "data.num_devices=0")
    assert (
        main(["run", str(config), *natural, *sets("run.rounds=30", "scheme.lr=0.3"), "--out", str(out), "--json"]) == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_devices"] == 3
    assert summary["accuracy"] > 0.7
    assert summary["accuracy_per_device"]["names"] == ["attic", "cellar", "kitchen"]


def bad_x(rows: slice, value: float, column: int | slice = slice(None)) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(240, 12)).astype(np.float32)
    x[rows, column] = value
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": bad_x(slice(0, None, 3), np.nan)}, "device 'kitchen' has no sound row"),
        ({"x": bad_x(slice(None), np.nan, 3)}, "x[3] is not a number in any row"),
        ({"y": np.where(np.arange(240) == 17, 99, np.arange(240) % 4)}, "label 99 of row 18 is out of range"),
        ({"y": np.where(np.arange(240) == 17, -1, np.arange(240) % 4)}, "label -1 of row 18 is out of range"),
        ({"y": np.arange(239)}, "y has shape (239,), but x has 240 rows"),
        ({"z": np.arange(3)}, "array z isn't read"),
    ],
)
def test_arrays_that_are_refused(
    changes: dict[str, object], words: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = arrays(tmp_path / "mine.npz", **changes)
    natural = sets(f"data.name=npz:{path}", "data.public=0", "data.partition=auto", "data.num_devices=0")
    said = refused(capsys, "run", config, *natural, "--out", tmp_path / "run")
    assert words in said


def test_bad_rows_are_set_aside_and_counted(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = arrays(tmp_path / "mine.npz", x=bad_x(slice(4, 6), np.inf))
    assert main(["run", str(config), "--set", f"data.name=npz:{path}", "--out", str(tmp_path / "run")]) == 0
    assert "2 of 240 rows were set aside; the first is line 5" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["refused_rows"] == 2


def test_an_output_folder_that_cannot_be_written(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be written" in refused(capsys, "run", config, "--out", tmp_path / "file" / "run")


def test_a_run_is_not_written_over(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert "already holds a run; add --resume" in refused(capsys, "run", config, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "none.toml"],
        ["compare", "none.toml", "--schemes", "fedavg"],
        ["size", "mlpp"],
        ["size", "mlp", "--board", "none"],
        ["size", "mlp", "--shape", "a,b"],
        ["report", "nowhere"],
        ["data", "check", "nothing"],
        ["data", "burn"],
    ],
)
def test_commands_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(refused(capsys, *arguments)) > len("midhaul: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["schemes"],
        ["boards"],
        ["boards", "--radios"],
        ["boards", "--sources"],
        ["data", "list"],
        ["size", "--list"],
        ["size", "cnn1d", "--board", "nrf5340"],
        ["size", "mlp", "--board", "rp2040", "--data", "digits"],
    ],
)
def test_tables_line_up_at_80_columns_and_come_as_json(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(len(line) for line in lines) <= 80
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
