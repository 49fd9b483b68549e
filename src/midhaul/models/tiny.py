"""Tiny models: those that are trained on devices. Each is a chain of layers without dropout or hidden state."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from midhaul.errors import ModelError
from midhaul.models import eegnet, entry, mlperf, pretrained
from midhaul.models.entry import Entry, Shape, size, sizes


def build(name: str, input_shape: Shape, num_classes: int, **options: Any) -> nn.Module:
    """Gives a tiny model, initialised as torch does it; call it inside `rng.torch_seed`. `hf:NAME` is a model of
    Hugging Face, for devices that hold a foundation model and tune its adapters.

    Raises: ModelError for an unknown name or option, or an input shape that it doesn't take; DependencyError for `hf:`
    without transformers.

    >>> sum(p.numel() for p in build("linear", (8, 8), 10).parameters())
    650
    """
    if name.startswith("hf:"):
        return pretrained.build(name[3:], tuple(input_shape), num_classes, **options)
    return entry.build(TINY, "tiny", name, input_shape, num_classes, options)


def linear(input_shape: Shape, num_classes: int) -> nn.Module:
    """Logistic regression. Shapes: [B, ...] -> [B, num_classes]."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), head=nn.Linear(math.prod(input_shape), num_classes)))


def mlp(input_shape: Shape, num_classes: int, hidden: Any = (64,)) -> nn.Module:
    """Fully connected layers with ReLU between them. Shapes: [B, ...] -> [B, num_classes]."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    width = math.prod(input_shape)
    for place, out in enumerate(sizes("hidden", hidden), 1):
        layers[f"fc{place}"] = nn.Linear(width, out)
        layers[f"relu{place}"] = nn.ReLU()
        width = out
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(layers))


def mlp2nn(input_shape: Shape, num_classes: int) -> nn.Module:
    """The 2NN of the paper that named federated averaging. Shapes: [B, ...] -> [B, num_classes]."""
    return mlp(input_shape, num_classes, (200, 200))


def cnn(
    input_shape: Shape, num_classes: int, channels: Any = (8, 16), hidden: Any = (64,), kernel: int = 5
) -> nn.Module:
    """Convolutions with ReLU and a pool of 2, then fully connected layers. Shapes: [B, C, H, W] -> [B, num_classes]."""
    (width, height, length), kernel = input_shape, _odd("kernel", kernel)
    layers: dict[str, nn.Module] = {}
    for place, out in enumerate(sizes("channels", channels), 1):
        layers[f"conv{place}"] = nn.Conv2d(width, out, kernel, padding=kernel // 2)
        layers[f"relu{place}"] = nn.ReLU()
        layers[f"pool{place}"] = nn.MaxPool2d(2)
        width, height, length = out, height // 2, length // 2
    if not height * length:
        raise ModelError(f"the model cnn halves an image of {input_shape} to nothing; give it fewer channels options")
    layers["flatten"] = nn.Flatten()
    width *= height * length
    for place, out in enumerate(sizes("hidden", hidden), 1):
        layers[f"fc{place}"] = nn.Linear(width, out)
        layers[f"fc_relu{place}"] = nn.ReLU()
        width = out
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(layers))


def lenet5(input_shape: Shape, num_classes: int) -> nn.Module:
    """LeNet-5 as it is used today: ReLU, max pools, full connections. Shapes: [B, C, H, W] -> [B, num_classes].

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86,
    1998, section II-B: 6 and 16 maps by 5x5 kernels, then 120 and 84 units; an image of 28x28 is padded to 32x32.
    """
    channels, height, length = input_shape
    rows, columns = (height // 2 - 4) // 2, (length // 2 - 4) // 2
    if min(rows, columns) < 1:
        raise ModelError(f"the model lenet5 takes images of at least 12x12, not {height}x{length}; give larger ones")
    layers = OrderedDict[str, nn.Module](conv1=nn.Conv2d(channels, 6, 5, padding=2), relu1=nn.ReLU())
    layers |= OrderedDict(pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2))
    return nn.Sequential(
        OrderedDict([*layers.items(), *mlp((16, rows, columns), num_classes, (120, 84)).named_children()])
    )


def cnn1d(
    input_shape: Shape,
    num_classes: int,
    channels: Any = (32, 64, 64),
    kernel: int = 5,
    stride: int = 2,
    norm: str = "none",
    pool: int = 1,
) -> nn.Module:
    """Convolutions along time with stride and ReLU, then the mean over time. Shapes: [B, C, L] -> [B, num_classes].

    With `pool` above 1 the largest of so many steps is taken behind each ReLU.
    """
    if norm not in ("none", "group"):
        raise ModelError(f"the option norm is {norm!r}; it must be none or group")
    width, kernel, layers = input_shape[0], _odd("kernel", kernel), dict[str, nn.Module]()
    for place, out in enumerate(sizes("channels", channels), 1):
        layers[f"conv{place}"] = nn.Conv1d(width, out, kernel, size("stride", stride), kernel // 2)
        if norm == "group":
            layers[f"norm{place}"] = nn.GroupNorm(math.gcd(out, 8), out)
        layers[f"relu{place}"] = nn.ReLU()
        if size("pool", pool) > 1:
            layers[f"pool{place}"] = nn.MaxPool1d(pool)
        width = out
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool1d(1), nn.Flatten()
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(layers))


class MeanEmbedding(nn.Module):
    """The mean of the tokens' vectors. Shapes: [B, L] int64 -> [B, dim].

    Tokens that equal `padding` are left out of the mean; a row of nothing else gives zeros.
    """

    def __init__(self, vocabulary: int, dim: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.table = nn.Embedding(vocabulary, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != self.padding).to(self.table.weight.dtype).unsqueeze(-1)
        total: Tensor = (self.table(tokens) * kept).sum(1)
        return total / kept.sum(1).clamp(min=1.0)


def embed(
    input_shape: Shape, num_classes: int, vocabulary: int = 0, dim: int = 32, hidden: Any = (), padding: int = 0
) -> nn.Module:
    """The mean of token vectors, then fully connected layers. Shapes: [B, L] int64 -> [B, num_classes].

    `padding` is the token that is left out of the mean; -1 if each counts.
    """
    if vocabulary == 0:
        raise ModelError("the model embed must be told how many tokens there are; give it the option vocabulary")
    width = size("dim", dim)
    table = MeanEmbedding(size("vocabulary", vocabulary), width, padding)
    return nn.Sequential(OrderedDict([("embed", table), *mlp((width,), num_classes, hidden).named_children()]))


def _odd(option: str, value: Any) -> int:
    number = size(option, value)
    if number % 2 == 0:
        raise ModelError(f"the option {option} is {value}; it must be odd")
    return number


_MLPERF = "Banbury et al., MLPerf Tiny benchmark, NeurIPS 2021 Datasets and Benchmarks, table 1; its reference code"

TINY: dict[str, Entry] = {
    "linear": Entry(linear, "logistic regression", "own", (1, 2, 3)),
    "mlp": Entry(mlp, "fully connected, one hidden layer of 64 unless told", "own", (1, 2, 3)),
    "mlp2nn": Entry(
        mlp2nn,
        "fully connected, two hidden layers of 200",
        "McMahan et al., AISTATS 2017, section 3 (2NN)",
        (1, 2, 3),
        199_210,
        0,
        (1, 28, 28),
        10,
    ),
    "cnn": Entry(
        cnn,
        "two convolutions and a hidden layer, of the size of LeNet-5",
        "McMahan et al., AISTATS 2017, section 3 (the CNN, with channels = [32, 64], hidden = [512])",
        (3,),
        1_663_370,
        0,
        (1, 28, 28),
        10,
        {"channels": (32, 64), "hidden": (512,)},
    ),
    "lenet5": Entry(
        lenet5,
        "LeNet-5 with ReLU and max pools",
        "LeCun et al., Proc. IEEE 86, 1998, section II-B",
        (3,),
        61_706,
        0,
        (1, 28, 28),
        10,
    ),
    "cnn1d": Entry(cnn1d, "three convolutions along time, for windows of sensors", "own", (2,)),
    "embed": Entry(embed, "mean of token vectors; needs the option vocabulary", "own", (1,)),
    "dscnn": Entry(
        mlperf.dscnn,
        "DS-CNN: depthwise separable convolutions on spectrograms",
        f"Zhang et al. 2017; {_MLPERF}",
        (3,),
        22_604,
        2_656_768,
        (1, 49, 10),
        12,
    ),
    "mobilenet_v1_025": Entry(
        mlperf.mobilenet_v1_025,
        "MobileNetV1 at width 0.25, for images of 96x96",
        f"Howard et al. 2017; {_MLPERF}",
        (3,),
        210_850,
        7_489_664,
        (3, 96, 96),
        2,
    ),
    "resnet8": Entry(
        mlperf.resnet8,
        "ResNet of three stages of one block, for images of 32x32",
        f"He et al. 2016; {_MLPERF}",
        (3,),
        77_706,
        12_501_632,
        (3, 32, 32),
        10,
    ),
    "autoencoder": Entry(
        mlperf.autoencoder,
        "fully connected autoencoder; its output has the size of its input",
        f"DCASE 2020 task 2; {_MLPERF}",
        (1, 2, 3),
        265_864,
        264_192,
        (640,),
        640,
    ),
    "eegnet": Entry(
        eegnet.eegnet,
        "EEGNet-8,2: temporal and spatial filters on EEG channels",
        "Lawhern et al., J. Neural Eng. 15 056013, 2018, table 2",
        (2,),
        2_258,
        0,
        (64, 128),
        2,
        {"kernel": 64},
    ),
}
