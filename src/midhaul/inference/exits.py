"""An early exit: a small head behind an inner layer of a model, so that easy rows need not go through the rest.

Source: Teerapittayanon, McDanel and Kung, "BranchyNet", ICPR 2016, section III; here only the exit is trained and the
model stays as it is, as in the IC-only training of Kaya, Hong and Dumitras, "Shallow-deep networks: understanding and
mitigating network overthinking", ICML 2019, section 4.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from midhaul import rng, tree
from midhaul.errors import DataError
from midhaul.kit import Kit
from midhaul.server import Optimizer, train
from midhaul.tree import Tree

EPOCHS = 60
LR = 5e-3


def head(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Gives an exit for features of this shape: ReLU, the mean over time or space, and a linear layer.

    Maps of at most 8 places keep them all instead of their mean: there is no more to save.
    """
    layers = OrderedDict[str, nn.Module](relu=nn.ReLU())
    if len(shape) > 1 and math.prod(shape[1:]) > 8:
        layers["pool"] = nn.AdaptiveAvgPool1d(1) if len(shape) == 2 else nn.AdaptiveAvgPool2d(1)
        shape = shape[:1]
    layers["flatten"], layers["exit"] = nn.Flatten(), nn.Linear(math.prod(shape), num_classes)
    return nn.Sequential(layers)


def learn(features: Tensor, kit: Kit) -> tuple[nn.Module, Tree]:
    """Gives an exit and its tree after learning the server's public labels from these features of its public rows.

    Shapes: features [N, ...], one row for each of `kit.public`.
    Raises: DataError where the server holds no public data.
    """
    if not len(kit.public):
        raise DataError("an early exit is learned on the server's public data, and this run has none; set data.public")
    start = rng.key(kit.config.run.seed, 0, rng.SERVER, rng.Use.PUBLIC).at(1 << 20)
    with rng.torch_seed(start):
        module = head(tuple(features.shape[1:]), kit.num_classes)
    batch = kit.config.large.batch
    whole, _, _ = train(
        module, tree.of(module), features, kit.public.y, Optimizer("adam", LR), epochs=EPOCHS, batch=batch, key=start
    )
    return module, whole


def own(module: nn.Module, values: Tree) -> Tree:
    """Gives a module's tree with those of these tensors in place of its own whose names it has."""
    mine = tree.of(module)
    return {**mine, **{name: value for name, value in values.items() if name in mine}}


def macs(module: nn.Module, features: Tensor) -> int:
    """Gives the MACs of an exit for one row: those of its linear layer. Shapes: features [N, ...]."""
    with torch.no_grad():
        wide = module[:-1](features[:1])  # type: ignore[index]
    return int(wide.numel()) * int(module[-1].out_features)  # type: ignore[index]
