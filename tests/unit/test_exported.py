"""What is read of a module without torch's compiler is what torch.export reads, to the net that a device is given."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from test_startup import OWN
from test_translate import EXACT, REFUSED, TINY, Calls, Functional, drawn, stacks
from torch import Tensor, nn

from midhaul import rng
from midhaul.errors import ModelError
from midhaul.models import adapters, exported, large, slices, tiny
from midhaul.models.prepare import prepare
from midhaul.models.translate import translate
from midhaul.net import Net

Shape = tuple[int, ...]
KEY = rng.key(1, 0, 0, rng.Use.INIT)


def outcome(module: nn.Module, shape: Shape, monkeypatch: pytest.MonkeyPatch, reader: Any) -> Net | str:
    """Gives the net of a module by one of the readers, or the sentence that refuses it."""
    with monkeypatch.context() as patched:
        patched.setattr(exported, "read", reader)
        try:
            return translate(copy.deepcopy(module), shape)  # nets are remembered by module
        except ModelError as error:
            return str(error)


def both_agree(module: nn.Module, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Asserts that both readers lead to the same; tells whether the compiler was left out."""
    asked = []

    def either(owner: nn.Module, example: Tensor) -> exported.Exported:
        asked.append(exported.by_layers(owner, example))
        return asked[-1] or exported.by_compiler(owner, example)

    found = outcome(module.eval(), shape, monkeypatch, either)
    wanted = outcome(module, shape, monkeypatch, exported.by_compiler)
    if isinstance(found, Net) and isinstance(wanted, Net):
        assert dataclasses.replace(found, tensors={}) == dataclasses.replace(wanted, tensors={})
        assert list(found.tensors) == list(wanted.tensors)
        assert all(np.array_equal(found.tensors[name], value) for name, value in wanted.tensors.items())
    else:
        assert found == wanted
    return not asked or asked[0] is not None  # not asked: refused by the names of its layers


def forms(name: str, shape: Shape, classes: int, options: dict[str, Any]) -> dict[str, nn.Module]:
    """Gives a tiny model as devices may hold it."""
    with rng.torch_seed(KEY):
        module = drawn(tiny.build(name, shape, classes, **options), shape)
    points = slices.cut_points(module, shape)
    return {
        "plain": module,
        "group norm": prepare(module, shape, "group").module,
        "fedbn": prepare(module, shape, "fedbn").module,
        "adapters": adapters.add_lora(module, 2, 4.0, "all", KEY),
        **({"front": slices.cut(module, points[len(points) // 2].name, shape)[0]} if points else {}),
    }


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options"),
    [*TINY, ("mlp2nn", (1, 8, 8), 10, {}), ("lenet5", (1, 14, 14), 10, {}), ("eegnet", (8, 64), 2, {"kernel": 16})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_tiny_model_needs_no_compiler(
    name: str, shape: Shape, classes: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for form, module in forms(name, shape, classes, options).items():
        assert both_agree(module, shape, monkeypatch), form


def test_no_tiny_model_was_left_out() -> None:
    refused = {"embed"}  # by the name of its layer, before it is read: test_translate.REFUSED
    assert {name for name, *_ in TINY} | {"mlp2nn", "lenet5", "eegnet"} | refused == set(tiny.TINY)


@pytest.mark.parametrize(("name", "shape"), [("resnet1d", (3, 32)), ("resnet2d", (3, 8, 8))])
def test_a_large_model_whose_body_a_device_has(name: str, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    module = large.build(name, shape, 4, channels=[8, 8])
    assert both_agree(module, shape, monkeypatch)
    assert both_agree(slices.cut(module, slices.cut_points(module, shape)[1].name, shape)[0], shape, monkeypatch)


@pytest.mark.parametrize("case", EXACT)
def test_what_is_kept_exact(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = EXACT[case]
    without = both_agree(drawn(module, shape), shape, monkeypatch)
    assert without or case in ("adaptive maximum", "instance norm", "ReLU of the input in place", "average inside")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape, _ = REFUSED[case]
    both_agree(module, shape, monkeypatch)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(stacks())
def test_drawn_stacks(case: tuple[nn.Module, Shape]) -> None:
    module, shape = case
    try:
        with torch.no_grad():
            module.eval()(torch.zeros((2, *shape)))
    except RuntimeError:  # the map has shrunk to nothing
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        both_agree(drawn(module, shape), shape, monkeypatch)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replaced() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].forward = lambda x: x[:, :3]  # type: ignore[method-assign]
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda layer, given, out: out + 1)
    return module


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.used(x)  # type: ignore[no-any-return]


class Counts(nn.Module):
    """Does something else each time that it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(4, 3), nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.first(x) if self.calls % 2 else self.second(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.Sequential(Doubled(4, 3)),
        replaced,
        hooked,
        twice,
        tied,
        Dead,
        Counts,
        lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
    ],
    ids=["subclass", "forward", "hook", "twice", "tied", "dead", "state", "in place", "parametrized"],
)
def test_what_is_more_than_its_layers_is_left_to_the_compiler(made: Callable[[], nn.Module]) -> None:
    assert exported.by_layers(made().eval(), torch.zeros(2, 4)) is None


def test_only_evaluation_is_read() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    assert exported.by_layers(module.eval(), torch.zeros(2, 4)) is not None
    assert exported.by_layers(module.train(), torch.zeros(2, 4)) is None


def test_calls_of_functions_are_read_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not both_agree(drawn(Functional(), (3, 20)), (3, 20), monkeypatch)
    assert both_agree(Calls(lambda x: F.relu(x) + x), (2, 5, 5), monkeypatch)


def test_a_budget_needs_no_compiler() -> None:
    code = """
import sys
from midhaul import budget
from midhaul.devices import profiles
from midhaul.message import Op
from midhaul.models import tiny
found = budget.require(tiny.build("cnn", (1, 8, 8), 10), (1, 8, 8), profiles.get("nrf52840"), Op.FIT, model="cnn")
assert not found.estimate
assert not {"torch._dynamo", "torch.export._trace", "sympy"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], env=OWN, check=True)
