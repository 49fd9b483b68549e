"""Federated transfer learning (FTL): the large model's knowledge on every device, and only a part of it federated.

federated_transfer: the body that the large model taught is frozen on the devices; their heads are averaged (Liu, Kang,
Xing, Chen and Yang, "A secure federated transfer learning framework", 2020, has the setting; FedAvg the averaging).
fedper: the body is averaged and each device keeps a head of its own (Arivazhagan et al., "Federated learning with
personalization layers", 2019, algorithm 1). fedrep: the same, the head first and then the body (Collins et al.,
"Exploiting shared representations for personalized federated learning", ICML 2021, algorithm 1).
"""

from __future__ import annotations

from functools import partial

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import (
    PROPERTIES,
    Kit,
    Scheme,
    Work,
    evaluate_large,
    evaluate_personal,
    evaluate_shared,
    load_all,
    mean_loss,
    teach,
)
from midhaul.message import Message, Op, Replies
from midhaul.server import Server

Round = tuple[Server, dict[str, float]]


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server trains and distils; every device loads the tiny model, once."""
    tiny, large = teach(kit, key)
    load_all(fleet, tiny, key)
    return Server(tiny, large)


def merged(server: Server, up: Replies, kit: Kit) -> Server:
    """Gives the server with the mean of what came back in place of its own."""
    return Server(tree.merge(server.tree, kit.mean(up.tree, up.weight)), server.large)


def round_head(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort trains the shared head over the frozen body; heads are averaged."""
    head = tree.select(server.tree, kit.program.sendable("head"))
    up = fleet.exchange(kit.fit(head, train="head", send="head"), devices=kit.cohort(fleet, key), key=key)
    return (merged(server, up, kit), mean_loss(up)) if len(up) else (server, {})


def round_fedper(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort trains body and head together; bodies are averaged, heads stay."""
    body = tree.select(server.tree, kit.program.sendable("body"))
    up = fleet.exchange(kit.fit(body, train="whole", send="body"), devices=kit.cohort(fleet, key), key=key)
    return (merged(server, up, kit), mean_loss(up)) if len(up) else (server, {})


def round_fedrep(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort trains its heads over the new body, then the body under its head; bodies are averaged."""
    cohort = kit.cohort(fleet, key)
    body = tree.select(server.tree, kit.program.sendable("body"))
    there = fleet.exchange(Message(Op.LOAD, body), devices=cohort, key=key).devices
    there = fleet.exchange(
        kit.fit({}, train="head", send="none", epochs=kit.cfg.head_epochs), devices=there, key=key
    ).devices
    up = fleet.exchange(kit.fit({}, train="body", send="body"), devices=there, key=key)
    return (merged(server, up, kit), mean_loss(up)) if len(up) else (server, {})


def evaluate_heads(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the shared body under each device's own head; a new device first adapts a head."""
    if fleet.test_devices != fleet.devices and kit.can_adapt:
        return evaluate_personal(server, fleet, kit, key, tune="head", lr=kit.cfg.lr)
    body = tree.select(server.tree, kit.program.sendable("body"))
    message = Message(Op.EVALUATE, body, settings={"rows": "test", "loss": kit.cfg.loss})
    return fleet.exchange(message, key=key)


def work_head(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains a head and uses the model."""
    return (Work(Op.FIT, "head"), Work(Op.PREDICT))


def work_whole(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


def work_parts(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the head, then the body, and uses the model."""
    return (Work(Op.FIT, "head"), Work(Op.FIT, "body"), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="FTL",
    direction="large to tiny",
    init=init,
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
FEDERATED_TRANSFER = _kin(
    name="federated_transfer",
    title="frozen body from the large model, heads averaged",
    source="Liu et al. 2020",
    round=round_head,
    evaluate=evaluate_shared,
    work=work_head,
    admits=PROPERTIES,
)
FEDPER = _kin(
    name="fedper",
    title="averaged body, personal heads",
    source="Arivazhagan et al. 2019",
    round=round_fedper,
    evaluate=evaluate_heads,
    work=work_whole,
)
FEDREP = _kin(
    name="fedrep",
    title="personal heads first, then the body",
    source="Collins et al. 2021",
    round=round_fedrep,
    evaluate=evaluate_heads,
    work=work_parts,
)
