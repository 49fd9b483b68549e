"""Transformers: the encoder block that the sequence and the image model share.

Shape letters: B rows, L tokens, E width, H heads.
Source: Vaswani et al., "Attention is all you need", 2017, section 3; layer norm first, as in Xiong et al., ICML 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul.errors import ModelError


class Scores(nn.Module):
    """softmax(q k / sqrt(E/H)) v, head by head. Shapes: three [B, L, E] -> [B, L, E]."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (self._heads(tensor) for tensor in (query, key, value))
        share = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        return (share @ v).transpose(1, 2).flatten(2)

    def _heads(self, tensor: Tensor) -> Tensor:
        num_rows, length, width = tensor.shape
        return tensor.reshape(num_rows, length, self.num_heads, width // self.num_heads).transpose(1, 2)


class EncoderBlock(nn.Module):
    """Attention and two fully connected layers, each with layer norm and a shortcut. Shapes: [B, L, E] -> the same."""

    def __init__(self, dim: int, num_heads: int, ratio: int = 2) -> None:
        super().__init__()
        if dim % num_heads:
            raise ModelError(f"a width of {dim} can't be shared by {num_heads} heads; choose a multiple")
        self.norm1 = nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scores = Scores(num_heads)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(x)
        x = x + self.out(self.scores(self.query(inner), self.key(inner), self.value(inner)))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class Positions(nn.Module):
    """Adds a learned vector to each token. Shapes: [B, L, E] -> [B, L, E]."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(length, dim) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


class MeanTokens(nn.Module):
    """The mean over the tokens. Shapes: [B, L, E] -> [B, E]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ToTokens(nn.Module):
    """Makes each place of a map one token. Shapes: [B, E, ...] -> [B, L, E]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def encoder(embed: nn.Module, length: int, dim: int, depth: int, num_heads: int, num_classes: int) -> nn.Sequential:
    """Gives embedding, positions, blocks, a last norm, the mean over the tokens and a linear layer, in a chain."""
    model = nn.Sequential()
    model.add_module("embed", embed)
    model.add_module("positions", Positions(length, dim))
    for place in range(1, depth + 1):
        model.add_module(f"block{place}", EncoderBlock(dim, num_heads))
    model.add_module("norm", nn.LayerNorm(dim))
    model.add_module("pool", MeanTokens())
    model.add_module("head", nn.Linear(dim, num_classes))
    return model
