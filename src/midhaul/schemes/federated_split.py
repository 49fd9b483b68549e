"""Federated split learning (FSL): split learning whose device halves train side by side and are averaged.

Source: Thapa, Arachchige, Camtepe and Sun, "SplitFed: when federated learning meets split learning", AAAI 2022,
algorithms 1 and 2. Version 1 has a server half for each device and averages these at the end of a round; version 2 has
one server half that takes the devices' batches one after another in a random order. Activations and labels leave the
device; its examples don't.
"""

from __future__ import annotations

from functools import partial

import torch

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import Kit, Scheme, Work, evaluate_halves, init_halves
from midhaul.message import Kind, Message, Op, Replies, Settings
from midhaul.server import Server, step_half

Halves = dict[int, tuple[tree.Tree, tree.Tree]]  # of each device: the server half and its optimiser's state


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, copies: bool) -> tuple[Server, dict[str, float]]:
    """One round: device halves out, batches through the cut, device halves back and averaged."""
    cfg = kit.cfg
    there = fleet.exchange(Message(Op.LOAD, server.tree), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    batches = {
        d: -(-int(n) // (cfg.batch or int(n))) for d, n in zip(there.devices, there.weight.tolist(), strict=True)
    }
    half = (server.large, server.state["optimizer"])
    halves: Halves = {device: half for device in there.devices}
    total, rows = 0.0, 0.0
    for epoch in range(cfg.epochs):
        for number in range(max(batches.values())):
            at: Settings = {"rows": "train", "batch": cfg.batch, "step": number, "epoch": epoch, "what": "hy"}
            devices = tuple(device for device, num in batches.items() if number < num)
            up = fleet.exchange(Message(Op.FORWARD, settings=at), devices=devices, key=key)
            if not len(up):
                continue
            order = key._replace(use=int(rng.Use.ORDER)).at(epoch << 12 | number)
            g, loss = server_steps(up, halves, kit, order, copies=copies)
            seen = float(up.rows.sum())
            total, rows = total + loss, rows + seen
            down: Settings = {"lr": cfg.lr, "momentum": cfg.momentum, "weight_decay": cfg.weight_decay}
            fleet.exchange(
                Message(Op.BACKWARD, each={"g": g}, rows=up.rows, settings=down), devices=up.devices, key=key
            )
    back = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), devices=there.devices, key=key)
    front = tree.merge(server.tree, tree.weighted_mean(back.tree, back.weight)) if len(back) else server.tree
    large, memory = mean_half(halves, there) if copies else next(iter(halves.values()))
    return Server(front, large, {"optimizer": memory}), {"train_loss": total / max(rows, 1.0)}


def server_steps(up: Replies, halves: Halves, kit: Kit, key: rng.Key, *, copies: bool) -> tuple[torch.Tensor, float]:
    """Steps the server's half on each device's batch; gives g [D, B, H] at the cut and the summed loss."""
    g, loss = torch.zeros_like(up.tree["h"]), 0.0
    for place in rng.permutation(key, len(up)).tolist():
        device, num = up.devices[place], int(up.rows[place])
        sent = up.reply(place).tree
        large, memory, slope, mean, _ = step_half(
            kit.server_model(), *halves[device], kit.half_optimizer(), sent["h"], sent["y"]
        )
        for other in (device,) if copies else tuple(halves):
            halves[other] = (large, memory)
        g[place, :num] = slope
        loss += float(mean) * num
    return g, loss


def mean_half(halves: Halves, there: Replies) -> tuple[tree.Tree, tree.Tree]:
    """Gives the mean of the server halves, and of their optimisers' states, by the devices' numbers of examples."""
    trees = [halves[device] for device in there.devices]
    large = tree.weighted_mean(tree.stack([half for half, _ in trees]), there.weight)
    return large, tree.weighted_mean(tree.stack([memory for _, memory in trees]), there.weight)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device runs its half forward and backward."""
    return (Work(Op.FORWARD), Work(Op.BACKWARD, "front"))


_kin = partial(
    Scheme,
    family="FSL",
    source="Thapa et al. 2022",
    init=init_halves,
    evaluate=evaluate_halves,
    work=work,
    direction="both ways",
    up=(Kind.ACTIVATIONS, Kind.LABELS, Kind.WEIGHTS),
    down=(Kind.GRADIENTS, Kind.WEIGHTS),
    part="front",
    large="rear",
)
FEDERATED_SPLIT = _kin(
    name="federated_split",
    title="SplitFed V2: device halves averaged, one server half",
    round=partial(round, copies=False),
)
FEDERATED_SPLIT_V1 = _kin(
    name="federated_split_v1", title="SplitFed V1: both halves averaged", round=partial(round, copies=True)
)
