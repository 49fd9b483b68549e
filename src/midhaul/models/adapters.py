"""Low-rank adapters: a layer's weight W becomes W + (alpha / rank) B A, of which only A and B are trained.

Source: Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, section 4.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import rng
from midhaul.errors import ModelError, nearest
from midhaul.models import trace


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

    `targets`: `linear` for all linear layers, `all` for convolutions with a kernel of 1 as well, or the layers' names.
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


def _chosen(module: nn.Module, targets: str | Iterable[str]) -> list[str]:
    layers = dict(module.named_modules())
    if targets in ("linear", "all"):
        wanted = (nn.Linear,) if targets == "linear" else (nn.Linear, nn.Conv1d, nn.Conv2d)
        chosen = [name for name, layer in layers.items() if type(layer) in wanted and _fits(layer)]
        if not chosen:
            raise ModelError(f"{type(module).__name__} has no layer of the kind {targets!r} that can have an adapter")
        return chosen
    named = [targets] if isinstance(targets, str) else list(targets)
    for name in named:
        if name not in layers:
            raise ModelError(f"{type(module).__name__} has no layer {name!r}{nearest(name, layers)}")
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
