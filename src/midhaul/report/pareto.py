"""Pareto plots: accuracy against joules, seconds, bytes and SRAM, with the front, what was chosen, and the limits."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from midhaul.report import markup
from midhaul.report.charts import to_svg
from midhaul.report.groups import Group
from midhaul.report.looks import Style
from midhaul.report.spent import to_target
from midhaul.units import format_bytes, format_joules, format_seconds

COSTS = ("joules", "seconds", "bytes", "sram_bytes")
AXES: dict[str, tuple[str, Callable[[float], str]]] = {
    "joules": ("energy of all devices", format_joules),
    "seconds": ("simulated time", format_seconds),
    "bytes": ("bytes on the link, up and down, all devices", format_bytes),
    "sram_bytes": ("SRAM that a device needs", format_bytes),
}
_DARK, _GREY, _RED, _FRONT = "#1a1a1a", "#555555", "#B3261E", "#8a8a8a"
_HEIGHT_IN = 4.1
_LOG, _LOG_ERRORS = 6.0, 3.0  # costs and errors so many times apart are drawn on a log axis
_FAR = 30.0  # a limit this many times beyond all costs is told at the edge
_FINE = tuple(100.0 - part * 10.0**power for power in (-2, -1, 0, 1) for part in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8))
_ROUND = (
    _FINE,
    (99.9, 99.8, 99.5, 99.0, 98.0, 97.0, 96.0, 95.0, 92.0, 90.0, 85.0, 80.0, 70.0, 60.0, 50.0, 30.0, 0.0),
    (99.9, 99.8, 99.5, 99.0, 98.0, 95.0, 90.0, 80.0, 50.0, 0.0),
    (99.99, 99.9, 99.0, 90.0, 0.0),
)  # ticks of a log axis of errors, the first that are few enough
_SECONDS = (60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 43_200.0, 86_400.0)


@dataclass(frozen=True)
class Spot:
    """A way to train: its accuracy from 0 to 1, what it costs, how it is drawn.

    `costs` has the names of COSTS that are known. `low` and `high` are the ends of the accuracy's whisker. `reaches`
    is False where it doesn't become as accurate as wanted. `name` is what it is called on the front, if not its label.
    """

    label: str
    accuracy: float
    costs: Mapping[str, float]
    look: Style
    low: float
    high: float
    reaches: bool = True
    chosen: bool = False
    name: str = ""


def front(spots: Sequence[Spot], over: str) -> list[Spot]:
    """Gives the spots that none beats in this cost and in accuracy alike, the cheapest first.

    Of spots that lie on one another the first stands for all.
    """
    best: list[Spot] = []
    for spot in sorted((s for s in spots if over in s.costs), key=lambda s: (s.costs[over], -s.accuracy)):
        if not best or spot.accuracy > best[-1].accuracy:
            best.append(spot)
    return best


def chart(
    spots: Sequence[Spot], over: str, name: str, *, target: float = 0.0, aim: float = 0.0, limit: float = 0.0
) -> str:
    """Gives accuracy against a cost as SVG; empty if none has that cost, or it is nothing.

    `target` and `limit` are drawn as lines where they are given, and so is `aim`, the accuracy that candidates were
    held to. Spots without a place on a log axis, for they cost nothing, are drawn at its left end.
    """
    shown = [spot for spot in spots if over in spot.costs]
    known = [spot.costs[over] for spot in shown if spot.costs[over] > 0.0]
    if not known:
        return ""
    axis, show = AXES[over]

    def draw(figure: Figure) -> None:
        figure.set_dpi(72)  # that of SVG, in which pixels are points
        axes = figure.add_subplot()
        log = max(known) > _LOG * min(known)
        near = limit if 0.0 < limit <= _FAR * max(known) else 0.0
        least, most = min([*known, near or max(known)]), max([*known, near])
        start = least / _grow(least, most) if log else 0.0
        end = most * _grow(least, most) if log else 1.1 * most
        if log:
            axes.set_xscale("log")
        axes.set_xlim(start, end)
        _x_ticks(axes, over, start, end, log)
        errors = _y_axis(axes, shown, [level for level in (target, aim) if level])
        places = {id(spot): (max(spot.costs[over], start), errors(spot.accuracy)) for spot in shown}
        ahead = front(shown, over)
        drawn = [_front(axes, [places[id(spot)] for spot in ahead])]
        for spot in shown:
            ends = errors(spot.low), errors(spot.high)
            drawn.append([(places[id(spot)][0], end) for end in ends])
            _spot(axes, spot, places[id(spot)], ends)
        told = "accuracy (%), errors on a log scale" if axes.get_yscale() == "log" else "accuracy (%)"
        axes.set(xlabel=f"{axis}{' (log)' if log else ''}", ylabel=told)
        if limit:
            _limit(axes, _neat(show(limit)), limit, near > 0.0)
        figure.draw_without_rendering()  # names are placed in the layout that stays
        figure.set_layout_engine("none")
        marks = [_around(*axes.transData.transform(place)) for place in places.values()]
        drawn += [[(near, axes.get_ylim()[0]), (near, axes.get_ylim()[1])]] if near else []
        strokes = [box for line in drawn for box in _strokes(axes, line)]
        named = _lines(axes, errors, target, aim, [*marks, *strokes])
        strokes += [
            _strokes(axes, [(start, errors(level)), (end, errors(level))])[0] for level in (target, aim) if level
        ]
        _names(axes, shown, places, ahead, [*named, *marks], strokes)

    return to_svg(draw, name, _HEIGHT_IN, f"Accuracy against {axis}")


def _grow(least: float, most: float) -> float:
    return float(max((most / least) ** 0.08, 1.2))


def _spot(axes: Axes, spot: Spot, place: tuple[float, float], whisker: tuple[float, float]) -> None:
    face = spot.look.colour if spot.reaches else "white"
    if whisker[0] != whisker[1]:
        axes.plot([place[0]] * 2, whisker, color=spot.look.colour, lw=1.0, solid_capstyle="butt", zorder=2)
    axes.plot(*place, spot.look.marker, ms=6, mfc=face, mec=spot.look.colour, mew=1.3, clip_on=False, zorder=4)
    if spot.chosen:
        axes.plot(*place, "o", ms=12, mfc="none", mec=_RED, mew=1.8, clip_on=False, zorder=5)


def _front(axes: Axes, corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Draws the front as stairs: between two ways there is none, and what the cheaper reaches is what is had.

    Gives the corners of the stairs.
    """
    line = [(corners[0][0], axes.get_ylim()[0])]
    for place, (x, y) in enumerate(corners):
        line += [(x, y), (corners[place + 1][0] if place + 1 < len(corners) else axes.get_xlim()[1], y)]
    axes.plot(*zip(*line, strict=True), color=_FRONT, lw=1.3, zorder=1)
    return line


def _around(x: float, y: float) -> Bbox:
    """Gives the box of a mark. Units: points."""
    return Bbox.from_bounds(x - 4.5, y - 4.5, 9.0, 9.0)


def _strokes(axes: Axes, line: Sequence[tuple[float, float]]) -> list[Bbox]:
    """Gives the thin boxes of a line that goes straight up or across. Units: points."""
    at = axes.transData.transform(line)
    return [
        Bbox.from_extents(*(np.minimum(one, other) - 1.0), *(np.maximum(one, other) + 1.0))
        for one, other in itertools.pairwise(at)
    ]


def _limit(axes: Axes, name: str, limit: float, near: bool) -> None:
    """Draws a limit, with its name above the axes; one that lies beyond the costs is told there."""
    if near:
        axes.axvline(limit, color=_RED, ls=(0, (5, 2)), lw=1.1, zorder=1)
        axes.annotate(
            f"limit {name}", (limit, 1.0), (0, 3), axes.get_xaxis_transform(), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, color=_RED,
        )  # fmt: skip
    else:
        axes.set_title(f"the limit lies beyond: {name} \u2192", loc="right", fontsize=8, color=_RED)


def _lines(
    axes: Axes,
    errors: Callable[[float], float],
    target: float,
    aim: float,
    taken: Sequence[Bbox],
) -> list[Bbox]:
    """Draws target and aim, each with its name, and gives where the names are. Units: points."""
    box, found = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.8}, []
    high = aim > target
    for level, what, dash, above in ((target, "target", (5, 2), not high), (aim, "asked for", (1.5, 1.5), high)):
        if not level or (what == "asked for" and abs(level - target) < 1e-9):
            continue
        axes.axhline(errors(level), color=_RED, ls=(0, dash), lw=1.1, zorder=1)
        text = axes.annotate(
            f"{what} {100 * level:.1f} %".replace(".0 ", " "), (1.0, errors(level)), (-2, 3 if above else -3),
            axes.get_yaxis_transform(), textcoords="offset points", ha="right",
            va="bottom" if above else "top", fontsize=8, color=_RED, bbox=box,
        )  # fmt: skip
        right = sum(text.get_window_extent().overlaps(other) for other in taken)
        text.xy, text.xyann = (0.0, errors(level)), (3, text.xyann[1])
        text.set_horizontalalignment("left")
        if right <= sum(text.get_window_extent().overlaps(other) for other in taken):
            text.xy, text.xyann = (1.0, errors(level)), (-2, text.xyann[1])
            text.set_horizontalalignment("right")
        found.append(text.get_window_extent())
    return found


def _names(
    axes: Axes,
    spots: Sequence[Spot],
    places: Mapping[int, tuple[float, float]],
    ahead: Sequence[Spot],
    taken: Sequence[Bbox],
    strokes: Sequence[Bbox],
) -> None:
    """Names every spot, those on the front in bold and first, each where its name hides little."""
    taken = list(taken)
    at = {key: tuple(axes.transData.transform(place)) for key, place in places.items()}
    named: list[tuple[list[Spot], tuple[float, float]]] = []
    order = sorted(spots, key=lambda spot: (not spot.chosen, not any(spot is one for one in ahead)))
    for spot in order:  # those that can't be told apart have one name
        alike = next((group for group, there in named if math.dist(at[id(spot)], there) < 3.0), None)
        if alike is None:
            named.append(([spot], at[id(spot)]))
        else:
            alike.append(spot)
    for group, (x, y) in named:
        bold = any(spot is one for spot in group for one in ahead) or any(spot.chosen for spot in group)
        labels = [spot.name or spot.label if bold and place == 0 else spot.label for place, spot in enumerate(group)]
        text = axes.annotate(
            ", ".join(_in_order(labels)), places[id(group[0])], (0, 0),
            textcoords="offset points", ha="left", va="bottom", fontsize=8, fontweight="bold" if bold else "normal",
            color=_DARK if bold else _GREY, annotation_clip=False,
        )  # fmt: skip
        box = _free(text.get_window_extent(), (x, y), axes.get_window_extent(), taken, strokes)
        text.xyann = (box.x0 - x, box.y0 - y)
        taken.append(box)
        near = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
        if math.dist(near, (x, y)) > 13.0:
            ends = [axes.transData.inverted().transform(end) for end in ((x, y), near)]
            axes.plot(*zip(*ends, strict=True), color=_GREY, lw=0.5, clip_on=False, zorder=1.5)


def _free(size: Bbox, spot: tuple[float, float], inside: Bbox, taken: Sequence[Bbox], strokes: Sequence[Bbox]) -> Bbox:
    """Gives where a name hides least, the nearest to its spot of the best places: strokes count less. Units: points."""
    best: tuple[float, Bbox] | None = None
    for far in (7.0, 11.0, 16.0, 23.0, 31.0, 40.0, 50.0):
        for lean_x, lean_y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            aslant = 0.7 if lean_x and lean_y else 1.0
            left = spot[0] + aslant * lean_x * far - (0.0, 0.5, 1.0)[1 - lean_x] * size.width
            low = spot[1] + aslant * lean_y * far - (0.0, 0.5, 1.0)[1 - lean_y] * size.height
            box = Bbox.from_bounds(left, low, size.width, size.height)
            out = box.x0 < inside.x0 or box.x1 > inside.x1 + 4 or box.y0 < inside.y0 or box.y1 > inside.y1 + 7
            hidden = sum(box.overlaps(other) for other in taken) + 3 * out
            cost = hidden + 0.3 * sum(box.overlaps(other) for other in strokes) + 0.015 * far
            if best is None or cost < best[0]:
                best = cost, box
    assert best is not None
    return best[1]


def _in_order(labels: Sequence[str]) -> list[str]:
    """Gives labels once each, those that begin with a number by its size."""

    def key(label: str) -> tuple[int, str]:
        number = label.split()[0]
        return (int(number) if number.isdigit() else 0, label)

    return sorted(dict.fromkeys(labels), key=key)


def _y_axis(axes: Axes, spots: Sequence[Spot], levels: Sequence[float]) -> Callable[[float], float]:
    """Sets the accuracy's axis, and gives where an accuracy is on it.

    Where errors are many times apart it is a log axis of the errors, or the best would be on one another.
    """
    values = [value for spot in spots for value in (spot.accuracy, spot.low, spot.high)]
    lowest, highest = min(*values, *levels, 1.0), max([*values, *levels])
    errors = [1.0 - value for value in (lowest, highest)]
    if highest < 1.0 and errors[0] > _LOG_ERRORS * errors[1]:
        wide = max((errors[0] / errors[1]) ** 0.08, 1.1)
        axes.set_yscale("log")
        axes.set_ylim(100 * min(errors[0] * wide, 1.0), 100 * errors[1] / wide)
        ticks = next(fitting for part in _ROUND if len(fitting := _within(part, *axes.get_ylim())) < 8)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100.0 - error:.4g}"))
        return lambda accuracy: 100.0 * max(1.0 - accuracy, errors[1] / wide)
    pad = 0.1 * max(highest - lowest, 0.02)
    axes.set_ylim(100 * max(lowest - pad, -0.01), 100 * min(highest + pad, 1.01))
    return lambda accuracy: 100.0 * accuracy


def _within(accuracies: Sequence[float], high: float, low: float) -> list[float]:
    """Gives the errors of those accuracies that the axis shows, in percent."""
    return [100.0 - value for value in accuracies if low <= 100.0 - value <= high * (1.0 + 1e-9)]


def _x_ticks(axes: Axes, over: str, start: float, end: float, log: bool) -> None:
    if over.endswith("bytes"):
        ticks = _powers(start, end) if log else [_step(end, 2.0) * i for i in range(20)]
    elif log:
        ticks = _decades(start, end, over)
    else:
        ticks = [_step(end, 10.0) * i for i in range(20)]
    show = AXES[over][1]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if start <= tick <= end]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _neat(show(value))))


def _powers(start: float, end: float) -> list[float]:
    first, last = math.ceil(math.log2(start)), math.floor(math.log2(end))
    step = max(1, -(-(last - first) // 5))
    return [2.0**power for power in range(first + (-first) % step, last + 1, step)] or [start, end]


def _decades(start: float, end: float, over: str) -> list[float]:
    """Gives round numbers on a log axis; above a minute those of clocks."""
    wide = math.log10(end / start)
    parts = (1, 2, 5) if wide < 2.0 else (1, 3) if wide < 3.5 else (1,)
    whole = [part * 10.0**power for power in range(-12, 16) for part in parts]
    if over == "seconds":
        clock = _SECONDS if wide < 3.5 else _SECONDS[::2]
        whole = (
            [tick for tick in whole if tick < 40.0] + list(clock) + [tick * 86_400.0 for tick in whole if tick > 1.0]
        )
    inside = [tick for tick in whole if start <= tick <= end]
    return inside[:: max(1, -(-len(inside) // 7))] or [start, end]


def _step(end: float, base: float) -> float:
    """Gives a round step that makes four to eight of `end`: a power of 2, or 1, 2 or 5 of a power of 10."""
    if base == 2.0:
        return float(2.0 ** math.ceil(math.log2(end / 8.0)))
    power = 10.0 ** math.floor(math.log10(end / 4.0))
    return next(part * power for part in (5.0, 2.0, 1.0) if part * power <= end / 4.0)


def _neat(text: str) -> str:
    return text.replace(".0 ", " ").replace("m00s", " min").replace("h00m", " h")


def figures(
    spots: Sequence[Spot],
    name: str,
    said: Mapping[str, str],
    *,
    target: float = 0.0,
    aim: float = 0.0,
    limits: Mapping[str, float] | None = None,
) -> str:
    """Gives the plots of all costs that are known, side by side, each with what is `said` beneath; empty if none is."""
    found = []
    for over in COSTS:
        most = (limits or {}).get(over, 0.0)
        if svg := chart(spots, over, f"{name}-{over}", target=target, aim=aim, limit=most):
            found.append(markup.figure(svg, said[over]))
    return f'<div class="grid">{"".join(found)}</div>' if found else ""


def measured(groups: Sequence[Group], looks: Mapping[str, Style]) -> list[Spot]:
    """Gives a spot for each group that was tested: where its runs ended, means over seeds."""
    found = []
    for group in groups:
        values, aimed = group.accuracies(), to_target([run.target for run in group.runs])
        if not values:
            continue
        costs = {
            "joules": group.mean(lambda run: run.device_joules),
            "bytes": group.mean(lambda run: run.uplink_bytes + run.downlink_bytes),
            "sram_bytes": group.mean(lambda run: run.sram_bytes),
        }
        if all(run.simulated_seconds is not None for run in group.runs):
            costs["seconds"] = group.mean(lambda run: run.simulated_seconds or 0.0)
        reaches = aimed is None or aimed.num_reached == aimed.num_seeds
        mean, look = statistics.fmean(values), looks[group.label]
        found.append(Spot(group.label, mean, costs, look, min(values), max(values), reaches))
    return found
