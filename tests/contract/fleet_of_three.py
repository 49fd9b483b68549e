"""A fleet that every scheme must manage: devices with 1, 7 and 200 examples, two new ones to test on, public data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from midhaul import rng, variants
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.fleet import Group
from midhaul.kit import Kit, Scheme
from midhaul.link import radio
from midhaul.models import slices
from midhaul.models.adapters import add_lora, merge_lora
from midhaul.models.emulator import emulate
from midhaul.models.large import mlp_large
from midhaul.models.rates import WithRates
from midhaul.program import Examples, Population, Program
from midhaul.runtime.blobs import DeviceBlobs
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.places import places
from midhaul.runtime.stacked import Stacked

SIZES = (1, 7, 200)
FEATURES, CLASSES, HIDDEN = 6, 3, 8
LORA = rng.key(0, 0, rng.SERVER, rng.Use.INIT).at(3)


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


def in_parts(population: Population, num: int) -> Population:
    """Gives devices that hold an even part of the features of all rows each; the first has the labels."""
    total = len(population.y)
    x = torch.cat(population.x.chunk(num, 1))
    y = torch.cat([population.y, torch.zeros((num - 1) * total, dtype=torch.int64)])
    train, test = (np.concatenate(parts) for parts in (population.train, population.test))
    rows = [tuple(part + device * total for device in range(num)) for part in (train, test)]
    return Population(x, y, rows[0], rows[1], (), True)


def setting(
    scheme: Scheme, *, own_test: bool = False, rank: int = 2, **changes: object
) -> tuple[Kit, Program, Population]:
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
    base |= {"scheme_width_mix": "1,0.5,0.5", "scheme_rank_mix": "1,2,3"}
    base |= {"scheme_cut": "second,first,first"} if scheme.differs == "cut" else {}
    if scheme.adapters:
        base["scheme_lr"] = 0.3  # a few rows of rank on a model that was only drawn
    if scheme.differs == "rank":
        # A few rows of rank on a model that was only drawn; and one row's product isn't small.
        base |= {"scheme_lr": 0.3, "scheme_rank_weight": "examples"}
        base |= {"scheme_rank_mix": "2"} if scheme.name == "fedit" else {}
    if scheme.name == "fedkseed":
        base |= {"scheme_num_seeds": 256, "scheme_momentum": 0.0, "scheme_lr": 0.02}
    config = Config().replace(**{**base, **changes})
    population = examples(own_test)
    shape = (FEATURES,)
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        whole: nn.Module
        whole, teacher = Tiny(), rear(FEATURES, CLASSES)
        front = nn.Sequential()
        front.add_module("first", whole.first)
        if scheme.differs == "cut":
            front.add_module("relu", nn.ReLU())
            front.add_module("second", nn.Linear(HIDDEN, HIDDEN))
        behind, middle = rear(HIDDEN, CLASSES), rear(HIDDEN, config.scheme.features)
        tail = nn.Sequential(nn.ReLU(), nn.Linear(config.scheme.features, CLASSES))
        if scheme.large == "joint":
            front = nn.Sequential(OrderedDict(first=nn.Linear(FEATURES // len(SIZES), HIDDEN)))
            behind = rear(HIDDEN * len(SIZES), CLASSES)
        deep = mlp_large(shape, CLASSES, hidden=8, depth=4)
    if scheme.adapters and scheme.part == "front":
        key = rng.key(0, 0, rng.SERVER, rng.Use.INIT)
        front, behind = (add_lora(half, rank, float(rank), "all", key) for half in (front, behind))
    if scheme.differs == "rank":
        most = max(int(part) for part in config.scheme.rank_mix.split(","))
        whole = add_lora(whole, most, float(most), "all", LORA)
    if scheme.large == "joint":
        population, shape = in_parts(population, len(SIZES)), (FEATURES // len(SIZES),)
    program = {
        "whole": lambda: Program(WithRates(whole, config.scheme.inner_lr) if scheme.rates else whole, shape),
        "front": lambda: Program(front, shape),
        "u": lambda: Program(front, shape, tail=tail),
        "local": lambda: Program(whole, shape, front=front),
        "emulator": lambda: Program(emulate(deep, shape, 1, config.scheme.emulator), shape),
    }[scheme.part]()
    if scheme.part == "emulator":
        teacher = deep
    half = middle if scheme.part == "u" else behind
    large = {"none": None, "teacher": teacher, "rear": half, "joint": half}[scheme.large]
    public = Examples(population.x[:50] + 0.1, population.y[:50])
    groups = groups_of(scheme, config, program, population)
    kit = Kit(config, program, large, public, CLASSES, can_adapt=not own_test, groups=groups, most_rows=max(SIZES))
    return kit, program, population


def groups_of(scheme: Scheme, config: Config, program: Program, population: Population) -> tuple[Group, ...]:
    """Gives the devices by what lies on them: alike, or where the scheme lets them differ, as the config deals it."""
    board, on, shape, module = profiles.get("stm32l4"), radio.get("ble"), program.input_shape, program.module
    if scheme.differs in ("none", "model"):
        return (Group(population.devices, population.test_devices, program, board, on),)
    found, _ = variants.candidates(config, scheme.differs)
    largest = {"width": found[0], "cut": found[0], "rank": max(found, key=lambda variant: variant.rank)}[scheme.differs]
    groups = []
    for variant in dict.fromkeys(found):
        devices = tuple(d for d in population.devices if found[d % len(found)] == variant)
        tests = devices if population.own_test else population.test_devices if variant == largest else ()
        held = program
        if variant.width != 1.0:
            held = Program(slices.width(module, variant.width, shape)[0], shape)
        elif variant.cut != largest.cut:
            held = Program(slices.cut(module, variant.cut, shape)[0], shape)
        elif variant.rank != largest.rank:
            held = Program(add_lora(merge_lora(module), variant.rank, float(variant.rank), "all", LORA), shape)
        groups.append(Group(devices, tests, held, board, on, variant.width, variant.cut, variant.rank))
    return tuple(groups)


def engine(
    name: str, program: Program, population: Population, groups: Sequence[Group] = (), memory_bytes: int = 10**9
) -> Loop | Stacked | Groups:
    def build(program: Program, population: Population) -> Loop | Stacked:
        return Loop(program, population) if name == "loop" else Stacked(program, population, memory_bytes)

    if len({id(group.program) for group in groups}) > 1:
        return Groups(groups, population, build)
    return build(groups[0].program if groups else program, population)


def firmware(addresses: str, scheme: Scheme, kit: Kit, program: Program, population: Population) -> Firmware:
    """Gives the engine whose devices run the C runtime at these addresses."""
    work = [(work.op, work.train) for work in scheme.work(kit.cfg)]
    keeps_start = variants.keeps_start(kit.config, scheme)
    blobs = DeviceBlobs(program, work, momentum=kit.cfg.momentum > 0.0, keeps_start=keeps_start)
    found = places(addresses, profiles.get("stm32l4"), seed=0)
    return Firmware(program, population, blobs, found, seed=0, deadline_s=60.0)
