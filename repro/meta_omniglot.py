"""Omniglot, five ways and one shot: MAML with a fully connected network, Reptile with a convolutional one.
`python -m repro.meta_omniglot`

Sources: Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017,
section 5.2, table 1 and appendix A.1 (hidden layers of 256, 128, 64 and 64, batch norm, one inner step of 0.4, 32 tasks
a step); Nichol, Achiam and Schulman, "On first-order meta-learning algorithms", 2018, section 6.1 and table 1 (four
convolutions of 64 channels, batch norm; Adam in the inner loop, where devices here have SGD; the authors' command for
this row, github.com/openai/supervised-reptile, has three inner steps of batches of 25 of 15 shots, ten tasks a step and
five steps of a new task). The split: 1,200 characters to train on, turned by quarters of a circle, and the other 423 to
test. `--validate` tests on 200 of the 1,200 characters and trains on the others.

Each task is a device with classes that it numbers itself; `--tasks` train and 200 new ones are tested. The papers draw
a new task each time; of 20,000 that come again and again MAML's network learns the rows by heart. Batch norm takes
the statistics of the rows at hand, which for a test are all its query rows at once (transductive), as in both papers.
"""

from __future__ import annotations

import argparse
import time
import tomllib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from midhaul import rng
from midhaul.config import Config
from midhaul.data import Dataset, episodes, load
from midhaul.kit import Kit
from midhaul.models.norm import FedBatchNorm
from midhaul.program import Examples, Population, Program
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from repro import Row, table

WAYS, NEW, VALIDATION = 5, 200, 200
SHAPE = (1, 28, 28)
TARGETS = {"maml": 0.88, "reptile": 0.90}
SETTINGS = {
    "maml": {
        "scheme_batch": 0, "scheme_support": WAYS, "scheme_inner_lr": 0.4, "scheme_inner_steps": 1, "scheme_lr": 1.0,
        "scheme_meta_optimizer": "adam", "scheme_meta_lr": 0.001, "scheme_meta_anneal": True, "scheme_adapt_epochs": 3,
        "fleet_cohort": 16,
    },
    "reptile": {
        "scheme_batch": 10, "scheme_inner_lr": 0.1, "scheme_inner_steps": 5, "scheme_meta_lr": 1.0,
        "scheme_meta_anneal": True, "scheme_adapt_epochs": 50, "fleet_cohort": 10,
    },
}  # fmt: skip
EACH = {"maml": (1, 5), "reptile": (1, 9)}  # rows of each class to adapt on and others


def of_the_batch(channels: int) -> nn.Module:
    """Gives batch norm that keeps nothing: the statistics are always those of the rows at hand."""
    return FedBatchNorm(channels, track_running_stats=False)


def fully_connected() -> nn.Module:
    """Gives MAML's network without convolutions."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    width = 784
    for place, out in enumerate((256, 128, 64, 64), 1):
        layers[f"fc{place}"], layers[f"norm{place}"] = nn.Linear(width, out), of_the_batch(out)
        layers[f"relu{place}"], width = nn.ReLU(), out
    return nn.Sequential(OrderedDict([*layers.items(), ("head", nn.Linear(width, WAYS))]))


def convolutional() -> nn.Module:
    """Gives Reptile's network: four convolutions with stride 2."""
    layers: dict[str, nn.Module] = {}
    width = 1
    for place in range(1, 5):
        layers[f"conv{place}"], layers[f"norm{place}"] = nn.Conv2d(width, 64, 3, 2, 1), of_the_batch(64)
        layers[f"relu{place}"], width = nn.ReLU(), 64
    return nn.Sequential(OrderedDict([*layers.items(), ("flatten", nn.Flatten()), ("head", nn.Linear(256, WAYS))]))


def without_test(data: Dataset) -> Dataset:
    """Gives the characters to train on, 200 of them (in all positions) held out in place of the test set."""
    kept, plain = np.flatnonzero(~data.held_out), len(data.class_names) // 4
    characters = np.unique(data.y[kept] % plain)
    chosen = characters[rng.permutation(rng.key(1, 0, rng.SERVER, rng.Use.SPLIT), len(characters))[:VALIDATION]]
    held_out = np.isin(data.y[kept] % plain, chosen)
    parts = {name: getattr(data, name)[kept] for name in ("x", "y", "device")}
    return replace(data, **parts, held_out=held_out, num_read=len(kept))


def run(
    name: str,
    seed: int,
    rounds: int,
    every: int,
    minutes: float,
    tasks: int,
    changes: dict[str, Any],
    *,
    validate: bool,
) -> tuple[int, float]:
    """Trains for so many rounds, or until the time is up; prints the accuracy as it goes, gives the last of both."""
    config = Config().replace(**{**SETTINGS[name], **changes}, scheme_name=name, run_rounds=rounds, run_seed=seed)
    data, (shots, queries) = load("omniglot", split="characters", rotated=True), EACH[name]
    data = without_test(data) if validate else data
    made = episodes(data, ways=WAYS, shots=shots, queries=queries, num_devices=tasks, new_devices=NEW, seed=seed)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    population = Population(x, y, made.train, made.test, made.adapt, False, classes=made.classes)
    with rng.torch_seed(rng.key(seed, 0, rng.SERVER, rng.Use.INIT)):
        module = fully_connected() if name == "maml" else convolutional()
    program, scheme = Program(module, SHAPE), SCHEMES[name]
    kit = Kit(config, program, None, Examples(x[:0], y[:0]), WAYS, can_adapt=True)
    fleet, began = Stacked(program, population), time.perf_counter()
    server, number, accuracy = scheme.init(fleet, kit, rng.Key(seed, 0, rng.SERVER, 0)), 0, 0.0
    while number < rounds and time.perf_counter() - began < 60.0 * minutes:
        number += 1
        key = rng.Key(seed, number, rng.SERVER, 0)
        server, metrics = scheme.round(server, fleet, kit.at_round(number), key)
        if number == rounds or number % every == 0:
            found = scheme.evaluate(server, fleet, kit, key).metrics
            accuracy, took = float(found["correct"].sum() / found["rows"].sum()), time.perf_counter() - began
            print(
                f"| {name} | {seed} | {number} | {metrics['train_loss']:.3f} | {accuracy:.4f} | {took:.0f} s |",
                flush=True,
            )
    return number, accuracy


def split(text: str) -> list[tuple[str, str]]:
    """Gives the names and values of `a=b,c=d`."""
    return [(part.partition("=")[0], part.partition("=")[2]) for part in text.split(",") if part]


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints the accuracy on new tasks, and whether it is as good as wanted."""
    parser = argparse.ArgumentParser(prog="python -m repro.meta_omniglot", description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", default="reptile,maml", help="maml, reptile")
    parser.add_argument("--seeds", default="0", help="seeds of the run")
    parser.add_argument("--rounds", type=int, default=3000, help="rounds of Reptile; MAML makes ten times as many")
    parser.add_argument("--every", type=int, default=500, help="rounds between tests")
    parser.add_argument("--minutes", type=float, default=15.0, help="when a run is ended before its last round")
    parser.add_argument("--tasks", type=int, default=200_000, help="devices that train")
    parser.add_argument("--validate", action="store_true", help="test on characters put aside from those to train on")
    parser.add_argument("--set", default="", help="settings to change, section_key=value with commas between them")
    chosen = parser.parse_args(arguments)
    changes = {name: tomllib.loads(f"v = {value}")["v"] for name, value in split(chosen.set)}
    print("| scheme | seed | rounds | training loss | accuracy on new tasks | wall |\n|---|---|---|---|---|---|")
    rows = []
    for name in chosen.schemes.split(","):
        rounds = chosen.rounds * (10 if name == "maml" else 1)
        for seed in (int(part) for part in chosen.seeds.split(",")):
            made, accuracy = run(
                name, seed, rounds, chosen.every, chosen.minutes, chosen.tasks, changes, validate=chosen.validate
            )
            what = f"Omniglot, 5 ways, 1 shot: {name}, {made} rounds, seed {seed}"
            rows.append(Row(what, f">= {TARGETS[name]}", f"{accuracy:.4f}", accuracy >= TARGETS[name]))
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
