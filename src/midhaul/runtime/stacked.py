"""The fast engine: all devices of a cohort at once, their parameters stacked, their ragged batches padded and masked.

Shape letters: D devices of a chunk, S steps, B rows of a batch (the widest), N rows of the whole population.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from midhaul import ops, rng, tree
from midhaul.errors import EngineError
from midhaul.message import ROW_KINDS, Message, Op, Replies, join
from midhaul.models import count
from midhaul.ops import Indices, Population, Program
from midhaul.tree import Tree

_FLAT_ROWS = 2048  # rows of one forward pass when all devices share their parameters


class Stacked:
    """A fleet in this process that trains its devices side by side.

    A name that all devices hold alike lies once in `base`; a name that differs lies in `own` as [devices, ...].
    `memory_bytes` bounds what the training of a chunk of devices may take; chunks are made to fit it.
    """

    def __init__(self, program: Program, population: Population, memory_bytes: int = 10**9) -> None:
        self.program = program
        self.population = population
        self.memory_bytes = memory_bytes
        self.num_devices = len(set(population.devices) | set(population.test_devices))
        self.base: Tree = {}
        self.own: Tree = {}
        self.momentum: Tree = {}
        self.stash: dict[int, Indices] = {}
        self._activations: int | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        return self.population.devices

    @property
    def test_devices(self) -> tuple[int, ...]:
        return self.population.test_devices

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Does the op on all devices, a chunk at a time; all answer."""
        asked = list(self.devices if devices is None else devices)
        if message.op == Op.LOAD:
            return self._load(message, asked)
        rows = [self._rows(message, device, key) for device in asked]
        # Devices with much to do stand together, so that little of a chunk is padding.
        order = sorted(range(len(asked)), key=lambda place: (-len(rows[place]), asked[place]))
        parts, size = [], self._chunk(message, max((len(r) for r in rows), default=1))
        for first in range(0, len(order), size):
            places = order[first : first + size]
            part = _Chunk(self, message.of_places(places), [asked[p] for p in places], [rows[p] for p in places], key)
            parts.append(part.run())
        return join(parts) if parts else _replies([], {}, None, [], {})

    def dump(self) -> Tree:
        """Gives all that the devices remember between rounds, for a checkpoint."""
        parts = {"base": self.base, "own": self.own, "momentum": self.momentum}
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, whole: Tree) -> None:
        """Puts the devices back to where `dump` found them."""
        parts: dict[str, Tree] = {"base": {}, "own": {}, "momentum": {}}
        for path, value in whole.items():
            part, _, name = path.partition("/")
            if part not in parts or name not in self.program.initial:
                raise EngineError(f"the checkpoint holds {path}, which this fleet doesn't have; it is of another run")
            parts[part][name] = value
        self.base, self.own, self.momentum = parts["base"], parts["own"], parts["momentum"]

    def _load(self, message: Message, asked: list[int]) -> Replies:
        known = self.program.initial
        for name, value in message.tree.items():
            if name not in known or known[name].shape != value.shape:
                raise EngineError(f"a device was sent {name} of shape {tuple(value.shape)}, which its model doesn't have")
            if set(asked) >= set(self.devices) | set(self.test_devices) or set(asked) >= set(self.devices):
                self.base[name] = value
                self.own.pop(name, None)
            else:
                self.set_own(name, asked, value.expand(len(asked), *value.shape))
        for name, values in message.each.items():
            if name not in known or known[name].shape != values.shape[1:]:
                raise EngineError(f"a device was sent {name} of shape {tuple(values.shape[1:])}, which its model doesn't have")
            self.set_own(name, asked, values)
        for device in asked:
            self.stash.pop(device, None)
        weight = [float(len(self.population.rows(device, "train"))) for device in asked]
        return _replies(asked, {}, None, weight, {"rows": torch.zeros(len(asked), dtype=torch.float64)})

    def set_own(self, name: str, devices: list[int], values: Tensor) -> None:
        """Keeps a tensor of each of some devices. Shapes: values [D, ...]."""
        if name not in self.own:
            start = self.base.get(name, self.program.initial[name])
            self.own[name] = start.expand(self.num_devices, *start.shape).clone()
        self.own[name] = self.own[name].index_copy(0, torch.tensor(devices), values)

    def parameters(self, message: Message, devices: list[int]) -> tuple[Tree, Tree]:
        """Gives the tensors that all these devices hold alike, and those that differ, as [D, ...]."""
        shared: Tree = {}
        each: Tree = {}
        if message.op == Op.READ and "what" in message.settings:  # examples are asked for: no model need be there
            return shared, each
        for name in self.program.initial:
            if name in message.each:
                each[name] = message.each[name]
            elif name in message.tree:
                shared[name] = message.tree[name]
            elif name in self.own:
                each[name] = self.own[name][devices]
            elif name in self.base:
                shared[name] = self.base[name]
            else:
                raise EngineError(f"a device has no {name} yet; send LOAD before {message.op.name}")
        return shared, each

    def _rows(self, message: Message, device: int, key: rng.Key) -> Indices:
        """Gives the population's rows that this op works on."""
        settings, op = message.settings, message.op
        if op == Op.BACKWARD:
            if device not in self.stash:
                raise EngineError("a device was sent BACKWARD with no batch in flight; send FORWARD first")
            return self.stash[device]
        if op in (Op.READ, Op.FIT):
            return self.population.rows(device, "test" if settings.get("what") == "test" else "train")
        if op == Op.ADAPT:
            return self.population.rows(device, "adapt")
        if op == Op.FORWARD and settings.get("rows", "train") == "train":
            rows = self.population.rows(device, "train")
            if size := int(settings.get("batch", 0)):
                own_key = rng.key(key.seed, key.round, device, rng.Use.BATCH).at(int(settings.get("epoch", 0)))
                first = size * int(settings.get("step", 0))
                rows = rows[rng.permutation(own_key, len(rows))[first : first + size]]
            self.stash[device] = rows
            return rows
        return self.population.rows(device, str(settings.get("rows", "train" if op == Op.FORWARD else "test")))

    def _chunk(self, message: Message, most_rows: int) -> int:
        """Gives how many devices may be trained at once within the memory that was granted."""
        if self._activations is None:
            layers = count.layers(self.program.module, self.program.input_shape)
            self._activations = sum(layer.output_elements for layer in layers)
        per_row = 4 * (3 * self._activations + 2 * int(np.prod(self.program.input_shape)))
        batch = int(message.settings.get("batch", 0)) or most_rows
        batch = most_rows if message.op in (Op.EVALUATE, Op.PREDICT, Op.ADAPT) else min(batch, most_rows)
        per_device = 5 * tree.num_bytes(self.program.initial) + per_row * max(batch, 1)
        return max(1, self.memory_bytes // max(per_device, 1))


class _Chunk:
    """One op on the devices of one chunk."""

    def __init__(
        self, fleet: Stacked, message: Message, devices: list[int], rows: list[Indices], key: rng.Key
    ) -> None:
        self.fleet, self.program, self.population = fleet, fleet.program, fleet.population
        self.message, self.settings = message, message.settings
        self.devices, self.rows, self.key = devices, rows, key
        self.shared, self.each = fleet.parameters(message, devices)
        self.counts = [float(len(r)) for r in rows]

    def run(self) -> Replies:
        return {
            Op.READ: self.read,
            Op.FIT: self.fit,
            Op.ADAPT: self.adapt,
            Op.FORWARD: self.forward,
            Op.BACKWARD: self.backward,
            Op.EVALUATE: self.evaluate,
            Op.PREDICT: self.predict,
        }[self.message.op]()

    def read(self) -> Replies:
        nothing = {"rows": torch.zeros(len(self.devices), dtype=torch.float64)}
        if self.settings.get("what") in ("examples", "test"):
            places, _ = _padded(self.rows)
            tensors = {"x": self.population.x[places], "y": self.population.y[places]}
            return _replies(self.devices, tensors, self.rows, self.counts, nothing)
        names = self.program.sendable(str(self.settings.get("send", "whole")))
        return _replies(self.devices, {name: self._stacked(name) for name in names}, None, self.counts, nothing)

    def fit(self) -> Replies:
        soft = self.message.each.get("logits")
        trained, metrics = self.descend(soft)
        sent = self.program.sendable(str(self.settings.get("send", "none")))
        whole = {name: trained.get(name, self._stacked(name)) for name in dict.fromkeys((*sent, *trained))}
        if bound := float(self.settings.get("clip", 0.0)):
            whole = self._clipped(whole, sent, bound)
        for name in trained:
            if name not in sent:
                self.fleet.set_own(name, self.devices, whole[name])
        return _replies(self.devices, {name: whole[name] for name in sent}, None, self.counts, metrics)

    def adapt(self) -> Replies:
        if any(self.counts):
            trained, _ = self.descend(None)
            self.each = {**self.each, **trained}
            self.shared = tree.without(self.shared, trained)
        self.rows = [self.population.rows(device, "test") for device in self.devices]
        self.counts = [float(len(r)) for r in self.rows]
        return self.evaluate()

    def forward(self) -> Replies:
        training = self.settings.get("rows", "train") == "train"
        h = self.outputs(training=training)
        tensors = {"h": h}
        if self.settings.get("what") == "hy":
            tensors["y"] = self.population.y[_padded(self.rows)[0]] * _mask(self.rows).long()
        metrics = {"rows": torch.tensor(self.counts, dtype=torch.float64)}
        return _replies(self.devices, tensors, self.rows, self.counts, metrics)

    def predict(self) -> Replies:
        if "x" in self.message.tree:
            num = len(self.message.tree["x"])
            own = torch.stack([self._apply({**self.shared, **{n: v[d] for n, v in self.each.items()}}, self.message.tree["x"])
                               for d in range(len(self.devices))])
            self.rows, self.counts = [np.arange(num)] * len(self.devices), [float(num)] * len(self.devices)
            metrics = {"rows": torch.tensor(self.counts, dtype=torch.float64)}
            return _replies(self.devices, {"logits": own}, self.rows, self.counts, metrics)
        logits = self.outputs(training=False)
        metrics = {"rows": torch.tensor(self.counts, dtype=torch.float64)}
        return _replies(self.devices, {"logits": logits}, self.rows, self.counts, metrics)

    def evaluate(self) -> Replies:
        if "z" in self.message.each:
            widest = int(max(self.counts, default=0))
            z, parameters = self.message.each["z"][:, :widest], {n: self._stacked(n) for n in self.program.names("tail")}
            logits = vmap(self.program.call_tail)(parameters, z)
        else:
            logits = self.outputs(training=False)
        places, mask = _padded(self.rows)
        y = self.population.y[places]
        num_devices, widest = y.shape
        flat = ops.row_losses(
            logits.reshape(num_devices * widest, -1), y.reshape(-1), None, {"loss": self.settings.get("loss", "cross_entropy")}
        )
        counts = torch.tensor(self.counts, dtype=torch.float64)
        loss = (flat.reshape(num_devices, widest).double() * mask).sum(1) / counts.clamp(min=1.0)
        correct = ((logits.argmax(-1) == y) * mask).sum(1).double()
        return _replies(self.devices, {}, None, self.counts, {"rows": counts, "loss": loss, "correct": correct})

    def backward(self) -> Replies:
        if "z" in self.message.each:
            return self._backward_tail()
        counts = torch.tensor(self.counts, dtype=torch.float64)
        for device in self.devices:
            self.fleet.stash.pop(device)
        active = [place for place, count in enumerate(self.counts) if count]
        if active:
            names = self.program.names("front")
            places, mask = _padded([self.rows[p] for p in active])
            weights = {name: self._stacked(name)[active] for name in names}
            others = {name: value[active] for name, value in self.each.items() if name not in names}
            g = self.message.each["g"][active][:, : places.shape[1]]

            def pulled(weights: Tree, others: Tree, shared: Tree, x: Tensor, g: Tensor, mask: Tensor) -> tuple[Tensor, Tree]:
                h, updated = self.program.call({**shared, **others, **weights}, x, training=True, mask=mask)
                keep = mask.reshape(-1, *[1] * (h.dim() - 1))
                return (h * g * keep).sum(), updated

            slopes, (_, updated) = vmap(grad_and_value(pulled, has_aux=True), in_dims=(0, 0, None, 0, 0, 0))(
                weights, others, self.shared, self.population.x[places], g, mask
            )
            self._step(active, weights, slopes)
            for name, value in updated.items():
                self.fleet.set_own(name, [self.devices[p] for p in active], value)
        return _replies(self.devices, {}, None, self.counts, {"rows": counts})

    def _backward_tail(self) -> Replies:
        counts = torch.tensor(self.counts, dtype=torch.float64)
        z = self.message.each["z"]
        g, loss, correct = torch.zeros_like(z), torch.zeros_like(counts), torch.zeros_like(counts)
        active = [place for place, count in enumerate(self.counts) if count]
        if active:
            places, mask = _padded([self.rows[p] for p in active])
            weights = {name: self._stacked(name)[active] for name in self.program.names("tail")}

            def scored(inputs: tuple[Tree, Tensor], y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
                logits = self.program.call_tail(*inputs)
                rows = ops.row_losses(logits, y, None, self.settings)
                return (rows * mask).sum() / mask.sum(), ((logits.argmax(-1) == y) * mask).sum()

            z_active, y = z[active][:, : places.shape[1]], self.population.y[places]
            (slopes, g_active), (loss_active, correct_active) = vmap(grad_and_value(scored, has_aux=True))(
                (weights, z_active), y, mask
            )
            self._step(active, weights, slopes)
            g[active, : places.shape[1]] = g_active
            loss[active], correct[active] = loss_active.double(), correct_active.double()
        metrics = {"rows": counts, "loss": loss, "correct": correct}
        return _replies(self.devices, {"g": g}, self.rows, self.counts, metrics)

    def descend(self, soft: Tensor | None) -> tuple[Tree, dict[str, Tensor]]:
        """Trains the slice `train` on every device; gives the tensors that changed [D, ...] and the mean losses [D]."""
        names = self.program.names(str(self.settings["train"]))
        plans = [self._plan(place) for place in range(len(self.devices))]
        # Longest first, so that the devices still at work in a step are the first ones.
        order = sorted(range(len(plans)), key=lambda place: -len(plans[place]))
        plans = [plans[place] for place in order]
        now = {name: self._stacked(name)[order] for name in names}
        changing = {name: self._stacked(name)[order] for name in self.program.initial if name in self.program.personal}
        fixed = {name: value[order] for name, value in self.each.items() if name not in now and name not in changing}
        shared = tree.without(self.shared, (*now, *changing))
        changing = tree.without(changing, now)
        start, velocity = dict(now), tree.zeros_like(now)
        total = torch.zeros(len(plans), dtype=torch.float64)
        seen = torch.zeros(len(plans), dtype=torch.float64)
        step = vmap(
            grad_and_value(self._loss, has_aux=True), in_dims=(0, 0, 0, None, 0, 0, 0, None if soft is None else 0)
        )
        for number in range(len(plans[0]) if plans else 0):
            num = sum(len(plan) > number for plan in plans)
            places, mask = _padded([plan[number] for plan in plans[:num]])
            rows, _ = _padded([self.rows[order[d]][plans[d][number]] for d in range(num)])
            first = {name: value[:num] for name, value in now.items()}
            picked = None if soft is None else soft[torch.tensor(order[:num])[:, None], places]
            slopes, (loss, updated) = step(
                first, tree.map(changing, lambda v, n=num: v[:n]), tree.map(fixed, lambda v, n=num: v[:n]), shared,
                self.population.x[rows], self.population.y[rows], mask, picked,
            )
            for name in names:
                self._descend_one(name, num, slopes[name], now, velocity, start)
            for name, value in updated.items():
                changing[name] = torch.cat([value.detach(), changing[name][num:]])
            counts = mask.sum(1).double()
            total[:num] += loss.detach().double() * counts
            seen[:num] += counts
        back = torch.argsort(torch.tensor(order))
        result = {name: value[back] for name, value in {**now, **changing}.items()}
        return result, {"rows": seen[back], "loss": (total / seen.clamp(min=1.0))[back]}

    def _descend_one(self, name: str, num: int, slope: Tensor, now: Tree, velocity: Tree, start: Tree) -> None:
        weight, before = now[name][:num], velocity[name][:num]
        if mu := float(self.settings.get("proximal_mu", 0.0)):
            slope = slope.add(weight - start[name][:num], alpha=mu)
        weight, after = ops.sgd_step(weight, slope, before, self.settings)
        now[name] = weight if num == len(now[name]) else torch.cat([weight, now[name][num:]])
        if after is not None and after is not before:
            velocity[name] = after if num == len(velocity[name]) else torch.cat([after, velocity[name][num:]])

    def _loss(
        self, weights: Tree, changing: Tree, fixed: Tree, shared: Tree, x: Tensor, y: Tensor, mask: Tensor, soft: Any
    ) -> tuple[Tensor, Tree]:
        whole = {**shared, **fixed, **changing, **weights}
        logits, updated = self.program.call(whole, x, training=True, mask=mask)
        return (ops.row_losses(logits, y, soft, self.settings) * mask).sum() / mask.sum(), updated

    def outputs(self, *, training: bool) -> Tensor:
        """Gives the model's outputs of each device's rows, padded with zeros. Shapes: [D, B, ...]."""
        places, mask = _padded(self.rows)
        if not self.each and not (training and self.program.personal):
            return self._flat(mask)
        same = all(rows is self.rows[0] for rows in self.rows)
        x = self.population.x[places[0]] if same else self.population.x[places]

        def one(each: Tree, shared: Tree, x: Tensor, mask: Tensor) -> Tensor:
            return self.program.call({**shared, **each}, x, training=training, mask=mask)[0]

        each = self.each or {name: self._stacked(name) for name in self.program.initial}
        with torch.no_grad():
            out: Tensor = vmap(one, in_dims=(0, None, None if same else 0, 0))(each, self.shared, x, mask)
        return out * mask.reshape(*mask.shape, *[1] * (out.dim() - 2))

    def _flat(self, mask: Tensor) -> Tensor:
        """Gives the outputs when all devices hold the same parameters: each row once, in large batches."""
        rows = torch.from_numpy(np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64))
        distinct, back = torch.unique(rows, return_inverse=True)
        chunks = distinct.split(_FLAT_ROWS) if len(distinct) else (distinct,)
        flat = torch.cat([self._apply(self.shared, self.population.x[chunk]) for chunk in chunks])[back]
        out = flat.new_zeros((*mask.shape, *flat.shape[1:]))
        out[mask.bool()] = flat
        return out

    @torch.no_grad()
    def _apply(self, parameters: Tree, x: Tensor) -> Tensor:
        return self.program.call(parameters, x, training=False)[0]

    def _plan(self, place: int) -> list[Indices]:
        device = self.devices[place]
        settings = {**self.settings, **{n: values[place] for n, values in self.message.each_settings.items()}}
        key = rng.key(self.key.seed, self.key.round, device, rng.Use.BATCH)
        return list(ops.batches(key, len(self.rows[place]), settings))

    def _stacked(self, name: str) -> Tensor:
        if name in self.each:
            return self.each[name]
        value = self.shared[name]
        return value.expand(len(self.devices), *value.shape)

    def _clipped(self, whole: Tree, sent: tuple[str, ...], bound: float) -> Tree:
        changes = {name: whole[name] - self._stacked(name) for name in sent}
        squares = sum((c.double().flatten(1).square().sum(1) for c in changes.values()), torch.zeros(1))
        factor = (bound / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0).float()
        return {
            **whole,
            **{n: self._stacked(n) + c * factor.reshape(-1, *[1] * (c.dim() - 1)) for n, c in changes.items()},
        }

    def _step(self, active: list[int], weights: Tree, slopes: Tree) -> None:
        """Moves the device's own parameters one step of SGD; momentum stays on the device."""
        devices = [self.devices[p] for p in active]
        for name, weight in weights.items():
            held = self.fleet.momentum.get(name)
            before = torch.zeros_like(weight) if held is None else held[devices]
            after, velocity = ops.sgd_step(weight, slopes[name], before, self.settings)
            self.fleet.set_own(name, devices, after)
            if velocity is not None and float(self.settings.get("momentum", 0.0)):
                if held is None:
                    held = weight.new_zeros((self.fleet.num_devices, *weight.shape[1:]))
                self.fleet.momentum[name] = held.index_copy(0, torch.tensor(devices), velocity)


def _padded(rows: list[Indices]) -> tuple[Tensor, Tensor]:
    """Gives row numbers [D, B], zeros behind the last of each, and the mask [D, B] of the valid ones."""
    counts = np.asarray([len(r) for r in rows], np.int64)
    widest = int(counts.max()) if len(rows) else 0
    places = np.zeros((len(rows), widest), np.int64)
    valid = np.arange(widest)[None, :] < counts[:, None]
    places[valid] = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return torch.from_numpy(places), torch.from_numpy(valid.astype(np.float32))


def _mask(rows: list[Indices]) -> Tensor:
    return _padded(rows)[1]


def _replies(
    devices: list[int], tensors: Tree, rows: list[Indices] | None, weight: list[float], metrics: dict[str, Tensor]
) -> Replies:
    """Gives replies in ascending order of the devices."""
    order = torch.tensor(sorted(range(len(devices)), key=devices.__getitem__), dtype=torch.int64)
    counts = [len(r) for r in rows] if rows is not None and any(n in ROW_KINDS for n in tensors) else [0] * len(devices)
    return Replies(
        tuple(sorted(devices)),
        {name: value[order].detach() for name, value in tensors.items()},
        torch.tensor(counts, dtype=torch.int64)[order],
        torch.tensor(weight, dtype=torch.float64)[order],
        {name: value[order] for name, value in metrics.items()},
    )
