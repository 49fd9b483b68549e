"""What each layer of a model costs: multiply-accumulates, parameters, and the size of what it gives.

A multiply-accumulate (MAC) is one product that is added to a sum, in a convolution, a fully connected layer or a matrix
product. Norms, activations and pooling count none, and products with padding count, as in the published tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from midhaul.models import trace

FUNCTIONAL = "functional"


class LayerCost(NamedTuple):
    """One call of one layer on one example; shapes are without the batch."""

    name: str
    kind: str
    macs: int
    parameters: int
    output_shape: tuple[int, ...]
    output_elements: int


class Totals(NamedTuple):
    """A model's sums: MACs of one example, parameters (each once), and numbers that its layers give."""

    macs: int
    parameters: int
    output_elements: int


def layers(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[LayerCost, ...]:
    """Gives the costs of the layers for one example, in the order they are executed.

    A layer that is called twice stands there twice, its parameters the first time. What is computed or held outside of
    the layers comes last, as kind `functional`; element by element operations there cost nothing.
    """
    costs: list[LayerCost] = []
    seen: set[int] = set()

    def note(call: trace.Call, macs: int) -> None:
        own = [p for p in call.layer.parameters() if id(p) not in seen]
        seen.update(id(p) for p in own)
        costs.append(_cost(call.name, type(call.layer).__name__, macs, own, call.output))

    made, counted, output = _run(module, input_shape)
    within = 0
    for call, measured in made:
        # torch doesn't see into its recurrent layers.
        note(call, _recurrent(call.layer, call.input) if isinstance(call.layer, nn.RNNBase) else measured)
        within += measured
    left = [p for p in module.parameters() if id(p) not in seen]
    if counted > within or left:
        costs.append(_cost("", FUNCTIONAL, max(counted - within, 0), left, output))
    return tuple(costs)


def totals(module: nn.Module, input_shape: tuple[int, ...]) -> Totals:
    """Gives the sums over the layers.

    >>> totals(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,))
    Totals(macs=18, parameters=23, output_elements=8)
    """
    each = layers(module, input_shape)
    return Totals(
        sum(cost.macs for cost in each),
        sum(cost.parameters for cost in each),
        sum(cost.output_elements for cost in each if cost.kind != FUNCTIONAL),
    )


def folded_parameters(module: nn.Module) -> int:
    """Gives the parameters that are left when batch norm is folded into the layers before it, as on a device."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    own = {id(p) for layer in module.modules() if isinstance(layer, norms) for p in layer.parameters()}
    return sum(p.numel() for p in module.parameters() if id(p) not in own)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations that torch's own formulas give.

    torch.utils.flop_counter.FlopCounterMode does the same, but its first call imports torch's compiler: two seconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch 2.13: True wraps the method in what imports the compiler
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula, kwargs = flop_registry.get(func._overloadpacket), kwargs or {}
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)  # an operator made of others counts as these
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if formula is not None:
            self.num_operations += formula(*args, **kwargs, out_val=out)
        return out


def _run(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[list[tuple[trace.Call, int]], int, Tensor]:
    """Gives the calls with the MACs that torch counts within each, all MACs of the pass, and its output."""
    made: list[tuple[trace.Call, int]] = []
    started: list[int] = []
    counter = _Counter()

    def before(name: str, layer: nn.Module, inputs: Any) -> None:
        started.append(counter.num_operations)

    def after(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        macs = (counter.num_operations - started.pop()) // 2
        made.append((trace.Call(name, layer, trace.first_tensor(inputs), trace.first_tensor(output)), macs))

    x = trace.example(module, input_shape)
    with trace.hooked(module, before, after), trace.at_rest(module), torch.no_grad(), _unfused(), counter:
        output = trace.first_tensor(module(x))
    return made, counter.num_operations // 2, output


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Runs a block with attention as plain matrix products, which torch's counter sees."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _cost(name: str, kind: str, macs: int, own: list[nn.Parameter], output: Tensor) -> LayerCost:
    shape = tuple(output.shape)
    shape = shape[1:] if shape[:1] == (1,) else shape
    return LayerCost(name, kind, macs, sum(p.numel() for p in own), shape, output.numel())


def _recurrent(layer: Any, x: Tensor) -> int:
    steps: int = x.numel() // int(layer.input_size)
    held: int = sum(p.numel() for name, p in layer.named_parameters() if name.startswith("weight"))
    return steps * held
