"""Pictures of a run's cell: a map of who hears how well, and how fast the devices are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import RegularPolygon
from matplotlib.ticker import FixedLocator, FuncFormatter

from midhaul.report.cells import CellMap
from midhaul.report.charts import HEIGHT_IN, to_svg

_DARK, _UP, _DOWN, _RED = "#1a1a1a", "#D55E00", "#0072B2", "#B3261E"


def places(cell: CellMap, name: str) -> str:
    """Gives the map: base stations, the centre's hexagon, and each device coloured by how well it hears."""
    served = np.asarray(cell.served)
    x, y, ratio = np.asarray(cell.x), np.asarray(cell.y), np.asarray(cell.ratio_db)
    low, high = np.quantile(ratio[served], [0.02, 0.98]) if served.any() else (0.0, 1.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for east, north in cell.sites:
            corner = cell.inter_site_m / math.sqrt(3.0)
            hexagon = RegularPolygon((east, north), 6, radius=corner, orientation=0.0, fill=False, ec="#bbbbbb", lw=0.8)
            axes.add_patch(hexagon)
        axes.plot(*zip(*cell.sites, strict=True), "^", ms=7, color=_DARK, mec="white", mew=0.6, zorder=4)
        size = 9.0 if len(x) > 400 else 26.0
        shown = None
        for marker, chosen in (("o", np.asarray(cell.indoors)), ("s", ~np.asarray(cell.indoors))):
            at = served & chosen
            shown = axes.scatter(
                x[at], y[at], c=ratio[at], s=size, marker=marker, cmap="viridis", vmin=low, vmax=high, lw=0.3,
                ec="white", zorder=3,
            )  # fmt: skip
        axes.plot(x[~served], y[~served], "x", ms=5, color=_RED, mew=1.2, zorder=5)
        reach = 1.06 * max(float(np.abs([x, y]).max()), cell.inter_site_m / math.sqrt(3.0))
        axes.set(
            xlim=(-reach, reach), ylim=(-reach, reach), xlabel="metres east", ylabel="metres north", aspect="equal"
        )
        assert shown is not None
        figure.colorbar(shown, ax=axes, label="signal to noise and interference, down (dB)", shrink=0.9)

    return to_svg(draw, name, 4.4, "Map of the cell")


def rates(cell: CellMap, name: str) -> str:
    """Gives the share of devices that are no faster than so much, up and down."""
    ways = (("down", cell.down_bps, _DOWN, "-"), ("up", cell.up_bps, _UP, (0, (4, 1.5))))
    known = [value for _, values, _, _ in ways for value in values if value > 0.0]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for way, values, colour, style in ways:
            ordered = np.sort(np.maximum(values, min(known) / 2.0))
            share = 100.0 * np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, share, where="post", color=colour, ls=style, lw=1.8)
            middle = len(ordered) // 2
            axes.annotate(
                way, (ordered[middle], share[middle]), (6 if way == "down" else -6, -4), textcoords="offset points",
                color=colour, ha="left" if way == "down" else "right",
            )  # fmt: skip
        low, high = min(known), max(known)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.2, high * 1.2)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in decades if low / 1.2 <= 10.0**power]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bits(value)))
        axes.set(
            xlabel="rate of a device alone in its cell (log)", ylabel="devices that are no faster (%)", ylim=(0, 101)
        )

    return to_svg(draw, name, HEIGHT_IN, "How fast the devices are") if known else ""


def _bits(value: float) -> str:
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} bit/s"
