"""The bound: the rows of a round's clients through one model in large batches, as if nobody were a device.

`central.py FOLDER THREADS [--tune]`; tuning finds the batch that is fastest.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_model
from protocol import Arrays, Line, Task, keep_tuned, serve, tuned

NAME = "central"


class Central:
    """One model, trained on all rows of a round."""

    def __init__(self, task: Task, threads: int, batch: int) -> None:
        torch.set_num_threads(threads)
        self.task, self.batch, self.loss = task, batch, float("nan")
        self.x = torch_model.data(task)
        self.model = torch_model.build(task.layers)
        self.model.load_state_dict(torch_model.tensors(task.weights))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=task.lr)

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "batch": self.batch}

    def arrays(self) -> Arrays:
        return torch_model.arrays(self.model.state_dict())

    def round(self, number: int) -> None:
        rows, labels = (torch.from_numpy(part.reshape(-1)) for part in self.task.cohort(number))
        total = 0.0
        for first in range(0, len(rows), self.batch):
            picked = rows[first : first + self.batch]
            loss = F.cross_entropy(self.model(self.x[picked]), labels[first : first + self.batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(picked)
        self.loss = total / len(rows)


def tune(task: Task, threads: int) -> None:
    """Finds the fastest batch: each twice, the better time counts."""
    total = task.clients_a_round * task.rows_a_client
    seconds = {}
    for batch in [size for size in (32, 64, 128, 256, 512, 1024, 2048) if size <= total]:
        side, times = Central(task, threads, batch), []
        for number in (1, 2):
            began = time.perf_counter()
            side.round(number)
            times.append(time.perf_counter() - began)
        seconds[batch] = min(times)
    assert statistics.fmean(seconds.values()) > 0.0
    keep_tuned(task, NAME, {"batch": min(seconds, key=seconds.__getitem__), "seconds": seconds})


if __name__ == "__main__":
    found, threads = Task(Path(sys.argv[1])), int(sys.argv[2])
    if "--tune" in sys.argv:
        tune(found, threads)
    else:
        serve(Line(), lambda: Central(found, threads, tuned(found, NAME)["batch"]))
