"""What the device runtime costs. `python -m benchmarks.device [table ...]`; without names, every table is printed.

Instructions are counted, not timed: in Unicorn for Cortex-M4 and M7, in QEMU's mps3-an547 (one instruction of `-icount`
a step) for the Cortex-M55. They need a cross-compiler: arm-none-eabi-gcc, or zig from `ziglang` with `--compiler zig`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from midhaul import budget, train
from midhaul.config import from_table
from midhaul.data import from_arrays
from midhaul.devices import blob, profiles, toolchain
from midhaul.devices.pack import Packing
from midhaul.message import Op
from midhaul.models import tiny
from midhaul.models.int8 import Int8Front
from midhaul.models.quantise import quantise
from midhaul.models.translate import translate
from midhaul.net import macs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))

import s8_cases
from cortex import DEVICE, Machine, build
from helium import Helium, missing
from s8_cases import Case

SOURCES = [DEVICE / "src" / name for name in ("mh_s8.c", "mh_s8_plain.c", "mh_s8_dsp.c", "mh_s8_mve.c")]

# Per MAC, whole layer with requantisation, in the same emulators: TFLM's reference kernels and CMSIS-NN on an M4,
# CMSIS-NN with MVE on an M55; and what this project set out to reach on either.
PEERS = {
    "FC 640->128": (9.1, 1.97, 0.50, 1.5, 0.25),
    "conv 3x3 32x32x16->16": (10.95, 2.33, 0.39, 1.5, 0.40),
    "conv 1x1 25x5x64->64": (10.8, 2.09, 0.40, 1.4, 0.35),
    "depthwise 3x3 25x5x64": (34.6, 8.33, 2.32, 5.0, 2.3),
}


def int8(compiler: str) -> None:
    """Prints instructions per MAC of the int8 kernels beside TFLM's and CMSIS-NN's."""
    layers = s8_cases.table_layers(np.random.default_rng(0))
    nothing = dict.fromkeys(layers, float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        m4 = {name: on_unicorn(case, "m4", compiler, Path(folder)) for name, case in layers.items()}
        m7 = {name: on_unicorn(case, "m7", compiler, Path(folder)) for name, case in layers.items()}
        # zig has no soft float for a bare M3
        m3 = (
            nothing
            if compiler == "zig"
            else {n: on_unicorn(case, "m3", "gcc", Path(folder)) for n, case in layers.items()}
        )
        lacks = missing(compiler)
        m55 = nothing if lacks else on_qemu(layers, compiler, Path(folder))
    heads = "".join(f"{head:>7}" for head in ("TFLM", "CMSIS", "M3", "M4", "M7", "goal"))
    print(f"int8: instructions per MAC, whole layer with requantisation ({compiler})")
    print(f"{'':24}{heads} |" + "".join(f"{head:>7}" for head in ("CMSIS", "M55", "goal")) + "  scratch")
    for name, (tflm, cmsis, helium, goal, goal_helium) in PEERS.items():
        bytes_ = [s8_cases.call(layers[name], packing).scratch_num for packing in (Packing.DSP, Packing.MVE)]
        print(
            f"{name:24}{tflm:7.2f}{cmsis:7.2f}{m3[name]:7.2f}{m4[name]:7.2f}{m7[name]:7.2f}{goal:7.2f} |"
            f"{helium:7.2f}{m55[name]:7.2f}{goal_helium:7.2f}  {bytes_[0]} B, {bytes_[1]} B"
        )
    print("M3 runs the plain kernels. Scratch: DSP, Helium. TFLM and CMSIS-NN left of the bar: on an M4.")
    if lacks:
        print(f"no figures for the M55: this machine has no {lacks}")


def on_unicorn(case: Case, cpu: str, compiler: str, folder: Path) -> float:
    """Gives the instructions per MAC of a layer on a Cortex-M, after its output was held to the reference."""
    program = folder / f"{cpu}.elf"
    if not program.exists():
        build(compiler, cpu, SOURCES, program)
    machine = Machine(program, cpu, counts=True)
    one = s8_cases.call(case, Packing.PLAIN if cpu == "m3" else Packing.DSP)
    machine.call(one.name, *one.arguments)
    check(one.name, case, one)
    return machine.counts.total() / macs(case.net, case.layer)


def on_qemu(layers: dict[str, Case], compiler: str, folder: Path) -> dict[str, float]:
    """Gives the instructions per MAC of layers on a Cortex-M55, checked likewise."""
    calls = [s8_cases.call(case, Packing.MVE) for case in layers.values()]
    found = Helium(compiler, SOURCES, folder).run([(one.name, one.arguments) for one in calls])
    for (name, case), one in zip(layers.items(), calls, strict=True):
        check(name, case, one)
    return {
        name: num / macs(case.net, case.layer) for (name, case), (_, num) in zip(layers.items(), found, strict=True)
    }


def check(name: str, case: Case, one: s8_cases.Call) -> None:
    if not np.array_equal(one.result(), case.wanted().ravel()):
        sys.exit(f"{name} gives other numbers than the reference; its count would mean nothing")


# The arena of activations: TFLM's, and what this project set out to reach, in thousands of bytes.
ARENAS = {
    "dscnn": ((1, 49, 10), 12, 16.0, 16.0),
    "mobilenet_v1_025": ((3, 96, 96), 2, 73.7, 56.0),
    "resnet8": ((3, 32, 32), 10, 49.2, 42.0),
    "autoencoder": ((640,), 640, 4.0, 2.0),
}


def arena(compiler: str) -> None:
    """Prints the int8 arenas of MLPerf Tiny's models beside TFLM's, scratch and the output as floats included."""
    print("arena of one inference in int8, in bytes (TFLM and the goal: thousands of bytes)")
    print(f"{'':20}{'TFLM':>7}{'goal':>7}{'plain':>9}{'DSP':>9}{'MVE':>9}{'logits':>9}")
    for name, (shape, classes, tflm, goal) in ARENAS.items():
        torch.manual_seed(0)
        net = translate(tiny.build(name, shape, classes).eval(), shape)
        rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
        made = [blob.compile(quantise(net, rows), {}, packing=int(packing)) for packing in Packing]
        cells = "".join(f"{one.arena_bytes:>9,}" for one in made)
        print(f"{name:20}{tflm:>7}{goal:>7}{cells}{4 * classes:>9,}")
    print("logits: the float output, which is part of the arena here and int8 in TFLM.")


def training(compiler: str) -> None:
    """Prints what training on the device takes: the HAR client's halves, and small networks trained whole."""
    har = tiny.build("cnn1d", (6, 128), 6)
    nrf, stm = profiles.get("nrf5340"), profiles.get("stm32f4")
    lenet = nn.Sequential(
        *(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 12, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(192, 10)),
    )
    head = Int8Front(har, (6, 128), torch.randn(64, 6, 128))
    names = [name for name, _ in lenet.named_parameters()]
    cases = [
        ("FTL: HAR head, int8 body, 413 rows", head, (6, 128), nrf, Op.FIT, {"train": ("head.weight", "head.bias")}),
        ("FTL: HAR head, float32 body", har, (6, 128), nrf, Op.FIT, {"train": ("head.weight", "head.bias")}),
        ("SL: HAR up to relu1, BACKWARD", har, (6, 128), nrf, Op.BACKWARD, {"cut": "relu1"}),
        ("LeNet-1 (3,246 weights), whole", lenet, (1, 28, 28), stm, Op.FIT, {"train": names}),
    ]
    print("memory of training on a device with 413 rows and momentum, runtime and stack included")
    print(f"{'':38}{'SRAM':>10}{'flash':>10}")
    for what, module, shape, board, op, how in cases:
        need = budget.plan(module, shape, board, op, momentum=True, num_rows=413, batch=32, **how)
        print(f"{what:38}{need.sram_bytes:>10,}{need.flash_bytes:>10,}")
    print("goals: FTL 64 KB and 256 KB, SL 48 KB of SRAM, LeNet 100 KB (AIfES: slightly over 100 kB).")


def code(compiler: str) -> None:
    """Prints the size of the runtime's code on a Cortex-M4."""
    print(f"code and constants on a Cortex-M4 ({compiler}), in bytes")
    for what, how in {
        "every operator, as built": {},
        "every operator, -Os": {"optimise": "-Os"},
        "inference only, as built": {"defines": ("MH_INFER_ONLY",)},
        "inference only, -Os": {"defines": ("MH_INFER_ONLY",), "optimise": "-Os"},
    }.items():
        image = toolchain.build("cortex-m4", compiler=toolchain.firmware_compiler(compiler), **how)
        seal = image.parts.get("mh_aead.c", 0)
        print(f"{what:28}{image.code_bytes:>9,}   less the seal {image.code_bytes - seal:>9,}")
    print("goals: 24 KB with every operator, 12 KB for inference only, the seal apart.")


def fleet(compiler: str) -> None:
    """Prints how fast 1,000 devices' heads are trained for 10 rounds: the C runtime in this process, and stacked."""
    draws = np.random.default_rng(0)
    num, rows = 1000, 60
    x = draws.normal(size=(num * rows + 2000, 6, 128)).astype(np.float32)
    y = draws.integers(0, 6, len(x))
    data = from_arrays(x, y, device=[i // rows if i < num * rows else num + i % 20 for i in range(len(x))])
    table = {
        "data": {"partition": "natural", "public": 0.02, "test": "device", "test_fraction": 0.1},
        "fleet": {"board": "stm32f4"},
        "tiny": {"model": "cnn1d", "precision": "int8"},
        "large": {"model": "resnet1d", "epochs": 1},
        "scheme": {"name": "federated_transfer", "distill_epochs": 1, "batch": 20, "lr": 0.01},
        "run": {"rounds": 10, "evaluate_every": 10, "checkpoint_every": 10},
    }
    print(f"{num:,} devices with {rows} rows of 6 x 128, 10 rounds of the head over an int8 body")
    for engine in ("stacked", "firmware"):
        run = {**table["run"], "engine": engine, "devices": f"host:*{num}"}
        result = train.run(from_table({**table, "run": run}, where="benchmark"), dataset=data)
        rate = result.summary["device_updates_per_s"]
        print(f"{engine:10}{10 * num / rate:8.1f} s{rate:10,.0f} updates a second")


TABLES: dict[str, Callable[[str], None]] = {
    "int8": int8,
    "arena": arena,
    "training": training,
    "code": code,
    "fleet": fleet,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.device", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--compiler", choices=("gcc", "zig"), default="gcc")
    options = parser.parse_args()
    for name in options.tables or TABLES:
        if name not in TABLES:
            parser.error(f"there is no table {name!r}; tables are {', '.join(TABLES)}")
        TABLES[name](options.compiler)


if __name__ == "__main__":
    main()
