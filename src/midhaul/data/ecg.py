"""Heartbeats of the MIT-BIH arrhythmia database, by patient, in the five classes of the AAMI.

Shape letters: N beats, T samples (180), S samples of all records.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import archives, sources, wfdb
from midhaul.data.dataset import Dataset, Refused
from midhaul.data.sources import Description, File, Part

BEFORE, AFTER = 72, 108  # samples at 180 Hz: 0.4 s before the beat's mark and 0.6 s from it
CLASSES = ("N", "S", "V", "F", "Q")
RECORDS = (
    *(
        100,
        101,
        102,
        103,
        104,
        105,
        106,
        107,
        108,
        109,
        111,
        112,
        113,
        114,
        115,
        116,
        117,
        118,
        119,
        121,
        122,
        123,
    ),
    *(
        124,
        200,
        201,
        202,
        203,
        205,
        207,
        208,
        209,
        210,
        212,
        213,
        214,
        215,
        217,
        219,
        220,
        221,
        222,
        223,
        228,
        230,
    ),
    *(231, 232, 233, 234),
)
SAME_PERSON = {202: 201}  # records 201 and 202 are of one person
FILE = File(
    name="ecg_mitbih_180hz.npz",
    num_bytes=12_480_900,
    sha256="638fd02366fa1f185041bbd94dff2843a5c69f5618ac72ccd52611424fe13baf",
    content_bytes=34_000_000,
    content_sha256="4cd2835a97037d222ff56aa524bafe71b5eb01b382143c90d0a334058b1f83e3",
    parts=tuple(
        Part(f"{record}.{kind}", f"https://physionet.org/files/mitdb/1.0.0/{record}.{kind}", 2_000_000)
        for record in RECORDS
        for kind in ("hea", "dat", "atr")
    ),
    fetch="converted",
)
DESCRIPTION = Description(
    name="ecg",
    what="single heartbeats, one second of one lead at 180 Hz, of 43 patients (47 with the paced ones)",
    shape="x [100692, 1, 180] float32, 5 classes",
    key="patient",
    licence="ODC-BY 1.0",
    source="https://physionet.org/content/mitdb/1.0.0/",
    citation="Moody and Mark, The impact of the MIT-BIH Arrhythmia Database, IEEE EMBS Magazine 20, 2001, "
    "doi:10.13026/C2F305; split: de Chazal, O'Dwyer, Reilly, IEEE Trans. Biomed. Eng. 51, 2004",
    files=(FILE,),
)


def load(folder: Path | None = None, *, paced: bool = False) -> Dataset:
    """Gives the beats by patient; held out: the records of DS2 of de Chazal et al.

    Shapes: x [N, 1, 180] in millivolts, each window less its own mean. Classes: N normal, S supraventricular, V
    ventricular, F fusion, Q unknown. `paced` adds the four records with a pacemaker to the training rows.
    Limits: records 201 (DS1) and 202 (DS2) are one person, so that person's beats are in both halves; the
    device is one. A class S beat differs in its timing more than in its shape, which a window shows little of.
    """
    return build(archives.read_npz(sources.read(FILE, folder, wfdb.convert), FILE.name), paced)


def build(arrays: archives.Arrays, paced: bool = False) -> Dataset:
    """Gives the data set from the arrays of the file; beats too near the ends of their record are set aside."""
    record_of = arrays["beat_record"].astype(np.int64)
    usable = np.flatnonzero((arrays["ds_split"][record_of] > 0) | paced)
    centre, record = arrays["beat_index"][usable].astype(np.int64), record_of[usable]
    start, end = (arrays["record_start"][record + side].astype(np.int64) for side in (0, 1))
    inside = (centre - BEFORE >= start) & (centre + AFTER <= end)
    kept, record = usable[inside], record[inside]
    people = np.array([SAME_PERSON.get(number, number) for number in arrays["record"].tolist()])
    patients, device = np.unique(people[record], return_inverse=True)
    return Dataset(
        name="ecg",
        x=_windows(_signal_mv(arrays), arrays["beat_index"][kept].astype(np.int64)),
        y=np.array([CLASSES.index(label) for label in arrays["beat_aami"][kept].tolist()], np.int64),
        device=device.astype(np.int64),
        device_names=tuple(f"patient {_records(int(patient))}" for patient in patients),
        held_out=arrays["ds_split"][record] == 2,
        class_names=CLASSES,
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=len(usable),
        refused=tuple(Refused(int(row) + 1, "its window leaves the record") for row in usable[~inside]),
    )


def _signal_mv(arrays: archives.Arrays) -> npt.NDArray[np.float32]:
    """Gives the signal, which the file holds as the low and high bytes of its first differences."""
    difference = arrays["signal_delta_lo"].astype(np.uint16) | (arrays["signal_delta_hi"].astype(np.uint16) << 8)
    signal_S = np.cumsum(difference, dtype=np.uint16).view(np.int16)
    return (signal_S.astype(np.float32) - np.float32(arrays["adc_zero"])) / np.float32(arrays["adc_gain"])


def _windows(signal_S: npt.NDArray[np.float32], centre_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    x_NT = np.lib.stride_tricks.sliding_window_view(signal_S, BEFORE + AFTER)[centre_N - BEFORE].copy()
    x_NT -= x_NT.mean(axis=1, keepdims=True)
    return x_NT[:, None]


def _records(patient: int) -> str:
    return "/".join(str(record) for record in [patient, *(r for r, p in SAME_PERSON.items() if p == patient)])
