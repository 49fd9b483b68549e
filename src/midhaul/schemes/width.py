"""Devices of unlike width in one federation: each trains as many channels of the model as its board has room for.

heterofl: Diao, Ding and Tarokh, "HeteroFL: computation and communication efficient federated learning for heterogeneous
clients", ICLR 2021, algorithm 1: a narrower model holds the leading channels of each layer, and each entry of the
server's model becomes the mean of the devices that hold it. fedrolex: Alam, Liu, Yan and Zhang, "FedRolex:
model-heterogeneous federated learning with rolling sub-model extraction", NeurIPS 2022, algorithm 1: the window of
channels moves on by one each round, so that every part of the server's model is trained, though no device holds it all.

HeteroFL's static batch norm is group norm here (`tiny.norm = "group"`), whose statistics are the example's own; a
narrower model keeps the size of its groups. The paper's scaler, which a norm behind each layer undoes, is not there.
"""

from __future__ import annotations

from functools import partial

from midhaul import rng
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet, Group
from midhaul.kit import SIMULATED, Kit, Scheme, Work, mean_loss
from midhaul.message import Message, Op, Replies, join
from midhaul.models.window import Window, blocks, mean_of_holders, take_window, window
from midhaul.server import Server


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server draws the whole model; devices get their part of it each round."""
    return Server(kit.program.initial)


def windows(groups: list[Group], kit: Kit, key: rng.Key, *, rolls: bool) -> list[Window]:
    """Gives the places of each group's model in the whole one: the leading channels, or those of this round."""
    whole = kit.program
    size = blocks(whole.module, whole.input_shape)
    start = max(key.round - 1, 0) if rolls else 0
    return [window(whole.initial, group.program.initial, size, start) for group in groups]


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, rolls: bool) -> tuple[Server, dict[str, float]]:
    """One round: each device trains its part of the model, and each entry is the mean of those that held it."""
    cohort = kit.alike(kit.cohort(fleet, key))
    places = windows([group for group, _ in cohort], kit, key, rolls=rolls)
    parts = [
        (kit.fit(take_window(server.tree, own), train="whole", send="whole"), devices)
        for own, (_, devices) in zip(places, cohort, strict=True)
    ]
    ups = fleet.exchange_parts(parts, key=key)
    back = [(own, up.tree, up.weight) for own, up in zip(places, ups, strict=True) if len(up)]
    if not back:
        return server, {}
    return Server(mean_of_holders(server.tree, back)), mean_loss(*ups)


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, rolls: bool) -> Replies:
    """Tests on every test device the part of the model that it has room for; new ones have scheme.test_width."""
    tests = kit.alike(fleet.test_devices)
    places = windows([group for group, _ in tests], kit, key, rolls=rolls)
    parts = [
        (Message(Op.EVALUATE, take_window(server.tree, own), settings={"rows": "test", "loss": kit.cfg.loss}), devices)
        for own, (_, devices) in zip(places, tests, strict=True)
    ]
    return join(fleet.exchange_parts(parts, key=key))


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains all of its model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="FTL",
    init=init,
    work=work,
    direction="tiny to tiny",
    engines=SIMULATED,
    differs="width",
    redeals=True,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
HETEROFL = _kin(
    name="heterofl",
    title="each device trains the leading channels that its board has room for",
    source="Diao et al. 2021",
    round=partial(round, rolls=False),
    evaluate=partial(evaluate, rolls=False),
)
FEDROLEX = _kin(
    name="fedrolex",
    title="HeteroFL with a window of channels that rolls on each round",
    source="Alam et al. 2022",
    round=partial(round, rolls=True),
    evaluate=partial(evaluate, rolls=True),
)
