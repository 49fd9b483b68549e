"""A model with a learning rate beside each of its parameters, for Meta-SGD."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

MODEL, RATES = "model.", "rates."  # how the names of the two halves of the tree begin


class WithRates(nn.Module):
    """A model and a twin of it whose parameters are learning rates: both are loaded, trained and sent as parameters.

    Source: Li, Zhou, Chen and Li, "Meta-SGD: learning to learn quickly for few-shot learning", 2017, equation 2.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__()
        self.model, self.rates = model, copy.deepcopy(model)
        with torch.no_grad():
            for value in self.rates.parameters():
                value.fill_(rate)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out
