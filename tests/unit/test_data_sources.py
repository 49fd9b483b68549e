"""Where files come from: the order of folders, the checks, the cache, and what is said offline."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from midhaul.data import archives, check, describe, load, names, options, sources
from midhaul.data.sources import File, Part
from midhaul.errors import ConfigError, DataError

TEXT = b"forty-two\n" * 10


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make(fetch: str = "as it is", name: str = "toy.txt.gz", content: bytes = TEXT) -> File:
    packed = gzip.compress(content, mtime=0)
    part = Part("toy-official.gz", "http://example.org/toy.gz", 10_000)
    return File(name, len(packed), sha(packed), len(content), sha(content), (part,), fetch, ("other/toy.txt",))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No test here sees the person's own folders, nor the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MIDHAUL_DATA", raising=False)

    def offline(address: str, max_bytes: int) -> bytes:
        raise OSError("no route to host")

    monkeypatch.setattr(sources, "download", offline)


def place(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_folder_argument_comes_first_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, packed = make(), gzip.compress(TEXT)
    cached = place(tmp_path / "cache" / "midhaul", file.name, packed)
    assert sources.find(file) == cached
    named = place(tmp_path / "env", file.name, packed)
    monkeypatch.setenv("MIDHAUL_DATA", str(tmp_path / "env"))
    assert sources.find(file) == named
    given = place(tmp_path / "arg", file.name, packed)
    assert sources.find(file, tmp_path / "arg") == given


def test_a_file_is_known_by_its_content_however_packed(tmp_path: Path):
    file = make()
    place(tmp_path, file.name, gzip.compress(TEXT, 1, mtime=5))
    assert sources.read(file, tmp_path) == TEXT
    (tmp_path / file.name).unlink()
    place(tmp_path, "other/toy.txt", TEXT)
    assert sources.read(file, tmp_path) == TEXT


def test_a_changed_file_is_refused(tmp_path: Path):
    place(tmp_path, "toy.txt.gz", gzip.compress(TEXT.replace(b"two", b"too")))
    with pytest.raises(DataError, match=r"isn't the published toy\.txt\.gz: .* delete it and fetch it again"):
        sources.read(make(), tmp_path)


def test_damaged_cut_and_bombed_gzip_files_are_refused(tmp_path: Path):
    packed = gzip.compress(TEXT)
    path = place(tmp_path, "toy.txt.gz", packed[:-9])
    with pytest.raises(DataError, match="is cut short"):
        sources.read(make(), tmp_path)
    path.write_bytes(packed[:10] + b"\xff" * 20)
    with pytest.raises(DataError, match="not a sound gzip"):
        sources.read(make(), tmp_path)
    path.write_bytes(gzip.compress(b"\0" * 100_000))
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        sources.read(make(), tmp_path)
    path.write_bytes(b"\0" * 500)
    with pytest.raises(DataError, match="500 bytes, more than"):
        sources.read(make(), tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="no such folder"):
        sources.read(make(), tmp_path / "none")
    monkeypatch.setenv("MIDHAUL_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"MIDHAUL_DATA is .*none, but there is no such folder"):
        load("har")


def test_offline_the_error_names_file_folder_and_address(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        sources.read(make(), tmp_path)
    for word in ("toy.txt.gz", "toy-official.gz", str(tmp_path), "http://example.org/toy.gz", "MIDHAUL_DATA"):
        assert word in str(caught.value)


def test_without_a_converter_the_error_says_so(tmp_path: Path):
    with pytest.raises(DataError, match=r"no converter from its official form at http://example\.org"):
        sources.read(make(fetch="no converter"), tmp_path)


def test_a_fetched_file_is_checked_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def serve(address: str, max_bytes: int) -> bytes:
        calls.append(address)
        return gzip.compress(TEXT)

    monkeypatch.setattr(sources, "download", serve)
    assert sources.read(make()) == TEXT
    assert sources.read(make()) == TEXT
    assert calls == ["http://example.org/toy.gz"]
    assert [path.name for path in (tmp_path / "cache" / "midhaul").iterdir()] == ["toy.txt.gz"]


def test_a_wrong_fetch_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "download", lambda address, max_bytes: b"<html>moved</html>")
    with pytest.raises(DataError, match="isn't the published"):
        sources.read(make())
    assert list((tmp_path / "cache" / "midhaul").iterdir()) == []


def test_parts_that_were_fetched_wait_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = tuple(Part(f"p{i}", f"http://example.org/p{i}", 100) for i in range(3))
    joined = b"0" * 3 + b"1" * 3 + b"2" * 3
    file = File("toy.bin", 9, sha(joined), 9, sha(joined), parts, "converted")
    down = {"http://example.org/p2"}
    calls = []

    def serve(address: str, max_bytes: int) -> bytes:
        calls.append(address)
        if address in down:
            raise OSError("time out")
        return address[-1].encode() * 3

    monkeypatch.setattr(sources, "download", serve)
    with pytest.raises(DataError, match="p2 can't be fetched"):
        sources.read(file, convert=b"".join)
    down.clear()
    assert sources.read(file, convert=b"".join) == joined
    assert [address[-2:] for address in calls] == ["p0", "p1", "p2", "p2"]
    assert [path.name for path in (tmp_path / "cache" / "midhaul").iterdir()] == ["toy.bin"]


def test_a_part_that_can_not_be_converted_is_one_sentence(tmp_path: Path):
    def convert(parts: Iterator[bytes]) -> bytes:
        return next(parts)[:0] + bytes([[][1]])

    place(tmp_path, "toy-official.gz", b"nonsense")
    with pytest.raises(DataError, match=r"can't be turned into toy\.txt\.gz"):
        sources.read(make(fetch="converted"), tmp_path, convert)


def test_an_official_part_in_the_folder_saves_the_fetch(tmp_path: Path):
    place(tmp_path, "toy-official.gz", gzip.compress(TEXT))
    assert sources.read(make(), tmp_path) == TEXT


def test_check_tells_sound_missing_and_damaged_apart(tmp_path: Path):
    file = make()
    assert [status.state for status in sources.check([file], tmp_path)] == ["missing"]
    path = place(tmp_path, file.name, gzip.compress(TEXT))
    (sound,) = sources.check([file], tmp_path)
    assert (sound.state, sound.path, sound.name) == ("sound", path, "toy.txt.gz")
    path.write_bytes(b"x")
    (damaged,) = sources.check([file], tmp_path)
    assert damaged.state == "damaged"
    assert "isn't the published" in damaged.detail


def test_store_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "deep" / "file"
    sources.store(target, b"old")

    def broken(source: str, to: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        sources.store(target, b"new")
    assert target.read_bytes() == b"old"
    assert len(list(target.parent.iterdir())) == 1


def test_every_data_set_is_described():
    assert len(names()) == 14
    for name in names():
        about = describe(name)
        assert about.name == name
        assert about.what
        assert about.licence
        assert about.citation
        assert about.source.startswith("http") or about.source == "drawn by midhaul"
        for file in about.files:
            assert len(file.sha256) == 64
            assert file.fetch in ("as it is", "converted", "no converter")
            assert file.parts
            assert all(part.address.startswith("http") for part in file.parts)


def test_missing_files_are_named_by_check(tmp_path: Path):
    states = {status.state for name in names() for status in check(name, tmp_path)}
    assert states == {"missing"}
    assert check("digits") == ()


def test_unknown_names_and_options_are_refused_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        load("mnistt")
    with pytest.raises(ConfigError, match="did you mean 'classes'"):
        load("har", clases=6)
    with pytest.raises(ConfigError, match="it has none"):
        load("digits", size=8)
    with pytest.raises(ConfigError, match="must be a number"):
        load("synthetic", alpha="1")
    with pytest.raises(ConfigError, match="must be a whole number"):
        load("har", classes=True)
    assert options("har") == {"classes": 6}
    assert options("csv:x.csv")["label"] == "label"


def test_zip_archives_are_bounded_and_sound(tmp_path: Path):
    data = archives.write_zip({"a": b"1" * 100, "b": b"2" * 100})
    assert archives.read_zip(data, "z", lambda name: name == "b") == {"b": b"2" * 100}
    with pytest.raises(DataError, match="says that it unpacks to 200 bytes"):
        archives.read_zip(data, "z", lambda name: True, max_bytes=150)
    broken = bytearray(data)
    broken[40] ^= 0xFF
    with pytest.raises(DataError, match="can't be read"):
        archives.read_zip(bytes(broken), "z", lambda name: True)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("b", b"2")
    twice = stream.getvalue().replace(b"b", b"a")
    with pytest.raises(DataError, match="two members named a"):
        archives.read_zip(twice, "z", lambda name: True)


def test_a_zip_member_that_lies_about_its_size_gives_no_more_than_it_said():
    data = bytearray(archives.write_zip({"a": b"\0" * 5000}))
    true, lie = (5000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert data.count(true) == 2
    with pytest.raises(DataError, match="can't be read"):
        archives.read_zip(bytes(data).replace(true, lie), "z", lambda name: True, max_bytes=100)


def test_npz_round_trip_and_digest():
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 2))}
    back = archives.read_npz(archives.write_npz(arrays), "n")
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert archives.arrays_sha256(back) == archives.arrays_sha256(arrays)
    fortran = {**arrays, "a": np.asfortranarray(arrays["a"])}
    assert np.array_equal(archives.read_npz(archives.write_npz(fortran), "n")["a"], arrays["a"])
    assert archives.arrays_sha256({**arrays, "a": arrays["a"] + 1}) != archives.arrays_sha256(arrays)
    big_endian = {**arrays, "a": arrays["a"].astype(">i2")}
    assert archives.arrays_sha256(big_endian) == archives.arrays_sha256(arrays)


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00{'a'}", b"\x93NUMPY\x09\x00" + b" " * 9]
)
def test_damaged_npy_headers_are_refused(data: bytes):
    with pytest.raises(DataError, match="npy"):
        archives.parse_npy(data, "n")
