"""An exported blob in the C runtime gives what the module gives, and in int8 the integers of the reference."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from midhaul import rng
from midhaul.devices import blob, profiles, toolchain
from midhaul.devices.plan import PlanKind
from midhaul.export import export
from midhaul.models import tiny
from midhaul.models.prepare import prepare
from midhaul.models.quantise import integers

BOARD = profiles.get("rp2040")  # whose blobs are packed as this machine wants them
MODELS: dict[str, tuple[tuple[int, ...], int]] = {
    "linear": ((1, 8, 8), 10),
    "mlp": ((1, 8, 8), 10),
    "cnn": ((1, 8, 8), 10),
    "cnn1d": ((6, 64), 6),
    "dscnn": ((1, 49, 10), 12),
    "mobilenet_v1_025": ((3, 32, 32), 2),
    "resnet8": ((1, 8, 8), 10),
    "autoencoder": ((64,), 64),
}


def run(data: bytes, x: Any) -> Any:
    """Gives the last value of the INFER plan for its stored value, in memory of the size that the blob asks for."""
    library, records = ctypes.CDLL(str(toolchain.host_library())), blob.read(data)
    size, whole = records.header.arena_bytes, (len(data) + 15) // 16 * 16
    memory = np.full(whole + size + 16, 0xAA, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :]
    memory[: len(data)] = np.frombuffer(data, np.uint8)
    at, arena = ctypes.c_void_p(memory.ctypes.data), ctypes.c_void_p(memory.ctypes.data + whole)
    model = (ctypes.c_void_p * 7)()
    library.mh_model_plan.restype = library.mh_model_value.restype = ctypes.c_void_p
    assert library.mh_model_check(at, len(data), size) == 0
    library.mh_model_open(model, at, arena)
    library.mh_model_reset(model)
    plan = ctypes.c_void_p(library.mh_model_plan(model, int(PlanKind.INFER), None, 0))
    begin, end = records.header.stored_value, records.layers[-1].out

    def view(value: int, dtype: Any) -> Any:
        record = records.values[value]
        place = library.mh_model_value(model, plan, value) - memory.ctypes.data
        size = record.c * record.h * record.w * np.dtype(dtype).itemsize
        return memory[place : place + size].view(dtype)

    view(begin, x.dtype)[:] = x.reshape(-1)
    library.mh_model_forward(model, plan)
    return view(end, np.float32).copy()


@pytest.mark.parametrize("norm", ["fold", "group"])
@pytest.mark.parametrize("name", MODELS)
def test_float_blobs_give_what_the_module_gives(name: str, norm: str, tmp_path: Path) -> None:
    shape, classes = MODELS[name]
    made = export(name, BOARD, tmp_path, shape=shape, classes=classes, norm=norm)
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        module: nn.Module = tiny.build(name, shape, classes)
    module = (prepare(module, shape, "group").module if norm == "group" else module).eval()
    for seed in range(3):
        x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            wanted = module(x).numpy().ravel()
        assert np.abs(run(made.blob.data, x.numpy()) - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "resnet8"])
def test_int8_blobs_give_the_integers_of_the_reference(name: str, tmp_path: Path) -> None:
    made = export(name, BOARD, tmp_path, precision="int8", data="digits")
    x = torch.randn((3, *MODELS[name][0]), generator=torch.Generator().manual_seed(1)).numpy()
    found = integers(made.net, x)
    last = made.net.layers[-1].inputs[0]
    value = made.net.values[last]
    for row, wanted in zip(found[1], found[last], strict=True):
        real = (wanted.transpose(2, 0, 1).astype(np.float32) - np.float32(value.zero_point)) * np.float32(value.scale)
        assert np.array_equal(run(made.blob.data, row), real.ravel())
    assert made.blob.stored == 1
