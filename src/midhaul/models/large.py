"""Large models: those that live on the server. They also take smashed activations, whatever their shape.

Norms are group or layer norms throughout, so that a row's output doesn't depend on the other rows of its batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from midhaul.errors import ModelError
from midhaul.models import attention, entry, pretrained
from midhaul.models.entry import Entry, Shape, size, sizes

_MOST_TOKENS = 64  # a transformer's patches are made as small as gives at most so many


def build(name: str, input_shape: Shape, num_classes: int, **options: Any) -> nn.Module:
    """Gives a large model; `auto` picks one by the rank of the input, `hf:NAME` an encoder of Hugging Face.

    Raises: ModelError for an unknown name or option, or an input shape that it doesn't take; DependencyError for `hf:`
    without transformers.

    >>> build("auto", (16,), 3).head
    Linear(in_features=256, out_features=3, bias=True)
    """
    if name.startswith("hf:"):
        return pretrained.build(name[3:], tuple(input_shape), num_classes, **options)
    return entry.build(LARGE, "large", name, input_shape, num_classes, options)


def auto(input_shape: Shape, num_classes: int, vocabulary: int = 0) -> nn.Module:
    """The transformer for tokens, mlp_large for vectors, resnet1d for sequences, vit for maps."""
    if vocabulary:
        return transformer(input_shape, num_classes, vocabulary=vocabulary)
    by_rank: dict[int, entry.Builder] = {1: mlp_large, 2: resnet1d, 3: vit}
    return by_rank[len(input_shape)](input_shape, num_classes)


def mlp_large(input_shape: Shape, num_classes: int, hidden: int = 256, depth: int = 3) -> nn.Module:
    """Residual fully connected blocks with layer norm. Shapes: [B, ...] -> [B, num_classes]."""
    width = size("hidden", hidden)
    layers = OrderedDict[str, nn.Module](flatten=nn.Flatten(), embed=nn.Linear(math.prod(input_shape), width))
    for place in range(1, size("depth", depth) + 1):
        layers[f"block{place}"] = DenseBlock(width)
    layers["norm"], layers["head"] = nn.LayerNorm(width), nn.Linear(width, num_classes)
    return nn.Sequential(layers)


def resnet1d(input_shape: Shape, num_classes: int, channels: Any = (64, 128, 128)) -> nn.Module:
    """A residual network along time: a block a width, the last two at half the rate if there is room.

    Shapes: [B, C, L] -> [B, num_classes].
    Source: Wang, Yan and Oates, "Time series classification from scratch", IJCNN 2017, section II-C, with group norm.
    """
    (width, length), layers = input_shape, OrderedDict[str, nn.Module]()
    for place, out in enumerate(sizes("channels", channels), 1):
        stride = 2 if place > 1 and length >= 16 else 1
        layers[f"block{place}"] = ResidualBlock1d(width, out, stride)
        width, length = out, -(-length // stride)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool1d(1), nn.Flatten()
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)


def resnet2d(input_shape: Shape, num_classes: int, channels: Any = (32, 64, 128), blocks: int = 2) -> nn.Module:
    """A residual network on maps: `blocks` a width, each width after the first at half the size if there is room.

    Shapes: [B, C, H, W] -> [B, num_classes].
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, with group norm.
    """
    width, height, length = input_shape
    wide, layers = sizes("channels", channels), OrderedDict[str, nn.Module]()
    layers["conv"] = nn.Conv2d(width, wide[0], 3, padding=1)
    width = wide[0]
    for stage, out in enumerate(wide, 1):
        for place in range(1, size("blocks", blocks) + 1):
            stride = 2 if stage > 1 and place == 1 and min(height, length) >= 4 else 1
            layers[f"block{stage}_{place}"] = ResidualBlock2d(width, out, stride)
            width, height, length = out, -(-height // stride), -(-length // stride)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)


def transformer(
    input_shape: Shape, num_classes: int, vocabulary: int = 0, dim: int = 128, depth: int = 3, heads: int = 4
) -> nn.Module:
    """An encoder of sequences: tokens [B, L] if `vocabulary` is given, else [B, C, L] in patches along time."""
    width = size("dim", dim)
    if vocabulary:
        if len(input_shape) != 1:
            raise ModelError(f"the model transformer takes tokens of shape (length,), not {input_shape}")
        embed: nn.Module = nn.Embedding(size("vocabulary", vocabulary), width)
        length = input_shape[0]
    else:
        if len(input_shape) != 2:
            raise ModelError("the model transformer takes (channels, length), or tokens with the option vocabulary")
        embed, length = _patches1d(input_shape, width)
    return attention.encoder(embed, length, width, size("depth", depth), size("heads", heads), num_classes)


def vit(
    input_shape: Shape, num_classes: int, patch: int = 0, dim: int = 128, depth: int = 4, heads: int = 4
) -> nn.Module:
    """A transformer on square patches of an image; patch 0 is the smallest that gives at most 64 of them.

    Shapes: [B, C, H, W] -> [B, num_classes].
    Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, section 3.1, with the mean over the tokens
    for the class token.
    """
    channels, height, length = input_shape
    width = size("dim", dim)
    side = size("patch", patch) if patch else _side(height, length)
    rows, columns = -(-height // side), -(-length // side)
    embed = nn.Sequential(
        OrderedDict[str, nn.Module](
            pad=nn.ZeroPad2d((0, columns * side - length, 0, rows * side - height)),
            patch=nn.Conv2d(channels, width, side, side),
            tokens=attention.ToTokens(),
        )
    )
    return attention.encoder(embed, rows * columns, width, size("depth", depth), size("heads", heads), num_classes)


class DenseBlock(nn.Module):
    """Two fully connected layers behind a layer norm and beside a shortcut. Shapes: [B, E] -> [B, E]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class ResidualBlock1d(nn.Module):
    """Convolutions of 7, 5 and 3 with group norm, beside a shortcut. Shapes: [B, C, L] -> [B, C', L/stride]."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(channels, out, 7, stride, 3), _norm(out)
        self.conv2, self.norm2 = nn.Conv1d(out, out, 5, padding=2), _norm(out)
        self.conv3, self.norm3 = nn.Conv1d(out, out, 3, padding=1), _norm(out)
        self.shortcut = _shortcut(nn.Conv1d, channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResidualBlock2d(nn.Module):
    """Two convolutions 3x3 with group norm, beside a shortcut. Shapes: [B, C, H, W] -> [B, C', H/stride, W/stride]."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1), _norm(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), _norm(out)
        self.shortcut = _shortcut(nn.Conv2d, channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _shortcut(conv: type[nn.Conv1d] | type[nn.Conv2d], channels: int, out: int, stride: int) -> nn.Module:
    return nn.Identity() if channels == out and stride == 1 else conv(channels, out, 1, stride)


def _side(height: int, length: int) -> int:
    side = 1
    while -(-height // side) * -(-length // side) > _MOST_TOKENS:
        side += 1
    return side


def _patches1d(input_shape: Shape, width: int) -> tuple[nn.Module, int]:
    channels, length = input_shape
    side = -(-length // _MOST_TOKENS)
    num = -(-length // side)
    embed = OrderedDict[str, nn.Module](
        pad=nn.ConstantPad1d((0, num * side - length), 0.0),
        patch=nn.Conv1d(channels, width, side, side),
        tokens=attention.ToTokens(),
    )
    return nn.Sequential(embed), num


LARGE: dict[str, Entry] = {
    "auto": Entry(
        auto, "by the shape of the input: mlp_large, resnet1d or vit; transformer for tokens", "own", (1, 2, 3)
    ),
    "mlp_large": Entry(mlp_large, "residual fully connected network of width 256", "own", (1, 2, 3)),
    "resnet1d": Entry(resnet1d, "residual network along time", "Wang et al., IJCNN 2017, section II-C", (2,)),
    "resnet2d": Entry(resnet2d, "residual network on images or maps", "He et al., CVPR 2016, section 4.2", (3,)),
    "transformer": Entry(
        transformer,
        "encoder of sequences or, with the option vocabulary, of tokens",
        "Vaswani et al. 2017, section 3",
        (1, 2),
    ),
    "vit": Entry(vit, "transformer on patches of images or maps", "Dosovitskiy et al., ICLR 2021, section 3.1", (3,)),
}
