"""Arithmetic on trees: flat, ordered dictionaries of named tensors.

The order of a tree is the order on the wire and in a device's arena. Trees are values: every function here gives a new
tree, and none changes the tensors it was given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from midhaul.errors import MidhaulError

Tree = dict[str, Tensor]
_BLOCK = 4096


def of(module: torch.nn.Module) -> Tree:
    """Gives the parameters, then the buffers, of a module as a tree of detached copies."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def map(tree: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
    """Gives the tree of `function(tensor)`."""
    return {name: function(value) for name, value in tree.items()}


def zip_with(left: Tree, right: Tree, function: Callable[[Tensor, Tensor], Tensor]) -> Tree:
    """Gives the tree of `function(left, right)`. Raises: MidhaulError if the names differ."""
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())
        raise MidhaulError(f"two trees differ in their names: {', '.join(odd)}; they must hold the same tensors")
    return {name: function(value, right[name]) for name, value in left.items()}


def add(left: Tree, right: Tree, alpha: float = 1.0) -> Tree:
    """Gives left + alpha * right.

    >>> add({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}, alpha=0.5)
    {'w': tensor([2.])}
    """
    return zip_with(left, right, lambda a, b: torch.add(a, b, alpha=alpha))


def subtract(left: Tree, right: Tree) -> Tree:
    """Gives left - right."""
    return zip_with(left, right, torch.sub)


def scale(tree: Tree, factor: float) -> Tree:
    """Gives factor * tree."""
    return map(tree, lambda value: value * factor)


def zeros_like(tree: Tree) -> Tree:
    """Gives a tree of zeros of the same shapes."""
    return map(tree, torch.zeros_like)


def select(tree: Tree, names: Iterable[str]) -> Tree:
    """Gives the named tensors in the tree's own order. Raises: MidhaulError for a name that the tree lacks."""
    wanted = set(names)
    if missing := wanted - tree.keys():
        raise MidhaulError(f"the tree has no tensor named {', '.join(sorted(missing))}")
    return {name: value for name, value in tree.items() if name in wanted}


def without(tree: Tree, names: Iterable[str]) -> Tree:
    """Gives the tree less the named tensors."""
    dropped = set(names)
    return {name: value for name, value in tree.items() if name not in dropped}


def merge(tree: Tree, newer: Tree) -> Tree:
    """Gives the tree with the tensors of `newer` in place of its own, in the tree's order, new names last."""
    return {**tree, **newer}


def weighted_mean(stacked: Tree, weight: Tensor) -> Tree:
    """Gives sum_d weight_d tree_d / sum_d weight_d.

    Shapes: each tensor [D, ...] and weight [D] -> [...]. With one device the result is that device's tree, to the bit.

    >>> weighted_mean({"w": torch.tensor([[1.0], [4.0]])}, torch.tensor([1.0, 2.0]))
    {'w': tensor([3.])}
    """
    share = (weight.to(torch.float64) / weight.sum(dtype=torch.float64))[None]

    def mean(value: Tensor) -> Tensor:
        # A block of columns in double precision stays in the cache; each sum is the one that it is in the whole.
        flat, own = value.unsqueeze(-1).flatten(1), share.to(value.device)
        parts = (flat,) if flat.shape[1] <= _BLOCK else torch.split(flat, _BLOCK, 1)
        totals = [torch.mm(own, part.to(torch.float64)) for part in parts]
        whole = totals[0] if len(totals) == 1 else torch.cat(totals, 1)
        return whole.to(value.dtype).reshape(value.shape[1:])

    return map(stacked, mean)


def stack(trees: list[Tree]) -> Tree:
    """Gives one tree of [D, ...] tensors from D trees of the same names and shapes."""
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


def row(stacked: Tree, index: int) -> Tree:
    """Gives the tree of one device out of a stacked tree."""
    return map(stacked, lambda value: value[index])


def num_parameters(tree: Tree) -> int:
    """Gives the number of scalars in a tree."""
    return sum(value.numel() for value in tree.values())


def num_bytes(tree: Tree) -> int:
    """Gives the bytes of a tree's tensors as they lie in memory."""
    return sum(value.numel() * value.element_size() for value in tree.values())


def largest_difference(left: Tree, right: Tree) -> float:
    """Gives the largest absolute difference of any two entries; NaN anywhere gives infinity."""
    largest = 0.0
    for value in zip_with(left, right, lambda a, b: (a.double() - b.double()).abs()).values():
        if value.numel():
            largest = max(largest, float(torch.nan_to_num(value, nan=float("inf")).max()))
    return largest


def is_finite(tree: Tree) -> bool:
    """Tells whether every floating-point entry is finite."""
    return all(all_finite(value) for value in tree.values())


def all_finite(value: Tensor) -> bool:
    """Tells whether every entry of one tensor is finite; whole numbers are.

    An entry that isn't makes the sum infinite or NaN, so a finite sum settles it in one pass.
    """
    if not value.is_floating_point() or math.isfinite(value.sum().item()):
        return True
    return bool(torch.isfinite(value).all())


def sha256(tree: Tree) -> str:
    """Gives the SHA-256 of the names, dtypes, shapes and little-endian bytes, in order."""
    digest = hashlib.sha256()
    for name, value in tree.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
