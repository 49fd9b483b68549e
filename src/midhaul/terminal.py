"""What a person sees in a terminal: tables that line up, and what is done, at which rate, until when."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

from midhaul import logs
from midhaul.sentences import Sentence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 80) -> str:
    """Gives aligned text of at most `width` columns; the last column is folded under itself, figures lean right."""
    cells = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    right = [
        all(row[place].lstrip("~")[:1].isdigit() or row[place] in ("-", "") for row in cells[1:])
        for place in range(len(columns))
    ]
    used = sum(widths[:-1]) + 2 * (len(widths) - 1)
    widths[-1] = max(8, min(widths[-1], width - used))
    lines = []
    for number, row in enumerate(cells):
        folded = _fold(row[-1], widths[-1])
        first = [cell.rjust(w) if lean else cell.ljust(w) for cell, w, lean in zip(row, widths, right, strict=True)][
            :-1
        ]
        last = folded[0].rjust(widths[-1]) if right[-1] else folded[0]
        lines.append("  ".join([*first, last]).rstrip())
        lines += [" " * (used) + part for part in folded[1:]]
        if number == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _fold(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


class Screen:
    """Lines that are shown again and again: where it is `live` and a terminal in one place, else below each other."""

    def __init__(self, live: bool) -> None:
        self.live, self.has_shown = live and sys.stdout.isatty(), False

    def show(self, lines: Sequence[str]) -> None:
        if self.live:
            # From the top, each line to its end, then all below: nothing flickers.
            start = "\033[H" if self.has_shown else "\033[H\033[2J"
            print(start + "".join(f"{line}\033[K\n" for line in lines) + "\033[J", end="", flush=True)
        else:
            print(("\n" if self.has_shown else "") + "\n".join(lines), flush=True)
        self.has_shown = True


class Progress:
    """Shows what is done, its rate and the time left, on the error stream; what it is told goes to the log as well."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.title = ""
        self.bar: Any = None
        self.label = ""
        self.told: set[str] = set()
        self.lock = threading.RLock()  # what happens to gateways is told from other threads

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self.quiet:
            with self.lock:
                self._show(label, done, total)

    def _show(self, label: str, done: int, total: int) -> None:
        if self.bar is None or label != self.label or done < self.bar.n:
            self._close()
            if self.title:
                print(self.title, file=sys.stderr)
                self.title = ""
            from tqdm import tqdm

            live = sys.stderr.isatty()
            self.bar = tqdm(
                total=total,
                desc=f"  {label}",
                file=sys.stderr,
                mininterval=0.2 if live else 15.0,
                ncols=80,
                leave=True,
                initial=0,
            )
            self.label = label
        self.bar.update(done - self.bar.n)
        if done == total:
            self._close()

    def tell(self, line: str) -> None:
        """Shows a sentence, unless it is a detail; a note that was shown before (a licence, say) isn't shown again."""
        with self.lock:
            logs.tell(line)
            event, level = (line.event, line.level) if isinstance(line, Sentence) else ("note", "info")
            if self.quiet or level == "detail" or (line in self.told and event == "note"):
                return
            self.told.add(line)
            self._close()
            if self.title:
                print(self.title, file=sys.stderr)
                self.title = ""
            print(f"  {line}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
