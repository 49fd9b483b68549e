"""Federated foundation models (FFM): low-rank adapters are trained on the devices; the model that they adapt stays.

fedit: Zhang et al., "Towards building the federatedGPT: federated instruction tuning", ICASSP 2024, algorithm 1: A and
B are averaged, each by itself, which is not the average of what they do together. flexlora: Bai et al., "Federated
fine-tuning of large language models under heterogeneous tasks and client resources", NeurIPS 2024, algorithm 1: the
products are averaged, and factored again by the singular value decomposition. hetlora: Cho et al., "Heterogeneous LoRA
for federated fine-tuning of on-device foundation models", EMNLP 2024, algorithm 1: adapters of mixed ranks are padded
with zeros and weighed by the norms of their products; its pruning of ranks is left out.

`scheme.beside` names what is trained with the adapters, a new head say; it is averaged as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from midhaul import rng, tree
from midhaul.config import SchemeConfig
from midhaul.errors import ConfigError
from midhaul.fleet import Fleet
from midhaul.kit import PROPERTIES, SIMULATED, Kit, Scheme
from midhaul.lora import Upload, evaluate, init, sliced, train_adapters, work
from midhaul.models import adapters
from midhaul.server import Server
from midhaul.tree import Tree

Merge = Callable[[Upload, int, SchemeConfig], Tree]


def init_alike(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Every device is given the model. Raises: ConfigError where adapters of different ranks would be averaged."""
    ranks = sorted({group.rank for group in kit.groups})
    if len(ranks) > 1:
        raise ConfigError(
            f"FedIT averages adapters of one rank, and the boards would have ranks {ranks[0]} to {ranks[-1]}; set "
            "tiny.lora_rank, or choose flora, flexlora or hetlora"
        )
    return init(fleet, kit, key)


def averaged(up: Upload, rank: int, cfg: SchemeConfig) -> Tree:
    """FedIT: the mean of the As and the mean of the Bs."""
    return tree.weighted_mean(tree.stack(up.parts), torch.tensor(up.shares, dtype=torch.float64))


def factored(up: Upload, rank: int, cfg: SchemeConfig) -> Tree:
    """FlexLoRA: the adapters nearest to the mean of the products."""
    return adapters.factored(adapters.products(adapters.stacked(up.parts, up.shares)), rank)


def weighed(up: Upload, rank: int, cfg: SchemeConfig) -> Tree:
    """HetLoRA: the mean of the padded adapters, weighed by the norms of the devices' products (or by examples)."""
    weight = torch.tensor(up.shares, dtype=torch.float64)
    if cfg.rank_weight == "norm":
        squares = [sum(change.square().sum() for change in adapters.products(part).values()) for part in up.parts]
        weight = torch.tensor(squares, dtype=torch.float64).sqrt() + 1e-12  # perhaps nobody changed anything
    return tree.weighted_mean(tree.stack([adapters.padded(part, rank) for part in up.parts]), weight)


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, merge: Merge) -> tuple[Server, dict[str, float]]:
    """One round: adapters out, trained, back, and merged into the next ones; the model under them stays."""
    part = tree.select(server.tree, kit.program.names(sliced(kit.cfg)))
    up = train_adapters(fleet, kit, key, part, kit.cohort(fleet, key))
    if up is None:
        return server, {}
    return Server({**server.tree, **merge(up, adapters.rank_of(part), kit.cfg), **up.beside}), up.metrics


_kin = partial(
    Scheme,
    family="FFM",
    evaluate=evaluate,
    work=work,
    direction="large to tiny",
    engines=SIMULATED,
    differs="rank",
    admits=("cohort", "stragglers", "dropout", "weighting"),
)
FEDIT = _kin(
    name="fedit",
    title="federated LoRA, adapters averaged",
    source="Zhang et al. 2024",
    init=init_alike,
    round=partial(round, merge=averaged),
    admits=PROPERTIES,
)
FLEXLORA = _kin(
    name="flexlora",
    title="federated LoRA, averaged product factored by SVD",
    source="Bai et al. 2024",
    init=init,
    round=partial(round, merge=factored),
    redeals=True,
)
HETLORA = _kin(
    name="hetlora",
    title="federated LoRA, mixed ranks padded with zeros",
    source="Cho et al. 2024",
    init=init,
    round=partial(round, merge=weighed),
    redeals=True,
)
