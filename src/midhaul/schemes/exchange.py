"""Knowledge exchange between unlike models (FTL): tiny and large ones teach each other by logits on public rows.

feddf: Lin, Kong, Stich and Jaggi, "Ensemble distillation for robust model fusion in federated learning", NeurIPS 2020,
algorithm 1. The devices' models are averaged, then the mean of their logits on unlabelled public rows (the ensemble)
teaches the average. Beyond the paper: it teaches the server's large model too, and with `scheme.from_large` this one
then teaches the tiny one.

fedmd: Li and Wang, "FedMD: heterogenous federated learning via model distillation", 2019, algorithm 1. Only logits
travel: devices answer for public rows, the mean of the answers is the consensus, and everyone digests it before
training on rows of their own. Beyond the paper: the server's large model is one of the parties, the one without rows
of its own, and there is no labelled start unless `scheme.large_start` = labelled. The paper takes the distance of the
scores for loss, here it is that of the distillation; public rows are sent, since a device has no room to keep them.
"""

from __future__ import annotations

from functools import partial

from midhaul import rng
from midhaul.config import SchemeConfig
from midhaul.distil import (
    answers,
    begin_large,
    begin_tiny,
    digest,
    distil_large,
    distil_tiny,
    ensemble,
    load_each,
    public_rows,
    whole_models_only,
)
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_large, evaluate_own, evaluate_shared, mean_loss
from midhaul.message import Kind, Message, Op
from midhaul.server import Server

Round = tuple[Server, dict[str, float]]


def init_feddf(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server begins with both models; nothing is sent."""
    return Server(begin_tiny(kit, kit.program, key), begin_large(kit, key))


def round_feddf(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort trains and sends its models; their mean answer teaches their average, and the large model."""
    message = kit.fit(server.tree, train="whole", send="whole")
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    if not len(up):
        return server, {}
    tiny, large, x = kit.mean(up.tree, up.weight), server.large, public_rows(kit, key)
    if kit.cfg.exchange_epochs:
        logits = ensemble(kit, up, x)
        if len(up) > 1:  # an ensemble of one is its own teacher: nothing but Adam's share of rounding would come of it
            tiny = distil_tiny(kit, tiny, x, logits, key, turn=1)
        large = distil_large(kit, large, x, logits, key)
        if kit.cfg.from_large:
            tiny = distil_tiny(kit, tiny, x, answers(kit, large, x), key, turn=2)
    return Server(tiny, large), mean_loss(up)


def init_fedmd(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device loads its tiny model and first trains on rows of its own, so that it has something to say."""
    load_each(fleet, kit, key)
    fleet.exchange(kit.fit({}, train="whole", send="none"), key=key)
    return Server({}, begin_large(kit, key))


def round_fedmd(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort answers, digests the consensus with the large model, and goes back to its own rows."""
    there, large = kit.cohort(fleet, key), server.large
    if kit.cfg.exchange_epochs:
        x = public_rows(kit, key)
        up = fleet.exchange(Message(Op.PREDICT, {"x": x}), devices=there, key=key)
        if not len(up):
            return server, {}
        weight = kit.cfg.large_weight
        consensus = (up.tree["logits"].sum(0) + weight * answers(kit, large, x)) / (len(up) + weight)
        there = fleet.exchange(digest(kit, x, consensus), devices=up.devices, key=key).devices
        large = distil_large(kit, large, x, consensus, key)
    back = fleet.exchange(kit.fit({}, train="whole", send="none"), devices=there, key=key)
    return Server({}, large), mean_loss(back) if len(back) else {}


def work_feddf(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="FTL",
    work=work_feddf,
    direction="both ways",
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
)
FEDDF = _kin(
    name="feddf",
    title="the ensemble of tiny models teaches their average and the large model",
    source="Lin et al. 2020",
    init=init_feddf,
    round=round_feddf,
    evaluate=evaluate_shared,
    check=whole_models_only,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
FEDMD = _kin(
    name="fedmd",
    title="all models learn the mean of their logits on public rows",
    source="Li and Wang 2019",
    init=init_fedmd,
    round=round_fedmd,
    evaluate=evaluate_own,
    up=(Kind.LOGITS,),
    down=(Kind.EXAMPLES, Kind.LOGITS),
    differs="model",
    engines=SIMULATED,
)
