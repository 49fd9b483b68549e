"""Federated meta-learning (FML): devices learn together where to begin, so that a new one learns from its few samples.

Each device is a task (Chen, Luo, Dong, Li and He, "Federated meta-learning with fast convergence and efficient
communication", 2018, algorithm 1). A round is one step of the server along the mean of the devices' meta-gradients.
maml, fomaml: the gradient through an inner loop on the support, of the query's loss (Finn, Abbeel and Levine,
"Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017, algorithm 2; first order: section 5.2).
meta_sgd: a learned rate for each parameter as well (Li, Zhou, Chen and Li, "Meta-SGD", 2017, algorithm 1). anil: the
inner loop changes the head alone (Raghu, Raghu, Bengio and Vinyals, "Rapid learning or feature reuse?", ICLR 2020,
section 4). reptile: the step is towards where a few steps of SGD led (Nichol, Achiam and Schulman, "On first-order
meta-learning algorithms", 2018, section 3).
"""

from __future__ import annotations

from functools import partial

from midhaul import rng, rules, schedule
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


def through(cfg: SchemeConfig, *, inner: str, order: int) -> Settings:
    """Gives the settings of a step through an inner loop on the slice `inner`."""
    settings: Settings = {"rule": "maml", "order": order, "support": cfg.support}
    return {**settings, "inner_train": inner, "inner_lr": cfg.inner_lr, "inner_steps": cfg.inner_steps}


def few_steps(cfg: SchemeConfig) -> Settings:
    """Gives the settings of Reptile's plain SGD."""
    return {"lr": cfg.inner_lr, "steps": cfg.inner_steps, "momentum": 0.0}


def round_maml(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, inner: str, order: int) -> Round:
    """A cohort's devices make one step each along their meta-gradients; the server follows their mean."""
    settings = {**through(kit.cfg, inner=inner, order=order), "steps": 1}
    message = kit.fit(server.tree, train="whole", send="whole", **settings)
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return (step_towards(server, up, kit, key), mean_loss(up)) if len(up) else (server, {})


def check_reptile(kit: Kit) -> None:
    """Refuses a schedule of a rate that isn't Reptile's. Raises: ConfigError."""
    if not schedule.is_constant(kit.cfg):
        raise ConfigError(
            "reptile's devices train at scheme.inner_lr, so a schedule of scheme.lr would change nothing; set "
            "scheme.lr_schedule = 'constant', and scheme.meta_anneal = true for steps of the server that shrink"
        )


def round_reptile(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Round:
    """A cohort's devices make a few steps of SGD each; the server goes towards the mean of where they came."""
    message = kit.fit(server.tree, train="whole", send="whole", **few_steps(kit.cfg))
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    return (step_towards(server, up, kit, key), mean_loss(up)) if len(up) else (server, {})


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, inner: str) -> Replies:
    """Tests what each test device makes of the shared start with its own few samples."""
    return evaluate_adapted(server, fleet, kit, key, train=inner, lr=kit.cfg.inner_lr)


def evaluate_meta_sgd(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """The same at the learned rates."""
    rates: Settings = {"rule": "rates", "lr": 1.0, "inner_lr": kit.cfg.inner_lr}
    return evaluate_adapted(server, fleet, kit, key, train="whole", **rates)


def work(cfg: SchemeConfig, *, inner: str, order: int) -> tuple[Work, ...]:
    """A device trains the whole model through its inner loop, and uses the model."""
    settings = {**through(cfg, inner=inner, order=order), "batch": cfg.batch}
    return (Work(Op.FIT, "whole", rules.cost(settings)), Work(Op.PREDICT))


def work_reptile(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the whole model and uses it."""
    return (Work(Op.FIT, "whole"), Work(Op.PREDICT))


_kin = partial(
    Scheme,
    family="FML",
    direction="tiny to tiny",
    init=init,
    engines=SIMULATED,
    admits=("cohort", "dropout", "asynchronous"),
)


def _maml(name: str, title: str, source: str, *, inner: str, order: int) -> Scheme:
    return _kin(
        name=name,
        title=title,
        source=source,
        round=partial(round_maml, inner=inner, order=order),
        evaluate=evaluate_meta_sgd if name == "meta_sgd" else partial(evaluate, inner=inner),
        work=partial(work, inner=inner, order=order),
        rates=name == "meta_sgd",
    )


MAML = _maml("maml", "a start from which few samples are enough", "Finn et al. 2017", inner="whole", order=2)
FOMAML = _maml("fomaml", "MAML without second derivatives", "Finn et al. 2017", inner="whole", order=1)
META_SGD = _maml("meta_sgd", "MAML with a learned rate for each weight", "Li et al. 2017", inner="whole", order=2)
ANIL = _maml("anil", "MAML that adapts the head alone", "Raghu et al. 2020", inner="head", order=2)
REPTILE = _kin(
    name="reptile",
    title="towards where a few steps of SGD lead",
    source="Nichol et al. 2018",
    check=check_reptile,
    round=round_reptile,
    evaluate=partial(evaluate, inner="whole"),
    work=work_reptile,
    admits=("cohort", "stragglers", "dropout", "asynchronous"),
)
