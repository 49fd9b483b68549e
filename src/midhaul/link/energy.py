"""What a radio draws in each of its states: sending at a chosen power, receiving, waiting, asleep, waking.

A device that sends for t seconds with p watts at its antenna spends t (P0 + p / eta): P0 is what its circuits draw
whatever the power, eta the efficiency of the amplifier, infinite where there is none. Leaving P0 out makes it look as
if slow and quiet were always cheapest, which it isn't: real modems draw about 40 % of their most at a two-hundredth of
the power.

Shape letters: K devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from midhaul.errors import ConfigError, nearest
from midhaul.units import dbm_to_w

Array = npt.NDArray[np.float64]

# 3GPP TR 38.840, tables 18 and 19: relative power of a slot in FR1, and what going to sleep and waking costs on top.
UNITS_DEEP, UNITS_LIGHT, UNITS_MICRO, UNITS_PDCCH, UNITS_RECEIVE = 1.0, 20.0, 45.0, 100.0, 300.0
UNITS_SEND_0_DBM, UNITS_SEND_23_DBM = 250.0, 700.0
# The 450 units between 0 and 23 dBm are the 0.2 W of the amplifier's output at an efficiency of 0.3.
UNIT_W = 1.48e-3


@dataclass(frozen=True)
class Sleep:
    """A state that a radio can rest in. Units: watts; joules and seconds of going there and coming back, together."""

    name: str
    power_w: float
    transition_j: float = 0.0
    transition_s: float = 0.0


@dataclass(frozen=True)
class PowerModel:
    """What a radio draws by state. Units: watts, dBm at the antenna.

    `circuit_w` is P0, `efficiency` eta; `max_dbm` is the most that it sends with. `idle_w` is waiting, ready to be
    called; `sleeps` are what it may rest in instead where it knows for how long. What the board's processor draws is
    not in these figures.
    """

    name: str
    max_dbm: float
    circuit_w: float
    efficiency: float
    receive_w: float
    idle_w: float
    sleeps: tuple[Sleep, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.efficiency > 0.0:
            raise ConfigError(f"radio {self.name}: an amplifier's efficiency is above 0, not {self.efficiency}")
        drawn = (self.circuit_w, self.receive_w, self.idle_w)
        states = [part for s in self.sleeps for part in (s.power_w, s.transition_j, s.transition_s)]
        if not all(0.0 <= value < math.inf for value in (*drawn, *states)):
            raise ConfigError(f"radio {self.name}: what a state draws must be finite and not below 0")

    @property
    def max_w(self) -> float:
        """The most power that it sends with."""
        return dbm_to_w(self.max_dbm)

    def transmit_w(self, power_w: Array | float) -> Array:
        """Gives what the radio draws while it sends with so much power. Shapes: [K] -> [K]."""
        return self.circuit_w + np.asarray(power_w, np.float64) / self.efficiency

    def power_of(self, drawn_w: float) -> float:
        """Gives the power at the antenna of a radio that draws so much while it sends: at most its most."""
        if math.isinf(self.efficiency):
            return 0.0
        return min(max((drawn_w - self.circuit_w) * self.efficiency, 0.0), self.max_w)

    def transmit_j(self, seconds: Array | float, power_w: Array | float) -> Array:
        """Gives E = t (P0 + p / eta). Shapes: [K], [K] -> [K].

        >>> round(float(POWERS["redcap"].transmit_j(2.0, 0.0)), 3)  # two seconds of circuits alone
        0.733
        """
        return np.asarray(seconds, np.float64) * self.transmit_w(power_w)

    def receive_j(self, seconds: Array | float) -> Array:
        """Gives the energy of receiving for so long. Shapes: [K] -> [K]."""
        return np.asarray(seconds, np.float64) * self.receive_w

    def rest_j(self, seconds: Array | float) -> Array:
        """Gives the energy of a gap whose length the radio knows: of waiting, or of the sleep that costs least.

        A sleep is open to it where going there and waking fits into the gap. Shapes: [K] -> [K].
        Source: 3GPP TR 38.840, table 19: energy of the transitions comes on top of that of the sleep.
        """
        gap = np.asarray(seconds, np.float64)
        least = gap * self.idle_w
        for sleep in self.sleeps:
            asleep = gap * sleep.power_w + sleep.transition_j
            least = np.where(gap >= sleep.transition_s, np.minimum(least, asleep), least)
        return np.asarray(least)


def from_two_points(low_dbm: float, low_w: float, high_dbm: float, high_w: float) -> tuple[float, float]:
    """Gives P0 and eta of the line through what a radio draws at two powers. Units: watts.

    >>> circuit_w, efficiency = from_two_points(0.0, 1.1, 30.0, 3.098)
    >>> round(circuit_w, 3), round(efficiency, 3)  # 999 mW more at the antenna draw 1,998 mW more
    (1.098, 0.5)
    """
    out_w, drawn_w = dbm_to_w(high_dbm) - dbm_to_w(low_dbm), high_w - low_w
    if not (out_w > 0.0 and drawn_w > 0.0):
        raise ConfigError("a radio that sends with more power draws more; the two points don't say so")
    slope = drawn_w / out_w
    circuit_w = low_w - slope * dbm_to_w(low_dbm)
    if circuit_w < 0.0:
        raise ConfigError("the line through the two points draws less than nothing at no power")
    return circuit_w, 1.0 / slope


class Drawing(Protocol):
    """What the arithmetic needs of `devices.profiles.Board`. Units: watts."""

    @property
    def active_w(self) -> float: ...

    @property
    def sleep_w(self) -> float: ...


def computing_j(board: Drawing, seconds: Array | float) -> Array:
    """Gives the energy of a board at work for so long: the whole chip, its radio off. Shapes: [K] -> [K].

    Source: the board's own figures, `devices/profiles.py`.
    """
    return np.asarray(seconds, np.float64) * board.active_w


def asleep_j(board: Drawing, seconds: Array | float) -> Array:
    """Gives the energy of a board in the deepest sleep that keeps its RAM. Shapes: [K] -> [K]."""
    return np.asarray(seconds, np.float64) * board.sleep_w


def _nr(name: str, scale: float, source: str) -> PowerModel:
    """Gives TR 38.840's terminal, whose every state draws `scale` times as much."""
    unit_w = scale * UNIT_W
    circuit_w, efficiency = from_two_points(0.0, UNITS_SEND_0_DBM * unit_w, 23.0, UNITS_SEND_23_DBM * unit_w)
    sleeps = (
        Sleep("micro", UNITS_MICRO * unit_w),
        Sleep("light", UNITS_LIGHT * unit_w, 100.0 * unit_w * 1e-3, 6e-3),
        Sleep("deep", UNITS_DEEP * unit_w, 450.0 * unit_w * 1e-3, 20e-3),
    )
    idle_w = UNITS_PDCCH * unit_w
    return PowerModel(name, 23.0, circuit_w, efficiency, UNITS_RECEIVE * unit_w, idle_w, sleeps, source)


def _two(low_dbm: float, low_w: float, high_dbm: float, high_w: float) -> tuple[float, float, float]:
    return (high_dbm, *from_two_points(low_dbm, low_w, high_dbm, high_w))


_ALL: Sequence[PowerModel] = (
    PowerModel("ideal", 0.0, 0.0, math.inf, 0.0, 0.0, (), "none: a link that costs nothing, for comparisons"),
    PowerModel(
        "ble",
        *_two(0.0, 4.8e-3 * 3.0, 8.0, 14.8e-3 * 3.0),
        receive_w=4.6e-3 * 3.0,
        idle_w=0.12e-3 * 3.0,
        sleeps=(Sleep("off", 0.0),),
        source="nRF52840 product specification: 4.8 mA at 0 dBm, 14.8 mA at 8 dBm (from memory), 4.6 mA RX, 3 V; "
        "estimate: 0.12 mA of an empty connection event each 30 ms; off, the chip's own sleep is the board's",
    ),
    PowerModel(
        "nb_iot",
        *_two(0.0, 0.120 * 3.7, 23.0, 0.300 * 3.7),
        receive_w=45e-3 * 3.7,
        idle_w=9e-3 * 3.7,
        sleeps=(Sleep("eDRX", 20e-6 * 3.7, 25e-3 * 3.7, 1.0),),
        source="nRF9160 white paper nwp_034, about 300 mA at full power; estimates: 40 % of that at 0 dBm, as of other "
        "modems, 45 mA receiving, 9 mA connected and waiting, 20 uA in eDRX and 25 mC to go there and back; 3.7 V",
    ),
    PowerModel(
        "cat_m1",
        *_two(0.0, 45e-3 * 3.7, 23.0, 0.100 * 3.7),
        receive_w=45e-3 * 3.7,
        idle_w=9e-3 * 3.7,
        sleeps=(Sleep("eDRX", 18e-6 * 3.7, 10e-3 * 3.7, 1.0),),
        source="nRF9160 product specification, modem current consumption: 180 kbit/s up, 45 mA at 0 dBm and 100 mA at "
        "23 dBm (band 13), 3.7 V, means over the half-duplex pattern, which is why eta is near 1; estimates: 45 mA "
        "receiving, 9 mA connected and waiting, 18 uA in eDRX and 10 mC to go there and back",
    ),
    _nr(
        "redcap",
        1.0,
        "3GPP TR 38.840 table 18 (FR1: deep sleep 1, light 20, micro 45, PDCCH 100, receiving 300, sending 250 at 0 "
        "dBm and 700 at 23 dBm) and table 19 (deep 450 unit ms over 20 ms; light 100 over 6 ms, from memory); "
        "estimate of 1.48 mW a unit: the 450 units between 0 and 23 dBm are 0.2 W at an efficiency of 0.3",
    ),
    _nr(
        "nr_embb",
        1.0,
        "3GPP TR 38.840 tables 18 and 19, whose reference terminal it is: 100 MHz in FR1; units as redcap",
    ),
    PowerModel(
        "wifi_esp32",
        *_two(14.0, 0.180 * 3.3, 19.5, 0.240 * 3.3),
        receive_w=0.100 * 3.3,
        idle_w=0.100 * 3.3,
        sleeps=(Sleep("beacons", 3e-3 * 3.3, 0.100 * 3.3 * 5e-3, 0.1), Sleep("off", 0.0, 0.100 * 3.3 * 1.0, 1.0)),
        source="ESP32 datasheet: 180 mA TX (802.11n, 14 dBm), 240 mA (802.11b, 19.5 dBm), 95 to 100 mA RX, 3.3 V; "
        "estimates: 3 ms of each 102.4 ms beacon interval awake, 5 ms of RX to fall into it, a second of RX to join "
        "again after the radio was off",
    ),
    PowerModel(
        "ethernet",
        0.0,
        0.3,
        math.inf,
        0.3,
        0.3,
        (),
        "estimate: 0.3 W of a 100BASE-TX PHY, whether it carries bits or not; there is no amplifier",
    ),
    PowerModel("uart", 0.0, 0.0, math.inf, 0.0, 0.0, (), "a wire to a host, whose energy isn't counted"),
)

POWERS: dict[str, PowerModel] = {model.name: model for model in _ALL}


def get(name: str) -> PowerModel:
    """Gives the power model of a radio by its name. Raises: ConfigError naming the nearest known one.

    >>> f"{get('redcap').circuit_w / get('redcap').transmit_w(get('redcap').max_w):.2f}"  # P0 of all, at full power
    '0.35'
    """
    if name not in POWERS:
        raise ConfigError(f"nothing is known of what the radio {name!r} draws by state{nearest(name, POWERS)}")
    return POWERS[name]
