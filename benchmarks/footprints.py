"""Measures what the device runtime takes on each core, and writes it into devices/footprint.py.

Run: python -m benchmarks.footprints [gcc|zig ...]
Builds the firmware with each compiler that is named, or else installed, and prints flash and SRAM by part.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from midhaul.devices import footprint, profiles, toolchain
from midhaul.devices.footprint import Footprint


def measured(compiler: str, core: str) -> tuple[Footprint, toolchain.Image]:
    """Gives the footprint of the firmware that a compiler builds for a core, and the image."""
    image = toolchain.build(core, compiler=toolchain.firmware_compiler(compiler))
    flash = image.symbols["mh_slot0"] - toolchain.CORES[core].flash_at
    return Footprint(flash, image.ram["data"] + image.ram["bss"], image.ram["stack"]), image


def main() -> None:
    """Measures, prints and writes."""
    table = dict(footprint.FOOTPRINTS)
    for compiler in sys.argv[1:] or ("gcc", "zig"):
        for core in toolchain.CORES:
            found, image = measured(compiler, core)
            name = profiles.get(toolchain.CORES[core].board).core
            table[compiler, name] = found
            largest = sorted(image.parts.items(), key=lambda part: -part[1])[:4]
            parts = ", ".join(f"{part} {size:,}" for part, size in largest)
            print(f"{compiler}  {name:<11}  flash {found.code_bytes:>7,}  static {found.static_bytes:>6,}  {parts}")
    rows = "".join(f'    ("{kind}", "{core}"): {values},\n' for (kind, core), values in sorted(table.items()))
    rows = re.sub(r"\w+_bytes=", "", rows)
    path = Path(footprint.__file__)
    text = re.sub(r"(?s)(FOOTPRINTS: [^{]*\{\n).*?(\}\n# end)", lambda m: m[1] + rows + m[2], path.read_text())
    path.write_text(text)


if __name__ == "__main__":
    main()
