"""What the device runtime itself takes of a board, before any model: code, static memory, stack.

The figures are those of the firmware that `devices.toolchain` builds for a core with every operator, the link and its
seal; a test builds it again and compares. Regenerate with `python -m midhaul.devices.footprint`.
"""

from __future__ import annotations

from typing import NamedTuple


class Footprint(NamedTuple):
    """Bytes of flash of code and constants; bytes of SRAM of static memory; bytes of SRAM kept for the stack."""

    code_bytes: int
    static_bytes: int
    stack_bytes: int


PAGE_BYTES = 4096  # the smallest piece of flash that the ports erase
COMMIT_BYTES = 16

# estimate: cores that the runtime isn't built for are taken as a Cortex-M4F.
_OTHERS = "Cortex-M4F"

FOOTPRINTS: dict[str, Footprint] = {
    "Cortex-M4F": Footprint(32 * 1024, 2 * 1024, 2 * 1024),
}


_PACKINGS = {"Cortex-M4F": 1, "Cortex-M7": 1, "Cortex-M33": 1, "Cortex-M55": 2}  # enum mh_packing: DSP, MVE


def packing(core: str) -> int:
    """Gives how int8 weights are packed for a core; 0, plain, where it has neither DSP instructions nor MVE."""
    return _PACKINGS.get(core, 0)


def of(core: str) -> Footprint:
    """Gives the footprint on a core, as `profiles.Board.core` names it."""
    return FOOTPRINTS.get(core, FOOTPRINTS[_OTHERS])


def slots_bytes(blob_bytes: int) -> int:
    """Gives the flash of the two slots for a blob, one in use and one for the next: whole pages each."""
    return 2 * (-(-(blob_bytes + COMMIT_BYTES) // PAGE_BYTES) * PAGE_BYTES)
