"""Frames: exact bytes by hand, round trips, and what is refused."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midhaul import rng
from midhaul.errors import FrameError
from midhaul.link import compress
from midhaul.link import frame as wire
from midhaul.link.compress import Coded
from midhaul.link.frame import Frame, bytes_by_kind, num_bytes, overhead, pack, unpack
from midhaul.message import SETTINGS, Kind, Op, Settings

NAMES = ("conv.weight", "conv.bias", "fc.weight")
METRICS = ("loss", "accuracy")


def sealed(body: bytes) -> bytes:
    """Gives the frame with its length and its CRC put right, so that only the inner damage is left."""
    body = body[:8] + struct.pack("<I", len(body) + 4) + body[12:]
    return body + struct.pack("<I", zlib.crc32(body))


def header(num_settings: int = 0, num_tensors: int = 0, num_metrics: int = 0) -> bytes:
    return wire.HEADER.pack(b"MH", 1, 3, 0, num_settings, num_tensors, 0, 9, 4, num_metrics, 0, 0.0)


def tensor(name: str, dtype: int, shape: tuple[int, ...], data: bytes) -> bytes:
    return struct.pack(f"<IBB{len(shape)}I", zlib.crc32(name.encode()), dtype, len(shape), *shape) + data


def same(left: Frame, right: Frame) -> bool:
    """Tells whether two frames say the same, tensors to the bit."""
    plain = ("op", "is_reply", "round", "device", "settings", "weight", "metrics")
    if any(getattr(left, name) != getattr(right, name) for name in plain):
        return False
    if list(left.tree) != list(right.tree) or list(left.settings) != list(right.settings):
        return False
    pairs = [(left.tree[name], right.tree[name]) for name in left.tree]
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def example() -> Frame:
    tree = {
        "conv.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "conv.bias": torch.tensor([0.5, -0.5], dtype=torch.float16),
        "y": torch.tensor([3, 200]),
    }
    settings: Settings = {"lr": 0.1, "epochs": 2, "train": "head"}
    return Frame(Op.FIT, True, 7, 41, settings, tree, 12.0, {"loss": 0.25})


def test_the_bytes_of_a_small_frame_are_those_of_the_layout() -> None:
    data = pack(Frame(Op.FIT, False, 9, 4, {"epochs": 2}, {"y": torch.tensor([3, 200])}))
    expected = (
        b"MH" + bytes([1, 3, 0, 1]) + struct.pack("<HIIIHHd", 1, 54, 9, 4, 0, 0, 0.0)
        + bytes([SETTINGS.index("epochs"), 0]) + struct.pack("<i", 2)
        + struct.pack("<I", zlib.crc32(b"y")) + bytes([4, 1]) + struct.pack("<I", 2) + bytes([3, 200])
    )  # fmt: skip
    assert data[:-4] == expected
    assert data[-4:] == struct.pack("<I", zlib.crc32(expected))
    assert len(data) == 32 + 6 + 12 + 4


@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1)])
def test_a_frame_of_one_float32_tensor_has_the_bytes_of_the_layout_again_and_again(shape: tuple[int, ...]) -> None:
    for values in ((0.5, -1.0, 2.0), (3.0, 4.0, 5.0)):
        expected = sealed(header(num_tensors=1) + tensor("h", 0, shape, struct.pack("<3f", *values)))
        assert pack(Frame(Op.FIT, False, 9, 4, tree={"h": torch.tensor(values).reshape(shape)})) == expected


def test_the_documented_example_is_what_is_packed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
    section = page.partition("## An example")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    written = bytes.fromhex("".join(rows).replace("`", ""))
    assert written == pack(Frame(Op.FIT, False, 9, 4, {"epochs": 2}, {"y": torch.tensor([3, 200])}))


def test_a_round_trip_keeps_everything_and_its_order() -> None:
    sent = example()
    got = unpack(pack(sent), NAMES, METRICS)
    assert same(sent, got)
    assert list(got.tree) == ["conv.weight", "conv.bias", "y"]
    assert type(got.settings["epochs"]) is int
    assert type(got.settings["lr"]) is float


def test_what_comes_back_shares_no_memory_and_can_be_changed() -> None:
    data = pack(example())
    got = unpack(data, NAMES, METRICS)
    got.tree["conv.weight"].zero_()
    assert unpack(data, NAMES, METRICS).tree["conv.weight"].sum() == 15.0


@pytest.mark.parametrize(
    ("values", "width"),
    [([-128, 127], 1), ([0, 255], 1), ([-1, 128], 2), ([256], 2), ([40_000], 4), ([2**31], 8), ([-(2**63)], 8)],
)
def test_integers_travel_in_the_smallest_type_that_holds_them(values: list[int], width: int) -> None:
    sent = torch.tensor(values, dtype=torch.int64)
    data = pack(Frame(Op.FIT, False, 0, 0, tree={"y": sent}))
    assert len(data) == 36 + 10 + width * len(values)
    back = unpack(data, ()).tree["y"]
    assert back.dtype == torch.int64
    assert torch.equal(back, sent)


def test_non_contiguous_scalar_empty_and_bfloat16_tensors_travel() -> None:
    tree = {
        "conv.weight": torch.arange(6.0).reshape(2, 3).t(),
        "conv.bias": torch.tensor(2.5),
        "fc.weight": torch.zeros(0, 4, dtype=torch.bfloat16),
        "h": torch.tensor([1.5, -2.0], dtype=torch.bfloat16, requires_grad=True),
    }
    got = unpack(pack(Frame(Op.READ, True, 0, 0, tree=tree)), NAMES).tree
    assert torch.equal(got["conv.weight"], tree["conv.weight"])
    assert got["conv.bias"].shape == ()
    assert got["fc.weight"].shape == (0, 4)
    assert got["h"].dtype == torch.bfloat16
    assert got["h"].tolist() == [1.5, -2.0]


def test_bytes_by_kind_add_up_to_the_frame() -> None:
    sent = example()
    sums = bytes_by_kind(sent)
    assert sums[Kind.WEIGHTS] == 24 + 4
    assert sums[Kind.LABELS] == 2
    settings = (2 + 8) + (2 + 4) + (2 + 2 + 4)
    assert sums["header"] == 32 + 4 + settings + (6 + 8) + (6 + 4) + (6 + 4) + 12
    assert sum(sums.values()) == num_bytes(sent) == len(pack(sent))
    assert overhead(sent.tree) == 36 + 14 + 10 + 10


BAD_SENDS = [
    (Frame(Op.FIT, False, -1, 0), "round -1"),
    (Frame(Op.FIT, False, 0, 2**32), "device 4294967296"),
    (Frame(Op.FIT, False, 0, 0, weight=math.nan), "weight is nan"),
    (Frame(Op.FIT, False, 0, 0, {"speed": 1}), "no op has a setting named speed"),
    (Frame(Op.FIT, False, 0, 0, {"epochs": 2**31}), "32 bits"),
    (Frame(Op.FIT, False, 0, 0, {"epochs": True}), "is a bool"),
    (Frame(Op.FIT, False, 0, 0, {"lr": math.inf}), "must be finite"),
    (Frame(Op.FIT, False, 0, 0, {"train": "x" * 70_000}), "at most 65,535"),
    (Frame(Op.FIT, False, 0, 0, tree={"w": torch.zeros(1, dtype=torch.float64)}), "convert it first"),
    (Frame(Op.FIT, False, 0, 0, tree={"w": torch.zeros(1, dtype=torch.bool)}), "convert it first"),
    (Frame(Op.FIT, False, 0, 0, tree={"w": torch.zeros([1] * 9)}), "9 dimensions"),
    (Frame(Op.FIT, False, 0, 0, tree={"plumless": torch.zeros(1), "buckeroo": torch.zeros(1)}), "same CRC-32"),
]


@pytest.mark.parametrize(("bad", "words"), BAD_SENDS)
def test_what_the_wire_has_no_place_for_is_refused(bad: Frame, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        pack(bad)


GOOD = tensor("fc.weight", 0, (1,), struct.pack("<f", 1.0))
BAD_BODIES = {
    "bytes behind its last field": header() + b"\0",
    "doesn't exist": header()[:3] + b"\x0c" + header()[4:],
    "reserved bits": header()[:4] + b"\x02" + header()[5:],
    "weight is": header()[:-8] + struct.pack("<d", -1.0),
    "setting number 200": header(1) + bytes([200, 0]) + struct.pack("<i", 1),
    "setting lr twice": header(2) + 2 * (bytes([0, 1]) + struct.pack("<d", 1.0)),
    "has type 7": header(1) + bytes([0, 7]),
    "setting lr is nan": header(1) + bytes([0, 1]) + struct.pack("<d", math.nan),
    "isn't UTF-8": header(1) + bytes([0, 2, 1, 0, 0xFF]),
    "goes 9 bytes past the end": header(1) + bytes([0, 2, 9, 0]),
    "tensor of unknown id": header(0, 1) + tensor("other", 0, (1,), b"\0\0\0\0"),
    "tensor fc.weight twice": header(0, 2) + 2 * GOOD,
    "dtype 9": header(0, 1) + tensor("fc.weight", 9, (1,), b"\0\0\0\0"),
    "ends 1 bytes before": header(0, 1) + tensor("fc.weight", 8, (1,), struct.pack("<I", 0)),
    "goes 5 bytes past": header(0, 1) + tensor("fc.weight", 8, (1,), struct.pack("<I", 9) + bytes(4)),
    "isn't taken here": header(0, 1) + tensor("fc.weight", 8, (2**16, 2**16), struct.pack("<I", 1) + bytes(1)),
    "9 dimensions": header(0, 1) + tensor("fc.weight", 0, (1,) * 9, b"\0\0\0\0"),
    "larger than any frame": header(0, 1) + tensor("fc.weight", 0, (0, 2**32 - 1, 2**32 - 1), b""),
    "goes 399999996 bytes past": header(0, 1) + tensor("fc.weight", 0, (100_000_000,), b"\0\0\0\0"),
    "aren't finite": header(0, 1) + tensor("fc.weight", 0, (1,), struct.pack("<f", math.nan)),
    "past the end": header(0, 2) + GOOD,
    "metric of unknown id": header(0, 0, 1) + struct.pack("<Id", 1, 1.0),
    "metric loss twice": header(0, 0, 2) + 2 * struct.pack("<Id", zlib.crc32(b"loss"), 1.0),
    "metric loss is inf": header(0, 0, 1) + struct.pack("<Id", zlib.crc32(b"loss"), math.inf),
}


@pytest.mark.parametrize(("words", "body"), BAD_BODIES.items())
def test_damage_behind_a_right_crc_is_refused(words: str, body: bytes) -> None:
    with pytest.raises(FrameError, match=words):
        unpack(sealed(body), NAMES, METRICS)


def test_damage_in_the_header_is_refused() -> None:
    data = pack(example())
    for damaged, words in [
        (b"", "at least 36 bytes"),
        (data[:35], "at least 36 bytes"),
        (b"HM" + data[2:], "begins with"),
        (data[:2] + b"\x02" + data[3:], "version 2"),
        (data[:-1], "says it has"),
        (data + b"\0", "says it has"),
        (data[:-1] + bytes([data[-1] ^ 1]), "CRC-32 is wrong"),
    ]:
        with pytest.raises(FrameError, match=words):
            unpack(damaged, NAMES, METRICS)


def test_a_frame_longer_than_the_caller_takes_is_refused_before_it_is_read() -> None:
    data = pack(example())
    with pytest.raises(FrameError, match=f"at most {len(data) - 1} are taken"):
        unpack(data, NAMES, METRICS, max_bytes=len(data) - 1)
    assert same(unpack(data, NAMES, METRICS, max_bytes=len(data)), example())


def coded(value: torch.Tensor, coder: str = "4bit") -> Coded:
    made = compress.parse(coder, "here")
    assert made is not None
    return compress.encode(made, value, rng.key(0, 0, 0, rng.Use.CODE))


def test_a_coded_tensor_travels_as_its_bytes_and_comes_back_whole() -> None:
    h = torch.linspace(-1.0, 1.0, 60).reshape(3, 4, 5)
    sent = Frame(Op.FORWARD, True, 1, 2, {}, {"h": h, "y": torch.tensor([1, 2, 3])}, coded={"h": coded(h)})
    data = pack(sent)
    # coder, bits, 3 pairs of ends, 60 numbers of 4 bits; the tensor's length is part of the header.
    assert bytes_by_kind(sent) == {"header": 36 + 18 + 4 + 10, "activations": 2 + 24 + 30, "labels": 3}
    assert len(data) == num_bytes(sent) == 36 + 18 + 4 + 10 + 56 + 3
    got = unpack(data, ())
    assert list(got.tree) == ["h", "y"]
    assert torch.equal(got.tree["h"], compress.decode((3, 4, 5), coded(h).data))
    assert torch.equal(got.tree["y"], sent.tree["y"])


def test_coded_tensors_share_what_room_the_caller_gives() -> None:
    h = torch.zeros(4, 1000)
    one = Frame(Op.FORWARD, True, 0, 0, {}, {"h": h}, coded={"h": coded(h, "qsgd:1")})
    two = Frame(Op.FORWARD, True, 0, 0, {}, {"h": h, "g": h}, coded={n: coded(h, "qsgd:1") for n in "hg"})
    assert len(pack(two)) < 200
    assert unpack(pack(one), (), max_bytes=16_000).tree["h"].shape == (4, 1000)
    with pytest.raises(FrameError, match="isn't taken here"):
        unpack(pack(two), (), max_bytes=31_999)
    assert len(unpack(pack(two), (), max_bytes=32_000).tree) == 2


def test_names_that_share_a_crc_are_refused() -> None:
    with pytest.raises(FrameError, match="plumless"):
        unpack(pack(Frame(Op.FIT, False, 0, 0)), ("plumless", "buckeroo"))


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64])


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    names = draw(st.lists(st.sampled_from([*NAMES, "h", "y", "g"]), unique=True, max_size=4))
    tree = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        span = draw(st.sampled_from([1, 100, 1000, 10**6, 2**40]))
        source = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        values = torch.randint(-span, span + 1, shape, generator=source)
        dtype = draw(DTYPES)
        tree[name] = values if dtype == torch.int64 else (values % 1000).to(dtype)
    value = st.one_of(st.integers(-(2**31), 2**31 - 1), FLOATS, st.text(max_size=20))
    settings = draw(st.dictionaries(st.sampled_from(SETTINGS), value, max_size=4))
    number = st.integers(0, 2**32 - 1)
    op, is_reply, round, device = draw(st.tuples(st.sampled_from(Op), st.booleans(), number, number))
    weight = draw(st.floats(0.0, 1e9))
    metrics = draw(st.dictionaries(st.sampled_from(METRICS), FLOATS))
    return Frame(op, is_reply, round, device, settings, tree, weight, metrics)


@given(frames())
@settings(max_examples=150, deadline=None)
def test_any_frame_makes_the_round_trip_and_has_the_size_foretold(sent: Frame) -> None:
    data = pack(sent)
    assert len(data) == num_bytes(sent)
    assert same(sent, unpack(data, NAMES, METRICS))


@given(frames(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_mutated_frame_is_refused_or_says_the_same(sent: Frame, draws: st.DataObject) -> None:
    data = bytearray(pack(sent))
    for _ in range(draws.draw(st.integers(1, 3))):
        data[draws.draw(st.integers(0, len(data) - 1))] ^= draws.draw(st.integers(0, 255))
    try:
        got = unpack(bytes(data), NAMES, METRICS)
    except FrameError:
        return
    assert same(sent, got)


@given(frames(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_mutation_that_a_forger_seals_again_is_refused_or_sound(sent: Frame, draws: st.DataObject) -> None:
    data = bytearray(pack(sent)[:-4])
    place = draws.draw(st.integers(0, len(data) - 1))
    data[place] = draws.draw(st.integers(0, 255))
    try:
        got = unpack(sealed(bytes(data[: draws.draw(st.integers(place, len(data)))])), NAMES, METRICS)
    except FrameError:
        return
    assert all(bool(torch.isfinite(value).all()) for value in got.tree.values())
    assert set(got.tree) <= {*NAMES, "h", "y", "g", "x", "z", "logits"}
    assert same(got, unpack(pack(got), NAMES, METRICS))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(noise, NAMES, METRICS)
