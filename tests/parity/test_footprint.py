"""What `midhaul size` says against what the linker laid out and what a Cortex-M wrote to: equal, to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from midhaul import budget
from midhaul.devices import blob, footprint, profiles, toolchain
from midhaul.devices.blob import Blob
from midhaul.devices.machines import open_machine
from midhaul.devices.profiles import Board
from midhaul.errors import DependencyError
from midhaul.link.frame import Frame, pack, unpack
from midhaul.message import Op
from midhaul.models import slices, tiny
from midhaul.models.int8 import Int8Front
from midhaul.models.translate import translate
from midhaul.runtime.remote import METRICS
from midhaul.runtime.wire import PacketWire

CORE = {"stm32l1": "cortex-m3", "stm32l4": "cortex-m4", "stm32h7": "cortex-m7", "nrf5340": "cortex-m33"}
ROWS = 11
MODELS = {
    "mlp": ((12,), 3, {"hidden": [20]}),
    "cnn1d": ((6, 32), 4, {"channels": [8, 12], "norm": "group"}),
    "cnn": ((1, 12, 12), 3, {"channels": [4], "hidden": [10], "kernel": 3}),
}


def compilers() -> list[str]:
    """Gives the compilers of the footprint table that are here, in their very versions."""
    found = []
    for kind, version in footprint.COMPILERS.items():
        try:
            here = toolchain.firmware_compiler(kind)
        except DependencyError:
            continue
        if version.rpartition(" ")[2] in here.version:
            found.append(kind)
    return found


def test_the_pinned_compiler_is_here() -> None:
    assert "zig" in compilers(), "the test extra has ziglang; without it nothing here is checked"


@pytest.mark.parametrize("kind", compilers())
@pytest.mark.parametrize("core", list(toolchain.CORES))
def test_the_runtime_takes_what_the_table_says(core: str, kind: str) -> None:
    image = toolchain.build(core, compiler=toolchain.firmware_compiler(kind))
    known = footprint.FOOTPRINTS[kind, profiles.get(toolchain.CORES[core].board).core]
    assert image.symbols["mh_slot0"] - toolchain.CORES[core].flash_at == known.code_bytes
    assert image.ram["data"] + image.ram["bss"] == known.static_bytes
    assert image.ram["stack"] == known.stack_bytes


def built(name: str, precision: str) -> tuple[nn.Module, tuple[int, ...], int]:
    shape, classes, options = MODELS[name]
    torch.manual_seed(5)
    module = tiny.build(name, shape, classes, **options)
    if precision == "int8":
        return Int8Front(module, shape, torch.randn(64, *shape)), shape, classes
    return module, shape, classes


CASES = [
    ("stm32l4", "mlp", "float32", Op.FIT, "whole", True),
    ("stm32l4", "mlp", "float32", Op.FIT, "head", False),
    ("stm32l4", "mlp", "int8", Op.FIT, "head", True),
    ("nrf5340", "cnn1d", "float32", Op.FIT, "whole", True),
    ("nrf5340", "cnn1d", "float32", Op.FIT, "bias", False),
    ("nrf5340", "cnn1d", "float32", Op.BACKWARD, "relu1", True),
    ("stm32h7", "cnn", "float32", Op.FIT, "body", False),
    ("stm32h7", "cnn", "int8", Op.FIT, "head", False),
    ("stm32h7", "cnn", "float32", Op.BACKWARD, "pool1", False),
    ("stm32l1", "mlp", "int8", Op.FIT, "head", False),
    ("stm32l1", "cnn", "float32", Op.FIT, "head", True),
]


@pytest.mark.parametrize("kind", compilers())
@pytest.mark.parametrize(("board", "name", "precision", "op", "what", "momentum"), CASES)
def test_flash_and_sram_are_what_the_budget_says(
    board: str, name: str, precision: str, op: Op, what: str, momentum: bool, kind: str
) -> None:
    module, shape, classes = built(name, precision)
    on = profiles.get(board)
    cut = what if op == Op.BACKWARD else ""
    names = () if cut else slices.names(module, what, shape)
    need = budget.plan(
        module, shape, on, op, train=names, momentum=momentum, cut=cut, num_rows=ROWS, compiler=kind, batch=4
    )
    assert need.estimate == ""
    if cut:
        front, _ = slices.cut(module, cut, shape)
        names = tuple(name for name, _ in front.named_parameters())
    # The slice's name is part of the blob; the budget's is as long.
    compiled = blob.compile(
        translate(module, shape, trained=names, upto=cut),
        {"slice": names},
        fits=() if cut else ("slice",),
        splits=("slice",) if cut else (),
        momentum=momentum,
        packing=footprint.packing(on.core),
    )
    slot = footprint.slots_bytes(len(compiled.data)) // 2
    image = toolchain.build(on, slot_bytes=slot, compiler=toolchain.firmware_compiler(kind))
    flash_at = toolchain.CORES[image.core].flash_at
    assert image.symbols["mh_slots_high"] - flash_at == need.flash_bytes
    static = image.ram["data"] + image.ram["bss"] + image.ram["stack"]
    peak = high_water(on, compiled, shape, classes, op, momentum, slot, kind)
    assert static + peak == need.sram_bytes


def high_water(
    board: Board, compiled: Blob, shape: tuple[int, ...], classes: int, op: Op, momentum: bool, slot: int, kind: str
) -> int:
    """Gives the bytes of the arena that a device wrote to while it took rows, trained and was tested."""
    draws = np.random.default_rng(1)
    x = torch.from_numpy(draws.normal(size=(ROWS, *shape)).astype(np.float32))
    y = torch.from_numpy(draws.integers(0, classes, ROWS))
    wire = PacketWire(
        lambda: open_machine(f"unicorn:{CORE[board.name]}", board=board, slot_bytes=slot, compiler=kind), None
    )

    def ask(op: Op, settings: dict[str, object] | None = None, tree: dict[str, torch.Tensor] | None = None) -> Frame:
        sent = pack(Frame(op, False, 1, 0, settings or {}, tree or {}))  # type: ignore[arg-type]
        got = unpack(wire.ask(sent, 120.0), compiled.trained, METRICS)
        assert "error" not in got.metrics, got.metrics
        return got

    try:
        ask(Op.HELLO, {"seed_low": 3, "seed_high": 0})
        data = torch.from_numpy(np.frombuffer(compiled.data, np.uint8).copy())
        for at in range(0, len(data), 4096):
            ask(
                Op.LOAD,
                {"what": "blob", "step": at, "rows": len(data)},
                {"blob": data[at : at + 4096].to(torch.uint8)},
            )
        ask(Op.STATS)
        ask(Op.PUSH, {"rows": "train", "step": 0}, {"x": x, "y": y})
        how = {"lr": 0.05, "momentum": 0.9 if momentum else 0.0, "weight_decay": 0.0}
        if op == Op.FIT:
            ask(
                Op.FIT,
                {**how, "batch": 4, "epochs": 2, "loss": "cross_entropy", "train": "slice", "send": "slice"},
            )
        else:
            up = ask(Op.FORWARD, {"rows": "train", "batch": 4, "step": 0, "epoch": 0, "what": "hy"})
            ask(Op.BACKWARD, {**how, "train": "slice"}, {"g": torch.ones_like(up.tree["h"]) * 0.01})
        return int(ask(Op.STATS).metrics["arena_peak"])
    finally:
        wire.close()
