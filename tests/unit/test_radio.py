"""Radios: seconds and joules by hand, and the figures that findings give in joules a bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from midhaul.errors import ConfigError
from midhaul.link.radio import RADIOS, Radio, get


def test_seconds_and_joules_of_a_kilobyte_by_hand() -> None:
    radio = Radio("r", up_bps=8000.0, down_bps=16000.0, delay_s=0.25, loss=0.0, tx_w=2.0, rx_w=0.5, source="by hand")
    assert radio.seconds_up(1000) == 1.25
    assert radio.seconds_down(1000) == 0.75
    assert radio.joules_up(1000) == 2.0
    assert radio.joules_down(1000) == 0.25


def test_no_bytes_take_no_time_not_even_the_delay() -> None:
    radio = get("nb_iot")
    assert radio.seconds_up(0) == radio.seconds_down(0) == radio.joules_up(0) == radio.joules_down(0) == 0.0
    assert radio.seconds_up(1) > radio.delay_s > 0.0


@pytest.mark.parametrize(("name", "joules_a_bit"), [("cat_m1", 2.06e-6), ("ble", 18.2e-9), ("wifi_esp32", 29.7e-9)])
def test_sending_costs_the_published_energy_a_bit(name: str, joules_a_bit: float) -> None:
    assert get(name).joules_up(125) / 1000 == pytest.approx(joules_a_bit, rel=0.005)


def test_the_rate_of_ble_is_that_of_its_packets() -> None:
    packet_s, gap_s, acknowledgement_s = 261 * 8 / 1e6, 150e-6, 10 * 8 / 1e6
    assert get("ble").up_bps == pytest.approx(244 * 8 / (packet_s + 2 * gap_s + acknowledgement_s), rel=0.002)


def test_the_unit_of_redcap_follows_from_its_amplifier() -> None:
    unit_w = 10 ** (23 / 10) * 1e-3 / 0.3 / (700 - 250)
    assert get("redcap").tx_w == pytest.approx(700 * unit_w, rel=0.005)
    assert get("redcap").rx_w == pytest.approx(300 * unit_w, rel=0.005)


def test_an_ideal_link_costs_nothing() -> None:
    ideal = get("ideal")
    assert ideal.seconds_up(10**9) == ideal.joules_up(10**9) == ideal.seconds_down(10**9) == 0.0


def test_every_radio_is_known_by_its_name_and_has_a_source() -> None:
    for name, radio in RADIOS.items():
        assert radio.name == name
        assert len(radio.source) > 20
        assert 0.0 <= radio.loss < 0.01
        assert math.isfinite(radio.tx_w)
    assert set(RADIOS) >= {"ble", "nb_iot", "cat_m1", "redcap", "wifi_esp32", "ethernet", "ideal"}


def test_an_unknown_radio_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no radio 'cat_m2'; did you mean 'cat_m1'\?"):
        get("cat_m2")


@pytest.mark.parametrize(("field", "value"), [("up_bps", 0.0), ("tx_w", -1.0), ("delay_s", math.nan), ("loss", 1.0)])
def test_a_radio_out_of_range_is_refused(field: str, value: float) -> None:
    figures: dict[str, Any] = {**dataclasses.asdict(get("ble")), field: value}
    with pytest.raises(ConfigError, match="radio ble"):
        Radio(**figures)
