"""Federated split learning (FSL): split learning whose device halves train side by side.

Source: Thapa, Arachchige, Camtepe and Sun, "SplitFed: when federated learning meets split learning", AAAI 2022,
algorithms 1 and 2. Version 1 has a server half for each device and averages these, and the device halves, at the end of
a round; version 2 averages the device halves, and one server half takes the devices' batches one after another in a
random order, or with scheme.server_step = "cohort" all at once. Version 3, of Gawali et al., "Comparison of
privacy-preserving distributed deep learning methods in healthcare", MIUA 2021, averages the server halves only: each
device keeps a half of its own. Activations and labels leave the device; its examples don't.
"""

from __future__ import annotations

from functools import partial

from midhaul import rng, tree
from midhaul.fleet import Fleet
from midhaul.halves import Half, init_personal, mean_half, side_by_side, work
from midhaul.kit import Kit, Scheme, evaluate_halves, init_halves
from midhaul.message import Kind, Message, Op
from midhaul.server import Server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, copies: bool) -> tuple[Server, dict[str, float]]:
    """One round: device halves out, batches through the cut, device halves back and averaged."""
    there = fleet.exchange(Message(Op.LOAD, server.tree), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    halves = dict.fromkeys(there.devices, (server.large, server.state["optimizer"]))
    num_rows = dict(zip(there.devices, there.weight.tolist(), strict=True))
    loss, rows = side_by_side(num_rows, halves, fleet, kit, key, copies=copies)
    back = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), devices=there.devices, key=key)
    front = tree.merge(server.tree, kit.mean(back.tree, back.weight)) if len(back) else server.tree
    large, memory = mean_half(halves, there.weight) if copies else next(iter(halves.values()))
    return Server(front, large, {"optimizer": memory}), {"train_loss": loss / max(rows, 1.0)}


def round_personal(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: batches through the cut; the device halves stay where they are, the server halves are averaged."""
    there = fleet.exchange(Message(Op.READ, settings={"send": "none"}), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    halves: dict[int, Half] = dict.fromkeys(there.devices, (server.large, server.state["optimizer"]))
    num_rows = dict(zip(there.devices, there.weight.tolist(), strict=True))
    loss, rows = side_by_side(num_rows, halves, fleet, kit, key, copies=True)
    large, memory = mean_half(halves, there.weight)
    return Server({}, large, {"optimizer": memory}), {"train_loss": loss / max(rows, 1.0)}


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
    one_half=True,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
FEDERATED_SPLIT_V1 = _kin(
    name="federated_split_v1",
    title="SplitFed V1: both halves averaged",
    round=partial(round, copies=True),
    admits=("cohort", "stragglers", "dropout"),
)
FEDERATED_SPLIT_V3 = _kin(
    name="federated_split_v3",
    title="SplitFed V3: server halves averaged, own device halves",
    source="Gawali et al. 2021",
    init=init_personal,
    round=round_personal,
    up=(Kind.ACTIVATIONS, Kind.LABELS),
    down=(Kind.GRADIENTS,),
    admits=("cohort", "stragglers", "dropout"),
)
