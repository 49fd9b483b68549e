"""docs/models.md: its examples run, and its tables are what is built."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

from midhaul.models import count, large, slices, tiny

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


def rows(heading: str) -> dict[str, tuple[str, list[str]]]:
    """Gives the rows of the table under a heading: what it says of the input, and the other cells."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]
    return {name: (taken, [c.strip() for c in rest.split("|")]) for name, taken, rest in ROW.findall(text)}


def test_the_examples_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert (failed, tried) == (0, 10)


def test_every_model_and_option_is_in_the_tables() -> None:
    for heading, catalogue in (("Tiny models", tiny.TINY), ("Large models", large.LARGE)):
        table = rows(heading)
        assert set(table) == set(catalogue)
        for name, (_, cells) in table.items():
            assert re.findall(r"`(\w+)`", cells[-1]) == list(catalogue[name].options), name


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_the_table_of_tiny_models_is_what_is_built(name: str) -> None:
    taken, (classes, parameters, macs, _) = rows("Tiny models")[name]
    shape = ast.literal_eval(taken[taken.rindex("(") :])
    options = {"vocabulary": 80} if name == "embed" else {}
    module = tiny.build(name, shape, int(classes), **options)
    totals = count.totals(module, shape)
    folded = count.folded_parameters(module)
    norm = f" + {totals.parameters - folded:,}" if totals.parameters > folded else ""
    assert (parameters, macs) == (f"{folded:,}{norm}", f"{totals.macs:,}")


@pytest.mark.parametrize("name", [name for name in large.LARGE if name != "auto"])
def test_the_table_of_large_models_is_what_is_built(name: str) -> None:
    taken, (parameters, _) = rows("Large models")[name]
    shape = ast.literal_eval(re.findall(r"\([\d, ]+\)", taken)[0])
    assert parameters == f"{count.totals(large.build(name, shape, 10), shape).parameters:,}"


def test_every_slice_is_in_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for spec in slices.SPECS:
        assert f"`{spec}`" in text
