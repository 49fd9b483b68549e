"""European data format with annotations (EDF+), as far as PhysioNet's motor imagery recordings use it.

Source: Kemp and Olivan, European data format 'plus', Clinical Neurophysiology 114, 2003, sections 2.1 and 2.2.
Shape letters: C channels, R data records, S samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul.data import archives
from midhaul.errors import DataError

CHANNELS = ("FC3", "FCz", "FC4", "C3", "Cz", "C4", "CP3", "CPz", "CP4")
RATE_HZ, TRIAL = 160, 640
_ANNOTATIONS = "EDF Annotations"
_CUES = {"T1": 0, "T2": 1}
# The per-signal fields of the header, in order, and their widths in bytes.
_FIELDS = {
    "label": 16,
    "transducer": 80,
    "unit": 8,
    "physical_low": 8,
    "physical_high": 8,
    "digital_low": 8,
    "digital_high": 8,
    "filter": 80,
    "samples": 8,
    "reserved": 32,
}


@dataclass(frozen=True)
class Recording:
    """The signals of one recording in their physical unit, by label [C] -> [S], and its (seconds, text) events."""

    signals: dict[str, npt.NDArray[np.float64]]
    events: tuple[tuple[float, str], ...]


def convert(parts: Iterator[bytes]) -> bytes:
    """Gives the npz file from runs 4, 8 and 12 of each subject in turn: 4 s from each cue T1 (left) and T2 (right)."""
    trials, labels, subjects, runs = [], [], [], []
    for place, data in enumerate(parts):
        subject, run = place // 3 + 1, (4, 8, 12)[place % 3]
        recording = read(data, f"S{subject:03d}R{run:02d}.edf")
        by_name = {label.rstrip(".").upper(): signal for label, signal in recording.signals.items()}
        if missing := [name for name in CHANNELS if name.upper() not in by_name]:
            raise DataError(f"S{subject:03d}R{run:02d}.edf has no channel {missing[0]}; fetch it again")
        signal_CS = np.stack([by_name[name.upper()] for name in CHANNELS])
        for onset_s, text in recording.events:
            start = round(onset_s * RATE_HZ)
            if text in _CUES and start + TRIAL <= signal_CS.shape[1]:
                trials.append(np.rint(signal_CS[:, start : start + TRIAL]).astype(np.int16))
                labels.append(_CUES[text])
                subjects.append(subject)
                runs.append(run)
    return archives.write_npz(
        {
            "X": np.stack(trials),
            "y": np.array(labels, np.uint8),
            "subject": np.array(subjects, np.uint8),
            "run": np.array(runs, np.uint8),
            "channels": np.array(CHANNELS),
            "class_names": np.array(["left_fist", "right_fist"]),
            "fs": np.array(RATE_HZ, np.float32),
            "unit": np.array("microvolt"),
        }
    )


def read(data: bytes, what: str) -> Recording:
    """Gives the signals at 160 Hz and the events of an EDF+ file. Raises: DataError if the header doesn't hold."""
    try:
        header_bytes, num_records = int(data[184:192]), int(data[236:244])
        seconds, num = float(data[244:252]), int(data[252:256])
        fields, at = {}, 256
        for field, width in _FIELDS.items():
            fields[field] = [data[at + width * k : at + width * (k + 1)].decode("ascii").strip() for k in range(num)]
            at += width * num
        samples = [int(count) for count in fields["samples"]]
        scale = [_scale(*(float(fields[field][k]) for field in list(_FIELDS)[3:7])) for k in range(num)]
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"{what} has no sound EDF header ({error}); fetch it again") from error
    if at != header_bytes or len(data) != header_bytes + 2 * num_records * sum(samples) or num_records < 1:
        raise DataError(f"{what} has {len(data)} bytes, not what its EDF header says; fetch it again")
    body = np.frombuffer(data, "<i2", offset=header_bytes).reshape(num_records, sum(samples))
    signals, events, start = {}, [], 0
    for label, count, (gain, offset) in zip(fields["label"], samples, scale, strict=True):
        values = body[:, start : start + count]
        start += count
        if label == _ANNOTATIONS:
            events += [event for record in values for event in parse_events(record.tobytes())]
        elif count == seconds * RATE_HZ:
            signals[label] = values.reshape(-1) * gain + offset
    return Recording(signals, tuple(events))


def parse_events(record: bytes) -> list[tuple[float, str]]:
    """Gives the (onset in seconds, text) of the annotations of one data record; time marks have no text.

    >>> parse_events(b"+0\\x14\\x14\\x00+4.2\\x154.1\\x14T1\\x14\\x00")
    [(4.2, 'T1')]
    """
    found = re.findall(rb"([+-]\d+(?:\.\d*)?)(?:\x15[\d.]+)?\x14([^\x00]*)\x00", record)
    return [
        (float(onset), text.decode("utf-8", "replace"))
        for onset, texts in found
        for text in texts.split(b"\x14")
        if text
    ]


def _scale(physical_low: float, physical_high: float, digital_low: float, digital_high: float) -> tuple[float, float]:
    gain = (physical_high - physical_low) / (digital_high - digital_low)
    return gain, physical_low - gain * digital_low
