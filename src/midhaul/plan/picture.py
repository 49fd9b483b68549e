"""A plan as a page: its Pareto plots, every candidate, why the chosen one, and the config to run."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

from midhaul.plan import table
from midhaul.plan.probe import Forecast, Probe
from midhaul.plan.search import Plan
from midhaul.report import markup, pareto
from midhaul.report.looks import STYLES, Style
from midhaul.report.pareto import Spot

_HEADS = (
    "", "how it is run", "energy", "simulated time", "up", "down", "SRAM", "rounds", "accuracy (%)",
)  # fmt: skip
_SAID = {
    "joules": "Accuracy against the energy of all devices, until the target or, hollow, after all rounds.",
    "seconds": "Against simulated time: computing, waiting for the band, time on the air.",
    "bytes": "Against what crosses the link, up and down, of all devices.",
    "sram_bytes": "Against the SRAM of the device that needs most of its board's.",
}


def page(plan: Plan, command: str) -> str:
    """Gives the page. `command` is what runs the config."""
    looks = _looks(plan)
    spots = [_spot(plan, place, tried, forecast, looks) for place, (tried, forecast) in enumerate(plan.tried)]
    limits = {limit.cost: limit.most for limit in plan.goal.limits}
    legend = markup.legend((name, markup.swatch(look, line=False)) for name, look in looks.items())
    told = (
        "Numbers are those of the table below. A mark is what is expected of a candidate, by simulation on rows that "
        "no test uses. Ring: the chosen one; its line is where nine of ten runs are expected, or, if it wasn't tried "
        "on other rows, one standard error of those that were chosen on. Hollow: not expected to become as accurate as "
        "asked for. The grey stairs are the front: none on it is beaten in accuracy by one that costs less."
    )
    drawn = pareto.figures(spots, "plan", _SAID, target=plan.goal.accuracy, aim=plan.aim.accuracy, limits=limits)
    parts = [
        *(f'<p class="lead">{_e(line)}</p>' for line in table.sentences(plan)),
        "<h2>Accuracy against cost</h2>", legend, f'<p class="note">{_e(told)}</p>', drawn,
        "<h2>Candidates</h2>", _candidates(plan, looks), _refused(plan),
        f"<h2>The run</h2><p>The config below is that of number 1.</p><pre>{_e(command)}</pre>",
        f"<details><summary>The config</summary><pre>{_e(table.to_toml(plan))}</pre></details>",
    ]  # fmt: skip
    return markup.whole(f"Plan: {plan.goal}", [part for part in parts if part], "Written by midhaul plan.")


def _looks(plan: Plan) -> dict[str, Style]:
    """Gives each scheme's colour and marker, in the order of the best candidate of each."""
    names = dict.fromkeys(tried.candidate.scheme for tried, _ in plan.tried)
    return {name: STYLES.get(name, Style("#5C5C8A", "D")) for name in names}


def _spot(plan: Plan, place: int, tried: Probe, forecast: Forecast, looks: Mapping[str, Style]) -> Spot:
    # The others' lines are alike, and would hide one another.
    low, high = (forecast.accuracy, forecast.accuracy) if place else _line(plan, forecast)
    return Spot(
        str(place + 1),
        forecast.accuracy,
        {**forecast.costs, "sram_bytes": float(tried.plant.need.sram_bytes)},
        looks[tried.candidate.scheme],
        low,
        high,
        reaches=forecast.rounds is not None,
        chosen=place == 0,
        name=f"{place + 1} {tried.candidate.name.removesuffix(': as given')}",
    )


def _line(plan: Plan, forecast: Forecast) -> tuple[float, float]:
    """Gives where nine of ten runs are expected, or one standard error of the rows that were chosen on."""
    if forecast.confirmed is not None:
        return forecast.confirmed.interval()
    error = math.sqrt(forecast.accuracy * (1.0 - forecast.accuracy) / max(plan.num_aside, 1))
    return max(forecast.accuracy - error, 0.0), min(forecast.accuracy + error, 1.0)


def _candidates(plan: Plan, looks: Mapping[str, Style]) -> str:
    lines = []
    for place, ((tried, _), row) in enumerate(zip(plan.tried, table.rows(plan), strict=True)):
        mark, joules, seconds, up, down, sram, rounds, accuracy, _ = row
        swatch = markup.swatch(looks[tried.candidate.scheme], line=False)
        name = f"{swatch}{_e(tried.candidate.name)}"
        name += ' <strong class="best"><small>chosen</small></strong>' if mark == ">" else ""
        name += " <small>on the front</small>" if mark == "*" else ""
        name += " <small>tried on other rows, not chosen</small>" if mark == "x" else ""
        lines.append([str(place + 1), name, joules, seconds, up, down, sram, rounds, accuracy])
    note = (
        f"Of at most {plan.most} rounds. Energy, time and bytes are until the target, of all devices together, or of "
        "all rounds where it isn't reached (-). ~: by the curve through the accuracies so far, not simulated to the "
        "end. On the front: no other that reaches the target costs less of joules, time and bytes alike."
    )
    return f'{markup.table(_HEADS, lines, (1,))}<p class="note">{_e(note)}</p>'


def _refused(plan: Plan) -> str:
    if not plan.refused:
        return ""
    lines = [[_e(one.candidate.name), f'<span class="wrap">{_e(one.why)}</span>'] for one in plan.refused]
    return f"<details open><summary>Not tried</summary>{markup.table(('candidate', 'why'), lines, (0, 1))}</details>"


_e = html.escape
