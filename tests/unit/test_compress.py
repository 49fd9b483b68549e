"""Coders: bytes by hand, round trips, bounds that papers prove, and a decoder that trusts nobody."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midhaul import rng
from midhaul.errors import ConfigError, FrameError
from midhaul.link import bits, compress
from midhaul.link.compress import Coded, Coder, Product, Qsgd, TopK, Uniform

KEY = rng.key(5, 1, 2, rng.Use.CODE)
CODERS = ("32bit", "8bit", "4bit", "2bit", "topk:0.3", "qsgd:1", "qsgd:7", "qsgd:300", "fedlite:1,3,1", "fedlite:2,2,2")


def coder(text: str) -> Coder:
    made = compress.parse(text, "link.activations")
    assert made is not None
    return made


def encode(text: str, value: Tensor, key: rng.Key = KEY) -> Coded:
    return compress.encode(coder(text), value, key)


def there_and_back(text: str, value: Tensor, key: rng.Key = KEY) -> Tensor:
    coded = encode(text, value, key)
    return compress.decode(coded.shape, coded.data)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(0, 6)), *draw(st.lists(st.integers(0, 4), max_size=2)), 2)
    source = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    value = torch.randn(shape, generator=source) * 10.0 ** draw(st.integers(-30, 30))
    return torch.where(torch.rand(shape, generator=source) < draw(st.sampled_from([0.0, 0.7, 1.1])), 0.0, value)


@given(tensors(), st.sampled_from(CODERS))
@settings(max_examples=150, deadline=None)
def test_a_round_trip_gives_the_shape_and_numbers_no_larger_than_they_were(value: Tensor, text: str) -> None:
    back = there_and_back(text, value)
    assert back.shape == value.shape
    assert back.dtype == torch.float32
    assert bool(torch.isfinite(back).all())
    if text == "32bit":
        assert torch.equal(back, value)
    if not value.numel():
        return
    flat, out = value.double().reshape(len(value), -1), back.double().reshape(len(value), -1)
    if text.endswith("bit"):  # between the ends of the row, and within a step of where it was
        low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
        step = (high - low) / (2 ** int(text[:-3]) - 1)
        assert bool(((out >= low) & (out <= high)).all())
        assert bool(((out - flat).abs() <= step * 1.001).all())
    elif text.startswith("topk"):
        assert bool(((out == flat) | (out == 0.0)).all())
        kept = out.abs().sum(1) >= flat.abs().topk(max(1, round(0.3 * flat.shape[1]))).values.sum(1) * 0.999
        assert bool(kept.all())
    elif text.startswith("qsgd"):
        norm = flat.norm(dim=1, keepdim=True)
        assert bool(((out - flat).abs() <= norm / int(text[5:]) * 1.001).all())
        assert bool((out * flat >= 0.0).all())


@given(st.lists(st.integers(0, 2**20 - 1), max_size=60), st.integers(20, 40))
@settings(max_examples=100, deadline=None)
def test_fields_and_places_make_the_round_trip(values: list[int], width: int) -> None:
    some = np.asarray(values, np.int64)
    data = bits.pack(some, width)
    assert len(data) == bits.num_bytes(len(values), width)
    assert bits.unpack(data, len(values), width).tolist() == values
    places = np.unique(some)
    high = int(places[-1]) + 1 if len(places) else 0
    for reach in (high, high + 7, 2**20):
        data = bits.pack_places(places, reach)
        assert len(data) == bits.places_bytes(len(places), reach)
        assert bits.unpack_places(data, len(places), reach).tolist() == places.tolist()
        # Elias and Fano: at most 2 + log2(high / num) bits each, and two bytes that aren't full.
        if len(places):
            assert len(data) * 8 <= len(places) * (2 + math.log2(reach / len(places)) + 1) + 16


@pytest.mark.parametrize("text", CODERS)
@given(draws=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_codes_are_refused_or_give_finite_numbers(text: str, draws: st.DataObject) -> None:
    value = torch.linspace(-1.0, 1.0, 24).reshape(3, 4, 2) ** 3
    data = bytearray(encode(text, value).data)
    for _ in range(draws.draw(st.integers(1, 3))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    data = data[: draws.draw(st.integers(0, len(data)))] if draws.draw(st.booleans()) else data
    try:
        got = compress.decode((3, 4, 2), bytes(data))
    except FrameError:
        return
    assert got.shape == (3, 4, 2)
    assert bool(torch.isfinite(got).all())


@given(st.binary(max_size=60), st.lists(st.integers(0, 2**32 - 1), max_size=4))
@settings(max_examples=200, deadline=None)
def test_noise_of_any_shape_is_refused_or_small(noise: bytes, shape: list[int]) -> None:
    try:
        got = compress.decode(tuple(shape), noise, max_bytes=4000)
    except FrameError:
        return
    assert got.numel() <= 1000


HEAD = struct.Struct("<BHI")
BAD = {
    "isn't taken here": ((1 << 20, 1 << 20), b"\0"),
    "coder 9": ((1, 2), b"\x09"),
    "ends 4 bytes before": ((1, 2), b"\0" + bytes(4)),
    "3 bytes behind its last field": ((1, 2), b"\0" + bytes(11)),
    "2 bytes behind its last field": ((0, 2), bytes(3)),
    "aren't finite": ((1, 2), b"\0" + struct.pack("<2f", 1.0, math.inf)),
    "coded in 3 bits": ((1, 2), b"\x01\x03" + bytes(20)),
    "least number is above its greatest": ((1, 4), b"\x01\x02" + struct.pack("<2f", 2.0, 1.0) + b"\0"),
    "must be 0": ((1, 1), b"\x01\x02" + struct.pack("<2f", 1.0, 2.0) + b"\x04"),
    "coded in 0 levels": ((1, 1), HEAD.pack(2, 0, 0) + bytes(4)),
    "is below 0": ((1, 1), HEAD.pack(2, 1, 0) + struct.pack("<f", -1.0)),
    "above its 1 levels": ((1, 1), HEAD.pack(2, 1, 0xFFFFFFFF) + struct.pack("<f", 1.0) + b"\x03"),
    "names 5 of its 4 places": ((1, 4), b"\x03" + struct.pack("<I", 5) + bytes(30)),
    "2 places were announced and 0 are marked": ((1, 4), b"\x03" + struct.pack("<I", 2) + bytes(30)),
    "must ascend": ((1, 4), b"\x03" + struct.pack("<I", 2) + b"\x00\x03" + bytes(8)),
    "no 3 subvectors": ((2, 4), b"\x04" + struct.pack("<IHH", 3, 1, 1) + bytes(30)),
    "no 0 subvectors": ((2, 4), b"\x04" + struct.pack("<IHH", 0, 1, 1) + bytes(30)),
    "5 centroids stands for 4 subvectors": ((2, 4), b"\x04" + struct.pack("<IHH", 2, 5, 1) + bytes(60)),
    "centroid 3 of 3": ((2, 4), b"\x04" + struct.pack("<IHH", 2, 3, 1) + bytes(24) + b"\xff"),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_no_code_is_refused(words: str) -> None:
    shape, data = BAD[words]
    with pytest.raises(FrameError, match=words):
        compress.decode(shape, data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_coded(value: float) -> None:
    with pytest.raises(FrameError, match="diverged"):
        encode("8bit", torch.tensor([[1.0, value]]))
    with pytest.raises(FrameError, match="diverged"):
        encode("qsgd:4", torch.full((1, 4), 3e38))
    with pytest.raises(FrameError, match="can't be coded"):
        encode("8bit", torch.zeros(2, 2, dtype=torch.float16))


def test_the_bytes_of_a_small_tensor_by_hand() -> None:
    """Numbers on the levels themselves are rounded nowhere."""
    value = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-3.0, 0.0, 0.0, 0.0]])
    levels = 0 | 1 << 2 | 2 << 4 | 3 << 6, 0 | 3 << 2 | 3 << 4 | 3 << 6
    assert encode("2bit", value).data == b"\x01\x02" + struct.pack("<4f", 0, 3, -3, 0) + bytes(levels)
    assert torch.equal(there_and_back("2bit", value), value)
    # A quarter of four is one: 3.0 at place 3 and -3.0 at place 4. Of 2 places below 8 the low 2 bits are 3 and 0; the
    # high parts 0 and 1 are marked at 0 + 0 and 1 + 1.
    assert encode("topk:0.25", value).data == b"\x03\x02\0\0\0" + bytes([0b0011, 0b101]) + struct.pack("<2f", 3, -3)
    # One level of the norm 3: -1, 0, 0, 0 as 0, 1, 1, 1 in two bits each. In a long row the one entry is named instead:
    # place 37 in six bits, its mark, and 1 for its sign.
    assert encode("qsgd:1", value[1:]).data == b"\x02" + struct.pack("<HIf", 1, 0xFFFFFFFF, 3.0) + b"\x54"
    alone = torch.zeros(1, 64)
    alone[0, 37] = -3.0
    assert encode("qsgd:1", alone).data == b"\x02" + struct.pack("<HIf", 1, 1, 3.0) + bytes([37, 1, 1])
    assert torch.equal(there_and_back("qsgd:1", alone), alone)
    # Two subvectors of two, one group, two centroids: whichever comes first, the four subvectors are three kinds.
    pairs = torch.tensor([[1.0, 1.0, 5.0, 5.0], [5.0, 5.0, 1.0, 1.0]])
    coded = encode("fedlite:2,2,1", pairs)
    assert len(coded.data) == 1 + 8 + 2 * 2 * 4 + 1
    assert torch.equal(there_and_back("fedlite:2,2,1", pairs), pairs)


@pytest.mark.parametrize("text", ["2bit", "4bit", "8bit", "qsgd:1", "qsgd:4"])
def test_rounding_is_unbiased(text: str) -> None:
    """The mean of 4,000 roundings lies within five standard errors of the number, for every number.

    A number that is all but on a level may never be seen off it: one in 4,000 is forgiven.
    """
    value = torch.randn(1, 24, generator=torch.Generator().manual_seed(1))
    many = there_and_back(text, value.expand(4000, 24).contiguous())
    error = many.double().std(0) / 4000**0.5
    assert bool(((many.double().mean(0) - value[0]).abs() <= 5.0 * error + float(value.norm()) / 4000).all())


def test_roundings_come_from_the_key_alone() -> None:
    value = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    for text in CODERS:
        assert encode(text, value).data == encode(text, value).data
    for text in ("2bit", "qsgd:4"):
        assert encode(text, value).data != encode(text, value, rng.key(5, 2, 2, rng.Use.CODE)).data


@pytest.mark.parametrize("levels", [1, 4, 32])
@pytest.mark.parametrize("spread", ["even", "one large"])
def test_qsgd_keeps_the_bounds_of_its_paper(levels: int, spread: str) -> None:
    """Lemma 3.1: variance over |v|^2 is at most min(n / s^2, sqrt(n) / s), and s (s + sqrt(n)) entries aren't 0."""
    num, times = 1024, 300
    value = torch.randn(num, generator=torch.Generator().manual_seed(3))
    if spread == "one large":
        value[0] = 100.0
    many = there_and_back(f"qsgd:{levels}", value.expand(times, num).contiguous()).double()
    variance = (many - value.double()).square().sum(1).mean() / value.double().square().sum()
    nonzeros = float((many != 0.0).double().sum(1).mean())
    assert float(variance) <= min(num / levels**2, num**0.5 / levels)
    assert nonzeros <= levels * (levels + num**0.5)
    # The expectations themselves: the variance of a rounding at share p between two levels is p (1 - p) norm^2 / s^2.
    share = value.double().abs() / value.double().norm() * levels
    part = share - share.floor()
    assert float(variance) == pytest.approx(float((part * (1 - part)).sum()) / levels**2, rel=0.1)
    expected = float(torch.where(share < 1.0, share, torch.ones_like(share)).sum())
    assert nonzeros == pytest.approx(expected, rel=0.05, abs=0.2)


def test_qsgd_sends_few_entries_by_their_places_and_many_side_by_side() -> None:
    value = torch.randn(8, 1024, generator=torch.Generator().manual_seed(4))
    few, many = encode("qsgd:1", value), encode("qsgd:1024", value)
    assert len(few.data) < 8 * 1024 * 2 // 8  # two bits each, side by side
    assert len(many.data) == 1 + 6 + 8 * 4 + 8 * 1024 * 12 // 8  # 2,049 values: twelve bits each
    # About sqrt(n) entries a row, each of its place (5 bits of 32 a row) and its sign.
    assert len(few.data) < 7 + 32 + 8 * (32 * (2 + 5 + 1) + 64) / 8


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("32bit", 1 + 4 * 20 * 9216),
        ("8bit", 2 + 20 * 8 + 20 * 9216),
        ("2bit", 2 + 20 * 8 + 20 * 9216 // 4),
        ("fedlite:1152,2,1", 9 + 4 * 2 * 8 + 20 * 1152 // 8),
        ("fedlite:288,8,2", 9 + 4 * 2 * 8 * 32 + 20 * 288 * 3 // 8),
    ],
)
def test_the_bytes_are_those_of_the_formula(text: str, num_bytes: int) -> None:
    """The setting of FedLite's figure on FEMNIST: 9,216 activations of 20 rows; 1,152 subvectors of 2 centroids."""
    value = torch.randn(20, 64, 12, 12, generator=torch.Generator().manual_seed(5))
    assert len(encode(text, value).data) == num_bytes


def test_kmeans_finds_clusters_and_never_loses_a_row() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    source = torch.Generator().manual_seed(6)
    value = centres[torch.arange(60) % 3] + 0.1 * torch.randn(60, 2, generator=source)
    back = there_and_back("fedlite:1,3,1", value)
    assert float((back - value).abs().max()) < 0.5
    assert len(torch.unique(back, dim=0)) == 3
    same = torch.ones(5, 4)
    assert torch.equal(there_and_back("fedlite:2,8,1", same), same)  # more centroids than kinds, and than points
    one = there_and_back("fedlite:1,1,1", value)
    assert torch.allclose(one, value.mean(0).expand(60, 2), atol=1e-5)


def test_a_pixels_channels_are_coded_together() -> None:
    """Two kinds of pixel in maps of 3 channels: two centroids of 3 numbers say all, wherever the pixels are."""
    kinds = torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 0.5]])
    which = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(8)) < 0.4
    maps = kinds[which.long()].movedim(-1, 1)
    assert maps.shape == (4, 3, 5, 6)
    coded = encode("fedlite:30,2,1", maps)
    assert len(coded.data) == 9 + 2 * 3 * 4 + 4 * 30 // 8
    assert torch.equal(compress.decode(coded.shape, coded.data), maps)


def test_groups_have_codebooks_of_their_own() -> None:
    value = torch.cat([torch.zeros(6, 2), 10.0 + torch.randn(6, 2, generator=torch.Generator().manual_seed(7))], 1)
    assert torch.equal(there_and_back("fedlite:2,1,2", value)[:, :2], value[:, :2])
    assert not torch.equal(there_and_back("fedlite:2,1,1", value)[:, :2], value[:, :2])


@pytest.mark.parametrize(
    "text",
    [
        *("", "3bit", "16bit", "none:1", "8bit:", "topk", "topk:0", "topk:1.5", "topk:nan", "qsgd:0", "qsgd:40000"),
        *("fedlite:4,2", "fedlite:4,0,1", "fedlite:4,2,3", "fedlite:4,5000,1", "fedlite:0,2,1", "qsgd:x", "zip"),
    ],
)
def test_a_coder_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"link\.gradients is .*; write none, 32bit"):
        compress.parse(text, "link.gradients")


def test_coders_by_their_names() -> None:
    assert compress.parse("none", "here") is None
    assert coder("4bit") == Uniform(4)
    assert coder("topk:0.1") == TopK(0.1)
    assert coder("qsgd:4") == Qsgd(4)
    assert coder("fedlite:8,2,4") == Product(8, 2, 4)
    with pytest.raises(
        ConfigError, match="7 subvectors don't divide the 24 numbers at the cut evenly; near to it 4, 6, 8 do"
    ):
        coder("fedlite:7,2,1").fits(24)
    coder("fedlite:8,2,4").fits(24)
