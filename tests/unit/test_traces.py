"""Traces of measured throughput: how long bytes take by hand, what is read, and that nothing unsound is."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midhaul.config import LinkConfig
from midhaul.data import irish5g
from midhaul.errors import ConfigError, DataError
from midhaul.link import radio, traces
from midhaul.link.conditions import Surroundings
from midhaul.link.traces import Trace

OWN = "time_s,down_kbps,up_kbps\n0,8,4\n1,0,4\n2,16,4\n3,8,4\n"
IRISH = """Timestamp,Longitude,DL_bitrate,UL_bitrate,State
2019.12.01_12.11.21,-8.5,100,10,D
2019.12.01_12.11.22,-8.5,200,20,D
2019.12.01_12.11.22,-8.5,300,30,D
2019.12.01_12.11.24,-8.5,400,0,D
"""
HSDPA = (
    "1289406399 549 59.85 10.78 1000 1000\n1289406400 1549 59.85 10.78 0 500\n1289406401 2049 59.85 10.78 4000 1000\n"
)


def test_bytes_take_the_time_in_which_a_trace_carries_them() -> None:
    trace = traces.parse(OWN, "own")
    assert trace.start_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    # 8 kbit in the first second, nothing in the next, 16 in the third.
    assert trace.seconds(500, 0.0, up=False) == pytest.approx(0.5)
    assert trace.seconds(1000, 0.0, up=False) == pytest.approx(1.0)
    assert trace.seconds(2000, 0.0, up=False) == pytest.approx(2.5)
    assert trace.seconds(1000, 1.25, up=False) == pytest.approx(1.25)
    # A turn carries 32 kbit in four seconds, from wherever it begins.
    assert trace.seconds(4000, 0.75, up=False) == pytest.approx(4.0)
    assert trace.seconds(9000, 4.0, up=False) == pytest.approx(9.0)
    assert trace.seconds(1000, 123.4, up=True) == pytest.approx(2.0)
    assert trace.mean_bps(up=False) == 8000.0


def test_irish_traces_are_read_in_kilobits_and_the_last_row_of_a_second_counts() -> None:
    trace = traces.parse(IRISH, "irish")
    assert trace.start_s.tolist() == [0.0, 1.0, 3.0, 4.5]
    assert trace.down_bps is not None
    assert trace.up_bps is not None
    assert trace.down_bps.tolist() == [100e3, 300e3, 400e3]
    assert trace.up_bps.tolist() == [10e3, 30e3, 0.0]


def test_hsdpa_logs_are_bytes_in_milliseconds() -> None:
    trace = traces.parse(HSDPA, "bus.log")
    assert trace.start_s.tolist() == [0.0, 1.0, 1.5, 2.5]
    assert trace.down_bps is not None
    assert trace.down_bps.tolist() == [8000.0, 0.0, 32000.0]
    assert trace.up_bps is None
    assert trace.seconds(10, 0.0, up=True) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "no column Timestamp or time_s"),
        ("time_s,b\n1,2\n", "no throughput"),
        ("time_s,down_bps\n0,1\n1,-\n", r"line 3: '-' is no number"),
        ("time_s,down_bps\n0,1\n1,nan\n", r"line 3: 'nan' is no number"),
        ("time_s,down_bps\n0,1\n1,-5\n", "line 3"),
        ("time_s,down_bps\n0,1\n1,1e13\n", "more than any radio carries"),
        ("time_s,down_bps\n1,1\n0,1\n", "line 3: its time is before"),
        ("time_s,down_bps\nsoon,1\n", "'soon' is no time"),
        ("time_s,down_bps\n0,1\n1\n", "has 1 columns and its heading 2"),
        ("time_s,down_bps\n0,1\n", "no two rows"),
        ("time_s,down_bps\n0,0\n1,0\n", "never carries anything down"),
        ("Timestamp,DL_bitrate\n2019.13.01_12.11.21,3\n", "is no time"),
        ("1 2 3 4 5 6\n1 2 3 4 5\n", "line 2, has 5 columns"),
        ("1 2 3 4 5 0\n", "no row that lasts"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        traces.parse(text, "t.csv")


def test_a_file_that_isnt_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no trace"):
        traces.read(tmp_path / "none.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="can't be read"):
        traces.read(tmp_path / "binary")


RATES = st.lists(st.floats(0.0, 1e9), min_size=2, max_size=12).filter(lambda rates: max(rates) > 1.0)
STEPS = st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=12)


@given(RATES, STEPS, st.floats(0.0, 1e5), st.integers(1, 10**7))
def test_what_a_trace_carried_in_the_time_is_what_was_sent(
    rates: list[float], steps: list[float], at_s: float, num_bytes: int
) -> None:
    start = np.concatenate([[0.0], np.cumsum(steps[: len(rates)])])
    trace = Trace("t", start, np.asarray(rates), None)
    took = trace.seconds(num_bytes, at_s, up=False)
    assert took is not None
    assert took > 0.0
    bits = carried(trace, at_s, at_s + took)
    assert bits == pytest.approx(8.0 * num_bytes, rel=1e-4, abs=max(rates) * (at_s + took) * 1e-12)


def carried(trace: Trace, low_s: float, high_s: float) -> float:
    """Gives the bits that a trace carries between two times, slowly."""
    assert trace.down_bps is not None
    whole = float((trace.down_bps * np.diff(trace.start_s)).sum())

    def until(time_s: float) -> float:
        turns, phase = divmod(time_s, trace.length_s)
        inside = np.clip(phase - trace.start_s[:-1], 0.0, np.diff(trace.start_s))
        return turns * whole + float((trace.down_bps * inside).sum())  # type: ignore[operator]

    return until(high_s) - until(low_s)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    for start in ("", "time_s,down_bps\n", "Timestamp,DL_bitrate\n"):
        with contextlib.suppress(DataError):
            assert traces.parse(start + text, "t").length_s > 0.0


ARCHIVE = Path(os.environ.get("MIDHAUL_DATA", "")) / irish5g.FILE.name


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="MIDHAUL_DATA names no folder with the Irish traces")
def test_the_irish_traces_are_read_but_for_one_whose_clock_goes_back() -> None:
    lengths, refused = [], []
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if not name.endswith(".csv") or "__MACOSX" in name:
                continue
            try:
                lengths.append(traces.parse(archive.read(name).decode("utf-8-sig"), name).length_s)
            except DataError as error:
                refused.append(str(error))
    assert len(lengths) == 82
    assert min(lengths) > 60.0
    assert len(refused) == 1
    assert "line 918: its time is before that of the line above" in refused[0]


def test_devices_follow_traces_in_turn_from_places_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(OWN)
    (tmp_path / "b.log").write_text(HSDPA)
    link = LinkConfig(trace=f"{tmp_path}/a.csv,{tmp_path}/b.log")
    radios = dict.fromkeys(range(4), radio.get("redcap"))
    around = Surroundings.from_config(link, radios, seed=1)
    assert around is not None
    now = around.at(1, 10.0, [0, 1, 2, 3])
    first = now[0].trace
    assert first is not None
    assert first is now[2].trace
    assert now[0].at_s != now[2].at_s
    assert now[0].seconds(500, up=True) == pytest.approx(0.02 + 1.0)
    assert now[1].seconds(500, up=True) == radio.get("redcap").seconds_up(500)  # the log has no uplink
    assert now[0].joules(500, up=True) == pytest.approx(1.0 * radio.get("redcap").tx_w)
    with pytest.raises(ConfigError, match="not both"):
        Surroundings.from_config(LinkConfig(trace=f"{tmp_path}/a.csv", cell="umi"), radios, seed=1)
