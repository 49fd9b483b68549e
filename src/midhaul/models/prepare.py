"""Making a model fit to be trained on many devices: its norms, dropout, hidden state and output are looked at."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from midhaul.errors import ModelError, nearest
from midhaul.message import ROW_KINDS, UPDATE
from midhaul.models import norm as norms
from midhaul.models import trace
from midhaul.models.norm import FedBatchNorm

CHOICES = ("refuse", "group", "fedbn")


class Prepared(NamedTuple):
    """A module that can be federated, what was changed in it, and the tensors that never leave a device."""

    module: nn.Module
    notes: tuple[str, ...]
    personal: tuple[str, ...]


def prepare(module: nn.Module, input_shape: tuple[int, ...], norm: str = "refuse") -> Prepared:
    """Gives a copy of a module that can be trained on many devices, or says why it can't.

    Dropout is switched off. What becomes of batch norm is told by `norm`: refuse it; put group norm in its place; or
    keep it with each device (FedBN), whose parameters and statistics are then `personal`. Instance norm with running
    statistics loses them.

    Raises: ModelError if the module fails on its input, if its output isn't [B, C], if it changes buffers or draws
    random numbers in training, if it mixes the rows of a batch, or if a parameter has a name that messages use.
    """
    if norm not in CHOICES:
        raise ModelError(f"there is no way {norm!r} to treat batch norm{nearest(norm, CHOICES)}")
    if lazy := [name for name, value in module.named_parameters() if nn.parameter.is_lazy(value)]:
        raise ModelError(f"the parameter {lazy[0]} has no shape yet; run the model once before it is federated")
    module = copy.deepcopy(module)
    _check_names(module)
    notes = [*_quieten(module)]
    module, changes = _renorm(module, input_shape, norm)
    notes += changes
    _check_output(module, input_shape)
    _check_training(module, input_shape)
    personal: dict[str, None] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, FedBatchNorm):
            held = [*layer.named_parameters(), *layer.named_buffers()]
            personal.update({".".join(filter(None, (name, inner))): None for inner, _ in held})
    return Prepared(module, tuple(notes), tuple(personal))


def _check_names(module: nn.Module) -> None:
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name in ROW_KINDS:
            raise ModelError(f"a parameter is named {name!r}, which messages use for {ROW_KINDS[name]}; rename it")
        if name == UPDATE:
            raise ModelError(f"a parameter is named {name!r}, which messages use for all weights in one; rename it")


def _quieten(module: nn.Module) -> Iterator[str]:
    """Switches dropout off and says where."""
    quiet = []
    for name, layer in module.named_modules():
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            layer.p = 0.0
            quiet.append(name)
        elif isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and layer.dropout > 0:
            layer.dropout = 0.0
            quiet.append(name)
    if quiet:
        yield f"dropout is off on devices, where it would need random numbers of its own: {_listed(quiet)}"


def _renorm(module: nn.Module, input_shape: tuple[int, ...], norm: str) -> tuple[nn.Module, list[str]]:
    layers = dict(module.named_modules())
    batch = [n for n, layer in layers.items() if isinstance(layer, _BatchNorm)]
    instance = [n for n, layer in layers.items() if isinstance(layer, _InstanceNorm) and layer.track_running_stats]
    if not batch and not instance:
        return module, []
    if norm == "refuse":
        raise ModelError(
            f"the statistics of {_listed(batch + instance)} depend on whole batches, which devices don't share; choose "
            "norm = 'group' (group norm instead) or norm = 'fedbn' (each device keeps its own)"
        )
    positions = {call.name: call.input.shape[2:].numel() for call in trace.calls(module, input_shape)}
    for name in batch:
        old: Any = layers[name]
        new = FedBatchNorm.of(old) if norm == "fedbn" else norms.group_norm(old, positions.get(name, 1))
        module = trace.put(module, name, new)
    for name in instance:
        module = trace.put(module, name, norms.running_free(layers[name]))
    what = "stays on each device" if norm == "fedbn" else "became group norm"
    notes = [f"batch norm {what}: {_listed(batch)}"] if batch else []
    return module, notes + ([f"instance norm lost its running statistics: {_listed(instance)}"] if instance else [])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_output(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    x = trace.example(module, input_shape, 2)
    with trace.at_rest(module), torch.no_grad():
        out: Any = module(x)
    if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() != 2 or out.shape[0] != 2:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"type {type(out).__name__}"
        raise ModelError(
            f"for 2 rows {type(module).__name__} gives an output of {got}; it must give one row of floats for each row"
        )


def _check_training(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    x = trace.ramp(trace.example(module, input_shape, 2))
    before = {name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    first, second, alone = (_output(module, rows) for rows in (x, x, x[:1]))
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not torch.equal(before[name], value):
            raise ModelError(
                f"a training pass changes {name}, which devices can't share; use layers without such state"
            )
    if not torch.equal(first, second):
        raise ModelError(
            f"two training passes of {type(module).__name__} on the same rows differ: it draws random numbers; "
            "use nn.Dropout layers, which can be switched off"
        )
    batch_norm = any(isinstance(layer, FedBatchNorm) for layer in module.modules())
    if not batch_norm and not torch.allclose(first[:1], alone, rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"the output of {type(module).__name__} for one row depends on the other rows of its batch; "
            "devices have batches of different sizes, so each row must stand alone"
        )


def _output(module: nn.Module, x: Tensor) -> Tensor:
    """Gives the output of a training pass, with the modes put back and batch norm's notes dropped."""
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        with torch.no_grad():
            out: Tensor = module(x)
    finally:
        for part, training in modes:
            part.training = training
            if isinstance(part, FedBatchNorm):
                part.updated = {}
    return out
