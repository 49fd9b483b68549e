"""A fleet that doesn't wait for its slowest: devices train side by side, and replies are taken as they come.

fedasync: Xie, Koyejo and Gupta, "Asynchronous federated optimization", 2019, algorithm 1: each reply is mixed into the
model, by a weight that falls with its staleness. fedbuff: Nguyen et al., "Federated learning with buffered asynchronous
aggregation", AISTATS 2022, algorithm 1: the model moves when a buffer of updates is full, each scaled by its staleness.

A round of the scheme is one version of the model. `exchange` starts those of the cohort that are idle, lets the
simulated clock run until the buffer is full, and gives these replies rebased on the model as it is now, so that the
scheme's own mean makes the step of the paper. What is still under way stays in flight, and in the checkpoint.

Limits: as many devices are under way as the cohort counts. A device that has answered waits for the next version, since
on the same version it would learn the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from midhaul import rng, tree
from midhaul.config import FleetConfig
from midhaul.errors import CheckpointError, EngineError
from midhaul.fleet import Part
from midhaul.kit import Kit
from midhaul.message import Message, Op, Replies, Reply, gather
from midhaul.runtime.choosing import Choosing
from midhaul.runtime.participation import Participation
from midhaul.tree import Tree


@dataclass(frozen=True)
class Flight:
    """A device at work: when its reply will be here, the version that it began with, and the reply. Units: seconds."""

    finish_s: float
    air_s: float
    busy_s: float
    version: int
    start: Tree
    reply: Reply


def freshness(fleet: FleetConfig, staleness: int) -> float:
    """Gives what a reply counts for that began so many versions ago: 1 for a fresh one.

    Source: Xie, Koyejo and Gupta 2019, section 5.2, the three functions s(t - tau).
    """
    if fleet.staleness == "polynomial":
        return float((1.0 + staleness) ** -fleet.staleness_exponent)
    late = staleness - fleet.staleness_grace
    return 1.0 if fleet.staleness == "constant" or late <= 0 else 1.0 / (fleet.staleness_exponent * late + 1.0)


class Asynchronous:
    """A fleet around those that take part, whose FIT gives the replies that are here first."""

    def __init__(self, fleet: Participation, kit: Kit) -> None:
        self.fleet = fleet
        self.kit = kit
        self.version = 0
        self.flights: dict[int, Flight] = {}

    @property
    def devices(self) -> tuple[int, ...]:
        return self.fleet.devices

    @property
    def asking(self) -> frozenset[int]:
        return self.fleet.asking

    @property
    def choosing(self) -> Choosing | None:
        return self.fleet.choosing

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.fleet.test_devices

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Starts the idle ones of these devices, and gives the replies that fill the buffer, oldest model or not."""
        asked = list(self.devices if devices is None else devices)
        if message.op != Op.FIT or not key.round:
            return self.fleet.exchange(message, key=key, devices=asked)
        if message.each:
            raise EngineError("devices that are each sent a model of their own can't be averaged asynchronously")
        self._start(message, asked, key)
        num = 1 if self.kit.config.fleet.mode == "fedasync" else self.kit.config.fleet.buffer or len(asked)
        first = sorted(self.flights, key=lambda device: (self.flights[device].finish_s, device))[:num]
        landed = {device: self.flights.pop(device) for device in first}
        replies = gather({device: self._rebased(flight, message.tree) for device, flight in landed.items()})
        if landed:
            self._advance(landed[first[-1]])
            self.version += 1
        return replies

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does so with one part. Raises: EngineError for several, which unlike models have."""
        if len(parts) > 1 and key.round:
            raise EngineError(
                "devices with unlike models can't be averaged asynchronously; set fleet.mode to its default"
            )
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def dump(self) -> tuple[Tree, dict[str, Any]]:
        """Gives all that is in flight, for a checkpoint: tensors, and plain values."""
        tensors: Tree = {}
        table: dict[str, Any] = {"version": self.version, "flights": {}}
        for device, flight in self.flights.items():
            tensors |= {f"start/{device}/{name}": value for name, value in flight.start.items()}
            tensors |= {f"reply/{device}/{name}": value for name, value in flight.reply.tree.items()}
            times = [flight.finish_s, flight.air_s, flight.busy_s, flight.version]
            table["flights"][str(device)] = [times, flight.reply.weight, flight.reply.metrics]
        return tensors, table

    def restore(self, tensors: Tree, table: dict[str, Any]) -> None:
        """Puts back what `dump` gave. Raises: CheckpointError for what it can't have given."""

        def held(part: str, device: str) -> Tree:
            start = f"{part}/{device}/"
            return {path.removeprefix(start): value for path, value in tensors.items() if path.startswith(start)}

        try:
            self.version = int(table["version"])
            self.flights = {
                int(device): Flight(
                    float(times[0]),
                    float(times[1]),
                    float(times[2]),
                    int(times[3]),
                    held("start", device),
                    Reply(held("reply", device), float(weight), {n: float(v) for n, v in metrics.items()}),
                )
                for device, (times, weight, metrics) in table["flights"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError("the checkpoint lacks what was in flight; start the run anew") from None

    def _start(self, message: Message, asked: list[int], key: rng.Key) -> None:
        """Sends those of the cohort that are idle to work, as many as keep it at its size."""
        ledger, idle = self.fleet.ledger, [device for device in asked if device not in self.flights]
        chosen = rng.choose(key._replace(use=int(rng.Use.COHORT)).at(1), max(len(asked) - len(self.flights), 0), idle)
        places = [asked.index(device) for device in chosen]
        now, before = ledger.simulated_seconds, (ledger.air_seconds, ledger.compute_seconds)
        up = self.fleet.exchange(message.of_places(places), key=key, devices=chosen)
        # The work begins now and ends when each is done: the clock stands still until a reply is waited for.
        ledger.simulated_seconds, (ledger.air_seconds, ledger.compute_seconds) = now, before
        for device, reply in up:
            if lost := [name for name in reply.tree if name not in message.tree]:
                raise EngineError(f"a device sends {lost[0]}, which it wasn't sent; set fleet.mode to its default")
            air_s, busy_s = self.fleet.seconds[device]
            start = tree.select(message.tree, reply.tree)
            self.flights[device] = Flight(now + air_s + busy_s, air_s, busy_s, self.version, start, reply)

    def _advance(self, last: Flight) -> None:
        """Lets the clock run until this reply is here; its time is on air and computing as that device's was."""
        ledger = self.fleet.ledger
        waited = max(last.finish_s - ledger.simulated_seconds, 0.0)
        ledger.simulated_seconds += waited
        share = last.air_s / (last.air_s + last.busy_s) if waited else 0.0
        ledger.air_seconds += waited * share
        ledger.compute_seconds += waited * (1.0 - share)

    def _rebased(self, flight: Flight, whole: Tree) -> Reply:
        """Gives a reply as a step from the model as it is now; one that is fresh and counts in full, to the bit."""
        fleet, reply = self.kit.config.fleet, flight.reply
        mixes = fleet.mode == "fedasync"
        factor = freshness(fleet, self.version - flight.version) * (fleet.mixing if mixes else 1.0)
        if factor == 1.0 and (mixes or flight.version == self.version):
            return reply
        now = tree.select(whole, reply.tree)
        step = tree.subtract(reply.tree, now if mixes else flight.start)
        return replace(reply, tree=tree.add(now, step, alpha=factor))
