"""Omniglot: 1,623 characters of 50 alphabets, each drawn once by 20 people; for learning to learn.

Shape letters: N drawings, H rows and W columns of a picture.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.data import archives, sources
from midhaul.data.dataset import Dataset
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError

SIDE, SMALL = 105, 28
TRAINING_CLASSES = 1200
_OFFICIAL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
FILE = File(
    name="img_omniglot_28x28.npz",
    num_bytes=3_013_509,
    sha256="77ee387b1ad4d9412128f2edeac12239e5550cb6fe629df401fd890b4331fd8d",
    content_bytes=26_000_000,
    content_sha256="3465d44a6ba4d2788767e9945ab3df53df2e6243c4a6bbbf9d23e7b83c26352a",
    parts=tuple(
        Part(f"images_{half}.zip", f"{_OFFICIAL}images_{half}.zip", 20_000_000) for half in ("background", "evaluation")
    ),
    fetch="converted",
)
DESCRIPTION = Description(
    name="omniglot",
    what="1,623 handwritten characters of 50 alphabets, 20 drawers each, ink in 0..1",
    shape="x [32460, 1, 28, 28] float32, 1623 classes",
    key="drawer",
    licence="MIT (Brenden Lake)",
    source="https://github.com/brendenlake/omniglot",
    citation="Lake, Salakhutdinov, Tenenbaum, Human-level concept learning through probabilistic program induction, "
    "Science 350, 2015",
    files=(FILE,),
)


def load(
    folder: Path | None = None, *, device: str = "drawer", split: str = "alphabets", rotated: bool = False
) -> Dataset:
    """Gives the drawings.

    `device`: "drawer", the 20 places of a drawer in each character, or "alphabet". `split`: what is held out:
    "alphabets", the 20 evaluation alphabets, or "characters", all but 1,200 that are drawn once and for all. With
    `rotated`, each class to train on is there four times, turned by quarters of a circle: three more classes.
    Limits: drawer k of one alphabet need not be drawer k of another: the publisher numbers them by alphabet.
    Raises: ConfigError for another device or split.
    Source: split, rotated: Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "Meta-learning with memory-augmented
    neural networks", ICML 2016, section 4; Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016,
    section 4.1.1.
    """
    if split not in ("alphabets", "characters"):
        raise ConfigError(f"omniglot: split is {split!r}; it must be 'alphabets' or 'characters'")
    if device not in ("drawer", "alphabet"):
        raise ConfigError(f"omniglot: device is {device!r}; it must be 'drawer' or 'alphabet'")
    data = build(archives.read_npz(sources.read(FILE, folder, convert), FILE.name), device)
    if split == "characters":
        chosen = rng.permutation(rng.key(0, 0, rng.SERVER, rng.Use.SPLIT), data.num_classes)[:TRAINING_CLASSES]
        data = replace(data, held_out=~np.isin(data.y, chosen))
    return turned(data) if rotated else data


def build(arrays: archives.Arrays, device: str = "drawer") -> Dataset:
    """Gives the data set from the arrays of the file."""
    alphabets = tuple(str(name) for name in arrays["alphabet_names"].tolist())
    class_names = [""] * int(arrays["class_id"].max())
    rows = zip(arrays["class_id"].tolist(), arrays["alphabet"].tolist(), arrays["character"].tolist(), strict=True)
    for class_id, alphabet, character in rows:
        class_names[class_id - 1] = f"{alphabets[alphabet]} {character}"
    by_drawer = device == "drawer"
    return Dataset(
        name="omniglot",
        x=arrays["X"][:, None].astype(np.float32) / np.float32(255.0),
        y=arrays["class_id"].astype(np.int64) - 1,
        device=arrays["drawer"].astype(np.int64) - 1 if by_drawer else arrays["alphabet"].astype(np.int64),
        device_names=tuple(f"drawer {k}" for k in range(1, 21)) if by_drawer else alphabets,
        held_out=~arrays["background"],
        class_names=tuple(class_names),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=device,
        num_read=len(arrays["X"]),
    )


def turned(data: Dataset) -> Dataset:
    """Gives the data with the rows to train on three times more, turned by one, two and three quarters of a circle."""
    rows, num = np.flatnonzero(~data.held_out), len(data.class_names)
    x, y, names = [data.x], [data.y], list(data.class_names)
    for quarters in (1, 2, 3):
        x.append(np.ascontiguousarray(np.rot90(data.x[rows], quarters, axes=(2, 3))))
        y.append(data.y[rows] + quarters * num)
        names += [f"{name} turned by {90 * quarters} degrees" for name in data.class_names]
    return replace(
        data,
        x=np.concatenate(x),
        y=np.concatenate(y),
        device=np.concatenate([data.device, *[data.device[rows]] * 3]),
        held_out=np.concatenate([data.held_out, np.zeros(3 * len(rows), np.bool_)]),
        class_names=tuple(names),
        num_read=len(data) + 3 * len(rows),
    )


def convert(parts: Iterator[bytes]) -> bytes:
    """Gives the npz file from the two official archives: ink instead of paper, 105x105 averaged to 28x28.

    Raises: DataError if a picture is damaged or named otherwise.
    """
    halves = [archives.read_zip(part, "images of Omniglot", lambda name: name.endswith(".png")) for part in parts]
    rows = [_row(name, half == 0, data) for half, members in enumerate(halves) for name, data in members.items()]
    names = sorted({row[0] for row in rows if row[1]}) + sorted({row[0] for row in rows if not row[1]})
    rows.sort(key=lambda row: (names.index(row[0]), *row[2:5]))
    alphabet, background, character, class_id, drawer, picture = zip(*rows, strict=True)
    return archives.write_npz(
        {
            "X": np.stack([shrink(read_png(data)) for data in picture]),
            "alphabet": np.array([names.index(name) for name in alphabet], np.uint8),
            "character": np.array(character, np.uint8),
            "class_id": np.array(class_id, np.int16),
            "drawer": np.array(drawer, np.uint8),
            "background": np.array(background),
            "alphabet_names": np.array(names),
        }
    )


def read_png(data: bytes) -> npt.NDArray[np.uint8]:
    """Gives a 105x105 one-bit grey PNG as 0 (black) and 1. Raises: DataError for another picture. Shapes: [H, W].

    Source: W3C, Portable Network Graphics, 2003, clauses 5, 9 and 11.
    """
    packed, at = b"", 8
    head = SIDE.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # depth 1, grey, deflate, adaptive, not interlaced
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, at = data[at + 8 : at + 8 + size], at + 12 + size
        if kind == b"IHDR" and body != head:
            raise DataError("a picture of Omniglot isn't a one-bit grey PNG of 105x105; fetch it again")
        packed += body if kind == b"IDAT" else b""
    width = (SIDE + 7) // 8
    try:
        raw = zlib.decompressobj().decompress(packed, SIDE * (width + 1) + 1)
    except zlib.error as error:
        raise DataError(f"a picture of Omniglot is damaged ({error}); fetch it again") from error
    if len(raw) != SIDE * (width + 1):
        raise DataError("a picture of Omniglot is cut short; fetch it again")
    lines = np.frombuffer(raw, np.uint8).reshape(SIDE, width + 1)
    if lines[:, 0].any():
        raise DataError("a picture of Omniglot uses PNG filters, which the published ones don't; fetch it again")
    return np.unpackbits(lines[:, 1:], axis=1)[:, :SIDE]


def shrink(picture_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Gives 28x28 ink of 0..255: each number is the mean of the 3 or 4 columns, then rows, whose middle it covers."""
    scale = SIDE / SMALL
    middle = (np.arange(SIDE) + 0.5) / scale
    covers = (middle > np.arange(SMALL)[:, None]) & (middle <= np.arange(SMALL)[:, None] + 1)
    weight = covers / covers.sum(axis=1, keepdims=True)
    ink = 255.0 * (1.0 - picture_HW)
    columns = np.floor(ink @ weight.T + 0.5)
    small: npt.NDArray[np.uint8] = np.floor(weight @ columns + 0.5).astype(np.uint8)
    return small


def _row(name: str, background: bool, data: bytes) -> tuple[str, bool, int, int, int, bytes]:
    match = re.search(r"([^/]+)/character(\d+)/(\d+)_(\d+)\.png$", name)
    if match is None:
        raise DataError(f"{name} in the archive of Omniglot isn't named alphabet/character/class_drawer.png")
    return match[1], background, int(match[2]), int(match[3]), int(match[4]), data
