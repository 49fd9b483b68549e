"""Federated training as one writes it by hand in PyTorch: a loop over the clients, an optimiser for each.

`plain.py FOLDER THREADS PROCESSES`
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_model
from protocol import Arrays, Line, Task, serve

State = dict[str, torch.Tensor]


def train_clients(task: Task, model: torch.nn.Module, x: torch.Tensor, start: State, number: int, places: range) -> Any:
    """Trains some clients of a round's cohort; gives the sum of their weights and of their losses by row."""
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    loss_sum = 0.0
    for place in places:
        rows, labels = (torch.from_numpy(part) for part in task.client(number, place))
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)
        for first in range(0, len(rows), task.batch):
            picked = rows[first : first + task.batch]
            loss = F.cross_entropy(model(x[picked]), labels[first : first + task.batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(picked)
        for name, value in model.state_dict().items():
            total[name] += value
    return total, loss_sum


def work(task: Task, places: range, line: Connection) -> None:
    """Trains a share of each round's cohort in a process of its own."""
    torch.set_num_threads(1)
    model, x = torch_model.build(task.layers), torch_model.data(task)
    while (command := line.recv()) is not None:
        number, start = command
        total, loss = train_clients(task, model, x, torch_model.tensors(start), number, places)
        line.send((torch_model.arrays(total), loss))


class Plain:
    """The loop: in this process, or a share of the cohort in each of several."""

    def __init__(self, task: Task, threads: int, processes: int) -> None:
        self.task, self.loss = task, float("nan")
        self.state = torch_model.tensors(task.weights)
        self.lines: list[Connection] = []
        if processes > 1:
            context = multiprocessing.get_context("fork")
            ends = [task.clients_a_round * place // processes for place in range(processes + 1)]
            for low, high in itertools.pairwise(ends):
                here, there = context.Pipe()
                context.Process(target=work, args=(task, range(low, high), there), daemon=True).start()
                self.lines.append(here)
        else:
            torch.set_num_threads(threads)
            self.model, self.x = torch_model.build(task.layers), torch_model.data(task)

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__}

    def arrays(self) -> Arrays:
        return torch_model.arrays(self.state)

    def round(self, number: int) -> None:
        num = self.task.clients_a_round
        if self.lines:
            for line in self.lines:
                line.send((number, torch_model.arrays(self.state)))
            parts = [line.recv() for line in self.lines]
            sums = [torch_model.tensors(part) for part, _ in parts]
            total = {name: sum(own[name] for own in sums) for name in self.state}
            loss = sum(loss for _, loss in parts)
        else:
            total, loss = train_clients(self.task, self.model, self.x, self.state, number, range(num))
        self.state = {name: value / num for name, value in total.items()}
        self.loss = loss / (num * self.task.rows_a_client)


class Split:
    """Split learning by hand: each client's front, then the server's half behind it, one after the other."""

    def __init__(self, task: Task, threads: int) -> None:
        from midhaul.models import large  # the same transformer: the module alone, trained by hand

        torch.set_num_threads(threads)
        self.task, self.loss = task, float("nan")
        self.x = torch_model.data(task)
        state = torch_model.tensors(task.weights)
        self.state = {name: value for name, value in state.items() if not name.startswith("rear/")}
        self.fronts = [torch_model.build(task.layers) for _ in range(task.clients_a_round)]
        with torch.no_grad():
            smashed = tuple(self.fronts[0](self.x[:1]).shape[1:])
        self.rear = large.build(task.rear["model"], smashed, task.classes, **task.rear["options"])
        self.rear.load_state_dict({n.removeprefix("rear/"): v for n, v in state.items() if n.startswith("rear/")})
        self.optimizer = torch.optim.AdamW(
            self.rear.parameters(), lr=task.rear["lr"], weight_decay=task.rear["weight_decay"], foreach=True
        )

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__}

    def arrays(self) -> Arrays:
        rear = {f"rear/{name}": value for name, value in self.rear.state_dict().items()}
        return torch_model.arrays({**self.state, **rear})

    def round(self, number: int) -> None:
        task, loss_sum = self.task, 0.0
        data = [tuple(map(torch.from_numpy, task.client(number, place))) for place in range(len(self.fronts))]
        for front in self.fronts:
            front.load_state_dict(self.state)
        steppers = [torch.optim.SGD(front.parameters(), lr=task.lr) for front in self.fronts]
        for step, turn in enumerate(task.turns[task.at(number)]):
            for place in turn.tolist():
                rows, labels = (part[step * task.batch : (step + 1) * task.batch] for part in data[place])
                loss = F.cross_entropy(self.rear(self.fronts[place](self.x[rows])), labels)
                self.optimizer.zero_grad()
                steppers[place].zero_grad()
                loss.backward()
                self.optimizer.step()
                steppers[place].step()
                loss_sum += loss.item() * len(rows)
        states = [front.state_dict() for front in self.fronts]
        self.state = {name: torch.stack([own[name] for own in states]).mean(0) for name in self.state}
        self.loss = loss_sum / (len(self.fronts) * task.rows_a_client)


def main(folder: str, threads: str, processes: str) -> None:
    line, task = Line(), Task(Path(folder))
    serve(line, lambda: Split(task, int(threads)) if task.rear else Plain(task, int(threads), int(processes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
