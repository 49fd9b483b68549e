"""Devices that train on a loss of their own and send activations: what must be the same as training alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.message import Message, Op
from midhaul.models import slices
from midhaul.program import Population
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting
from test_schemes import device_trees

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
ROUNDS = (1, 2, 3)


def key(number: int) -> rng.Key:
    return rng.Key(0, number, rng.SERVER, 0)


def run(
    name: str, on: str, population: Population | None = None, **changes: object
) -> tuple[Server, Loop | Stacked, Server]:
    """Gives the server at the end, its fleet, and the server that it began as."""
    scheme = SCHEMES[name]
    kit, program, everyone = setting(scheme, **changes)
    fleet = engine(on, program, population or everyone)
    start = server = scheme.init(fleet, kit, key(0))
    for number in ROUNDS:
        server, _ = scheme.round(server, fleet, kit, key(number))
    return server, fleet, start


@BOTH
@pytest.mark.parametrize("upload_every", [1, 5, 1000])
def test_cse_fsl_trains_its_devices_as_fit_alone_does(upload_every: int, on: str) -> None:
    """However often it uploads, the tiny model is FedAvg's; without momentum, since a FIT begins it anew."""
    changes = {"scheme_momentum": 0.0}
    server, _, start = run("cse_fsl", on, scheme_upload_every=upload_every, **changes)
    kit, program, population = setting(SCHEMES["cse_fsl"], **changes)
    fleet, fedavg = engine(on, program, population), Server(start.tree)
    for number in ROUNDS:
        up = fleet.exchange(kit.fit(fedavg.tree, train="whole", send="whole"), key=key(number))
        fedavg = Server(tree.weighted_mean(up.tree, up.weight))
    difference = tree.largest_difference(server.tree, fedavg.tree)
    assert difference == 0.0 if on == "loop" else difference < 1e-6
    assert tree.largest_difference(server.tree, start.tree) > 1e-2
    assert tree.largest_difference(server.large, start.large) > 1e-2


@BOTH
def test_the_server_of_cse_fsl_sees_one_batch_in_so_many(on: str) -> None:
    """A device of 200 rows has 13 batches an epoch: uploads are of batches 0, 6 and 12, the last with 8 rows."""
    seen = []

    class Counting(Loop if on == "loop" else Stacked):  # type: ignore[misc]
        def exchange(self, message, **how):  # type: ignore[no-untyped-def]
            replies = super().exchange(message, **how)
            if message.op == Op.FORWARD:
                seen.append([int(num) for num in replies.rows])
            return replies

    scheme = SCHEMES["cse_fsl"]
    kit, program, population = setting(scheme, scheme_upload_every=6, scheme_epochs=1)
    fleet = Counting(program, replace(population, train=population.train[2:]))
    scheme.round(scheme.init(fleet, kit, key(0)), fleet, kit, key(1))
    assert seen == [[16], [16], [8]]


@BOTH
def test_fedgkt_without_its_divergence_trains_devices_as_local_does(on: str) -> None:
    _, fleet, start = run("fedgkt", on, scheme_soft_weight=0.0)
    kit, program, population = setting(SCHEMES["fedgkt"])
    alone = engine(on, program, population)
    server = SCHEMES["local"].init(alone, kit, key(0))
    for number in ROUNDS:
        server, _ = SCHEMES["local"].round(server, alone, kit, key(number))
    assert tree.largest_difference(device_trees(fleet), device_trees(alone)) == 0.0
    _, taught, _ = run("fedgkt", on, scheme_soft_weight=0.5)
    assert tree.largest_difference(device_trees(taught), device_trees(alone)) > 1e-4
    assert start.tree == {}


def test_what_fedgkt_tells_a_device_is_of_its_own_rows() -> None:
    """Each row's logits are the large model's of that row's features as the device last sent them."""
    server, fleet, _ = run("fedgkt", "stacked")
    kit, _, population = setting(SCHEMES["fedgkt"])
    up = fleet.exchange(Message(Op.FORWARD, settings={"rows": "train", "batch": 0}), key=key(3))
    for device, reply in up:
        told = server.state["told"][str(device)]
        assert told.shape == (len(population.train[device]), 3)
        with torch.no_grad():
            expected = torch.func.functional_call(kit.server_model(), server.large, (reply.tree["h"],))
        torch.testing.assert_close(told, expected)


@BOTH
def test_forward_gives_the_front_and_predict_the_whole_of_one_model(on: str) -> None:
    _, program, population = setting(SCHEMES["fedgkt"])
    fleet = engine(on, program, population)
    h = fleet.exchange(Message(Op.FORWARD, program.initial, settings={"rows": "train"}), key=key(1)).reply(1).tree["h"]
    logits = fleet.exchange(Message(Op.PREDICT, program.initial, settings={"rows": "train"}), key=key(1)).reply(1)
    last = [program.initial[f"last.{name}"] for name in ("weight", "bias")]
    torch.testing.assert_close(logits.tree["logits"], torch.relu(h) @ last[0].T + last[1])
    assert program.names("front") == ("first.weight", "first.bias")


def test_the_budget_counts_the_auxiliary_head() -> None:
    """Its weights are trained, so they and their gradients lie in SRAM; only the front's MACs are FORWARD's."""
    needs = {
        name: plant.build(Config().replace(scheme_name=name, tiny_options={"hidden": [32, 16]})).need
        for name in ("federated_split", "cse_fsl")
    }
    head = 32 * 16 + 16 + 16 * 10 + 10
    assert needs["cse_fsl"].sram_bytes >= needs["federated_split"].sram_bytes + 2 * 4 * head
    built = plant.build(Config().replace(scheme_name="cse_fsl", tiny_options={"hidden": [32, 16]}))
    program = built.kit.program
    assert program.names("front") == slices.names(program.front, "whole", program.input_shape)
    assert tree.num_parameters(program.initial) == tree.num_parameters(tree.of(program.front)) + head
