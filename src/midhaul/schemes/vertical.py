"""Vertical split learning (SL): devices hold different features of the same rows, the server joins their activations.

Source: Vepakomma, Gupta, Swedish and Raskar, "Split learning for health: distributed deep learning without sharing raw
patient data", 2018, section 2 (vertically partitioned data); Ceballos, Sharma, Mugica, Singh, Roman, Vepakomma and
Raskar, "SplitNN-driven vertical partitioning", 2020, whose concatenation of activations is the merge here. Each device
has a front of its own over its features, and keeps it. Rows are aligned: they have the same places on every device, and
all go through them in the order of the first device, which has the labels and sends them. Of a batch that one device
misses nothing is learned.

Shape letters: D devices, B rows, H the channels that one device sends, and what lies behind them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import EngineError
from midhaul.fleet import Fleet, Part
from midhaul.halves import num_batches, step_each, work
from midhaul.kit import SIMULATED, Kit, Scheme, answers_behind, ask_all, init_halves
from midhaul.message import Kind, Message, Op, Replies, Settings
from midhaul.models import losses
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """All devices load the same front, once. The server keeps its half, and how many rows they all have."""
    server = init_halves(fleet, kit, key)
    held = ask_all(fleet, Message(Op.LOAD, server.tree), key).weight
    if held.min() != held.max():
        raise EngineError(
            f"devices hold {int(held.min())} to {int(held.max())} rows, so these aren't parts of the same ones; set "
            "data.partition = 'vertical'"
        )
    return Server({}, server.large, server.state, {"rows": held[0]})


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """Every batch of each epoch: activations of all devices up and joined, each device's part of the gradient down."""
    cfg, large, memory = kit.cfg, server.large, server.state["optimizer"]
    total, seen = 0.0, 0
    for epoch in range(cfg.epochs):
        for number in range(num_batches(cfg, float(server.constant["rows"]))):
            at: Settings = {"batch": cfg.batch, "step": number, "epoch": epoch, "order": fleet.devices[0]}
            h, y = joined(fleet, {"rows": "train", **at}, key)
            if not len(h):
                continue
            (large, memory), g, loss = step_each((large, memory), h[None], y[None], [len(y)], [0], kit)
            parts, rows = torch.stack(g[0].chunk(len(fleet.devices), 1)), torch.full((len(fleet.devices),), len(y))
            fleet.exchange(Message(Op.BACKWARD, each={"g": parts}, rows=rows, settings=kit.step()), key=key)
            total, seen = total + float(loss) * len(y), seen + len(y)
    metrics = {"train_loss": total / seen} if seen else {}
    return Server({}, large, {"optimizer": memory}, server.constant), metrics


def joined(fleet: Fleet, at: Settings, key: rng.Key) -> tuple[Tensor, Tensor]:
    """Gives all devices' activations side by side, and the first one's labels; no row if a device didn't answer.

    Shapes: [B, D H], [B].
    """
    first, *others = fleet.devices
    parts: list[Part] = [(Message(Op.FORWARD, settings={**at, "what": "hy"}), (first,))]
    if others:
        parts.append((Message(Op.FORWARD, settings={**at, "what": "h"}), tuple(others)))
    up = fleet.exchange_parts(parts, key=key)
    if sum(len(replies) for replies in up) < len(fleet.devices):
        return torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    h = [reply.tree["h"] for replies in up for _, reply in replies]
    return torch.cat(h, 1), up[0].reply(0).tree["y"]


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the fronts and the server's half together on the test rows; the first device has their labels."""
    h, y = joined(fleet, {"rows": "test"}, key)
    logits = answers_behind(kit, server.large, h)
    loss, rows = losses.rows("cross_entropy", logits, y).double().mean(), torch.tensor([len(y)])
    metrics = {"rows": rows.double(), "loss": loss[None], "correct": (logits.argmax(1) == y).sum()[None].double()}
    return Replies(fleet.devices[:1], {}, rows, rows.double(), metrics)


VERTICAL = Scheme(
    name="vertical",
    title="features split between devices, activations joined",
    family="SL",
    source="Vepakomma et al. 2018; Ceballos et al. 2020",
    init=init,
    round=round,
    evaluate=evaluate,
    work=work,
    direction="both ways",
    up=(Kind.ACTIVATIONS, Kind.LABELS),
    down=(Kind.GRADIENTS,),
    part="front",
    large="joint",
    engines=SIMULATED,
    admits=("dropout",),
)
