"""Reading archives that nobody has to trust: sizes are bounded before they are unpacked, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from midhaul.errors import DataError

MAX_BYTES = 2 * 1024**3  # of anything unpacked at once
_MAX_MEMBERS = 50_000
_MAX_HEADER_BYTES = 4096
Arrays = dict[str, npt.NDArray[Any]]


def gunzip(data: bytes, what: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Gives the unpacked bytes of a gzip stream. Raises: DataError if damaged, cut short or above `max_bytes`."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise DataError(f"{what} is not a sound gzip file ({error}); fetch it again") from error
    if len(out) > max_bytes:
        raise DataError(f"{what} unpacks to more than {max_bytes} bytes; that is not the file it should be")
    if not unpacker.eof:
        raise DataError(f"{what} is cut short; fetch it again")
    return out


def read_zip(
    file: bytes | Path, what: str, wanted: Callable[[str], bool], max_bytes: int = MAX_BYTES
) -> dict[str, bytes]:
    """Gives the wanted members of a zip archive by name, in name order.

    Raises: DataError if damaged, encrypted, or if the wanted members say that they unpack to more than `max_bytes`.
    """
    with _open_zip(file, what) as archive:
        infos = sorted(
            (info for info in archive.infolist() if not info.is_dir() and wanted(info.filename)),
            key=lambda info: info.filename,
        )
        _bound(infos, what, max_bytes)
        return {info.filename: _read_member(archive, info, what) for info in infos}


def write_zip(members: Mapping[str, bytes]) -> bytes:
    """Gives a zip archive of the members, the same bytes each time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def read_npz(file: bytes | Path, what: str, max_bytes: int = MAX_BYTES) -> Arrays:
    """Gives the arrays of an npz file.

    Raises: DataError if damaged, above `max_bytes`, or if an array holds Python objects (pickles).
    """
    arrays: Arrays = {}
    with _open_zip(file, what) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        _bound(infos, what, max_bytes)
        for info in infos:
            name = info.filename.removesuffix(".npy")
            data = _read_member(archive, info, what)
            arrays[name] = parse_npy(data, f"{what}, array {name}")
    return arrays


def parse_npy(data: bytes, what: str) -> npt.NDArray[Any]:
    """Gives the array of npy bytes, whose header must agree with their number."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{what}: npy version {version} is not read here; save it with a plain dtype")
        shape, fortran, dtype = readers[version](stream, max_header_size=_MAX_HEADER_BYTES)
    except ValueError as error:
        raise DataError(f"{what}: the npy header is damaged ({error})") from error
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which only a pickle can carry; save numbers or strings")
    body = data[stream.tell() :]
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise DataError(f"{what}: the header says {dtype} {shape}, but {len(body)} bytes follow")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C") if body else np.zeros(shape, dtype)


def write_npz(arrays: Arrays) -> bytes:
    """Gives the bytes of a compressed npz file."""
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def arrays_sha256(arrays: Arrays) -> str:
    """Gives one SHA-256 over names, types, shapes and little-endian bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        value = value.astype(value.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {value.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def members_sha256(members: Mapping[str, bytes]) -> str:
    """Gives one SHA-256 over the names and bytes of an archive's members, in name order."""
    digest = hashlib.sha256()
    for name in sorted(members):
        digest.update(f"{name} {len(members[name])}\n".encode())
        digest.update(members[name])
    return digest.hexdigest()


def _open_zip(file: bytes | Path, what: str) -> zipfile.ZipFile:
    try:
        opened: IO[bytes] | Path = io.BytesIO(file) if isinstance(file, bytes) else file
        return zipfile.ZipFile(opened)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{what} is not a sound zip archive ({error}); fetch or save it again") from error


def _bound(infos: list[zipfile.ZipInfo], what: str, max_bytes: int) -> None:
    if len(infos) > _MAX_MEMBERS:
        raise DataError(f"{what} has {len(infos)} members, more than {_MAX_MEMBERS}")
    if (total := sum(info.file_size for info in infos)) > max_bytes:
        raise DataError(f"{what} says that it unpacks to {total} bytes, more than the {max_bytes} allowed")
    names = Counter(info.filename for info in infos)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{what} has two members named {twice[0]}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str) -> bytes:
    try:
        # A stream never gives more than the size that was bounded above, whatever the member says of itself.
        with archive.open(info) as stream:
            return stream.read()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{what}: member {info.filename} can't be read ({error})") from error
