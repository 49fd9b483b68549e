"""What the schemes of federated low-rank adapters share: a cohort is sent adapters, trains them, sends them back."""

from __future__ import annotations

from typing import NamedTuple

import torch

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet, Group
from midhaul.kit import Kit, Work, ask_all, mean_loss
from midhaul.message import Message, Op, Replies, Settings, join
from midhaul.models import adapters
from midhaul.server import Server
from midhaul.tree import Tree


class Upload(NamedTuple):
    """What came back from a cohort: each device's adapters, its share of the examples, and the mean of the rest."""

    parts: list[Tree]
    shares: list[float]
    beside: Tree
    metrics: dict[str, float]


def sliced(cfg: SchemeConfig) -> str:
    """Gives the slice that is trained and sent: the adapters, and what `scheme.beside` names."""
    return f"lora+{cfg.beside}" if cfg.beside else "lora"


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device is given the model, once, with adapters of its rank."""
    whole = kit.program.initial
    for group, devices in kit.alike(fleet.devices):
        ask_all(fleet, Message(Op.LOAD, _of(whole, group)), key, devices)
    return Server(whole)


def train_adapters(fleet: Fleet, kit: Kit, key: rng.Key, part: Tree, devices: tuple[int, ...]) -> Upload | None:
    """Asks devices to train the adapters and what is beside them; gives what came back, or None if nobody answered.

    A device of a lower rank than `part` gets the first rows of A and columns of B.
    """
    names = sliced(kit.cfg)
    parts = [(kit.fit(_of(part, group), train=names, send=names), members) for group, members in kit.alike(devices)]
    ups = fleet.exchange_parts(parts, key=key)
    sent = {device: reply for up in ups for device, reply in up}
    if not sent:
        return None
    weight = torch.tensor([sent[device].weight for device in sorted(sent)], dtype=torch.float64)
    own = [tree.select(sent[device].tree, kit.program.names("lora")) for device in sorted(sent)]
    others = [tree.without(sent[device].tree, kit.program.names("lora")) for device in sorted(sent)]
    beside = tree.weighted_mean(tree.stack(others), weight)
    return Upload(own, (weight / weight.sum()).tolist(), beside, mean_loss(*ups))


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the shared model on every test device, at that device's rank."""
    settings: Settings = {"rows": "test", "loss": kit.cfg.loss}
    tests = kit.alike(fleet.test_devices)
    parts = [(Message(Op.EVALUATE, _of(server.tree, g), settings=settings), members) for g, members in tests]
    return join(fleet.exchange_parts(parts, key=key))


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the adapters and what is beside them, and uses the model."""
    return (Work(Op.FIT, sliced(cfg)), Work(Op.PREDICT))


def _of(part: Tree, group: Group) -> Tree:
    return adapters.thinned(part, adapters.rank_of(group.program.initial))
