"""The large models: every shape of input, smashed activations among them, and rows that stand alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from midhaul.errors import DependencyError, ModelError
from midhaul.models import attention, count, large, pretrained
from midhaul.models.slices import prepare

SHAPES: list[tuple[str, tuple[int, ...]]] = [
    ("auto", (1,)),
    ("auto", (65,)),
    ("auto", (3, 1)),
    ("auto", (16, 33)),
    ("auto", (5, 1, 1)),
    ("auto", (64, 25, 5)),
    ("mlp_large", (4, 5, 6)),
    ("resnet1d", (9, 640)),
    ("resnet2d", (1, 28, 28)),
    ("resnet2d", (16, 2, 2)),
    ("transformer", (6, 128)),
    ("transformer", (6, 1)),
    ("vit", (3, 32, 32)),
    ("vit", (1, 13, 7)),
]


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_each_takes_its_shapes_and_can_be_federated_as_it_is(name: str, shape: tuple[int, ...]) -> None:
    module = large.build(name, shape, 7)
    assert module(torch.randn(2, *shape)).shape == (2, 7)
    # Rows stand alone, nothing is random or hidden, and nothing has to be changed.
    prepared = prepare(module, shape)
    assert (prepared.notes, prepared.personal) == ((), ())


def test_auto_goes_by_the_rank_of_the_input() -> None:
    for shape, name in (((9,), "mlp_large"), ((4, 9), "resnet1d"), ((4, 9, 9), "vit")):
        one, other = large.build("auto", shape, 3), large.build(name, shape, 3)
        assert [(n, p.shape) for n, p in one.named_parameters()] == [(n, p.shape) for n, p in other.named_parameters()]
    assert isinstance(large.build("auto", (9,), 3, vocabulary=11).embed, nn.Embedding)


def test_they_are_larger_than_the_tiny_ones() -> None:
    for name, shape in (("mlp_large", (64,)), ("resnet1d", (6, 128)), ("vit", (1, 28, 28)), ("resnet2d", (1, 28, 28))):
        assert 400_000 < count.totals(large.build(name, shape, 10), shape).parameters < 2_000_000


def test_every_parameter_has_a_gradient() -> None:
    # The server asks for the gradient of each, and of what it was sent.
    for name, shape in (("mlp_large", (8,)), ("resnet1d", (3, 20)), ("resnet2d", (3, 8, 8)), ("vit", (3, 8, 8))):
        module = large.build(name, shape, 3)
        h = torch.randn(2, *shape, requires_grad=True)
        for slope in torch.autograd.grad(module(h).square().sum(), [h, *module.parameters()]):
            assert torch.isfinite(slope).all()


def test_attention_by_hand() -> None:
    # One head of width 1: the scores of q = 1 against k = (0, ln 3) are 1 : 3, so the values (4, 8) mix to 7.
    key = torch.tensor([[[0.0], [math.log(3.0)]]])
    mixed = attention.Scores(1)(torch.ones(1, 2, 1), key, torch.tensor([[[4.0], [8.0]]]))
    torch.testing.assert_close(mixed, torch.full((1, 2, 1), 7.0))


def test_attention_is_that_of_torch() -> None:
    query, key, value = (torch.randn(2, 5, 12) for _ in range(3))
    heads = [t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (query, key, value)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.Scores(3)(query, key, value), wanted)


def test_patches_cover_the_image_and_are_at_most_64() -> None:
    for shape, side, num in (((3, 32, 32), 4, 64), ((1, 28, 28), 4, 49), ((16, 8, 8), 1, 64), ((1, 13, 30), 3, 50)):
        module = large.build("vit", shape, 2)
        assert module.embed.patch.stride == (side, side)
        assert module.embed(torch.zeros(1, *shape)).shape == (1, num, 128)
    # The last pixel is seen although 13 and 30 are no multiples.
    x = torch.zeros(1, 1, 13, 29)
    x[0, 0, -1, -1] = 1.0
    module = large.build("vit", (1, 13, 29), 2)
    assert not torch.equal(module.embed(x), module.embed(torch.zeros_like(x)))


def test_positions_tell_tokens_apart() -> None:
    module = large.build("transformer", (4,), 3, vocabulary=9)
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    out = module(tokens)
    assert not torch.allclose(out[0], out[1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet", (4, 9), {}, "no large model 'resnet'; did you mean 'resnet[12]d'"),
        ("vit", (4, 9), {}, r"takes an input of shape \(channels, height, width\)"),
        ("transformer", (4,), {}, "tokens with the option vocabulary"),
        ("transformer", (4, 9), {"vocabulary": 5}, r"tokens of shape \(length,\)"),
        ("transformer", (4, 9), {"dim": 10}, "can't be shared by 4 heads"),
        ("vit", (4, 9, 9), {"pach": 3}, "did you mean 'patch'"),
        ("hf:bert", (4, 9), {}, "takes tokens"),
    ],
)
def test_what_is_refused(name: str, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        large.build(name, shape, 3, **options)


def test_hugging_face_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match=r"needs the library transformers; install midhaul\[text\]"):
        large.build("hf:bert", (8,), 3)


def test_pretrained_leaves_padding_out_of_the_mean() -> None:
    class Encoder(nn.Module):
        """Gives each token's number as its hidden state, and keeps the mask it was given."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            self.mask = attention_mask
            return type("Output", (), {"last_hidden_state": input_ids[..., None].float()})

    encoder = Encoder()
    module = pretrained.Pretrained(encoder, 1, padding=1, num_classes=1)
    with torch.no_grad():
        module.head.weight.fill_(1.0), module.head.bias.zero_()
    # The mean of 4 and 8; the two 1s are padding.
    assert module(torch.tensor([[4, 8, 1, 1]])).item() == 6.0
    assert encoder.mask.tolist() == [[1, 1, 0, 0]]


def test_an_encoder_is_loaded_without_its_code_and_must_know_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class AutoModel:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> nn.Module:
            asked.update(options, name=name)
            encoder = nn.Module()
            encoder.config = SimpleNamespace(vocab_size=30, hidden_size=4, pad_token_id=None)
            return encoder

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModel=AutoModel))
    module = large.build("hf:some/encoder", (6,), 3, vocabulary=30)
    assert asked == {
        "name": "some/encoder", "use_safetensors": True, "trust_remote_code": False, "attn_implementation": "eager",
    }  # fmt: skip
    assert (module.head.in_features, module.padding) == (4, -1)
    with pytest.raises(ModelError, match="have 31 tokens, but the model hf:some/encoder knows 30"):
        large.build("hf:some/encoder", (6,), 3, vocabulary=31)
    with pytest.raises(ModelError, match="has no option 'depth'"):
        large.build("hf:some/encoder", (6,), 3, depth=2)


def test_an_encoder_of_hugging_face_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = transformers.BertModel(config)
    encoder.save_pretrained(tmp_path)
    module = large.build(f"hf:{tmp_path}", (6,), 3).eval()
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0]])
    hidden = encoder.eval()(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    torch.testing.assert_close(module(tokens), module.head(hidden[:, :3].mean(1)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="can't be loaded"):
        large.build(f"hf:{tmp_path / 'nowhere'}", (6,), 3)
