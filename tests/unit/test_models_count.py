"""MACs, parameters and outputs by hand, and those of MLPerf Tiny as published."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from midhaul.models import count, tiny
from midhaul.models.count import LayerCost, Totals


def test_layers_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    conv, relu, flatten, linear = count.layers(module, (2, 8, 8))
    # Each of 3 x 4 x 4 outputs takes 2 x 3 x 3 products.
    assert conv == LayerCost("0", "Conv2d", 48 * 18, 2 * 3 * 9 + 3, (3, 4, 4), 48)
    assert relu == LayerCost("1", "ReLU", 0, 0, (3, 4, 4), 48)
    assert flatten == LayerCost("2", "Flatten", 0, 0, (48,), 48)
    assert linear == LayerCost("3", "Linear", 48 * 5, 48 * 5 + 5, (5,), 5)
    assert count.totals(module, (2, 8, 8)) == Totals(864 + 240, 57 + 245, 48 * 3 + 5)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), (4, 10), 10 * 6 * 4 * 3),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 6), 30 * 4 * 9),
        (nn.Conv2d(4, 8, 1), (4, 5, 6), 30 * 4 * 8),
        (nn.Conv2d(4, 8, (1, 5), groups=2), (4, 1, 9), 5 * 8 * 2 * 5),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 10), 10 * 4 * 6 * 3),
        (nn.Linear(4, 6), (7, 4), 7 * 4 * 6),
        (nn.BatchNorm1d(4), (4, 10), 0),
        (nn.GroupNorm(2, 4), (4, 10), 0),
        # Three gates, each of 3 x 5 + 5 x 5 products a step.
        (nn.GRU(3, 5, batch_first=True), (7, 3), 7 * 3 * (15 + 25)),
        # Four projections of 6 tokens, then scores and their mix of values over 6 x 6 pairs of tokens.
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (6, 8), 6 * (4 * 64 + 2 * 128) + 2 * 36 * 8),
    ],
)
def test_macs_of_one_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    (cost,) = count.layers(layer, shape)
    assert cost.macs == macs


# The published parameters are those without batch norm, which is folded into the layers before it.
PUBLISHED = [
    ("dscnn", (1, 49, 10), 12, 22_604, 22.6, 2.66),
    ("mobilenet_v1_025", (3, 96, 96), 2, 210_850, 210.9, 7.49),
    ("resnet8", (3, 32, 32), 10, 77_706, 77.7, 12.5),
    ("autoencoder", (640,), 640, 265_864, 265.9, 0.264),
]


@pytest.mark.parametrize(("name", "shape", "classes", "exact", "kilo", "mega"), PUBLISHED)
def test_mlperf_tiny_as_published(
    name: str, shape: tuple[int, ...], classes: int, exact: int, kilo: float, mega: float
) -> None:
    module = tiny.build(name, shape, classes)
    folded, macs = count.folded_parameters(module), count.totals(module, shape).macs
    assert folded == exact == tiny.TINY[name].parameters
    assert abs(folded - kilo * 1e3) <= 50 + 1e-6
    assert float(f"{macs / 1e6:.3g}") == mega
    assert macs == tiny.TINY[name].macs


def test_trained_parameters_of_mlperf_tiny_are_those_of_its_keras_models() -> None:
    # resnet8's reference code prints 78,666 with batch norm, of which 480 are running statistics.
    module = tiny.build("resnet8", (3, 32, 32), 10)
    trained = sum(p.numel() for p in module.parameters())
    statistics = sum(b.numel() for n, b in module.named_buffers() if not n.endswith("tracked"))
    assert (trained, statistics, trained + statistics) == (78_186, 480, 78_666)


def test_what_lies_outside_of_layers_is_counted_last() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.weight = nn.Parameter(torch.zeros(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(x)) @ self.weight

    first, rest = count.layers(Bare(), (4,))
    assert first == LayerCost("fc", "Linear", 12, 15, (3,), 3)
    assert rest == LayerCost("", "functional", 6, 6, (2,), 2)
    assert count.totals(Bare(), (4,)) == Totals(18, 21, 3)


def test_a_layer_that_is_called_twice_costs_twice_but_is_held_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.fc(x)))

    first, second = count.layers(Twice(), (3,))
    assert (first.name, first.macs, first.parameters) == ("fc", 9, 12)
    assert (second.name, second.macs, second.parameters) == ("fc", 9, 0)


def test_tokens_cost_a_look_up() -> None:
    module = tiny.build("embed", (9,), 4, vocabulary=11, dim=5)
    costs = count.layers(module, (9,))
    assert [(c.name, c.macs, c.parameters) for c in costs] == [
        ("embed.table", 0, 55),
        ("flatten", 0, 0),
        ("head", 20, 24),
    ]


def test_counting_leaves_the_module_as_it_was() -> None:
    module = tiny.build("dscnn", (1, 21, 10), 3, channels=8).train()
    count.layers(module, (1, 21, 10))
    assert module.training
    assert module.get_submodule("conv_norm").training
    assert int(module.get_buffer("conv_norm.num_batches_tracked")) == 0
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize("name", ["mlp", "cnn", "dscnn", "resnet8"])
def test_a_pass_counts_what_torch_s_own_counter_counts(name: str) -> None:
    module = tiny.build(name, (3, 32, 32), 10).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 32, 32))
    assert count.totals(module, (3, 32, 32)).macs == counter.get_total_flops() // 2 > 0
