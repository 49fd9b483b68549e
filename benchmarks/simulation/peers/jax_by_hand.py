"""A round as one writes it by hand in JAX: jit, a scan over the steps, vmap over clients. `jax_by_hand.py FOLDER CORES`

With `--tune` it finds what is fastest for a workload: convolutions by XLA or as batched matrix products over patches
(im2col), how many clients side by side, and whether each core has a share of the cohort of its own (pmap).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

NAME = "jax"
TUNE_S = 120.0  # after which no other way is tried
CORES = int(sys.argv[2]) if len(sys.argv) > 2 else 1
# Read when jax is imported.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={CORES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from protocol import Arrays, Line, Task, keep_tuned, serve, tuned  # noqa: E402

Params = dict[str, jax.Array]


def conv(x: jax.Array, weight: jax.Array, bias: jax.Array, padding: int, *, by_patches: bool) -> jax.Array:
    """A convolution with stride 1. Shapes: x [B, C, ...], weight [O, C, k...]."""
    dims, kernel = weight.ndim - 2, weight.shape[2]
    if not by_patches:
        pads = [(padding, padding)] * dims
        out = jax.lax.conv_general_dilated(x, weight, (1,) * dims, pads)
        return out + bias.reshape(1, -1, *[1] * dims)
    size = x.shape[2:]
    wide = jnp.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * dims])
    if dims == 1:
        parts = [wide[:, :, i : i + size[0]] for i in range(kernel)]
    else:
        parts = [wide[:, :, i : i + size[0], j : j + size[1]] for i in range(kernel) for j in range(kernel)]
    patches = jnp.stack(parts, 2).reshape(x.shape[0], -1, int(np.prod(size)))  # [B, C k.., L]
    out = jnp.einsum("oc,bcl->bol", weight.reshape(weight.shape[0], -1), patches) + bias[:, None]
    return out.reshape(x.shape[0], -1, *size)


def pool(x: jax.Array, size: int) -> jax.Array:
    """The largest of each window. Shapes: [B, C, ...] -> the same, shorter."""
    for axis in range(2, x.ndim):
        whole = x.shape[axis] // size
        x = jax.lax.slice_in_dim(x, 0, whole * size, axis=axis)
        x = x.reshape(*x.shape[:axis], whole, size, *x.shape[axis + 1 :]).max(axis + 1)
    return x


def forward(params: Params, x: jax.Array, layers: list[list[Any]], *, by_patches: bool) -> jax.Array:
    """Gives the logits. Shapes: [B, ...] -> [B, classes]."""
    for kind, name, *sizes in layers:
        if kind == "conv":
            x = conv(x, params[f"{name}.weight"], params[f"{name}.bias"], sizes[4], by_patches=by_patches)
        elif kind == "pool":
            x = pool(x, sizes[1])
        elif kind == "linear":
            x = x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "mean":
            x = x.mean(2)
        else:
            x = x.reshape(x.shape[0], -1)
    return x


def client(params: Params, x: jax.Array, y: jax.Array, *, task: Task, by_patches: bool) -> tuple[Params, jax.Array]:
    """Trains one client. Shapes: x [S, B, ...], y [S, B]; gives its weights and its mean loss."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = forward(params, x, task.layers, by_patches=by_patches)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def step(params: Params, batch: tuple[jax.Array, jax.Array]) -> tuple[Params, jax.Array]:
        value, slope = jax.value_and_grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - task.lr * g, params, slope), value

    params, losses = jax.lax.scan(step, params, (x, y))
    return params, losses.mean()


def share(params: Params, data: Any, rows: Any, labels: Any, *, task: Task, best: dict[str, Any]) -> Any:
    """Trains a core's share of the cohort, some clients at a time; gives the mean of their weights and losses."""
    one = partial(client, task=task, by_patches=best["by_patches"])

    def some(part: tuple[jax.Array, jax.Array]) -> Any:
        trained, losses = jax.vmap(lambda x, y: one(params, x, y))(data[part[0]], part[1])
        return jax.tree.map(lambda value: value.sum(0), trained), losses.sum()

    steps = task.rows_a_client // task.batch
    split = (len(rows) // best["side_by_side"], best["side_by_side"], steps, task.batch)
    sums, losses = jax.lax.map(some, (rows.reshape(split), labels.reshape(split)))
    return jax.tree.map(lambda value: value.sum(0) / len(rows), sums), losses.sum() / len(rows)


class Jax:
    """The rounds, compiled."""

    def __init__(self, task: Task, best: dict[str, Any]) -> None:
        self.task, self.best, self.loss = task, best, float("nan")
        self.params = {name: jnp.asarray(value) for name, value in task.weights.items()}
        self.cores = best["cores"]
        run: Callable[..., Any] = partial(share, task=task, best=best)
        if self.cores > 1:
            devices = jax.local_devices()[: self.cores]
            self.data = jax.device_put_replicated(task.x[:], devices) if hasattr(jax, "device_put_replicated") else None
            inner = jax.pmap(run, axis_name="cores", in_axes=(None, 0, 0, 0))
            if self.data is None:
                self.data = jnp.broadcast_to(jnp.asarray(task.x[:]), (self.cores, *task.x.shape))
            self.run = lambda *args: jax.tree.map(lambda value: value.mean(0), inner(*args))
        else:
            self.data, self.run = jnp.asarray(task.x[:]), jax.jit(run)

    def facts(self) -> dict[str, Any]:
        return {"jax": jax.__version__, **self.best}

    def arrays(self) -> Arrays:
        return {name: np.asarray(value) for name, value in self.params.items()}

    def round(self, number: int) -> None:
        self.train(*self.task.cohort(number))

    def train(self, rows: np.ndarray, labels: np.ndarray) -> None:
        rows, labels = rows.astype(np.int32), labels.astype(np.int32)
        if self.cores > 1:
            rows, labels = (part.reshape(self.cores, -1, part.shape[1]) for part in (rows, labels))
        self.params, loss = self.run(self.params, self.data, rows, labels)
        self.loss = float(loss)
        jax.block_until_ready(self.params)


def tune(task: Task) -> None:
    """Tries each way on a few clients until its time is up; keeps the fastest so far."""
    is_dense = all(kind != "conv" for kind, *_ in task.layers)
    sizes = [size for size in (5, 1, 25, 50) if task.clients_a_round // CORES % size == 0]
    ways = [
        (size, cores, by) for by in ((False,) if is_dense else (True, False)) for size in sizes for cores in (CORES, 1)
    ]
    seconds, began = dict[int, float](), time.perf_counter()
    for place, (size, cores, by_patches) in enumerate(dict.fromkeys(ways)):
        if seconds and time.perf_counter() - began > TUNE_S:
            break
        few = size * cores if size > 5 else 10
        best = {"cores": cores, "by_patches": by_patches, "side_by_side": size}
        side, (rows, labels) = Jax(task, best), task.cohort(1)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            side.train(rows[:few], labels[:few])
            times.append((time.perf_counter() - start) / few)
        seconds[place] = min(times[1:])
        print(seconds[place], best, file=sys.stderr, flush=True)
        if seconds[place] == min(seconds.values()):
            keep_tuned(task, NAME, best)


if __name__ == "__main__":
    found = Task(Path(sys.argv[1]))
    if "--tune" in sys.argv:
        tune(found)
    else:
        serve(Line(), lambda: Jax(found, tuned(found, NAME)))
