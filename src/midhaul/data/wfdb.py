"""PhysioNet's record format, as far as the MIT-BIH arrhythmia database uses it: headers, format 212, annotations.

Source: the WFDB applications guide, header(5), signal(5) and annot(5), https://physionet.org/physiotools/wag/.
Shape letters: S samples.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul.data import archives
from midhaul.errors import DataError

# Annotation code: (symbol, class of ANSI/AAMI EC57:1998). Other codes are not beats.
BEATS = {
    1: ("N", "N"),
    2: ("L", "N"),
    3: ("R", "N"),
    4: ("a", "S"),
    5: ("V", "V"),
    6: ("F", "F"),
    7: ("J", "S"),
    8: ("A", "S"),
    9: ("S", "S"),
    10: ("E", "V"),
    11: ("j", "N"),
    12: ("/", "Q"),
    13: ("Q", "Q"),
    34: ("e", "N"),
    38: ("f", "Q"),
}
_SKIP, _NUM, _SUB, _CHN, _AUX = 59, 60, 61, 62, 63
# De Chazal, O'Dwyer, Reilly, IEEE Trans. Biomed. Eng. 51, 2004; the four records that are in neither have a pacemaker.
DS1 = (
    101,
    106,
    108,
    109,
    112,
    114,
    115,
    116,
    118,
    119,
    122,
    124,
    201,
    203,
    205,
    207,
    208,
    209,
    215,
    220,
    223,
    230,
)
DS2 = (
    100,
    103,
    105,
    111,
    113,
    117,
    121,
    123,
    200,
    202,
    210,
    212,
    213,
    214,
    219,
    221,
    222,
    228,
    231,
    232,
    233,
    234,
)


@dataclass(frozen=True)
class Header:
    """What a record's header says: its number, leads, and whose it is (age -1 where it isn't said)."""

    record: int
    leads: tuple[str, str]
    age: int
    sex: str


def convert(parts: Iterator[bytes]) -> bytes:
    """Gives the npz file from the header, signal and annotations of each record in turn.

    One lead, MLII where the record has it, is brought from 360 to 180 Hz by a polyphase filter and rounded; the first
    differences are held as low and high bytes, which pack well. Raises: DataError if a record is damaged.
    """
    from scipy.signal import resample_poly  # here alone: its import takes longer than most data to read

    headers, signals, beats = [], [], []
    while (text := next(parts, None)) is not None:
        header = read_header(text)
        both = read_212(next(parts), f"{header.record}.dat")
        lead = header.leads.index("MLII") if "MLII" in header.leads else 0
        halved = np.clip(np.rint(resample_poly(both[lead].astype(np.float64), 1, 2)), 0, 2047)
        signals.append(halved.astype(np.int16))
        beats.append([(place // 2, code) for place, code in read_atr(next(parts)) if code in BEATS])
        headers.append(header)
    start = np.concatenate([[0], np.cumsum([len(signal) for signal in signals])])
    difference = np.diff(np.concatenate(signals), prepend=np.int16(0)).view(np.uint16)
    flat = [(start[k] + place, k, *BEATS[code]) for k, found in enumerate(beats) for place, code in found]
    index, record, symbol, aami = zip(*flat, strict=True)
    numbers = [header.record for header in headers]
    return archives.write_npz(
        {
            "signal_delta_lo": (difference & 0xFF).astype(np.uint8),
            "signal_delta_hi": (difference >> 8).astype(np.uint8),
            "record_start": start.astype(np.int32),
            "record": np.array(numbers, np.int16),
            "lead": np.array([header.leads[0] if "MLII" not in header.leads else "MLII" for header in headers]),
            "age": np.array([header.age for header in headers], np.int8),
            "sex": np.array([header.sex for header in headers]),
            "beat_index": np.array(index, np.int32),
            "beat_record": np.array(record, np.int8),
            "beat_symbol": np.array(symbol),
            "beat_aami": np.array(aami),
            "ds_split": np.array([1 if n in DS1 else 2 if n in DS2 else 0 for n in numbers], np.int8),
            "adc_gain": np.array(200.0, np.float32),
            "adc_zero": np.array(1024, np.int16),
            "fs": np.array(180.0, np.float32),
        }
    )


def read_header(text: bytes) -> Header:
    """Gives what a .hea file says. Raises: DataError unless it has two signals of format 212 at 360 Hz."""
    lines = text.decode("ascii", "replace").splitlines()
    first = lines[0].split() if lines else []
    signals = [line.split() for line in lines[1:3]]
    if first[1:3] != ["2", "360"] or not first[0].isdigit() or any(s[1:2] != ["212"] for s in signals):
        raise DataError("a .hea file of MIT-BIH names no record of two signals of format 212 at 360 Hz; fetch it again")
    person = re.search(r"^# *(-?\d+) +([MF])", "\n".join(lines), re.MULTILINE)
    age, sex = (int(person[1]), person[2]) if person else (-1, "")
    return Header(int(first[0]), (signals[0][-1], signals[1][-1]), age, sex)


def read_212(data: bytes, what: str) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Gives the two signals of 12-bit samples, a pair in three bytes. Shapes: [S] and [S]."""
    if len(data) % 3:
        raise DataError(f"{what} has {len(data)} bytes, which aren't pairs of 12-bit samples; fetch it again")
    low, middle, high = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int16).T
    first, second = low | ((middle & 0x0F) << 8), high | ((middle >> 4) << 8)
    return (first ^ 0x800) - 0x800, (second ^ 0x800) - 0x800  # 12 bits with a sign


def read_atr(data: bytes) -> list[tuple[int, int]]:
    """Gives (sample, code) of each annotation. Raises: DataError if it breaks off."""
    words = iter(np.frombuffer(data[: len(data) // 2 * 2], "<u2").tolist())
    found, time = [], 0
    try:
        while (word := next(words)) != 0:
            code, value = word >> 10, word & 0x3FF
            if code == _SKIP:
                time += (next(words) << 16) | next(words)
            elif code == _AUX:
                for _ in itertools.repeat(None, (value + 1) // 2):
                    next(words)
            elif code not in (_NUM, _SUB, _CHN):
                time += value
                found.append((time, code))
    except StopIteration as error:
        raise DataError("an .atr file of MIT-BIH breaks off; fetch it again") from error
    return found
