"""The log: a line of strict JSON for each thing that happens, and nothing of it where nobody asked."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import pytest

from midhaul import logs, sentences
from midhaul.cli import main
from midhaul.errors import ConfigError
from midhaul.sentences import Sentence

QUICK = """
[data]
partition = "dirichlet"
num_devices = 4
max_rows = 60
[tiny]
options = { hidden = [16] }
[run]
rounds = 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return path


def lines(text: str) -> list[dict[str, object]]:
    def strict(word: str) -> None:
        raise AssertionError(f"{word} isn't JSON")

    return [json.loads(line, parse_constant=strict) for line in text.splitlines()]


def test_a_line_has_its_time_level_event_message_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logs.to("text", path, command="serve"):
        logs.tell(Sentence("a\nb", "round", level="detail", loss=math.nan, seconds=0.5, who={"late": {3, 1}}))
        logs.tell("as it is, 100 %")
    first, second = lines(path.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("time")))
    assert first == {
        "level": "info", "event": "round", "message": "a\nb", "command": "serve",
        "loss": None, "seconds": 0.5, "who": {"late": [1, 3]},
    }  # fmt: skip
    assert (second["event"], second["message"]) == ("note", "as it is, 100 %")


def test_a_sentence_is_text_and_its_name_is_known() -> None:
    assert Sentence("it is so", "note") == "it is so"
    with pytest.raises(AssertionError, match="gone wrong"):
        Sentence("it is so", "gone wrong")


def test_a_run_logs_its_rounds_and_shows_a_person_none_of_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "log", tmp_path / "run"
    assert main(["run", str(config), "--out", str(out), "--log-file", str(log)]) == 0
    shown = capsys.readouterr().err
    assert "checkpoint" not in shown
    assert "round 1" not in shown
    told = lines(log.read_text())
    events = [line["event"] for line in told if line["event"] != "note"]
    assert events == ["start", "checkpoint", "round", "checkpoint", "round", "checkpoint", "end"]
    rounds = [line for line in told if line["event"] == "round"]
    kept = lines((out / "metrics.jsonl").read_text())
    for line, wanted in zip(rounds, kept, strict=True):
        for name in ("round", "accuracy", "loss", "uplink_bytes", "device_joules"):
            assert line[name] == wanted[name], name
        assert line["absent"] == 0
        assert isinstance(line["seconds"], float)
        assert line["seconds"] > 0.0
    assert told[-1]["model_sha256"] == json.loads((out / "summary.json").read_text())["model_sha256"]
    assert main(["run", str(config), "--out", str(out), "--resume", "--log-file", str(log)]) == 0
    again = lines(log.read_text())[len(told) :]
    assert [(line["event"], line.get("round")) for line in again if line["event"] != "note"] == [
        ("start", 2),
        ("end", None),
    ]


def test_the_error_stream_is_json_to_its_end(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", str(config), "--out", str(tmp_path / "run"), "--log", "json"]
    assert main(asked) == 0
    assert lines(capsys.readouterr().err)[-1]["event"] == "end"
    assert main(asked) == 2  # there is a run in that folder
    (last,) = lines(capsys.readouterr().err)
    assert (last["event"], last["level"], last["kind"]) == ("error", "error", "ConfigError")
    assert "already holds a run" in str(last["message"])
    assert main(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("midhaul: ")
    assert [type(one) for one in logging.getLogger("midhaul").handlers] == [logging.NullHandler]


def test_a_log_that_cannot_be_written_is_refused_and_one_that_fails_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="choose another --log-file"), logs.to("text", tmp_path / "no" / "log"):
        pass
    asked = ["run", "any.toml", "--log", "json", "--log-file", str(tmp_path / "no" / "log")]
    assert main(asked) == 2  # there is no log to say it in
    assert "choose another --log-file" in capsys.readouterr().err
    if not Path("/dev/full").exists():
        pytest.skip("a full disk is pretended by /dev/full, which this system hasn't")
    with logs.to("text", Path("/dev/full")):
        logs.tell("one")
        logs.tell("two")
    said = capsys.readouterr().err
    assert said.count("the run goes on") == 1
    assert said.count("\n") == 1


def test_a_log_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    with logs.to("text", path):
        logs.tell("one")
        path.rename(old)
        logs.tell("two")
    assert [lines(each.read_text())[0]["message"] for each in (old, path)] == ["one", "two"]


def test_every_event_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
    for event in sentences.EVENTS:
        assert f"`{event}`" in page, event
