"""How a kind of modem uses a cell: the band that it can take, its power, how it modulates, how often it may repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """A cellular modem, by the name of its radio in `radio`.

    Units: hertz, dBm, decibels, bits a second. `table` is 1 for up to 64QAM, 2 for up to 256QAM (TS 38.214 tables
    5.1.3.1-1 and -2), `highest` the last scheme of it; `repeats` the most slots that one block is sent in by agreement;
    `peak_bps` what its category's scheduling allows, which is less than the band carries in narrow ones.
    """

    name: str
    band_hz: float
    tx_dbm: float
    noise_db: float
    up: tuple[int, int]  # table, highest scheme
    down: tuple[int, int]
    up_repeats: int
    down_repeats: int
    up_peak_bps: float
    down_peak_bps: float
    source: str


_ALL = (
    Access(
        "nr_embb",
        100e6,
        23.0,
        9.0,
        up=(1, 28),
        down=(2, 27),
        up_repeats=8,
        down_repeats=8,
        up_peak_bps=math.inf,
        down_peak_bps=math.inf,
        source="power class 3, 23 dBm: 3GPP TS 38.101-1 table 6.2.1-1; 100 MHz and 256QAM down: TS 38.306; 8 slots: "
        "aggregation factor of TS 38.331; noise figure of 9 dB: TR 38.901 table 7.8-1",
    ),
    Access(
        "redcap",
        20e6,
        23.0,
        9.0,
        up=(1, 28),
        down=(1, 28),
        up_repeats=8,
        down_repeats=8,
        up_peak_bps=math.inf,
        down_peak_bps=math.inf,
        source="20 MHz, 64QAM, one receive branch: 3GPP TR 38.875 clause 7, TS 38.306 clause 4.2.21; "
        "the rest as nr_embb",
    ),
    Access(
        "cat_m1",
        1.08e6,
        23.0,
        9.0,
        up=(1, 16),
        down=(1, 16),
        up_repeats=32,
        down_repeats=32,
        up_peak_bps=375e3,
        down_peak_bps=300e3,
        source="6 blocks of 180 kHz, 16QAM, half duplex, 375 and 300 kbit/s: 3GPP TS 36.306 table 4.1A-1; "
        "32 repetitions: coverage enhancement mode A, TS 36.213 (from memory)",
    ),
    Access(
        "nb_iot",
        180e3,
        23.0,
        9.0,
        up=(1, 9),
        down=(1, 9),
        up_repeats=128,
        down_repeats=128,
        up_peak_bps=62_500.0,
        down_peak_bps=27_200.0,
        source="one block of 180 kHz, QPSK, half duplex, 128 repetitions up (as many down are taken here, of the 2,048 "
        "that there are): 3GPP TS 36.211 clause 10, TS 36.213 clause 16 (from memory); rates as radio nb_iot",
    ),
)

ACCESS: dict[str, Access] = {access.name: access for access in _ALL}
