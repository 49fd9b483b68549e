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

import hashlib
import os
import platform
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import midhaul
from midhaul import rng
from midhaul.errors import ConfigError, DependencyError, EngineError, MidhaulError
from midhaul.fleet import Part
from midhaul.message import Message, Op, Replies, join
from midhaul.program import Population, Program
from midhaul.runtime import lent
from midhaul.runtime.lent import Arrays, Done, Home, Order
from midhaul.runtime.native.kernels import Kernels
from midhaul.runtime.stacked import Stacked
from midhaul.tree import Tree

CHUNKS_A_WORKER = 2  # of an exchange: more even out uneven devices, fewer lose less to each step's fixed cost
RETRIES = 3
_HERE = (Op.LOAD, Op.READ)  # nothing is computed: the process that remembers answers
_MAX_HOMES = 64
# Ray asks and tells too much by default. Set before it is imported; what a person has set stays.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Worker:
    """What runs in each of the cluster's processes: a cache of models and rows, and nothing that can't be lost."""

    def __init__(self, threads: int, path: list[str]) -> None:
        """`path` is where the process that runs the scheme finds modules: a person's own are looked for there too."""
        torch.set_num_threads(threads)
        sys.path += [place for place in path if place not in sys.path]
        self._homes: dict[str, tuple[Kernels, Population]] = {}
        self._bases: dict[str, tuple[str, Arrays]] = {}

    def about(self) -> tuple[str, int, str]:
        """Gives the machine, the process, and the fingerprint of what is installed there."""
        return socket.gethostname(), os.getpid(), fingerprint()

    def work(self, order: Order, tree: Arrays) -> Done:
        """Does an op on a chunk of devices."""
        ray = _ray()
        name, base = order.home[0].hex(), order.base[0].hex()
        if name not in self._homes:
            home, x, y = ray.get([order.home[0], *order.rows])
            while len(self._homes) >= _MAX_HOMES:
                self._bases.pop(oldest := next(iter(self._homes)), None)
                del self._homes[oldest]
            self._homes[name] = home.open(x, y)
        if self._bases.get(name, ("", {}))[0] != base:
            self._bases[name] = (base, ray.get(order.base[0]))
        attempt = int(ray.get_runtime_context().worker.core_worker.get_current_task_attempt_number())
        return lent.work(*self._homes[name], self._bases[name][1], order, tree, attempt)


class Workers:
    """Ray's processes that do the work of one run, whatever number of fleets it has.

    `num` 0 is as many as the cluster has room for; each has `threads` cores to itself. `address` is empty for processes
    of this machine alone, which end with `close`; else that of a cluster that runs already: auto, HOST:PORT or
    ray://HOST:PORT. Where Ray is connected already, that connection is used and left open.
    Raises: DependencyError without Ray.
    """

    patience_s = 20.0  # without a result, until it is asked whether the cluster has lost machines
    start_s = 300.0  # until workers that other jobs leave no room for are given up

    def __init__(self, num: int = 0, address: str = "", threads: int = 1, retries: int = RETRIES) -> None:
        self.num, self.address, self.threads, self.retries = num, address, threads, retries
        self.machines: tuple[str, ...] = ()
        self.repeated = 0
        self.tell: Callable[[str], None] = lambda line: None
        self.actors: list[Any] = []
        self._connected = False
        self._refs: dict[int, tuple[Any, Any]] = {}
        self.ray = _ray()

    @property
    def about(self) -> str:
        """Says in a sentence what there is."""
        cores = "one core" if self.threads == 1 else f"{self.threads} cores"
        where = "this machine" if self.machines == (socket.gethostname(),) else f"{len(self.machines)} machines"
        return f"cluster: {self.num} workers with {cores} each on {where}"

    def to_table(self) -> dict[str, Any]:
        """Gives what a run's summary tells of its workers."""
        return {
            "workers": self.num,
            "threads": self.threads,
            "machines": list(self.machines),
            "repeated_chunks": self.repeated,
        }

    def open(self) -> None:
        """Connects, and starts the workers; does nothing where they run.

        Raises: ConfigError for an address where nothing answers and for more workers than the cluster has cores;
        EngineError for workers that don't start, and for machines that have another midhaul or torch.
        """
        if self.actors:
            return
        if not self.ray.is_initialized():
            self._connect()
        room = self._room()
        if self.num > room:
            cores = f"{self.threads * self.num} cores ({self.num} workers with {self.threads} each)"
            self.close()
            raise ConfigError(
                f"the cluster has room for {room} workers and run.workers = {self.num} asks for {cores}; "
                "lower it, set it to 0 for as many as there is room for, or add machines"
            )
        self.num = self.num or room
        if not self.num:
            self.close()
            raise ConfigError(f"no machine of the cluster has {self.threads} cores; lower run.threads or add machines")
        self._start()

    def close(self) -> None:
        """Ends the workers, and the connection if it was made here."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors, self._refs = [], {}
        if self._connected:
            self.ray.shutdown()
            self._connected = False

    def keep(self, thing: Any, made: Callable[[], Any]) -> Any:
        """Gives the reference of what all workers may fetch, put there once: `made` gives it of a `thing`."""
        if id(thing) not in self._refs:
            self._refs[id(thing)] = (thing, self.ray.put(made()))  # the thing is held, so that its id stays its own
        return self._refs[id(thing)][1]

    def do(self, orders: Sequence[Order], tree: Arrays) -> list[Done]:
        """Has all orders done by whichever worker is free; the tree is what goes to all devices alike.

        Ray repeats the chunk of a worker that dies. Where the cluster has lost machines and has no room to start a
        worker again, all is done again on those that there is room for.
        Raises: what an op raises; EngineError where a chunk ends its worker time and again.
        """
        pool_of = import_module("ray.util.actor_pool").ActorPool
        shared = self.ray.put(tree)
        while True:
            pool, done = pool_of(self.actors), []
            for order in orders:
                pool.submit(lambda actor, order: actor.work.remote(order, shared), order)
            try:
                while pool.has_next():
                    done.append(self._next(pool))
                break
            except _Short as short:
                self._shrink(short.room)
        if again := sum(one.attempt > 0 for one in done):
            self.repeated += again
            chunks = "a chunk of devices was" if again == 1 else f"{again} chunks of devices were"
            self.tell(f"round {orders[0].key[1]}: a worker died; {chunks} done again")
        return done

    def _next(self, pool: Any) -> Done:
        errors = self.ray.exceptions
        while True:
            try:
                done: Done = pool.get_next_unordered(timeout=self.patience_s)
                return done
            except TimeoutError:
                if (room := self._room()) < self.num:
                    raise _Short(room) from None
            except errors.RayTaskError as error:
                if isinstance(error.cause, MidhaulError):
                    raise error.cause from None
                if isinstance(error.cause, errors.RaySystemError):
                    raise EngineError(
                        f"a worker can't take in what it was sent ({_first_line(error.cause)}); install what the model "
                        "is made of on every machine of the cluster"
                    ) from None
                raise
            except errors.RayActorError as error:
                raise EngineError(
                    f"a worker died {self.retries + 1} times at the same chunk of devices ({_first_line(error)}); "
                    "if it ran out of memory, lower run.memory or run.workers"
                ) from None
            except errors.RayError as error:
                raise EngineError(f"Ray gave up a chunk of devices: {_first_line(error)}") from None

    def _shrink(self, room: int) -> None:
        self.tell(f"the cluster has lost machines; going on with {room} of {self.num} workers")
        for actor in self.actors:
            self.ray.kill(actor)
        self.num = room
        if not room:
            raise EngineError("the cluster has lost all of its workers' machines; start it anew and add --resume")
        self._start()

    def _room(self) -> int:
        """Gives how many workers the cluster's machines have cores for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(int(node.get("CPU", 0)) // self.threads for node in nodes)

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves its log files to the garbage collector
                if self.address:
                    self.ray.init(self.address, **quiet)
                else:
                    self.ray.init(include_dashboard=False, **quiet)
        except ImportError as error:
            raise DependencyError(
                f"Ray can't connect to {self.address}: {_first_line(error)}; install midhaul[cluster]"
            ) from None
        except Exception as error:  # Ray raises whatever its transport does
            where = self.address or "this machine"
            raise ConfigError(
                f"Ray can't be reached at {where} ({_first_line(error)}); check run.address and `ray status` there, "
                "or leave run.address empty for workers on this machine"
            ) from None
        self._connected = True

    def _start(self) -> None:
        kind = self.ray.remote(Worker).options(
            num_cpus=self.threads,
            max_restarts=-1,
            max_task_retries=self.retries,
            scheduling_strategy="SPREAD",
        )
        path = [os.path.abspath(place) for place in sys.path]
        self.actors = [kind.remote(self.threads, path) for _ in range(self.num)]
        told = [actor.about.remote() for actor in self.actors]
        ready, late = self.ray.wait(told, num_returns=len(told), timeout=self.patience_s)
        if late:
            self.tell(f"{len(ready)} of {self.num} workers have started; waiting for the others")
            ready, late = self.ray.wait(told, num_returns=len(told), timeout=self.start_s)
        if late:
            num = self.num
            self.close()
            raise EngineError(
                f"only {len(ready)} of {num} workers started within {self.start_s:g} s; if other jobs hold the "
                "cluster's cores (`ray status`), wait for them or lower run.workers"
            )
        found = self.ray.get(told)
        self.machines = tuple(sorted({host for host, _, _ in found}))
        if odd := [host for host, _, installed in found if installed != fingerprint()]:
            self.close()
            raise EngineError(
                f"{odd[0]} has another midhaul, torch or Python than this machine; install the same versions on every "
                "machine of the cluster"
            )


class Cluster:
    """A fleet whose devices are worked for by Ray's workers, and remembered for here."""

    def __init__(
        self,
        program: Program,
        population: Population,
        workers: Workers,
        memory_bytes: int = 10**9,
        kernels: str = "auto",
    ) -> None:
        self.kept = Stacked(program, population, memory_bytes, kernels)
        self.workers = workers
        self._home = Home.of(self.kept)
        self._base: tuple[Tree, Any] | None = None

    @property
    def program(self) -> Program:
        return self.kept.program

    @property
    def kernels(self) -> Kernels:
        return self.kept.kernels

    @property
    def population(self) -> Population:
        return self.kept.population

    @property
    def devices(self) -> tuple[int, ...]:
        return self.population.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.population.test_devices

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on all devices, each chunk where a worker is free; all answer."""
        asked = list(self.devices if devices is None else devices)
        if message.op in _HERE or not asked:
            return self.kept.exchange(message, key=key, devices=asked)
        self.workers.open()
        jobs = self.kept.jobs(message, asked, key, self.workers.num * CHUNKS_A_WORKER)
        home, rows, base = self._references()
        orders = [Order.of(job, self.kept, home, rows, base) for job in jobs]
        parts = [done.keep(self.kept) for done in self.workers.do(orders, lent.arrays(message.tree))]
        self.kept.forget(message, asked)
        return join(parts)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another, each on all workers."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        self.kept.shift(population)
        self._home = Home.of(self.kept)

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: what `stacked` would give."""
        return self.kept.dump()

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        self.kept.restore(whole)

    def _references(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Gives where workers fetch the model, the rows, and what all devices hold alike."""
        keep, population, base = self.workers.keep, self.population, self.kept.base
        home = keep(self._home, lambda: self._home)
        rows = [keep(value, lambda value=value: lent.array(value)) for value in (population.x, population.y)]  # type: ignore[misc]
        held = self._base[0] if self._base is not None else {}
        if self._base is None or held.keys() != base.keys() or any(held[name] is not base[name] for name in base):
            self._base = (dict(base), self.workers.ray.put(lent.arrays(base)))
        return [home], rows, [self._base[1]]


class _Short(Exception):
    """The cluster has room for fewer workers than it had."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.room = room


def fingerprint() -> str:
    """Gives a digest of midhaul's sources and the versions of torch and Python: alike, they give like numbers."""
    digest = hashlib.sha256(f"{torch.__version__} {platform.python_version_tuple()[:2]}".encode())
    root = Path(midhaul.__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ImportError:
        raise DependencyError("the engine cluster needs Ray, which isn't installed; install midhaul[cluster]") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
