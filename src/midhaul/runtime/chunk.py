"""One op on a chunk of devices, side by side: the work of the stacked engine.

Shape letters: D devices of the chunk, S steps, B rows of a batch (the widest), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from midhaul import directions, ops, rng, rules, tree
from midhaul.errors import EngineError
from midhaul.message import ROW_KINDS, Message, Op, Replies
from midhaul.models import losses
from midhaul.program import Examples, Indices, Population, Program
from midhaul.runtime import gradients
from midhaul.runtime.native.call import Source
from midhaul.runtime.native.kernels import Kernels
from midhaul.tree import Tree

ONE_BY_ONE_MACS = 20_000_000  # of a step with convolutions, above which devices are faster one by one
FLAT_ROWS = 2048  # rows of one forward pass when all devices share their parameters


class Memory(Protocol):
    """What a chunk asks of its fleet: the model, the data, and what the devices remember."""

    program: Program
    population: Population
    kernels: Kernels

    def parameters(self, message: Message, devices: list[int]) -> tuple[Tree, Tree]: ...

    def set_own(self, name: str, devices: list[int], values: Tensor) -> None: ...

    def velocity(self, name: str, devices: list[int]) -> Tensor | None: ...

    def set_velocity(self, name: str, devices: list[int], values: Tensor) -> None: ...


class Orders:
    """`rng.permutation` for devices that mostly ask alike: those with as many rows are drawn for with the first."""

    def __init__(self, devices: Sequence[int], rows: Sequence[Indices]) -> None:
        self._alike: dict[int, list[int]] = {}
        for device, own in zip(devices, rows, strict=True):
            self._alike.setdefault(len(own), []).append(device)
        self._drawn: dict[rng.Key, Indices] = {}

    def __call__(self, key: rng.Key, num: int) -> Indices:
        if key not in self._drawn:
            keys = list(dict.fromkeys([key, *(key._replace(device=device) for device in self._alike.get(num, ()))]))
            self._drawn.update(zip(keys, rng.permutations(keys, num), strict=True))
        return self._drawn[key]


class Chunk:
    """One op on the devices of one chunk."""

    def __init__(self, fleet: Memory, message: Message, devices: list[int], rows: list[Indices], key: rng.Key) -> None:
        self.fleet, self.program, self.population = fleet, fleet.program, fleet.population
        self.message, self.settings = message, message.settings
        self.devices, self.rows, self.key = devices, rows, key
        self.shared, self.each = fleet.parameters(message, devices)
        self.counts = list(map(float, map(len, rows)))
        self.device = self.population.x.device
        self._call = self.program.call_front if message.op == Op.FORWARD else self.program.call
        # Rows that the server sent to be trained on: they have logits and no label.
        self.sent = message.tree.get("x") if message.op == Op.FIT else None

    @cached_property
    def _orders(self) -> Orders:
        """What the batches are drawn by where torch trains."""
        return Orders(self.devices, self.rows)

    @property
    def source(self) -> Source:
        """The rows that `self.rows` counts in."""
        return Source(self.population.x, self.population.levels) if self.sent is None else Source(self.sent)

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

    def _is_native(self, *, trains: bool) -> bool:
        """Tells whether the compiled kernels do this; if not it is noted why, or an error where they must."""
        return self.fleet.kernels.refusal(self.message, self.source, trains=trains) is None

    def read(self) -> Replies:
        nothing = {"rows": self._doubles([0.0] * len(self.devices))}
        if self.settings.get("what") in ("examples", "test"):
            places, _ = self._padded(self.rows)
            tensors = {"x": self.population.inputs(places), "y": self._labels(places)}
            return replies_of(self.devices, tensors, self.rows, self.counts, nothing)
        names = self.program.sendable(str(self.settings.get("send", "whole")))
        return replies_of(self.devices, {name: self._stacked(name) for name in names}, None, self.counts, nothing)

    def fit(self) -> Replies:
        if self.settings.get("seeds") and not self._is_native(trains=True):
            return self._walk()
        soft = self.message.each.get("logits")
        if self.sent is not None:
            shared = self.message.tree.get("logits", self.sent[:0])
            if len(shared) != len(self.sent):
                raise EngineError(
                    "a device was sent rows to train on and not as many logits; send logits, a row for each of x"
                )
            soft = shared.expand(len(self.devices), *shared.shape)
        trained, metrics = self.descend(soft)
        sent = self.program.sendable(str(self.settings.get("send", "none")))
        whole = {
            name: trained[name] if name in trained else self._stacked(name) for name in dict.fromkeys((*sent, *trained))
        }
        if bound := float(self.settings.get("clip", 0.0)):
            whole = self._clipped(whole, sent, bound)
        for name in trained:
            if name not in sent:
                self.fleet.set_own(name, self.devices, whole[name])
        return replies_of(self.devices, {name: whole[name] for name in sent}, None, self.counts, metrics)

    def _walk(self) -> Replies:
        """Trains every device along directions that are only seeds; gives the slopes [D, K]."""
        self._check_mapped()
        settings, num_seeds = self.settings, int(self.settings["seeds"])
        small, lr = float(settings["noise"]), float(settings["lr"])
        plans = [self._plan(place) for place in range(len(self.devices))]
        order = sorted(range(len(plans)), key=lambda place: -len(plans[place]))
        plans = [plans[place] for place in order]
        names = self.program.names(str(settings["train"]))
        at = self._at(order)
        held = {name: self._stacked(name)[at] for name in names}
        now = directions.walked(held, self.message.tree["g"], lr, self.key.seed, tree.row(held, 0))
        shared = tree.map(tree.without(self.shared, names), Tensor.double)
        fixed = {name: value[at].double() for name, value in self.each.items() if name not in now}
        keys = [rng.key(self.key.seed, self.key.round, self.devices[p], rng.Use.DIRECTION) for p in order]
        picks = [directions.picked(key, len(plan), num_seeds) for key, plan in zip(keys, plans, strict=True)]
        total = self._doubles([0.0] * len(plans))
        slopes = total.new_zeros((len(plans), num_seeds))

        def both(weights: Tree, way: Tree, others: Tree, part: tuple[Any, ...]) -> tuple[Tensor, ...]:
            ends = (tree.add(weights, way, alpha=sign) for sign in (small, -small))
            return tuple(self._loss({**shared, **others}, end, part)[0] for end in ends)

        for number in range(len(plans[0]) if plans else 0):
            rows = [plan[number] for plan in plans if len(plan) > number]
            num, chosen = len(rows), [pick[number] for pick in picks[: len(rows)]]
            x, *rest = self._part(order[:num], rows, None)
            part = (x.double() if x.is_floating_point() else x, *rest)
            first = _first(now, num)
            way = tree.stack([directions.direction(self.key.seed, j, tree.row(first, 0)) for j in chosen])
            with torch.no_grad():
                up, down = vmap(both)(first, way, _first(fixed, num), part)
            slope = (up - down) / (2.0 * small)
            for name, value in now.items():
                step = lr * slope.reshape(-1, *[1] * (value.dim() - 1)) * way[name]
                now[name] = torch.cat([value[:num] - step, value[num:]])
            slopes[torch.arange(num), torch.tensor(chosen)] += slope
            total[:num] += 0.5 * (up + down) * self._doubles([len(own) for own in rows])
        seen = self._doubles([sum(map(len, plan)) for plan in plans])
        back = torch.argsort(at)
        metrics = {"rows": seen[back], "loss": (total / seen.clamp(min=1.0))[back]}
        numbers = [np.arange(num_seeds)] * len(plans)
        return replies_of(self.devices, {"g": slopes[back].float()}, numbers, self.counts, metrics)

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
            places, mask = self._padded(self.rows)
            tensors["y"] = self._labels(places) * mask.long()
        metrics = {"rows": self._doubles(self.counts)}
        return replies_of(self.devices, tensors, self.rows, self.counts, metrics)

    def predict(self) -> Replies:
        logits = self._answers(self.message.tree["x"]) if "x" in self.message.tree else self.outputs(training=False)
        metrics = {"rows": self._doubles(self.counts)}
        return replies_of(self.devices, {"logits": logits}, self.rows, self.counts, metrics)

    def _answers(self, x: Tensor) -> Tensor:
        """Gives each device's outputs of the same rows, which the server sent. Shapes: [B, ...] -> [D, B, ...]."""
        kernels, num = self.fleet.kernels, len(x)
        self.rows, self.counts = [np.arange(num)] * len(self.devices), [float(num)] * len(self.devices)
        if kernels.refusal(self.message, Source(x), trains=False) is None:
            return kernels.outputs(self, Source(x), self.rows, training=False)
        held = [{**self.shared, **tree.row(self.each, place)} for place in range(len(self.devices))]
        return torch.stack([self._apply(own, x) for own in held])

    def evaluate(self) -> Replies:
        counts = self._doubles(self.counts)
        if not any(self.counts):
            nothing = torch.zeros_like(counts)
            return replies_of(self.devices, {}, None, self.counts, dict.fromkeys(("rows", "loss", "correct"), nothing))
        if "z" in self.message.each and not self._is_native(trains=False):
            widest = int(max(self.counts, default=0))
            z, parameters = (
                self.message.each["z"][:, :widest],
                {n: self._stacked(n) for n in self.program.names("tail")},
            )
            logits = vmap(self.program.call_tail)(parameters, z)
        else:
            logits = self.outputs(training=False)
        places, mask = self._padded(self.rows)
        y = self._labels(places)
        num_devices, widest = y.shape
        flat = ops.row_losses(
            logits.reshape(num_devices * widest, -1),
            y.reshape(-1),
            None,
            {"loss": self.settings.get("loss", "cross_entropy")},
        )
        loss = (flat.reshape(num_devices, widest).double() * mask).sum(1) / counts.clamp(min=1.0)
        correct = ((logits.argmax(-1) == y) * mask).sum(1).double()
        return replies_of(self.devices, {}, None, self.counts, {"rows": counts, "loss": loss, "correct": correct})

    def backward(self) -> Replies:
        if "z" in self.message.each and not self._is_native(trains=True):
            return self._backward_tail()
        counts = self._doubles(self.counts)
        active = [place for place, count in enumerate(self.counts) if count]
        if active:
            names = self.program.names(str(self.settings.get("train", "front")))
            at = self._at(active)
            weights = {name: self._stacked(name)[at] for name in names}
            if self._is_native(trains=True):
                g = self.message.each["g"]
                g = g if len(active) == len(g) else g[at]
                slopes, updated = self.fleet.kernels.pull(self, active, names, g)
            else:
                slopes, updated = self._pulled(active, weights)
            self._step(active, weights, slopes)
            for name, value in updated.items():
                self.fleet.set_own(name, [self.devices[p] for p in active], value)
        return replies_of(self.devices, {}, None, self.counts, {"rows": counts})

    def _pulled(self, active: list[int], weights: Tree) -> tuple[Tree, Tree]:
        """Gives the gradients of the weights [A, ...] from the slopes that were sent, and the statistics renewed."""
        self._check_mapped()
        places, mask = self._padded([self.rows[p] for p in active])
        at = self._at(active)
        others = {name: value[at] for name, value in self.each.items() if name not in weights}
        g = self.message.each["g"][at][:, : places.shape[1]]
        nopeek = float(self.settings.get("nopeek", 0.0))

        def pulled(
            weights: Tree, others: Tree, shared: Tree, x: Tensor, g: Tensor, mask: Tensor
        ) -> tuple[Tensor, Tree]:
            h, updated = self.program.call_front({**shared, **others, **weights}, x, training=True, mask=mask)
            keep = mask.reshape(-1, *[1] * (h.dim() - 1))
            pull = (h * g * keep).sum()
            if nopeek:
                pull = pull + nopeek * losses.distance_correlation(x, h, mask).to(pull.dtype)
            return pull, updated

        slopes, (_, updated) = vmap(grad_and_value(pulled, has_aux=True), in_dims=(0, 0, None, 0, 0, 0))(
            weights, others, self.shared, self.population.inputs(places), g, mask
        )
        return slopes, updated

    def _backward_tail(self) -> Replies:
        counts = self._doubles(self.counts)
        z = self.message.each["z"]
        g, loss, correct = torch.zeros_like(z), torch.zeros_like(counts), torch.zeros_like(counts)
        active = [place for place, count in enumerate(self.counts) if count]
        if active:
            places, mask = self._padded([self.rows[p] for p in active])
            at = self._at(active)
            weights = {name: self._stacked(name)[at] for name in self.program.names("tail")}

            def scored(inputs: tuple[Tree, Tensor], y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
                logits = self.program.call_tail(*inputs)
                rows = ops.row_losses(logits, y, None, self.settings)
                return (rows * mask).sum() / mask.sum(), ((logits.argmax(-1) == y) * mask).sum()

            z_active, y = z[at][:, : places.shape[1]], self._labels(places, active)
            (slopes, g_active), (loss_active, correct_active) = vmap(grad_and_value(scored, has_aux=True))(
                (weights, z_active), y, mask
            )
            self._step(active, weights, slopes)
            g[at, : places.shape[1]] = g_active
            loss[at], correct[at] = loss_active.double(), correct_active.double()
        metrics = {"rows": counts, "loss": loss, "correct": correct}
        return replies_of(self.devices, {"g": g}, self.rows, self.counts, metrics)

    def descend(self, soft: Tensor | None) -> tuple[Tree, dict[str, Tensor]]:
        """Trains the slice `train` on every device; gives the tensors that changed [D, ...] and the mean losses [D]."""
        if self._is_native(trains=True):
            return self.fleet.kernels.fit(self, soft)
        if self._is_faster_one_by_one(max((len(rows) for rows in self.rows), default=0)):
            return self._descend_each(soft)
        names = self.program.names(str(self.settings["train"]))
        plans = [self._plan(place) for place in range(len(self.devices))]
        # Longest first, so that the devices still at work in a step are the first ones.
        order = sorted(range(len(plans)), key=lambda place: -len(plans[place]))
        plans = [plans[place] for place in order]
        at = self._at(order)
        now = {name: self._stacked(name)[at] for name in names}
        changing = {name: self._stacked(name)[at] for name in self.program.initial if name in self.program.personal}
        fixed = {name: value[at] for name, value in self.each.items() if name not in now and name not in changing}
        shared = tree.without(self.shared, (*now, *changing))
        changing = tree.without(changing, now)
        start, velocity = dict(now), tree.zeros_like(now)
        total, seen = (self._doubles([0.0] * len(plans)) for _ in range(2))
        learn = gradients.of(self.settings, rules.inner_names(self._slice("inner_train")))

        def one(weights: Tree, others: Tree, parts: tuple[Any, ...], shared: Tree) -> gradients.Found:
            return learn(partial(self._loss, {**shared, **others}), weights, parts)

        step = vmap(one, in_dims=(0, 0, 0, None))
        for number in range(len(plans[0]) if plans else 0):
            now_rows = [plan[number] for plan in plans if len(plan) > number]
            num = len(now_rows)
            divided = list(zip(*(rules.parts(rows, self.settings) for rows in now_rows), strict=True))
            parts = tuple(self._part(order[:num], list(rows), soft) for rows in divided)
            found, (loss, updated) = step(_first(now, num), _first({**fixed, **changing}, num), parts, shared)
            for name in names:
                self._descend_one(name, num, found[name], now, velocity, start)
            for name, value in updated.items():
                changing[name] = torch.cat([value.detach(), changing[name][num:]])
            counts = self._doubles([len(rows) for rows in now_rows])
            total[:num] += loss.detach().double() * counts
            seen[:num] += counts
        back = torch.argsort(at)
        result = {name: value[back] for name, value in {**now, **changing}.items()}
        return result, {"rows": seen[back], "loss": (total / seen.clamp(min=1.0))[back]}

    def _descend_each(self, soft: Tensor | None) -> tuple[Tree, dict[str, Tensor]]:
        """Does so device after device, as the slow engine does."""
        ends, told = [], []
        trained = {*self.program.names(str(self.settings["train"])), *self.program.personal}
        for place, device in enumerate(self.devices):
            settings = self.message.for_device(place).settings
            start = {name: self._stacked(name)[place] for name in self.program.initial}
            own_key = rng.key(self.key.seed, self.key.round, device, rng.Use.BATCH)
            own = self._examples(place)
            logits = None if soft is None else soft[place][: len(own)]
            end, found = ops.descend(self.program, start, own, logits, settings, own_key)
            ends.append({name: end[name] for name in end if name in trained})
            told.append(found)
        metrics = {name: torch.tensor([t[name] for t in told], dtype=torch.float64) for name in ("rows", "loss")}
        return tree.stack(ends), metrics

    def _examples(self, place: int) -> Examples:
        """Gives the rows that a device works on."""
        at = torch.from_numpy(self.rows[place])
        if self.sent is not None:
            return Examples(self.sent[at], torch.full((len(at),), -1))
        return Examples(self.population.inputs(at), self._labels(at[None], [place])[0])

    def _is_faster_one_by_one(self, num_rows: int) -> bool:
        """Tells whether torch does devices faster one after another than side by side.

        A convolution with weights of each device's own becomes one in groups, which torch computes more slowly than as
        many plain ones; side by side only saves the fixed cost of each call. Where they meet was measured
        (docs/performance.md): the stacked form is 1.5 times as fast at 14 million MACs a step (cnn1d), as fast at 17
        million, and 1.3 times as slow at 27 million (dscnn). That is on a processor. On a GPU, where nothing has been
        measured, many small calls cost most, so that devices stay side by side. Recurrent layers are one after another
        everywhere: torch can't map over them.
        """
        if self._recurrent:
            return True
        if self.device.type != "cpu" or not any("Conv" in layer.kind for layer in self.program.layers):
            return False
        batch = min(int(self.settings.get("batch", 0)) or num_rows, num_rows)
        return batch * sum(layer.macs for layer in self.program.layers) > ONE_BY_ONE_MACS

    @property
    def _recurrent(self) -> list[str]:
        """The names of the layers that torch can't map over."""
        return [layer.name for layer in self.program.layers if layer.kind in ("RNN", "LSTM", "GRU")]

    def _check_mapped(self) -> None:
        """Refuses what is only done side by side. Raises: EngineError for a model that can't be."""
        if names := self._recurrent:
            raise EngineError(
                f"torch can't compute the recurrent layer {names[0]!r} of many devices side by side, and "
                f"{self.message.op.name} has no other way here; set run.engine = 'loop'"
            )

    def _descend_one(self, name: str, num: int, slope: Tensor, now: Tree, velocity: Tree, start: Tree) -> None:
        weight, before = now[name][:num], velocity[name][:num]
        mu = float(self.settings.get("proximal_mu", 0.0)) if rules.name_of(self.settings) == "sgd" else 0.0
        if mu:
            slope = slope.add(weight - start[name][:num], alpha=mu)
        weight, after = ops.sgd_step(weight, slope, before, self.settings)
        now[name] = weight if num == len(now[name]) else torch.cat([weight, now[name][num:]])
        if after is not None and after is not before:
            velocity[name] = after if num == len(velocity[name]) else torch.cat([after, velocity[name][num:]])

    def _part(self, at: list[int], rows: list[Indices], soft: Tensor | None) -> tuple[Tensor, ...]:
        """Gives x [D, B, ...], y [D, B], the mask [D, B] and, if there are any, the teacher's logits of some rows."""
        places, mask = self._padded([self.rows[device][own] for device, own in zip(at, rows, strict=True)])
        if self.sent is None:
            x, y = self.population.inputs(places), self._labels(places, at)
        else:
            x, y = self.sent[places], torch.full_like(places, -1)
        part = (x, y, mask)
        return part if soft is None else (*part, soft[torch.tensor(at)[:, None], self._padded(rows)[0]])

    def _loss(self, others: Tree, weights: Tree, part: tuple[Any, ...]) -> tuple[Tensor, Tree]:
        x, y, mask, *soft = part
        logits, updated = self.program.call({**others, **weights}, x, training=True, mask=mask)
        rows = ops.row_losses(logits, y, soft[0] if soft else None, self.settings)
        return (rows * mask).sum() / mask.sum(), updated

    def _padded(self, rows: list[Indices]) -> tuple[Tensor, Tensor]:
        """Gives row numbers [D, B], zeros behind the last of each, and the mask [D, B] of the valid ones."""
        counts = np.asarray([len(r) for r in rows], np.int64)
        widest = int(counts.max()) if len(rows) else 0
        places = np.zeros((len(rows), widest), np.int64)
        valid = np.arange(widest)[None, :] < counts[:, None]
        places[valid] = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return torch.from_numpy(places).to(self.device), torch.from_numpy(valid.astype(np.float32)).to(self.device)

    def _doubles(self, values: Sequence[float]) -> Tensor:
        """Gives numbers in double precision, where the chunk is worked on."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _at(self, places: list[int]) -> Tensor:
        """Gives places of the chunk as an index, where the chunk is worked on."""
        return torch.tensor(places, dtype=torch.int64, device=self.device)

    def _labels(self, places: Tensor, at: list[int] | None = None) -> Tensor:
        """Gives the labels of rows as the devices in some places of the chunk, or all, number them. Shapes: [D, B]."""
        return self.population.labels(self.devices if at is None else [self.devices[p] for p in at], places)

    def _slice(self, setting: str) -> tuple[str, ...]:
        return self.program.names(str(self.settings.get(setting, "none")))

    def outputs(self, *, training: bool) -> Tensor:
        """Gives the model's outputs of each device's rows, padded with zeros. Shapes: [D, B, ...]."""
        if self._is_native(trains=False):
            return self.fleet.kernels.outputs(self, self.source, self.rows, training=training)
        places, mask = self._padded(self.rows)
        if not self.each and not (training and self.program.personal):
            return self._flat(mask)
        if not training and self._is_faster_one_by_one(max((len(rows) for rows in self.rows), default=0)):
            return self._outputs_each(mask)
        self._check_mapped()
        same = all(rows is self.rows[0] for rows in self.rows)
        x = self.population.inputs(places[0]) if same else self.population.inputs(places)

        def one(each: Tree, shared: Tree, x: Tensor, mask: Tensor) -> Tensor:
            return self._call({**shared, **each}, x, training=training, mask=mask)[0]

        each = self.each or {name: self._stacked(name) for name in self.program.initial}
        with torch.no_grad():
            out: Tensor = vmap(one, in_dims=(0, None, None if same else 0, 0))(each, self.shared, x, mask)
        return out * mask.reshape(*mask.shape, *[1] * (out.dim() - 2))

    def _outputs_each(self, mask: Tensor) -> Tensor:
        """Gives the outputs device after device."""
        out: Tensor | None = None
        for place, rows in enumerate(self.rows):
            if not len(rows) and (out is not None or any(self.counts)):
                continue
            own = {**self.shared, **{name: value[place] for name, value in self.each.items()}}
            found = self._apply(own, self.population.inputs(torch.from_numpy(rows)))
            out = found.new_zeros((*mask.shape, *found.shape[1:])) if out is None else out
            out[place, : len(rows)] = found
        assert out is not None, "a chunk has a device"
        return out

    def _flat(self, mask: Tensor) -> Tensor:
        """Gives the outputs when all devices hold the same parameters: each row once, in large batches."""
        rows = torch.from_numpy(np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64))
        distinct, back = torch.unique(rows, return_inverse=True)
        chunks = distinct.split(FLAT_ROWS) if len(distinct) else (distinct,)
        flat = torch.cat([self._apply(self.shared, self.population.inputs(chunk)) for chunk in chunks])[back]
        out = flat.new_zeros((*mask.shape, *flat.shape[1:]))
        out[mask.bool()] = flat
        return out

    @torch.no_grad()
    def _apply(self, parameters: Tree, x: Tensor) -> Tensor:
        return self._call(parameters, x, training=False)[0]

    def _plan(self, place: int) -> list[Indices]:
        device = self.devices[place]
        settings = {**self.settings, **{n: values[place] for n, values in self.message.each_settings.items()}}
        key = rng.key(self.key.seed, self.key.round, device, rng.Use.BATCH)
        return list(ops.batches(key, len(self.rows[place]), settings, self._orders))

    def _stacked(self, name: str) -> Tensor:
        if name in self.each:
            return self.each[name]
        value = self.shared[name]
        return value.expand(len(self.devices), *value.shape)

    def _clipped(self, whole: Tree, sent: tuple[str, ...], bound: float) -> Tree:
        changes = {name: whole[name] - self._stacked(name) for name in sent}
        squares = sum((c.double().flatten(1).square().sum(1) for c in changes.values()), self._doubles([0.0]))
        factor = (bound / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0).float()
        return {
            **whole,
            **{n: self._stacked(n) + c * factor.reshape(-1, *[1] * (c.dim() - 1)) for n, c in changes.items()},
        }

    def _step(self, active: list[int], weights: Tree, slopes: Tree) -> None:
        """Moves the device's own parameters one step of SGD; momentum stays on the device."""
        devices = [self.devices[p] for p in active]
        for name, weight in weights.items():
            held = self.fleet.velocity(name, devices)
            before = torch.zeros_like(weight) if held is None else held
            after, velocity = ops.sgd_step(weight, slopes[name], before, self.settings)
            self.fleet.set_own(name, devices, after)
            if velocity is not None and float(self.settings.get("momentum", 0.0)):
                self.fleet.set_velocity(name, devices, velocity)


def _first(stacked: Tree, num: int) -> Tree:
    return {name: value[:num] for name, value in stacked.items()}


def replies_of(
    devices: list[int], tensors: Tree, rows: list[Indices] | None, weight: list[float], metrics: dict[str, Tensor]
) -> Replies:
    """Gives replies in ascending order of the devices."""
    counts = np.zeros(len(devices), np.int64)
    if rows is not None and any(name in ROW_KINDS for name in tensors):
        counts[:] = [len(own) for own in rows]
    up = Replies(
        tuple(devices),
        {name: value.detach() for name, value in tensors.items()},
        torch.from_numpy(counts),
        torch.from_numpy(np.asarray(weight, np.float64)),
        metrics,
    )
    if (ascending := sorted(devices)) == devices:  # they did as much as one another, so stand in order already
        return up
    order = torch.from_numpy(np.argsort(devices, kind="stable"))
    return Replies(
        tuple(ascending),
        {name: value[order] for name, value in up.tree.items()},
        up.rows[order],
        up.weight[order],
        {name: value[order] for name, value in metrics.items()},
    )
