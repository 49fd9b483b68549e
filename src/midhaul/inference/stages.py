"""Stages that answer one after another, what each query spends in them, and where thresholds put the trade-off.

A query is answered by the first stage that is sure of it; the last is asked no such thing. A stage behind the link is
reached by a frame up and answers by a frame down: both are really packed, and what went up is unpacked before it is
used. A query whose frames are lost for good is answered by the stage before.

Shape letters: N queries, C classes, S stages.
Source: Teerapittayanon, McDanel and Kung, "Distributed deep neural networks over the cloud, the edge and end devices",
ICDCS 2017, section III; Wang et al., "IDK cascades", UAI 2018, section 2.
Limits: queries come one at a time and none waits for another; what the radio and the board draw while they wait for the
server isn't counted, as in `link.radio`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from midhaul import budget, rng
from midhaul.devices.profiles import Board
from midhaul.inference.gate import Bools, Floats
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.link.radio import Radio
from midhaul.message import Op

Ints = npt.NDArray[np.int64]
_SPENT = ("macs", "up_bytes", "down_bytes", "seconds", "joules", "arrived")
NOBODY = -1  # the answer to a query that was lost before any stage answered it
_AFTER_TRAINING = 0xFFFFFFFF  # the round of draws that no round of a run makes
_MOST_THRESHOLDS = {1: 200, 2: 33}  # of each stage, by how many stages have one


@dataclass(frozen=True)
class Link:
    """What lies between a device and the server, and how fast the server is.

    `loss` is the share of frames lost, `retries` how often one is sent again; `seed` names the draws.
    """

    radio: Radio
    loss: float
    retries: int
    seed: int
    server_macs_per_s: float


@dataclass(frozen=True)
class Stage:
    """One model that may answer: what it says of each query, and what a query that comes to it spends there.

    Shapes: logits [N, C]; the others [N]. MACs and joules are the device's.
    """

    logits: Tensor
    macs: Ints
    up_bytes: Ints
    down_bytes: Ints
    seconds: Floats
    joules: Floats
    arrived: Bools

    def at(self, queries: Ints) -> Stage:
        """Gives the stage for some of the queries."""
        picked = {name: getattr(self, name)[queries] for name in _SPENT}
        return Stage(self.logits[torch.from_numpy(queries)], **picked)


def joined(parts: Sequence[tuple[Ints, Stage]]) -> Stage:
    """Gives one stage from stages of some queries each, and which these are: devices of unlike boards, say."""
    queries = np.concatenate([where for where, _ in parts])
    whole = {name: np.concatenate([getattr(stage, name) for _, stage in parts]) for name in _SPENT}
    return Stage(torch.cat([stage.logits for _, stage in parts]), **whole).at(np.argsort(queries))


def on_device(logits: Tensor, macs: int, board: Board) -> Stage:
    """Gives a stage that the device computes itself with so many more MACs."""
    num, work = len(logits), budget.work(board, macs)
    nothing = np.zeros(num, np.int64)
    spent = np.full(num, work.seconds), np.full(num, work.joules)
    return Stage(logits, np.full(num, macs, np.int64), nothing, nothing, *spent, np.ones(num, np.bool_))


def on_server(
    kind: str,
    rows: Tensor,
    devices: Ints,
    model: Callable[[Tensor], Tensor],
    server_macs: int,
    link: Link,
    *,
    answer: str,
    macs: int = 0,
    board: Board,
) -> Stage:
    """Gives a stage behind the link: each row goes up in a frame, and a label or logits come down in one.

    `kind` is the tensor's name on the wire: x, the raw input, or h, features at a cut, for which the device does `macs`
    MACs more. `model` is what the server does with the rows that it unpacked; `answer` is label or logits.
    Shapes: rows [N, ...], devices [N].
    """
    sent = [
        frame.pack(Frame(Op.PREDICT, True, number, int(device), {}, {kind: row[None]}, 1.0))
        for number, (device, row) in enumerate(zip(devices, rows, strict=True))
    ]
    logits = model(torch.cat([frame.unpack(data, ()).tree[kind] for data in sent]) if sent else rows)
    said = {"y": logits.argmax(1)} if answer == "label" else {"logits": logits}
    back = [
        frame.pack(
            Frame(Op.PREDICT, False, number, int(device), {}, {n: v[number : number + 1] for n, v in said.items()})
        )
        for number, device in enumerate(devices)
    ]
    up = _carried(sent, devices, link, up=True)
    down = _carried(back, devices, link, up=False, asked=up.arrived)
    served = np.where(up.arrived, server_macs / link.server_macs_per_s, 0.0)
    work = budget.work(board, macs)
    return Stage(
        logits,
        np.full(len(devices), macs, np.int64),
        up.bytes,
        down.bytes,
        work.seconds + up.seconds + served + down.seconds,
        work.joules + up.joules + down.joules,
        up.arrived & down.arrived,
    )


@dataclass(frozen=True)
class Outcome:
    """What became of each query. Shapes: all [N]. `stage` is who answered; `answer` NOBODY where no one did."""

    answer: Ints
    stage: Ints
    up_bytes: Ints
    down_bytes: Ints
    seconds: Floats
    joules: Floats
    macs: Floats


def serve(stages: Sequence[Stage], scores: Sequence[Floats], thresholds: Sequence[float]) -> Outcome:
    """Answers every query by the first stage that is sure: whose score is at or above its threshold.

    Shapes: a score array [N] and a threshold for each stage but the last.
    """
    num = len(stages[0].logits)
    here = np.ones(num, np.bool_)  # those that have come to this stage
    total = {name: np.zeros(num) for name in ("up_bytes", "down_bytes", "seconds", "joules", "macs")}
    answer, who = np.full(num, NOBODY, np.int64), np.full(num, NOBODY, np.int64)
    for place, stage in enumerate(stages):
        for name, spent in total.items():
            spent += np.where(here, getattr(stage, name), 0)
        heard = here & stage.arrived
        answer = np.where(heard, stage.logits.argmax(1).numpy(), answer)
        who = np.where(heard, place, who)
        if place < len(stages) - 1:
            here &= scores[place] < thresholds[place]
    up, down = (total[name].astype(np.int64) for name in ("up_bytes", "down_bytes"))
    return Outcome(answer, who, up, down, total["seconds"], total["joules"], total["macs"])


@dataclass(frozen=True)
class Point:
    """One way to run the stages, and what it comes to over some queries.

    `stays` is the share of queries that never leave the device; bytes are up and down together; `p95_s` is the time
    that 95 % of the queries stay within. Bytes, joules, MACs and `seconds` are means a query.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    stays: float
    bytes: float
    joules: float
    seconds: float
    p95_s: float
    macs: float


def point(outcome: Outcome, y: Ints, thresholds: Sequence[float] = ()) -> Point:
    """Gives the means of an outcome. Shapes: y [N]."""
    return Point(
        tuple(thresholds),
        float((outcome.answer == y).mean()),
        float((outcome.up_bytes == 0).mean()),
        float((outcome.up_bytes + outcome.down_bytes).mean()),
        float(outcome.joules.mean()),
        float(outcome.seconds.mean()),
        float(np.quantile(outcome.seconds, 0.95, method="higher")),
        float(outcome.macs.mean()),
    )


def candidates(scores: Sequence[Floats]) -> list[tuple[float, ...]]:
    """Gives the thresholds worth trying: 0, 1, and scores that were seen, evenly by rank; all combinations."""
    most = _MOST_THRESHOLDS.get(len(scores), 9)
    each = []
    for score in scores:
        seen = np.unique(score)
        picked = seen[np.unique(np.linspace(0, len(seen) - 1, min(most, len(seen))).round().astype(int))]
        each.append(sorted({0.0, 1.0, *picked.tolist()}))
    return list(itertools.product(*each))


def sweep(
    stages: Sequence[Stage], scores: Sequence[Floats], y: Ints, thresholds: Sequence[tuple[float, ...]]
) -> list[Point]:
    """Gives a point for each combination of thresholds."""
    return [point(serve(stages, scores, each), y, each) for each in thresholds]


class _Carried(NamedTuple):
    """What carrying each query's frame in one direction took. Shapes: all [N]."""

    bytes: Ints
    seconds: Floats
    joules: Floats
    arrived: Bools


def _carried(frames: list[bytes], devices: Ints, link: Link, *, up: bool, asked: Bools | None = None) -> _Carried:
    """Gives what each frame took with all its repetitions; nothing for a query that doesn't get so far (`asked`)."""
    radio = link.radio
    seconds, joules = (radio.seconds_up, radio.joules_up) if up else (radio.seconds_down, radio.joules_down)
    sizes = np.array([len(data) for data in frames], np.int64)
    tries, arrived = _tries(devices, link, up)
    if asked is not None:
        tries, arrived = np.where(asked, tries, 0), arrived & asked
    return _Carried(
        tries * sizes,
        tries * np.array([seconds(int(size)) for size in sizes]),
        tries * np.array([joules(int(size)) for size in sizes]),
        arrived,
    )


def _tries(devices: Ints, link: Link, up: bool) -> tuple[Ints, Bools]:
    """Gives how often each query's frame is sent, and whether it arrived at last. Shapes: [N]."""
    tries, arrived = np.ones(len(devices), np.int64), np.ones(len(devices), np.bool_)
    if link.loss <= 0.0:
        return tries, arrived
    for device in np.unique(devices):
        own = np.flatnonzero(devices == device)
        stream = rng.key(link.seed, _AFTER_TRAINING, int(device), rng.Use.LOSS).at(int(up))
        draws = rng.uniform(stream, len(own) * (link.retries + 1)).reshape(len(own), -1) >= link.loss
        arrived[own] = draws.any(1)
        tries[own] = np.where(draws.any(1), draws.argmax(1) + 1, link.retries + 1)
    return tries, arrived
