"""Offsite tuning's parts of a large model: two adapters, and between them a lossy emulator of what is left out.

Shape letters: B rows, H features between blocks.

Source: Xiao, Lin, Han, "Offsite-tuning: transfer learning without full model", 2023, section 3: the first and the last
blocks are the adapters; the blocks between are frozen, some of them dropped at even distances, and what stays is
distilled to stand for all of them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from midhaul.errors import ModelError
from midhaul.models import trace
from midhaul.tree import Tree

ADAPTERS = "layers:before,after"


def blocks(large: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Gives the longest run of like blocks whose input and output have one shape: those that can be left out.

    Raises: ModelError for a model that is no chain of layers.
    """
    if not isinstance(large, nn.Sequential):
        raise ModelError(
            f"offsite tuning leaves out blocks of a chain, and {type(large).__name__} is no nn.Sequential; "
            "use mlp_large, transformer or vit, or write the model as one"
        )
    runs: list[list[str]] = [[]]
    kind: type[nn.Module] | None = None
    x = trace.example(large, input_shape, 1)
    with torch.no_grad(), trace.at_rest(large):
        for name, layer in large.named_children():
            out = layer(x)
            alike = out.shape == x.shape and not trace.is_layer(layer) and any(True for _ in layer.parameters())
            if not alike or (runs[-1] and type(layer) is not kind):
                runs.append([])
            if alike:
                runs[-1].append(name)
            kind, x = type(layer), out
    return tuple(max((len(run), run) for run in runs)[1])


def emulate(large: nn.Module, input_shape: tuple[int, ...], num_adapters: int, share: float) -> nn.Sequential:
    """Gives a chain of `before`, `emulator` and `after`, copies of the large model's layers with its weights.

    `before` and `after` hold `num_adapters` of the blocks each, with what comes before the first and behind the last;
    `emulator` holds `share` of those between, at even distances, at least one.
    Raises: ModelError for a model with fewer than 2 `num_adapters` + 2 blocks: nothing could be left out.
    """
    run = blocks(large, input_shape)
    if len(run) < 2 * num_adapters + 2:
        raise ModelError(
            f"offsite tuning wants {2 * num_adapters + 2} like blocks in the large model ({num_adapters} at each end, "
            f"two or more between), and {type(large).__name__} has {len(run)}; set large.options.depth higher, or "
            "choose mlp_large, transformer or vit"
        )
    names = [name for name, _ in large.named_children()]
    first, last = names.index(run[num_adapters]), names.index(run[-num_adapters - 1])
    between = names[first : last + 1]
    num = max(1, round(share * len(between)))
    kept = [between[place] for place in _even(num, len(between))]
    return nn.Sequential(
        OrderedDict(
            before=_copy(large, names[:first]), emulator=_copy(large, kept), after=_copy(large, names[last + 1 :])
        )
    )


def middle(large: nn.Module, device: nn.Sequential) -> nn.Sequential:
    """Gives a copy of the blocks that the emulator stands for."""
    outside = {name for part in ("before", "after") for name, _ in device.get_submodule(part).named_children()}
    return _copy(large, [name for name, _ in large.named_children() if name not in outside])


def of_large(tree: Tree) -> Tree:
    """Gives tensors of the device's chain by the names that the large model has for them.

    >>> list(of_large({"before.embed.weight": torch.zeros(1)}))
    ['embed.weight']
    """
    return {name.partition(".")[2]: value for name, value in tree.items()}


def _even(num: int, total: int) -> Sequence[int]:
    """Gives places at even distances, the first and the last among them if there are two or more."""
    return [0] if num == 1 else [round(place * (total - 1) / (num - 1)) for place in range(num)]


def _copy(large: nn.Module, names: Sequence[str]) -> nn.Sequential:
    children = dict(large.named_children())
    return nn.Sequential(OrderedDict((name, copy.deepcopy(children[name])) for name in names))
