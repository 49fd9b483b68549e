"""What devices elsewhere remember, as far as the server knows it: what they were loaded with, and their last state.

A gateway that starts again has lost what its devices held, and one that was away was not sent what they should hold.
The server keeps a shadow of them: an engine without rows that takes every LOAD, and what the gateways' devices
remembered at the last checkpoint. It has the form of `stacked`, so that a federation's checkpoint is that of `stacked`.

Shape letters: K devices that have a tensor of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import EngineError
from midhaul.fleet import Group
from midhaul.message import Message
from midhaul.program import Population
from midhaul.runtime import own
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.tree import Tree

_KEPT = ("own", "momentum")


class Shadow:
    """A fleet's memory without the fleet."""

    def __init__(self, groups: Sequence[Group], population: Population) -> None:
        """`population` says which devices there are; its rows aren't looked at."""
        none = np.zeros(0, np.int64)
        train, test = (tuple(none for _ in parts) for parts in (population.train, population.test))
        empty = Population(population.x[:0], population.y[:0], train, test, (), population.own_test)
        programs = {id(group.program): group.program for group in groups}
        self._engine: Stacked | Groups = (
            Stacked(groups[0].program, empty, kernels="torch")
            if len(programs) == 1
            else Groups(groups, empty, lambda program, members: Stacked(program, members, kernels="torch"))
        )
        self._num = population.num_devices

    def load(self, message: Message, devices: Sequence[int]) -> None:
        """Takes a LOAD that these devices were sent."""
        self._engine.exchange(message, key=rng.Key(0, 0, 0, 0), devices=devices)

    def whole(self) -> Tree:
        """Gives what all devices remember: what `stacked` would give."""
        return self._engine.dump()

    def restore(self, whole: Tree) -> None:
        """Puts it back to what `whole` gave. Raises: EngineError for another fleet's."""
        self._engine.restore(whole)

    def of(self, devices: Sequence[int]) -> Tree:
        """Gives what some devices remember, in the same form."""
        wanted, found, whole = set(devices), Tree(), self.whole()
        for path, values in whole.items():
            part = path.split("/", 1)[0]
            if part not in _KEPT:
                found |= {path: values} if part == "base" else {}
                continue
            held = own.owners(whole, path)
            places = [place for place, device in enumerate(held.tolist()) if device in wanted]
            if places:
                found |= {path: values[places], f"of_{path}": held[places]}
        return found

    def keep(self, states: Sequence[tuple[Sequence[int], Tree]]) -> None:
        """Takes what `told` gave of the devices of some gateways; of the others, what was known stays.

        What devices were loaded with lies in the shadow already. Where an engine can't tell that from what a device
        trained, a tensor is the device's own if it isn't what the device was loaded with.
        Raises: EngineError for what no device of this fleet can hold.
        """
        before, heard = self.whole(), {device for devices, _ in states for device in devices}
        rows: dict[str, dict[int, Tensor]] = {}
        for path in (path for path in before if path.split("/", 1)[0] in _KEPT):
            held = dict(zip(own.owners(before, path).tolist(), before[path], strict=True))
            is_own = path.startswith("own/")
            rows[path] = {device: value for device, value in held.items() if is_own or device not in heard}
        for devices, state in states:
            for path, values in state.items():
                part, _, name = path.partition("/")
                if part not in (*_KEPT, "tree"):
                    continue
                held = dict(zip(own.owners(state, path).tolist(), values, strict=True))
                if not held.keys() <= set(devices):
                    raise EngineError(f"a gateway tells {path} of a device that it doesn't hold")
                loaded, mine = before.get(f"base/{name}"), rows.setdefault(f"{part.replace('tree', 'own')}/{name}", {})
                for device, value in held.items():
                    if part != "tree" or loaded is None or device in mine or not torch.equal(value, loaded):
                        mine[device] = value
        whole = {path: value for path, value in before.items() if path.startswith("base/")}
        for path, held in rows.items():
            if held:
                order = sorted(held)
                whole[path] = torch.stack([held[device] for device in order])
                if len(order) < self._num:
                    part, _, name = path.partition("/")
                    whole[f"of_{part}/{name}"] = torch.tensor(order)
        self.restore(whole)


Engine = Stacked | Cluster | Loop | Groups | Firmware


def told(engine: Engine) -> Tree:
    """Gives what an engine's devices remember but weren't loaded with, in the form of `stacked`.

    A tensor of which the engine can't tell comes as tree/NAME and of_tree/NAME.
    """
    whole = {path: value for path, value in engine.dump().items() if not path.startswith("base/")}
    if not isinstance(engine, Loop | Firmware):
        return whole
    found = {path: value for path, value in whole.items() if not _is_single(path)}
    singles: dict[str, dict[int, Tensor]] = {}
    for path in whole.keys() - found.keys():
        part, number, name = path.split("/", 2)
        singles.setdefault(f"{part}/{name}", {})[int(number)] = whole[path]
    for path, held in sorted(singles.items()):
        mine = dict(zip(own.owners(found, path).tolist(), found[path], strict=True)) if path in found else {}
        order = sorted(mine := mine | held)
        found |= {path: torch.stack([mine[device] for device in order]), f"of_{path}": torch.tensor(order)}
    return found


def remind(engine: Engine, whole: Tree, devices: Sequence[int]) -> None:
    """Lets an engine's devices remember what `Shadow.of` gave. Raises: EngineError for another fleet's."""
    if not isinstance(engine, Loop | Firmware):
        engine.restore(whole)
        return
    singles = set(devices if isinstance(engine, Loop) else engine.remotes)
    found: Tree = {}
    for path, values in whole.items():
        part, _, name = path.partition("/")
        if part == "base":
            found |= {path: values} if isinstance(engine, Firmware) else {}
            found |= {f"tree/{device}/{name}": values for device in sorted(singles)}
    for path, values in whole.items():
        part, _, name = path.partition("/")
        if part in _KEPT:
            held, kind = own.owners(whole, path).tolist(), "tree" if part == "own" else part
            found |= {f"{kind}/{d}/{name}": v for d, v in zip(held, values, strict=True) if d in singles}
            if rest := [place for place, device in enumerate(held) if device not in singles]:
                found |= {path: values[rest], f"of_{path}": torch.tensor([held[place] for place in rest])}
    engine.restore(found)


def _is_single(path: str) -> bool:
    """Tells whether a path is of one device: tree/DEVICE/NAME or momentum/DEVICE/NAME; a parameter's name has no /."""
    part, _, rest = path.partition("/")
    return part in ("tree", "momentum") and rest.count("/") == 1
