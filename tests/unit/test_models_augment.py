"""Turning sensor signals: checked by hand, by lengths and angles, and by a teacher that sees what its pupil sees."""

from __future__ import annotations

import math

import pytest
import torch

from midhaul import rng
from midhaul.errors import ModelError
from midhaul.models.augment import Rotation, rotations

KEY = rng.key(0, 0, rng.SERVER, rng.Use.NOISE)


def test_a_quarter_turn_about_an_axis_by_hand() -> None:
    about_x = rotations(torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([math.pi / 2]))[0]
    assert torch.allclose(about_x @ torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
    assert torch.allclose(about_x @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)


def test_lengths_in_the_sensors_own_units_stay_and_both_sensors_turn_alike() -> None:
    centre, spread = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.5, 2.0, 2.0, 2.0)
    x = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    turned = Rotation(30.0, centre, spread)(x, KEY)
    c, s = torch.tensor(centre)[None, :, None], torch.tensor(spread)[None, :, None]
    before, after = (value * s + c for value in (x, turned))
    for part in (slice(0, 3), slice(3, 6)):
        assert torch.allclose(before[:, part].norm(dim=1), after[:, part].norm(dim=1), atol=1e-5)
    dots = (before[:, :3] * before[:, 3:]).sum(1), (after[:, :3] * after[:, 3:]).sum(1)
    assert torch.allclose(*dots, atol=1e-4)
    assert not torch.allclose(before, after, atol=0.05)


def test_the_same_key_turns_alike_and_no_degrees_is_no_turn() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    unit = ((0.0,) * 3, (1.0,) * 3)
    assert torch.equal(Rotation(12.0, *unit)(x, KEY), Rotation(12.0, *unit)(x, KEY))
    assert not torch.equal(Rotation(12.0, *unit)(x, KEY), Rotation(12.0, *unit)(x, KEY.at(1)))
    assert torch.allclose(Rotation(0.0, *unit)(x, KEY), x, atol=1e-6)


def test_angles_have_the_deviation_that_was_asked() -> None:
    x = torch.zeros(4000, 3, 1)
    x[:, 0] = 1.0
    turned = Rotation(10.0, (0.0,) * 3, (1.0,) * 3)(x, KEY)[:, :, 0]
    # About a random axis, cos(tilt) = 1 - (1 - cos a) sin^2: the mean of sin^2 over the sphere is 2/3.
    expected = 1.0 - (1.0 - math.exp(-0.5 * math.radians(10.0) ** 2)) * 2.0 / 3.0
    assert float(turned[:, 0].mean()) == pytest.approx(expected, abs=1e-3)


def test_data_that_are_not_three_axis_sensors_are_refused() -> None:
    with pytest.raises(ModelError, match=r"set large\.rotate_deg = 0"):
        Rotation(10.0, (), ())
    with pytest.raises(ModelError, match="three-axis"):
        Rotation(10.0, (0.0,) * 4, (1.0,) * 4)
