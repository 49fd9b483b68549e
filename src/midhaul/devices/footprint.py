"""What the device runtime itself takes of a board, before any model: code, static memory, stack.

The figures are those of the firmware that `devices.toolchain` builds for a core with every operator, the link and its
seal, by the compilers named; a test builds it again and compares. `python -m benchmarks.footprints` measures them anew.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE_BYTES = 4096  # the smallest piece of flash that the ports erase
COMMIT_BYTES = 16  # the record at the end of a slot that makes its blob the valid one
COMPILERS = {"gcc": "arm-none-eabi-gcc 12.2.1", "zig": "zig 0.17.1"}
DEFAULT = "gcc"


class Footprint(NamedTuple):
    """Bytes of flash up to the first slot, in whole pages; bytes of SRAM of static memory; those kept for the stack."""

    code_bytes: int
    static_bytes: int
    stack_bytes: int


# measured: by python -m benchmarks.footprints
FOOTPRINTS: dict[tuple[str, str], Footprint] = {
    ("gcc", "Cortex-M0+"): Footprint(73728, 1584, 3072),
    ("gcc", "Cortex-M3"): Footprint(61440, 1584, 3072),
    ("gcc", "Cortex-M33"): Footprint(57344, 1584, 3072),
    ("gcc", "Cortex-M4F"): Footprint(57344, 1584, 3072),
    ("gcc", "Cortex-M55"): Footprint(57344, 1584, 3072),
    ("gcc", "Cortex-M7"): Footprint(57344, 1584, 3072),
    ("zig", "Cortex-M0+"): Footprint(65536, 1584, 3072),
    ("zig", "Cortex-M3"): Footprint(65536, 1584, 3072),
    ("zig", "Cortex-M33"): Footprint(65536, 1584, 3072),
    ("zig", "Cortex-M4F"): Footprint(65536, 1584, 3072),
    ("zig", "Cortex-M55"): Footprint(57344, 1584, 3072),
    ("zig", "Cortex-M7"): Footprint(65536, 1584, 3072),
}
# end

_OTHERS = "Cortex-M4F"  # estimate: a core that the runtime isn't built for is taken as this one
_PACKINGS = {"Cortex-M4F": 1, "Cortex-M7": 1, "Cortex-M33": 1, "Cortex-M55": 2}  # enum mh_packing: DSP, MVE


def of(core: str, compiler: str = DEFAULT) -> Footprint:
    """Gives the footprint on a core, as `profiles.Board.core` names it, built by gcc or zig."""
    return FOOTPRINTS.get((compiler, core), FOOTPRINTS[compiler, _OTHERS])


def packing(core: str) -> int:
    """Gives how int8 weights are packed for a core; 0, plain, where it has neither DSP instructions nor MVE."""
    return _PACKINGS.get(core, 0)


def slots_bytes(blob_bytes: int) -> int:
    """Gives the flash of the two slots for a blob, one in use and one for the next: whole pages each."""
    return 2 * (-(-(blob_bytes + COMMIT_BYTES) // PAGE_BYTES) * PAGE_BYTES)
