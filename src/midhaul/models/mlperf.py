"""The four reference models of MLPerf Tiny, with batch norm as they are trained.

Each convolution and fully connected layer has a bias beside its batch norm, as the reference code has it; the published
parameter counts are those of the layers alone, since batch norm is folded into them for inference. Dropout of the
reference training is left out. Padding is that of TensorFlow's `same`: where it is odd, more lies right and below.
Source: Banbury et al., "MLPerf Tiny benchmark", NeurIPS 2021 Datasets and Benchmarks; github.com/mlcommons/tiny.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from midhaul.errors import ModelError
from midhaul.models.entry import Shape, size

_SEPARABLE = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *(((128, 1),) * 5), (256, 2), (256, 1))


def dscnn(input_shape: Shape, num_classes: int, channels: int = 64) -> nn.Module:
    """DS-CNN for keywords: a convolution 10x4 and four separable ones. Shapes: [B, C, T, F] -> [B, num_classes]."""
    width = size("channels", channels)
    layers: dict[str, nn.Module] = {}
    map_shape = _conv(layers, "conv", input_shape, width, (10, 4), 2)
    for place in range(1, 5):
        map_shape = _conv(layers, f"depthwise{place}", map_shape, width, (3, 3), 1, groups=width)
        map_shape = _conv(layers, f"pointwise{place}", map_shape, width, (1, 1), 1)
    return _pooled(layers, width, num_classes)


def mobilenet_v1_025(input_shape: Shape, num_classes: int) -> nn.Module:
    """MobileNetV1 at width 0.25. Shapes: [B, C, H, W] -> [B, num_classes]."""
    layers: dict[str, nn.Module] = {}
    map_shape = _conv(layers, "conv", input_shape, 8, (3, 3), 2)
    for place, (width, stride) in enumerate(_SEPARABLE, 1):
        before = map_shape[0]
        map_shape = _conv(layers, f"depthwise{place}", map_shape, before, (3, 3), stride, groups=before)
        map_shape = _conv(layers, f"pointwise{place}", map_shape, width, (1, 1), 1)
    return _pooled(layers, map_shape[0], num_classes)


def resnet8(input_shape: Shape, num_classes: int) -> nn.Module:
    """ResNet8: a convolution and three residual blocks. Shapes: [B, C, H, W] -> [B, num_classes]."""
    layers: dict[str, nn.Module] = {}
    map_shape = _conv(layers, "conv", input_shape, 16, (3, 3), 1)
    for place, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
        block = Block(map_shape, width, stride)
        layers[f"block{place}"], map_shape = block, block.output_shape
    return _pooled(layers, map_shape[0], num_classes)


def autoencoder(input_shape: Shape, num_classes: int, hidden: int = 128, code: int = 8) -> nn.Module:
    """Four layers down to a code and four up again. Shapes: [B, ...] -> [B, num_classes], as many as come in."""
    num = math.prod(input_shape)
    if num_classes != num:
        raise ModelError(f"the model autoencoder gives as many numbers as it takes: {num}, not {num_classes}")
    width, wide = num, size("hidden", hidden)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for place, out in enumerate((wide,) * 4 + (size("code", code),) + (wide,) * 4, 1):
        layers[f"fc{place}"] = nn.Linear(width, out)
        layers[f"fc{place}_norm"] = nn.BatchNorm1d(out)
        layers[f"fc{place}_relu"] = nn.ReLU()
        width = out
    layers["head"] = nn.Linear(width, num)
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """Two convolutions 3x3 and a shortcut, which is a convolution 1x1 where the shape changes."""

    def __init__(self, map_shape: Shape, width: int, stride: int) -> None:
        super().__init__()
        path: dict[str, nn.Module] = {}
        inner = _conv(path, "conv1", map_shape, width, (3, 3), stride)
        self.output_shape = _conv(path, "conv2", inner, width, (3, 3), 1, relu=False)
        for name, layer in path.items():
            self.add_module(name, layer)
        self.path = tuple(path)
        straight = stride == 1 and map_shape[0] == width
        self.shortcut = nn.Identity() if straight else nn.Conv2d(map_shape[0], width, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.path:
            y = self.get_submodule(name)(y)
        out: Tensor = self.relu(self.shortcut(x) + y)
        return out


def _conv(
    layers: dict[str, nn.Module],
    name: str,
    map_shape: Shape,
    width: int,
    kernel: tuple[int, int],
    stride: int,
    groups: int = 1,
    relu: bool = True,
) -> Shape:
    """Adds padding, a convolution, batch norm and ReLU, and gives the shape of the map behind them."""
    channels, *extent = map_shape
    out = tuple(-(-length // stride) for length in extent)
    missing = [max((o - 1) * stride + k - i, 0) for o, k, i in zip(out, kernel, extent, strict=True)]
    before = [total // 2 for total in missing]
    after = [total - first for total, first in zip(missing, before, strict=True)]
    padding = (before[0], before[1])
    if before != after:
        layers[f"{name}_pad"] = nn.ZeroPad2d((before[1], after[1], before[0], after[0]))
        padding = (0, 0)
    layers[name] = nn.Conv2d(channels, width, kernel, stride, padding, groups=groups)
    layers[f"{name}_norm"] = nn.BatchNorm2d(width)
    if relu:
        layers[f"{name}_relu"] = nn.ReLU()
    return (width, *out)


def _pooled(layers: dict[str, nn.Module], width: int, num_classes: int) -> nn.Module:
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(layers))
