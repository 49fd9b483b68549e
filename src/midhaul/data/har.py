"""Human activities from a smartphone at the waist: 2.56 s windows of accelerometer and gyroscope, 30 people.

Shape letters: N windows, C channels (6), T samples (128).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import archives, sources
from midhaul.data.dataset import Dataset, Floats, number
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError

WINDOW, STEP = 128, 64
# The mean and standard deviation of each channel (acceleration in g, rotation in rad/s) over the windows of the 21
# training subjects and six basic activities, rounded. Constants, so that a device needs no statistics of its own.
CENTRE = (0.81, 0.03, 0.09, 0.0, 0.0, 0.0)
SPREAD = (0.42, 0.39, 0.36, 0.41, 0.40, 0.26)
TRAIN_SUBJECTS = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 23, 25, 26, 27, 28, 29, 30)
LABELS = (
    "WALKING",
    "WALKING_UPSTAIRS",
    "WALKING_DOWNSTAIRS",
    "SITTING",
    "STANDING",
    "LAYING",
    "STAND_TO_SIT",
    "SIT_TO_STAND",
    "SIT_TO_LIE",
    "LIE_TO_SIT",
    "STAND_TO_LIE",
    "LIE_TO_STAND",
)
ACC_STEP_G = 1.0 / 720.0
GYRO_STEP_RAD_S = 0.0175 * np.pi / 180.0
NUM_BASIC = 6

FILE = File(
    name="har_hapt_raw.npz",
    num_bytes=9_858_631,
    sha256="1a0de583c9cae412ac0c6a411d43c9351e021a5a7fe1b5ce2481ca233f84a868",
    content_bytes=14_000_000,
    content_sha256="3baaed6cc2ba935f21425c07eee791a2677686d16bb79ceeecac2155628a6526",
    parts=(
        Part(
            "hapt.zip",
            "https://archive.ics.uci.edu/static/public/341/"
            "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip",
            200_000_000,
        ),
    ),
    fetch="converted",
)
DESCRIPTION = Description(
    name="har",
    what="windows of 128 samples (2.56 s at 50 Hz, half overlapping) from a smartphone at the waist",
    shape="x [10411, 6, 128] float32, 6 activities (10929 and 12 with the postural transitions)",
    key="subject",
    licence="CC BY 4.0 on the UCI page, but the README in the archive says that commercial use is prohibited",
    source="https://archive.ics.uci.edu/dataset/341",
    citation="Reyes-Ortiz, Oneto, Sama, Parra, Anguita, Transition-Aware Human Activity Recognition Using Smartphones, "
    "Neurocomputing 171, 2016, doi:10.24432/C54G7M",
    files=(FILE,),
)


def load(folder: Path | None = None, *, classes: int = NUM_BASIC) -> Dataset:
    """Gives the official windows of the 6 basic activities, or of all 12 with the transitions.

    Shapes: x [N, 6, 128] float32: acceleration x y z, gravity included, then rotation x y z, each less `CENTRE` and
    over `SPREAD`. Held out: the 9 subjects of the official test set.
    Raises: ConfigError if `classes` is neither 6 nor 12.
    """
    if classes not in (NUM_BASIC, len(LABELS)):
        raise ConfigError(f"har: classes is {classes}; it must be 6 (basic activities) or 12 (with transitions)")
    arrays = archives.read_npz(sources.read(FILE, folder, convert), FILE.name)
    return build(arrays, classes)


def build(arrays: archives.Arrays, classes: int = NUM_BASIC) -> Dataset:
    """Gives the data set from the arrays of the file."""
    kept = arrays["win_label"] <= classes
    device, names = number(arrays["win_subject"][kept])
    return Dataset(
        name="har",
        x=_windows(arrays, arrays["win_start"][kept]),
        y=arrays["win_label"][kept].astype(np.int64) - 1,
        device=device,
        device_names=tuple(f"subject {name}" for name in names),
        held_out=~arrays["win_is_train"][kept],
        class_names=LABELS[:classes],
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=int(kept.sum()),
        centre=CENTRE,
        spread=SPREAD,
    )


def convert(parts: Iterator[bytes]) -> bytes:
    """Gives the npz file from the official zip archive: signals on the sensors' own integer grid, official windows.

    Raises: DataError if the archive lacks a recording or the labels.
    """
    members = archives.read_zip(next(parts), "the HAPT archive", lambda name: "RawData/" in name)
    found: dict[tuple[str, int], tuple[int, bytes]] = {}
    labels = b""
    for name, data in members.items():
        if match := re.search(r"RawData/(acc|gyro)_exp(\d+)_user(\d+)\.txt$", name):
            found[match[1], int(match[2])] = int(match[3]), data
        elif name.endswith("RawData/labels.txt"):
            labels = data
    num = len(found) // 2
    if not labels or set(found) != {(kind, exp) for kind in ("acc", "gyro") for exp in range(1, num + 1)}:
        raise DataError("the HAPT archive lacks RawData/labels.txt or one of a pair of recordings; fetch it again")
    acc = [_grid(found["acc", exp][1], ACC_STEP_G, f"acc_exp{exp:02d}") for exp in range(1, num + 1)]
    gyro = [_grid(found["gyro", exp][1], GYRO_STEP_RAD_S, f"gyro_exp{exp:02d}") for exp in range(1, num + 1)]
    start = np.concatenate([[0], np.cumsum([len(part) for part in acc])]).astype(np.int64)
    segments = _table(labels, 5, "labels.txt").astype(np.int32)
    return archives.write_npz(
        {
            "acc": np.concatenate(acc),
            "gyro": np.concatenate(gyro),
            "acc_scale": np.array(ACC_STEP_G),
            "gyro_scale": np.array(GYRO_STEP_RAD_S),
            "exp_start": start,
            "exp_user": np.array([found["acc", exp][0] for exp in range(1, num + 1)], np.int16),
            "segments": segments,
            **_cut(segments, start),
            "label_names": np.array(["", *LABELS]),
            "fs": np.array(50.0),
        }
    )


def _cut(segments: npt.NDArray[np.int32], exp_start: npt.NDArray[np.int64]) -> archives.Arrays:
    """Gives the official windows: 128 samples every 64, whole inside each labelled segment."""
    rows = [
        (exp_start[exp - 1] + first - 1 + offset, label, user)
        for exp, user, label, first, last in segments.tolist()
        for offset in range(0, last - first + 2 - WINDOW, STEP)
    ]
    start, label, user = (np.array([row[i] for row in rows]) for i in range(3))
    return {
        "win_start": start.astype(np.int32),
        "win_label": label.astype(np.int8),
        "win_subject": user.astype(np.int8),
        "win_is_train": np.isin(user, TRAIN_SUBJECTS),
    }


def _windows(arrays: archives.Arrays, start: npt.NDArray[np.int32]) -> Floats:
    scale = [arrays["acc_scale"]] * 3 + [arrays["gyro_scale"]] * 3
    signal_CS = np.concatenate([arrays["acc"], arrays["gyro"]], axis=1).T.astype(np.float64)
    signal_CS = (signal_CS * np.array(scale)[:, None] - np.array(CENTRE)[:, None]) / np.array(SPREAD)[:, None]
    place_NT = start[:, None] + np.arange(WINDOW)
    x_NCT = np.empty((len(start), len(signal_CS), WINDOW), np.float32)
    for channel, samples in enumerate(signal_CS.astype(np.float32)):
        x_NCT[:, channel] = samples[place_NT]
    return x_NCT


def _grid(text: bytes, step: float, what: str) -> npt.NDArray[np.int16]:
    return np.clip(np.rint(_table(text, 3, what) / step), -32768, 32767).astype(np.int16)


def _table(text: bytes, width: int, what: str) -> npt.NDArray[np.float64]:
    try:
        flat = np.array(text.split(), np.float64)
        return flat.reshape(-1, width)
    except ValueError as error:
        raise DataError(f"{what} in the HAPT archive isn't {width} columns of numbers; fetch it again") from error
