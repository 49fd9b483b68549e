"""Where a run computes, a processor or a GPU, and how precisely.

The server's models (`midhaul.server`) and the devices of the engine `stacked` are computed there. What passes between
them lies on the host, as frames do: a tree goes up when it is worked with, answers come back, and every random number
is drawn on the host. So a run draws the same on either, and its checkpoint may be resumed on the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from midhaul.errors import ConfigError, EngineError
from midhaul.tree import Tree

CPU = torch.device("cpu")
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Hardware:
    """A device of torch, and how precisely products of matrices and convolutions are taken on it.

    float32: as on a processor. tf32: their factors have 10 bits of mantissa, their sums 23. bf16: they are taken in
    bfloat16 (torch's autocast); weights, gradients, losses and sums over rows stay in float32.
    """

    device: torch.device = CPU
    precision: str = "float32"

    @property
    def is_host(self) -> bool:
        """Tells whether this is the processor, so that nothing need be moved."""
        return self.device == CPU

    @property
    def about(self) -> str:
        """What it is, for a person."""
        if self.device.type != "cuda":
            return str(self.device)
        return f"{self.device} ({torch.cuda.get_device_name(self.device)}), {self.precision}"

    def put(self, value: Tensor) -> Tensor:
        """Gives a tensor there."""
        return value.to(self.device)

    def put_tree(self, whole: Tree) -> Tree:
        """Gives a tree there; whole numbers by themselves stay on the host, which counts with them."""
        if self.is_host:
            return whole
        return {name: value if _is_count(value) else self.put(value) for name, value in whole.items()}


def find(device: str, precision: str) -> Hardware:
    """Gives what `run.device` and `run.precision` name. auto is the first GPU that torch sees, else the processor.

    Raises: ConfigError for a GPU that isn't there, or can't do this.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"run.device is {device!r}; it must be cpu, cuda, cuda:N (the GPU of that number) or auto")
    if precision not in PRECISIONS:
        raise ConfigError(f"run.precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not num):
        if precision != "float32":
            none = ", since torch sees no GPU" if kind == "auto" else ""
            raise ConfigError(
                f"run.precision = {precision!r} is for a GPU, and this run is on the processor{none}; "
                "set run.precision = 'float32'"
            )
        return Hardware()
    place = int(number or 0)
    if place >= num:
        there = "no GPU" if not num else "one GPU" if num == 1 else f"{num} GPUs"
        raise ConfigError(
            f"run.device is {device!r}, and torch {torch.__version__} sees {there} here; "
            f"set run.device = {'cpu' if not num else 'cuda:0'!r}"
            + ("" if num else ", or install a build of torch for this machine's GPU")
        )
    found = Hardware(torch.device("cuda", place), precision)
    if precision != "float32" and torch.cuda.get_device_capability(found.device) < (8, 0):
        raise ConfigError(
            f"{torch.cuda.get_device_name(found.device)} has no {precision} (cards of compute capability 8.0 and above "
            "have); set run.precision = 'float32'"
        )
    return found


_now = Hardware()


def now() -> Hardware:
    """Gives what the run under way computes on; the processor outside of one."""
    return _now


@contextlib.contextmanager
def at_work(hardware: Hardware) -> Iterator[None]:
    """Computes on this hardware, so precisely, within a block; then all is as it was."""
    global _now
    before = _now
    _now = hardware
    try:
        with _precisely(hardware), room(hardware):
            yield
    finally:
        _now = before


@contextlib.contextmanager
def room(hardware: Hardware) -> Iterator[None]:
    """Tells in a sentence, as an EngineError, that a GPU's memory doesn't do for a block."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise EngineError(
            f"{hardware.device} has no memory left; lower run.memory or fleet.cohort, so that fewer devices are "
            "trained at once, lower large.batch, or set run.device = 'cpu'"
        ) from None


@contextlib.contextmanager
def _precisely(hardware: Hardware) -> Iterator[None]:
    """Sets torch's own switches. By default it takes convolutions in TF32 and whichever algorithm is at hand."""
    if hardware.device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [kind.fp32_precision for kind in kinds], cudnn.deterministic, cudnn.benchmark
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32" if hardware.precision == "tf32" else "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        # Without a cache: it would hold the weights of every step, and what a step changes in place would be stale.
        with torch.autocast("cuda", torch.bfloat16, enabled=hardware.precision == "bf16", cache_enabled=False):
            yield
    finally:
        for kind, value in zip(kinds, before[0], strict=True):
            kind.fp32_precision = value
        cudnn.deterministic, cudnn.benchmark = before[1:]


def home(value: Tensor, where: Tensor) -> Tensor:
    """Gives what was computed, in float32 where it is coarser, on the device that another tensor lies on."""
    return value.to(where.device, torch.float32 if value.dtype == torch.bfloat16 else value.dtype)


def to_host(whole: Tree) -> Tree:
    """Gives a tree as it travels and is kept: on the host, in float32 where it is coarser."""
    return {name: home(value, _HOST) for name, value in whole.items()}


_HOST = torch.empty(0)


class _HostDropout(TorchFunctionMode):
    """What dropout leaves out is drawn by the host's generator, as on a processor: the same entries on any device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return _dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    kept = torch.empty(input.shape, dtype=torch.float32).bernoulli_(1.0 - p).div_(max(1.0 - p, 1e-30))
    return input * kept.to(input.device, input.dtype)


def drawing() -> contextlib.AbstractContextManager[Any]:
    """Lets models with dropout draw within a block what they draw on a processor.

    Limits: attention that draws within torch's fused kernel (`scaled_dot_product_attention`) isn't reached.
    """
    return contextlib.nullcontext() if _now.is_host else _HostDropout()


def _is_count(value: Tensor) -> bool:
    return value.dim() == 0 and not value.is_floating_point()
