"""What the stacked engine asks of the compiled kernels, and why they may refuse.

Shape letters: D devices of the chunk, R rows of all of them one after another, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import rng, rules
from midhaul.errors import EngineError
from midhaul.message import Message, Op
from midhaul.program import Indices, Population, Program
from midhaul.runtime.native import chain, library
from midhaul.runtime.native.chain import Chain
from midhaul.runtime.native.library import Job, Layer, Parameter
from midhaul.tree import Tree

CHOICES = ("auto", "torch", "native")


class Part(Protocol):
    """What the kernels need of a chunk of devices."""

    message: Message
    devices: list[int]
    rows: list[Indices]
    key: rng.Key
    population: Population
    shared: Tree
    each: Tree
    sent: Tensor | None


class Kernels:
    """The compiled kernels for one program.

    `refused` has the reason for each op that was asked for and that torch did instead, `done` the ops that they did.
    """

    def __init__(self, program: Program, choice: str = "auto") -> None:
        self.program, self.choice = program, choice
        self.refused: dict[Op, str] = {}
        self.done: set[Op] = set()
        self._chains: dict[int, Chain | str] = {}

    def refusal(self, message: Message, population: Population) -> str | None:
        """Says why the kernels can't do an op; None if they can.

        Raises: EngineError for that reason, if nothing but the kernels may do it.
        """
        reason = self._refusal(message, population)
        if reason is None:
            self.done.add(message.op)
            return None
        self.refused.setdefault(message.op, reason)
        if self.choice == "native":
            raise EngineError(f"run.kernels is native, and the kernels can't do {message.op.name}: {reason}")
        return reason

    def note(self, op: Op, refused: str) -> None:
        """Notes what computed an op for this program in another process: the kernels, or why they didn't."""
        if refused:
            self.refused.setdefault(op, refused)
        else:
            self.done.add(op)

    def told(self) -> dict[str, str]:
        """Says what computed each op: "native", or torch and why."""
        done = dict.fromkeys(self.done, "native") | {op: f"torch: {reason}" for op, reason in self.refused.items()}
        return {op.name: done[op] for op in sorted(done)}

    def fit(self, part: Part, soft: Tensor | None) -> tuple[Tree, dict[str, Tensor]]:
        """Trains the slice `train` on every device; gives the tensors that changed [D, ...] and the mean losses [D].

        Shapes: soft [D, B, C], or None.
        """
        made, settings = self._chain(self.program.module), part.message.settings
        names = self.program.names(str(settings["train"]))
        call = _Call(part, made, names)
        num = len(part.devices)
        end = {name: torch.empty((num, *self.program.initial[name].shape)) for name in names}
        loss, seen = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
        call.parameters(end)
        call.labels(settings, soft)
        call.plans(settings, part.message.each_settings)
        call.run("mk_fit", loss=loss, seen=seen)
        return end, {"rows": seen, "loss": loss}

    def _chain(self, module: nn.Module) -> Chain:
        made = self._chains[id(module)]
        assert isinstance(made, Chain)
        return made

    def _refusal(self, message: Message, population: Population) -> str | None:
        if self.choice == "torch":
            return "run.kernels is torch"
        settings = message.settings
        if settings.get("seeds"):
            return "it trains along directions that are seeds"
        if (name := rules.name_of(settings)) != "sgd":
            return f"it learns by the rule {name}"
        x = message.tree.get("x", population.x if population.levels is None else population.levels)
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return f"the rows are of {x.dtype} on {x.device}"
        if self.program.tail is not None:
            return "the model is in U shape"
        module = self.program.module
        if id(module) not in self._chains:
            self._chains[id(module)] = chain.of(module, self.program.input_shape)
        made = self._chains[id(module)]
        if isinstance(made, str):
            return made
        known = {weight.name for weight in made.weights}
        if other := [name for name in self.program.initial if name not in known]:
            return f"the parameter {other[0]} is in none of the layers that they know"
        return library.missing() or None


class _Call:
    """One call of the library: the job, and all that must live as long as it runs."""

    def __init__(self, part: Part, made: Chain, names: Sequence[str]) -> None:
        self.part, self.made, self.names = part, made, names
        self.held: list[Any] = []
        x = part.population.x if part.sent is None else part.sent
        rows = np.concatenate(part.rows) if part.rows else np.zeros(0, np.int64)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
            raise EngineError(f"a device has a row that isn't among the {len(x)} rows of the data")
        if (
            tuple(x.shape[1:]).count(0)
            or x[:1].numel() != made.layers[0].in_c * made.layers[0].in_h * made.layers[0].in_w
        ):
            raise EngineError(f"the model doesn't take rows of shape {tuple(x.shape[1:])}")
        self.rows = rows
        if part.sent is None and part.population.levels is not None:  # bytes, as numbers for this chunk alone
            x, rows = part.population.inputs(torch.from_numpy(rows)), np.arange(len(rows))
        self.job = Job(
            layers=(Layer * len(made.layers))(*made.layers),
            num_layers=len(made.layers),
            num_devices=len(part.devices),
            row_size=x[0].numel(),
            threads=torch.get_num_threads(),
            temperature=1.0,
            x=self.tensor(x),
            rows=self.array(rows),
            first=self.array(np.cumsum([0, *map(len, part.rows)])),
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

    def parameters(self, end: Tree) -> None:
        """Names what each layer starts with, and where it is to end. Shapes: end [D, ...]."""
        part, count = self.part, len(self.made.weights)
        listed = (Parameter * count)()
        for entry, weight in zip(listed, self.made.weights, strict=True):
            own = weight.name in part.each
            start = part.each[weight.name] if own else part.shared[weight.name]
            size = weight.out * weight.inputs * weight.taps
            if start.dtype != torch.float32 or start.numel() != size * (len(part.devices) if own else 1):
                raise EngineError(f"a device was sent {weight.name} of another shape or type than its model has")
            entry.start, entry.step = self.tensor(start), size if own else 0
            entry.end = end[weight.name].data_ptr() if weight.name in end else None
            entry.out, entry.taps, entry.trained = weight.out, weight.taps, weight.name in self.names
            setattr(entry, "in", weight.inputs)
        self.job.parameters, self.job.num_parameters = listed, count

    def labels(self, settings: Any, soft: Tensor | None) -> None:
        """Names what the outputs are to be. Shapes: soft [D, B, C] or None."""
        job, part = self.job, self.part
        job.loss_kind = {"cross_entropy": library.CROSS_ENTROPY, "mse": library.MSE}[
            str(settings.get("loss", "cross_entropy"))
        ]
        if part.sent is None:
            y = self._own_labels()
            if y.is_floating_point():
                job.targets = self.tensor(y.float())
            else:
                if len(y) and int(y.max()) >= self.made.output_size:
                    raise EngineError(
                        f"a row has the label {int(y.max())} and the model tells {self.made.output_size} classes apart"
                    )
                job.labels = self.tensor(y.long())
        if soft is not None:
            if soft.shape[2] != self.made.output_size:
                raise EngineError(
                    f"a device was sent logits of {soft.shape[2]} classes; its model has {self.made.output_size}"
                )
            job.soft_device = 0 if soft.stride(0) == 0 else soft.shape[1] * soft.shape[2]
            job.soft_row = soft.shape[2]
            job.soft = self.tensor((soft[0] if soft.stride(0) == 0 else soft).float())
            job.temperature = float(settings.get("temperature", 1.0))
            job.soft_weight = float(settings.get("soft_weight", 0.0))

    def _own_labels(self) -> Tensor:
        part = self.part
        if not part.population.classes:
            return part.population.y[torch.from_numpy(self.rows)]
        own = [
            part.population.labels([device], torch.from_numpy(rows)[None])[0]
            for device, rows in zip(part.devices, part.rows, strict=True)
        ]
        return torch.cat(own) if own else part.population.y[:0]

    def plans(self, settings: Any, each: Any) -> None:
        """Says how many steps each device goes, and how far."""
        job, devices = self.job, self.part.devices
        for name, usual in (("batch", 0), ("epochs", 1), ("steps", 0), ("step", 0), ("epoch", 0)):
            values = each.get(name) or [settings.get(name, usual)] * len(devices)
            setattr(job, name, self.array([int(value) for value in values]))
        job.device = self.array(devices)
        key = self.part.key
        job.seed, job.round, job.use = key.seed & (2**64 - 1), key.round & (2**32 - 1), int(rng.Use.BATCH)
        job.lr = float(settings["lr"])
        for name in ("momentum", "weight_decay", "proximal_mu"):
            setattr(job, name, float(settings.get(name, 0.0)))

    def run(self, name: str, **places: Tensor) -> None:
        """Does the job; what it gives goes to the named tensors."""
        for place, value in places.items():
            setattr(self.job, place, value.data_ptr())
        library.run(name, self.job)
