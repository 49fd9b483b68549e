"""SplitFed on Fashion-MNIST with LeNet-5: V1, V2 within a point of pooled training. `python -m repro.splitfed_fashion`

Source: Thapa, Arachchige, Camtepe and Sun, "SplitFed: when federated learning meets split learning", AAAI 2022, whose
setting this follows in kind, not in size: LeNet cut behind its first pool, rows dealt IID to five devices, one local
epoch a round. Here every device has 1,000 rows and there are 30 rounds, which a core does in minutes; accuracy on the
10,000 published test images after the last round. Every scheme has SGD with momentum 0.9, batches of 32, and a
learning rate that falls along a cosine, or with `--schedule constant` stays. It is 0.02, for pooled and V2 the better
of this and 0.05 on training images put aside (`--validate`), and 0.05 for V1; the others were not tuned.

There are two references. `pooled` is midhaul's scheme of that name, whose learning rate falls along a cosine anyway,
step by step; `central` is plain SGD with momentum on all rows at the rate that the others have (split learning with one
device, which is the same to the bit; see repro.identities); its rows are others than those of the five devices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from midhaul import rng, train
from midhaul.config import Config, from_table
from midhaul.data import Dataset, load
from midhaul.models import slices, tiny
from repro import Row, table

SCHEMES = {  # what is printed, and what is run
    "pooled": ("pooled", 5),
    "central": ("split", 1),
    "FL": ("fedavg", 5),
    "SL": ("split", 5),
    "SplitFed V1": ("federated_split_v1", 5),
    "SplitFed V2": ("federated_split", 5),
    "SplitFed V3": ("federated_split_v3", 5),
}
ROWS, ROUNDS, LR, CUT = 5_000, 30, 0.02, "pool1"
OWN_LR = {"SplitFed V1": 0.05}  # with 0.02 it learned too slowly to be compared


def config(scheme: str, num_devices: int, seed: int, schedule: str, lr: float) -> Config:
    """Gives the setting: as many rows on however many devices, and no frame is lost."""
    return from_table(
        {
            "data": {"name": "fashion_mnist", "partition": "iid", "num_devices": num_devices, "test": "held_out"},
            "fleet": {"board": "rpi4"},
            "tiny": {"model": "lenet5"},
            "large": {"optimizer": "sgd", "lr": lr, "weight_decay": 0.0, "batch": 32},
            "scheme": {
                "name": scheme,
                "lr": lr,
                "lr_schedule": schedule,
                "momentum": 0.9,
                "batch": 32,
                "cut": CUT,
                "pooled_model": "tiny",
            },
            "link": {"loss": 0.0},
            "run": {"rounds": ROUNDS, "seed": seed, "evaluate_every": ROUNDS},
        }
    ).replace(data_max_rows=ROWS // num_devices)


def without_test(data: Dataset) -> Dataset:
    """Gives the training images, the last 10,000 of them held out in place of the published test images."""
    kept = np.flatnonzero(~data.held_out)
    parts = {name: getattr(data, name)[kept] for name in ("x", "y", "device")}
    return replace(data, **parts, held_out=np.arange(len(kept)) >= len(kept) - 10_000, num_read=len(kept))


def accuracy(name: str, seed: int, schedule: str, lr: float, data: Dataset) -> float:
    """Gives the test accuracy of one run, in percent; the server's half is the rest of the very LeNet that was cut."""
    with rng.torch_seed(rng.key(seed, 0, rng.SERVER, rng.Use.INIT)):
        module = tiny.build("lenet5", data.input_shape, data.num_classes)
    rear = slices.cut(module, CUT, data.input_shape)[1]
    chosen = config(*SCHEMES[name], seed, schedule, lr)
    return 100 * float(train.run(chosen, module=module, large_module=rear, dataset=data).summary["accuracy"])


def judge(found: dict[str, list[float]]) -> list[Row]:
    """Gives a row for each version that was run, against both references, from the means over the seeds."""
    mean = {name: statistics.fmean(values) for name, values in found.items()}
    rows = []
    for name in ("SplitFed V1", "SplitFed V2"):
        for reference in ("pooled", "central"):
            if name in mean and reference in mean:
                target = f"within 1 point of {reference} ({mean[reference]:.2f} %)"
                what = f"Fashion-MNIST, LeNet-5: {name}"
                rows.append(Row(what, target, f"{mean[name]:.2f} %", mean[name] >= mean[reference] - 1.0))
    return rows


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints each run's accuracy, and whether SplitFed is where it should be."""
    parser = argparse.ArgumentParser(prog="python -m repro.splitfed_fashion", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--schedule", default="cosine", choices=("constant", "cosine"))
    parser.add_argument("--lr", type=float, default=0.0, help="one learning rate for all; 0: each its own")
    parser.add_argument("--validate", action="store_true", help="test on 10,000 training images put aside")
    chosen = parser.parse_args(arguments)
    data = load("fashion_mnist")
    data = without_test(data) if chosen.validate else data
    found: dict[str, list[float]] = {name: [] for name in chosen.schemes.split(",")}
    print(f"LeNet-5 cut behind {CUT}, {ROWS:,} rows over 5 devices, {ROUNDS} rounds, rates {chosen.schedule}\n")
    print("| scheme | seed | accuracy | rate | wall |\n|---|---|---|---|---|")
    for seed in (int(part) for part in chosen.seeds.split(",")):
        for name, values in found.items():
            began = time.perf_counter()
            lr = chosen.lr or OWN_LR.get(name, LR)
            values.append(accuracy(name, seed, chosen.schedule, lr, data))
            print(
                f"| {name} | {seed} | {values[-1]:.2f} % | {lr:g} | {time.perf_counter() - began:.0f} s |", flush=True
            )
    rows = judge(found)
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
