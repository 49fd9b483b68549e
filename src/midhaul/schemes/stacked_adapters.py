"""Federated foundation models (FFM) whose adapters are stacked (FLoRA), so that nothing is lost in averaging.

Source: Wang et al., "FLoRA: federated fine-tuning large language models with heterogeneous low-rank adaptations",
NeurIPS 2024, algorithm 1. A round's adapters are new; the stack of all that came back is sum of p_i B_i A_i to the bit
of rounding, and becomes part of the model, on the server and on the devices, which add it to their weights.
"""

from __future__ import annotations

import torch

from midhaul import rng, tree
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme
from midhaul.lora import evaluate, sliced, train_adapters, work
from midhaul.lora import init as give_model
from midhaul.message import Message, Op
from midhaul.models import adapters
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device is given the model; the server notes of each device which round's model it holds."""
    held = torch.zeros(len(fleet.devices), dtype=torch.int64)
    return give_model(fleet, kit, key).keeping(base={"number": torch.zeros((), dtype=torch.int64), "held": held})


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: new adapters for a cohort that holds the model; their stack becomes part of it."""
    server, there = catch_up(server, fleet, kit.cohort(fleet, key), key)
    lora = tree.select(server.tree, kit.program.names("lora"))
    beside = tree.without(tree.select(server.tree, kit.program.names(sliced(kit.cfg))), lora)
    new = adapters.fresh(lora, rng.key(key.seed, key.round, rng.SERVER, rng.Use.INIT))
    drawn = {name: value for name, value in new.items() if name.endswith(adapters.A)}  # B is zero there already
    up = train_adapters(fleet, kit, key, {**drawn, **beside}, there) if there else None
    if up is None:
        return server, {}
    stack = adapters.stacked(up.parts, up.shares)
    weights = adapters.absorbed(kit.program.module, server.tree, stack)
    base = {**server.state["base"], "number": server.state["base"]["number"] + 1}
    return Server({**server.tree, **weights, **up.beside}, state={"base": base, "stack": stack}), up.metrics


def catch_up(server: Server, fleet: Fleet, cohort: tuple[int, ...], key: rng.Key) -> tuple[Server, tuple[int, ...]]:
    """Brings a cohort's model up to the server's; gives those of it that then hold it.

    Who misses one round is sent its stack or the weights that it changed, whichever are fewer bytes; who misses more is
    sent the weights.
    """
    number, held = server.state["base"]["number"], server.state["base"]["held"].clone()
    stack = server.state.get("stack", {})
    weights = tree.select(server.tree, [f"{layer}.weight" for layer in adapters.adapted(server.tree)])
    whole, step = Message(Op.LOAD, weights), Message(Op.LOAD, stack, settings={"rule": "absorb"})
    missed = {device: int(number - held[device]) for device in cohort}
    by_stack = [d for d, num in missed.items() if num == 1 and tree.num_bytes(stack) < tree.num_bytes(weights)]
    by_weights = [d for d, num in missed.items() if num and d not in by_stack]
    for message, devices in ((step, by_stack), (whole, by_weights)):
        if devices:
            held[devices] = -1  # one that doesn't answer may have added the stack or not: it will need the weights
            held[list(fleet.exchange(message, devices=devices, key=key).devices)] = number
    server = server.keeping(base={"number": number, "held": held})
    return server, tuple(device for device in cohort if held[device] == number)


FLORA = Scheme(
    name="flora",
    title="federated LoRA, adapters stacked: exact",
    family="FFM",
    source="Wang et al. 2024",
    init=init,
    round=round,
    evaluate=evaluate,
    work=work,
    direction="large to tiny",
    engines=SIMULATED,
    admits=("cohort", "stragglers", "dropout", "weighting"),
    differs="rank",
    redeals=True,
)
