"""Whether a tiny model fits a board, and what each op costs there: the sheet behind `midhaul size`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from midhaul import budget
from midhaul.budget import Budget
from midhaul.data import load
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, ModelError, nearest
from midhaul.message import Op
from midhaul.models import count, tiny
from midhaul.models.prepare import prepare
from midhaul.units import format_bytes, format_joules, format_seconds

_PUBLISHED = ((6, 128), 6)  # the inertial windows of `har`, for models without a published input of their own


@dataclass(frozen=True)
class Sheet:
    """What `midhaul size` shows: a heading, a row an op, and a verdict."""

    model: str
    board: Board
    shape: tuple[int, ...]
    parameters: int
    macs: int
    budgets: tuple[tuple[str, Budget], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of the columns: instructions where any op's are predicted, else MACs."""
        return ("op", "SRAM", "flash", "instr" if self._counts else "MACs", "time", "energy", "air", "fits")

    @property
    def _counts(self) -> bool:
        return any(need.instructions is not None for _, need in self.budgets)

    @property
    def heading(self) -> str:
        """One line of what is measured against what."""
        shape = "x".join(str(size) for size in self.shape)
        return (
            f"{self.model} on {shape}: {self.parameters:,} parameters, {self.macs:,} MACs an example\n"
            f"{self.board.name} has {format_bytes(self.board.sram_bytes)} SRAM, "
            f"{format_bytes(self.board.flash_bytes)} flash"
        )

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row an op, for one example."""
        return [
            (
                name,
                format_bytes(need.sram_bytes),
                format_bytes(need.flash_bytes),
                self._work(need),
                format_seconds(need.seconds),
                format_joules(need.joules),
                format_bytes(need.air.up_bytes + need.air.down_bytes),
                "yes" if need.fits else f"+{format_bytes(need.over_sram_bytes or need.over_flash_bytes)}",
            )
            for name, need in self.budgets
        ]

    def _work(self, need: Budget) -> str:
        if not self._counts:
            return _short(need.macs)
        return "-" if need.instructions is None else _short(need.instructions)

    @property
    def basis(self) -> str:
        """One sentence: what the bytes are."""
        reasons = [need.estimate for _, need in self.budgets if need.estimate]
        if reasons:
            return f"Memory is an estimate: {reasons[0]}."
        known = all(need.instructions is not None for _, need in self.budgets)
        rest = (
            "instructions are predicted, time and energy follow from them" if known else "time and energy are estimates"
        )
        return f"Memory is what the device runtime takes, to the byte; {rest}."

    @property
    def verdict(self) -> str:
        """One sentence: what fits."""
        good = [name for name, need in self.budgets if need.fits]
        if len(good) == len(self.budgets):
            return f"Every op of {self.model} fits {self.board.name}."
        if not good:
            return f"No op of {self.model} fits {self.board.name}; choose a smaller model or a larger board."
        return f"{len(good)} of {len(self.budgets)} ops fit {self.board.name}: {', '.join(good)}."

    def to_table(self) -> dict[str, Any]:
        """Gives the sheet as plain values."""
        return {
            "model": self.model,
            "board": self.board.name,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "macs": self.macs,
            "ops": [
                {
                    "op": name,
                    "sram_bytes": need.sram_bytes,
                    "flash_bytes": need.flash_bytes,
                    "macs": need.macs,
                    "instructions": need.instructions,
                    "seconds": need.seconds,
                    "joules": need.joules,
                    "up_bytes": need.air.up_bytes,
                    "down_bytes": need.air.down_bytes,
                    "fits": need.fits,
                    "over_sram_bytes": need.over_sram_bytes,
                    "over_flash_bytes": need.over_flash_bytes,
                    "estimate": need.estimate,
                }
                for name, need in self.budgets
            ],
        }


def sheet(
    model: str,
    board: Board,
    *,
    data: str = "",
    shape: tuple[int, ...] = (),
    classes: int = 0,
    batch: int = 16,
    norm: str = "group",
) -> Sheet:
    """Gives the sheet of a tiny model on a board.

    The input is that of `data`, or `shape` with `classes`, or the one that the model was published with.
    Raises: MidhaulError for an unknown model or data set, ConfigError for a batch or a shape that can't be.
    """
    if batch < 1 or any(size < 1 for size in shape):
        raise ConfigError("--batch and every size in --shape must be at least 1")
    if data:
        found = load(data)
        shape, classes = shape or found.input_shape, classes or found.num_classes
    if model not in tiny.TINY:
        raise ModelError(f"there is no tiny model {model!r}{nearest(model, tiny.TINY)}")
    entry = tiny.TINY[model]
    shape = shape or entry.published_shape or _PUBLISHED[0]
    classes = classes or entry.published_classes or _PUBLISHED[1]
    module = prepare(tiny.build(model, shape, classes), shape, norm).module
    budgets = [("predict", budget.plan(module, shape, board, Op.PREDICT))]
    budgets += [(f"fit {name}", need) for name, need in budget.of_slices(module, shape, board, batch=batch).items()]
    budgets += [(f"cut {name}", need) for name, need in budget.of_cuts(module, shape, board, batch=batch).items()]
    layers = count.layers(module, shape)
    parameters = sum(value.numel() for value in module.parameters())
    return Sheet(model, board, shape, parameters, sum(layer.macs for layer in layers), tuple(budgets))


def _short(number: int) -> str:
    """Gives a count in at most 5 characters.

    >>> _short(640), _short(12_400), _short(2_656_768)
    ('640', '12k', '2.66M')
    """
    for size, suffix in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= size:
            unit = 1000 if suffix == "k" else size
            return (
                f"{number / unit:.0f}{suffix}"
                if number >= 100 * unit or suffix == "k"
                else f"{number / unit:.3g}{suffix}"
            )
    return str(number)
