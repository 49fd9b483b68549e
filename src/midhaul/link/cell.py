"""A cell and its neighbours: where devices are, what reaches them, and what of it is interference.

`Cell.from_config(link, radios, seed)` makes one; `cell.channel(round, time_s)` gives the channels of all devices then,
as arrays (`Channel`); with `devices` those of a few. All is drawn from the seed: where a device is depends on its
number, the seed and the time, how its signal fades on the round too; nothing is carried from one call to the next.

Shape letters: S sites, C cells (the sectors of all sites, site by site), D devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.config import LinkConfig
from midhaul.errors import ConfigError
from midhaul.link import channel as channels
from midhaul.link import fading, layout, numerology, propagation
from midhaul.link.access import ACCESS, Access
from midhaul.link.channel import Channel
from midhaul.link.numerology import Grid
from midhaul.link.propagation import Field, Scenario

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
NEIGHBOURS = 24  # devices dropped in each site's hexagon to learn what the uplink hears of them
SITE_NOISE_DB = 5.0  # noise figure of a base station: TR 38.901 table 7.8-1 names 5 dB
_NEIGHBOUR_ACCESS = ACCESS["nr_embb"]


@dataclass(frozen=True)
class Large:
    """The large scale of the channels of some devices to all cells. Shapes: gain [C, D], sight [S, D], others [D]."""

    places: Doubles  # [D, 2]
    gain_db: Doubles
    in_sight: Flags
    indoors: Flags


@dataclass(frozen=True)
class Cell:
    """Cells around a centre, in one scenario. `access[d]` is the modem of device d, None where it isn't cellular."""

    link: LinkConfig
    scenario: Scenario
    grid: Grid
    access: tuple[Access | None, ...]
    seed: int
    sites: Doubles = field(repr=False)

    @classmethod
    def from_config(cls, link: LinkConfig, radios: Sequence[str], seed: int) -> Cell:
        """Gives the cell of [link] for devices with these radios. Raises: ConfigError, in one sentence."""
        scenario = propagation.get(link.cell)
        if link.sectors not in (1, 3):
            raise ConfigError(f"a base station has 1 or 3 sectors here; link.sectors is {link.sectors}")
        if link.large_scale == "sionna" and link.mobility != "static":
            raise ConfigError(
                "sionna-no-rt draws places that stay; set link.mobility = 'static', or link.large_scale = 'builtin'"
            )
        grid = numerology.grid(link.bandwidth_mhz, link.spacing_khz, link.duplex)
        access = tuple(ACCESS.get(name) for name in radios)
        if not any(access):
            raise ConfigError(
                f"no device has a cellular radio, so link.cell = {link.cell!r} has nobody in it; set link.radio to one "
                f"of {', '.join(ACCESS)}, or link.cell = 'none'"
            )
        sites = layout.sites(link.rings, link.inter_site_m or scenario.inter_site_m)
        return cls(link, scenario, grid, access, seed, sites)

    @property
    def inter_site_m(self) -> float:
        """How far apart the base stations are."""
        return self.link.inter_site_m or self.scenario.inter_site_m

    @property
    def carrier_hz(self) -> float:
        """The carrier frequency."""
        return self.link.carrier_ghz * 1e9

    @property
    def down_power_dbm_hz(self) -> float:
        """What a sector radiates in one hertz."""
        return (self.link.tx_dbm or self.scenario.tx_dbm) - 10.0 * float(np.log10(self.grid.width_hz))

    @cached_property
    def devices(self) -> Ints:
        """The devices with a cellular radio."""
        return np.flatnonzero([access is not None for access in self.access]).astype(np.int64)

    def channel(self, round: int, time_s: float = 0.0, devices: Ints | None = None) -> Channel:
        """Gives the channels of a round that begins at a time, of all cellular devices or of those named.

        The devices named need not be in order; each has what it would have among all.
        """
        asked = self.devices if devices is None else np.asarray(devices, np.int64)
        large = self._large(asked, time_s)
        place = np.arange(len(asked))
        cell = large.gain_db.argmax(axis=0)
        gain_db = large.gain_db[cell, place]
        in_sight = large.in_sight[cell // self.link.sectors, place]
        access = tuple(found for device in asked if (found := self.access[device]) is not None)
        noise_db = np.asarray([modem.noise_db for modem in access])
        heard = self.down_power_dbm_hz + large.gain_db
        heard[cell, place] = -np.inf
        each = self.link.load * 10.0 ** (heard / 10.0)
        others = each.sum(axis=0)
        loudest = np.argsort(-each, axis=0)[: channels.LOUDEST]  # [I, D]
        noise = 10.0 ** ((channels.THERMAL_DBM_HZ + noise_db) / 10.0)
        state = np.where(large.indoors, 2, np.where(in_sight, 0, 1))
        spread_s = np.asarray(self.scenario.delay_spread_s)[state]
        drawn = _normal(self._drawn(asked, rng.Use.POSITION)[2][:, 8])
        direct = np.where(
            large.indoors, 0.0, 10.0 ** ((self.scenario.rice_db[0] + self.scenario.rice_db[1] * drawn) / 10.0)
        )
        rice = np.where(in_sight, direct, 0.0)
        fades, known = channels.draw_fades(self.seed, round, asked, rice, self._doppler, self.link.antennas)
        direct_DI = np.where(large.in_sight[loudest // self.link.sectors, place], direct, 0.0).T
        shares_DI = (each[loudest, place] / (others + noise)).T
        jam, known_jam = channels.draw_noise(self.seed, round, asked, shares_DI, direct_DI, self._doppler)
        return Channel(
            devices=asked,
            places=large.places,
            cell=cell.astype(np.int64),
            gain_db=gain_db,
            in_sight=in_sight,
            indoors=large.indoors,
            up_density_dbm_hz=np.full(len(asked), self.up_density_dbm_hz),
            down_density_dbm_hz=10.0 * np.log10(others + noise),
            down_power_dbm_hz=self.down_power_dbm_hz,
            delay_spread_s=spread_s,
            fades=fades,
            known_fades=known,
            down_fades=fades / jam,
            known_down_fades=known / known_jam,
            access=access,
            grid=self.grid,
            p0_dbm=self.link.p0_dbm,
            alpha=self.link.alpha,
            tries=self.link.transmissions,
        )

    @property
    def _doppler(self) -> float:
        return fading.doppler_hz(self.link.speed_kmh / 3.6, self.carrier_hz)

    def _large(self, devices: Ints, time_s: float) -> Large:
        """Gives the large scale at a time; what doesn't move is worked out once."""
        if self.link.mobility != "static":
            return self._draw(devices, self._places(devices, time_s), rng.Use.POSITION)
        whole = self._still
        at = np.searchsorted(self.devices, devices)
        return Large(whole.places[at], whole.gain_db[:, at], whole.in_sight[:, at], whole.indoors[at])

    @cached_property
    def _still(self) -> Large:
        places = self._places(self.devices, 0.0)
        if self.link.large_scale == "builtin":
            return self._draw(self.devices, places, rng.Use.POSITION)
        from midhaul.link.sionna import losses

        indoors, heights, words = self._drawn(self.devices, rng.Use.POSITION)
        wall, site_m = _normal(words[:, 3]), self.scenario.site_height_m
        loss_db, in_sight = losses(self.link, self.sites, site_m, places, heights, indoors, wall, self.seed)
        gain_db = self._antennas_db(places, heights) - loss_db.repeat(self.link.sectors, 0)
        return Large(places, gain_db, in_sight, indoors)

    def _places(self, devices: Ints, time_s: float) -> Doubles:
        least = self._nearest_m(self._drawn(devices, rng.Use.POSITION))
        start = layout.drop(self.seed, devices, self.link.area, self.inter_site_m, least)
        speed = self.link.speed_kmh / 3.6
        return layout.moved(self.seed, devices, start, speed, time_s, self.link.mobility, self.inter_site_m / 2.0)

    def _nearest_m(self, drawn: tuple[Flags, Doubles, Doubles]) -> Doubles:
        """Gives how near to the site each device may be: a building's wall is not nearer than a device outdoors."""
        indoors, _, words = drawn
        least = self.link.min_distance_m or self.scenario.min_distance_m
        return least + np.where(indoors, propagation.inside_m(self.carrier_hz, words[:, 1:3]), 0.0)

    def _drawn(self, devices: Ints, use: rng.Use) -> tuple[Flags, Doubles, Doubles]:
        """Gives who is indoors, how high each is, and numbers for walls and the direct path: [D], [D], [D, 12]."""
        words = rng.uniform_of(rng.words_of(self.seed, int(use), devices, rng.Use.WALL, 12))
        indoors = words[:, 0] < self.link.indoors
        return indoors, layout.heights_m(words, indoors, self.link.height_m), words

    def _draw(self, devices: Ints, places: Doubles, use: rng.Use) -> Large:
        """Gives the large scale of devices at places, by TR 38.901. `use` tells those of neighbours from our own."""
        link, name, site_m = self.link, self.scenario.name, self.scenario.site_height_m
        indoors, heights, words = self._drawn(devices, use)
        depth_m = propagation.inside_m(self.carrier_hz, words[:, 1:3])
        wall = _normal(words[:, 3])
        inside = np.where(indoors, propagation.wall_loss_db(self.carrier_hz, link.building, depth_m, wall), 0.0)
        flat = np.hypot(*np.moveaxis(places[None] - self.sites[:, None], -1, 0))  # [S, D]
        outside = np.maximum(flat - np.where(indoors, depth_m, 0.0), 0.0)
        from scipy.special import ndtr  # here alone: a run without a cell need not wait for it

        chance = ndtr(self._fields[3].at(places))
        in_sight = chance < propagation.sight_probability(name, outside, heights)
        around: Doubles | float = 1.0
        if name == "uma" and (heights >= 13.0).any():
            around = propagation.environment_height_m(flat, heights, words[:, None, 4:6].swapaxes(0, 1))
        loss = propagation.path_loss_db(name, flat, site_m, heights, self.carrier_hz, in_sight, around)
        state = np.where(indoors, 2, np.where(in_sight, 0, 1))
        for kind, (spread_db, shadows) in enumerate(zip(self.scenario.shadow_db, self._fields, strict=False)):
            if (chosen := state == kind).any():
                loss = loss + spread_db * np.where(chosen, shadows.at(places, chosen), 0.0)
        return Large(
            places, self._antennas_db(places, heights) - (loss + inside).repeat(link.sectors, 0), in_sight, indoors
        )

    @cached_property
    def _fields(self) -> tuple[Field, Field, Field, Field]:
        """Shadowing in sight, out of it and indoors, and sight itself."""
        shadows = (
            Field(self.seed, rng.Use.SHADOW, len(self.sites), distance, index)
            for index, distance in enumerate(self.scenario.correlation_m)
        )
        first, second, third = shadows
        return first, second, third, Field(self.seed, rng.Use.SIGHT, len(self.sites), propagation.SIGHT_CORRELATION_M)

    def _antennas_db(self, places: Doubles, heights: Doubles) -> Doubles:
        """Gives the gain of each cell's antenna towards each device. Shapes: [C, D]."""
        away = places[None] - self.sites[:, None]
        flat, turn = np.hypot(away[..., 0], away[..., 1]), np.arctan2(away[..., 1], away[..., 0])
        fall = self.scenario.site_height_m - np.broadcast_to(heights, flat.shape)
        gain = layout.sector_gain_db(flat, turn, fall, self.link.sectors, layout.TILT_DEG)
        return gain.reshape(-1, len(places))

    @cached_property
    def up_density_dbm_hz(self) -> float:
        """Noise and the neighbours' interference at a base station of the centre, in one hertz, in the mean.

        Devices are dropped in every hexagon, each with the cell that it hears best and with controlled power over a
        tenth of the band; what a cell hears is the mean over each other cell's devices, `load` of the time.
        """
        noise = 10.0 ** ((channels.THERMAL_DBM_HZ + SITE_NOISE_DB) / 10.0)
        if not self.link.load:
            return 10.0 * float(np.log10(noise))
        num = NEIGHBOURS * len(self.sites)
        devices = np.arange(num, dtype=np.int64)
        least = self._nearest_m(self._drawn(devices, rng.Use.NEIGHBOUR))
        own = layout.drop(self.seed, devices, "hexagon", self.inter_site_m, least, rng.Use.NEIGHBOUR)
        places = own + self.sites.repeat(NEIGHBOURS, axis=0)
        gain_db = self._draw(devices, places, rng.Use.NEIGHBOUR).gain_db
        cell = gain_db.argmax(axis=0)
        blocks = max(self.grid.num_blocks / 10.0, 1.0)
        told = self.link.p0_dbm + 10.0 * np.log10(blocks * self.grid.spacing_hz / 15e3)
        power = np.minimum(told - self.link.alpha * gain_db[cell, devices], _NEIGHBOUR_ACCESS.tx_dbm)
        density = 10.0 ** ((power - 10.0 * np.log10(blocks * self.grid.block_hz) + gain_db) / 10.0)  # [C, D]
        heard = []
        for ours in range(self.link.sectors):
            means = [density[ours, cell == other].mean() for other in np.unique(cell) if other != ours]
            heard.append(sum(means))
        return 10.0 * float(np.log10(noise + self.link.load * float(np.mean(heard))))


def _normal(draws: Doubles) -> Doubles:
    """Gives standard normal numbers of uniform ones."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(draws, 1e-7, 1.0 - 1e-7)))
