"""The coder of updates in C against link/update.py: the same bytes, the same numbers, the same debts; and no byte that
one refuses is taken by the other."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import stages, told

from midhaul import rng
from midhaul.devices import toolchain
from midhaul.errors import FrameError
from midhaul.link import update
from midhaul.link.bits import Floats
from midhaul.link.update import Stages

AT = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))
SINK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_uint32)
SOURCE = SINK
TEXTS = (
    *(
        "delta",
        "quantise:2",
        "quantise:5",
        "quantise:8",
        "delta,sign",
        "delta,qsgd:1",
        "delta,qsgd:4",
        "delta,qsgd:300",
    ),
    *(
        "delta,topk:0.01",
        "delta,topk:0.1,quantise:4",
        "delta,topk:0.3,sign",
        "delta,topk:0.9,qsgd:5",
        "delta,topk:1,sign",
    ),
    *("delta,randk:0.1", "delta,randk:0.3,quantise:3", "delta,randk:0.2,sign", "delta,randk:0.5,qsgd:2"),
)


class CCode(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_uint8),
        ("select", ctypes.c_uint8),
        ("is_delta", ctypes.c_uint8),
        ("feeds_back", ctypes.c_uint8),
        ("level", ctypes.c_uint16),
        ("share", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("round", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("use", ctypes.c_uint32),
    )


class CNumbers(ctypes.Structure):
    _fields_ = (("at", AT), ("self", ctypes.c_void_p), ("parts", ctypes.c_uint32), ("owed", ctypes.c_void_p))


class CMade(ctypes.Structure):
    _fields_ = (
        ("num", ctypes.c_uint32),
        ("kept", ctypes.c_uint32),
        ("value", ctypes.c_uint8),
        ("how", ctypes.c_uint8),
        ("head_bytes", ctypes.c_uint8),
        ("head", ctypes.c_uint8 * 12),
        ("seed", ctypes.c_uint64),
        ("bytes", ctypes.c_uint32),
    )


@pytest.fixture(scope="module")
def lib() -> Any:
    return ctypes.CDLL(str(toolchain.host_library(strict=True, sanitize=True)))


class Numbers:
    """Numbers in parts of unlike sizes, one of them empty, as a device's weights lie."""

    def __init__(self, vector: Floats, owed: bool = False) -> None:
        cuts = [0, len(vector) // 3, len(vector) // 3, len(vector)]
        self.parts = [np.array(vector[a:b], np.float32) for a, b in itertools.pairwise(cuts)]
        self.owed = np.zeros(len(vector), np.float32)
        pointer = self.owed.ctypes.data if owed else None
        self.c = CNumbers(AT(self._at), None, len(self.parts), pointer)

    def _at(self, _: Any, part: int, num: Any) -> int:
        num[0] = len(self.parts[part])
        return int(self.parts[part].ctypes.data)

    @property
    def whole(self) -> Floats:
        return np.concatenate(self.parts)


def code_of(how: Stages, key: rng.Key, feeds_back: bool, lib: Any) -> CCode:
    code = CCode()
    assert lib.mh_code_read(ctypes.byref(code), told(how, 0, feeds_back=feeds_back)["code"]) == 0
    code.share, code.seed, code.round, code.device, code.use = how.much, key.seed, key.round, key.device, key.use
    return code


def coded(lib: Any, how: Stages, vector: Floats, key: rng.Key, feeds_back: bool) -> tuple[bytes, Floats] | None:
    """Gives the bytes that the device makes, and what it owes then; None where it refuses."""
    numbers, made, out = Numbers(vector, feeds_back), CMade(), bytearray()
    if lib.mh_code_make(ctypes.byref(code_of(how, key, feeds_back, lib)), ctypes.byref(numbers.c), ctypes.byref(made)):
        return None

    def sink(_: Any, data: Any, num: int) -> int:
        out.extend(data[:num])
        return 0

    assert lib.mh_code_write(ctypes.byref(numbers.c), ctypes.byref(made), SINK(sink), None) == 0
    assert len(out) == made.bytes
    return bytes(out), numbers.owed


def added(lib: Any, base: Floats, data: bytes, room: int | None = None) -> Floats | int:
    """Gives the numbers after an update, or the status of a refusal."""
    numbers, left = Numbers(base), bytearray(data)
    room = len(base) if room is None else room
    places = (ctypes.c_uint32 * (room + 1))()

    def source(_: Any, to: Any, num: int) -> int:
        assert num <= len(left)
        for place in range(num):
            to[place] = left[place]
        del left[:num]
        return 0

    status = lib.mh_code_add(ctypes.byref(numbers.c), len(data), places, room, SOURCE(source), None)
    assert places[room] == 0
    return numbers.whole if status == 0 else int(status)


def normal(num: int, seed: int) -> Floats:
    return rng.normal(rng.key(seed, 0, 0, rng.Use.SYNTHETIC), num).astype(np.float32)


@st.composite
def vectors(draw: st.DrawFn) -> Floats:
    value = normal(draw(st.integers(1, 200)), draw(st.integers(0, 999))) * 10.0 ** draw(st.integers(-40, 30))
    value = np.round(value) if draw(st.booleans()) else value  # ties, and zeros
    empty = rng.uniform(rng.key(draw(st.integers(0, 999)), 0, 0, rng.Use.SYNTHETIC), len(value))
    return np.where(empty < draw(st.sampled_from([0.0, 0.7, 1.1])), 0.0, value).astype(np.float32)


@given(vectors(), st.sampled_from(TEXTS), st.integers(0, 2**64 - 1), st.booleans())
@settings(max_examples=400, deadline=None)
def test_both_make_the_same_bytes_owe_the_same_and_read_the_same(
    lib: Any, vector: Floats, text: str, seed: int, owes: bool
) -> None:
    how = stages(text)
    feeds_back = owes and how.is_biased
    key = rng.key(seed, 7, 3, rng.Use.CODE).at(1 << 22 | 6)
    try:
        data = update.encode(how, vector, key, unbiased=not feeds_back)
    except FrameError:
        assert coded(lib, how, vector, key, feeds_back) is None
        return
    found = coded(lib, how, vector, key, feeds_back)
    assert found is not None
    assert found[0] == data
    back = update.decode(len(vector), data)
    if feeds_back:
        assert (found[1] == vector - back).all()
    base = normal(len(vector), 5)
    got = added(lib, base, data)
    assert not isinstance(got, int), got
    assert (got == base + back).all()


@pytest.mark.parametrize("text", TEXTS)
def test_a_long_update_is_coded_alike(lib: Any, text: str) -> None:
    vector, key, how = normal(30_011, 9) ** 3, rng.key(1, 2, 3, rng.Use.CODE), stages(text)
    found = coded(lib, how, vector, key, how.is_biased)
    assert found is not None
    assert found[0] == update.encode(how, vector, key, unbiased=not how.is_biased)
    assert (added(lib, vector, found[0]) == vector + update.decode(len(vector), found[0])).all()


@pytest.mark.parametrize("text", TEXTS)
@given(draws=st.data())
@settings(max_examples=60, deadline=None)
def test_both_refuse_the_same_damaged_bytes(lib: Any, text: str, draws: st.DataObject) -> None:
    vector = np.linspace(-1.0, 1.0, 40, dtype=np.float32) ** 3
    data = bytearray(update.encode(stages(text), vector, rng.key(1, 2, 3, rng.Use.CODE)))
    for _ in range(draws.draw(st.integers(1, 3))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    data = data[: draws.draw(st.integers(0, len(data)))] if draws.draw(st.booleans()) else data
    same(lib, bytes(data), 40)


@given(st.binary(max_size=80), st.integers(1, 100))
@settings(max_examples=300, deadline=None)
def test_both_refuse_the_same_noise(lib: Any, noise: bytes, num: int) -> None:
    same(lib, noise, num)
    same(lib, b"\0" + noise, num)


def same(lib: Any, data: bytes, num: int) -> None:
    base = np.zeros(num, np.float32)
    got = added(lib, base, data)
    try:
        back: Floats | None = update.decode(num, data)
    except FrameError:
        back = None
    if data[:1] in (b"\1", b"\2"):  # factors, and what is squeezed: not for a device
        back = None
    assert (back is None) == (isinstance(got, int) and got == -1)
    if back is not None:
        assert (got == base + back).all()


def test_places_without_room_are_refused_as_such(lib: Any) -> None:
    vector = normal(100, 1)
    data = update.encode(stages("delta,topk:0.1"), vector, rng.key(1, 2, 3, rng.Use.CODE))
    assert added(lib, vector, data, 9) == -2
    assert not isinstance(added(lib, vector, data, 10), int)
    whole = update.encode(stages("quantise:4"), vector, rng.key(1, 2, 3, rng.Use.CODE))
    assert not isinstance(added(lib, vector, whole, 0), int)


@pytest.mark.parametrize(
    "setting", [4, 3 << 4, 1 << 10, 1 << 28, 1 | 1 << 12, 1 | 9 << 12, 2, 2 | 4097 << 12, 3 | 1 << 12, -1]
)
def test_a_setting_that_is_none_is_refused(lib: Any, setting: int) -> None:
    assert lib.mh_code_read(ctypes.byref(CCode()), setting) == -1
