"""The engine of real devices: some of the fleet lies behind addresses and runs the C runtime, the rest is simulated.

A device that doesn't answer in time, goes away or answers what can't be is absent from the replies of that exchange;
the next one tries to reach it again. What happened to each device is kept as events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from midhaul import hardware, rng
from midhaul.errors import EngineError
from midhaul.fleet import Part, Populated
from midhaul.message import Message, Op, Replies, Reply, gather, join
from midhaul.program import Population, Program
from midhaul.runtime.remote import Blobs, Event, Place, Remote
from midhaul.runtime.stacked import Stacked
from midhaul.sentences import Sentence
from midhaul.tree import Tree

MAX_THREADS = 64


class Firmware(Populated):
    """A fleet whose first training devices are behind addresses; all others are simulated side by side.

    `seed` is the run's, for what the devices draw themselves. `tell` is given a sentence about each device that is
    lost, reset, refused or back, as it happens.
    Raises: EngineError for a model in U shape or with norms of its own, and for more addresses than devices.
    """

    def __init__(
        self,
        program: Program,
        population: Population,
        blobs: Blobs,
        places: Sequence[Place],
        *,
        seed: int,
        deadline_s: float = 120.0,
        memory_bytes: int = 10**9,
        kernels: str = "auto",
        device: torch.device = hardware.CPU,
    ) -> None:
        check(program, population, len(places))
        self.program, self.population = program, population
        self.simulated = Stacked(program, population, memory_bytes, kernels, device)
        self.simulated.kernels.prepare()
        with torch.no_grad():
            out, _ = program.call(program.initial, population.inputs(torch.zeros(1, dtype=torch.int64)), training=False)
        shape = tuple(out.shape[1:])
        self.remotes = {
            device: Remote(
                device, place, program, population.local(device), blobs, shape, seed=seed, deadline_s=deadline_s
            )
            for device, place in zip(population.devices, places, strict=False)
        }
        self.tell: Callable[[str], None] = lambda line: None
        self.events: list[dict[str, Any]] = []
        self._restored = False
        self._barren = 0  # refusals since the last answer
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, max(len(places), 1)), "device")

    @property
    def about(self) -> str:
        """Which devices lie where, as a sentence."""
        runs: list[tuple[str, int]] = []
        for remote in self.remotes.values():
            same = bool(runs) and runs[-1][0] == remote.place.address
            runs[-1:] = [(remote.place.address, runs[-1][1] + 1)] if same else [*runs[-1:], (remote.place.address, 1)]
        places = ", ".join(address if num == 1 else f"{num} of {address}" for address, num in runs)
        rest = len(self.devices) - len(self.remotes)
        others = [f"the other {rest}"] if rest else []
        others += ["those that only test"] if self.test_devices != self.devices else []
        simulated = f"; {' and '.join(others)} are simulated" if others else ""
        return f"{len(self.remotes)} devices run the C runtime ({places}){simulated}"

    @property
    def refused(self) -> int:
        """How many replies could not be true, or were refusals."""
        return sum(remote.refused for remote in self.remotes.values())

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on each device, all at once; gives the replies that came back, in the order of the devices."""
        asked = list(self.devices if devices is None else devices)
        near = [place for place, device in enumerate(asked) if device in self.remotes]
        far = [place for place, device in enumerate(asked) if device not in self.remotes]
        before = self.refused
        jobs = {
            asked[place]: self._pool.submit(self.remotes[asked[place]].exchange, message.for_device(place), key)
            for place in near
        }
        parts = [self._simulate(message, asked, far, key)] if far else []
        found = {device: job.result() for device, job in jobs.items()}
        self._report()
        answers: dict[int, Reply] = {device: reply for device, reply in found.items() if reply is not None}
        self._check(answers, bool(far), self.refused - before, key.round)
        return join([*parts, gather(answers)]) if answers or not parts else parts[0]

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint; reads what only a device knows."""
        round = max((event["round"] for event in self.events), default=0)
        for job in [self._pool.submit(remote.settle, round) for remote in self.remotes.values()]:
            job.result()
        self._report()
        whole = self.simulated.dump()
        for device, remote in self.remotes.items():
            whole.update({f"tree/{device}/{n}": remote.kept[n] for n in self.program.initial if n in remote.kept})
            whole.update({f"momentum/{device}/{name}": value for name, value in sorted(remote.momentum.items())})
        return whole

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them; each is sent its part before its next op."""
        simulated: Tree = {}
        own: dict[int, tuple[Tree, Tree]] = {device: ({}, {}) for device in self.remotes}
        for path, value in whole.items():
            part, _, rest = path.partition("/")
            number, sign, name = rest.partition("/")
            if not sign:
                simulated[path] = value
                continue
            known = part in ("tree", "momentum") and name in self.program.initial
            if not known or not number.isdigit() or int(number) not in own:
                raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
            own[int(number)][part == "momentum"][name] = value
        self.simulated.restore(simulated)
        for device, (kept, momentum) in own.items():
            self.remotes[device].give(kept, momentum)
        self._restored = True

    def stats(self) -> list[dict[str, Any]]:
        """Gives what each device that can be reached measured of itself: peaks of arena and stack, bytes of the store.

        Units: bytes. A stack of 0 is one that its port can't measure.
        """
        round = max((event["round"] for event in self.events), default=0)
        jobs = {device: self._pool.submit(remote.stats, round) for device, remote in self.remotes.items()}
        found = []
        for device, job in jobs.items():
            if metrics := job.result():
                sizes = {
                    f"{name}_bytes": int(metrics.get(name, 0.0)) for name in ("arena_peak", "stack_peak", "store_used")
                }
                sizes["arena_bytes"] = int(metrics.get("arena_bytes", 0.0))
                found.append({"device": device, "address": self.remotes[device].place.address, **sizes})
        self._report()
        return found

    def close(self) -> None:
        """Lets go of all devices, once what they are doing has ended or its deadline has passed."""
        self._pool.shutdown(cancel_futures=True)
        for remote in self.remotes.values():
            remote.close()

    def _simulate(self, message: Message, asked: list[int], places: list[int], key: rng.Key) -> Replies:
        if message.op == Op.LOAD and not message.each and set(asked) >= set(self.devices):
            # What all hold alike lies once in the simulation, the devices behind addresses or not.
            self.simulated.exchange(message, key=key, devices=self.devices)
        part = message.of_places(places)
        return self.simulated.exchange(part, key=key, devices=[asked[place] for place in places])

    def _report(self) -> None:
        for remote in self.remotes.values():
            for event in remote.events:
                self.events.append(asdict(event))
                if event.what != "connected":
                    level = "info" if event.what == "rejoined" else "warning"
                    self.tell(Sentence(sentence(event), "device", level=level, **asdict(event)))
            remote.events.clear()

    def _check(self, answers: dict[int, Reply], simulates: bool, refused: int, round: int) -> None:
        """Ends the run where going on makes no sense. Raises: EngineError."""
        for device, remote in self.remotes.items():
            if not remote.was_connected and remote.why_lost and not self._restored:
                raise EngineError(
                    f"device {device} can't be reached at {remote.place.address}: {remote.why_lost}; "
                    "check the address in run.devices"
                )
        if answers or refused:
            self._barren = 0 if answers or simulates else self._barren + refused
        if self._barren >= 2 * len(self.remotes):
            last = next(event for event in reversed(self.events) if event["what"] == "refused")
            raise EngineError(
                f"round {round}: nothing but refusals came from the devices, the last from device {last['device']} "
                f"({last['address']}): {last['reason']}; if training diverged, lower scheme.lr"
            )


def check(program: Program, population: Population, num_addresses: int) -> None:
    """Refuses what devices on firmware can't do. Raises: EngineError."""
    if program.tail is not None:
        raise EngineError(
            "a device on firmware has no tail behind the server, so the U shape can't run on it; "
            "choose scheme.name = 'split', or run.engine = 'stacked'"
        )
    if program.personal:
        raise EngineError(
            f"a device on firmware can't keep {program.personal[0]} as its own (FedBN); "
            "choose tiny.norm = 'group', or run.engine = 'stacked'"
        )
    if num_addresses > len(population.devices):
        raise EngineError(
            f"run.devices names {num_addresses} addresses and the data make {len(population.devices)} devices; "
            "name fewer, or raise data.num_devices"
        )


def sentence(event: Event) -> str:
    """Gives an event as a sentence for a person."""
    reason = f": {event.reason}" if event.reason else ""
    told = {"lost": "was lost", "reset": "was reset", "refused": "was refused", "rejoined": "is back"}
    return f"round {event.round}: device {event.device} ({event.address}) {told.get(event.what, event.what)}{reason}"
