import numpy as np
import pytest
import torch

from midhaul.link import frame, frames
from midhaul.link.frame import Frame
from midhaul.message import Op, Replies


def replies(**changes):
    tree = {"w": torch.randn(3, 4, 5), "b": torch.randn(3, 4)}
    metrics = {"rows": torch.tensor([3.0, 4.0, 5.0]).double(), "loss": torch.tensor([0.1, 0.2, 0.3]).double()}
    held = Replies(
        (2, 7, 70000), tree, torch.zeros(3, dtype=torch.int64), torch.tensor([3.0, 4.0, 5.5]).double(), metrics
    )
    return Replies(**{**held.__dict__, **changes})


def test_each_frame_is_the_one_that_pack_makes_of_its_reply():
    given = replies()
    made = frames.pack(Op.FIT, 9, given)
    for place, (device, reply) in enumerate(given):
        alone = Frame(Op.FIT, True, 9, device, {}, reply.tree, reply.weight, reply.metrics)
        assert made.data[place].tobytes() == frame.pack(alone)
        assert made.kinds == frame.bytes_by_kind(alone)
        back = frame.unpack(made.data[place].tobytes(), given.tree, given.metrics)
        assert (back.device, back.weight, back.metrics) == (device, reply.weight, reply.metrics)
        assert all(torch.equal(back.tree[name], made.tree[name][place]) for name in given.tree)
    assert made.sound.all()
    assert sum(made.kinds.values()) == made.data.shape[1]


@pytest.mark.parametrize("where", ["tree", "metrics"])
def test_a_frame_with_a_number_that_is_not_finite_is_not_sound(where):
    given = replies()
    name = {"tree": "b", "metrics": "loss"}[where]
    bad = getattr(given, where)[name].clone()
    bad[1] = float("nan")
    made = frames.pack(Op.FIT, 1, replies(**{where: {**getattr(given, where), name: bad}}))
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


def test_replies_without_tensors_have_frames_too():
    made = frames.pack(Op.BACKWARD, 1, replies(tree={}))
    assert made.data.shape[1] == frame.HEADER_BYTES + 2 * frame.METRIC_BYTES + frame.CRC_BYTES
    assert np.array_equal(made.data[:, 16:20].copy().view("<u4")[:, 0], [2, 7, 70000])
