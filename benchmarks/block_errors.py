"""Makes src/midhaul/link/block_errors.py from the tables that come with sionna-no-rt (extra `radio`).

    python -m benchmarks.block_errors > src/midhaul/link/block_errors.py

It simulates what the tables lack: QPSK at the mother code's rate of 1/5, which NR repeats for MCS 0 to 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HEAD = '''"""How often a code block is lost by the ratio of signal to noise, for each modulation and coding scheme.

Made by `python -m benchmarks.block_errors` from the tables of sionna-no-rt 2.2.0 (Copyright (c) 2021-2026 NVIDIA
CORPORATION & AFFILIATES, Apache-2.0): simulations of NR's LDPC code over white noise, PDSCH, tables 1 and 2. The curves
at rate 1/5 were simulated with its encoder and decoder. Don't edit.

A curve is `first: c, c, ...`: c is -100 log10 of the share lost at point `first` of the grid and those after it; before
it all are lost, and behind the last none of some thousand were. There is one for each size in SIZES.
"""

from __future__ import annotations

SIZES = (24, 100, 500, 1000, 2000)  # bits of a code block
'''


def curve(lost: list[float]) -> str:
    """Gives a curve as text."""
    share = np.asarray(lost)
    first = int(np.flatnonzero(share < 0.9999)[0])
    last = int(np.flatnonzero(share > 0.0)[-1])
    # A few curves of 24 bits rise again by less than the simulation is certain of; a longer way up can't be worse.
    falling = np.minimum.accumulate(share)
    codes = [str(round(-100.0 * np.log10(max(value, 1e-5)))) for value in falling[first : last + 1]]
    return f"{first}:{','.join(codes)}"


def fifth_rate(grid: list[float]) -> list[str]:
    """Simulates QPSK at rate 1/5 on white noise, each size until so many blocks were sent.

    Longer blocks take the curve of 500 bits: in the tables those of schemes 3 and 4 lie within 0.3 dB of it.
    """
    import torch
    from sionna.phy import config
    from sionna.phy.nr.utils import CodedAWGNChannelNR

    config.seed = 1
    found = []
    for size, num_blocks in ((24, 2000), (100, 2000), (500, 600)):
        channel = CodedAWGNChannelNR()
        channel.num_bits_per_symbol, channel.num_info_bits, channel.target_coderate = 2, size, 0.2
        shares: list[float] = []
        for db in grid:
            lost, sent = 0, 0
            # Where the first hundred are all lost, or those at the ratio before all came, the rest will be too.
            while sent < num_blocks and not (sent and lost == sent) and not (shares and shares[-1] == 0.0):
                was, came = channel(100, torch.tensor(db - 10 * np.log10(2 * 0.2), dtype=torch.float32))
                lost, sent = lost + int((was != came).any(dim=-1).sum()), sent + 100
            shares.append(lost / max(sent, 1))
            print(size, round(db, 2), shares[-1], file=sys.stderr, flush=True)
        found.append(curve(shares))
    return [*found, found[-1], found[-1]]


def main() -> None:
    """Prints the module."""
    import sionna.sys

    folder = Path(sionna.sys.__file__).parent / "bler_tables"
    print(HEAD)
    for table in (1, 2):
        whole = json.loads((folder / f"PDSCH_table{table}.json").read_text())
        schemes = whole["category"]["1"]["index"][str(table)]["MCS"]
        grid = next(iter(schemes.values()))["SNR_db"]
        print(f"GRID_{table} = ({grid[0]!r}, {grid[-1]!r}, {len(grid)})  # decibels: first, last, points")
        print(f"CURVES_{table} = {{")
        for number, scheme in schemes.items():
            curves = " ".join(curve(scheme["CBS"][size]["BLER"]) for size in ("24", "100", "500", "1000", "2000"))
            print(f'    {number}: "{curves}",')
        print("}")
    step = 25.0 / 14.0
    grid = [-5.0 + step * place for place in range(-1, 4)]
    print(f"GRID_FIFTH = ({grid[0]!r}, {grid[-1]!r}, {len(grid)})")
    print(f'FIFTH = "{" ".join(fifth_rate(grid))}"')


if __name__ == "__main__":
    main()
