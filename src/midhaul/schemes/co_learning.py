"""The two-way loop: in each round the large model teaches the tiny ones, devices learn, and what they learned returns.

Labels are on the devices only; the server has public rows without labels. The loop is the "bidirectional integration"
of surveys on tiny and large models, put together here from published steps: the large model begins self-supervised
(`midhaul.selfsupervised`: SimCLR), teaches by logits (Hinton et al. 2015), devices learn as in FedAvg (McMahan et al.
2017), and the mean of their models' logits teaches the large one (Lin et al. 2020, equation 2).

co_learning: devices send their models, which are averaged. co_learning_logits: each device keeps its own model and
sends nothing but logits; the large model's are digested on the device.

In FedDF the ensemble of a round teaches the average of that round, and what no device says today is lost. Here the only
teacher of a tiny model is the large one, which nobody resets: it was on the public rows before any label was known, and
remembers the ensembles of all rounds. With `scheme.exchange` = teach or return one half of the loop is left out.

Where the large model starts: its body is self-supervised; its head, which must learn the names of the classes from
somebody, is fitted in `init` to what the devices say after training once. That is round 0 of a run's metrics.
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


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The large model learns without labels; a first return fits its head."""
    server = Server(begin_tiny(kit, kit.program, key), begin_large(kit, key))
    return learn(server, fleet, kit, key, head=True)[0] if is_open(kit, "return") else server


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """Teach, learn, return."""
    if is_open(kit, "teach"):
        x = public_rows(kit, key)
        tiny = distil_tiny(kit, server.tree, x, answers(kit, server.large, x), key, turn=1)
        server = Server(tiny, server.large)
    return learn(server, fleet, kit, key)


def learn(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, head: bool = False) -> Round:
    """A cohort trains and sends its models: their mean is the tiny model, their mean answer teaches the large one."""
    message = kit.fit(server.tree, train="whole", send="whole")
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    if not len(up):
        return server, {}
    large = server.large
    if is_open(kit, "return"):
        x = public_rows(kit, key)
        large = distil_large(kit, large, x, ensemble(kit, up, x), key, head=head)
    return Server(kit.mean(up.tree, up.weight), large), mean_loss(up)


def init_logits(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device loads its tiny model and trains it; a first return fits the large model's head."""
    load_each(fleet, kit, key)
    server = Server({}, begin_large(kit, key))
    return learn_logits(server, fleet, kit, key, fleet.devices, head=True)[0]


def round_logits(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """Teach, learn, return; models stay where they are."""
    there = kit.cohort(fleet, key)
    if is_open(kit, "teach"):
        x = public_rows(kit, key)
        there = fleet.exchange(digest(kit, x, answers(kit, server.large, x)), devices=there, key=key).devices
    return learn_logits(server, fleet, kit, key, there)


def learn_logits(
    server: Server, fleet: Fleet, kit: Kit, key: rng.Key, devices: tuple[int, ...], *, head: bool = False
) -> Round:
    """Devices train, keep what they learned, and say what they think of the public rows."""
    there = fleet.exchange(kit.fit({}, train="whole", send="none"), devices=devices, key=key)
    if not len(there):
        return server, {}
    if not is_open(kit, "return"):
        return server, mean_loss(there)
    x = public_rows(kit, key)
    up = fleet.exchange(Message(Op.PREDICT, {"x": x}), devices=there.devices, key=key)
    if not len(up):
        return server, mean_loss(there)
    large = distil_large(kit, server.large, x, up.tree["logits"].mean(0), key, head=head)
    return Server({}, large), mean_loss(there)


def is_open(kit: Kit, way: str) -> bool:
    """Tells whether knowledge goes that way, teach or return."""
    return kit.cfg.exchange in ("both", way) and kit.cfg.exchange_epochs > 0


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="two-way",
    source="Hinton et al. 2015; Chen et al. 2020; Lin et al. 2020",
    work=work,
    direction="both ways",
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
)
CO_LEARNING = _kin(
    name="co_learning",
    title="teach, learn on the device, return",
    init=init,
    round=round,
    evaluate=evaluate_shared,
    check=whole_models_only,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
CO_LEARNING_LOGITS = _kin(
    name="co_learning_logits",
    title="the same, and only logits travel",
    init=init_logits,
    round=round_logits,
    evaluate=evaluate_own,
    up=(Kind.LOGITS,),
    down=(Kind.EXAMPLES, Kind.LOGITS),
    differs="model",
    engines=SIMULATED,
)
