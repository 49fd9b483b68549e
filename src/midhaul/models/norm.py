"""Batch norm that stays on its device, and group norm in its place.

Shape letters: B rows, C channels.
Source: Li et al., "FedBN: federated learning on non-IID features via local batch normalization", ICLR 2021; Wu and He,
"Group normalization", ECCV 2018.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOST_GROUPS = 8
_SMALLEST_GROUP = 8  # numbers that a group is normalised over, at the least, if the layer has so many


class FedBatchNorm(nn.Module):
    """Batch norm whose statistics leave out padded rows, and which never changes its buffers itself.

    Before a call, `mask` may be set to [B], 1 for a row that counts and 0 for padding. After a call in training,
    `updated` holds the new running statistics by name; a batch with a single number a channel leaves them as they are.
    In evaluation the running statistics are used, if there are any.

    Shapes: [B, C] or [B, C, ...] -> the same.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        cumulative = track_running_stats and momentum is None
        self.register_buffer("num_batches_tracked", torch.zeros(()) if cumulative else None)
        self.mask: Tensor | None = None
        self.updated: dict[str, Tensor] = {}

    @classmethod
    def of(cls, norm: _BatchNorm) -> FedBatchNorm:
        """Gives the layer with the parameters and statistics of a batch norm of torch."""
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        layer.load_state_dict({n: v for n, v in norm.state_dict().items() if n in layer.state_dict()})
        layer.training = norm.training
        return layer

    def forward(self, x: Tensor) -> Tensor:
        self.updated = {}
        if x.dtype == torch.bfloat16:  # whose sums would count rows to 256 alone
            return self.forward(x.float()).to(x.dtype)
        if self.running_mean is not None and self.running_var is not None and not self.training:
            return self._normalised(x, self.running_mean, self.running_var)
        extent = [size for axis, size in enumerate(x.shape) if axis != 1]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        valid = x.new_ones(x.shape[0]) if self.mask is None else self.mask.to(x.dtype)
        kept = valid.reshape(-1, *[1] * (x.dim() - 1))
        count = valid.sum() * math.prod(extent[1:])
        mean = (x * kept).sum(axes) / count.clamp(min=1.0)
        var = ((x - self._spread(mean, x)).square() * kept).sum(axes) / count.clamp(min=1.0)
        if self.training:
            self.updated = self._renewed(mean.detach(), var.detach(), count.detach())
        return self._normalised(x, mean, var)

    def _normalised(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None and self.bias is not None:
            scale = scale * self.weight
            return (x - self._spread(mean, x)) * self._spread(scale, x) + self._spread(self.bias, x)
        return (x - self._spread(mean, x)) * self._spread(scale, x)

    def _renewed(self, mean: Tensor, var: Tensor, count: Tensor) -> dict[str, Tensor]:
        if self.running_mean is None or self.running_var is None:
            return {}
        enough = count > 1
        unbiased = var * count / (count - 1).clamp(min=1.0)
        updated: dict[str, Tensor] = {}
        share: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            updated["num_batches_tracked"] = self.num_batches_tracked + enough
            share = 1.0 / updated["num_batches_tracked"].clamp(min=1.0)
        for name, old, new in (("running_mean", self.running_mean, mean), ("running_var", self.running_var, unbiased)):
            updated[name] = torch.where(enough, (1.0 - share) * old + share * new, old)
        return updated

    @staticmethod
    def _spread(value: Tensor, x: Tensor) -> Tensor:
        return value.reshape(1, -1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


def group_norm(norm: _BatchNorm, num_positions: int) -> nn.GroupNorm:
    """Gives the group norm that takes the place of a batch norm, with its parameters.

    It has as many groups as divide the channels, at most 8, such that each group is normalised over at least 8 numbers;
    else one. `num_positions` is the number of positions of a channel (1 behind a fully connected layer).

    >>> group_norm(nn.BatchNorm1d(64), 1).num_groups, group_norm(nn.BatchNorm1d(12), 10).num_groups
    (8, 6)
    """
    channels = norm.num_features
    groups = max(
        (
            g
            for g in range(1, MOST_GROUPS + 1)
            if channels % g == 0 and channels // g * num_positions >= _SMALLEST_GROUP
        ),
        default=1,
    )
    layer = nn.GroupNorm(groups, channels, norm.eps, norm.affine)
    layer.load_state_dict({n: v for n, v in norm.state_dict().items() if n in ("weight", "bias")})
    return layer


def running_free(norm: nn.Module) -> nn.Module:
    """Gives an instance norm without running statistics, with the parameters of one that has them."""
    kind = type(norm)
    layer: nn.Module = kind(norm.num_features, norm.eps, affine=norm.affine, track_running_stats=False)
    layer.load_state_dict({n: v for n, v in norm.state_dict().items() if n in ("weight", "bias")})
    return layer
