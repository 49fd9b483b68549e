"""HeteroFL on MNIST: devices with 1/4, 1/8 and 1/16 of the channels. `python -m repro.heterofl_mnist`

Source: Diao, Ding and Tarokh, "HeteroFL: computation and communication efficient federated learning for heterogeneous
clients", ICLR 2021, section 4: the CNN of 64, 128, 256 and 512 channels, MNIST dealt IID to 100 clients, a tenth of
them a round, five epochs of batches of 10, SGD at 0.01 with momentum 0.9 and weight decay 5e-4, 200 rounds with a tenth
of the learning rate from round 100 on. From memory, its table has 99.28 % for the mix c-d-e, whose widths are 1/4, 1/8
and 1/16; the accuracy is that of the widest of these, on the published test images.

Here batch norm is group norm, and the learning rate is 0.02 up to half of `--rounds` and a tenth of that from there on.
With `--folder` a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from midhaul import rng, train
from midhaul.config import Config, from_table
from repro import Row, table

WANTED = 0.99
ROUNDS, LR = 60, 0.02
CHANNELS = (64, 128, 256, 512)


def network() -> nn.Module:
    """Gives the paper's CNN: four convolutions with norm, ReLU and a pool between them, then the mean of each map."""
    layers: list[nn.Module] = []
    before = 1
    for channels in CHANNELS:
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
        before = channels
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def config(seed: int, rounds: int, epochs: int, lr: float, mix: str, *, falls: bool) -> Config:
    """Gives the paper's setting. The board is one that the widest model fits; no frame is lost."""
    return from_table(
        {
            "data": {"name": "mnist", "partition": "iid", "num_devices": 100, "test": "held_out"},
            "fleet": {"board": "rpi4", "cohort": 0.1},
            "tiny": {"norm": "group"},
            "scheme": {
                "name": "heterofl",
                "width_mix": mix,
                "lr": lr,
                "lr_schedule": "step" if falls else "constant",
                "lr_milestones": str(rounds // 2) if falls else "",
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "batch": 10,
                "epochs": epochs,
            },
            "link": {"loss": 0.0},
            "run": {
                "rounds": rounds,
                "seed": seed,
                "engine": "loop",
                "evaluate_every": 5,
            },
        }
    )


def measured(setting: Config, folder: Path) -> dict[str, Any]:
    """Runs a config, or goes on with it, and prints each accuracy as it is known; gives the summary."""
    metrics = folder / "metrics.jsonl"

    def progress(label: str, done: int, total: int) -> None:
        line = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1]) if done else {"accuracy": None}
        if line["accuracy"] is not None:
            print(f"| {done} | {line['accuracy']:.4f} |", flush=True)

    print("| round | accuracy |\n|---|---|")
    return train.run(setting, folder, module=network(), resume=metrics.exists(), progress=progress).summary


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints the accuracy after every fifth round of each seed, and whether it reaches the target."""
    parser = argparse.ArgumentParser(prog="python -m repro.heterofl_mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", help="seeds of the run")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds; the paper has 200")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a device in a round")
    parser.add_argument("--lr", type=float, default=LR, help="the devices' learning rate")
    parser.add_argument("--mix", default="0.25,0.125,0.0625", help="widths dealt to the devices in turn")
    parser.add_argument("--constant", action="store_true", help="the learning rate doesn't fall")
    parser.add_argument("--folder", default="", help="where to keep a run, and to go on with it")
    chosen = parser.parse_args(arguments)
    rows = []
    for seed in (int(part) for part in chosen.seeds.split(",")):
        setting = config(seed, chosen.rounds, chosen.epochs, chosen.lr, chosen.mix, falls=not chosen.constant)
        print(f"\nHeteroFL, MNIST IID, 100 devices, a tenth a round, widths {chosen.mix}, seed {seed}\n")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            summary = measured(setting, Path(chosen.folder or temporary) / f"seed{seed}")
        took = time.perf_counter() - began
        sizes = ", ".join(f"{g['num_devices']} of width {g['width']:g}: {g['parameters']:,}" for g in summary["groups"])
        print(f"\nparameters of devices: {sizes}; {took:.0f} s, {took / chosen.rounds:.1f} s a round", flush=True)
        last = float(summary["accuracy"])
        what = f"HeteroFL, MNIST, c-d-e, seed {seed}: {100 * WANTED:.0f} %"
        rows.append(Row(what, f"after {chosen.rounds} rounds", f"{100 * last:.2f} %", last >= WANTED))
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
