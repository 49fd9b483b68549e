"""Identities of federated meta-learning: what each scheme is the same as, in a corner."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.errors import BudgetError, ConfigError
from midhaul.program import Population
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import Tiny, engine, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
# Plain SGD is done by the stacked engine's kernels, every other rule by torch, which sums in another order.
APART = {"loop": 0.0, "stacked": 1e-6}
ALL_ROWS = {"scheme_batch": 0, "scheme_epochs": 1, "scheme_momentum": 0.0, "scheme_lr": 0.1}


def equal_devices() -> Population:
    """Three devices with as many rows each, so that a mean by rows is a mean by devices."""
    population = setting(SCHEMES["fedavg"])[2]
    return replace(population, train=tuple(np.split(np.arange(198), 3)))


def run(name: str, on: str, rounds: int = 3, **changes: object) -> Server:
    scheme = SCHEMES[name]
    kit, program, _ = setting(scheme, **changes)
    fleet = engine(on, program, equal_devices())
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    return server


def difference(left: Server, right: Server) -> float:
    return tree.largest_difference(left.tree, right.tree)


@BOTH
def test_reptile_with_one_inner_step_is_joint_sgd(on: str) -> None:
    """FedAvg of one full batch to the bit; gradient descent on the mean loss of all devices up to rounding: the mean of
    three models is rounded where the mean of three gradients isn't.
    """
    reptile = run("reptile", on, scheme_inner_steps=1, scheme_inner_lr=0.1, scheme_batch=0)
    assert difference(reptile, run("fedavg", on, **ALL_ROWS)) == 0.0
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        model = Tiny()
    population = equal_devices()
    for _ in range(3):
        model.zero_grad()
        torch.stack(
            [F.cross_entropy(model(population.x[r]), population.y[r]) for r in population.train]
        ).mean().backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= 0.1 * value.grad
    assert tree.largest_difference(reptile.tree, dict(model.state_dict())) < 3e-7
    more = run("reptile", on, scheme_inner_steps=2, scheme_inner_lr=0.1, scheme_batch=0)
    assert difference(reptile, more) > 1e-3


@BOTH
@pytest.mark.parametrize("name", ["maml", "fomaml", "anil"])
@pytest.mark.parametrize("nothing", [{"scheme_inner_steps": 0}, {"scheme_inner_lr": 0.0}], ids=["no step", "no rate"])
def test_maml_without_an_inner_loop_is_fedsgd(name: str, nothing: dict[str, object], on: str) -> None:
    found = run(name, on, scheme_support=0, **ALL_ROWS, **nothing)
    assert difference(found, run("fedavg", on, **ALL_ROWS)) <= APART[on]


@BOTH
def test_what_tells_the_kin_of_maml_apart(on: str) -> None:
    ends = [run(name, on, scheme_inner_lr=0.3, **ALL_ROWS) for name in ("maml", "fomaml", "anil")]
    assert difference(ends[0], ends[1]) > 1e-3
    assert difference(ends[0], ends[2]) > 1e-3


@BOTH
def test_meta_sgd_takes_mamls_first_step_and_learns_its_rates(on: str) -> None:
    """The rates begin alike, so that the first gradient of the weights is MAML's."""
    maml, meta = (run(name, on, rounds=1, scheme_inner_lr=0.3, **ALL_ROWS) for name in ("maml", "meta_sgd"))
    weights = {name: meta.tree[f"model.{name}"] for name in maml.tree}
    assert tree.largest_difference(maml.tree, weights) < 1e-7
    rates = {name: meta.tree[f"rates.{name}"] for name in maml.tree}
    assert all(float((rate - 0.3).abs().max()) > 1e-5 for rate in rates.values())


@BOTH
@pytest.mark.parametrize("name", ["per_fedavg", "per_fedavg_hf"])
def test_per_fedavg_that_looks_no_step_ahead_is_fedavg(name: str, on: str) -> None:
    assert difference(run(name, on, scheme_inner_lr=0.0, scheme_support=0), run("fedavg", on)) <= APART[on]
    ahead = run(name, on, scheme_inner_lr=0.3, scheme_support=0)
    assert difference(ahead, run("fedavg", on)) > 1e-3


@BOTH
def test_finite_differences_come_to_mamls_gradient(on: str) -> None:
    """One local step of each: FO is further from MAML than HF."""
    one = {**ALL_ROWS, "scheme_inner_lr": 0.3, "scheme_inner_steps": 1}
    exact, near, far = (run(name, on, rounds=1, **one) for name in ("maml", "per_fedavg_hf", "per_fedavg"))
    assert difference(exact, near) < 2e-5
    assert difference(exact, far) > 1e-3


@BOTH
def test_pfedme_with_one_inner_step_of_one_over_lambda_is_fedavg(on: str) -> None:
    """The envelope's gradient is then lambda times 1 / lambda of the loss's; a power of two keeps every bit."""
    found = run("pfedme", on, scheme_moreau=4.0, scheme_inner_lr=0.25, scheme_inner_steps=1)
    assert difference(found, run("fedavg", on)) <= APART[on]


@BOTH
def test_the_stronger_pfedmes_pull_the_nearer_it_is_to_fedavg(on: str) -> None:
    """The envelope goes to the loss itself as lambda grows (personal models that are the shared one)."""
    fedavg = run("fedavg", on, rounds=1)
    ends = [
        difference(fedavg, run("pfedme", on, rounds=1, scheme_moreau=m, scheme_inner_lr=0.5 / m, scheme_inner_steps=12))
        for m in (2.0, 64.0, 2048.0)
    ]
    assert ends[0] > 5.0 * ends[1] > 25.0 * ends[2]
    assert ends[2] < 1e-3


def test_the_servers_step() -> None:
    """Half of the way, Adam's signs at first, and a rate that falls along a line to its last round."""
    start, whole = (run("reptile", "loop", rounds=rounds, scheme_batch=0) for rounds in (0, 1))
    half = run("reptile", "loop", rounds=1, scheme_batch=0, scheme_meta_lr=0.5)
    middle = tree.scale(tree.add(start.tree, whole.tree), 0.5)
    assert tree.largest_difference(half.tree, middle) < 1e-7
    adam = run("reptile", "loop", rounds=1, scheme_batch=0, scheme_meta_lr=0.01, scheme_meta_optimizer="adam")
    step, way = tree.subtract(adam.tree, start.tree), tree.subtract(whole.tree, start.tree)
    moved = {name: value.abs() > 1e-4 for name, value in way.items()}
    assert all(torch.allclose(step[n][at], 0.01 * way[n][at].sign(), atol=2e-5) for n, at in moved.items())
    ends = [run("reptile", "loop", rounds=n, run_rounds=2, scheme_batch=0, scheme_meta_anneal=True) for n in (1, 2)]
    full = run("reptile", "loop", rounds=2, scheme_batch=0)
    assert difference(ends[0], whole) == 0.0
    middle = tree.scale(tree.add(whole.tree, full.tree), 0.5)
    assert tree.largest_difference(ends[1].tree, middle) < 1e-7


def test_what_federated_meta_learning_refuses() -> None:
    small = {"data_name": "digits", "data_num_devices": 4}
    with pytest.raises(BudgetError, match="training 'whole' of mlp needs"):
        plant.build(Config().replace(scheme_name="maml", tiny_options={"hidden": [64]}, **small))
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="fomaml can't keep norms on the devices"):
        plant.build(Config().replace(scheme_name="fomaml", tiny_norm="fedbn", **small), module=norm)
    with pytest.raises(ConfigError, match="make their product smaller than 2"):
        run("pfedme", "loop", scheme_moreau=30.0, scheme_inner_lr=0.1)
    with pytest.raises(ConfigError, match=r"scheme\.inner_steps"):
        run("pfedme", "loop", scheme_inner_steps=0)
