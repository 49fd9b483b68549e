"""Slices and cuts: names by hand, and the two sides of a cut against the whole, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from midhaul import tree as trees
from midhaul.errors import ModelError, SliceError
from midhaul.models import large, slices, tiny


class Functional(nn.Module):
    """Layers whose activations, pooling and reshaping are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * 4 * 4, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        num_rows = x.size(0)
        _, _, height, _ = x.shape
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.relu(self.fc1(x.view(num_rows, height * 8)))
        return self.fc2(x) if scale is None else self.fc2(x) * scale


class Residual(nn.Module):
    """A block with a shortcut, behind and before a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x + self.block["b"](F.relu(self.block["a"](x)))
        return self.last(x)


class Nested(nn.Module):
    """A block of its own inside a module, with the same activation used twice, as in torchvision's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.block = Inner()
        self.offset = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(-1) + self.offset)


class Inner(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv2(self.relu(self.conv1(x))))


def check_cut(module: nn.Module, layer: str, input_shape: tuple[int, ...], x: Tensor) -> tuple[nn.Module, nn.Module]:
    """Cuts, and holds the two sides to the whole."""
    front, rear = slices.cut(module, layer, input_shape)
    module.eval(), front.eval(), rear.eval()
    with torch.no_grad():
        assert torch.equal(rear(front(x)), module(x))
    names = [name for name, _ in module.named_parameters()]
    front_names = [name for name, _ in front.named_parameters()]
    rear_names = [name for name, _ in rear.named_parameters()]
    assert not set(front_names) & set(rear_names)
    assert front_names == [name for name in names if name in front_names]
    assert rear_names == [name for name in names if name in rear_names]
    for name, value in [*front.named_parameters(), *rear.named_parameters()]:
        assert torch.equal(value, module.get_parameter(name))
    return front, rear


CATALOGUE: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("mlp", (3, 5), {"hidden": [7, 6]}),
    ("cnn", (1, 12, 12), {}),
    ("cnn1d", (3, 32), {"norm": "group"}),
    ("dscnn", (1, 21, 10), {"channels": 8}),
    ("resnet8", (3, 16, 16), {}),
    ("autoencoder", (10,), {}),
    ("eegnet", (4, 64), {}),
]


@pytest.mark.parametrize(("name", "shape", "options"), CATALOGUE)
def test_every_cut_of_the_tiny_models_is_the_whole_to_the_bit(
    name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    module = tiny.build(name, shape, 10, **options)
    x = torch.randn(3, *shape)
    points = slices.cut_points(module, shape)
    assert len(points) >= 2
    for point in points:
        front, rear = check_cut(module, point.name, shape, x)
        assert front(x).shape == (3, *point.shape)
        assert len([*front.parameters(), *rear.parameters()]) == len([*module.parameters()])


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet1d", (4, 32)), ("vit", (3, 8, 8)), ("mlp_large", (9,)), ("transformer", (4, 20))]
)
def test_large_models_can_be_cut(name: str, shape: tuple[int, ...]) -> None:
    module = large.build(name, shape, 5)
    points = slices.cut_points(module, shape)
    assert {"block1", "block2"} <= {point.name for point in points}
    for point in points[::3]:
        check_cut(module, point.name, shape, torch.randn(2, *shape))


def test_a_cut_through_written_out_calls() -> None:
    module, x = Functional(), torch.randn(5, 1, 8, 8)
    assert slices.cut_points(module, (1, 8, 8)) == (("conv", (4, 8, 8)), ("fc1", (8,)))
    front, rear = check_cut(module, "conv", (1, 8, 8), x)
    # The ReLU behind the layer lies in the rear.
    assert torch.equal(front(x), module.conv(x))
    assert [name for name, _ in rear.named_parameters()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    # Sizes that the whole reads from its input, the rear reads from what it's given.
    assert torch.equal(rear(front(x[:2])), module(x[:2]))


def test_only_cuts_around_a_shortcut_are_valid() -> None:
    module = Residual()
    assert [point.name for point in slices.cut_points(module, (6,))] == ["first"]
    with pytest.raises(SliceError, match=r"behind 'block\.a': .* more than its output; cut behind first"):
        slices.cut(module, "block.a", (6,))
    check_cut(module, "first", (6,), torch.randn(4, 6))


def test_a_nested_block_is_cut_by_its_name_or_by_its_last_layer() -> None:
    module, x = Nested(), torch.randn(3, 2, 9)
    assert slices.cut_points(module, (2, 9)) == (("stem.0", (4, 9)), ("stem.1", (4, 9)), ("block.relu", (4, 9)))
    for layer in ("stem.0", "stem", "block", "block.relu"):
        check_cut(module, layer, (2, 9), x)
    front, rear = slices.cut(module, "block", (2, 9))
    assert [name for name, _ in rear.named_parameters()] == ["offset", "head.weight", "head.bias"]
    # The last of a layer's calls counts: the ReLU that ends the block.
    assert torch.equal(front(x), module.block(module.stem(x)))


def test_an_activation_in_place_does_not_overwrite_what_was_sent() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    front, rear = slices.cut(module, "0", (3,))
    h = front(torch.randn(5, 3)).detach().requires_grad_(True)
    before = h.detach().clone()
    rear(h).sum().backward()
    assert torch.equal(h.detach(), before)
    assert h.grad is not None


def test_an_operation_in_place_that_the_graph_misses_is_refused() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x.relu_()
            return self.b(x)

    with pytest.raises(SliceError, match="in place"):
        slices.cut(InPlace(), "a", (3,))


def test_a_layer_that_serves_on_both_sides_is_no_cut() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(self.b(self.a(x))))

    module = Twice()
    with pytest.raises(SliceError, match="used again after it; cut behind a"):
        slices.cut(module, "b", (3,))
    # Behind the last call of `a` both calls are in front.
    check_cut(module, "a", (3,), torch.randn(2, 3))


def test_a_recurrent_layer_is_cut_behind_its_sequence() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            sequence, _ = self.gru(x.transpose(1, 2))
            return self.head(sequence[:, -1])

    module = Recurrent()
    assert slices.cut_points(module, (3, 7)) == (("gru", (7, 4)),)
    check_cut(module, "gru", (3, 7), torch.randn(2, 3, 7))


def test_tokens_are_cut_behind_their_embedding() -> None:
    module = tiny.build("embed", (9,), 4, vocabulary=11)
    x = torch.randint(0, 11, (3, 9))
    front, _ = check_cut(module, "embed", (9,), x)
    assert front(x).shape == (3, 32)


def test_branches_on_the_input_are_refused_unless_a_chain_holds_them() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    chain = nn.Sequential(Branching(), nn.ReLU(), nn.Linear(3, 2))
    check_cut(chain, "0", (3,), torch.randn(4, 3))
    with pytest.raises(SliceError, match="can't be traced"):
        slices.cut(Branching(), "fc", (3,))


def test_dropout_written_out_is_refused() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.a(x), 0.5, self.training))

    with pytest.raises(SliceError, match="differs between training and evaluation"):
        slices.cut(Dropping(), "a", (3,))


def test_an_unknown_layer_and_a_cut_with_nothing_behind_it() -> None:
    module = tiny.build("mlp", (4,), 2, hidden=[3])
    with pytest.raises(SliceError, match="did you mean 'relu1'"):
        slices.cut(module, "relu", (4,))
    with pytest.raises(SliceError, match="nothing to train after it; cut behind fc1, relu1"):
        slices.cut(module, "head", (4,))
    with pytest.raises(SliceError, match="nothing to train before it"):
        slices.cut(module, "flatten", (4,))
    with pytest.raises(ModelError, match="can't be run on an input of shape"):
        slices.cut(module, "fc1", (5,))


def test_cutting_leaves_the_module_as_it_was_and_shares_nothing() -> None:
    module = tiny.build("mlp", (4,), 2, hidden=[3]).train()
    before = trees.of(module)
    front, _ = slices.cut(module, "fc1", (4,))
    assert front.training
    assert front.get_submodule("fc1").training
    with torch.no_grad():
        front.get_parameter("fc1.weight").add_(1.0)
    assert trees.largest_difference(before, trees.of(module)) == 0.0
    assert module.training


def test_the_rear_can_be_cut_again_for_the_u_shape() -> None:
    module = tiny.build("mlp", (4,), 3, hidden=[6, 5])
    x = torch.randn(7, 4)
    front, rest = slices.cut(module, "relu1", (4,))
    middle, tail = slices.cut(rest, "relu2", (6,))
    assert torch.equal(tail(middle(front(x))), module(x))
    assert [name for name, _ in tail.named_parameters()] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(("name", "shape", "layer"), [("cnn1d", (3, 32), "relu2"), ("cnn", (1, 12, 12), "pool1")])
def test_both_sides_run_on_many_devices_at_once(name: str, shape: tuple[int, ...], layer: str) -> None:
    module = tiny.build(name, shape, 4)
    front, rear = slices.cut(module, layer, shape)
    sides = (front, rear)
    stacks = [{n: p.detach() + 0.1 * torch.randn(3, *p.shape) for n, p in side.named_parameters()} for side in sides]
    x = torch.randn(3, 5, *shape)

    def through(a: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rear, b, (functional_call(front, a, (x,)),)).square().sum()

    slopes = vmap(grad(through))(*stacks, x)
    for device in range(3):
        own = [{n: v[device] for n, v in stack.items()} for stack in stacks]
        torch.testing.assert_close(
            {n: v[device] for n, v in slopes.items()}, grad(through)(*own, x[device]), rtol=1e-4, atol=1e-4
        )


def test_batch_norm_that_stays_on_its_device_is_cut_with_its_names() -> None:
    shape = (1, 21, 10)
    prepared = slices.prepare(tiny.build("dscnn", shape, 3, channels=8), shape, "fedbn")
    front, rear = check_cut(prepared.module, "depthwise1_norm", shape, torch.randn(4, *shape))
    held = {name for side in (front, rear) for name in trees.of(side)}
    assert set(prepared.personal) < held
    front.train()(torch.randn(4, *shape))
    assert set(front.get_submodule("conv_norm").updated) == {"running_mean", "running_var"}
    assert front.get_buffer("conv_norm.running_mean").abs().sum() == 0


def test_a_module_of_fixed_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(2, 4))

    with pytest.raises(ModelError, match=r"can't be run on an input of shape \(3, 3\)"):
        slices.cut(Fixed(), "a", (3,))


def test_names_of_slices() -> None:
    module, shape = tiny.build("mlp", (4,), 2, hidden=[3]), (4,)
    fc1, head = ("fc1.weight", "fc1.bias"), ("head.weight", "head.bias")
    assert slices.names(module, "whole", shape) == fc1 + head
    assert slices.names(module, "head", shape) == head
    assert slices.names(module, "body", shape) == fc1
    assert slices.names(module, "bias", shape) == ("fc1.bias", "head.bias")
    assert slices.names(module, "front:relu1", shape) == fc1
    assert slices.names(module, "rear:relu1", shape) == head
    assert slices.names(module, "layers:head, fc1", shape) == fc1 + head


def test_the_head_is_the_layer_that_is_executed_last() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.hidden = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.hidden(x)))

    module = Backwards()
    assert slices.names(module, "head", (4,)) == ("out.weight", "out.bias")
    assert slices.names(module, "front:hidden", (4,)) == ("hidden.weight", "hidden.bias")


def test_front_and_rear_of_a_model_with_a_parameter_of_its_own() -> None:
    assert "offset" in slices.names(Nested(), "rear:block", (2, 9))
    assert "offset" not in slices.names(Nested(), "front:block", (2, 9))
    assert "offset" in slices.names(Nested(), "body", (2, 9))


def test_slices_that_a_model_does_not_have() -> None:
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    for spec, message in (
        ("bias", "holds no parameters"),
        ("lora", "holds no parameters"),
        ("haed", "did you mean 'head'"),
        ("layers:2", "no layer '2'"),
        ("front:", "there is no slice"),
        ("front:7", "no layer '7'"),
    ):
        with pytest.raises(SliceError, match=message):
            slices.names(module, spec, (4,))
    with pytest.raises(SliceError, match="no layer with parameters"):
        slices.names(nn.Sequential(nn.ReLU()), "head", (4,))


def test_take_keeps_the_order_of_the_tree() -> None:
    module = tiny.build("mlp", (4,), 2)
    taken = slices.take(trees.of(module), ("head.bias", "fc1.weight"))
    assert list(taken) == ["fc1.weight", "head.bias"]
