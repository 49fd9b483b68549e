"""Transfer learning (TL): the large model learns from public data, teaches the tiny one, and devices fine-tune it.

Teaching: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2. Fine-tuning a head,
the biases, or all on the device: Cai et al., "TinyTL", NeurIPS 2020, section 3. What a device learns stays on it.
"""

from __future__ import annotations

from midhaul import rng
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import (
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
from midhaul.message import Kind, Op, Replies
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server trains and distils; every device loads the tiny model, once."""
    tiny, large = teach(kit, key)
    load_all(fleet, tiny, key)
    return Server(tiny, large)


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """Every device fine-tunes its own copy and keeps it; nothing but a loss is sent."""
    if kit.cfg.tune == "none":
        return server, {}
    message = kit.fit({}, train=kit.cfg.tune, send="none", lr=kit.cfg.tune_lr)
    replies = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return server, mean_loss(replies) if len(replies) else {}


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the taught model, or each device's fine-tuned one."""
    if kit.cfg.tune == "none":
        return evaluate_shared(server, fleet, kit, key)
    return evaluate_personal(server, fleet, kit, key, tune=kit.cfg.tune, lr=kit.cfg.tune_lr)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the slice that is tuned and uses the model."""
    return (Work(Op.PREDICT),) if cfg.tune == "none" else (Work(Op.FIT, cfg.tune), Work(Op.PREDICT))


TRANSFER = Scheme(
    "transfer",
    "taught by the large model, tuned on the device",
    "TL",
    "Hinton et al. 2015; Cai et al. 2020",
    init,
    round,
    evaluate,
    work,
    "large to tiny",
    (),
    (Kind.WEIGHTS,),
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
    admits=("cohort", "stragglers", "dropout"),
)
