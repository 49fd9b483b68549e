"""What a device can do: each op a pure function `(program, state, message, key) -> (state, reply)`.

This is the slow version that is obviously right; `runtime/stacked.py` is held to it, and so is the C runtime.

What a device remembers: the parameters of a message serve that op alone. Only LOAD keeps them (by the rule `absorb` it
adds the products of the adapters it is sent, of whatever rank, to the weights of their layers); FIT keeps what it
trained and was not asked to send; BACKWARD keeps the step it made.

Shape letters: B rows of a batch, C classes, H the shape at the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midhaul import directions, rng, rules, tree
from midhaul.errors import EngineError
from midhaul.message import ROW_KINDS, Message, Op, Reply, Settings
from midhaul.models import adapters, losses
from midhaul.program import Examples, Indices, Local, Program
from midhaul.tree import Tree


@dataclass(frozen=True)
class State:
    """What a device remembers between ops: parameters, momentum, the rows of the batch it is in, and its data."""

    data: Local
    tree: Tree = field(default_factory=dict)
    momentum: Tree = field(default_factory=dict)
    stash: Tree = field(default_factory=dict)


def run(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    """Does one op. The key names the seed, the round and the device; each op draws its own streams from it."""
    if message.op not in _OPS:
        raise EngineError(f"{message.op.name} is for devices over a byte stream; a simulated one needs no such op")
    return _OPS[message.op](program, state, message, key)


def batches(
    key: rng.Key,
    num_rows: int,
    settings: Mapping[str, Any],
    permutation: Callable[[rng.Key, int], Indices] = rng.permutation,
) -> Iterator[Indices]:
    """Gives the rows of each step: every epoch in an order of its own, the last batch of an epoch as short as it is.

    `batch` 0 is all rows; `steps` > 0 is that many steps, over as many epochs as they need, instead of `epochs`. `step`
    and `epoch` are where to begin, for an op that goes on where another left off.
    """
    if not num_rows:
        return
    size = int(settings.get("batch", 0)) or num_rows
    steps, made, epoch = int(settings.get("steps", 0)), 0, int(settings.get("epoch", 0))
    begin = size * int(settings.get("step", 0))
    while steps > made or (not steps and epoch < int(settings.get("epochs", 1))):
        order = permutation(key.at(epoch), num_rows)
        for first in range(begin, num_rows, size):
            if steps and made == steps:
                return
            made += 1
            yield order[first : first + size]
        begin, epoch = 0, epoch + 1


def step_rows(
    settings: Mapping[str, Any],
    num_rows: int,
    key: rng.Key,
    permutation: Callable[[rng.Key, int], Indices] = rng.permutation,
) -> Indices:
    """Gives the rows of FORWARD on training rows: all, or a step's part of an order that each epoch draws anew.

    `order` names the device whose order it is, so that devices may go through rows that they share side by side.
    """
    size = int(settings.get("batch", 0))
    if not size:
        return np.arange(num_rows, dtype=np.int64)
    first = size * int(settings.get("step", 0))
    key = key._replace(device=int(settings.get("order", key.device)))
    return permutation(key.at(int(settings.get("epoch", 0))), num_rows)[first : first + size]


def sgd_step(
    weight: Tensor, gradient: Tensor, velocity: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor | None]:
    """Gives the weight and the velocity after one step of SGD with momentum, as torch.optim.SGD computes it."""
    decay, momentum = float(settings.get("weight_decay", 0.0)), float(settings.get("momentum", 0.0))
    if decay:
        gradient = gradient.add(weight, alpha=decay)
    if momentum and velocity is not None:
        gradient = velocity = velocity.mul(momentum).add(gradient)
    return weight.add(gradient, alpha=-float(settings["lr"])), velocity


def clip_update(new: Tree, old: Tree, names: tuple[str, ...], bound: float) -> Tree:
    """Gives the tree with the update of the named tensors scaled down to an L2 norm of at most `bound`."""
    squares = sum((float((new[n].double() - old[n].double()).square().sum()) for n in names), 0.0)
    factor = min(1.0, bound / max(squares**0.5, 1e-30))
    return {**new, **{name: old[name] + (new[name] - old[name]) * factor for name in names}}


def row_losses(logits: Tensor, y: Tensor, soft: Tensor | None, settings: Settings) -> Tensor:
    """Gives the loss of each row under an op's settings. Shapes: [B, C], [B], [B, C] -> [B]."""
    return losses.rows(
        str(settings.get("loss", "cross_entropy")),
        logits,
        y,
        soft,
        float(settings.get("temperature", 1.0)),
        float(settings.get("soft_weight", 0.0)),
    )


def _load(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    known = program.initial
    if message.settings.get("rule") == "absorb":
        weights = adapters.absorbed(program.module, _parameters(program, state, Message(Op.LOAD)), message.tree)
        return replace(state, tree=tree.merge(state.tree, weights), stash={}), _reply(state)
    for name, value in message.tree.items():
        if name not in known or known[name].shape != value.shape:
            raise EngineError(f"a device was sent {name} of shape {tuple(value.shape)}, which its model doesn't have")
    return replace(state, tree=_ordered(program, tree.merge(state.tree, message.tree)), stash={}), _reply(state)


def _read(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    if (what := message.settings.get("what")) in ("examples", "test"):
        rows = state.data.train if what == "examples" else state.data.test
        return state, Reply({"x": rows.x, "y": rows.y}, float(len(rows)), {"rows": 0.0})
    names = program.sendable(str(message.settings.get("send", "whole")))
    return state, _reply(state, tree.select(_parameters(program, state, message), names))


def _fit(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    settings = message.settings
    start = _parameters(program, state, message)
    data = _to_fit(state, message)
    if settings.get("seeds"):
        return state, _walk(program, start, data, message, key)
    end, metrics = descend(program, start, data, message.tree.get("logits"), settings, key)
    sent = program.sendable(str(settings.get("send", "none")))
    if float(settings.get("clip", 0.0)):
        end = clip_update(end, start, sent, float(settings["clip"]))
    changed = {name for name in end if name in program.names(str(settings["train"])) or name in program.personal}
    kept = {name: end[name] for name in changed if name not in sent}
    state = replace(state, tree=_ordered(program, tree.merge(state.tree, kept)))
    return state, Reply({name: end[name] for name in sent}, float(len(data)), metrics)


def _walk(program: Program, start: Tree, data: Examples, message: Message, key: rng.Key) -> Reply:
    """Trains along directions that are only seeds; gives the slopes. The message has the slopes so far."""
    settings = message.settings
    whole = {name: value.double() for name, value in start.items()}
    wide = Examples(data.x.double() if data.x.is_floating_point() else data.x, data.y)

    def loss_of(weights: Tree, rows: Indices) -> Tensor:
        picked = wide.at(rows)
        logits, _ = program.call({**whole, **weights}, picked.x, training=True)
        return row_losses(logits, picked.y, None, settings).mean()

    first = tree.select(start, program.names(str(settings["train"])))
    here = directions.walked(first, message.tree["g"], float(settings["lr"]), key.seed)
    steps = list(batches(key, len(data), settings))
    small, lr = float(settings["noise"]), float(settings["lr"])
    _, slopes, loss = directions.walk(loss_of, here, steps, int(settings["seeds"]), small, lr, key)
    return Reply({"g": slopes}, float(len(data)), {"rows": float(sum(map(len, steps))), "loss": loss})


def _to_fit(state: State, message: Message) -> Examples:
    """Gives the device's own rows or, if the message has rows, these: they have logits and no label."""
    if "x" not in message.tree:
        return state.data.train
    x = message.tree["x"]
    if len(message.tree.get("logits", ())) != len(x):
        raise EngineError("a device was sent rows to train on and not as many logits; send logits, a row for each of x")
    return Examples(x, torch.full((len(x),), -1))


def _adapt(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    start = _parameters(program, state, message)
    end = start
    rows = state.data.train if message.settings.get("rows") == "train" else state.data.adapt
    if len(rows):
        end, _ = descend(program, start, rows, None, message.settings, key)
    return state, _score(program, end, state.data.test, message)


def _forward(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    settings = message.settings
    source = str(settings.get("rows", "train"))
    data = state.data.named(source)
    rows = step_rows(settings, len(data), key) if source == "train" else np.arange(len(data), dtype=np.int64)
    picked = data.at(rows)
    h, _ = program.call_front(_parameters(program, state, message), picked.x, training=source == "train")
    answer: Tree = {"h": h.detach()}
    if settings.get("what") == "hy":
        answer["y"] = picked.y
    if source == "train":
        state = replace(state, stash={"rows": torch.from_numpy(rows)})
    return state, Reply(answer, float(len(rows)), {"rows": float(len(rows))})


def _backward(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    if "rows" not in state.stash:
        raise EngineError("a device was sent BACKWARD with no batch in flight; send FORWARD first")
    picked = state.data.train.at(state.stash["rows"].numpy())
    if "z" in message.tree:
        return _backward_tail(program, state, message, picked)
    if len(picked) == 0:
        return replace(state, stash={}), _reply(state)
    leaves = _leaves(state.tree, program.names(str(message.settings.get("train", "front"))))
    h, updated = program.call_front({**state.tree, **leaves}, picked.x, training=True)
    outputs, slopes = [h], [message.tree["g"]]
    if weight := float(message.settings.get("nopeek", 0.0)):
        outputs.append(losses.distance_correlation(picked.x, h, torch.ones(len(picked))))
        slopes.append(torch.tensor(weight, dtype=torch.float64))
    gradients = torch.autograd.grad(outputs, list(leaves.values()), grad_outputs=slopes, allow_unused=True)
    state = _stepped(program, state, leaves, gradients, message.settings)
    state = replace(state, tree=tree.merge(state.tree, updated), stash={})
    return state, Reply({}, float(len(picked)), {"rows": float(len(picked))})


def _backward_tail(program: Program, state: State, message: Message, picked: Examples) -> tuple[State, Reply]:
    z = message.tree["z"].detach().requires_grad_(True)
    if len(picked) == 0:
        return state, Reply({"g": z.detach()}, 0.0, {"rows": 0.0, "loss": 0.0, "correct": 0.0})
    leaves = _leaves(state.tree, program.names("tail"))
    logits = program.call_tail({**state.tree, **leaves}, z)
    loss = row_losses(logits, picked.y, None, message.settings).mean()
    gradients = torch.autograd.grad(loss, [z, *leaves.values()])
    state = _stepped(program, state, leaves, gradients[1:], message.settings)
    correct = float((logits.argmax(1) == picked.y).sum())
    metrics = {"rows": float(len(picked)), "loss": float(loss.detach()), "correct": correct}
    return state, Reply({"g": gradients[0]}, float(len(picked)), metrics)


def _evaluate(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    data = state.data.named(str(message.settings.get("rows", "test")))
    return state, _score(program, _parameters(program, state, message), data, message)


def _predict(program: Program, state: State, message: Message, key: rng.Key) -> tuple[State, Reply]:
    x = message.tree["x"] if "x" in message.tree else state.data.named(str(message.settings.get("rows", "test"))).x
    logits, _ = program.call(_parameters(program, state, message), x, training=False)
    return state, Reply({"logits": logits.detach()}, float(len(x)), {"rows": float(len(x))})


def descend(
    program: Program, start: Tree, data: Examples, soft: Tensor | None, settings: Settings, key: rng.Key
) -> tuple[Tree, dict[str, float]]:
    """Trains the slice `train` and gives the whole tree after it, with the mean loss of the rows seen."""
    names = program.names(str(settings["train"]))
    rule = rules.RULES[rules.name_of(settings)]
    inner = rules.inner_names(program.names(str(settings.get("inner_train", "none"))))
    mu = float(settings.get("proximal_mu", 0.0)) if rules.name_of(settings) == "sgd" else 0.0
    now, renewed = dict(start), dict[str, Tensor]()
    velocity: dict[str, Tensor | None] = {name: torch.zeros_like(start[name]) for name in names}

    def loss_of(weights: Tree, rows: Indices) -> Tensor:
        picked = data.at(rows)
        logits, updated = program.call({**now, **weights}, picked.x, training=True)
        renewed.update(updated)
        return row_losses(logits, picked.y, None if soft is None else soft[torch.from_numpy(rows)], settings).mean()

    total, seen = 0.0, 0
    for rows in batches(key, len(data), settings):
        slopes, loss = rule(loss_of, tree.select(now, names), rules.parts(rows, settings), inner, settings)
        for name in names:
            slope = slopes[name]
            if mu:
                slope = slope.add(now[name] - start[name], alpha=mu)
            now[name], velocity[name] = sgd_step(now[name], slope, velocity[name], settings)
        now.update({name: value.detach() for name, value in renewed.items()})
        total, seen = total + float(loss.detach()) * len(rows), seen + len(rows)
    return now, {"rows": float(seen), "loss": total / max(seen, 1)}


def _stepped(
    program: Program, state: State, leaves: Tree, gradients: tuple[Tensor | None, ...], settings: Settings
) -> State:
    weights, momentum = dict(state.tree), dict(state.momentum)
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        slope = torch.zeros_like(leaf) if gradient is None else gradient
        velocity = momentum.get(name, torch.zeros_like(leaf))
        weights[name], renewed = sgd_step(leaf.detach(), slope, velocity, settings)
        if renewed is not None and float(settings.get("momentum", 0.0)):
            momentum[name] = renewed
    return replace(state, tree=weights, momentum=momentum)


def _score(program: Program, parameters: Tree, data: Examples, message: Message) -> Reply:
    if not len(data):
        return Reply({}, 0.0, {"rows": 0.0, "loss": 0.0, "correct": 0.0})
    if "z" in message.tree:
        logits = program.call_tail(parameters, message.tree["z"])
    else:
        logits, _ = program.call(parameters, data.x, training=False)
    loss = row_losses(logits, data.y, None, {"loss": message.settings.get("loss", "cross_entropy")})
    correct = float((logits.argmax(1) == data.y).sum())
    mean = float(loss.detach().double().mean())
    return Reply({}, float(len(data)), {"rows": float(len(data)), "loss": mean, "correct": correct})


def _parameters(program: Program, state: State, message: Message) -> Tree:
    sent = {name: value for name, value in message.tree.items() if name not in ROW_KINDS}
    whole = _ordered(program, tree.merge(state.tree, sent))
    if missing := [name for name in program.initial if name not in whole]:
        raise EngineError(f"a device has no {missing[0]} yet; send LOAD before {message.op.name}")
    return whole


def _ordered(program: Program, parameters: Tree) -> Tree:
    return {name: parameters[name] for name in program.initial if name in parameters}


def _leaves(parameters: Tree, names: tuple[str, ...]) -> Tree:
    return {name: parameters[name].detach().requires_grad_(True) for name in names}


def _reply(state: State, answer: Tree | None = None) -> Reply:
    return Reply(answer or {}, float(len(state.data.train)), {"rows": 0.0})


_OPS: dict[Op, Callable[[Program, State, Message, rng.Key], tuple[State, Reply]]] = {
    Op.LOAD: _load,
    Op.READ: _read,
    Op.FIT: _fit,
    Op.ADAPT: _adapt,
    Op.FORWARD: _forward,
    Op.BACKWARD: _backward,
    Op.EVALUATE: _evaluate,
    Op.PREDICT: _predict,
}
