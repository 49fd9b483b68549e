"""The benchmarks that need nothing but this machine, one after another: `python -m benchmarks`, or `make bench`

First the contest of simulators, then where a round's time goes and how time and memory grow with a fleet, which are
written into docs/ and drawn; then the engines side by side, what the device runtime costs, and what the simulated link
costs. Each is a process of its own; one that fails or takes four times as long as it should is told at the end, and the
others go on. With --quick each is short, and nothing in docs/ is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LATE = 4.0  # times what a part should take, after which it is ended: a machine may be slow, or busy
GRACE_S = 30.0  # to end its own processes in


class Part(NamedTuple):
    """A benchmark: its module, and what it is told in a full run and in a quick one, and about how long either takes.

    Units: seconds on a machine of two cores with nothing else to do; installing peers is not counted.
    """

    module: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    full_s: float = 60.0
    quick_s: float = 60.0

    def told(self, quick: bool) -> tuple[str, ...]:
        """Gives its arguments."""
        return self.quick if quick else self.full

    def about_s(self, quick: bool) -> float:
        """Gives how long it should take."""
        return self.quick_s if quick else self.full_s


PARTS = (
    Part("benchmarks.simulation", ("--install", "--write"), ("--install", "--quick"), 1080.0, 600.0),
    Part("benchmarks.simulation.profile", ("--write",), ("--rounds", "3"), 60.0, 20.0),
    Part("benchmarks.scaling", ("--write",), ("--quick",), 240.0, 90.0),
    Part("benchmarks.engines", (), ("--turns", "3"), 40.0, 20.0),
    Part("benchmarks.device", ("int8", "arena", "training", "code"), ("int8", "arena"), 40.0, 30.0),
    Part("benchmarks.link", ("speed",), ("speed",), 15.0, 15.0),
)


def main(arguments: Sequence[str], parts: Sequence[Part] = PARTS) -> int:
    """Runs the parts; gives 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of an hour in place of half an hour")
    chosen = parser.parse_args(arguments)
    failed, slower = [], 1.0
    for number, part in enumerate(parts, 1):
        told, at = part.told(chosen.quick), f"[{number} of {len(parts)}]"
        words = " ".join(("python -m", part.module, *told))
        about_s, left_s = part.about_s(chosen.quick), sum(one.about_s(chosen.quick) for one in parts[number - 1 :])
        print(f"{at} {words} (about {minutes(slower * about_s)}; {minutes(slower * left_s)} to the end)", flush=True)
        began = time.monotonic()
        failure = run(part.module, told, LATE * about_s)
        took_s = time.monotonic() - began
        print(f"{at} took {minutes(took_s)}\n", flush=True)
        slower = max(1.0, took_s / about_s)  # what comes will take so much longer too
        if failure:
            failed.append(f"{words} {failure}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def run(module: str, told: Sequence[str], limit_s: float) -> str:
    """Runs a benchmark; says what became of it if it failed."""
    with subprocess.Popen([sys.executable, "-m", module, *told], cwd=ROOT) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.terminate()  # the contest ends its sides then
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"was ended after {minutes(limit_s)}, {LATE:g} times what it should take"
    return f"ended with {code}" if code else ""


def minutes(seconds: float) -> str:
    """Gives a time as a person says it.

    >>> minutes(42.0), minutes(600.0)
    ('42 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 90.0 else f"{seconds / 60.0:.0f} min"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
