"""The channels of a round between devices and their cells, and what may be sent over them.

Shape letters: D devices, T instants, F parts of the band that fade by themselves, C cells (a site's sectors each).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from midhaul.link import fading, modulation
from midhaul.link.access import Access
from midhaul.link.numerology import Grid

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
THERMAL_DBM_HZ = -174.0
NUM_INSTANTS, MOST_PARTS = 8, 8
WINDOW_S = 1.0  # a round's rates are means over so long
REPORT_S = 4e-3  # how old what link adaptation knows of a channel is
MOST_LOST = 0.26  # share of blocks lost at first that the outer loop allows: two of eight instants
MARGINS_DB = (0.0, 1.0, 2.0, 4.0, 8.0)
LOUDEST = 2  # interferers that fade by themselves; the others are taken at their mean
INTERFERER = 64  # streams of fading from here on are those of interferers, before it of antennas
UNSERVED = 0.9  # a device of whose blocks more are lost for good has no coverage


class Flow(NamedTuple):
    """What goes one way over the channels of a round. Shapes: [D] each.

    `rate_bps` counts what arrives, with its repetitions; `block_bits` are those of a transport block and `lost` the
    share of blocks that hybrid ARQ gives up; `transmissions` and `repeats` are means. `watts` are radiated while
    sending. Where `served` is false there is no coverage, and rates are 0.
    """

    rate_bps: Doubles
    block_bits: Doubles
    lost: Doubles
    transmissions: Doubles
    repeats: Doubles
    ratio_db: Doubles
    power_dbm: Doubles
    served: Flags


@dataclass(frozen=True)
class Channel:
    """The channels of some devices in one round, as arrays over the devices, in the order of `devices`.

    `gain_db` is from antenna to antenna: path loss, shadowing, walls and antenna gains, less than 0. The densities are
    those of noise and interference together at the receiver, dBm in one hertz. `cell` says which cell serves a device,
    so who shares a band. `fades` [D, T, F] are powers over the round's instants and parts of the band, of mean 1 an
    antenna; `down_fades` the same over those of noise and interference, which fade too; the `known` ones are what link
    adaptation knows of them. Units: decibels, dBm, hertz, metres.

    To allocate band and power, `up_ratio_db(band_hz, power_dbm)` and `down_ratio_db()` give the mean ratio of signal to
    noise and interference; `up(blocks, power_dbm)` and `down(blocks)` what then really arrives.
    """

    devices: Ints
    places: Doubles  # [D, 2]
    cell: Ints
    gain_db: Doubles
    in_sight: Flags
    indoors: Flags
    up_density_dbm_hz: Doubles
    down_density_dbm_hz: Doubles
    down_power_dbm_hz: float
    delay_spread_s: Doubles
    fades: Doubles
    known_fades: Doubles
    down_fades: Doubles
    known_down_fades: Doubles
    access: tuple[Access, ...]
    grid: Grid
    p0_dbm: float
    alpha: float
    tries: int

    def of(self, devices: Ints) -> Channel:
        """Gives the channels of some of the devices, which must be among these."""
        order = np.argsort(self.devices)
        at = order[np.searchsorted(self.devices, devices, sorter=order)]
        arrays: dict[str, Any] = {
            name: value[at] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **arrays, access=tuple(self.access[place] for place in at))

    def up_ratio_db(self, band_hz: Doubles, power_dbm: Doubles) -> Doubles:
        """Gives the mean ratio at the base station of a power spread over a band. Shapes: [D], [D] -> [D]."""
        return power_dbm - 10.0 * np.log10(band_hz) + self.gain_db - self.up_density_dbm_hz

    def down_ratio_db(self) -> Doubles:
        """Gives the mean ratio at the device, the same in every part of the band. Shapes: [D]."""
        return self.down_power_dbm_hz + self.gain_db - self.down_density_dbm_hz

    def most_power_dbm(self) -> Doubles:
        """Gives the most that each device can radiate. Shapes: [D]."""
        return np.asarray([access.tx_dbm for access in self.access])

    def most_blocks(self) -> Doubles:
        """Gives the resource blocks that each device's modem can take at once; narrow ones part of one. Shapes: [D]."""
        wide = np.asarray([access.band_hz for access in self.access]) / self.grid.block_hz
        return np.minimum(np.where(wide >= 1.0, np.floor(wide + 0.2), wide), self.grid.num_blocks)

    def controlled_power_dbm(self, blocks: Doubles) -> Doubles:
        """Gives the power that a device is told to send with: P0 + 10 lg(2^u M) + alpha PL, at most its own.

        Source: 3GPP TS 38.213 clause 7.1.1, open loop. The path loss is what the cell's signal loses on the way.
        """
        told = self.p0_dbm + 10.0 * np.log10(blocks * self.grid.spacing_hz / 15e3) - self.alpha * self.gain_db
        return np.minimum(told, self.most_power_dbm())

    def fair_blocks(self, active: Flags) -> tuple[Doubles, Doubles]:
        """Gives equal shares of each cell's band to the active devices in it: blocks, and the share of time with them.

        What a narrow modem can't take goes to the others of its cell. With more devices than blocks each has one, and
        they take turns. Shapes: [D] -> [D], [D]; 0 for those not active.
        """
        blocks, time = np.zeros(len(self.devices)), np.zeros(len(self.devices))
        most = self.most_blocks()
        for cell in np.unique(self.cell[active]):
            own = np.flatnonzero(active & (self.cell == cell))
            order = own[np.argsort(most[own], kind="stable")]
            left = float(self.grid.num_blocks)
            for place, device in enumerate(order):
                share = left / (len(order) - place)
                blocks[device] = min(most[device], share if most[device] < 1.0 else max(np.floor(share), 1.0))
                left = max(left - blocks[device], 0.0)
            time[own] = min(1.0, self.grid.num_blocks / blocks[own].sum())
        return blocks, time

    def up(self, blocks: Doubles, power_dbm: Doubles | None = None, time: Doubles | None = None) -> Flow:
        """Gives what devices send up over so many blocks, in a share `time` of their turns. Shapes: [D] each.

        Without a power it is the controlled one, and a device that has not enough for its blocks takes fewer.
        """
        if power_dbm is None:
            headroom = self.most_power_dbm() - self.controlled_power_dbm(np.ones(len(blocks))) + 1e-9
            afford = np.maximum(np.floor(10.0 ** (headroom / 10.0)), 1.0)
            blocks = np.minimum(blocks, afford)
            power_dbm = self.controlled_power_dbm(np.maximum(blocks, 1e-9))
        ratio_db = self.up_ratio_db(np.maximum(blocks, 1e-9) * self.grid.block_hz, power_dbm)
        return self._flow(blocks, ratio_db, power_dbm, time, up=True)

    def down(self, blocks: Doubles, time: Doubles | None = None) -> Flow:
        """Gives what devices are sent over so many blocks. Shapes: [D]."""
        power_dbm = self.down_power_dbm_hz + 10.0 * np.log10(np.maximum(blocks, 1e-9) * self.grid.block_hz)
        return self._flow(blocks, self.down_ratio_db(), power_dbm, time, up=False)

    def _flow(self, blocks: Doubles, ratio_db: Doubles, power_dbm: Doubles, time: Doubles | None, *, up: bool) -> Flow:
        num = len(self.devices)
        kinds = [(access.up if up else access.down) for access in self.access]
        repeats = np.asarray([access.up_repeats if up else access.down_repeats for access in self.access])
        peak = np.asarray([access.up_peak_bps if up else access.down_peak_bps for access in self.access])
        rate, lost, sent, again, size = (np.zeros(num) for _ in range(5))
        for kind in dict.fromkeys(kinds):
            own = np.asarray([place for place, other in enumerate(kinds) if other == kind and blocks[place] > 0.0])
            if len(own):
                flow = self._alike(own, blocks[own], ratio_db[own], repeats[own], *kind, up=up)
                rate[own], lost[own], sent[own], again[own], size[own] = flow
        grid = self.grid
        share = (grid.up_share if up else grid.down_share) * (1.0 if time is None else time)
        served = (blocks > 0.0) & (lost < UNSERVED) & (rate > 0.0)
        rate = np.where(served, np.minimum(rate * share / grid.slot_s, peak), 0.0)
        return Flow(rate, size, lost, sent, again, ratio_db, power_dbm, served)

    def _alike(
        self, own: Ints, blocks: Doubles, ratio_db: Doubles, most_repeats: Ints, table: int, highest: int, *, up: bool
    ) -> tuple[Doubles, Doubles, Doubles, Doubles, Doubles]:
        """Gives bits a slot, lost share, transmissions, repeats and block bits of devices with one table of schemes."""
        parts = num_parts(blocks * self.grid.block_hz, self.delay_spread_s[own])
        pick = np.arange(MOST_PARTS)[None, :] % parts[:, None]
        shape = (len(own), NUM_INSTANTS, MOST_PARTS)
        mean = 10.0 ** (ratio_db / 10.0)
        known, real = (
            (np.take_along_axis(fades[own], np.broadcast_to(pick[:, None, :], shape), 2) * mean[:, None, None])
            for fades in ((self.known_fades, self.fades) if up else (self.known_down_fades, self.down_fades))
        )
        known, real = known.reshape(-1, MOST_PARTS), real.reshape(-1, MOST_PARTS)
        elements = np.maximum(np.rint(blocks * self.grid.elements(up=up)), 1.0).astype(np.int64).repeat(NUM_INSTANTS)
        limits = modulation.limits_db(table, elements)
        most = most_repeats.repeat(NUM_INSTANTS)
        first, _ = modulation.choose(limits, modulation.effective_db(table, known), highest, most)
        heard_db = modulation.effective_db(table, known, first)
        best = np.zeros((5, len(own)))
        for margin_db in MARGINS_DB:
            scheme, repeats = modulation.choose(limits, heard_db - margin_db, highest, most)
            real_db = modulation.effective_db(table, real, scheme)
            sent = modulation.transfer(table, scheme, elements, real_db, repeats, self.tries)
            bits = sent.bits * (1.0 - sent.lost) / (sent.transmissions * sent.repeats)
            columns = np.stack([bits, sent.lost, sent.transmissions, sent.repeats, sent.bits])
            now = columns.reshape(5, len(own), NUM_INSTANTS).mean(axis=2)
            first = sent.first_lost.reshape(len(own), NUM_INSTANTS).mean(axis=1)
            allowed = (first <= MOST_LOST) | (margin_db == MARGINS_DB[-1])
            best = np.where(allowed & (now[0] > best[0]), now, best)
        return best[0], best[1], best[2], best[3], best[4]


def num_parts(band_hz: Doubles, delay_spread_s: Doubles) -> Ints:
    """Gives how many parts of a band fade by themselves, a power of two: 1 over the mean squared correlation in it.

    With an exponential profile of delays two tones f apart have a squared correlation of 1 / (1 + (2 pi s f)^2), whose
    mean over a band is 2 (atan(x) / x - ln(1 + x^2) / (2 x^2)) at x = 2 pi s band. Shapes: [D].
    """
    x = np.maximum(2.0 * np.pi * delay_spread_s * band_hz, 1e-3)
    mean = 2.0 * (np.arctan(x) / x - np.log1p(x**2) / (2.0 * x**2))
    return np.asarray(2.0 ** np.rint(np.log2(np.clip(1.0 / mean, 1.0, MOST_PARTS))), np.int64)


def draw_fades(
    seed: int, round: int, devices: Ints, rice: Doubles, doppler: float, num_antennas: int, first: int = 0
) -> tuple[Doubles, Doubles]:
    """Gives the powers of fading at a round's instants, as they are and as they were last reported.

    Antennas of the base station are combined as well as can be: their powers add, and `gain_db` doesn't know of them.
    Shapes: [D] -> [D, T, F] twice. `first` is the number of the first antenna's stream.
    """
    step, late = fading.memory(doppler, WINDOW_S / NUM_INSTANTS), fading.memory(doppler, REPORT_S)
    known = np.zeros((len(devices), NUM_INSTANTS, MOST_PARTS))
    real = np.zeros_like(known)
    for antenna in range(first, first + num_antennas):
        states = fading.states(seed, round, devices, NUM_INSTANTS, MOST_PARTS, step, antenna)
        known += fading.power(states, rice)
        real += fading.power(fading.aged(states, seed, round, devices, late, antenna), rice)
    return real, known


def draw_noise(
    seed: int, round: int, devices: Ints, shares_DI: Doubles, rice_DI: Doubles, doppler: float
) -> tuple[Doubles, Doubles]:
    """Gives noise and interference over their mean, of which the loudest interferers, by their shares, fade.

    One interferer that fades does less harm in the mean than one that doesn't. Shapes: [D, I] -> [D, T, F] twice.
    """
    rest = 1.0 - shares_DI.sum(axis=1)
    real = np.tile(rest[:, None, None], (1, NUM_INSTANTS, MOST_PARTS))
    known = real.copy()
    for number in range(shares_DI.shape[1]):
        now, before = draw_fades(seed, round, devices, rice_DI[:, number], doppler, 1, INTERFERER + number)
        real += shares_DI[:, number, None, None] * now
        known += shares_DI[:, number, None, None] * before
    return real, known
