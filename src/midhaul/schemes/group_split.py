"""Group-based split federated learning (GSFL): devices in groups; a relay within each, all groups at the same time.

Source: Zhang, Wu, Hu, Li and Zhang, "Split federated learning: speed up model training in resource-limited wireless
networks", ICDCS 2023, section II: split, then federated. Each group has a server half of its own and hands its device
half from member to member; at the end of a round both halves are averaged over the groups by their numbers of
examples. One group is `split`; as many groups as devices are `federated_split_v1`.
"""

from __future__ import annotations

import torch

from midhaul import rng, tree
from midhaul.fleet import Fleet
from midhaul.halves import Halves, mean_half, side_by_side, work
from midhaul.kit import Kit, Scheme, evaluate_halves, init_halves
from midhaul.message import Kind, Message, Op
from midhaul.server import Server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: the first members of all groups train side by side, then the second ones, and so on."""
    groups = dealt(kit.cohort(fleet, key), kit.cfg.relay_groups, key)
    fronts = [server.tree] * len(groups)
    halves: Halves = dict.fromkeys(range(len(groups)), (server.large, server.state["optimizer"]))
    weight, total, rows = [0.0] * len(groups), 0.0, 0.0
    for turn in range(len(groups[0])):
        group_of = {group[turn]: place for place, group in enumerate(groups) if turn < len(group)}
        devices = tuple(sorted(group_of))
        there = fleet.exchange(handed(server, fronts, [group_of[d] for d in devices]), devices=devices, key=key)
        if not len(there):
            continue
        own: Halves = {device: halves[group_of[device]] for device in there.devices}
        num_rows = dict(zip(there.devices, there.weight.tolist(), strict=True))
        loss, seen = side_by_side(num_rows, own, fleet, kit, key, copies=True)
        total, rows = total + loss, rows + seen
        for device, num in num_rows.items():
            halves[group_of[device]] = own[device]
            weight[group_of[device]] += num
        for device, reply in fleet.exchange(
            Message(Op.READ, settings={"send": "whole"}), devices=there.devices, key=key
        ):
            fronts[group_of[device]] = tree.merge(server.tree, reply.tree)
    if not rows:
        return server, {}
    by_rows = torch.tensor(weight, dtype=torch.float64)
    large, memory = mean_half(halves, by_rows)
    front = tree.weighted_mean(tree.stack(fronts), by_rows)
    return Server(front, large, {"optimizer": memory}), {"train_loss": total / rows}


def dealt(cohort: tuple[int, ...], num_groups: int, key: rng.Key) -> list[tuple[int, ...]]:
    """Deals a cohort to groups of about one size, in an order drawn anew each round; the largest group is first."""
    order = [cohort[place] for place in rng.permutation(key._replace(use=int(rng.Use.ORDER)), len(cohort))]
    num = min(num_groups, len(cohort))
    groups = [tuple(order[place::num]) for place in range(num)]
    return sorted(groups, key=lambda group: (-len(group), group))


def handed(server: Server, fronts: list[tree.Tree], places: list[int]) -> Message:
    """Gives the LOAD that hands its group's front to each device: in the first turn all have the server's."""
    if all(fronts[place] is server.tree for place in places):
        return Message(Op.LOAD, server.tree)
    return Message(Op.LOAD, each=tree.stack([fronts[place] for place in places]))


GROUP_SPLIT = Scheme(
    "group_split",
    "groups side by side, a relay in each",
    "FSL",
    "Zhang et al. 2023",
    init_halves,
    round,
    evaluate_halves,
    work,
    "both ways",
    (Kind.ACTIVATIONS, Kind.LABELS, Kind.WEIGHTS),
    (Kind.GRADIENTS, Kind.WEIGHTS),
    part="front",
    large="rear",
    admits=("cohort", "stragglers", "dropout"),
)
