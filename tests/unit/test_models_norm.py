"""FedBatchNorm against torch's batch norm, with and without padded rows, alone and on many devices at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from midhaul.models import norm
from midhaul.models.norm import FedBatchNorm

KINDS = [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm1d, (6, 3, 5)), (nn.BatchNorm2d, (4, 3, 2, 5))]


def pair(kind: type[nn.Module], **options: object) -> tuple[nn.Module, FedBatchNorm]:
    """A batch norm of torch in the middle of its life, and ours made from it."""
    theirs = kind(3, **options)
    with torch.no_grad():
        theirs(torch.randn(8, 3, *[4] * (2 if kind is nn.BatchNorm2d else 0)) * 2 + 1)
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(3))
    return theirs, FedBatchNorm.of(theirs)


@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_it_is_batch_norm_on_whole_batches(
    kind: type[nn.Module], shape: tuple[int, ...], options: dict[str, object]
) -> None:
    theirs, ours = pair(kind, **options)
    for _ in range(3):
        x = torch.randn(shape) * 3 - 1
        torch.testing.assert_close(ours(x), theirs(x))
        for name, value in ours.updated.items():
            torch.testing.assert_close(value, theirs.get_buffer(name).to(value.dtype))
            ours.get_buffer(name).copy_(value)
    theirs.eval(), ours.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.updated == {}


@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_padded_rows_change_nothing(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    theirs, ours = pair(kind)
    x = torch.randn(shape)
    padded = torch.cat([x, torch.full((2, *shape[1:]), 1e3)])
    ours.mask = torch.tensor([1.0] * shape[0] + [0.0, 0.0])
    torch.testing.assert_close(ours(padded)[: shape[0]], theirs(x))
    for name, value in ours.updated.items():
        torch.testing.assert_close(value, theirs.get_buffer(name))


def test_padding_with_huge_numbers_gets_no_gradient() -> None:
    ours = FedBatchNorm(2)
    x = torch.randn(4, 2, requires_grad=True)
    ours.mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    (ours(x)[:3] ** 3).sum().backward()
    assert x.grad is not None
    assert x.grad[3].tolist() == [0.0, 0.0]
    assert x.grad[:3].abs().sum() > 0


def test_running_statistics_by_hand() -> None:
    ours = FedBatchNorm(1, momentum=0.5)
    out = ours(torch.tensor([[1.0], [3.0]]))
    # Mean 2, variance 1 (biased) and 2 (unbiased); the running ones start at 0 and 1.
    assert out.flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
    assert {name: value.item() for name, value in ours.updated.items()} == {"running_mean": 1.0, "running_var": 1.5}
    assert ours.get_buffer("running_mean").item() == 0.0


@pytest.mark.parametrize("mask", [None, [1.0, 0.0]])
def test_one_row_leaves_the_statistics_as_they_are(mask: list[float] | None) -> None:
    ours = FedBatchNorm(2)
    ours.mask = None if mask is None else torch.tensor(mask)
    out = ours(torch.randn(1 if mask is None else 2, 2))
    assert out[0].tolist() == [0.0, 0.0]
    assert ours.updated["running_var"].tolist() == [1.0, 1.0]
    assert ours.updated["running_mean"].tolist() == [0.0, 0.0]


def test_many_devices_at_once_are_the_devices_one_by_one() -> None:
    module = nn.Sequential(nn.Conv1d(2, 3, 3), FedBatchNorm(3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
    layer = module[1]
    trees = {n: v.detach() + 0.3 * torch.rand(4, *v.shape) for n, v in module.named_parameters()}
    buffers = {n: v + torch.rand(4, *v.shape) for n, v in module.named_buffers()}
    x, mask = torch.randn(4, 5, 2, 5), (torch.arange(5)[None] < torch.tensor([5, 4, 2, 1])[:, None]).float()

    def loss(
        weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        layer.mask = mask
        out = functional_call(module, {**weights, **buffers}, (x,))
        updated, layer.mask, layer.updated = layer.updated, None, {}
        return (out.square().sum(1) * mask).sum(), updated

    slopes, updated = vmap(grad(loss, has_aux=True))(trees, buffers, x, mask)
    for device, rows in enumerate((5, 4, 2, 1)):
        one = [{n: v[device] for n, v in tree.items()} for tree in (trees, buffers)]
        slope, new = grad(loss, has_aux=True)(*one, x[device, :rows], torch.ones(rows))
        torch.testing.assert_close({n: v[device] for n, v in slopes.items()}, slope, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close({n: v[device] for n, v in updated.items()}, new)


@pytest.mark.parametrize(
    ("channels", "positions", "groups"),
    [(64, 1, 8), (64, 25, 8), (12, 100, 6), (7, 100, 7), (8, 1, 1), (11, 9, 1), (3, 2, 1)],
)
def test_group_norm_has_as_many_groups_as_make_sense(channels: int, positions: int, groups: int) -> None:
    layer = norm.group_norm(nn.BatchNorm1d(channels), positions)
    assert (layer.num_groups, layer.num_channels) == (groups, channels)


def test_group_norm_keeps_the_parameters() -> None:
    batch = nn.BatchNorm2d(4, eps=1e-3)
    with torch.no_grad():
        batch.weight.copy_(torch.arange(4.0))
    layer = norm.group_norm(batch, 9)
    assert layer.weight.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert layer.eps == 1e-3
    assert not norm.group_norm(nn.BatchNorm2d(4, affine=False), 9).affine
