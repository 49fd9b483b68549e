"""The one thing that a scheme speaks to: a fleet, and its `exchange`; and how the devices of a fleet differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from midhaul import rng
from midhaul.devices.profiles import Board
from midhaul.link.radio import Radio
from midhaul.message import Message, Replies
from midhaul.program import Population, Program
from midhaul.tree import Tree

Part = tuple[Message, Sequence[int]]  # a message, and the devices that it is for


@dataclass(frozen=True)
class Group:
    """Devices that are alike: the same model on the same board.

    `devices` train, `tests` are those that a shared model is tested on. `width` is the share of each layer's channels
    that they hold, `cut` the layer that they end with, `rank` that of their adapters, `model` the tiny model's name.
    Groups whose devices hold the same model share one `program`.
    """

    devices: tuple[int, ...]
    tests: tuple[int, ...]
    program: Program
    board: Board
    radio: Radio
    width: float = 1.0
    cut: str = ""
    rank: int = 0
    model: str = ""


class Populated:
    """A fleet whose devices are those of a population."""

    population: Population

    @property
    def devices(self) -> tuple[int, ...]:
        return self.population.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.population.test_devices


class Fleet(Protocol):
    """Devices that answer messages: an engine, a link around an engine, a gateway of fleets.

    `devices` are those that train; `test_devices` those that the model is tested on, which may be the same.
    """

    @property
    def devices(self) -> tuple[int, ...]: ...

    @property
    def test_devices(self) -> tuple[int, ...]: ...

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Sends one message to some devices (all that train, if none are named) and gives the replies that came back.

        The key gives the seed and the round; each device draws from `rng.key(seed, round, device, use)`. A device that
        didn't answer is not in the replies.
        """
        ...

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Sends several messages in one step, each to devices of its own, which work at the same time.

        Gives the replies to each. For devices with unlike models, whose replies can't be stacked; the step lasts as
        long as its slowest device, whichever part that is in.
        """
        ...


class Held(Fleet, Protocol):
    """A fleet whose devices' memory can be kept and given back: a run's own engine, wherever they are."""

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        ...

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint."""
        ...

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        ...


class Around:
    """A fleet around a fleet: the same devices."""

    fleet: Fleet

    @property
    def devices(self) -> tuple[int, ...]:
        return self.fleet.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.fleet.test_devices
