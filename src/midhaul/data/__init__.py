"""Data sets with their natural devices: `load` one by name, `federate` it over devices, `check` the files.

There is one dict of data sets, below. A loader takes the data folder and its own options, by keyword.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from midhaul.data import (
    arrays,
    blobs,
    clinc150,
    digits,
    ecg,
    eeg,
    fsdd,
    har,
    images,
    irish5g,
    nslkdd,
    omniglot,
    shakespeare,
    sources,
    synthetic,
)
from midhaul.data.arrays import from_arrays
from midhaul.data.dataset import Dataset, Refused
from midhaul.data.episodes import episodes
from midhaul.data.partition import Federation, federate
from midhaul.data.sources import Description, File, Status
from midhaul.errors import ConfigError, DataError, nearest

__all__ = [
    "Dataset",
    "Description",
    "Federation",
    "File",
    "Refused",
    "Status",
    "check",
    "describe",
    "episodes",
    "federate",
    "from_arrays",
    "load",
    "names",
    "options",
]

Option = int | float | str | bool

_SETS: dict[str, tuple[Description, Callable[..., Dataset]]] = {
    "digits": (digits.DESCRIPTION, digits.load),
    "synthetic": (synthetic.DESCRIPTION, synthetic.load),
    "blobs": (blobs.DESCRIPTION, blobs.load),
    "har": (har.DESCRIPTION, har.load),
    "mnist": (images.MNIST, images.load_mnist),
    "fashion_mnist": (images.FASHION_MNIST, images.load_fashion_mnist),
    "fsdd": (fsdd.DESCRIPTION, fsdd.load),
    "nslkdd": (nslkdd.DESCRIPTION, nslkdd.load),
    "eeg": (eeg.DESCRIPTION, eeg.load),
    "ecg": (ecg.DESCRIPTION, ecg.load),
    "omniglot": (omniglot.DESCRIPTION, omniglot.load),
    "clinc150": (clinc150.DESCRIPTION, clinc150.load),
    "shakespeare": (shakespeare.DESCRIPTION, shakespeare.load),
    "irish5g": (irish5g.DESCRIPTION, irish5g.load),
}
_SORTS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_OWN: dict[str, Callable[..., Dataset]] = {"npz": arrays.load_npz, "csv": arrays.load_csv}


def names() -> tuple[str, ...]:
    """Gives the names of the data sets."""
    return tuple(_SETS)


def describe(name: str) -> Description:
    """Gives what a data set is, its licence, address and files. Raises: DataError for an unknown name."""
    return _find(name)[0]


def options(name: str) -> dict[str, Option]:
    """Gives the options of a data set (or of `npz:PATH`, `csv:PATH`) with their defaults."""
    kind, _, path = name.partition(":")
    loader = _OWN[kind] if path and kind in _OWN else _find(name)[1]
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(loader).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def load(name: str, folder: Path | None = None, **chosen: Option) -> Dataset:
    """Gives a data set by name, or a person's own as `npz:PATH` or `csv:PATH`.

    Raises: DataError for an unknown name or bad data, ConfigError for an option that it doesn't have.
    """
    _fitting(name, options(name), chosen)
    kind, _, path = name.partition(":")
    if path and kind in _OWN:
        return _OWN[kind](Path(path), **chosen)
    return _find(name)[1](folder, **chosen)


def check(name: str, folder: Path | None = None) -> tuple[Status, ...]:
    """Gives how each file of a data set stands: sound, missing or damaged. Fetches nothing."""
    return sources.check(describe(name).files, folder)


def _find(name: str) -> tuple[Description, Callable[..., Dataset]]:
    if name not in _SETS:
        raise DataError(f"there is no data set {name!r}{nearest(name, [*_SETS, 'npz:PATH', 'csv:PATH'])}")
    return _SETS[name]


def _fitting(name: str, known: dict[str, Option], chosen: dict[str, Option]) -> None:
    for option, value in chosen.items():
        if option not in known:
            hint = nearest(option, known) if known else "; it has none"
            raise ConfigError(f"{name} has no option {option!r}{hint}")
        default = known[option]
        fits = isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))
        if not fits or (isinstance(value, bool) and not isinstance(default, bool)):
            raise ConfigError(f"{name}: option {option} is {value!r}; it must be {_SORTS[type(default)]}")
