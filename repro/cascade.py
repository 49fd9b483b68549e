"""A tiny and a large model answering together: near the large one's accuracy while most queries stay on the device.

`python -m repro.cascade`. The large model learns from public data and teaches a tiny one that is much too small for the
task (scheme `transfer`, nothing tuned on the devices). Thresholds are chosen on the calibration half of the held-out
rows, for the large model's accuracy there; everything printed is of the other half, which nothing was chosen on. On
HAPT the halves are of different people, on digits of different rows. `--seeds 0,1,2` for the spread of several, and
`--data digits` for one of the two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from midhaul import config, train
from midhaul.config import Config
from midhaul.inference.cascade import cascade, goal
from repro import Row, table

EXAMPLES = Path(__file__).parents[1] / "examples"
POINTS, STAYS = 0.5, 70.0
TARGET = "accuracy=large"
DATA = ("digits", "har")


class Found(NamedTuple):
    """What one seed came to on its test rows, in percent; bytes and joules a query."""

    tiny: float
    large: float
    together: float
    stays: float
    bytes: float
    all_bytes: float
    joules: float
    all_joules: float


def settings(data: str, seed: int) -> Config:
    """Gives the run: that of the example, with a tiny model of a few thousand parameters at most."""
    if data == "digits":
        return config.read(EXAMPLES / "demo.toml").replace(
            data_public=0.5,
            data_test_fraction=0.4,
            data_adapt=0.0,
            large_model="resnet2d",
            large_options={"channels": [16, 32], "blocks": 1},
            large_epochs=40,
            large_lr=3e-3,
            scheme_name="transfer",
            scheme_tune="none",
            run_rounds=1,
            run_seed=seed,
        )
    return config.read(EXAMPLES / "har.toml").replace(
        tiny_options={"channels": [16, 32, 32]},
        large_epochs=12,
        scheme_name="transfer",
        scheme_distill_epochs=25,
        run_rounds=1,
        run_seed=seed,
    )


def run(data: str, seed: int) -> Found:
    """Trains and teaches, chooses thresholds, and gives what they come to."""
    with tempfile.TemporaryDirectory() as folder:
        train.run(settings(data, seed), Path(folder) / "run")
        found = cascade(Path(folder) / "run", goal(TARGET))
    tiny, large = (next(r.test for r in found.rows if r.name == name) for name in ("tiny alone", "large alone, x"))
    one = found.chosen.test
    print(
        f"{data:7s} seed {seed}: {found.about['calibration_rows']} rows to calibrate, {found.about['test_rows']} to "
        f"test; by {found.chosen.gate} at {one.thresholds[0]:.3f}; tiny {100 * tiny.accuracy:.1f} %, large "
        f"{100 * large.accuracy:.1f} %, together {100 * one.accuracy:.1f} %, {100 * one.stays:.1f} % stay",
        flush=True,
    )
    return Found(
        100 * tiny.accuracy,
        100 * large.accuracy,
        100 * one.accuracy,
        100 * one.stays,
        one.bytes,
        large.bytes,
        one.joules,
        large.joules,
    )


def judge(data: str, found: Sequence[Found]) -> Row:
    """Gives the target's row, from the means over the seeds."""
    mean = Found(*(statistics.fmean(values) for values in zip(*found, strict=True)))
    behind = mean.large - mean.together
    spread = [f"{each.large - each.together:+.1f} at {each.stays:.0f} %" for each in found]
    return Row(
        f"{data}: cascade of a tiny ({mean.tiny:.1f} %) and a large model ({mean.large:.1f} %)",
        f"<= {POINTS} points behind the large one, >= {STAYS:.0f} % stay",
        f"{behind:+.2f} points behind, {mean.stays:.1f} % stay; seeds {', '.join(spread)}; {mean.bytes:.0f} for "
        f"{mean.all_bytes:.0f} bytes, {1e6 * mean.joules:.0f} for {1e6 * mean.all_joules:.0f} uJ a query",
        behind <= POINTS and mean.stays >= STAYS,
    )


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs every seed on each data set and prints the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", default=",".join(DATA))
    chosen = parser.parse_args(arguments)
    rows = []
    for data in chosen.data.split(","):
        began = time.perf_counter()
        rows.append(judge(data, [run(data, int(seed)) for seed in chosen.seeds.split(",")]))
        print(f"{data}: {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{table(rows)}")
    return rows


if __name__ == "__main__":
    main()
