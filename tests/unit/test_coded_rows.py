"""Rows that lie in memory as bytes train to the same bits as the numbers that the bytes stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from midhaul import rng, tree
from midhaul.message import Message, Op
from midhaul.models import tiny
from midhaul.program import Population, Program
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked

LEVELS = torch.linspace(-1.0, 2.0, 256)


def populations() -> tuple[Population, Population]:
    """Gives three devices with 5, 1 and 9 rows, as bytes and as numbers."""
    codes = torch.from_numpy(rng.integers(rng.key(0, 0, 0, rng.Use.SYNTHETIC), 15 * 64, 256).astype(np.uint8))
    x, y = codes.reshape(15, 1, 8, 8), torch.arange(15) % 3
    rows = tuple(np.split(np.arange(15), [5, 6]))
    coded = Population(x, y, rows, rows, (), True, levels=LEVELS)
    return coded, Population(LEVELS[x.long()], y, rows, rows, (), True)


def test_bytes_become_the_numbers_that_they_stand_for() -> None:
    coded, plain = populations()
    places = torch.tensor([[0, 14], [3, 3]])
    assert torch.equal(coded.inputs(places), plain.x[places])
    assert torch.equal(coded.plain().x, plain.x)
    assert coded.plain().levels is None
    assert torch.equal(coded.local(1).train.x, plain.x[5:6])


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("op", [Op.FIT, Op.EVALUATE, Op.PREDICT, Op.FORWARD, Op.READ])
def test_every_op_gives_the_same_bits(op: Op, kernels: str) -> None:
    program = Program(tiny.build("cnn", (1, 8, 8), 3), (1, 8, 8))
    settings = {"lr": 0.1, "batch": 4, "epochs": 2, "train": "whole", "send": "whole"} if op == Op.FIT else {}
    message = Message(op, program.initial, settings={**settings, **({"what": "examples"} if op == Op.READ else {})})
    ends = []
    for population in populations():
        for fleet in (Stacked(program, population, kernels=kernels), Loop(program, population)):
            up = fleet.exchange(message, key=rng.Key(0, 1, 0, 0))
            ends.append({**up.tree, **up.metrics})
    for place in (0, 1):
        assert tree.largest_difference(ends[place], ends[place + 2]) == 0.0
