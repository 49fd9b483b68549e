"""From a torch module to a net: the layers that a device runs, in evaluation form.

The module is read as calls of operators (exported.py), so functions are seen as well as layers. Shapes: values have no
batch axis and three others; a vector [C] is [C, 1, 1], a signal [C, L] is [C, 1, L].
"""

from __future__ import annotations

import copy
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from midhaul.errors import ModelError
from midhaul.models import exported, trace
from midhaul.models.adapters import LoRAConv1x1, LoRALinear
from midhaul.models.norm import FedBatchNorm
from midhaul.net import Array, Kind, Layer, Net, Shape, Value
from midhaul.tree import Tree

_ROWS = 2  # more than one, so that a pass that mixes rows shows in the shapes
_FUSES = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE, Kind.ADD)  # the kinds that can clamp their own output
_LINEAR = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)
_MOST_BYTE, _MOST_SIZE = 255, 65_535  # what the blob has room for: kernels, strides, paddings; axes

_ALONG_TIME = "use convolutions along time"
_NO_ATTENTION = "use convolutions, or keep attention in the server's half"
_RELU = "use ReLU or ReLU6"
_MODULES: dict[str, str] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _ALONG_TIME),
    **dict.fromkeys(("Embedding", "EmbeddingBag"), "give the device numbers instead of tokens"),
    **dict.fromkeys(("MultiheadAttention", "Transformer", "TransformerEncoderLayer"), _NO_ATTENTION),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), "use an upscaling on the server"),
    **dict.fromkeys(("Conv3d", "MaxPool3d", "AvgPool3d"), "use its 2d form"),
    **dict.fromkeys(("LayerNorm", "RMSNorm", "LocalResponseNorm"), "use GroupNorm"),
}
_CALLS: dict[str, str] = {
    **dict.fromkeys(("elu", "gelu", "silu", "selu", "celu", "mish", "leaky_relu", "prelu", "softplus"), _RELU),
    **dict.fromkeys(("tanh", "hardswish", "hardsigmoid", "threshold", "rrelu", "log_sigmoid"), _RELU),
    "sigmoid": f"{_RELU}; at the end, leave it to the loss",
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), "at the end, leave it to the loss"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _ALONG_TIME),
    **dict.fromkeys(("embedding", "embedding_bag"), "give the device numbers instead of tokens"),
    **dict.fromkeys(("scaled_dot_product_attention", "bmm"), _NO_ATTENTION),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "use an upscaling on the server"),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), "use an upscaling on the server"),
    **dict.fromkeys(("conv3d", "max_pool3d", "avg_pool3d"), "use its 2d form"),
    **dict.fromkeys(("layer_norm", "rms_norm"), "use nn.GroupNorm"),
    **dict.fromkeys(("matmul", "mm", "addmm", "einsum"), "use nn.Linear"),
    **dict.fromkeys(("cat", "stack", "concat"), "add branches instead of joining them"),
    **dict.fromkeys(("slice", "select", "narrow", "index", "split", "chunk"), "use all of what a layer gives"),
    **dict.fromkeys(("mul", "div", "sub", "rsub"), "put constants into the layer's weights or the data"),
    **dict.fromkeys(("max", "amax"), "use a max pool"),
    "sum": "use the mean",
}
_SAME = ("dropout", "feature_dropout", "alpha_dropout", "alias", "detach", "contiguous", "clone", "lift_fresh_copy")
_VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "expand", "movedim")
_ORDERS = ("permute", "transpose", "t", "numpy_T")


def translate(
    module: nn.Module,
    input_shape: tuple[int, ...],
    tree: Tree | None = None,
    *,
    fold: bool = True,
    trained: Collection[str] = (),
    upto: str = "",
) -> Net:
    """Gives the net that computes what a module computes in evaluation, or what its layer or block `upto` gives.

    `tree` holds tensors that take the place of the module's own. A batch norm is folded, with its statistics, into the
    layer before it, or becomes a depthwise layer with a kernel of 1. With `fold` off any batch norm is refused, and
    with it on one where a parameter of `trained` would be folded, since what is trained must stay as it is.

    A module that has a method `device_net` (models.int8) says itself what its net is.

    Shapes: `input_shape` without the batch.
    Raises: ModelError that names the layer that a device can't run, what it is, and what to use instead.
    """
    if isinstance(module, HasNet):
        return module.device_net(tree)
    reader = _Reader(module, input_shape, tree or {}, fold, frozenset(trained), upto)
    reader.read()
    return _Polish(reader).net()


@runtime_checkable
class HasNet(Protocol):
    """A module that knows its own net, for the tensors of a tree or for its own."""

    def device_net(self, whole: Tree | None = None) -> Net: ...


@dataclass(frozen=True)
class _Ref:
    """What a node of the graph is: a value, its shape in torch without the batch, and zeros still to be put around."""

    value: int
    shape: tuple[int, ...]
    zeros: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    zeros_by: str = ""


@dataclass(frozen=True)
class _Norm:
    """A frozen batch norm as out = scale * in + shift, of each channel."""

    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]


# What was exported of a module, while it lives: for each input shape and form of the module (its repr) its graph, its
# layers' kinds, adapters, names of tensors, and names of the nodes that are outputs.
_Export = tuple[fx.Graph, dict[str, str], dict[str, LoRALinear | LoRAConv1x1], dict[str, str], tuple[str, ...]]
_EXPORTED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[tuple[int, ...], str], _Export]] = (
    weakref.WeakKeyDictionary()
)


@dataclass
class _Reader:
    module: nn.Module
    input_shape: tuple[int, ...]
    tree: Tree
    fold: bool
    trained: frozenset[str]
    upto: str = ""
    kinds: dict[str, str] = field(default_factory=dict)  # of all modules, by name
    adapters: dict[str, LoRALinear | LoRAConv1x1] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    norms: dict[int, _Norm] = field(default_factory=dict)  # by the place of their layer
    tensors: dict[str, Array] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of parameters and buffers, by their placeholder
    refs: dict[fx.Node, _Ref] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    outputs: tuple[str, ...] = ()
    end: int = 0

    def read(self) -> None:
        graph = self._graph()
        last = self._last(graph) if self.upto else None
        for node in graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.names:
                    self.refs[node] = _Ref(self._value(self._canonical(node, self.input_shape)), self.input_shape)
            elif node.op == "output":
                self._output(node)
            elif node.op == "call_function" and node.users:
                self._call(node)
            if last is not None and node is last:
                self.end = self._plain(last, self.refs[last]).value
                break
        if not self.layers:
            raise ModelError(f"{type(self.module).__name__} has no layers for a device to run; give it one")

    def _last(self, graph: fx.Graph) -> fx.Node:
        """Gives the last node that belongs to the layer or block `upto`."""
        inside = [
            node
            for node in graph.nodes
            if node.op == "call_function" and node.users and f"{self._owner(node)[0]}.".startswith(f"{self.upto}.")
        ]
        if not inside:
            raise ModelError(f"{type(self.module).__name__} computes nothing in a layer {self.upto!r}")
        return cast(fx.Node, inside[-1])

    def _graph(self) -> fx.Graph:
        """Gives the exported graph, made once for a module: its tensors' values aren't in it."""
        made, key = _EXPORTED.setdefault(self.module, {}), (self.input_shape, repr(self.module))
        if key not in made:
            graph = self._exported()
            made[key] = (graph, self.kinds, self.adapters, self.names, self.outputs)
        graph, self.kinds, self.adapters, self.names, self.outputs = made[key]
        self.held: dict[str, torch.Tensor] = {
            **{name: value.detach() for name, value in self.module.named_parameters(remove_duplicate=False)},
            **{name: value.detach() for name, value in self.module.named_buffers(remove_duplicate=False)},
        }
        for name, value in self.tree.items():
            if name not in self.held or self.held[name].shape != value.shape:
                raise ModelError(f"{type(self.module).__name__} has no tensor {name!r} of shape {tuple(value.shape)}")
            self.held[name] = value.detach()
        return graph

    def _exported(self) -> fx.Graph:
        owner = copy.deepcopy(self.module).eval()
        self.kinds = {name: type(layer).__name__ for name, layer in owner.named_modules()}
        for name, kind in self.kinds.items():
            if kind in _MODULES and type(owner.get_submodule(name)).__module__.startswith("torch.nn"):
                raise _refusal(name, kind, _MODULES[kind])
        self.adapters = {n: m for n, m in owner.named_modules() if isinstance(m, LoRALinear | LoRAConv1x1)}
        for name, layer in list(owner.named_modules()):
            if isinstance(layer, LoRALinear | LoRAConv1x1):
                owner = trace.put(owner, name, _bare(layer).eval())
            elif isinstance(layer, FedBatchNorm):
                owner = trace.put(owner, name, _plain_norm(layer).eval())
        example = trace.example(owner, self.input_shape, _ROWS)
        try:
            graph, self.names, self.outputs = exported.read(owner, example)
        except Exception as error:  # a user's own forward may raise anything
            raise ModelError(
                f"the forward pass of {type(self.module).__name__} can't be exported ({_one_line(error)}); "
                "write it as an nn.Sequential, or without branches that depend on the input"
            ) from None
        return graph

    def _call(self, node: fx.Node) -> None:
        op = _op(node)
        shape = self._shape(node)
        act: Callable[[fx.Node, _Ref, tuple[int, ...]], _Ref] | None = self._acts().get(op)
        if act is None:
            self._refuse(node, _CALLS.get(op, "docs/export.md lists what a device runs"))
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in self.refs:
            self._refuse(node, "give it what the layers before it computed from the input")
        self.refs[node] = act(node, self.refs[source], shape)

    def _acts(self) -> dict[str, Callable[[fx.Node, _Ref, tuple[int, ...]], _Ref]]:
        return {
            **dict.fromkeys(("linear",), self._linear),
            **dict.fromkeys(("conv1d", "conv2d", "convolution"), self._conv),
            **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), self._batch_norm),
            **dict.fromkeys(("group_norm", "instance_norm"), self._group_norm),
            **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"), self._pool),
            **dict.fromkeys(
                ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
                self._adaptive,
            ),
            "mean": self._mean,
            **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"), self._clamp),
            "add": self._add,
            **dict.fromkeys(("pad", "constant_pad_nd"), self._pad),
            **dict.fromkeys(_SAME, self._same),
            "_to_copy": self._same,
            "to": self._same,
            **dict.fromkeys(_VIEWS, self._view),
            **dict.fromkeys(_ORDERS, self._order),
            "getitem": self._first,
        }

    # What each call becomes.

    def _linear(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        if len(shape) != 1:
            self._refuse(node, "flatten before it, or use a convolution with a kernel of 1 for each position")
        given = _given(node)
        return self._weighted(node, Kind.DENSE, self._plain(node, source), shape, given["weight"], given["bias"])

    def _conv(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given, axes, channels = _given(node), len(shape) - 1, source.shape[0]
        if given.get("transposed"):
            self._refuse(node, _CALLS["conv_transpose2d"], "transposed")
        groups = given["groups"]
        if groups not in (1, channels):
            self._refuse(node, f"give it groups = 1, or as many as its input has channels ({channels})", "in groups")
        kernel = (1, *self._tensor(node, given["weight"]).shape[2:])[-2:]
        dilation = _pair(given["dilation"], axes, 1)
        zeros = _same_padding(kernel, dilation) if given["padding"] == "same" else _sides(given["padding"], axes)
        return self._weighted(
            node,
            Kind.CONV if groups == 1 else Kind.DEPTHWISE,
            source,
            shape,
            given["weight"],
            given["bias"],
            kernel=kernel,
            stride=_pair(given["stride"], axes, 1),
            padding=_sum(source.zeros, zeros),
            dilation=dilation,
            groups=groups,
        )

    def _batch_norm(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given = _given(node)
        roles = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (
            None if given[role] is None else self._tensor(node, given[role]).astype(np.float64) for role in roles
        )
        if given.get("training") or mean is None or var is None:
            self._refuse(node, "give it running statistics, or use norm = group")
        parameters = {self._name(node, given[role]) for role in roles[:2] if given[role] is not None}
        if not self.fold or self.trained & parameters:
            self._refuse(node, "it can't be trained on a device: use norm = group")
        scale = 1.0 / np.sqrt(var + given["eps"]) * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        name, source = self._layer_name(node), self._plain(node, source)
        named = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        self.tensors[named["weight"]] = scale.astype(np.float32).reshape(-1, 1, 1, 1)
        self.tensors[named["bias"]] = shift.astype(np.float32)
        self.norms[len(self.layers)] = _Norm(scale, shift)
        return self._layer(node, Kind.DEPTHWISE, (source,), shape, groups=shape[0], weights=named)

    def _group_norm(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given = _given(node)
        if not given.get("use_input_stats", True):
            self._refuse(node, "leave out its running statistics")
        return self._layer(
            node,
            Kind.GROUP_NORM,
            (self._plain(node, source),),
            shape,
            groups=given.get("num_groups", shape[0]),
            eps=float(given["eps"]),
            weights={role: self._keep(node, given[role]) for role in ("weight", "bias") if given[role] is not None},
        )

    def _pool(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given, axes = _given(node), len(shape) - 1
        kind = Kind.MAX_POOL if _op(node).startswith("max") else Kind.AVERAGE_POOL
        own = _sides(given["padding"], axes)
        if given.get("divisor_override"):
            self._refuse(node, "leave out divisor_override")
        if kind == Kind.AVERAGE_POOL and any(own) and given["count_include_pad"]:
            source, own = self._zeros(node, source, own), (0, 0, 0, 0)
        if kind == Kind.AVERAGE_POOL or not self._never_negative(source.value):
            source = self._plain(node, source)
        window = _pair(given["kernel_size"], axes, 1)
        stride = _pair(given["stride"], axes, 1) if given["stride"] else window
        dilation = _pair(given.get("dilation", 1), axes, 1)
        zeros = list(_sum(source.zeros, own))
        have, want = self.values[source.value].shape, _canonical(shape)
        for axis in (0, 1):  # with ceil_mode the last window may reach over the edge
            last = (want[axis + 1] - 1) * stride[axis] + dilation[axis] * (window[axis] - 1) + 1
            zeros[axis + 2] = max(zeros[axis + 2], last - have[axis + 1] - zeros[axis])
        geometry: dict[str, Any] = {"kernel": window, "stride": stride, "padding": tuple(zeros), "dilation": dilation}
        return self._layer(node, kind, (source,), shape, **geometry)

    def _adaptive(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        kind = Kind.MAX_POOL if "max" in _op(node) else Kind.AVERAGE_POOL
        have, want = _canonical(source.shape), _canonical(shape)
        if have[1] % want[1] or have[2] % want[2]:
            self._refuse(node, f"choose an output size that divides its input's ({have[1]} x {have[2]})")
        window = (have[1] // want[1], have[2] // want[2])
        return self._layer(node, kind, (self._plain(node, source),), shape, kernel=window, stride=window)

    def _mean(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        rank = len(source.shape) + 1
        axes = {axis % rank for axis in _given(node)["dim"] or range(rank)}
        if axes & {0, 1}:
            self._refuse(node, "take the mean over time or space, not over channels")
        kept = tuple(1 if place + 1 in axes else size for place, size in enumerate(source.shape))
        have, want = _canonical(source.shape), _canonical(kept)
        window = (have[1] // want[1], have[2] // want[2])
        source = self._plain(node, source)
        pooled = self._layer(node, Kind.AVERAGE_POOL, (source,), kept, kernel=window, stride=window)
        return self._reshaped(node, pooled, shape)

    def _clamp(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given = _given(node)
        low, high = {"relu": (0.0, None), "relu6": (0.0, 6.0)}.get(
            _op(node), (given.get("min_val", given.get("min")), given.get("max_val", given.get("max")))
        )
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
            self._refuse(node, "clamp between two numbers")
        if not low <= 0.0 <= high:
            source = self._plain(node, source)
        inner = _inside(shape, source.zeros)
        made = self._layer(node, Kind.CLAMP, (source,), inner, low=float(low), high=float(high))
        return replace(source, value=made.value)

    def _add(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        other = self.refs.get(cast(fx.Node, node.args[1]))
        if other is None or _given(node)["alpha"] != 1:
            self._refuse(node, "add what two layers give; a constant belongs into a layer's bias", "with a constant")
        if source.shape != other.shape:
            self._refuse(node, f"both sides must have one shape, not {source.shape} and {other.shape}")
        return self._layer(node, Kind.ADD, (self._plain(node, source), self._plain(node, other)), shape)

    def _pad(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given = _given(node)
        if given.get("mode", "constant") != "constant" or given.get("value"):
            self._refuse(node, "pad with zeros")
        axes = len(source.shape) - 1
        pads = [*given["pad"], *[0] * (2 * axes + 2 - len(given["pad"]))]
        if min(pads) < 0 or any(pads[2 * axes :]) or not axes:
            self._refuse(node, "pad time or space, and by no less than 0")
        left, right, top, bottom = pads[:4] if axes == 2 else (*pads[:2], 0, 0)
        return _Ref(source.value, shape, _sum(source.zeros, (top, left, bottom, right)), self._layer_name(node))

    def _same(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        if "dropout" in _op(node) and _given(node)["train"]:
            self._refuse(node, "write it as nn.Dropout, which evaluation switches off")
        if node.meta["val"].dtype != torch.float32:
            self._refuse(node, "keep to float32")
        return source

    def _view(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        if math.prod(shape) != math.prod(source.shape):
            self._refuse(node, "keep the same numbers")
        return self._reshaped(node, self._plain(node, source), shape)

    def _order(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        given, order = _given(node), list(range(len(source.shape) + 1))
        if "dims" in given:
            order = [axis % len(order) for axis in given["dims"]]
        else:
            first, second = (given.get(name, place) % len(order) for place, name in enumerate(("dim0", "dim1")))
            order[first], order[second] = order[second], order[first]
        moved = [axis for axis in order if axis == 0 or source.shape[axis - 1] != 1]
        if moved != sorted(moved):
            self._refuse(node, "keep the order of the axes: channels, then time or space")
        return self._reshaped(node, self._plain(node, source), shape)

    def _first(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        if node.args[1] != 0:
            self._refuse(node, "use the first of what the layer gives")
        return source

    def _output(self, node: fx.Node) -> None:
        given = cast(Any, node.args[0])
        outputs = [one for one in given if isinstance(one, fx.Node) and one.name in self.outputs]
        if len(self.outputs) != 1 or len(outputs) != 1 or outputs[0] not in self.refs:
            raise ModelError(
                f"{type(self.module).__name__} gives {len(self.outputs)} outputs, or one without the input; "
                "a device runs one output of its layers"
            )
        self.end = self._plain(outputs[0], self.refs[outputs[0]]).value

    # What they share.

    def _weighted(
        self, node: fx.Node, kind: Kind, source: _Ref, shape: tuple[int, ...], weight: Any, bias: Any, **geometry: Any
    ) -> _Ref:
        pairs = (("weight", weight), ("bias", bias))
        roles = {role: self._keep(node, tensor) for role, tensor in pairs if tensor is not None}
        owner, scale = roles["weight"].rpartition(".")[0], 0.0
        if owner in self.adapters and roles["weight"] == f"{owner}.weight".lstrip("."):
            scale = float(self.adapters[owner].scale)
            for role in ("lora_a", "lora_b"):
                roles[role] = f"{owner}.{role}".lstrip(".")
                self.tensors[roles[role]] = self._held(roles[role])
        return self._layer(node, kind, (source,), shape, weights=roles, lora_scale=scale, **geometry)

    def _layer(
        self, node: fx.Node, kind: Kind, sources: tuple[_Ref, ...], shape: tuple[int, ...], name: str = "", **given: Any
    ) -> _Ref:
        for what in ("kernel", "stride", "padding", "dilation"):
            if max(given.get(what, (0,))) > _MOST_BYTE:
                self._refuse(node, f"give it a {what} of at most {_MOST_BYTE}; pool in two steps if it is a pool")
        name = name or self._layer_name(node)
        self.taken[name] += 1
        unique = name if self.taken[name] == 1 else f"{name}_{self.taken[name]}"
        out = self._value(self._canonical(node, shape))
        self.layers.append(Layer(kind, unique, tuple(source.value for source in sources), out, **given))
        return _Ref(out, shape)

    def _reshaped(self, node: fx.Node, source: _Ref, shape: tuple[int, ...]) -> _Ref:
        if self.values[source.value].shape == self._canonical(node, shape):
            return _Ref(source.value, shape)
        return self._layer(node, Kind.RESHAPE, (source,), shape)

    def _plain(self, node: fx.Node, ref: _Ref) -> _Ref:
        """Gives a value without zeros still to be put around it: a depthwise layer of ones puts them there."""
        if not any(ref.zeros):
            return ref
        name = f"{ref.zeros_by}.weight"
        self.tensors[name] = np.ones((ref.shape[0], 1, 1, 1), np.float32)
        given = {"groups": ref.shape[0], "padding": ref.zeros, "weights": {"weight": name}}
        return self._layer(node, Kind.DEPTHWISE, (ref,), ref.shape, name=ref.zeros_by, **given)

    def _zeros(self, node: fx.Node, ref: _Ref, zeros: tuple[int, int, int, int]) -> _Ref:
        """Gives a value with zeros around it."""
        top, left, bottom, right = zeros
        added = (0, top + bottom, left + right)[-len(ref.shape) :] if len(ref.shape) > 2 else (0, left + right)
        shape = tuple(a + b for a, b in zip(ref.shape, added, strict=True))
        return _Ref(ref.value, shape, _sum(ref.zeros, zeros), ref.zeros_by or f"{self._layer_name(node)}_pad")

    def _never_negative(self, value: int) -> bool:
        return any(layer.out == value and layer.kind == Kind.CLAMP and layer.low >= 0 for layer in self.layers)

    def _value(self, shape: Shape) -> int:
        self.values.append(Value(shape))
        return len(self.values) - 1

    def _canonical(self, node: fx.Node, shape: tuple[int, ...]) -> Shape:
        if not 1 <= len(shape) <= 3 or min(shape) < 1 or max(shape) > _MOST_SIZE:
            self._refuse(node, "values on a device are [C], [C, L] or [C, H, W]", f"of shape {shape}")
        return _canonical(shape)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, torch.Tensor) or value.dim() < 1 or value.shape[0] != _ROWS:
            if _op(node) in self._acts():
                self._refuse(node, "give a tensor with a row for each example, none of which depends on another")
            return ()
        return tuple(int(size) for size in value.shape[1:])

    def _name(self, node: fx.Node, tensor: Any) -> str:
        if not isinstance(tensor, fx.Node) or tensor.name not in self.names:
            self._refuse(node, "make its weight a parameter, not something that the forward pass computes")
        return self.names[tensor.name]

    def _tensor(self, node: fx.Node, tensor: Any) -> Array:
        return self._held(self._name(node, tensor))

    def _keep(self, node: fx.Node, tensor: Any) -> str:
        name = self._name(node, tensor)
        self.tensors[name] = self._held(name)
        return name

    def _held(self, name: str) -> Array:
        if name not in self.held:
            raise ModelError(f"the tensor {name!r} is a constant of the forward pass; make it a parameter or a buffer")
        value: Array = np.ascontiguousarray(self.held[name].to("cpu", torch.float32).numpy())
        return value.copy()

    def _layer_name(self, node: fx.Node) -> str:
        path, kind = self._owner(node)
        op = _op(node)
        return path if path and trace.is_layer(self._module(path)) and kind else ".".join(filter(None, (path, op)))

    def _owner(self, node: fx.Node) -> tuple[str, str]:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if not stack:
            return "", ""
        path = re.sub(r"@\d+", "", str(stack[-1][0]))
        return path, self.kinds.get(path, "")

    def _module(self, path: str) -> nn.Module:
        try:
            return self.module.get_submodule(path)
        except AttributeError:
            return nn.Sequential()

    def _refuse(self, node: fx.Node, advice: str, more: str = "") -> NoReturn:
        path, kind = self._owner(node)
        name = self._layer_name(node)
        what = kind if name == path and kind else f"call of {_op(node)}"
        raise _refusal(name, f"{what} {more}".strip(), advice)


class _Polish:
    """Folds batch norm and clamps into the layers before them, drops flattening before dense layers, numbers anew."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.layers: list[Layer | None] = list(reader.layers)
        self.tensors = reader.tensors
        self.end = reader.end

    def net(self) -> Net:
        for place, layer in enumerate(self.layers):
            if layer is None:
                continue
            if place in self.reader.norms:
                self._fold(place, layer, self.reader.norms[place])
            elif layer.kind == Kind.CLAMP:
                self._fuse(place, layer)
            elif layer.kind == Kind.DENSE:
                self._flat(place, layer)
        return self._numbered()

    def _fold(self, place: int, layer: Layer, norm: _Norm) -> None:
        at = self._alone(layer.inputs[0], _LINEAR)
        before = None if at is None else self.layers[at]
        if at is None or before is None:
            return
        own = set(before.weights.values())
        shared = any(own & set(other.weights.values()) for other in self._all() if other is not before)
        if own & self.reader.trained:
            raise _refusal(layer.name, "batch norm", f"{before.name!r} before it is trained: use norm = group")
        if shared:
            return
        roles = dict(before.weights)
        for role in ("weight", "lora_b"):
            if role in roles:
                old = self.tensors[roles[role]].astype(np.float64)
                scaled = old * norm.scale.reshape(-1, *[1] * (old.ndim - 1))
                self.tensors[roles[role]] = scaled.astype(np.float32)
        bias = self.tensors[roles["bias"]].astype(np.float64) if "bias" in roles else 0.0
        roles.setdefault("bias", roles["weight"].rpartition("weight")[0] + "bias")
        self.tensors[roles["bias"]] = (bias * norm.scale + norm.shift).astype(np.float32)
        self.layers[at] = replace(before, out=layer.out, weights=roles)
        self.layers[place] = None

    def _fuse(self, place: int, layer: Layer) -> None:
        at = self._alone(layer.inputs[0], _FUSES)
        if at is not None:
            self.layers[at] = replace(cast(Layer, self.layers[at]), out=layer.out, low=layer.low, high=layer.high)
            self.layers[place] = None

    def _flat(self, place: int, layer: Layer) -> None:
        # A dense layer takes all numbers of a map in their order, so flattening before it does nothing.
        source = layer.inputs[0]
        while (made := self._maker(source)) is not None and cast(Layer, self.layers[made]).kind == Kind.RESHAPE:
            source = cast(Layer, self.layers[made]).inputs[0]
        self.layers[place] = replace(layer, inputs=(source,))

    def _alone(self, value: int, kinds: tuple[Kind, ...]) -> int | None:
        """Gives the place of the layer that made a value that one layer reads, if it is of a kind and doesn't clamp."""
        place = self._maker(value)
        if place is None or value == self.end or sum(value in layer.inputs for layer in self._all()) != 1:
            return None
        layer = cast(Layer, self.layers[place])
        return place if layer.kind in kinds and not layer.clamps else None

    def _maker(self, value: int) -> int | None:
        return next((i for i, layer in enumerate(self.layers) if layer is not None and layer.out == value), None)

    def _all(self) -> list[Layer]:
        return [layer for layer in self.layers if layer is not None]

    def _numbered(self) -> Net:
        needed = {self.end}
        for layer in reversed(self._all()):
            if layer.out in needed:
                needed.update(layer.inputs)
        kept = [layer for layer in self._all() if layer.out in needed]
        if not kept or 0 not in needed:
            raise ModelError("the model's output doesn't come from its input by layers that a device runs")
        order = [0, *(layer.out for layer in kept)]
        number = {value: place for place, value in enumerate(order)}
        layers = tuple(
            replace(layer, inputs=tuple(number[v] for v in layer.inputs), out=number[layer.out]) for layer in kept
        )
        used = {name for layer in layers for name in layer.weights.values()}
        tensors = {name: value for name, value in self.tensors.items() if name in used}
        return Net(tuple(self.reader.values[value] for value in order), layers, tensors)


def _refusal(name: str, what: str, advice: str) -> ModelError:
    return ModelError(f"a device can't run the layer {name!r} ({what}); {advice}")


def _bare(layer: LoRALinear | LoRAConv1x1) -> nn.Module:
    """Gives the plain layer beneath an adapter, with its own weights."""
    bias = layer.bias is not None
    bare: Any
    if isinstance(layer, LoRALinear):
        bare = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias)
    else:
        kind: Any = nn.Conv1d if layer.weight.dim() == 3 else nn.Conv2d
        bare = kind(layer.weight.shape[1], layer.weight.shape[0], 1, layer.stride, bias=bias)
    bare.weight, bare.bias = layer.weight, layer.bias
    return cast(nn.Module, bare)


def _plain_norm(norm: FedBatchNorm) -> nn.Module:
    """Gives torch's batch norm, which is one call in a graph."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, 0.1, norm.affine, norm.track_running_stats)
    plain._check_input_dim = lambda input: None  # type: ignore[method-assign]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(norm, name) is not None:
            setattr(plain, name, getattr(norm, name))
    return plain


def _op(node: fx.Node) -> str:
    """Gives the name of a call: `conv2d` for aten.conv2d.default, in place or not."""
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return str(name).split(".")[0].removesuffix("_") if not str(name).startswith("__") else str(name)


def _given(node: fx.Node) -> dict[str, Any]:
    """Gives a call's arguments by the names of its schema, with the defaults of those that were left out."""
    schema = cast(Any, node.target)._schema.arguments
    found = {argument.name: argument.default_value for argument in schema}
    return found | dict(zip(found, node.args, strict=False)) | node.kwargs


def _canonical(shape: tuple[int, ...]) -> Shape:
    """Gives the three axes of a shape: [C] is [C, 1, 1], [C, L] is [C, 1, L].

    >>> _canonical((6, 128)), _canonical((10,))
    ((6, 1, 128), (10, 1, 1))
    """
    if len(shape) == 1:
        return (shape[0], 1, 1)
    return (shape[0], 1, shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])


def _pair(value: Any, axes: int, other: int) -> tuple[int, int]:
    """Gives (H, W) of what torch takes as one number or a list; for a signal H is `other`."""
    many = list(value) if isinstance(value, list | tuple) else [value]
    many = many * axes if len(many) == 1 else many
    return (many[0], many[1]) if axes == 2 else (other, many[0])


def _sides(padding: Any, axes: int) -> tuple[int, int, int, int]:
    if padding == "valid":
        return (0, 0, 0, 0)
    top, left = _pair(padding, axes, 0)
    return (top, left, top, left)


def _inside(shape: tuple[int, ...], zeros: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Gives the shape of what zeros lie around."""
    top, left, bottom, right = zeros
    around = (0, top + bottom, left + right) if len(shape) > 2 else (0, left + right)
    return tuple(size - less for size, less in zip(shape, around, strict=True)) if any(zeros) else shape


def _sum(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (a + b for a, b in zip(first, second, strict=True))
    return (top, left, bottom, right)


def _same_padding(kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    top, left = (number // 2 for number in total)
    return (top, left, total[0] - top, total[1] - left)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
