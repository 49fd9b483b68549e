"""Low-rank adapters: a layer's weight W becomes W + (alpha / rank) B A, of which only A and B are trained.

What federated schemes do with the adapters of many devices is at the end: the sum of their products, stacking, the
singular value decomposition, and fewer or more rows of rank. An adapter tree holds `LAYER.lora_a` and `LAYER.lora_b`.

Source: Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, section 4.1.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import rng
from midhaul.errors import ModelError, nearest
from midhaul.models import trace
from midhaul.tree import Tree

A, B = ".lora_a", ".lora_b"


class LoRALinear(nn.Module):
    """A linear layer with an adapter. Shapes: [B, ..., in] -> [B, ..., out]; lora_a [rank, in], lora_b [out, rank]."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.zeros(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * change

    def merged(self) -> nn.Module:
        """Gives the plain layer that computes the same."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0], self.bias is not None)
        return _plain(layer, self.weight + self.scale * self.lora_b @ self.lora_a, self.bias)


class LoRAConv1x1(nn.Module):
    """A convolution with a kernel of 1 and an adapter. Shapes: [B, in, ...] -> [B, out, ...]."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = layer.weight, layer.bias, layer.stride
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.zeros(rank, layer.in_channels))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_channels, rank))

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = F.conv1d if self.weight.dim() == 3 else F.conv2d
        down = self.lora_a.reshape(*self.lora_a.shape, *self.weight.shape[2:])
        up = self.lora_b.reshape(*self.lora_b.shape, *self.weight.shape[2:])
        out: Tensor = conv(x, self.weight, self.bias, self.stride)
        change: Tensor = conv(conv(x, down, stride=self.stride), up)
        return out + self.scale * change

    def merged(self) -> nn.Module:
        """Gives the plain layer that computes the same."""
        kind: Any = nn.Conv1d if self.weight.dim() == 3 else nn.Conv2d
        layer = kind(self.weight.shape[1], self.weight.shape[0], 1, self.stride, bias=self.bias is not None)
        change = (self.lora_b @ self.lora_a).reshape(self.weight.shape)
        return _plain(layer, self.weight + self.scale * change, self.bias)


def add_lora(
    module: nn.Module,
    rank: int,
    alpha: float,
    targets: str | Iterable[str],
    key: rng.Key,
) -> nn.Module:
    """Gives a copy with adapters in its layers; it computes the same until they are trained, since B starts at zero.

    `targets`: `linear` for all linear layers, `all` for convolutions with a kernel of 1 as well, or the layers' names,
    in which * stands for any text, parted by commas if they are one text.
    A is drawn from a normal distribution of variance 1 / in, for each layer from a stream of its own under the key. The
    parameters keep their names; `slices.names(module, "lora")` gives those of the adapters.

    Raises: ModelError for a rank or alpha that isn't above 0, or a layer that can't have an adapter.
    """
    if rank < 1 or not alpha > 0:
        raise ModelError(f"an adapter of rank {rank} and alpha {alpha} can't be had; both must be above 0")
    module = copy.deepcopy(module)
    for place, name in enumerate(_chosen(module, targets)):
        layer: Any = module.get_submodule(name)
        wrapped = (LoRALinear if isinstance(layer, nn.Linear) else LoRAConv1x1)(layer, rank, alpha)
        width = wrapped.lora_a.shape[1]
        drawn = torch.from_numpy(rng.normal(key.at(place), rank * width)).reshape(rank, width) * width**-0.5
        wrapped.lora_a.data.copy_(drawn)
        module = trace.put(module, name, wrapped.train(layer.training))
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """Gives a copy without adapters that computes the same: each is added to its layer's weight."""
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoRALinear | LoRAConv1x1):
            module = trace.put(module, name, layer.merged().train(layer.training))
    return module


def adapted(adapters: Iterable[str]) -> tuple[str, ...]:
    """Gives the names of the layers whose adapters are among these parameters, in order.

    >>> adapted(["fc.weight", "fc.lora_a", "fc.lora_b"])
    ('fc',)
    """
    return tuple(name.removesuffix(A) for name in adapters if name.endswith(A))


def rank_of(adapters: Tree) -> int:
    """Gives the largest rank of the adapters in a tree, 0 without any."""
    return max((len(adapters[layer + A]) for layer in adapted(adapters)), default=0)


def fresh(adapters: Tree, key: rng.Key) -> Tree:
    """Gives adapters as they are before training: A drawn anew, for each layer from a stream of its own, and B zero."""
    new = {name: torch.zeros_like(value) for name, value in adapters.items()}
    for place, layer in enumerate(adapted(adapters)):
        rank, width = adapters[layer + A].shape
        drawn = torch.from_numpy(rng.normal(key.at(place), rank * width)).reshape(rank, width) * width**-0.5
        new[layer + A] = drawn.to(adapters[layer + A].dtype)
    return new


def products(adapters: Tree) -> Tree:
    """Gives B A of each layer, in double precision. Shapes: lora_a [r, in], lora_b [out, r] -> LAYER [out, in]."""
    return {layer: adapters[layer + B].double() @ adapters[layer + A].double() for layer in adapted(adapters)}


def stacked(parts: Sequence[Tree], shares: Sequence[float]) -> Tree:
    """Gives one adapter tree whose products are the sum of share x B A over the parts, whatever the rank of each.

    Shapes: part i: lora_a [r_i, in], lora_b [out, r_i] -> [sum r_i, in], [out, sum r_i].
    Source: Wang et al., "FLoRA: federated fine-tuning large language models with heterogeneous low-rank adaptations",
    NeurIPS 2024, section 3.

    >>> one = {"f.lora_a": torch.ones(1, 2), "f.lora_b": torch.ones(1, 1)}
    >>> products(stacked([one, one], [0.25, 0.5]))["f"]
    tensor([[0.7500, 0.7500]], dtype=torch.float64)
    """
    whole: Tree = {}
    for layer in adapted(parts[0]):
        whole[layer + A] = torch.cat([part[layer + A] for part in parts])
        whole[layer + B] = torch.cat([part[layer + B] * share for part, share in zip(parts, shares, strict=True)], 1)
    return whole


def absorbed(module: nn.Module, weights: Tree, adapters: Tree) -> Tree:
    """Gives `LAYER.weight` of the adapted layers after their adapters' products, of any rank, were added for good.

    Raises: ModelError for an adapter that the module's layer can't have.
    """
    new: Tree = {}
    for layer, change in products(_fitting(module, adapters)).items():
        name, scale = f"{layer}.weight", float(getattr(module.get_submodule(layer), "scale"))  # noqa: B009
        new[name] = (weights[name].double() + scale * change.reshape(weights[name].shape)).to(weights[name].dtype)
    return new


def factored(changes: Tree, rank: int) -> Tree:
    """Gives the adapters of a rank whose products are nearest to the changes, each singular value shared by B and A.

    Of the two signs of a pair of singular vectors it takes that in which the left one's largest entry is above 0. Where
    a change has fewer than `rank` singular values, the other columns of B and rows of A are zero.

    Shapes: LAYER [out, in] -> lora_a [rank, in], lora_b [out, rank], float32.
    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    """
    new: Tree = {}
    for layer, change in changes.items():
        left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
        kept = min(rank, len(values))
        left, values, right = left[:, :kept], values[:kept], right[:kept]
        # What is only rounding must not be given a direction, which would be another one on every machine.
        values = torch.where(values > values[:1] * torch.finfo(torch.float32).eps, values, 0.0)
        sign = torch.sign(left.gather(0, left.abs().argmax(0, keepdim=True)))
        root = values.sqrt()
        thin = {layer + A: (root * sign[0])[:, None] * right, layer + B: left * root * sign}
        new |= padded({name: value.float() for name, value in thin.items()}, rank)
    return new


def thinned(adapters: Tree, rank: int) -> Tree:
    """Gives the first `rank` rows of each A and columns of each B; what is no adapter stays."""
    return {
        name: value[:rank] if name.endswith(A) else value[:, :rank] if name.endswith(B) else value
        for name, value in adapters.items()
    }


def padded(adapters: Tree, rank: int) -> Tree:
    """Gives the adapters with zeros up to a rank; what is no adapter stays. Their products are the same."""
    new = dict(adapters)
    for layer in adapted(adapters):
        more = rank - len(adapters[layer + A])
        new[layer + A] = F.pad(adapters[layer + A], (0, 0, 0, more))
        new[layer + B] = F.pad(adapters[layer + B], (0, more))
    return new


def _fitting(module: nn.Module, adapters: Tree) -> Tree:
    """Gives the adapters if the module's layers can have them. Raises: ModelError."""
    layers = dict(module.named_modules())
    for layer in adapted(adapters):
        a, b, own = adapters[layer + A], adapters.get(layer + B), layers.get(layer)
        if not isinstance(own, LoRALinear | LoRAConv1x1):
            raise ModelError(f"{type(module).__name__} has no adapter at the layer {layer!r}; send those that it has")
        fits = b is not None and a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1]
        if b is None or not fits or (b.shape[0], a.shape[1]) != (own.lora_b.shape[0], own.lora_a.shape[1]):
            raise ModelError(f"an adapter of the layer {layer!r} doesn't fit it; A is [rank, in] and B is [out, rank]")
    return adapters


def _chosen(module: nn.Module, targets: str | Iterable[str]) -> list[str]:
    layers = dict(module.named_modules())
    if targets in ("linear", "all"):
        wanted = (nn.Linear,) if targets == "linear" else (nn.Linear, nn.Conv1d, nn.Conv2d)
        chosen = [name for name, layer in layers.items() if type(layer) in wanted and _fits(layer)]
        if not chosen:
            raise ModelError(f"{type(module).__name__} has no layer of the kind {targets!r} that can have an adapter")
        return chosen
    named: list[str] = []
    for target in targets.split(",") if isinstance(targets, str) else targets:
        found = fnmatch.filter(layers, target.strip())
        found = [name for name in found if _fits(layers[name])] if "*" in target else found
        if not found:
            raise ModelError(f"{type(module).__name__} has no layer {target!r}{nearest(target, layers)}")
        named += [name for name in found if name not in named]
    for name in named:
        if not _fits(layers[name]):
            raise ModelError(
                f"the layer {name!r} is a {type(layers[name]).__name__}, which can't have an adapter; "
                "name linear layers or convolutions with a kernel of 1"
            )
    return named


def _fits(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    if type(layer) not in (nn.Conv1d, nn.Conv2d):
        return False
    conv: Any = layer
    return {*conv.kernel_size} == {1} and conv.groups == 1 and {*conv.padding} == {0}


def _plain(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                layer.get_parameter(name).copy_(value)
    return layer
