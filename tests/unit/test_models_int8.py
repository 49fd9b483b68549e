"""A model with its body in int8: the device's integers, in torch, in every engine, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from midhaul import config, train, tree
from midhaul.errors import ConfigError, ModelError
from midhaul.link.frame import Frame, pack, unpack
from midhaul.message import Op
from midhaul.models import quantise, slices, tiny
from midhaul.models.int8 import Int8Front, numbers
from midhaul.models.translate import translate
from midhaul.program import Program

MODELS = [("cnn1d", (6, 32), 4), ("cnn", (1, 12, 12), 3), ("mlp", (10,), 3)]


def made(name: str, shape: tuple[int, ...], classes: int) -> tuple[nn.Module, Int8Front, torch.Tensor]:
    torch.manual_seed(3)
    module = tiny.build(name, shape, classes).eval()
    x = torch.randn(40, *shape)
    return module, Int8Front(module, shape, x), x


@pytest.mark.parametrize(("name", "shape", "classes"), MODELS)
def test_its_features_are_the_device_s_integers(name: str, shape: tuple[int, ...], classes: int) -> None:
    module, front, x = made(name, shape, classes)
    net = front.device_net()
    last = next(layer for layer in net.layers if layer.kind.name == "DEQUANTISE")
    stored = quantise.integers(net, x.numpy())[last.inputs[0]]
    features = quantise.dequantised(stored, net.values[last.inputs[0]])
    head = module.get_submodule("head")
    with torch.no_grad():
        got, real = front(x), module(x)
        expected = head(torch.from_numpy(np.ascontiguousarray(features)).reshape(len(x), -1))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert float((got - real).abs().max()) < 0.05 * float(real.abs().max())


@pytest.mark.parametrize(("name", "shape", "classes"), MODELS)
def test_its_numbers_cross_the_wire_and_make_the_same_net(name: str, shape: tuple[int, ...], classes: int) -> None:
    module, front, x = made(name, shape, classes)
    other = {key: value + 0.1 * torch.randn_like(value) for key, value in module.state_dict().items()}
    whole = front.lowered(module, other, x)
    program = Program(front, shape, frozen=front.frozen)
    assert set(whole) == set(program.initial)
    assert program.names("whole") == program.names("head") == ("head.weight", "head.bias")
    data = pack(Frame(Op.LOAD, False, 0, 0, {}, whole))
    assert len(data) < 0.6 * len(pack(Frame(Op.LOAD, False, 0, 0, {}, tree.of(module))))
    got = unpack(data, program.initial).tree
    program.module.eval()
    before, _ = program.call({**program.initial, **whole}, x, training=False)
    after, _ = program.call({**program.initial, **got}, x, training=False)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    for net in (front.device_net(whole), front.device_net(got)):
        assert numbers(net).keys() == {name for name in whole if name.startswith("int8.")}
        assert all(torch.equal(value, whole[name]) for name, value in numbers(net).items())
    assert translate(front, shape, got).layers[-1].name == "head"


def test_a_model_without_a_body_is_refused() -> None:
    with pytest.raises(ModelError, match="no body before its head"):
        Int8Front(tiny.build("linear", (4,), 2), (4,), torch.randn(8, 4))


def settings(scheme: str, engine: str, **others: object) -> config.Config:
    table = {
        "data": {"name": "digits", "num_devices": 4, "partition": "iid", "public": 0.2, "max_rows": 40},
        "tiny": {"model": "mlp", "options": {"hidden": [16]}, "precision": "int8"},
        "large": {"model": "mlp_large", "epochs": 3, "options": {"hidden": 32, "depth": 1}},
        "scheme": {"name": scheme, "lr": 0.1, "batch": 8, "distill_epochs": 10, **others},
        "run": {"rounds": 3, "engine": engine},
    }
    return config.from_table(table, where="test")


@pytest.mark.parametrize(("scheme", "others"), [("federated_transfer", {}), ("transfer", {"tune": "head"})])
def test_both_simulation_engines_agree(scheme: str, others: dict[str, object]) -> None:
    ends = [train.run(settings(scheme, engine, **others)).server.tree for engine in ("loop", "stacked")]
    assert any(name.startswith("int8.") for name in ends[0])
    for name, value in ends[0].items():
        torch.testing.assert_close(value.double(), ends[1][name].double(), rtol=1e-5, atol=1e-5)


def test_a_scheme_that_trains_the_body_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the scheme fedper trains it on the devices"):
        train.run(settings("fedper", "loop"), tmp_path / "out")


def test_slices_find_the_head() -> None:
    _, front, _ = made(*MODELS[0])
    assert slices.names(front, "head", MODELS[0][1]) == ("head.weight", "head.bias")
