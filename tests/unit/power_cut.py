"""A run that a power cut ends after a round, and that goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from midhaul import train
from midhaul.config import Config
from midhaul.train import Result


class PowerCut(Exception):
    pass


def cut_after(last: int) -> Callable[[str, int, int], None]:
    """Gives a run's `progress` that ends it once a round has ended."""

    def progress(label: str, done: int, total: int) -> None:
        if label == "rounds" and done == last:
            raise PowerCut

    return progress


def cut_and_resumed(config: Config, folder: Path, *, after: int) -> Result:
    """Runs until a power cut after a round, then on to the end."""
    with pytest.raises(PowerCut):
        train.run(config, folder, progress=cut_after(after))
    return train.run(config, folder, resume=True)
