"""From a ratio of signal to noise and interference to bits that arrive: coding schemes, lost blocks, repetitions.

Source: 3GPP TS 38.214 V18 tables 5.1.3.1-1 and 5.1.3.1-2 (which the uplink without transform precoding uses too, clause
6.1.4.1); the share of lost blocks from `block_errors`. Limits: one layer; block errors over white noise, taken at the
effective ratio of a fading block (exponential mapping); link adaptation knows the channel of the block itself, but for
the margin that it is given.

Shape letters: M schemes, N anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from midhaul.link import block_errors, numerology

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOTHER_RATE = 0.2  # below it NR repeats bits of the code at this rate
FINE_DB = 0.05
LOW_DB, HIGH_DB = -15.0, 30.0
FINE_SIZES = np.asarray([24, 50, 100, 200, 300, 400, 500, 750, 1000, 1250, 1500, 1750, 2000])
_BETWEEN = (FINE_SIZES[1:] + FINE_SIZES[:-1]) / 2.0

# Bits of a symbol and 1,024 times the code rate, by the number of the scheme.
_ORDERS_1 = [2] * 10 + [4] * 7 + [6] * 12
_RATES_1 = [120, 157, 193, 251, 308, 379, 449, 526, 602, 679, 340, 378, 434, 490, 553, 616, 658, 438, 466, 517, 567]
_RATES_1 += [616, 666, 719, 772, 822, 873, 910, 948]
_ORDERS_2 = [2] * 5 + [4] * 6 + [6] * 9 + [8] * 8
_RATES_2 = [120, 193, 308, 449, 602, 378, 434, 490, 553, 616, 658, 466, 517, 567, 616, 666, 719, 772, 822, 873, 682.5]
_RATES_2 += [711, 754, 797, 841, 885, 916.5, 948]


@dataclass(frozen=True)
class Schemes:
    """The modulation and coding schemes of a table. Shapes: [M]."""

    bits: Ints
    rate: Doubles
    lost: npt.NDArray[np.float32]  # [M, sizes, ratios]: share of code blocks that are lost

    @property
    def efficiency(self) -> Doubles:
        """Bits of data in a symbol."""
        return self.bits * self.rate


class Sent(NamedTuple):
    """What link adaptation chose, and what comes of it. Shapes: [N] each.

    `scheme` is the number of the scheme, `bits` a transport block's, `transmissions` how often one is sent in the mean,
    `lost` the share that no repetition saves, `repeats` in how many slots the same block is sent by agreement,
    `first_lost` the share lost at the first transmission.
    """

    scheme: Ints
    bits: Ints
    transmissions: Doubles
    lost: Doubles
    repeats: Ints
    first_lost: Doubles


@cache
def schemes(table: int) -> Schemes:
    """Gives table 5.1.3.1-1 (to 64QAM) or 5.1.3.1-2 (to 256QAM), with the share of lost blocks on a fine grid."""
    orders, rates = (_ORDERS_1, _RATES_1) if table == 1 else (_ORDERS_2, _RATES_2)
    grid, curves = (
        (block_errors.GRID_1, block_errors.CURVES_1) if table == 1 else (block_errors.GRID_2, block_errors.CURVES_2)
    )
    bits, rate = np.asarray(orders, np.int64), np.asarray(rates) / 1024.0
    at = np.arange(LOW_DB, HIGH_DB + FINE_DB / 2, FINE_DB)
    lost = np.empty((len(bits), len(FINE_SIZES), len(at)), np.float32)
    for number in range(len(bits)):
        if number in curves:
            lost[number] = _surface(grid, curves[number], at)
        else:
            lost[number] = _surface(block_errors.GRID_FIFTH, block_errors.FIFTH, at + _repetition_db(rate[number]))
    return Schemes(bits, rate, lost)


def _repetition_db(rate: float) -> float:
    """Gives what the repeated bits of a rate below the mother code's add to a ratio."""
    return 10.0 * float(np.log10(MOTHER_RATE / rate))


def _surface(grid: tuple[float, float, int], text: str, at: Doubles) -> npt.NDArray[np.float32]:
    """Gives the share of lost blocks at ratios, for each of FINE_SIZES: its logarithm is linear in either direction.

    So does sionna-no-rt's PHYAbstraction: what was never seen is two powers of ten below the least that was, and what
    then comes out below the least that was seen is nothing.
    """
    points = np.linspace(*grid)
    known = [_codes(part, len(points)) for part in text.split()]
    least = min(min(code for code in codes if code is not None) for codes in known)
    logs = np.asarray([[0.0, *(least - 2.0 if code is None else code for code in codes)] for codes in known])
    points = np.asarray([2.0 * points[0] - points[1], *points])  # a step before the first all are lost
    across = np.stack([np.interp(at, points, row) for row in logs])
    fine = np.stack([np.interp(FINE_SIZES, block_errors.SIZES, column) for column in across.T], axis=1)
    return np.where(fine < least - 1e-9, 0.0, 10.0**fine).astype(np.float32)


def _codes(text: str, num: int) -> list[float | None]:
    """Gives the logarithms of a curve, None where nothing was lost."""
    first, _, values = text.partition(":")
    logs = [0.0] * int(first) + [-int(value) / 100.0 for value in values.split(",") if value]
    return [*logs, *[None] * (num - len(logs))]


def block_loss(table: Schemes, scheme: Ints, size_bits: Ints, ratio_db: Doubles) -> Doubles:
    """Gives how likely a code block is lost. Shapes: [N] each -> [N]."""
    place = np.clip(np.rint((ratio_db - LOW_DB) / FINE_DB), 0, table.lost.shape[2] - 1).astype(np.int64)
    size = np.searchsorted(_BETWEEN, size_bits)
    return table.lost[scheme, size, place].astype(np.float64)


@cache
def _betas(table: int) -> Doubles:
    """Gives what exponential effective-ratio mapping divides by, for each scheme of a table. Shapes: [M].

    Source: `esm_params/eesm_beta_table.json` of sionna-no-rt 2.2.0 (Apache-2.0), which names no calibration of its own.
    """
    one = [1.6, 1.61, 1.63, 1.65, 1.67, 1.7, 1.73, 1.76, 1.79, 1.82, 3.97, 4.27, 4.71, 5.16, 5.66, 6.16, 6.5, 9.95]
    one += [10.97, 12.92, 14.96, 17.06, 19.33, 21.85, 24.51, 27.14, 29.94, 32.05, 34.28]
    two = [1.6, 1.63, 1.67, 1.73, 1.79, 4.27, 4.71, 5.16, 5.66, 6.16, 6.5, 10.97, 12.92, 14.96, 17.06, 19.33, 21.85]
    two += [24.51, 27.14, 29.94, 56.48, 65.0, 78.58, 92.48, 106.27, 118.74, 126.36, 132.54]
    return np.asarray(one if table == 1 else two)


def limits_db(table: int, elements: Ints, target: float = 0.1) -> Doubles:
    """Gives from which ratio on a transport block of so many elements is lost at most `target` of the time.

    Shapes: [N] -> [N, M]. Units: decibels.
    """
    known, sizes = schemes(table), np.unique(elements)
    found = np.stack([_limits_db(table, int(size), target) for size in sizes])
    assert found.shape[1] == len(known.bits)
    return np.asarray(found[np.searchsorted(sizes, elements)])


@cache
def _limits_db(table: int, elements: int, target: float) -> Doubles:
    known = schemes(table)
    size = numerology.block_bits(np.full(len(known.bits), elements), known.bits, known.rate)
    num, bits = numerology.code_blocks(size, known.rate)
    curves = known.lost[np.arange(len(size)), np.searchsorted(_BETWEEN, bits)].astype(np.float64)
    whole = 1.0 - (1.0 - curves) ** num[:, None]
    good = whole <= target
    return np.where(good.any(axis=1), LOW_DB + FINE_DB * good.argmax(axis=1), np.inf)


def effective_db(table: int, ratio_NF: Doubles, scheme: Ints | None = None) -> Doubles:
    """Gives the ratio of white noise that does as much harm as fading over F parts of the band. Shapes: [N, F] -> [N].

    With a scheme, exponential mapping: -b ln mean exp(-ratio / b) for the scheme's b; without, the ratio of the mean
    capacity, to begin with. Units: `ratio` is a plain ratio, what is given is in decibels.
    """
    if scheme is None:
        mean = np.exp(np.log1p(ratio_NF).mean(axis=-1)) - 1.0
    else:
        beta = _betas(table)[scheme]
        least = ratio_NF.min(axis=-1)  # taken out, so that no exponential vanishes
        rest = np.exp(-(ratio_NF - least[..., None]) / beta[..., None]).mean(axis=-1)
        mean = least - beta * np.log(rest)
    return np.asarray(10.0 * np.log10(np.maximum(mean, 1e-9)))


def choose(limits_NM: Doubles, ratio_db: Doubles, highest: int, most_repeats: Ints) -> tuple[Ints, Ints]:
    """Gives the fastest scheme whose blocks arrive at this ratio, and how often they are repeated by agreement.

    Where none does, scheme 0 with repetitions in powers of two, as few as suffice, and at most so many.
    Shapes: [N, M], [N] -> [N], [N].
    """
    fits = limits_NM[:, : highest + 1] <= ratio_db[:, None]
    scheme = np.where(fits.any(axis=1), highest - fits[:, ::-1].argmax(axis=1), 0)
    short_db = np.maximum(limits_NM[:, 0] - ratio_db, 0.0)
    repeats = 2.0 ** np.ceil(short_db / (10.0 * np.log10(2.0)) - 1e-9)
    return scheme.astype(np.int64), np.minimum(repeats, most_repeats).astype(np.int64)


def transfer(table: int, scheme: Ints, elements: Ints, ratio_db: Doubles, repeats: Ints, tries: int) -> Sent:
    """Gives what comes of blocks sent by a scheme at a ratio, with at most `tries` transmissions of each.

    Chase combining: at the i-th transmission the ratio is i times as large, so a block is still lost after i of them
    with the probability of loss at i times the ratio. The mean number is the sum of these from none to tries - 1.
    Shapes: [N] each. Limits: the channel stays for the repetitions of a block.
    Source: Chase, "Code combining", IEEE Trans. Communications 1985; hybrid ARQ of TS 38.214 and 38.321.
    """
    known = schemes(table)
    size = numerology.block_bits(elements, known.bits[scheme], known.rate[scheme])
    num, bits = numerology.code_blocks(size, known.rate[scheme])
    base_db = ratio_db + 10.0 * np.log10(repeats)
    mean, lost, first = (np.ones(len(scheme)) for _ in range(3))
    for number in range(1, tries + 1):
        single = block_loss(known, scheme, bits, base_db + 10.0 * np.log10(number))
        lost = np.minimum(lost, 1.0 - (1.0 - single) ** num)
        if number == 1:
            first = lost
        if number < tries:
            mean += lost
    return Sent(scheme, size, mean, lost, repeats, first)
