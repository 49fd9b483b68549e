"""What flows through a model on a device, step by step: the lifetimes of activations and of their gradients.

The device runs one example at a time (see docs/boards.md). Step i is the forward of node i of N; a training op goes
on with the loss at step N and the backward of node i at step 2N - i, down to the first node that is trained.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from midhaul.devices.arena import Buffer
from midhaul.errors import BudgetError
from midhaul.tracing import Tracer

ELEMENT_BYTES = 4  # float32, and int32 for tokens

# What an operation leaves in place or keeps for its backward. Names are lower case, without underscores and without
# the dimension: Conv1d and conv1d are "conv".
_VIEW = {"flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "identity", "dropout"}
_BY_OUTPUT = {"relu", "relu6", "hardtanh", "leakyrelu", "sigmoid", "tanh", "elu"}
_BY_INPUT = {"gelu", "silu", "hardswish", "hardsigmoid", "softplus", "mish", "prelu"}
_NORM = {"batchnorm", "fedbatchnorm", "groupnorm", "layernorm", "instancenorm", "rmsnorm"}
_MATRIX = {"linear", "conv", "convtranspose", "embedding"}
_FREE = {"avgpool", "adaptiveavgpool", "mean", "sum", "add", "iadd", "sub", "neg", "cat", "upsample"}
_PAD = {"zeropad", "pad"}
_FREE |= {"permute", "transpose", "getitem", "size", "getattr", "interpolate"} | _PAD
_PRODUCT = {"mul", "imul", "matmul", "bmm", "truediv", "div", "maxpool", "adaptivemaxpool"}
_PER_BATCH = {"batchnorm", "fedbatchnorm"}


@dataclass(frozen=True)
class Node:
    """One operation: its output's elements for one example, what it reads, and what of it is trained."""

    name: str
    kind: str
    elements: int
    inputs: tuple[int, ...]
    trains_weight: bool
    trains_bias: bool

    @property
    def trained(self) -> bool:
        """Tells whether any parameter of the operation is trained."""
        return self.trains_weight or self.trains_bias


def trace(module: nn.Module, example: Tensor, train: Collection[str]) -> tuple[Node, ...]:
    """Gives the operations of a module on one example in execution order; the first is the input.

    Raises: BudgetError if torch.fx can't follow the module.
    """
    module = copy.deepcopy(module).eval()
    try:
        graph_module = fx.GraphModule(module, _Tracer().trace(module))
        with torch.no_grad():
            ShapeProp(graph_module).propagate(example)
    except Exception as error:
        raise BudgetError(
            f"the memory of {type(module).__name__} can't be planned, since its forward can't be traced "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "keep its control flow free of the data, or switch the check off (fleet.check = false)"
        ) from None
    return tuple(_nodes(graph_module, set(train)))


def averages_over_batch(nodes: Iterable[Node]) -> bool:
    """Tells whether a training pass needs the whole batch at once, as batch norm does."""
    return any(node.kind in _PER_BATCH for node in nodes)


def lifetimes(
    nodes: tuple[Node, ...],
    *,
    copies: int = 1,
    trains: bool = False,
    holds_input: bool = False,
    holds_output: bool = False,
) -> list[Buffer]:
    """Gives the buffers of activations and, where something is trained, of their gradients, not yet placed.

    `copies` examples are held at once. With `holds_input` the input lies in a buffer of the caller's, which takes its
    gradient too. With `holds_output` the output of an inference goes to a buffer of the caller's; in training that
    buffer holds the gradient of the output instead of a loss.
    """
    wants = _wants_gradient(nodes, holds_input) if trains else [False] * len(nodes)
    last = _last_uses(nodes, wants, ends_in_loss=trains and not holds_output)
    group = _groups(nodes, last)
    input_, output = group[0], group[-1]
    found: list[Buffer] = []
    for root in sorted(set(group)):
        held = (holds_input and root == input_) or (holds_output and not trains and root == output)
        members = [i for i in range(len(nodes)) if group[i] == root]
        num = ELEMENT_BYTES * copies * max(nodes[i].elements for i in members)
        if num and not held:
            found.append(Buffer(nodes[root].name, num, members[0], max(last[i] for i in members)))
        held = (holds_input and root == input_) or (holds_output and root == output)
        wanted = [i for i in members if wants[i]]
        if num and wanted and not held:
            begins = min(begin for i in wanted for begin in _gradient_steps(nodes, wants, i))
            found.append(Buffer(f"gradient of {nodes[root].name}", num, begins, 2 * len(nodes) - wanted[0]))
    return found


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _nodes(graph_module: fx.GraphModule, train: set[str]) -> Iterable[Node]:
    graph_module.graph.eliminate_dead_code()
    place: dict[fx.Node, int] = {}
    sizes: dict[fx.Node, int] = {}
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "output") or not (elements := _elements(node.meta.get("tensor_meta"))):
            continue
        kind = _kind(graph_module, node)
        if kind in _PAD and all(_kind(graph_module, user) == "conv" for user in node.users):
            # A convolution pads what it reads as it goes along.
            kind, elements = "view", sizes[node.all_input_nodes[0]]
        place[node], sizes[node] = len(place), elements
        owned = _parameters(graph_module, node)
        trained = {name for name in owned if name in train}
        yield Node(
            node.name,
            kind,
            elements,
            tuple(place[source] for source in node.all_input_nodes if source in place),
            trains_weight=any(not _is_bias(name) for name in trained),
            trains_bias=any(_is_bias(name) for name in trained),
        )


def _elements(meta: Any) -> int:
    if meta is None:
        return 0
    if isinstance(meta, TensorMetadata):
        return meta.shape.numel()
    return sum(_elements(part) for part in meta) if isinstance(meta, tuple | list) else 0


def _parameters(graph_module: fx.GraphModule, node: fx.Node) -> list[str]:
    if node.op == "call_module":
        owner = graph_module.get_submodule(str(node.target))
        return [f"{node.target}.{name}" for name, _ in owner.named_parameters()]
    return [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]


def _kind(graph_module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        name = type(graph_module.get_submodule(str(node.target))).__name__
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "unknown")
    return re.sub(r"[123]d$", "", name.lower()).replace("_", "")


def _wants_gradient(nodes: tuple[Node, ...], of_input: bool) -> list[bool]:
    wants = [of_input]
    for node in nodes[1:]:
        wants.append(node.trained or any(wants[i] for i in node.inputs))
    return wants


def _last_uses(nodes: tuple[Node, ...], wants: list[bool], ends_in_loss: bool) -> list[int]:
    last = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for source in node.inputs:
            last[source] = max(last[source], i)
        if wants[i] and i:
            for kept in _kept(node, i, any(wants[source] for source in node.inputs)):
                last[kept] = max(last[kept], 2 * len(nodes) - i)
    if ends_in_loss:
        last[-1] = max(last[-1], len(nodes))
    return last


def _kept(node: Node, place: int, passes_on: bool) -> tuple[int, ...]:
    """Gives the values that the backward of a node reads, by place."""
    if node.kind in _VIEW | _FREE:
        return ()
    if node.kind in _BY_OUTPUT:
        return (place,)
    if node.kind in _MATRIX:
        return node.inputs if node.trains_weight or len(node.inputs) > 1 else ()
    if node.kind in _NORM:
        return node.inputs if node.trains_weight or passes_on else ()
    return node.inputs if node.kind in _BY_INPUT | _PRODUCT else (*node.inputs, place)


def _groups(nodes: tuple[Node, ...], last: list[int]) -> list[int]:
    """Gives for each value the first value of the memory that it shares: views and operations done in place."""
    group: list[int] = []
    for i, node in enumerate(nodes):
        group.append(i)
        if len(node.inputs) != 1 or nodes[node.inputs[0]].elements != node.elements:
            continue
        root = group[node.inputs[0]]
        idle = root != 0 and all(last[j] <= i for j in range(i) if group[j] == root)
        if node.kind in _VIEW or (idle and node.kind in _BY_OUTPUT | _BY_INPUT | _NORM):
            group[i] = root
    return group


def _gradient_steps(nodes: tuple[Node, ...], wants: list[bool], place: int) -> list[int]:
    """Gives the steps at which something is added to the gradient of a value."""
    steps = [2 * len(nodes) - i for i, node in enumerate(nodes) if place in node.inputs and wants[i]]
    return [*steps, len(nodes)] if place == len(nodes) - 1 else steps
