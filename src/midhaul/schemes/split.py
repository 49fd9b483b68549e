"""Split learning (SL): the device holds the layers up to the cut, the server a large model behind it.

split: the relay of Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", JNCA 2018,
algorithm 1: one device after another, the device half handed on through the server. Smashed activations and labels
leave the device. split_u: the U shape of Vepakomma et al., "Split learning for health", 2018, section 2: the last layer
and the loss stay on the device, so that labels never leave it.

With scheme.nopeek devices also learn to send activations that tell less of their examples: Vepakomma, Singh, Gupta and
Raskar, "NoPeek: information leakage reduction to share activations in distributed deep learning", ICDM workshops 2020,
section 3.
"""

from __future__ import annotations

from dataclasses import replace

from midhaul import rng, tree
from midhaul import server as site
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.halves import step_each
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_halves, init_halves
from midhaul.message import Kind, Message, Op, Replies, Settings
from midhaul.server import Server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """The cohort's devices take their turns, in an order drawn anew each round."""
    cohort = kit.cohort(fleet, key)
    order = rng.permutation(key._replace(use=int(rng.Use.ORDER)), len(cohort))
    total, rows = 0.0, 0.0
    for device in (cohort[place] for place in order):
        server, loss, seen = turn(server, fleet, kit, key, device)
        total, rows = total + loss * seen, rows + seen
    return server, {"train_loss": total / rows} if rows else {}


def turn(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, device: int) -> tuple[Server, float, float]:
    """One device loads the device half, trains it with the server on all its batches, and hands it back."""
    there = fleet.exchange(Message(Op.LOAD, server.tree), devices=(device,), key=key)
    if not len(there):
        return server, 0.0, 0.0
    large, memory, total, rows = server.large, server.state["optimizer"], 0.0, 0.0
    step = u_step if kit.program.tail is not None else plain_step
    for epoch in range(kit.cfg.epochs):
        for number in range(steps(kit.cfg, float(there.weight[0]))):
            at: Settings = {"rows": "train", "batch": kit.cfg.batch, "step": number, "epoch": epoch}
            large, memory, loss, seen = step(large, memory, fleet, kit, key, device, at)
            total, rows = total + loss * seen, rows + seen
    back = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), devices=(device,), key=key)
    parts = back.reply(0).tree if len(back) else {}
    moved = Server(tree.merge(server.tree, parts), large, {"optimizer": memory})
    return moved, total / max(rows, 1.0), rows


Step = tuple[tree.Tree, tree.Tree, float, float]


def plain_step(
    large: tree.Tree, memory: tree.Tree, fleet: Fleet, kit: Kit, key: rng.Key, device: int, at: Settings
) -> Step:
    """One batch: activations and labels up, the gradient at the cut down."""
    up = fleet.exchange(Message(Op.FORWARD, settings={**at, "what": "hy"}), devices=(device,), key=key)
    if not len(up) or not int(up.rows[0]):
        return large, memory, 0.0, 0.0
    sent = up.reply(0).tree
    (large, memory), g, loss = step_each((large, memory), sent["h"][None], sent["y"][None], [len(sent["y"])], [0], kit)
    send_back(fleet, kit, key, (device,), Message(Op.BACKWARD, each={"g": g}, rows=up.rows))
    return large, memory, float(loss), float(up.rows[0])


def u_step(
    large: tree.Tree, memory: tree.Tree, fleet: Fleet, kit: Kit, key: rng.Key, device: int, at: Settings
) -> Step:
    """One batch with the loss on the device: activations up, features down, their gradient up, the gradient down."""
    up = fleet.exchange(Message(Op.FORWARD, settings={**at, "what": "h"}), devices=(device,), key=key)
    if not len(up) or not int(up.rows[0]):
        return large, memory, 0.0, 0.0
    z, close = site.open_half(kit.server_model(), large, up.reply(0).tree["h"])
    answer = send_back(fleet, kit, key, (device,), Message(Op.BACKWARD, each={"z": z[None]}, rows=up.rows))
    if not len(answer):
        return large, memory, 0.0, 0.0
    large, memory, g = close(answer.reply(0).tree["g"], memory, kit.half_optimizer())
    send_back(fleet, kit, key, (device,), Message(Op.BACKWARD, each={"g": g[None]}, rows=up.rows))
    return large, memory, float(answer.metrics["loss"][0]), float(up.rows[0])


def send_back(fleet: Fleet, kit: Kit, key: rng.Key, devices: tuple[int, ...], message: Message) -> Replies:
    """Sends something for the devices to step with."""
    return fleet.exchange(replace(message, settings=kit.step()), devices=devices, key=key)


def steps(cfg: SchemeConfig, num_rows: float) -> int:
    """Gives the batches of an epoch."""
    return -(-int(num_rows) // cfg.batch) if cfg.batch else 1


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device runs its half forward and backward."""
    return (Work(Op.FORWARD), Work(Op.BACKWARD, "front"))


SPLIT = Scheme(
    "split",
    "device half handed from device to device",
    "SL",
    "Gupta and Raskar 2018",
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
SPLIT_U = Scheme(
    "split_u",
    "split in U shape: labels stay on the device",
    "SL",
    "Vepakomma et al. 2018",
    init_halves,
    round,
    evaluate_halves,
    work,
    "both ways",
    (Kind.ACTIVATIONS, Kind.GRADIENTS, Kind.WEIGHTS),
    (Kind.ACTIVATIONS, Kind.GRADIENTS, Kind.WEIGHTS),
    part="u",
    large="rear",
    admits=("cohort", "stragglers", "dropout"),
    engines=SIMULATED,
)
