"""Many devices' models at once: stacked parameters and stacked data against the devices one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from midhaul.models import losses, tiny
from midhaul.models.slices import prepare

MODELS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("linear", (9,), {}),
    ("mlp", (9,), {}),
    ("cnn", (1, 12, 12), {}),
    ("cnn1d", (3, 32), {}),
    ("cnn1d", (3, 32), {"norm": "group"}),
    ("dscnn", (1, 21, 10), {"channels": 8}),
    ("resnet8", (3, 8, 8), {}),
    ("mobilenet_v1_025", (3, 32, 32), {}),
    ("eegnet", (4, 64), {}),
    ("embed", (7,), {"vocabulary": 20}),
]


@pytest.mark.parametrize(("name", "shape", "options"), MODELS)
def test_loss_and_gradients_of_stacked_devices(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    module = prepare(tiny.build(name, shape, 4, **options), shape, "group").module
    num_devices, num_rows = 3, 5
    generator = torch.Generator().manual_seed(3)
    stacked = {
        n: p.detach() * (1 + 0.2 * torch.randn(num_devices, *p.shape, generator=generator))
        for n, p in module.named_parameters()
    }
    x = torch.randn(num_devices, num_rows, *shape, generator=generator)
    if name == "embed":
        x = torch.randint(0, 20, x.shape, generator=generator)
    y = torch.randint(0, 4, (num_devices, num_rows), generator=generator)
    mask = (torch.arange(num_rows)[None] < torch.tensor([5, 3, 1])[:, None]).float()

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        logits = functional_call(module, weights, (x,))
        return (losses.rows("cross_entropy", logits, y) * mask).sum() / mask.sum()

    slopes, values = vmap(grad_and_value(loss))(stacked, x, y, mask)
    for device, rows in enumerate((5, 3, 1)):
        own = {n: v[device] for n, v in stacked.items()}
        # Padding is left out here, masked there.
        slope, value = grad_and_value(loss)(own, x[device, :rows], y[device, :rows], torch.ones(rows))
        torch.testing.assert_close(values[device], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close({n: v[device] for n, v in slopes.items()}, slope, rtol=1e-3, atol=1e-5)
