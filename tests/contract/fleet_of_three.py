"""A fleet that every scheme must manage: devices with 1, 7 and 200 examples, two new ones to test on, public data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from midhaul import rng
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.kit import Kit, Scheme
from midhaul.program import Examples, Population, Program
from midhaul.runtime.blobs import DeviceBlobs
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.loop import Loop
from midhaul.runtime.places import places
from midhaul.runtime.stacked import Stacked

SIZES = (1, 7, 200)
FEATURES, CLASSES, HIDDEN = 6, 3, 8


class Tiny(nn.Module):
    """A person's own module: nothing of midhaul's in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.last = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.relu(self.first(x)))
        return out


def rear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def examples(own_test: bool = False) -> Population:
    total = sum(SIZES) + 60
    x = torch.from_numpy(
        rng.normal(rng.key(3, 0, 0, rng.Use.SYNTHETIC), total * FEATURES).reshape(total, FEATURES)
    ).float()
    y = (x[:, 0] > 0.3).long() + (x[:, 1] + x[:, 2] > 0).long()
    starts = np.cumsum([0, *SIZES])
    train = tuple(np.arange(a, b) for a, b in pairwise(starts))
    held = np.arange(sum(SIZES), total)
    if own_test:
        return Population(x, y, train, (held[:0], held[5:9], held[9:30]), (), True)
    return Population(x, y, train, (held[:20], held[20:33]), (held[33:38], held[38:40]), False)


def setting(scheme: Scheme, *, own_test: bool = False, **changes: object) -> tuple[Kit, Program, Population]:
    """Gives what a run of the scheme is built from, the same each time it is asked."""
    base = {
        "scheme_batch": 16,
        "scheme_epochs": 2,
        "scheme_lr": 0.1,
        "scheme_momentum": 0.5,
        "scheme_distill_epochs": 3,
        "large_epochs": 3,
        "large_lr": 0.01,
        "scheme_name": scheme.name,
        "scheme_tune_lr": 0.1,
        "run_rounds": 5,
    }
    config = Config().replace(**{**base, **changes})
    population = examples(own_test)
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        whole, teacher = Tiny(), rear(FEATURES, CLASSES)
        front = nn.Sequential()
        front.add_module("first", whole.first)
        behind, middle = rear(HIDDEN, CLASSES), rear(HIDDEN, config.scheme.features)
        tail = nn.Sequential(nn.ReLU(), nn.Linear(config.scheme.features, CLASSES))
    shape = (FEATURES,)
    program = {
        "whole": lambda: Program(whole, shape),
        "front": lambda: Program(front, shape),
        "u": lambda: Program(front, shape, tail=tail),
    }[scheme.part]()
    large = {"none": None, "teacher": teacher, "rear": middle if scheme.part == "u" else behind}[scheme.large]
    public = Examples(population.x[:50] + 0.1, population.y[:50])
    return Kit(config, program, large, public, CLASSES, can_adapt=not own_test), program, population


def engine(name: str, program: Program, population: Population) -> Loop | Stacked:
    return Loop(program, population) if name == "loop" else Stacked(program, population)


def firmware(addresses: str, scheme: Scheme, kit: Kit, program: Program, population: Population) -> Firmware:
    """Gives the engine whose devices run the C runtime at these addresses."""
    work = [(work.op, work.train) for work in scheme.work(kit.cfg)]
    keeps_start = kit.config.privacy.clip > 0.0 or scheme.name == "fedprox"
    blobs = DeviceBlobs(program, work, momentum=kit.cfg.momentum > 0.0, keeps_start=keeps_start)
    found = places(addresses, profiles.get("stm32l4"), seed=0)
    return Firmware(program, population, blobs, found, seed=0, deadline_s=60.0)
