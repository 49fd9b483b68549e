"""What radios draw by state: seconds, sleeps and joules by hand, and the figures that published tables give."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from midhaul.devices import profiles
from midhaul.errors import ConfigError
from midhaul.link import energy
from midhaul.link.energy import PowerModel, Sleep
from midhaul.link.radio import RADIOS

HAND = PowerModel(
    "r", 20.0, 0.5, 0.25, 0.3, 0.1, (Sleep("light", 0.04, 0.02, 0.5), Sleep("deep", 0.0, 0.2, 2.0)), "hand"
)


def test_sending_takes_the_circuits_and_the_amplifier() -> None:
    """2 s at 0.1 W: 2 (0.5 + 0.1 / 0.25) = 1.8 J."""
    assert float(HAND.transmit_j(2.0, HAND.max_w)) == pytest.approx(1.8)
    assert HAND.transmit_j(np.array([2.0, 1.0]), np.array([0.1, 0.0])).tolist() == pytest.approx([1.8, 0.5])
    assert float(HAND.receive_j(3.0)) == pytest.approx(0.9)


def test_the_power_that_a_draw_stands_for() -> None:
    assert HAND.power_of(0.7) == pytest.approx(0.05)
    assert HAND.power_of(0.1) == 0.0
    assert HAND.power_of(9.0) == HAND.max_w
    assert energy.get("ethernet").power_of(0.3) == 0.0


def test_a_gap_is_waited_out_or_slept_through_whichever_costs_less() -> None:
    """0.4 s: too short to sleep, 0.04 J. 1 s: light, 0.04 + 0.02 J. 10 s: deep, 0.2 J, and light would be 0.42 J."""
    assert HAND.rest_j(np.array([0.0, 0.4, 1.0, 10.0])).tolist() == pytest.approx([0.0, 0.04, 0.06, 0.2])


def test_a_sleep_that_does_not_pay_is_not_slept() -> None:
    """At 0.5 s light would be 0.04 J and waiting 0.05; with transitions of 0.1 J it is waited."""
    costly = dataclasses.replace(HAND, sleeps=(Sleep("light", 0.04, 0.1, 0.5),))
    assert float(costly.rest_j(0.5)) == pytest.approx(0.05)


def test_redcap_is_the_terminal_of_the_report() -> None:
    """TR 38.840: sending draws 250 at 0 dBm and 700 at 23 dBm, receiving 300, and deep sleep 450 unit ms more."""
    model, unit_w = energy.get("redcap"), energy.UNIT_W
    assert float(model.transmit_w(1e-3)) == pytest.approx(250 * unit_w)
    assert float(model.transmit_w(model.max_w)) == pytest.approx(700 * unit_w)
    assert model.receive_w == pytest.approx(300 * unit_w)
    assert float(model.rest_j(1.0)) == pytest.approx((1.0 + 0.450) * unit_w)
    assert float(model.rest_j(0.010)) == pytest.approx((0.2 + 0.1) * unit_w)
    assert 0.35 < model.transmit_w(1e-3) / model.transmit_w(model.max_w) < 0.40


@pytest.mark.parametrize(
    ("name", "power_dbm", "rate_bps", "joules_a_bit"),
    [("cat_m1", 0.0, 180e3, 0.93e-6), ("cat_m1", 23.0, 180e3, 2.06e-6), ("ble", 0.0, 1e6, 14.4e-9)],
)
def test_sending_costs_the_published_energy_a_bit(
    name: str, power_dbm: float, rate_bps: float, joules_a_bit: float
) -> None:
    assert energy.get(name).transmit_j(1 / rate_bps, 1e-3 * 10 ** (power_dbm / 10)) == pytest.approx(
        joules_a_bit, rel=0.01
    )


@pytest.mark.parametrize("name", RADIOS)
def test_every_radio_has_states_with_a_source(name: str) -> None:
    model, radio = energy.get(name), RADIOS[name]
    assert len(model.source) > 20
    assert model.receive_w == pytest.approx(radio.rx_w)
    gaps = np.geomspace(1e-3, 1e5, 200)
    assert bool((model.rest_j(gaps) <= gaps * model.idle_w + 1e-12).all())
    if name != "nb_iot":  # whose figure is the 300 mA at full power, as here
        assert float(model.transmit_w(model.max_w)) >= radio.tx_w * 0.98


def test_a_board_computes_and_sleeps_at_its_own_power() -> None:
    board = profiles.get("stm32l4")
    assert float(energy.computing_j(board, 2.0)) == pytest.approx(2 * 84e-6 * 80 * 3.3)
    assert float(energy.asleep_j(board, 1000.0)) == pytest.approx(3.3e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"efficiency": 0.0}, "efficiency"), ({"circuit_w": -1.0}, "below 0"), ({"idle_w": math.nan}, "below 0")],
)
def test_states_that_cannot_be_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(HAND, **change)


def test_two_points_that_make_no_amplifier_are_refused() -> None:
    with pytest.raises(ConfigError, match="don't say so"):
        energy.from_two_points(0.0, 1.0, 20.0, 0.5)
    with pytest.raises(ConfigError, match="less than nothing"):
        energy.from_two_points(0.0, 1e-4, 3.0, 1.0)
    with pytest.raises(ConfigError, match=r"'redcab' draws by state; did you mean 'redcap'\?"):
        energy.get("redcab")
