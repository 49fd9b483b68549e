"""Changes to examples that leave their class alone, for training on the server.

Shape letters: B rows, C channels, L samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import ModelError


@dataclass(frozen=True)
class Rotation:
    """Turns three-axis sensor signals about a random axis, as another wearer or another pocket would.

    Each row gets one rotation for all its triples of channels (accelerometer, gyroscope ...), about a uniformly random
    axis by an angle from a normal distribution of standard deviation `degrees`. `centre` and `spread` [C] are those
    that the channels were scaled by: the turn is made in the sensor's own units, in which gravity has a direction.

    Shapes: [B, C, L] -> [B, C, L], C a multiple of 3.
    Source: Um et al., "Data augmentation of wearable sensor data for Parkinson's disease monitoring", ICMI 2017,
    section 3.2 (rotation); Rodrigues' formula.
    """

    degrees: float
    centre: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.centre or len(self.centre) % 3 or len(self.centre) != len(self.spread):
            raise ModelError(
                "these data don't say how three-axis channels were scaled, so they can't be turned; "
                "set large.rotate_deg = 0"
            )

    def __call__(self, x: Tensor, key: rng.Key) -> Tensor:
        """Gives the rows turned; each draws its rotation from the key."""
        num, channels, length = x.shape
        draws = torch.from_numpy(rng.normal(key, 4 * num)).reshape(num, 4).float()
        turns = rotations(draws[:, :3], draws[:, 3] * math.radians(self.degrees))
        turns = turns.to(x.device)
        centre = torch.tensor(self.centre, device=x.device)[None, :, None]
        spread = torch.tensor(self.spread, device=x.device)[None, :, None]
        raw = (x * spread + centre).reshape(num, channels // 3, 3, length)
        turned = torch.einsum("bij,bkjl->bkil", turns, raw).reshape(num, channels, length)
        return (turned - centre) / spread


def rotations(axis: Tensor, angle: Tensor) -> Tensor:
    """Gives rotation matrices. Shapes: axis [B, 3] of any length above 0, angle [B] in radians -> [B, 3, 3].

    >>> turn = rotations(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([math.pi / 2]))
    >>> (turn[0] @ torch.tensor([1.0, 0.0, 0.0])).round(decimals=3).tolist()
    [0.0, 1.0, 0.0]
    """
    x, y, z = (axis / axis.norm(dim=1, keepdim=True)).unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    sine, rest = torch.sin(angle)[:, None, None], (1.0 - torch.cos(angle))[:, None, None]
    return torch.from_numpy(np.eye(3, dtype=np.float32)) + sine * cross + rest * (cross @ cross)
