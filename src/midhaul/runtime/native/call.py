"""One call of the compiled library: what a job is made of, checked before C sees it.

Shape letters: D devices of the chunk, R rows of all of them one after another, B rows of a device, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from midhaul import rng
from midhaul.errors import EngineError
from midhaul.message import Message, Settings
from midhaul.program import Indices, Population
from midhaul.runtime.native import library
from midhaul.runtime.native.chain import Chain
from midhaul.runtime.native.library import Job, Layer, Parameter
from midhaul.tree import Tree


class Source(NamedTuple):
    """Rows: numbers, or bytes that stand for `levels`. Shapes: x [N, ...], levels [256]."""

    x: Tensor
    levels: Tensor | None = None


class Part(Protocol):
    """What the kernels need of a chunk of devices."""

    message: Message
    devices: list[int]
    rows: list[Indices]
    key: rng.Key
    population: Population
    shared: Tree
    each: Tree

    @property
    def source(self) -> Source: ...


class Call:
    """One call of the library: the job, and all that must live as long as it runs."""

    def __init__(self, made: Chain, source: Source, rows: list[Indices]) -> None:
        self.made, self.held, x = made, list[Any](), source.x
        self.rows = np.concatenate([*rows, np.zeros(0, np.int64)])
        self.sizes = list(map(len, rows))
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(x):
            raise EngineError(f"a device has a row that isn't among the {len(x)} rows of the data")
        first, size = made.layers[0], math.prod(x.shape[1:])
        if size != first.in_c * first.in_h * first.in_w:
            raise EngineError(f"the model doesn't take rows of shape {tuple(x.shape[1:])}")
        self.job = Job(
            layers=(Layer * len(made.layers))(*made.layers),
            num_layers=len(made.layers),
            num_devices=len(rows),
            row_size=size,
            threads=torch.get_num_threads(),
            temperature=1.0,
            bytes=self.tensor(x) if source.levels is not None else None,
            x=self.tensor(x if source.levels is None else source.levels),
            rows=self.array(self.rows),
            first=self.array([0, *itertools.accumulate(self.sizes)]),
        )

    def tensor(self, value: Tensor) -> int:
        """Gives the address of a tensor, which is kept."""
        whole = value.detach().contiguous()
        self.held.append(whole)
        return whole.data_ptr()

    def array(self, values: Any) -> int:
        """Gives the address of an array of 64-bit integers, which is kept."""
        whole = np.ascontiguousarray(values, np.int64)
        self.held.append(whole)
        return int(whole.ctypes.data)

    def parameters(self, shared: Tree, each: Tree, names: Sequence[str], end: Tree) -> None:
        """Names what each layer starts with, what is trained, and where it is to end. Shapes: each, end [D, ...]."""
        count = len(self.made.weights)
        listed = (Parameter * count)()
        for entry, weight in zip(listed, self.made.weights, strict=True):
            own = weight.name in each
            start = each[weight.name] if own else shared[weight.name]
            size = weight.out * weight.inputs * weight.taps
            if start.dtype != torch.float32 or start.numel() != size * (len(self.sizes) if own else 1):
                raise EngineError(f"a device was sent {weight.name} of another shape or type than its model has")
            entry.start, entry.step = self.tensor(start), size if own else 0
            entry.end = end[weight.name].data_ptr() if weight.name in end else None
            entry.out, entry.taps, entry.trained = weight.out, weight.taps, weight.name in names
            setattr(entry, "in", weight.inputs)
        self.job.parameters, self.job.num_parameters = listed, count

    def targets(self, part: Part, settings: Settings, soft: Tensor | None) -> None:
        """Names what the outputs are to be. Shapes: soft [D, B, C] or None."""
        job = self.job
        job.loss_kind = {"cross_entropy": library.CROSS_ENTROPY, "mse": library.MSE}[
            str(settings.get("loss", "cross_entropy"))
        ]
        if "x" not in part.message.tree:
            y = self._labels(part)
            if y.is_floating_point():
                if job.loss_kind != library.MSE:
                    raise EngineError("the rows have values to be hit, and no classes; train with the loss mse")
                job.targets = self.tensor(y.float())
            else:
                if len(y) and (most := int(y.numpy().max())) >= self.made.output_size:
                    raise EngineError(
                        f"a row has the label {most} and the model tells {self.made.output_size} classes apart"
                    )
                job.labels = self.tensor(y.long())
        if soft is not None:
            if soft.shape[2] != self.made.output_size:
                raise EngineError(
                    f"a device was sent logits of {soft.shape[2]} classes; its model has {self.made.output_size}"
                )
            if soft.shape[1] < max(self.sizes, default=0):
                raise EngineError(
                    f"a device was sent logits of {soft.shape[1]} rows and trains on {max(self.sizes)}; send as many"
                )
            job.soft_device = 0 if soft.stride(0) == 0 else soft.shape[1] * soft.shape[2]
            job.soft_row = soft.shape[2]
            job.soft = self.tensor((soft[0] if soft.stride(0) == 0 else soft).float())
            job.temperature = float(settings.get("temperature", 1.0))
            job.soft_weight = float(settings.get("soft_weight", 0.0))

    def _labels(self, part: Part) -> Tensor:
        if not part.population.classes:
            return torch.from_numpy(part.population.y.numpy()[self.rows])
        own = [
            part.population.labels([device], torch.from_numpy(rows)[None])[0]
            for device, rows in zip(part.devices, part.rows, strict=True)
        ]
        return torch.cat(own) if own else part.population.y[:0]

    def plans(self, part: Part, settings: Settings) -> None:
        """Says how many steps each device goes, and how far."""
        job, each = self.job, part.message.each_settings
        usual = {"batch": 0, "epochs": 1, "steps": 0, "step": 0, "epoch": 0}
        plans = np.empty((1 + len(usual), len(part.devices)), np.int64)  # a row is what C is told of all devices
        plans[0] = part.devices
        for place, name in enumerate(usual, start=1):
            own = each.get(name)
            plans[place] = [int(value) for value in own] if own else int(settings.get(name, usual[name]))
        first = self.array(plans)
        for place, name in enumerate(("device", *usual)):
            setattr(job, name, first + place * plans.strides[0])
        key = part.key
        job.seed, job.round, job.use = key.seed & (2**64 - 1), key.round & (2**32 - 1), int(rng.Use.BATCH)
        job.lr = float(settings["lr"])
        for name in ("momentum", "weight_decay", "proximal_mu"):
            setattr(job, name, float(settings.get(name, 0.0)))

    def run(self, name: str, **places: Tensor) -> None:
        """Does the job; what it gives goes to the named tensors, and slopes come from there."""
        for place, value in places.items():
            setattr(self.job, place, value.data_ptr())
        library.run(name, self.job)
