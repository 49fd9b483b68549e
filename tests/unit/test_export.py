"""`midhaul export`: the files are the model, the sheet is the blob's, and what can't be is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import net_runner
import numpy as np
import pytest
import safetensors.torch
import torch

from midhaul import train
from midhaul.cli import main
from midhaul.config import Config
from midhaul.devices import blob, profiles
from midhaul.errors import ConfigError, DataError, ModelError
from midhaul.export import export
from midhaul.models import tiny

BOARD = profiles.get("stm32l4")
QUICK = {
    "data_num_devices": 3, "data_partition": "iid", "data_test": "device", "data_public": 0.2, "data_max_rows": 40,
    "tiny_options": {"hidden": [16]}, "large_model": "mlp_large", "large_options": {"hidden": 32, "depth": 1},
    "large_epochs": 1, "scheme_distill_epochs": 1, "run_rounds": 1,
}  # fmt: skip


def run(folder: Path, scheme: str, **changes: object) -> Path:
    train.run(Config().replace(**{**QUICK, "scheme_name": scheme, **changes}), folder)
    return folder


def test_a_runs_model_is_what_the_run_trained(tmp_path: Path) -> None:
    folder = run(tmp_path / "fedavg", "fedavg")
    made = export(str(folder), BOARD, tmp_path / "out")
    assert [path.name for path in made.files] == ["model.mhb", "model.h", "model.c", "export.json"]
    data = (tmp_path / "out" / "model.mhb").read_bytes()
    assert data == made.blob.data
    assert blob.read(data).header.arena_bytes == made.blob.arena_bytes
    module = tiny.build("mlp", (1, 8, 8), 10, hidden=[16])
    module.load_state_dict(safetensors.torch.load_file(folder / "model" / "tiny.safetensors"))
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        wanted = module(x).numpy().ravel()
    assert np.allclose(net_runner.run(made.net, x.numpy()).ravel(), wanted, atol=1e-6)


def test_a_devices_own_model(tmp_path: Path) -> None:
    for engine in ("stacked", "loop"):
        folder = run(tmp_path / engine, "local", run_engine=engine)
        made = [export(str(folder), BOARD, tmp_path / "out", device=number) for number in (0, 2)]
        assert not np.array_equal(made[0].net.tensors["head.weight"], made[1].net.tensors["head.weight"])
        shared = export(str(folder), BOARD, tmp_path / "out")
        assert "choose one with --device" in shared.notes[0]
        with pytest.raises(DataError, match="device 9 keeps nothing"):
            export(str(folder), BOARD, tmp_path / "out", device=9)


def test_the_model_of_a_device_among_unlike_ones(tmp_path: Path) -> None:
    """A narrow device has the leading channels of the server's model; one cut early the layers that it holds."""
    folder = run(tmp_path / "wide", "heterofl", scheme_width_mix="1,0.5")
    whole = safetensors.torch.load_file(folder / "model" / "tiny.safetensors")
    made = [export(str(folder), BOARD, tmp_path / "out", device=number) for number in (0, 1)]
    assert np.array_equal(made[0].net.tensors["fc1.weight"], whole["fc1.weight"].numpy())
    assert np.array_equal(made[1].net.tensors["fc1.weight"], whole["fc1.weight"][:8].numpy())
    assert np.array_equal(made[1].net.tensors["head.weight"], whole["head.weight"][:, :8].numpy())
    with pytest.raises(ConfigError, match="no device 99"):
        export(str(folder), BOARD, tmp_path / "out", device=99)
    for engine in ("stacked", "loop"):
        folder = run(
            tmp_path / engine, "federated_split_mixed", scheme_cut="relu1,relu2", tiny_options={"hidden": [16, 12]},
            run_engine=engine,
        )  # fmt: skip
        early, deep = (export(str(folder), BOARD, tmp_path / "out", device=number) for number in (0, 1))
        assert "cut behind relu1" in early.notes[0]
        assert early.net.values[early.net.output].shape == (16, 1, 1)
        assert deep.net.values[deep.net.output].shape == (12, 1, 1)
        shared = safetensors.torch.load_file(folder / "model" / "tiny.safetensors")
        assert not np.array_equal(early.net.tensors["fc1.weight"], shared["fc1.weight"].numpy())


def test_the_half_of_a_split_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "split", "split", scheme_cut="relu1")
    made = export(str(folder), BOARD, tmp_path / "out", slice="whole")
    assert made.net.values[made.net.output].shape == (16, 1, 1)
    assert blob.read(made.blob.data).header.num_classes == 0
    assert [one["kind"] for one in made.to_table()["plans"]] == ["infer", "backward"]


def test_int8_is_calibrated_and_gives_a_tflite(tmp_path: Path) -> None:
    made = export("mlp", BOARD, tmp_path, precision="int8", data="digits")
    assert (tmp_path / "model.tflite").read_bytes()[4:8] == b"TFL3"
    assert {layer["type"] for layer in made.layers} == {"int8", "float32"}
    assert "It fits stm32l4" in made.verdict
    trains = export("mlp", BOARD, tmp_path, precision="int8", data="digits", slice="head")
    assert not (tmp_path / "model.tflite").exists()
    assert [layer["type"] for layer in trains.layers if layer["kind"] == "dense"] == ["int8", "float32"]
    assert trains.blob.trained == ("head.weight", "head.bias")
    table = json.loads((tmp_path / "export.json").read_text())
    assert table == trains.to_table()
    assert table["sram_bytes"] > table["arena_bytes"]


def test_a_run_that_was_in_int8_itself(tmp_path: Path) -> None:
    folder = run(tmp_path / "lowered", "federated_transfer", tiny_precision="int8")
    made = export(str(folder), BOARD, tmp_path / "out", slice="head")
    assert made.precision == "int8"
    assert made.blob.trained == ("head.weight", "head.bias")
    assert [layer["type"] for layer in made.layers if layer["kind"] == "dense"] == ["int8", "float32"]
    with pytest.raises(ConfigError, match="no float32 model"):
        export(str(folder), BOARD, tmp_path / "out", precision="float32")
    with pytest.raises(ModelError, match="only the head is float"):
        export(str(folder), BOARD, tmp_path / "out", slice="whole")


def test_adapters_are_merged_unless_they_are_trained(tmp_path: Path) -> None:
    folder = run(tmp_path / "lora", "fedavg", tiny_lora_rank=2)
    assert not any("lora_a" in layer.weights for layer in export(str(folder), BOARD, tmp_path / "out").net.layers)
    trained = export(str(folder), BOARD, tmp_path / "out", slice="lora").blob.trained
    assert set(trained) == {"fc1.lora_a", "fc1.lora_b", "head.lora_a", "head.lora_b"}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to compile what is exported")
def test_the_c_array_is_the_blob(tmp_path: Path) -> None:
    made = export("linear", BOARD, tmp_path, shape=(5,), classes=3)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "model.h"\n'
        "int main(void) { return fwrite(mh_exported_u8, 1, MH_EXPORTED_BYTES, stdout) != MH_EXPORTED_BYTES; }\n"
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["gcc", *flags, "main.c", "model.c", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout == made.blob.data
    assert f"MH_EXPORTED_ARENA_BYTES {made.blob.arena_bytes}u" in (tmp_path / "model.h").read_text()


def test_a_module_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_export.py").write_text(
        "from torch import nn\ndef good(): return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten())\n"
        "def bad(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    made = export("mine_to_export:good", BOARD, tmp_path / "out", shape=(2, 9))
    assert [layer["kind"] for layer in made.layers] == ["conv", "reshape"]
    with pytest.raises(ModelError, match="gave a int"):
        export("mine_to_export:bad", BOARD, tmp_path / "out", shape=(2, 9))
    with pytest.raises(ModelError, match="mine_to_export:none gave no module"):
        export("mine_to_export:none", BOARD, tmp_path / "out", shape=(2, 9))
    with pytest.raises(ConfigError, match="give --shape"):
        export("mine_to_export:good", BOARD, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "no run folder and no tiny model 'nonsense'"),
        (["mlp", "--precision", "int4"], "no precision 'int4'"),
        (["mlp", "--precision", "int8"], "name a data set with --data"),
        (["mlp", "--precision", "int8", "--data", "digits", "--slice", "whole"], "leaves none for int8"),
        (["dscnn", "--slice", "whole"], "use norm = group"),
        (["eegnet"], r"'spatial_elu' (ELU)"),
        (["mlp", "--slice", "tail"], "no slice 'tail'"),
        (["mlp", "--device", "1"], "no device 1"),
        ([str(Path(__file__).parent)], "has no config.toml"),
    ],
)
def test_what_is_refused(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_table_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "dscnn", "--norm", "group", "--slice", "head", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "group_norm" in said
    assert "doesn't fit stm32l4, which lacks" in said
    short = [line for line in said.splitlines() if not line.startswith("written to")]
    assert max(map(len, short)) <= 80
