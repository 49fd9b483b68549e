"""Federated averaging and its kin: the whole tiny model is trained on the devices and averaged on the server.

fedavg: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
algorithm 1. fedprox: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, algorithm 2: a
proximal term, and stragglers' partial work is used. fedadam: Reddi et al., "Adaptive federated optimization",
ICLR 2021, algorithm 2: Adam on the server over the mean update.
"""

from __future__ import annotations

from functools import partial

import torch

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import PROPERTIES, Kit, Scheme, Work, evaluate_shared, load_all, mean_loss
from midhaul.message import Message, Op, Replies
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server draws the first model. What never travels again (FedBN, what is not in the slice) is loaded once."""
    whole = kit.program.initial
    if kit.program.personal or kit.cfg.slice != "whole":
        load_all(fleet, whole, key)
    return Server(tree.without(whole, kit.program.personal))


def train_cohort(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, mu: float = 0.0) -> Replies:
    """Asks a cohort to train; gives what came back."""
    part = tree.select(server.tree, kit.program.sendable(kit.cfg.slice))
    message = kit.fit(part, train=kit.cfg.slice, send=kit.cfg.slice, proximal_mu=mu)
    return fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)


def average(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, mu: float) -> tuple[Server, dict[str, float]]:
    """One round: the mean of the devices' models by their numbers of examples is the next model."""
    up = train_cohort(server, fleet, kit, key, mu=mu)
    if not len(up):
        return server, {}
    return Server(tree.merge(server.tree, kit.mean(up.tree, up.weight))), mean_loss(up)


def round_fedavg(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round of federated averaging."""
    return average(server, fleet, kit, key, mu=0.0)


def round_fedprox(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round of FedProx: nobody is dropped for being late."""
    return average(server, fleet, kit, key, mu=kit.cfg.proximal_mu)


def round_fedadam(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round of FedAdam."""
    cfg = kit.cfg
    up = train_cohort(server, fleet, kit, key)
    if not len(up):
        return server, {}
    now = tree.select(server.tree, up.tree)
    update = tree.subtract(kit.mean(up.tree, up.weight), now)
    first = server.state.get("first", tree.zeros_like(now))
    second = server.state.get("second", tree.map(now, lambda v: torch.full_like(v, cfg.tau**2)))
    first = tree.add(tree.scale(first, cfg.beta1), update, alpha=1.0 - cfg.beta1)
    second = tree.zip_with(second, update, lambda v, u: cfg.beta2 * v + (1.0 - cfg.beta2) * u * u)
    step = tree.zip_with(first, second, lambda m, v: m / (v.sqrt() + cfg.tau))
    moved = Server(tree.merge(server.tree, tree.add(now, step, alpha=cfg.server_lr)))
    return moved.keeping(first=first, second=second), mean_loss(up)


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the shared model; with personal norms, each device's own."""
    if not kit.program.personal:
        return evaluate_shared(server, fleet, kit, key)
    message = Message(Op.EVALUATE, server.tree, settings={"rows": "test", "loss": kit.cfg.loss})
    return fleet.exchange(message, key=key)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the slice and uses the model."""
    return (Work(Op.FIT, cfg.slice), Work(Op.PREDICT))


_kin = partial(
    Scheme, family="FL", direction="tiny to tiny", init=init, evaluate=evaluate, work=work, admits=PROPERTIES
)
FEDAVG = _kin(name="fedavg", title="federated averaging", source="McMahan et al. 2017", round=round_fedavg)
FEDPROX = _kin(
    name="fedprox",
    title="FedAvg with a proximal term",
    source="Li et al. 2020",
    round=round_fedprox,
    keeps_stragglers=True,
)
FEDADAM = _kin(name="fedadam", title="FedAvg with Adam on the server", source="Reddi et al. 2021", round=round_fedadam)
