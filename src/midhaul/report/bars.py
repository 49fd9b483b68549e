"""Pictures of where a run's joules and seconds went: a bar a device, sorted, parted by what it went into."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from midhaul.report.charts import HEIGHT_IN, to_svg
from midhaul.report.spent import Spent
from midhaul.runtime.ledger import WHATS
from midhaul.units import format_joules, format_seconds

MAX_BARS = 200  # more devices than this are drawn as so many bars, each the mean of neighbours
COLOURS = {"compute": "#0072B2", "transmit": "#D55E00", "receive": "#F0C05A", "idle": "#C9CCD1"}
HATCHES = {"compute": "", "transmit": "////", "receive": "....", "idle": ""}
WORDS = {"compute": "computing", "transmit": "sending", "receive": "receiving", "idle": "nothing to do"}
_RED = "#B3261E"


def devices(spent: Spent, of: str, name: str) -> str:
    """Gives the bars of "joules" or "seconds"; empty if there are none. A red mark: its battery is empty."""
    totals = np.asarray(spent.totals(of))
    if not len(totals) or not totals.any():
        return ""
    parts = spent.joules if of == "joules" else spent.seconds
    rank = totals if of == "joules" else totals - np.asarray(parts["idle"])
    order = np.argsort(-rank, kind="stable")
    groups = np.array_split(order, min(len(order), MAX_BARS))
    show = format_joules if of == "joules" else format_seconds

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        x, foot = np.arange(len(groups)), np.zeros(len(groups))
        width = 0.82 if len(groups) <= 60 else 1.0
        for what in WHATS:
            values = np.asarray(parts[what])
            heights = np.asarray([values[group].mean() for group in groups])
            if heights.any():
                axes.bar(
                    x, heights, width, bottom=foot, color=COLOURS[what], ec="white", lw=0.0,
                    hatch=HATCHES[what] if len(groups) <= 60 else None,
                )  # fmt: skip
            foot += heights
        empty = [place for place, group in enumerate(groups) if any(spent.gone[device] is not None for device in group)]
        axes.plot(x[empty], foot[empty] + 0.02 * foot.max(), "v", ms=4, color=_RED, mew=0, clip_on=False)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylim(0.0, 1.06 * foot.max())
        if len(groups) <= 25:
            axes.set_xticks(x, [spent.names[group[0]] for group in groups], rotation=60, ha="right", fontsize=8)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            scale = len(order) / len(groups)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * scale:.0f}"))
            axes.set_xlabel("devices, those that spent most first" if of == "joules" else "devices, the busiest first")
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value).replace(".0 ", " ")))
        axes.set_ylabel("energy of a device" if of == "joules" else "simulated time of a device")

    return to_svg(draw, name, HEIGHT_IN, f"Where the {of} of each device went")
