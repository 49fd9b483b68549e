"""The part of `repro` that tells a pass from a miss from an error."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from repro import Row, first_at, table

everything = importlib.import_module("repro.all")


def module(monkeypatch: pytest.MonkeyPatch, name: str, rows: list[Row] | Exception) -> str:
    def main(arguments: list[str]) -> list[Row]:
        if isinstance(rows, Exception):
            raise rows
        return rows

    made = types.ModuleType(f"repro.{name}")
    made.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"repro.{name}", made)
    return name


def test_the_first_round_that_reaches_a_target() -> None:
    assert first_at([0.1, 0.97, 0.96, 0.98], 0.97) == 2
    assert first_at([0.1, 0.9699], 0.97) is None
    assert first_at([float("nan")], 0.5) is None


def test_a_table_says_pass_and_miss() -> None:
    assert table([Row("a", "1", "2", True), Row("b", "1", "0", False)]).splitlines()[2:] == [
        "| a | 1 | 2 | PASS |",
        "| b | 1 | 0 | MISS |",
    ]


def test_a_miss_is_no_error_and_an_error_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = module(monkeypatch, "good", [Row("reached", "1", "2", True)])
    missed = module(monkeypatch, "missed", [Row("missed", "1", "0", False)])
    broken = module(monkeypatch, "broken", RuntimeError("no data"))
    untrue = module(monkeypatch, "untrue", [Row("identity", "0.0", "1e-9", False, must=True)])
    assert everything.main([good, missed]) == 0
    assert "| missed | 1 | 0 | MISS |" in capsys.readouterr().out
    assert everything.main([broken, good]) == 1
    said = capsys.readouterr()
    assert "| broken | - | ended with an error, see above | MISS |" in said.out
    assert "| reached | 1 | 2 | PASS |" in said.out
    assert "RuntimeError: no data" in said.err
    assert everything.main([good, untrue]) == 1


def test_bytes_are_counted_to_where_the_bar_is_first_reached() -> None:
    """float32 comes to 80 %, so the bar is 79 %: 30 bytes, where one code needs half a byte; one never does."""
    updates = importlib.import_module("repro.update_bytes")
    plain = updates.Curve([70.0, 78.9, 79.5, 80.0, 79.0], [10, 20, 30, 40, 50])
    half = updates.Curve([79.0, 60.0], [0.5, 1.0])
    never = updates.Curve([78.0, 78.9], [0.1, 0.2])
    (row,) = updates.judge("har", {"none": [plain], "half": [half], "never": [never]})
    assert row.passed
    assert "half: 60 times" in row.measured
    (row,) = updates.judge("har", {"none": [plain, plain], "never": [never, half]})
    assert not row.passed
    assert "never: 30 times, mean of 2 seeds" in row.measured
