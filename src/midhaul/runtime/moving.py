"""What devices remember, moved to another engine in which some of them hold another part of the model.

A device whose part stays the same keeps all that it remembers. One whose part changes keeps each tensor that the new
part has too, in the same shape, with its momentum; what is new to it is as the run's seed drew it, which costs no byte.
A device that remembered nothing goes on with nothing.

Shape letters: K devices that have a tensor of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from midhaul.fleet import Held
from midhaul.program import Program
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.own import owners
from midhaul.runtime.stacked import Stacked
from midhaul.tree import Tree

Part = Loop | Stacked | Cluster
Remembered = dict[int, Tree]  # of each device that remembers something


def move(old: Held, new: Held) -> None:
    """Gives the devices of a new engine what those of the old one remember."""
    memory: Remembered = {}
    momentum: Remembered = {}
    for part in _parts(old):
        whole = part.dump()
        memory |= _remembered(whole, ("tree", "base", "own"), part)
        momentum |= _remembered(whole, ("momentum",), part)
    for part in _parts(new):
        program, devices = part.program, part.devices
        kept = {d: _fitted(memory[d], program, filled=True) for d in devices if memory.get(d)}
        velocity = {d: _fitted(momentum[d], program, filled=False) for d in devices if momentum.get(d)}
        if isinstance(part, Loop):
            trees = {f"tree/{d}/{name}": value for d, own in kept.items() for name, value in own.items()}
            moving = {f"momentum/{d}/{name}": value for d, own in velocity.items() for name, value in own.items()}
            part.restore({**trees, **moving})
        else:
            part.restore({**_stacked("own", kept, len(devices)), **_stacked("momentum", velocity, 0)})


def _parts(engine: Held) -> list[Part]:
    found = engine.engines if isinstance(engine, Groups) else [engine]
    return [part for part in found if isinstance(part, Loop | Stacked | Cluster)]


def _remembered(whole: Mapping[str, Tensor], kinds: tuple[str, ...], part: Part) -> Remembered:
    """Gives the tensors of some parts of a dump, by device; a device's own stand before those that all have alike."""
    found: Remembered = {}
    for kind in kinds:
        for path, value in whole.items():
            head, _, name = path.partition("/")
            if head != kind:
                continue
            if isinstance(part, Loop):
                device, _, name = name.partition("/")
                found.setdefault(int(device), {})[name] = value
            elif kind == "base":
                for own in part.devices:
                    found.setdefault(own, {})[name] = value
            else:
                for place, own in enumerate(owners(dict(whole), path).tolist()):
                    found.setdefault(own, {})[name] = value[place]
    return found


def _fitted(held: Tree, program: Program, *, filled: bool) -> Tree:
    """Gives what of a memory fits a model, in the model's order; the rest as it was drawn, where that is filled in."""
    fitted: Tree = {}
    for name, first in program.initial.items():
        if name in held and held[name].shape == first.shape:
            fitted[name] = held[name]
        elif filled:
            fitted[name] = first
    return fitted


def _stacked(kind: str, held: Remembered, num_devices: int) -> Tree:
    """Gives memories as an engine dumps them: what `num_devices`, all of its, hold alike lies there once, if `own`."""
    whole: Tree = {}
    for name in dict.fromkeys(name for own in held.values() for name in own):
        devices = sorted(device for device, own in held.items() if name in own)
        values = [held[device][name] for device in devices]
        alike = all(value is values[0] or torch.equal(value, values[0]) for value in values[1:])
        if len(devices) == num_devices and alike:
            whole[f"base/{name}"] = values[0]
        else:
            whole[f"{kind}/{name}"] = torch.stack(values)
            whole[f"of_{kind}/{name}"] = torch.tensor(devices)
    return whole
