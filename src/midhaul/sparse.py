"""Sparse update: which tensors of a model a device trains, under a limit of SRAM.

Source: Lin, Zhu, Chen, Wang, Gan, Han, "On-device training under 256KB memory", NeurIPS 2022, section 3.2: what each
tensor contributes is measured by training it alone, beforehand and away from the device, and the update is chosen so
that contributions are large and memory stays within the device's. There the choice is an evolutionary search over
whole updates; here tensors are taken in the order of contribution over bytes, each checked against the plan of the
device's arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from midhaul import budget, rng
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError
from midhaul.message import Op
from midhaul.models import losses
from midhaul.program import Examples
from midhaul.server import Optimizer, Progress, parameter_names, predict, train
from midhaul.tree import Tree


def contributions(
    module: nn.Module,
    whole: Tree,
    learn: Examples,
    test: Examples,
    *,
    lr: float,
    epochs: int,
    batch: int,
    key: rng.Key,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Gives by how much the mean loss on `test` falls when a tensor alone is trained on `learn`, for each of them.

    A tensor whose training raises the loss contributes nothing: 0.
    """
    before = mean_loss(module, whole, test)
    names, falls = parameter_names(module), {}
    for place, name in enumerate(names):
        optimizer = Optimizer("sgd", lr)
        tuned, _, _ = train(
            module, whole, learn.x, learn.y, optimizer, epochs=epochs, batch=batch, key=key, only=(name,)
        )
        falls[name] = max(0.0, before - mean_loss(module, tuned, test))
        if progress is not None:
            progress("what each tensor contributes", place + 1, len(names))
    return falls


def mean_loss(module: nn.Module, whole: Tree, rows: Examples) -> float:
    """Gives the mean cross entropy of a model on labelled rows."""
    return float(losses.rows("cross_entropy", predict(module, whole, rows.x), rows.y).double().mean())


def choose(
    gains: Mapping[str, float],
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    *,
    limit_bytes: int,
    num_rows: int,
    momentum: bool,
    keeps_start: bool = False,
) -> tuple[str, ...]:
    """Gives the tensors to train: by contribution over bytes, as many as `limit_bytes` of the board's SRAM hold.

    A tensor's bytes are what the plan of FIT takes for it alone beyond that of PREDICT: itself, its momentum, and the
    activations that its gradient needs. What they share is counted once, when the choice is checked as a whole.
    Raises: BudgetError if not one tensor that contributes fits.
    """

    def sram(names: Sequence[str]) -> int:
        op = Op.FIT if names else Op.PREDICT
        return budget.plan(
            module,
            input_shape,
            board,
            op,
            train=names,
            num_rows=num_rows,
            momentum=momentum and bool(names),
            keeps_start=keeps_start and bool(names),
        ).sram_bytes

    idle = sram(())
    costs = {name: sram((name,)) for name, gain in gains.items() if gain > 0.0}
    order = sorted(costs, key=lambda name: (-gains[name] / max(costs[name] - idle, 1), name))
    chosen: tuple[str, ...] = ()
    for name in order:
        if costs[name] <= limit_bytes and sram((*chosen, name)) <= limit_bytes:
            chosen = (*chosen, name)
    if not chosen:
        least = min(costs.values(), default=idle)
        raise BudgetError(
            f"no tensor that helps can be trained within {limit_bytes:,} B of SRAM on {board.name}: the smallest needs "
            f"{least:,} B; raise scheme.sram_bytes, or choose a smaller model or a larger board"
            if costs
            else "no tensor lowers the loss on the public rows put aside when it is trained alone; lower "
            "scheme.tune_lr, or give more public data"
        )
    return tuple(name for name in gains if name in chosen)


def mask(names: Sequence[str], whole: Tree) -> torch.Tensor:
    """Gives 1 for each tensor of a tree that is named, else 0: the choice as a tensor, for a checkpoint."""
    return torch.tensor([int(name in names) for name in whole], dtype=torch.uint8)


def spec(chosen: torch.Tensor, whole: Tree) -> str:
    """Gives the slice that a mask stands for.

    >>> held = {"a.weight": torch.zeros(1), "a.bias": torch.zeros(1)}
    >>> spec(mask(["a.bias"], held), held)
    'tensors:a.bias'
    """
    return "tensors:" + ",".join(name for name, flag in zip(whole, chosen.tolist(), strict=True) if flag)


def halved(rows: Examples, share: float, key: rng.Key) -> tuple[Examples, Examples]:
    """Gives labelled rows in two parts, drawn without repetition; the second has `share` of them."""
    order = rng.permutation(key, len(rows))
    num = max(1, round(share * len(rows)))
    return rows.at(order[num:]), rows.at(order[:num])
