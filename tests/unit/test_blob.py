"""The blob and its plans: by hand on a small network, and no two live buffers on top of each other on larger ones."""

import numpy as np
import pytest

from midhaul.devices import blob, plan
from midhaul.devices.plan import PlanKind, Step
from midhaul.errors import ModelError
from midhaul.net import Kind, Layer, Net, Quantised, Value

RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name.replace("_", "."): RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def mlp() -> Net:
    """8 numbers, 4 hidden with ReLU, 3 classes."""
    layers = (
        Layer(Kind.DENSE, "fc", (0,), 1, low=0.0, weights={"weight": "fc.weight", "bias": "fc.bias"}),
        Layer(Kind.DENSE, "head", (1,), 2, weights={"weight": "head.weight", "bias": "head.bias"}),
    )
    values = (Value((8, 1, 1)), Value((4, 1, 1)), Value((3, 1, 1)))
    return Net(values, layers, weights(fc_weight=(4, 8), fc_bias=(4,), head_weight=(3, 4), head_bias=(3,)))


def residual() -> Net:
    """A convolution, a residual block with a ReLU behind the sum, a global mean, a head."""
    conv = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    layers = (
        Layer(Kind.CONV, "c1", (0,), 1, low=0.0, weights={"weight": "c1.weight", "bias": "c1.bias"}, **conv),
        Layer(Kind.CONV, "c2", (1,), 2, weights={"weight": "c2.weight", "bias": "c2.bias"}, **conv),
        Layer(Kind.ADD, "add", (1, 2), 3, low=0.0),
        Layer(Kind.AVERAGE_POOL, "pool", (3,), 4, kernel=(6, 6)),
        Layer(Kind.RESHAPE, "flat", (4,), 5),
        Layer(Kind.DENSE, "head", (5,), 6, weights={"weight": "head.weight", "bias": "head.bias"}),
    )
    shapes = [(2, 6, 6), (4, 6, 6), (4, 6, 6), (4, 6, 6), (4, 1, 1), (4, 1, 1), (3, 1, 1)]
    tensors = weights(
        c1_weight=(4, 2, 3, 3), c1_bias=(4,), c2_weight=(4, 4, 3, 3), c2_bias=(4,), head_weight=(3, 4), head_bias=(3,)
    )
    return Net(tuple(Value(shape) for shape in shapes), layers, tensors)


HEAD = ("head.weight", "head.bias")


def test_the_head_of_a_small_network_by_hand() -> None:
    net = mlp()
    found = blob.compile(net, {"head": HEAD}, fits=("head",), momentum=True)
    # The hidden layer is frozen, so a row is kept as its 4 features: 16 B, a label, and 2 B to the next multiple of 4.
    assert found.stored == 1
    assert found.row_bytes == 20
    # Weights 48 and 12 (16) B, velocities the same.
    assert found.resident.weights == {"head.weight": 0, "head.bias": 48}
    assert found.resident.velocities == {"head.weight": 64, "head.bias": 112}
    assert found.resident.bytes == 128
    training = next(one for one in found.plans if one.kind == PlanKind.TRAIN)
    assert training.steps == (Step(0), Step.FORWARD | Step.GRAD_PARAMS)
    # Features 16, logits 12 (16), their gradient 16, gradient sums 48 and 16, and 24 (32) of scratch for the loss.
    assert training.arena_bytes == 128 + 16 + 16 + 16 + 48 + 16 + 32
    assert {one.kind for one in found.plans} == {PlanKind.INFER, PlanKind.STORE, PlanKind.TRAIN}


def test_reading_gives_back_what_was_written() -> None:
    net = residual()
    names = tuple(net.tensors)
    found = blob.compile(net, {"whole": names, "head": HEAD}, fits=("whole", "head"), keeps_start=True)
    got = blob.read(found.data)
    assert got.header.model_id == found.model_id
    assert got.header.total_bytes == len(found.data)
    assert [p.slice for p in got.plans] == ["", "whole", "head"]
    assert [(v.c, v.h, v.w) for v in got.values] == [v.shape for v in net.values]
    for place, name in enumerate(names):
        param = got.params[place]
        assert param.shape == net.tensors[name].shape
        np.testing.assert_array_equal(got.floats(param.initial_at, param.elements), net.tensors[name].reshape(-1))
    assert got.layers[0].flags == 1
    assert got.layers[0].low == 0.0
    assert got.layers[1].flags == 0
    assert got.plans[2].trained == tuple(name in HEAD for name in names)


@pytest.mark.parametrize(
    ("net", "trained"),
    [
        (mlp(), set(mlp().tensors)),
        (mlp(), {"fc.bias"}),
        (residual(), set(residual().tensors)),
        (residual(), set(HEAD)),
        (residual(), {"c1.weight"}),
        (residual(), {"c2.bias", "head.bias"}),
        (residual(), {"c1.bias"}),
    ],
)
def test_no_two_buffers_that_live_together_overlap(net: Net, trained: set[str]) -> None:
    kept = plan.resident(net, trained, momentum=True, keeps_start=True)
    one = plan.train(net, kept, 0, lambda layer, of: 0, slice="s", trained=trained)
    for a in one.buffers:
        assert a.offset >= kept.bytes
        assert a.end <= one.arena_bytes
        assert a.offset % 16 == 0
        for b in one.buffers:
            if a is not b and a.meets(b):
                assert a.end <= b.offset or b.end <= a.offset, (a, b)
    assert set(one.sums) == trained


def test_a_residual_sum_gets_both_gradients() -> None:
    net = residual()
    kept = plan.resident(net, net.tensors, momentum=False, keeps_start=False)
    one = plan.train(net, kept, 0, lambda layer, of: 0, slice="whole", trained=net.tensors)
    # Backward visits the sum first and writes both; the second convolution then adds to the gradient of its input.
    assert one.steps[2] == Step.FORWARD | Step.GRAD_INPUT0 | Step.GRAD_INPUT1
    assert one.steps[1] == Step.FORWARD | Step.GRAD_PARAMS | Step.GRAD_INPUT0 | Step.ADDS0
    assert one.steps[0] == Step.FORWARD | Step.GRAD_PARAMS
    assert one.grads[1] != one.grads[2]
    assert one.values[4] == one.values[5]


def test_inference_takes_less_than_training_and_frees_what_is_done() -> None:
    net = residual()
    kept = plan.resident(net, (), momentum=False, keeps_start=False)
    one = plan.infer(net, kept, 0, lambda layer, of: 0)
    assert one.arena_bytes == 2 * 4 * 4 * 36  # the two inputs of the sum; its output lies over one of them


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda b: b[:-4], "damaged"),
        (lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], "damaged"),
        (lambda b: b"XXXX" + b[4:], "no model blob"),
        (lambda b: b[:10], "has 64 to"),
    ],
)
def test_what_is_no_whole_blob_is_refused(change: object, word: str) -> None:
    data = blob.compile(mlp(), {"head": HEAD}, fits=("head",)).data
    with pytest.raises(ModelError, match=word):
        blob.read(change(data))  # type: ignore[operator]


def test_what_can_not_be_trained_is_refused() -> None:
    with pytest.raises(ModelError, match="no slice 'tail'"):
        blob.compile(mlp(), {"head": HEAD}, fits=("tail",))
    with pytest.raises(ModelError, match=r"no float tensor 'x\.weight'"):
        blob.compile(mlp(), {"head": ("x.weight",)}, fits=("head",))


def int8_pair(channels: int) -> Net:
    """Two int8 convolutions of 3 x 3 over a map of 8 x 8, all of one size."""
    shape = (channels, 8, 8)
    conv = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    count = np.zeros(channels, np.int32)
    packed = Quantised(np.zeros((channels, channels, 3, 3), np.int8), count, count, count, -128, 127)
    layers = (
        Layer(Kind.QUANTISE, "quantise", (0,), 1),
        Layer(Kind.CONV, "c1", (1,), 2, packed=packed, **conv),
        Layer(Kind.CONV, "c2", (2,), 3, packed=packed, **conv),
        Layer(Kind.AVERAGE_POOL, "pool", (3,), 4, kernel=(8, 8), packed=packed),
        Layer(Kind.DEQUANTISE, "dequantise", (4,), 5),
        Layer(Kind.DENSE, "head", (5,), 6, weights={"weight": "head.weight"}),
    )
    inside = Value(shape, True, 0.1, 0)
    end = Value((channels, 1, 1), True, 0.1, 0)
    values = (Value(shape), inside, inside, inside, end, Value(end.shape), Value((3, 1, 1)))
    return Net(values, layers, weights(head_weight=(3, channels)))


def test_an_int8_convolution_writes_over_its_input_where_that_saves_memory() -> None:
    net = int8_pair(16)
    kept = plan.resident(net, (), momentum=False, keeps_start=False)
    one = plan.infer(net, kept, 1, lambda layer, of: 0)
    # A position is 16 bytes. Before position p of the output is written, with 3 more at once, the input is needed from
    # the row above on, a position to the left: 9 back. So the output begins 4 + 9 positions before it: 208 bytes.
    assert [one.values[v] - one.values[3] for v in (2, 1)] == [208, 416]
    assert one.arena_bytes == 1024 + 416 + 16  # and the mean of the map


def test_what_is_written_over_is_never_read_again() -> None:
    """Plays a convolution's reads and writes, position by position, against the offsets."""
    net = int8_pair(4)
    kept = plan.resident(net, (), momentum=False, keeps_start=False)
    one = plan.infer(net, kept, 1, lambda layer, of: 0)
    for layer in net.layers[1:3]:
        source, out = one.values[layer.inputs[0]], one.values[layer.out]
        for row in range(8):
            for column in range(8):
                at = row * 8 + column
                written = out + 4 * min(at + 4, 64)  # everything below may be gone before this position is read
                first = (max(0, row - 1) * 8 + max(0, column - 1)) * 4
                assert out <= source
                assert written <= max(source + first, source)


def test_a_row_is_quantised_as_it_comes_and_kept_in_int8() -> None:
    found = blob.compile(int8_pair(16), {"head": ("head.weight",)}, fits=())
    assert found.stored == 1
    assert found.row_bytes == 1024 + 4
    storing = next(one for one in found.plans if one.kind == PlanKind.STORE)
    assert 0 not in storing.values
    assert set(storing.steps) == {Step(0)}
    trained = blob.compile(int8_pair(16), {"head": ("head.weight",)}, fits=("head",))
    assert trained.stored == 4  # the mean in int8; the head's plan begins with its dequantising
    assert trained.row_bytes == 16 + 4
