"""A plan as people read it: a table, two sentences, and a config file."""

from __future__ import annotations

import dataclasses
from typing import Any

from midhaul import config as settings
from midhaul.goals import COSTS, SAID, shown
from midhaul.plan.expected import Confirmed
from midhaul.plan.probe import Forecast, Probe
from midhaul.plan.search import Plan
from midhaul.units import format_bytes, format_joules, format_seconds

COLUMNS = ("", "joules", "sim. time", "up", "down", "SRAM", "rounds", "accuracy %", "scheme: how it is run")


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """Gives a row a candidate: the chosen one marked >, those that none beats in every cost marked *, and those that
    were tried on other rows, and aren't chosen, marked x."""
    return [
        (
            _mark(plan, place),
            format_joules(forecast.costs["joules"]),
            format_seconds(forecast.costs["seconds"]),
            format_bytes(forecast.costs["uplink_bytes"]),
            format_bytes(forecast.costs["downlink_bytes"]),
            format_bytes(tried.plant.need.sram_bytes),
            _rounds(tried, forecast),
            f"{100.0 * forecast.accuracy:.1f}",
            tried.candidate.name,
        )
        for place, (tried, forecast) in enumerate(plan.tried)
    ]


def sentences(plan: Plan) -> list[str]:
    """Gives the choice in two sentences, with who has what where devices differ, and what it rests on in a third."""
    best, forecast = plan.chosen
    known = "was simulated" if forecast.seen else "is expected by its curve, not seen,"
    lines = []
    if forecast.rounds is None:
        excess, cost = plan.goal.excess(forecast.costs)
        more = f", and {shown(cost, forecast.costs[cost])} {SAID[cost]}" if excess else ""
        if (again := forecast.confirmed) is None:
            none, when = f"Nothing reaches {plan.goal} in {_count(plan.most)}", ""
        else:
            tried = "The one candidate" if not plan.fell else f"None of the {1 + len(plan.fell)} candidates"
            reaches = "doesn't surely reach" if not plan.fell else "surely reaches"
            none, when = f"{tried} tried on other rows {reaches} {plan.goal}", f" after {_count(again.rounds)}"
        lines.append(
            f"{none}; {best.candidate.name} comes nearest, with {100.0 * forecast.accuracy:.1f} %{when}{more}. Allow "
            "more --rounds, a larger tiny.model, or a lower target."
        )
    elif not plan.meets:
        excess, cost = plan.goal.excess(forecast.costs)
        limit = next(limit.most for limit in plan.goal.limits if limit.cost == cost)
        lines.append(
            f"Nothing reaches {plan.goal}; {best.candidate.name} comes nearest: it {known} to get there in "
            f"{_count(forecast.rounds)} for {shown(cost, forecast.costs[cost])} {SAID[cost]}, "
            f"{_over(excess, shown(cost, limit))}."
        )
    else:
        lines.append(
            f"{best.candidate.name} {known} to reach {plan.goal}: after {_count(forecast.rounds)}, for "
            f"{shown('joules', forecast.costs['joules'])}, {shown('seconds', forecast.costs['seconds'])} and "
            f"{shown('bytes', forecast.costs['bytes'])} on the link."
        )
    if best.candidate.mix is not None:
        lines.append(f"Each device has an option of its own. {best.candidate.mix.about}")
    if plan.goal.limits and not plan.meets:
        lines.append(_within(plan))
    lines.append(_second(plan))
    lines.append(
        f"Chosen on {plan.num_aside:,} rows that no test uses, where {100.0 * plan.aim.accuracy:.1f} % was asked for: "
        "the target and the standard error of so many rows. The run ends when its own test rows say so."
    )
    if (again := plan.confirmed) is not None:
        lines += _confirmed(plan, again)
    if plan.fell:
        named = [f"{tried.candidate.name} ({_told(its)})" for tried, its in plan.fell]
        lines.append(f"Tried there as well, and not chosen: {'; '.join(named)}.")
    return lines


def _confirmed(plan: Plan, again: Confirmed) -> list[str]:
    """Says what the choice came to on other rows, and what the run is to be expected to come to."""
    low, high = again.interval()
    num, came = len(again.accuracies), f"came to {_deviation(again)} after {_count(again.rounds)}"
    if again.is_whole:
        how = f"The run itself, simulated on {again.num_rows:,} rows that it doesn't use, {came}"
    else:
        times = "another draw" if num == 1 else f"{num} other draws"
        own = "" if again.others is None else ", with the run's own seed and devices,"
        how = f"Simulated again on {times} of {again.num_rows:,} rows{own} it {came}"
    lone = ", if all runs are alike, which one draw can't tell" if num == 1 and not again.is_whole else ""
    told = [
        f"{how}: nine runs of ten are expected to be between {100.0 * low:.1f} and {100.0 * high:.1f} % by then on "
        f"their own {again.num_tested:,} test rows{lone}."
    ]
    if (others := again.others) is not None:
        several = len(others.accuracies)
        runs = "A run of another seed" if several == 1 else f"{several} runs of other seeds"
        told.append(f"{runs}, with other devices and weights, came to {_deviation(others).removesuffix(',')}.")
    if again.sure < plan.goal.accuracy:
        told.append(
            f"That isn't surely the target: less a standard error it is {100.0 * again.sure:.1f} %, so the run, or one "
            "with other devices, may end without it; plan for a lower one, or for more --rounds, to be surer."
        )
    return told


def _deviation(found: Confirmed) -> str:
    several = f", {100.0 * found.spread:.1f} points of deviation," if len(found.accuracies) > 1 else ""
    return f"{100.0 * found.mean:.1f} %{several}"


def _told(forecast: Forecast) -> str:
    """Says what a candidate that isn't chosen came to on other rows."""
    again = forecast.confirmed
    assert again is not None
    came = f"{100.0 * again.mean:.1f} %, or {100.0 * again.sure:.1f} % less a standard error,"
    return f"{came} after {_count(again.rounds)}" + ("" if forecast.rounds is None else ", and costs more")


def _over(excess: float, limit: str) -> str:
    """Says how far over a limit something is.

    >>> _over(0.25, "20.0 J"), _over(947.49, "100.0 uJ")
    ('25 % over the 20.0 J that were given', '948 times the 100.0 uJ that were given')
    """
    if excess < 1.0:
        return f"{100.0 * excess:.2g} % over the {limit} that were given"
    return (
        f"{excess + 1.0:,.3g} times the {limit} that were given"
        if excess < 999
        else (f"{excess + 1.0:,.0f} times the {limit} that were given")
    )


def _within(plan: Plan) -> str:
    """Says what the limits do allow: the most accurate candidate as far as they last, or what one round costs."""
    found: list[tuple[float, int, Probe]] = []
    for tried, _ in plan.tried:
        rounds = next((n for n in range(plan.most, 0, -1) if not plan.goal.excess(tried.costs(n))[0]), 0)
        if rounds:
            found.append((tried.curve.best(rounds), rounds, tried))
    if found:
        accuracy, rounds, tried = max(found, key=lambda one: one[0])
        if accuracy >= plan.goal.accuracy:
            return (
                f"Within the limits {tried.candidate.name} came to {100.0 * accuracy:.1f} % in {_count(rounds)} on the "
                f"rows that were chosen on; plan with --schemes {tried.candidate.scheme} to try it on others."
            )
        return (
            f"What the limits allow is {100.0 * accuracy:.1f} %, by {tried.candidate.name} in {_count(rounds)}: the "
            "nearest target that can be met."
        )
    tried = min((one for one, _ in plan.tried), key=lambda one: plan.goal.excess(one.costs(1))[0])
    _, cost = plan.goal.excess(tried.costs(1))
    return (
        f"The limits don't allow a single round: the nearest, the first of {tried.candidate.name}, takes "
        f"{shown(cost, tried.costs(1)[cost])} {SAID[cost]}."
    )


def _second(plan: Plan) -> str:
    """Says what the next scheme would have cost, and why it is behind."""
    best, forecast = plan.chosen
    other = next(((t, f) for t, f in plan.tried if t.candidate.scheme != best.candidate.scheme), None)
    if other is None:
        return "No other scheme could be tried."
    tried, theirs = other
    if theirs.rounds is None:
        return (
            f"The next scheme, {tried.candidate.name}, stays at {100.0 * theirs.accuracy:.1f} % in "
            f"{_count(theirs.confirmed.rounds if theirs.confirmed else plan.most)}."
        )
    least = plan.goal.least
    times = theirs.costs[least] / forecast.costs[least] if forecast.costs[least] else float("inf")
    return (
        f"The next scheme, {tried.candidate.name}, would take {_count(theirs.rounds)} and "
        f"{shown(least, theirs.costs[least])} {SAID[least]}, {times:.1f} times as much."
    )


def to_table(plan: Plan) -> dict[str, Any]:
    """Gives the plan as plain values."""
    return {
        "target": plan.goal.accuracy,
        "aim": plan.aim.accuracy,
        "rows_aside": plan.num_aside,
        "within": {limit.cost: limit.most for limit in plan.goal.limits},
        "least": plan.goal.least,
        "meets": plan.meets,
        "sentences": sentences(plan),
        "expected": None if plan.confirmed is None else _expected(plan.confirmed),
        "candidates": [
            {
                "scheme": tried.candidate.scheme,
                "how": tried.candidate.label,
                "settings": {name.replace("_", ".", 1): value for name, value in tried.candidate.changes},
                "rounds": forecast.rounds,
                "seen": forecast.seen,
                "accuracy": forecast.accuracy,
                "accuracies": tried.accuracies,
                "confirmed": None if forecast.confirmed is None else _expected(forecast.confirmed),
                **{cost: forecast.costs[cost] for cost in COSTS},
                "sram_bytes": tried.plant.need.sram_bytes,
                "pareto": plan.is_pareto(place),
            }
            for place, (tried, forecast) in enumerate(plan.tried)
        ],
        "refused": [{"scheme": one.scheme, "how": one.label, "why": why} for one, why in plan.refused],
        "config": settings.to_table(plan.config),
    }


def to_toml(plan: Plan) -> str:
    """Gives the config to run, with what was expected of it on top."""
    lines = [f"# midhaul plan: {plan.goal}", *(f"# {line}" for line in sentences(plan)), ""]
    return "\n".join(lines) + settings.to_toml(plan.config)


def _expected(again: Confirmed) -> dict[str, Any]:
    found = {"mean": again.mean, "spread": again.spread, "error": again.error, "interval": again.interval()}
    return {**dataclasses.asdict(again), **found}


def _mark(plan: Plan, place: int) -> str:
    if place == 0:
        return ">"
    return "x" if plan.tried[place][1].confirmed else "*" if plan.is_pareto(place) else " "


def _count(rounds: int) -> str:
    return "1 round" if rounds == 1 else f"{rounds} rounds"


def _rounds(tried: Probe, forecast: Forecast) -> str:
    if forecast.rounds is None:
        return "-"
    return str(forecast.rounds) if forecast.seen else f"~{forecast.rounds}"
