"""The two-way loop on human activity (HAPT): labels on the devices only, both models gain. `python -m repro.two_way`

The split is that of examples/har.toml: of the 21 people who train, ten gave the server their windows, without labels,
and the other eleven are devices; accuracy is on all windows of the nine others, after the last of a fixed number of
rounds. A device's model has 8,438 parameters, the server's 71,766 and nineteen times the multiplications.

Where the large model starts: its body has learned from the public windows by itself (SimCLR), its head from what the
devices say after training once (round 0 of a run). `probe` is the same body with its head fitted to the public labels,
which no scheme reads: what a body that knows no label could give at best by its last layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midhaul import config, distil, plant, rng, selfsupervised, server, train
from midhaul.config import Config
from midhaul.kit import tested
from repro import Row, table

EXAMPLE = Path(__file__).parents[1] / "examples" / "har.toml"
SCHEMES = ("local", "fedavg", "feddf", "fedmd", "co_learning")
SETTINGS: dict[str, Any] = {
    "tiny_options": {"channels": [16, 32, 32]}, "large_options": {"channels": [24, 48, 48]}, "large_epochs": 4,
    "scheme_lr": 0.02, "scheme_epochs": 2, "scheme_exchange_rows": 1000, "scheme_exchange_epochs": 3,
    "run_rounds": 10, "run_evaluate_every": 2,
}  # fmt: skip


def settings(scheme: str, seed: int, rounds: int) -> Config:
    """Gives the config of one run."""
    return config.read(EXAMPLE).replace(**{**SETTINGS, "scheme_name": scheme, "run_seed": seed, "run_rounds": rounds})


def run(scheme: str, seed: int, rounds: int) -> dict[str, Any]:
    """Runs one scheme; gives its summary, with the two accuracies of each tested round as `curve`."""
    with tempfile.TemporaryDirectory() as folder:
        summary = train.run(settings(scheme, seed, rounds), Path(folder) / "run").summary
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    summary["curve"] = [
        (line["round"], line["accuracy"], line["large_accuracy"]) for line in lines if line["accuracy"] is not None
    ]
    return summary


def probe(seed: int, rounds: int) -> float:
    """Gives the accuracy of the self-supervised body under a head that was fitted to the public labels."""
    built = plant.build(settings("co_learning", seed, rounds))
    kit, key = built.kit, rng.Key(seed, 0, rng.SERVER, 0)
    large = distil.begin_large(kit, key)
    head = selfsupervised.head_names(kit.server_model(), kit.program.input_shape)
    optimizer = dataclasses.replace(kit.optimizer(), lr=1e-2)
    start = rng.key(seed, 0, rng.SERVER, rng.Use.PUBLIC)
    large, _, _ = server.train(
        kit.server_model(), large, kit.public.x, kit.public.y, optimizer, epochs=10, batch=64, key=start, only=head
    )
    counts = tested(kit.server_model(), large, built.engine, key).metrics
    return float(counts["correct"].sum() / counts["rows"].sum())


def judge(runs: dict[str, list[dict[str, Any]]], probes: list[float]) -> list[Row]:
    """Gives a row for each target, from the means over the seeds."""
    done = {name: each for name, each in runs.items() if each}
    tiny = {name: 100 * statistics.fmean(r["accuracy"] for r in each) for name, each in done.items()}
    both = {name: each for name, each in done.items() if each[0]["start"]}
    first = {name: 100 * statistics.fmean(r["start"]["accuracy"] for r in each) for name, each in both.items()}
    large = {
        name: (
            100 * statistics.fmean(r["start"]["large_accuracy"] for r in each),
            100 * statistics.fmean(r["large_accuracy"] for r in each),
        )
        for name, each in both.items()
    }
    if not runs["co_learning"] or not runs["local"]:
        return []
    start, end = large["co_learning"]
    ours, probed = tiny["co_learning"], 100 * statistics.fmean(probes)
    rows = [
        Row("HAPT, co_learning: large model over its self-supervised start", f">= 10 points over {start:.1f} %",
            f"{end:.1f} % (the start under a head of public labels: {probed:.1f} %)", end >= start + 10),
        Row("HAPT, co_learning: tiny model over local only", f">= 3 points over {tiny['local']:.1f} %",
            f"{ours:.1f} %", ours >= tiny["local"] + 3),
        Row("HAPT, co_learning: tiny model over its start", f"> {first['co_learning']:.1f} %", f"{ours:.1f} %",
            ours > first["co_learning"]),
    ]  # fmt: skip
    for name in (name for name in ("feddf", "fedmd") if runs[name]):
        told = f"tiny {first[name]:.1f} to {tiny[name]:.1f} %, large {large[name][0]:.1f} to {large[name][1]:.1f} %"
        gained = tiny[name] > first[name] and large[name][1] > large[name][0]
        rows.append(Row(f"HAPT, {name}: both models, from before the first round", "both gain", told, gained))
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs every scheme on every seed and prints the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rounds", type=int, default=SETTINGS["run_rounds"])
    parser.add_argument(
        "--schemes", default=",".join(SCHEMES), help="some of them; the targets need local, co_learning"
    )
    chosen = parser.parse_args(arguments)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMES}
    probes = []
    for seed in map(int, chosen.seeds.split(",")):
        for name in (name for name in reversed(SCHEMES) if name in chosen.schemes.split(",")):
            began = time.process_time()
            runs[name].append(run(name, seed, chosen.rounds))
            found = runs[name][-1]
            moved = (found["uplink_bytes"] + found["downlink_bytes"]) / 1e6
            told = "  ".join(
                f"{number}: {100 * accuracy:.1f}" + (f"/{100 * large:.1f}" if large is not None else "")
                for number, accuracy, large in found["curve"]
            )
            print(f"seed {seed}  {name:12s}{moved:9.2f} MB{time.process_time() - began:6.0f} s   {told}", flush=True)
        if runs["co_learning"]:
            probes.append(probe(seed, chosen.rounds))
            print(f"seed {seed}  probe of the self-supervised body {100 * probes[-1]:.1f} %", flush=True)
    rows = judge(runs, probes)
    print(f"\n{table(rows)}")
    return rows


if __name__ == "__main__":
    main()
