"""Reports of runs: a table for the terminal, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import errno
import textwrap
from collections.abc import Sequence
from pathlib import Path

from midhaul.errors import MidhaulError
from midhaul.report import page, replans
from midhaul.report.groups import Gains, Row, read_studies
from midhaul.report.runs import Run
from midhaul.report.spent import ToTarget
from midhaul.units import format_bytes

__all__ = ["Row", "rows", "table", "write"]

WIDTH = 80
_HEADINGS = ("scheme", "accuracy %", "up", "down", "joules", "SRAM", "flash", "air s", "wall s")
_GAINS = ("scheme", "tiny: first %", "last %", "gain", "large: first %", "last %", "gain")
_TARGET = ("scheme", "to", "reached", "rounds", "seconds", "joules", "bytes")
_NOTE = """\
Mean over seeds +- standard deviation. Up, down, joules: all devices together.
SRAM, flash: one device. K = 1024 bytes."""


def rows(runs: Sequence[Path]) -> tuple[Row, ...]:
    """Gives a row for each scheme, in the order given, the data sets one after another.

    Runs of one scheme whose settings differ in more than the seed are rows of their own, and the label says so.
    Raises: MidhaulError in one sentence if a run folder is missing, unfinished or damaged.
    """
    return tuple(row for study in read_studies(runs) for row in study.rows())


def table(runs: Sequence[Path]) -> str:
    """Gives the rows as aligned text of at most 80 columns, a block for each data set."""
    blocks = []
    for study in read_studies(runs):
        lines = _aligned([_HEADINGS, *(_cells(row) for row in study.rows())])
        if gained := [_gain_cells(row.label, row.gains) for row in study.rows() if row.gains]:
            lines += ["", *_aligned([_GAINS, *gained])]
        if aimed := [_target_cells(row.label, row.to_target) for row in study.rows() if row.to_target]:
            lines += ["", *_aligned([_TARGET, *aimed])]
        if planned := [line for group in study.groups for run in group.runs for line in _planned(group.label, run)]:
            lines += ["", *planned]
        blocks.append("\n".join([f"data: {study.data}"[:WIDTH], *lines]))
    return "\n\n".join([*blocks, _NOTE])


def write(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report of these runs as one HTML file, and gives its path.

    The same runs give the same bytes. Raises: MidhaulError in one sentence if a run folder is damaged or if `out` can't
    be written.
    """
    studies = read_studies(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        out.write_text(page.page(studies), encoding="utf-8", newline="\n")
    except OSError as error:
        raise MidhaulError(f"the report can't be written to {out} ({error.strerror}); choose another path") from None
    return out


def _cells(row: Row) -> tuple[str, ...]:
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.1f}"
    if row.spread is not None:
        accuracy += f" +- {100 * row.spread:.1f}"
    sizes = (row.uplink_bytes, row.downlink_bytes)
    memory = (row.device_sram_bytes, row.device_flash_bytes)
    return (
        row.label,
        accuracy,
        *map(_short_bytes, sizes),
        _plain(row.device_joules),
        *map(_short_bytes, memory),
        _plain(row.air_seconds),
        _plain(row.wall_seconds),
    )


def _gain_cells(label: str, gains: Gains) -> tuple[str, ...]:
    shares = (gains.tiny_first, gains.tiny_last, gains.tiny, gains.large_first, gains.large_last, gains.large)
    shown = [f"{100 * share:.1f}" for share in shares]
    shown[2], shown[5] = f"{100 * gains.tiny:+.1f}", f"{100 * gains.large:+.1f}"
    return (label, *shown)


def _target_cells(label: str, cost: ToTarget) -> tuple[str, ...]:
    """Gives what an accuracy cost; seconds are simulated, joules and bytes those of all devices, means over seeds."""
    reached = f"{cost.num_reached} of {cost.num_seeds}"
    if cost.round is None or cost.seconds is None or cost.joules is None or cost.bytes is None:
        return (label, f"{100 * cost.accuracy:g} %", reached, "-", "-", "-", "-")
    told = (f"{cost.round:.0f}", _plain(cost.seconds), _plain(cost.joules), _short_bytes(cost.bytes))
    return (label, f"{100 * cost.accuracy:g} %", reached, *told)


def _planned(label: str, run: Run) -> list[str]:
    """Gives a line a new plan of a run that was held to limits: when, what ran short, what was changed."""
    lines = []
    for one in run.replans or ():
        kept = "" if one.kept else "; not kept even so"
        told = (
            f"{label}, seed {run.seed}, round {one.round}: {one.short} short; {'; '.join(replans.changes(one))}{kept}"
        )
        lines += textwrap.wrap(told, WIDTH, subsequent_indent="  ")
    return lines


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Gives a line for each row: the first column to the left, the others to the right, the label cut if it must be."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - len(gap) * (len(widths) - 1))
    lines = []
    for first, *others in cells:
        label = first if len(first) <= widths[0] else first[: widths[0] - 1] + "~"
        right = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append(gap.join([label.ljust(widths[0]), *right]).rstrip())
    return lines


def _short_bytes(num_bytes: float) -> str:
    number, unit = format_bytes(num_bytes).split()
    return number + unit[0]


def _plain(value: float) -> str:
    """Gives three digits or more, in at most seven characters."""
    if value >= 1e7 or 0.0 < value < 0.1:
        return f"{value:.2g}"
    return f"{value:.0f}" if value >= 100.0 or value == 0.0 else f"{value:.1f}" if value >= 10.0 else f"{value:.2f}"
