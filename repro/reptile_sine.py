"""Reptile on sine waves: ten samples and 32 steps are enough for a new wave. `python -m repro.reptile_sine`

Source: Nichol, Achiam and Schulman, "On first-order meta-learning algorithms", 2018, section 4 and figure 1, and the
program that their blog post "Reptile: a scalable meta-learning algorithm" gives: waves of amplitude 0.1 to 5 and any
phase on 50 places from -5 to 5, a network 1-64-64-1 with tanh, five steps of ten places each at 0.02, and a step of the
server that falls to nothing along a line.

Each wave is a device, and an iteration a round of one wave. The program's step begins at 0.1; here at 1.0, unless told
otherwise (chosen on the waves of `--seeds 7`). A new device is given ten random places; its error is that on the 50
places, after 32 steps on the ten, and the figure is the mean over 1,000 new devices.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from midhaul import rng
from midhaul.config import Config
from midhaul.kit import Kit
from midhaul.program import Examples, Population, Program
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from repro import Row, table

PLACES, SHOTS, TRAINING, NEW = 50, 10, 2000, 1000
TARGETS = {10_000: 0.19, 30_000: 0.11}


def waves(seed: int) -> Population:
    """Gives the devices: those that train hold 50 places of their wave, new ones ten to adapt on and 50 to test."""
    num = TRAINING + NEW
    draws = rng.uniform(rng.key(seed, 0, rng.SERVER, rng.Use.SYNTHETIC), 2 * num + NEW * SHOTS)
    amplitude, phase = 0.1 + 4.9 * draws[:num], 2.0 * np.pi * draws[num : 2 * num]
    few = -5.0 + 10.0 * draws[2 * num :].reshape(NEW, SHOTS)
    even = np.linspace(-5.0, 5.0, PLACES, dtype=np.float32)
    places = [even] * num + list(few)
    wave = [*range(num), *range(TRAINING, num)]
    values = [amplitude[w] * np.sin(x + phase[w]) for w, x in zip(wave, places, strict=True)]
    x, y = (torch.from_numpy(np.concatenate(part).astype(np.float32)) for part in (places, values))
    rows = np.arange(len(x))
    whole = np.split(rows[: num * PLACES], num)
    adapt = np.split(rows[num * PLACES :], NEW)
    return Population(x[:, None], y, tuple(whole[:TRAINING]), tuple(whole[TRAINING:]), tuple(adapt), False)


def network(seed: int) -> nn.Module:
    """Gives the network 1-64-64-1."""
    with rng.torch_seed(rng.key(seed, 0, rng.SERVER, rng.Use.INIT)):
        layers = [("fc1", nn.Linear(1, 64)), ("tanh1", nn.Tanh()), ("fc2", nn.Linear(64, 64)), ("tanh2", nn.Tanh())]
        return nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(64, 1))]))


def errors(seed: int, rounds: int, cohort: int, step: float) -> tuple[float, float]:
    """Trains for so many rounds; gives the mean and the median over the new devices of their squared errors."""
    config = Config().replace(
        scheme_name="reptile",
        scheme_loss="mse",
        scheme_batch=10,
        scheme_inner_lr=0.02,
        scheme_inner_steps=5,
        scheme_meta_lr=step,
        scheme_meta_anneal=True,
        scheme_adapt_epochs=32,
        fleet_cohort=cohort / TRAINING,
        run_rounds=rounds,
        run_seed=seed,
    )
    scheme, population, program = SCHEMES["reptile"], waves(seed), Program(network(seed), (1,))
    kit = Kit(config, program, None, Examples(population.x[:0], population.y[:0]), 1, can_adapt=True)
    tester = Stacked(program, population)
    fleet = Loop(program, population) if cohort == 1 else tester
    server = scheme.init(fleet, kit, rng.Key(seed, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(seed, number, rng.SERVER, 0))
    found = scheme.evaluate(server, tester, kit, rng.Key(seed, rounds, rng.SERVER, 0)).metrics["loss"]
    return float(found.mean()), float(found.median())


def main(arguments: Sequence[str] = ()) -> list[Row]:
    """Prints the error after each number of rounds, and whether it is as small as wanted."""
    parser = argparse.ArgumentParser(prog="python -m repro.reptile_sine", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", help="seeds of the run")
    parser.add_argument("--rounds", default="10000", help="numbers of rounds, each a run of its own")
    parser.add_argument("--cohort", type=int, default=1, help="waves in a round")
    parser.add_argument("--step", type=float, default=1.0, help="the server's first step")
    chosen = parser.parse_args(arguments)
    print(f"Reptile, sine waves, {TRAINING} devices train, {NEW} new ones adapt in 32 steps on {SHOTS} samples\n")
    print("| seed | rounds | waves a round | squared error | median | wall |\n|---|---|---|---|---|---|")
    rows = []
    for seed in (int(part) for part in chosen.seeds.split(",")):
        for rounds in (int(part) for part in chosen.rounds.split(",")):
            began = time.perf_counter()
            mean, median = errors(seed, rounds, chosen.cohort, chosen.step)
            took = time.perf_counter() - began
            print(f"| {seed} | {rounds} | {chosen.cohort} | {mean:.4f} | {median:.4f} | {took:.0f} s |", flush=True)
            for most, wanted in TARGETS.items():
                if rounds <= most:
                    target = f"squared error <= {wanted} within {most} rounds"
                    rows.append(
                        Row(f"Reptile, sine, seed {seed}", target, f"{mean:.3f} after {rounds}", mean <= wanted)
                    )
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
