"""Int8 convolutions that write over their input, on the cores whose kernels take several positions at once."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from midhaul.devices import blob, toolchain
from midhaul.devices.machines import open_machine
from midhaul.link.frame import Frame, pack, unpack
from midhaul.message import Op
from midhaul.models import quantise, tiny
from midhaul.models.translate import translate
from midhaul.net import Kind
from midhaul.runtime.remote import METRICS
from midhaul.runtime.wire import PacketWire


@pytest.mark.parametrize("address", ["host:", "unicorn:cortex-m4", "unicorn:cortex-m3", "qemu:cortex-m55"])
@pytest.mark.parametrize(("name", "shape"), [("resnet8", (3, 12, 10)), ("mobilenet_v1_025", (3, 32, 32))])
def test_a_network_whose_maps_overlap_gives_the_integers(name: str, shape: tuple[int, ...], address: str) -> None:
    if address.startswith("qemu") and shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm isn't installed; only it has a Cortex-M55")
    torch.manual_seed(4)
    rows = np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
    net = quantise.quantise(translate(tiny.build(name, shape, 5).eval(), shape), rows)
    core = address.partition(":")[2]
    made = blob.compile(net, {}, packing=toolchain.CORES[core].packing if core else 0)
    infer = made.plans[0]
    inside = [
        (layer.inputs[0], layer.out)
        for layer in net.layers
        if layer.kind == Kind.CONV and 0 <= infer.values[layer.inputs[0]] - infer.values[layer.out] < 1024
    ]
    assert inside, "no convolution of this network writes over its input; choose another"
    board = toolchain.board_of("stm32h7") if address.startswith("unicorn") else None
    wire = PacketWire(lambda: open_machine(address, board=board, slot_bytes=len(made.data) + 4096), None)

    def ask(op: Op, settings: dict[str, object] | None = None, tree: dict[str, torch.Tensor] | None = None) -> Frame:
        got = unpack(wire.ask(pack(Frame(op, False, 0, 0, settings or {}, tree or {})), 120.0), (), METRICS)  # type: ignore[arg-type]
        assert "error" not in got.metrics, got.metrics
        return got

    try:
        ask(Op.HELLO, {"seed_low": 1, "seed_high": 0})
        data = torch.from_numpy(np.frombuffer(made.data, np.uint8).copy())
        for at in range(0, len(data), 8192):
            ask(Op.LOAD, {"what": "blob", "step": at, "rows": len(data)}, {"blob": data[at : at + 8192]})
        logits = ask(Op.PREDICT, {}, {"x": torch.from_numpy(rows)}).tree["logits"]
    finally:
        wire.close()
    last = net.layers[-1].inputs[0]
    expected = quantise.dequantised(quantise.integers(net, rows)[last], net.values[last])
    np.testing.assert_array_equal(logits.numpy().reshape(expected.shape), expected)
