"""What the server holds and does by itself: its state, its optimisers, and training on data of its own.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import rng, tree
from midhaul.config import Config, SchemeConfig
from midhaul.errors import ModelError
from midhaul.fleet import Fleet
from midhaul.message import Message, Op, Replies, Setting, Settings
from midhaul.models import losses
from midhaul.ops import Examples, Program
from midhaul.tree import Tree

Progress = Callable[[str, int, int], None]


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


@dataclass(frozen=True)
class Kit:
    """What a scheme is given beside its fleet: settings, modules and public data; nothing that a round changes."""

    config: Config
    program: Program
    large: nn.Module | None
    public: Examples
    num_classes: int
    can_adapt: bool = False
    progress: Progress | None = None

    @property
    def cfg(self) -> SchemeConfig:
        """The settings of the scheme."""
        return self.config.scheme

    def optimizer(self) -> Optimizer:
        """Gives the server's optimiser for its large model, as [large] has it."""
        large = self.config.large
        return Optimizer(large.optimizer, large.lr, large.weight_decay)

    def server_model(self) -> nn.Module:
        """Gives the large model. Raises: ModelError if the run has none."""
        if self.large is None:
            raise ModelError(f"the scheme {self.cfg.name} needs a large model; set large.model")
        return self.large

    def fit(self, parameters: Tree, *, train: str, send: str, **settings: Setting) -> Message:
        """Gives the FIT message of the scheme's settings: which slice is trained, and which is sent back."""
        cfg = self.cfg
        chosen: Settings = {
            "lr": cfg.lr,
            "momentum": cfg.momentum,
            "weight_decay": cfg.weight_decay,
            "batch": cfg.batch,
            "epochs": cfg.epochs,
            "loss": cfg.loss,
            "train": train,
            "send": send,
        }
        if self.config.privacy.clip:
            chosen["clip"] = self.config.privacy.clip
        return Message(Op.FIT, parameters, settings={**chosen, **settings})

    def cohort(self, fleet: Fleet, key: rng.Key) -> tuple[int, ...]:
        """Gives the devices of a round: a share of the fleet, or a number, drawn without repetition."""
        wanted = self.config.fleet.cohort
        num = max(1, round(wanted * len(fleet.devices))) if wanted <= 1.0 else min(round(wanted), len(fleet.devices))
        return rng.choose(key._replace(use=int(rng.Use.COHORT)), num, fleet.devices)

    def epochs_of(self, devices: tuple[int, ...], key: rng.Key) -> dict[int, int]:
        """Gives how many epochs each device has time for: all, or for a straggler at least one fewer.

        Source: Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, section 5.2.
        """
        full = self.cfg.epochs
        order = rng.permutation(key._replace(use=int(rng.Use.WORK)), len(devices))
        late = {devices[place] for place in order[: round(self.config.fleet.stragglers * len(devices))]}
        draws = {d: rng.integers(rng.key(key.seed, key.round, d, rng.Use.WORK), 1, max(full - 1, 1))[0] for d in late}
        return {device: 1 + int(draws[device]) if device in late else full for device in devices}


@dataclass(frozen=True)
class Work:
    """Something that a scheme asks of a device, for the budget: an op, and the slice that it trains."""

    op: Op
    train: str = "none"


@dataclass(frozen=True)
class Scheme:
    """A way to train tiny and large models together: plain functions that speak only to a fleet.

    `part` is what of the tiny model lies on a device: whole, front (up to the cut), or u (front and tail).
    `large` says what the server's model is: none, a teacher that sees examples, the rear behind the cut.
    """

    name: str
    title: str
    family: str
    source: str
    init: Callable[[Fleet, Kit, rng.Key], Server]
    round: Callable[[Server, Fleet, Kit, rng.Key], tuple[Server, dict[str, float]]]
    evaluate: Callable[[Server, Fleet, Kit, rng.Key], Replies]
    work: Callable[[SchemeConfig], tuple[Work, ...]]
    part: str = "whole"
    large: str = "none"
    needs_public: bool = False


def evaluate_shared(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the shared model on every test device."""
    message = Message(Op.EVALUATE, server.tree, settings={"rows": "test", "loss": kit.cfg.loss})
    return fleet.exchange(message, key=key, devices=fleet.test_devices)


def evaluate_personal(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, tune: str) -> Replies:
    """Tests models that are a device's own.

    Where devices test on rows of their own, each tests its own model. Where the test devices are new ones, each adapts
    the shared model's slice `tune` on its few rows (`data.adapt`) and tests it on the rest; without such rows, the
    training devices' models are each tested on all the new devices' rows.
    """
    settings: Settings = {"rows": "test", "loss": kit.cfg.loss}
    if fleet.test_devices == fleet.devices or not kit.can_adapt:
        return fleet.exchange(Message(Op.EVALUATE, settings=settings), key=key)
    adapting = kit.fit({}, train=tune, send="none", epochs=kit.cfg.adapt_epochs).settings
    message = Message(Op.ADAPT, server.tree, settings=adapting)
    return fleet.exchange(message, key=key, devices=fleet.test_devices)


def init_halves(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Begins a split scheme: the server draws both halves and keeps the large one."""
    large = kit.server_model()
    whole = tree.of(large)
    memory = kit.optimizer().init(tree.select(whole, parameter_names(large)))
    if kit.program.personal:
        fleet.exchange(Message(Op.LOAD, kit.program.initial), key=key)
    return Server(tree.without(kit.program.initial, kit.program.personal), whole, {"optimizer": memory})


def evaluate_halves(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests a model whose one half is on the device and whose other half is here."""
    devices = fleet.devices if kit.program.personal else fleet.test_devices
    settings: Settings = {"rows": "test", "what": "h" if kit.program.tail is not None else "hy"}
    up = fleet.exchange(Message(Op.FORWARD, server.tree, settings=settings), key=key, devices=devices)
    valid = up.mask().bool()
    flat = predict(kit.server_model(), server.large, up.tree["h"][valid])
    out = flat.new_zeros((*valid.shape, *flat.shape[1:]))
    out[valid] = flat
    if kit.program.tail is not None:
        message = Message(Op.EVALUATE, server.tree, {"z": out}, up.rows, {"rows": "test"})
        return fleet.exchange(message, key=key, devices=up.devices)
    y, counts = up.tree["y"], up.rows.double()
    rows = losses.rows("cross_entropy", flat, y[valid], None, 1.0, 0.0)
    loss = torch.zeros(valid.shape, dtype=torch.float64)
    loss[valid] = rows.double()
    correct = ((out.argmax(-1) == y) & valid).sum(1).double()
    metrics = {"rows": counts, "loss": loss.sum(1) / counts.clamp(min=1.0), "correct": correct}
    return Replies(up.devices, {}, up.rows, counts, metrics)


def mean_loss(replies: Replies) -> dict[str, float]:
    """Gives the mean of the devices' losses, by the rows behind each."""
    rows = replies.metrics["rows"]
    return {"train_loss": float((replies.metrics["loss"] * rows).sum() / rows.sum().clamp(min=1.0))}


def teach(kit: Kit, key: rng.Key) -> tuple[Tree, Tree]:
    """Trains the large model on the server's public data, then distils it into the tiny one.

    Gives the trees of the tiny and of the large model.
    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    public, large_cfg, cfg = kit.public, kit.config.large, kit.cfg
    large = kit.server_model()
    start = rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC)
    teacher, _, _ = train(
        large, tree.of(large), public.x, public.y, kit.optimizer(), epochs=large_cfg.epochs, batch=large_cfg.batch,
        key=start, progress=kit.progress, label="the large model learns",
    )
    soft = predict(large, teacher, public.x)
    tiny = kit.program.module
    student, _, _ = train(
        tiny, {**tree.of(tiny), **kit.program.initial}, public.x, public.y, Optimizer("adam", cfg.distill_lr),
        epochs=cfg.distill_epochs, batch=large_cfg.batch, key=start.at(1 << 16), soft=soft,
        temperature=cfg.temperature, soft_weight=cfg.soft_weight, progress=kit.progress, label="the tiny model is taught",
    )
    return {name: student[name] for name in kit.program.initial}, teacher


def call(module: nn.Module, whole: Tree, x: Tensor, *, training: bool) -> tuple[Tensor, Tree]:
    """Gives a module's output under a tree of parameters and buffers, and the buffers after the pass."""
    module.train(training)
    buffers = {name: whole[name].clone() for name, _ in module.named_buffers()}
    out: Tensor = torch.func.functional_call(module, {**whole, **buffers}, (x,))
    return out, buffers


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Gives the names of a module's parameters, in order."""
    return tuple(name for name, _ in module.named_parameters())


def open_half(
    module: nn.Module, whole: Tree, h: Tensor
) -> tuple[Tensor, Callable[[Tensor, Tree, Optimizer], tuple[Tree, Tree, Tensor]]]:
    """Begins the server's part of a split step whose loss is taken elsewhere.

    Shapes: h [B, H] -> z [B, Z]. Gives z, and a function that takes the gradient at z, the optimiser's state and the
    optimiser, makes the step, and gives the new tree, the new state and the gradient g [B, H] at the cut.
    """
    leaves = {name: whole[name].detach().requires_grad_(True) for name in parameter_names(module)}
    cut = h.detach().requires_grad_(True)
    z, buffers = call(module, {**whole, **leaves}, cut, training=True)

    def close(gradient: Tensor, memory: Tree, optimizer: Optimizer) -> tuple[Tree, Tree, Tensor]:
        gradients = torch.autograd.grad(z, [cut, *leaves.values()], grad_outputs=gradient)
        named = dict(zip(leaves, gradients[1:], strict=True))
        weights, memory = optimizer.step({name: leaf.detach() for name, leaf in leaves.items()}, named, memory)
        return {**whole, **buffers, **weights}, memory, gradients[0]

    return z.detach(), close


def step_half(
    module: nn.Module, whole: Tree, memory: Tree, optimizer: Optimizer, h: Tensor, y: Tensor
) -> tuple[Tree, Tree, Tensor, Tensor, Tensor]:
    """Does the server's part of a split step on one batch: forward, loss, backward, step.

    Shapes: h [B, H] smashed activations, y [B]. Gives the tree and optimiser state after the step, the gradient
    g [B, H] at the cut, the mean loss, and the logits [B, C].
    Source: Vepakomma et al., "Split learning for health", 2018, section 2.
    """
    logits, close = open_half(module, whole, h)
    leaf = logits.requires_grad_(True)
    loss = losses.rows("cross_entropy", leaf, y, None, 1.0, 0.0).mean()
    (slope,) = torch.autograd.grad(loss, [leaf])
    whole, memory, gradient = close(slope, memory, optimizer)
    return whole, memory, gradient, loss.detach(), logits.detach()


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
    soft: Tensor | None = None,
    temperature: float = 1.0,
    soft_weight: float = 0.0,
    memory: Tree | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    progress: Progress | None = None,
    label: str = "training on the server",
) -> tuple[Tree, Tree, float]:
    """Trains a module on data that the server holds; gives its tree, the optimiser's state and the last epoch's loss.

    With `soft` [N, C], a teacher's logits, it is distillation. The learning rate falls to nothing along a cosine
    (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5); `span` is the part of it that this call goes through.
    """
    names = parameter_names(module)
    memory = optimizer.init(tree.select(whole, names)) if memory is None else memory
    mean = float("nan")
    steps = -(-len(y) // batch)
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(key.at(epoch), len(y)))
        total = 0.0
        with rng.torch_seed(key._replace(use=int(rng.Use.DROPOUT)).at(epoch)):
            for step in range(steps):
                rows = order[step * batch : (step + 1) * batch]
                leaves = {name: whole[name].detach().requires_grad_(True) for name in names}
                logits, buffers = call(module, {**whole, **leaves}, x[rows], training=True)
                picked = None if soft is None else soft[rows]
                loss = losses.rows("cross_entropy", logits, y[rows], picked, temperature, soft_weight).mean()
                gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
                slopes = {
                    name: torch.zeros_like(leaf) if slope is None else slope
                    for (name, leaf), slope in zip(leaves.items(), gradients, strict=True)
                }
                share = span[0] + (span[1] - span[0]) * (epoch + step / steps) / epochs
                rate = optimizer.lr * 0.5 * (1.0 + float(np.cos(np.pi * share)))
                weights = {name: leaf.detach() for name, leaf in leaves.items()}
                weights, memory = optimizer.step(weights, slopes, memory, rate)
                whole = {**whole, **buffers, **weights}
                total += float(loss.detach()) * len(rows)
        mean = total / max(len(y), 1)
        if progress is not None:
            progress(label, epoch + 1, epochs)
    return whole, memory, mean


@torch.no_grad()
def predict(module: nn.Module, whole: Tree, x: Tensor, batch: int = 512) -> Tensor:
    """Gives a module's logits of many rows, a batch at a time. Shapes: [N, ...] -> [N, C]."""
    parts = [call(module, whole, x[first : first + batch], training=False)[0] for first in range(0, len(x), batch)]
    return torch.cat(parts) if parts else torch.zeros((0, 1))
