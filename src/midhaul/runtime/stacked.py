"""The fast engine: all devices of a cohort at once, their parameters stacked, their ragged batches padded and masked.

Shape letters: D devices of a chunk, S steps, B rows of a batch (the widest), N rows of the whole population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from midhaul import hardware, ops, rng, tree
from midhaul.errors import EngineError
from midhaul.fleet import Part, Populated
from midhaul.message import Message, Op, Replies, join
from midhaul.models import adapters
from midhaul.program import Indices, Population, Program
from midhaul.runtime import memory, own
from midhaul.runtime.chunk import Chunk, Orders, replies_of
from midhaul.runtime.native.kernels import Kernels
from midhaul.runtime.own import Own
from midhaul.tree import Tree


@dataclass(frozen=True)
class Job:
    """One op on the devices of one chunk, each with the places of its rows in the population."""

    message: Message
    devices: list[int]
    rows: list[Indices]
    key: rng.Key


class Stacked(Populated):
    """A fleet in this process that trains its devices side by side.

    A name that all devices hold alike lies once in `base`; one that differs lies in `own`, for those that have one.
    `memory_bytes` bounds what the training of a chunk of devices may take; chunks are made to fit it. On another
    `device` of torch than the host, all rows and all that the devices keep lie there; a message goes up as a whole, and
    the cohort's replies come back as a whole.
    """

    def __init__(
        self,
        program: Program,
        population: Population,
        memory_bytes: int = 10**9,
        kernels: str = "auto",
        device: torch.device = hardware.CPU,
    ) -> None:
        self.program = program
        self.device = device
        self.population = population.on(device)
        self.memory_bytes = memory_bytes
        self.kernels = Kernels(program, kernels)
        self.num_devices = population.num_devices
        self.base: Tree = {}
        self.own: dict[str, Own] = {}
        self.momentum: dict[str, Own] = {}
        self.stash: dict[int, Indices] = {}

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on all devices, a chunk at a time; all answer."""
        asked = list(self.devices if devices is None else devices)
        if self.device != hardware.CPU:
            message = replace(message, tree=self._put(message.tree), each=self._put(message.each))
        if message.op == Op.LOAD:
            return self._load(message, asked)
        parts = [Chunk(self, j.message, j.devices, j.rows, j.key).run() for j in self.jobs(message, asked, key)]
        self.forget(message, asked)
        up = join(parts) if parts else replies_of([], {}, None, [], {})
        return replace(up, tree=hardware.to_host(up.tree), metrics=hardware.to_host(up.metrics))

    def jobs(self, message: Message, asked: list[int], key: rng.Key, num: int = 1) -> list[Job]:
        """Gives an op's work in chunks that fit the memory: `num` with about as many rows each, more if they must."""
        rows = self._rows(message, asked, key)
        # Devices with much to do stand together, so that little of a chunk is padding.
        counts, size = [-len(own) for own in rows], self._chunk(message, rows)
        if num == 1 and size >= len(asked) and counts == sorted(counts) and asked == sorted(asked):
            return [Job(message, asked, rows, key)] if asked else []
        order = [place for *_, place in sorted(zip(counts, asked, range(len(asked)), strict=True))]
        work = [1 if "x" in message.tree else 1 + len(rows[place]) for place in order]
        shares: list[list[int]] = [[] for _ in range(num)]
        before, total = 0, sum(work)
        for place, share in zip(order, work, strict=True):
            shares[(2 * before + share) * num // (2 * total)].append(place)
            before += share
        chunks = [share[first : first + size] for share in shares for first in range(0, len(share), size)]
        return [Job(message.of_places(c), [asked[p] for p in c], [rows[p] for p in c], key) for c in chunks]

    def forget(self, message: Message, asked: list[int]) -> None:
        """Drops the batches that BACKWARD has ended; in U shape the tail's BACKWARD doesn't."""
        if message.op == Op.BACKWARD and "z" not in message.each:
            for device in asked:
                self.stash.pop(device)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        self.population = population.on(self.device)
        self.stash = {}

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint."""
        base = {f"base/{name}": value for name, value in self.base.items()}
        return hardware.to_host({**base, **own.dump("own", self.own), **own.dump("momentum", self.momentum)})

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        known, base = self.program.initial, dict[str, Tensor]()
        for path, value in whole.items():
            part, _, name = path.partition("/")
            is_odd = part not in ("base", "own", "of_own", "momentum", "of_momentum") or name not in known
            if is_odd or (part == "base" and value.shape != known[name].shape):
                raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
            if part == "base":
                base[name] = value
        self.base = self._put(base)
        like = self._put(known)
        self.own = own.restore("own", whole, self.num_devices, like)
        self.momentum = own.restore("momentum", whole, self.num_devices, like)

    def _load(self, message: Message, asked: list[int]) -> Replies:
        known = self.program.initial
        everyone = len(asked) >= len(self.devices) and set(asked) >= set(self.devices)
        if message.settings.get("rule") == "absorb":
            message = self._absorbed(message, asked, everyone)
        for name, value in message.tree.items():
            if name not in known or known[name].shape != value.shape:
                raise EngineError(
                    f"a device was sent {name} of shape {tuple(value.shape)}, which its model doesn't have"
                )
            if everyone:
                self.base[name] = value
                self.own.pop(name, None)
            else:
                self.set_own(name, asked, value.expand(len(asked), *value.shape))
        for name, values in message.each.items():
            if name not in known or known[name].shape != values.shape[1:]:
                raise EngineError(
                    f"a device was sent {name} of shape {tuple(values.shape[1:])}, which its model doesn't have"
                )
            self.set_own(name, asked, values)
        for device in asked:
            self.stash.pop(device, None)
        weight = [float(len(self.population.rows(device, "train"))) for device in asked]
        return replies_of(asked, {}, None, weight, {"rows": torch.zeros(len(asked), dtype=torch.float64)})

    def _absorbed(self, message: Message, asked: list[int], everyone: bool) -> Message:
        """Gives the message that loads the weights of the adapted layers after their adapters' products were added."""
        shared, each = self.parameters(Message(Op.LOAD), asked)
        module, sent = self.program.module, message.tree
        if everyone and not any(f"{layer}.weight" in each for layer in adapters.adapted(sent)):
            return Message(Op.LOAD, adapters.absorbed(module, shared, sent))
        held = [{**shared, **tree.row(each, place)} for place in range(len(asked))]
        return Message(Op.LOAD, each=tree.stack([adapters.absorbed(module, mine, sent) for mine in held]))

    def set_own(self, name: str, devices: list[int], values: Tensor) -> None:
        """Keeps a tensor of each of some devices. Shapes: values [D, ...]."""
        if name not in self.own:
            self.own[name] = Own(self.num_devices, self.program.initial[name].to(self.device))
        self.own[name].put(devices, values)

    def velocity(self, name: str, devices: list[int]) -> Tensor | None:
        """Gives the momentum of a tensor on each of some devices, [D, ...], if it ever had any."""
        if name not in self.momentum:
            return None
        return self.momentum[name].get(devices, torch.zeros_like(self.program.initial[name], device=self.device))

    def set_velocity(self, name: str, devices: list[int], values: Tensor) -> None:
        """Keeps the momentum of a tensor on each of some devices. Shapes: values [D, ...]."""
        if name not in self.momentum:
            self.momentum[name] = Own(self.num_devices, self.program.initial[name].to(self.device))
        self.momentum[name].put(devices, values)

    def parameters(self, message: Message, devices: list[int]) -> tuple[Tree, Tree]:
        """Gives the tensors that all these devices hold alike, and those that differ, as [D, ...]."""
        shared: Tree = {}
        each: Tree = {}
        if message.op == Op.READ and "what" in message.settings:  # examples are asked for: no model need be there
            return shared, each
        for name in self.program.initial:
            if name in message.each:
                each[name] = message.each[name]
            elif name in message.tree:
                shared[name] = message.tree[name]
            elif name in self.own and (name in self.base or self.own[name].has(devices)):
                each[name] = self.own[name].get(devices, self.base.get(name))
            elif name in self.base:
                shared[name] = self.base[name]
            else:
                raise EngineError(f"a device has no {name} yet; send LOAD before {message.op.name}")
        return shared, each

    def _put(self, whole: Tree) -> Tree:
        return {name: value.to(self.device) for name, value in whole.items()}

    def _rows(self, message: Message, asked: list[int], key: rng.Key) -> list[Indices]:
        """Gives the population's rows that this op works on, of each device."""
        settings, op = message.settings, message.op
        if op == Op.BACKWARD:
            if missing := [device for device in asked if device not in self.stash]:
                raise EngineError(f"device {missing[0]} was sent BACKWARD with no batch in flight; send FORWARD first")
            return [self.stash[device] for device in asked]
        if "x" in message.each:
            raise EngineError("rows are sent to all devices alike; put x into the message's tree")
        if op == Op.FIT and "x" in message.tree:
            return [np.arange(len(message.tree["x"]))] * len(asked)
        named = str(settings.get("rows", "train" if op == Op.FORWARD else "test"))
        if op in (Op.READ, Op.FIT):
            named = "test" if settings.get("what") == "test" else "train"
        elif op == Op.ADAPT:
            named = "train" if settings.get("rows") == "train" else "adapt"
        rows = self.population.rows_of(asked, named)
        if op == Op.FORWARD and named == "train":
            if int(settings.get("batch", 0)):
                orders = Orders(asked, rows)
                keys = [rng.key(key.seed, key.round, device, rng.Use.BATCH) for device in asked]
                rows = [r[ops.step_rows(settings, len(r), k, orders)] for r, k in zip(rows, keys, strict=True)]
            self.stash.update(zip(asked, rows, strict=True))
        return rows

    def _chunk(self, message: Message, rows: list[Indices]) -> int:
        """Gives how many devices may be worked for at once within the memory that was granted, less what is kept."""
        kept = sum(len(own) * tree.num_bytes({name: self.program.initial[name]}) for name, own in self._kept())
        return max(1, (self.memory_bytes - kept) // max(memory.device_bytes(self.program, message, rows), 1))

    def _kept(self) -> list[tuple[str, Own]]:
        """Gives what the devices have of their own, and its momentum."""
        return [*self.own.items(), *self.momentum.items()]
