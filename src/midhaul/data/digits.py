"""Handwritten digits of 8x8 pixels, which come with scikit-learn: the smallest real set, no file to fetch."""

from __future__ import annotations

from importlib.util import find_spec
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
    """Gives the digits that scikit-learn carries, read from its file, as importing it takes a second.

    Raises: DependencyError without scikit-learn.
    """
    found = find_spec("sklearn")
    places = list(found.submodule_search_locations or ()) if found else []
    path = Path(places[0]) / "datasets" / "data" / "digits.csv.gz" if places else Path()
    if not path.is_file():
        raise DependencyError("digits come with scikit-learn, which isn't installed: pip install scikit-learn==1.9.1")
    table = np.loadtxt(path, delimiter=",")
    x, y = table[:, :-1], table[:, -1]
    num = len(y)
    return Dataset(
        name="digits",
        x=(x / 16.0).astype(np.float32).reshape(num, 1, 8, 8),
        y=y.astype(np.int64),
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
