"""Identities of the foundation-model family: what stacking, factoring and padding must be the same as."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midhaul import directions, plant, rng, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError, ModelError
from midhaul.link import radio
from midhaul.lora import Upload
from midhaul.message import Message, Op
from midhaul.models import adapters
from midhaul.program import Population, Program
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.schemes import SCHEMES, federated_foundation, mutual_transfer
from midhaul.server import Server
from midhaul.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
START = rng.Key(0, 0, rng.SERVER, 0)
FIRST = rng.Key(0, 1, rng.SERVER, 0)


def run(name: str, on: str, rounds: int = 1, **changes: object) -> Server:
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **changes)
    fleet = engine(on, program, population, kit.groups)
    server = scheme.init(fleet, kit, START)
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    return server


def two_devices(population: Population) -> Population:
    return replace(population, train=population.train[1:])


def change_of_one_round(on: str, ranks: str) -> tuple[Tree, Tree, Tree]:
    """Gives sum p_i B_i A_i of a round of FLoRA, device by device; its start; and the means of the As and the Bs."""
    scheme = SCHEMES["flora"]
    kit, program, population = setting(scheme, scheme_rank_mix=ranks)
    fleet = engine(on, program, population, kit.groups)
    start = scheme.init(fleet, kit, START).tree
    new = adapters.fresh(tree.select(start, program.names("lora")), rng.key(0, 1, rng.SERVER, rng.Use.INIT))
    total: Tree = {}
    means: Tree = {}
    for device, rows in enumerate((1, 7, 200)):
        ((group, _),) = kit.alike([device])
        part = adapters.thinned(new, adapters.rank_of(group.program.initial))
        sent = fleet.exchange(kit.fit(part, train="lora", send="lora"), key=FIRST, devices=[device]).reply(0).tree
        for layer in ("first", "last"):
            product = rows / 208 * (sent[f"{layer}.lora_b"].double() @ sent[f"{layer}.lora_a"].double())
            total[layer] = total.get(layer, torch.zeros_like(product)) + product
        for name, value in adapters.padded(sent, 3).items():
            means[name] = means.get(name, torch.zeros_like(value)) + rows / 208 * value
    return total, start, means


@BOTH
@pytest.mark.parametrize("ranks", ["2", "3,2,1"])
def test_flora_moves_the_weights_by_the_sum_of_the_products_and_averaging_does_not(on: str, ranks: str) -> None:
    total, start, mean = change_of_one_round(on, ranks)
    end = run("flora", on, scheme_rank_mix=ranks).tree
    moved = {layer: (end[f"{layer}.weight"] - start[f"{layer}.weight"]).double() for layer in total}
    assert tree.largest_difference(moved, total) < 1e-6
    assert max(float(value.abs().max()) for value in total.values()) > 1e-2
    assert tree.largest_difference(adapters.products(mean), total) > 1e-3
    assert torch.equal(end["first.lora_b"], start["first.lora_b"])


@BOTH
def test_what_the_devices_hold_after_a_stack_is_what_the_server_holds(on: str) -> None:
    """Both ways down: the stack of two devices of rank 1 is smaller than the weights, of rank 2 it is larger."""
    for rank in (1, 2):
        scheme = SCHEMES["flora"]
        kit, program, population = setting(scheme, scheme_rank_mix=str(rank))
        fleet = engine(on, program, two_devices(population), kit.groups)
        server = scheme.init(fleet, kit, START)
        for number in (1, 2, 3):
            before = server.tree
            server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
            held = fleet.exchange(Message(Op.READ, settings={"send": "layers:first"}), key=FIRST)
            for place in range(2):
                assert float((held.tree["first.weight"][place] - before["first.weight"]).abs().max()) < 1e-6


@BOTH
def test_flexlora_at_full_rank_has_floras_product(on: str) -> None:
    """Both begin with the same A: FLoRA's is drawn anew, so FlexLoRA's server is given it."""
    total, start, _ = change_of_one_round(on, "6")
    scheme = SCHEMES["flexlora"]
    kit, program, population = setting(scheme, scheme_rank_mix="6")
    fleet = engine(on, program, population, kit.groups)
    scheme.init(fleet, kit, START)
    new = adapters.fresh(tree.select(start, program.names("lora")), rng.key(0, 1, rng.SERVER, rng.Use.INIT))
    end, _ = scheme.round(Server({**start, **new}), fleet, kit, FIRST)
    assert tree.largest_difference(adapters.products(end.tree), total) < 1e-6


def test_a_lower_rank_is_the_nearest_of_its_rank() -> None:
    """By hand: singular values 3 and 1; what is left out at rank 1 is the smaller."""
    change = {"f": torch.tensor([[3.0, 0.0], [0.0, -1.0]])}
    whole, thin = adapters.factored(change, 2), adapters.factored(change, 1)
    assert torch.allclose(adapters.products(whole)["f"], change["f"].double(), atol=1e-6)
    assert torch.allclose(adapters.products(thin)["f"], torch.tensor([[3.0, 0.0], [0.0, 0.0]]).double(), atol=1e-6)
    assert adapters.factored(change, 3)["f.lora_b"][:, 2].tolist() == [0.0, 0.0]


@BOTH
def test_hetlora_with_equal_ranks_weighed_by_examples_is_fedit(on: str) -> None:
    fedit = run("fedit", on, 3)
    hetlora = run("hetlora", on, 3, scheme_rank_mix="2")
    weighed = run("hetlora", on, 3, scheme_rank_mix="2", scheme_rank_weight="norm")
    assert tree.largest_difference(fedit.tree, hetlora.tree) == 0.0
    assert tree.largest_difference(fedit.tree, weighed.tree) > 1e-4


def test_hetlora_weighs_by_norms_alike_on_both_engines_and_a_device_of_twice_the_norm_counts_twice() -> None:
    slow, fast = (run("hetlora", on, 3, scheme_rank_weight="norm").tree for on in ("loop", "stacked"))
    assert tree.largest_difference(slow, fast) < 1e-5
    parts = [{"f.lora_a": torch.ones(1, 1), "f.lora_b": torch.full((1, 1), size)} for size in (1.0, 2.0)]
    cfg = Config().replace(scheme_rank_weight="norm").scheme
    merged = federated_foundation.weighed(Upload(parts, [0.9, 0.1], {}, {}), 2, cfg)
    assert merged["f.lora_b"].tolist() == [[pytest.approx((1.0 + 2.0 * 2.0) / 3.0), 0.0]]


@BOTH
def test_fedit_is_fedavg_of_the_adapters(on: str) -> None:
    scheme = SCHEMES["fedit"]
    kit, program, population = setting(scheme, scheme_slice="lora+layers:last", scheme_beside="layers:last")
    ends = []
    for name in ("fedit", "fedavg"):
        fleet = engine(on, program, population, kit.groups)
        server = SCHEMES[name].init(fleet, kit, START)
        for number in (1, 2):
            server, _ = SCHEMES[name].round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        ends.append(server.tree)
    assert tree.largest_difference(*ends) < 1e-7
    assert float((ends[0]["last.weight"] - program.initial["last.weight"]).abs().max()) > 1e-3
    assert torch.equal(ends[0]["first.weight"], program.initial["first.weight"])


def test_a_device_that_may_have_added_a_stack_twice_is_sent_the_weights() -> None:
    """Half of the replies are lost: the device added the stack, the server doesn't know."""
    scheme = SCHEMES["flora"]
    kit, program, population = setting(scheme, scheme_rank_mix="1")
    inner = engine("loop", program, two_devices(population))
    fleet = OverLink(inner, program, profiles.get("stm32l4"), radio.get("ble"), loss=0.4, retries=0, ledger=Ledger())
    server = scheme.init(fleet, kit, START)
    trained, checked = 0, 0
    for number in range(1, 13):
        before = server.tree["first.weight"]
        server, metrics = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        trained += bool(metrics)
        base = server.state["base"]
        current = [d for d in (0, 1) if base["held"][d] == base["number"] - int(bool(metrics))]
        for device in current:
            held = inner.states[device].tree["first.weight"]  # type: ignore[union-attr]
            assert float((held - before).abs().max()) < 1e-6
            checked += 1
    assert trained > 3
    assert checked > 6


def test_the_fewer_bytes_go_down() -> None:
    """Two devices of rank 1 make a stack smaller than the weights, of rank 2 a larger one."""
    for rank, by_stack in ((1, True), (2, False)):
        scheme = SCHEMES["flora"]
        kit, program, population = setting(scheme, scheme_rank_mix=str(rank))
        ledger = Ledger()
        fleet = OverLink(
            engine("stacked", program, two_devices(population)), program, profiles.get("stm32l4"), radio.get("ble"),
            loss=0.0, retries=0, ledger=ledger,
        )  # fmt: skip
        server = scheme.init(fleet, kit, START)
        server, _ = scheme.round(server, fleet, kit, FIRST)
        spent = ledger.kinds_down["weights"]
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, 2, rng.SERVER, 0))
        drawn = 4 * rank * (6 + 8)
        stack, weights = 4 * 2 * rank * (6 + 8 + 8 + 3), 4 * (6 * 8 + 8 * 3)
        assert (stack < weights) == by_stack
        assert ledger.kinds_down["weights"] - spent == 2 * (min(stack, weights) + drawn)


def test_averaging_mixed_ranks_is_refused() -> None:
    kit, program, population = setting(SCHEMES["fedit"], scheme_rank_mix="1,2,3")
    with pytest.raises(ConfigError, match=r"the boards would have ranks 1 to 3; set tiny\.lora_rank"):
        SCHEMES["fedit"].init(engine("loop", program, population, kit.groups), kit, START)


def test_a_device_has_the_largest_rank_that_fits_its_board() -> None:
    changes = {"fleet_board": "stm32l4,nrf52840", "tiny_options": {"hidden": [128, 64]}, "scheme_ranks": "32,8,1"}
    groups = plant.build(Config().replace(scheme_name="hetlora", **changes)).kit.groups
    assert {group.board.name: group.rank for group in groups} == {"stm32l4": 8, "nrf52840": 32}
    alike = plant.build(Config().replace(scheme_name="hetlora", tiny_lora_rank=2, **changes)).kit.groups
    assert {group.rank for group in alike} == {2}


def test_an_adapter_that_doesnt_fit_is_refused() -> None:
    kit, program, _ = setting(SCHEMES["flora"])
    wrong = {"first.lora_a": torch.zeros(2, 5), "first.lora_b": torch.zeros(8, 2)}
    with pytest.raises(ModelError, match="an adapter of the layer 'first' doesn't fit it"):
        adapters.absorbed(program.module, kit.program.initial, wrong)
    with pytest.raises(ModelError, match="has no adapter at the layer 'middle'"):
        adapters.absorbed(program.module, kit.program.initial, {"middle.lora_a": torch.zeros(2, 5)})


def a_step(program: Program, weights: Tree, x: torch.Tensor, y: torch.Tensor) -> float:
    logits = torch.func.functional_call(program.module, weights, (x.double(),))
    return float(torch.nn.functional.cross_entropy(logits, y))


@BOTH
def test_fedkseeds_model_is_the_devices_own_rebuilt_from_scalars(on: str) -> None:
    """One device: its steps done here one after another, with no scalar summed, end where the server's model is."""
    scheme = SCHEMES["fedkseed"]
    kit, program, population = setting(scheme)
    alone = replace(population, train=population.train[1:2])
    fleet = engine(on, program, alone)
    server = scheme.init(fleet, kit, START)
    now = tree.map(program.initial, lambda value: value.double())
    rows = population.train[1]
    for number in (1, 2, 3):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        orders = [rng.permutation(rng.key(0, number, 0, rng.Use.BATCH).at(epoch), 7) for epoch in range(2)]
        picked = directions.picked(rng.key(0, number, 0, rng.Use.BATCH), 2, kit.cfg.num_seeds)
        for order, seed in zip(orders, picked, strict=True):
            way = directions.direction(0, seed, now)
            x, y = population.x[rows[order]], population.y[rows[order]]
            ahead, behind = (a_step(program, tree.add(now, way, alpha=far), x, y) for far in (1e-3, -1e-3))
            now = tree.add(now, way, alpha=-kit.cfg.lr * (ahead - behind) / 2e-3)
    assert tree.largest_difference(server.tree, now) < 1e-6
    assert tree.largest_difference(server.tree, program.initial) > 1e-2
    held = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), key=FIRST).reply(0).tree
    rebuilt = directions.walked(held, server.state["seeds"]["g"], kit.cfg.lr, 0)
    assert tree.largest_difference(tree.map(rebuilt, lambda value: value.float()), server.tree) == 0.0


def test_a_slope_along_a_direction_is_the_gradient_times_it() -> None:
    _, program, population = setting(SCHEMES["fedkseed"])
    whole = tree.map(program.initial, lambda value: value.double().requires_grad_(True))
    x, y = population.x[:20].double(), population.y[:20]
    logits = torch.func.functional_call(program.module, whole, (x,))
    true = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), list(whole.values()))
    for seed in (0, 1, 63):
        way = directions.direction(0, seed, program.initial)
        wanted = sum(float((slope * way[name]).sum()) for name, slope in zip(whole, true, strict=True))
        start = tree.map(program.initial, lambda value: value.double())
        ahead, behind = (a_step(program, tree.add(start, way, alpha=far), x, y) for far in (1e-6, -1e-6))
        assert (ahead - behind) / 2e-6 == pytest.approx(wanted, rel=1e-4)


def test_a_round_of_fedkseed_is_under_18_kilobytes_of_real_frames() -> None:
    """Both ways, frames and all, with the 1,024 seeds of the default; the first LOAD of the model apart."""
    scheme = SCHEMES["fedkseed"]
    kit, program, population = setting(scheme, scheme_num_seeds=1024)
    ledger = Ledger()
    inner = engine("loop", program, two_devices(population))
    fleet = OverLink(inner, program, profiles.get("stm32l4"), radio.get("ble"), loss=0.0, retries=0, ledger=ledger)
    server = scheme.init(fleet, kit, START)
    before = ledger.uplink_bytes + ledger.downlink_bytes
    scheme.round(server, fleet, kit, FIRST)
    spent = (ledger.uplink_bytes + ledger.downlink_bytes - before) / 2
    assert 2 * 4 * 1024 < spent < 18_000


def test_fedkseed_with_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match="fedkseed has no momentum"):
        plant.build(Config().replace(scheme_name="fedkseed", scheme_momentum=0.5))


@BOTH
def test_fedmkt_without_an_exchange_is_each_device_alone(on: str) -> None:
    held = []
    for name, changes in (("fedmkt", {"scheme_exchange_epochs": 0}), ("local", {}), ("fedmkt", {})):
        scheme = SCHEMES[name]
        kit, program, population = setting(scheme, **changes)
        fleet = engine(on, program, population)
        server = scheme.init(fleet, kit, START)
        for number in (1, 2):
            server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        held.append(fleet.exchange(Message(Op.READ, settings={"send": "whole"}), key=FIRST).tree)
    assert tree.largest_difference(held[0], held[1]) == 0.0
    assert tree.largest_difference(held[0], held[2]) > 1e-3


def test_fedmkt_takes_each_row_from_whom_knows_it_best() -> None:
    """The large model knows row 0, the second device row 1; on row 2 all are alike, and the own stays."""
    own = torch.tensor([[9.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    said = torch.tensor([[[5.0, 0.0], [1.0, 0.0], [1.0, 1.0]], [[0.0, 5.0], [0.0, 7.0], [2.0, 2.0]]])
    wanted = [[9.0, 0.0], [0.0, 7.0], [1.0, 1.0]]
    assert mutual_transfer.best(own, said, torch.tensor([0, 1, 0])).tolist() == wanted
