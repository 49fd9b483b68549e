"""FedGKT on digits: what tiny models and the large one gain from each other. `python -m repro.fedgkt_digits`

Source: He, Annavaram and Avestimehr, "Group knowledge transfer", NeurIPS 2020, whose setting (ResNet-8 and ResNet-56 on
CIFAR) is too large for a core; this is the same exchange on scikit-learn's digits, dealt to ten devices of about 144
rows, 60 rounds. `local` is each device alone with the same steps, `pooled` a large model of the same kind that sees all
raw rows (60 epochs). The tiny accuracy is the mean of the ten devices' own models, on test rows that none has seen.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from midhaul import train
from midhaul.config import Config, from_table
from repro import Row, table

ROUNDS = 60


def config(scheme: str, seed: int, partition: str) -> Config:
    """Gives the setting; lr, T and the rounds come from a few trials with seed 0."""
    return from_table(
        {
            "data": {"name": "digits", "partition": partition, "num_devices": 10, "test": "shared"},
            "fleet": {"board": "rpi4"},
            "tiny": {"model": "cnn", "options": {"channels": [8, 16], "hidden": []}},
            "large": {"model": "resnet2d", "lr": 0.002, "batch": 64, "options": {"channels": [16, 32], "blocks": 1}},
            "scheme": {
                "name": scheme,
                "lr": 0.02,
                "momentum": 0.9,
                "batch": 16,
                "cut": "pool1",
                "soft_weight": 0.5,
                "temperature": 2.0,
            },
            "link": {"loss": 0.0},
            "run": {"rounds": ROUNDS, "seed": seed, "evaluate_every": ROUNDS},
        }
    )


def run(scheme: str, seed: int, partition: str) -> dict[str, Any]:
    """Runs one scheme; gives its summary."""
    return train.run(config(scheme, seed, partition)).summary


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints each seed's accuracies, and whether both models gain."""
    parser = argparse.ArgumentParser(prog="python -m repro.fedgkt_digits", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partition", default="iid", choices=("iid", "dirichlet"))
    chosen = parser.parse_args(arguments)
    print(f"digits, {chosen.partition}, {ROUNDS} rounds; accuracy in %\n")
    print("| seed | tiny, local | tiny, FedGKT | large, FedGKT | large, pooled |\n|---|---|---|---|---|")
    found = []
    for seed in (int(part) for part in chosen.seeds.split(",")):
        alone, both, pooled = (run(scheme, seed, chosen.partition) for scheme in ("local", "fedgkt", "pooled"))
        one = [
            100 * value for value in (alone["accuracy"], both["accuracy"], both["large_accuracy"], pooled["accuracy"])
        ]
        print(f"| {seed} | " + " | ".join(f"{value:.1f}" for value in one) + " |", flush=True)
        found.append(one)
    local, tiny, large, pooled = (statistics.fmean(values) for values in zip(*found, strict=True))
    what = f"FedGKT, digits, {chosen.partition}, {len(found)} seeds"
    near = f"within 2 points of pooled ({pooled:.1f} %)"
    rows = [
        Row(f"{what}: tiny models", f"above local ({local:.1f} %)", f"{tiny:.1f} %", tiny > local),
        Row(f"{what}: large model on features", near, f"{large:.1f} %", large >= pooled - 2),
    ]
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
