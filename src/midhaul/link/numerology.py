"""NR's grid of time and frequency: resource blocks, slots, which of them go up and down, and transport blocks.

Source: 3GPP TS 38.101-1 V18 table 5.3.2-1 (resource blocks of a channel, frequency range 1), table 5.3.2-1 of TS
38.101-2 (range 2), TS 38.211 clause 4.3 (slots), TS 38.214 clauses 5.1.3.2 and 6.1.4.2 (transport blocks). From memory
but for the transport blocks, whose table sionna-no-rt 2.2.0 has too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul.errors import ConfigError

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
SYMBOLS = 14
BLOCK_TONES = 12
MOST_ELEMENTS = 156  # of a resource block in a slot that count: TS 38.214 clause 5.1.3.2

# Channel bandwidth in MHz: resource blocks, by subcarrier spacing in kHz.
RESOURCE_BLOCKS: dict[int, dict[int, int]] = {
    15: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 40: 216, 50: 270},
    30: {5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 40: 106, 50: 133, 60: 162, 70: 189, 80: 217, 90: 245, 100: 273},
    60: {10: 11, 15: 18, 20: 24, 25: 31, 30: 38, 40: 51, 50: 65, 60: 79, 70: 93, 80: 107, 90: 121, 100: 135, 200: 264},
    120: {50: 32, 100: 66, 200: 132, 400: 264},
}

# TS 38.214 table 5.1.3.2-1: transport block sizes up to 3,824 bits.
BLOCK_BITS = np.concatenate([
    # from, up to and with, step
    np.arange(first, last + 1, step, dtype=np.int64)
    for first, last, step in (
        (24, 192, 8), (208, 384, 16), (408, 576, 24), (608, 768, 32), (808, 928, 40), (984, 984, 1), (1032, 1064, 32),
        (1128, 1352, 32), (1416, 1928, 64), (2024, 2280, 64), (2408, 2856, 64), (2976, 2976, 1), (3104, 3104, 1),
        (3240, 3752, 128), (3824, 3824, 1),
    )
])  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A carrier: its blocks of 12 subcarriers, its slots, and what of them carries data in either direction.

    `up_share` and `down_share` are shares of the slots; `up_symbols` and `down_symbols` those of a slot's 14 symbols
    that carry data; `pilots` resource elements a block that don't (DMRS), `overhead` those that others take.
    """

    num_blocks: int
    spacing_hz: float
    up_share: float
    down_share: float
    up_symbols: int = 14
    down_symbols: int = 12
    pilots: int = 12
    overhead: int = 0

    @property
    def slot_s(self) -> float:
        """How long a slot lasts: 1 ms at 15 kHz, half of it at 30 kHz."""
        return 15e3 / self.spacing_hz * 1e-3

    @property
    def block_hz(self) -> float:
        """The width of a resource block."""
        return BLOCK_TONES * self.spacing_hz

    @property
    def width_hz(self) -> float:
        """The width of all blocks, which noise enters by."""
        return self.num_blocks * self.block_hz

    def elements(self, *, up: bool) -> int:
        """Gives the resource elements of one block in one slot that carry data."""
        symbols = self.up_symbols if up else self.down_symbols
        return min(symbols * BLOCK_TONES - self.pilots - self.overhead, MOST_ELEMENTS)


def grid(bandwidth_mhz: float, spacing_khz: int, duplex: str) -> Grid:
    """Gives the carrier of a channel bandwidth. `duplex` is "fdd", or the slots in turn, as DDDSU.

    A special slot S gives 10 of its 14 symbols down and 2 up, 2 being the gap. Raises: ConfigError for what isn't one.

    >>> grid(20.0, 30, "DDDSU").num_blocks, grid(20.0, 30, "DDDSU").up_share
    (51, 0.2)
    """
    known = RESOURCE_BLOCKS.get(spacing_khz)
    if known is None:
        raise ConfigError(f"link.spacing_khz is {spacing_khz}; NR has {', '.join(map(str, RESOURCE_BLOCKS))}")
    if bandwidth_mhz <= 0.0:
        raise ConfigError(
            f"the cell has a bandwidth of {bandwidth_mhz:g}, so no device can be reached; set link.bandwidth_mhz: the "
            f"narrowest channel at {spacing_khz} kHz has {min(known)} MHz"
        )
    if bandwidth_mhz not in known:
        widths = ", ".join(map(str, known))
        raise ConfigError(
            f"a channel of {bandwidth_mhz:g} MHz doesn't exist at {spacing_khz} kHz; link.bandwidth_mhz may be {widths}"
        )
    if duplex == "fdd":
        return Grid(known[int(bandwidth_mhz)], spacing_khz * 1e3, 1.0, 1.0)
    letters = set(duplex)
    if not duplex or letters - set("DSU") or "D" not in letters or "U" not in letters:
        raise ConfigError(
            f"link.duplex is {duplex!r}; write fdd, or slots in turn by D, S and U with at least one D and one U, DDDSU"
        )
    num = len(duplex)
    down = duplex.count("D") + duplex.count("S") * 10.0 / 14.0
    return Grid(known[int(bandwidth_mhz)], spacing_khz * 1e3, duplex.count("U") / num, down / num)


def block_bits(elements: Ints | Doubles, bits: Ints, rate: Doubles, layers: int = 1) -> Ints:
    """Gives the size of a transport block. Shapes: any, alike. Units: `elements` are all that the block is sent in.

    Source: TS 38.214 clause 5.1.3.2, steps 2 to 4.
    """
    info = np.asarray(elements * bits * layers, np.float64) * rate
    small = np.maximum(np.floor(np.log2(np.maximum(info, 1.0))) - 6.0, 3.0)
    fine = np.maximum(24.0, 2.0**small * np.floor(info / 2.0**small))
    place = np.minimum(np.searchsorted(BLOCK_BITS, fine), len(BLOCK_BITS) - 1)
    large = np.floor(np.log2(np.maximum(info - 24.0, 1.0))) - 5.0
    coarse = np.maximum(3840.0, 2.0**large * np.floor((info - 24.0) / 2.0**large + 0.5))
    codes = np.where(rate <= 0.25, np.ceil((coarse + 24.0) / 3816.0), 1.0)
    codes = np.where((rate > 0.25) & (coarse > 8424.0), np.ceil((coarse + 24.0) / 8424.0), codes)
    whole = 8.0 * codes * np.ceil((coarse + 24.0) / (8.0 * codes)) - 24.0
    return np.where(info <= 3824.0, BLOCK_BITS[place], whole).astype(np.int64)


def code_blocks(size: Ints, rate: Doubles) -> tuple[Ints, Ints]:
    """Gives how many code blocks a transport block is cut into, and the bits of one, with its checks.

    Source: TS 38.212 clauses 5.2.2, 6.2.1 and 7.2.2: base graph 2 for short or weakly coded blocks.
    """
    check = np.where(size > 3824, 24, 16)
    graph2 = (size <= 292) | ((size <= 3824) & (rate <= 0.67)) | (rate <= 0.25)
    most = np.where(graph2, 3840, 8448)
    whole = size + check
    num = np.where(whole <= most, 1, -(-whole // (most - 24)))
    bits = -(-whole // num) + np.where(num > 1, 24, 0)
    return num.astype(np.int64), bits.astype(np.int64)
