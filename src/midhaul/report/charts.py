"""The charts of a report, as SVG for an HTML page: the same numbers give the same bytes, and no state is left."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from midhaul.report.groups import Group, Point
from midhaul.report.looks import GATE_STYLES, KIND_COLOURS, KIND_HATCHES, Style
from midhaul.report.runs import KINDS, Cascade, Round, Run
from midhaul.units import format_bytes, format_joules, format_seconds

WIDTH_IN, HEIGHT_IN = 5.6, 3.7
STRIP_DEVICES = 150  # more devices than this are thinned out in a strip
_DARK, _GREY, _GRID, _RED = "#1a1a1a", "#555555", "#e4e4e4", "#B3261E"
_LOOK = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _DARK,
    "axes.labelcolor": _DARK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _DARK,
    "ytick.labelcolor": _DARK,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "midhaul",
}
_AXES: dict[str, tuple[str, Callable[[Round], float]]] = {
    "rounds": ("rounds", lambda r: float(r.round)),
    "bytes": ("bytes on the air, up and down, all devices (log)", lambda r: float(r.link_bytes)),
    "joules": ("energy of all devices, radio and computing (log)", lambda r: r.device_joules),
}
_QUERY_AXES: dict[str, tuple[str, Callable[[float], str]]] = {
    "bytes": ("bytes on the link, up and down, mean of a query", format_bytes),
    "joules": ("energy of the device, mean of a query", format_joules),
    "seconds": ("time to the answer, mean of a query", format_seconds),
}


def accuracy(groups: Sequence[Group], looks: dict[str, Style], over: str, name: str) -> str:
    """Gives accuracy over "rounds", "bytes" or "joules"; empty if no round was tested.

    A scheme that spent nothing has no place on a log axis: its last accuracy is drawn as a level line that says so.
    """
    axis, x = _AXES[over]
    curves = {group.label: group.curve(x) for group in groups}
    if not any(curves.values()):
        return ""
    positive = [point.x for curve in curves.values() for point in curve if point.x > 0]
    if over != "rounds" and not positive:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for label, curve in curves.items():
            _curve(axes, [point for point in curve if over == "rounds" or point.x > 0], looks[label])
        if over == "rounds":
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
        else:
            _log_x(axes, min(positive), max(positive), over)
        axes.set(xlabel=axis, ylabel="test accuracy (%)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1.0), min(high, 101.0))
        for place, label in enumerate(() if over == "rounds" else free(groups, over)):
            _level(axes, f"{label}: 0 {over}", looks[label], curves[label][-1], place)

    return to_svg(draw, name, HEIGHT_IN, f"Test accuracy over {axis}")


def free(groups: Sequence[Group], over: str) -> list[str]:
    """Gives the labels of the groups that were tested and had spent no "bytes" or "joules" by then."""
    curves = {group.label: group.curve(_AXES[over][1]) for group in groups}
    return [label for label, curve in curves.items() if curve and curve[-1].x == 0]


def spread(groups: Sequence[Group], looks: dict[str, Style], name: str) -> str:
    """Gives the accuracy of each device as a strip of dots with a box for each scheme; empty if none was tested."""
    tested = {group.label: [v for run in group.runs for v in run.device_accuracy if v is not None] for group in groups}
    values = {label: sorted(100 * v for v in each) for label, each in tested.items()}
    if not any(values.values()):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, group in enumerate(groups):
            each, look = values[group.label], looks[group.label]
            if not each:
                axes.text(0.01, place, "not tested", va="center", color=_GREY, transform=axes.get_yaxis_transform())
                continue
            shown = _thinned(each)
            # Multiples of the golden ratio spread dots evenly without a random number.
            jitter = [place + 0.5 * ((i * 0.618034) % 1.0 - 0.5) for i in range(len(shown))]
            axes.plot(shown, jitter, "o", ms=3.4, mew=0, color=look.colour, alpha=0.55, gid=f"strip-{place}")
            low, mid, high = np.quantile(each, [0.25, 0.5, 0.75])
            axes.add_patch(Rectangle((low, place - 0.32), high - low, 0.64, fill=False, ec=_DARK, lw=0.9))
            axes.plot([mid, mid], [place - 0.32, place + 0.32], color=_DARK, lw=2.0, solid_capstyle="butt")
        _rows(axes, [group.label for group in groups])
        spare = max(0, 4 - len(groups)) / 2
        axes.set_ylim(len(groups) - 0.5 + spare, -0.5 - spare)
        axes.set_xlabel("accuracy on a device's test rows (%)")

    return to_svg(draw, name, max(HEIGHT_IN, _height(groups)), "Accuracy of each device")


def memory(groups: Sequence[Group], looks: dict[str, Style], what: str, name: str) -> str:
    """Gives what a device needs of "flash" or "SRAM" as bars, each against its board's limit."""
    pairs = [_need(group.runs[0], what) for group in groups]
    known = [value for pair in pairs for value in pair if value > 0]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        most, least = max(known, default=1.0), min(known, default=1.0)
        log = most > 64 * least
        start = 2.0 ** math.floor(math.log2(least) - 1) if log else 0.0
        for place, (group, (need, limit)) in enumerate(zip(groups, pairs, strict=True)):
            over = 0 < limit < need
            colour = looks[group.label].colour
            fill, hatch = ("white", "////") if over else (colour, None)
            axes.barh(place, max(need - start, 0.0), 0.62, left=start, color=fill, ec=colour, hatch=hatch)
            text = format_bytes(need)
            if limit:
                axes.plot([limit, limit], [place - 0.5, place + 0.5], color=_RED, lw=1.8, solid_capstyle="butt")
                text += f", {format_bytes(need - limit)} over" if over else f" ({100 * need / limit:.0f} %)"
            _behind(axes, place, text, _RED if over else _DARK)
        end = most * (1.5 if log else 1.05)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xlim(start, end)
        _bytes_ticks(axes, start, end, log)
        _rows(axes, [group.label for group in groups])
        axes.set_xlabel(f"{what} of one device{' (log)' if log else ''}; red: the board's limit")

    return to_svg(draw, name, _height(groups), f"{what} that a device needs, against its board's limit")


def crossed(groups: Sequence[Group], direction: str, name: str) -> str:
    """Gives what crossed the link "up" or "down" as stacked bars of its kinds, each bar with its bytes."""
    kinds = {group.label: group.kind_bytes(direction) for group in groups}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, group in enumerate(groups):
            total = sum(kinds[group.label].values())
            left = 0.0
            for kind in KINDS:
                share = 100 * kinds[group.label][kind] / total if total else 0.0
                if share > 0:
                    hatch = KIND_HATCHES.get(kind)
                    axes.barh(place, share, 0.66, left=left, color=KIND_COLOURS[kind], ec="white", lw=0.6, hatch=hatch)
                left += share
            _behind(axes, place, format_bytes(total) if total else "nothing")
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        _rows(axes, [group.label for group in groups])
        axes.set_xlabel(f"share of the bytes {'from' if direction == 'up' else 'to'} the devices (%), and the bytes")

    return to_svg(draw, name, _height(groups), f"Kinds of bytes sent {direction}")


def tradeoff(cascade: Cascade, over: str, name: str) -> str:
    """Gives a cascade's accuracy against "bytes", "joules" or "seconds" of a query, a line for each gate.

    A diamond is one model by itself, the ring the thresholds that were chosen. What costs far more than the rest is
    told at the right edge.
    """
    axis, show = _QUERY_AXES[over]
    chosen = next((spot for spot in cascade.spots if spot.chosen), None)
    alone = [spot for spot in cascade.spots if not spot.gate]
    drawn = [spot for curve in cascade.curves.values() for spot in curve]
    end = 1.08 * max(getattr(spot, over) for spot in drawn) or 1.0

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for gate, curve in cascade.curves.items():
            look, ordered = GATE_STYLES[gate], sorted(curve, key=lambda spot: (getattr(spot, over), spot.accuracy))
            x, y = [getattr(spot, over) for spot in ordered], [100 * spot.accuracy for spot in ordered]
            style, every = (0, look.dash) if look.dash else "-", max(1, len(x) // 7)
            axes.plot(x, y, color=look.colour, ls=style, lw=1.5, marker=look.marker, ms=4, mew=0, markevery=every)
        for spot in alone:
            cost, height = getattr(spot, over), 100 * spot.accuracy
            text = spot.name if cost <= end else f"{spot.name}: {show(cost)} \u2192"
            place = min(cost, end)
            axes.plot([place], [height], "D", ms=6, color=_DARK, mec="white", mew=0.8, clip_on=False, zorder=5)
            right = place > 0.6 * end
            axes.annotate(
                text,
                (place, height),
                (4, -8) if cost > end else (-7, 8) if right else (10, -2),
                textcoords="offset points",
                ha="right" if right else "left",
                va="top" if cost > end else "bottom" if right else "center",
                fontsize=8,
                annotation_clip=False,
            )
        if chosen is not None:
            at = [getattr(chosen, over)], [100 * chosen.accuracy]
            axes.plot(*at, "o", ms=12, mfc="none", mec=_RED, mew=1.8, clip_on=False, zorder=6)
        axes.set_xlim(0.0, end)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.08 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _neat(show(value))))
        axes.set(xlabel=axis, ylabel="accuracy on the test rows (%)")

    return to_svg(draw, name, HEIGHT_IN, f"Accuracy against {axis}")


def arena(run: Run, name: str) -> str:
    """Gives the arena map of a run's device: each buffer a box over the steps it lives in and the bytes it holds."""
    buffers = [buffer for buffer in run.buffers if buffer.bytes]
    if not buffers:
        return ""
    steps, top = max(buffer.last for buffer in buffers) + 1, max(buffer.offset + buffer.bytes for buffer in buffers)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for buffer in sorted(buffers, key=lambda b: (b.offset, b.first)):
            long = buffer.last - buffer.first + 1
            whole = long == steps
            face = "#D9E6F2" if whole else "#FBE3C0"
            axes.add_patch(Rectangle((buffer.first, buffer.offset), long, buffer.bytes, fc=face, ec="#4d4d4d", lw=0.7))
            text = f"{buffer.name}, {format_bytes(buffer.bytes)}"
            if buffer.bytes > 0.04 * top and len(text) < 140 * long / steps:
                centre = (buffer.first + long / 2, buffer.offset + buffer.bytes / 2)
                axes.text(*centre, text, ha="center", va="center", fontsize=8)
        axes.set_xlim(0, steps)
        axes.set_ylim(0, top * 1.04)
        ticks = _even_steps(top * 1.04)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _neat(format_bytes(value))))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
        axes.set(xlabel="step of the op that needs most", ylabel="place in the arena")

    return to_svg(draw, name, 4.6, "Arena map", width_in=2 * WIDTH_IN)


def to_svg(draw: Callable[[Figure], None], name: str, height_in: float, title: str, width_in: float = WIDTH_IN) -> str:
    """Gives a figure as an SVG element without date, size or version, whose ids begin with `name`."""
    out = io.StringIO()
    with matplotlib.style.context(["default", _LOOK]), warnings.catch_warnings():
        # The page's reader has more fonts than the one that widths are measured in.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="none")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)  # type: ignore[no-untyped-call]
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style type=.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{html.escape(title)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).strip()


def _curve(axes: Axes, curve: Sequence[Point], look: Style) -> None:
    if not curve:
        return
    x = [point.x for point in curve]
    mean, low, high = ([100 * getattr(p, which) for p in curve] for which in ("accuracy", "low", "high"))
    if any(a < b for a, b in zip(low, high, strict=True)):
        axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
    every = max(1, len(x) // 8)
    marks = sorted({*range(len(x) - 1, -1, -every)})
    style = (0, look.dash) if look.dash else "-"
    axes.plot(
        x, mean, color=look.colour, ls=style, lw=1.7, marker=look.marker, ms=5, mec="white", mew=0.5, markevery=marks
    )


def _level(axes: Axes, text: str, look: Style, point: Point, place: int) -> None:
    level = 100 * point.accuracy
    axes.axhline(level, color=look.colour, ls=(0, look.dash or (1, 1)), lw=1.5)
    box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 1.0}
    high = level > sum(axes.get_ylim()) / 2
    axes.annotate(
        text,
        (0.02 + 0.3 * (place % 3), level),
        (0, -4 if high else 4),
        axes.get_yaxis_transform(),
        textcoords="offset points",
        va="top" if high else "bottom",
        color=look.colour,
        fontsize=8,
        bbox=box,
    )


def _log_x(axes: Axes, low: float, high: float, over: str) -> None:
    """Sets a log axis with few ticks: powers of 1024's roots for bytes, of 10 for joules."""
    grow = max((high / low) ** 0.05, 1.15)
    low, high = low / grow, high * grow
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if over == "bytes":
        _bytes_ticks(axes, low, high, log=True)
        return
    decades = math.log10(high / low)
    parts = (1, 2, 5) if decades < 2.2 else (1,) if decades > 3.5 else (1, 3)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [part * 10.0**e for e in exponents for part in parts if low <= part * 10.0**e <= high]
    _ticks(axes, ticks[:: max(1, -(-len(ticks) // 7))] or [low, high], lambda value: _neat(format_joules(value)))


def _bytes_ticks(axes: Axes, low: float, high: float, log: bool) -> None:
    if log:
        first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
        step = max(1, -(-(last - first) // 5))
        ticks = [2.0**e for e in range(first + (-first) % step, last + 1, step)] or [low, high]
    else:
        ticks = _even_steps(high)
    _ticks(axes, ticks, lambda value: _neat(format_bytes(value)))


def _ticks(axes: Axes, ticks: Sequence[float], show: Callable[[float], str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def _even_steps(high: float) -> list[float]:
    """Gives four to eight ticks from 0 that are round in powers of two."""
    step = 2.0 ** math.ceil(math.log2(max(high, 1.0) / 8))
    return [step * i for i in range(int(high / step) + 1)]


def _neat(text: str) -> str:
    return text.replace(".0 ", " ")


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names the rows of a horizontal chart from the top down."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _height(groups: Sequence[Group]) -> float:
    return 0.85 + 0.36 * max(len(groups), 2)


def _behind(axes: Axes, place: int, text: str, colour: str = _DARK) -> None:
    """Writes to the right of the axes, level with a row."""
    axes.text(1.015, place, text, va="center", color=colour, transform=axes.get_yaxis_transform())


def _need(run: Run, what: str) -> tuple[int, int]:
    """Gives the bytes of "flash" or "SRAM" that a device needs, and those that its board has."""
    if what == "flash":
        return run.flash_bytes, run.flash_limit_bytes
    return run.sram_bytes, run.sram_limit_bytes


def _thinned(values: Sequence[float]) -> list[float]:
    """Gives at most STRIP_DEVICES of sorted values, evenly by rank, with the first and the last."""
    if len(values) <= STRIP_DEVICES:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, STRIP_DEVICES)]
