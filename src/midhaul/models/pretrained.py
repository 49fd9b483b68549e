"""Encoders and causal models of Hugging Face as classifiers, on the server or on devices, by the extra `text`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from midhaul import hub
from midhaul.errors import ModelError


class Pretrained(nn.Module):
    """An encoder or a causal model, the mean of its last hidden states, and a linear layer.

    Shapes: [B, L] int64 -> [B, num_classes].
    The tokens must be those of the encoder's own tokenizer; those that equal its padding token are left out.
    """

    def __init__(self, encoder: nn.Module, dim: int, padding: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.padding = padding
        self.head = nn.Linear(dim, num_classes)
        looks_ahead = [not part.is_causal for part in encoder.modules() if hasattr(part, "is_causal")]
        self.looks_ahead = bool(looks_ahead) and all(looks_ahead)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = tokens != self.padding
        mask = kept.long()
        if self.looks_ahead:
            # As it is added to the scores: transformers looks into one of two axes, which side by side it can't.
            mask = torch.where(kept, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        share = kept.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * share).sum(1) / share.sum(1).clamp(min=1.0)
        out: Tensor = self.head(mean)
        return out


def build(name: str, input_shape: tuple[int, ...], num_classes: int, vocabulary: int = 0, **unknown: Any) -> nn.Module:
    """Gives an encoder by its name on the hub, by its folder, or `minilm` of its package, with a new linear layer.

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
    transformers, place = hub.transformers(f"the model hf:{name}"), hub.place(name)
    try:
        # Attention in plain products: what else there is looks into its mask, which can't be done for many devices.
        encoder = transformers.AutoModel.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, attn_implementation="eager"
        )
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
