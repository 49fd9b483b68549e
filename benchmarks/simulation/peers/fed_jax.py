"""FedJAX's federated averaging, as its package has it. `fed_jax.py FOLDER THREADS`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import jax_by_hand
import numpy as np
from protocol import Arrays, Line, Task, serve


class FedJax:
    """Rounds of fedjax.algorithms.fed_avg."""

    def __init__(self, task: Task) -> None:
        self.task, self.loss = task, float("nan")
        self.x = task.x[:]

        def loss(params: Any, batch: Any, rng: Any) -> jax.Array:
            logits = jax_by_hand.forward(params, batch["x"], task.layers, by_patches=False)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], 1).mean()

        self.algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            jax.grad(loss),
            client_optimizer=fedjax.optimizers.sgd(learning_rate=task.lr),
            server_optimizer=fedjax.optimizers.sgd(learning_rate=1.0),
            client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
                batch_size=task.batch, num_epochs=1, drop_remainder=False, skip_shuffle=True
            ),
        )
        self.state = self.algorithm.init({name: jnp.asarray(value) for name, value in task.weights.items()})
        self.keys = list(jax.random.split(jax.random.PRNGKey(0), task.clients_a_round))

    def facts(self) -> dict[str, Any]:
        return {"fedjax": "0.0.17", "jax": jax.__version__}

    def arrays(self) -> Arrays:
        return {name: np.asarray(value) for name, value in self.state.params.items()}

    def round(self, number: int) -> None:
        rows, labels = self.task.cohort(number)
        clients = [
            (str(place).encode(), fedjax.ClientDataset({"x": self.x[own], "y": y.astype(np.int32)}), key)
            for place, (own, y, key) in enumerate(zip(rows, labels, self.keys, strict=True))
        ]
        self.state, _ = self.algorithm.apply(self.state, clients)
        jax.block_until_ready(self.state.params)


if __name__ == "__main__":
    found = Task(Path(sys.argv[1]))
    serve(Line(), lambda: FedJax(found))
