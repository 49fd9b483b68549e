"""Every scheme on another device of torch than the processor: nothing lies where it doesn't belong, and the numbers are
the same. Where there is a GPU, on that too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from midhaul import train, tree
from midhaul.config import Config
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
import on_hardware

# Beside every scheme as it is: what has tensors of its own to put somewhere.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {"privacy_clip": 0.01}),
    ("fedavg", {"scheme_loss": "mse"}),
    ("split", {"scheme_nopeek": 0.1}),
    ("federated_split", {"scheme_server_step": "cohort"}),
    ("transfer", {"scheme_distill": "features"}),
    ("fedmd", {"scheme_large_start": "self_supervised"}),
    ("run", {"scheme_name": "fedavg", "scheme_momentum": 0.5}),
    ("run", {"scheme_name": "federated_split", "large_optimizer": "adam"}),
    ("run", {"scheme_name": "transfer", "tiny_norm": "group"}),
    ("run", {"scheme_name": "fedper", "recurrent": "RNN"}),
    ("run", {"scheme_name": "federated_split", "dropout_behind": 8}),
    ("run", {"scheme_name": "transfer", "dropout_behind": 64}),
]
CASES = [*((name, dict[str, Any]()) for name in SCHEMES), *OTHERS]


@pytest.fixture(scope="module")
def found() -> list[str | float]:
    """What came of all cases on a device that is only pretended: half a minute of one core for all of them."""
    command = [sys.executable, str(Path(__file__).parent / "pretend_device.py"), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _PATH})
    assert done.returncode == 0, done.stderr
    told: list[str | float] = json.loads(done.stdout.splitlines()[-1])
    return told


_PATH = os.pathsep.join(path for path in sys.path if path)


@pytest.mark.xdist_group("pretend_device")
@pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: "-".join(map(str, CASES[place])))
def test_on_another_device_all_is_where_it_belongs_and_ends_with_the_same_bits(
    place: int, found: list[str | float]
) -> None:
    gap, (_, changes) = found[place], CASES[place]
    assert isinstance(gap, float), gap
    # Elsewhere than on the processor torch has another kernel for recurrent layers.
    assert gap <= (1e-6 if "recurrent" in changes else 0.0)


def test_a_half_with_dropout_is_resumed_to_the_bit() -> None:
    changes = {"scheme_name": "federated_split", "dropout_behind": 8}
    assert on_hardware.resumed(torch.device("cpu"), changes) == 0.0


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@needs_cuda
@pytest.mark.parametrize("name", SCHEMES)
def test_on_a_gpu_every_scheme_ends_where_it_does_on_the_processor(name: str) -> None:
    gap = on_hardware.compared(name, torch.device("cuda", 0), {})
    assert isinstance(gap, float), gap
    assert gap < 1e-4


@needs_cuda
def test_a_run_on_a_gpu_ends_where_loop_does_and_is_resumed_on_the_processor() -> None:
    config = Config().replace(**on_hardware.DIGITS, run_device="cuda", run_rounds=3)
    there = train.run(config)
    slow = train.run(config.replace(run_device="cpu", run_engine="loop"))
    assert tree.largest_difference(there.server.tree, slow.server.tree) < 1e-4
    gap = on_hardware.resumed(torch.device("cuda", 0), {})
    assert isinstance(gap, float), gap
    assert gap < 1e-4


@needs_cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_learns_as_well_with_coarser_products(precision: str) -> None:
    changes = {**on_hardware.DIGITS, "data_max_rows": 0, "run_rounds": 10, "run_device": "cuda"}
    exact, coarse = (
        train.run(Config().replace(**changes, run_precision=each)).summary["accuracy"]
        for each in ("float32", precision)
    )
    assert exact - 0.05 < coarse < exact + 0.05
