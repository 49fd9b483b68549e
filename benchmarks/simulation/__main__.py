"""How fast rounds are simulated, beside other simulators and the machine's limit. `python -m benchmarks.simulation`

Every side does the same work and they take turns; what was found of a workload is kept in runs/bench and shown again
with the others, so that a long contest can be taken workload by workload.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.simulation import contest, install, table
from benchmarks.simulation.sides import sides
from benchmarks.simulation.works import WORKS

OUT = contest.ROOT / "runs" / "bench"


def main(arguments: Sequence[str]) -> int:
    """Measures, and shows the tables."""
    chosen = _chosen(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sides are ended too
    if chosen.quick and chosen.write:
        print("what few turns gave isn't written; leave out --quick or --write", file=sys.stderr)
        return 2
    works = chosen.workloads.split(",")
    every = sides(chosen.threads)
    groups = list(dict.fromkeys(side.group for side in every))
    wanted = chosen.peers.split(",") if chosen.peers else groups
    for given, known, what in ((works, list(WORKS), "workload"), (wanted, groups, "side")):
        if odd := [name for name in given if name not in known]:
            print(f"there is no {what} {odd[0]!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    # As pip leaves its packages, the peers among them; Python may have been told not to write byte code here.
    compileall.compile_dir(contest.ROOT / "src" / "midhaul", quiet=1)
    if chosen.install:
        for peer in install.PEERS:
            if peer in wanted and (error := install.install(peer)):
                print(f"{peer} can't be installed: {error}", file=sys.stderr)
    out = OUT / "quick" if chosen.quick else OUT  # few turns don't take the place of many
    rounds, budget_s = (chosen.rounds or 3, 12.0) if chosen.quick else (chosen.rounds or 9, chosen.budget)
    taking = [side for side in every if side.group in {*wanted, "midhaul", "sgemm"}]
    for name in works:
        kept = out / f"simulation-{name}.json"
        if chosen.show or (chosen.resume and kept.exists()):
            continue
        if not chosen.quick:  # what was best on a machine with other work may not be
            for file in (out / "work" / name).glob("*.tuned.json"):
                file.unlink()
        found = contest.measure(
            WORKS[name], taking, out / "work" / name, threads=chosen.threads, turns=rounds, budget_s=budget_s
        )
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(table.text(found) + "\n", flush=True)
    files = {name: out / f"simulation-{name}.json" for name in WORKS}
    found_all: dict[str, dict[str, Any]] = {
        name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()
    }
    if chosen.show:
        print("\n\n".join(table.text(found_all[name]) for name in works if name in found_all))
    if found_all:
        print(table.aligned(table.overview(found_all)) + "\n")
        table.plot(found_all, out / "simulation.svg")
        print(f"plot: {out.relative_to(contest.ROOT) / 'simulation.svg'}")
    if chosen.write and found_all:
        command = "python -m benchmarks.simulation --install --write"
        section = table.markdown(found_all, table.machine(chosen.threads), command)
        table.write(contest.ROOT / "docs" / "results.md", section)
    return 0


def _chosen(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKS), help="which, with commas (default: all)")
    parser.add_argument("--peers", default="", help="which sides beside midhaul and sgemm, with commas (default: all)")
    parser.add_argument("--rounds", type=int, default=0, help="turns that each side takes (default: 9, quick: 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores to use (default: all)")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds of turns in a workload (default: 240)")
    parser.add_argument("--quick", action="store_true", help="few turns, at most 12 s of them in a workload")
    parser.add_argument("--install", action="store_true", help="make the peers' environments first, in build/peers")
    parser.add_argument("--resume", action="store_true", help="leave out the workloads that were measured before")
    parser.add_argument("--show", action="store_true", help="measure nothing; show what was measured before")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/results.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
