"""What the link does to activations and gradients before they are framed: residual, code; and behind it: correction.

It stands at both ends of the link, as the link does. What each end keeps, and for whom:

- the sender of gradients keeps, for each device and each row that it trains on, what coding took from that row's
  gradient when it was last sent, and adds it when the row's gradient is sent again (error feedback: Seide, Fu, Droppo,
  Li and Yu, "1-bit stochastic gradient descent", Interspeech 2014, section 2.2). The server keeps it for gradients that
  go down, the device for those that go up. A frame that is lost for good leaves it as it was;
- the device keeps, for the batch in flight, what coding took from its activations, and adds a multiple of it to the
  gradient that comes back (FedLite's gradient correction: Wang et al. 2022, section 4.2).

Shape letters: B rows of a batch, N rows that a device trains on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from midhaul import ops, rng
from midhaul.config import Config
from midhaul.errors import ConfigError, EngineError
from midhaul.fleet import Around, Fleet, Part
from midhaul.kit import Scheme
from midhaul.link import compress
from midhaul.link.compress import Coded, Coder
from midhaul.message import Kind, Message, Op, Replies, kind_of
from midhaul.models import trace
from midhaul.program import Indices, Program
from midhaul.runtime.updates import Updates, plan_updates
from midhaul.tree import Tree

_TEST = 1 << 23  # the streams of tests lie above those of a round's exchanges


class Coding:
    """The coders of a link, and what its two ends remember for them."""

    def __init__(
        self,
        activations: Coder | None = None,
        gradients: Coder | None = None,
        *,
        error_feedback: bool = False,
        correction: float = 0.0,
        updates: Updates | None = None,
    ) -> None:
        """`error_feedback` is of gradients; `correction` weighs half the mean squared error of a row's activations.
        `updates` does the same for weights."""
        self.updates = updates or Updates()
        self.coders = {Kind.ACTIVATIONS: activations, Kind.GRADIENTS: gradients}
        self.feeds_back = error_feedback and gradients is not None
        self.correction = correction if activations is not None else 0.0
        self.residuals: Tree = {}  # "up/DEVICE" and "down/DEVICE": [N, ...]
        self.sizes: dict[int, int] = {}  # the rows that a device trains on, as its answer to LOAD said
        self._rows: dict[int, Indices] = {}
        self._errors: dict[int, Tensor] = {}

    def loaded(self, replies: Replies) -> None:
        """Notes how many rows each device trains on."""
        self.sizes.update(zip(replies.devices, (int(num) for num in replies.weight.tolist()), strict=True))

    def begun(self, message: Message, device: int, key: rng.Key) -> None:
        """Notes the rows of the batch that a device was sent FORWARD for."""
        if self.feeds_back and message.settings.get("rows", "train") == "train" and device in self.sizes:
            own_key = rng.key(key.seed, key.round, device, rng.Use.BATCH)
            self._rows[device] = ops.step_rows(message.settings, self.sizes[device], own_key)

    def wanted(self, whole: Tree, device: int, *, up: bool) -> Tree:
        """Gives what is to be sent: gradients with what coding took from these rows before."""
        if not self.feeds_back or "g" not in whole:
            return whole
        rows = self._rows.get(device)
        if rows is None or len(rows) != len(whole["g"]):
            raise EngineError(
                f"device {device} is in no batch whose gradient could carry a residual; set link.error_feedback = false"
            )
        held = self.residuals.get(_path(device, up))
        return whole if held is None else {**whole, "g": whole["g"] + held[torch.from_numpy(rows)]}

    def code(self, whole: Tree, device: int, key: rng.Key, turn: int, *, up: bool) -> dict[str, Coded]:
        """Gives the bytes of those tensors that are coded."""
        coded: dict[str, Coded] = {}
        for place, (name, value) in enumerate(whole.items()):
            if coder := self.coders.get(kind_of(name)):
                own_key = rng.key(key.seed, key.round, device, rng.Use.CODE).at(turn << 3 | up << 2 | place & 3)
                coded[name] = compress.encode(coder, value, own_key)
        return coded

    def arrived(self, wanted: Tree, got: Tree, device: int, *, up: bool) -> Tree:
        """Keeps what coding took, and gives what the receiver makes of what it got."""
        if self.feeds_back and "g" in wanted:
            lost = wanted["g"] - got["g"]
            path = _path(device, up)
            if path not in self.residuals:
                self.residuals[path] = lost.new_zeros((self.sizes[device], *lost.shape[1:]))
            self.residuals[path] = self.residuals[path].index_copy(0, torch.from_numpy(self._rows[device]), lost)
        if not self.correction:
            return got
        if up and "h" in wanted:
            self._errors[device] = wanted["h"] - got["h"]
        if not up and "g" in got and (error := self._errors.get(device)) is not None and len(error):
            return {**got, "g": got["g"].add(error, alpha=self.correction / len(error))}
        return got

    def forget(self, devices: Collection[int]) -> None:
        """Forgets what either end remembers of devices that hold another model from now on."""
        self.residuals = {path: v for path, v in self.residuals.items() if int(path.partition("/")[2]) not in devices}
        self._errors = {device: error for device, error in self._errors.items() if device not in devices}
        self.updates.forget(devices)

    def dump(self) -> Tree:
        """Gives what both ends remember between rounds, for a checkpoint."""
        sizes = {f"size/{device}": torch.tensor(num) for device, num in self.sizes.items()}
        owed = {f"residual/{path}": value for path, value in self.residuals.items()}
        return {**owed, **sizes, **{f"update/{path}": value for path, value in self.updates.dump().items()}}

    def restore(self, whole: Tree) -> None:
        """Puts both ends back to where `dump` found them."""
        self.residuals = {n.removeprefix("residual/"): v for n, v in whole.items() if n.startswith("residual/")}
        self.sizes = {int(n.removeprefix("size/")): int(v) for n, v in whole.items() if n.startswith("size/")}
        self.updates.restore({n.removeprefix("update/"): v for n, v in whole.items() if n.startswith("update/")})


def plan_coding(config: Config, scheme: Scheme, programs: Iterable[Program], num_devices: int) -> Coding:
    """Gives what [link] makes of activations and gradients. Raises: ConfigError for what can't be coded so."""
    link = config.link
    texts = {Kind.ACTIVATIONS: link.activations, Kind.GRADIENTS: link.gradients}
    coders = {kind: compress.parse(text, f"link.{kind}") for kind, text in texts.items()}
    if link.correction and coders[Kind.ACTIVATIONS] is None:
        raise ConfigError("link.correction makes up for what coding takes from activations; set link.activations too")
    for kind, coder in coders.items():
        if coder is None:
            continue
        if kind not in scheme.up + scheme.down:
            raise ConfigError(f"the scheme {scheme.name} sends no {kind}, so none can be coded; leave out link.{kind}")
        if config.run.engine == "firmware":
            raise ConfigError(f"devices with firmware can't code {kind}; leave out link.{kind} or take another engine")
        for program in programs if scheme.part != "whole" else ():
            example = trace.example(program.front, program.input_shape, 1)
            with torch.no_grad():
                coder.fits(program.call_front(program.initial, example, training=False)[0].numel())
        if scheme.part == "u":
            coder.fits(config.scheme.features)
    updates = plan_updates(config, scheme, num_devices)
    return Coding(*coders.values(), error_feedback=link.error_feedback, correction=link.correction, updates=updates)


class AsDelivered(Around):
    """A fleet as a test meets it: activations are what the link makes of them, and nothing is charged or lost.

    A deployment sends activations through the same coders, in frames of `batch` rows (0: all rows of a device).
    """

    def __init__(self, fleet: Fleet, coder: Coder, batch: int) -> None:
        self.fleet, self.coder, self.batch = fleet, coder, batch

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the exchange; activations pass through the coder both ways."""
        return self.exchange_parts([(message, self.devices if devices is None else devices)], key=key)[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with several messages."""
        return [self._exchange(message, tuple(devices), key) for message, devices in parts]

    def _exchange(self, message: Message, asked: tuple[int, ...], key: rng.Key) -> Replies:
        rows = message.rows if message.rows is not None else torch.zeros(len(asked), dtype=torch.int64)
        each = self._delivered(message.each, rows, asked, message.op, key)
        replies = self.fleet.exchange(replace(message, each=each), key=key, devices=asked)
        return replace(replies, tree=self._delivered(replies.tree, replies.rows, replies.devices, message.op, key))

    def _delivered(self, stacked: Tree, rows: Tensor, devices: tuple[int, ...], op: Op, key: rng.Key) -> Tree:
        return {
            name: self._coded(value, rows, devices, op, key) if kind_of(name) == Kind.ACTIVATIONS else value
            for name, value in stacked.items()
        }

    def _coded(self, value: Tensor, rows: Tensor, devices: tuple[int, ...], op: Op, key: rng.Key) -> Tensor:
        out = value.clone()
        for place, (device, num) in enumerate(zip(devices, rows.tolist(), strict=True)):
            stream = rng.key(key.seed, key.round, device, rng.Use.CODE)
            for number, first in enumerate(range(0, num, self.batch or num)):
                part = slice(first, min(first + (self.batch or num), num))
                coded = compress.encode(self.coder, value[place, part], stream.at(_TEST | int(op) << 18 | number))
                out[place, part] = compress.decode(coded.shape, coded.data)
        return out


def _path(device: int, up: bool) -> str:
    return f"{'up' if up else 'down'}/{device}"
