"""What a module does when it is run once: its layers' calls in order, and an input that it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from midhaul.errors import ModelError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Call:
    """One call of one layer: its name, the layer, the first tensor it was given and the first that it gave."""

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor


def is_layer(module: nn.Module) -> bool:
    """Tells whether a module counts as one layer: one of torch's own, or one that holds no other modules."""
    of_torch = type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS)
    return not isinstance(module, CONTAINERS) and (of_torch or not any(True for _ in module.children()))


def layers(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Gives the layers of a module by their names, in its own order; what lies inside a layer is part of it."""
    if is_layer(module):
        return {prefix: module}
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        found.update(layers(child, f"{prefix}.{name}" if prefix else name))
    return found


def takes_tokens(module: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Tells whether the module's input is whole numbers (tokens), by trying. Raises: ModelError if it takes neither."""
    return example(module, input_shape).dtype == torch.int64


def example(module: nn.Module, input_shape: tuple[int, ...], num_rows: int = 1) -> Tensor:
    """Gives zeros that the module takes as its input: tokens if it begins with an embedding, else float32.

    Shapes: [num_rows, *input_shape].
    Raises: ModelError if the module fails on both, with what it said.
    """
    embeds = any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in module.modules())
    first = ""
    for dtype in (torch.int64, torch.float32) if embeds else (torch.float32,):
        x = torch.zeros((num_rows, *input_shape), dtype=dtype)
        try:
            with at_rest(module), torch.no_grad():
                module(x)
        except Exception as error:  # a user's own forward may raise anything
            first = first or f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            return x
    raise ModelError(
        f"{type(module).__name__} can't be run on an input of shape {(num_rows, *input_shape)} ({first}); "
        "make the model and the data's shape agree"
    )


@contextlib.contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Runs a block with the module in evaluation mode, then puts each of its modules back as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def hooked(
    module: nn.Module,
    before: Callable[[str, nn.Module, Any], Any] | None,
    after: Callable[[str, nn.Module, Any, Any], Any],
) -> Iterator[None]:
    """Runs a block with functions called before and after each layer; what they give replaces its input or output."""
    handles = []
    names = {id(layer): name for name, layer in reversed(layers(module).items())}
    for layer in module.modules():
        if id(layer) not in names:
            continue
        name = names[id(layer)]
        if before is not None:
            handles.append(layer.register_forward_pre_hook(partial(_before, before, name)))
        handles.append(layer.register_forward_hook(partial(_after, after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def calls(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Call, ...]:
    """Gives the calls of the module's layers on one example, in the order they are made, in evaluation mode."""
    made: list[Call] = []

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        made.append(Call(name, layer, first_tensor(inputs), first_tensor(output)))

    x = example(module, input_shape)
    with hooked(module, None, note), at_rest(module), torch.no_grad():
        module(x)
    return tuple(made)


def first_tensor(value: Any) -> Tensor:
    """Gives the first tensor in what a layer took or gave; an empty one if there is none."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)).numel()), torch.empty(0))


def _before(function: Callable[[str, nn.Module, Any], Any], name: str, layer: nn.Module, inputs: Any) -> Any:
    return function(name, layer, inputs)


def _after(
    function: Callable[[str, nn.Module, Any, Any], Any], name: str, layer: nn.Module, inputs: Any, output: Any
) -> Any:
    return function(name, layer, inputs, output)


def put(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Gives the module with a layer in the place of that name: itself, changed, or the layer if the name is empty."""
    if not name:
        return layer
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, layer)
    return module


def ramp(example: Tensor) -> Tensor:
    """Gives numbers from -1 to 1 in the shape of an example; tokens stay as they are."""
    if not example.is_floating_point():
        return example
    return torch.linspace(-1.0, 1.0, example.numel()).reshape(example.shape)
