"""Device halves that train side by side against server halves: what the federated split schemes share.

Shape letters: D devices, B rows of a batch, H the shape at the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from midhaul import hardware, rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import Kit, Work, init_halves, load_all
from midhaul.message import Message, Op, Replies, Settings
from midhaul.server import Server, open_half, parameter_names, step_half

Half = tuple[tree.Tree, tree.Tree]  # a server half and its optimiser's state
Halves = dict[int, Half]  # of each device


def side_by_side(
    num_rows: Mapping[int, float], halves: Halves, fleet: Fleet, kit: Kit, key: rng.Key, *, copies: bool
) -> tuple[float, float]:
    """Takes devices that hold their halves through a round's epochs, a batch of each at a time.

    `num_rows` are the devices' numbers of examples. With `copies` each device trains the half that `halves` has for it,
    else one half is behind all of them; `halves` is left with what they became. Gives the summed loss and its rows.
    """
    cfg = kit.cfg
    batches = {device: num_batches(cfg, num) for device, num in num_rows.items()}
    total, rows = 0.0, 0.0
    for epoch in range(cfg.epochs):
        for number in range(max(batches.values())):
            devices = tuple(device for device, num in batches.items() if number < num)
            up = fleet.exchange(forward(cfg, epoch, number), devices=devices, key=key)
            if not len(up):
                continue
            g, loss = server_steps(up, halves, kit, turn(key, epoch, number), copies=copies)
            total, rows = total + loss, rows + float(up.rows.sum())
            down = Message(Op.BACKWARD, each={"g": g}, rows=up.rows, settings=kit.step())
            fleet.exchange(down, devices=up.devices, key=key)
    return total, rows


def forward(cfg: SchemeConfig, epoch: int, number: int) -> Message:
    """Gives the FORWARD of one batch of an epoch: activations and labels are sent."""
    at: Settings = {"rows": "train", "batch": cfg.batch, "step": number, "epoch": epoch, "what": "hy"}
    return Message(Op.FORWARD, settings=at)


def turn(key: rng.Key, epoch: int, number: int) -> rng.Key:
    """Gives the key of the order in which the server takes the devices' batches of one number."""
    return key._replace(use=int(rng.Use.ORDER)).at(epoch << 12 | number)


def server_steps(up: Replies, halves: Halves, kit: Kit, key: rng.Key, *, copies: bool) -> tuple[torch.Tensor, float]:
    """Steps the server's half on each device's batch; gives g [D, B, H] at the cut and the summed loss."""
    if kit.cfg.server_step == "cohort":
        return _one_step(up, halves, kit)
    order, rows, h, y = rng.permutation(key, len(up)).tolist(), up.rows.tolist(), up.tree["h"], up.tree["y"]
    if not copies:
        half, g, means = step_each(next(iter(halves.values())), h, y, rows, order, kit)
        halves.update(dict.fromkeys(halves, half))
        return g, float((means * up.rows).sum())
    g, loss = torch.zeros_like(h), 0.0
    for place in order:
        device, own = up.devices[place], slice(place, place + 1)
        halves[device], g[own], mean = step_each(halves[device], h[own], y[own], [rows[place]], [0], kit)
        loss += float(mean) * rows[place]
    return g, loss


def step_each(
    half: Half, h: torch.Tensor, y: torch.Tensor, rows: list[int], order: list[int], kit: Kit
) -> tuple[Half, torch.Tensor, torch.Tensor]:
    """Steps a half on batches one after another: those of the places in `order`, and of each its first rows.

    Shapes: h [D, B, H], y [D, B], rows [D]. Gives the half, each batch's gradient g [D, B, H] at the cut, and the mean
    losses [D] float64.
    """
    optimizer = kit.half_optimizer()
    if kit.half is not None and kit.half.knows(h, optimizer):
        large, memory, g, loss = kit.half.steps(*half, optimizer, h, y, rows, order)
        return (large, memory), g, loss
    here = hardware.now()
    sent, labels = here.put(h), here.put(y)
    g, loss = torch.zeros_like(sent), torch.zeros(len(h), dtype=torch.float64, device=sent.device)
    for place in order:
        num, (large, memory) = rows[place], half
        step = step_half(kit.server_model(), large, memory, optimizer, sent[place, :num], labels[place, :num])
        half, g[place, :num], loss[place] = step[:2], step[2], step[3]
    return half, hardware.home(g, h), hardware.home(loss, h)


def _one_step(up: Replies, halves: Halves, kit: Kit) -> tuple[torch.Tensor, float]:
    """Steps the one half behind all devices once, on the mean loss of all their rows.

    The gradient that a device gets is that of the mean over its own rows, as if it were alone. With one device it is
    what the step on each in turn does.
    Source: parallel split learning as in Jeon and Kim, "Privacy-sensitive parallel split learning", ICOIN 2020 (from
    memory).
    """
    valid, num = up.mask().bool(), int(up.rows.sum())
    h, y = up.tree["h"][valid], up.tree["y"][valid]
    half, slope, mean = step_each(next(iter(halves.values())), h[None], y[None], [num], [0], kit)
    halves.update(dict.fromkeys(halves, half))
    g = torch.zeros_like(up.tree["h"])
    share = (num / up.rows).repeat_interleave(up.rows).reshape(-1, *[1] * (slope.dim() - 2)).float()
    g[valid] = slope[0] * share
    return g, float(mean) * num


def mean_half(halves: Mapping[int, Half], weight: torch.Tensor) -> Half:
    """Gives the mean of server halves, in their order, and of their optimisers' states. Shapes: weight [D]."""
    here = hardware.now()
    larges, memories = ([here.put_tree(half[part]) for half in halves.values()] for part in (0, 1))
    return tree.weighted_mean(tree.stack(larges), weight), tree.weighted_mean(tree.stack(memories), weight)


@dataclass
class Behind:
    """What the server trains behind cuts that differ: the large rear behind the deepest, and its own copy of the layers
    between the others and that one. It is changed step by step, and lives for a round.
    """

    kit: Kit
    large: tree.Tree
    memory: tree.Tree
    copy: tree.Tree
    copy_memory: tree.Tree

    def step(self, between: nn.Module | None, h: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Steps on a device's batch, through the layers between its cut and the deepest if there are any.

        Shapes: h [B, H], y [B]. Gives the gradient g [B, H] at the device's cut, and the summed loss.
        """
        z, close, optimizer = h, None, self.kit.half_optimizer()
        if between is not None:
            z, close = open_half(between, tree.select(self.copy, parameter_names(between)), h)
        (self.large, self.memory), g, mean = step_each(
            (self.large, self.memory), z[None], y[None], [len(y)], [0], self.kit
        )
        g = g[0]
        if close is not None:
            trained, memory, g = close(g, self.copy_memory, optimizer)
            self.copy, self.copy_memory = {**self.copy, **trained}, {**self.copy_memory, **memory}
        return g, float(mean) * len(y)


def num_batches(cfg: SchemeConfig, num_rows: float) -> int:
    """Gives the batches of an epoch over so many rows; a batch of 0 is all of them."""
    return -(-int(num_rows) // (cfg.batch or max(int(num_rows), 1)))


def init_personal(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Begins a scheme whose devices keep what they have: all load the same, once, and the server keeps none of it."""
    server = init_halves(fleet, kit, key)
    load_all(fleet, server.tree, key)
    return replace(server, tree={})


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device runs its half forward and backward."""
    return (Work(Op.FORWARD), Work(Op.BACKWARD, "front"))
