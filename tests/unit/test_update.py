"""Coders of updates: bytes by hand, round trips, bounds that papers prove, and a decoder that trusts nobody."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midhaul import rng
from midhaul.errors import ConfigError, FrameError
from midhaul.link import bits, entropy, frame, lowrank, update
from midhaul.link.bits import Floats, Reader
from midhaul.link.compress import Coded
from midhaul.link.frame import Frame
from midhaul.link.update import Stages
from midhaul.message import UPDATE, Op

KEY = rng.key(5, 1, 2, rng.Use.CODE)
SPARSE = (
    *("delta", "quantise:2", "quantise:8", "delta,qsgd:1", "delta,qsgd:7", "delta,sign", "delta,vote:0.1"),
    *(
        "delta,topk:0.2",
        "delta,randk:0.2",
        "delta,topk:0.2,quantise:4",
        "delta,topk:0.2,sign",
        "delta,randk:0.3,qsgd:4",
    ),
    *("delta,topk:0.5,qsgd:2,entropy", "quantise:5,entropy", "delta,entropy"),
)


def stages(text: str) -> Stages:
    made = update.parse(text, "link.up")
    assert made is not None
    return made


def coded(text: str, vector: Floats, key: rng.Key = KEY, *, unbiased: bool = False) -> bytes:
    return update.encode(stages(text), vector, key, unbiased=unbiased)


def normal(num: int, seed: int = 1) -> Floats:
    return rng.normal(rng.key(seed, 0, 0, rng.Use.SYNTHETIC), num).astype(np.float32)


@st.composite
def vectors(draw: st.DrawFn) -> Floats:
    value = normal(draw(st.integers(1, 70)), draw(st.integers(0, 999))) * 10.0 ** draw(st.integers(-30, 30))
    empty = rng.uniform(rng.key(draw(st.integers(0, 999)), 0, 0, rng.Use.SYNTHETIC), len(value))
    return np.where(empty < draw(st.sampled_from([0.0, 0.7, 1.1])), 0.0, value).astype(np.float32)


@given(vectors(), st.sampled_from(SPARSE))
@settings(max_examples=300, deadline=None)
def test_a_round_trip_gives_what_the_stages_promise(vector: Floats, text: str) -> None:
    how, num = stages(text), len(vector)
    back = update.decode(num, coded(text, vector))
    assert back.dtype == np.float32
    assert back.shape == vector.shape
    assert np.isfinite(back).all()
    kept = how.kept(num)
    assert np.count_nonzero(back) <= kept
    if how.select == "topk":
        places = np.sort(np.argsort(-np.abs(vector), kind="stable")[:kept])
        assert update.largest(vector, kept).tolist() == places.tolist()
        left = np.delete(back, places)
        assert not left.any()
    wide, out = vector.astype(np.float64), back.astype(np.float64)
    travels = out != 0.0
    if how.value == "plain":
        assert (out[travels] == wide[travels]).all()
    elif how.value == "quantise":
        size = np.abs(vector[update.largest(vector, kept)])
        step = (float(size.max()) - float(size.min())) / (2 ** (how.level - 1) - 1)
        assert (np.abs(out - wide)[travels] <= step * 1.001 + float(size.max()) * 1e-6).all()
        assert (np.abs(out) <= float(size.max())).all()
        assert (out * wide >= 0.0).all()
    elif how.value == "qsgd":
        norm = float(np.linalg.norm(wide))
        assert (np.abs(out - wide)[travels] <= norm / how.level * 1.001).all()
        assert (out * wide >= 0.0).all()
    else:
        assert len(np.unique(np.abs(out[travels]))) <= 1
    assert update.encode(how, vector, KEY) == update.encode(how, vector, KEY)


@given(vectors(), st.integers(1, 3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_factors_make_the_round_trip(vector: Floats, rank: int, squeezes: bool) -> None:
    vector = vector[: len(vector) // 6 * 6]
    if not len(vector) or np.abs(vector).max() > 1e15:
        return
    factors, warm = lowrank.pack(vector, [(len(vector) // 6, 2, 3)], rank, None, KEY)
    data = update.factored(Stages(delta=True, select="powersgd", much=rank, entropy=squeezes), factors)
    back = update.decode(len(vector), data)
    rows = len(vector) // 6
    whole = vector.reshape(rows, 6).astype(np.float64)
    if rank * (rows + 6) < 6 * rows:
        assert warm.shape == (6 * min(rank, rows),)
        # A projection on some columns: never longer than the matrix, and no nearer than the best of that rank.
        lost = np.linalg.norm(whole - back.reshape(rows, 6))
        best = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[rank:])
        assert best - 1e-3 * np.linalg.norm(whole) <= lost <= 1.001 * np.linalg.norm(whole) + 1e-30
    else:
        assert (back == vector).all()


def test_a_warm_start_finds_the_best_factors_of_a_matrix_that_stays() -> None:
    source = np.random.default_rng(3)
    whole = (source.normal(size=(30, 2)) @ source.normal(size=(2, 20)) + 0.1 * source.normal(size=(30, 20))).astype(
        "f4"
    )
    warm, lost = None, []
    for _ in range(6):
        factors, warm = lowrank.pack(whole.reshape(-1), [(30, 20)], 2, warm, KEY)
        lost.append(float(np.linalg.norm(lowrank.unpack(Reader(memoryview(factors)), 600) - whole.reshape(-1))))
    best = float(np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[2:]))
    assert lost[0] > 1.01 * best
    assert lost[-1] == pytest.approx(best, rel=1e-3)
    assert len(factors) == 2 + 9 + 4 * 2 * 50


def test_the_bytes_of_a_small_update_by_hand() -> None:
    """Numbers on the levels themselves are rounded nowhere."""
    value = np.float32([0.0, -3.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    head = struct.Struct("<BBBI")
    # Half of eight: -3, 1, 2, and the first of the equal zeros. Bitmap and gaps have as many bytes: 1 against 1 + 0 for
    # gaps 0, 0, 1, 1 in unary, so it is the bitmap.
    data = coded("delta,topk:0.5", value)
    assert data == head.pack(0, 0, 1, 4) + bytes([0b101011]) + struct.pack("<4f", 0, -3, 1, 2)
    # A quarter: places 1 and 5, gaps 1 and 3.
    assert coded("delta,topk:0.25", value) == head.pack(0, 0, 1, 2) + bytes([0b100010]) + struct.pack("<2f", -3, 2)
    # Three bits over all: signs in the lowest, magnitudes in steps of 1 from 0 to 3.
    codes = 0 | (3 << 1 | 1) << 3 | (1 << 1) << 9 | (2 << 1) << 15
    assert coded("quantise:3", value) == head.pack(0, 1, 0, 8) + struct.pack("<B2f", 3, 0, 3) + codes.to_bytes(
        3, "little"
    )
    # One scale, the mean of the sizes that travel, and a bit each.
    assert coded("delta,topk:0.25,sign", value) == head.pack(0, 3, 1, 2) + struct.pack("<f", 2.5) + bytes([0b100010, 1])
    # Far apart: places 100 and 900 of 1,000. Gaps 100 and 799; with 7 low bits their high parts 0 and 6 are 0 1111110.
    far = np.zeros(1000, np.float32)
    far[[100, 900]] = 1.0, -1.0
    gaps = bytes([0b01111110]) + (100 | (799 & 127) << 7).to_bytes(2, "little")
    assert bits.low_bits(np.array([100, 799])) == 7
    assert coded("delta,topk:0.002,sign", far) == head.pack(0, 3, 3 + 7, 2) + struct.pack("<f", 1.0) + gaps + b"\x02"
    # QSGD in 4 levels of the norm 4: levels 4 and none else. Place 1 of 4 by bitmap; sign; 4 is 1 and two bits behind.
    four = np.float32([0, -4, 0, 0])
    assert coded("delta,qsgd:4", four) == head.pack(0, 2, 1, 1) + struct.pack("<Hf", 4, 4) + bytes(
        [0b0010, 1, 0b011, 0]
    )
    assert update.decode(4, coded("delta,qsgd:4", four)).tolist() == four.tolist()


@given(st.lists(st.integers(0, 3000), max_size=50))
@settings(max_examples=100, deadline=None)
def test_gaps_and_levels_make_the_round_trip(values: list[int]) -> None:
    some = np.asarray(values, np.int64)
    for low in (0, 3, bits.low_bits(some)):
        reader = Reader(memoryview(bits.pack_gaps(some, low) + b"\x07"))
        assert bits.take_gaps(reader, len(some), low, int(some.sum())).tolist() == values
        assert reader.left == 1
    reader = Reader(memoryview(bits.pack_gamma(some + 1)))
    assert (bits.take_gamma(reader, len(some), 3001) - 1).tolist() == values
    assert not reader.left


def test_places_cost_what_golomb_says() -> None:
    """Of n places k at random: about log2(n / k) + 1.5 bits each, near the entropy, far below 32."""
    share, num = 0.01, 100_000
    vector = normal(num)
    data = coded(f"delta,topk:{share},sign", vector)
    each = 8 * (len(data) - 11) / (share * num) - 1
    least = (-share * math.log2(share) - (1 - share) * math.log2(1 - share)) / share
    assert least <= each <= least + 0.2


@pytest.mark.parametrize(
    "text", ["quantise:2", "quantise:4", "delta,qsgd:1", "delta,qsgd:4", "delta,randk:0.3", "delta,randk:0.3,qsgd:2"]
)
def test_what_is_unbiased_is_unbiased(text: str) -> None:
    """The mean over 1,000 keys lies within five standard errors of the number, for every number."""
    value, how = normal(24), stages(text)
    many = np.stack(
        [
            update.decode(24, update.encode(how, value, rng.key(9, turn, 0, rng.Use.CODE), unbiased=True))
            for turn in range(1000)
        ]
    ).astype(np.float64)
    error = many.std(0) / 1000**0.5
    assert (np.abs(many.mean(0) - value) <= 5.0 * error + float(np.linalg.norm(value)) / 1000).all()
    assert many.std() > 0.01


@pytest.mark.parametrize("levels", [1, 4, 32])
def test_qsgd_keeps_the_bounds_of_its_paper(levels: int) -> None:
    """Lemma 3.1: variance over |v|^2 at most min(n / s^2, sqrt(n) / s), and s (s + sqrt(n)) entries that aren't 0.
    Corollary 3.3: with s = sqrt(n), at most 2.8 n + 32 bits on average."""
    num, times, value = 1024, 200, normal(1024)
    square, total, lost, nonzero = float(np.square(value.astype(np.float64)).sum()), 0, 0.0, 0
    for turn in range(times):
        data = coded(f"delta,qsgd:{levels}", value, rng.key(3, turn, 0, rng.Use.CODE))
        back = update.decode(num, data)
        total += 8 * len(data)
        lost += float(np.square(back.astype(np.float64) - value).sum()) / square
        nonzero += int(np.count_nonzero(back))
    assert lost / times <= min(num / levels**2, num**0.5 / levels)
    assert nonzero / times <= levels * (levels + num**0.5)
    if levels == 32:
        assert total / times <= 2.8 * num + 32 + 8 * 13  # the head that says which coder it was


def test_randk_draws_every_place_alike_and_sends_none() -> None:
    counts = np.zeros(10)
    for turn in range(1500):
        low, high = (int(word) for word in rng.key(1, turn, 0, rng.Use.CODE).words(2))
        places, runs = update.drawn(high << 32 | low, 3, 10)
        assert runs.tolist() == [3, 3, 4]
        counts[places] += 1
    expected = np.array([1 / 3] * 6 + [1 / 4] * 4)
    assert (np.abs(counts / 1500 - expected) < 5 * np.sqrt(expected / 1500)).all()
    assert len(coded("delta,randk:0.1,sign", normal(1000))) == 7 + 4 + 8 + 13


def test_the_majority_decides() -> None:
    """Three devices: two for up at the first number, two for down at the second; at the third one has no voice."""
    ballots = [np.float32(row) for row in ([1, -2, 0], [5, 1, 1], [-1, -1, -1])]
    assert update.vote(ballots, 0.5).tolist() == [0.5, -0.5, 0.0]


@pytest.mark.parametrize("text", [*SPARSE, "delta,powersgd:1"])
@given(draws=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_codes_are_refused_or_give_finite_numbers(text: str, draws: st.DataObject) -> None:
    vector = np.linspace(-1.0, 1.0, 24, dtype=np.float32) ** 3
    how = stages(text)
    if how.select == "powersgd":
        made = update.factored(how, lowrank.pack(vector, [(6, 4)], 1, None, KEY)[0])
    else:
        made = update.encode(how, vector, KEY)
    data = bytearray(made)
    for _ in range(draws.draw(st.integers(1, 3))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    data = data[: draws.draw(st.integers(0, len(data)))] if draws.draw(st.booleans()) else data
    try:
        got = update.decode(24, bytes(data))
    except FrameError:
        return
    assert got.shape == (24,)
    assert np.isfinite(got).all()


@given(st.binary(max_size=60), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_noise_of_any_size_is_refused_or_small(noise: bytes, num: int) -> None:
    try:
        got = update.decode(num, noise, max_bytes=4000)
    except FrameError:
        return
    assert len(got) <= 1000


HEAD = struct.Struct("<BBBI")
BOMB = entropy.squeeze(bytes(10**6))
BAD = {
    "isn't taken here": (1 << 30, b"\0"),
    "an update of 0 numbers": (0, b"\0"),
    "coded by way 3": (4, b"\x03"),
    "the last of them once": (4, b"\x02" + entropy.squeeze(b"\x02" + entropy.squeeze(b"\0"))),
    "isn't sound DEFLATE": (4, b"\x02\xff\xff"),
    "more than the 100 bytes": (4, b"\x02" + BOMB),
    "doesn't end where": (4, b"\x02" + entropy.squeeze(coded("delta", np.ones(4, np.float32))) + b"\0"),
    "by coder 4; coders": (4, HEAD.pack(0, 4, 0, 4) + bytes(20)),
    "names 5 of its 4": (4, HEAD.pack(0, 0, 0, 5) + bytes(20)),
    "3 of its 4 numbers and no places": (4, HEAD.pack(0, 0, 0, 3) + bytes(20)),
    "1 places were announced and 0 are marked": (4, HEAD.pack(0, 0, 1, 1) + bytes(20)),
    "told in way 28": (4, HEAD.pack(0, 0, 28, 1) + bytes(20)),
    "names place 4 of 4": (4, HEAD.pack(0, 0, 3, 2) + bytes([0b01110]) + bytes(8)),
    "2 numbers in unary were announced and 1": (4, HEAD.pack(0, 0, 3, 2) + bytes([0b11111011])),
    "the last number in unary must be 0": (4, HEAD.pack(0, 0, 3, 1) + bytes([0b1000]) + bytes(4)),
    "aren't finite": (1, HEAD.pack(0, 0, 0, 1) + struct.pack("<f", math.inf)),
    "coded in 9 bits": (1, HEAD.pack(0, 1, 0, 1) + struct.pack("<B2f", 9, 0, 1) + b"\0\0"),
    "in 2 bits from 2.0 to 1.0": (1, HEAD.pack(0, 1, 0, 1) + struct.pack("<B2f", 2, 2, 1) + b"\0"),
    "in 2 bits from nan": (1, HEAD.pack(0, 1, 0, 1) + struct.pack("<B2f", 2, math.nan, 1) + b"\0"),
    "in 0 levels": (1, HEAD.pack(0, 2, 0, 1) + struct.pack("<Hf", 0, 1) + b"\0\0"),
    "a norm of -1.0": (1, HEAD.pack(0, 2, 0, 1) + struct.pack("<Hf", 1, -1) + b"\0\0"),
    "level is above 2": (1, HEAD.pack(0, 2, 0, 1) + struct.pack("<Hf", 2, 1) + b"\0\x01\x01"),
    "plus or minus inf": (1, HEAD.pack(0, 3, 0, 1) + struct.pack("<f", math.inf) + b"\0"),
    "behind its last field": (1, HEAD.pack(0, 3, 0, 1) + struct.pack("<f", 1.0) + b"\0\0"),
    "factors of another shape": (6, b"\x01" + struct.pack("<HIIB", 1, 2, 4, 1) + bytes(40)),
    "give numbers that aren't finite": (4, b"\x01" + struct.pack("<HIIB4f", 1, 2, 2, 1, *[3e30] * 4)),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_no_code_is_refused(words: str) -> None:
    num, data = BAD[words]
    with pytest.raises(FrameError, match=words):
        update.decode(num, data)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["delta", "quantise:4", "delta,topk:0.5,sign", "delta,qsgd:4"])
def test_what_is_not_finite_is_not_coded(text: str, value: float) -> None:
    with pytest.raises(FrameError, match="diverged"):
        coded(text, np.float32([1.0, value]))


def test_a_frame_carries_an_update_as_a_vector() -> None:
    vector = normal(50)
    data = coded("delta,topk:0.1,quantise:4", vector)
    sent = Frame(Op.FIT, True, 3, 1, {}, {UPDATE: torch.from_numpy(vector)}, coded={UPDATE: Coded((50,), data)})
    whole = frame.pack(sent)
    assert len(whole) == sum(frame.bytes_by_kind(sent).values()) == 36 + 6 + 4 + 4 + len(data)
    assert frame.bytes_by_kind(sent)["weights"] == len(data)
    got = frame.unpack(whole, ()).tree[UPDATE].numpy()
    assert (got == update.decode(50, data)).all()
    assert frame.sequence(whole + whole) == [whole, whole]
    for odd in (whole[:-1], whole + b"MH", whole + bytes(40)):
        with pytest.raises(FrameError):
            frame.sequence(odd)
    with pytest.raises(FrameError, match="isn't coded"):
        frame.unpack(frame.pack(Frame(Op.FIT, True, 3, 1, {}, {UPDATE: torch.zeros(3)})), ())
    bad = Frame(Op.FIT, True, 3, 1, {}, {UPDATE: torch.zeros(5, 10)}, coded={UPDATE: Coded((5, 10), data)})
    with pytest.raises(FrameError, match="are a vector"):
        frame.unpack(frame.pack(bad), ())
    with pytest.raises(FrameError, match="may have at most 150 bytes"):
        frame.unpack(whole, (), max_bytes=150)


@pytest.mark.parametrize(
    "text",
    [
        *("", "topk", "delta,topk:0", "delta,topk:1.5", "delta,topk:nan", "topk:0.1,delta", "delta,delta", "delta:1"),
        *("delta,topk:0.1,randk:0.1", "quantise:1", "quantise:9", "quantise:x", "delta,qsgd:0", "delta,qsgd:5000"),
        *(
            "delta,sign:1",
            "delta,vote",
            "delta,vote:0",
            "delta,powersgd:0",
            "delta,powersgd:99",
            "entropy,delta",
            "zip",
        ),
        *("delta,sign,qsgd:3", "none,delta", "delta,", "8bit"),
    ],
)
def test_stages_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"link\.up is .*; write none, or these in this order"):
        update.parse(text, "link.up")


def test_stages_that_cannot_work_together_are_refused() -> None:
    for text in ("topk:0.1", "sign", "qsgd:4,entropy", "vote:1", "powersgd:2", "randk:0.5,quantise:4"):
        with pytest.raises(ConfigError, match="of a whole model would leave little of it; put delta before it"):
            update.parse(text, "link.up")
    with pytest.raises(ConfigError, match="factors travel as they are; leave out quantise"):
        update.parse("delta,powersgd:2,quantise:4", "link.up")


def test_stages_by_their_names() -> None:
    assert update.parse(" none ", "here") is None
    assert stages("delta, topk:0.01 ,quantise:4,entropy") == Stages(True, "topk", 0.01, "quantise", 4, True)
    assert stages("entropy") == Stages(entropy=True)
    assert stages("delta,vote:0.01").level == 0.01
    assert [stages("delta,topk:0.01").kept(num) for num in (3, 1000, 150)] == [1, 10, 2]
    assert [
        stages(t).is_biased for t in ("delta,qsgd:3", "quantise:4", "delta,sign", "delta,topk:1", "delta,vote:1")
    ] == [*(False, False, True, True, False)]
