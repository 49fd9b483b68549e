"""Shakespeare by speaking role: the next character after 80.

Shape letters: N windows, L characters (80).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from midhaul.data import sources
from midhaul.data.dataset import Dataset, Ints, Refused
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError

LENGTH = 80
ALPHABET = "\t\n !$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
TEST_SHARE = 0.2
FILE = File(
    name="text_shakespeare_roles.jsonl.gz",
    num_bytes=1_862_986,
    sha256="792b777dea14ba6495e6859db977c0f1980016752dcf28bcf2abd916b92f2513",
    content_bytes=4_856_072,
    content_sha256="28272d02ea063414d8b67e814e085631d3b90ed8eb8faf6c207053520614ab74",
    parts=(Part("text_shakespeare_roles.jsonl.gz", "http://shakespeare.mit.edu/", 0),),
    fetch="no converter",
    also=("text_shakespeare_roles.jsonl",),
)
DESCRIPTION = Description(
    name="shakespeare",
    what="the next character after 80 of a role's lines, over all roles of the 37 plays that speak long enough",
    shape="x [N, 80] int64 characters, 77 classes; up to max_rows windows a role",
    key="role",
    licence="public domain",
    source="http://shakespeare.mit.edu/",
    citation="the task: McMahan et al., AISTATS 2017; Caldas et al., LEAF, 2018 (whose cut of the plays differs)",
    files=(FILE,),
)


def load(folder: Path | None = None, *, max_rows: int = 200) -> Dataset:
    """Gives windows of 80 characters and the next one; a device is a role of a play.

    `max_rows` windows are taken evenly from each role's text, all of them if it is 0 (4 million rows, 3 GB). Held out:
    the last fifth of each role's windows in the order of the text, as in LEAF. Roles too short for two windows are set
    aside.
    """
    if max_rows < 0 or max_rows == 1:
        raise ConfigError(f"shakespeare: max_rows is {max_rows}; it must be 2 or more, or 0 for all windows")
    return build(sources.read(FILE, folder), max_rows)


def build(text: bytes, max_rows: int = 200) -> Dataset:
    """Gives the data set from lines of JSON: {play, role, speeches: [[act.scene, text], ...]}."""
    parts: list[tuple[Ints, Ints]] = []
    names: list[str] = []
    refused: list[Refused] = []
    for line, role in enumerate(map(json.loads, text.decode().splitlines()), 1):
        spoken = encode("\n".join(speech for _, speech in role["speeches"]), line)
        if len(spoken) < LENGTH + 2:
            refused.append(Refused(line, f"{role['role']} speaks {len(spoken)} characters, under {LENGTH + 2}"))
            continue
        parts.append(_windows(spoken, max_rows))
        names.append(f"{role['play']} / {role['role']}")
    counts = [len(y) for _, y in parts]
    if not parts:
        raise DataError("shakespeare: no role speaks long enough for two windows; is that the file?")
    return Dataset(
        name="shakespeare",
        x=np.concatenate([x for x, _ in parts]),
        y=np.concatenate([y for _, y in parts]),
        device=np.repeat(np.arange(len(parts), dtype=np.int64), counts),
        device_names=tuple(names),
        held_out=np.concatenate([np.arange(count) >= count - max(1, round(TEST_SHARE * count)) for count in counts]),
        class_names=tuple(ALPHABET),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=sum(counts) + len(refused),
        refused=tuple(refused),
        vocabulary=len(ALPHABET),
    )


def encode(text: str, line: int = 0) -> Ints:
    """Gives the place of each character in `ALPHABET`. Raises: DataError for a character outside it."""
    if odd := set(text) - set(ALPHABET):
        raise DataError(f"shakespeare, line {line}: character {min(odd)!r} is not in the alphabet of the plays")
    return np.array([ALPHABET.index(character) for character in text], np.int64)


def _windows(spoken: Ints, max_rows: int) -> tuple[Ints, Ints]:
    num_all = len(spoken) - LENGTH
    num = min(num_all, max_rows) if max_rows else num_all
    start = np.arange(num) * num_all // num
    x_NL: npt.NDArray[np.int64] = np.lib.stride_tricks.sliding_window_view(spoken, LENGTH)[start]
    return x_NL, spoken[start + LENGTH]
