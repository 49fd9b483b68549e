"""Omniglot: PNG files written by hand, the averaging, and the order of classes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from midhaul.data import archives, load, omniglot
from midhaul.errors import ConfigError, DataError


def png(picture: np.ndarray, depth: int = 1, kind: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(bytes([kind]) + np.packbits(row).tobytes() for row in picture)
    head = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def paper(black: tuple[slice, slice]) -> np.ndarray:
    picture = np.ones((105, 105), np.uint8)
    picture[black] = 0
    return picture


def test_one_bit_pictures_are_read():
    picture = (np.arange(105 * 105).reshape(105, 105) % 3 == 0).astype(np.uint8)
    assert np.array_equal(omniglot.read_png(png(picture)), picture)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(np.ones((105, 104), np.uint8)), "isn't a one-bit grey PNG"),
        (png(paper((slice(0), slice(0))), depth=2), "isn't a one-bit grey PNG"),
        (png(paper((slice(0), slice(0))), kind=1), "filters"),
        (png(np.ones((105, 105), np.uint8))[:60], "damaged|cut short"),
        (b"", "damaged|cut short"),
    ],
)
def test_other_pictures_are_refused(data: bytes, says: str):
    with pytest.raises(DataError, match=says):
        omniglot.read_png(data)


def test_ink_is_averaged_over_three_or_four_pixels():
    assert omniglot.shrink(paper((slice(None), slice(None)))).tolist() == [[255] * 28] * 28
    assert not omniglot.shrink(paper((slice(0), slice(0)))).any()
    # The first small pixel covers the 4x4 first pixels: one of sixteen is 255 / 4 = 64, then 64 / 4 = 16.
    assert omniglot.shrink(paper((slice(0, 1), slice(0, 1))))[0, 0] == 16


def test_archives_become_classes_in_order_of_alphabet_and_character():
    blank = png(paper((slice(0), slice(0))))
    background = {
        "images_background/Greek/character02/0393_01.png": blank,
        "images_background/Greek/character01/0392_02.png": blank,
        "images_background/Greek/character01/0392_01.png": png(paper((slice(None), slice(None)))),
        "images_background/Arcadian/character01/0001_01.png": blank,
    }
    evaluation = {"images_evaluation/Angelic/character01/0002_01.png": blank}
    parts = iter([archives.write_zip(background), archives.write_zip(evaluation)])
    arrays = archives.read_npz(omniglot.convert(parts), "o")
    assert arrays["alphabet_names"].tolist() == ["Arcadian", "Greek", "Angelic"]
    assert arrays["class_id"].tolist() == [1, 392, 392, 393, 2]
    assert arrays["drawer"].tolist() == [1, 1, 2, 1, 1]
    data = omniglot.build(arrays, "alphabet")
    assert data.x.shape == (5, 1, 28, 28)
    assert data.x[1].min() == 1.0
    assert data.held_out.tolist() == [False] * 4 + [True]
    assert data.device.tolist() == [0, 1, 1, 1, 2]
    assert data.class_names[392] == "Greek 2"
    assert omniglot.build(arrays).device.tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(DataError, match="isn't named"):
        omniglot.convert(iter([archives.write_zip({"x.png": blank}), archives.write_zip({})]))


def test_only_drawers_or_alphabets():
    with pytest.raises(ConfigError, match="'drawer' or 'alphabet'"):
        load("omniglot", device="class")
