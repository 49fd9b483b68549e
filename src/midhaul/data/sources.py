"""Where data files come from, and proof that they are the right ones.

A file is looked for in the `folder` argument, then in the folder that MIDHAUL_DATA names, then in the cache; only then
are its official parts fetched, converted if they need to be, checked, and put in the cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from midhaul.data import archives
from midhaul.errors import DataError

TIMEOUT_S = 30.0
Convert = Callable[[Iterator[bytes]], bytes]


@dataclass(frozen=True)
class Part:
    """One thing to fetch from an official address: the name it is saved under by hand, and the most bytes it has."""

    name: str
    address: str
    max_bytes: int


@dataclass(frozen=True)
class File:
    """One file of a data set.

    `sha256` is of the file as it lies in a data folder. `content_sha256` is of what it holds: the unpacked bytes of a
    .gz, the arrays of an .npz, the members of a .zip; so a file that was packed anew, or converted from its official
    parts, is known to be the same. `also` lists other names and forms (packed or not) under which people have it.
    `fetch` says what the official parts are: "as it is" (the very file, give or take gzip), "converted" (this package
    turns them into the file) or "no converter".
    """

    name: str
    num_bytes: int
    sha256: str
    content_bytes: int
    content_sha256: str
    parts: tuple[Part, ...]
    fetch: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """What a data set is, whose it is and which files hold it."""

    name: str
    what: str
    shape: str
    key: str
    licence: str
    source: str
    citation: str
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Status:
    """How one file of a data set stands: "sound", "missing" or "damaged"; where it lies; and a sentence on it."""

    file: File
    state: str
    path: Path | None
    detail: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name


def cache_folder() -> Path:
    """Gives the folder where fetched files are kept: $XDG_CACHE_HOME/midhaul, else ~/.cache/midhaul."""
    above = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(above) if above else Path.home() / ".cache") / "midhaul"


def folders(folder: Path | None = None) -> tuple[Path, ...]:
    """Gives the folders to look in, in order. Raises: DataError if one that the user named isn't there."""
    named = [("the data folder", folder)] if folder is not None else []
    if from_env := os.environ.get("MIDHAUL_DATA", ""):
        named.append(("MIDHAUL_DATA", Path(from_env)))
    for what, path in named:
        if path is not None and not path.is_dir():
            raise DataError(f"{what} is {path}, but there is no such folder; make it or name another")
    return (*(path for _, path in named if path is not None), cache_folder())


def find(file: File, folder: Path | None = None) -> Path | None:
    """Gives the path of the file in the first folder that has it under any of its names, or None."""
    return _first([file.name, *file.also], folder)


def read(file: File, folder: Path | None = None, convert: Convert | None = None) -> bytes:
    """Gives the checked content of a file: unpacked if it is a .gz, as it lies otherwise.

    `convert` turns the official parts, which come one by one in their order, into the bytes of the file. A fetch that
    breaks off keeps the parts that it has, and goes on after them the next time.
    Raises: DataError if it is missing and can't be fetched, or if its SHA-256 isn't the published one.
    """
    if path := find(file, folder):
        data = _load(path, file)
        return verify(file, data, str(path))
    if file.fetch == "no converter":
        raise DataError(
            f"{file.name} is in none of {_said(folders(folder))}; put it there, because midhaul has no converter from "
            f"its official form at {file.parts[0].address}"
        )
    for part in file.parts:
        if _first([part.name], folder) is None:
            _fetch(part, file, folder)
    try:
        parts = (_load_part(part, folder) for part in file.parts)
        data = next(parts) if convert is None else convert(parts)
        content = verify(file, data, f"what was made of {file.parts[0].address}")
    except (LookupError, ValueError, TypeError, StopIteration) as error:
        raise DataError(
            f"what {file.parts[0].address} gave can't be turned into {file.name} ({error!r}); fetch it again"
        ) from error
    finally:  # parts serve once, and damaged ones must be fetched again
        for part in file.parts:
            (cache_folder() / part.name).unlink(missing_ok=True)
    store(cache_folder() / file.name, data)
    return content


def verify(file: File, data: bytes, what: str) -> bytes:
    """Gives the content of a file's bytes. Raises: DataError if neither they nor their content are the published."""
    packed = data[:2] == b"\x1f\x8b"
    content = archives.gunzip(data, what, file.content_bytes) if packed else data
    if not file.name.endswith(".gz") and _sha256(data) == file.sha256:
        return content
    if (found := content_sha256(file.name, content, what)) != file.content_sha256:
        raise DataError(
            f"{what} isn't the published {file.name}: its content has SHA-256 {found[:16]}..., not "
            f"{file.content_sha256[:16]}...; delete it and fetch it again"
        )
    return content


def content_sha256(name: str, content: bytes, what: str) -> str:
    """Gives the SHA-256 of what a file holds, whichever way it was packed."""
    if name.endswith(".npz"):
        return archives.arrays_sha256(archives.read_npz(content, what))
    if name.endswith(".zip"):
        return archives.members_sha256(archives.read_zip(content, what, lambda member: "__MACOSX" not in member))
    return _sha256(content)


def check(files: Iterable[File], folder: Path | None = None) -> tuple[Status, ...]:
    """Gives the standing of each file in the folders, without fetching anything."""
    return tuple(_status(file, folder) for file in files)


def store(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def download(address: str, max_bytes: int) -> bytes:
    """Gives what an address holds. Raises: OSError if it can't be had, DataError if it is above `max_bytes`."""
    request = urllib.request.Request(address, headers={"User-Agent": "midhaul"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        data: bytes = reply.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{address} gave more than {max_bytes} bytes; that is not the file it should be")
    return data


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Gives the bytes of a file. Raises: DataError if it is above `max_bytes` or can't be read."""
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise DataError(f"{path} has {size} bytes, more than the {max_bytes} that it should")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from error


def _load(path: Path, file: File) -> bytes:
    # A file packed anew may be a little larger than the one that was staged, never larger than twice its content.
    return read_bounded(path, 2 * max(file.num_bytes, file.content_bytes))


def _load_part(part: Part, folder: Path | None) -> bytes:
    path = _first([part.name], folder)
    if path is None:
        raise DataError(f"{part.name} was there and is gone; run the command again")
    return read_bounded(path, part.max_bytes)


def _fetch(part: Part, file: File, folder: Path | None) -> None:
    try:
        data = download(part.address, part.max_bytes)
    except OSError as error:
        raise DataError(
            f"{file.name} is in none of {_said(folders(folder))}, and {part.address} can't be fetched ({error}); "
            f"put {file.name} or {part.name} in one of them, or set MIDHAUL_DATA to the folder that has it"
        ) from error
    store(cache_folder() / part.name, data)


def _status(file: File, folder: Path | None) -> Status:
    path = find(file, folder)
    if path is None:
        where = f"not in {_said(folders(folder))}; official: {file.parts[0].address} ({file.fetch})"
        return Status(file, "missing", None, where)
    try:
        verify(file, _load(path, file), str(path))
    except DataError as error:
        return Status(file, "damaged", path, str(error))
    return Status(file, "sound", path, f"SHA-256 agrees with the published {file.content_sha256[:16]}...")


def _first(names: list[str], folder: Path | None) -> Path | None:
    for place in folders(folder):
        for name in names:
            if (place / name).is_file():
                return place / name
    return None


def _said(places: tuple[Path, ...]) -> str:
    return ", ".join(str(place) for place in places)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
