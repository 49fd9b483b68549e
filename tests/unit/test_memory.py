"""The memory that a person allows: reckoned before a device is trained, and kept to."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import midhaul
from midhaul import rng, tree
from midhaul.errors import ConfigError
from midhaul.message import Message, Op
from midhaul.models import tiny
from midhaul.models.prepare import prepare
from midhaul.program import Population, Program
from midhaul.runtime import chunk, memory
from midhaul.runtime.loop import Loop
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from fleet_of_three import setting

OWN = {**os.environ, "PYTHONPATH": str(Path(midhaul.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
# What is freed goes back to the system at once, so that the peak is what was in use.
OWN |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEASURE = """
import numpy as np, torch
from midhaul import rng
from midhaul.message import Message, Op
from midhaul.models import tiny
from midhaul.models.prepare import prepare
from midhaul.program import Population, Program
from midhaul.runtime import memory
from midhaul.runtime.stacked import Stacked

def peak():
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

for name, shape, rows, devices in (("mlp", (400,), 20, 40), ("cnn1d", (6, 128), 20, 12), ("eegnet", (9, 64), 20, 12)):
    program = Program(prepare(tiny.build(name, shape, 10), shape, "group").module, shape)
    x, places = torch.randn(devices * rows, *shape), np.split(np.arange(devices * rows), devices)
    population = Population(x, torch.arange(len(x)) % 10, tuple(places), tuple(places), (), True)
    fleet = Stacked(program, population, kernels="torch")
    message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "batch": 10, "train": "whole", "send": "whole"})
    fleet.exchange(message, key=rng.Key(0, 1, 0, 0), devices=[0])
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    fleet.exchange(message, key=rng.Key(0, 1, 0, 0))
    print(name, devices * memory.device_bytes(program, message, places), peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is measured by Linux")
def test_training_takes_no_more_than_was_reckoned_and_not_much_less() -> None:
    # Three models in one fresh process: it takes as long as importing torch does.
    ran = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, env=OWN, check=True)
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 3
    for name, reckoned, measured in lines:
        assert int(reckoned) / 4 < int(measured) < int(reckoned), f"{name}: {reckoned} reckoned, {measured} measured"


def a_population(rows: int = 20, num_devices: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> Population:
    x = torch.from_numpy(rng.normal(rng.key(0, 0, 0, rng.Use.SYNTHETIC), rows * int(np.prod(shape)))).float()
    parts = tuple(np.array_split(np.arange(rows), num_devices))
    return Population(x.reshape(rows, *shape), torch.arange(rows) % 3, parts, parts, (), True)


def test_what_is_left_beside_the_data_is_for_devices_at_work() -> None:
    population = a_population()
    assert memory.resident_bytes(population) == 20 * (64 * 4 + 8) + 16 * 40 + 3 * memory.DEVICE_BYTES
    left = memory.chunk_bytes("2GB", population, 1000)
    assert left == 2 * 10**9 - memory.PROCESS_BYTES - memory.resident_bytes(population) - 6000
    assert memory.chunk_bytes("auto", population, 1000) == memory.AUTO_CHUNK_BYTES


def test_a_bound_that_leaves_nothing_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"run.memory is 300MB, and libraries, data and models take .*; allow .* or more"
    ):
        memory.chunk_bytes("300MB", a_population(), 1000)
    many = dataclasses.replace(a_population(), train=(np.arange(20),) * 1_000_000, own_test=False)
    with pytest.raises(ConfigError, match=r"run.memory is 2GB"):
        memory.chunk_bytes("2GB", many, 1000)


def test_what_a_round_s_devices_send_is_taken_off() -> None:
    """Three devices, what each sends three times; every scheme names slices that its model has."""
    taken = {}
    for name in SCHEMES:
        kit, _, population = setting(SCHEMES[name])
        taken[name] = memory.replies_bytes(kit, SCHEMES[name], population)
    kit, program, population = setting(SCHEMES["fedavg"])
    assert taken["fedavg"] == 3 * 3 * tree.num_bytes(program.initial) > 0
    assert taken["federated_transfer"] < taken["fedavg"], "a head is less than the whole"
    assert [taken[name] for name in ("local", "fedmd", "federated_split")] == [0, 0, 0]
    fewer = dataclasses.replace(kit, config=kit.config.replace(fleet_cohort=2.0))
    assert memory.replies_bytes(fewer, SCHEMES["fedavg"], population) == 2 * 3 * tree.num_bytes(program.initial)
    left = memory.chunk_bytes("2GB", population, 1000, 10**9)
    assert left == memory.chunk_bytes("2GB", population, 1000) - 10**9
    with pytest.raises(ConfigError, match=r"a round's replies .*; allow .* or more"):
        memory.chunk_bytes("2GB", population, 1000, 2 * 10**9)


def test_fewer_devices_are_trained_at_once_where_there_is_less_memory_and_more_is_kept() -> None:
    program = Program(tiny.build("cnn", (1, 8, 8), 3), (1, 8, 8))
    fleet = Stacked(program, a_population())
    message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "batch": 4, "train": "whole", "send": "whole"})
    rows = list(fleet.population.train)
    each = memory.device_bytes(program, message, rows)
    fleet.memory_bytes = 10 * each
    assert fleet._chunk(message, rows) == 10
    for name, value in program.initial.items():
        fleet.set_own(name, [0, 1], value.expand(2, *value.shape))
    assert fleet._chunk(message, rows) == (10 * each - 2 * tree.num_bytes(program.initial)) // each < 10
    fleet.memory_bytes = 1
    assert fleet._chunk(message, rows) == 1, "one device at a time is the least"


@pytest.mark.parametrize("op", [Op.FIT, Op.EVALUATE, Op.ADAPT])
def test_devices_one_by_one_end_as_the_slow_engine_does(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "ONE_BY_ONE_MACS", 0)
    program = Program(prepare(tiny.build("dscnn", (1, 8, 8), 3, channels=4), (1, 8, 8), "group").module, (1, 8, 8))
    settings = {"lr": 0.1, "momentum": 0.9, "batch": 4, "epochs": 2, "train": "whole", "send": "whole", "rows": "train"}
    settings = {"rows": "test"} if op == Op.EVALUATE else settings
    each = {n: torch.stack([v, 0.9 * v, 1.1 * v]) for n, v in program.initial.items()}
    ends = []
    for fleet in (Loop(program, a_population(7)), Stacked(program, a_population(7), kernels="torch")):
        fleet.exchange(Message(Op.LOAD, each=each), key=rng.Key(0, 0, 0, 0))
        up = fleet.exchange(Message(op, settings=settings), key=rng.Key(0, 1, 0, 0))
        ends.append({**up.tree, **up.metrics})
    assert tree.largest_difference(*ends) == 0.0


def test_only_large_steps_of_convolutions_are_done_one_by_one() -> None:
    found = {}
    for name, shape in (("dscnn", (1, 49, 10)), ("cnn1d", (6, 128)), ("mlp", (784,))):
        program = Program(prepare(tiny.build(name, shape, 10), shape, "group").module, shape)
        fleet = Stacked(program, a_population(30, shape=shape), kernels="torch")
        message = Message(Op.FIT, program.initial, settings={"lr": 0.1, "batch": 10, "train": "whole"})
        part = chunk.Chunk(fleet, message, [0], [np.arange(10)], rng.Key(0, 1, 0, 0))
        found[name] = part._is_faster_one_by_one(10)
    assert found == {"dscnn": True, "cnn1d": False, "mlp": False}
