"""An exchange as bytes, and its replies: `link.frame` for the tensors, and around it what a fleet's call has beside.

A frame is of one device; here one frame holds the tensors of all devices of a gateway side by side, so a cohort costs
one frame and not hundreds. What a frame has no place for (which devices, counts, weights and metrics in double
precision) lies before it, little-endian. The layout is in docs/wire.md. Whatever is read is checked against the model
that the devices hold before anything uses it.

Shape letters: D devices of a gateway that are asked or answer, B rows of a device, padded to the longest.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import FrameError, MidhaulError
from midhaul.fleet import Group
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, SETTINGS, CodedWeights, Message, Op, Replies, Setting
from midhaul.models import trace
from midhaul.program import Program
from midhaul.runtime import again
from midhaul.runtime.again import Again
from midhaul.runtime.envelope import MAX_BYTES, Refusal, Refused
from midhaul.runtime.reading import Reader, text_of
from midhaul.tree import Tree, all_finite

MAX_DEVICES = 1 << 20  # of one gateway
MAX_BEFORE = 1024  # payloads that are remembered
METRICS = ("rows", "loss", "correct")  # the order is the number on the wire: append, never reorder
_ANY = 0xFFFFFFFF
_OPS = frozenset(map(int, Op))
_ASK = struct.Struct("<QIIIIBBBBII")  # seed round device use, devices op flags settings attempt bases coded
_ANSWER = struct.Struct("<IIHHI")  # devices refused metrics 0 coded
_ROWS, _KEEPS = 1, 2  # flags of an ask
_U32 = struct.Struct("<I")
_TYPES = (int, float, str)  # the place is the number on the wire
_FIXED = (struct.Struct("<q"), struct.Struct("<d"))
_SHAPING = threading.Lock()  # answers are read in many threads, and a module is in one mode at a time


@dataclass(frozen=True)
class Models:
    """What lies on the devices of a run, as what comes over a wire is checked against it."""

    programs: dict[int, Program]  # of each device

    @staticmethod
    def of(groups: Sequence[Group]) -> Models:
        return Models({device: group.program for group in groups for device in (*group.devices, *group.tests)})

    @cached_property
    def kinds(self) -> tuple[Program, ...]:
        """The programs, each once, in the order of the first device that has it."""
        return tuple({id(program): program for _, program in sorted(self.programs.items())}.values())

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor that a device may be sent or send, less those of rows."""
        return frozenset(name for program in self.kinds for name in program.initial)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names, types and shapes on the devices: two sides with another can't work together."""
        told = [f"{n} {v.dtype} {tuple(v.shape)}" for program in self.kinds for n, v in program.initial.items()]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def check(self, replies: Replies, widest: int) -> None:
        """Refuses tensors that the devices' model can't have sent; `widest` is the most rows of one.

        Raises: Refused.
        """
        if widest and not replies.tree.keys() & ROW_KINDS.keys():
            raise Refused(Refusal.MALFORMED, f"a reply says {widest} rows and has none")
        programs = {id(p): p for p in (self.programs[device] for device in replies.devices)}.values()
        for name, value in replies.tree.items():
            if name in ROW_KINDS:
                self._check_rows(name, value, replies, widest)
                continue
            for program in programs:
                wanted = program.initial.get(name)
                if wanted is None or value.shape[1:] != wanted.shape or not _same_kind(value, wanted):
                    raise Refused(
                        Refusal.MALFORMED,
                        f"a reply has {name} of {value.dtype} and shape {tuple(value.shape[1:])}, which device "
                        f"{replies.devices[0]}'s model can't have sent",
                    )

    def _check_rows(self, name: str, value: Tensor, replies: Replies, widest: int) -> None:
        if value.ndim < 2 or (widest and value.shape[1] != widest):
            raise Refused(
                Refusal.MALFORMED, f"a reply has {name} of shape {tuple(value.shape)} for at most {widest} rows each"
            )
        wanted = self._row_shape(name, self.programs[replies.devices[0]]) if len(replies) else None
        if wanted is not None and tuple(value.shape[2:]) != wanted:
            raise Refused(
                Refusal.MALFORMED, f"a reply has rows of {name} of shape {tuple(value.shape[2:])}; they have {wanted}"
            )

    def _row_shape(self, name: str, program: Program) -> tuple[int, ...] | None:
        """Gives the shape of one row where the model alone says it."""
        if name == "x":
            return program.input_shape
        if name not in ("h", "logits"):
            return None
        with _SHAPING:
            found = self._shapes.get((name, id(program)))
            if found is None:
                with torch.no_grad():
                    x = trace.example(program.module, program.input_shape, 1)
                    call = program.call_front if name == "h" else program.call
                    found = tuple(call(program.initial, x, training=False)[0].shape[1:])
                self._shapes[name, id(program)] = found
        return found

    @cached_property
    def before(self) -> dict[tuple[int, int, bool], Again]:
        """The last payload read of each op and first device, asks and replies (True): the next may be like it."""
        return {}

    @cached_property
    def _shapes(self) -> dict[tuple[str, int], tuple[int, ...]]:
        return {}


@dataclass(frozen=True)
class Ask:
    """What a gateway is asked: `attempt` counts the repetitions of a round from 0, and with `keeps` the gateway keeps
    what its devices remember at the beginning of a round, to go back to it."""

    message: Message
    devices: tuple[int, ...]
    key: rng.Key
    attempt: int = 0
    keeps: bool = False


@dataclass(frozen=True)
class Answer:
    """What a gateway answers: the replies, and the devices whose numbers weren't finite."""

    replies: Replies
    unsound: tuple[int, ...] = ()


def pack_shared(message: Message, round: int) -> bytes:
    """Gives what goes to all devices alike, once for all gateways."""
    return frame.pack(Frame(message.op, False, round, _ANY, message.settings, message.tree))


def pack_ask(ask: Ask, shared: bytes) -> bytes:
    """Gives an ask's bytes; `shared` is what `pack_shared` made of its message."""
    message, num, key = ask.message, len(ask.devices), ask.key
    body: list[bytes] = [_numbers(ask.devices)]
    if message.rows is not None:
        body.append(_numbers(message.rows.tolist()))
    for name, values in message.each_settings.items():
        body.append(bytes([SETTINGS.index(name)]))
        body.extend(_pack_value(name, value) for value in values)
    bases = {id(coded.base): coded.base for coded in message.coded if coded is not None}
    place = {number: at for at, number in enumerate(bases)}
    body.extend(_sized(frame.pack(Frame(message.op, False, key.round, _ANY, tree=base))) for base in bases.values())
    told = [(at, coded) for at, coded in enumerate(message.coded) if coded is not None]
    for at, coded in told:
        body += [_U32.pack(at), _U32.pack(place[id(coded.base)])]
        body += [_sized("\n".join(coded.names).encode()), _sized(coded.data)]
    flags = _ROWS * (message.rows is not None) | _KEEPS * ask.keeps
    counts = (len(message.each_settings), ask.attempt, len(bases), len(told))
    head = _ASK.pack(key.seed, key.round, key.device, key.use, num, int(message.op), flags, *counts)
    each = frame.pack(Frame(message.op, False, key.round, _ANY, tree=message.each)) if message.each else b""
    return b"".join((head, *body, _sized(shared), _sized(each)))


def unpack_ask(data: bytes, models: Models, max_bytes: int = MAX_BYTES) -> Ask:
    """Gives an ask again. Raises: Refused for whatever isn't one."""
    if len(data) <= max_bytes and (like := models.before.get(_place(data))) and (each := like.read(data)) is not None:
        ask: Ask = like.made
        message = ask.message
        return replace(ask, message=Message(message.op, message.tree, each, message.rows, message.settings))
    reader = Reader(data)
    seed, round, device, use, num, op, flags, num_settings, attempt, num_bases, num_coded = reader.unpack(_ASK)
    if op not in _OPS or flags & ~(_ROWS | _KEEPS) or not 0 < num <= MAX_DEVICES or num_coded > num:
        raise Refused(Refusal.MALFORMED, f"an ask of op {op}, flags {flags} and {num} devices isn't known here")
    devices = reader.numbers(num)
    if len(set(devices)) < num or not models.programs.keys() >= set(devices):
        raise Refused(Refusal.MALFORMED, "an ask names a device twice, or one that the run doesn't have")
    rows = torch.tensor(reader.numbers(num), dtype=torch.int64) if flags & _ROWS else None
    each_settings: dict[str, tuple[Setting, ...]] = {}
    for _ in range(num_settings):
        (number,) = reader.take(1)
        if number >= len(SETTINGS) or SETTINGS[number] in each_settings:
            raise Refused(Refusal.MALFORMED, f"an ask has setting number {number} twice, or it isn't known here")
        each_settings[SETTINGS[number]] = tuple(_read_value(reader) for _ in range(num))
    bases = [_frame(reader.sized(), models, max_bytes).tree for _ in range(num_bases)]
    coded: list[CodedWeights | None] = [None] * num if num_coded else []
    for _ in range(num_coded):
        (at,), (base,) = reader.unpack(_U32), reader.unpack(_U32)
        names, code = tuple(text_of(reader.sized()).split("\n")), bytes(reader.sized())
        if at >= num or base >= len(bases) or not set(names) <= models.names:
            raise Refused(Refusal.MALFORMED, "an ask has coded weights of a device or a tensor that it doesn't name")
        coded[at] = CodedWeights(code, names, bases[base])
    shared, differing = _frame(reader.sized(), models, max_bytes), reader.sized()
    frames = [shared, *([_frame(differing, models, max_bytes)] if len(differing) else [])]
    reader.end()
    if any(f.op != op or f.round != round or f.is_reply for f in frames):
        raise Refused(Refusal.MALFORMED, "an ask's frames are of another op or round than it is")
    each = frames[1].tree if len(frames) > 1 else {}
    if any(value.ndim < 1 or len(value) != num for value in each.values()):
        raise Refused(Refusal.MALFORMED, f"an ask of {num} devices has tensors of another number")
    whole = Message(Op(op), shared.tree, each, rows, shared.settings, each_settings, tuple(coded))
    ask = Ask(whole, devices, rng.Key(seed, round, device, use), attempt, bool(flags & _KEEPS))
    if each and not (num_coded or num_settings or shared.tree):
        made = replace(ask, message=replace(whole, each={}))
        _keep(models, _place(data), again.remember(data, len(data) - len(differing), frames[1], made))
    return ask


def _place(data: bytes) -> tuple[int, int, bool]:
    """Gives where an ask like this one would be remembered: by its op and first device."""
    return (data[24], _U32.unpack_from(data, _ASK.size)[0], False) if len(data) >= _ASK.size + 4 else (0, 0, False)


def _keep(models: Models, place: tuple[int, int, bool], like: Again | None) -> None:
    if like is None:
        return
    if len(models.before) >= MAX_BEFORE and place not in models.before:
        models.before.clear()  # most are of rounds that are over
    models.before[place] = like


def pack_answer(answer: Answer, op: Op, round: int) -> bytes:
    """Gives an answer's bytes. Raises: FrameError for a metric that the wire has no place for."""
    replies = answer.replies
    if odd := replies.metrics.keys() - set(METRICS):
        raise FrameError(f"the stream has no place for the metric {sorted(odd)[0]}")
    head = _ANSWER.pack(len(replies), len(answer.unsound), len(replies.metrics), 0, len(replies.coded))
    body = [_numbers(replies.devices), _numbers(answer.unsound)]
    body += [_numbers(replies.rows.tolist()), _f64s(replies.weight)]
    for name, values in replies.metrics.items():
        body += [bytes([METRICS.index(name)]), _f64s(values)]
    for device, code in replies.coded.items():
        body += [_U32.pack(device), _sized(code)]
    return b"".join((head, *body, _sized(frame.pack(Frame(op, True, round, _ANY, tree=replies.tree)))))


def unpack_answer(data: bytes, ask: Ask, models: Models, max_bytes: int = MAX_BYTES) -> Answer:
    """Gives an answer to this ask, fit for use. Raises: Refused for whatever isn't one."""
    place = (ask.message.op, ask.devices[0], True)
    like = models.before.get(place) if len(data) <= max_bytes else None
    if like is not None and like.made[:2] == (ask.devices, ask.key.round) and (came := like.read(data)) is not None:
        old: Replies = like.made[2]
        return Answer(Replies(old.devices, came, old.rows, old.weight, old.metrics))
    reader = Reader(data)
    num, num_unsound, num_metrics, zero, num_coded = reader.unpack(_ANSWER)
    if zero or num + num_unsound > len(ask.devices) or num_metrics > len(METRICS) or num_coded > num:
        raise Refused(Refusal.MALFORMED, f"{num} replies and {num_metrics} metrics came of {len(ask.devices)} devices")
    devices, unsound = reader.numbers(num), reader.numbers(num_unsound)
    named = {*devices, *unsound}
    if len(named) < num + num_unsound or not named <= set(ask.devices) or list(devices) != sorted(devices):
        raise Refused(Refusal.MALFORMED, "a reply is of a device that wasn't asked, or of one twice, or out of order")
    rows, weight = reader.numbers(num), reader.f64s(num, "weight")
    if min(weight, default=0.0) < 0.0:
        raise Refused(Refusal.MALFORMED, "a reply has a weight below 0")
    metrics: dict[str, tuple[float, ...]] = {}
    for _ in range(num_metrics):
        (number,) = reader.take(1)
        if number >= len(METRICS) or METRICS[number] in metrics:
            raise Refused(Refusal.MALFORMED, f"a reply has metric number {number} twice, or it isn't known here")
        metrics[METRICS[number]] = reader.f64s(num, METRICS[number])
    coded: dict[int, bytes] = {}
    for _ in range(num_coded):
        (device,) = reader.unpack(_U32)
        if device not in devices or device in coded:
            raise Refused(Refusal.MALFORMED, f"a reply has coded weights of device {device}, which didn't answer")
        coded[device] = bytes(reader.sized())
    body = reader.sized()
    found = _frame(body, models, max_bytes)
    reader.end()
    if (found.op, found.round, found.is_reply) != (ask.message.op, ask.key.round, True):
        kind = Refusal.STALE if found.round < ask.key.round else Refusal.MALFORMED
        raise Refused(
            kind,
            f"{ask.message.op.name} of round {ask.key.round} was answered by {found.op.name} of round {found.round}",
        )
    if any(value.ndim < 1 or len(value) != num for value in found.tree.values()):
        raise Refused(Refusal.MALFORMED, f"{num} replies have tensors of another number")
    replies = Replies(
        devices,
        found.tree,
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float64),
        {name: torch.tensor(values, dtype=torch.float64) for name, values in metrics.items()},
        coded,
    )
    models.check(replies, max(rows, default=0))
    if not (unsound or num_coded):
        made = (ask.devices, ask.key.round, replace(replies, tree={}))
        _keep(models, place, again.remember(data, len(data) - len(body), found, made))
    return Answer(replies, unsound)


def sound(replies: Replies) -> Answer:
    """Gives the replies whose numbers are all finite, and names the devices of the others."""
    values = (*replies.metrics.values(), *(v for v in replies.tree.values() if v.is_floating_point()))
    if min(replies.weight.tolist(), default=0.0) >= 0.0 and all(map(all_finite, (replies.weight, *values))):
        return Answer(replies)
    fine = torch.isfinite(replies.weight) & (replies.weight >= 0.0)
    for value in values:
        fine &= torch.isfinite(value).reshape(len(replies), -1).all(1)
    kept = fine.nonzero().ravel().tolist()
    odd = tuple(device for device, is_fine in zip(replies.devices, fine.tolist(), strict=True) if not is_fine)
    return Answer(replies.of_places(kept), odd)


def pack_tree(whole: Tree) -> bytes:
    """Gives a tree of any names as a frame behind the list of these names: what devices remember has paths for names.

    Raises: FrameError for what the wire has no place for.
    """
    return _sized("\n".join(whole).encode()) + frame.pack(Frame(Op.READ, True, 0, _ANY, tree=whole))


def unpack_tree(data: bytes, max_bytes: int = MAX_BYTES) -> Tree:
    """Gives the tree again. Raises: Refused for whatever isn't one, numbers that aren't finite among it."""
    reader = Reader(data)
    text = text_of(reader.sized())
    names = text.split("\n") if text else []
    found = _unpacked(reader.rest(), names, max_bytes).tree
    if list(found) != names:
        raise Refused(Refusal.MALFORMED, "a tree holds other tensors than it says")
    return found


def _frame(data: memoryview, models: Models, max_bytes: int) -> Frame:
    return _unpacked(data, models.names, max_bytes)


def _unpacked(data: memoryview, names: Sequence[str] | frozenset[str], max_bytes: int) -> Frame:
    try:
        return frame.unpack(data, names, max_bytes=max_bytes)
    except FrameError as error:
        kind = Refusal.NON_FINITE if "aren't finite" in str(error) else Refusal.MALFORMED
        raise Refused(kind, str(error)) from None


def _pack_value(name: str, value: Setting) -> bytes:
    if isinstance(value, bool) or not isinstance(value, _TYPES):
        raise MidhaulError(f"setting {name} is a {type(value).__name__}; the wire takes whole numbers, floats and text")
    if isinstance(value, str):
        return bytes([2]) + _sized(value.encode())
    if isinstance(value, float) and not math.isfinite(value):
        raise MidhaulError(f"setting {name} is {value}; it must be finite")
    number = int(isinstance(value, float))
    return bytes([number]) + _FIXED[number].pack(value)


def _read_value(reader: Reader) -> Setting:
    (number,) = reader.take(1)
    if number == 2:
        return text_of(reader.sized())
    if number > 2:
        raise Refused(Refusal.MALFORMED, f"a setting of type {number}; types are 0 to 2")
    value: Setting = reader.unpack(_FIXED[number])[0]
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(Refusal.NON_FINITE, f"a setting is {value}; it must be finite")
    return value


def _sized(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _f64s(values: Tensor) -> bytes:
    return struct.pack(f"<{len(values)}d", *values.tolist())


def _same_kind(value: Tensor, wanted: Tensor) -> bool:
    """Tells whether both are floating or both whole numbers: the wire narrows and widens the latter."""
    return value.is_floating_point() == wanted.is_floating_point()
