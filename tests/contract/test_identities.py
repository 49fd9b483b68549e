"""Identities that must hold exactly: schemes that are the same thing in a corner give the same bits there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midhaul import rng, tree
from midhaul.message import Message, Op
from midhaul.program import Population
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import Tiny, engine, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])


def run(name: str, on: str, rounds: int = 3, population: Population | None = None, **changes: object) -> Server:
    scheme = SCHEMES[name]
    kit, program, everyone = setting(scheme, **changes)
    fleet = engine(on, program, population or everyone, kit.groups)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    return server


def only_device(population: Population, device: int = 2) -> Population:
    return replace(population, train=(population.train[device],))


def everyone() -> Population:
    return setting(SCHEMES["fedavg"])[2]


@BOTH
def test_fedprox_without_its_term_is_fedavg(on: str) -> None:
    fedavg, fedprox = run("fedavg", on), run("fedprox", on, scheme_proximal_mu=0.0)
    assert tree.largest_difference(fedavg.tree, fedprox.tree) == 0.0
    moved = run("fedprox", on, scheme_proximal_mu=1.0)
    assert tree.largest_difference(fedavg.tree, moved.tree) > 1e-4


@BOTH
def test_fedavg_of_one_device_and_one_full_batch_is_gradient_descent(on: str) -> None:
    alone = only_device(everyone())
    server = run("fedavg", on, population=alone, scheme_batch=0, scheme_epochs=1, scheme_momentum=0.0, scheme_lr=0.1)
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        model = Tiny()
    x, y = alone.x[alone.train[0]], alone.y[alone.train[0]]
    for _ in range(3):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= 0.1 * value.grad
    assert tree.largest_difference(server.tree, dict(model.state_dict())) < 1e-6


def central(population: Population, rounds: int, epochs: int, batch: int, lr: float, momentum: float) -> tree.Tree:
    """Plain PyTorch: the two halves in one module, one optimiser, the same order of batches."""
    kit, program, _ = setting(SCHEMES["split"])
    model = nn.Sequential(program.module, kit.large)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    rows = population.train[0]
    for number in range(1, rounds + 1):
        for epoch in range(epochs):
            order = rng.permutation(rng.key(0, number, 0, rng.Use.BATCH).at(epoch), len(rows))
            for first in range(0, len(rows), batch):
                picked = torch.from_numpy(rows[order[first : first + batch]])
                optimizer.zero_grad()
                F.cross_entropy(model(population.x[picked]), population.y[picked]).backward()
                optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


SGD = {
    "large_optimizer": "sgd",
    "large_lr": 0.05,
    "large_weight_decay": 0.0,
    "scheme_lr": 0.05,
    "scheme_momentum": 0.9,
    "scheme_batch": 16,
    "scheme_epochs": 2,
}


def halves(server: Server) -> tree.Tree:
    return {f"0.{name}": value for name, value in server.tree.items()} | {
        f"1.{name}": value for name, value in server.large.items()
    }


def test_split_learning_of_one_device_is_central_sgd_with_momentum() -> None:
    alone = only_device(everyone())
    expected = central(alone, rounds=3, epochs=2, batch=16, lr=0.05, momentum=0.9)
    assert tree.largest_difference(halves(run("split", "loop", population=alone, **SGD)), expected) == 0.0
    assert tree.largest_difference(halves(run("split", "stacked", population=alone, **SGD)), expected) < 1e-5


@BOTH
@pytest.mark.parametrize("variant", ["federated_split", "federated_split_v1"])
def test_splitfed_with_one_device_is_split_learning(variant: str, on: str) -> None:
    alone = only_device(everyone())
    split, splitfed = (run(name, on, population=alone, **SGD) for name in ("split", variant))
    assert tree.largest_difference(halves(split), halves(splitfed)) == 0.0


@BOTH
def test_splitfed_v3_with_one_device_is_split_learning(on: str) -> None:
    """The front is never sent again: `stacked` runs a device's own tensors in another order than shared ones."""
    alone = only_device(everyone())
    split = run("split", on, population=alone, **SGD)
    scheme = SCHEMES["federated_split_v3"]
    kit, program, _ = setting(scheme, **SGD)
    fleet = engine(on, program, alone)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in (1, 2, 3):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    assert server.tree == {}
    held = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), key=rng.Key(0, 3, 0, 0)).reply(0).tree
    difference = tree.largest_difference(halves(split), halves(Server(held, server.large)))
    assert difference == 0.0 if on == "loop" else difference < 1e-6


@BOTH
@pytest.mark.parametrize(("groups", "same"), [(1, "split"), (3, "federated_split_v1")])
def test_groups_of_all_and_of_one_are_split_and_splitfed(groups: int, same: str, on: str) -> None:
    grouped = run("group_split", on, scheme_relay_groups=groups, **SGD)
    assert tree.largest_difference(halves(grouped), halves(run(same, on, **SGD))) == 0.0
    between = run("group_split", on, scheme_relay_groups=2, **SGD)
    assert tree.largest_difference(halves(grouped), halves(between)) > 1e-4


@BOTH
def test_fedper_with_one_device_trains_what_fedavg_trains(on: str) -> None:
    """With one device nothing is averaged away: body and personal head together are FedAvg's model."""
    alone = only_device(everyone())
    scheme = SCHEMES["fedper"]
    kit, program, _ = setting(scheme)
    fleet = engine(on, program, alone)
    start = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    fedavg_fleet = engine(on, program, alone)
    fedavg = Server(start.tree)
    server = start
    for number in (1, 2):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        fedavg, _ = SCHEMES["fedavg"].round(fedavg, fedavg_fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    held = fleet.exchange(Message(Op.READ, settings={"send": "head"}), key=rng.Key(0, 2, 0, 0)).reply(0).tree
    body = tree.select(server.tree, program.names("body"))
    assert tree.largest_difference({**body, **held}, fedavg.tree) == 0.0


def test_the_cohort_and_the_order_of_batches_come_from_the_key() -> None:
    kit, program, population = setting(SCHEMES["fedavg"], fleet_cohort=2)
    fleet = engine("loop", program, population)
    drawn = [kit.cohort(fleet, rng.Key(0, number, rng.SERVER, 0)) for number in range(30)]
    assert all(len(cohort) == 2 for cohort in drawn)
    assert len(set(drawn)) == 3
    assert drawn == [kit.cohort(fleet, rng.Key(0, number, rng.SERVER, 0)) for number in range(30)]


@BOTH
def test_clipping_bounds_every_update(on: str) -> None:
    kit, program, population = setting(SCHEMES["fedavg"], privacy_clip=0.01)
    fleet = engine(on, program, population)
    up = fleet.exchange(kit.fit(program.initial, train="whole", send="whole"), key=rng.Key(0, 1, rng.SERVER, 0))
    for _, reply in up:
        update = tree.subtract(reply.tree, program.initial)
        norm = np.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
        assert norm == pytest.approx(0.01, rel=1e-3)
