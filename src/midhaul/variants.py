"""What each device of a fleet gets: its board, and the largest variant of the tiny model that fits it.

A variant is the model at a width, up to a cut, with adapters of a rank, or another model. A scheme says which of these
may differ (`Scheme.differs`); the config names the candidates, or deals them out itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from midhaul.budget import Budget
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError, ConfigError
from midhaul.models.slices import CutPoint

Needs = Callable[["Variant", Board], Budget]


@dataclass(frozen=True)
class Variant:
    """What of the model lies on a device."""

    width: float = 1.0
    cut: str = ""
    rank: int = 0
    model: str = ""

    @property
    def about(self) -> str:
        """What sets it apart, in a few words; nothing where nothing does."""
        told = [f"width {self.width:g}"] if self.width != 1.0 else []
        told += [f"cut {self.cut}"] if self.cut else []
        told += [f"rank {self.rank}"] if self.rank else []
        return ", ".join([self.model, *told] if self.model else told)


def names(text: str) -> list[str]:
    """Gives the boards that fleet.board names. Raises: ConfigError for one that isn't known."""
    return [profiles.get(part.partition("*")[0].strip()).name for part in text.split(",")]


def boards(text: str, num_devices: int) -> list[Board]:
    """Gives the board of each device. `a,b` cycles over the devices; `a*3,b*7` are the first three and the other seven.

    Raises: ConfigError for an unknown board, a count that is no number, or counts that don't add up.

    >>> [board.name for board in boards("stm32l4*2,nrf52840*1", 3)]
    ['stm32l4', 'stm32l4', 'nrf52840']
    """
    entries = [part.strip().partition("*") for part in text.split(",")]
    found = [profiles.get(name) for name in names(text)]
    counts = [count.strip() for _, sign, count in entries if sign]
    if not counts:
        return [found[device % len(found)] for device in range(num_devices)]
    if len(counts) < len(entries) or not all(count.isdigit() and int(count) for count in counts):
        raise ConfigError(f"fleet.board is {text!r}; write one, or A,B to go round, or A*3,B*7 with a count for each")
    if (total := sum(map(int, counts))) != num_devices:
        raise ConfigError(
            f"fleet.board names {total} boards and the data make {num_devices} devices; make the counts add up to "
            f"{num_devices}, or leave them out to go round"
        )
    return [board for board, count in zip(found, counts, strict=True) for _ in range(int(count))]


def candidates(config: Config, differs: str, cuts: Sequence[CutPoint] = ()) -> tuple[list[Variant], bool]:
    """Gives the variants that the config names, the largest first, and whether it deals them out itself, in turn."""
    cfg = config.scheme
    if differs == "width":
        dealt = cfg.width_mix or cfg.widths
        widths = _numbers("scheme.width_mix" if cfg.width_mix else "scheme.widths", dealt, 1.0)
        found = [Variant(width=value) for value in widths]
        return (found, True) if cfg.width_mix else (sorted(found, key=lambda v: -v.width), False)
    if differs == "rank":
        in_turn = cfg.rank_mix or str(config.tiny.lora_rank or "")  # one rank for all, if it is named
        dealt = in_turn or cfg.ranks
        ranks = _numbers("scheme.rank_mix" if cfg.rank_mix else "scheme.ranks", dealt, 1e6)
        if any(value != int(value) for value in ranks):
            raise ConfigError(f"a rank is a whole number, and one of {dealt!r} isn't")
        found = [Variant(rank=int(value)) for value in ranks]
        return (found, True) if in_turn else (sorted(found, key=lambda v: -v.rank), False)
    if differs == "cut":
        named = [name.strip() for name in cfg.cut.split(",") if name.strip()]
        return [Variant(cut=name) for name in named or [point.name for point in reversed(cuts)]], bool(named)
    if differs == "model":
        return [Variant(model=name.strip()) for name in config.tiny.model.split(",")], True
    return [Variant()], True


def deal(found: list[Variant], dealt: bool, held: Sequence[Board], needs: Needs, *, enforce: bool) -> list[Variant]:
    """Gives the variant of each device: in turn where they are dealt, else the largest that its board has room for.

    Raises: BudgetError if not even the smallest fits.
    """
    if dealt:
        return [found[device % len(found)] for device in range(len(held))]
    chosen: dict[str, Variant] = {}
    for board in held:
        if board.name in chosen:
            continue
        fits = partial(_fits, needs, board)
        best = next(filter(fits, found), None)
        if best is None and enforce:
            need = needs(found[-1], board)
            short = "SRAM" if need.over_sram_bytes else "flash"
            over = need.over_sram_bytes or need.over_flash_bytes
            raise BudgetError(
                f"not even the smallest variant ({found[-1].about}) fits {board.name}: {over:,} B of {short} over; "
                "choose a smaller model or a larger board"
            )
        chosen[board.name] = best or found[-1]
    return [chosen[board.name] for board in held]


def _fits(needs: Needs, board: Board, variant: Variant) -> bool:
    return needs(variant, board).fits


def _numbers(name: str, text: str, most: float) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0.0 < value <= most for value in values):
        raise ConfigError(f"{name} is {text!r}; write numbers above 0 and at most {most:g} with commas between them")
    return values
