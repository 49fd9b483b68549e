"""EEG and ECG: PhysioNet's formats written by hand, and what becomes of them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from midhaul.data import archives, ecg, edf, eeg, wfdb
from midhaul.errors import DataError

NAMES = ["Fc3.", "Fcz.", "Fc4.", "C3..", "Cz..", "C4..", "Cp3.", "Cpz.", "Cp4.", "Oz.."]


def edf_file(values: np.ndarray, events: dict[int, bytes], names: list[str] = NAMES) -> bytes:
    """An EDF+ file of one-second records; values [C, seconds * 160] are digital, physical is half of them."""
    num_records = values.shape[1] // 160
    labels = [*names, "EDF Annotations"]
    num = len(labels)
    head = b"0".ljust(8) + b"X X X X".ljust(80) + b"Startdate".ljust(80) + b"01.01.0101.01.01"
    head += str(256 * (num + 1)).encode().ljust(8) + b"EDF+C".ljust(44)
    head += str(num_records).encode().ljust(8) + b"1".ljust(8) + str(num).encode().ljust(4)
    widths = {
        "label": 16,
        "transducer": 80,
        "unit": 8,
        "pl": 8,
        "ph": 8,
        "dl": 8,
        "dh": 8,
        "filter": 80,
        "n": 8,
        "r": 32,
    }
    every = {"unit": "uV", "pl": "-500", "ph": "500", "dl": "-1000", "dh": "1000", "n": "160"}
    for field, width in widths.items():
        for label in labels:
            text = label if field == "label" else every.get(field, "")
            if label == "EDF Annotations" and field == "n":
                text = "40"
            head += text.encode().ljust(width)
    body = b""
    for record in range(num_records):
        for row in values:
            body += row[160 * record : 160 * (record + 1)].astype("<i2").tobytes()
        body += (b"+%d\x14\x14\x00" % record + events.get(record, b"")).ljust(80, b"\0")
    return head + body


def test_edf_signals_scale_and_events_are_read():
    values = np.arange(10 * 960).reshape(10, 960) % 1000
    data = edf_file(values, {1: b"+1.5\x151.2\x14T1\x14\x00+1.75\x14T0\x14\x00"})
    recording = edf.read(data, "f")
    assert recording.events == ((1.5, "T1"), (1.75, "T0"))
    assert list(recording.signals) == NAMES
    np.testing.assert_allclose(recording.signals["Oz.."], values[9] / 2)


def test_trials_start_at_the_cue_and_must_be_whole():
    values = np.tile(np.arange(1600) % 1000, (10, 1)) + 0
    events = {1: b"+1.0\x154\x14T2\x14\x00", 2: b"+2.5\x154\x14T1\x14\x00", 8: b"+8.0\x154\x14T1\x14\x00"}
    one = edf_file(values, events)
    arrays = archives.read_npz(edf.convert(iter([one, one, one, one])), "e")
    assert arrays["y"].tolist() == [1, 0] * 4
    assert arrays["subject"].tolist() == [1] * 6 + [2] * 2
    assert arrays["run"].tolist() == [4, 4, 8, 8, 12, 12, 4, 4]
    # Trial 0 starts at sample 160, digital 160, physical 80.
    assert arrays["X"][0, :, 0].tolist() == [80] * 9
    assert arrays["X"].shape == (8, 9, 640)
    data = eeg.build(arrays)
    assert data.device_names == ("subject 1", "subject 2")
    assert data.x[0, 0, 0] == pytest.approx(80 / 60)
    assert data.class_names == ("left_fist", "right_fist")


def test_damaged_edf_files_are_refused():
    good = edf_file(np.zeros((10, 160)), {})
    for bad in (b"", good[:-1], good.replace(b"-1000 ", b"1000  "), good[:100]):
        with pytest.raises(DataError, match="EDF header"):
            edf.read(bad, "f")
    missing = edf_file(np.zeros((9, 160)), {}, NAMES[1:])
    with pytest.raises(DataError, match="no channel FC3"):
        edf.convert(iter([missing]))


def pack_212(first: list[int], second: list[int]) -> bytes:
    out = b""
    for a, b in zip(first, second, strict=True):
        a, b = a & 0xFFF, b & 0xFFF
        out += bytes([a & 0xFF, (a >> 8) | ((b >> 8) << 4), b & 0xFF])
    return out


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def note(code: int, step: int) -> int:
    return code << 10 | step


def test_format_212_holds_signed_pairs():
    first, second = wfdb.read_212(pack_212([0, 2047, -1], [-2048, 5, 1024]), "f")
    assert first.tolist() == [0, 2047, -1]
    assert second.tolist() == [-2048, 5, 1024]
    with pytest.raises(DataError, match="4 bytes"):
        wfdb.read_212(b"1234", "f")


def test_annotations_skip_and_carry_text():
    data = words(note(1, 10), note(63, 3), 0x4141, 0x0041, note(5, 20), note(59, 0), 1, 2, note(8, 5), note(61, 1), 0)
    assert wfdb.read_atr(data) == [(10, 1), (30, 5), (30 + 65536 + 2 + 5, 8)]
    with pytest.raises(DataError, match="breaks off"):
        wfdb.read_atr(data[:-2])


HEADER = b"%d 2 360 2000\n%d.dat 212 200 11 1024 0 0 0 %s\n%d.dat 212 200 11 1024 0 0 0 %s\n# 69 M 1 2 x1\n"


def test_headers():
    found = wfdb.read_header(HEADER % (100, 100, b"MLII", 100, b"V5"))
    assert found == wfdb.Header(100, ("MLII", "V5"), 69, "M")
    with pytest.raises(DataError, match="format 212"):
        wfdb.read_header(b"100 2 250 100\n")


def test_records_become_beats_by_patient():
    flat = [1024] * 2000
    parts = []
    for record, leads in ((201, (b"MLII", b"V1")), (202, (b"V5", b"MLII")), (102, (b"V5", b"V2"))):
        parts.append(HEADER % (record, record, leads[0], record, leads[1]))
        parts.append(pack_212([1224] * 2000 if leads[0] == b"V5" else flat, flat))
        parts.append(words(note(1, 20), note(5, 400), note(28, 10), note(8, 300), note(12, 1000), note(6, 250), 0))
    arrays = archives.read_npz(wfdb.convert(iter(parts)), "e")
    assert arrays["lead"].tolist() == ["MLII", "MLII", "V5"]
    assert arrays["record_start"].tolist() == [0, 1000, 2000, 3000]
    assert arrays["ds_split"].tolist() == [1, 2, 0]
    assert arrays["beat_index"][:5].tolist() == [10, 210, 365, 865, 990]
    assert "".join(arrays["beat_aami"][:5].tolist()) == "NVSQF"
    data = ecg.build(arrays)
    # The first and the last beat of each record lie too near its end.
    assert data.num_read == 10
    assert [bad.line for bad in data.refused] == [1, 5, 6, 10]
    assert data.device_names == ("patient 201/202",)
    assert data.held_out.tolist() == [False] * 3 + [True] * 3
    assert [data.class_names[label] for label in data.y] == ["V", "S", "Q"] * 2
    with_paced = ecg.build(arrays, paced=True)
    assert with_paced.device_names == ("patient 102", "patient 201/202")
    assert np.abs(data.x[0]).max() < 0.01
    mv = ecg._signal_mv(arrays)
    assert mv[500] == pytest.approx(0.0, abs=0.01)
    assert mv[2500] == pytest.approx(1.0, abs=0.01)


def test_a_window_is_centred_where_it_should_be():
    signal = np.arange(1000, dtype=np.float32)
    x = ecg._windows(signal, np.array([300]))
    assert x.shape == (1, 1, 180)
    assert x[0, 0, 1] - x[0, 0, 0] == 1.0
    assert x[0, 0, 72] == pytest.approx(300 - (228 + 407) / 2)
