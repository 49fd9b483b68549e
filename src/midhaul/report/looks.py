"""How a report looks: a colour, a dash and a marker for each scheme, and colours for what crosses the link."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from midhaul.report.groups import Group


@dataclass(frozen=True)
class Style:
    """How one scheme is drawn: a colour, and a dash and a marker that tell it apart without colour.

    `dash` is on-off lengths in points, empty for a solid line.
    """

    colour: str
    marker: str
    dash: tuple[float, ...] = ()


# The first eight keep apart in the eyes of people with any of the three colour blindnesses; the others lean on dash and
# marker as well. A scheme keeps its style in every report.
STYLES: dict[str, Style] = {
    "local": Style("#666666", "s", (2, 1.5)),
    "pooled": Style("#101010", "D", (6, 2)),
    "fedavg": Style("#0072B2", "o"),
    "fedprox": Style("#3E97D1", "v", (4, 1.5)),
    "transfer": Style("#C98600", "^"),
    "federated_transfer": Style("#C84E00", "s"),
    "split": Style("#009E73", "D"),
    "federated_split": Style("#CC6BA5", "v"),
    "fedadam": Style("#332288", "^", (5, 1.5, 1, 1.5)),
    "sparse_transfer": Style("#8F6B00", "o", (1, 1)),
    "offsite_tuning": Style("#A33B20", "v", (1, 1)),
    "fedbabu": Style("#6E3B5E", "s", (1, 1)),
    "fedper": Style("#882255", "o", (4, 1.5)),
    "fedrep": Style("#9C7A3C", "D", (5, 1.5, 1, 1.5)),
    "split_u": Style("#117733", "o", (2, 1.5)),
    "vertical": Style("#2E7F5B", "v", (1.5, 1.5)),
    "federated_split_v1": Style("#8E3FA8", "s", (4, 1.5)),
    "federated_split_v3": Style("#A64D79", "^", (4, 1.5)),
    "group_split": Style("#55782F", "s", (3, 1, 1, 1)),
    "cse_fsl": Style("#2F6F9F", "^", (1.5, 1.5)),
    "fedgkt": Style("#B5651D", "D", (4, 1.5)),
    "federated_split_mixed": Style("#B0487F", "o", (7, 1.5)),
    "heterofl": Style("#6A8F3C", "v", (7, 1.5)),
    "fedrolex": Style("#3F6F9F", "D", (7, 1.5)),
    "maml": Style("#84842B", "o", (9, 2)),
    "fomaml": Style("#6B6B16", "s", (9, 2)),
    "meta_sgd": Style("#9A7D0A", "D", (9, 2)),
    "anil": Style("#4F7A1F", "^", (9, 2)),
    "reptile": Style("#2F7D5B", "v", (9, 2)),
    "per_fedavg": Style("#A8483E", "o", (9, 2, 3, 2)),
    "per_fedavg_hf": Style("#8C2F4B", "s", (9, 2, 3, 2)),
    "pfedme": Style("#5A3E99", "D", (9, 2, 3, 2)),
    "split_lora": Style("#6A7F10", "v", (9, 2, 3, 2)),
    "fedit": Style("#2A8F88", "^", (7, 1.5, 2, 1.5)),
    "flora": Style("#0B6E69", "o", (7, 1.5, 2, 1.5)),
    "flexlora": Style("#5AA9A3", "D", (7, 1.5, 2, 1.5)),
    "fedkseed": Style("#7B4B94", "s", (7, 1.5, 2, 1.5)),
    "fedmkt": Style("#A0446E", "s", (7, 1.5, 2, 1.5, 2, 1.5)),
    "hetlora": Style("#476F3A", "v", (7, 1.5, 2, 1.5)),
    "feddf": Style("#1B7F79", "v", (3, 1.5, 1, 1.5, 1, 1.5)),
    "fedmd": Style("#7F3C8D", "o", (3, 1.5, 1, 1.5, 1, 1.5)),
    "co_learning": Style("#D1495B", "D", (3, 1.5, 1, 1.5, 1, 1.5)),
    "co_learning_logits": Style("#E07A5F", "^", (3, 1.5, 1, 1.5, 1, 1.5)),
}
_SPARE: tuple[Style, ...] = (
    Style("#7A5195", "D", (3, 1, 1, 1)),
    Style("#4E79A7", "s", (3, 1, 1, 1)),
    Style("#A0522D", "v", (1.5, 1.5)),
    Style("#3B6B4B", "^", (3, 1, 1, 1)),
    Style("#B0307A", "o", (1.5, 1.5)),
    Style("#5C5C8A", "D", (1.5, 1.5)),
    Style("#8A6D00", "o", (3, 1, 1, 1)),
)

# The gates of a cascade.
GATE_STYLES: dict[str, Style] = {
    "probability": Style("#0072B2", "o"),
    "entropy": Style("#C84E00", "s", (5, 1.5)),
    "margin": Style("#009E73", "D", (2, 1.5)),
    "learned": Style("#882255", "^", (5, 1.5, 1, 1.5)),
}

# What tells of the model is blue; what a person could read is warm and hatched.
KIND_COLOURS: dict[str, str] = {
    "weights": "#B3CDE3",
    "gradients": "#6BAED6",
    "activations": "#2171B5",
    "logits": "#08306B",
    "labels": "#F0A202",
    "examples": "#B3261E",
    "header": "#E3E3E3",
}
KIND_HATCHES: dict[str, str] = {"labels": "////", "examples": "xxxx"}

# Outlines of the markers in a box from -4 to 4, for legends.
MARKER_PATHS: dict[str, str] = {
    "o": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "s": "M-3.6,-3.6H3.6V3.6H-3.6z",
    "D": "M0,-4.6L4.6,0L0,4.6L-4.6,0z",
    "^": "M0,-4.2L4.4,3.6H-4.4z",
    "v": "M0,4.2L4.4,-3.6H-4.4z",
}


def styles(groups: Iterable[Group]) -> dict[str, Style]:
    """Gives a style for each group's label: the first of a scheme has the scheme's own, the others a spare one."""
    given: dict[str, Style] = {}
    for group in groups:
        own = STYLES.get(group.scheme)
        given[group.label] = own if own and own not in given.values() else _spare(group.label, given)
    return given


def _spare(label: str, given: dict[str, Style]) -> Style:
    start = zlib.crc32(label.encode())
    order = [_SPARE[(start + step) % len(_SPARE)] for step in range(len(_SPARE))]
    unused = [style for style in (*order, *STYLES.values()) if style not in given.values()]
    return unused[0] if unused else order[0]
