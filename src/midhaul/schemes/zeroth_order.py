"""FedKSeed: all parameters are tuned without a gradient, and what travels is a scalar for each of K seeds.

Source: Qin, Chen, Qian, Ding, Li and Deng, "Federated full-parameter tuning of billion-sized language models with
communication cost under 18 kilobytes", ICML 2024, algorithm 1 (each seed as likely as another; FedKSeed-Pro's
probabilities are left out). A device holds the first model. It is sent the sum of all slopes so far, one for each
seed's direction, and walks there; each of its steps takes the loss a little ahead and a little behind along a direction
and moves by the slope; it sends back its slopes. They count as gradients: they are derivatives along known directions.
Where rounds differ in their learning rate, the sum is told in the round's own, so that it leads to the same place.
"""

from __future__ import annotations

import torch

from midhaul import directions, rng, rules, tree
from midhaul.config import SchemeConfig
from midhaul.errors import ConfigError
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_shared, load_all, mean_loss
from midhaul.message import Kind, Op, Settings
from midhaul.server import Server


def check(kit: Kit) -> None:
    """Refuses settings that this descent doesn't have. Raises: ConfigError."""
    if kit.cfg.momentum or kit.cfg.weight_decay or kit.config.privacy.clip or kit.program.personal:
        raise ConfigError(
            "fedkseed has no momentum, weight decay, clipping or personal norms: a round is only seeds and slopes; "
            "set scheme.momentum, scheme.weight_decay and privacy.clip to 0, and tiny.norm to group"
        )


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device is given the model, once."""
    load_all(fleet, kit.program.initial, key)
    return Server(kit.program.initial, state={"seeds": {"g": torch.zeros(kit.cfg.num_seeds)}})


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """One round: the slopes so far go down, the cohort's own come up, and their mean is added."""
    held = {"g": server.state["seeds"]["g"] / kit.lr_share}
    message = kit.fit(held, train="whole", send="none", **asked(kit.cfg))
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    if not len(up):
        return server, {}
    slopes = held["g"] + kit.mean(up.tree, up.weight)["g"]
    first = tree.select(kit.program.initial, kit.program.names("whole"))
    whole = tree.map(directions.walked(first, slopes, kit.cfg.lr, key.seed), lambda value: value.float())
    return Server({**server.tree, **whole}, state={"seeds": {"g": slopes * kit.lr_share}}), mean_loss(up)


def asked(cfg: SchemeConfig) -> Settings:
    """Gives the settings of the rule."""
    return {"seeds": cfg.num_seeds, "noise": cfg.seed_step}


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device runs the model forward twice a row, and uses it."""
    return (Work(Op.FIT, "whole", rules.cost(asked(cfg))), Work(Op.PREDICT))


FEDKSEED = Scheme(
    name="fedkseed",
    title="full-parameter tuning by seeds and scalars",
    family="FFM",
    source="Qin et al. 2024",
    init=init,
    check=check,
    round=round,
    evaluate=evaluate_shared,
    work=work,
    direction="large to tiny",
    up=(Kind.GRADIENTS,),
    down=(Kind.GRADIENTS,),
    engines=SIMULATED,
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
