"""Activations and gradients in fewer bytes: coders whose bytes are real, and one decoder that trusts none of them.

A coder is written as in [link]: `32bit` (as they are), `8bit`, `4bit`, `2bit`, `topk:SHARE`, `qsgd:LEVELS`, or
`fedlite:SUBVECTORS,CENTROIDS,GROUPS`. What it makes is the number of the coder in a byte, its parameters, and the data;
docs/wire.md has the layout. Roundings are stochastic and unbiased, drawn from the key.

Shape letters: B rows, N numbers of a row, Q subvectors of a row, R groups, L centroids, P points of a group, M numbers
of a point.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import ConfigError, FrameError
from midhaul.link import bits

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Shape = tuple[int, ...]
MAX_BYTES = 1 << 28  # what a coded tensor may be when it is whole, unless the reader says otherwise
MAX_LEVELS = 1 << 15
MAX_CENTROIDS = 1 << 12
LLOYD_STEPS = 10  # of k-means; it ends sooner where nothing changes
_F32 = np.dtype("<f4")
_PLAIN, _UNIFORM, _QSGD, _TOPK, _PRODUCT = range(5)
_QSGD_HEAD = struct.Struct("<HI")  # levels, and the entries that aren't 0, or DENSE
_DENSE = 0xFFFFFFFF
_U32 = struct.Struct("<I")
_PRODUCT_HEAD = struct.Struct("<IHH")  # subvectors, centroids, groups


@dataclass(frozen=True)
class Coded:
    """The bytes that travel in place of a tensor, the tensor's shape, and the multiplications that making them took."""

    shape: Shape
    data: bytes
    macs: int = 0


class Coder(Protocol):
    """Something that makes bytes of a tensor."""

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        """Gives the bytes of [B, N] numbers, none of them missing or infinite, at least one."""
        ...

    def fits(self, num: int) -> None:
        """Raises: ConfigError if rows of `num` numbers can't be coded so."""
        ...

    def macs(self, shape: Shape) -> int:
        """Gives the multiplications of coding a tensor."""
        ...


def parse(text: str, where: str) -> Coder | None:
    """Gives the coder of a setting, None for "none". Raises: ConfigError naming what is known."""
    name, _, rest = text.strip().partition(":")
    try:
        if not rest and ":" not in text and name in ("none", "32bit", "8bit", "4bit", "2bit"):
            return None if name == "none" else Plain() if name == "32bit" else Uniform(int(name[0]))
        if name == "topk":
            return TopK(float(rest))
        if name == "qsgd":
            return Qsgd(int(rest))
        if name == "fedlite":
            subvectors, centroids, groups = (int(part) for part in rest.split(","))
            return Product(subvectors, centroids, groups)
    except ValueError:
        pass
    raise ConfigError(
        f"{where} is {text!r}; write none, 32bit, 8bit, 4bit, 2bit, topk:SHARE with 0 < SHARE <= 1, qsgd:LEVELS with "
        f"at most {MAX_LEVELS} levels, or fedlite:SUBVECTORS,CENTROIDS,GROUPS with at most {MAX_CENTROIDS} centroids "
        "and groups that divide the subvectors evenly"
    )


def encode(coder: Coder, value: Tensor, key: rng.Key) -> Coded:
    """Gives a tensor [B, ...] as bytes. Raises: FrameError if it isn't float32, or holds what isn't a finite number."""
    if value.dtype != torch.float32 or value.ndim < 1:
        raise FrameError(f"a tensor of {value.dtype} and {value.ndim} dimensions can't be coded; float32 rows can")
    shape = tuple(value.shape)
    if not value.numel():
        return Coded(shape, bytes([_PLAIN]))
    if not bool(torch.isfinite(value).all()):
        raise FrameError("a tensor to be coded holds numbers that aren't finite; the sender's model diverged")
    ordered = value.detach().cpu()
    if isinstance(coder, Product) and value.ndim > 2:
        ordered = ordered.movedim(1, -1)
    array = ordered.contiguous().numpy().reshape(shape[0], -1)
    return Coded(shape, coder.encode(array, key), coder.macs(shape))


def decode(shape: Shape, data: bytes | memoryview, max_bytes: int = MAX_BYTES) -> Tensor:
    """Gives the tensor behind coded bytes. Shapes: `shape`, float32.

    Raises: FrameError, before anything large is made, for whatever isn't the whole and sound code of such a tensor.
    """
    num = math.prod(shape)
    if not shape or math.prod(max(size, 1) for size in shape) * _F32.itemsize > max_bytes:
        raise FrameError(f"a coded tensor of shape {shape} isn't taken here; it may have at most {max_bytes} bytes")
    reader = bits.Reader(memoryview(data))
    number = reader.take(1)[0]
    if number >= len(_DECODERS):
        raise FrameError(f"a tensor is coded by coder {number}; coders are 0 to {len(_DECODERS) - 1}")
    rows = _DECODERS[number](reader, shape[0], num // shape[0]) if num else np.zeros(0, np.float32)
    if reader.left:
        raise FrameError(f"a coded tensor has {reader.left} bytes behind its last field")
    whole = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    if number == _PRODUCT and len(shape) > 2:
        return whole.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
    return whole.reshape(shape)


@dataclass(frozen=True)
class Plain:
    """Every number as the 32 bits it is: exactly no compression."""

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        return bytes([_PLAIN]) + rows.astype(_F32).tobytes()

    def fits(self, num: int) -> None:
        return

    def macs(self, shape: Shape) -> int:
        return 0


def _decode_plain(reader: bits.Reader, num_rows: int, num: int) -> Floats:
    return reader.floats(num_rows * num)


@dataclass(frozen=True)
class Uniform:
    """2^bits evenly spaced levels from the least to the greatest number of a row, rounded stochastically: unbiased."""

    bits: int

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
        top = (1 << self.bits) - 1
        step = (high.astype(np.float64) - low) / top
        place = np.divide(rows - low.astype(np.float64), step, out=np.zeros(rows.shape), where=step > 0.0)
        draws = rng.uniform(key, rows.size).reshape(rows.shape)
        levels = np.minimum(np.floor(place + draws).astype(np.int64), top)
        ends = np.concatenate([low, high], 1).astype(_F32).tobytes()
        return bytes([_UNIFORM, self.bits]) + ends + bits.pack(levels, self.bits)

    def fits(self, num: int) -> None:
        return

    def macs(self, shape: Shape) -> int:
        return math.prod(shape)


def _decode_uniform(reader: bits.Reader, num_rows: int, num: int) -> Floats:
    width = reader.take(1)[0]
    if width not in (2, 4, 8):
        raise FrameError(f"a tensor is coded in {width} bits; 2, 4 and 8 are known")
    ends = reader.floats(2 * num_rows).reshape(num_rows, 2).astype(np.float64)
    low, high = ends[:, :1], ends[:, 1:]
    if (low > high).any():
        raise FrameError("a coded row's least number is above its greatest")
    levels = reader.fields(num_rows * num, width).reshape(num_rows, num)
    return np.clip(low + levels * ((high - low) / ((1 << width) - 1)), low, high).astype(np.float32)


@dataclass(frozen=True)
class Qsgd:
    """Levels of a row's L2 norm: sign, and |v| / norm rounded stochastically to a multiple of 1 / levels: unbiased.

    The entries that aren't 0 travel as places and levels, or all levels side by side, whichever is shorter.
    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: communication-efficient SGD via gradient quantization and
    encoding", NeurIPS 2017, section 3.1; relative variance at most min(n / s^2, sqrt(n) / s), lemma 3.1. The paper
    codes gaps and levels by Elias's omega code; here places are coded as in `bits`, and levels in as many bits each.
    """

    levels: int

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        with np.errstate(over="ignore"):
            norm = np.sqrt(np.square(rows, dtype=np.float64).sum(1, keepdims=True)).astype(np.float32)
        if not np.isfinite(norm).all():
            raise FrameError("the norm of a row to be coded is beyond float32; the sender's model diverged")
        share = np.divide(np.abs(rows), norm, out=np.zeros(rows.shape), where=norm > 0.0)
        draws = rng.uniform(key, rows.size).reshape(rows.shape)
        levels = np.minimum(np.floor(share * self.levels + draws).astype(np.int64), self.levels)
        signed = np.where(rows < 0.0, -levels, levels).reshape(-1)
        places = np.flatnonzero(signed)
        width, narrow = bits.width_of(2 * self.levels), bits.width_of(self.levels - 1) + 1
        sparse_bytes = bits.places_bytes(len(places), rows.size) + bits.num_bytes(len(places), narrow)
        if sparse_bytes < bits.num_bytes(rows.size, width):
            found = signed[places]
            body = bits.pack_places(places, rows.size) + bits.pack((np.abs(found) - 1) * 2 + (found < 0), narrow)
            head = _QSGD_HEAD.pack(self.levels, len(places))
        else:
            head, body = _QSGD_HEAD.pack(self.levels, _DENSE), bits.pack(signed + self.levels, width)
        return b"".join([bytes([_QSGD]), head, norm.astype(_F32).tobytes(), body])

    def fits(self, num: int) -> None:
        return

    def macs(self, shape: Shape) -> int:
        return 2 * math.prod(shape)


def _decode_qsgd(reader: bits.Reader, num_rows: int, num: int) -> Floats:
    top, filled = _QSGD_HEAD.unpack(reader.take(_QSGD_HEAD.size))
    if not 1 <= top <= MAX_LEVELS:
        raise FrameError(f"a tensor is coded in {top} levels; 1 to {MAX_LEVELS} are known")
    norm = reader.floats(num_rows).reshape(num_rows, 1)
    if (norm < 0.0).any():
        raise FrameError("the norm of a coded row is below 0")
    if filled == _DENSE:
        levels = reader.fields(num_rows * num, bits.width_of(2 * top)) - top
    else:
        levels = np.zeros(num_rows * num, np.int64)
        places = reader.places(filled, num_rows * num)
        codes = reader.fields(filled, bits.width_of(top - 1) + 1)
        levels[places] = np.where(codes & 1, -(codes >> 1) - 1, (codes >> 1) + 1)
    if np.abs(levels).max() > top:
        raise FrameError(f"a coded number is above its {top} levels")
    return np.asarray(norm * (levels.reshape(num_rows, num) / top), np.float32)


@dataclass(frozen=True)
class TopK:
    """The share of each row's numbers that are greatest in absolute value, as they are; the others become 0.

    Source: Aji and Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017, section 3. Biased, so
    that gradients want error feedback.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        num_rows, num = rows.shape
        kept = max(1, round(self.share * num))
        found = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :kept]
        places = np.sort((found + num * np.arange(num_rows)[:, None]).reshape(-1))
        head = bytes([_TOPK]) + _U32.pack(len(places))
        return b"".join([head, bits.pack_places(places, rows.size), rows.reshape(-1)[places].astype(_F32).tobytes()])

    def fits(self, num: int) -> None:
        return

    def macs(self, shape: Shape) -> int:
        return math.prod(shape)


def _decode_topk(reader: bits.Reader, num_rows: int, num: int) -> Floats:
    (kept,) = _U32.unpack(reader.take(_U32.size))
    rows = np.zeros(num_rows * num, np.float32)
    places = reader.places(kept, num_rows * num)
    rows[places] = reader.floats(kept)
    return rows


@dataclass(frozen=True)
class Product:
    """Grouped product quantisation: each row in Q subvectors, these in R groups, a codebook of L centroids a group.

    The centroids are found by k-means over a message's subvectors (k-means++ from the key, then Lloyd's steps); the
    codebooks travel with the places of each subvector's centroid. Of maps [C, H, W] the channels of a pixel lie side by
    side, so that C / M subvectors are a pixel's: the channels of one pixel tell more of each other than its neighbours.
    Source: Wang, Qi, Rawat, Reddi, Waghmare, Yu, Joshi, "FedLite: a scalable approach for federated learning on
    resource-constrained clients", 2022, section 4.1; Arthur and Vassilvitskii, "k-means++", SODA 2007.
    """

    subvectors: int
    centroids: int
    groups: int

    def __post_init__(self) -> None:
        good = self.subvectors >= 1 and 1 <= self.centroids <= MAX_CENTROIDS
        if not good or self.groups < 1 or self.subvectors % self.groups:
            raise ValueError

    def encode(self, rows: Floats, key: rng.Key) -> bytes:
        points = self._points(rows.astype(np.float64))
        num_centroids = min(self.centroids, points.shape[1])
        books, codes = kmeans(points, num_centroids, key)
        head = bytes([_PRODUCT]) + _PRODUCT_HEAD.pack(self.subvectors, num_centroids, self.groups)
        return head + books.astype(_F32).tobytes() + bits.pack(codes, bits.width_of(num_centroids - 1))

    def fits(self, num: int) -> None:
        if num % self.subvectors:
            near = [n for n in range(self.groups, num + 1, self.groups) if num % n == 0]
            near = sorted(near, key=lambda n: abs(n - self.subvectors))[:3]
            known = f"; near to it {', '.join(map(str, sorted(near)))} do" if near else ""
            raise ConfigError(
                f"fedlite: {self.subvectors} subvectors don't divide the {num} numbers at the cut evenly{known}"
            )

    def macs(self, shape: Shape) -> int:
        return LLOYD_STEPS * self.centroids * math.prod(shape)

    def _points(self, rows: Doubles) -> Doubles:
        """Gives the subvectors of each group. Shapes: [B, N] -> [R, P, M], P = B Q / R."""
        self.fits(rows.shape[1])
        parts = rows.reshape(len(rows), self.groups, self.subvectors // self.groups, -1)
        return parts.transpose(1, 0, 2, 3).reshape(self.groups, -1, parts.shape[3])


def _decode_product(reader: bits.Reader, num_rows: int, num: int) -> Floats:
    subvectors, centroids, groups = _PRODUCT_HEAD.unpack(reader.take(_PRODUCT_HEAD.size))
    if not subvectors or num % subvectors or not groups or subvectors % groups:
        raise FrameError(f"rows of {num} numbers have no {subvectors} subvectors in {groups} groups")
    points = num_rows * subvectors // groups
    if not 1 <= centroids <= min(points, MAX_CENTROIDS):
        raise FrameError(f"a codebook of {centroids} centroids stands for {points} subvectors")
    size = num // subvectors
    books = reader.floats(groups * centroids * size).reshape(groups, centroids, size)
    codes = reader.fields(groups * points, bits.width_of(centroids - 1)).reshape(groups, points)
    if codes.max() >= centroids:
        raise FrameError(f"a subvector has centroid {codes.max()} of {centroids}")
    parts = np.take_along_axis(books, codes[:, :, None], 1).reshape(groups, num_rows, -1, size)
    return parts.transpose(1, 0, 2, 3).reshape(num_rows, num)


def kmeans(points: Doubles, num: int, key: rng.Key) -> tuple[Doubles, bits.Ints]:
    """Gives `num` centroids of each group's points and the place of each point's nearest. A centroid that loses all its
    points stays where it is.

    Shapes: points [R, P, M] -> [R, num, M], [R, P]. Means are taken in double precision, distances in single.
    """
    scale = float(np.abs(points).max()) or 1.0
    small = (points / scale).astype(np.float32)
    centroids = points[np.arange(len(points))[:, None], np.stack(list(_seeds(small, num, key)), 1)]
    codes = _nearest(small, centroids / scale)
    for _ in range(LLOYD_STEPS):
        owned = codes[:, None, :] == np.arange(num)[None, :, None]
        counts = owned.sum(2, keepdims=True)
        means = np.matmul(owned.astype(np.float64), points) / np.maximum(counts, 1)
        centroids = np.where(counts > 0, means, centroids)
        before, codes = codes, _nearest(small, centroids / scale)
        if np.array_equal(before, codes):
            break
    return centroids, codes


def _nearest(points: Floats, centroids: Doubles) -> bits.Ints:
    """Gives the place of the nearest centroid: |p - c|^2 less |p|^2, which is the same for all. Shapes: [R, P]."""
    places = centroids.astype(np.float32)
    products = np.matmul(points, places.transpose(0, 2, 1))
    return np.asarray(np.argmin(np.square(places).sum(2)[:, None, :] - 2.0 * products, axis=2), np.int64)


def _seeds(points: Floats, num: int, key: rng.Key) -> Iterator[bits.Ints]:
    """Gives which points are the first centroids, each drawn by its squared distance from those before. Shapes: [R]."""
    groups, last = np.arange(len(points)), points.shape[1] - 1
    squares, weight = np.square(points).sum(2), np.ones(points.shape[:2], np.float32)
    distance = np.full(points.shape[:2], np.inf, np.float32)
    for draws in rng.uniform(key, num * len(points)).reshape(num, -1):
        reach = np.cumsum(weight, 1, dtype=np.float64)
        chosen = np.minimum((reach <= draws[:, None] * reach[:, -1:]).sum(1), last)
        yield chosen
        nearby = points[groups, chosen]
        away = squares - 2.0 * np.matmul(points, nearby[:, :, None])[:, :, 0] + np.square(nearby).sum(1)[:, None]
        weight = distance = np.minimum(distance, np.maximum(away, 0.0))


_DECODERS: tuple[Callable[[bits.Reader, int, int], Floats], ...] = (
    _decode_plain,
    _decode_uniform,
    _decode_qsgd,
    _decode_topk,
    _decode_product,
)
