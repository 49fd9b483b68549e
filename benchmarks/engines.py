"""Client updates per CPU-second of both engines beside a plain PyTorch loop. `python -m benchmarks.engines`

A client update is one device's share of a round of federated averaging: take the shared model, train an epoch, hand the
model over to be averaged. The peer is what a person writes by hand: an `nn.Module` and a `torch.optim.SGD` for each
device, one after another. All three do the same batches and end with the same model, which is checked first. They take
turns in one process and on one thread; the CPU time of the process is what counts, and the median of the turns is
printed. Last comes what a frame adds to the tensors that it carries.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from midhaul import rng, tree
from midhaul.config import Config
from midhaul.fleet import Fleet
from midhaul.kit import Kit
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import Op
from midhaul.models import tiny
from midhaul.program import Examples, Population, Program
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Server
from midhaul.tree import Tree

LR = 0.05
AGREE = 1e-5


@dataclass(frozen=True)
class Work:
    """A model, and devices with so many rows each."""

    name: str
    model: str
    shape: tuple[int, ...]
    num_classes: int
    rows: tuple[int, ...]
    batch: int
    options: tuple[tuple[str, object], ...] = ()


LONG_TAIL = (800, 400, 200, 100) + (40,) * 26
WORKS = (
    Work("MLP 64-32-10, 100 devices x 50 rows, batch 10", "mlp", (64,), 10, (50,) * 100, 10, (("hidden", (32,)),)),
    Work("CNN on 6x128 windows, 50 devices x 60 rows, batch 20", "cnn1d", (6, 128), 6, (60,) * 50, 20),
    Work("logistic regression 60-10, 30 devices x 40 to 800 rows, batch 10", "linear", (60,), 10, LONG_TAIL, 10),
)


@dataclass(frozen=True)
class Bench:
    """A workload, built."""

    work: Work
    module: nn.Module
    program: Program
    population: Population
    kit: Kit

    def key(self, number: int) -> rng.Key:
        """Gives the key of a round."""
        return rng.Key(0, number, rng.SERVER, 0)


def build(work: Work) -> Bench:
    """Gives a workload with random rows; how fast a step is doesn't depend on what is learned."""
    total, size = sum(work.rows), int(np.prod(work.shape))
    drawn = rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), total * size).astype(np.float32)
    x = torch.from_numpy(drawn).reshape(total, *work.shape)
    y = torch.from_numpy(rng.integers(rng.key(0, 0, 1, rng.Use.SYNTHETIC), total, work.num_classes)).long()
    train = tuple(np.split(np.arange(total), np.cumsum(work.rows)[:-1]))
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        module = tiny.build(work.model, work.shape, work.num_classes, **dict(work.options))
    program = Program(module, work.shape)
    population = Population(x, y, train, tuple(rows[:0] for rows in train), (), True)
    config = Config().replace(scheme_lr=LR, scheme_batch=work.batch, scheme_epochs=1)
    kit = Kit(config, program, None, Examples(x[:0], y[:0]), work.num_classes)
    return Bench(work, copy.deepcopy(module), program, population, kit)


def by_hand(bench: Bench, server: Tree, number: int) -> Tree:
    """One round as a person writes it: a module and an optimiser for each device, then the weighted mean."""
    x, y, size = bench.population.x, bench.population.y, bench.work.batch
    total: Tree = {name: torch.zeros_like(value) for name, value in server.items()}
    num_rows = sum(bench.work.rows)
    for device, rows in enumerate(bench.population.train):
        model = copy.deepcopy(bench.module)
        model.load_state_dict(server)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        order = torch.from_numpy(
            rows[rng.permutation(rng.key(0, number, device, rng.Use.BATCH).at(0), len(rows))].copy()
        )
        for first in range(0, len(rows), size):
            picked = order[first : first + size]
            optimizer.zero_grad()
            F.cross_entropy(model(x[picked]), y[picked]).backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            total[name] += value * (len(rows) / num_rows)
    return total


def by_engine(bench: Bench, fleet: Fleet, server: Tree, number: int) -> Tree:
    """One round of the scheme on an engine."""
    return SCHEMES["fedavg"].round(Server(server), fleet, bench.kit, bench.key(number))[0].tree


def measure(work: Work, turns: int) -> dict[str, float]:
    """Gives the median client updates per CPU-second of each contender, by name."""
    bench = build(work)
    loop, stacked = Loop(bench.program, bench.population), Stacked(bench.program, bench.population)
    contenders: dict[str, Callable[[Tree, int], Tree]] = {
        "stacked": lambda server, number: by_engine(bench, stacked, server, number),
        "loop": lambda server, number: by_engine(bench, loop, server, number),
        "by hand": lambda server, number: by_hand(bench, server, number),
    }
    start = bench.program.initial
    ends = {name: step(start, 1) for name, step in contenders.items()}
    for name, end in ends.items():
        if (gap := tree.largest_difference(end, ends["by hand"])) > AGREE:
            raise SystemExit(
                f"{work.name}: {name} and the loop by hand end {gap:.1e} apart, so their speeds say nothing"
            )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, step in contenders.items():
            began = time.process_time()
            step(start, turn + 2)
            seconds[name].append(time.process_time() - began)
    return {name: len(work.rows) / statistics.median(values) for name, values in seconds.items()}


def link_overhead(num_bytes: int = 1_000_000) -> float:
    """Gives the bytes of a frame with a tree of so many bytes over the bytes of its tensors."""
    whole: Tree = {"weight": torch.zeros(num_bytes // 8), "bias": torch.zeros(num_bytes // 8)}
    data = frame.pack(Frame(Op.FIT, True, 1, 0, {}, whole, 1.0, {"rows": 1.0, "loss": 1.0}))
    return len(data) / tree.num_bytes(whole)


def main(arguments: Sequence[str] = ()) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="rounds that each contender does")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; client updates per CPU-second, median of {chosen.turns} turns\n")
    print("| work | by hand | loop | stacked | loop / by hand | stacked / by hand |\n|---|---|---|---|---|---|")
    for work in WORKS:
        speed = measure(work, chosen.turns)
        hand = speed["by hand"]
        print(
            f"| {work.name} | {hand:,.0f} | {speed['loop']:,.0f} | {speed['stacked']:,.0f} "
            f"| {speed['loop'] / hand:.2f} | {speed['stacked'] / hand:.2f} |",
            flush=True,
        )
    print(f"\na frame with 1 MB of tensors is {link_overhead():.6f} times as large as the tensors")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
