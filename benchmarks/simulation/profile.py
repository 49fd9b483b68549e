"""Where a round of midhaul goes, part by part. `python -m benchmarks.simulation.profile --workloads W1,W3`

Each part's own time, less that of the parts it calls: CPU time of the thread that runs the round, on one thread, the
median of some rounds and the least. With `--perf` the rounds run under `perf stat`, where that exists and the machine
has counters.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.simulation import table as tables
from benchmarks.simulation.__main__ import OUT
from benchmarks.simulation.contest import ROOT
from benchmarks.simulation.works import WORKS, build, write
from midhaul import halves, rng, tree
from midhaul.kit import Kit
from midhaul.link import frame
from midhaul.runtime.ledger import Ledger
from midhaul.runtime.native import cohort, framing, library
from midhaul.runtime.over_link import OverLink
from midhaul.runtime.participation import Participation
from midhaul.runtime.stacked import Stacked
from midhaul.train import behind_link

COUNTERS = "instructions,cycles,cache-references,cache-misses,L1-dcache-load-misses"
PARTS: tuple[tuple[Any, str, str], ...] = (
    (library, "run", "compiled kernels"),
    (Stacked, "exchange", "engine around them"),
    (framing, "written", "frames of the replies and down"),
    (frame, "pack", "frames one by one: made"),
    (frame, "unpack", "frames one by one: read"),
    (OverLink, "exchange_parts", "link: charging, delivering"),
    (Participation, "exchange_parts", "who takes part, the clock"),
    (Kit, "cohort", "drawing the cohort"),
    (tree, "weighted_mean", "the mean"),
    (cohort, "weighted_mean", "the mean"),
    (halves, "step_each", "the server's half: forward, backward, step"),
)
REST = "the scheme itself"
BEGIN, END = (
    "<!-- profile: written by `python -m benchmarks.simulation.profile --write` -->",
    "<!-- end of profile -->",
)


class Clock:
    """Measures parts that call one another, each without those it calls. Units: seconds."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open = [REST]
        self._since = time.thread_time()

    def _turn(self) -> None:
        now = time.thread_time()
        self.spent[self._open[-1]] += now - self._since
        self._since = now

    def around(self, owner: Any, name: str, label: str) -> None:
        """Measures a function of a module or class from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            self._turn()
            self._open.append(label)
            try:
                return inner(*given, **named)
            finally:
                self._turn()
                self._open.pop()

        setattr(owner, name, timed)

    def take(self) -> dict[str, float]:
        """Gives what was spent since this was last asked."""
        self._turn()
        spent, self.spent = dict(self.spent), defaultdict(float)
        return spent


def rounds(name: str, num: int, clock: Clock) -> list[dict[str, float]]:
    """Does rounds of a workload; gives what each part took in each."""
    folder = OUT / "work" / name
    write(WORKS[name], folder, 1)
    plant = build(WORKS[name], folder, 1)
    fleet = behind_link(plant, Ledger())
    state = plant.scheme.init(fleet, plant.kit, rng.Key(0, 0, rng.SERVER, 0))
    found = []
    for number in range(1, num + 3):
        clock.take()
        state, _ = plant.scheme.round(state, fleet, plant.kit, rng.Key(0, number, rng.SERVER, 0))
        found.append(clock.take())
    return found[2:]


def table(name: str, found: list[dict[str, float]]) -> str:
    """Gives the parts of a workload's round, the largest first."""
    labels = {label for own in found for label in own}
    middle = {label: statistics.median(own.get(label, 0.0) for own in found) for label in labels}
    least = {label: min(own.get(label, 0.0) for own in found) for label in labels}
    total = sum(middle.values())
    lines = [f"{name}: {1e3 * total:.2f} ms a round"]
    for label, seconds in sorted(middle.items(), key=lambda item: -item[1]):
        if seconds >= 0.002 * total:
            share = 100.0 * seconds / total
            lines.append(f"  {label:44} {1e3 * seconds:9.2f} ms {share:6.1f} %   least {1e3 * least[label]:9.2f} ms")
    return "\n".join(lines)


def section(found: dict[str, list[dict[str, float]]], num: int, facts: str) -> str:
    """Gives the parts of all workloads' rounds as a table of Markdown, each the median of some rounds."""
    parts = [*dict.fromkeys(label for _, _, label in PARTS), REST]
    heads = [f"{name}, {WORKS[name].clients_a_round} devices" for name in found]
    lines = [f"| part, ms | {' | '.join(heads)} |", f"|{'---|' * (len(found) + 1)}"]
    held = {
        name: {p: 1e3 * statistics.median(one.get(p, 0.0) for one in own) for p in parts} for name, own in found.items()
    }
    total = {name: sum(own.values()) for name, own in held.items()}
    for part in parts:
        cells = [_cell(held[name][part], total[name]) for name in found]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {part} | {' | '.join(cells)} |")
    lines.append(f"| in all | {' | '.join(_cell(ms, ms) for ms in total.values())} |")
    return "\n".join([BEGIN, *lines, "", f"Medians of {num} rounds, on {facts}.", END])


def _cell(ms: float, whole: float) -> str:
    return "-" if ms < 0.002 * whole else f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def counted(name: str, num: int) -> str:
    """Gives what `perf stat` counts in a run of so many rounds, or why it can't."""
    if shutil.which("perf") is None:
        return "perf is not installed here, so nothing was counted"
    command = ["perf", "stat", "-e", COUNTERS, sys.executable, "-m", "benchmarks.simulation.profile"]
    command += ["--workloads", name, "--rounds", str(num)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if any(counter in line for counter in COUNTERS.split(","))]
    if not lines or all("not supported" in line or "not counted" in line for line in lines):
        return f"perf counts nothing here: {lines[0].strip() if lines else done.stderr.strip()[:200]}"
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation.profile", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workloads", default=",".join(WORKS), help="which, with commas (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds to take the median of (default: 15)")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--perf", action="store_true", help="count instructions and cache misses too")
    chosen = parser.parse_args(arguments)
    if chosen.write and chosen.workloads != ",".join(WORKS):
        parser.error("a part of the table isn't written; leave out --workloads or --write")
    torch.set_num_threads(1)
    clock = Clock()
    for owner, name, label in PARTS:
        clock.around(owner, name, label)
    found = {}
    for name in chosen.workloads.split(","):
        found[name] = rounds(name, chosen.rounds, clock)
        print(table(name, found[name]) + "\n", flush=True)
        if chosen.perf:
            print(counted(name, chosen.rounds) + "\n", flush=True)
    if chosen.write:
        tables.write(ROOT / "docs" / "performance.md", section(found, chosen.rounds, tables.machine(1)))


if __name__ == "__main__":
    main(sys.argv[1:])
