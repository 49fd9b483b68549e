"""A .tflite gives, in TensorFlow Lite for Microcontrollers, what our own integers give."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from midhaul import rng
from midhaul.errors import ModelError
from midhaul.models import tflite, tiny
from midhaul.models.quantise import integers, quantise
from midhaul.models.translate import translate
from midhaul.net import Kind, Net

TINY: list[tuple[str, tuple[int, ...], int, dict[str, Any]]] = [
    ("linear", (1, 8, 8), 10, {}),
    ("mlp", (1, 8, 8), 10, {}),
    ("cnn", (1, 12, 12), 10, {}),
    ("cnn1d", (6, 64), 6, {}),
    ("dscnn", (1, 49, 10), 12, {"channels": 16}),
    ("mobilenet_v1_025", (3, 32, 32), 2, {}),
    ("resnet8", (3, 16, 16), 10, {}),
    ("autoencoder", (64,), 64, {}),
]
ODD: dict[str, tuple[nn.Sequential, tuple[int, ...]]] = {
    "padding that isn't SAME": (
        nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU6(), nn.Conv2d(4, 3, 3, 1, 2)),
        (2, 8, 8),
    ),
    "maximum behind padding": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1)), (2, 9, 8)),
    "dilated depthwise of more": (nn.Sequential(nn.Conv2d(2, 6, 3, padding=2, dilation=2, groups=2)), (2, 7, 9)),
    "average over the edge": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.AvgPool1d(2, ceil_mode=True), nn.Flatten()), (2, 8)),
    "signal as an image": (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv2d(1, 4, (3, 2)), nn.Flatten()), (3, 9)),
    "ReLU of a pool": (nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(1, 2, 2), nn.ReLU()), (1, 6, 6)),
}


def quantised(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Net, Any]:
    draw = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn((16, *input_shape), generator=draw))
    rows = torch.randn((24, *input_shape), generator=draw).numpy()
    return quantise(translate(module.eval(), input_shape), rows[:16]), rows[16:]


def run(net: Net, inputs: list[Any]) -> Any:
    """Gives the outputs of TensorFlow Lite for Microcontrollers for rows of int8 inputs, flat."""
    pytest.importorskip("yaml", reason="tflite-micro imports pyyaml; install the extra `tflite`")
    reason = "the interpreter isn't installed; install the extra `tflite`"
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason=reason)
    interpreter = runtime.Interpreter.from_bytes(tflite.to_bytes(net), arena_size=1 << 20)
    outputs = []
    for row in zip(*inputs, strict=True):
        for place, x in enumerate(row):
            interpreter.set_input(x.reshape(interpreter.get_input_details(place)["shape"]), place)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).astype(int).reshape(-1))
    return np.stack(outputs)


def check(net: Net, rows: Any) -> None:
    """Asserts that each layer gives our integers to one step, and the whole nearly so."""
    found = integers(net, rows)
    inner = [layer for layer in net.layers if layer.kind != Kind.QUANTISE and net.values[layer.out].int8]
    for layer in inner:
        got = run(Net(net.values, (layer,), {}), [found[value] for value in dict.fromkeys(layer.inputs)])
        gap = np.abs(got - found[layer.out].reshape(len(rows), -1).astype(int))
        assert gap.max() <= 1, layer
        assert gap.mean() <= 0.05, layer
    first = next(layer.out for layer in net.layers if layer.kind == Kind.QUANTISE)
    wanted = found[inner[-1].out].reshape(len(rows), -1).astype(int)
    assert len(np.unique(wanted)) > 8
    whole = np.abs(run(net, [found[first]]) - wanted)
    # A step in one layer grows in those behind it: beyond meaning in the 28 untrained layers of MobileNet.
    assert len(inner) > 20 or whole.mean() <= 1.0


@pytest.mark.parametrize(("name", "shape", "classes", "options"), TINY, ids=lambda v: v if isinstance(v, str) else "")
def test_each_tiny_model(name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any]) -> None:
    with rng.torch_seed(rng.key(1, 0, 0, rng.Use.INIT)):
        module = tiny.build(name, shape, classes, **options)
    check(*quantised(module, shape))


@pytest.mark.parametrize("case", ODD)
def test_what_tensorflow_pads_and_clamps_in_its_own_way(case: str) -> None:
    module, shape = ODD[case]
    with rng.torch_seed(rng.key(1, 0, 0, rng.Use.INIT)):
        for layer in module:
            if isinstance(layer, nn.Conv1d | nn.Conv2d):
                layer.reset_parameters()
    check(*quantised(module, shape))


def test_weights_lie_at_multiples_of_16() -> None:
    net, _ = quantised(tiny.build("mlp", (64,), 4), (64,))
    data = tflite.to_bytes(net)
    weights = [layer.packed.weight for layer in net.layers if layer.packed is not None]
    places = [data.find(weight.tobytes()) for weight in weights if weight is not None]
    assert len(places) == 2
    assert all(place > 0 and place % 16 == 0 for place in places)
    assert data[4:8] == b"TFL3"


def test_what_has_no_tflite_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 2), nn.AvgPool2d(2), nn.Hardtanh(-0.1, 0.2), nn.Flatten(), nn.Linear(16, 3))
    net, rows = quantised(module, (1, 5, 5))
    with pytest.raises(ModelError, match=r"'2' clamps to \[-0.1, 0.2\]"):
        tflite.to_bytes(net)
    float_net = translate(module, (1, 5, 5))
    with pytest.raises(ModelError, match=r"'0' \(CONV\) is not int8"):
        tflite.to_bytes(float_net)
    with pytest.raises(ModelError, match=r"'2' \(CLAMP\) is not int8"):
        tflite.to_bytes(quantise(float_net, rows, "1"))
