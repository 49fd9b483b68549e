"""The workloads: what is trained, on what, and how it is handed to the sides of the contest.

All rows are drawn from `rng.key`; a fixed random linear map says which class a row is of, so that there is something to
learn. The folder of a workload holds its data, the first weights, and for each round the cohort and the order of every
client's rows, just as midhaul draws them, so that every side can do the same batches.

Shape letters: N rows, C clients, R rounds, K clients in a round.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from midhaul import ops, plant, rng, tree
from midhaul.config import Config
from midhaul.data import Dataset
from midhaul.halves import turn
from midhaul.models import count
from midhaul.plant import Plant

ROUNDS = 48  # that are drawn; a longer contest goes through them again
TEST_ROWS = 64


@dataclass(frozen=True)
class Work:
    """A workload. `settings` are midhaul's, `rows` those of a client, `classes` of the data."""

    name: str
    title: str
    shape: tuple[int, ...]
    classes: int
    clients: int
    rows: int
    clients_a_round: int
    batch: int
    lr: float
    settings: dict[str, Any] = field(default_factory=dict)
    pool_rows: int = 0  # of a data set that tasks draw from; 0: each client has rows of its own

    def config(self, threads: int) -> Config:
        """Gives the settings of the run."""
        chosen = {
            "data_partition": "natural",
            "data_test": "held_out",
            "fleet_cohort": float(self.clients_a_round),
            "fleet_check": False,
            "scheme_lr": self.lr,
            "scheme_batch": self.batch,
            "scheme_epochs": 1,
            "run_threads": threads,
            "run_rounds": 10**6,
        }
        return Config().replace(**{**chosen, **self.settings})


_W3 = {"tiny_model": "cnn1d", "tiny_options": {"channels": [32, 64], "kernel": 5, "stride": 1, "pool": 2}}
_CONVS = {"channels": [32, 32, 32, 32], "hidden": [], "kernel": 3}
WORKS = {
    work.name: work
    for work in (
        Work(
            "W1",
            "MLP 64-32-10, 1,000 clients x 50 rows, batch 10, 100 a round",
            (64,),
            10,
            1000,
            50,
            100,
            10,
            0.05,
            {"tiny_model": "mlp", "tiny_options": {"hidden": [32]}},
        ),
        Work(
            "W2",
            "CNN 3x3x16, 3x3x32, fc 62 on 28x28, 500 clients x 100 rows, batch 20, 50 a round",
            (1, 28, 28),
            62,
            500,
            100,
            50,
            20,
            0.05,
            {"tiny_model": "cnn", "tiny_options": {"channels": [16, 32], "hidden": [], "kernel": 3}},
        ),
        Work(
            "W3",
            "1-D CNN k5x32, k5x64, fc 6 on 9x128, 500 clients x 60 rows, batch 20, 50 a round",
            (9, 128),
            6,
            500,
            60,
            50,
            20,
            0.05,
            _W3,
        ),
        Work(
            "W4",
            "W3 cut behind its first block, a transformer behind it, 50 a round (SplitFed V2)",
            (9, 128),
            6,
            500,
            60,
            50,
            20,
            0.05,
            {
                **_W3,
                "scheme_name": "federated_split",
                "scheme_cut": "pool1",
                "large_model": "transformer",
                "large_options": {"dim": 64, "depth": 2, "heads": 4},
            },
        ),
        Work(
            "W5",
            "Reptile, 5 ways, 1 shot, four 3x3x32 on 28x28, 500 tasks x 50 rows, batch 10, 50 a round",
            (1, 28, 28),
            200,
            500,
            50,
            50,
            10,
            0.05,
            {
                "tiny_model": "cnn",
                "tiny_options": _CONVS,
                "scheme_name": "reptile",
                "scheme_inner_lr": 0.05,
                "scheme_inner_steps": 5,
                "scheme_meta_lr": 1.0,
                "data_partition": "episodes",
                "data_test": "auto",
                "data_num_devices": 500,
                "data_new_devices": 10,
                "data_classes_per_device": 5,
                "data_shots": 1,
                "data_queries": 9,
            },
            4000,
        ),
    )
}


def dataset(work: Work) -> Dataset:
    """Gives a workload's rows: those of its clients one after another, then some to test on."""
    num = work.pool_rows or work.clients * work.rows
    total, size = num + TEST_ROWS, int(np.prod(work.shape))
    x = np.empty((total, size), np.float32)
    step = 10_000
    for first in range(0, total, step):
        part = x[first : first + step]
        part[:] = rng.normal(rng.key(0, 0, first // step, rng.Use.SYNTHETIC), part.size).reshape(part.shape)
    way = rng.normal(rng.key(0, 1, 0, rng.Use.SYNTHETIC), size * work.classes).reshape(size, work.classes)
    y = (x @ way.astype(np.float32)).argmax(1).astype(np.int64)
    clients = work.clients if not work.pool_rows else 1
    device = np.minimum(np.arange(total) * clients // num, clients)
    held_out = np.arange(total) >= num
    if work.pool_rows:
        y = np.arange(total) % work.classes  # as many rows of each class as tasks need
        held_out = y >= work.classes - 20
    names = (*(f"client {number}" for number in range(clients)), "tester")
    classes = tuple(f"class {number}" for number in range(work.classes))
    about = ("synthetic", "", "", "client", total)
    return Dataset(work.name, x.reshape(total, *work.shape), y, device, names, held_out, classes, *about)


def saved(work: Work, folder: Path) -> Dataset:
    """Gives the rows of a workload from its folder."""
    x = np.load(folder / "x.npy")
    with np.load(folder / "dataset.npz") as held:
        y, device, held_out = held["y"], held["device"], held["held_out"]
    names = tuple(f"client {number}" for number in range(int(device.max()) + 1))
    classes = tuple(f"class {number}" for number in range(work.classes))
    return Dataset(work.name, x, y, device, names, held_out, classes, "synthetic", "", "", "client", len(x))


def build(work: Work, folder: Path, threads: int) -> Plant:
    """Gives all that a run has before its first round, as `midhaul run` builds it."""
    return plant.build(work.config(threads), dataset=saved(work, folder))


def write(work: Work, folder: Path, threads: int) -> None:
    """Writes what the sides need of a workload, unless it is there."""
    kept = folder / "spec.json"
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")).get("work") == repr(work):
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = dataset(work)
    np.save(folder / "x.npy", data.x)
    np.savez(folder / "dataset.npz", y=data.y, device=data.device, held_out=data.held_out)
    built = build(work, folder, threads)
    kit, population = built.kit, built.engine.population
    rows = np.stack([population.rows(device, "train") for device in population.devices])
    labels = population.labels(population.devices, torch.from_numpy(rows)).numpy()
    cohorts, orders, turns = [], [], []
    steps = -(-work.rows // work.batch)
    for number in range(1, ROUNDS + 1):
        key = rng.Key(0, number, rng.SERVER, 0)
        cohort = kit.cohort(built.engine, key)
        cohorts.append(cohort)
        keys = [rng.key(0, number, device, rng.Use.BATCH) for device in cohort]
        settings = {"batch": work.batch, "epochs": 1}
        orders.append([np.concatenate(list(ops.batches(own, work.rows, settings))) for own in keys])
        turns.append([rng.permutation(turn(key, 0, step), len(cohort)) for step in range(steps)])
    for name, values in (("rows", rows), ("labels", labels), ("cohorts", cohorts), ("orders", orders)):
        np.save(folder / f"{name}.npy", np.asarray(values))
    np.save(folder / "turns.npy", np.asarray(turns))
    first = dict(kit.program.initial)
    large = kit.config.large
    if kit.large is not None:
        first |= {f"rear/{name}": value for name, value in tree.of(kit.large).items()}
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in first.items()})
    rear = {"model": large.model, "options": large.options, "lr": large.lr, "weight_decay": large.weight_decay}
    spec = {
        "work": repr(work),
        "name": work.name,
        "title": work.title,
        "kind": kit.cfg.name,
        "shape": work.shape,
        "classes": kit.num_classes,
        "clients": work.clients,
        "rows_a_client": work.rows,
        "clients_a_round": work.clients_a_round,
        "batch": work.batch,
        "lr": work.lr,
        "names": list(first),
        "layers": layers(kit.program.module, len(work.shape) - 1),
        "rear": rear if kit.large is not None else None,
        "flops_a_client": flops(built) * work.rows,
    }
    kept.write_text(json.dumps(spec, indent=1), encoding="utf-8")


def flops(built: Plant) -> float:
    """Gives the floating-point operations that training on one row takes at least.

    A multiply-accumulate is two. Each is done thrice, forward, for the gradient of the weights and for that of the
    input, but in the first layer, whose input needs no gradient. Activations, pools and norms count nothing.
    """
    front = [cost.macs for cost in count.layers(built.kit.program.module, built.kit.program.input_shape) if cost.macs]
    macs = 3 * sum(front) - front[0]
    if built.kit.large is not None:
        module = built.kit.program.module
        with torch.no_grad():
            smashed = tuple(module(torch.zeros(1, *built.kit.program.input_shape)).shape[1:])
        macs += 3 * count.totals(built.kit.large, smashed).macs
    return 2.0 * macs


def layers(module: nn.Module, dims: int) -> list[list[Any]]:
    """Gives a chain of layers as plain values: [kind, name, number, ...]."""
    found: list[list[Any]] = []
    for name, layer in module.named_children():
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            assert set(layer.stride) == {1}
            assert isinstance(layer.padding, tuple)
            shape = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.padding[0])
            found.append(["conv", name, dims, *shape])
        elif isinstance(layer, nn.MaxPool1d | nn.MaxPool2d):
            found.append(["pool", name, dims, layer.kernel_size])
        elif isinstance(layer, nn.Linear):
            found.append(["linear", name, layer.in_features, layer.out_features])
        else:
            kinds = {nn.ReLU: "relu", nn.Flatten: "flatten", nn.AdaptiveAvgPool1d: "mean"}
            found.append([kinds[type(layer)], name])
    return found
