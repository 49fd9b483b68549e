"""Runs int8 kernels with MVE on QEMU's Cortex-M55 and counts their instructions."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cortex import BARE, DEVICE, STRICT

FUNCTIONS = [
    *("nops", "mh_packing", "mh_dense_s8", "mh_conv_s8", "mh_depthwise_s8", "mh_max_pool_s8", "mh_average_pool_s8"),
    *("mh_add_s8", "mh_dense_sizes_s8", "mh_conv_sizes_s8", "mh_depthwise_sizes_s8"),
]
CALLS, LOOPS = 0x7200_0000, 100_000
GCC = "-mcpu=cortex-m55 -mthumb -mfloat-abi=hard"
ZIG = "--target=thumb-freestanding-eabihf -mcpu=cortex_m55+mve_fp+fp_armv8d16 -fno-unwind-tables -fno-sanitize=all"
LINK = """
SECTIONS {
    .vectors 0 : { KEEP(*(.vectors)) KEEP(*(.vectors2)) }
    .text 0x70000000 : { *(.text* .rodata*) }
    .data 0x70800000 : { *(.data* .bss* COMMON) }
    /DISCARD/ : { *(.ARM.exidx* .ARM.extab* .comment .note*) }
}
"""


def missing(compiler: str) -> str:
    """Gives what this machine lacks for it, or nothing."""
    needed = ["qemu-system-arm", *(["arm-none-eabi-gcc"] if compiler == "gcc" else [])]
    return ", ".join(name for name in needed if not shutil.which(name))


class Helium:
    """A program of the kernels for a Cortex-M55, run with a list of calls at a time."""

    def __init__(self, compiler: str, sources: Sequence[Path], folder: Path, level: str = "-O3") -> None:
        self.folder, self.program = folder, folder / "calls.elf"
        script = folder / "calls.ld"
        script.write_text(LINK)
        command = ["arm-none-eabi-gcc", *GCC.split(" "), "-fno-tree-loop-distribute-patterns"]
        if compiler == "zig":
            command = [sys.executable, "-m", "ziglang", "cc", *ZIG.split(" "), "-fno-builtin"]
        files = [*sources, DEVICE / "tests" / "calls.c", DEVICE / "tests" / "head" / "bare.c"]
        flags = [level, *STRICT, *BARE, "-Wno-cast-function-type", "-I", str(DEVICE / "include")]
        tail = [f"-Wl,-T,{script}", "-Wl,-e,mh_calls_start", *(["-lgcc"] if compiler == "gcc" else [])]
        subprocess.run([*command, *flags, "-o", str(self.program), *map(str, files), *tail], check=True)

    def run(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[tuple[int, int]]:
        """Gives the result and the instructions of each call; arrays hold afterwards what memory holds."""
        calls = [("nops", [LOOPS]), *calls]
        place = CALLS + 8 + 48 * len(calls)
        head, body, arrays = bytearray(), bytearray(), []
        body += bytes(-place % 16)
        start = place
        for name, arguments in calls:
            words = []
            for value in arguments:
                if not isinstance(value, np.ndarray):
                    words.append(value & 0xFFFF_FFFF)
                    continue
                at = start + len(body)
                arrays.append((at, value))
                words.append(at)
                body += value.tobytes() + bytes(-value.nbytes % 16)
            head += struct.pack("<12I", FUNCTIONS.index(name), *words, *[0] * (11 - len(words)))
        whole = bytearray(struct.pack("<II", len(calls), 8 + len(head) + len(body))) + head + body
        (self.folder / "calls.bin").write_bytes(whole)
        out = self.folder / "calls.out"
        out.unlink(missing_ok=True)
        machine = ["qemu-system-arm", "-M", "mps3-an547", "-display", "none", "-serial", "none", "-monitor", "none"]
        more = ["-semihosting-config", "enable=on,target=native", "-icount", "shift=6", "-kernel", str(self.program)]
        loader = f"loader,file={self.folder / 'calls.bin'},addr={CALLS:#x},force-raw=on"
        subprocess.run([*machine, *more, "-device", loader], check=True, cwd=self.folder, timeout=300)
        back = out.read_bytes()
        for at, value in arrays:
            data = np.frombuffer(back, value.dtype, value.size, at - CALLS)
            if value.flags.writeable:
                value[...] = data.reshape(value.shape)
        found = [struct.unpack_from("<II", back, 8 + 48 * i + 36) for i in range(len(calls))]
        worth = 8 * LOOPS / found[0][1]
        return [(result, round(ticks * worth)) for result, ticks in found[1:]]
