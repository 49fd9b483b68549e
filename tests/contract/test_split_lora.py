"""SplitLoRA: only adapters move, only adapters travel, and one device is central training of the adapters."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midhaul import budget, plant, rng, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError, SliceError
from midhaul.link import radio
from midhaul.message import Op
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting
from test_schemes import device_trees

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
SPLIT_LORA = SCHEMES["split_lora"]
ROUNDS = 3


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in ("lora_a", "lora_b")


def key(number: int) -> rng.Key:
    return rng.Key(0, number, rng.SERVER, 0)


@BOTH
def test_frozen_weights_stay_bit_for_bit_and_only_adapters_travel(on: str) -> None:
    kit, program, population = setting(SPLIT_LORA)
    inner, ledger = engine(on, program, population), Ledger()
    fleet = OverLink(inner, program, profiles.get("stm32l4"), radio.get("ble"), loss=0.0, retries=0, ledger=ledger)
    start = server = SPLIT_LORA.init(fleet, kit, key(0))
    once = ledger.kinds_down["weights"]
    assert once == 3 * tree.num_bytes(program.initial)
    for number in range(1, ROUNDS + 1):
        server, _ = SPLIT_LORA.round(server, fleet, kit, key(number))
    for before, after in ((start.tree, server.tree), (start.large, server.large)):
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if is_adapter(name)}
    for path, value in device_trees(inner).items():
        name = path.partition("/")[2]
        assert torch.equal(value, program.initial[name]) != is_adapter(name), path
    adapters = sum(4 * value.numel() for name, value in program.initial.items() if is_adapter(name))
    assert ledger.kinds_up["weights"] == ledger.kinds_down["weights"] - once == ROUNDS * 3 * adapters


def test_one_device_is_central_sgd_on_the_adapters() -> None:
    changes = {
        "large_optimizer": "sgd", "large_lr": 0.05, "large_weight_decay": 0.0, "scheme_lr": 0.05, "scheme_momentum": 0.9
    }  # fmt: skip
    kit, program, population = setting(SPLIT_LORA, **changes)
    alone = replace(population, train=population.train[2:])
    model = nn.Sequential(program.module, kit.server_model())
    expected = nn.Sequential(*(part.train() for part in model))
    ends = {}
    for on in ("loop", "stacked"):
        fleet = engine(on, program, alone)
        server = SPLIT_LORA.init(fleet, kit, key(0))
        for number in range(1, ROUNDS + 1):
            server, _ = SPLIT_LORA.round(server, fleet, kit, key(number))
        ends[on] = {f"0.{n}": v for n, v in server.tree.items()} | {f"1.{n}": v for n, v in server.large.items()}
    for name, value in expected.named_parameters():
        value.requires_grad_(is_adapter(name))
    optimizer = torch.optim.SGD([p for p in expected.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    rows = alone.train[0]
    for number in range(1, ROUNDS + 1):
        for epoch in range(2):
            order = rng.permutation(rng.key(0, number, 0, rng.Use.BATCH).at(epoch), len(rows))
            for first in range(0, len(rows), 16):
                picked = torch.from_numpy(rows[order[first : first + 16]])
                optimizer.zero_grad()
                F.cross_entropy(expected(alone.x[picked]), alone.y[picked]).backward()
                optimizer.step()
    whole = {name: value.detach() for name, value in expected.state_dict().items()}
    assert tree.largest_difference(ends["loop"], whole) == 0.0
    assert tree.largest_difference(ends["stacked"], whole) < 1e-5


def test_each_device_steps_with_the_gradient_of_its_own_mean_loss() -> None:
    """The server's step is on all rows; what goes down is as if each device had been alone."""
    kit, program, population = setting(SPLIT_LORA, scheme_epochs=1, scheme_batch=0)
    seen = []

    class Watching(type(engine("loop", program, population))):  # type: ignore[misc]
        def exchange(self, message, **how):  # type: ignore[no-untyped-def]
            if message.op == Op.BACKWARD:
                seen.append(message)
            return super().exchange(message, **how)

    fleet = Watching(program, population)
    server = SPLIT_LORA.init(fleet, kit, key(0))
    SPLIT_LORA.round(server, fleet, kit, key(1))
    (message,) = seen
    for device, rows in enumerate(population.train):
        h, _ = program.call_front(program.initial, population.x[rows], training=True)
        h = h.detach().requires_grad_(True)
        F.cross_entropy(
            torch.func.functional_call(kit.server_model(), server.large, (h,)), population.y[rows]
        ).backward()
        torch.testing.assert_close(message.for_device(device).tree["g"], h.grad, atol=1e-6, rtol=1e-5)


CONFIG = {"scheme_name": "split_lora", "tiny_lora_rank": 2, "tiny_options": {"hidden": [32, 16]}}


def test_both_halves_have_adapters_of_the_rank_that_is_asked_for() -> None:
    built = plant.build(Config().replace(**CONFIG))
    for module in (built.kit.program.module, built.kit.server_model()):
        ranks = {len(value) for name, value in module.named_parameters() if name.endswith(".lora_a")}
        assert ranks == {2}
    # Weights that are frozen lie in flash: only the adapters, their gradients and activations are in SRAM.
    split = plant.build(Config().replace(**CONFIG | {"scheme_name": "federated_split"}))
    assert built.need.sram_bytes < split.need.sram_bytes
    assert isinstance(built.need, budget.Budget)


def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"split_lora trains low-rank adapters; set tiny\.lora_rank"):
        plant.build(Config().replace(scheme_name="split_lora"))


def test_a_half_that_can_have_no_adapters_is_refused() -> None:
    with pytest.raises(SliceError, match=r"no layer up to the cut 'conv1' has a low-rank adapter .* scheme\.cut"):
        plant.build(Config().replace(scheme_name="split_lora", tiny_lora_rank=2, tiny_model="cnn", scheme_cut="conv1"))
