"""The engine of many processes and machines: chunks of devices on workers that Ray places, starts again and repeats.

Devices' memory (tensors of their own, momentum, the batch in flight) stays in the process that runs the scheme, in a
`Stacked` that does no work; a chunk takes along what it needs and brings back what its devices keep. So a worker is
nothing but a cache: one that dies, with its machine or without, costs its chunk's repetition and can lose nothing, work
goes to whichever worker is free, and the checkpoint is that of `stacked`. The price is that devices' own tensors travel
to the worker and back, a few megabytes for a cohort of tiny models; rows and frozen weights go to each machine once.

Replies are put together in the order of the devices, whoever was first: the numbers don't depend on the number of
workers, nor on who died.

Ray carries what passes between its processes with cloudpickle, the model's class among it: a cluster is one domain of
trust. midhaul itself writes and reads no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midhaul import rng
from midhaul.fleet import Around, Part
from midhaul.message import Message, Op, Replies, join
from midhaul.program import Population, Program
from midhaul.runtime import lent
from midhaul.runtime.lent import Home, Order
from midhaul.runtime.native.kernels import Kernels
from midhaul.runtime.stacked import Stacked
from midhaul.runtime.workers import Workers
from midhaul.tree import Tree

CHUNKS_A_WORKER = 2  # of an exchange: more even out uneven devices, fewer lose less to each step's fixed cost
_HERE = (Op.LOAD, Op.READ)  # nothing is computed: the process that remembers answers


class Cluster(Around):
    """A fleet whose devices are worked for by Ray's workers, and remembered for here."""

    fleet: Stacked

    def __init__(
        self,
        program: Program,
        population: Population,
        workers: Workers,
        memory_bytes: int = 10**9,
        kernels: str = "auto",
    ) -> None:
        self.fleet = Stacked(program, population, memory_bytes, kernels)
        self.workers = workers
        self._home = Home.of(self.fleet)
        self._base: tuple[Tree, Any] | None = None

    @property
    def program(self) -> Program:
        return self.fleet.program

    @property
    def kernels(self) -> Kernels:
        return self.fleet.kernels

    @property
    def population(self) -> Population:
        return self.fleet.population

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on all devices, each chunk where a worker is free; all answer."""
        asked = list(self.devices if devices is None else devices)
        if message.op in _HERE or not asked:
            return self.fleet.exchange(message, key=key, devices=asked)
        self.workers.open()
        jobs = self.fleet.jobs(message, asked, key, self.workers.num * CHUNKS_A_WORKER)
        home, rows, base = self._references()
        orders = [Order.of(job, self.fleet, home, rows, base) for job in jobs]
        parts = [done.keep(self.fleet) for done in self.workers.do(orders, lent.arrays(message.tree))]
        self.fleet.forget(message, asked)
        return join(parts)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another, each on all workers."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        self.fleet.shift(population)
        self._home = Home.of(self.fleet)

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: what `stacked` would give."""
        return self.fleet.dump()

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        self.fleet.restore(whole)

    def _references(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Gives where workers fetch the model, the rows, and what all devices hold alike."""
        keep, population, base = self.workers.keep, self.population, self.fleet.base
        home = keep(self._home, lambda: self._home)
        rows = [keep(value, lambda value=value: lent.array(value)) for value in (population.x, population.y)]  # type: ignore[misc]
        held = self._base[0] if self._base is not None else {}
        if self._base is None or held.keys() != base.keys() or any(held[name] is not base[name] for name in base):
            self._base = (dict(base), self.workers.ray.put(lent.arrays(base)))
        return [home], rows, [self._base[1]]
