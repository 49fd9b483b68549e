"""SplitLoRA: a model that is cut between device and server, of which only low-rank adapters are trained, on both sides.

Source: Lin, Hu, Zhang, Chen, Fang, Chen, Li, Vepakomma and Gao, "SplitLoRA: a split parameter-efficient fine-tuning
framework for large language models", 2024, section 3. The frozen weights are loaded once. In a round the devices run
their halves side by side; the server takes the batches of all of them as one and steps its adapters once; each device
steps its own with the gradient of its own batch's mean loss. At the end of a round the devices' adapters, and nothing
else, come back and are averaged (A and B each by itself, as in FedAvg).
"""

from __future__ import annotations

import torch

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.halves import forward, num_batches
from midhaul.kit import Kit, Scheme, Work, evaluate_halves, init_halves, load_all
from midhaul.message import Kind, Message, Op, Replies, Settings
from midhaul.server import Server, parameter_names, step_half


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device loads its half, once; the server's optimiser is for its adapters alone."""
    server = init_halves(fleet, kit, key)
    if not kit.program.personal:
        load_all(fleet, server.tree, key)
    return server.keeping(optimizer=kit.half_optimizer().init(tree.select(server.large, adapters(kit))))


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: adapters out, batches through the cut, adapters back and averaged."""
    cfg, own = kit.cfg, tree.select(server.tree, kit.program.names("lora"))
    there = fleet.exchange(Message(Op.LOAD, own), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    batches = {d: num_batches(cfg, num) for d, num in zip(there.devices, there.weight.tolist(), strict=True)}
    step: Settings = {**kit.step(), "train": "lora"}
    total, rows = 0.0, 0.0
    for epoch in range(cfg.epochs):
        for number in range(max(batches.values())):
            devices = tuple(device for device, num in batches.items() if number < num)
            up = fleet.exchange(forward(cfg, epoch, number), devices=devices, key=key)
            if not len(up):
                continue
            server, g, loss = step_together(server, up, kit)
            total, rows = total + loss, rows + float(up.rows.sum())
            fleet.exchange(
                Message(Op.BACKWARD, each={"g": g}, rows=up.rows, settings=step), devices=up.devices, key=key
            )
    back = fleet.exchange(Message(Op.READ, settings={"send": "lora"}), devices=there.devices, key=key)
    mean = kit.mean(back.tree, back.weight) if len(back) else {}
    return Server(tree.merge(server.tree, mean), server.large, server.state), {"train_loss": total / max(rows, 1.0)}


def step_together(server: Server, up: Replies, kit: Kit) -> tuple[Server, torch.Tensor, float]:
    """Steps the server's adapters on the batches of all devices as one.

    Gives the server, the gradient g [D, B, H] at the cut of each device's own mean loss, and the summed loss.
    """
    valid, num = up.mask().bool(), float(up.rows.sum())
    h, y = up.tree["h"][valid], up.tree["y"][valid]
    memory, optimizer = server.state["optimizer"], kit.half_optimizer()
    large, memory, slope, loss, _ = step_half(
        kit.server_model(), server.large, memory, optimizer, h, y, only=adapters(kit)
    )
    g = torch.zeros_like(up.tree["h"])
    g[valid] = slope
    # The mean over all rows weighs a device's rows by 1 / num; its own mean, by 1 / rows.
    share = (num / up.rows.clamp(min=1)).to(g.dtype)
    g = g * share.reshape(-1, *[1] * (g.dim() - 1))
    return Server(server.tree, large, {"optimizer": memory}), g, float(loss) * num


def adapters(kit: Kit) -> tuple[str, ...]:
    """Gives the names of the adapters in the server's half."""
    return tuple(name for name in parameter_names(kit.server_model()) if name.endswith((".lora_a", ".lora_b")))


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device runs its half forward, and backward for its adapters."""
    return (Work(Op.FORWARD), Work(Op.BACKWARD, "lora"))


SPLIT_LORA = Scheme(
    "split_lora",
    "SplitLoRA: adapters on both sides of the cut",
    "FSL",
    "Lin et al. 2024",
    init,
    round,
    evaluate_halves,
    work,
    "both ways",
    (Kind.ACTIVATIONS, Kind.LABELS, Kind.WEIGHTS),
    (Kind.GRADIENTS, Kind.WEIGHTS),
    part="front",
    large="rear",
    adapters=True,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
