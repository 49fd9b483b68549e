"""A fleet of fleets: devices with unlike models in one federation, an engine for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from midhaul import rng
from midhaul.errors import EngineError
from midhaul.fleet import Group, Held, Part, Populated
from midhaul.message import Message, Replies, gather, join
from midhaul.program import Population, Program
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.loop import Loop
from midhaul.runtime.native.kernels import Kernels
from midhaul.runtime.stacked import Stacked
from midhaul.tree import Tree


class Groups(Populated):
    """A fleet whose devices lie in several engines; a message goes to the engines of those that it is for.

    `build` makes an engine of a program and the population of its devices; groups that share a program share one.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        population: Population,
        build: Callable[[Program, Population], Loop | Stacked | Cluster],
    ) -> None:
        self.population = population
        self.engines: list[Loop | Stacked | Cluster] = []
        self._place: dict[int, int] = {}  # of each device: that of its engine
        for program in {id(group.program): group.program for group in groups}.values():
            held = [group for group in groups if group.program is program]
            members = tuple(sorted({d for group in held for d in (*group.devices, *group.tests)}))
            if population.members is not None:
                members = tuple(sorted({*members} & {*population.members}))
            self._place |= dict.fromkeys(members, len(self.engines))
            self.engines.append(build(program, replace(population, members=members)))

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on each device in the engine that it lies in.

        Raises: MidhaulError where the replies of unlike models can't be stacked.
        """
        asked = list(self.devices if devices is None else devices)
        parts = []
        for place, engine in enumerate(self.engines):
            if places := [p for p, device in enumerate(asked) if self._place[device] == place]:
                part = message if len(places) == len(asked) else message.of_places(places)
                parts.append(engine.exchange(part, key=key, devices=[asked[p] for p in places]))
        return join(parts) if parts else gather({})

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        """Does the parts one after another."""
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]

    def shift(self, population: Population) -> None:
        """Gives the devices other rows, from now on."""
        self.population = population
        for engine in self.engines:
            engine.shift(replace(population, members=engine.population.members))

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint: PART/ENGINE/REST."""
        whole: Tree = {}
        for place, engine in enumerate(self.engines):
            for path, value in engine.dump().items():
                part, _, rest = path.partition("/")
                whole[f"{part}/{place}/{rest}"] = value
        return whole

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        trees: list[Tree] = [{} for _ in self.engines]
        for path, value in whole.items():
            part, _, rest = path.partition("/")
            place, _, rest = rest.partition("/")
            if not place.isdigit() or int(place) >= len(trees):
                raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
            trees[int(place)][f"{part}/{rest}"] = value
        for engine, held in zip(self.engines, trees, strict=True):
            engine.restore(held)


def kernels_of(engine: Held) -> list[Kernels]:
    """Gives the compiled kernels of an engine, those of each kind of device in turn; none of one on other machines."""
    engines = engine.engines if isinstance(engine, Groups) else [engine]
    return [part.kernels for part in engines if isinstance(part, Stacked | Cluster)]
