"""A run's two models write a text together: the command, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from midhaul import train
from midhaul.cli import main
from midhaul.config import Config
from midhaul.inference import exits
from midhaul.inference.held import opened
from midhaul.inference.speculative import decode, keyed, windows
from midhaul.inference.text import write

LENGTH = 6


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an npz of characters: the next one after six of a sentence that goes round."""
    folder = tmp_path_factory.mktemp("spoken")
    words = "the_cat_sat_on_the_mat_and_the_rat_sat_on_the_hat._" * 8
    characters = np.array([sorted(set(words)).index(c) for c in words])
    x = np.lib.stride_tricks.sliding_window_view(characters, LENGTH)[:-1]
    np.savez(folder / "spoken.npz", x=x, y=np.array(list(words))[LENGTH:])
    config = Config().replace(
        data_name=f"npz:{folder / 'spoken.npz'}",
        data_options={"vocabulary": len(set(words))},
        data_num_devices=2,
        data_public=0.6,
        data_test="device",
        tiny_model="embed",
        tiny_options={"dim": 8},
        large_model="transformer",
        large_options={"dim": 16, "depth": 1, "heads": 2},
        large_epochs=12,
        large_lr=1e-2,
        scheme_name="transfer",
        scheme_tune="none",
        scheme_distill_epochs=4,
        run_rounds=1,
    )
    train.run(config, folder / "run")
    return folder / "run"


def test_the_text_at_temperature_0_is_the_large_models(spoken: Path) -> None:
    plant, server = opened(spoken)
    large = windows(plant.kit.server_model(), server.large, LENGTH)
    tiny = windows(plant.kit.program.module, exits.own(plant.kit.program.module, server.tree), LENGTH)
    found = write(spoken, "the_cat", 30, gamma=3, temperature=0.0)
    names = plant.dataset.class_names
    start = [names.index(c) for c in "the_cat"]
    greedy = decode(tiny, large, start, 30, keyed(0), gamma=0, temperature=0.0)
    assert found.text == "".join(names[token] for token in greedy.tokens)
    assert len(found.alone.turns) == 30
    assert found.decoded.calls_saved == 30 - len(found.decoded.turns)


def test_the_command_prints_the_text_and_its_cost(spoken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["decode", str(spoken), "--prompt", "the_cat", "--tokens", "20", "--resample", "device"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("the_cat")
    assert max(len(line) for line in lines) <= 80
    assert all(name in said for name in ("tiny alone", "large alone", "together"))
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tokens"]) == 20
    assert found["calls"] + found["calls_saved"] == 20
    assert found["cost_per_token"]["tiny alone"]["up_bytes"] == 0.0
    assert lines[0] == "the_cat" + found["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "the_Cat"), "the prompt has 'C', which the run's data don't know"),
        (("--prompt", ""), "can't decode 200 tokens after 0"),
        (("--prompt", "the", "--gamma", "-1"), "give at least 1, 1 and 0"),
        (("--prompt", "the", "--resample", "me"), "must be server or device"),
    ],
)
def test_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], words: str, spoken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", str(spoken), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_runs_that_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(Config().replace(data_num_devices=2, run_rounds=1, tiny_options={"hidden": [4]}), tmp_path / "digits")
    assert main(["decode", str(tmp_path / "digits"), "--prompt", "a"]) == 2
    assert "digits isn't tokens with the next one as their class" in capsys.readouterr().err
    assert main(["decode", str(tmp_path), "--prompt", "a"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
