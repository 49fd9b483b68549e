"""5G traces of an Irish operator: how fast the next second will be, from the last ten.

Shape letters: N windows, F indicators (12), T seconds (10), R rows of a trace.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import archives, sources
from midhaul.data.dataset import Dataset, Floats, Refused
from midhaul.data.sources import Description, File, Part
from midhaul.errors import DataError

WINDOW = 10
BOUNDS_KBPS = (10.0, 1500.0, 10_000.0)
CLASSES = ("idle, to 10 kbit/s", "to 1.5 Mbit/s", "to 10 Mbit/s", "above 10 Mbit/s")
MAX_GAP_S = 3.0
# Column: (lowest, highest, centre, spread). A number outside the range that 3GPP TS 36.133 and 38.133 let a phone
# report, or "-", counts as missing, and a missing number stands at its centre.
SCALES: dict[str, tuple[float, float, float, float]] = {
    "Speed": (0.0, 200.0, 20.0, 20.0),
    "RSRP": (-156.0, -31.0, -97.0, 12.0),
    "RSRQ": (-43.0, 20.0, -13.0, 4.0),
    "SNR": (-40.0, 60.0, 3.0, 8.0),
    "CQI": (0.0, 15.0, 10.0, 3.5),
    "RSSI": (-120.0, -20.0, -78.0, 14.0),
    "NRxRSRP": (-156.0, -31.0, -95.0, 18.0),
    "NRxRSRQ": (-43.0, 20.0, -13.0, 6.0),
}
RATES = ("DL_bitrate", "UL_bitrate")  # kbit/s, as log1p over 10
INDICATORS = (*SCALES, *RATES, "on 5G", "transferring")
FILE = File(
    name="radio_5g_irish_traces.zip",
    num_bytes=2_177_094,
    sha256="abc729d696b5e0ba34a9c6ed35a851f2868d2b5071be5efb8a49691c23bb1a9b",
    content_bytes=40_000_000,
    content_sha256="485a3ba7af876008ec437266133d681238bfb96e6fcdf77d78a6e8d2a3fd3bea",
    parts=(
        Part(
            "5G-production-dataset.zip",
            "https://raw.githubusercontent.com/uccmisl/5Gdataset/306d92eba81cb4f1195d8b8eba625666a02a10ec/"
            "5G-production-dataset.zip",
            2_177_094,
        ),
    ),
    fetch="as it is",
    also=("5G-production-dataset.zip",),
)
DESCRIPTION = Description(
    name="irish5g",
    what="the throughput class of the next second from ten seconds of a phone's radio indicators, 83 traces",
    shape="x [N, 12, 10] float32, 4 classes",
    key="trace",
    licence="GPL-3.0 (the whole repository, data included): keep it a file of its own",
    source="https://github.com/uccmisl/5Gdataset",
    citation="Raca, Leahy, Sreenan, Quinlan, Beyond Throughput, The Next Generation: a 5G Dataset with Channel and "
    "Context Metrics, MMSys 2020, doi:10.1145/3339825.3394938",
    files=(FILE,),
)


def load(folder: Path | None = None) -> Dataset:
    """Gives windows of ten seconds by trace, nothing held out; y is the class of the downlink rate a second later.

    Shapes: x [N, 12, 10], the rows of `INDICATORS`. Classes: `BOUNDS_KBPS`, about 52, 16, 16 and 16 % of the seconds.
    A window with a gap above 3 s is set aside.
    """
    return build(archives.read_zip(sources.read(FILE, folder), FILE.name, _is_trace))


def build(members: dict[str, bytes]) -> Dataset:
    """Gives the data set from the csv texts of the traces. Rows are counted through all traces, without headers."""
    xs, ys, devices = [], [], []
    names: list[str] = []
    refused: list[Refused] = []
    num_read, before = 0, 0
    for name, text in members.items():
        values_RF, rate_R, time_R = _trace(text, name)
        num = max(len(rate_R) - WINDOW, 0)
        ends = np.arange(num) + WINDOW
        steps = np.diff(time_R)
        broken = (steps > MAX_GAP_S) | (steps < 0.0)
        sound = ~np.lib.stride_tricks.sliding_window_view(broken, WINDOW).any(axis=1) if num else ends > 0
        refused += [Refused(before + int(end) + 1, "a gap lies within its window") for end in ends[~sound]]
        num_read += num
        before += len(rate_R)
        if not sound.any():
            continue
        views = np.lib.stride_tricks.sliding_window_view(values_RF, WINDOW, axis=0)[:-1]  # [R - WINDOW, F, T]
        xs.append(np.ascontiguousarray(views[sound]))
        ys.append(np.searchsorted(BOUNDS_KBPS, rate_R[ends[sound]]).astype(np.int64))
        devices.append(np.full(int(sound.sum()), len(names), np.int64))
        names.append(re.sub(r"^.*?5G-production-dataset/|\.csv$", "", name))
    if not xs:
        raise DataError("irish5g: no trace has eleven seconds in a row; is that the archive?")
    return Dataset(
        name="irish5g",
        x=np.concatenate(xs),
        y=np.concatenate(ys),
        device=np.concatenate(devices),
        device_names=tuple(names),
        held_out=np.zeros(sum(map(len, ys)), np.bool_),
        class_names=CLASSES,
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=num_read,
        refused=tuple(refused),
    )


def _trace(text: bytes, name: str) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Gives the indicators [R, F], the downlink rate in kbit/s [R] and the time in seconds [R] of one trace."""
    header, *rows = csv.reader(text.decode().splitlines())
    if missing := {*SCALES, *RATES, "Timestamp", "NetworkMode", "State"} - set(header):
        raise DataError(f"irish5g: {name} has no column {min(missing)}; is that a trace?")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    values = [_scaled(columns[column], *scale) for column, scale in SCALES.items()]
    rates = [np.array(columns[column], np.float64) for column in RATES]
    values += [np.log1p(rate) / 10.0 for rate in rates]
    values += [np.array(columns["NetworkMode"]) == "5G", np.array(columns["State"]) == "D"]
    # 2019.12.01_12.11.21 becomes 2019-12-01T12:11:21
    stamps = [f"{s[:10].replace('.', '-')}T{s[11:].replace('.', ':')}" for s in columns["Timestamp"]]
    time_R = np.array(stamps, "datetime64[s]").astype(np.float64)
    return np.stack(values, axis=1).astype(np.float32), rates[0], time_R


def _scaled(cells: tuple[str, ...], low: float, high: float, centre: float, spread: float) -> npt.NDArray[np.float64]:
    value = np.array([centre if cell == "-" else float(cell) for cell in cells])
    return np.where((value >= low) & (value <= high), (value - centre) / spread, 0.0)


def _is_trace(name: str) -> bool:
    return name.endswith(".csv") and "__MACOSX" not in name
