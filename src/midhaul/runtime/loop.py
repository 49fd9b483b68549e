"""The slow, obviously right engine: one device after another, each op as `midhaul.ops` has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from midhaul import ops, rng
from midhaul.errors import EngineError
from midhaul.fleet import Part, Populated
from midhaul.message import Message, Replies, Reply, gather
from midhaul.ops import State
from midhaul.program import Population, Program
from midhaul.tree import Tree


class Loop(Populated):
    """A fleet in this process that visits its devices one by one."""

    def __init__(self, program: Program, population: Population) -> None:
        self.program = program
        self.population = population
        self.states: dict[int, State] = {}

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on each device in turn; all answer."""
        replies: dict[int, Reply] = {}
        for place, device in enumerate(self.devices if devices is None else devices):
            state = self.states.get(device) or State(self.population.local(device))
            own_key = rng.key(key.seed, key.round, device, rng.Use.BATCH)
            state, reply = ops.run(self.program, state, message.for_device(place), own_key)
            self.states[device], replies[device] = state, reply
        return gather(replies)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        self.population = population
        self.states = {d: replace(state, data=population.local(d), stash={}) for d, state in self.states.items()}

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint."""
        whole: Tree = {}
        for device, state in sorted(self.states.items()):
            whole.update({f"tree/{device}/{name}": value for name, value in state.tree.items()})
            whole.update({f"momentum/{device}/{name}": value for name, value in state.momentum.items()})
        return whole

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        self.states = {}
        for path, value in whole.items():
            part, number, name = path.split("/", 2)
            device = int(number)
            if part not in ("tree", "momentum") or not 0 <= device < self.population.num_devices:
                raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
            state = self.states.get(device) or State(self.population.local(device))
            if part == "tree":
                self.states[device] = replace(state, tree={**state.tree, name: value})
            else:
                self.states[device] = replace(state, momentum={**state.momentum, name: value})
