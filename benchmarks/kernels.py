"""The compiled kernels beside this machine's own matrix product, layer by layer. `python -m benchmarks.kernels`

First the rate of torch's sgemm on one thread. Then client updates a second of the whole engine, through the kernels and
through torch, in turns; and of one device's local training, how many floating-point operations a second each layer
does forward and backward, and its share of a client update. Only multiplications and additions of the sums count; the
slope at the input of the lowest layer isn't computed and not counted. All on one thread; times are the least of many
short turns, so that what else the machine does is left out.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from midhaul import rng
from midhaul.message import Message, Op
from midhaul.models import tiny
from midhaul.models.norm import FedBatchNorm
from midhaul.program import Population, Program
from midhaul.runtime.chunk import Chunk
from midhaul.runtime.native import chain, library
from midhaul.runtime.native.call import Call
from midhaul.runtime.native.library import Layer
from midhaul.runtime.stacked import Stacked


@dataclass(frozen=True)
class Work:
    """A model, and devices with so many rows each."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    num_classes: int
    rows: int
    batch: int
    cohort: int


def windows() -> nn.Module:
    """Gives the 1-D CNN for inertial windows of 9 channels and 128 samples."""
    first = OrderedDict[str, nn.Module](conv1=nn.Conv1d(9, 32, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool1d(2))
    second = OrderedDict[str, nn.Module](conv2=nn.Conv1d(32, 64, 5, padding=2), relu2=nn.ReLU())
    last = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool1d(1), flatten=nn.Flatten(), head=nn.Linear(64, 6))
    return nn.Sequential(OrderedDict([*first.items(), *second.items(), *last.items()]))


def few_shot() -> nn.Module:
    """Gives Reptile's network for 5-way tasks: four convolutions with stride 2 and batch norm that keeps nothing."""
    layers, width = OrderedDict[str, nn.Module](), 1
    for place in range(1, 5):
        layers[f"conv{place}"], width = nn.Conv2d(width, 64, 3, 2, 1), 64
        layers[f"norm{place}"], layers[f"relu{place}"] = FedBatchNorm(64, track_running_stats=False), nn.ReLU()
    return nn.Sequential(OrderedDict([*layers.items(), ("flatten", nn.Flatten()), ("head", nn.Linear(256, 5))]))


WORKS = (
    Work("W1: MLP 64-32-10", lambda: tiny.build("mlp", (64,), 10, hidden=(32,)), (64,), 10, 50, 10, 100),
    Work(
        "W2: CNN 3x3x16, 3x3x32, fc 62 on 28x28",
        lambda: tiny.build("cnn", (1, 28, 28), 62, channels=(16, 32), hidden=(), kernel=3),
        (1, 28, 28),
        62,
        100,
        20,
        4,
    ),
    Work("W3: 1-D CNN, k5 32, k5 64, GAP, fc 6 on 9x128", windows, (9, 128), 6, 60, 20, 8),
    Work("W5: four convolutions of 64 with batch norm on 28x28", few_shot, (1, 28, 28), 5, 10, 5, 8),
)


def sgemm_rate(size: int = 1024, turns: int = 12) -> float:
    """Gives the floating-point operations a second of torch's matrix product, on one thread."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2.0 * size**3 / min(_seconds(lambda: a @ b) for _ in range(turns))


def _seconds(function: Callable[[], object]) -> float:
    began = time.thread_time()
    function()
    return time.thread_time() - began


def operations(layer: Layer, lowest: bool) -> tuple[float, float]:
    """Gives the operations of a row in a layer, forward and backward."""
    if layer.kind not in (library.CONV, library.DEPTHWISE):
        return 0.0, 0.0
    inputs = layer.in_c if layer.kind == library.CONV else 1
    one = 2.0 * layer.kernel_h * layer.kernel_w * inputs * layer.out_c * layer.out_h * layer.out_w
    return one, one if lowest else 2.0 * one


@dataclass(frozen=True)
class Bench:
    """A workload, built."""

    work: Work
    program: Program
    population: Population
    message: Message

    def engine(self, kernels: str) -> Stacked:
        """Gives a fleet that computes with the kernels or with torch."""
        return Stacked(self.program, self.population, kernels=kernels)

    def updates(self, fleet: Stacked) -> float:
        """Gives client updates a second of one exchange."""
        devices = list(range(self.work.cohort))
        key = rng.Key(0, 1, rng.SERVER, 0)
        return self.work.cohort / _seconds(lambda: fleet.exchange(self.message, key=key, devices=devices))


def build(work: Work) -> Bench:
    """Gives a workload with random rows."""
    total, size = work.rows * work.cohort, int(np.prod(work.shape))
    drawn = rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), total * size).astype(np.float32)
    y = torch.from_numpy(rng.integers(rng.key(0, 0, 1, rng.Use.SYNTHETIC), total, work.num_classes))
    train = tuple(np.split(np.arange(total), work.cohort))
    population = Population(
        torch.from_numpy(drawn).reshape(total, *work.shape), y, train, tuple(rows[:0] for rows in train), (), True
    )
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        program = Program(work.build(), work.shape)
    settings = {"lr": 0.05, "batch": work.batch, "epochs": 1, "train": "whole", "send": "whole"}
    return Bench(work, program, population, Message(Op.FIT, program.initial, settings=settings))


def profile(bench: Bench, turns: int) -> tuple[list[Layer], list[list[float]]]:
    """Gives the layers of one device's training, and the least seconds of each forward and backward."""
    made = chain.of(bench.program.module, bench.work.shape)
    if isinstance(made, str):
        raise SystemExit(f"{bench.work.name}: {made}")
    part = Chunk(bench.engine("native"), bench.message, [0], [bench.population.train[0]], rng.Key(0, 1, rng.SERVER, 0))
    end = {name: torch.empty((1, *value.shape)) for name, value in bench.program.initial.items()}
    least = torch.full((len(made.layers), 2), torch.inf, dtype=torch.float64)
    for _ in range(turns):
        call, spent = Call(made, part.source, part.rows), torch.zeros(len(made.layers), 2, dtype=torch.float64)
        call.parameters(part.shared, part.each, tuple(end), end)
        call.targets(part, bench.message.settings, None)
        call.plans(part, bench.message.settings)
        call.job.training, call.job.threads = True, 1
        loss, seen = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        call.run("mk_fit", loss=loss, seen=seen, spent=spent)
        least = torch.minimum(least, spent)
    return made.layers, least.tolist()


def show(bench: Bench, turns: int, sgemm: float) -> None:
    """Prints a workload's table."""
    fleets = {"native": bench.engine("native"), "torch": bench.engine("torch")}
    best = dict.fromkeys(fleets, 0.0)
    for _ in range(max(turns // 10, 3)):
        for name, fleet in fleets.items():
            best[name] = max(best[name], bench.updates(fleet))
    layers, least = profile(bench, turns)
    done = [operations(layer, place == 0) for place, layer in enumerate(layers)]
    rows, rate = bench.work.rows, best["native"] * bench.work.rows * sum(map(sum, done))
    print(
        f"\n{bench.work.name}\n\n{best['native']:,.0f} client updates a second ({rate / 1e9:.0f} GFLOP/s, "
        f"{rate / sgemm:.0%} of sgemm); through torch {best['torch']:,.0f}: "
        f"{best['native'] / best['torch']:.1f} times as many\n"
    )
    print("| layer | forward, GFLOP/s | of sgemm | backward, GFLOP/s | of sgemm | of the time |")
    print("|---|---|---|---|---|---|")
    for layer, one, spent in zip(layers, done, least, strict=True):
        kind = ("convolution", "depthwise", "batch norm", "activation, pool", "group norm")[layer.kind]
        if layer.kind == library.CONV and layer.out_h * layer.out_w == 1:
            kind = "dense"
        rates = [rows * num / seconds for num, seconds in zip(one, spent, strict=True)]
        cells = [cell for r in rates for cell in ((f"{r / 1e9:.0f}", f"{r / sgemm:.0%}") if r else ("", ""))]
        shape = f"{layer.in_c}x{layer.in_h}x{layer.in_w} to {layer.out_c}"
        print(f"| {kind} {shape} | {' | '.join(cells)} | {sum(spent) * best['native']:.0%} |")
    rest = 1.0 - sum(map(sum, least)) * best["native"]
    print(f"| rows, loss, step, packing, Python | | | | | {max(rest, 0.0):.0%} |", flush=True)


def main(arguments: Sequence[str] = ()) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60, help="turns that each measurement is the best of")
    parser.add_argument("works", nargs="*", help="which: W1 W2 W3 W5; all, if none are named")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if library.missing():
        raise SystemExit(library.missing())
    sgemm = sgemm_rate()
    print(f"torch {torch.__version__}, one thread; sgemm of 1024x1024: {sgemm / 1e9:.0f} GFLOP/s")
    for work in WORKS:
        if not chosen.works or work.name.partition(":")[0] in chosen.works:
            show(build(work), chosen.turns, sgemm)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
