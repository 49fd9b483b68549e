"""Ray's side of the engine `cluster`: its processes, what they are sent, and what becomes of those that die."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import midhaul
from midhaul.errors import ConfigError, DependencyError, EngineError, MidhaulError
from midhaul.program import Population
from midhaul.runtime import lent
from midhaul.runtime.lent import Arrays, Done, Order
from midhaul.runtime.native.kernels import Kernels
from midhaul.sentences import Sentence

RETRIES = 3
_MAX_HOMES = 64
_KNOCK_S = 10.0
_BEGUN = "midhaul: chunks begun"  # where the cluster notes them, for a worker that dies can't tell
# Ray asks and tells too much by default. Set before it is imported; what a person has set stays.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


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
        mark, repeated = _begin()
        name, base = order.home[0].hex(), order.base[0].hex()
        if name not in self._homes:
            home, x, y = ray.get([order.home[0], *order.rows])
            while len(self._homes) >= _MAX_HOMES:
                self._bases.pop(oldest := next(iter(self._homes)), None)
                del self._homes[oldest]
            self._homes[name] = home.open(x, y)
        if self._bases.get(name, ("", {}))[0] != base:
            self._bases[name] = (base, ray.get(order.base[0]))
        done = lent.work(*self._homes[name], self._bases[name][1], order, tree)
        _marks()._internal_kv_del(mark, namespace=_BEGUN)
        return replace(done, repeated=repeated)


class Workers:
    """Ray's processes that do the work of one run, whatever number of fleets it has.

    `num` 0 is as many as the cluster has room for; each has `threads` cores to itself. `address` is empty for processes
    of this machine alone, which end with `close`; else that of a cluster that runs already: auto, HOST:PORT or
    ray://HOST:PORT. Where Ray is connected already, that connection is used and left open.
    Raises: DependencyError without Ray.
    """

    patience_s = 30.0  # without a result, until it is asked whether a machine went away; Ray notices in about so long
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

        Ray repeats the chunk of a worker that dies. Where a machine goes away, what isn't done yet is done by workers
        that start on those that are left.
        Raises: what an op raises; EngineError where a chunk ends its worker, or machines go away, time and again.
        """
        shared, number = self.ray.put(tree), orders[0].key[1]
        left, done = list(orders), list[Done]()
        for _ in range(self.retries + 1):
            try:
                self._deal(left, shared, done)
                break
            except _Gone:
                finished = {frozenset(one.devices) for one in done}
                left = [order for order in left if frozenset(order.devices) not in finished]
                self.repeated += min(len(left), self.num)  # what was in hand; the rest was waiting
                self._replace(number)
        else:
            raise EngineError(f"machines of the cluster went away {self.retries + 1} times in round {number}")
        if again := sum(one.repeated for one in done):
            self.repeated += again
            chunks = "a chunk of devices was" if again == 1 else f"{again} chunks of devices were"
            self.tell(Sentence(f"round {number}: a worker died; {chunks} done again", "workers", level="warning"))
        return done

    def _deal(self, orders: Sequence[Order], shared: Any, done: list[Done]) -> None:
        """Has orders done, and adds to `done` what each came to. Raises: _Gone."""
        pool = import_module("ray.util.actor_pool").ActorPool(self.actors)
        errors = self.ray.exceptions
        for order in orders:
            pool.submit(lambda actor, order: actor.work.remote(order, shared), order)
        while pool.has_next():
            try:
                done.append(pool.get_next_unordered(timeout=self.patience_s))
            except TimeoutError:
                if self._room() < self.num:
                    raise _Gone from None
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
                if self._lost_a_machine():
                    raise _Gone from None
                raise EngineError(
                    f"a worker died {self.retries + 1} times at the same chunk of devices ({_first_line(error)}); "
                    "if it ran out of memory, lower run.memory or run.workers"
                ) from None
            except errors.RayError as error:
                raise EngineError(f"Ray gave up a chunk of devices: {_first_line(error)}") from None

    def _lost_a_machine(self) -> bool:
        """Tells what Ray can't at once, for it looks alike: whether a machine went away, or a process that is back."""
        ends = time.monotonic() + self.patience_s
        while self._room() >= self.num and time.monotonic() < ends:
            asked = [actor.about.remote() for actor in self.actors]
            ready, late = self.ray.wait(asked, num_returns=len(asked), timeout=1.0)
            try:
                self.ray.get(ready)
                if not late:
                    return False
            except self.ray.exceptions.RayActorError:
                time.sleep(0.5)
        return self._room() < self.num

    def _replace(self, number: int) -> None:
        """Starts workers anew on the machines that are left."""
        had, self.num = self.num, min(self.num, self._room())
        told = f"round {number}: a machine went away; going on with {self.num} of {had} workers"
        self.tell(Sentence(told, "workers", level="warning"))
        for actor in self.actors:
            self.ray.kill(actor)
        if not self.num:
            raise EngineError("the cluster has lost all machines; start it anew, and the run with --resume")
        self._start()

    def _room(self) -> int:
        """Gives how many workers the cluster's machines have cores for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(int(node.get("CPU", 0)) // self.threads for node in nodes)

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            _knock(self.address)
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
            line = f"{len(ready)} of {self.num} workers have started; waiting for the others"
            self.tell(Sentence(line, "workers"))
            ready, late = self.ray.wait(told, num_returns=len(told), timeout=self.start_s)
        if late:
            self.close()
            raise EngineError(
                f"only {len(ready)} of {self.num} workers started within {self.start_s:g} s; if other jobs hold the "
                "cluster's cores (`ray status`), wait for them or lower run.workers"
            )
        found = self.ray.get(told)
        self.machines = tuple(sorted({host for host, _, _ in found}))
        here = fingerprint()
        if odd := [host for host, _, installed in found if installed != here]:
            self.close()
            raise EngineError(
                f"{odd[0]} has another midhaul, torch or Python than this machine; install the same versions on every "
                "machine of the cluster"
            )


class _Gone(Exception):
    """A machine of the cluster doesn't answer."""


def fingerprint() -> str:
    """Gives a digest of midhaul's sources and the versions of torch and Python: alike, they give like numbers."""
    digest = hashlib.sha256(f"{torch.__version__} {platform.python_version_tuple()[:2]}".encode())
    root = Path(midhaul.__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _knock(address: str) -> None:
    """Raises: OSError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _ray() -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ImportError:
        raise DependencyError("the engine cluster needs Ray, which isn't installed; install midhaul[cluster]") from None


def _begin() -> tuple[str, bool]:
    """Notes with the cluster that this task's chunk is begun; gives the mark, and whether an earlier attempt had begun.

    Ray counts attempts too, but also those that never reached a process: a task that was on its way to one that died.
    """
    mark = _ray().get_runtime_context().get_task_id()
    return mark, bool(_marks()._internal_kv_put(mark, b"", overwrite=False, namespace=_BEGUN))


def _marks() -> Any:
    return import_module("ray.experimental.internal_kv")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
