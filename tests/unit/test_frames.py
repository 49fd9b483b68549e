import ctypes
import zlib

import numpy as np
import pytest
import torch

from midhaul.errors import FrameError
from midhaul.link import frame, frames
from midhaul.link.compress import Coded
from midhaul.link.frame import Frame
from midhaul.message import Op, Replies
from midhaul.runtime.native import framing, library

PACKS = [
    pytest.param(frames.pack, id="numpy"),
    pytest.param(
        lambda *given: framing.pack(*given, keeps=True),
        id="compiled",
        marks=pytest.mark.skipif(bool(library.missing()), reason=library.missing()),
    ),
]
compiled = pytest.mark.skipif(bool(library.missing()), reason=library.missing())


def replies(**changes):
    tree = {"w": torch.randn(3, 4, 5), "b": torch.randn(3, 4)}
    metrics = {"rows": torch.tensor([3.0, 4.0, 5.0]).double(), "loss": torch.tensor([0.1, 0.2, 0.3]).double()}
    held = Replies(
        (2, 7, 70000), tree, torch.zeros(3, dtype=torch.int64), torch.tensor([3.0, 4.0, 5.5]).double(), metrics
    )
    return Replies(**{**held.__dict__, **changes})


@pytest.mark.parametrize("pack", PACKS)
def test_each_frame_is_the_one_that_pack_makes_of_its_reply(pack):
    given = replies()
    made = pack(Op.FIT, 9, given)
    for place, (device, reply) in enumerate(given):
        alone = Frame(Op.FIT, True, 9, device, {}, reply.tree, reply.weight, reply.metrics)
        assert made.data[place].tobytes() == frame.pack(alone)
        assert made.kinds == frame.bytes_by_kind(alone)
        back = frame.unpack(made.data[place].tobytes(), given.tree, given.metrics)
        assert (back.device, back.weight, back.metrics) == (device, reply.weight, reply.metrics)
        assert all(torch.equal(back.tree[name], given.tree[name][place]) for name in given.tree)
    assert made.sound.all()
    assert sum(made.kinds.values()) == made.data.shape[1]


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["tree", "metrics"])
def test_a_frame_with_a_number_that_is_not_finite_is_not_sound(where, wrong, pack):
    given = replies()
    name = {"tree": "b", "metrics": "loss"}[where]
    bad = getattr(given, where)[name].clone()
    bad[1] = wrong
    made = pack(Op.FIT, 1, replies(**{where: {**getattr(given, where), name: bad}}))
    assert made.sound.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "tree", [{"h": torch.zeros(3, 2)}, {"w": torch.zeros(3, 2, dtype=torch.int64)}, {"w": torch.zeros(3).half()}]
)
def test_rows_and_other_types_are_not_of_one_layout(tree):
    assert frames.pack(Op.READ, 1, replies(tree=tree)) is None


def test_nobody_and_weights_without_sense_are_left_to_the_frame():
    assert frames.pack(Op.FIT, 1, replies(weight=torch.tensor([1.0, -1.0, 2.0]).double())) is None
    nobody = Replies((), {}, torch.zeros(0, dtype=torch.int64), torch.zeros(0).double(), {})
    assert frames.pack(Op.FIT, 1, nobody) is None


@pytest.mark.parametrize("pack", PACKS)
def test_replies_without_tensors_have_frames_too(pack):
    made = pack(Op.BACKWARD, 1, replies(tree={}))
    assert made.data.shape[1] == frame.HEADER_BYTES + 2 * frame.METRIC_BYTES + frame.CRC_BYTES
    assert np.array_equal(made.data[:, 16:20].copy().view("<u4")[:, 0], [2, 7, 70000])


@pytest.mark.parametrize("pack", PACKS)
def test_one_number_that_is_not_finite_is_found_wherever_it_is(pack):
    tree = {"w": torch.randn(40, 39)}
    tree["w"][torch.arange(39), torch.arange(39)] = float("inf")
    num = torch.ones(40).double()
    made = pack(Op.FIT, 1, Replies(tuple(range(40)), tree, torch.zeros(40, dtype=torch.int64), num, {"rows": num}))
    assert made.sound.tolist() == [False] * 39 + [True]


@pytest.mark.parametrize("pack", PACKS)
def test_what_a_header_has_no_place_for_is_refused(pack):
    with pytest.raises(FrameError, match="must be 0 to"):
        pack(Op.FIT, 1 << 32, replies())
    with pytest.raises(FrameError, match="must be 0 to"):
        pack(Op.FIT, 1, replies(devices=(2, 7, 1 << 32)))


def test_a_frame_down_is_the_one_that_pack_makes_of_it():
    """One after another: settings that are equal and not of one type are other bytes, and a layout is used again."""
    for lr in (1, 1.0, 0.5, 0, 0.0, -0.0, 0.5):
        for round in (3, 4):
            tree = {"w": torch.randn(4, 5), "none": torch.zeros(0, 3), "b": torch.randn(5).expand(2, 5)}
            made = Frame(Op.FIT, False, round, 0xFFFFFFFF, {"lr": lr, "train": "whole", "batch": 10}, tree)
            for written in (frames.written(frames.alone(made)), framing.written(frames.alone(made), keeps=True)):
                assert written.data.tobytes() == frame.pack(made)
                assert (written.num_bytes, written.kinds) == (frame.num_bytes(made), frame.bytes_by_kind(made))
                assert written.sound.tolist() == [True]
    tree["w"][2, 3] = float("nan")
    assert not framing.written(frames.alone(made), keeps=False).sound.any()


def test_what_is_kept_of_a_layout_goes_with_its_tensors_and_not_with_their_numbers():
    """A rate that falls from round to round is another layout each time: its zeros would be kept as often."""
    shapes = (("w", (300, 400)), ("none", (0, 3)), ("b", (400,)))
    kept = frames._template(Op.FIT, False, (("lr", 0.1),), "0.1", shapes, ())
    assert kept.num_bytes > 4 * 300 * 400
    assert sum(len(part) for _, part in kept.around) == kept.num_bytes - 4 * (300 * 400 + 400)


def test_a_frame_down_with_rows_or_code_or_other_types_is_left_to_the_frame():
    for tree in ({"x": torch.zeros(3)}, {"w": torch.zeros(3).half()}, {"w": torch.zeros(3, dtype=torch.int64)}):
        assert frames.alone(Frame(Op.FIT, False, 1, 0, {}, tree)) is None
    coded = {"w": Coded((3,), b"123")}
    assert frames.alone(Frame(Op.FIT, False, 1, 0, {}, {"w": torch.zeros(3)}, coded=coded)) is None
    with pytest.raises(FrameError, match="no op has a setting named odd"):
        frames.alone(Frame(Op.FIT, False, 1, 0, {"odd": 1}, {}))


@compiled
def test_bytes_that_are_not_kept_are_sound_all_the_same():
    given = replies()
    given.tree["b"][2, 0] = float("nan")
    made, kept = framing.pack(Op.FIT, 1, given), framing.pack(Op.FIT, 1, given, keeps=True)
    assert made.data is None
    assert made.sound.tolist() == kept.sound.tolist() == [True, True, False]
    assert (made.num_bytes, made.kinds) == (kept.num_bytes, kept.kinds)


@compiled
def test_any_bit_that_changes_on_the_way_is_found():
    made = frames.layout(Op.FIT, 1, replies())
    data, sound = np.empty((3, len(made.pattern)), np.uint8), np.zeros(3, np.bool_)
    job = framing.job(made, data, sound)
    library.load().mk_frames_through(ctypes.byref(job))
    assert sound.all()
    for place in range(data.shape[1]):
        data[1, place] ^= 1 << place % 8
        assert [library.load().mk_frame_is_sound(ctypes.byref(job), device) for device in range(3)] == [1, 0, 1]
        data[1, place] ^= 1 << place % 8


@compiled
def test_the_compiled_crc_is_that_of_zlib():
    data = np.random.default_rng(1).integers(0, 256, 3000).astype(np.uint8)
    for size in [*range(600), 1023, 1024, 2999]:
        for start in (0, 1):
            part = data[start : start + size]
            assert library.load().mk_crc32(part.ctypes.data, size) == zlib.crc32(part.tobytes())
