"""A module as a chain of layers that the compiled kernels know, or why it is none.

Shape letters: C channels, H height, W width (H is 1 for a sequence, both are for a row of features).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from midhaul.errors import ModelError, SliceError
from midhaul.models import graph, trace
from midhaul.models.norm import FedBatchNorm
from midhaul.runtime.native import library
from midhaul.runtime.native.library import Layer


class Unlike(Exception):
    """What in a module the kernels don't know."""


@dataclass(frozen=True)
class Weight:
    """A parameter as the kernels read it. Shapes: [out, in, taps]."""

    name: str
    out: int
    inputs: int
    taps: int


@dataclass
class Chain:
    """The layers, the parameters they use, and the shape that comes out, as torch has it."""

    layers: list[Layer] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    @property
    def mixes_rows(self) -> bool:
        """Whether a row's output depends on the other rows of its batch, in training at least."""
        return any(layer.kind == library.NORM for layer in self.layers)

    @property
    def renewed(self) -> tuple[str, ...]:
        """The statistics that a training pass renews, by name."""
        places = [p for layer in self.layers for p in (layer.mean, layer.variance, layer.count)]
        return tuple(self.weights[place].name for place in places if place >= 0)

    @property
    def output_size(self) -> int:
        """The number of outputs of a row."""
        return math.prod(self.shape)


def of(module: nn.Module, input_shape: tuple[int, ...]) -> Chain | str:
    """Gives the chain of a module, or in one sentence why it is none."""
    try:
        if trace.is_layer(module):  # what a layer does inside is no chain of layers
            return _Reader(graph.read(nn.Sequential(module), input_shape), input_shape).chain(prefix="0.")
        return _Reader(graph.read(module, input_shape), input_shape).chain()
    except (Unlike, SliceError, ModelError) as error:
        return str(error)


class _Reader:
    """Reads a graph node by node; `c`, `h` and `w` are the extent of what the last node gave."""

    def __init__(self, traced: graph.Traced, input_shape: tuple[int, ...]) -> None:
        self.traced, self.made, self.seen = traced, Chain(), set[str]()
        self.flat = len(input_shape) == 1
        self.pad = (0, 0, 0, 0)  # top, left, bottom, right
        if len(input_shape) > 3:
            raise Unlike(f"its input has {len(input_shape)} axes")
        if traced.example.dtype != torch.float32:
            raise Unlike("its input is not of float32")
        self.c, self.h, self.w = (input_shape[0], *((1, 1, *input_shape[1:])[-2:]))

    def chain(self, prefix: str = "") -> Chain:
        """Gives the chain; the names of its parameters lose the prefix."""
        nodes = [n for n in self.traced.graph.nodes if not (n.op == "call_method" and n.target in ("size", "dim"))]
        last = nodes[0]
        if last.op != "placeholder":
            raise Unlike("it doesn't begin with its input")
        for node in nodes[1:]:
            if [source for source in node.all_input_nodes if source in nodes] != [last]:
                raise Unlike("its layers aren't a chain")
            if node.op == "output":
                break
            self._read(node)
            last = node
        if any(self.pad):
            raise Unlike("it ends with padding")
        if not self.made.layers:
            raise Unlike("it has no layers")
        shapes = self.traced.values[last][0]
        self.made.shape = tuple(shapes[2:])
        if math.prod(self.made.shape) != self.c * self.h * self.w:
            raise Unlike("its output has another shape than its layers say")
        self.made.weights = [replace(w, name=w.name.removeprefix(prefix)) for w in self.made.weights]
        return self.made

    def _read(self, node: fx.Node) -> None:
        if node.op == "call_module":
            name = str(node.target)
            layer = self.traced.owner.get_submodule(name)
            if name in self.seen:
                raise Unlike(f"the layer {name} is used twice")
            self.seen.add(name)
            if layer._forward_hooks or layer._forward_pre_hooks:
                raise Unlike(f"the layer {name} has hooks")
            self._layer(name, layer)
        elif node.target in (torch.relu, F.relu, "relu"):
            self._act(library.RELU)
        elif node.target in (torch.flatten, "flatten") and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
            self._flatten()
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise Unlike(f"it calls {target}")

    def _layer(self, name: str, layer: Any) -> None:
        kind = type(layer)
        if any(value.dtype != torch.float32 for value in layer.parameters()):
            raise Unlike(f"the layer {name} is not of float32")
        if kind is nn.Linear:
            self._linear(name, layer)
        elif kind in (nn.Conv1d, nn.Conv2d):
            self._conv(name, layer)
        elif kind is FedBatchNorm:
            self._norm(name, layer)
        elif kind is nn.GroupNorm:
            self._group_norm(name, layer)
        elif kind is nn.ReLU:
            self._act(library.RELU)
        elif kind is nn.ReLU6:
            self._act(library.RELU6)
        elif kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            self._flatten()
        elif kind in (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d):
            self._pool(name, layer)
        elif kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1,), (1, 1)):
            self._pooled(library.MEAN, (self.h, self.w), (1, 1), (0, 0))
        elif kind is nn.ZeroPad2d and min(layer.padding) >= 0 and not self.flat:
            left, right, top, bottom = layer.padding
            self.pad = tuple(map(operator.add, self.pad, (top, left, bottom, right)))
        elif not (kind is nn.Identity or (kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d) and layer.p == 0.0)):
            raise Unlike(f"the kernels have no layer {kind.__name__}")

    def _weight(self, name: str, out: int, inputs: int, taps: int) -> int:
        self.made.weights.append(Weight(name, out, inputs, taps))
        return len(self.made.weights) - 1

    def _add(self, kind: int, out_c: int, out_h: int, out_w: int, **values: Any) -> None:
        if any(self.pad) and kind not in (library.CONV, library.DEPTHWISE):
            raise Unlike("it pads the input of a layer that is no convolution")
        top, left, bottom, right = self.pad
        shape = {"in_c": self.c, "in_h": self.h, "in_w": self.w, "out_c": out_c, "out_h": out_h, "out_w": out_w}
        pads = {"pad_top": top, "pad_left": left, "pad_bottom": bottom, "pad_right": right}
        none = dict.fromkeys(("weight", "bias", "mean", "variance", "count"), -1)
        size = {"kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "end_h": out_h, "end_w": out_w}
        self.made.layers.append(Layer(kind=kind, **{**shape, **pads, **none, **size, **values}))
        self.c, self.h, self.w, self.pad = out_c, out_h, out_w, (0, 0, 0, 0)

    def _linear(self, name: str, layer: nn.Linear) -> None:
        if not self.flat:
            raise Unlike(f"the layer {name} is fully connected over one axis of several")
        taps = self.h * self.w
        weight = self._weight(f"{name}.weight", layer.out_features, layer.in_features // taps, taps)
        bias = -1 if layer.bias is None else self._weight(f"{name}.bias", layer.out_features, 1, 1)
        size = {"kernel_h": self.h, "kernel_w": self.w}
        self._add(library.CONV, layer.out_features, 1, 1, weight=weight, bias=bias, **size)

    def _conv(self, name: str, layer: Any) -> None:
        if self.flat:
            raise Unlike(f"the layer {name} is a convolution of a row without channels")
        kernel, stride = _pair(layer.kernel_size, 1), _pair(layer.stride, 1)
        deep = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
        if layer.groups != 1 and not deep:
            raise Unlike(f"the convolution {name} has groups of several channels")
        if _pair(layer.dilation, 1) != (1, 1) or layer.padding_mode != "zeros":
            raise Unlike(f"the convolution {name} is dilated or padded by other than zeros")
        if isinstance(layer.padding, str):
            around = [((k - 1) // 2, k // 2) if layer.padding == "same" else (0, 0) for k in kernel]
        else:
            around = [(size, size) for size in _pair(layer.padding, 0)]
        own = (around[0][0], around[1][0], around[0][1], around[1][1])
        self.pad = tuple(map(operator.add, self.pad, own))
        out_h = (self.h + self.pad[0] + self.pad[2] - kernel[0]) // stride[0] + 1
        out_w = (self.w + self.pad[1] + self.pad[3] - kernel[1]) // stride[1] + 1
        inputs = layer.in_channels // layer.groups
        weight = self._weight(f"{name}.weight", layer.out_channels, inputs, kernel[0] * kernel[1])
        bias = -1 if layer.bias is None else self._weight(f"{name}.bias", layer.out_channels, 1, 1)
        size = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1]}
        kind = library.DEPTHWISE if deep else library.CONV
        self._add(kind, layer.out_channels, out_h, out_w, weight=weight, bias=bias, **size)

    def _norm(self, name: str, layer: FedBatchNorm) -> None:
        if self.flat and self.h * self.w > 1:
            raise Unlike(f"the batch norm {name} is behind a flattened image")
        used = {"weight": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
        used["count"] = "num_batches_tracked"
        numbers = {
            place: self._weight(f"{name}.{own}", 1 if place == "count" else self.c, 1, 1)
            for place, own in used.items()
            if getattr(layer, own) is not None
        }
        share = -1.0 if layer.momentum is None else layer.momentum
        self._add(library.NORM, self.c, self.h, self.w, eps=layer.eps, momentum=share, **numbers)

    def _group_norm(self, name: str, layer: nn.GroupNorm) -> None:
        if self.flat and self.h * self.w > 1:
            raise Unlike(f"the group norm {name} is behind a flattened image")
        own = [place for place in ("weight", "bias") if getattr(layer, place) is not None]
        numbers = {place: self._weight(f"{name}.{place}", self.c, 1, 1) for place in own}
        self._add(library.GROUP, self.c, self.h, self.w, eps=layer.eps, groups=layer.num_groups, **numbers)

    def _act(self, act: int) -> None:
        last = self.made.layers[-1] if self.made.layers and not any(self.pad) else None
        # The largest of what ReLU gives is what ReLU gives for the largest.
        if last is None or last.act or last.pool == library.MEAN:
            self._add(library.PLAIN, self.c, self.h, self.w)
        self.made.layers[-1].act = act

    def _flatten(self) -> None:
        if any(self.pad):
            raise Unlike("it pads the input of a layer that is no convolution")
        if not self.made.layers:
            self.c, self.h, self.w = self.c * self.h * self.w, 1, 1
        self.flat = True

    def _pool(self, name: str, layer: Any) -> None:
        mean = isinstance(layer, nn.AvgPool1d | nn.AvgPool2d)
        flat = isinstance(layer, nn.MaxPool1d | nn.AvgPool1d)
        kernel, pad = _pair(layer.kernel_size, 1, flat), _pair(layer.padding, 0, flat)
        stride = kernel if layer.stride is None else _pair(layer.stride, 1, flat)
        plain = not layer.ceil_mode and not (mean and (any(pad) or getattr(layer, "divisor_override", None)))
        if self.flat or not plain or _pair(getattr(layer, "dilation", 1), 1, flat) != (1, 1) or math.prod(kernel) > 255:
            raise Unlike(f"the pool {name} has a setting that the kernels don't know")
        self._pooled(library.MEAN if mean else library.MAX, kernel, stride, pad)

    def _pooled(self, pool: int, kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]) -> None:
        last = self.made.layers[-1] if self.made.layers else None
        if last is None or last.pool or (last.act and pool == library.MEAN) or any(self.pad):
            self._add(library.PLAIN, self.c, self.h, self.w)
            last = self.made.layers[-1]
        self.h = (self.h + 2 * pad[0] - kernel[0]) // stride[0] + 1
        self.w = (self.w + 2 * pad[1] - kernel[1]) // stride[1] + 1
        last.pool, last.pool_h, last.pool_w = pool, *kernel
        last.pool_stride_h, last.pool_stride_w, last.pool_pad_h, last.pool_pad_w = *stride, *pad
        last.end_h, last.end_w = self.h, self.w


def _pair(value: Any, first: int, flat: bool = False) -> tuple[int, int]:
    """Gives a size of a layer as two; that of a layer along one axis has `first` for the axis that isn't there."""
    if isinstance(value, int):
        return (first, value) if flat else (value, value)
    return (first, int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))
