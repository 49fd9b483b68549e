"""Pieces of an HTML page that needs nothing but itself: the page around them, tables, figures, legends."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from midhaul.report.css import CSS
from midhaul.report.looks import MARKER_PATHS, Style

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HATCH_LINES = {
    "/": "M-8,6L4,-6M-2,6L10,-6M-14,6L-2,-6",
    "x": "M-8,6L4,-6M-2,6L10,-6M-14,6L-2,-6M8,6L-4,-6M2,6L-10,-6M14,6L2,-6",
}


def whole(title: str, parts: Sequence[str], foot: str) -> str:
    """Gives the page around parts that are HTML already; title and foot are text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{_e(title)}: midhaul</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n<h1>{_e(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<footer>{_e(foot)}</footer>\n</main>\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], words: tuple[int, ...]) -> str:
    """Gives a table of cells that are HTML already; the columns in `words` lean left, figures lean right."""

    def cells(row: Sequence[str], tag: str) -> str:
        lean = [' class="t"' if place in words else "" for place in range(len(row))]
        return "".join(f"<{tag}{how}>{cell}</{tag}>" for how, cell in zip(lean, row, strict=True))

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(svg: str, caption: str) -> str:
    """Gives a picture with what it shows beneath."""
    return f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Gives a line of texts, each behind its mark, which is HTML."""
    return f'<div class="legend">{"".join(f"<span>{mark}{_e(text)}</span>" for text, mark in entries)}</div>'


def label(text: str, looks: Mapping[str, Style]) -> str:
    """Gives a group's label behind its mark."""
    return f"{swatch(looks[text])}{_e(text)}"


def swatch(look: Style, line: bool = True) -> str:
    """Gives how something is drawn: a piece of its line, if it has one, under its marker."""
    dash = f' stroke-dasharray="{" ".join(f"{2 * step:g}" for step in look.dash)}"' if look.dash else ""
    path = f'<path d="M-17,0H17" stroke="{look.colour}" stroke-width="2.4"{dash}/>' if line else ""
    box = "-17 -6 34 12" if line else "-6 -6 12 12"
    return (
        f'<svg class="key" viewBox="{box}" aria-hidden="true">{path}'
        f'<path d="{MARKER_PATHS[look.marker]}" fill="{look.colour}" stroke="#fff"/></svg>'
    )


def block(colour: str, hatches: str) -> str:
    """Gives a filled box, hatched as matplotlib hatches."""
    hatch = _HATCH_LINES.get(hatches[:1])
    over = f'<path d="{hatch}" stroke="#fff" stroke-width="1"/>' if hatch else ""
    return (
        f'<svg class="key" viewBox="-9 -6 18 12" aria-hidden="true"><rect x="-9" y="-6" width="18" height="12" '
        f'fill="{colour}"/>{over}</svg>'
    )


_e = html.escape
