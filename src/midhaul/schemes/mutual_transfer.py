"""FedMKT: the server's large model and the devices' small ones teach each other over labelled public rows, selectively.

Source: Fan, Ma, Kang, Gu, Song, Chen, Fan and Yang, "FedMKT: federated mutual knowledge transfer for large and small
language models", COLING 2025, algorithm 1. A row's knowledge goes only from whom has the smaller loss on it: the large
model learns from the best device of each row that beats it, a device from the large model on the rows where that beats
the device. The paper aligns tokens of different vocabularies by their least edit distance; here all models answer with
the same classes (or one vocabulary), so there is nothing to align. Public rows travel with the logits for them.

Shape letters: D devices, N public rows, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from midhaul import rng
from midhaul import server as site
from midhaul.config import SchemeConfig
from midhaul.distil import answers, begin_large, digest, load_each
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_large, evaluate_own, mean_loss
from midhaul.message import Kind, Message, Op
from midhaul.models import losses
from midhaul.program import Examples
from midhaul.server import Server
from midhaul.tree import Tree


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device loads its small model; the large one begins as `scheme.large_start` says."""
    load_each(fleet, kit, key)
    return Server({}, begin_large(kit, key))


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """Devices train on their own rows and say what they think of the public ones; the large model learns, then they."""
    there = fleet.exchange(kit.fit({}, train="whole", send="none"), devices=kit.cohort(fleet, key), key=key)
    if not len(there):
        return server, {}
    public = rows_of(kit, key)
    up = fleet.exchange(Message(Op.PREDICT, {"x": public.x}), devices=there.devices, key=key)
    if not len(up) or not kit.cfg.exchange_epochs:
        return server, mean_loss(there)
    said = up.tree["logits"]
    large = learn(kit, server.large, public, said, key)
    known = answers(kit, large, public.x)
    better = row_losses(known[None], public.y) < row_losses(said, public.y)  # [D, N]
    parts = [
        (digest(kit, public.x[rows], known[rows]), (device,))
        for device, rows in zip(up.devices, better, strict=True)
        if bool(rows.any())
    ]
    if parts:
        fleet.exchange_parts(parts, key=key)
    return Server({}, large), mean_loss(there)


def learn(kit: Kit, large: Tree, public: Examples, said: Tensor, key: rng.Key) -> Tree:
    """Gives the large model after learning from the labels, and from the best device where one beats it."""
    own = answers(kit, large, public.x)
    after, _, _ = site.train(
        kit.server_model(),
        large,
        public.x,
        public.y,
        kit.optimizer(),
        epochs=kit.cfg.exchange_epochs,
        batch=kit.config.large.batch,
        key=rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC),
        soft=best(own, said, public.y),
        temperature=kit.cfg.temperature,
        soft_weight=kit.cfg.soft_weight,
        augment=kit.augment,
    )
    return after


def best(own: Tensor, said: Tensor, y: Tensor) -> Tensor:
    """Gives of each row the logits with the smallest loss: those of a device, or the large model's own.

    Shapes: own [N, C], said [D, N, C], y [N] -> [N, C].
    """
    every = torch.cat([own[None], said])
    first = row_losses(every, y).argmin(0)  # the first of equals, so the own
    return every[first, torch.arange(len(y))]


def row_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Gives the cross entropies of many models. Shapes: [D, N, C], [N] -> [D, N]."""
    return torch.stack([losses.cross_entropy(each, y) for each in logits])


def rows_of(kit: Kit, key: rng.Key) -> Examples:
    """Gives the public rows of a round: `scheme.exchange_rows` of them, drawn anew each round, or all."""
    num, everyone = kit.cfg.exchange_rows, len(kit.public)
    if not num or num >= everyone:
        return kit.public
    places = rng.choose(rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC).at(255), num, range(everyone))
    return Examples(kit.public.x[torch.tensor(places)], kit.public.y[torch.tensor(places)])


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


FEDMKT = Scheme(
    name="fedmkt",
    title="large and small models teach each other, row by row",
    family="FFM",
    source="Fan et al. 2025",
    init=init,
    round=round,
    evaluate=evaluate_own,
    evaluate_large=evaluate_large,
    work=work,
    direction="both ways",
    large="teacher",
    needs_public=True,
    up=(Kind.LOGITS,),
    down=(Kind.EXAMPLES, Kind.LOGITS),
    differs="model",
    engines=SIMULATED,
)
