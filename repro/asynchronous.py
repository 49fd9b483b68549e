"""Simulated time to an accuracy, with devices of unlike speeds. `python -m repro.asynchronous`

No published table is run again here: the papers (Xie et al. 2019; Nguyen et al., AISTATS 2022) simulate other fleets.
It is the papers' claim in this project's clock: handwritten digits, 20 devices, labels by Dirichlet(0.5), one epoch of
batches of 16, learning rate 0.1, the board's own radio. Each device is exp(normal) times as slow as the board, so the
slowest of 20 takes about six times the median. All devices are always at work. FedBuff's buffer is 5, FedAsync mixes
with 0.6 and (1 + s)^-0.5; neither was searched for. Accuracy is on the rows that no device has.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from midhaul import train
from midhaul.config import Config, from_table
from repro import Row, table

WANTED = 0.85
ROUNDS = {"synchronous": 80, "fedbuff": 400, "fedasync": 1600}
NAMES = {"synchronous": "FedAvg", "fedbuff": "FedBuff", "fedasync": "FedAsync"}


def settings(mode: str, seed: int) -> Config:
    """Gives the run of one mode: as many replies in all as in the others."""
    return from_table(
        {
            "data": {"num_devices": 20, "partition": "dirichlet", "alpha": 0.5, "test": "shared"},
            "fleet": {"mode": mode, "buffer": 5, "speed_spread": 1.0},
            "tiny": {"options": {"hidden": [32]}},
            "scheme": {"name": "fedavg", "lr": 0.1},
            "run": {
                "rounds": ROUNDS[mode],
                "seed": seed,
                "evaluate_every": ROUNDS[mode] // 80,
                "checkpoint_every": 1600,
            },
        }
    )


def seconds_to(wanted: float, mode: str, seed: int) -> tuple[float, float]:
    """Runs one mode; gives the simulated seconds to the accuracy, and the accuracy at the end."""
    with tempfile.TemporaryDirectory() as folder:
        end = train.run(settings(mode, seed), Path(folder) / "run").summary
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    reached = [line["simulated_seconds"] for line in lines if (line["accuracy"] or 0.0) >= wanted]
    return min(reached, default=math.inf), float(end["accuracy"])


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs the three modes on every seed and prints what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    seeds = [int(part) for part in parser.parse_args(arguments).seeds.split(",")]
    times: dict[str, list[float]] = {mode: [] for mode in ROUNDS}
    for seed in seeds:
        for mode in ROUNDS:
            began = time.perf_counter()
            seconds, end = seconds_to(WANTED, mode, seed)
            times[mode].append(seconds)
            print(
                f"seed {seed}  {NAMES[mode]:9s}{seconds:8.2f} simulated s to {100 * WANTED:.0f} %, "
                f"{100 * end:.1f} % at the end{time.perf_counter() - began:7.0f} s",
                flush=True,
            )
    plain = times["synchronous"]
    rows = []
    for mode in ("fedbuff", "fedasync"):
        share = statistics.fmean(own / other for own, other in zip(times[mode], plain, strict=True))
        what = f"digits, speeds spread by 1: {NAMES[mode]}'s simulated time to {100 * WANTED:.0f} % over FedAvg's"
        measured = f"{share:.2f}" if math.isfinite(share) else "not reached with every seed"
        rows.append(Row(what, "< 1", f"{measured} ({len(seeds)} seeds)", share < 1.0))
    print(f"\n{table(rows)}")
    return rows


if __name__ == "__main__":
    main()
