"""A chunk of devices as another process can work on it: what it needs as plain arrays, and what comes back.

Shape letters: D devices of the chunk, N rows of the whole population.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from midhaul import rng
from midhaul.errors import EngineError
from midhaul.message import Message, Op, Replies, Setting, Settings
from midhaul.program import Indices, Population, Program
from midhaul.runtime.chunk import Chunk
from midhaul.runtime.native.kernels import Kernels
from midhaul.runtime.stacked import Job, Stacked
from midhaul.tree import Tree

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Home:
    """What lies at every worker: the model, and who holds which rows; the rows themselves go apart, once.

    The model is the one thing that isn't plain: a person's own module is code. `ragged` are train, test, adapt and
    classes: all places behind each other, and how many belong to each device.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    personal: tuple[str, ...]
    tail: nn.Module | None
    frozen: tuple[str, ...]
    front: nn.Module
    ragged: tuple[tuple[Indices, Indices], ...]
    own_test: bool
    members: tuple[int, ...] | None
    levels: Array | None
    kernels: str

    @staticmethod
    def of(fleet: Stacked) -> Home:
        program, p = fleet.program, fleet.population
        ragged = tuple(_behind(parts) for parts in (p.train, p.test, p.adapt, p.classes))
        model = (program.module, program.input_shape, program.personal, program.tail, program.frozen, program.front)
        levels = None if p.levels is None else array(p.levels)
        return Home(*model, ragged, p.own_test, p.members, levels, fleet.kernels.choice)

    def open(self, x: Array, y: Array) -> tuple[Kernels, Population]:
        """Gives the model, as its kernels know it, and the population again. Shapes: x [N, ...], y [N]."""
        options = {"personal": self.personal, "tail": self.tail, "frozen": self.frozen, "front": self.front}
        train, test, adapt, classes = (tuple(_apart(*part)) for part in self.ragged)
        levels = None if self.levels is None else tensor(self.levels)
        rows = (tensor(x), tensor(y), train, test, adapt)
        population = Population(*rows, self.own_test, members=self.members, classes=classes, levels=levels)
        program = Program(self.module, self.input_shape, **options)  # type: ignore[arg-type]
        return Kernels(program, self.kernels), population


@dataclass(frozen=True)
class Order:
    """One op on a chunk of devices. Shapes: each, velocity [D, ...]; `places` are rows of the population, one
    part of `counts` behind the other; `whose` [D] says which part is a device's.

    `home`, `rows` and `base` are what a worker fetches once and keeps, in a list so that they come as references: the
    model, x and y, and what all devices hold alike. What `message.tree` held goes to all chunks alike, apart.
    """

    home: list[Any]
    rows: list[Any]
    base: list[Any]
    op: int
    each: Arrays
    row_counts: Array | None
    settings: Settings
    each_settings: dict[str, tuple[Setting, ...]]
    velocity: Arrays
    devices: list[int]
    places: Indices
    counts: Indices
    whose: list[int]
    key: tuple[int, int, int, int]

    @staticmethod
    def of(job: Job, fleet: Stacked, home: list[Any], rows: list[Any], base: list[Any]) -> Order:
        """Gives a chunk's order, with what its devices remember of their own.

        Raises: EngineError where a device lacks a tensor.
        """
        message, devices = job.message, job.devices
        _, own = fleet.parameters(message, devices)
        velocity = {}
        if message.op == Op.BACKWARD:
            held = {name: fleet.velocity(name, devices) for name in fleet.momentum}
            velocity = {name: array(value) for name, value in held.items() if value is not None}
        distinct = {id(rows): rows for rows in job.rows}  # devices may be tested on the very same rows
        places, counts = _behind(tuple(distinct.values()))
        at = {number: place for place, number in enumerate(distinct)}
        return Order(
            home,
            rows,
            base,
            int(message.op),
            arrays({**message.each, **own}),
            None if message.rows is None else array(message.rows),
            message.settings,
            message.each_settings,
            velocity,
            devices,
            places,
            counts,
            [at[id(rows)] for rows in job.rows],
            (job.key.seed, job.key.round, job.key.device, job.key.use),
        )

    def job(self, tree: Tree) -> Job:
        """Gives the chunk's work again; `tree` is what goes to all devices alike."""
        row_counts = None if self.row_counts is None else tensor(self.row_counts)
        parts = (trees(self.each), row_counts, self.settings, self.each_settings)
        distinct = _apart(self.places, self.counts)
        rows = [distinct[place] for place in self.whose]
        return Job(Message(Op(self.op), tree, *parts), self.devices, rows, rng.Key(*self.key))


@dataclass(frozen=True)
class Done:
    """What a chunk came to: the replies, and what the devices keep of it.

    `computed` has for each op why the kernels didn't do it, or nothing if they did. `repeated`: it had been
    begun before, by a process that died.
    """

    devices: tuple[int, ...]
    tree: Arrays
    rows: Array
    weight: Array
    metrics: Arrays
    own: list[tuple[str, list[int], Array]]
    velocity: list[tuple[str, list[int], Array]]
    computed: dict[int, str]
    repeated: bool

    def keep(self, fleet: Stacked) -> Replies:
        """Puts what the devices keep into the fleet that remembers for them, and gives the replies."""
        for name, devices, values in self.own:
            fleet.set_own(name, devices, tensor(values))
        for name, devices, values in self.velocity:
            fleet.set_velocity(name, devices, tensor(values))
        for op, refused in self.computed.items():
            fleet.kernels.note(Op(op), refused)
        parts = (tensor(self.rows), tensor(self.weight), trees(self.metrics))
        return Replies(self.devices, trees(self.tree), *parts)


@dataclass
class Lent:
    """The memory of a chunk's devices while another process works for them. It is dropped with the chunk."""

    program: Program
    population: Population
    kernels: Kernels
    devices: list[int]
    base: Tree
    velocities: Tree
    own: list[tuple[str, list[int], Array]] = field(default_factory=list)
    kept: list[tuple[str, list[int], Array]] = field(default_factory=list)

    def parameters(self, message: Message, devices: list[int]) -> tuple[Tree, Tree]:
        """Gives the tensors that all devices hold alike, and those that differ: the message has these already."""
        shared: Tree = {}
        each: Tree = {}
        for name in self.program.initial:
            if name in message.each:
                each[name] = message.each[name]
            elif name in message.tree or name in self.base:
                shared[name] = message.tree[name] if name in message.tree else self.base[name]
            else:
                raise EngineError(f"a device has no {name} yet; send LOAD before {message.op.name}")
        return shared, each

    def set_own(self, name: str, devices: list[int], values: Tensor) -> None:
        self.own.append((name, devices, array(values)))

    def velocity(self, name: str, devices: list[int]) -> Tensor | None:
        at = {device: place for place, device in enumerate(self.devices)}
        return self.velocities[name][[at[d] for d in devices]] if name in self.velocities else None

    def set_velocity(self, name: str, devices: list[int], values: Tensor) -> None:
        self.kept.append((name, devices, array(values)))


def work(kernels: Kernels, population: Population, base: Arrays, order: Order, tree: Arrays) -> Done:
    """Does a chunk's op: the same arithmetic as in the process that remembers, on what was sent of its memory."""
    job = order.job(trees(tree))
    memory = Lent(kernels.program, population, kernels, job.devices, trees(base), trees(order.velocity))
    up = Chunk(memory, job.message, job.devices, job.rows, job.key).run()
    parts = (arrays(up.tree), array(up.rows), array(up.weight), arrays(up.metrics))
    computed = dict.fromkeys(map(int, kernels.done), "") | {int(op): why for op, why in kernels.refused.items()}
    return Done(up.devices, *parts, memory.own, memory.kept, computed, repeated=False)


def array(value: Tensor) -> Array:
    """Gives a tensor's numbers as an array, without a copy and as they lie: of a transposed matrix, products may differ
    in the last bit."""
    found: Array = value.detach().numpy()
    return found


def tensor(value: Array) -> Tensor:
    """Gives an array's numbers as a tensor, without a copy.

    Limits: what came from shared memory is read-only, for the processes of a machine share it; midhaul's tensors are
    values that nobody changes in place.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(value)


def arrays(tree: Tree) -> Arrays:
    """Gives a tree's tensors as arrays."""
    return {name: array(value) for name, value in tree.items()}


def trees(whole: Arrays) -> Tree:
    """Gives arrays as a tree of tensors."""
    return {name: tensor(value) for name, value in whole.items()}


def _apart(flat: Indices, counts: Indices) -> list[Indices]:
    """Gives what `_behind` put together."""
    return list(np.split(flat, np.cumsum(counts)[:-1])) if len(counts) else []


def _behind(parts: tuple[Indices, ...]) -> tuple[Indices, Indices]:
    """Gives places one device behind the other, and how many each has: one array travels faster than thousands."""
    counts = np.asarray([len(part) for part in parts], np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, np.int64)), counts
