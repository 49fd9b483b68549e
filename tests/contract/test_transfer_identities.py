"""What must hold of transfer learning: hints, sparse updates, offsite tuning, and FedBABU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from midhaul import budget, hints, plant, rng, sparse, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import BudgetError, ConfigError, ModelError, SliceError
from midhaul.message import Message, Op
from midhaul.models import emulator, slices
from midhaul.models.large import mlp_large, resnet1d
from midhaul.program import Examples
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import CLASSES, FEATURES, Tiny, engine, examples, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
KEY = rng.key(0, 0, rng.SERVER, rng.Use.PUBLIC)


def begun(name: str, on: str = "stacked", **changes: object) -> tuple[Server, object, object]:
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **changes)
    fleet = engine(on, program, population, kit.groups)
    return scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0)), fleet, kit


@BOTH
def test_fedbabu_is_fedavg_of_the_body(on: str) -> None:
    server, fleet, kit = begun("fedbabu", on)
    other, other_fleet, other_kit = begun("fedavg", on, scheme_slice="body")
    start = server.tree
    for number in (1, 2, 3):
        key = rng.Key(0, number, rng.SERVER, 0)
        server, _ = SCHEMES["fedbabu"].round(server, fleet, kit, key)
        other, _ = SCHEMES["fedavg"].round(other, other_fleet, other_kit, key)
    assert tree.largest_difference(server.tree, other.tree) == 0.0
    assert tree.largest_difference(server.tree, start) > 1e-3
    for name in kit.program.names("head"):
        assert torch.equal(server.tree[name], start[name])


def test_a_fine_tuned_head_is_tested_and_forgotten() -> None:
    server, fleet, kit = begun("fedbabu", own_test=True)
    before = fleet.dump()
    tested = SCHEMES["fedbabu"].evaluate(server, fleet, kit, rng.Key(0, 1, rng.SERVER, 0))
    plain = SCHEMES["fedavg"].evaluate(server, fleet, kit, rng.Key(0, 1, rng.SERVER, 0))
    assert tree.largest_difference(before, fleet.dump()) == 0.0
    assert float(tested.metrics["loss"][2]) < float(plain.metrics["loss"][2])


def test_hints_move_the_guided_layers_only_and_none_is_plain_distillation() -> None:
    plain, _, _ = begun("transfer")
    none, _, _ = begun("transfer", scheme_distill="features", scheme_hint_epochs=0)
    hinted, _, _ = begun("transfer", scheme_distill="features", scheme_hint_epochs=5)
    assert tree.largest_difference(plain.tree, none.tree) == 0.0
    assert tree.largest_difference(plain.large, hinted.large) == 0.0
    assert tree.largest_difference(plain.tree, hinted.tree) > 1e-3


def test_a_guided_layer_comes_to_give_the_hint() -> None:
    """Where the hint is a linear function of the guided layer, the squared error goes to nothing."""
    with rng.torch_seed(KEY):
        tiny, large = Tiny(), nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES))
    rows = examples()
    public = Examples(rows.x[:100], rows.y[:100])
    whole, teacher = tree.of(tiny), tree.of(large)
    losses = []
    for epochs in (1, 60):
        end, loss = hints.learn(
            tiny, whole, large, teacher, public, guided="first", hint="0", lr=0.02, epochs=epochs, batch=20, key=KEY
        )
        losses.append(loss)
    assert losses[1] < 0.01 < losses[0]
    assert all(torch.equal(end[name], whole[name]) for name in whole if name.startswith("last."))
    with pytest.raises(SliceError, match="has no layer 'frist'"):
        hints.learn(tiny, whole, large, teacher, public, guided="frist", hint="0", lr=0.02, epochs=1, batch=20, key=KEY)


def test_hints_want_a_model_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"scheme\.distill = 'logits'"):
        plant.build(
            Config().replace(
                scheme_name="federated_transfer", scheme_body="cut", scheme_distill="features", data_public=0.3
            )
        )


def sram(names: tuple[str, ...]) -> int:
    op = Op.FIT if names else Op.PREDICT
    board = profiles.get("stm32l4")
    return budget.plan(Tiny(), (FEATURES,), board, op, train=names, num_rows=200).sram_bytes


def chosen(gains: dict[str, float], limit_bytes: int) -> tuple[str, ...]:
    board = profiles.get("stm32l4")
    return sparse.choose(gains, Tiny(), (FEATURES,), board, limit_bytes=limit_bytes, num_rows=200, momentum=False)


def test_what_is_trained_is_what_gains_most_for_its_bytes_and_fits() -> None:
    gains = {"first.weight": 0.30, "first.bias": 0.25, "last.weight": 0.20, "last.bias": 0.0}
    assert chosen(gains, 10**6) == ("first.weight", "first.bias", "last.weight"), "what gains nothing isn't trained"
    everything = sram(("first.weight", "first.bias", "last.weight"))
    fewer = chosen(gains, everything - 1)
    assert 0 < len(fewer) < 3
    assert sram(fewer) <= everything - 1
    only = sram(("first.bias",))
    assert chosen(gains, only) == ("first.bias",)
    with pytest.raises(BudgetError, match=r"the smallest needs [\d,]+ B; raise scheme\.sram_bytes"):
        chosen(gains, min(sram((name,)) for name in gains if gains[name]) - 1)
    with pytest.raises(BudgetError, match="no tensor lowers the loss"):
        chosen(dict.fromkeys(gains, 0.0), 10**6)


def test_a_tensor_contributes_the_fall_of_the_loss_when_it_alone_is_trained() -> None:
    with rng.torch_seed(KEY):
        module = Tiny()
    rows = examples()
    learn, test = Examples(rows.x[:100], rows.y[:100]), Examples(rows.x[100:200], rows.y[100:200])
    gains = sparse.contributions(module, tree.of(module), learn, test, lr=0.5, epochs=3, batch=10, key=KEY)
    assert list(gains) == list(tree.of(module))
    assert gains["first.weight"] > 0.05
    assert all(gain >= 0.0 for gain in gains.values())
    nothing = sparse.contributions(module, tree.of(module), learn, test, lr=1e-12, epochs=1, batch=10, key=KEY)
    assert max(nothing.values()) < 1e-5


@BOTH
def test_a_sparse_update_of_every_tensor_is_transfer(on: str) -> None:
    server, fleet, kit = begun("sparse_transfer", on)
    everything = replace(server, constant={"chosen": torch.ones(4, dtype=torch.uint8)})
    _, other, _ = begun("transfer", on)
    message = {"send": "whole"}
    for on_device in (fleet, other):
        on_device.exchange(Message(Op.LOAD, server.tree), key=rng.Key(0, 0, rng.SERVER, 0))
    plain_kit = replace(kit, config=kit.config.replace(scheme_name="transfer", scheme_tune="whole"))
    for number in (1, 2):
        key = rng.Key(0, number, rng.SERVER, 0)
        SCHEMES["sparse_transfer"].round(everything, fleet, kit, key)
        SCHEMES["transfer"].round(server, other, plain_kit, key)
    held = [f.exchange(Message(Op.READ, settings=message), key=rng.Key(0, 2, 0, 0)).tree for f in (fleet, other)]
    assert tree.largest_difference(*held) == 0.0


def test_only_the_chosen_tensors_move_and_the_budget_is_theirs() -> None:
    config = Config().replace(
        scheme_name="sparse_transfer",
        data_public=0.4,
        large_epochs=2,
        scheme_distill_epochs=2,
        scheme_tune_lr=0.1,
        scheme_sram_bytes=20_000,
        large_model="mlp_large",
        large_options={"hidden": 16, "depth": 1},
        data_max_rows=60,
    )
    built = plant.build(config)
    scheme = built.scheme
    server = scheme.init(built.engine, built.kit, rng.Key(0, 0, rng.SERVER, 0))
    names = slices.names(built.kit.program.module, scheme.trains(server, built.kit), built.kit.program.input_shape)
    scheme.round(server, built.engine, built.kit, rng.Key(0, 1, rng.SERVER, 0))
    moved = {path.partition("/")[2] for path in built.engine.dump() if path.startswith("own/")}
    assert moved == set(names)
    assert set(names) < set(server.tree), "not everything fits"
    settled = plant.settle(built, server)
    assert settled.need.op is Op.FIT
    assert built.need.sram_bytes < settled.need.sram_bytes <= 20_000


def test_offsite_tuning_with_nothing_left_out_tunes_the_large_model_itself() -> None:
    scheme = SCHEMES["offsite_tuning"]
    server, fleet, kit = begun("offsite_tuning", scheme_emulator=1.0, scheme_distill_epochs=0)
    for number in (1, 2):
        key = rng.Key(0, number, rng.SERVER, 0)
        server, _ = scheme.round(server, fleet, kit, key)
        on_device, plugged = (test(server, fleet, kit, key) for test in (scheme.evaluate, scheme.evaluate_large))
        assert torch.allclose(on_device.metrics["loss"], plugged.metrics["loss"], atol=1e-6)
        assert torch.equal(on_device.metrics["correct"], plugged.metrics["correct"])
    assert tree.largest_difference(emulator.of_large(server.tree), server.large) == 0.0


def test_devices_never_see_what_the_emulator_stands_for() -> None:
    scheme = SCHEMES["offsite_tuning"]
    server, fleet, kit = begun("offsite_tuning")
    held = set(emulator.of_large(kit.program.initial))
    hidden = set(server.large) - held
    assert {name.partition(".")[0] for name in hidden} == {"block3"}
    after, _ = scheme.round(server, fleet, kit, rng.Key(0, 1, rng.SERVER, 0))
    moved = {name for name in server.large if not torch.equal(server.large[name], after.large[name])}
    adapters = set(slices.names(kit.program.module, emulator.ADAPTERS, (FEATURES,)))
    assert moved == set(emulator.of_large(dict.fromkeys(adapters, torch.zeros(1))))


def test_an_emulator_comes_nearer_by_distillation() -> None:
    gaps = []
    for epochs in (0, 100):
        server, _, kit = begun("offsite_tuning", scheme_distill_epochs=epochs)
        with torch.no_grad():
            device = torch.func.functional_call(kit.program.module, server.tree, (kit.public.x,))
            large = torch.func.functional_call(kit.large, server.large, (kit.public.x,))
        gaps.append(float((device - large).square().mean()))
    assert gaps[1] < 0.8 * gaps[0]


def test_a_model_without_blocks_to_leave_out_is_refused() -> None:
    assert emulator.blocks(mlp_large((6,), 3, hidden=4, depth=5), (6,)) == tuple(f"block{n}" for n in range(1, 6))
    with pytest.raises(ModelError, match="wants 4 like blocks"):
        emulator.emulate(mlp_large((6,), 3, hidden=4, depth=3), (6,), 1, 0.5)
    with pytest.raises(ModelError, match="wants 4 like blocks"):
        emulator.emulate(resnet1d((2, 16), 3, (4, 4)), (2, 16), 1, 0.5)
    with pytest.raises(ModelError, match=r"Tiny is no nn\.Sequential"):
        emulator.blocks(Tiny(), (6,))
    kept = emulator.emulate(mlp_large((6,), 3, hidden=4, depth=7), (6,), 1, 0.4)
    assert [name for name, _ in kept.get_submodule("emulator").named_children()] == ["block2", "block6"]
