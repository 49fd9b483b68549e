"""A fleet behind a link: every message and every reply becomes a frame of real bytes, is charged, and may be lost.

What it charges: the frames' bytes by kind and direction, the time and energy of the radio, and the time and energy of
the computing that an op asks of the board. Exchanges are synchronous: one lasts as long as its slowest device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from midhaul import budget, rng
from midhaul.devices.profiles import Board
from midhaul.errors import EngineError, FrameError
from midhaul.fleet import Fleet
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.link.radio import Radio
from midhaul.message import ROW_KINDS, Message, Op, Replies, Reply, gather, pad_rows
from midhaul.models import count
from midhaul.program import Program
from midhaul.tree import Tree

_METRICS = ("rows", "loss", "correct")
_ANY_DEVICE = 0xFFFFFFFF
Kinds = dict[str, int]


@dataclass
class Ledger:
    """What a run has spent so far. Units: bytes, seconds, joules."""

    kinds_up: Kinds = field(default_factory=dict)
    kinds_down: Kinds = field(default_factory=dict)
    air_seconds: float = 0.0
    compute_seconds: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    absent: int = 0
    refused: int = 0
    updates: int = 0

    @property
    def uplink_bytes(self) -> int:
        """Bytes that the devices sent."""
        return sum(self.kinds_up.values())

    @property
    def downlink_bytes(self) -> int:
        """Bytes that the devices were sent."""
        return sum(self.kinds_down.values())

    @property
    def device_joules(self) -> float:
        """What all devices spent together, for radio and computing."""
        return sum(self.joules.values())

    def to_table(self) -> dict[str, Any]:
        """Gives the ledger as plain values."""
        return asdict(self)


class OverLink:
    """A fleet around a fleet: the same devices, behind a radio."""

    def __init__(
        self, fleet: Fleet, program: Program, board: Board, radio: Radio, *, loss: float, retries: int, ledger: Ledger
    ) -> None:
        self.fleet = fleet
        self.program = program
        self.board = board
        self.radio = radio
        self.loss = loss
        self.retries = retries
        self.ledger = ledger
        self._layers = count.layers(program.module, program.input_shape)
        self._turn = (-1, 0)  # the round, and the exchanges made in it

    @property
    def devices(self) -> tuple[int, ...]:
        return self.fleet.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.fleet.test_devices

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Frames, charges and delivers the message, and the replies; a device whose frame is lost for good is absent.

        Raises: EngineError if every device answered with numbers that are not finite.
        """
        asked = list(self.devices if devices is None else devices)
        self._turn = (key.round, self._turn[1] + 1 if self._turn[0] == key.round else 0)
        seconds = dict.fromkeys(asked, 0.0)
        reached, delivered = self._down(message, asked, key, seconds)
        replies = self.fleet.exchange(delivered, key=key, devices=reached) if reached else gather({})
        compute = self._compute(message, replies)
        answers = self._up(message.op, replies, key, seconds)
        self.ledger.air_seconds += max(seconds.values(), default=0.0)
        self.ledger.compute_seconds += compute
        self.ledger.absent += len(asked) - len(answers)
        if message.op in (Op.FIT, Op.BACKWARD):
            self.ledger.updates += len(answers)
        return gather(answers)

    def _down(
        self, message: Message, asked: list[int], key: rng.Key, seconds: dict[int, float]
    ) -> tuple[list[int], Message]:
        """Sends the message; gives the devices that it reached and the message as these unpacked it."""
        alike = not message.each and not message.each_settings
        places: list[int] = []
        unpacked: list[Tree] = []
        data, kinds = b"", dict[str, int]()
        for place, device in enumerate(asked):
            if not (alike and place):
                own = message.for_device(place)
                sent = Frame(message.op, False, key.round, _ANY_DEVICE if alike else device, own.settings, own.tree)
                data, kinds = frame.pack(sent), frame.bytes_by_kind(sent)
            tries, arrived = self._tries(key, device, up=False)
            _add(self.ledger.kinds_down, kinds, tries)
            seconds[device] += tries * self.radio.seconds_down(len(data))
            self._spend(device, tries * self.radio.joules_down(len(data)))
            if arrived:
                if not unpacked or message.each:
                    unpacked.append(frame.unpack(data, self.program.initial).tree)
                places.append(place)
        if not places:
            return [], message
        part = message.of_places(places)
        each = {
            name: (
                pad_rows([got[name] for got in unpacked], int(max(len(got[name]) for got in unpacked)))
                if name in ROW_KINDS
                else torch.stack([got[name] for got in unpacked])
            )
            for name in message.each
        }
        shared = {name: unpacked[0][name] for name in message.tree}
        delivered = Message(message.op, shared, each, part.rows, part.settings, part.each_settings)
        return [asked[place] for place in places], delivered

    def _up(self, op: Op, replies: Replies, key: rng.Key, seconds: dict[int, float]) -> dict[int, Reply]:
        """Sends the replies; gives those that came through whole."""
        answers: dict[int, Reply] = {}
        refused = 0
        for device, reply in replies:
            sent = Frame(op, True, key.round, device, {}, reply.tree, reply.weight, reply.metrics)
            data, kinds = frame.pack(sent), frame.bytes_by_kind(sent)
            tries, arrived = self._tries(key, device, up=True)
            _add(self.ledger.kinds_up, kinds, tries)
            seconds[device] += tries * self.radio.seconds_up(len(data))
            self._spend(device, tries * self.radio.joules_up(len(data)))
            if not arrived:
                continue
            try:
                got = frame.unpack(data, self.program.initial, _METRICS)
            except FrameError:
                refused += 1
                continue
            answers[device] = Reply(got.tree, got.weight, got.metrics)
        self.ledger.refused += refused
        if refused and refused == len(replies):
            raise EngineError(
                f"round {key.round}: all {refused} devices sent numbers that are not finite, so training diverged; "
                "lower scheme.lr (or large.lr for a split scheme)"
            )
        return answers

    def _tries(self, key: rng.Key, device: int, *, up: bool) -> tuple[int, bool]:
        """Gives how often a frame is sent, and whether it arrived at last."""
        if self.loss <= 0.0:
            return 1, True
        stream = rng.key(key.seed, key.round, device, rng.Use.LOSS).at(2 * self._turn[1] + up)
        for number, draw in enumerate(rng.uniform(stream, self.retries + 1)):
            if draw >= self.loss:
                return number + 1, True
        return self.retries + 1, False

    def _compute(self, message: Message, replies: Replies) -> float:
        """Charges the board's energy to the devices; gives the time of the slowest."""
        layers = self._layers
        trained = self.program.names(
            str(message.settings.get("train", "front" if message.op == Op.BACKWARD else "none"))
        )
        is_tail = "z" in message.each and self.program.tail is not None
        if is_tail and self.program.tail is not None:
            layers = count.layers(self.program.tail, tuple(message.each["z"].shape[2:]))
            trained = tuple(name.removeprefix("tail.") for name in self.program.names("tail"))
        macs = budget.macs_per_example(layers, message.op, trained, is_tail=is_tail)
        longest = 0.0
        for device, rows in zip(replies.devices, replies.metrics.get("rows", torch.zeros(0)).tolist(), strict=False):
            busy_s = rows * macs * self.board.cycles_per_mac_f32 / self.board.clock_hz
            self._spend(device, busy_s * self.board.active_w)
            longest = max(longest, busy_s)
        return longest

    def _spend(self, device: int, energy_j: float) -> None:
        self.ledger.joules[str(device)] = self.ledger.joules.get(str(device), 0.0) + energy_j


def _add(total: Kinds, kinds: Kinds, times: int) -> None:
    for kind, num in kinds.items():
        total[str(kind)] = total.get(str(kind), 0) + times * num
