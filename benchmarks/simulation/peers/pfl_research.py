"""pfl-research's simulation: its FederatedAveraging on its SimulatedBackend.

`pfl_research.py FOLDER PROCESSES`; with several, each has a share of the cohort and a thread: workers, in pfl's words,
that add up their statistics through torch.distributed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RANK, ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"  # by which pfl knows its workers


def helpers(processes: int) -> list[subprocess.Popen[str]]:
    """Starts the other workers; it must be known who they are before pfl is imported."""
    if processes < 2 or RANK in os.environ:
        return []
    ports = []
    for _ in range(processes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    os.environ[ADDRESSES] = ",".join(f"127.0.0.1:{port}" for port in ports)
    os.environ[RANK] = "0"
    command = [sys.executable, *sys.argv]
    return [
        subprocess.Popen(command, env={**os.environ, RANK: str(rank)}, stdin=subprocess.PIPE, text=True)
        for rank in range(1, processes)
    ]


OTHERS = helpers(int(sys.argv[2])) if len(sys.argv) > 2 else []

import pfl  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torch_model  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDatasetBase  # noqa: E402
from pfl.hyperparam import NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from protocol import Line, Task  # noqa: E402


class Clients(FederatedDatasetBase):
    """A round's cohort, each client's rows in the order of that round."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.number, self.place = task, 1, 0
        self.x = torch_model.data(task)

    def __next__(self) -> tuple[Dataset, int]:
        rows, labels = (torch.from_numpy(part) for part in self.task.client(self.number, self.place))
        user = int(self.task.cohorts[self.task.at(self.number), self.place])
        return Dataset((self.x[rows], labels), user_id=str(user)), self.place

    def get_cohort(self, cohort_size: int) -> Iterable[tuple[Dataset, int]]:
        rank, world = int(os.environ.get(RANK, 0)), len(os.environ.get(ADDRESSES, "").split(","))
        for self.place in range(rank, cohort_size, world):
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
        self.clients, self.learner, self.numbers, self.loss = clients, learner, numbers, float("nan")

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self.loss = self.learner.total / max(self.learner.seen, 1)
        self.learner.total, self.learner.seen = 0.0, 0
        number = next(self.numbers, None)
        self.clients.number = number or 0
        return number is None, Metrics()


def numbers_of(line: Line | None) -> Iterator[int]:
    """Gives the numbers of the rounds to do, and tells them to the other workers; these hear them here."""
    for number in line.rounds() if line is not None else map(int, sys.stdin):
        for other in OTHERS:
            assert other.stdin is not None
            other.stdin.write(f"{number}\n")
            other.stdin.flush()
        yield number
    for other in OTHERS:
        assert other.stdin is not None
        other.stdin.close()


def main(folder: str, processes: str) -> None:
    torch.set_num_threads(1)
    line = Line() if os.environ.get(RANK, "0") == "0" else None
    task = Task(Path(folder))
    clients, learner = Clients(task), Learner(task)
    model = PyTorchModel(learner, torch.optim.SGD, torch.optim.SGD(learner.parameters(), lr=1.0))
    backend = SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()])
    numbers = numbers_of(line)
    on_command = OnCommand(clients, learner, numbers)
    if line is not None:
        line.held = lambda: (torch_model.arrays(learner.inner.state_dict()), on_command.loss)
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
