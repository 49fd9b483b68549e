"""The stream between a server and its gateways, beside bare gRPC. `python -m benchmarks.federation [PART ...]`

Parts: `rate` (split learning's exchanges beside an echo of as many bytes), `round` (federated averaging with empty
work), `overhead` (bytes on the socket beside the tensors'), `clients` (memory and CPU of the server with many clients),
`flower` (`over_flower.py`: beside Flower's own messages; minutes, so only when it is named).
All is on this machine's loopback; gateways are in processes of their own, those of `clients` many in each. Devices do
nothing: a message's tensors, or the model, come back as they are. What is compared takes turns in one run.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import rng, tree
from midhaul.devices import profiles
from midhaul.fleet import Group, Part
from midhaul.link import radio
from midhaul.message import Message, Op, Replies
from midhaul.program import Population, Program
from midhaul.runtime import channel
from midhaul.runtime.gateway import Gateway
from midhaul.runtime.parcel import Models
from midhaul.runtime.stream import Gateways

TOKEN = "a token for a benchmark"
ROWS, WIDTH = 64, 64  # of activations: 16 KiB
KEY = rng.Key(0, 1, rng.SERVER, 0)
ECHO = "/bare.Echo/Open"
RUNNING: list[subprocess.Popen[str]] = []  # beside this process


class Idle:
    """Devices that do nothing: they answer a gradient with it, and else with the model that they were sent."""

    def __init__(self, population: Population) -> None:
        self.population = population
        self.devices, self.test_devices = population.devices, population.test_devices

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        asked = tuple(sorted(devices or self.devices))
        num, rows = len(asked), torch.zeros(len(asked), dtype=torch.int64)
        answer = {name: value.expand(num, *value.shape) for name, value in message.tree.items()}
        if message.op == Op.FORWARD:
            answer, rows = {"h": _activations(num)}, rows + ROWS
        elif "g" in message.each:
            answer = {"h": message.each["g"]} if message.op == Op.BACKWARD else {}
            rows = rows + (message.each["g"].shape[1] if answer else 0)
        metrics = {"rows": torch.ones(num, dtype=torch.float64)}
        return Replies(asked, answer, rows, torch.ones(num, dtype=torch.float64), metrics)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None: ...

    def dump(self) -> tree.Tree:
        return {}

    def restore(self, whole: tree.Tree) -> None: ...


def _activations(num: int, rows: int = ROWS) -> Tensor:
    return torch.ones(num, rows, WIDTH)


def fleet(num: int, parameters: int, members: tuple[int, ...] | None = None) -> tuple[tuple[Group, ...], Population]:
    """Gives devices with a row each and a linear model of about so many parameters, WIDTH outputs."""
    program = Program(nn.Linear(max(1, parameters // WIDTH - 1), WIDTH), (max(1, parameters // WIDTH - 1),))
    rows = tuple(np.asarray([device]) for device in range(num))
    x, y = torch.zeros(num, *program.input_shape), torch.zeros(num, dtype=torch.int64)
    population = Population(x, y, rows, rows, (), True, members=members)
    everyone = tuple(range(num))
    return (Group(everyone, everyone, program, profiles.get("stm32l4"), radio.get("ble")),), population


def child(address: str, num: int, parameters: int, first: int, last: int, size: int) -> None:
    """Is a process with the gateways of devices `first` to `last`, `size` devices in each, or with a bare echo."""
    grpc = channel.load()
    if not address:
        server = grpc.server(ThreadPoolExecutor(4), options=channel.OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: (data for data in requests))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Echo", {"Open": handler}),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
        return
    groups, population = fleet(num, parameters)
    models = Models.of(groups)
    threading.stack_size(256 * 1024)
    threads = []
    for begin in range(first, last, size):
        members = tuple(range(begin, begin + size))
        here = Population(population.x, population.y, population.train, population.test, (), True, members=members)
        options = (("grpc.use_local_subchannel_pool", 1),)
        gateway = Gateway(
            Idle(here),
            models,
            address=address,
            token=TOKEN,
            name=f"{begin}",
            options=options,  # type: ignore[arg-type]
        )
        threads.append(threading.Thread(target=gateway.run))
        threads[-1].start()
    for thread in threads:
        thread.join()


@contextmanager
def others(*calls: Sequence[object]) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs `child` in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.federation", "--child"]
    made = [
        subprocess.Popen([*command, *map(str, call)], stdout=subprocess.PIPE, text=True, env=os.environ)
        for call in calls
    ]
    RUNNING.extend(made)
    try:
        yield made
    finally:
        for process in made:
            RUNNING.remove(process)
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def served(
    num: int, parameters: int, processes: int, size: int = 1, **options: Any
) -> Iterator[tuple[Gateways, float]]:
    """Gives the server of `num` devices behind gateways of `size`, and its memory before they came."""
    groups, population = fleet(num, parameters)
    server = Gateways(groups, population, token=TOKEN, **options)
    address = server.open()
    before = resident_bytes()
    share = num // processes
    calls = [(address, num, parameters, k * share, (k + 1) * share, size) for k in range(processes)]
    with others(*calls):
        try:
            server.wait(300.0)
            yield server, before
        finally:
            server.close()


@contextmanager
def echo() -> Iterator[Callable[[bytes, int], list[bytes]]]:
    """Gives what sends bytes a number of times to a bare gRPC server in another process, and gives them back."""
    grpc = channel.load()
    with others(("", 0, 0, 0, 0, 0)) as (process,):
        assert process.stdout is not None
        opened = grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}", channel.OPTIONS)
        out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = opened.stream_stream(ECHO)(iter(out.get, None))

        def ask(data: bytes, num: int) -> list[bytes]:
            for _ in range(num):
                out.put(data)
            return [next(call) for _ in range(num)]

        yield ask
        out.put(None)
        opened.close()


def per_second(act: Callable[[], object], num: int) -> float:
    began = time.perf_counter()
    for _ in range(num):
        act()
    return num / (time.perf_counter() - began)


def rate(turns: int, num: int) -> None:
    """Prints batches a second of 16 KiB each way, beside an echo of as many bytes, as many of them in flight.

    Split learning asks a gateway for a step of all its devices in the cohort in one message, so their batches are in
    flight together: for each of them the echo has a message of its own, all sent before the first is waited for.
    """
    raw = _activations(1).numpy().tobytes()
    print(f"{len(raw) // 1024} KiB each way a device, one gateway in another process, {turns} turns of {num}, medians")
    for size in (1, 8):
        with served(size, 6400, 1, size) as (server, _), echo() as ask:
            _rate(server, ask, raw, size, turns, num)


def _rate(server: Gateways, ask: Callable[[bytes, int], object], raw: bytes, size: int, turns: int, num: int) -> None:
    h, rows = _activations(size), torch.tensor([ROWS] * size)
    there = Message(Op.BACKWARD, each={"g": h}, rows=rows)
    up, down = Message(Op.FORWARD), Message(Op.ADAPT, each={"g": h}, rows=rows)

    def batch() -> None:
        server.exchange(up, key=KEY)
        server.exchange(down, key=KEY)

    acts: dict[str, Callable[[], object]] = {
        "bare gRPC echo": lambda: ask(raw, size),
        "bare echo, all in one message": lambda: ask(raw * size, 1),
        "an exchange, both ways in one": lambda: server.exchange(there, key=KEY),
        "a batch, FORWARD and BACKWARD": batch,
    }
    found: dict[str, list[float]] = {name: [] for name in acts}
    cpu: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        per_second(act, 50)
    for _ in range(turns):
        for name, act in acts.items():
            before = cpu_s()
            found[name].append(size * per_second(act, num))
            cpu[name].append((cpu_s() - before) / num / size)
    print(f"  {size} in flight             batches a second   of the echo   CPU of both ends, us a batch")
    bare = found["bare gRPC echo"]
    for name, rates in found.items():
        share = statistics.median(a / b for a, b in zip(rates, bare, strict=True))
        told = f"{statistics.median(rates):8.0f} {100 * share:14.0f} %"
        print(f"  {name:30s} {told} {1e6 * sum(cpu[name]) / turns:14.0f}")


def cpu_s() -> float:
    """Gives the seconds of CPU that this process and those beside it have used."""
    ticks = 0
    for process in RUNNING:
        with open(f"/proc/{process.pid}/stat") as file:
            ticks += sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def averaging(turns: int) -> None:
    """Prints the time of a round of federated averaging whose devices do nothing."""
    with served(8, 100_000, 2) as (server, _):
        model = server.models.kinds[0].initial
        took = []
        for _ in range(turns):
            began = time.perf_counter()
            up = server.exchange(Message(Op.FIT, model), key=KEY)
            mean = tree.weighted_mean(up.tree, up.weight)
            took.append(time.perf_counter() - began)
        assert len(up) == 8
        assert tree.largest_difference(mean, model) < 1e-6
    print(f"a round of averaging, {tree.num_parameters(model):,} parameters, 8 gateways in 2 processes, {turns} turns")
    print(f"  median {1000 * statistics.median(took):.1f} ms, least {1000 * min(took):.1f} ms")


class Counter:
    """A relay that counts the bytes that pass."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.to, self.num_bytes = (host, int(port)), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self.listener.accept()
        far = socket.create_connection(self.to)
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 20):
                self.num_bytes += len(data)
                other.sendall(data)
        except OSError:
            return


def overhead(num: int) -> None:
    """Prints the bytes on the socket, HTTP/2 and TCP's payload all counted, beside those of the tensors."""
    h = _activations(1, 4096)
    message = Message(Op.BACKWARD, each={"g": h}, rows=torch.tensor([4096]))
    groups, population = fleet(1, 6400)
    server = Gateways(groups, population, token=TOKEN)
    relay = Counter(server.open())
    with others((relay.address, 1, 6400, 0, 1, 1)):
        server.wait(60.0)
        server.exchange(message, key=KEY)
        before = relay.num_bytes
        for _ in range(num):
            server.exchange(message, key=KEY)
        sent = relay.num_bytes - before
        server.close()
    raw = 2 * num * h.numel() * h.element_size()
    print(f"1 MiB of float32 each way, {num} exchanges: {sent:,} bytes on the socket for {raw:,} of tensors")
    print(f"  {100 * (sent / raw - 1):.3f} % more")


def clients(num: int, processes: int, turns: int) -> None:
    """Prints what a joined client costs the server in memory, and a round in CPU."""
    with served(num, 6400, processes, max_gateways=num + 16) as (server, before):
        model = server.models.kinds[0].initial
        joined = resident_bytes() - before
        took, cpu = [], []
        for _ in range(turns):
            began, used = time.perf_counter(), time.process_time()
            up = server.exchange(Message(Op.FIT, model), key=KEY)
            tree.weighted_mean(up.tree, up.weight)
            took.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
            assert len(up) == num
        worked = resident_bytes() - before
    print(f"{num} clients, {processes} processes, {tree.num_parameters(model):,} parameters, {turns} rounds")
    kib = [part / num / 1024 for part in (joined, worked)]
    print(f"  memory of the server: {kib[0]:.0f} KiB a client that joined, {kib[1]:.0f} KiB after the rounds")
    micros = 1e6 * statistics.median(cpu) / num
    print(f"  a round {statistics.median(took):.2f} s; {micros:.0f} us of the server's CPU a client and round")


def resident_bytes() -> float:
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", default=["rate", "round", "overhead", "clients"])
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--clients", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        address, *numbers = given.child
        child(address, *map(int, numbers))
        return
    parts: dict[str, Callable[[], object]] = {
        "flower": lambda: subprocess.run([sys.executable, "-m", "benchmarks.over_flower"], check=True),
        "rate": lambda: rate(given.turns, 300),
        "round": lambda: averaging(3 * given.turns),
        "overhead": lambda: overhead(20),
        "clients": lambda: clients(given.clients, 4, 3),
    }
    for part in given.parts:
        if part not in parts:
            parser.error(f"there is no part {part!r}; there are {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
