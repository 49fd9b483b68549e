"""Narrower submodels that share the leading channels of a model.

Source: Diao, Ding and Tarokh, "HeteroFL: computation and communication efficient federated learning for heterogeneous
clients", ICLR 2021, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from midhaul.errors import ModelError
from midhaul.models import trace
from midhaul.models.norm import FedBatchNorm
from midhaul.tree import Tree

Index = dict[str, tuple[slice, ...]]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def width(module: nn.Module, fraction: float, input_shape: tuple[int, ...]) -> tuple[nn.Module, Index]:
    """Gives a copy with the leading `fraction` of each layer's channels, and where its tensors lie in the whole's.

    Each layer keeps ceil(fraction x outputs); the last one keeps all of its outputs. Group norm keeps the size of its
    groups where that divides what is left, else it takes as many groups as do, at most those it had.

    Raises: ModelError for a fraction outside (0, 1], for layers that it can't narrow, and where a layer doesn't find
    the channels that are left in front.
    Limits: the submodel computes what the whole would with its other channels cut off, which is not what the whole
    computes; the paper's scaling of activations in training is not done.
    """
    if not 0.0 < fraction <= 1.0:
        raise ModelError(f"the width fraction is {fraction}; it must be above 0 and at most 1")
    narrowing = _Narrowing(module, fraction, input_shape)
    x = trace.ramp(trace.example(module, input_shape, 2))
    with trace.hooked(module, None, narrowing.narrow), trace.at_rest(module), torch.no_grad():
        wanted = module(x)
    narrow = copy.deepcopy(module)
    for name, layer in narrowing.layers.items():
        narrow = trace.put(narrow, name, layer)
    _check(module, narrow, x, wanted)
    whole = dict([*module.named_parameters(), *module.named_buffers()])
    index = {
        name: tuple(slice(0, size) for size in value.shape)
        for name, value in [*narrow.named_parameters(), *narrow.named_buffers()]
    }
    if odd := [name for name, value in whole.items() if name not in index or len(index[name]) != value.dim()]:
        raise ModelError(f"{odd[0]} isn't in the narrower model; only layers that are executed can be narrowed")
    return narrow, index


def take_width(tree: Tree, index: Mapping[str, tuple[slice, ...]]) -> Tree:
    """Gives the submodel's tensors out of the whole model's; names outside of the index are left out."""
    return {name: value[index[name]].clone() for name, value in tree.items() if name in index}


def put_width(tree: Tree, sub: Tree, index: Mapping[str, tuple[slice, ...]]) -> Tree:
    """Gives the whole model's tree with the submodel's tensors in their places."""
    merged = dict(tree)
    for name, value in sub.items():
        merged[name] = tree[name].clone()
        merged[name][index[name]] = value
    return merged


class _Narrowing:
    """Narrows the layers of a pass one by one, with NaN in place of each number that the narrow model doesn't have.

    So the marks go through whatever lies between the layers, and a layer sees which of its inputs are left.
    """

    def __init__(self, module: nn.Module, fraction: float, input_shape: tuple[int, ...]) -> None:
        self.fraction = fraction
        self.layers: dict[str, nn.Module] = {}
        trained = [c.name for c in trace.calls(module, input_shape) if any(True for _ in c.layer.parameters())]
        if not trained:
            raise ModelError(f"{type(module).__name__} has no layer with parameters to narrow")
        inside = {id(p) for layer in trace.layers(module).values() for p in layer.parameters()}
        if loose := [name for name, p in module.named_parameters() if id(p) not in inside]:
            raise ModelError(f"the parameter {loose[0]} belongs to no layer, so the model can't be narrowed")
        self.last = trained[-1]
        if repeated := [name for name in trained if trained.count(name) > 1]:
            raise ModelError(f"the layer {repeated[0]} is executed more than once, so the model can't be narrowed")

    def narrow(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not any(True for _ in layer.parameters()) and not any(True for _ in layer.buffers()):
            return None
        rule = next((rule for kinds, rule in _RULES if isinstance(layer, kinds)), None)
        if rule is None:
            raise ModelError(f"the layer {name} is a {type(layer).__name__}, which can't be narrowed")
        axis = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
        x = inputs[0]
        kept = x if isinstance(layer, nn.Embedding) else x.narrow(axis, 0, _kept(name, x, axis))
        fraction = 1.0 if name == self.last else self.fraction
        small = self.layers[name] = rule(
            name, layer, 0 if isinstance(layer, nn.Embedding) else kept.shape[axis], fraction
        )
        narrow = small(kept)
        axis = -1 if isinstance(layer, nn.Embedding) else axis
        marked = torch.full_like(output, math.nan)
        marked.narrow(axis, 0, narrow.shape[axis]).copy_(narrow)
        return marked


def _kept(name: str, x: Tensor, axis: int) -> int:
    """Gives how many leading channels aren't marked. Raises: ModelError if those that are left don't lie in front."""
    left = ~torch.isnan(x).movedim(axis, 0).reshape(x.shape[axis], -1).any(1)
    kept = int(left.sum())
    if not kept or not bool(left[:kept].all()):
        raise ModelError(
            f"the layer {name} doesn't find the channels that are left in front of its input (they are mixed or "
            "joined before it), so the model can't be narrowed"
        )
    return kept


def _linear(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    num_out = math.ceil(fraction * layer.out_features)
    small = nn.Linear(num_in, num_out, layer.bias is not None)
    return _filled(small, layer)


def _conv(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    num_out, groups = math.ceil(fraction * layer.out_channels), 1
    if layer.groups > 1:
        if layer.groups != layer.in_channels:
            raise ModelError(f"the layer {name} has {layer.groups} groups of channels, so the model can't be narrowed")
        groups, num_out = num_in, num_in * (layer.out_channels // layer.in_channels)
    small = type(layer)(
        num_in,
        num_out,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        groups,
        layer.bias is not None,
        layer.padding_mode,
    )
    return _filled(small, layer)


def _group_norm(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    size = layer.num_channels // layer.num_groups
    groups = num_in // size if num_in % size == 0 else math.gcd(num_in, layer.num_groups)
    return _filled(nn.GroupNorm(groups, num_in, layer.eps, layer.affine), layer)


def _layer_norm(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    if len(layer.normalized_shape) != 1:
        raise ModelError(f"the layer {name} normalises over more than the channels, so the model can't be narrowed")
    small = nn.LayerNorm(num_in, layer.eps, layer.elementwise_affine, layer.bias is not None)
    return _filled(small, layer)


def _channel_norm(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    small = type(layer)(num_in, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    return _filled(small, layer)


def _embedding(name: str, layer: Any, num_in: int, fraction: float) -> nn.Module:
    small = nn.Embedding(layer.num_embeddings, math.ceil(fraction * layer.embedding_dim), layer.padding_idx)
    return _filled(small, layer)


def _filled(small: nn.Module, layer: nn.Module) -> nn.Module:
    """Gives the small layer with the leading part of each tensor of the whole one."""
    whole = dict([*layer.named_parameters(), *layer.named_buffers()])
    for name, value in [*small.named_parameters(), *small.named_buffers()]:
        value.data.copy_(whole[name].detach()[tuple(slice(0, size) for size in value.shape)])
    return small.train(layer.training)


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[str, Any, int, float], nn.Module]], ...] = (
    ((nn.Linear,), _linear),
    (_CONVS, _conv),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm,), _layer_norm),
    ((_BatchNorm, _InstanceNorm, FedBatchNorm), _channel_norm),
    ((nn.Embedding,), _embedding),
)


def _check(module: nn.Module, narrow: nn.Module, x: Tensor, wanted: Tensor) -> None:
    """Runs the narrow model, which must give what the marked pass gave. Raises: ModelError if it doesn't."""
    try:
        with trace.at_rest(narrow), torch.no_grad():
            given = narrow(x)
    except RuntimeError as error:
        raise ModelError(
            f"{type(module).__name__} can't be narrowed: its forward pass wants layers of their full width "
            f"({' '.join(str(error).split())})"
        ) from None
    if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=1e-4, atol=1e-5):
        raise ModelError(
            f"{type(module).__name__} can't be narrowed: its layers use channels that its others don't give"
        )
