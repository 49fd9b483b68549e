"""How few bytes devices need to send for what federated averaging learns with float32. `python -m repro.update_bytes`

FedAvg, one epoch a round, on two data sets: HAPT by its 21 training subjects with the model `cnn1d` (32,230 numbers),
tested on the other nine; Fashion-MNIST with 20 devices of 300 rows, Dirichlet(0.5), and an MLP of 32 (25,450 numbers),
tested on the 10,000 published test images. Every run is the same but for `link.up`. The bar is the best accuracy that
float32 comes to in its rounds, less one point; the bytes are those of all frames that went up until a run first reaches
it, read from the frames on disk (`link.keep_frames`). Coded runs have twice the rounds of float32's, and all
are tested after each. The stages were not searched for; of the setting, Fashion-MNIST's learning rate and rounds were
raised once, from 0.05 and 40, after float32 alone had ended on its way up.
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
from typing import Any, NamedTuple

from midhaul import train
from midhaul.config import Config, from_table
from midhaul.link import frame
from repro import Row, table

FEWER, POINTS = 50.0, 1.0
RUNS = (
    "none",
    "delta,quantise:4,entropy",
    "delta,qsgd:16,entropy",
    "delta,sign",
    "delta,powersgd:1",
    "delta,topk:0.05,quantise:4,entropy",
    "delta,topk:0.01,quantise:4,entropy",
    "delta,topk:0.01,sign",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "har": {
        "data": {"name": "har"},
        "fleet": {"board": "nrf5340"},
        "tiny": {"model": "cnn1d"},
        "scheme": {"name": "fedavg", "lr": 0.01, "momentum": 0.9, "batch": 32},
        "run": {"rounds": 20},
    },
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "partition": "dirichlet", "num_devices": 20, "max_rows": 300},
        "fleet": {"board": "stm32h7"},
        "tiny": {"model": "mlp", "options": {"hidden": [32]}},
        "scheme": {"name": "fedavg", "lr": 0.1, "batch": 20},
        "run": {"rounds": 60},
    },
}


class Curve(NamedTuple):
    """Accuracy in percent after each round, and the bytes that went up until then."""

    accuracy: list[float]
    uplink: list[int]

    def first(self, bar: float) -> float:
        """Gives the bytes until the bar is reached first; infinite if it never is."""
        return next(
            (num for accuracy, num in zip(self.accuracy, self.uplink, strict=True) if accuracy >= bar), math.inf
        )


def config(data: str, up: str, seed: int) -> Config:
    """Gives the setting of a run."""
    made = from_table(SETTINGS[data])
    rounds = made.run.rounds * (1 if up == "none" else 2)
    return made.replace(link_up=up, link_keep_frames=True, link_loss=0.0, run_seed=seed, run_rounds=rounds)


def run(data: str, up: str, seed: int) -> Curve:
    """Gives what a run came to, its bytes from the frames on disk."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = train.run(config(data, up, seed), out).summary
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        sizes = {
            int(path.name[:5]): sum(map(len, frame.sequence(path.read_bytes())))
            for path in (out / "frames").glob("*-up.bin")
        }
    lines = [line for line in lines if line["round"]]
    uplink = [sum(size for number, size in sizes.items() if number <= line["round"]) for line in lines]
    if uplink[-1] != summary["uplink_bytes"]:
        raise RuntimeError(f"the frames have {uplink[-1]} bytes and the ledger {summary['uplink_bytes']}")
    return Curve([100 * float(line["accuracy"]) for line in lines], uplink)


def judge(data: str, found: dict[str, list[Curve]]) -> list[Row]:
    """Gives the row of the run that needs the fewest bytes, on average, against float32's."""
    bars = [max(curve.accuracy) - POINTS for curve in found["none"]]
    plain = [curve.first(bar) for curve, bar in zip(found["none"], bars, strict=True)]
    times = {
        name: statistics.fmean(a / curve.first(bar) for a, curve, bar in zip(plain, curves, bars, strict=True))
        for name, curves in found.items()
        if name != "none"
    }
    best = max(times, key=times.__getitem__)
    measured = (
        f"{best}: {times[best]:.0f} times, mean of {len(bars)} seeds"
        if len(bars) > 1
        else (f"{best}: {times[best]:.0f} times")
    )
    target = f">= {FEWER:.0f} times fewer uplink bytes than float32, within {POINTS:.0f} point of its best"
    return [Row(f"Updates, {data}", target, measured, times[best] >= FEWER)]


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints what each run came to, and whether one of each data set is where it should be."""
    parser = argparse.ArgumentParser(prog="python -m repro.update_bytes", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--data", default=",".join(SETTINGS))
    parser.add_argument(
        "--runs", default=" ".join(RUNS), help="values of link.up, with spaces between; none must be one"
    )
    chosen = parser.parse_args(arguments)
    rows: list[Row] = []
    for data in chosen.data.split(","):
        found: dict[str, list[Curve]] = {name: [] for name in chosen.runs.split()}
        print(f"{data}\n\n| link.up | seed | best | last | bytes to the bar | times fewer | wall |")
        print("|---|---|---|---|---|---|---|")
        for seed in (int(part) for part in chosen.seeds.split(",")):
            for name, curves in found.items():
                began = time.perf_counter()
                curves.append(run(data, name, seed))
                curve, plain = curves[-1], found["none"][-1]
                bar = max(plain.accuracy) - POINTS
                needed, whole = curve.first(bar), plain.first(bar)
                print(
                    f"| {name} | {seed} | {max(curve.accuracy):.2f} % | {curve.accuracy[-1]:.2f} % "
                    f"| {'not reached' if math.isinf(needed) else f'{needed:,}'} | {whole / needed:.1f} "
                    f"| {time.perf_counter() - began:.0f} s |",
                    flush=True,
                )
        rows += judge(data, found)
        print()
    print(table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
