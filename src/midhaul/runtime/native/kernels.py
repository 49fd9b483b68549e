"""What the stacked engine asks of the compiled kernels, and why they may refuse.

Shape letters: D devices of the chunk, A some of them, R rows of all one after another, B rows of a device, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import rules
from midhaul.errors import EngineError
from midhaul.message import Message, Op
from midhaul.program import Indices, Program
from midhaul.runtime.native import chain, library
from midhaul.runtime.native.call import Call, Part, Source
from midhaul.runtime.native.chain import Chain
from midhaul.tree import Tree

PIECE = 256  # rows of a piece of work where all devices hold the same parameters

CHOICES = ("auto", "torch", "native")


class Kernels:
    """The compiled kernels for one program.

    `refused` has the reason for each op that was asked for and that torch did instead, `done` the ops that they did.
    """

    def __init__(self, program: Program, choice: str = "auto") -> None:
        self.program, self.choice = program, choice
        self.refused: dict[Op, str] = {}
        self.done: set[Op] = set()
        self._chains: dict[int, Chain | str] = {}

    def refusal(self, message: Message, rows: Source, *, trains: bool) -> str | None:
        """Says why the kernels can't do an op on some rows; None if they can.

        Raises: EngineError for that reason, if nothing but the kernels may do it.
        """
        reason = self._refusal(message, rows, trains)
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
        call = Call(made, part.source, part.rows)
        num = len(part.devices)
        end = self._room((*names, *self.program.personal), num)
        loss, seen = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
        call.parameters(part.shared, part.each, names, end)
        call.targets(part, settings, soft)
        call.plans(part, settings)
        call.job.training = True
        call.run("mk_fit", loss=loss, seen=seen)
        return end, {"rows": seen, "loss": loss}

    def outputs(self, part: Part, source: Source, rows: list[Indices], *, training: bool) -> Tensor:
        """Gives the outputs of each device's rows, padded with zeros. Shapes: [D, B, ...]."""
        made = self._chain(self._module(part.message.op))
        if part.each or made.mixes_rows:
            flat = self._flat(made, part, source, rows, training)
        else:  # all hold the same parameters: each row once
            distinct, back = np.unique(np.concatenate([*rows, np.zeros(0, np.int64)]), return_inverse=True)
            pieces = [distinct[first : first + PIECE] for first in range(0, len(distinct), PIECE)]
            flat = self._flat(made, part, source, pieces, training)[torch.from_numpy(back)]
        counts = [len(r) for r in rows]
        if len(set(counts)) == 1:  # nothing to pad
            return flat.reshape(len(rows), counts[0], *made.shape)
        out = flat.new_zeros((len(rows), max(counts, default=0), *made.shape))
        out[torch.arange(out.shape[1])[None, :] < torch.tensor(counts)[:, None]] = flat
        return out

    def _flat(self, made: Chain, part: Part, source: Source, rows: list[Indices], training: bool) -> Tensor:
        """Gives the outputs of the rows of one device after another. Shapes: [R, ...]."""
        call = Call(made, source, rows)
        call.parameters(part.shared, part.each, (), {})
        call.job.training = training
        out = torch.empty((len(call.rows), *made.shape))
        call.run("mk_pass", out=out)
        return out

    def pull(self, part: Part, active: list[int], names: tuple[str, ...], g: Tensor) -> tuple[Tree, Tree]:
        """Gives the gradients [A, ...] of some parameters, and the statistics that training renewed, of the devices in
        the places `active`, whose outputs have the slopes g [A, B, ...].
        """
        made = self._chain(self._module(part.message.op))
        rows = [part.rows[place] for place in active]
        if tuple(g.shape[2:]) != made.shape or g.shape[1] < max(map(len, rows)):
            raise EngineError(
                f"a device was sent slopes of shape {tuple(g.shape[1:])}; its activations' is "
                f"{(max(map(len, rows)), *made.shape)}"
            )
        call = Call(made, part.source, rows)
        end = self._room((*names, *made.renewed), len(active))
        call.parameters(part.shared, {name: value[active] for name, value in part.each.items()}, names, end)
        counts = torch.tensor([len(r) for r in rows])
        padded = int(counts.min()) < g.shape[1]
        flat = g[torch.arange(g.shape[1])[None, :] < counts[:, None]] if padded else g.flatten(0, 1)
        call.job.training = True
        call.run("mk_pass", slopes=flat.float().contiguous())
        return {name: end[name] for name in names}, {name: end[name] for name in made.renewed}

    def _room(self, names: Sequence[str], num: int) -> Tree:
        return {name: torch.empty((num, *self.program.initial[name].shape)) for name in names}

    def _module(self, op: Op) -> nn.Module:
        return self.program.front if op in (Op.FORWARD, Op.BACKWARD) else self.program.module

    def prepare(self) -> None:
        """Looks at the program's modules now, for an engine beside which other threads call modules: while one is
        traced, a call of any other fails.
        """
        for module in (self.program.module, self.program.front) if self.choice != "torch" else ():
            self._look(module)

    def _look(self, module: nn.Module) -> None:
        if id(module) not in self._chains:
            self._chains[id(module)] = chain.of(module, self.program.input_shape)

    def _chain(self, module: nn.Module) -> Chain:
        made = self._chains[id(module)]
        assert isinstance(made, Chain)
        return made

    def _refusal(self, message: Message, rows: Source, trains: bool) -> str | None:
        if self.choice == "torch":
            return "run.kernels is torch"
        settings, module = message.settings, self._module(message.op)
        x = rows.x if rows.levels is None else rows.levels
        if x.device.type != "cpu":
            return f"the rows lie on {x.device}, and the kernels compute on the processor"
        if x.dtype != torch.float32:
            return f"the rows are of {x.dtype}"
        if rows.levels is not None and (rows.x.dtype != torch.uint8 or len(rows.levels) < 256):
            return "the rows are codes that don't stand for 256 numbers"
        if "z" in message.each:
            return "it is the tail of a model in U shape"
        self._look(module)
        made = self._chains[id(module)]
        if isinstance(made, str):
            return made
        known = {weight.name for weight in made.weights}
        if other := [name for name in known if name not in self.program.initial]:
            return f"{other[0]} changes and is no part of what a device holds"
        if trains:
            if settings.get("seeds"):
                return "it trains along seeds"
            if (name := rules.name_of(settings)) != "sgd":
                return f"it learns by the rule {name}"
            if float(settings.get("nopeek", 0.0)):
                return "its loss has a distance correlation in it"
            if message.op != Op.BACKWARD and self.program.tail is not None:
                return "the model is in U shape"
            if message.op != Op.BACKWARD and made.shape != (made.layers[-1].out_c,):
                return "the model's outputs lie in several places"
            own = self.program.personal if message.op != Op.BACKWARD else ()
            wanted = (*self.program.names(str(settings.get("train", "front"))), *own)
            if other := [name for name in wanted if name not in known]:
                return f"the parameter {other[0]} is in none of the layers that they know"
        return library.missing() or None
