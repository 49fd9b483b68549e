"""The cell of a run, as a report reads it and tells of it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midhaul.errors import CheckpointError

MAX_DEVICES = 100_000


@dataclass(frozen=True)
class CellMap:
    """What a run wrote of its cell in cell.json, by device: where it is, how well it hears, and how fast it is alone.

    Units: metres, decibels, bits a second, each way with the whole band of its cell to itself.
    """

    kind: str
    inter_site_m: float
    sites: tuple[tuple[float, float], ...]
    num_devices: int  # in the cell; of very many only the first are written
    x: tuple[float, ...]
    y: tuple[float, ...]
    indoors: tuple[bool, ...]
    served: tuple[bool, ...]
    ratio_db: tuple[float, ...]
    up_bps: tuple[float, ...]
    down_bps: tuple[float, ...]

    @property
    def num_unserved(self) -> int:
        """How many of the written devices have no coverage."""
        return self.served.count(False)


def read(table: object, where: str) -> CellMap:
    """Gives the cell of a JSON table. Raises: CheckpointError naming what isn't as a run writes it."""

    def wrong(name: str) -> CheckpointError:
        return CheckpointError(f"{where}: {name!r} isn't as a run writes it; repeat that run, or delete this file")

    if not isinstance(table, dict):
        raise wrong("the whole")

    def column(name: str, low: float, high: float) -> tuple[float, ...]:
        values = table.get(name)
        if not isinstance(values, list) or len(values) > MAX_DEVICES:
            raise wrong(name)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for v in values):
            raise wrong(name)
        return tuple(float(value) for value in values)

    def flags(name: str) -> tuple[bool, ...]:
        values = table.get(name)
        if not isinstance(values, list) or not all(isinstance(value, bool) for value in values):
            raise wrong(name)
        return tuple(values)

    far = 1e7
    kind, apart, num = table.get("kind"), table.get("inter_site_m"), table.get("num_devices")
    if kind not in ("umi", "uma"):
        raise wrong("kind")
    if not isinstance(apart, float) or not 0.0 < apart <= far:
        raise wrong("inter_site_m")
    east, north = column("site_x", -far, far), column("site_y", -far, far)
    columns = (column("x", -far, far), column("y", -far, far), flags("indoors"), flags("served"))
    numbers = (column("ratio_db", -400.0, 400.0), column("up_bps", 0.0, 1e13), column("down_bps", 0.0, 1e13))
    if len({len(each) for each in (*columns, *numbers)}) != 1 or len(east) != len(north) or not east:
        raise wrong("x")
    if not isinstance(num, int) or num < len(columns[0]):
        raise wrong("num_devices")
    return CellMap(kind, apart, tuple(zip(east, north, strict=True)), num, *columns, *numbers)


def about(cell: CellMap) -> str:
    """Says of a cell what the pictures can't."""
    served = [ratio for ratio, there in zip(cell.ratio_db, cell.served, strict=True) if there]
    streets = "in street canyons" if cell.kind == "umi" else "above the roofs"
    told = (
        f"{cell.num_devices:,} devices are in a cell {streets}, with base stations {cell.inter_site_m:g} m apart. "
        f"{100 * sum(cell.indoors) / max(len(cell.indoors), 1):.0f} % are indoors."
    )
    if served:
        told += f" The median ratio of signal to noise and interference is {float(np.median(served)):.1f} dB."
    if cell.num_unserved:
        told += f" {cell.num_unserved:,} have no coverage and never answer."
    return told


def rows(cell: CellMap) -> Sequence[Sequence[str]]:
    """Gives quantiles of the devices' ratios and rates, a line for each."""
    lines = []
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        ratio, up, down = (float(np.quantile(v, share)) for v in (cell.ratio_db, cell.up_bps, cell.down_bps))
        lines.append([f"{share:.0%}", f"{ratio:.1f}", f"{up / 1e6:.3f}", f"{down / 1e6:.3f}"])
    return lines
