"""MNIST by its real writers, and Fashion-MNIST, both from idx files.

Shape letters: N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.data import archives, sources
from midhaul.data.dataset import Dataset, Ints, number
from midhaul.data.sources import Description, File, Part
from midhaul.errors import DataError

NUM_ROWS = 70_000
_IDX_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
_IMAGES_BYTES = {"train": 47_040_016, "t10k": 7_840_016}
_LABELS_BYTES = {"train": 60_008, "t10k": 10_008}


def _files(
    prefix: str, address: str, folder: str, published: dict[tuple[str, str], tuple[int, str, str]]
) -> tuple[File, ...]:
    """Gives the four idx files: train images, train labels, test images, test labels."""
    files = []
    for (split, what), (num_bytes, sha256, content_sha256) in published.items():
        official = f"{split}-{what}-ubyte.gz"
        plain = official.removesuffix(".gz")
        files.append(
            File(
                name=f"{prefix}_{official}",
                num_bytes=num_bytes,
                sha256=sha256,
                content_bytes=(_IMAGES_BYTES if what == "images-idx3" else _LABELS_BYTES)[split],
                content_sha256=content_sha256,
                parts=(Part(f"{folder}/raw/{official}", f"{address}/{official}", 40_000_000),),
                fetch="as it is",
                also=(f"{folder}/raw/{plain}",),
            )
        )
    return tuple(files)


MNIST_FILES = _files(
    "img_mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "MNIST",
    {
        ("train", "images-idx3"): (
            9_630_610,
            "71524e2cd1ad2968737f7f2f2ff69cbfc32df8ccddff51593f7cb2d4e0eb5b64",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        ("train", "labels-idx1"): (
            28_878,
            "fe03b8bd7915f70bf5aa08be480aa413fbd85afcaa58b35d230d335f284fd88e",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        ("t10k", "images-idx3"): (
            1_602_050,
            "5634745efa576a17e7d4cf5cd9d09123c75e6538e5114267c2d156edaf519341",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        ("t10k", "labels-idx1"): (
            4_517,
            "ae18e77e031ccde52407f794d123116439864147d33ac992975f85dd4dc42af6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)
WRITERS_FILE = File(
    name="img_mnist_writer_ids.npz",
    num_bytes=62_199,
    sha256="61b14d93cd666600991ae7ed4950e998662b6b4660c9ca897a4737975fd6018f",
    content_bytes=400_000,
    content_sha256="17ae3bf3e57e669e54ed1818db9799699ed9f3c322b3e33026cdf5373495b2f6",
    parts=tuple(
        Part(
            f"qmnist-{split}-labels-idx2-int.gz",
            f"https://raw.githubusercontent.com/facebookresearch/qmnist/master/qmnist-{split}-labels-idx2-int.gz",
            4_000_000,
        )
        for split in ("train", "test")
    ),
    fetch="converted",
)
FASHION_FILES = _files(
    "img_fashionmnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "FashionMNIST",
    {
        ("train", "images-idx3"): (
            26_192_508,
            "a26751d72d89606ffbfdd4dd5d16911f01e93a7ff4783c95da7307a073d79fa7",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        ("train", "labels-idx1"): (
            29_506,
            "a578f3c9ec239359c0d23abadc5d55e4a4fb20df357215637b7a2f127b006a74",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        ("t10k", "images-idx3"): (
            4_383_619,
            "78cb45a589ec14266eab4ac0cb2e9e10a4c076ae2d337fe86383d761bff83f32",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        ("t10k", "labels-idx1"): (
            5_125,
            "ae04cd950ab214637dd08f56319057c2ae10cbb660f742681f426479e3d51363",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)
MNIST = Description(
    name="mnist",
    what="handwritten digits, 28x28 grey, by their 836 real writers (no test writer is a training writer)",
    shape="x [70000, 1, 28, 28] float32 in 0..1, 10 classes",
    key="writer",
    licence="CC BY-SA 3.0 as commonly stated (LeCun, Cortes); the NIST scans are public domain; writers: BSD (QMNIST)",
    source="http://yann.lecun.com/exdb/mnist/",
    citation="LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, Proc. IEEE "
    "1998; writers: Yadav and Bottou, Cold Case: The Lost MNIST Digits, NeurIPS 2019",
    files=(*MNIST_FILES, WRITERS_FILE),
)
FASHION_MNIST = Description(
    name="fashion_mnist",
    what="articles of clothing, 28x28 grey",
    shape="x [70000, 1, 28, 28] float32 in 0..1, 10 classes",
    key="",
    licence="MIT (Zalando)",
    source="https://github.com/zalandoresearch/fashion-mnist",
    citation="Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset, arXiv 1708.07747, 2017",
    files=FASHION_FILES,
)
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_mnist(folder: Path | None = None) -> Dataset:
    """Gives MNIST, each image on the device of the person who wrote it. Held out: the official 10,000."""
    writers = archives.read_npz(sources.read(WRITERS_FILE, folder, convert_writers), WRITERS_FILE.name)
    device, names = number(np.concatenate([writers["train_writer"], writers["test_writer"]]))
    device_names = tuple(f"writer {name}" for name in names)
    return _build(MNIST, folder, device, device_names, tuple(str(digit) for digit in range(10)))


def load_fashion_mnist(folder: Path | None = None) -> Dataset:
    """Gives Fashion-MNIST, which has no natural devices. Held out: the official 10,000."""
    return _build(FASHION_MNIST, folder, np.zeros(NUM_ROWS, np.int64), ("all",), CLOTHES)


def parse_idx(data: bytes, what: str) -> npt.NDArray[Any]:
    """Gives the array of an idx file (unsigned bytes or big-endian 32-bit integers).

    Raises: DataError if the header and the number of bytes disagree.
    Source: the format is described at http://yann.lecun.com/exdb/mnist/.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or not 1 <= data[3] <= 4:
        raise DataError(f"{what} isn't an idx file of bytes or 32-bit integers")
    dtype, rank = _IDX_TYPES[data[2]], data[3]
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    body = data[4 + 4 * rank :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise DataError(f"{what}: the idx header says {shape}, but {len(body)} bytes follow")
    return np.frombuffer(body, dtype).reshape(shape)


def convert_writers(parts: Iterator[bytes]) -> bytes:
    """Gives the writers' file from QMNIST's extended labels: column 2 is the writer, column 1 the form series."""
    arrays: archives.Arrays = {}
    for split, num, part in zip(("train", "test"), (60_000, 10_000), parts, strict=True):
        what = f"qmnist-{split}-labels-idx2-int.gz"
        table = parse_idx(archives.gunzip(part, what, 4_000_000), what)
        if table.ndim != 2 or table.shape[0] < num or table.shape[1] < 3:
            raise DataError(f"{what} has shape {table.shape}; it must have {num} rows and 8 columns")
        arrays[f"{split}_writer"] = table[:num, 2].astype(np.int32)
        arrays[f"{split}_hsf"] = table[:num, 1].astype(np.int8)
    return archives.write_npz(arrays)


def _build(
    description: Description,
    folder: Path | None,
    device: Ints,
    device_names: tuple[str, ...],
    class_names: tuple[str, ...],
) -> Dataset:
    read = [parse_idx(sources.read(file, folder), file.name) for file in description.files[:4]]
    train_x, train_y, test_x, test_y = read
    num = len(train_x) + len(test_x)
    x = np.empty((num, 1, 28, 28), np.float32)
    np.multiply(train_x[:, None], np.float32(1 / 255), out=x[: len(train_x)])
    np.multiply(test_x[:, None], np.float32(1 / 255), out=x[len(train_x) :])
    return Dataset(
        name=description.name,
        x=x,
        y=np.concatenate([train_y, test_y]).astype(np.int64),
        device=device,
        device_names=device_names,
        held_out=np.arange(num) >= len(train_x),
        class_names=class_names,
        licence=description.licence,
        source=description.source,
        citation=description.citation,
        key=description.key,
        num_read=num,
    )
