"""Losses of single rows, so that a padded row can be left out and a device's rows be weighed one by one.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from midhaul.errors import ModelError, nearest

LOSSES = ("cross_entropy", "mse")


def rows(
    loss_name: str,
    logits: Tensor,
    y: Tensor,
    soft: Tensor | None = None,
    temperature: float = 1.0,
    soft_weight: float = 0.0,
) -> Tensor:
    """Gives the loss of each row; with a teacher's logits `soft`, the part `soft_weight` of it is distillation.

    Cross entropy distils by `distillation`; mse by the squared distance of the two models' logits, which is what
    distillation becomes at a high temperature (section 2.1 of the same paper). A row with y < 0 has no label: the
    label's term is 0 for it.

    Shapes: logits [B, C], y [B] int64 (or for mse float, a value to be hit), soft [B, C] or None -> [B].
    Raises: ModelError for a loss it doesn't know.
    """
    if loss_name == "cross_entropy":
        if soft is None:
            return cross_entropy(logits, y)
        return distillation(logits, y, soft, temperature, soft_weight)
    if loss_name == "mse":
        hard = mse(logits, y)
        if soft is None:
            return hard
        return (1.0 - soft_weight) * hard + soft_weight * (logits - soft).square().mean(1)
    raise ModelError(f"there is no loss {loss_name!r}{nearest(loss_name, LOSSES)}")


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Gives -log softmax(logits)[y] of each row, and 0 where y < 0. Shapes: [B, C], [B] -> [B].

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -1]))
    tensor([1.3863, 0.0000])
    """
    picked = F.log_softmax(logits, 1).gather(1, y.clamp(min=0)[:, None])[:, 0]
    return -picked * (y >= 0)


def mse(logits: Tensor, y: Tensor) -> Tensor:
    """Gives the mean squared distance of each row from its one-hot label, 0 where y < 0; or from y itself where that is
    a float. Shapes: [B, C], [B] -> [B].

    >>> mse(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    tensor([0., 1.])
    >>> mse(torch.tensor([[1.0], [2.0]]), torch.tensor([-1.0, 2.0]))
    tensor([4., 0.])
    """
    if y.is_floating_point():
        return (logits - y[:, None]).square().mean(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    one_hot = (y[:, None] == classes).to(logits.dtype)
    return (logits - one_hot).square().mean(1) * (y >= 0)


def distance_correlation(x: Tensor, h: Tensor, mask: Tensor) -> Tensor:
    """Gives how far distances between rows of h follow those between rows of x: 0 not at all, 1 in proportion.

    Shapes: x [B, ...], h [B, ...], mask [B], 1 for rows that count -> [], float64.
    Source: Székely, Rizzo and Bakirov, "Measuring and testing dependence by correlation of distances", Ann. Statist.
    2007, definitions 4 and 5.
    Limits: of a single row it is 1e-6, as good as 0; distances below 1e-6 count as that, so that it has a gradient.
    """
    a, b = _centred(x, mask), _centred(h, mask)
    variance = ((a * a).sum() * (b * b).sum() + 1e-24).sqrt()
    return (((a * b).sum() / variance).clamp(min=0.0) + 1e-12).sqrt()


def _centred(values: Tensor, mask: Tensor) -> Tensor:
    """Gives the distances of rows less the means of their row and column, plus the mean of all. Shapes: [B, B]."""
    flat = values.flatten(1).double()
    squares = flat.square().sum(1)
    distances = ((squares[:, None] + squares[None, :] - 2.0 * flat @ flat.T).clamp(min=0.0) + 1e-12).sqrt()
    both = (mask[:, None] * mask[None, :]).double()
    kept, num = distances * both, mask.double().sum().clamp(min=1.0)
    mean = kept.sum(1) / num
    return (distances - mean[:, None] - mean[None, :] + mean.sum() / num) * both


def distillation(logits: Tensor, y: Tensor, soft: Tensor, temperature: float, soft_weight: float) -> Tensor:
    """Gives (1-w) CE(y) + w T^2 KL(softmax(soft/T) || softmax(logits/T)) of each row.

    Shapes: logits [B, C], y [B], soft [B, C] (the teacher's logits) -> [B].
    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    teacher = F.log_softmax(soft / temperature, 1)
    student = F.log_softmax(logits / temperature, 1)
    divergence = (teacher.exp() * (teacher - student)).sum(1)
    return (1.0 - soft_weight) * cross_entropy(logits, y) + soft_weight * temperature**2 * divergence
