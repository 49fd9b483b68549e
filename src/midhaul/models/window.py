"""Windows on a model: which channels a narrower one holds, and the mean of models that hold different ones.

Sources: leading channels: Diao, Ding and Tarokh, "HeteroFL", ICLR 2021, section 3; channels that roll: Alam, Liu, Yan
and Zhang, "FedRolex: model-heterogeneous federated learning with rolling sub-model extraction", NeurIPS 2022, sec. 3.

Shape letters: D devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from midhaul.models.width import width
from midhaul.tree import Tree

Window = dict[str, tuple[Tensor, ...]]  # of each tensor, the places along each of its axes
Blocks = dict[str, tuple[int, ...]]  # of each tensor, how many places along each axis belong to one channel

_NARROWEST = 1e-9  # leaves one channel of each layer


def blocks(module: nn.Module, input_shape: tuple[int, ...]) -> Blocks:
    """Gives how many places along each axis belong to one channel: more than one behind a flattened map.

    An axis that is never narrowed, such as the classes, is one channel. Raises: ModelError as `width` does.
    """
    _, index = width(module, _NARROWEST, input_shape)
    return {name: tuple(axis.stop for axis in axes) for name, axes in index.items()}


def window(whole: Tree, narrow: Tree, size: Blocks, start: int) -> Window:
    """Gives the places in the whole model's tensors that a narrower one's have, from the channel `start` on.

    Behind a layer's last channel comes its first. A layer that is whole keeps its order, wherever the window starts.
    """
    return {
        name: tuple(
            _places(*sizes, start) for sizes in zip(whole[name].shape, narrow[name].shape, size[name], strict=True)
        )
        for name in narrow
    }


def take_window(tree: Tree, places: Window) -> Tree:
    """Gives the narrower model's tensors out of the whole model's."""
    return {name: tree[name][_mesh(axes)] for name, axes in places.items()}


def mean_of_holders(tree: Tree, parts: Sequence[tuple[Window, Tree, Tensor]]) -> Tree:
    """Gives the tree whose every entry is the weighted mean of the devices that hold it; what nobody holds stays.

    Shapes: a part is a window, the tensors [D, ...] of the devices that have it, and their weights [D]. With one part
    that holds everything it is `tree.weighted_mean`, to the bit.
    """
    return {name: _mean(name, value, [part for part in parts if name in part[0]]) for name, value in tree.items()}


def _mean(name: str, value: Tensor, parts: list[tuple[Window, Tree, Tensor]]) -> Tensor:
    meshes = [_mesh(places[name]) for places, _, _ in parts]
    holders = torch.zeros(value.shape, dtype=torch.int64)  # a bit for each part that holds the entry
    for bit, mesh in enumerate(meshes):
        holders[mesh] += 1 << bit
    for code in torch.unique(holders).tolist():
        held = [bit for bit in range(len(parts)) if code >> bit & 1]
        total = sum((parts[bit][2].sum(dtype=torch.float64) for bit in held), torch.zeros((), dtype=torch.float64))
        if not held or not total:
            continue
        mean = torch.zeros(value.shape, dtype=torch.float64)
        for bit in held:
            _, stacked, weight = parts[bit]
            share = weight.to(torch.float64) / total
            mean[meshes[bit]] += torch.tensordot(share, stacked[name].to(torch.float64), dims=([0], [0]))
        value = torch.where(holders == code, mean.to(value.dtype), value)
    return value


def _places(whole: int, narrow: int, size: int, start: int) -> Tensor:
    if whole == narrow:
        return torch.arange(whole)
    channels = (start + torch.arange(narrow // size)) % (whole // size)
    return (channels[:, None] * size + torch.arange(size)).reshape(-1)


def _mesh(axes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gives index tensors that pick the places of all axes at once."""
    return tuple(places.reshape(-1, *[1] * (len(axes) - 1 - axis)) for axis, places in enumerate(axes))
