"""Personal models from a shared one (FML): devices train for several steps what is good to be adapted, then average.

per_fedavg, per_fedavg_hf: FedAvg whose local steps are MAML's with one inner step, first order or with the second
derivative by finite differences (Fallah, Mokhtari and Ozdaglar, "Personalized federated learning with theoretical
guarantees: a model-agnostic meta-learning approach", NeurIPS 2020, algorithm 1 and section 5). pfedme: each device
holds a personal model near the shared one, which follows the gradient of the Moreau envelope (Dinh, Tran and Nguyen,
"Personalized federated learning with Moreau envelopes", NeurIPS 2020, algorithm 1).
"""

from __future__ import annotations

from functools import partial

from midhaul import rng, rules
from midhaul.config import SchemeConfig
from midhaul.errors import ConfigError
from midhaul.fleet import Fleet
from midhaul.kit import SIMULATED, Kit, Scheme, Work, evaluate_adapted, mean_loss, step_towards
from midhaul.message import Op, Replies, Settings
from midhaul.server import Server

Round = tuple[Server, dict[str, float]]


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server draws the first model."""
    return Server(kit.program.initial)


def init_pfedme(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The same. Raises: ConfigError where the steps towards the personal model can't end."""
    cfg = kit.cfg
    if cfg.inner_lr * cfg.moreau >= 2.0:
        raise ConfigError(
            f"pfedme diverges with scheme.inner_lr = {cfg.inner_lr:g} and scheme.moreau = {cfg.moreau:g}; "
            "make their product smaller than 2"
        )
    if not cfg.inner_steps:
        raise ConfigError("pfedme needs steps towards the personal model; set scheme.inner_steps to at least 1")
    return Server(kit.program.initial)


def one_step_ahead(cfg: SchemeConfig, *, hessian: bool) -> Settings:
    """Gives the settings of a local step of Per-FedAvg."""
    settings: Settings = {"inner_train": "whole", "inner_lr": cfg.inner_lr, "support": cfg.support}
    if hessian:
        return {**settings, "rule": "difference", "noise": cfg.difference_step}
    return {**settings, "rule": "maml", "inner_steps": 1, "order": 1}


def envelope(cfg: SchemeConfig) -> Settings:
    """Gives the settings of a local step of pFedMe."""
    settings: Settings = {"rule": "moreau", "proximal_mu": cfg.moreau}
    return {**settings, "inner_lr": cfg.inner_lr, "inner_steps": cfg.inner_steps}


def average(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, settings: Settings) -> Round:
    """A cohort trains for its epochs, or a number of steps; the server goes towards the mean of its models."""
    message = kit.fit(server.tree, train="whole", send="whole", steps=kit.cfg.local_steps, **settings)
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return (step_towards(server, up, kit, key), mean_loss(up)) if len(up) else (server, {})


def round_per_fedavg(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, hessian: bool) -> Round:
    """One round of Per-FedAvg."""
    return average(server, fleet, kit, key, one_step_ahead(kit.cfg, hessian=hessian))


def round_pfedme(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """One round of pFedMe."""
    return average(server, fleet, kit, key, envelope(kit.cfg))


def evaluate_per_fedavg(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests what each test device makes of the shared model with its own few samples."""
    return evaluate_adapted(server, fleet, kit, key, train="whole", lr=kit.cfg.inner_lr)


def evaluate_pfedme(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests each test device's personal model: SGD from the shared one, held near it by the envelope's pull."""
    cfg = kit.cfg
    near: Settings = {"lr": cfg.inner_lr, "proximal_mu": cfg.moreau, "batch": cfg.batch}
    return evaluate_adapted(server, fleet, kit, key, train="whole", **near)


def work_per_fedavg(cfg: SchemeConfig, *, hessian: bool) -> tuple[Work, ...]:
    """A device trains the whole model through one inner step, and uses the model."""
    settings = {**one_step_ahead(cfg, hessian=hessian), "batch": cfg.batch}
    return (Work(Op.FIT, "whole", rules.cost(settings)), Work(Op.PREDICT))


def work_pfedme(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains its personal model beside the shared one, and uses it."""
    return (Work(Op.FIT, "whole", rules.cost(envelope(cfg))), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="FML",
    direction="tiny to tiny",
    engines=SIMULATED,
    admits=("cohort", "stragglers", "dropout", "asynchronous"),
)
PER_FEDAVG = _kin(
    name="per_fedavg",
    title="FedAvg of what adapts well, first order",
    source="Fallah et al. 2020",
    init=init,
    round=partial(round_per_fedavg, hessian=False),
    evaluate=evaluate_per_fedavg,
    work=partial(work_per_fedavg, hessian=False),
)
PER_FEDAVG_HF = _kin(
    name="per_fedavg_hf",
    title="the same with finite differences",
    source="Fallah et al. 2020",
    init=init,
    round=partial(round_per_fedavg, hessian=True),
    evaluate=evaluate_per_fedavg,
    work=partial(work_per_fedavg, hessian=True),
)
PFEDME = _kin(
    name="pfedme",
    title="personal models tied to a shared one",
    source="Dinh et al. 2020",
    init=init_pfedme,
    round=round_pfedme,
    evaluate=evaluate_pfedme,
    work=work_pfedme,
)
