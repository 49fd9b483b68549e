"""A fleet behind a link: every message and every reply becomes a frame of real bytes, is charged, and may be lost.

What it charges: the frames' bytes by kind and direction, the time and energy of the radio, and the time and energy of
the computing that an op, and coding what it sends, asks of the board. Exchanges are synchronous: one lasts as long as
its slowest device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from midhaul import budget, rng, rules
from midhaul.devices.profiles import Board
from midhaul.errors import EngineError, FrameError
from midhaul.fleet import Around, Fleet, Group, Part
from midhaul.link import frame, frames
from midhaul.link.bits import Floats
from midhaul.link.conditions import Surroundings
from midhaul.link.frame import Frame
from midhaul.link.frames import Frames
from midhaul.link.radio import Radio
from midhaul.message import ROW_KINDS, UPDATE, Message, Op, Replies, Reply, Settings, gather, join, pad_rows
from midhaul.models import count
from midhaul.program import Program
from midhaul.runtime.band import Band, Upload
from midhaul.runtime.carrier import Carrier, Many, Step
from midhaul.runtime.coding import Coding
from midhaul.runtime.frame_log import Log
from midhaul.runtime.ledger import Doubles, Kinds, Ledger, Times
from midhaul.runtime.native import framing
from midhaul.runtime.spending import Spending
from midhaul.runtime.updates import Sent
from midhaul.tree import Tree

_METRICS = ("rows", "loss", "correct")
_ANY_DEVICE = 0xFFFFFFFF


@dataclass
class _Down:
    """A frame to a device or several: the tensors as meant, as sent, as they are read and as a device has them; its
    bytes, where they are kept, and how many; whom it reached."""

    wanted: Tree
    sent: Sent
    num_bytes: int
    kinds: Kinds
    data: bytes = b""
    read: Tree | None = None
    got: Tree = field(default_factory=dict)
    devices: list[int] = field(default_factory=list)


class OverLink(Around):
    """A fleet around a fleet: the same devices, behind a radio."""

    def __init__(
        self,
        fleet: Fleet,
        program: Program,
        board: Board,
        radio: Radio,
        *,
        loss: float,
        retries: int,
        ledger: Ledger,
        groups: Sequence[Group] = (),
        coding: Coding | None = None,
        around: Surroundings | None = None,
        spending: Spending | None = None,
        band: Band | None = None,
        log: Log | None = None,
    ) -> None:
        """`groups` say which devices have another model, board or radio than those given; below 0, a loss is each
        radio's own. `around` is what varies them, a cell or traces; `spending` charges what they do. `band` is
        shared on the way up, where it is. `log` is given the bytes of each frame, as often as it is sent, with its
        round and whether it goes up."""
        self.ledger = ledger
        self.regroup(fleet, (Group(fleet.devices, fleet.test_devices, program, board, radio), *groups))
        self.coding = coding or Coding()
        self.spending = spending or Spending(ledger)
        self.updates = self.coding.updates
        self.band = band
        self.carrier = Carrier(
            self._group,
            loss=loss,
            retries=retries,
            ledger=ledger,
            spending=self.spending,
            around=around,
            band=band,
            log=log,
        )
        self.pace: Callable[[int], float] | None = None  # what a device's seconds are multiplied by, if not 1
        self.elapsed: Mapping[int, float] = {}  # of each device in the round so far
        self.deadline_s = math.inf  # of the round
        self._turn = (-1, 0)  # the round, and the exchanges made in it
        self.seconds = Times()  # of each device in the last exchange
        self._spent = np.zeros((2, max(self._group, default=0) + 1))  # a step's seconds and busy; stale for others

    def regroup(self, fleet: Fleet, groups: Sequence[Group]) -> None:
        """Is told what lies on the devices from now on, each on the board and with the radio that it always had."""
        self.fleet = fleet
        self._group = {d: group for group in groups for d in (*group.devices, *group.tests)}
        self._is_one_model = len({id(group.program) for group in groups}) == 1
        self._boards = np.zeros((3, max(self._group, default=0) + 1))  # cycles of a MAC, clock and power by device
        for board in {id(group.board): group.board for group in self._group.values()}.values():
            at = [device for device, group in self._group.items() if group.board is board]
            self._boards[:, at] = np.asarray([[board.cycles_per_mac_f32], [board.clock_hz], [board.active_w]])
        self._layers = {
            id(part): count.layers(part, group.program.input_shape)
            for group in {id(group): group for group in self._group.values()}.values()
            for part in (group.program.module, group.program.front)
        }

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Frames, charges and delivers the message, and the replies; a device whose frame is lost for good is absent.

        Raises: EngineError if every device answered with numbers that are not finite.
        """
        return self.exchange_parts([(message, self.devices if devices is None else devices)], key=key)[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with several messages in one step, which lasts as long as its slowest device."""
        asked = [device for _, devices in parts for device in devices]
        at, step = np.asarray(asked, np.int64), Step(key, *self._spent)
        self._spent[:, at] = 0.0
        self.carrier.begin(key.round, asked)
        given = [join([self._deliver(*own, step) for own in self._split(*part)] or [gather({})]) for part in parts]
        if self.band is not None and step.downloads:
            self._share_down(self.band, step)
        if self.pace is not None:
            self._spent[:, at] *= np.asarray([self.pace(device) for device in asked])
        if self.band is not None and step.uploads:
            given = self._share(self.band, given, step)
        self.seconds = Times(at, step.seconds[at], step.busy[at])
        self.ledger.air_seconds += float(self.seconds.air_s.max(initial=0.0))
        self.ledger.compute_seconds += float(self.seconds.busy_s.max(initial=0.0))
        if step.refused and step.refused == step.answered:
            raise EngineError(
                f"round {key.round}: all {step.refused} devices sent numbers that are not finite, so training "
                "diverged; lower scheme.lr (or large.lr for a split scheme)"
            )
        return given

    def again(self) -> None:
        """Draws what is lost in a round from the beginning, for it is repeated."""
        self._turn = (-1, 0)

    def _share_down(self, band: Band, step: Step) -> None:
        """Charges devices for what they were sent in the band that they share. Limits: one whose battery empties by it
        has still heard it."""
        now = {device: self.carrier.conditions(device) for own in step.downloads.values() for device in own.tries}
        frames = list(step.downloads.values())
        heard = band.share_down(frames, now, round=step.key.round, now_s=self.ledger.simulated_seconds)
        for device, (wait_s, receive_s, energy_j) in heard.items():
            self.spending.wait(device, wait_s)
            self.spending.charge(device, "receive", energy_j, receive_s)
            step.seconds[device] += wait_s + receive_s

    def _share(self, band: Band, given: list[Replies], step: Step) -> list[Replies]:
        """Lets the devices of a step send in the band that they share; gives the replies of those that could."""
        uploads = {
            device: Upload(
                num_bytes, self.elapsed.get(device, 0.0) + float(step.seconds[device]) + float(step.busy[device])
            )
            for device, num_bytes in step.uploads.items()
        }
        now = {device: self.carrier.conditions(device) for device in uploads}
        sent = band.share(
            uploads, now, round=step.key.round, now_s=self.ledger.simulated_seconds, deadline_s=self.deadline_s
        )
        for device, own in sent.items():
            self.spending.wait(device, own.wait_s)
            self.spending.charge(device, "transmit", own.energy_j, own.send_s)
            step.seconds[device] += own.wait_s + own.send_s
        kept = [
            [place for place, d in enumerate(part.devices) if d in sent and not self.spending.is_empty(d)]
            for part in given
        ]
        self.ledger.absent += sum(len(part) - len(places) for part, places in zip(given, kept, strict=True))
        return [
            part if len(places) == len(part) else part.of_places(places) if places else gather({})
            for part, places in zip(given, kept, strict=True)
        ]

    def _split(self, message: Message, devices: Sequence[int]) -> list[tuple[Message, list[int]]]:
        """Gives the message for the devices with one model, for those with another, and so on."""
        asked, kinds = list(devices), dict[int, list[int]]()
        if self._is_one_model:
            return [(message, asked)] if asked else []
        for place, device in enumerate(asked):
            kinds.setdefault(id(self._group[device].program), []).append(place)
        if len(kinds) == 1:
            return [(message, asked)]
        return [(message.of_places(places), [asked[place] for place in places]) for places in kinds.values()]

    def _deliver(self, message: Message, asked: list[int], step: Step) -> Replies:
        """Does the exchange with devices that have one model."""
        key = step.key
        self._turn = (key.round, self._turn[1] + 1 if self._turn[0] == key.round else 0)
        step.turn = self._turn[1]
        self.updates.begun(key.round)
        program, num_asked = self._group[asked[0]].program, len(asked)
        if not self.carrier.all_are_there():
            there = [place for place, device in enumerate(asked) if self.carrier.is_there(device)]
            if not there:
                self.ledger.absent += num_asked
                return gather({})
            message, asked = message.of_places(there), [asked[place] for place in there]
        reached, delivered = self._down(message, asked, program, step)
        for device in reached if message.op == Op.FORWARD else ():
            self.coding.begun(message, device, key)
        replies = self.fleet.exchange(delivered, key=key, devices=reached) if reached else gather({})
        self._compute(message, program, replies, step)
        answers = self._up(message.op, replies, program, step)
        self.ledger.absent += num_asked - len(answers)
        if message.op in (Op.FIT, Op.BACKWARD):
            self.ledger.updates += len(answers)
        if message.op == Op.LOAD:
            self.coding.loaded(answers)
        return answers

    def _down(self, message: Message, asked: list[int], program: Program, step: Step) -> tuple[Sequence[int], Message]:
        """Sends the message; gives the devices that it reached and the message as these unpacked it."""
        alike, many = not message.each and not message.each_settings, Many.of(asked)
        if alike and many is not None and not self.updates.tells_apart:
            return self._down_alike(message, many, program, step)
        told = self.updates.asked(message, step.turn, asked[0])
        packed: dict[tuple[int, int], _Down] = {}
        places: list[int] = []
        reached: list[_Down] = []
        for place, device in enumerate(asked):
            number = self.updates.like(device) if alike else (place, 0)
            if number not in packed:
                if self.updates.bits:
                    told = self.updates.asked(message, step.turn, device)
                made = self._packed(message.for_device(place), told, device, step, alike=alike)
                packed[number] = self._framed(*made)
            down = packed[number]
            if not self.carrier.carry(device, down.data, down.kinds, step, up=False):
                continue
            if not down.devices:
                self._read(down, device, program)
            down.devices.append(device)
            reached.append(down)
            places.append(place)
        for down in packed.values():
            self.updates.keep(down.devices, down.sent, down.wanted, down.got)
        if not places:
            return [], message
        if self.updates.bits:  # the link codes for devices that do so in unlike ways, so an engine isn't told
            told = {}
        return [asked[place] for place in places], _delivered(message.of_places(places), reached, told)

    def _down_alike(self, message: Message, many: Many, program: Program, step: Step) -> tuple[Sequence[int], Message]:
        """Does so where all devices are sent the same frame."""
        told = self.updates.asked(message, step.turn, many.devices[0])
        wanted, sent, made = self._packed(message, told, many.devices[0], step, alike=True)
        laid = frames.alone(made) if made.tree.keys() <= program.initial.keys() else None
        through = None if laid is None else framing.written(laid, keeps=self.carrier.log is not None)
        if through is not None and through.sound.all() and through.num_bytes <= frame.MAX_BYTES:
            data = b"" if through.data is None else through.data.tobytes()
            down = _Down(wanted, sent, through.num_bytes, through.kinds, data, frames.came(made.tree))
        else:
            down = self._framed(wanted, sent, made)
        logged = [down.data] * len(many.devices) if self.carrier.log is not None else ()
        came = many.where(self.carrier.carry_alike(many, down.num_bytes, down.kinds, step, up=False, frames=logged))
        if not len(came.devices):
            return [], message
        self._read(down, came.devices[0], program)
        self.updates.keep(came.devices, sent, wanted, down.got)
        coded = () if sent.as_coded is None else (sent.as_coded,) * len(came.devices)
        settings, shared = {**message.settings, **told}, {name: down.got[name] for name in message.tree}
        return came.devices, Message(message.op, shared, {}, message.rows, settings, {}, coded)

    def _read(self, down: _Down, device: int, program: Program) -> None:
        """Reads a frame as the first device does that it reached."""
        whole = frame.unpack(down.data, program.initial).tree if down.read is None else down.read
        whole = self.coding.arrived(down.wanted, whole, device, up=False)
        down.got = self.updates.came_down(down.sent, down.wanted, whole)

    def _packed(
        self, own: Message, told: Settings, device: int, step: Step, *, alike: bool
    ) -> tuple[Tree, Sent, Frame]:
        """Gives what is sent to a device, or to all that get the same: as meant, as sent, and its frame."""
        key, named = step.key, _ANY_DEVICE if alike else device
        wanted = self.coding.wanted(own.tree, named, up=False)
        sent = self.updates.send_down(wanted, device, key, step.turn)
        coded = {**sent.coded, **self.coding.code(sent.tree, named, key, step.turn, up=False)}
        return wanted, sent, Frame(own.op, False, key.round, named, {**own.settings, **told}, sent.tree, coded=coded)

    def _framed(self, wanted: Tree, sent: Sent, made: Frame) -> _Down:
        data = frame.pack(made)
        return _Down(wanted, sent, len(data), frame.bytes_by_kind(made), data)

    def _up(self, op: Op, replies: Replies, program: Program, step: Step) -> Replies:
        """Codes and sends the replies; gives those that came through whole."""
        key, many = step.key, None if self._is_coded(replies, program) else Many.of(replies.devices)
        made_alike = None if many is None else framing.pack(op, key.round, replies, keeps=self.carrier.log is not None)
        if many is not None and made_alike is not None and made_alike.num_bytes <= frame.MAX_BYTES:
            return self._up_alike(made_alike, many, replies, step)
        answers: dict[int, Reply] = {}
        voted: dict[int, tuple[tuple[str, ...], Floats]] = {}
        for device, reply in replies:
            if self.spending.is_empty(device):
                continue
            step.answered += 1
            try:
                wanted = self.coding.wanted(reply.tree, device, up=True)
                made = self.updates.send_up(wanted, device, key, step.turn, reply.coded)
                coded = {**made.coded, **self.coding.code(made.tree, device, key, step.turn, up=True)}
            except FrameError:
                self.ledger.refused += 1
                step.refused += 1
                continue
            self._busy(device, sum(code.macs for code in coded.values()), step)
            sent = Frame(op, True, key.round, device, {}, made.tree, reply.weight, reply.metrics, coded)
            data, kinds = frame.pack(sent), frame.bytes_by_kind(sent)
            if not self.carrier.carry(device, data, kinds, step, up=True):
                continue
            try:
                got = frame.unpack(data, program.initial, _METRICS)
            except FrameError:
                self.ledger.refused += 1
                step.refused += 1
                continue
            whole = self.coding.arrived(wanted, got.tree, device, up=True)
            if UPDATE in whole and self.updates.votes:
                voted[device] = made.names, whole[UPDATE].numpy()
            whole = self.updates.came_up(made, wanted, whole, device, own=reply.coded is not None)
            answers[device] = Reply(whole, got.weight, got.metrics)
        return gather(self.updates.decided(answers, voted))

    def _is_coded(self, replies: Replies, program: Program) -> bool:
        """Tells whether replies may be anything but a model's tensors as they are."""
        is_plain = replies.tree.keys() <= program.initial.keys() and replies.metrics.keys() <= set(_METRICS)
        return self.updates.is_on or bool(replies.coded) or not is_plain

    def _up_alike(self, made: Frames, many: Many, replies: Replies, step: Step) -> Replies:
        """Sends replies whose frames are of one layout; gives those that came through whole."""
        kept = np.ones(len(many.devices), np.bool_)
        if self.ledger.gone:
            kept = np.asarray([not self.spending.is_empty(device) for device in many.devices])
        step.answered += int(kept.sum())
        sending = many.where(kept)
        if len(sending.devices):
            logged = [] if made.data is None else [row.data for row in made.data[kept]]
            kept[kept] = self.carrier.carry_alike(sending, made.num_bytes, made.kinds, step, up=True, frames=logged)
        refused = int((kept & ~made.sound).sum())
        self.ledger.refused += refused
        step.refused += refused
        kept &= made.sound
        rows = torch.zeros_like(replies.rows)
        whole = Replies(replies.devices, frames.came(replies.tree), rows, replies.weight, replies.metrics)
        return whole if kept.all() else whole.of_places(np.flatnonzero(kept).tolist())

    def _compute(self, message: Message, program: Program, replies: Replies, step: Step) -> None:
        """Charges the devices for their boards' energy and time."""
        layers = self._layers[id(program.front if message.op in (Op.FORWARD, Op.BACKWARD) else program.module)]
        trained = program.names(str(message.settings.get("train", "front" if message.op == Op.BACKWARD else "none")))
        is_tail = "z" in message.each and program.tail is not None
        if is_tail and program.tail is not None:
            layers = count.layers(program.tail, tuple(message.each["z"].shape[2:]))
            trained = tuple(name.removeprefix("tail.") for name in program.names("tail"))
        passes = rules.cost(message.settings).passes if message.op == Op.FIT else 1.0
        macs = passes * budget.macs_per_example(layers, message.op, trained, is_tail=is_tail)
        rows = replies.metrics["rows"].numpy() if "rows" in replies.metrics else np.zeros(len(replies))
        if "nopeek" in message.settings and not is_tail:  # the distances of all pairs of rows, and their gradients
            width = math.prod(program.input_shape) + math.prod(message.each["g"].shape[2:])
            self._busy_alike(replies.devices, rows * (macs + 2 * rows * width), step)
        else:
            self._busy_alike(replies.devices, rows * macs, step)

    def _busy_alike(self, devices: tuple[int, ...], macs: Doubles, step: Step) -> None:
        """Does what `_busy` does for the devices of a cohort. Shapes: [D]."""
        many = Many.of(devices)
        if many is None:
            for device, num in zip(devices, macs.tolist(), strict=True):
                self._busy(device, num, step)
            return
        cycles, clock_hz, active_w = self._boards[:, many.at]
        busy_s = macs * cycles / clock_hz
        self.spending.charge_all(many.at, "compute", busy_s * active_w, busy_s)
        step.busy[many.at] += busy_s

    def _busy(self, device: int, macs: float, step: Step) -> None:
        """Charges a device for multiplications."""
        board = self._group[device].board
        busy_s = macs * board.cycles_per_mac_f32 / board.clock_hz
        self.spending.charge(device, "compute", busy_s * board.active_w, busy_s)
        step.busy[device] += busy_s


def _delivered(part: Message, reached: list[_Down], told: Settings) -> Message:
    """Gives the message as the devices that it reached unpacked it: what isn't the same for all is each one's own."""
    unpacked = [down.got for down in reached]
    differs = len({id(tree) for tree in unpacked}) > 1
    own = [*part.each, *(name for name in part.tree if differs and not part.each and name not in ROW_KINDS)]
    each = {
        name: (
            pad_rows([got[name] for got in unpacked], int(max(len(got[name]) for got in unpacked)))
            if name in ROW_KINDS
            else torch.stack([got[name] for got in unpacked])
        )
        for name in own
    }
    shared = {name: unpacked[0][name] for name in part.tree if name not in each}
    coded = tuple(down.sent.as_coded for down in reached)
    how = coded if any(coded) else ()
    return Message(part.op, shared, each, part.rows, {**part.settings, **told}, part.each_settings, how)
