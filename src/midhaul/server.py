"""What the server holds and does by itself: its state, its optimisers, and training on data of its own.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import hardware, rng, tree
from midhaul.models import losses
from midhaul.program import call_module, norms_of
from midhaul.tree import Tree

Progress = Callable[[str, int, int], None]
Augment = Callable[[Tensor, rng.Key], Tensor]


@dataclass(frozen=True)
class Server:
    """Everything that the server must remember to go on; the checkpoint holds exactly this.

    `tree`: what the fleet shares. `large`: the large model. `state`: optimisers and whatever else a scheme keeps.
    `constant`: what `init` made and no round changes, so that a checkpoint holds it once.
    """

    tree: Tree
    large: Tree = field(default_factory=dict)
    state: dict[str, Tree] = field(default_factory=dict)
    constant: Tree = field(default_factory=dict)

    def keeping(self, **state: Tree) -> Server:
        """Gives the server with entries of its state replaced."""
        return replace(self, state={**self.state, **state})

    def on_host(self) -> Server:
        """Gives the server as it is between rounds: all of it on the host."""
        state = {part: hardware.to_host(values) for part, values in self.state.items()}
        whole, large, constant = (hardware.to_host(values) for values in (self.tree, self.large, self.constant))
        return Server(whole, large, state, constant)


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum 0.9 or AdamW as a pure function of trees.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
    """

    name: str
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9

    def init(self, parameters: Tree) -> Tree:
        """Gives the state before the first step."""
        zeros = {f"m.{name}": torch.zeros_like(value) for name, value in parameters.items()}
        if self.name == "adam":
            zeros |= {f"v.{name}": torch.zeros_like(value) for name, value in parameters.items()}
            zeros["count"] = torch.zeros((), dtype=torch.int64)
        return zeros

    def step(self, parameters: Tree, gradients: Tree, state: Tree, lr: float | None = None) -> tuple[Tree, Tree]:
        """Gives the parameters and the state after one step."""
        if not parameters:
            return {}, state
        rate = self.lr if lr is None else lr
        return (self._adam if self.name == "adam" else self._sgd)(parameters, gradients, state, rate)

    def _sgd(self, parameters: Tree, gradients: Tree, state: Tree, rate: float) -> tuple[Tree, Tree]:
        new, kept = {}, {}
        for name, weight in parameters.items():
            slope = gradients[name]
            if self.weight_decay:
                slope = slope.add(weight, alpha=self.weight_decay)
            kept[f"m.{name}"] = velocity = state[f"m.{name}"].mul(self.momentum).add(slope)
            new[name] = weight.add(velocity if self.momentum else slope, alpha=-rate)
        return new, kept

    def _adam(self, parameters: Tree, gradients: Tree, state: Tree, rate: float) -> tuple[Tree, Tree]:
        count = int(state["count"]) + 1
        names = list(parameters)
        weights = [parameters[name].clone() for name in names]
        slopes = [gradients[name] for name in names]
        first = [state[f"m.{name}"].clone() for name in names]
        second = [state[f"v.{name}"].clone() for name in names]
        if self.weight_decay:
            torch._foreach_mul_(weights, 1.0 - rate * self.weight_decay)
        torch._foreach_lerp_(first, slopes, 0.1)
        torch._foreach_mul_(second, 0.999)
        torch._foreach_addcmul_(second, slopes, slopes, 0.001)
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, (1.0 - 0.999**count) ** 0.5)
        torch._foreach_add_(scale, 1e-8)
        torch._foreach_addcdiv_(weights, first, scale, -rate / (1.0 - 0.9**count))
        kept = {f"m.{name}": value for name, value in zip(names, first, strict=True)}
        kept |= {f"v.{name}": value for name, value in zip(names, second, strict=True)}
        kept["count"] = torch.tensor(count, dtype=torch.int64)
        return dict(zip(names, weights, strict=True)), kept


class HalfSteps(Protocol):
    """What may do the steps of a server's half in place of autograd, where it knows the half."""

    def knows(self, h: Tensor, optimizer: Optimizer | None = None) -> bool:
        """Tells whether it can step on activations like h [D, B, H], or without an optimiser, answer for them."""

    def outputs(self, whole: Tree, h: Tensor) -> Tensor:
        """Gives the logits of activations. Shapes: h [D, B, H] -> [D, B, C]."""

    def steps(
        self, whole: Tree, memory: Tree, optimizer: Optimizer, h: Tensor, y: Tensor, rows: list[int], order: list[int]
    ) -> tuple[Tree, Tree, Tensor, Tensor]:
        """Steps on batches one after another, as `step_half` does: those of the places in `order`, and of these rows.

        Shapes: h [D, B, H], y [D, B]. Gives the tree and the optimiser's state, g [D, B, H], and the mean losses [D].
        """


def call(module: nn.Module, whole: Tree, x: Tensor, *, training: bool) -> tuple[Tensor, Tree]:
    """Gives a module's output under a tree of parameters and buffers, and the buffers after the pass."""
    buffers = {name: whole[name].clone() for name, _ in module.named_buffers()}
    out, updated = call_module(module, norms_of(module), {**whole, **buffers}, x, training=training)
    return out, {**buffers, **{name: value.detach() for name, value in updated.items()}}


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Gives the names of a module's parameters, in order."""
    return tuple(name for name, _ in module.named_parameters())


def open_half(
    module: nn.Module, whole: Tree, h: Tensor, *, only: tuple[str, ...] = ()
) -> tuple[Tensor, Callable[[Tensor, Tree, Optimizer], tuple[Tree, Tree, Tensor]]]:
    """Begins the server's part of a split step whose loss is taken elsewhere; `only` names what is trained, () is all.

    Shapes: h [B, H] -> z [B, Z]. Gives z, and a function that takes the gradient at z, the optimiser's state and the
    optimiser, makes the step, and gives the new tree, the new state and the gradient g [B, H] at the cut. Tree and
    state go to the run's hardware and stay there, for the next step; z and g lie where h does.
    """
    here = hardware.now()
    whole = here.put_tree(whole)
    leaves = {name: whole[name].detach().requires_grad_(True) for name in only or parameter_names(module)}
    cut = here.put(h).detach().requires_grad_(True)
    z, buffers = call(module, {**whole, **leaves}, cut, training=True)

    def close(gradient: Tensor, memory: Tree, optimizer: Optimizer) -> tuple[Tree, Tree, Tensor]:
        gradients = torch.autograd.grad(z, [cut, *leaves.values()], grad_outputs=gradient.to(z.device, z.dtype))
        named = dict(zip(leaves, gradients[1:], strict=True))
        weights = {name: leaf.detach() for name, leaf in leaves.items()}
        weights, memory = optimizer.step(weights, named, here.put_tree(memory))
        return {**whole, **buffers, **weights}, memory, hardware.home(gradients[0], h)

    return hardware.home(z.detach(), h), close


def step_half(
    module: nn.Module,
    whole: Tree,
    memory: Tree,
    optimizer: Optimizer,
    h: Tensor,
    y: Tensor,
    *,
    only: tuple[str, ...] = (),
) -> tuple[Tree, Tree, Tensor, Tensor, Tensor]:
    """Does the server's part of a split step on one batch: forward, loss, backward, step.

    Shapes: h [B, H] smashed activations, y [B]. Gives the tree and optimiser state after the step, the gradient
    g [B, H] at the cut, the mean loss, and the logits [B, C].
    Source: Vepakomma et al., "Split learning for health", 2018, section 2.
    """
    here = hardware.now()
    logits, close = open_half(module, whole, here.put(h), only=only)
    leaf = logits.requires_grad_(True)
    loss = losses.rows("cross_entropy", leaf, here.put(y), None, 1.0, 0.0).mean()
    (slope,) = torch.autograd.grad(loss, [leaf])
    whole, memory, gradient = close(slope, memory, optimizer)
    gradient, loss, logits = (hardware.home(value.detach(), h) for value in (gradient, loss, logits))
    return whole, memory, gradient, loss, logits


def train(
    module: nn.Module,
    whole: Tree,
    x: Tensor,
    y: Tensor,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch: int,
    key: rng.Key,
    soft: Tensor | Callable[[Tensor], Tensor] | None = None,
    augment: Augment | None = None,
    temperature: float = 1.0,
    soft_weight: float = 0.0,
    loss: str = "cross_entropy",
    memory: Tree | None = None,
    only: tuple[str, ...] = (),
    span: tuple[float, float] = (0.0, 1.0),
    progress: Progress | None = None,
    label: str = "training on the server",
) -> tuple[Tree, Tree, float]:
    """Trains a module on data that the server holds; gives its tree, the optimiser's state and the last epoch's loss.

    With `soft`, a teacher's logits [N, C] or the teacher itself, it is distillation. `augment` changes each batch. The
    learning rate falls to nothing along a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5); `span` is the
    part of it that this call goes through. `only` names the parameters to train; all, if there are none. `loss` is of
    `models.losses.LOSSES`. All goes to the run's hardware once, and what comes of it lies on the host.
    """
    names, here = only or parameter_names(module), hardware.now()
    memory = optimizer.init(tree.select(whole, names)) if memory is None else memory
    whole, memory, x, y = here.put_tree(whole), here.put_tree(memory), here.put(x), here.put(y)
    soft = here.put(soft) if isinstance(soft, Tensor) else soft
    mean = float("nan")
    steps = -(-len(y) // batch)
    for epoch in range(epochs):
        own = key.use >> 8 | epoch  # a second training under the same key, a pupil's say, has numbers of its own
        order = torch.from_numpy(rng.permutation(key.at(own), len(y)))
        total = torch.zeros((), dtype=torch.float64, device=here.device)  # a GPU isn't waited for at each step
        with rng.torch_seed(key._replace(use=int(rng.Use.DROPOUT)).at(own)), hardware.drawing():
            for step in range(steps):
                rows = order[step * batch : (step + 1) * batch]
                leaves = {name: whole[name].detach().requires_grad_(True) for name in names}
                seen = x[rows] if augment is None else augment(x[rows], _noise(key, epoch * steps + step))
                logits, buffers = call(module, {**whole, **leaves}, seen, training=True)
                picked = soft(seen) if callable(soft) else None if soft is None else soft[rows]
                mean_loss = losses.rows(loss, logits, y[rows], picked, temperature, soft_weight).mean()
                gradients = torch.autograd.grad(mean_loss, list(leaves.values()), allow_unused=True)
                slopes = {
                    name: torch.zeros_like(leaf) if slope is None else slope
                    for (name, leaf), slope in zip(leaves.items(), gradients, strict=True)
                }
                share = span[0] + (span[1] - span[0]) * (epoch + step / steps) / epochs
                rate = optimizer.lr * 0.5 * (1.0 + float(np.cos(np.pi * share)))
                weights = {name: leaf.detach() for name, leaf in leaves.items()}
                weights, memory = optimizer.step(weights, slopes, memory, rate)
                whole = {**whole, **buffers, **weights}
                total += mean_loss.detach().double() * len(rows)
        mean = float(total) / max(len(y), 1)
        if progress is not None:
            progress(label, epoch + 1, epochs)
    return hardware.to_host(whole), hardware.to_host(memory), mean


def _noise(key: rng.Key, step: int) -> rng.Key:
    """Gives the key of a step's changes to its batch; the epochs of a round have streams of their own above these."""
    return key._replace(use=int(rng.Use.NOISE)).at(key.use >> 8 | step)


@torch.no_grad()
def predict(module: nn.Module, whole: Tree, x: Tensor, batch: int = 512) -> Tensor:
    """Gives a module's logits of many rows, a batch at a time. Shapes: [N, ...] -> [N, C].

    They are computed on the run's hardware and lie where the rows do.
    """
    here = hardware.now()
    whole, pieces = here.put_tree(whole), [x[first : first + batch] for first in range(0, len(x), batch)]
    parts = [call(module, whole, here.put(piece), training=False)[0] for piece in pieces]
    return hardware.home(torch.cat(parts), x) if parts else torch.zeros((0, 1))
