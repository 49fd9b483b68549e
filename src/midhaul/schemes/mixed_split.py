"""SplitFed with a cut of its own for each device: as many layers of the tiny model as its board has room for.

Source: Thapa, Arachchige, Camtepe and Sun, "SplitFed: when federated learning meets split learning", AAAI 2022,
algorithms 1 and 2 (version 2), with an offloading point for each device as in Wu et al., "FedAdapt: adaptive offloading
for IoT devices in federated learning", IEEE Internet of Things Journal 2022.

The server has one large rear behind the deepest cut, and one copy of the layers between the earliest cut and that one.
A batch that comes from an earlier cut goes through that copy first and trains it as well. At the end of a round a layer
becomes the mean over all devices, where the server's copy stands for those that don't hold it themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midhaul import hardware, rng, tree
from midhaul.fleet import Fleet, Group
from midhaul.halves import Behind, forward, num_batches, turn, work
from midhaul.kit import SIMULATED, Kit, Scheme, answers_behind, init_halves, score_halves
from midhaul.message import Kind, Message, Op, Replies, Settings, join
from midhaul.models import slices
from midhaul.server import Server, parameter_names, predict
from midhaul.tree import Tree


def between(group: Group, kit: Kit) -> nn.Module | None:
    """Gives the layers from a group's cut to the deepest, or None if it holds them all."""
    whole = kit.program
    return None if group.program is whole else slices.cut(whole.module, group.cut, whole.input_shape, bare=True)[1]


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server draws all layers; those that some device doesn't hold get an optimiser of their own."""
    server = init_halves(fleet, kit, key)
    return server.keeping(copy=copy_memory(server, kit))


def copy_memory(server: Server, kit: Kit) -> Tree:
    """Gives the state of the copy's optimiser: new for layers that some device lacks since cuts were dealt anew."""
    missing = [name for name in server.tree if any(name not in group.program.initial for group in kit.groups)]
    return {**kit.half_optimizer().init(tree.select(server.tree, missing)), **server.state.get("copy", {})}


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: layers out, batches through each device's cut, layers back and averaged."""
    cohort = kit.alike(kit.cohort(fleet, key))
    parts = [(Message(Op.LOAD, tree.select(server.tree, group.program.initial)), devices) for group, devices in cohort]
    there = join(fleet.exchange_parts(parts, key=key))
    if not len(there):
        return server, {}
    num_rows = dict(zip(there.devices, there.weight.tolist(), strict=True))
    copy = copy_memory(server, kit)
    behind = Behind(kit, server.large, server.state["optimizer"], server.tree, copy)
    modules = {device: module for group, own in cohort for module in [between(group, kit)] for device in own}
    loss, rows = 0.0, 0.0
    batches = {device: num_batches(kit.cfg, num) for device, num in num_rows.items()}
    for epoch in range(kit.cfg.epochs):
        for number in range(max(batches.values())):
            busy = [tuple(d for d in own if number < batches.get(d, 0)) for _, own in cohort]
            ups = fleet.exchange_parts([(forward(kit.cfg, epoch, number), own) for own in busy if own], key=key)
            slopes, summed = server_steps(ups, behind, modules, turn(key, epoch, number))
            loss, rows = loss + summed, rows + sum(float(up.rows.sum()) for up in ups)
            down = [
                (Message(Op.BACKWARD, each={"g": g}, rows=up.rows, settings=kit.step()), up.devices)
                for g, up in zip(slopes, ups, strict=True)
                if len(up)
            ]
            fleet.exchange_parts(down, key=key)
    read = Message(Op.READ, settings={"send": "whole"})
    asked = [tuple(device for device in own if device in num_rows) for _, own in cohort]
    back = fleet.exchange_parts([(read, own) for own in asked if own], key=key)
    front = averaged(server.tree, hardware.to_host(behind.copy), back)
    state = {"optimizer": behind.memory, "copy": behind.copy_memory}
    return Server(front, behind.large, state), {"train_loss": loss / max(rows, 1.0)}


def server_steps(
    ups: Sequence[Replies], behind: Behind, modules: dict[int, nn.Module | None], key: rng.Key
) -> tuple[list[Tensor], float]:
    """Steps on each device's batch in a random order; gives g [D, B, H] for each part, and the summed loss."""
    slopes, loss = [torch.zeros_like(up.tree["h"]) if len(up) else torch.zeros(0) for up in ups], 0.0
    where = sorted((device, part, place) for part, up in enumerate(ups) for place, device in enumerate(up.devices))
    for turn_ in rng.permutation(key, len(where)).tolist():
        device, part, place = where[turn_]
        sent = ups[part].reply(place).tree
        g, summed = behind.step(modules[device], sent["h"], sent["y"])
        slopes[part][place, : len(g)] = g
        loss += summed
    return slopes, loss


def averaged(whole: Tree, copy: Tree, back: Sequence[Replies]) -> Tree:
    """Gives the mean of each layer over the devices that answered, the server's copy in place of what they lack."""
    mean = dict(whole)
    for name in whole:
        held = [up for up in back if name in up.tree]
        values, weight = [up.tree[name] for up in held], [up.weight for up in held]
        if lacking := [up.weight.sum() for up in back if len(up) and name not in up.tree]:
            values, weight = [*values, copy[name][None]], [*weight, torch.stack(lacking).sum()[None]]
        if values:
            mean |= tree.weighted_mean({name: torch.cat(values)}, torch.cat(weight))
    return mean


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the model on every test device, from its own cut on."""
    tests = kit.alike(fleet.test_devices)
    settings: Settings = {"rows": "test", "what": "hy"}
    parts = [
        (Message(Op.FORWARD, tree.select(server.tree, group.program.initial), settings=settings), own)
        for group, own in tests
    ]
    scores = []
    for (group, _), up in zip(tests, fleet.exchange_parts(parts, key=key), strict=True):
        h, module = up.tree["h"][up.mask().bool()], between(group, kit)
        if module is not None:
            h = predict(module, tree.select(server.tree, parameter_names(module)), h)
        scores.append(score_halves(up, answers_behind(kit, server.large, h)))
    return join(scores)


FEDERATED_SPLIT_MIXED = Scheme(
    name="federated_split_mixed",
    title="SplitFed V2 with a cut of its own for each device",
    family="FSL",
    source="Thapa et al. 2022, Wu et al. 2022",
    init=init,
    round=round,
    evaluate=evaluate,
    work=work,
    direction="both ways",
    up=(Kind.ACTIVATIONS, Kind.LABELS, Kind.WEIGHTS),
    down=(Kind.GRADIENTS, Kind.WEIGHTS),
    part="front",
    large="rear",
    engines=SIMULATED,
    differs="cut",
    redeals=True,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
