"""The server's half of a split model by the compiled kernels: a transformer's steps, forward, backward and optimiser.

Shape letters: D batches one after another, B rows of one, H the shape at the cut, C classes; L tokens, P numbers of a
patch, E width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from midhaul.errors import EngineError
from midhaul.models import attention
from midhaul.runtime.native import library
from midhaul.runtime.native.library import Encoder, HalfJob
from midhaul.server import Optimizer
from midhaul.tree import Tree

_BLOCK = (
    *("norm1.weight", "norm1.bias", "query.weight", "key.weight", "value.weight", "query.bias", "key.bias"),
    *("value.bias", "out.weight", "out.bias", "norm2.weight", "norm2.bias"),
    *("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"),
)
_OPTIMIZERS = {"sgd": library.SGD, "adam": library.ADAM}


class Layout(NamedTuple):
    """A transformer as `c/encoder.h` has it: its sizes, its parameters in their order, and where a patch comes from.

    Shapes: where [L, P].
    """

    tokens: int
    patch: int
    width: int
    heads: int
    inner: int
    classes: int
    depth: int
    eps: float
    names: tuple[str, ...]
    where: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def padded(self) -> int:
        """P, rounded up to whole vectors."""
        return -(-self.patch // 16) * 16


class Half:
    """The compiled steps of one module that stands behind a cut; `refused` says why they can't be, or is empty."""

    def __init__(self, module: nn.Module, choice: str = "auto") -> None:
        self.module, self.choice = module, choice
        self._layouts: dict[tuple[int, ...], Layout | str] = {}
        self.refused, self.done = "", False

    def told(self) -> dict[str, str]:
        """Says what computed the steps so far, if there were any: native, or torch and why."""
        by = f"torch: {self.refused}" if self.refused else "native" if self.done else ""
        return {"the server's half": by} if by else {}

    def knows(self, h: Tensor, optimizer: Optimizer | None = None) -> bool:
        """Tells whether it can step on activations h [D, B, H], or answer for them; if not, `refused` is why."""
        self.refused = self._refusal(h, optimizer)
        self.done |= not self.refused
        return not self.refused

    def steps(
        self, whole: Tree, memory: Tree, optimizer: Optimizer, h: Tensor, y: Tensor, rows: list[int], order: list[int]
    ) -> tuple[Tree, Tree, Tensor, Tensor]:
        """Steps on batches one after another, in the order of their places.

        Shapes: h [D, B, H], y [D, B], rows [D]. Gives the tree and the optimiser's state after the last of them, g
        [D, B, H], the gradient of each batch's mean loss, and these losses [D] float64, each in its place.
        Raises: EngineError for labels that the model has no output for, or if memory ran out.
        """
        layout, h, y = self._layout(tuple(h.shape[2:])), h.contiguous(), y.long().contiguous()
        num = [rows[place] for place in order]
        valid = torch.arange(y.shape[1])[None, :] < torch.tensor(rows)[:, None]
        if y.numel() and int(y[valid].max()) >= layout.classes:
            raise EngineError(
                f"a row has the label {int(y[valid].max())} and the server's half tells {layout.classes} classes apart"
            )
        vectors = [_packed(layout, whole, "")]
        kinds = ("m.", "v.") if optimizer.name == "adam" else ("m.",)
        vectors += [_packed(layout, memory, kind) for kind in kinds]
        every = len(order) == len(h) and min(num) == h.shape[1]
        g, loss = (torch.empty_like if every else torch.zeros_like)(h), torch.zeros(len(order), dtype=torch.float64)
        start = np.asarray([place * h.shape[1] for place in order], np.int64)
        counts = np.asarray(num, np.int64)
        shape = _structure(layout, h[0, 0].numel())
        job = HalfJob(
            x=h.data_ptr(),
            start=start.ctypes.data,
            num=counts.ctypes.data,
            labels=y.data_ptr(),
            weights=vectors[0].data_ptr(),
            first=vectors[1].data_ptr(),
            second=vectors[-1].data_ptr(),
            slopes=g.data_ptr(),
            loss=loss.data_ptr(),
            steps=len(order),
            threads=torch.get_num_threads(),
            optimizer=_OPTIMIZERS[optimizer.name],
            count=int(memory["count"]) if optimizer.name == "adam" else 0,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
        )
        library.run_half(shape, job)
        moved = _unpacked(layout, whole, vectors[0], "")
        kept: Tree = {}
        for kind, vector in zip(kinds, vectors[1:], strict=True):
            kept |= _unpacked(layout, memory, vector, kind)
        if optimizer.name == "adam":
            kept["count"] = torch.tensor(int(memory["count"]) + len(order), dtype=torch.int64)
        each = torch.zeros(len(h), dtype=torch.float64)
        each[torch.tensor(order)] = loss
        return {**whole, **moved}, {**memory, **kept}, g, each

    def outputs(self, whole: Tree, h: Tensor) -> Tensor:
        """Gives the logits of activations. Shapes: h [D, B, H] -> [D, B, C]. Raises: EngineError if memory ran out."""
        layout, h = self._layout(tuple(h.shape[2:])), h.contiguous()
        out, weights = torch.empty((*h.shape[:2], layout.classes)), _packed(layout, whole, "")
        start, num = np.zeros(1, np.int64), np.full(1, h.shape[0] * h.shape[1], np.int64)
        job = HalfJob(
            x=h.data_ptr(),
            start=start.ctypes.data,
            num=num.ctypes.data,
            weights=weights.data_ptr(),
            out=out.data_ptr(),
            steps=1,
            threads=torch.get_num_threads(),
        )
        library.run_half(_structure(layout, h[0, 0].numel()), job)
        return out

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        made = self._layouts[shape]
        assert isinstance(made, Layout)
        return made

    def _refusal(self, h: Tensor, optimizer: Optimizer | None) -> str:
        if self.choice == "torch":
            return "run.kernels is torch"
        if h.dtype != torch.float32 or h.device.type != "cpu":
            return f"the activations are of {h.dtype} on {h.device}"
        if optimizer is not None and optimizer.name not in _OPTIMIZERS:
            return f"the optimiser is {optimizer.name}"
        shape = tuple(h.shape[2:])
        if shape not in self._layouts:
            self._layouts[shape] = layout_of(self.module, shape)
        made = self._layouts[shape]
        return made if isinstance(made, str) else library.missing()


def layout_of(module: nn.Module, shape: tuple[int, ...]) -> Layout | str:
    """Gives the layout of a transformer that takes rows of a shape, or says why the kernels don't know the module.

    They know what `attention.encoder` builds behind patches, of a width that is a multiple of 16.
    """
    parts = dict(module.named_children())
    blocks = [name for name in parts if name.startswith("block")]
    if [*parts] != ["embed", "positions", *blocks, "norm", "pool", "head"] or not blocks:
        return "behind a cut the kernels know transformers alone"
    embed, first = dict(parts["embed"].named_children()), parts[blocks[0]]
    conv = embed.get("patch")
    if not isinstance(conv, nn.Conv1d | nn.Conv2d):
        return "the transformer takes no patches, or none that the kernels know"
    if not isinstance(first, attention.EncoderBlock) or not isinstance(first.fc1, nn.Linear):
        return "a block of the transformer is none that the kernels know"
    width, inner = conv.out_channels, first.fc1.out_features
    if width % 16 or inner % 16:
        return f"the transformer's width is {width}, and the kernels take multiples of 16"
    head, norm, heads = parts["head"], parts["norm"], first.scores.num_heads
    names = ["embed.patch.weight", "embed.patch.bias", "positions.position"]
    names += [f"{block}.{name}" for block in blocks for name in _BLOCK]
    names += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    if {name for name, _ in module.named_parameters()} != set(names):
        return "the transformer has parameters that the kernels don't know"
    eps = [layer.eps for layer in module.modules() if isinstance(layer, nn.LayerNorm)]
    if not isinstance(head, nn.Linear) or not isinstance(norm, nn.LayerNorm) or set(eps) != {norm.eps}:
        return "the transformer's head or norms are none that the kernels know"
    where = _patches(embed["pad"], conv, shape)
    known = {name: value.shape for name, value in module.named_parameters()}
    if where.shape[0] != known["positions.position"][0] or where.shape[1] != known["embed.patch.weight"][1:].numel():
        return f"the transformer doesn't take rows of shape {shape}"
    return Layout(
        *(where.shape[0], where.shape[1], width, heads, inner, head.out_features, len(blocks), norm.eps),
        tuple(names),
        where,
    )


def _patches(pad: nn.Module, conv: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> Any:
    """Gives the place in a row of each number of a patch, -1 for padding. Shapes: [L, P] int64."""
    places = torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.float64).reshape(1, *shape)
    held, dims = pad(places)[0], len(shape) - 1
    for dim in range(dims):
        held = held.unfold(1 + dim, conv.kernel_size[dim], conv.stride[dim])
    tokens = held.movedim(0, dims).flatten(0, dims - 1).flatten(1)
    return np.ascontiguousarray(tokens.long().numpy() - 1)


def _structure(layout: Layout, row: int) -> Encoder:
    return Encoder(
        *(layout.tokens, layout.patch, layout.padded, layout.width, layout.heads, layout.inner, layout.classes),
        *(layout.depth, row, layout.where.ctypes.data, layout.eps),
    )


def _packed(layout: Layout, values: Tree, kind: str) -> Tensor:
    """Gives the parameters, or a mean of the optimiser's, in one vector with room for whole vectors behind it."""
    patch = values[kind + layout.names[0]].reshape(layout.width, layout.patch)
    parts = [nn.functional.pad(patch, (0, layout.padded - layout.patch)).reshape(-1)]
    parts += [values[kind + name].reshape(-1) for name in layout.names[1:]]
    size = sum(len(part) for part in parts)
    return torch.cat([*parts, torch.zeros(-size % 16 + 16)]).float().contiguous()


def _unpacked(layout: Layout, like: Tree, vector: Tensor, kind: str) -> Tree:
    found, at = {}, layout.width * layout.padded
    first = kind + layout.names[0]
    whole = vector[:at].reshape(layout.width, layout.padded)[:, : layout.patch]
    found[first] = whole.reshape(like[first].shape).clone()
    for name in layout.names[1:]:
        value = like[kind + name]
        found[kind + name] = vector[at : at + value.numel()].reshape(value.shape).clone()
        at += value.numel()
    return found
