"""The stages of a finished run: what its device's and its server's models say of each query, and what each query costs.

Sources: exits: Teerapittayanon, McDanel and Kung, "BranchyNet", ICPR 2016, and, at the cut of a split model,
"Distributed deep neural networks over the cloud, the edge and end devices", ICDCS 2017, section III.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import budget
from midhaul.errors import BudgetError, ConfigError, SliceError
from midhaul.fleet import Group
from midhaul.inference import exits
from midhaul.inference.held import Heard
from midhaul.inference.stages import Ints, Link, Stage, joined, on_device, on_server
from midhaul.message import Op
from midhaul.models import count, slices
from midhaul.server import predict
from midhaul.tree import Tree


class Answers:
    """The stages of a run, and the ways to answer that have no threshold."""

    def __init__(self, heard: Heard) -> None:
        self.heard, self.plant = heard, heard.plant
        self.config = heard.plant.config.inference
        self.notes: list[str] = []
        self.is_split = self.plant.scheme.part == "front"
        self.sends = "h" if self.is_split and self.config.send == "x" else self.config.send
        self.alone: list[tuple[str, list[Stage]]] = []
        local = self._split_exit() if self.is_split else self._tiny()
        remote = [] if self.sends == "none" else [self._remote()]
        self.stages = [*local, *remote]
        if len(self.stages) < 2:
            raise ConfigError("with inference.send = none there is nobody to ask but an early exit: set inference.exit")

    def _tiny(self) -> list[Stage]:
        """Gives the tiny model's stages: an early exit if there is one, and the whole."""
        heard, program = self.heard, self.plant.kit.program
        whole = self._own(heard.said, lambda group: _macs(group.program.module, program.input_shape))
        self.alone.append(("tiny alone", [whole]))
        if not self.config.exit:
            return [whole]
        if program.personal or program.frozen:
            raise ConfigError("an early exit isn't built for int8 bodies or personal batch norm; unset inference.exit")
        front, _ = slices.cut(program.module, self.config.exit, program.input_shape)
        public = predict(front, exits.own(front, heard.server.tree), self.plant.kit.public.x)
        module, tree = exits.learn(public, self.plant.kit)
        logits = torch.zeros_like(heard.said)
        for device, own in heard.trees.items():
            rows = torch.from_numpy(heard.device == device)
            if bool(rows.any()):
                logits[rows] = predict(module, tree, predict(front, exits.own(front, own), heard.x[rows]))
        macs, before = _macs(program.module, program.input_shape), _macs(front, program.input_shape)
        first = self._own(logits, lambda group: before + exits.macs(module, public))
        self.alone.append(("exit alone", [first]))
        return [first, self._own(heard.said, lambda group: macs - before)]

    def _split_exit(self) -> list[Stage]:
        """Gives the device half's stage: an exit at the cut, learned on public data."""
        heard, program = self.heard, self.plant.kit.program
        if program.personal:
            raise ConfigError("an early exit isn't built for personal batch norm; run with tiny.norm = group")
        public = predict(program.module, exits.own(program.module, heard.server.tree), self.plant.kit.public.x)
        module, tree = exits.learn(public, self.plant.kit)
        macs = _macs(program.module, program.input_shape) + exits.macs(module, public)
        first = self._own(predict(module, tree, heard.said), lambda group: macs)
        self.alone.append(("exit alone", [first]))
        return [first]

    def _remote(self) -> Stage:
        """Gives the large model's stage, and notes the extreme points: everything sent as x, everything as h."""
        heard, kit = self.heard, self.plant.kit
        if self.plant.scheme.large == "none" or kit.large is None or not heard.server.large:
            raise ConfigError(
                f"the run of {self.plant.scheme.name} has no large model to ask; run a scheme that has one, such as "
                "federated_transfer, or set inference.send=none and inference.exit"
            )
        if self.is_split:
            before = _macs(kit.program.module, kit.program.input_shape)
            rear, tree = kit.large, heard.server.large
            self.alone.append(("large alone, h", [self._asked("h", heard.said, rear, tree, before)]))
            return self._asked("h", heard.said, rear, tree, 0)
        whole = self._asked("x", heard.x, kit.large, heard.server.large, 0)
        self.alone.append(("large alone, x", [whole]))
        try:
            behind, by_itself = self._behind_cut(kit.large)
        except (SliceError, BudgetError) as error:
            if self.sends == "h":
                raise
            self.notes.append(f"Features aren't offloaded: {error}.")
            return whole
        self.alone.append(("large alone, h", [by_itself]))
        return behind if self.sends == "h" else whole

    def _behind_cut(self, large: nn.Module) -> tuple[Stage, Stage]:
        """Gives the large model behind its cut: as the tiny model's next stage, and by itself."""
        kit, tree = self.plant.kit, self.heard.server.large
        shape = kit.program.input_shape
        points = slices.cut_points(large, shape)
        layer = self.config.cut or (kit.cfg.body_cut if kit.body_is_cut else points[0].name if points else "")
        front, rear = slices.cut(large, layer, shape)
        mine, behind = exits.own(front, tree), exits.own(rear, tree)
        has_them = self._is_body(mine)
        if not has_them:
            self._fits(large, layer)
        h, macs = predict(front, mine, self.heard.x), _macs(front, shape)
        return self._asked("h", h, rear, behind, 0 if has_them else macs), self._asked("h", h, rear, behind, macs)

    def _is_body(self, front: Tree) -> bool:
        """Tells whether the tiny model's body is this very front, so that it has these features already."""
        shared = self.heard.server.tree
        return self.plant.kit.body_is_cut and all(
            f"body.{name}" in shared and torch.equal(shared[f"body.{name}"], value) for name, value in front.items()
        )

    def _fits(self, large: nn.Module, layer: str) -> None:
        """Refuses a front of the large model for which some board has no room beside the tiny model."""
        plant, enforce = self.plant, self.plant.config.fleet.check
        for group, need in zip(plant.kit.groups, plant.needs, strict=True):
            shape, board = group.program.input_shape, group.board
            more = budget.require(
                large, shape, board, Op.FORWARD, model=plant.large_name, cut=layer, enforce=enforce
            ).flash_bytes
            if enforce and need.flash_bytes + more > board.flash_bytes:
                raise BudgetError(
                    f"the tiny model and the large one up to {layer!r} need {need.flash_bytes + more:,} B of flash on "
                    f"{board.name}, which has {board.flash_bytes:,} B; cut it earlier or send x"
                )

    def _own(self, logits: Tensor, macs: Callable[[Group], int]) -> Stage:
        """Gives a stage that each device computes on its own board."""
        return joined([
            (where, on_device(logits[torch.from_numpy(where)], macs(group), group.board))
            for group, where in self._groups()
        ])  # fmt: skip

    def _asked(self, kind: str, rows: Tensor, module: nn.Module, tree: Tree, macs: int) -> Stage:
        """Gives a stage behind each device's own radio."""
        model, served = partial(predict, module, tree), _macs(module, tuple(rows.shape[1:]))
        link, device, answer = self.plant.config.link, self.heard.device, self.config.answer
        parts = []
        for group, where in self._groups():
            loss = group.radio.loss if link.loss < 0 else link.loss
            between = Link(group.radio, loss, link.retries, self.plant.config.run.seed, 1e9 * self.config.server_gmacs)
            some = rows[torch.from_numpy(where)]
            stage = on_server(
                kind, some, device[where], model, served, between, answer=answer, macs=macs, board=group.board
            )
            parts.append((where, stage))
        return joined(parts)

    def _groups(self) -> list[tuple[Group, Ints]]:
        """Gives the groups of devices that have queries, and which these are."""
        each = [
            (group, np.flatnonzero(np.isin(self.heard.device, [*group.devices, *group.tests])))
            for group in self.plant.kit.groups
        ]
        return [(group, where) for group, where in each if len(where)]


def _macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    return sum(layer.macs for layer in count.layers(module, shape))
