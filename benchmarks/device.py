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

from midhaul.devices.pack import Packing
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


TABLES: dict[str, Callable[[str], None]] = {"int8": int8}


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
