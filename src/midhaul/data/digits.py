"""Handwritten digits of 8x8 pixels, which come with scikit-learn: the smallest real set, no file to fetch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from midhaul.data.dataset import Dataset
from midhaul.data.sources import Description
from midhaul.errors import DependencyError

DESCRIPTION = Description(
    name="digits",
    what="1,797 handwritten digits, 8x8 pixels of 0..16 (the test part of the UCI optical digits)",
    shape="x [1797, 1, 8, 8] float32 in 0..1, 10 classes",
    key="",
    licence="CC BY 4.0",
    source="https://archive.ics.uci.edu/dataset/80",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, doi:10.24432/C50P49",
)


def load(folder: Path | None = None) -> Dataset:
    """Gives the digits that scikit-learn carries. Raises: DependencyError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        reason = "digits come with scikit-learn, which isn't installed: pip install scikit-learn"
        raise DependencyError(reason) from error
    x, y = load_digits(return_X_y=True)
    num = len(y)
    return Dataset(
        name="digits",
        x=(np.asarray(x) / 16.0).astype(np.float32).reshape(num, 1, 8, 8),
        y=np.asarray(y).astype(np.int64),
        device=np.zeros(num, np.int64),
        device_names=("all",),
        held_out=np.zeros(num, np.bool_),
        class_names=tuple(str(digit) for digit in range(10)),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key="",
        num_read=num,
    )
