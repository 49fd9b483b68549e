"""A person's own data: `npz:PATH` and `csv:PATH`. Bad rows are set aside and named; what can't be right is refused.

Shape letters: N rows, F columns of features.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.data import archives
from midhaul.data.dataset import Bools, Dataset, Floats, Refused, number
from midhaul.errors import ConfigError, DataError, nearest

_YES, _NO = {"1", "true", "yes", "test"}, {"0", "false", "no", "train"}
OWN = "your own file"


@dataclass(frozen=True)
class _Rows:
    """What was read of a file, before bad rows are set aside."""

    name: str
    x: npt.NDArray[Any]
    y: list[str]
    device: list[str] | None
    held_out: Bools
    lines: list[int]
    refused: list[Refused]
    num_read: int
    vocabulary: int = 0


def load_npz(
    path: Path,
    *,
    classes: str = "",
    num_classes: int = 0,
    vocabulary: int = 0,
    max_bytes: int = archives.MAX_BYTES,
) -> Dataset:
    """Gives the data of an npz file with keys x [N, ...], y [N], and, if there, device [N] and held_out [N].

    `classes` (names with commas between) or `num_classes` (labels 0..n-1) say which labels are known; rows with another
    are set aside. Without them the classes are the labels that occur, sorted. `vocabulary` above 0 says that x holds
    tokens below it.
    Raises: DataError if a key is missing, an array holds pickles, shapes disagree, or no sound row is left.
    """
    _there(path)
    arrays = archives.read_npz(path, str(path), max_bytes)
    return _of_arrays(arrays, f"npz:{path.name}", str(path), classes, num_classes, vocabulary)


def from_arrays(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    device: npt.ArrayLike | None = None,
    held_out: npt.ArrayLike | None = None,
    *,
    name: str = "arrays",
    classes: str = "",
    num_classes: int = 0,
    vocabulary: int = 0,
) -> Dataset:
    """Gives a data set of a person's own arrays: x [N, ...], y [N], and, if there are any, device [N], held_out [N].

    Labels and devices may be text or whole numbers; the options are those of `npz:`.
    Raises: DataError as `npz:` does.

    >>> mine = from_arrays([[0.5, 1.0], [2.0, 0.1]], ["off", "on"], ["attic", "cellar"])
    >>> mine.class_names, mine.device_names
    (('off', 'on'), ('attic', 'cellar'))
    """
    given = {"x": x, "y": y, "device": device, "held_out": held_out}
    arrays = {key: np.asarray(value) for key, value in given.items() if value is not None}
    return _of_arrays(arrays, name, name, classes, num_classes, vocabulary)


def _of_arrays(
    arrays: dict[str, npt.NDArray[Any]], name: str, path: str, classes: str, num_classes: int, vocabulary: int
) -> Dataset:
    for wanted in ("x", "y"):
        if wanted not in arrays:
            raise DataError(
                f"{path} has no array {wanted}{nearest(wanted, arrays) if arrays else ''}; save x and y in it"
            )
    if odd := arrays.keys() - {"x", "y", "device", "held_out"}:
        raise DataError(f"{path}: array {min(odd)} isn't read; the keys are x, y, device and held_out")
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or x.dtype.kind not in "fiub" or 0 in x.shape:
        raise DataError(
            f"{path}: x is {x.dtype} {x.shape}; it must be numbers [N, ...], at least one row of one number"
        )
    for other in ("y", "device", "held_out"):
        if other in arrays and arrays[other].shape != (len(x),):
            raise DataError(f"{path}: {other} has shape {arrays[other].shape}, but x has {len(x)} rows")
    held_out = arrays.get("held_out", np.zeros(len(x), np.bool_))
    if not np.isin(held_out, (0, 1)).all():
        raise DataError(f"{path}: held_out must hold only False and True")
    device = [str(value) for value in arrays["device"].tolist()] if "device" in arrays else None
    if vocabulary and x.dtype.kind == "f":
        raise DataError(f"{path}: x is {x.dtype}, but tokens are whole numbers; save them as integers")
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and its row is set aside
        x = x.astype(np.int64 if vocabulary else np.float32)
    rows = _Rows(
        name,
        x,
        [_label(value) for value in y.tolist()],
        device,
        held_out.astype(np.bool_),
        list(range(1, len(x) + 1)),
        [],
        len(x),
        vocabulary,
    )
    return _build(rows, path, classes, num_classes)


def load_csv(
    path: Path,
    *,
    label: str = "label",
    device: str = "device",
    held_out: str = "held_out",
    classes: str = "",
    num_classes: int = 0,
    max_bytes: int = archives.MAX_BYTES,
) -> Dataset:
    """Gives the data of a csv file with a header: every column but `label`, `device` and `held_out` is a feature.

    The columns "device" and "held_out" may be missing; a name that you chose may not.
    Raises: DataError if the label column is missing, a name stands twice, a column holds no number in any row, the file
    is empty or above `max_bytes`, or no sound row is left.
    """
    _there(path)
    if (size := path.stat().st_size) > max_bytes:
        raise DataError(f"{path} has {size} bytes, more than the {max_bytes} allowed; set max_bytes to read it")
    lines = _csv_lines(path)
    header = [cell.strip() for cell in next(lines, (0, []))[1]]
    roles = _roles(path, header, label, device, held_out)
    features = [place for place in range(len(header)) if place not in roles.values()]
    if not features:
        raise DataError(f"{path} has no feature column beside {', '.join(header)}")
    seen = np.zeros(len(features), np.bool_)
    kept: list[tuple[int, list[str]]] = []
    values: list[Floats] = []
    refused: list[Refused] = []
    for line, cells in lines:
        row, reason = _csv_row(cells, header, features, seen)
        if not reason and "held_out" in roles and _cell(cells, roles, "held_out").lower() not in _YES | _NO:
            reason = f"held_out is {_cell(cells, roles, 'held_out')[:20]!r}, not 0 or 1"
        if reason:
            refused.append(Refused(line, reason))
        else:
            kept.append((line, cells))
            values.append(row)
    if not kept and not refused:
        raise DataError(f"{path} holds no row below its header")
    if not seen.all():
        name = header[features[int(np.argmin(seen))]]
        raise DataError(f"{path}: column {name} holds no number in any row; drop it or encode it")
    rows = _Rows(
        f"csv:{path.name}",
        np.stack(values) if values else np.empty((0, len(features)), np.float32),
        [_label(_cell(cells, roles, "label")) for _, cells in kept],
        [_cell(cells, roles, "device") for _, cells in kept] if "device" in roles else None,
        np.array([_cell(cells, roles, "held_out").lower() in _YES for _, cells in kept], np.bool_),
        [line for line, _ in kept],
        refused,
        len(kept) + len(refused),
    )
    return _build(rows, path, classes, num_classes)


def _build(rows: _Rows, path: Path | str, classes: str, num_classes: int) -> Dataset:
    if not classes:
        _in_range(rows, path, num_classes)
    class_names = _known(rows.y, classes, num_classes)
    number_of = {name: place for place, name in enumerate(class_names)}
    finite = np.isfinite(rows.x).reshape(len(rows.x), math.prod(rows.x.shape[1:]))
    if len(finite) and not rows.vocabulary and not finite.any(axis=0).all():
        column = np.unravel_index(int(np.argmin(finite.any(axis=0))), rows.x.shape[1:])
        raise DataError(f"{path}: x{[int(i) for i in column]} is not a number in any row; drop or mend that column")
    sound = np.zeros(len(rows.y), np.bool_)
    whole = finite.all(axis=1)
    for place, label in enumerate(rows.y):
        reason = _label_fault(label, number_of)
        if not reason and not whole[place]:
            reason = "x holds a number that is not finite"
        if not reason and rows.device is not None and not rows.device[place]:
            reason = "the device is empty"
        if not reason and rows.vocabulary and not _tokens_sound(rows.x[place], rows.vocabulary):
            reason = f"a token lies outside 0..{rows.vocabulary - 1}"
        sound[place] = not reason
        if reason:
            rows.refused.append(Refused(rows.lines[place], reason))
    refused = tuple(sorted(rows.refused, key=lambda bad: bad.line))
    if not sound.any():
        first = refused[0]
        raise DataError(
            f"{path}: none of its {rows.num_read} rows is sound; the first, {first.line}, because {first.reason}"
        )
    kept = np.flatnonzero(sound)
    device: npt.NDArray[np.int64] = np.zeros(len(kept), np.int64)
    names: tuple[str, ...] = ("all",)
    if rows.device is not None:
        device, names = _number_devices([rows.device[i] for i in kept])
        _no_device_empty(rows, path, names)
    return Dataset(
        name=rows.name,
        x=rows.x[kept],
        y=np.array([number_of[rows.y[i]] for i in kept], np.int64),
        device=device,
        device_names=names,
        held_out=rows.held_out[kept],
        class_names=class_names,
        licence=OWN,
        source=str(path),
        citation=OWN,
        key="" if rows.device is None else "device",
        num_read=rows.num_read,
        refused=refused,
        vocabulary=rows.vocabulary,
    )


def _known(labels: list[str], classes: str, num_classes: int) -> tuple[str, ...]:
    """Gives the class names in order: those that were asked for, or the distinct sound labels."""
    if classes and num_classes:
        raise ConfigError("set classes or num_classes, not both: either names the known labels")
    if classes:
        names = [name.strip() for name in classes.split(",")]
        if len(set(names)) != len(names) or "" in names:
            raise ConfigError(f"classes is {classes!r}; it must be different names with commas between")
        return tuple(names)
    if num_classes < 0:
        raise ConfigError(f"num_classes is {num_classes}; it must be 1 or more, or 0 to take the labels that occur")
    if num_classes:
        return tuple(str(label) for label in range(num_classes))
    distinct = {label for label in labels if not _label_fault(label, None)}
    return tuple(sorted(distinct, key=int) if all(map(_is_whole, distinct)) else sorted(distinct))


def _in_range(rows: _Rows, path: Path | str, num_classes: int) -> None:
    """Refuses a whole-number label that can't be one of the classes: it would make a class of noise.

    In range is 0..num_classes-1; where num_classes isn't given, never below 0, and where the labels count from 0 or 1,
    never behind a gap. Labels that don't count (2, 9, 10) are codes and taken as they are.
    Raises: DataError naming the label and its row.
    """
    whole = {int(label) for label in rows.y if _is_whole(label.removeprefix("-"))}
    low = 0 if 0 in whole or num_classes else 1
    run = next(number for number in range(low, low + len(whole) + 1) if number not in whole)
    high = num_classes - 1 if num_classes else run - 1
    counts = bool(num_classes) or run - low > 1
    odd = sorted(number for number in whole if number < 0 or (counts and not low <= number <= high))
    if odd:
        worst = odd[0] if odd[0] < 0 else odd[-1]
        place = next(i for i, label in enumerate(rows.y) if label == str(worst))
        known = f" {low}..{high}" if high > low else ""
        raise DataError(
            f"{path}: label {worst} of row {rows.lines[place]} is out of range{known}; mend it, set "
            "data.options.num_classes, or name the labels in data.options.classes"
        )


def _no_device_empty(rows: _Rows, path: Path | str, names: tuple[str, ...]) -> None:
    """Refuses data in which a device has rows but no sound one."""
    assert rows.device is not None
    if lost := sorted({name for name in rows.device if name} - set(names)):
        num = sum(name == lost[0] for name in rows.device)
        lines = [rows.lines[i] for i, name in enumerate(rows.device) if name == lost[0]]
        reason = next((bad.reason for bad in rows.refused if bad.line == lines[0]), "it was set aside")
        raise DataError(
            f"{path}: device {lost[0]!r} has no sound row left of {num} (row {lines[0]}: {reason}); "
            "mend its rows or take it out"
        )


def _label(value: object) -> str:
    """Gives a label as text: 3, 3.0 and " 3" are one label."""
    text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()
    try:
        real = float(text)
    except ValueError:
        return text
    return str(int(real)) if math.isfinite(real) and real == int(real) else text


def _label_fault(label: str, known: dict[str, int] | None) -> str:
    if not label:
        return "the label is empty"
    if known is not None and label in known:
        return ""
    try:
        real = float(label)
    except ValueError:
        real = 0.0
    if not math.isfinite(real):
        return f"label {label} is not a number"
    if real < 0:
        return f"label {label} is negative"
    return "" if known is None else f"label {label[:40]!r} is not a known class"


def _is_whole(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _tokens_sound(row: npt.NDArray[Any], vocabulary: int) -> bool:
    return bool(row.min() >= 0 and row.max() < vocabulary)


def _number_devices(values: list[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Gives device numbers in the order of whole numbers where all ids are, of text otherwise."""
    if not all(map(_is_whole, values)):
        return number(values)
    order = sorted(set(values), key=int)
    place_of = {name: place for place, name in enumerate(order)}
    return np.array([place_of[value] for value in values], np.int64), tuple(order)


def _cell(cells: Sequence[str], roles: dict[str, int], role: str) -> str:
    return cells[roles[role]].strip() if role in roles else ""


def _there(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a file that exists")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Gives (line number, cells) for each line that isn't blank."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        reader = csv.reader(stream)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; mend that line") from error


def _roles(path: Path, header: list[str], label: str, device: str, held_out: str) -> dict[str, int]:
    if not header:
        raise DataError(f"{path} has no header line")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path}: column {twice[0]!r} stands in the header twice; give each column one name")
    roles = {}
    for role, name, default in (
        ("label", label, ""),
        ("device", device, "device"),
        ("held_out", held_out, "held_out"),
    ):
        if name in header:
            roles[role] = header.index(name)
        elif name != default:
            raise DataError(f"{path} has no column {name!r} for the {role}{nearest(name, header)}")
    return roles


def _csv_row(cells: Sequence[str], header: list[str], features: list[int], seen: Bools) -> tuple[Floats, str]:
    """Gives the features of a line and, if it is bad, why; marks in `seen` the columns that held a number."""
    row = np.full(len(features), np.nan)
    if len(cells) != len(header):
        return row.astype(np.float32), f"it has {len(cells)} cells, but the header has {len(header)}"
    reason = ""
    for place, column in enumerate(features):
        try:
            row[place] = float(cells[column].replace("_", "?"))  # Python reads 1_0 as 10; a csv doesn't
        except ValueError:
            reason = reason or f"{header[column]} is {cells[column][:20]!r}, not a number"
    finite = np.abs(row) <= np.finfo(np.float32).max
    seen |= finite
    if not reason and not finite.all():
        column = features[int(np.argmin(finite))]
        reason = f"{header[column]} is {cells[column][:20]!r}, which is not finite"
    return (np.zeros(0, np.float32) if reason else row.astype(np.float32)), reason
