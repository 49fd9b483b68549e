"""Tensors that differ from device to device, kept for those devices alone that have one.

Shape letters: D devices named, K devices that have a tensor of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from midhaul.errors import EngineError
from midhaul.tree import Tree

_NONE = -1


class Own:
    """One named tensor of each of some devices: memory and time go with those that have one, not with the fleet."""

    def __init__(self, num_devices: int, like: Tensor) -> None:
        """`like` has the shape and the type of one device's tensor, and lies where theirs are to lie."""
        self._place = np.full(num_devices, _NONE, np.int64)  # of each device, in `_values`
        self._devices = np.zeros(0, np.int64)  # in the order of their places
        self._values = like.new_empty((0, *like.shape))

    def __len__(self) -> int:
        return len(self._devices)

    def has(self, devices: Sequence[int]) -> bool:
        """Tells whether every one of these devices has one."""
        return bool((self._place[np.asarray(devices, np.int64)] != _NONE).all())

    def get(self, devices: Sequence[int], otherwise: Tensor | None = None) -> Tensor:
        """Gives the tensors of these devices, as a copy; `otherwise` for those that have none. Shapes: [D, ...].

        Raises: EngineError for a device that has none, where nothing else is given for it.
        """
        places = self._place[np.asarray(devices, np.int64)]
        there = places != _NONE
        if there.all():
            return self._values[torch.from_numpy(places)]
        if otherwise is None:
            raise EngineError(f"device {devices[int(np.argmin(there))]} has no such tensor yet; send LOAD first")
        values = otherwise.expand(len(places), *otherwise.shape).clone()
        values[torch.from_numpy(there)] = self._values[torch.from_numpy(places[there])]
        return values

    def put(self, devices: Sequence[int], values: Tensor) -> None:
        """Keeps a tensor for each of these devices. Shapes: values [D, ...]."""
        given = np.asarray(devices, np.int64)
        new = given[self._place[given] == _NONE]
        if len(new):
            first = len(self._devices)
            self._devices = np.concatenate([self._devices, new])
            self._place[new] = np.arange(first, len(self._devices))
            self._reserve(len(self._devices))
        self._values[torch.from_numpy(self._place[given])] = values.detach().to(self._values.device)

    def _reserve(self, num: int) -> None:
        """Makes room; a quarter more than is asked for, so that growing by a cohort a round copies little."""
        if num > len(self._values):
            room = min(max(num + num // 4, 16), len(self._place))
            grown = self._values.new_empty((room, *self._values.shape[1:]))
            grown[: len(self._values)] = self._values
            self._values = grown

    def dump(self) -> tuple[Tensor, Tensor]:
        """Gives the devices that have one, in ascending order, and theirs. Shapes: [K] int64, [K, ...]."""
        order = np.argsort(self._devices)
        return torch.from_numpy(self._devices[order]), self._values[torch.from_numpy(order)]


def dump(part: str, kept: dict[str, Own]) -> Tree:
    """Gives PART/NAME [K, ...] and, unless they are all devices of the fleet, of_PART/NAME [K], whose these are."""
    whole: Tree = {}
    for name, own in kept.items():
        devices, values = own.dump()
        whole[f"{part}/{name}"] = values
        if len(devices) < len(own._place):
            whole[f"of_{part}/{name}"] = devices
    return whole


def restore(part: str, whole: Tree, num_devices: int, initial: Tree) -> dict[str, Own]:
    """Gives what `dump` was made of. Raises: EngineError if it is another fleet's."""
    kept: dict[str, Own] = {}
    for path, values in whole.items():
        if not path.startswith(f"{part}/"):
            continue
        name = path.removeprefix(f"{part}/")
        devices = owners(whole, path)
        if name not in initial or values.shape[1:] != initial[name].shape or not _known(devices, values, num_devices):
            raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
        kept[name] = Own(num_devices, initial[name])
        kept[name].put(devices.tolist(), values)
    return kept


def owners(whole: Tree, path: str) -> Tensor:
    """Gives whose the rows of PART/NAME in a dump are: of the devices named beside it, or of all. Shapes: [K]."""
    return whole.get(f"of_{path}", torch.arange(len(whole[path])))


def _known(devices: Tensor, values: Tensor, num_devices: int) -> bool:
    """Tells whether each row is of a device of its own."""
    return (
        devices.shape == values.shape[:1]
        and not devices.is_floating_point()
        and len(set(devices.tolist())) == len(devices)
        and (not len(devices) or (int(devices.min()) >= 0 and int(devices.max()) < num_devices))
    )
