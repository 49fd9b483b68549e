"""Quantisation to int8: numbers that can be worked out by hand, accuracy, and the twin in torch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from midhaul.errors import ModelError
from midhaul.models import quantise as q
from midhaul.models.int8 import Int8Body
from midhaul.models.translate import translate
from midhaul.net import Kind, Layer, Net, Value


def small_net(seed: int = 0) -> Net:
    """Every int8 kind: conv, depthwise with a multiplier, residual, both pools, flatten, dense, a float head."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / math.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    shapes = [(2, 9, 7), (6, 5, 4), (6, 5, 4), (6, 5, 4), (12, 5, 4), (12, 2, 2), (12, 2, 1), (24, 1, 1)]
    shapes += [(10, 1, 1), (3, 1, 1)]
    layers = [
        Layer(Kind.CONV, "stem", (0,), 1, (3, 3), (2, 2), (1, 1, 1, 1), low=0.0, weights={"weight": "a", "bias": "b"}),
        Layer(Kind.CONV, "point", (1,), 2, weights={"weight": "c"}),
        Layer(Kind.ADD, "add", (1, 2), 3, low=0.0),
        Layer(
            Kind.DEPTHWISE,
            "depth",
            (3,),
            4,
            (3, 2),
            padding=(1, 1, 1, 0),
            groups=6,
            low=0.0,
            high=1.0,
            weights={"weight": "d", "bias": "e"},
        ),
        Layer(Kind.MAX_POOL, "most", (4,), 5, (2, 3), (3, 2), (0, 1, 0, 0)),
        Layer(Kind.AVERAGE_POOL, "mean", (5,), 6, (1, 2), (1, 1)),
        Layer(Kind.RESHAPE, "flatten", (6,), 7),
        Layer(Kind.DENSE, "wide", (7,), 8, low=0.0, weights={"weight": "f", "bias": "g"}),
        Layer(Kind.DENSE, "head", (8,), 9, weights={"weight": "h", "bias": "i"}),
    ]
    tensors = {"a": draw(6, 2, 3, 3), "b": draw(6), "c": draw(6, 6, 1, 1), "d": draw(12, 1, 3, 2), "e": draw(12)}
    tensors |= {"f": draw(10, 24), "g": draw(10), "h": draw(3, 10), "i": draw(3)}
    return Net(tuple(Value(shape) for shape in shapes), tuple(layers), tensors)


def rows(net: Net, num: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (num, *net.values[0].shape)).astype(np.float32)


def test_requantisation_of_one_number_by_hand() -> None:
    source, out = Value((2, 1, 1), True, 0.5, 10), Value((1, 1, 1), True, 2.0, -3)
    numbers = q.requant(np.array([[12.7, -6.35]]), np.array([3.0]), source, out)
    # scale 12.7 / 127 = 0.1; weights 127, -63.5 -> -64 (half to even); bias 3 / (0.5 * 0.1) = 60, less 10 * 63
    assert numbers.weight is not None
    assert numbers.bias is not None
    assert numbers.weight.tolist() == [[127, -64]]
    assert numbers.bias.tolist() == [60 - 10 * (127 - 64)]
    # 0.5 * 0.1 / 2 = 0.025
    assert numbers.shift.tolist() == [0]
    assert numbers.multiplier.tolist() == [round(0.025 * 2**32)]
    layer = Layer(Kind.DENSE, "one", (0,), 1, packed=numbers)
    net = Net((source, out), (layer,), {})
    got = q.integer_layer(layer, net, [np.array([[[[30, 20]]]], np.int8)])
    # real: (20 * 0.5) * 12.7 - 10 * 0.5 * 6.4 + 3 = 98.0 -> 49 steps of 2, less 3
    assert got.tolist() == [[[[46]]]]


def test_a_half_is_rounded_up_and_the_limits_hold() -> None:
    source, out = Value((1, 1, 1), True, 1.0, 0), Value((1, 1, 1), True, 2.0, 0)
    numbers = q.requant(np.array([[127.0]]), None, source, out, low=-3.0, high=126.0)
    assert (numbers.multiplier.tolist(), numbers.shift.tolist()) == ([2**30], [1])
    assert (numbers.low, numbers.high) == (-2, 63)
    numbers = replace(numbers, weight=np.array([[1]], np.int8), low=-128, high=127)
    layer = Layer(Kind.DENSE, "half", (0,), 1, packed=numbers)
    net = Net((source, out), (layer,), {})
    got = [int(q.integer_layer(layer, net, [np.array([[[[v]]]], np.int8)])[0, 0, 0, 0]) for v in (1, -1, 3, -3, 2)]
    assert got == [1, 0, 2, -1, 1]


def test_addition_by_hand() -> None:
    a, b, out = (Value((1, 1, 1), True, scale, zero) for scale, zero in ((0.5, 4), (0.25, -8), (1.0, 1)))
    numbers = q.add_requant(a, b, out)
    layer = Layer(Kind.ADD, "add", (0, 1), 2, packed=numbers)
    got = q.integer_layer(
        layer, Net((a, b, out), (layer,), {}), [np.array([[[[14]]]], np.int8), -np.ones((1, 1, 1, 1), np.int8)]
    )
    # (14 - 4) / 2 + (-1 + 8) / 4 = 6.75 -> 7, and 1
    assert got.tolist() == [[[[8]]]]


def test_average_rounds_half_away_from_zero() -> None:
    value, none = Value((1, 1, 2), True, 1.0, 5), np.zeros(0, np.int32)
    layer = Layer(Kind.AVERAGE_POOL, "mean", (0,), 1, (1, 2), packed=q.Quantised(None, None, none, none, -128, 127))
    net = Net((value, replace(value, shape=(1, 1, 1))), (layer,), {})
    for pair, mean in (((1, 2), 2), ((-1, -2), -2), ((-3, 2), -1), ((3, -2), 1)):
        assert q.integer_layer(layer, net, [np.array(pair, np.int8).reshape(1, 1, 2, 1)]).item() == mean


def test_zero_is_exact_and_ranges_hold_it() -> None:
    for low, high in ((0.0, 3.0), (-1.0, 0.0), (-0.7, 2.1), (0.0, 0.0)):
        value = q.value_of((1, 1, 1), low, high)
        assert value.scale > 0
        assert -128 <= value.zero_point <= 127
        for real in (low, high, 0.0):
            stored = np.clip(np.rint(real / value.scale) + value.zero_point, -128, 127)
            assert abs((stored - value.zero_point) * value.scale - real) <= 0.51 * value.scale
    found = q.ranges(small_net(), 5.0 + np.zeros((3, 2, 9, 7)))
    assert found[0] == (0.0, 5.0)


def test_the_body_is_near_the_float_network() -> None:
    net = small_net()
    x = rows(net, 200)
    made = q.quantise(net, x, "wide")
    assert [layer.kind.name for layer in made.layers] == [
        *("QUANTISE", "CONV", "CONV", "ADD", "DEPTHWISE", "MAX_POOL", "AVERAGE_POOL", "DENSE", "DEQUANTISE", "DENSE")
    ]
    assert set(made.tensors) == {"h", "i"}
    weights = {name: torch.as_tensor(value) for name, value in net.tensors.items()}
    want = q._run(net, torch.as_tensor(x), weights)[8].numpy()
    got = Int8Body(made)(torch.as_tensor(x)).numpy()
    assert got.shape == (200, 10)
    assert np.abs(got - want.reshape(200, 10)).mean() < 0.02 * want.max()


@pytest.mark.parametrize("upto", ["stem", "add", "depth", "most", "mean", "flatten", "wide", None])
def test_the_torch_body_gives_the_integers_of_the_reference(upto: str | None) -> None:
    net = small_net(3)
    made = q.quantise(net, rows(net, 50, 4), upto, percentile=99.0)
    x = rows(net, 40, 5) * 2
    x[0, 0, 0, 0] = np.nan
    x[1, 0, 0, 0] = np.inf
    end = next(layer for layer in made.layers if layer.kind == Kind.DEQUANTISE)
    value = made.values[end.inputs[0]]
    want = q.dequantised(q.integers(made, x)[end.inputs[0]], value)
    body = Int8Body(made, shape=value.shape)
    got = body(torch.as_tensor(x))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), want)
    assert len(np.unique(want)) > 5
    mapped = torch.func.vmap(body)(torch.as_tensor(x).reshape(5, 8, *x.shape[1:]))
    assert np.array_equal(mapped.numpy().reshape(want.shape), want)


def test_percentiles_cut_the_tails() -> None:
    net = small_net()
    x = rows(net, 64)
    x[3, 0, 0, 0] = 1000.0
    assert q.ranges(net, x)[0][1] == 1000.0
    assert q.ranges(net, x, percentile=99.0)[0][1] < 10.0


def test_refusals_say_what_to_do() -> None:
    net = small_net()
    with pytest.raises(ModelError, match=r"no layer 'nose'.*stem, point"):
        q.quantise(net, rows(net, 2), "nose")
    with pytest.raises(ModelError, match="finite rows of 126"):
        q.quantise(net, np.zeros((2, 5)))
    norm = Net((net.values[0], net.values[0]), (Layer(Kind.GROUP_NORM, "norm", (0,), 1),), {})
    with pytest.raises(ModelError, match="norm has kind GROUP_NORM"):
        q.quantise(norm, rows(net, 2))
    with pytest.raises(ModelError, match="no int8 layers"):
        q.integers(net, rows(net, 2))
    huge = np.full((1, 200_000), 1.0)
    with pytest.raises(ModelError, match="sums beyond 32 bits"):
        q.requant(huge, None, q.value_of((200_000, 1, 1), 0, 1), q.value_of((1, 1, 1), 0, 1e5), name="huge")


def test_digits_lose_less_than_half_a_point() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.ReLU()),
        *(torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)),
    )
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.as_tensor(labels)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    order = torch.randperm(1797)
    for step in range(400):
        picked = order[:1200][torch.arange(64 * step, 64 * step + 64) % 1200]
        optimiser.zero_grad()
        F.cross_entropy(model(x[picked]), y[picked]).backward()
        optimiser.step()
    test = order[1200:]
    with torch.no_grad():
        exact = (model(x[test]).argmax(1) == y[test]).double().mean().item()
    net = translate(model.eval(), (1, 8, 8))
    made = q.quantise(net, x[order[:200]].numpy())
    rounded = (Int8Body(made)(x[test]).argmax(1) == y[test]).double().mean().item()
    assert exact > 0.93
    assert rounded > exact - 0.005
    tuned = q.fine_tune(net, x[order[:1200]].numpy(), y[order[:1200]].numpy(), steps=60)
    assert set(tuned.tensors) == set(net.tensors)
    again = q.quantise(tuned, x[order[:200]].numpy())
    assert (Int8Body(again)(x[test]).argmax(1) == y[test]).double().mean().item() > exact - 0.005


def test_fine_tuning_brings_the_loss_of_the_rounded_network_down() -> None:
    net = small_net(2)
    x = rows(net, 120, 7)
    weights = {name: torch.as_tensor(value) for name, value in net.tensors.items()}
    y = q._run(net, torch.as_tensor(x), weights)[9].flatten(1).argsort(1)[:, 1].numpy()

    def loss(one: Net) -> float:
        body = Int8Body(q.quantise(one, x))
        return F.cross_entropy(body(torch.as_tensor(x)), torch.as_tensor(y)).item()

    assert loss(q.fine_tune(net, x, y, steps=150, rate=1e-2)) < 0.8 * loss(net)
