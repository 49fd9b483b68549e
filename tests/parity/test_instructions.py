"""Predicted instructions against those that a Cortex-M ran: within 10 % for whole models that no cost was fitted to.

Soft float depends on the numbers, so on a core without an FPU the bound is wider.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from ticks import Counted

from midhaul import rng
from midhaul.devices import blob, footprint, instructions, profiles, toolchain
from midhaul.devices.blob import Blob
from midhaul.devices.costs import COSTS
from midhaul.devices.plan import PlanKind
from midhaul.devices.profiles import Board
from midhaul.models import slices, tiny
from midhaul.models.adapters import add_lora
from midhaul.models.int8 import Int8Front
from midhaul.models.prepare import prepare
from midhaul.models.translate import translate
from midhaul.rng import Use

EXACT, SOFT = 0.10, 0.15
ROWS, BATCH = 5, 4
MODELS: dict[str, tuple[str, tuple[int, ...], int, dict[str, object]]] = {
    "mlp": ("mlp", (24,), 4, {"hidden": [32, 20]}),
    "cnn1d": ("cnn1d", (6, 32), 4, {"channels": [8, 12]}),
    "cnn1d with group norm": ("cnn1d", (6, 32), 4, {"channels": [8, 12], "norm": "group"}),
    "cnn": ("cnn", (1, 12, 12), 3, {"channels": [4, 6], "hidden": [10], "kernel": 3}),
    "dscnn": ("dscnn", (1, 13, 10), 6, {"channels": 8}),
    "resnet8": ("resnet8", (3, 8, 8), 4, {}),
}
SMALL = ("mlp", "cnn1d", "cnn1d with group norm", "cnn")
BOARDS = {
    "cortex-m0": "rp2040",
    "cortex-m3": "stm32l1",
    "cortex-m4": "nrf52840",
    "cortex-m7": "stm32h7",
    "cortex-m33": "nrf5340",
}


def built(name: str, norm: str = "group") -> tuple[nn.Module, tuple[int, ...]]:
    model, shape, classes, options = MODELS[name]
    torch.manual_seed(5)
    module = tiny.build(model, shape, classes, **options)
    return (prepare(module, shape, "group").module if norm == "group" else module.eval()), shape


def rows(name: str) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    _, shape, classes, _ = MODELS[name]
    return torch.randn((ROWS, *shape), generator=draws), torch.randint(classes, (ROWS,), generator=draws)


class Checked:
    """A device and what is predicted of it."""

    def __init__(self, core: str, name: str, made: Blob) -> None:
        if shutil.which("arm-none-eabi-gcc") is None:
            pytest.skip("arm-none-eabi-gcc isn't installed")
        if footprint.COMPILERS["gcc"].rpartition(" ")[2] not in toolchain.firmware_compiler("gcc").version:
            pytest.skip("this arm-none-eabi-gcc isn't the one that the costs were measured with")
        self.board: Board = profiles.get(BOARDS[core])
        self.made, self.most = made, EXACT if self.board.fpu else SOFT
        self.device = Counted(core, made, *rows(name), board=self.board)

    def check(self, kind: PlanKind, counted: int, num_rows: int, num_steps: int, momentum: bool = False) -> None:
        plan = next(one for one in self.made.plans if one.kind == kind)
        found = instructions.of(self.made, plan, self.board.core, momentum=momentum)
        assert found.of_rows(num_rows, num_steps) == pytest.approx(counted, rel=self.most)

    def store_and_predict(self) -> None:
        self.check(PlanKind.INFER, self.device.predict(), ROWS, 0)
        if self.made.stored:
            self.check(PlanKind.STORE, self.device.pushed, ROWS, 0)

    def fit(self, momentum: bool = False) -> None:
        counted = self.device.fit(BATCH, momentum=0.9 if momentum else 0.0)
        self.check(PlanKind.TRAIN, counted, ROWS, -(-ROWS // BATCH), momentum)


def compiled(core: str, module: nn.Module, shape: tuple[int, ...], names: tuple[str, ...], momentum: bool) -> Blob:
    net = module.device_net() if isinstance(module, Int8Front) else translate(module, shape, trained=names)
    packing = footprint.packing(profiles.get(BOARDS[core]).core)
    return blob.compile(net, {"slice": names}, fits=("slice",), momentum=momentum, packing=packing)


@pytest.mark.parametrize("spec", ["whole", "head", "bias"])
@pytest.mark.parametrize("name", [*SMALL, "dscnn"])
def test_training_and_inference(name: str, spec: str) -> None:
    module, shape = built(name)
    momentum = spec == "whole"
    names = tuple(slices.names(module, spec, shape))
    one = Checked("cortex-m4", name, compiled("cortex-m4", module, shape, names, momentum))
    one.store_and_predict()
    one.fit(momentum)
    one.device.close()


def test_a_residual_network() -> None:
    module, shape = built("resnet8")
    one = Checked(
        "cortex-m4", "resnet8", compiled("cortex-m4", module, shape, slices.names(module, "bias", shape), False)
    )
    one.store_and_predict()
    one.fit()
    one.device.close()


@pytest.mark.parametrize("name", ["mlp", "cnn1d"])
def test_adapters(name: str) -> None:
    plain, shape = built(name)
    module = add_lora(plain, 3, 6.0, "linear", rng.key(5, 0, 0, Use.INIT))
    names = tuple(n for n, _ in module.named_parameters() if "lora" in n)
    one = Checked("cortex-m4", name, compiled("cortex-m4", module, shape, names, False))
    one.store_and_predict()
    one.fit()
    one.device.close()


@pytest.mark.parametrize(
    ("core", "name"),
    [*(("cortex-m4", name) for name in ("mlp", "cnn1d", "cnn", "dscnn", "resnet8")), ("cortex-m33", "dscnn")],
)
def test_an_int8_body(core: str, name: str) -> None:
    plain, shape = built(name, "fold")
    module = Int8Front(plain, shape, rows(name)[0])
    names = tuple(n for n, _ in module.named_parameters())
    one = Checked(core, name, compiled(core, module, shape, names, False))
    one.store_and_predict()
    one.fit()
    one.device.close()


@pytest.mark.parametrize("name", [*SMALL, "dscnn"])
def test_the_device_s_half_of_a_split_model(name: str) -> None:
    module, shape = built(name)
    momentum = name == "dscnn"
    points = slices.cut_points(module, shape)
    cut = points[len(points) // 2].name
    front, _ = slices.cut(module, cut, shape)
    names = tuple(n for n, _ in front.named_parameters())
    net = translate(module, shape, trained=names, upto=cut)
    made = blob.compile(net, {"slice": names}, splits=("slice",), momentum=momentum, num_classes=0, packing=1)
    one = Checked("cortex-m4", name, made)
    ahead, back = one.device.split(BATCH, momentum=0.9 if momentum else 0.0)
    one.check(PlanKind.INFER, ahead, BATCH, 0)
    one.check(PlanKind.BACKWARD, back, BATCH, 1, momentum)
    one.device.close()


@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m3", "cortex-m7", "cortex-m33"])
@pytest.mark.parametrize("name", ["mlp", "cnn1d with group norm", "cnn"])
def test_other_cores(core: str, name: str) -> None:
    module, shape = built(name)
    one = Checked(core, name, compiled(core, module, shape, slices.names(module, "whole", shape), False))
    one.store_and_predict()
    one.fit()
    one.device.close()


def test_every_part_has_a_cost_on_every_core() -> None:
    parts = [set(costs) for costs in COSTS.values()]
    shared = set.intersection(*parts)
    kinds = ("four_wide.tap", "dense4.four", "tap_four_by_four.column", "layer_back", "sgd.four", "lora_up.mac")
    assert shared.issuperset(kinds)
    assert all(cost >= 0.0 for costs in COSTS.values() for cost in costs.values())
    assert not instructions.is_known("Cortex-M55")
