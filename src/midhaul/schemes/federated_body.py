"""FedBABU (FTL): only the body is trained and averaged; the head stays as it was drawn until a device is tested.

Source: Oh, Kim and Yun, "FedBABU: toward enhanced representation for federated image classification", ICLR 2022,
algorithm 1. All devices hold the same random head, so that bodies trained under it agree with one another. A device
that is to use the model first fine-tunes the head on rows of its own.
"""

from __future__ import annotations

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import PROPERTIES, Kit, Scheme, Work, evaluate_personal, evaluate_shared, load_all, mean_loss
from midhaul.message import Message, Op, Replies
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server draws the first model; every device loads it, once, for the sake of its head."""
    load_all(fleet, kit.program.initial, key)
    return Server(tree.without(kit.program.initial, kit.program.personal))


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """A cohort trains the body under the head that nobody changes; bodies are averaged."""
    body = tree.select(server.tree, kit.program.sendable("body"))
    up = fleet.exchange(kit.fit(body, train="body", send="body"), devices=kit.cohort(fleet, key), key=key)
    if not len(up):
        return server, {}
    return Server(tree.merge(server.tree, kit.mean(up.tree, up.weight))), mean_loss(up)


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the body under heads that were fine-tuned first: by new devices on the rows that they may adapt on
    (`data.adapt`; without such rows the head is as it was drawn), by the others on the rows that they trained on.
    """
    if fleet.test_devices != fleet.devices:
        if not kit.can_adapt:
            return evaluate_shared(server, fleet, kit, key)
        return evaluate_personal(server, fleet, kit, key, tune="head", lr=kit.cfg.tune_lr)
    epochs, lr = kit.cfg.adapt_epochs, kit.cfg.tune_lr
    heads = fleet.exchange(kit.fit(server.tree, train="head", send="head", epochs=epochs, lr=lr), key=key)
    body = tree.without(server.tree, heads.tree)
    message = Message(Op.EVALUATE, body, heads.tree, settings={"rows": "test", "loss": kit.cfg.loss})
    return fleet.exchange(message, key=key, devices=heads.devices)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the body, fine-tunes a head, and uses the model."""
    return (Work(Op.FIT, "body"), Work(Op.FIT, "head"), Work(Op.PREDICT))


FEDBABU = Scheme(
    "fedbabu",
    "body averaged under a head that stays as drawn",
    "FTL",
    "Oh et al. 2022",
    init,
    round,
    evaluate,
    work,
    "tiny to tiny",
    admits=PROPERTIES,
)
