"""What Flower's workers run: an app that trains one client. It is a module of its own, so that they can import it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_model
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from protocol import Task

WORK = "MIDHAUL_BENCHMARK_WORK"  # the folder of the workload
app = ClientApp()


@functools.lru_cache(maxsize=1)
def loaded() -> tuple[Task, torch.Tensor, torch.nn.Module]:
    """Gives a worker's task, data and model; made once in each worker."""
    torch.set_num_threads(1)
    task = Task(Path(os.environ[WORK]))
    return task, torch_model.data(task), torch_model.build(task.layers)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client and answers with its weights."""
    task, x, model = loaded()
    number = int(message.content["config"]["server-round"])
    rows, labels = map(torch.from_numpy, task.client(number, int(context.node_config["partition-id"])))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer, total = torch.optim.SGD(model.parameters(), lr=task.lr), 0.0
    for first in range(0, len(rows), task.batch):
        picked = rows[first : first + task.batch]
        loss = F.cross_entropy(model(x[picked]), labels[first : first + task.batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(picked)
    metrics = MetricRecord({"num-examples": len(rows), "loss": total / len(rows)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)
