"""A device that torch takes for another than the processor, and that the processor computes: what a GPU would refuse,
it refuses.

Its tensors hold host tensors. An op on tensors of both is an error as on a GPU: but for a number without dimensions,
indices, and what copies. So code that runs on it puts everything where it belongs; and since each op is the processor's
own, what it computes must equal a run on the processor to the bit.

As a script: does each case that it is given on both, and prints as JSON how far they lie apart. It is a process of its
own, since torch takes a new device only before it first computes a gradient.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "pretend"
aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_COPIES = (aten.copy_.default, aten._to_copy.default)


class Pretend(Tensor):
    """A tensor that says that it lies on the device, and holds a host tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretend:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: Pretend = Tensor._make_wrapper_subclass(cls, held.size(), device=f"{DEVICE}:0", **shape)
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Does an op on the processor; its result lies where a GPU's would."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [isinstance(value, Pretend) for value in tensors]
    named = kwargs.get("device")
    if func in _INDEXED:
        others = [value for value in args[2:3] if isinstance(value, Tensor)]
        _check(func, [args[0], *others])
        if not isinstance(args[0], Pretend) and any(there):
            raise RuntimeError(f"{func}: rows of the host by indices that lie on the device")
    elif func not in _COPIES:
        _check(func, tensors)
    on_device = torch.device(named).type == DEVICE if named is not None else any(there)
    if func is aten.copy_.default:
        on_device = there[0]
    plain = {**kwargs, **({"device": torch.device("cpu")} if named is not None else {})}
    out = func(*tree_map(_held, args), **tree_map(_held, plain))
    if not on_device:
        return out
    wrapped = tree_map(lambda value: Pretend(value) if isinstance(value, Tensor) else value, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _check(func: Any, tensors: list[Tensor]) -> None:
    if any(isinstance(value, Pretend) for value in tensors):
        odd = [tuple(value.shape) for value in tensors if not isinstance(value, Pretend) and value.dim()]
        if odd:
            raise RuntimeError(f"{func} of tensors on two devices; those of shape {odd} are on the host")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretend) else value


class _Made(TorchDispatchMode):
    """Makes tensors there where an op without any is told to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextlib.contextmanager
def there() -> Iterator[torch.device]:
    """Gives the device for a block."""
    with _Made():
        yield torch.device(DEVICE, 0)


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Pretend(torch.empty_strided(size, stride, dtype=dtype))


def _copy(to: Any, source: Any, non_blocking: bool = False) -> Tensor:
    _held(to).copy_(_held(source))
    return to  # type: ignore[no-any-return]


def register() -> None:
    """Tells torch of the device. Limits: once in a process, before its first gradient."""
    _setup_privateuseone_for_python_backend(DEVICE)
    # What torch.tensor(...) and an index that is a list are made by, past all modes.
    _LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    _LIBRARY.impl("copy_", _copy, "PrivateUse1")


_LIBRARY = torch.library.Library("aten", "IMPL")


def main(cases: list[tuple[str, dict[str, Any]]]) -> None:
    """Does each case on both, and prints what came of it: a scheme's rounds, or a whole run that is resumed."""
    register()
    sys.path.insert(0, str(Path(__file__).parent))
    import on_hardware

    with there() as device:
        found = [
            on_hardware.resumed(device, changes) if name == "run" else on_hardware.compared(name, device, changes)
            for name, changes in cases
        ]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
