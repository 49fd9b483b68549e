"""The two ends between which every scheme lies: each device alone, and all data in one place.

local: every device trains its own model on its own rows; nothing crosses the link after the first model.
pooled: every device sends its raw examples to the server, which trains one model on all of them. It is the accuracy
that a scheme is measured against, and what privacy and radio usually forbid.
"""

from __future__ import annotations

import torch

from midhaul import rng, tree
from midhaul import server as site
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import Kit, Scheme, Work, ask_all, evaluate_own, load_all, mean_loss, tested
from midhaul.message import Kind, Message, Op, Replies
from midhaul.server import Server


def init_local(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device is given the same untrained model."""
    load_all(fleet, kit.program.initial, key)
    return Server(kit.program.initial)


def round_local(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """Every device trains for a round's epochs and keeps what it learned."""
    message = kit.fit({}, train="whole", send="none")
    replies = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return server, mean_loss(replies) if len(replies) else {}


def work_local(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


def init_pooled(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The devices send their examples, once."""
    up = ask_all(fleet, Message(Op.READ, settings={"what": "examples"}), key)
    parts = [reply.tree for _, reply in up]
    x, y = torch.cat([part["x"] for part in parts]), torch.cat([part["y"] for part in parts])
    if len(kit.public):
        x, y = torch.cat([x, kit.public.x]), torch.cat([y, kit.public.y])
    model = _model(kit)
    whole = tree.of(model)
    memory = kit.optimizer().init(tree.select(whole, site.parameter_names(model)))
    return Server({}, whole, {"optimizer": memory}, {"x": x, "y": y})


def round_pooled(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """The server goes over all examples once."""
    rounds = kit.config.run.rounds
    whole, memory, loss = site.train(
        _model(kit),
        server.large,
        server.constant["x"],
        server.constant["y"],
        kit.optimizer(),
        epochs=1,
        batch=kit.config.large.batch,
        key=rng.key(key.seed, key.round, rng.SERVER, rng.Use.BATCH),
        memory=server.state["optimizer"],
        augment=kit.augment,
        span=((key.round - 1) / rounds, key.round / rounds),
    )
    return Server({}, whole, {"optimizer": memory}, server.constant), {"train_loss": loss}


def evaluate_pooled(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the server's model on each test device's rows."""
    return tested(_model(kit), server.large, fleet, key)


def work_pooled(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device only sends its examples."""
    return (Work(Op.READ),)


def _model(kit: Kit) -> torch.nn.Module:
    return kit.program.module if kit.cfg.pooled_model == "tiny" else kit.server_model()


LOCAL = Scheme(
    "local",
    "each device alone",
    "baseline",
    "none",
    init_local,
    round_local,
    evaluate_own,
    work_local,
    "none",
    (),
    (),
    admits=("cohort", "stragglers", "dropout"),
)
POOLED = Scheme(
    "pooled",
    "all data on the server",
    "baseline",
    "none",
    init_pooled,
    round_pooled,
    evaluate_pooled,
    work_pooled,
    "tiny to large",
    (Kind.EXAMPLES, Kind.LABELS),
    (),
    large="teacher",
    admits=("cohort", "dropout"),  # as no round asks a device
)
