"""Settings: read, checked, refused in one sentence."""

from pathlib import Path

import pytest

from midhaul import config
from midhaul.config import Config
from midhaul.errors import ConfigError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    given = Config().replace(scheme_lr=0.25, data_options={"classes": 12}, run_seed=7)
    path = tmp_path / "c.toml"
    path.write_text(config.to_toml(given))
    assert config.read(path) == given


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"scheme": {"lrr": 1.0}}, "unknown key scheme.lrr; did you mean 'lr'"),
        ({"schema": {}}, r"unknown section \[schema\]; did you mean 'scheme'"),
        ({"run": {"rounds": 0}}, "run.rounds is 0; it must be at least 1"),
        ({"run": {"rounds": 1.5}}, "run.rounds must be a whole number, not 1.5"),
        ({"run": {"rounds": True}}, "run.rounds must be a whole number, not True"),
        ({"scheme": {"lr": float("nan")}}, "scheme.lr must be a finite number"),
        ({"scheme": {"lr": -1}}, "scheme.lr is -1.0; it must be above 0"),
        (
            {"run": {"engine": "stack"}},
            "run.engine is 'stack', which is not one of its choices; did you mean 'stacked'",
        ),
        ({"data": {"name": 3}}, "data.name must be a string, not 3"),
        ({"run": 3}, r"run must be a section, \[run\]"),
        ({"data": {"public": 0.99}}, "data.public is 0.99; it must be at least 0 and at most 0.95"),
    ],
)
def test_refusals(table: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.from_table(table)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no config file"):
        config.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\nrounds=1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.read(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        config.read(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        config.read(tmp_path)


def test_set_reads_values_as_toml_and_words_as_strings() -> None:
    table = config.override({}, ["run.rounds=3", "data.name=har", "tiny.options.hidden=[8, 4]", "fleet.check=false"])
    assert table == {
        "run": {"rounds": 3},
        "data": {"name": "har"},
        "tiny": {"options": {"hidden": [8, 4]}},
        "fleet": {"check": False},
    }
    for wrong in ("rounds=3", "run.rounds", ".=1"):
        with pytest.raises(ConfigError, match="not of the form"):
            config.override({}, [wrong])
    with pytest.raises(ConfigError, match="is a value, not a section"):
        config.override({"run": {"seed": 1}}, ["run.seed.x=1"])


@pytest.mark.parametrize("text", ["", "GB", "1.5 parsecs", "-3MB", "infGB", "0"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        config.parse_bytes(text)


def test_the_reference_is_true() -> None:
    kept = Path(__file__).parents[2] / "docs" / "config.md"
    assert kept.read_text() == config.reference(), (
        "run: python -c 'from midhaul import config; print(config.reference(), end=\"\")' > docs/config.md"
    )
