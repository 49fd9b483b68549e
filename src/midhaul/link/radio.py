"""Radios: what carrying bytes costs a device in seconds and joules, and how often a message is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from midhaul.errors import ConfigError, nearest


@dataclass(frozen=True)
class Radio:
    """A link between one device and the server, seen from the device.

    Units: bits a second of payload, seconds, watts drawn by the device's radio while it sends or receives. `delay_s`
    is one way. `loss` is the share of frames that are lost in spite of the radio's own repetitions; whether a frame is
    sent again is the link's business.
    Limits: rates don't depend on distance or on the other devices; the energy of waiting, of joining the network
    and of the tail after a transfer isn't counted.
    """

    name: str
    up_bps: float
    down_bps: float
    delay_s: float
    loss: float
    tx_w: float
    rx_w: float
    source: str

    def __post_init__(self) -> None:
        if not (self.up_bps > 0.0 and self.down_bps > 0.0):
            raise ConfigError(f"radio {self.name}: up_bps and down_bps must be above 0")
        for name in ("delay_s", "tx_w", "rx_w"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"radio {self.name}: {name} is {value}; it must be finite and not below 0")
        if not 0.0 <= self.loss < 1.0:
            raise ConfigError(f"radio {self.name}: loss is {self.loss}; it is a share from 0 to below 1")

    def seconds_up(self, num_bytes: int) -> float:
        """Gives the time from a message's first bit at the device to its last at the server; 0 for no bytes."""
        return self.delay_s + 8 * num_bytes / self.up_bps if num_bytes else 0.0

    def seconds_down(self, num_bytes: int) -> float:
        """Gives the time from a message's first bit at the server to its last at the device; 0 for no bytes."""
        return self.delay_s + 8 * num_bytes / self.down_bps if num_bytes else 0.0

    def joules_up(self, num_bytes: int) -> float:
        """Gives the energy that the device's radio spends to send."""
        return 8 * num_bytes / self.up_bps * self.tx_w

    def joules_down(self, num_bytes: int) -> float:
        """Gives the energy that the device's radio spends to receive."""
        return 8 * num_bytes / self.down_bps * self.rx_w


_ALL = (
    Radio(
        "ideal",
        up_bps=math.inf,
        down_bps=math.inf,
        delay_s=0.0,
        loss=0.0,
        tx_w=0.0,
        rx_w=0.0,
        source="none: a link that costs nothing, for comparisons",
    ),
    Radio(
        "ble",
        up_bps=790_000.0,
        down_bps=790_000.0,
        delay_s=15e-3,
        loss=0.0,
        tx_w=4.8e-3 * 3.0,
        rx_w=4.6e-3 * 3.0,
        source="nRF52840 product specification: 4.8 mA TX at 0 dBm, 4.6 mA RX, 1 Mbit/s, 3 V: 14.4 nJ a bit sent; "
        "rate: 244 payload bytes in 2,468 us (packet 2,088, two gaps of 150, acknowledgement 80); "
        "delay: estimate, half of a connection interval of 30 ms; loss: the link layer repeats until it gets through",
    ),
    Radio(
        "nb_iot",
        up_bps=62_500.0,
        down_bps=27_200.0,
        delay_s=1.0,
        loss=1e-6,
        tx_w=0.300 * 3.7,
        rx_w=45e-3 * 3.7,
        source="rates: estimate, the usually quoted peaks of Cat-NB1 (multi-tone up); "
        "power: nRF9160 white paper nwp_034, about 300 mA at full power, 3.7 V, estimate of 45 mA receiving; "
        "delay: estimate; loss: 3GPP TS 23.203 table 6.1.7, QCI 9",
    ),
    Radio(
        "cat_m1",
        up_bps=180_000.0,
        down_bps=300_000.0,
        delay_s=0.1,
        loss=1e-6,
        tx_w=0.100 * 3.7,
        rx_w=45e-3 * 3.7,
        source="nRF9160 product specification, modem current consumption: 180 kbit/s up at 23 dBm, 100 mA (band 13), "
        "3.7 V: 2.06 uJ a bit; estimate: 300 kbit/s down, 45 mA receiving, delay; "
        "loss: 3GPP TS 23.203 table 6.1.7, QCI 9",
    ),
    Radio(
        "redcap",
        up_bps=5e6,
        down_bps=50e6,
        delay_s=0.02,
        loss=1e-6,
        tx_w=700 * 1.48e-3,
        rx_w=300 * 1.48e-3,
        source="rates: 3GPP TR 38.875 clause 5, wearables, upper reference rates; "
        "power: 3GPP TR 38.840 table 18, 700 units up at 23 dBm and 300 receiving; "
        "estimate of 1.48 mW a unit: the 450 units between 0 and 23 dBm are 0.2 W at an efficiency of 0.3; "
        "delay: estimate; loss: 3GPP TS 23.501 table 5.7.4-1, 5QI 9",
    ),
    Radio(
        "nr_embb",
        up_bps=50e6,
        down_bps=100e6,
        delay_s=0.01,
        loss=1e-6,
        tx_w=700 * 1.48e-3,
        rx_w=300 * 1.48e-3,
        source="rates: ITU-R M.2410 clause 4.3, experienced by users in dense urban surroundings; "
        "power: 3GPP TR 38.840 table 18, whose reference is a carrier of 100 MHz, in units as redcap; "
        "delay: estimate; loss: 3GPP TS 23.501 table 5.7.4-1, 5QI 9",
    ),
    Radio(
        "wifi_esp32",
        up_bps=20e6,
        down_bps=20e6,
        delay_s=5e-3,
        loss=1e-3,
        tx_w=0.180 * 3.3,
        rx_w=0.100 * 3.3,
        source="ESP32 datasheet: 180 mA TX (802.11n), 95 to 100 mA RX, 3.3 V; estimate: 20 Mbit/s of TCP, delay, loss",
    ),
    Radio(
        "ethernet",
        up_bps=100e6,
        down_bps=100e6,
        delay_s=1e-3,
        loss=0.0,
        tx_w=0.3,
        rx_w=0.3,
        source="IEEE 802.3 clause 25 (100BASE-TX); estimate: 0.3 W of a PHY, delay",
    ),
    Radio(
        "uart",
        up_bps=92_160.0,
        down_bps=92_160.0,
        delay_s=0.0,
        loss=0.0,
        tx_w=0.0,
        rx_w=0.0,
        source="115,200 baud, 8N1: 8 of 10 bits are payload; a wire to a host, whose energy isn't counted",
    ),
)

RADIOS: dict[str, Radio] = {radio.name: radio for radio in _ALL}


def get(name: str) -> Radio:
    """Gives the radio of that name. Raises: ConfigError naming the nearest known one.

    >>> round(get("cat_m1").joules_up(1) / 8 * 1e6, 2)  # microjoules a bit
    2.06
    """
    if name not in RADIOS:
        raise ConfigError(f"there is no radio {name!r}{nearest(name, RADIOS)}")
    return RADIOS[name]
