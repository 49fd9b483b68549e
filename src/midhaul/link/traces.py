"""Measured throughput that a device's rates follow: how fast a phone really was, second by second.

Three formats are read. CSV of the Irish 5G traces: columns `Timestamp`, `DL_bitrate` and `UL_bitrate` in kbit/s (Raca
et al., MMSys 2020). CSV of one's own: a column `time_s` and `down_bps`, `up_bps` or both (`_kbps` and `_mbps` as well).
Logs of the Norwegian HSDPA traces: lines of Unix time, milliseconds, latitude, longitude, bytes received, milliseconds
that they took (Riiser et al., MMSys 2013). Where a way wasn't measured, the radio's own rate stands.

Shape letters: T rows of a trace.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.errors import DataError

Doubles = npt.NDArray[np.float64]
MAX_BYTES = 64 * 2**20
MAX_ROWS = 1_000_000
MAX_BPS = 1e12
_UNITS = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6}
_RATES = {
    ways: {"DL_bitrate" if ways == "down" else "UL_bitrate": 1e3} | {f"{ways}_{unit}": x for unit, x in _UNITS.items()}
    for ways in ("down", "up")
}
_HSDPA_COLUMNS = 6


@dataclass(frozen=True)
class Trace:
    """Throughput over time, constant from each instant to the next, and from its end anew from its start.

    Shapes: `start_s` [T + 1] from 0 to the trace's length, `down_bps` and `up_bps` [T], None where it wasn't measured.
    """

    name: str
    start_s: Doubles
    down_bps: Doubles | None
    up_bps: Doubles | None

    @property
    def length_s(self) -> float:
        """How long it lasts until it begins anew."""
        return float(self.start_s[-1])

    def seconds(self, num_bytes: int, at_s: float, *, up: bool) -> float | None:
        """Gives how long bytes take that begin at a time; None where this way wasn't measured.

        It is the time in which the trace carries them, pauses and all, to the bit.
        """
        rates = self.up_bps if up else self.down_bps
        if rates is None:
            return None
        steps = np.diff(self.start_s)
        carried = np.concatenate([[0.0], np.cumsum(rates * steps)])  # bits by the start of each row
        phase = at_s % self.length_s
        row = min(int(np.searchsorted(self.start_s, phase, side="right")) - 1, len(rates) - 1)
        before = carried[row] + rates[row] * (phase - self.start_s[row])
        whole, wanted = divmod(before + 8.0 * num_bytes, carried[-1])
        # The first instant by which so much is carried lies in the row before the first start that has it.
        row = max(int(np.searchsorted(carried, wanted, side="left")) - 1, 0)
        inside = self.start_s[row] + (wanted - carried[row]) / rates[row] if rates[row] > 0.0 else self.start_s[row]
        return float(whole * self.length_s + inside - phase)

    def mean_bps(self, *, up: bool) -> float | None:
        """Gives the mean rate, None where this way wasn't measured."""
        rates = self.up_bps if up else self.down_bps
        return None if rates is None else float((rates * np.diff(self.start_s)).sum() / self.length_s)


def read_all(text: str) -> list[Trace]:
    """Gives the traces of link.trace, files parted by commas. Raises: DataError, in one sentence."""
    return [read(Path(name.strip())) for name in text.split(",") if name.strip()]


def offset_s(trace: Trace, seed: int, device: int) -> float:
    """Gives where in its trace a device begins, so that those that share one aren't in step."""
    return trace.length_s * float(rng.uniform(rng.key(seed, 0, device, rng.Use.TRACE), 1)[0])


def read(path: Path) -> Trace:
    """Gives the trace in a file. Raises: DataError naming the file and the line, for whatever isn't a sound one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"the trace {path} has more than {MAX_BYTES // 2**20} MiB; cut it into shorter ones")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no trace {path}; give the path of a file in link.trace") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the trace {path} can't be read ({error}); link.trace takes text files") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Trace:
    """Gives the trace in a text. Raises: DataError."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > MAX_ROWS + 1:
        raise DataError(f"the trace {name} has more than {MAX_ROWS:,} rows; cut it into shorter ones")
    if not lines:
        raise DataError(f"the trace {name} is empty; give one with a row for each measurement")
    first = lines[0][1]
    if "," not in first and len(first.split()) == _HSDPA_COLUMNS:
        return _hsdpa(lines, name)
    return _table(lines, name)


def _hsdpa(lines: Sequence[tuple[int, str]], name: str) -> Trace:
    """Gives a trace of rows that each say how many bytes came in how many milliseconds."""
    starts, rates, now = [0.0], [], 0.0
    for number, line in lines:
        cells = line.split()
        if len(cells) != _HSDPA_COLUMNS:
            raise DataError(f"the trace {name}, line {number}, has {len(cells)} columns; the lines before have 6")
        received, took_s = _number(cells[4], name, number), _number(cells[5], name, number) / 1e3
        if took_s == 0.0:
            continue
        now += took_s
        starts.append(now)
        rates.append(_rate(8.0 * received / took_s, name, number))
    return _checked(Trace(name, np.asarray(starts), np.asarray(rates), None))


def _table(lines: Sequence[tuple[int, str]], name: str) -> Trace:
    """Gives a trace of a table with a heading."""
    header = [cell.strip() for cell in next(csv.reader([lines[0][1]]))]
    clock: Callable[[str], float]
    if "Timestamp" in header:
        time_at, clock = header.index("Timestamp"), _instant
    elif "time_s" in header:
        time_at, clock = header.index("time_s"), float
    else:
        raise DataError(f"the trace {name} has no column Timestamp or time_s in its first line; name its columns there")
    ways = {
        way: [(header.index(c), factor) for c, factor in known.items() if c in header] for way, known in _RATES.items()
    }
    if not any(ways.values()):
        raise DataError(
            f"the trace {name} has no throughput: no column DL_bitrate, UL_bitrate, down_bps, up_bps (or _kbps, _mbps)"
        )
    times: list[float] = []
    rates: dict[str, list[float]] = {way: [] for way, columns in ways.items() if columns}
    for number, line in lines[1:]:
        cells = next(csv.reader([line])) if '"' in line else line.split(",")
        if len(cells) != len(header):
            raise DataError(f"the trace {name}, line {number}, has {len(cells)} columns and its heading {len(header)}")
        try:
            now = clock(cells[time_at].strip())
        except ValueError:
            now = math.nan
        if not math.isfinite(now) or abs(now) > 1e12:
            raise DataError(f"the trace {name}, line {number}: {cells[time_at]!r} is no time")
        if times and now < times[-1]:
            raise DataError(
                f"the trace {name}, line {number}: its time is before that of the line above; sort the rows"
            )
        fresh = {
            way: _rate(_number(cells[ways[way][0][0]], name, number) * ways[way][0][1], name, number) for way in rates
        }
        if times and now == times[-1]:  # several rows of one second: the last is the freshest
            for way, rate in fresh.items():
                rates[way][-1] = rate
            continue
        times.append(now)
        for way, rate in fresh.items():
            rates[way].append(rate)
    if len(times) < 2:
        raise DataError(f"the trace {name} has no two rows at different times; give a longer one")
    # A row holds until the next; the last as long as the rows before it in the middle.
    starts = np.asarray([*times, times[-1] + float(np.median(np.diff(times)))]) - times[0]
    found = {way: np.asarray(column) for way, column in rates.items()}
    return _checked(Trace(name, starts, found.get("down"), found.get("up")))


def _instant(text: str) -> float:
    """Gives the seconds of a time as 2019.12.01_12.11.21."""
    if len(text) != 19 or text[10] != "_":
        raise ValueError(f"{text!r} is no time")
    stamp = f"{text[:10].replace('.', '-')}T{text[11:].replace('.', ':')}+00:00"
    return datetime.datetime.fromisoformat(stamp).timestamp()


def _number(text: str, name: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1e15:
        raise DataError(f"the trace {name}, line {number}: {text.strip()!r} is no number of at least 0")
    return value


def _rate(rate_bps: float, name: str, number: int) -> float:
    if rate_bps > MAX_BPS:
        raise DataError(f"the trace {name}, line {number}: {rate_bps:.3g} bit/s is more than any radio carries")
    return rate_bps


def _checked(trace: Trace) -> Trace:
    if len(trace.start_s) < 2:
        raise DataError(f"the trace {trace.name} has no row that lasts; give one with a row for each measurement")
    for way, rates in (("down", trace.down_bps), ("up", trace.up_bps)):
        if rates is not None and not (rates > 0.0).any():
            raise DataError(f"the trace {trace.name} never carries anything {way}, so a device would wait for ever")
    return trace
