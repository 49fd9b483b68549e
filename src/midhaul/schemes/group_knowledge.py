"""Group knowledge transfer (FedGKT): features, labels and logits go up, the large model's logits come down.

Source: He, Annavaram and Avestimehr, "Group knowledge transfer: federated learning of large CNNs at the edge", NeurIPS
2020, algorithm 1. A device trains the whole tiny model, which stays its own, on its labels and on what the server last
said of each of its rows; then it sends the features at the cut, the labels and its logits of all its rows. The server
trains the large model behind the cut on all features, on their labels and on the devices' logits. Each side's loss is
that of distillation: (1 - soft_weight) CE + soft_weight T^2 KL, where the paper has CE + KL.

`accuracy` is that of the devices' own tiny models, `large_accuracy` that of the large model on their features.
Limits: rows are told apart by their place, so a device's rows must not change between rounds.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from midhaul import rng, tree
from midhaul import server as site
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.halves import init_personal
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_halves, mean_loss
from midhaul.message import Kind, Message, Op, Replies, join, pad_rows
from midhaul.server import Server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: the devices train on what they were told, tell what they know, and the large model learns from it."""
    cfg, large, told = kit.cfg, kit.server_model(), server.state.get("told", {})
    trained = learn(told, fleet, kit, key)
    everything = Message(Op.FORWARD, settings={"rows": "train", "batch": 0, "what": "hy"})
    features = fleet.exchange(everything, devices=trained.devices, key=key)
    guesses = fleet.exchange(Message(Op.PREDICT, settings={"rows": "train"}), devices=features.devices, key=key)
    if not len(guesses):
        return server, {}
    sent = {device: reply.tree for device, reply in features}
    sent = {device: {**sent[device], **reply.tree} for device, reply in guesses}
    h, y, z = (torch.cat([each[name] for each in sent.values()]) for name in ("h", "y", "logits"))
    whole, memory, _ = site.train(
        large,
        server.large,
        h,
        y,
        kit.half_optimizer(),
        epochs=cfg.server_epochs,
        batch=kit.config.large.batch,
        key=rng.key(key.seed, key.round, rng.SERVER, rng.Use.BATCH),
        soft=z,
        temperature=cfg.temperature,
        soft_weight=cfg.soft_weight,
        memory=server.state["optimizer"],
        span=((key.round - 1) / kit.config.run.rounds, key.round / kit.config.run.rounds),
    )
    answers = torch.split(site.predict(large, whole, h), [len(each["y"]) for each in sent.values()])
    told = tree.merge(told, {str(device): answer for device, answer in zip(sent, answers, strict=True)})
    return replace(server, large=whole, state={"optimizer": memory, "told": told}), mean_loss(trained)


def learn(told: tree.Tree, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """A cohort trains, with the large model's logits of its rows [D, B, C] where it has spoken; the models stay."""
    cohort = kit.cohort(fleet, key)
    alone = kit.fit({}, train="whole", send="none")
    parts = [fleet.exchange(alone, devices=tuple(d for d in cohort if str(d) not in told), key=key)]
    if known := tuple(device for device in cohort if str(device) in told):
        rows = torch.tensor([len(told[str(device)]) for device in known])
        logits = pad_rows([told[str(device)] for device in known], int(rows.max()))
        both = kit.fit({}, train="whole", send="none", temperature=kit.cfg.temperature, soft_weight=kit.cfg.soft_weight)
        parts.append(fleet.exchange(replace(both, each={"logits": logits}, rows=rows), devices=known, key=key))
    return join([part for part in parts if len(part)] or parts[:1])


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests each device's own tiny model; where the test devices are new ones, on the rows of all of these."""
    return fleet.exchange(Message(Op.EVALUATE, settings={"rows": "test", "loss": kit.cfg.loss}), key=key)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole tiny model, uses it, and runs it up to the cut."""
    return (Work(Op.FIT, "whole"), Work(Op.FORWARD), Work(Op.PREDICT))


FEDGKT = Scheme(
    "fedgkt",
    "FedGKT: features up, logits both ways",
    "FTL",
    "He et al. 2020",
    init_personal,
    round,
    evaluate,
    work,
    "both ways",
    (Kind.ACTIVATIONS, Kind.LABELS, Kind.LOGITS),
    (Kind.LOGITS,),
    part="local",
    large="rear",
    evaluate_large=evaluate_halves,
    admits=("cohort", "stragglers", "dropout"),
    engines=SIMULATED,
)
