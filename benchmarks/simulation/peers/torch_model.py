"""The tiny model of a workload in plain PyTorch, from the list of its layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from protocol import Arrays, Task
from torch import nn


def build(layers: list[list[Any]]) -> nn.Sequential:
    """Gives the model of a list of [kind, name, number, ...]."""
    made: OrderedDict[str, nn.Module] = OrderedDict()
    for kind, name, *sizes in layers:
        if kind == "conv":
            dims, width, out, kernel, padding = sizes
            made[name] = (nn.Conv1d if dims == 1 else nn.Conv2d)(width, out, kernel, padding=padding)
        elif kind == "pool":
            made[name] = (nn.MaxPool1d if sizes[0] == 1 else nn.MaxPool2d)(sizes[1])
        elif kind == "linear":
            made[name] = nn.Linear(*sizes)
        else:
            made[name] = {"relu": nn.ReLU, "flatten": nn.Flatten, "mean": lambda: nn.AdaptiveAvgPool1d(1)}[kind]()
    return nn.Sequential(made)


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Gives a state of tensors of its own."""
    return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}


def arrays(state: dict[str, torch.Tensor]) -> Arrays:
    """Gives a state as arrays."""
    return {name: value.detach().numpy() for name, value in state.items()}


def data(task: Task) -> torch.Tensor:
    """Gives a workload's rows, in memory."""
    return torch.from_numpy(np.array(task.x))
