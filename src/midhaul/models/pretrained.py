"""Encoders of Hugging Face as large models, by the extra `transformers`."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from midhaul.errors import DependencyError, ModelError


class Pretrained(nn.Module):
    """An encoder, the mean of its last hidden states, and a linear layer. Shapes: [B, L] int64 -> [B, num_classes].

    The tokens must be those of the encoder's own tokenizer; those that equal its padding token are left out.
    """

    def __init__(self, encoder: nn.Module, dim: int, padding: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.padding = padding
        self.head = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = tokens != self.padding
        hidden = self.encoder(input_ids=tokens, attention_mask=kept.long()).last_hidden_state
        share = kept.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * share).sum(1) / share.sum(1).clamp(min=1.0)
        out: Tensor = self.head(mean)
        return out


def build(name: str, input_shape: tuple[int, ...], num_classes: int, vocabulary: int = 0, **unknown: Any) -> nn.Module:
    """Gives an encoder by its name on the hub, or by its folder, with a new linear layer.

    Only safetensors files are read, and no code that comes with a model is run. `vocabulary` is the data's number of
    tokens, which the encoder must know.

    Raises: DependencyError without transformers; ModelError if the encoder can't be had or the input isn't its tokens.
    """
    if unknown:
        raise ModelError(f"the model hf:{name} has no option {next(iter(unknown))!r}; its one option is vocabulary")
    if len(input_shape) != 1:
        raise ModelError(
            f"the model hf:{name} takes tokens of shape (length,), not {input_shape}; choose another model"
        )
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise DependencyError(f"the model hf:{name} needs the library transformers; install midhaul[text]") from None
    try:
        encoder = transformers.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the model hf:{name} can't be loaded ({' '.join(str(error).split())}); check its name"
        ) from None
    if vocabulary > int(encoder.config.vocab_size):
        raise ModelError(
            f"the data have {vocabulary} tokens, but the model hf:{name} knows {encoder.config.vocab_size}; "
            "use tokens of that model's own tokenizer"
        )
    padding = encoder.config.pad_token_id
    return Pretrained(encoder, int(encoder.config.hidden_size), -1 if padding is None else int(padding), num_classes)
