"""The benchmarks that need nothing but this machine, one after another: `python -m benchmarks`, or `make bench`

First the contest of simulators, which is written into docs/results.md and drawn; then time and memory against the size
of a fleet, the engines side by side, what the device runtime costs, and what the simulated link costs. Each is a
process of its own; one that fails is told at the end, and the others go on. With --quick the contest takes few turns
and isn't written.
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


class Part(NamedTuple):
    """A benchmark: its module, and what it is told in a full run and in a quick one."""

    module: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    def told(self, quick: bool) -> tuple[str, ...]:
        """Gives its arguments."""
        return self.quick if quick else self.full


PARTS = (
    Part("benchmarks.simulation", ("--install", "--write"), ("--install", "--quick")),
    Part("benchmarks.scaling", (), ("--quick",)),
    Part("benchmarks.engines", (), ("--turns", "3")),
    Part("benchmarks.device", ("int8", "arena", "training", "code"), ("int8", "arena")),
    Part("benchmarks.link", ("speed",), ("speed",)),
)


def main(arguments: Sequence[str], parts: Sequence[Part] = PARTS) -> int:
    """Runs the parts; gives 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="minutes in place of an hour; writes no docs/results.md")
    chosen = parser.parse_args(arguments)
    failed = []
    for number, part in enumerate(parts, 1):
        told = part.told(chosen.quick)
        words = " ".join(("python -m", part.module, *told))
        print(f"[{number} of {len(parts)}] {words}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", part.module, *told], cwd=ROOT, check=False).returncode
        print(f"[{number} of {len(parts)}] took {time.monotonic() - began:,.0f} s\n", flush=True)
        if code:
            failed.append(f"{words} ended with {code}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
