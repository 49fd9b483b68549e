"""A module's forward pass as calls of torch's operators, each with the layer that it belongs to.

torch.export gives it of any module, but imports torch's compiler, which takes longer than all else before a run's first
round. Of a forward pass that only calls the layers and functions below, the same graph is written down here and is run;
where it doesn't give the module's very numbers, or where anything else is called, torch.export reads the module.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from midhaul.models import trace
from midhaul.tracing import Tracer

aten = torch.ops.aten


class Exported(NamedTuple):
    """A graph of operators; the names of parameters and buffers by their placeholder; the nodes that are outputs.

    A node's meta holds `val`, what it gave, and `nn_module_stack`, the modules that it was called in.
    """

    graph: fx.Graph
    names: dict[str, str]
    outputs: tuple[str, ...]


def read(module: nn.Module, example: Tensor) -> Exported:
    """Gives the graph of a module in evaluation mode. Shapes: example [B, ...].

    Raises: whatever torch.export raises for a module that it can't read.
    """
    return by_layers(module, example) or by_compiler(module, example)


def by_compiler(module: nn.Module, example: Tensor) -> Exported:
    """Gives what torch.export reads. Raises: as `read`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (example,))
        if any(_works_in_place(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # gives each value a node of its own
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    # An input that is changed in place comes back beside what the module gives.
    return Exported(cast(fx.Graph, program.graph), names, tuple(signature.user_outputs))


def by_layers(module: nn.Module, example: Tensor) -> Exported | None:
    """Gives the same without the compiler, or None for a module that does anything else than it knows."""
    if _has_more(module):
        return None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            rows = trace.ramp(example)
            written = _Writer(module, rows).write(_Tracer().trace(module))
            if written is None or not torch.equal(written[1], module(rows)):
                return None
    except Exception:  # a user's own forward may raise anything; torch.export will tell what it makes of it
        return None
    return written[0]


def _has_more(module: nn.Module) -> bool:
    """Tells whether calling a module or reading its tensors is more than its type and its numbers say."""
    twice = [*module.named_modules(remove_duplicate=False)], [*module.named_parameters(remove_duplicate=False)]
    if any(len({id(one) for _, one in held}) < len(held) for held in twice):
        return True  # one layer, or one parameter, under two names
    parts = [part for _, part in twice[0]]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(part.training or "forward" in vars(part) or any(vars(part)[h] for h in hooks) for part in parts)


class _Tracer(Tracer):
    """Takes the layers that are known for one step each, and looks into all other modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LAYERS

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # One input; what else the forward pass takes keeps its default.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


class _Unknown(Exception):
    """A call that isn't known here."""


class _Writer:
    """Writes the operators of a traced forward pass, each as it is run on the example's rows."""

    def __init__(self, module: nn.Module, rows: Tensor) -> None:
        self.module, self.rows, self.graph = module, rows, fx.Graph()
        self.values: dict[fx.Node, Tensor] = {}
        self.names: dict[str, str] = {}
        self.held: dict[str, fx.Node] = {}
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            node = self._placeholder(f"p_{name.replace('.', '_')}", value.detach())
            self.held[name], self.names[node.name] = node, name
        self.stack: Any = None

    def write(self, traced: fx.Graph) -> tuple[Exported, Tensor] | None:
        """Gives the graph and what it gave, or None where it has more than one output. Raises: _Unknown."""
        made: dict[fx.Node, fx.Node] = {}
        for node in traced.nodes:
            self.stack = node.meta.get("nn_module_stack")
            if node.op == "output":
                last = node.args[0]
                if not isinstance(last, fx.Node):
                    return None
                out = made[last]
                self.graph.output((out,))
                return Exported(self.graph, self.names, (out.name,)), self.values[out]
            if node.op == "placeholder":
                made[node] = self._placeholder("x", self.rows)
            elif not node.users:
                raise _Unknown(node)  # torch.export leaves out what nothing comes of
            else:
                made[node] = self._written(node, [made[source] for source in node.all_input_nodes])
        return None

    def _written(self, node: fx.Node, sources: list[fx.Node]) -> fx.Node:
        if node.op == "call_module":
            if len(sources) != 1 or len(node.args) != 1 or node.kwargs:
                raise _Unknown(node)
            layer = self.module.get_submodule(str(node.target))
            return _LAYERS[type(layer)](Call(self, str(node.target), layer, sources[0]))
        if node.op == "call_function" and node.args == tuple(node.all_input_nodes):
            if node.target in (operator.add, torch.add) and len(sources) == 2 and not node.kwargs:
                return self.call(aten.add.Tensor, *sources)
            if node.target in (F.relu, torch.relu) and len(sources) == 1 and not node.kwargs.get("inplace"):
                return self.call(aten.relu.default, *sources)
        raise _Unknown(node)

    def call(self, target: Any, *args: Any) -> fx.Node:
        """Writes a call of an operator, and makes it."""
        value = target(*(self.values[one] if isinstance(one, fx.Node) else one for one in args))
        return self._noted(self.graph.call_function(target, args), value)

    def _placeholder(self, name: str, value: Tensor) -> fx.Node:
        self.stack = None
        return self._noted(self.graph.placeholder(name), value)

    def _noted(self, node: fx.Node, value: Tensor) -> fx.Node:
        self.values[node] = value
        node.meta["val"] = value.to("meta")  # its shape and dtype are all that is kept
        if self.stack:
            node.meta["nn_module_stack"] = self.stack
        return node


class Call(NamedTuple):
    """The call of a layer, while it is written."""

    writer: _Writer
    name: str
    layer: Any
    x: fx.Node

    def to(self, target: Any, *args: Any) -> fx.Node:
        """Writes it as a call of an operator on the layer's input."""
        return self.writer.call(target, self.x, *args)

    def tensor(self, role: str) -> fx.Node | None:
        """Gives a parameter or buffer of the layer, or None where it has none."""
        if getattr(self.layer, role) is None:
            return None
        if f"{self.name}.{role}" not in self.writer.held:
            raise _Unknown(role)
        return self.writer.held[f"{self.name}.{role}"]


def _linear(call: Call) -> fx.Node:
    return call.to(aten.linear.default, call.tensor("weight"), call.tensor("bias"))


def _conv(call: Call) -> fx.Node:
    layer = call.layer
    if layer.padding_mode != "zeros":
        raise _Unknown(layer)
    packet = aten.conv1d if isinstance(layer, nn.Conv1d) else aten.conv2d
    target = packet.padding if isinstance(layer.padding, str) else packet.default
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return call.to(target, call.tensor("weight"), call.tensor("bias"), *geometry)


def _batch_norm(call: Call) -> fx.Node:
    layer = call.layer
    if layer.running_mean is None or layer.running_var is None:
        raise _Unknown(layer)
    tensors = [call.tensor(role) for role in ("weight", "bias", "running_mean", "running_var")]
    return call.to(aten.batch_norm.default, *tensors, False, layer.momentum or 0.0, layer.eps, False)


def _group_norm(call: Call) -> fx.Node:
    layer = call.layer
    given = (layer.num_groups, call.tensor("weight"), call.tensor("bias"), layer.eps, False)
    return call.to(aten.group_norm.default, *given)


def _max_pool(call: Call) -> fx.Node:
    layer = call.layer
    if layer.return_indices:
        raise _Unknown(layer)
    target = aten.max_pool1d.default if isinstance(layer, nn.MaxPool1d) else aten.max_pool2d.default
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return call.to(target, *map(_listed, sizes), layer.ceil_mode)


def _average_pool(call: Call) -> fx.Node:
    layer = call.layer
    given = (*map(_listed, (layer.kernel_size, layer.stride, layer.padding)), layer.ceil_mode, layer.count_include_pad)
    if isinstance(layer, nn.AvgPool1d):
        return call.to(aten.avg_pool1d.default, *given)
    return call.to(aten.avg_pool2d.default, *given, layer.divisor_override)


def _adaptive_pool(call: Call) -> fx.Node:
    target = aten.adaptive_avg_pool1d if isinstance(call.layer, nn.AdaptiveAvgPool1d) else aten.adaptive_avg_pool2d
    size, axes = call.layer.output_size, 1 if isinstance(call.layer, nn.AdaptiveAvgPool1d) else 2
    sizes = list(size) if isinstance(size, tuple | list) else [size] * axes
    have = call.writer.values[call.x].shape[-axes:]
    return call.to(target.default, [own if own is not None else here for own, here in zip(sizes, have, strict=True)])


def _flatten(call: Call) -> fx.Node:
    return call.to(aten.flatten.using_ints, call.layer.start_dim, call.layer.end_dim)


def _unflatten(call: Call) -> fx.Node:
    return call.to(aten.unflatten.int, call.layer.dim, list(call.layer.unflattened_size))


def _zeros(call: Call) -> fx.Node:
    return call.to(aten.pad.default, list(call.layer.padding), "constant", float(call.layer.value))


def _in_place(call: Call) -> None:
    if call.layer.inplace:
        raise _Unknown(call.layer)


def _relu(call: Call) -> fx.Node:
    _in_place(call)
    return call.to(aten.relu.default)


def _clamp(call: Call) -> fx.Node:
    _in_place(call)
    return call.to(aten.hardtanh.default, call.layer.min_val, call.layer.max_val)


def _elu(call: Call) -> fx.Node:
    _in_place(call)
    return call.to(aten.elu.default, call.layer.alpha)


def _dropout(call: Call) -> fx.Node:
    _in_place(call)
    return call.to(aten.dropout.default, call.layer.p, False)


def _identity(call: Call) -> fx.Node:
    return call.x


# Of a layer of just such a type, what it calls in evaluation.
_LAYERS: dict[type[nn.Module], Callable[[Call], fx.Node]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    nn.GroupNorm: _group_norm,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), _max_pool),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d), _average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _adaptive_pool),
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d), _zeros),
    nn.ReLU: _relu,
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), _clamp),
    nn.ELU: _elu,
    nn.Dropout: _dropout,
    nn.Identity: _identity,
}


def _listed(size: Any) -> list[int]:
    return list(size) if isinstance(size, tuple | list) else [size]


def _works_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
