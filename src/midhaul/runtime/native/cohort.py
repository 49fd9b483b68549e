"""What the server does with a cohort by the compiled library: draws it, and takes the mean of what it sends.

Without a compiler `rng` and `tree` do the same. A mean is a sum in double precision in the order of the devices, of
rounded products; torch's has the same bits where it sums so too, as on the processor that this was written on.

Shape letters: D devices.
"""

from __future__ import annotations

from ctypes import c_int64

import numpy as np
import torch
from torch import Tensor

from midhaul import rng, tree
from midhaul.program import Indices
from midhaul.runtime.native import library
from midhaul.tree import Tree


def first_of_permutation(key: rng.Key, num: int, size: int) -> Indices:
    """Gives `rng.first_of_permutation`. Shapes: [num]."""
    if library.missing():
        return rng.first_of_permutation(key, num, size)
    order = (c_int64 * size)()
    library.load().mk_permutation(
        key.seed & (2**64 - 1), *(word & (2**32 - 1) for word in (key.round, key.device, key.use)), size, order
    )
    return np.array(order[:num], np.int64)


def weighted_mean(stacked: Tree, weight: Tensor) -> Tree:
    """Gives `tree.weighted_mean`. Shapes: each tensor [D, ...] and weight [D] -> [...]."""
    if library.missing():
        return tree.weighted_mean(stacked, weight)
    share, mean = weight.to(torch.float64) / weight.sum(dtype=torch.float64), library.load().mk_mean
    means: Tree = {}
    for name, value in stacked.items():
        # What isn't for C, among it what doesn't fit the weights, which is refused there.
        if value.dtype != torch.float32 or value.device.type != "cpu" or len(value) != len(share):
            means |= tree.weighted_mean({name: value}, weight)
            continue
        whole, means[name] = value.detach().contiguous(), torch.empty(value.shape[1:])
        mean(whole.data_ptr(), share.data_ptr(), len(whole), means[name].numel(), means[name].data_ptr())
    return means
