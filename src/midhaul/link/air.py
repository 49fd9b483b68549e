"""The bytes that one op's frames put on the air for one device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from midhaul.link.frame import Frame, num_bytes
from midhaul.message import Op, Settings
from midhaul.tree import Tree

# What an op's message is told besides tensors, for the bytes of its frame; values stand for others of the same kind.
_TOLD: dict[Op, Settings] = {
    Op.FIT: {
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch": 16,
        "epochs": 1,
        "loss": "cross_entropy",
        "train": "whole",
        "send": "whole",
        "proximal_mu": 0.0,
    },
    Op.FORWARD: {"rows": "train", "batch": 16, "step": 0, "epoch": 0, "what": "hy"},
    Op.BACKWARD: {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    Op.READ: {"send": "whole"},
}
_TELLS: dict[Op, tuple[str, ...]] = {Op.FIT: ("rows", "loss")}


class Air(NamedTuple):
    """Bytes that an op's frames put on the air for one device: the reply up, the message down."""

    up_bytes: int
    down_bytes: int


def of(op: Op, weights: Tree, smashed: Tensor | None = None) -> Air:
    """Gives the bytes of one op: its message down, its reply up.

    FIT sends the slice down and up; LOAD down, READ up; FORWARD the smashed batch [B, H] and its labels up;
    BACKWARD the gradient at the cut down. ADAPT, EVALUATE and PREDICT run on the device by themselves: nothing crosses.
    Limits: weights as float32; a lost frame is sent again; text in the settings may differ by some bytes.
    """
    if op in (Op.ADAPT, Op.EVALUATE, Op.PREDICT):
        return Air(0, 0)
    down: Tree = weights if op in (Op.LOAD, Op.FIT) else {}
    up: Tree = weights if op in (Op.READ, Op.FIT) else {}
    if smashed is not None and op is Op.FORWARD:
        up = {"h": smashed, "y": torch.zeros(len(smashed), dtype=torch.int64)}
    if smashed is not None and op is Op.BACKWARD:
        down = {"g": smashed}
    metrics = dict.fromkeys(_TELLS.get(op, ("rows",)), 0.0)
    sent = num_bytes(Frame(op, True, 0, 0, {}, up, 0.0, metrics))
    return Air(sent, num_bytes(Frame(op, False, 0, 0, _TOLD.get(op, {}), down)))
