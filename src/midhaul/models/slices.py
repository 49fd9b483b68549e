"""Slices: named views of a model that say which parameters are trained, which travel, and where it is cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from midhaul import tree as trees
from midhaul.errors import SliceError, nearest
from midhaul.models import graph, trace
from midhaul.models.prepare import Prepared, prepare
from midhaul.models.width import put_width, take_width, width
from midhaul.tree import Tree

__all__ = [
    "SPECS",
    "CutPoint",
    "Prepared",
    "cut",
    "cut_points",
    "names",
    "prepare",
    "put_width",
    "take",
    "take_width",
    "width",
]

SPECS = ("whole", "head", "body", "bias", "lora", "front:LAYER", "rear:LAYER", "layers:A,B", "tensors:A,B", "A+B")


class CutPoint(NamedTuple):
    """A layer behind which a model can be cut, and the shape of what is sent there, without the batch."""

    name: str
    shape: tuple[int, ...]


def names(module: nn.Module, spec: str, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Gives the names of the parameters of a slice, in the module's order.

    `whole`; `head`: the layer with parameters that is executed last; `body`: the rest; `bias`: every bias (TinyTL);
    `lora`: the matrices of adapters; `front:LAYER`, `rear:LAYER`: what lies before and behind a cut; `layers:A,B`;
    `tensors:A,B`: single parameters by name.
    `A+B`: what is in the slice A or in B.

    Raises: SliceError for a slice that the model doesn't have.
    Source: bias: Cai et al., "TinyTL: reduce memory, not parameters for efficient on-device learning", NeurIPS 2020.
    """
    known = tuple(name for name, _ in module.named_parameters())
    found = _found(module, spec, input_shape, known)
    if not found:
        raise SliceError(f"the slice {spec!r} of {type(module).__name__} holds no parameters; choose another")
    return tuple(name for name in known if name in found)


def take(tree: Tree, names: Iterable[str]) -> Tree:
    """Gives the tensors of a slice, in the tree's own order. Raises: MidhaulError for a name that it lacks."""
    return trees.select(tree, names)


def cut_points(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[CutPoint, ...]:
    """Gives the layers behind which a model can be cut, in the order they are executed.

    Where a block ends with a layer of its own, only that layer is named; the block's name works as well.
    """
    traced = graph.read(module, input_shape)
    seen = set()
    points = []
    for name, node in traced.ends.items():
        if node not in seen and isinstance(graph.halves(traced, node), graph.Halves):
            points.append(CutPoint(name, tuple(traced.values[node][0][2:])))
        seen.add(node)
    return tuple(points)


def cut(
    module: nn.Module, layer: str, input_shape: tuple[int, ...], *, bare: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Gives copies of the parts up to and behind the last output of a layer: rear(front(x)) is module(x), to the bit.

    The parameters keep their names. An activation without parameters that follows the layer lies in the rear; a `bare`
    rear may be nothing else, as between two cuts.

    Raises: SliceError if there is no such layer, or if what follows needs more than its output.
    """
    traced = graph.read(module, input_shape)
    if layer not in traced.ends:
        raise SliceError(f"{type(module).__name__} has no layer {layer!r} to cut behind{nearest(layer, traced.ends)}")
    sides = graph.halves(traced, traced.ends[layer], bare=bare)
    if isinstance(sides, str):
        valid = [point.name for point in cut_points(module, input_shape)]
        instead = f"cut behind {', '.join(valid)}" if valid else "it has no valid cut"
        raise SliceError(f"{type(module).__name__} can't be cut behind {layer!r}: {sides}; {instead}")
    front, rear = graph.split(traced, sides)
    _check(module, front, rear, layer, traced.example)
    return front, rear


def _found(
    module: nn.Module, spec: str, input_shape: tuple[int, ...], known: tuple[str, ...]
) -> tuple[str, ...] | set[str]:
    if "+" in spec:
        return {name for part in spec.split("+") for name in _found(module, part, input_shape, known)}
    kind, _, layer = spec.partition(":")
    if spec == "whole":
        return known
    if spec in ("head", "body"):
        head = _head(module, input_shape, known)
        return head if spec == "head" else set(known) - head
    if spec == "bias":
        return tuple(name for name in known if "bias" in name.rpartition(".")[2])
    if spec == "lora":
        return tuple(name for name in known if name.rpartition(".")[2] in ("lora_a", "lora_b"))
    if kind in ("front", "rear") and layer:
        part = cut(module, layer, input_shape)[kind == "rear"]
        return tuple(name for name, _ in part.named_parameters())
    if kind == "layers" and layer:
        return _under(module, layer.split(","), known)
    if kind == "tensors" and layer:
        wanted = [name.strip() for name in layer.split(",")]
        if unknown := [name for name in wanted if name not in known]:
            raise SliceError(f"{type(module).__name__} has no parameter {unknown[0]!r}{nearest(unknown[0], known)}")
        return set(wanted)
    raise SliceError(f"there is no slice {spec!r}{nearest(spec, SPECS)}")


def _head(module: nn.Module, input_shape: tuple[int, ...], known: tuple[str, ...]) -> set[str]:
    for call in reversed(trace.calls(module, input_shape)):
        inside = {".".join(filter(None, (call.name, name))) for name, _ in call.layer.named_parameters()}
        if inside & set(known):
            return inside
    raise SliceError(f"{type(module).__name__} has no layer with parameters; give it one")


def _under(module: nn.Module, layers: list[str], known: tuple[str, ...]) -> set[str]:
    modules = [name for name, _ in module.named_modules() if name]
    found: set[str] = set()
    for layer in (name.strip() for name in layers):
        if layer not in modules:
            raise SliceError(f"{type(module).__name__} has no layer {layer!r}{nearest(layer, modules)}")
        found.update(name for name in known if name.startswith(f"{layer}."))
    return found


def _check(module: nn.Module, front: nn.Module, rear: nn.Module, layer: str, example: torch.Tensor) -> None:
    """Runs both ways once: an operation in place, which a graph doesn't show, would make them differ."""
    x = trace.ramp(example)
    with trace.at_rest(module), trace.at_rest(front), trace.at_rest(rear):
        try:
            h = front(x).detach().requires_grad_(True)
            same = torch.equal(rear(h), module(x))
        except RuntimeError:  # torch refuses to overwrite an input that wants a gradient
            same = False
    if not same:
        raise SliceError(
            f"{type(module).__name__} can't be cut behind {layer!r}: its two parts give another output than the whole; "
            "write what follows without operations in place"
        )
