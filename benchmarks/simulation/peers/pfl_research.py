"""pfl-research's simulation: its FederatedAveraging on its SimulatedBackend. `pfl_research.py FOLDER THREADS`

One process: pfl's own way to many is a process a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pfl
import torch
import torch.nn.functional as F
import torch_model
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from protocol import Line, Task


class Clients(FederatedDatasetBase):
    """A round's cohort, each client's rows in the order of that round."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.number, self.place = task, 1, 0
        self.x = torch_model.data(task)

    def __next__(self) -> tuple[Dataset, int]:
        rows, labels = (torch.from_numpy(part) for part in self.task.client(self.number, self.place))
        user = int(self.task.cohorts[self.task.at(self.number), self.place])
        self.place += 1
        return Dataset((self.x[rows], labels), user_id=str(user)), self.place

    def get_cohort(self, cohort_size: int) -> Iterable[tuple[Dataset, int]]:
        self.place = 0
        for _ in range(cohort_size):
            yield next(self)


class Learner(torch.nn.Module):
    """The tiny model, with the loss that pfl asks for."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.inner = torch_model.build(task.layers)
        self.inner.load_state_dict(torch_model.tensors(task.weights))
        self.total, self.seen = 0.0, 0

    def loss(self, x: torch.Tensor, y: torch.Tensor, **_: Any) -> torch.Tensor:
        value = F.cross_entropy(self.inner(x), y)
        self.total, self.seen = self.total + value.item() * len(y), self.seen + len(y)
        return value

    def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


class OnCommand(TrainingProcessCallback):
    """Waits for the next round's command between rounds."""

    def __init__(self, clients: Clients, learner: Learner, numbers: Iterator[int]) -> None:
        self.clients, self.learner, self.numbers = clients, learner, numbers

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self.learner.seen, self.seen = 0, self.learner.seen
        self.learner.total, self.loss = 0.0, self.learner.total / max(self.seen, 1)
        number = next(self.numbers, None)
        self.clients.number = number or 0
        return number is None, Metrics()


def main(folder: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    line, task = Line(), Task(Path(folder))
    clients, learner = Clients(task), Learner(task)
    model = PyTorchModel(learner, torch.optim.SGD, torch.optim.SGD(learner.parameters(), lr=1.0))
    backend = SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()])
    numbers = line.rounds()
    on_command = OnCommand(clients, learner, numbers)
    line.held = lambda: (torch_model.arrays(learner.inner.state_dict()), on_command.loss)
    on_command.loss = float("nan")
    line.tell(ready={"pfl": getattr(pfl, "__version__", "0.6.0"), "torch": torch.__version__})
    clients.number = next(numbers)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=10**9,
            evaluation_frequency=10**9,
            train_cohort_size=task.clients_a_round,
            val_cohort_size=None,
        ),
        backend,
        model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=task.lr, local_batch_size=task.batch
        ),
        callbacks=[on_command],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
