"""What the two-way schemes are in their corners, and that both models gain."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from midhaul import plant, rng, tree
from midhaul import server as site
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.kit import Kit
from midhaul.message import Message, Op
from midhaul.program import Program
from midhaul.schemes import SCHEMES
from midhaul.server import Optimizer, Server
from midhaul.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting
from test_identities import BOTH, everyone, only_device, run
from test_schemes import device_trees

ROUND = rng.Key(0, 1, rng.SERVER, 0)


def distilled(kit: Kit, module: nn.Module, whole: Tree, logits: torch.Tensor, optimizer: Optimizer, turn: int) -> Tree:
    """A plain call of the server's training towards logits on all public rows."""
    x = kit.public.x
    key = rng.key(0, 1, rng.SERVER, rng.Use.PUBLIC).at(turn << 16)
    after, _, _ = site.train(
        module, whole, x, torch.full((len(x),), -1), optimizer, epochs=kit.cfg.exchange_epochs, batch=64, key=key,
        soft=logits, temperature=kit.cfg.temperature, soft_weight=1.0,
    )  # fmt: skip
    return after


@BOTH
def test_feddf_without_distillation_is_fedavg(on: str) -> None:
    fedavg, feddf = run("fedavg", on), run("feddf", on, scheme_exchange_epochs=0)
    assert tree.largest_difference(fedavg.tree, feddf.tree) == 0.0
    assert tree.largest_difference(fedavg.tree, run("feddf", on).tree) > 1e-4


@BOTH
def test_feddf_with_one_client_is_distillation_from_it(on: str) -> None:
    alone = only_device(everyone())
    kit, program, _ = setting(SCHEMES["feddf"])
    start = SCHEMES["feddf"].init(engine(on, program, alone), kit, ROUND._replace(round=0))
    client = run("fedavg", on, rounds=1, population=alone).tree
    after = run("feddf", on, rounds=1, population=alone)
    logits = site.predict(program.module, client, kit.public.x)
    large = distilled(kit, kit.server_model(), start.large, logits, kit.optimizer(), turn=0)
    assert tree.largest_difference(after.large, large) == 0.0
    assert tree.largest_difference(after.tree, client) == 0.0  # what it says of itself it knows
    assert tree.largest_difference(after.large, start.large) > 1e-3
    back = run("feddf", on, rounds=1, population=alone, scheme_from_large=True)
    logits = site.predict(kit.server_model(), large, kit.public.x)
    tiny = distilled(kit, program.module, client, logits, Optimizer("adam", kit.cfg.distill_lr), turn=2)
    assert tree.largest_difference(back.tree, tiny) == 0.0


@BOTH
def test_feddf_teaches_the_average_by_the_mean_of_the_clients_logits(on: str) -> None:
    kit, program, population = setting(SCHEMES["feddf"])
    fleet = engine(on, program, population)
    up = fleet.exchange(kit.fit(program.initial, train="whole", send="whole"), key=ROUND)
    said = [site.predict(program.module, reply.tree, kit.public.x) for _, reply in up]
    average = tree.weighted_mean(up.tree, up.weight)
    expected = distilled(
        kit, program.module, average, torch.stack(said).mean(0), Optimizer("adam", kit.cfg.distill_lr), turn=1
    )
    assert tree.largest_difference(run("feddf", on, rounds=1).tree, expected) == 0.0


@BOTH
def test_fedmd_without_digesting_is_each_device_alone(on: str) -> None:
    """The first training, before anything is exchanged, is a round more."""
    held = []
    for name in ("fedmd", "local"):
        scheme = SCHEMES[name]
        kit, program, population = setting(scheme, scheme_exchange_epochs=0)
        fleet = engine(on, program, population)
        server = scheme.init(fleet, kit, ROUND._replace(round=0))
        for number in range(0 if name == "local" else 1, 3):
            server, _ = scheme.round(server, fleet, kit, ROUND._replace(round=number))
        held.append(device_trees(fleet))
    assert tree.largest_difference(*held) == 0.0


@BOTH
def test_fedmd_with_one_device_teaches_the_large_model_and_leaves_the_device_alone(on: str) -> None:
    """Its own answers are the consensus: they pull it nowhere, and the large model is distilled from it."""
    scheme = SCHEMES["fedmd"]
    changes = {"scheme_large_weight": 0.0, "scheme_batch": 0, "scheme_exchange_epochs": 1}
    kit, program, _ = setting(scheme, **changes)
    fleet = engine(on, program, only_device(everyone()))
    server = scheme.init(fleet, kit, ROUND._replace(round=0))
    first = device_trees(fleet)
    logits = fleet.exchange(Message(Op.PREDICT, {"x": kit.public.x}), key=ROUND).tree["logits"][0]
    after, _ = scheme.round(server, fleet, kit, ROUND)
    large = distilled(kit, kit.server_model(), server.large, logits, kit.optimizer(), turn=0)
    assert tree.largest_difference(after.large, large) == 0.0
    alone = engine(on, program, only_device(everyone()))
    alone.exchange(Message(Op.LOAD, {name[2:]: value for name, value in first.items()}), key=ROUND)
    alone.exchange(kit.fit({}, train="whole", send="none"), key=ROUND)
    assert tree.largest_difference(device_trees(fleet), device_trees(alone)) < 1e-6


@BOTH
def test_co_learning_without_its_two_ways_is_fedavg(on: str) -> None:
    fedavg, apart = run("fedavg", on), run("co_learning", on, scheme_exchange="none")
    assert tree.largest_difference(fedavg.tree, apart.tree) == 0.0
    began = run("co_learning", on, rounds=0, scheme_exchange="none")
    assert tree.largest_difference(apart.large, began.large) == 0.0
    only_taught = run("co_learning", on, scheme_exchange="teach")
    assert tree.largest_difference(only_taught.large, began.large) == 0.0
    assert tree.largest_difference(only_taught.tree, fedavg.tree) > 1e-4


@BOTH
def test_co_learning_of_logits_without_its_two_ways_is_each_device_alone(on: str) -> None:
    held = []
    for name, first in (("co_learning_logits", 1), ("local", 0)):
        scheme = SCHEMES[name]
        kit, program, population = setting(scheme, scheme_exchange="none")
        fleet = engine(on, program, population)
        server = scheme.init(fleet, kit, ROUND._replace(round=0))
        for number in range(first, 3):
            server, _ = scheme.round(server, fleet, kit, ROUND._replace(round=number))
        held.append(device_trees(fleet))
    assert tree.largest_difference(*held) == 0.0


@pytest.mark.parametrize("name", ["co_learning", "co_learning_logits", "feddf", "fedmd"])
def test_both_models_end_better_than_they_began(name: str) -> None:
    """Labels are on the devices alone; no public label is read."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, scheme_epochs=1, large_epochs=10)
    kit.public.y.fill_(-1)
    fleet = engine("stacked", program, population)
    server = scheme.init(fleet, kit, ROUND._replace(round=0))

    def accuracies(server: Server) -> tuple[float, float]:
        assert scheme.evaluate_large is not None
        tested = (scheme.evaluate(server, fleet, kit, ROUND), scheme.evaluate_large(server, fleet, kit, ROUND))
        tiny, large = (float(t.metrics["correct"].sum() / t.metrics["rows"].sum()) for t in tested)
        return tiny, large

    began = accuracies(server)
    for number in range(1, 9):
        server, _ = scheme.round(server, fleet, kit, ROUND._replace(round=number))
    ended = accuracies(server)
    assert ended[0] > began[0] + 0.03
    assert ended[1] > began[1] + 0.03
    assert min(ended) > 0.6


@pytest.mark.parametrize("name", ["feddf", "co_learning"])
def test_models_whose_norms_stay_on_the_devices_are_refused(name: str) -> None:
    config = Config().replace(
        scheme_name=name, data_public=0.2, tiny_model="dscnn", tiny_norm="fedbn", data_num_devices=2, large_model="vit"
    )
    with pytest.raises(ConfigError, match=r"set tiny\.norm = 'group'"):
        plant.build(config)


def test_a_round_draws_its_public_rows_anew() -> None:
    kit, program, population = setting(SCHEMES["fedmd"], scheme_exchange_rows=7)
    seen = []

    class Listening:
        devices, test_devices = population.devices, population.test_devices

        def __init__(self) -> None:
            self.inner = engine("loop", program, population)

        def exchange(self, message: Message, **how: object) -> object:
            seen.extend([message.tree["x"]] if message.op == Op.PREDICT else [])
            return self.inner.exchange(message, **how)  # type: ignore[arg-type]

    fleet = Listening()
    server = SCHEMES["fedmd"].init(fleet, kit, ROUND._replace(round=0))  # type: ignore[arg-type]
    for number in (1, 2, 2):
        SCHEMES["fedmd"].round(server, fleet, kit, ROUND._replace(round=number))  # type: ignore[arg-type]
    assert [x.shape for x in seen] == [(7, 6)] * 3
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


@BOTH
@pytest.mark.parametrize("name", ["fedmd", "co_learning_logits"])
def test_unlike_models_learn_from_each_other(name: str, on: str) -> None:
    """Devices 0 and 2 hold one model, device 1 another, and only logits pass between them."""
    scheme = SCHEMES[name]
    with rng.torch_seed(rng.key(1, 0, rng.SERVER, rng.Use.INIT)):
        other = Program(nn.Sequential(OrderedDict(only=nn.Linear(6, 3))), (6,))
    losses = []
    for epochs in (0, 5):
        kit, program, population = setting(scheme, scheme_exchange_epochs=epochs)
        (group,) = kit.groups
        groups = (
            replace(group, devices=(0, 2), tests=population.test_devices),
            replace(group, devices=(1,), tests=(), program=other),
        )
        kit = replace(kit, groups=groups)
        fleet = engine(on, program, population, groups)
        server = scheme.init(fleet, kit, ROUND._replace(round=0))
        for number in range(1, 13):
            server, _ = scheme.round(server, fleet, kit, ROUND._replace(round=number))
        tested = scheme.evaluate(server, fleet, kit, ROUND)
        assert tested.devices == (0, 1, 2)
        losses.append(tested.metrics["loss"])
    # The device with seven rows learns from the one with two hundred, whose model is another; so does that with one.
    alone, together = losses
    assert together[1] < 0.85 * alone[1]
    assert together[0] < 0.6 * alone[0]
