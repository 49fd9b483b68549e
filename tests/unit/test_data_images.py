"""MNIST and Fashion-MNIST: idx files, made small."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from midhaul.data import archives, images
from midhaul.errors import DataError


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    head = bytes([0, 0, kind, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.astype({8: np.uint8, 0x0C: ">i4"}[kind]).tobytes()


def test_idx_of_bytes_and_of_words():
    values = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(images.parse_idx(idx(values), "i"), values)
    words = np.array([[1, -2], [70000, 4]])
    assert np.array_equal(images.parse_idx(idx(words, 0x0C), "i"), words)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "isn't an idx file"),
        (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "isn't an idx file"),
        (idx(np.zeros((2, 3)))[:-1], "but 5 bytes follow"),
        (idx(np.zeros((2, 3))) + b"\0", "but 7 bytes follow"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "but 0 bytes follow"),
    ],
)
def test_idx_that_contradicts_itself_is_refused(data: bytes, says: str):
    with pytest.raises(DataError, match=says):
        images.parse_idx(data, "i")


def test_writers_come_from_the_extended_labels():
    def table(num: int) -> bytes:
        rows = np.arange(num)[:, None] * [0, 0, 1, 0, 0, 0, 0, 0] + [5, 4, 100, 0, 0, 0, 0, 0]
        return gzip.compress(idx(rows, 0x0C), 1)

    arrays = archives.read_npz(images.convert_writers(iter([table(60_000), table(10_500)])), "w")
    assert arrays["train_writer"][:3].tolist() == [100, 101, 102]
    assert arrays["test_writer"].shape == (10_000,)
    assert set(arrays["test_hsf"].tolist()) == {4}
    with pytest.raises(DataError, match="must have 60000 rows"):
        images.convert_writers(iter([table(10), table(10)]))


def test_images_and_labels_become_rows_in_0_to_1(monkeypatch: pytest.MonkeyPatch):
    pictures = {"train": np.full((3, 28, 28), 255), "t10k": np.zeros((2, 28, 28))}
    labels = {"train": np.array([1, 2, 3]), "t10k": np.array([4, 5])}

    def read(file: images.File, folder: object) -> bytes:
        split = "train" if "train" in file.name else "t10k"
        return idx((pictures if "images" in file.name else labels)[split])

    monkeypatch.setattr(images.sources, "read", read)
    monkeypatch.setattr(images, "NUM_ROWS", 5)
    data = images.load_fashion_mnist()
    assert data.x.shape == (5, 1, 28, 28)
    assert data.x[:3].min() == data.x.max() == 1.0
    assert data.y.tolist() == [1, 2, 3, 4, 5]
    assert data.held_out.tolist() == [False, False, False, True, True]
    assert data.class_names[data.y[0]] == "Trouser"
