"""midhaul, by the road that `midhaul run` takes: a plant, the scheme's rounds, and behind the link or without it.

`ours.py FOLDER THREADS link|bare`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.simulation.works import WORKS, build
from protocol import Arrays, Line, serve

from midhaul import __version__, rng
from midhaul.runtime.ledger import Ledger
from midhaul.train import behind_link


class Ours:
    """A run of midhaul."""

    def __init__(self, folder: Path, threads: int, *, link: bool) -> None:
        self.plant = build(WORKS[folder.name], folder, threads)
        self.fleet = behind_link(self.plant, Ledger()) if link else self.plant.engine
        self.server = self.plant.scheme.init(self.fleet, self.plant.kit, rng.Key(0, 0, rng.SERVER, 0))
        self.loss = float("nan")

    def facts(self) -> dict[str, Any]:
        return {"midhaul": __version__}

    def arrays(self) -> Arrays:
        rear = {f"rear/{name}": value for name, value in self.server.large.items()}
        return {name: value.numpy() for name, value in {**self.server.tree, **rear}.items()}

    def round(self, number: int) -> None:
        key = rng.Key(0, number, rng.SERVER, 0)
        self.server, metrics = self.plant.scheme.round(self.server, self.fleet, self.plant.kit, key)
        self.loss = metrics["train_loss"]


if __name__ == "__main__":
    serve(Line(), lambda: Ours(Path(sys.argv[1]), int(sys.argv[2]), link=sys.argv[3] == "link"))
