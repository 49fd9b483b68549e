"""A scheme's rounds, or a whole run, on the processor and on a device of torch, compared."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from fleet_of_three import setting
from torch import nn

from midhaul import hardware, plant, rng, train, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.hardware import Hardware
from midhaul.link import radio
from midhaul.message import Replies
from midhaul.program import Population, Program
from midhaul.runtime.groups import Groups
from midhaul.runtime.ledger import Ledger
from midhaul.runtime.over_link import OverLink
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Server
from midhaul.tree import Tree

ROUNDS = 2
# Few steps, each of a device's rows as they are: an op on the pretended device takes many times a real one's time.
SMALL = {
    "scheme_epochs": 1, "scheme_batch": 64, "large_epochs": 1, "large_batch": 256, "scheme_distill_epochs": 1,
}  # fmt: skip
DIGITS = {
    "data_num_devices": 4, "data_max_rows": 20, "data_public": 0.2, "large_epochs": 1, "scheme_distill_epochs": 1,
    "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1}, "tiny_options": {"hidden": [8]},
    "run_rounds": 2, "run_kernels": "torch",
}  # fmt: skip


def rounds(name: str, on: Hardware, changes: dict[str, Any]) -> tuple[Server, Tree, list[Replies]]:
    """Runs a scheme over a link; gives the server, what the devices hold, and the tests."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **{**SMALL, **changes})

    def build(program: Program, population: Population) -> Stacked:
        return Stacked(program, population, kernels="torch", device=on.device)

    alike = len({id(group.program) for group in kit.groups}) == 1
    inner = build(kit.groups[0].program, population) if alike else Groups(kit.groups, population, build)
    board, air = profiles.get("stm32l4"), radio.get("ble")
    fleet = OverLink(inner, program, board, air, loss=0.0, retries=0, ledger=Ledger(), groups=kit.groups)
    with hardware.at_work(on):
        server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0)).on_host()
        for number in range(1, ROUNDS + 1):
            server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
            server = server.on_host()
            inner.restore(inner.dump())  # what a checkpoint holds is all that there is, on either
        key = rng.Key(0, ROUNDS, rng.SERVER, 0)
        tests = [scheme.evaluate(server, inner, kit, key)]
        if scheme.evaluate_large is not None:
            tests.append(scheme.evaluate_large(server, inner, kit, key))
    return server, inner.dump(), tests


def compared(name: str, device: torch.device, changes: dict[str, Any]) -> str | float:
    """Gives the largest difference of any number that rounds on a device end with from those on the host, or why they
    failed."""
    try:
        wanted, found = (_trees(*rounds(name, on, changes)) for on in (Hardware(), Hardware(device)))
    except Exception:
        return traceback.format_exc()
    return max(tree.largest_difference(*pair) for pair in zip(found, wanted, strict=True))


def resumed(device: torch.device, changes: dict[str, Any]) -> str | float:
    """Gives how far a run that begins on a device and is resumed on the host ends from one on the host, or why not."""
    changes = dict(changes)
    kind, inputs = changes.pop("recurrent", ""), changes.pop("dropout_behind", 0)
    with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
        half = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(inputs, 10)) if inputs else None
    module = Recurrent(kind) if kind else None
    config = Config().replace(**{**DIGITS, **changes})
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = train.run(config, Path(folder) / "plain", module=module, large_module=half).server
            out = Path(folder) / "moved"
            _stopped(config.replace(run_device="cuda"), out, Hardware(device), module, half)
            moved = train.run(config, out, resume=True, module=module, large_module=half).server
    except Exception:
        return traceback.format_exc()
    return max(tree.largest_difference(*pair) for pair in zip(_trees(moved), _trees(plain), strict=True))


class Recurrent(nn.Module):
    """A person's own module: the rows of an image one after another. `kind` is a recurrent layer of torch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
            self.memory: nn.Module = getattr(nn, kind)(8, 4, batch_first=True)
            self.last = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.memory(x.reshape(-1, 8, 8))[0][:, -1])
        return out


class _Stop(Exception):
    pass


def _stopped(config: Config, out: Path, on: Hardware, module: nn.Module | None, half: nn.Module | None) -> None:
    """Runs the first round, on hardware that `run.device` can't name."""

    def stop(label: str, done: int, total: int) -> None:
        if label == "rounds" and done == 1:
            raise _Stop

    found = plant.hardware.find
    plant.hardware.find = lambda device, precision: on
    try:
        train.run(config, out, progress=stop, module=module, large_module=half)
    except _Stop:
        return
    finally:
        plant.hardware.find = found
    raise AssertionError("the run was to stop after its first round")


def _trees(server: Server, held: Tree | None = None, tests: list[Replies] | None = None) -> list[Tree]:
    state = {f"{part}/{name}": value for part, whole in server.state.items() for name, value in whole.items()}
    found = [server.tree, server.large, state, server.constant, held or {}, *(test.metrics for test in tests or [])]
    assert all(value.device == hardware.CPU for whole in found for value in whole.values()), "a run ends on the host"
    return found
