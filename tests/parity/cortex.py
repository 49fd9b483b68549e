"""Runs single C functions as Cortex-M code in the Unicorn emulator, and counts their instructions."""

from __future__ import annotations

import bisect
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unicorn
import unicorn.arm_const as arm

from midhaul.devices import elf, toolchain
from midhaul.net import Array

DEVICE = Path(__file__).parents[2] / "device"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off", "-fno-math-errno")
BARE = ("-ffreestanding", "-nostdlib", "-static")
MODELS = {
    "m3": arm.UC_CPU_ARM_CORTEX_M3,
    "m4": arm.UC_CPU_ARM_CORTEX_M4,
    "m7": arm.UC_CPU_ARM_CORTEX_M7,
}
CODE, DATA, STACK, STOP = 0x0002_0000, 0x2000_0000, 0x3000_0000, 0x0000_1000
_ARGUMENTS = (arm.UC_ARM_REG_R0, arm.UC_ARM_REG_R1, arm.UC_ARM_REG_R2, arm.UC_ARM_REG_R3)
_FUNCTION = 2


def build(kind: str, core: str, sources: Sequence[Path], out: Path, level: str = "-O3") -> Path:
    """Gives an ELF file of the sources for a core, m3, m4 or m7, made by a compiler of that kind, gcc or zig."""
    compiler = toolchain.firmware_compiler(kind)
    target = toolchain.CORES[f"cortex-{core}"]
    flags = (*(target.gcc if kind == "gcc" else (*target.zig, "-fno-unwind-tables", "-fno-sanitize=all")), level)
    place = f"-Wl,-Ttext={CODE:#x}" if kind == "gcc" else f"-Wl,--image-base={CODE:#x},--no-gc-sections"
    files = (*sources, DEVICE / "tests" / "head" / "bare.c")
    command = [*compiler.command, *flags, *STRICT, *BARE, "-fno-builtin", "-I", DEVICE / "include", "-o", out, *files]
    subprocess.run([*command, place, "-Wl,-e,memset", "-lgcc" if kind == "gcc" else "-rtlib=compiler-rt"], check=True)
    return out


class Machine:
    """A Cortex-M with a program in it, whose functions can be called with integers and arrays."""

    def __init__(self, program: Path, core: str, counts: bool = False) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self.uc.ctl_set_cpu_model(MODELS[core])
        for at, size in ((0, 0x10_0000), (DATA, 0x80_0000), (STACK, 0x1_0000)):
            self.uc.mem_map(at, size)
        image = elf.read(program.read_bytes())
        for segment in image.segments:
            if segment.data:
                self.uc.mem_write(segment.address, segment.data)
        self.functions = {s.name: s.address for s in image.symbols if s.kind == _FUNCTION and s.section}
        ordered = sorted((at & ~1, name) for name, at in self.functions.items())
        self._starts, self._names = [at for at, _ in ordered], [name for _, name in ordered]
        self.counts: Counter[str] = Counter()
        self._blocks: dict[tuple[int, int], tuple[str, int]] = {}
        if counts:
            self.uc.hook_add(unicorn.UC_HOOK_BLOCK, self._block)

    def call(self, name: str, *values: int | Array) -> int:
        """Calls a function. The arrays hold afterwards what the device's memory holds. Gives register 0."""
        place, arrays, words = DATA, [], []
        for value in values:
            if isinstance(value, int):
                words.append(value)
                continue
            self.uc.mem_write(place, value.tobytes())
            arrays.append((place, value))
            words.append(place)
            place += -(-value.nbytes // 16) * 16
        for register, word in zip(_ARGUMENTS, words, strict=False):
            self.uc.reg_write(register, word)
        rest = words[4:] + [0] * (len(words[4:]) % 2)
        stack = STACK + 0x1_0000 - 4 * len(rest) - 64
        self.uc.mem_write(stack, struct.pack(f"<{len(rest)}I", *rest))
        self.uc.reg_write(arm.UC_ARM_REG_SP, stack)
        self.uc.reg_write(arm.UC_ARM_REG_LR, STOP | 1)
        self.uc.emu_start(self.functions[name] | 1, STOP)
        for at, value in arrays:
            value.reshape(-1).view("u1")[:] = bytearray(self.uc.mem_read(at, value.nbytes))
        return int(self.uc.reg_read(arm.UC_ARM_REG_R0))

    def _block(self, uc: Any, at: int, size: int, data: object) -> None:
        if (at, size) not in self._blocks:
            name = self._names[bisect.bisect_right(self._starts, at) - 1]
            self._blocks[at, size] = (name, _instructions(bytes(uc.mem_read(at, size))))
        name, num = self._blocks[at, size]
        self.counts[name] += num


def _instructions(code: bytes) -> int:
    """Gives the number of Thumb instructions, each of one halfword or two."""
    words = struct.unpack(f"<{len(code) // 2}H", code)
    place = num = 0
    while place < len(words):
        place += 2 if words[place] >> 11 in (0b11101, 0b11110, 0b11111) else 1
        num += 1
    return num
