"""The tiny models: their published sizes, what they take, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from midhaul import rng, tree
from midhaul.errors import ModelError
from midhaul.models import count, tiny
from midhaul.models.entry import Entry
from midhaul.models.tiny import TINY


def parameters(name: str, shape: tuple[int, ...], classes: int, **options: Any) -> int:
    return sum(p.numel() for p in tiny.build(name, shape, classes, **options).parameters())


def shape_of(entry: Entry, rank: int) -> tuple[int, ...]:
    published = entry.published_shape
    return published if len(published) == rank else {1: (24,), 2: (6, 64), 3: (1, 16, 16)}[rank]


@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name, entry in TINY.items() for rank in entry.ranks])
def test_every_model_gives_a_row_of_outputs_for_each_rank_it_takes(name: str, rank: int) -> None:
    shape = shape_of(TINY[name], rank)
    classes = torch.Size(shape).numel() if name == "autoencoder" else 7
    options = {"vocabulary": 30} if name == "embed" else {}
    x = torch.randint(0, 30, (2, *shape)) if name == "embed" else torch.randn(2, *shape)
    assert tiny.build(name, shape, classes, **options).eval()(x).shape == (2, classes)


def test_sizes_of_published_models() -> None:
    # Those of MLPerf Tiny are in test_models_count.py: theirs are counted without batch norm.
    assert parameters("mlp2nn", (784,), 10) == 199_210  # McMahan et al. 2017, section 3
    # LeCun et al. 1998, section II-B, with all maps connected and nothing trained in the pools.
    assert parameters("lenet5", (1, 28, 28), 10) == 156 + (6 * 25 * 16 + 16) + 48_120 + 10_164 + 850
    assert parameters("cnn", (1, 28, 28), 10, channels=[32, 64], hidden=[512]) == 1_663_370  # the same
    # Lawhern et al. 2018, table 2, for 64 channels, 128 samples and 2 classes: with F1 filters, D = 2 and F2 = 2 F1,
    # 64 F1 + 2 F1 + 64 D F1 + 2 D F1 + 16 D F1 + F2 D F1 + 2 F2 + 2 (F2 4 + 1).
    for f1, total in ((8, 2_258), (4, 1_066)):
        f2 = 2 * f1
        assert 66 * f1 + 66 * f2 + 16 * f2 + f2 * f2 + 2 * f2 + 2 * (4 * f2 + 1) == total
        assert parameters("eegnet", (64, 128), 2, temporal=f1) == total


@pytest.mark.parametrize("name", [name for name, entry in TINY.items() if entry.parameters and name != "eegnet"])
def test_the_catalogue_says_what_is_built(name: str) -> None:
    entry = TINY[name]
    module = tiny.build(name, entry.published_shape, entry.published_classes, **entry.published_options)
    assert count.folded_parameters(module) == entry.parameters


def test_sizes_by_hand() -> None:
    assert parameters("linear", (3, 4), 5) == 12 * 5 + 5
    assert parameters("mlp", (64,), 10) == 64 * 64 + 64 + 640 + 10
    assert parameters("mlp", (8,), 3, hidden=[4, 2]) == (32 + 4) + (8 + 2) + (6 + 3)
    assert parameters("mlp", (8,), 3, hidden=[]) == 27
    assert parameters("cnn1d", (6, 128), 6) == (6 * 5 * 32 + 32) + (32 * 5 * 64 + 64) + (64 * 5 * 64 + 64) + (
        64 * 6 + 6
    )
    assert parameters("cnn1d", (6, 128), 6) <= 40_000
    assert parameters("embed", (20,), 4, vocabulary=50, dim=8) == 400 + 36


def test_embed_leaves_padding_out_of_the_mean() -> None:
    module = tiny.build("embed", (4,), 2, vocabulary=5, dim=3)
    long, short = module(torch.tensor([[1, 2, 0, 0]])), module(torch.tensor([[1, 2, 1, 2]]))
    torch.testing.assert_close(long, short)
    nothing = module(torch.tensor([[0, 0, 0, 0]]))
    assert torch.equal(nothing[0], module.get_parameter("head.bias"))
    counted = tiny.build("embed", (4,), 2, vocabulary=5, dim=3, padding=-1)
    assert not torch.allclose(counted(torch.tensor([[1, 2, 0, 0]])), counted(torch.tensor([[1, 2, 1, 2]])))


def test_padding_of_mlperf_models_is_that_of_tensorflow() -> None:
    # For 96 pixels and stride 2 TensorFlow pads below and to the right only: an impulse at (0, 0) meets the kernel's
    # upper left weight.
    module = tiny.build("mobilenet_v1_025", (3, 96, 96), 2)
    x = torch.zeros(1, 3, 96, 96)
    x[0, 0, 0, 0] = 1.0
    with torch.no_grad():
        out = module.get_submodule("conv")(module.get_submodule("conv_pad")(x))
    conv = module.get_submodule("conv")
    torch.testing.assert_close(out[0, :, 0, 0], conv.weight[:, 0, 0, 0] + conv.bias)


def test_the_seed_makes_the_weights() -> None:
    def built(seed: int) -> tree.Tree:
        with rng.torch_seed(rng.key(seed, 0, 0, rng.Use.INIT)):
            return tree.of(tiny.build("cnn1d", (6, 32), 3))

    assert tree.sha256(built(1)) == tree.sha256(built(1)) != tree.sha256(built(2))


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "message"),
    [
        ("mpl", (4,), 2, {}, "no tiny model 'mpl'; did you mean 'mlp'"),
        ("cnn", (4,), 2, {}, r"takes an input of shape \(channels, height, width\), not \(4,\)"),
        ("cnn1d", (1, 28, 28), 2, {}, r"takes an input of shape \(channels, length\)"),
        ("mlp", (0,), 2, {}, "takes an input of shape"),
        ("mlp", (4,), 0, {}, "can't have 0 outputs"),
        ("mlp", (4,), 2, {"hiden": 3}, "no option 'hiden'; did you mean 'hidden'"),
        ("mlp", (4,), 2, {"hidden": [3, -1]}, "option hidden is .* above 0"),
        ("mlp", (4,), 2, {"hidden": "many"}, "option hidden is 'many'"),
        ("cnn1d", (4, 8), 2, {"kernel": 4}, "option kernel is 4; it must be odd"),
        ("cnn1d", (4, 8), 2, {"kernel": [3, 5]}, "one whole number"),
        ("cnn1d", (4, 8), 2, {"norm": "batch"}, "option norm is 'batch'"),
        ("cnn", (1, 3, 3), 2, {}, "halves an image"),
        ("embed", (4,), 2, {}, "option vocabulary"),
        ("autoencoder", (4,), 2, {}, "as many numbers as it takes: 4, not 2"),
        ("eegnet", (4, 31), 2, {}, "at least 32 samples"),
        ("eegnet", (4, 64), 2, {"dropout": 2.0}, "can't be built with"),
    ],
)
def test_what_is_refused(
    name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        tiny.build(name, shape, classes, **options)


def test_every_entry_says_what_it_is() -> None:
    for name, entry in TINY.items():
        assert entry.summary, name
        assert entry.source, name
        assert all(isinstance(option, str) for option in entry.options), name
