"""Pareto plots: which ways are on the front, and pictures whose names lie on nothing."""

from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from midhaul.report import pareto
from midhaul.report.looks import Style
from midhaul.report.pareto import Spot, chart, front

LOOK = Style("#0072B2", "o")


def spot(label: str, accuracy: float, joules: float, *, chosen: bool = False, reaches: bool = True) -> Spot:
    return Spot(label, accuracy, {"joules": joules}, LOOK, accuracy, accuracy, reaches, chosen)


MANY = [spot(str(number), 0.9 + 0.002 * (number % 7), 0.1 * 1.3 ** (number % 9)) for number in range(1, 20)]


def test_the_front_is_of_those_that_none_beats() -> None:
    spots = [spot("a", 0.9, 3.0), spot("b", 0.8, 1.0), spot("c", 0.8, 2.0), spot("d", 0.95, 9.0), spot("e", 0.7, 1.0)]
    assert [one.label for one in front(spots, "joules")] == ["b", "a", "d"]
    assert front(spots, "bytes") == []
    twin = spot("twin", 0.9, 3.0)
    assert [one.label for one in front([*spots, twin], "joules")] == ["b", "a", "d"]


def test_what_costs_nothing_is_on_the_front_and_a_cost_that_none_has_is_not_drawn() -> None:
    spots = [spot("free", 0.5, 0.0), spot("a", 0.9, 1.0), spot("b", 0.95, 50.0)]
    assert front(spots, "joules")[0].label == "free"
    assert ">free<" in chart(spots, "joules", "t")
    assert chart(spots, "bytes", "t") == ""
    assert chart([spot("free", 0.5, 0.0)], "joules", "t") == ""


def test_target_limit_and_every_candidate_are_named() -> None:
    svg = chart(MANY, "joules", "t", target=0.9, aim=0.905, limit=2.0)
    for words in ("target 90 %", "asked for 90.5 %", "limit 2 J", "energy of all devices"):
        assert f">{words}" in svg, words
    named = {number for text in re.findall(r"<text[^>]*>([\d, ]+)</text>", svg) for number in text.split(", ")}
    assert {one.label for one in MANY} <= named
    assert "the limit lies beyond: 500 J" in chart(MANY, "joules", "t", limit=500.0)
    assert svg == chart(MANY, "joules", "t", target=0.9, aim=0.905, limit=2.0)


def test_one_way_alone_and_one_that_is_always_right_can_be_drawn() -> None:
    assert "<svg" in chart([spot("a", 1.0, 1.0, chosen=True)], "joules", "t", target=1.0)
    assert "<svg" in chart([spot("a", 1.0, 1.0), spot("b", 0.0, 1e6, reaches=False)], "joules", "t", target=0.9)


def test_no_name_lies_on_another_or_on_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    plain = pareto.to_svg

    def kept(draw, *others):  # type: ignore[no-untyped-def]
        def both(figure: Figure) -> None:
            draw(figure)
            drawn.append(figure)

        return plain(both, *others)

    monkeypatch.setattr(pareto, "to_svg", kept)
    chart(MANY, "joules", "t", target=0.9, aim=0.905, limit=2.0)
    axes = drawn[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    marks = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform([
        (one.costs["joules"], 100 * one.accuracy) for one in MANY
    ])]  # fmt: skip
    assert len(boxes) >= 10
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:number], *marks])
