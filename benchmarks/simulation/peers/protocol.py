"""How a side of the contest speaks: a line of JSON each way on its standard input and output. Needs numpy alone.

The other end sends `{"rounds": [3, 4], "save": "end.npz"}` and gets `{"seconds": [0.1, 0.1], "busy": [0.2, 0.2],
"loss": 2.3}`: the time of each round, and the CPU time of this one process; `save` may be left out. The first line of a
side says that it stands: `{"ready": {...}}`, with whatever a reader should know of it.
Prints of libraries go to standard error.

Shape letters: C clients, N rows of a client, R rounds, K clients in a round, S steps of a batch each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


class Task:
    """A workload as it lies in its folder: data, who takes part in which round, in what order, and the first weights.

    Shapes: x [rows, ...] float32; rows [C, N] places in x; labels [C, N]; cohorts [R, K] clients; orders [R, K, N]
    places in a client's rows; turns [R, S, K] the order in which a server half takes the clients' batches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.x = np.load(folder / "x.npy", mmap_mode="r")
        self.rows, self.labels = np.load(folder / "rows.npy"), np.load(folder / "labels.npy")
        self.cohorts, self.orders = np.load(folder / "cohorts.npy"), np.load(folder / "orders.npy")
        self.turns = np.load(folder / "turns.npy")
        with np.load(folder / "weights.npz") as held:
            self.weights: Arrays = {name: held[name] for name in self.spec["names"]}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.spec[name]
        except KeyError:
            raise AttributeError(name) from None

    def at(self, number: int) -> int:
        """Gives the place of a round in the arrays; they are gone through again where they end."""
        return (number - 1) % len(self.cohorts)

    def client(self, number: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives the places in x [N] and the labels [N] of the client in a place of the cohort, in its round's order."""
        client, order = self.cohorts[self.at(number), place], self.orders[self.at(number), place]
        return self.rows[client][order], self.labels[client][order]

    def cohort(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Gives the same of the whole cohort. Shapes: [K, N], [K, N]."""
        clients, orders = self.cohorts[self.at(number)], self.orders[self.at(number)]
        return (
            np.take_along_axis(self.rows[clients], orders, 1),
            np.take_along_axis(self.labels[clients], orders, 1),
        )


class Line:
    """A side's end of the line."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print must not be taken for an answer
        self.held: Callable[[], tuple[Arrays, float]] = lambda: ({}, float("nan"))

    def tell(self, **answer: Any) -> None:
        """Sends a line."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def rounds(self) -> Iterator[int]:
        """Gives the numbers of the rounds to do; what passes until the next is asked for is a round's time."""
        for line in sys.stdin:
            command = json.loads(line)
            seconds, busy = list[float](), list[float]()
            for number in command["rounds"]:
                began, worked = time.perf_counter(), time.process_time()
                yield number
                seconds.append(time.perf_counter() - began)
                busy.append(time.process_time() - worked)
            arrays, loss = self.held()
            if "save" in command:
                np.savez(command["save"], **arrays)
            self.tell(seconds=seconds, busy=busy, loss=float(loss))


def serve(line: Line, start: Callable[[], Any]) -> None:
    """Runs a side that has `round(number)`, `arrays()` and `loss`, to the end of its input; `start` builds it."""
    side = start()
    line.held = lambda: (side.arrays(), side.loss)
    line.tell(ready=side.facts())
    for number in line.rounds():
        side.round(number)


def tuned(task: Task, name: str) -> dict[str, Any]:
    """Gives what a side found best for a workload when it was tuned."""
    found: dict[str, Any] = json.loads((task.folder / f"{name}.tuned.json").read_text(encoding="utf-8"))
    return found


def keep_tuned(task: Task, name: str, found: dict[str, Any]) -> None:
    """Writes what a side found best."""
    (task.folder / f"{name}.tuned.json").write_text(json.dumps(found), encoding="utf-8")
