"""Path loss, line of sight, shadowing and walls between base stations and devices, as 3GPP TR 38.901 has them.

Source: 3GPP TR 38.901 V19.2.0, clause 7.4: table 7.4.1-1 (path loss), 7.4.2-1 (probability of line of sight), 7.4.3
(outdoor to indoor), table 7.5-6 (correlation distances of shadowing); figures as sionna-no-rt 2.2.0 has them, which
`benchmarks/link.py` holds these to. Limits: 0.5 to 100 GHz, distances of 10 m to 5 km, no blockage, no cars.

Shape letters: S sites, D devices. Distances and heights in metres, frequencies in hertz, losses in decibels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.errors import ConfigError, nearest

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
LIGHT_M_S = 299_792_458.0
SIGHT_CORRELATION_M = 50.0  # of whether there is line of sight: TR 38.901 table 7.6.3.1-2
WALL_CORRELATION_M = 10.0  # of a wall's random loss: TR 38.901 clause 7.4.3.1, table 7.6.3.1-2
LEGACY_HZ = 6e9  # below it walls are those of table 7.4.3-3
MOST_INSIDE_M = 25.0
NUM_WAVES = 64  # of a random field; its correlation over distance is exact in the mean whatever their number
MIN_M = 10.0


@dataclass(frozen=True)
class Scenario:
    """A kind of surroundings: where base stations stand, how shadowing varies, and how signals fade.

    Units: metres, decibels; `delay_spread_s` is the median root-mean-square delay spread in sight, hidden and indoors,
    at 3.5 GHz, and `rice_db` the Rice factor in sight (TR 38.901 table 7.5-6, part 1).
    """

    name: str
    inter_site_m: float
    site_height_m: float
    min_distance_m: float
    tx_dbm: float
    shadow_db: tuple[float, float, float]  # in sight, not in sight, indoors
    correlation_m: tuple[float, float, float]
    delay_spread_s: tuple[float, float, float]
    rice_db: tuple[float, float]  # mean and deviation
    source: str


SCENARIOS: dict[str, Scenario] = {
    "umi": Scenario(
        "umi",
        200.0,
        10.0,
        10.0,
        44.0,
        shadow_db=(4.0, 7.82, 7.0),
        correlation_m=(10.0, 13.0, 7.0),
        delay_spread_s=(10.0**-7.398, 10.0**-7.014, 10.0**-6.62),
        rice_db=(9.0, 5.0),
        source="3GPP TR 38.901 tables 7.2-1, 7.5-6 and 7.8-1, urban microcells in street canyons",
    ),
    "uma": Scenario(
        "uma",
        500.0,
        25.0,
        35.0,
        49.0,
        shadow_db=(4.0, 6.0, 7.0),
        correlation_m=(37.0, 50.0, 7.0),
        delay_spread_s=(10.0**-7.110, 10.0**-6.543, 10.0**-6.62),
        rice_db=(9.0, 3.5),
        source="3GPP TR 38.901 tables 7.2-1, 7.5-6 and 7.8-1, urban macrocells",
    ),
}


def get(name: str) -> Scenario:
    """Gives the scenario of that name. Raises: ConfigError naming the nearest known one."""
    if name not in SCENARIOS:
        raise ConfigError(f"there is no cell {name!r}{nearest(name, SCENARIOS)}")
    return SCENARIOS[name]


def sight_probability(scenario: str, distance_m: Doubles, height_m: Doubles) -> Doubles:
    """Gives how likely a device is in line of sight, by its distance outdoors. Source: TR 38.901 table 7.4.2-1."""
    d = np.maximum(distance_m, 18.0)
    if scenario == "umi":
        return np.asarray(18.0 / d + np.exp(-d / 36.0) * (1.0 - 18.0 / d))
    tall = np.clip((height_m - 13.0) / 10.0, 0.0, None) ** 1.5
    base = 18.0 / d + np.exp(-d / 63.0) * (1.0 - 18.0 / d)
    lift = 1.0 + tall * 1.25 * (d / 100.0) ** 3 * np.exp(-d / 150.0)
    return np.where(distance_m <= 18.0, 1.0, base * lift)


def path_loss_db(
    scenario: str,
    flat_m: Doubles,
    site_height_m: float,
    height_m: Doubles,
    carrier_hz: float,
    in_sight: Flags,
    environment_m: Doubles | float = 1.0,
) -> Doubles:
    """Gives the basic path loss, without shadowing and walls. Shapes: [..., D].

    `environment_m` is the effective height of the surroundings, 1 m but for devices higher than 13 m in `uma`.
    Source: TR 38.901 table 7.4.1-1 and its notes 1 and 6.
    """
    flat = np.maximum(flat_m, MIN_M)
    rise = site_height_m - height_m
    slant = np.hypot(flat, rise)
    ghz = 20.0 * np.log10(carrier_hz / 1e9)
    clear = (site_height_m - environment_m) * np.maximum(height_m - environment_m, 1e-3)
    breakpoint_m = 4.0 * clear * carrier_hz / LIGHT_M_S
    if scenario == "umi":
        near = 32.4 + 21.0 * np.log10(slant) + ghz
        far = 32.4 + 40.0 * np.log10(slant) + ghz - 9.5 * np.log10(breakpoint_m**2 + rise**2)
        hidden = 22.4 + 35.3 * np.log10(slant) + 21.3 * np.log10(carrier_hz / 1e9) - 0.3 * (height_m - 1.5)
    else:
        near = 28.0 + 22.0 * np.log10(slant) + ghz
        far = 28.0 + 40.0 * np.log10(slant) + ghz - 9.0 * np.log10(breakpoint_m**2 + rise**2)
        hidden = 13.54 + 39.08 * np.log10(slant) + ghz - 0.6 * (height_m - 1.5)
    clear_db = np.where(flat < breakpoint_m, near, far)
    return np.asarray(np.where(in_sight, clear_db, np.maximum(clear_db, hidden)))


def environment_height_m(flat_m: Doubles, height_m: Doubles, draws: Doubles) -> Doubles:
    """Gives the effective height of the surroundings of `uma`. Shapes: [..., D]; draws in [0, 1) with 2 at the end.

    Source: TR 38.901 table 7.4.1-1, note 1: 1 m with probability 1 / (1 + C), else one of 12, 15, ..., h - 1.5.
    """
    lift = np.where(flat_m <= 18.0, 0.0, 1.25 * (flat_m / 100.0) ** 3 * np.exp(-flat_m / 150.0))
    odds = lift * np.clip((height_m - 13.0) / 10.0, 0.0, None) ** 1.5
    choices = np.maximum(np.floor((height_m - 1.5 - 12.0) / 3.0) + 1.0, 1.0)
    other = 12.0 + 3.0 * np.floor(draws[..., 1] * choices)
    return np.where(draws[..., 0] < 1.0 / (1.0 + odds), 1.0, other)


def wall_loss_db(carrier_hz: float, building: str, inside_m: Doubles, spread: Doubles) -> Doubles:
    """Gives what the way indoors costs: the wall, 0.5 dB a metre behind it, and the wall's spread (standard normal).

    `building` is "low" or "high" loss. Source: TR 38.901 clause 7.4.3.1, tables 7.4.3-1 and 7.4.3-2; below 6 GHz table
    7.4.3-3, where both are alike: 20 dB and no spread.
    """
    if carrier_hz < LEGACY_HZ:
        return np.asarray(20.0 + 0.5 * inside_m)
    ghz = carrier_hz / 1e9
    concrete = 5.0 + 4.0 * ghz
    glass, share, sigma = (2.0 + 0.2 * ghz, 0.3, 4.4) if building == "low" else (25.4 + 0.11 * ghz, 0.7, 6.5)
    through = share * 10.0 ** (-glass / 10.0) + (1.0 - share) * 10.0 ** (-concrete / 10.0)
    return 5.0 - 10.0 * float(np.log10(through)) + 0.5 * inside_m + sigma * spread


def inside_m(carrier_hz: float, draws: Doubles) -> Doubles:
    """Gives how deep a device is indoors: uniform to 25 m below 6 GHz, else the lesser of two such (clause 7.4.3.1).

    Shapes: [D, 2] in [0, 1) -> [D].
    """
    return MOST_INSIDE_M * (draws[:, 0] if carrier_hz < LEGACY_HZ else draws.min(axis=1))


class Field:
    """A standard normal random field over the plane, one for each site, correlated as exp(-distance / `correlation_m`).

    A sum of waves: its value at a place is a function of the place, so a device that moves and comes back finds the
    shadow that it left, and neighbours share theirs, whatever their number. Wave numbers are drawn from the spectrum of
    the exponential correlation in the plane, whose distribution function is 1 - 1 / sqrt(1 + (k x correlation)^2).
    Source: Cai, Giannakis, "A two-dimensional channel simulation model for shadowing processes", IEEE Trans. Vehicular
    Technology 2003 (from memory). Limits: normal as far as a sum of 64 waves is.
    """

    def __init__(self, seed: int, use: rng.Use, num_sites: int, correlation_m: float, index: int = 0) -> None:
        sites = np.arange(num_sites, dtype=np.int64)
        draws = rng.uniform_of(rng.words_of(seed, 0, sites, use, 3 * NUM_WAVES, index)).reshape(num_sites, 3, -1)
        wave = np.sqrt(1.0 / (1.0 - draws[:, 0]) ** 2 - 1.0) / correlation_m  # radians a metre
        turn = 2.0 * np.pi * draws[:, 1]
        self._wave_SW2 = np.stack([wave * np.cos(turn), wave * np.sin(turn)], axis=-1)
        self._phase_SW = 2.0 * np.pi * draws[:, 2]

    def at(self, places_D2: Doubles, wanted_SD: Flags | None = None) -> Doubles:
        """Gives the field at places, and 0 where it isn't wanted. Shapes: [D, 2] -> [S, D]."""
        out = np.zeros((len(self._wave_SW2), len(places_D2)))
        for site, (wave_W2, phase_W) in enumerate(zip(self._wave_SW2, self._phase_SW, strict=True)):
            chosen = slice(None) if wanted_SD is None else np.flatnonzero(wanted_SD[site])
            angle = np.mod(places_D2[chosen] @ wave_W2.T + phase_W, 2.0 * np.pi).astype(np.float32)
            out[site, chosen] = np.cos(angle).sum(axis=1, dtype=np.float64)
        return np.asarray(out * np.sqrt(2.0 / NUM_WAVES))
