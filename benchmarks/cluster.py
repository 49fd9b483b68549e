"""Two of Ray's workers beside one process with two threads, and ways to deal out work. `python -m benchmarks.cluster`

The first table: whole rounds of federated averaging (cohort, training, mean) on workloads of `benchmarks.simulation`,
by the engine `stacked` with as many threads as there are workers, and by `cluster` with one thread a worker; with the
compiled kernels and with torch alone. What is between them is what a cluster costs on one machine: the devices' models
go to the driver through shared memory, and with torch a chunk is smaller. The two ends are compared first.

The second: devices of 5 to 400 rows, dealt in chunks to whichever worker is free (1, 2 or 4 chunks a worker, of about
as many rows each), or each device to its own worker always.

Sides take turns in one process; the median wall time of the turns counts, so the machine should be idle otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from benchmarks.simulation.works import WORKS, Work, dataset
from midhaul import plant, rng, tree
from midhaul.data import Dataset
from midhaul.message import Message
from midhaul.plant import Plant
from midhaul.runtime import cluster
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.lent import Done, Order
from midhaul.runtime.stacked import Job, Stacked
from midhaul.runtime.workers import Workers
from midhaul.server import Server

AGREE = 1e-4
TURN_S = 0.5  # a turn is as many rounds as take about so long


class AtHome(Workers):
    """Workers that each do the devices of their own alone: device d is at home at worker d mod num."""

    def _deal(self, orders: Sequence[Order], shared: Any, done: list[Done]) -> None:
        sent = [self.actors[order.devices[0] % self.num].work.remote(order, shared) for order in orders]
        done += self.ray.get(sent)


def at_home(fleet: Cluster) -> None:
    """Lets a fleet cut its work by the devices' homes."""
    kept = fleet.fleet

    def jobs(message: Message, asked: list[int], key: rng.Key, num: int = 1) -> list[Job]:
        found = []
        for home in range(fleet.workers.num):
            if places := [place for place, device in enumerate(asked) if device % fleet.workers.num == home]:
                found += Stacked.jobs(kept, message.of_places(places), [asked[p] for p in places], key, 1)
        return found

    kept.jobs = jobs  # type: ignore[method-assign]


class Side:
    """One side: a plant, and the server that its rounds go on from."""

    def __init__(self, built: Plant, threads: int) -> None:
        self.built, self.threads, self.number = built, threads, 0
        self.server: Server = built.scheme.init(built.engine, built.kit, self.key())

    def key(self) -> rng.Key:
        return rng.Key(0, self.number, rng.SERVER, 0)

    def round(self) -> float:
        """Does a round; gives its seconds."""
        torch.set_num_threads(self.threads)
        self.number += 1
        began = time.perf_counter()
        self.server, _ = self.built.scheme.round(self.server, self.built.engine, self.built.kit, self.key())
        return time.perf_counter() - began


def engine_of(built: Plant, kind: Callable[[Cluster], None] | None, workers: Workers) -> Plant:
    """Gives a plant whose engine is over these workers, which all plants share."""
    assert isinstance(built.engine, Cluster)
    fleet = Cluster(built.engine.program, built.engine.population, workers, 10**9, built.config.run.kernels)
    if kind is not None:
        kind(fleet)
    return replace(built, engine=fleet)


def build(work: Work, data: Dataset, engine: str, kernels: str, threads: int) -> Plant:
    config = work.config(threads).replace(run_engine=engine, run_kernels=kernels)
    return plant.build(config, dataset=data)


def race(sides: dict[str, Side], turns: int) -> dict[str, float]:
    """Gives the median seconds of a round of each side, which take turns."""
    rounds = {}
    for name, side in sides.items():
        side.round()  # what is compiled or fetched once
        rounds[name] = max(1, min(50, round(TURN_S / side.round())))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            seconds[name].append(sum(side.round() for _ in range(rounds[name])) / rounds[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def uneven(work: Work) -> tuple[Work, Dataset]:
    """Gives a workload whose clients hold 5 to 400 rows, a few of them most."""
    counts = np.maximum(5, (400 / np.arange(1, work.clients + 1) ** 0.7)).astype(int)
    total = int(counts.sum())
    whole = dataset(replace(work, rows=-(-total // work.clients)))
    test = np.flatnonzero(whole.held_out)
    rows = np.concatenate([np.arange(total), test])
    device = np.concatenate([np.repeat(np.arange(work.clients), counts), np.full(len(test), work.clients)])
    kept = replace(whole, x=whole.x[rows], y=whole.y[rows], device=device, held_out=np.arange(len(rows)) >= total)
    return work, kept


def main(arguments: Sequence[str] = ()) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--works", default="W1,W2,W3", help="of benchmarks.simulation")
    parser.add_argument("--turns", type=int, default=7, help="turns of each side")
    parser.add_argument("--workers", type=int, default=2, help="workers, and threads of the one process")
    chosen = parser.parse_args(arguments)
    num = chosen.workers
    free, home = Workers(num), AtHome(num)
    free.open()
    print(f"torch {torch.__version__}, ray {import_module('ray').__version__}, {free.about}\n")
    print(f"updates/s, median of {chosen.turns} turns\n")
    print(f"| work | kernels | stacked, {num} threads | cluster, {num} workers | cluster / stacked | ends apart |")
    print("|---|---|---|---|---|---|")
    for name in chosen.works.split(","):
        data, clients = dataset(WORKS[name]), WORKS[name].clients_a_round
        for kernels in ("auto", "torch"):
            one = Side(build(WORKS[name], data, "stacked", kernels, num), num)
            many = Side(engine_of(build(WORKS[name], data, "cluster", kernels, 1), None, free), 1)
            one.round(), many.round()
            gap = tree.largest_difference(one.server.tree, many.server.tree)
            if not gap < AGREE:
                raise SystemExit(f"{name}: the ends are {gap:.1e} apart, so their speeds say nothing")
            took = race({"one": one, "many": many}, chosen.turns)
            print(
                f"| {name} | {kernels} | {clients / took['one']:,.0f} | {clients / took['many']:,.0f} "
                f"| {took['one'] / took['many']:.2f} | {gap:.1g} |",
                flush=True,
            )
    work, data = uneven(WORKS["W3"])
    print(f"\n{work.name} with 5 to 400 rows a client; updates/s\n\n| kernels | 1 chunk a worker | 2 | 4 | at home |")
    print("|---|---|---|---|---|")
    home.actors, home.num = free.actors, free.num
    for kernels in ("auto", "torch"):
        built, sides = build(work, data, "cluster", kernels, 1), {}
        for chunks in (1, 2, 4):
            sides[f"{chunks}"] = Chunks(engine_of(built, None, free), chunks)
        sides["home"] = Chunks(engine_of(built, at_home, home), 1)
        took = race(dict(sides), chosen.turns)
        print(
            f"| {kernels} | " + " | ".join(f"{work.clients_a_round / took[n]:,.0f}" for n in sides) + " |", flush=True
        )
    free.close()


class Chunks(Side):
    """A side of a cluster with so many chunks a worker."""

    def __init__(self, built: Plant, chunks: int) -> None:
        self.chunks = chunks
        super().__init__(built, 1)

    def round(self) -> float:
        cluster.CHUNKS_A_WORKER = self.chunks
        return super().round()


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
