"""What lies on a device: its rows, and its model as pure functions of a tree.

Shape letters: N rows of the whole population, B rows of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from midhaul import tree
from midhaul.errors import EngineError, SliceError
from midhaul.models import count, slices
from midhaul.models.count import LayerCost
from midhaul.models.norm import FedBatchNorm
from midhaul.tree import Tree

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Labelled rows. Shapes: x [N, ...], y [N] int64, or float32 where the loss is mse and y a value to be hit."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def at(self, rows: Indices) -> Examples:
        """Gives the rows at these places."""
        places = torch.from_numpy(rows)
        return Examples(self.x[places], self.y[places])


@dataclass(frozen=True)
class Local:
    """What one device holds: rows to train on, rows to test on, and rows that a new device may adapt on."""

    train: Examples
    test: Examples
    adapt: Examples

    def named(self, name: str) -> Examples:
        """Gives the rows by the name that messages use."""
        return {"train": self.train, "test": self.test, "adapt": self.adapt}[name]


@dataclass(frozen=True)
class Population:
    """The data of a whole fleet: one array that all share, and the rows of each device.

    Shapes: x [N, ...], y [N]. `train[i]` are the rows of training device i. If `own_test`, test device i is training
    device i; else the test devices are others, numbered after those that train, and a training device that is tested
    all the same (its model is its own) is tested on the rows of all of them. `members` are the devices that a fleet of
    it has, if not all. `classes`, if there are any, are those that each device tells apart, by numbers of its own.
    `levels` [256], if given, are the numbers that the bytes of x stand for: rows then take a quarter of the memory.
    """

    x: Tensor
    y: Tensor
    train: tuple[Indices, ...]
    test: tuple[Indices, ...]
    adapt: tuple[Indices, ...]
    own_test: bool
    members: tuple[int, ...] | None = None
    classes: tuple[Indices, ...] = ()
    levels: Tensor | None = None

    @property
    def num_devices(self) -> int:
        """How many devices there are, those that train and those that only test, members or not."""
        return len(self.train) if self.own_test else len(self.train) + len(self.test)

    @cached_property
    def devices(self) -> tuple[int, ...]:
        """The devices that train."""
        return self._among(range(len(self.train)))

    @cached_property
    def test_devices(self) -> tuple[int, ...]:
        """The devices that a shared model is tested on."""
        return self.devices if self.own_test else self._among(range(len(self.train), self.num_devices))

    def _among(self, devices: range) -> tuple[int, ...]:
        if self.members is None:
            return tuple(devices)
        members = frozenset(self.members)
        return tuple(device for device in devices if device in members)

    @cached_property
    def _all_test(self) -> Indices:
        return np.concatenate(self.test) if self.test else np.zeros(0, np.int64)

    def rows(self, device: int, name: str) -> Indices:
        """Gives the places of a device's rows, by the name that messages use: train, test or adapt."""
        place = device if self.own_test else device - len(self.train)
        if name == "train":
            return self.train[device] if device < len(self.train) else np.zeros(0, np.int64)
        if name == "test":
            return self.test[place] if place >= 0 else self._all_test
        return self.adapt[place] if place >= 0 and self.adapt else np.zeros(0, np.int64)

    def rows_of(self, devices: Sequence[int], name: str) -> list[Indices]:
        """Gives the places of each device's rows."""
        if name == "train" and devices and max(devices) < len(self.train):
            return [self.train[device] for device in devices]
        return [self.rows(device, name) for device in devices]

    def inputs(self, places: Tensor) -> Tensor:
        """Gives the rows of x at these places, as a model takes them. Shapes: [...] -> [..., *input shape]."""
        rows = self.x[places]
        if self.levels is None:
            return rows
        return self.levels.index_select(0, rows.reshape(-1).int()).reshape(rows.shape)

    def on(self, device: torch.device) -> Population:
        """Gives the same with its rows on a device."""
        levels = None if self.levels is None else self.levels.to(device)
        return replace(self, x=self.x.to(device), y=self.y.to(device), levels=levels)

    def plain(self) -> Population:
        """Gives the same with x as numbers, should it be bytes that stand for them."""
        return self if self.levels is None else replace(self, x=self.inputs(torch.arange(len(self.x))), levels=None)

    def local(self, device: int) -> Local:
        """Gives what one device holds."""
        places = [torch.from_numpy(self.rows(device, name)) for name in ("train", "test", "adapt")]
        return Local(*(Examples(self.inputs(at), self.labels([device], at[None])[0]) for at in places))

    def labels(self, devices: Sequence[int], places: Tensor) -> Tensor:
        """Gives the labels of rows as their devices number them; -1 for a class that a device doesn't tell apart.

        Shapes: places [D, B] -> [D, B].
        """
        y = self.y[places]
        if not self.classes:
            return y
        known = torch.from_numpy(np.stack([self.classes[device] for device in devices])).to(y.device)
        same = y[:, :, None] == known[:, None, :]
        return torch.where(same.any(2), same.long().argmax(2), -1)


def norms_of(module: nn.Module) -> dict[str, FedBatchNorm]:
    """Gives the layers that keep running statistics, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, FedBatchNorm)}


def call_module(
    module: nn.Module,
    norms: dict[str, FedBatchNorm],
    parameters: Tree,
    x: Tensor,
    *,
    training: bool,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tree]:
    """Gives a module's output and the statistics that a training pass renewed. Shapes: x [B, ...], mask [B]."""
    module.train(training)
    for layer in norms.values():
        layer.mask, layer.updated = mask, {}
    out: Tensor = torch.func.functional_call(module, parameters, (x,))
    updated = {f"{name}.{key}": value for name, layer in norms.items() for key, value in layer.updated.items()}
    for layer in norms.values():
        layer.mask, layer.updated = None, {}
    return out, updated


class Program:
    """The model on a device as pure functions of a tree: one module, and for the U shape a tail behind the server.

    Where a device trains on a loss of its own and still sends activations, the module goes on behind the cut with an
    auxiliary head, and `front` is its part up to the cut, under the same names.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        *,
        personal: tuple[str, ...] = (),
        tail: nn.Module | None = None,
        frozen: tuple[str, ...] = (),
        front: nn.Module | None = None,
    ) -> None:
        """`personal` are buffers that never leave a device, `frozen` buffers that are loaded and never trained.

        `front` is what FORWARD and BACKWARD run; the whole module, if it is not given.
        """
        self.module = module
        self.input_shape = input_shape
        self.personal = personal
        self.tail = tail
        self.frozen = frozen
        self.front = module if front is None else front
        self._norms = norms_of(module)
        self._names: dict[str, tuple[str, ...]] = {}
        self._fixed: dict[tuple[int, torch.device], Tree] = {}

    @cached_property
    def initial(self) -> Tree:
        """The parameters, and the statistics that change with training, as the module was built with them."""
        whole: Tree = dict(self.module.named_parameters())
        for name, value in self.module.named_buffers():
            if name in self.personal or name in self.frozen:
                whole[name] = value
        if self.tail is not None:
            whole.update({f"tail.{name}": value for name, value in self.tail.named_parameters()})
        return {name: value.detach().clone() for name, value in whole.items()}

    @cached_property
    def layers(self) -> tuple[LayerCost, ...]:
        """What each layer of the module costs for one row."""
        return count.layers(self.module, self.input_shape)

    @cached_property
    def num_bytes(self) -> tuple[int, int]:
        """What the parameters take, and what all layers give for one row."""
        return tree.num_bytes(self.initial), 4 * sum(layer.output_elements for layer in self.layers)

    def names(self, spec: str) -> tuple[str, ...]:
        """Gives the names of the parameters of a slice: none, whole, front, tail, or what `models.slices` knows."""
        if spec not in self._names:
            self._names[spec] = self._find(spec)
        return self._names[spec]

    def sendable(self, spec: str) -> tuple[str, ...]:
        """Gives the names of a slice less those that never leave a device."""
        return tuple(name for name in self.names(spec) if name not in self.personal)

    def _find(self, spec: str) -> tuple[str, ...]:
        whole = tuple(name for name, _ in self.module.named_parameters())
        front = tuple(name for name, _ in self.front.named_parameters())
        tail = tuple(name for name in self.initial if name.startswith("tail.")) if self.tail is not None else ()
        fixed = {"none": (), "whole": whole + tail, "front": front, "tail": tail}
        if spec in fixed:
            return fixed[spec]
        if self.tail is not None:
            raise SliceError(f"a model in U shape has no slice {spec!r}; use whole, front or tail")
        return slices.names(self.module, spec, self.input_shape)

    def call(self, parameters: Tree, x: Tensor, *, training: bool, mask: Tensor | None = None) -> tuple[Tensor, Tree]:
        """Gives the module's output and the statistics that a training pass renewed. Shapes: x [B, ...], mask [B]."""
        inner = {name: value for name, value in parameters.items() if not name.startswith("tail.")}
        inner = {**self._held(self.module, x.device), **inner}
        return call_module(self.module, self._norms, inner, x, training=training, mask=mask)

    def call_front(
        self, parameters: Tree, x: Tensor, *, training: bool, mask: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Gives what a device sends, h [B, H], and the statistics that a training pass renewed."""
        if self.front is self.module:
            return self.call(parameters, x, training=training, mask=mask)
        held = {name for name, _ in [*self.front.named_parameters(), *self.front.named_buffers()]}
        inner = {name: value for name, value in parameters.items() if name in held}
        inner = {**self._held(self.front, x.device), **inner}
        return call_module(self.front, norms_of(self.front), inner, x, training=training, mask=mask)

    def call_tail(self, parameters: Tree, z: Tensor) -> Tensor:
        """Gives the tail's logits of what the server sent. Shapes: [B, Z] -> [B, C]."""
        if self.tail is None:
            raise EngineError("this device has no tail: the model is not in U shape")
        inner = {name[5:]: value for name, value in parameters.items() if name.startswith("tail.")}
        inner = {**self._held(self.tail, z.device), **inner}
        out: Tensor = torch.func.functional_call(self.tail, inner, (z,))
        return out

    def _held(self, module: nn.Module, device: torch.device) -> Tree:
        """Gives a module's buffers on a device other than the module's own, for those that no tree has."""
        if device.type == "cpu":
            return {}
        key = (id(module), device)
        if key not in self._fixed:
            self._fixed[key] = {name: value.to(device) for name, value in module.named_buffers()}
        return self._fixed[key]
