"""Flower's simulation over Ray: its FedAvg, a virtual node for each client of a round. `flower.py FOLDER CORES`

There are as many nodes as clients in a round, and each plays the client in its place of that round's cohort: Flower
then needn't keep the others, and every side trains the same clients.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path(__file__).parent),  # for its workers
}

import flwr
import torch_model
from flower_client import WORK
from flower_client import app as client_app
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from protocol import Line, Task


class Rounds(FedAvg):
    """FedAvg that does a round when it is told to, and that number of round."""

    def __init__(self, line: Line, num: int) -> None:
        nodes = {"min_train_nodes": num, "min_available_nodes": num}
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, **nodes)
        self.numbers, self.state, self.loss = line.rounds(), {}, float("nan")
        line.held = lambda: (torch_model.arrays(self.state), self.loss)

    def configure_train(self, server_round: int, *rest: Any, **named: Any) -> Any:
        number = next(self.numbers, None)
        if number is None:
            raise SystemExit(0)
        return super().configure_train(number, *rest, **named)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            raise RuntimeError("no client answered")
        self.state, self.loss = arrays.to_torch_state_dict(), metrics["loss"]
        return arrays, metrics


def main(folder: str, cores: str) -> None:
    line, task = Line(), Task(Path(folder))
    os.environ[WORK] = folder
    logging.getLogger("flwr").setLevel(logging.WARNING)
    app = ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        line.tell(ready={"flwr": flwr.__version__})
        first = ArrayRecord(torch_model.tensors(task.weights))
        try:
            Rounds(line, task.clients_a_round).start(grid=grid, initial_arrays=first, num_rounds=10**9)
        except SystemExit:
            os._exit(0)

    run_simulation(
        app,
        client_app,
        task.clients_a_round,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": int(cores), "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
