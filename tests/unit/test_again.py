"""A payload like the one before is read as if there had been none before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from midhaul import rng
from midhaul.devices import profiles
from midhaul.errors import MidhaulError
from midhaul.fleet import Group
from midhaul.link import radio
from midhaul.message import Message, Op, Replies
from midhaul.program import Program
from midhaul.runtime import parcel
from midhaul.runtime.parcel import Answer, Ask, Models

PROGRAM = Program(nn.Linear(3, 2), (3,))
KEY = rng.Key(7, 3, rng.SERVER, 0)
ROWS = torch.tensor([2, 1])


def models() -> Models:
    return Models.of((Group((0, 1), (), PROGRAM, profiles.get("stm32l4"), radio.get("ble")),))


def ask_of(seed: int) -> Ask:
    g = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 2, 2), np.float32))
    return Ask(Message(Op.BACKWARD, each={"g": g}, rows=ROWS, settings={"lr": 0.5}), (0, 1), KEY)


def bytes_of(ask: Ask) -> bytes:
    return parcel.pack_ask(ask, parcel.pack_shared(ask.message, KEY.round))


def answer_of(seed: int) -> Answer:
    h = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 2, 2), np.float32))
    y = torch.tensor([[0, 1], [1, 0]])
    return Answer(Replies((0, 1), {"h": h, "y": y}, ROWS, torch.ones(2).double(), {"rows": ROWS.double()}))


def outcome(read: object, tensors: object) -> object:
    """Gives what reading gives, as something that can be compared: the tensors' bytes, or a refusal's sentence."""
    try:
        found = read()  # type: ignore[operator]
    except MidhaulError as error:
        return str(error)
    return [(n, v.dtype, tuple(v.shape), v.numpy().tobytes()) for n, v in tensors(found).items()], repr(  # type: ignore[operator]
        found.devices if isinstance(found, Ask) else (found.replies.devices, found.replies.rows, found.unsound)
    )


def test_an_ask_like_the_one_before_has_its_own_numbers() -> None:
    warm = models()
    parcel.unpack_ask(bytes_of(ask_of(1)), warm)
    assert len(warm.before) == 1
    again = parcel.unpack_ask(bytes_of(ask_of(2)), warm)
    fresh = parcel.unpack_ask(bytes_of(ask_of(2)), models())
    assert torch.equal(again.message.each["g"], ask_of(2).message.each["g"])
    assert (again.devices, again.key, again.message.settings) == (fresh.devices, fresh.key, fresh.message.settings)
    assert again.message.rows is not None
    assert torch.equal(again.message.rows, ROWS)


@pytest.mark.parametrize("what", ["ask", "answer"])
def test_any_changed_byte_has_the_end_that_it_has_for_who_read_nothing_before(what: str) -> None:
    warm, ask = models(), ask_of(1)
    good = bytes_of(ask) if what == "ask" else parcel.pack_answer(answer_of(1), Op.BACKWARD, KEY.round)

    def end(data: bytes, held: Models) -> object:
        if what == "ask":
            return outcome(lambda: parcel.unpack_ask(data, held), lambda found: found.message.each)
        return outcome(lambda: parcel.unpack_answer(data, ask, held), lambda found: found.replies.tree)

    sound = end(good, warm)
    assert warm.before
    assert end(good, warm) == sound
    for place in range(len(good)):
        changed = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        assert end(changed, warm) == end(changed, models())
        assert end(good, warm) == sound  # nothing of the changed one was kept in its place


def test_a_number_that_is_not_finite_is_refused_in_a_payload_like_the_one_before() -> None:
    warm, ask, odd = models(), ask_of(1), answer_of(2)
    parcel.unpack_answer(parcel.pack_answer(answer_of(1), Op.BACKWARD, KEY.round), ask, warm)
    odd.replies.tree["h"][1, 0, 1] = float("nan")
    with pytest.raises(MidhaulError, match="finite"):
        parcel.unpack_answer(parcel.pack_answer(odd, Op.BACKWARD, KEY.round), ask, warm)


def test_an_answer_of_another_round_or_of_other_devices_is_not_taken_for_the_one_before() -> None:
    warm, ask = models(), ask_of(1)
    data = parcel.pack_answer(answer_of(1), Op.BACKWARD, KEY.round)
    parcel.unpack_answer(data, ask, warm)
    later = Ask(ask.message, ask.devices, KEY._replace(round=KEY.round + 1))
    with pytest.raises(MidhaulError, match="answered by"):
        parcel.unpack_answer(data, later, warm)
    with pytest.raises(MidhaulError, match=r"wasn't asked|came of"):
        parcel.unpack_answer(data, Ask(ask.message, (0,), KEY), warm)


def test_no_more_payloads_are_remembered_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "MAX_BEFORE", 2)
    warm, ask = models(), ask_of(1)
    for op in (Op.BACKWARD, Op.ADAPT, Op.FIT):
        other = replace(ask, message=replace(ask.message, op=op))
        for _ in range(2):
            assert torch.equal(parcel.unpack_ask(bytes_of(other), warm).message.each["g"], ask.message.each["g"])
    assert {op for op, _, _ in warm.before} == {Op.FIT}
