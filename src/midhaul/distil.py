"""What the two-way schemes share: knowledge that moves between models as logits on public rows, without labels.

Shape letters: N public rows, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from midhaul import rng, selfsupervised, tree
from midhaul.errors import ConfigError
from midhaul.fleet import Fleet
from midhaul.kit import Kit, ask_all, learned
from midhaul.message import Message, Op, Replies
from midhaul.program import Program
from midhaul.server import Optimizer, parameter_names, predict, train
from midhaul.tree import Tree


def whole_models_only(kit: Kit) -> None:
    """Refuses a tiny model that the server can't run. Raises: ConfigError."""
    if kit.program.personal:
        raise ConfigError(
            f"the scheme {kit.cfg.name} runs the devices' models on the server, but with tiny.norm = 'fedbn' their "
            "statistics stay on the devices; set tiny.norm = 'group'"
        )


def begin_tiny(kit: Kit, program: Program, key: rng.Key) -> Tree:
    """Gives a tiny model's tree: as drawn or, with `scheme.large_start` = labelled, trained on the public rows."""
    if kit.cfg.large_start != "labelled":
        return program.initial
    taught = learned(kit, program.module, _stream(key, 1), "the tiny model learns")
    return {name: taught[name] for name in program.initial}


def load_each(fleet: Fleet, kit: Kit, key: rng.Key) -> None:
    """Loads on every device the tiny model that it holds, as it begins."""
    for group, devices in kit.alike(fleet.devices):
        ask_all(fleet, Message(Op.LOAD, begin_tiny(kit, group.program, key)), key, devices)


def begin_large(kit: Kit, key: rng.Key) -> Tree:
    """Gives the large model's tree as `scheme.large_start` has it begin.

    drawn: as it was built. self_supervised: its body has learned from the public rows without their labels, its head is
    as drawn. labelled: it has learned from the public rows and their labels.
    """
    large, whole = kit.server_model(), tree.of(kit.server_model())
    if kit.cfg.large_start == "labelled":
        return learned(kit, large, _stream(key, 0), "the large model learns")
    if kit.cfg.large_start == "self_supervised":
        whole |= selfsupervised.contrast(
            large,
            kit.program.input_shape,
            kit.public.x,
            kit.optimizer(),
            epochs=kit.config.large.epochs,
            batch=kit.config.large.batch,
            key=_stream(key, 0),
            augment=kit.augment,
            progress=kit.progress,
        )
    return whole


def public_rows(kit: Kit, key: rng.Key) -> Tensor:
    """Gives the public rows of a round: `scheme.exchange_rows` of them, drawn anew each round, or all."""
    num, everyone = kit.cfg.exchange_rows, len(kit.public)
    if not num or num >= everyone:
        return kit.public.x
    chosen = rng.choose(_stream(key, 255), num, range(everyone))
    return kit.public.x[torch.tensor(chosen)]


def digest(kit: Kit, x: Tensor, logits: Tensor) -> Message:
    """Gives the message that has devices train towards logits on public rows, and keep what they learned."""
    cfg = kit.cfg
    settings = {"epochs": cfg.exchange_epochs, "temperature": cfg.temperature, "soft_weight": 1.0}
    return kit.fit({"x": x, "logits": logits}, train="whole", send="none", **settings)


def ensemble(kit: Kit, up: Replies, x: Tensor) -> Tensor:
    """Gives the mean of the logits of the models that devices sent. Shapes: x [N, ...] -> [N, C].

    Source: Lin, Kong, Stich and Jaggi, NeurIPS 2020, equation 2 (AVGLOGITS).
    """
    module = kit.program.module
    held = tree.of(module)
    return torch.stack([predict(module, {**held, **reply.tree}, x) for _, reply in up]).mean(0)


def distil_tiny(kit: Kit, whole: Tree, x: Tensor, logits: Tensor, key: rng.Key, turn: int) -> Tree:
    """Gives the tiny model after it has learned on the server to answer so. Shapes: x [N, ...], logits [N, C]."""
    optimizer = Optimizer("adam", kit.cfg.distill_lr)
    module = kit.program.module
    after = _distilled(kit, module, {**tree.of(module), **whole}, x, logits, optimizer, _stream(key, turn))
    return {name: after[name] for name in whole}


def distil_large(kit: Kit, whole: Tree, x: Tensor, logits: Tensor, key: rng.Key, *, head: bool = False) -> Tree:
    """Gives the large model after it (or its `head` alone) learned to answer so. Shapes: x [N, ...], logits [N, C]."""
    module = kit.server_model()
    only = selfsupervised.head_names(module, kit.program.input_shape) if head else ()
    return _distilled(kit, module, whole, x, logits, kit.optimizer(), _stream(key, 0), only)


def answers(kit: Kit, large: Tree, x: Tensor) -> Tensor:
    """Gives the large model's logits. Shapes: x [N, ...] -> [N, C]."""
    return predict(kit.server_model(), large, x)


def _distilled(
    kit: Kit,
    module: nn.Module,
    whole: Tree,
    x: Tensor,
    logits: Tensor,
    optimizer: Optimizer,
    key: rng.Key,
    only: tuple[str, ...] = (),
) -> Tree:
    """Trains towards logits alone: a row has no label. What is changed for the pupil (`large.rotate_deg`) isn't for the
    teacher, as in Xie et al., "Self-training with noisy student improves ImageNet classification", CVPR 2020."""
    after, _, _ = train(
        module,
        whole,
        x,
        torch.full((len(x),), -1),
        optimizer,
        epochs=kit.cfg.exchange_epochs,
        batch=kit.config.large.batch,
        key=key,
        soft=logits,
        temperature=kit.cfg.temperature,
        soft_weight=1.0,
        only=only or parameter_names(module),
        augment=kit.augment,
    )
    return after


def _stream(key: rng.Key, turn: int) -> rng.Key:
    """Gives the random numbers of one of the trainings of a round."""
    return rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC).at(turn << 16)
