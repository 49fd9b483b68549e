"""A data set refuses parts that contradict each other."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midhaul.data import Dataset, Refused, describe, load, names
from midhaul.data.dataset import number
from midhaul.errors import DataError

GOOD = Dataset(
    name="toy",
    x=np.ones((3, 2), np.float32),
    y=np.array([0, 1, 0]),
    device=np.array([0, 0, 1]),
    device_names=("a", "b"),
    held_out=np.zeros(3, np.bool_),
    class_names=("no", "yes"),
    licence="l",
    source="s",
    citation="c",
    key="user",
    num_read=3,
)


def test_a_sound_set():
    assert len(GOOD) == 3
    assert GOOD.input_shape == (2,)
    assert GOOD.num_classes == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.ones((3, 2))}, "x is float64"),
        ({"x": np.ones(3, np.float32)}, "must be float32"),
        ({"x": np.ones((3, 0), np.float32)}, "not empty"),
        ({"x": np.full((3, 2), np.nan, np.float32)}, "not finite"),
        ({"x": np.full((3, 2), np.inf, np.float32)}, "not finite"),
        ({"x": np.ones((0, 2), np.float32), "refused": (Refused(7, "it is bad"),)}, r"\(7\) because it is bad"),
        ({"y": np.array([0, 1])}, "y has shape"),
        ({"y": np.array([0, 1, 2])}, r"class number lies outside 0\.\.1"),
        ({"y": np.array([0, 1, -1])}, "span -1"),
        ({"device": np.array([0, 0, 2])}, "device number"),
        ({"x": np.full((3, 2), 5), "vocabulary": 5}, "token number"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], says: str):
    with pytest.raises(DataError, match=says):
        replace(GOOD, **change)


def test_infinities_of_both_signs_do_not_cancel():
    x = np.array([[np.inf, -np.inf], [0, 0], [0, 0]], np.float32)
    with pytest.raises(DataError, match="not finite"):
        replace(GOOD, x=x)


def test_number_sorts():
    place, found = number([30, 4, 30])
    assert place.tolist() == [1, 0, 1]
    assert found == ("4", "30")


def test_digits():
    sets = pytest.importorskip("sklearn.datasets")
    data = load("digits")
    x, y = sets.load_digits(return_X_y=True)
    assert np.array_equal(data.x.reshape(1797, 64), (x / 16.0).astype(np.float32))
    assert np.array_equal(data.y, y)
    assert data.x.shape == (1797, 1, 8, 8)
    assert float(data.x.max()) == 1.0
    assert np.bincount(data.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.key == ""


def test_the_page_on_data_runs_and_names_every_set():
    pytest.importorskip("sklearn")
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, {})
    for name in names():
        assert f"| `{name}` |" in page
        if any(file.fetch == "no converter" for file in describe(name).files):
            assert "no converter" in next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
