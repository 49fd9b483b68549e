"""Messages to many devices, and their replies."""

import pytest
import torch

from midhaul.errors import MidhaulError
from midhaul.message import Kind, Message, Op, Reply, gather, join, kind_of


def ragged(device: int, rows: int) -> Reply:
    return Reply({"h": torch.full((rows, 2), float(device))}, float(rows), {"loss": device / 10})


def test_gather_pads_rows_and_counts_them() -> None:
    replies = gather({4: ragged(4, 1), 2: ragged(2, 3), 9: ragged(9, 0)})
    assert replies.devices == (2, 4, 9)
    assert replies.rows.tolist() == [3, 1, 0]
    assert replies.tree["h"].shape == (3, 3, 2)
    assert replies.tree["h"][1].tolist() == [[4.0, 4.0], [0.0, 0.0], [0.0, 0.0]]
    assert replies.mask().tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert replies.reply(1).tree["h"].shape == (1, 2)
    assert replies.reply(2).tree["h"].shape == (0, 2)


def test_join_puts_groups_in_order() -> None:
    joined = join([gather({5: ragged(5, 1), 1: ragged(1, 2)}), gather({3: ragged(3, 4)})])
    assert joined.devices == (1, 3, 5)
    assert joined.rows.tolist() == [2, 4, 1]
    assert joined.tree["h"][:, 0, 0].tolist() == [1.0, 3.0, 5.0]
    assert joined.metrics["loss"].tolist() == [0.1, 0.3, 0.5]


def test_a_device_sees_its_own_part_only() -> None:
    message = Message(
        Op.BACKWARD,
        {"w": torch.ones(2)},
        {"g": torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]])},
        torch.tensor([2, 1]),
        {"lr": 0.1},
        {"epochs": (3, 5)},
    )
    second = message.for_device(1)
    assert second.tree["g"].tolist() == [[3.0]]
    assert second.tree["w"].tolist() == [1.0, 1.0]
    assert second.settings == {"lr": 0.1, "epochs": 5}
    assert message.of_places([1]).each_settings == {"epochs": (5,)}


def test_weights_are_not_cut_to_the_rows() -> None:
    message = Message(Op.FIT, each={"w": torch.ones(1, 5), "y": torch.ones(1, 5)}, rows=torch.tensor([2]))
    alone = message.for_device(0).tree
    assert alone["w"].shape == (5,)
    assert alone["y"].shape == (2,)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(MidhaulError, match="no op has a setting named speed"):
        Message(Op.FIT, settings={"speed": 1})


def test_kinds() -> None:
    assert kind_of("h") == Kind.ACTIVATIONS
    assert kind_of("conv.weight") == Kind.WEIGHTS
    assert gather({}).devices == ()
