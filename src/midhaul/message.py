"""What passes between a server and its devices: ops, messages and replies.

Shape letters: D devices addressed, B rows (examples) of a device, padded to the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

import torch
from torch import Tensor

from midhaul.errors import MidhaulError
from midhaul.tree import Tree

Setting = int | float | str
Settings = dict[str, Setting]


class Op(IntEnum):
    """The closed list of what a device can be asked to do. The numbers are on the wire and in C."""

    LOAD = 1
    READ = 2
    FIT = 3
    ADAPT = 4
    FORWARD = 5
    BACKWARD = 6
    EVALUATE = 7
    PREDICT = 8
    HELLO = 9
    PUSH = 10
    STATS = 11


# What only a device over a byte stream is asked: who it is, to take rows as from a sensor, and what it spent.
HOUSEKEEPING = (Op.HELLO, Op.PUSH, Op.STATS)


class Kind(StrEnum):
    """What a tensor on the wire tells of a device; the report adds up bytes by kind."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    LOGITS = "logits"
    LABELS = "labels"
    EXAMPLES = "examples"


# Names of tensors that hold one row an example. No parameter may have such a name; every other name is a weight.
ROW_KINDS: dict[str, Kind] = {
    "h": Kind.ACTIVATIONS,
    "z": Kind.ACTIVATIONS,
    "g": Kind.GRADIENTS,
    "logits": Kind.LOGITS,
    "y": Kind.LABELS,
    "x": Kind.EXAMPLES,
}

UPDATE = "update"  # the weights of a frame in one, where the link codes them; no parameter may have this name either

# Every setting that an op knows, in the order of its number on the wire. Append, never reorder.
SETTINGS: tuple[str, ...] = (
    "lr",
    "momentum",
    "weight_decay",
    "batch",
    "epochs",
    "steps",
    "loss",
    "proximal_mu",
    "temperature",
    "soft_weight",
    "train",
    "send",
    "rows",
    "step",
    "what",
    "clip",
    "epoch",
    "scale",
    "seed_low",
    "seed_high",
    "rule",
    "inner_lr",
    "inner_steps",
    "inner_train",
    "noise",
    "order",
    "nopeek",
    "support",
    "seeds",
    "code",
    "share",
    "stream",
)


def kind_of(name: str) -> Kind:
    """Gives the kind of a tensor by its name."""
    return ROW_KINDS.get(name, Kind.WEIGHTS)


@dataclass(frozen=True)
class CodedWeights:
    """The weights of a message as they travelled to a device: the bytes, which weights they stand for, and what they
    are a difference to."""

    data: bytes
    names: tuple[str, ...]
    base: Tree


@dataclass(frozen=True)
class Message:
    """One op for many devices.

    `tree` goes to all alike; `each` holds [D, ...] tensors, one entry a device in the order addressed; its row-wise
    tensors (`ROW_KINDS`) are padded along axis 1 and `rows` [D] counts the valid ones. `settings` are the same for all,
    `each_settings` one value a device. `coded` tells, for each device if for any, how its weights travelled.
    """

    op: Op
    tree: Tree = field(default_factory=dict)
    each: Tree = field(default_factory=dict)
    rows: Tensor | None = None
    settings: Settings = field(default_factory=dict)
    each_settings: dict[str, tuple[Setting, ...]] = field(default_factory=dict)
    coded: tuple[CodedWeights | None, ...] = ()

    def __post_init__(self) -> None:
        if unknown := (self.settings.keys() | self.each_settings.keys()) - set(SETTINGS):
            raise MidhaulError(f"no op has a setting named {', '.join(sorted(unknown))}")

    def for_device(self, place: int) -> Message:
        """Gives the message as the device in that place of the cohort gets it: no padding, nothing of the others."""
        if not self.each and not self.each_settings and not self.coded:
            return self
        return Message(
            self.op,
            {**self.tree, **cut_rows({n: v[place] for n, v in self.each.items()}, _count(self.rows, place))},
            settings={**self.settings, **{n: v[place] for n, v in self.each_settings.items()}},
            coded=self.coded[place : place + 1],
        )

    def of_places(self, places: list[int]) -> Message:
        """Gives the same message addressed to fewer devices."""
        if not self.each and not self.each_settings and not self.coded:
            return self
        nums = [*map(len, self.each.values()), *map(len, self.each_settings.values()), len(self.coded)]
        if places == list(range(max(nums))):  # all of them
            return self
        at = torch.tensor(places, dtype=torch.int64)
        return replace(
            self,
            each={name: value[at] for name, value in self.each.items()},
            rows=None if self.rows is None else self.rows[at],
            each_settings={name: tuple(values[p] for p in places) for name, values in self.each_settings.items()},
            coded=tuple(self.coded[p] for p in places) if self.coded else (),
        )


@dataclass(frozen=True)
class Reply:
    """One device's answer: a tree without padding, how many examples stand behind it, and scalars. `coded` are the
    bytes of its update, if the device coded it itself."""

    tree: Tree
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)
    coded: bytes | None = None


@dataclass(frozen=True)
class Replies:
    """The answers of those that answered.

    Shapes: `tree` [D, ...], row-wise tensors padded along axis 1 with zeros; `rows` [D] valid rows; `weight` [D]
    examples behind each reply; `metrics` name -> [D]. `coded`: the bytes of its update, of each device that coded it
    itself.
    """

    devices: tuple[int, ...]
    tree: Tree
    rows: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]
    coded: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.devices)

    def __iter__(self) -> Iterator[tuple[int, Reply]]:
        for place, device in enumerate(self.devices):
            yield device, self.reply(place)

    def reply(self, place: int) -> Reply:
        """Gives the answer in that place, without padding."""
        tree = cut_rows({name: value[place] for name, value in self.tree.items()}, _count(self.rows, place))
        metrics = {name: float(value[place]) for name, value in self.metrics.items()}
        return Reply(tree, float(self.weight[place]), metrics, self.coded.get(self.devices[place]))

    def of_places(self, places: list[int]) -> Replies:
        """Gives the answers in these places alone."""
        rows = self.rows[places]
        widest = int(rows.max()) if len(places) else 0
        return Replies(
            tuple(self.devices[place] for place in places),
            {n: v[places][:, :widest] if n in ROW_KINDS else v[places] for n, v in self.tree.items()},
            rows,
            self.weight[places],
            {name: value[places] for name, value in self.metrics.items()},
            {device: self.coded[device] for device in (self.devices[p] for p in places) if device in self.coded},
        )

    def mask(self) -> Tensor:
        """Gives 1.0 where a row is valid. Shapes: [D, B]."""
        widest = int(self.rows.max()) if len(self) else 0
        return (torch.arange(widest)[None, :] < self.rows[:, None]).float()


def gather(replies: dict[int, Reply]) -> Replies:
    """Gives the stacked replies of devices in ascending order, ragged rows padded with zeros."""
    devices = tuple(sorted(replies))
    each = [replies[device] for device in devices]
    tree: Tree = {}
    counts = [_num_rows(reply.tree) for reply in each]
    for name in each[0].tree if each else ():
        values = [reply.tree[name] for reply in each]
        tree[name] = pad_rows(values, max(counts)) if name in ROW_KINDS else torch.stack(values)
    return Replies(
        devices,
        tree,
        torch.tensor(counts, dtype=torch.int64),
        torch.tensor([reply.weight for reply in each], dtype=torch.float64),
        {
            name: torch.tensor([reply.metrics[name] for reply in each], dtype=torch.float64)
            for name in (each[0].metrics if each else ())
        },
        {device: reply.coded for device, reply in zip(devices, each, strict=True) if reply.coded is not None},
    )


def join(parts: list[Replies]) -> Replies:
    """Gives the replies of several groups of devices as one, in ascending order of the devices.

    Raises: MidhaulError for tensors of unlike names or shapes, as devices with unlike models send them.
    """
    if len(parts) == 1:
        return parts[0]
    _check_alike([part for part in parts if len(part)])
    devices = [device for part in parts for device in part.devices]
    order = torch.tensor(sorted(range(len(devices)), key=devices.__getitem__), dtype=torch.int64)
    widest = max((int(part.rows.max()) for part in parts if len(part)), default=0)

    def whole(name: str) -> Tensor:
        values = [part.tree[name] for part in parts if len(part)]
        if name in ROW_KINDS:
            values = [widen(value, widest) for value in values]
        return torch.cat(values)[order]

    filled = [part for part in parts if len(part)]
    return Replies(
        tuple(sorted(devices)),
        {name: whole(name) for name in (filled[0].tree if filled else ())},
        torch.cat([part.rows for part in parts])[order],
        torch.cat([part.weight for part in parts])[order],
        {name: torch.cat([p.metrics[name] for p in filled])[order] for name in (filled[0].metrics if filled else ())},
        {device: code for part in parts for device, code in part.coded.items()},
    )


def _check_alike(parts: list[Replies]) -> None:
    shapes = [{n: tuple(v.shape[2 if n in ROW_KINDS else 1 :]) for n, v in part.tree.items()} for part in parts]
    for part, found in zip(parts[1:], shapes[1:], strict=True):
        if odd := [name for name in {**shapes[0], **found} if found.get(name) != shapes[0].get(name)]:
            told = [
                f"{d} {s.get(odd[0], 'nothing')}"
                for d, s in ((parts[0].devices[0], shapes[0]), (part.devices[0], found))
            ]
            raise MidhaulError(
                f"devices with unlike models answered with {odd[0]} of unlike shapes (device {told[0]}, "
                f"device {told[1]}), which can't be stacked; exchange with each group of alike devices in its turn"
            )


def widen(value: Tensor, num_rows: int) -> Tensor:
    """Gives a [D, B, ...] tensor with zeros behind its rows up to `num_rows`."""
    if value.shape[1] == num_rows:
        return value
    out = value.new_zeros((value.shape[0], num_rows, *value.shape[2:]))
    out[:, : value.shape[1]] = value
    return out


def pad_rows(values: list[Tensor], num_rows: int) -> Tensor:
    """Stacks [B_d, ...] tensors into [D, num_rows, ...], zeros behind the last row of each."""
    if all(len(value) == num_rows for value in values):
        return torch.stack(values)
    out = values[0].new_zeros((len(values), num_rows, *values[0].shape[1:]))
    for place, value in enumerate(values):
        out[place, : value.shape[0]] = value
    return out


def cut_rows(tree: Tree, num_rows: int | None) -> Tree:
    """Gives a device's tree without the padding of its row-wise tensors."""
    if num_rows is None:
        return tree
    return {name: value[:num_rows] if name in ROW_KINDS else value for name, value in tree.items()}


def _count(rows: Tensor | None, place: int) -> int | None:
    return None if rows is None else int(rows[place])


def _num_rows(tree: Tree) -> int:
    return next((value.shape[0] for name, value in tree.items() if name in ROW_KINDS), 0)
