"""Tracing that other threads don't notice.

While torch.fx traces, it replaces how every module of the process is called and asked for its tensors. Two tracings at
a time put this back in the wrong order, for good; and what another thread calls meanwhile would be taken for a part of
what is traced.
Source: `Tracer.trace` in torch/fx/_symbolic_trace.py of torch 2.13.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_LOCK = threading.Lock()


class Tracer(fx.Tracer):
    """One tracing at a time; the calls of other threads are their own."""

    _thread = 0

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _LOCK:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
