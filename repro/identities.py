"""Schemes that are the same thing in a corner must give the same bits there. `python -m repro.identities`

On the digits of scikit-learn, with the models that users get, through `midhaul.train` and so over the link. A
difference is the largest absolute one over all parameters after all rounds; only exactly 0.0 passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from midhaul import plant, rng, train, tree
from midhaul.config import Config, from_table
from midhaul.tree import Tree
from repro import Row

ROUNDS, EPOCHS, BATCH, LR, MOMENTUM = 2, 2, 16, 0.05, 0.9
MAX_ROWS = 390  # not a multiple of the batch, so that the last batch of an epoch is a short one
SPLITS = {"mlp": "mlp_large", "cnn": "resnet2d"}  # tiny models, and the large ones behind their first cut


def config(scheme: str, engine: str, num_devices: int, tiny: str, large: str, **changes: Any) -> Config:
    """Gives a run on digits, both halves with SGD with momentum."""
    return from_table(
        {
            "data": {"partition": "iid", "num_devices": num_devices, "test": "shared", "max_rows": MAX_ROWS},
            "fleet": {"board": "rpi4"},
            "tiny": {"model": tiny},
            "large": {"model": large, "optimizer": "sgd", "lr": LR, "weight_decay": 0.0},
            "scheme": {"name": scheme, "lr": LR, "momentum": MOMENTUM, "batch": BATCH, "epochs": EPOCHS},
            "link": {"loss": 0.0},
            "run": {"rounds": ROUNDS, "evaluate_every": ROUNDS, "engine": engine},
        }
    ).replace(**changes)


def trained(*arguments: Any, **changes: Any) -> Tree:
    """Gives both halves after a run, and that it moved them at all."""
    chosen = config(*arguments, **changes)
    server = train.run(chosen).server
    whole = halves(server.tree, server.large)
    start = plant.build(chosen).kit
    large = tree.of(start.large) if start.large is not None else {}
    if not tree.largest_difference(whole, halves(start.program.initial, large)) > 1e-3:
        raise SystemExit("the run moved nothing, so a difference of 0.0 would say nothing")
    return whole


def halves(front: Tree, rear: Tree) -> Tree:
    """Gives both halves in one tree."""
    return {f"0.{name}": value for name, value in front.items()} | {f"1.{name}": v for name, v in rear.items()}


def central(tiny: str, large: str) -> Tree:
    """Plain PyTorch: both halves in one module, one optimiser, the device's batches in the device's order."""
    built = plant.build(chosen := config("split", "loop", 1, tiny, large))
    model = nn.Sequential(built.kit.program.module, built.kit.server_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    population, rows = built.engine.population, built.federation.train[0]
    model.train()
    for number in range(1, ROUNDS + 1):
        for epoch in range(EPOCHS):
            order = rng.permutation(rng.key(chosen.run.seed, number, 0, rng.Use.BATCH).at(epoch), len(rows))
            for first in range(0, len(rows), BATCH):
                picked = torch.from_numpy(rows[order[first : first + BATCH]])
                optimizer.zero_grad()
                F.cross_entropy(model(population.x[picked]), population.y[picked]).backward()
                optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


def differences() -> Iterator[tuple[str, float]]:
    """Gives each identity and how far its two sides are apart."""
    for tiny, large in SPLITS.items():
        alone = trained("split", "loop", 1, tiny, large)
        pair = f"{tiny} and {large}"
        yield (
            f"SL of one device = central SGD with momentum, {pair}",
            tree.largest_difference(alone, central(tiny, large)),
        )
        for engine in ("loop", "stacked"):
            split = alone if engine == "loop" else trained("split", engine, 1, tiny, large)
            coded = trained("split", engine, 1, tiny, large, link_activations="32bit", link_gradients="32bit")
            yield f"SL coded in 32 bits = SL, {pair}, {engine}", tree.largest_difference(split, coded)
            for name, scheme in (("SplitFed V2", "federated_split"), ("SplitFed V1", "federated_split_v1")):
                other = trained(scheme, engine, 1, tiny, large)
                yield f"{name} of one device = SL, {pair}, {engine}", tree.largest_difference(split, other)
    for tiny in SPLITS:
        for engine in ("loop", "stacked"):
            fedavg = trained("fedavg", engine, 10, tiny, "auto")
            fedprox = trained("fedprox", engine, 10, tiny, "auto", scheme_proximal_mu=0.0)
            yield f"FedProx with mu = 0 = FedAvg, {tiny}, {engine}", tree.largest_difference(fedavg, fedprox)


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints each identity and how far its two sides are apart."""
    rows = []
    for what, difference in differences():
        row = Row(what, "0.0", repr(difference), difference == 0.0, must=True)
        print(f"{row.verdict}  {difference!r:>8}  {what}", flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(0 if all(row.passed for row in main(sys.argv[1:])) else 1)
