"""A picture of what was left of a run's limits after each round, and of what was to be left of them at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from midhaul.changes import Change
from midhaul.goals import COSTS, Limit
from midhaul.report.charts import HEIGHT_IN, to_svg
from midhaul.report.runs import Round

_COLOURS = dict(zip(COSTS, ("#0072B2", "#D55E00", "#009E73", "#882255", "#C98600"), strict=True))
_NAMES = {"joules": "energy", "seconds": "time", "bytes": "bytes", "uplink_bytes": "up", "downlink_bytes": "down"}
_RED, _GREY = "#B3261E", "#555555"


def picture(rounds: Sequence[Round], limits: Sequence[Limit], changes: Sequence[Change], name: str) -> str:
    """Gives what was left of each limit after each round, and what was to be left at the end, in percent of it.

    Thin upright lines are new plans, numbered as in the table; where the forecast steps, it is theirs. Empty without
    limits, or without a round that has its costs.
    """
    known = [round for round in rounds if round.costs()]
    if not known or not limits:
        return ""
    planned = {change.round: change for change in changes}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        lows, ends = [0.0], list[tuple[float, str]]()
        for cost, most in limits:
            colour = _COLOURS[cost]
            x, left = [0, *(r.round for r in known if r.round)], [100.0]
            left += [100.0 * (1.0 - r.costs()[cost] / most) for r in known if r.round]
            axes.plot(x, left, color=colour, lw=1.9)
            places, to_come = steps(known, planned, cost)
            ahead = [100.0 * (1.0 - value / most) for value in to_come]
            axes.plot(places, ahead, color=colour, lw=1.4, ls=(0, (4, 2)))
            lows += [*left, *ahead]
            ends.append((left[-1], cost))
        low = max(min(lows), -60.0)  # a forecast may be many times over
        above = low - 100.0
        for value, cost in sorted(ends):  # names that would lie over one another are pushed up
            above = max(value, above + 0.06 * (104.0 - low))
            place = (1.01, above)
            axes.text(*place, _NAMES[cost], transform=axes.get_yaxis_transform(), va="center", color=_COLOURS[cost])
        axes.axhline(0.0, color=_RED, lw=1.4)
        axes.text(0.01, 1.0, "the limit", transform=axes.get_yaxis_transform(), color=_RED, fontsize=8, va="bottom")
        axes.set_ylim(low - 0.06 * (100.0 - low), 104.0)
        for number, at in enumerate(sorted(planned), start=1):
            axes.axvline(at, color=_GREY, lw=0.8, ls=(0, (1, 1.5)))
            axes.annotate(
                str(number),
                (at, 1.0),
                (0, 2),
                axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_xlim(0, known[-1].round * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        axes.set(xlabel="rounds", ylabel="left of the limit")

    return to_svg(draw, name, HEIGHT_IN, "What was left of each limit, and was to be left at the end", 9.0)


def steps(rounds: Sequence[Round], planned: Mapping[int, Change], cost: str) -> tuple[list[int], list[float]]:
    """Gives the rounds and the forecasts of a cost as of them: two of a round after which there was a new plan."""
    places, values = [], []
    for round in rounds:
        for costs in (planned[round.round].before if round.round in planned else {}, round.forecast):
            if costs:
                places.append(round.round)
                values.append(costs[cost])
    return places, values
