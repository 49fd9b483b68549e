"""Tracing in one thread is nothing to another, which traces too or just calls a module."""

from __future__ import annotations

import threading

import torch
from torch import fx, nn

from midhaul.tracing import Tracer


class _Layers(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear)


def chain(num: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(num)])


def test_what_a_thread_calls_is_no_part_of_what_another_traces() -> None:
    inside, called = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside.set()
            assert called.wait(20.0)
            out: torch.Tensor = self.layer(x)
            return out

    graphs, traced = list[fx.Graph](), Waits()
    thread = threading.Thread(target=lambda: graphs.append(_Layers().trace(traced)))
    thread.start()
    assert inside.wait(20.0)
    other, x = chain(3), torch.ones(2, 4)
    try:
        found, weight = other(x), traced.layer.weight
    finally:
        called.set()
        thread.join()
    assert torch.equal(found, other(x))
    assert isinstance(weight, nn.Parameter)  # also of a module that is being traced
    assert [node.target for node in graphs[0].nodes if node.op != "placeholder"] == ["layer", "output"]


def test_many_tracings_at_once_leave_modules_as_they_were() -> None:
    call, wrong = nn.Module.__call__, list[str]()

    def work() -> None:
        net = chain(10)
        for _ in range(20):
            try:
                num = sum(node.op == "call_module" for node in _Layers().trace(net).nodes)
                if num != 10:
                    wrong.append(str(num))
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert nn.Module.__call__ is call
