"""Where base stations stand and point, and where devices are and move: the geometry of a cell and its neighbours.

Source: 3GPP TR 38.901 table 7.8-1 (hexagons, three sectors at 30, 150 and 270 degrees), table 7.3-1 (antenna element).

Shape letters: S sites, C sectors a site, D devices. Metres, radians but where a name says otherwise.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.errors import ConfigError

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SECTOR_DEG = (30.0, 150.0, 270.0)
ELEMENT_DBI, BEAM_DEG, MOST_DB = 8.0, 65.0, 30.0
TILT_DEG = 0.0  # downwards; the element of table 7.3-1 looks straight ahead
TURN_S = 20.0  # how long a device that wanders walks before it turns
MOST_LEGS = 128  # that it makes before it goes home by the same way
_TRIES = 64


def sites(num_rings: int, inter_site_m: float) -> Doubles:
    """Gives the sites of a hexagonal grid, the centre first, ring by ring. Shapes: [1 + 3 R (R + 1), 2].

    >>> len(sites(1, 200.0)), len(sites(2, 200.0))
    (7, 19)
    """
    steps = [(math.cos(k * math.pi / 3.0) * inter_site_m, math.sin(k * math.pi / 3.0) * inter_site_m) for k in range(6)]
    found = [(0.0, 0.0)]
    for ring in range(1, num_rings + 1):
        x, y = ring * steps[0][0], ring * steps[0][1]
        for side in range(6):
            dx, dy = steps[(side + 2) % 6]
            for _ in range(ring):
                found.append((x, y))
                x, y = x + dx, y + dy
    return np.asarray(found)


def in_hexagon(places_D2: Doubles, inter_site_m: float) -> npt.NDArray[np.bool_]:
    """Tells whether places are nearer to the centre than to any of its six neighbours. Shapes: [D, 2] -> [D]."""
    ways = np.arange(6) * (math.pi / 3.0)
    across = places_D2 @ np.stack([np.cos(ways), np.sin(ways)])
    return np.asarray((across <= inter_site_m / 2.0 + 1e-9).all(axis=1))


def drop(
    seed: int, devices: Ints, area: str, inter_site_m: float, nearest_D: Doubles, use: rng.Use = rng.Use.POSITION
) -> Doubles:
    """Gives a place for each device, uniform in the centre's hexagon or in the disc of its area's size around it.

    No place is nearer to the site than the device may be. A device's place depends on its number and the seed alone.
    Shapes: [D], [D] -> [D, 2]. Raises: ConfigError if the least distance leaves no room.
    """
    corner_m = inter_site_m / math.sqrt(3.0)
    reach_m = corner_m if area == "hexagon" else inter_site_m * math.sqrt(math.sqrt(3.0) / (2.0 * math.pi))
    if nearest_D.size and nearest_D.max() > 0.9 * inter_site_m / 2.0:
        raise ConfigError(
            f"devices can't be {nearest_D.max():g} m away from a base station whose neighbours are {inter_site_m:g} m "
            "away; raise link.inter_site_m"
        )
    draws = rng.uniform_of(rng.words_of(seed, 0, devices, use, 2 * _TRIES)).reshape(-1, _TRIES, 2)
    least = nearest_D[:, None] ** 2
    away = np.sqrt(least + draws[:, :, 0] * (reach_m**2 - least))
    turn = 2.0 * math.pi * draws[:, :, 1]
    tries = np.stack([away * np.cos(turn), away * np.sin(turn)], axis=-1)
    fits = np.ones(tries.shape[:2], np.bool_)
    if area == "hexagon":
        fits = in_hexagon(tries.reshape(-1, 2), inter_site_m).reshape(fits.shape)
    return np.asarray(tries[np.arange(len(devices)), fits.argmax(axis=1)])


def heights_m(draws_DN: Doubles, indoors: npt.NDArray[np.bool_], height_m: float) -> Doubles:
    """Gives how high each device is: `height_m`, or where that is 0, by floors. Shapes: [D, 12], [D] -> [D].

    By floors: outdoors 1.5 m; indoors 3 (n - 1) + 1.5 m, n uniform from 1 to the 4 to 8 floors of a building.
    Source: 3GPP TR 36.873 table 6-1, which TR 38.901 table 7.2-1 names.
    """
    if height_m > 0.0:
        return np.full(len(indoors), height_m)
    floors = 4 + np.floor(5 * draws_DN[:, 6])
    return np.where(indoors, 3.0 * np.floor(floors * draws_DN[:, 7]) + 1.5, 1.5)


def moved(
    seed: int, devices: Ints, start_D2: Doubles, speed_m_s: float, time_s: float, how: str, reach_m: float
) -> Doubles:
    """Gives where devices are at a time: `line` goes straight on; `wander` turns every 20 s, and after 43 minutes goes
    home by the way that it came.

    A device that would leave the disc of `reach_m` around the site is reflected by the sides of the square around it.
    Where it is depends on the seed, its number and the time alone. Shapes: [D, 2] -> [D, 2].
    """
    if how == "static" or speed_m_s == 0.0 or time_s <= 0.0:
        return start_D2
    if how == "line":
        way = 2.0 * math.pi * rng.uniform_of(rng.words_of(seed, 0, devices, rng.Use.MOVE, 1))[:, 0]
        path = speed_m_s * time_s * np.stack([np.cos(way), np.sin(way)], axis=-1)
    else:
        out_s = MOST_LEGS * TURN_S
        walk, phase_s = divmod(time_s, 2.0 * out_s)
        phase_s = min(phase_s, 2.0 * out_s - phase_s)
        way = 2.0 * math.pi * rng.uniform_of(rng.words_of(seed, 1 + int(walk), devices, rng.Use.MOVE, MOST_LEGS))
        lasts = np.clip(phase_s - TURN_S * np.arange(MOST_LEGS), 0.0, TURN_S)
        path = speed_m_s * np.stack([(np.cos(way) * lasts).sum(1), (np.sin(way) * lasts).sum(1)], axis=-1)
    return _folded(start_D2 + path, reach_m)


def _folded(places: Doubles, reach_m: float) -> Doubles:
    """Gives places reflected by the sides of the square from -reach to reach."""
    across = np.mod(places + reach_m, 4.0 * reach_m)
    return np.where(across > 2.0 * reach_m, 4.0 * reach_m - across, across) - reach_m


def sector_gain_db(flat_SD: Doubles, turn_SD: Doubles, drop_SD: Doubles, num_sectors: int, tilt_deg: float) -> Doubles:
    """Gives the antenna gain of each sector towards each device. Shapes: [S, D] -> [S, C, D].

    `turn` is the device's azimuth seen from the site, `drop` how far it lies below the site. One sector is an antenna
    alike in all directions with the element's gain in elevation; three point to 30, 150 and 270 degrees. `tilt_deg` is
    the downward tilt. Source: TR 38.901 table 7.3-1: 8 dBi, 65 degrees, 30 dB at most.
    """
    below = np.degrees(np.arctan2(drop_SD, np.maximum(flat_SD, 1e-3)))
    vertical = np.minimum(12.0 * ((below - tilt_deg) / BEAM_DEG) ** 2, MOST_DB)
    if num_sectors == 1:
        return np.asarray(-vertical[:, None, :])
    ahead = np.degrees(turn_SD)[:, None, :] - np.asarray(SECTOR_DEG)[None, :, None]
    ahead = np.mod(ahead + 180.0, 360.0) - 180.0
    horizontal = np.minimum(12.0 * (ahead / BEAM_DEG) ** 2, MOST_DB)
    return np.asarray(ELEMENT_DBI - np.minimum(vertical[:, None, :] + horizontal, MOST_DB))
