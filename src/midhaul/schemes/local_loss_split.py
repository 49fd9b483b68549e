"""Split learning on local losses: no gradient comes down, and activations go up only now and then (CSE-FSL).

Source: Mu and Shen, "Communication and storage efficient federated split learning", IEEE ICC 2023, algorithm 1; the
local loss is that of Han, Bhatti, Lee and Moon, "Accelerating federated learning with split learning on locally
generated losses", 2021. A device trains its half under an auxiliary head: here the tiny model's own layers behind the
cut. Before every `upload_every`-th of its steps it sends that batch's activations and labels, and the server trains its
one half on them. The devices' halves and heads are averaged at the end of a round.

Limits: momentum begins anew at each upload, as with every FIT.
"""

from __future__ import annotations

from dataclasses import replace

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.halves import forward, num_batches, server_steps, turn
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_halves, init_halves
from midhaul.message import Kind, Message, Op
from midhaul.server import Server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: halves and heads out, local steps with an upload now and then, halves and heads back and averaged."""
    cfg = kit.cfg
    there = fleet.exchange(Message(Op.LOAD, server.tree), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    batches = {d: num_batches(cfg, num) for d, num in zip(there.devices, there.weight.tolist(), strict=True)}
    half = dict.fromkeys(there.devices, (server.large, server.state["optimizer"]))
    total, rows = 0.0, 0.0
    for epoch in range(cfg.epochs):
        for number in range(0, max(batches.values()), cfg.upload_every):
            devices = tuple(device for device, num in batches.items() if number < num)
            up = fleet.exchange(forward(cfg, epoch, number), devices=devices, key=key)
            if len(up):
                _, loss = server_steps(up, half, kit, turn(key, epoch, number), copies=False)
                total, rows = total + loss, rows + float(up.rows.sum())
            steps = tuple(min(cfg.upload_every, batches[device] - number) for device in devices)
            local = kit.fit({}, train="whole", send="none", epoch=epoch, step=number)
            fleet.exchange(replace(local, each_settings={"steps": steps}), devices=devices, key=key)
    back = fleet.exchange(Message(Op.READ, settings={"send": "whole"}), devices=there.devices, key=key)
    tiny = tree.merge(server.tree, kit.mean(back.tree, back.weight)) if len(back) else server.tree
    large, memory = next(iter(half.values()))
    return Server(tiny, large, {"optimizer": memory}), {"train_loss": total / max(rows, 1.0)}


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains its half under the auxiliary head, and runs its half to send activations."""
    return (Work(Op.FIT, "whole"), Work(Op.FORWARD))


CSE_FSL = Scheme(
    "cse_fsl",
    "CSE-FSL: local loss, activations now and then",
    "FSL",
    "Mu and Shen 2023; Han et al. 2021",
    init_halves,
    round,
    evaluate_halves,
    work,
    "tiny to large",
    (Kind.ACTIVATIONS, Kind.LABELS, Kind.WEIGHTS),
    (Kind.WEIGHTS,),
    part="local",
    large="rear",
    one_half=True,
    admits=("cohort", "dropout", "weighting"),
    engines=SIMULATED,
)
