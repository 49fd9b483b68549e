"""EEGNet: a compact network for EEG."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from midhaul.errors import ModelError
from midhaul.models.entry import Shape, size


def eegnet(
    input_shape: Shape,
    num_classes: int,
    kernel: int = 64,
    temporal: int = 8,
    depth: int = 2,
    dropout: float = 0.25,
) -> nn.Module:
    """EEGNet-8,2: temporal filters, a spatial filter for each, and a separable convolution.

    `kernel` is the length of the temporal filters, half of the sampling rate in the paper. Dropout is 0.25 where
    subjects are held out, 0.5 within a subject; devices train without it. The paper's limits on the norms of the
    spatial filters and of the last layer are not kept.

    Shapes: [B, channels, time] -> [B, num_classes].
    Source: Lawhern et al., "EEGNet: a compact convolutional neural network for EEG-based brain-computer interfaces",
    J. Neural Eng. 15 056013, 2018, table 2.
    """
    channels, length = input_shape
    if length < 32:
        raise ModelError(f"the model eegnet needs at least 32 samples a window, not {length}; give it longer windows")
    filters, taps = size("temporal", temporal), size("kernel", kernel)
    maps = filters * size("depth", depth)
    layers = OrderedDict[str, nn.Module](
        unflatten=nn.Unflatten(1, (1, channels)),
        temporal_pad=_same(taps),
        temporal=nn.Conv2d(1, filters, (1, taps), bias=False),
        temporal_norm=nn.BatchNorm2d(filters),
        spatial=nn.Conv2d(filters, maps, (channels, 1), groups=filters, bias=False),
        spatial_norm=nn.BatchNorm2d(maps),
        spatial_elu=nn.ELU(),
        spatial_pool=nn.AvgPool2d((1, 4)),
        spatial_dropout=nn.Dropout(dropout),
        depthwise_pad=_same(16),
        depthwise=nn.Conv2d(maps, maps, (1, 16), groups=maps, bias=False),
        pointwise=nn.Conv2d(maps, maps, 1, bias=False),
        pointwise_norm=nn.BatchNorm2d(maps),
        pointwise_elu=nn.ELU(),
        pointwise_pool=nn.AvgPool2d((1, 8)),
        pointwise_dropout=nn.Dropout(dropout),
        flatten=nn.Flatten(),
        head=nn.Linear(maps * (length // 32), num_classes),
    )
    return nn.Sequential(layers)


def _same(taps: int) -> nn.Module:
    return nn.ZeroPad2d(((taps - 1) // 2, taps - 1 - (taps - 1) // 2, 0, 0))
