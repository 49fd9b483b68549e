"""What only some devices have of their own: kept for them alone, and put back as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from midhaul.errors import EngineError
from midhaul.program import Population, Program
from midhaul.runtime import own
from midhaul.runtime.own import Own
from midhaul.runtime.stacked import Stacked

INITIAL = {"w": torch.tensor([1.0, 2.0])}


def test_a_device_gets_what_was_kept_for_it_and_the_others_what_all_have() -> None:
    kept = Own(10**6, INITIAL["w"])
    kept.put([7, 3], torch.tensor([[7.0, 0.0], [3.0, 0.0]]))
    kept.put([3, 999_999], torch.tensor([[3.5, 0.0], [9.0, 0.0]]))
    assert kept.get([3, 7, 999_999]).tolist() == [[3.5, 0.0], [7.0, 0.0], [9.0, 0.0]]
    assert kept.get([0, 7], INITIAL["w"]).tolist() == [[1.0, 2.0], [7.0, 0.0]]
    assert kept.has([3, 7])
    assert not kept.has([3, 0])
    assert kept.has((3, 7)), "any sequence names devices"
    assert kept.get((7,)).tolist() == [[7.0, 0.0]]
    with pytest.raises(EngineError, match="device 4 has no such tensor"):
        kept.get([3, 4])
    devices, values = kept.dump()
    assert devices.tolist() == [3, 7, 999_999]
    assert values.tolist() == [[3.5, 0.0], [7.0, 0.0], [9.0, 0.0]]


def test_what_was_given_out_is_not_changed_later() -> None:
    kept = Own(4, INITIAL["w"])
    kept.put([0, 1], torch.zeros(2, 2))
    before, (_, dumped) = kept.get([0, 1]), kept.dump()
    kept.put([0, 1], torch.ones(2, 2))
    assert not before.any()
    assert not dumped.any()


def test_memory_goes_with_the_devices_that_have_one() -> None:
    kept = Own(100_000, torch.zeros(1000))
    for first in range(0, 200, 20):
        kept.put(range(first, first + 20), torch.ones(20, 1000))
    assert len(kept) == 200
    assert len(kept._values) <= 250


@pytest.mark.parametrize("devices", [[2, 0], [2, 0, 1]], ids=["some", "all"])
def test_a_dump_puts_back_what_was_there(devices: list[int]) -> None:
    kept = {"w": Own(3, INITIAL["w"])}
    kept["w"].put(devices, torch.tensor([[float(d), 0.0] for d in devices]))
    whole = own.dump("own", kept)
    assert ("of_own/w" in whole) == (len(devices) < 3), "the devices need no list where they are all"
    again = own.restore("own", whole, 3, INITIAL)
    assert again["w"].get(devices).tolist() == [[float(d), 0.0] for d in devices]
    assert own.owners(whole, "own/w").tolist() == sorted(devices)


@pytest.mark.parametrize(
    "whole",
    [
        {"own/v": torch.zeros(3, 2)},
        {"own/w": torch.zeros(3, 3)},
        {"own/w": torch.zeros(4, 2)},
        {"own/w": torch.zeros(2, 2), "of_own/w": torch.tensor([0, 3])},
        {"own/w": torch.zeros(2, 2), "of_own/w": torch.tensor([1, 1])},
        {"own/w": torch.zeros(2, 2), "of_own/w": torch.tensor([1])},
        {"own/w": torch.zeros(2, 2), "of_own/w": torch.tensor([0.0, 1.0])},
    ],
    ids=["name", "shape", "too many", "no such device", "twice", "too few", "no numbers"],
)
def test_another_fleet_s_dump_is_refused(whole: dict[str, torch.Tensor]) -> None:
    with pytest.raises(EngineError, match="of another run"):
        own.restore("own", whole, 3, INITIAL)


def test_what_all_hold_is_refused_in_another_shape() -> None:
    program = Program(nn.Linear(2, 1, bias=False), (2,))
    rows = (np.arange(1),)
    fleet = Stacked(program, Population(torch.zeros(1, 2), torch.zeros(1).long(), rows, rows, (), True))
    fleet.restore({"base/weight": torch.ones(1, 2)})
    assert fleet.base["weight"].tolist() == [[1.0, 1.0]]
    with pytest.raises(EngineError, match="of another run"):
        fleet.restore({"base/weight": torch.ones(2, 1)})
