"""LoRA: nothing changes before training, merging changes nothing after it, and only the adapters' names are new."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from midhaul import rng, tree
from midhaul.errors import ModelError
from midhaul.models import count, large, slices, tiny
from midhaul.models.adapters import LoRAConv1x1, LoRALinear, add_lora, merge_lora

KEY = rng.key(7, 0, 0, rng.Use.INIT)


def trained(module: nn.Module) -> nn.Module:
    """Gives B matrices that are not zero."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith("lora_b"):
                value.copy_(torch.randn(value.shape))
    return module


def test_by_hand() -> None:
    plain = nn.Linear(2, 1)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, 2.0]])), plain.bias.fill_(0.5)
    module = add_lora(plain, 1, 4.0, "linear", KEY)
    assert isinstance(module, LoRALinear)
    with torch.no_grad():
        module.lora_a.copy_(torch.tensor([[1.0, -1.0]])), module.lora_b.fill_(0.25)
    # W + alpha / r B A = (1, 2) + 4 * 0.25 * (1, -1) = (2, 1).
    assert module(torch.tensor([[3.0, 5.0]])).item() == 2 * 3 + 1 * 5 + 0.5
    assert merge_lora(module).weight.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("targets", ["linear", "all"])
def test_untrained_adapters_change_nothing_to_the_bit(targets: str) -> None:
    module = tiny.build("dscnn", (1, 21, 10), 5, channels=8).eval()
    adapted = add_lora(module, 2, 8.0, targets, KEY)
    x = torch.randn(3, 1, 21, 10)
    assert torch.equal(adapted(x), module(x))
    assert not adapted.training
    kinds = {type(layer) for layer in adapted.modules()}
    assert (LoRAConv1x1 in kinds) == (targets == "all")


@pytest.mark.parametrize(("name", "shape"), [("mlp", (6,)), ("dscnn", (1, 21, 10)), ("resnet8", (3, 16, 16))])
def test_merged_equals_unmerged(name: str, shape: tuple[int, ...]) -> None:
    module = tiny.build(name, shape, 5).eval()
    adapted = trained(add_lora(module, 2, 3.0, "all", KEY))
    x = torch.randn(3, *shape)
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged(x), adapted(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted(x), module(x), rtol=1e-2, atol=1e-2)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert [type(layer) for layer in merged.modules()] == [type(layer) for layer in module.modules()]


def test_the_parameters_keep_their_names_and_the_slice_holds_the_new_ones() -> None:
    module = tiny.build("mlp", (6,), 3, hidden=[4])
    adapted = add_lora(module, 2, 2.0, "linear", KEY)
    lora = ("fc1.lora_a", "fc1.lora_b", "head.lora_a", "head.lora_b")
    assert slices.names(adapted, "lora", (6,)) == lora
    held = tree.of(adapted)
    assert [tuple(held[name].shape) for name in lora] == [(2, 6), (4, 2), (2, 4), (3, 2)]
    assert tree.largest_difference(tree.without(held, lora), tree.of(module)) == 0.0
    assert count.totals(adapted, (6,)).macs == count.totals(module, (6,)).macs + 2 * (6 + 4) + 2 * (4 + 3)


def test_the_key_draws_the_matrices() -> None:
    module = tiny.build("mlp", (400,), 3, hidden=[100])
    one, same = (add_lora(module, 8, 8.0, "linear", KEY) for _ in range(2))
    other = add_lora(module, 8, 8.0, "linear", KEY._replace(seed=8))
    assert torch.equal(one.fc1.lora_a, same.fc1.lora_a)
    assert not torch.equal(one.fc1.lora_a, other.fc1.lora_a)
    # A variance of 1 / in keeps A x at the size of x.
    assert one.fc1.lora_a.std().item() == pytest.approx(400**-0.5, rel=0.1)
    assert not torch.equal(one.fc1.lora_a[:, :100], one.head.lora_a)


def test_named_layers_only() -> None:
    module = large.build("vit", (1, 8, 8), 3, depth=1)
    adapted = add_lora(module, 4, 4.0, ("block1.query", "block1.value"), KEY)
    assert slices.names(adapted, "lora", (1, 8, 8)) == (
        "block1.query.lora_a",
        "block1.query.lora_b",
        "block1.value.lora_a",
        "block1.value.lora_b",
    )


def test_strided_and_one_dimensional_convolutions() -> None:
    module = nn.Sequential(nn.Conv1d(3, 4, 1, stride=2, bias=False), nn.Flatten(), nn.Linear(16, 2))
    adapted = trained(add_lora(module, 2, 2.0, "all", KEY))
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(merge_lora(adapted)(x), adapted(x))


def test_adapters_of_many_devices_at_once() -> None:
    module = trained(add_lora(tiny.build("mlp", (6,), 3, hidden=[4]), 2, 2.0, "linear", KEY))
    base = tree.of(module)
    lora = {n: base[n] + 0.1 * torch.randn(3, *base[n].shape) for n in slices.names(module, "lora", (6,))}
    x = torch.randn(3, 5, 6)

    def loss(lora: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, {**base, **lora}, (x,)).square().sum()

    slopes = vmap(grad(loss))(lora, x)
    for device in range(3):
        alone = grad(loss)({n: v[device] for n, v in lora.items()}, x[device])
        torch.testing.assert_close({n: v[device] for n, v in slopes.items()}, alone, rtol=1e-4, atol=1e-4)


def test_what_can_not_have_an_adapter() -> None:
    module = tiny.build("cnn", (1, 8, 8), 3)
    for rank, alpha, targets, message in (
        (0, 1.0, "linear", "rank 0"),
        (1, -1.0, "linear", "alpha -1.0"),
        (1, 1.0, ("conv1",), "'conv1' is a Conv2d, which can't have"),
        (1, 1.0, ("haed",), "did you mean 'head'"),
        (1, 1.0, "conv3", "no layer 'conv3'"),
    ):
        with pytest.raises(ModelError, match=message):
            add_lora(module, rank, alpha, targets, KEY)
    with pytest.raises(ModelError, match="no layer of the kind 'all'"):
        add_lora(nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU()), 1, 1.0, "all", KEY)
