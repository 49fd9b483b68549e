"""Updates that travel coded to and from a device in C: the bytes are those that link/update.py makes of the same
weights, and what comes down is what it was sent as."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from pairs import CODES, FIT, SEED, Pair, opened, stages, told

from midhaul import rng
from midhaul.devices import toolchain
from midhaul.link import frame, update
from midhaul.link.compress import Coded
from midhaul.link.frame import Frame
from midhaul.link.update import Stages
from midhaul.message import UPDATE, Op, Settings
from midhaul.tree import Tree

TEXTS = (
    *("delta", "quantise:4", "delta,topk:0.1,quantise:4", "delta,topk:0.05,sign", "delta,qsgd:4", "delta,sign"),
    *("delta,randk:0.2", "delta,topk:0.3,qsgd:3"),
)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return opened(toolchain.host_library(strict=True))


def flat(whole: Tree, names: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return torch.cat([whole[name].reshape(-1) for name in names]).numpy()


def as_coded(how: Stages, vector: Any, stream: int) -> tuple[Tree, dict[str, Coded]]:
    data = update.encode(how, vector, rng.key(SEED, 2, 0xFFFFFFFF, rng.Use.CODE).at(stream), unbiased=True)
    return {UPDATE: torch.from_numpy(vector)}, {UPDATE: Coded((len(vector),), data)}


def ask(pair: Pair, settings: Settings, values: Tree, round: int = 2, coded: dict[str, Coded] | None = None) -> Frame:
    """Gives the device's answer to FIT."""
    sent = Frame(Op.FIT, False, round, pair.number, settings, values, coded=coded or {})
    (reply,) = pair.device.answers(frame.pack(sent))
    return reply


@pytest.mark.parametrize("text", TEXTS)
def test_a_device_codes_what_it_learned_as_the_twin_would(library: ctypes.CDLL, text: str) -> None:
    """Two devices in C learn the same, three times: one sends its weights, the other their code."""
    how, names = stages(text), Pair(library, "mlp", 7).program.names("whole")
    plain, coder = Pair(library, "mlp", 7), Pair(library, "mlp", 7)
    whole: Tree = dict(plain.program.initial)
    owed = np.zeros(sum(whole[name].numel() for name in names), np.float32)
    for round in range(1, 4):
        learned = ask(plain, FIT, whole, round)
        stream = 1 << 22 | round << 2 | 2
        reply = ask(coder, {**FIT, **told(how, round, feeds_back=how.is_biased)}, whole, round)
        assert "error" not in reply.metrics, reply.metrics
        assert list(reply.tree) == [UPDATE]
        assert (reply.weight, reply.metrics) == (learned.weight, learned.metrics)
        vector = flat(learned.tree, names)
        vector = vector - flat(whole, names) if how.delta else vector
        vector = vector + owed if how.is_biased else vector
        key = rng.key(SEED, round, plain.number, rng.Use.CODE).at(stream)
        data = update.encode(how, vector, key, unbiased=not how.is_biased)
        assert reply.coded[UPDATE].data == data
        if how.is_biased:
            owed = vector - update.decode(len(vector), data)
            assert owed.any()
        whole = {name: value + 0.01 * round for name, value in whole.items()}
    for pair in (plain, coder):
        pair.device.close()


@pytest.mark.parametrize("text", [text for text in TEXTS if text.startswith("delta")])
def test_a_device_takes_differences_to_what_it_was_last_sent(library: ctypes.CDLL, text: str) -> None:
    """A device that is sent a difference learns what one learns that is sent the sum, to the bit; twice."""
    how = stages(text)
    summed, coder = Pair(library, "cnn1d", 7), Pair(library, "cnn1d", 7)
    names, whole = summed.program.names("whole"), dict(summed.program.initial)
    assert ask(coder, FIT, whole).tree.keys() == set(names)
    ask(summed, FIT, whole)
    back = told(stages("delta,topk:0.2,sign"), 1, feeds_back=True)
    for turn in range(2):
        more = rng.normal(rng.key(turn, 1, 1, rng.Use.SYNTHETIC), len(flat(whole, names))).astype(np.float32) * 0.1
        tree, coded = as_coded(how, more, 9)
        step = torch.split(torch.from_numpy(update.decode(len(more), coded[UPDATE].data)), [
            whole[name].numel() for name in names
        ])  # fmt: skip
        whole = {name: whole[name] + part.reshape(whole[name].shape) for name, part in zip(names, step, strict=True)}
        settings = {**FIT, **back} if turn else FIT
        one, other = ask(coder, settings, tree, 3 + turn, coded), ask(summed, settings, whole, 3 + turn)
        assert "error" not in one.metrics, one.metrics
        assert one.metrics == other.metrics
        for name in other.tree:
            assert torch.equal(one.tree[name], other.tree[name])
        assert {n: c.data for n, c in one.coded.items()} == {n: c.data for n, c in other.coded.items()}
    for pair in (summed, coder):
        pair.device.close()


def error(reply: Frame) -> str:
    assert set(reply.metrics) == {"error"}
    return next(name for name, code in CODES.items() if code == reply.metrics["error"])


def test_what_a_device_cannot_code_it_refuses(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5, fits=("whole", "head"))
    whole, names = dict(pair.program.initial), pair.program.names("whole")
    num = len(flat(whole, names))
    tree, coded = as_coded(stages("delta,topk:0.1"), np.ones(num, np.float32), 1)
    good = told(stages("delta,topk:0.1"), 1, feeds_back=True)
    assert error(ask(pair, FIT, tree, 2, coded)) == "BORROWED"  # it was sent no whole model yet
    ask(pair, FIT, whole)
    assert "error" not in ask(pair, {**FIT, **good}, tree, 2, coded).metrics
    for bad in ({"code": -1}, {"code": 1.0}, {"share": 0.0}, {"share": 2.0}, {"share": "all"}, {"stream": -1}):
        assert error(ask(pair, {**FIT, **good, **bad}, whole)) == "SETTING", bad
    assert error(ask(pair, {n: v for n, v in {**FIT, **good}.items() if n != "share"}, whole)) == "SETTING"
    assert error(ask(pair, {**FIT, **good, "send": "none"}, whole)) == "SLICE"
    assert error(ask(pair, {**FIT, **good, "train": "head"}, whole)) == "SLICE"
    short: dict[str, Coded] = {UPDATE: Coded((num - 1,), coded[UPDATE].data)}
    assert error(ask(pair, FIT, tree, 2, short)) == "SHAPE"
    ask(pair, FIT, whole)
    cut: dict[str, Coded] = {UPDATE: Coded((num,), coded[UPDATE].data[:-1])}
    assert error(ask(pair, FIT, tree, 2, cut)) == "FRAME"
    squeezed: dict[str, Coded] = {UPDATE: Coded((num,), b"\x02" + coded[UPDATE].data)}
    ask(pair, FIT, whole)
    assert error(ask(pair, FIT, tree, 2, squeezed)) == "FRAME"
    ask(pair, {**FIT, "train": "head", "proximal_mu": 0.1}, whole)  # which keeps no start of the body
    assert error(ask(pair, FIT, tree, 2, coded)) == "BORROWED"
    ask(pair, FIT, whole)
    pair.device.ask(Op.ADAPT, FIT, whole)  # which begins from elsewhere
    assert error(ask(pair, FIT, tree, 2, coded)) == "BORROWED"
    assert pair.device.refused(Op.PREDICT) == "BORROWED"  # weights are gone once they are coded
    pair.device.close()


def test_what_is_owed_wants_room_and_is_gone_with_the_blob(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5)
    arena = pair.blob.arena_bytes
    num = sum(value.numel() for value in pair.program.initial.values())
    pair.device.close()
    good = {**FIT, **told(stages("delta,topk:0.1"), 1, feeds_back=True)}
    enough = -(-arena // 16) * 16 + -(-4 * num // 16) * 16 + 16  # and the order of the rows
    for size, fits in ((enough, True), (enough - 16, False)):
        pair = Pair(library, "mlp", 5, arena=size)
        reply = ask(pair, good, dict(pair.program.initial))
        assert ("error" not in reply.metrics) == fits
        if not fits:
            assert error(reply) == "ARENA"
        pair.device.close()
    pair = Pair(library, "mlp", 5)
    first = ask(pair, good, dict(pair.program.initial)).coded[UPDATE].data
    assert ask(pair, good, dict(pair.program.initial)).coded[UPDATE].data != first
    pair.device.upload(pair.blob.data)
    pair.device.push(pair.local)
    again = ask(pair, good, dict(pair.program.initial)).coded[UPDATE].data
    assert again == first
    pair.device.close()
