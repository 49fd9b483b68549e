"""The Irish 5G traces: windows, classes, gaps and missing numbers."""

from __future__ import annotations

import numpy as np
import pytest

from midhaul.data import irish5g
from midhaul.errors import DataError

HEAD = "Timestamp,Speed,NetworkMode,RSRP,RSRQ,SNR,CQI,RSSI,DL_bitrate,UL_bitrate,State,NRxRSRP,NRxRSRQ"


def trace(rates: list[float], seconds: list[int] | None = None, **cells: str) -> bytes:
    base = dict.fromkeys(HEAD.split(","), "0") | {"NetworkMode": "5G", "State": "D", "RSRP": "-97"} | cells
    rows = []
    for place, rate in enumerate(rates):
        second = (seconds or list(range(len(rates))))[place]
        row = base | {"Timestamp": f"2019.12.01_12.{second // 60:02d}.{second % 60:02d}", "DL_bitrate": str(rate)}
        rows.append(",".join(row[name] for name in HEAD.split(",")))
    return "\n".join([HEAD, *rows]).encode()


def test_ten_seconds_predict_the_class_of_the_next():
    rates = [float(i) for i in range(10)] + [10, 11, 1500, 1501, 10_000, 10_001]
    data = irish5g.build({"a/5G-production-dataset/Netflix/t.csv": trace(rates)})
    assert data.x.shape == (6, 12, 10)
    assert data.y.tolist() == [0, 1, 1, 2, 2, 3]
    assert data.device_names == ("Netflix/t",)
    rate = irish5g.INDICATORS.index("DL_bitrate")
    np.testing.assert_allclose(data.x[1, rate], np.log1p(np.arange(1, 11)) / 10, rtol=1e-6)


def test_missing_and_impossible_numbers_stand_at_the_centre():
    data = irish5g.build({"t.csv": trace([0.0] * 12, RSRQ="-", NRxRSRQ="2147483647", SNR="11", NetworkMode="LTE")})
    row = dict(zip(irish5g.INDICATORS, data.x[0, :, 0].tolist(), strict=True))
    assert row["RSRQ"] == row["NRxRSRQ"] == row["RSRP"] == 0.0
    assert row["SNR"] == pytest.approx(1.0)
    assert row["on 5G"] == 0.0
    assert row["transferring"] == 1.0


def test_windows_over_a_gap_are_set_aside():
    seconds = [*range(12), *range(20, 32)]
    data = irish5g.build({"a.csv": trace([0.0] * 24, seconds), "b.csv": trace([0.0] * 5)})
    # Of 14 windows those that reach over the gap between rows 12 and 13 are the ten that end in rows 13 to 22.
    assert len(data) == 4
    assert data.num_read == 14
    assert [bad.line for bad in data.refused] == list(range(13, 23))


def test_other_files_are_refused():
    with pytest.raises(DataError, match="no trace has eleven seconds"):
        irish5g.build({"a.csv": trace([0.0] * 10)})
    with pytest.raises(DataError, match="has no column"):
        irish5g.build({"a.csv": b"a,b\n1,2\n"})
