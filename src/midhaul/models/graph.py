"""The graph of a module's forward pass, and where it can be cut in two."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from midhaul.errors import SliceError
from midhaul.models import trace
from midhaul.tracing import Tracer

_BATCHES = (2, 3)  # the pass is run on so many rows, to tell batch sizes from numbers that never change


@dataclass(frozen=True)
class Traced:
    """A forward pass as a graph over a copy of the module.

    `ends` are the nodes that layers and blocks give last, in the order they are made; `values` is what each node gave
    for each of two batch sizes: the shape and dtype of a tensor, or the value itself.
    """

    owner: nn.Module
    graph: fx.Graph
    ends: dict[str, fx.Node]
    values: dict[fx.Node, tuple[Any, Any]]
    example: Tensor

    @property
    def input(self) -> fx.Node:
        """The node of the input."""
        nodes: list[fx.Node] = [node for node in self.graph.nodes if node.op == "placeholder"]
        return nodes[0]

    @property
    def output(self) -> fx.Node:
        """The node of the output."""
        nodes: list[fx.Node] = [node for node in self.graph.nodes if node.op == "output"]
        return nodes[0]

    def parameters(self, nodes: set[fx.Node]) -> set[int]:
        """Gives the identities of the parameters that some nodes use."""
        found: set[int] = set()
        for node in nodes:
            if node.op == "call_module":
                found.update(id(p) for p in self.owner.get_submodule(str(node.target)).parameters())
            elif node.op == "get_attr":
                value = _attribute(self.owner, str(node.target))
                if isinstance(value, nn.Parameter):
                    found.add(id(value))
        return found


@dataclass(frozen=True)
class Halves:
    """The nodes on the two sides of a cut; `sizes` are those behind it that are known without the input."""

    at: fx.Node
    front: set[fx.Node]
    rear: set[fx.Node]
    sizes: dict[fx.Node, Any]


class _Row:
    """Stands for the number of rows of the batch."""


class _Tracer(Tracer):
    """Traces the calls of layers; `shallow` takes every module but a Sequential for one layer."""

    def __init__(self, shallow: bool) -> None:
        super().__init__()
        self.shallow = shallow
        self.ends: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return trace.is_layer(m) or (self.shallow and not isinstance(m, nn.Sequential))

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            name = self.path_of_module(m)
            self.ends.pop(name, None)
            self.ends[name] = out.node
        return out

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # One input; what else the forward pass takes keeps its default.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n.name] = (value.dtype, *value.shape) if isinstance(value, Tensor) else value
        return value


def read(module: nn.Module, input_shape: tuple[int, ...]) -> Traced:
    """Gives the graph of a module's forward pass.

    Raises: SliceError if its forward can't be traced, or does other things in training than in evaluation outside of
    its layers.
    """
    example, _ = (trace.example(module, input_shape, num_rows) for num_rows in _BATCHES)
    owner = copy.deepcopy(module)
    owner.eval()
    tracer, graph = _traced(owner)
    owner.train()
    if str(_traced(owner)[1]) != str(graph):
        raise SliceError(
            f"the forward pass of {type(module).__name__} differs between training and evaluation outside of its "
            "layers (F.dropout or F.batch_norm, perhaps); use nn.Dropout and nn.BatchNorm layers instead"
        )
    owner.eval()
    runs = []
    for num_rows in _BATCHES:
        shapes = _Shapes(fx.GraphModule(owner, graph))
        with torch.no_grad():
            shapes.run(example.new_zeros((num_rows, *input_shape)))
        runs.append(shapes.seen)
    values = {node: (runs[0].get(node.name), runs[1].get(node.name)) for node in graph.nodes}
    for part, whole in zip(owner.modules(), module.modules(), strict=True):
        part.training = whole.training
    return Traced(owner, graph, {n: _unpacked(node, values) for n, node in tracer.ends.items()}, values, example)


def halves(traced: Traced, at: fx.Node, *, bare: bool = False) -> Halves | str:
    """Gives the two sides of a cut behind a node, or why it is no cut. A `bare` rear may have nothing to train."""
    shapes = traced.values[at]
    if not _is_activation(shapes):
        return "its output isn't one float tensor with a row for each example"
    front, _ = _behind(traced, at)
    if traced.input not in front:
        return "its output doesn't depend on the input"
    rear, sizes = _behind(traced, traced.output, stop=at)
    if traced.input in rear:
        return "what comes after it uses more than its output"
    first, second = traced.parameters(front), traced.parameters(rear)
    if first & second:
        return "a layer before it is used again after it"
    if not first or not (second or bare):
        return f"there is nothing to train {'after' if first else 'before'} it"
    return Halves(at, front, rear, sizes)


def split(traced: Traced, sides: Halves) -> tuple[nn.Module, nn.Module]:
    """Gives the two sides as modules whose parameters keep their names and their order."""
    front, rear = fx.Graph(), fx.Graph()
    before: dict[fx.Node, Any] = {}
    _copy(traced.graph, sides.front, front, before)
    front.output(before[sides.at])
    h = rear.placeholder("h")
    after: dict[fx.Node, Any] = {**sides.sizes, sides.at: h}
    if any(_has_row(value) for value in sides.sizes.values()):
        num_rows = rear.call_method("size", (h, 0))
        after.update({node: _with_rows(value, num_rows) for node, value in sides.sizes.items()})
    _copy(traced.graph, sides.rear - {traced.output}, rear, after)
    rear.output(_resolve(traced.output.args[0], after))
    return _part(traced.owner, front, "Front"), _part(traced.owner, rear, "Rear")


def _copy(whole: fx.Graph, chosen: set[fx.Node], part: fx.Graph, seen: dict[fx.Node, Any]) -> None:
    for node in whole.nodes:
        if node in chosen:
            args, kwargs = _resolve(node.args, seen), _resolve(node.kwargs, seen)
            seen[node] = part.create_node(node.op, node.target, args, kwargs, node.name)


def _traced(owner: nn.Module) -> tuple[_Tracer, fx.Graph]:
    first: Exception | None = None
    for shallow in (False, True):
        tracer = _Tracer(shallow)
        try:
            return tracer, tracer.trace(owner)
        except Exception as error:  # a user's own forward may raise anything
            first = first or error
    raise SliceError(
        f"the forward pass of {type(owner).__name__} can't be traced ({' '.join(str(first).split())}); "
        "write it as an nn.Sequential, or without branches that depend on the input"
    )


def _unpacked(node: fx.Node, values: dict[fx.Node, tuple[Any, Any]]) -> fx.Node:
    """Gives the first of a tuple, for a layer such as nn.GRU of whose outputs only the first is used."""
    users = [user for user in node.users if user.users]
    if isinstance(values[node][0], tuple) and not _is_shape(values[node][0]) and len(users) == 1:
        user = users[0]
        if user.op == "call_function" and user.args[1:] == (0,):
            return user
    return node


def _behind(traced: Traced, last: fx.Node, stop: fx.Node | None = None) -> tuple[set[fx.Node], dict[fx.Node, Any]]:
    """Gives the nodes that `last` needs, up to `stop`.

    With a `stop`, the sizes that are known without the input are given apart, and need nothing.
    """
    found: set[fx.Node] = set()
    sizes: dict[fx.Node, Any] = {}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node in found or node is stop:
            continue
        known = _size(*traced.values[node]) if stop is not None and _reads_sizes(node) else None
        if known is not None:
            sizes[node] = known
            continue
        found.add(node)
        waiting.extend(node.all_input_nodes)
    return found, sizes


def _reads_sizes(node: fx.Node) -> bool:
    """Tells whether a node gives a tensor's sizes, or what is reckoned from such."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return bool(node.all_input_nodes) and all(_reads_sizes(source) for source in node.all_input_nodes)


def _size(one: Any, other: Any) -> Any:
    """Gives a number, or a shape, that is the same for both batch sizes or is the batch size; else None."""
    if isinstance(one, int) and isinstance(other, int):
        if (one, other) == _BATCHES:
            return _Row()
        return one if one == other else None
    if isinstance(one, torch.Size) and isinstance(other, torch.Size):
        parts = tuple(_size(a, b) for a, b in zip(one, other, strict=True)) if len(one) == len(other) else (None,)
        return None if any(part is None for part in parts) else parts
    return None


def _is_shape(value: Any) -> bool:
    """Tells whether a noted value is that of a tensor: its dtype and its sizes."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], torch.dtype)


def _is_activation(values: tuple[Any, Any]) -> bool:
    one, other = values
    if not _is_shape(one) or not _is_shape(other) or not one[0].is_floating_point:
        return False
    return len(one) > 2 and (one[1], other[1]) == _BATCHES and one[2:] == other[2:]


def _has_row(value: Any) -> bool:
    return isinstance(value, _Row) or (isinstance(value, tuple) and any(_has_row(part) for part in value))


def _with_rows(value: Any, num_rows: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_rows(part, num_rows) for part in value)
    return num_rows if isinstance(value, _Row) else value


def _resolve(value: Any, seen: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(value, lambda node: seen[node])


def _part(owner: nn.Module, graph: fx.Graph, name: str) -> nn.Module:
    graph.lint()
    part = fx.GraphModule(owner, graph, name)
    _reorder(part, owner)
    for layer in part.modules():
        # The first layer behind a cut may not overwrite what it was given.
        if getattr(layer, "inplace", False):
            vars(layer)["inplace"] = False
    return part


def _reorder(part: nn.Module, owner: nn.Module) -> None:
    """Puts the parts of a module in the order that they have in the whole."""
    for mine, whole in ((part._modules, owner._modules), (part._parameters, owner._parameters)):
        held: dict[str, Any] = dict(mine)
        mine.clear()
        mine.update({name: held.pop(name) for name in whole if name in held})
        mine.update(held)
    for name, child in part.named_children():
        whole_child = owner._modules.get(name)
        if whole_child is not None and child is not whole_child:
            _reorder(child, whole_child)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
