"""EEG of 60 people who imagine closing the left or the right fist.

Shape letters: N trials, C channels (9), T samples (640).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from midhaul.data import archives, edf, sources
from midhaul.data.dataset import Dataset, number
from midhaul.data.sources import Description, File, Part

SCALE_UV = 60.0  # the standard deviation over all subjects, rounded: a fixed gain, no statistics of a trial
RUNS = (4, 8, 12)
SUBJECTS = range(1, 61)
FILE = File(
    name="eeg_physionet_mi_lr_s001-060.npz",
    num_bytes=17_019_921,
    sha256="e7e843b47e6354af93fe16fbbad782e9a4cc6129c8352f5325927d48c1f62146",
    content_bytes=32_000_000,
    content_sha256="7c25d61d94b8eda48da966b03ce52b262a15ac12309e85e915da096131e42cd2",
    parts=tuple(
        Part(
            f"S{subject:03d}R{run:02d}.edf",
            f"https://physionet.org/files/eegmmidb/1.0.0/S{subject:03d}/S{subject:03d}R{run:02d}.edf",
            4_000_000,
        )
        for subject in SUBJECTS
        for run in RUNS
    ),
    fetch="converted",
)
DESCRIPTION = Description(
    name="eeg",
    what="imagined left against right fist, 4 s from the cue at 160 Hz, 9 electrodes over the motor cortex, unfiltered",
    shape="x [2700, 9, 640] float32, 2 classes",
    key="subject",
    licence="ODC-BY 1.0",
    source="https://physionet.org/content/eegmmidb/1.0.0/",
    citation="Schalk, McFarland, Hinterberger, Birbaumer, Wolpaw, BCI2000, IEEE Trans. Biomed. Eng. 51, 2004, "
    "doi:10.13026/C28G6P",
    files=(FILE,),
)


def load(folder: Path | None = None) -> Dataset:
    """Gives the trials by subject, nothing held out.

    Shapes: x [N, 9, 640], microvolts over 60, channels FC3 FCz FC4 C3 Cz C4 CP3 CPz CP4.
    Limits: unfiltered, so slow drifts of the electrodes are in it.
    """
    return build(archives.read_npz(sources.read(FILE, folder, edf.convert), FILE.name))


def build(arrays: archives.Arrays) -> Dataset:
    """Gives the data set from the arrays of the file."""
    device, names = number(arrays["subject"])
    return Dataset(
        name="eeg",
        x=arrays["X"].astype(np.float32) / np.float32(SCALE_UV),
        y=arrays["y"].astype(np.int64),
        device=device,
        device_names=tuple(f"subject {name}" for name in names),
        held_out=np.zeros(len(device), np.bool_),
        class_names=tuple(str(name) for name in arrays["class_names"].tolist()),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=len(device),
    )
