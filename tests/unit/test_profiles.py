"""Boards: every figure is there, in range and has a source."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from midhaul.devices.profiles import BOARDS, FIGURES, Board, get
from midhaul.errors import ConfigError
from midhaul.link.radio import RADIOS, Radio

DOCS = Path(__file__).parents[2] / "docs" / "boards.md"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_figure_of_a_board_is_in_range_and_has_a_source(board: Board) -> None:
    assert BOARDS[board.name] is board
    optional = {"external_bytes": board.external_bytes > 0, "battery_j": board.battery_j < math.inf}
    assert set(board.sources) == set(FIGURES) | {name for name, there in optional.items() if there}
    assert all(len(source) > 20 or source.startswith("estimate") for source in board.sources.values())
    for figure in FIGURES:
        assert math.isfinite(getattr(board, figure))
        assert getattr(board, figure) > 0
    assert 16e6 <= board.clock_hz <= 3e9
    assert board.sleep_w < board.active_w
    assert board.sram_bytes <= board.flash_bytes
    assert board.radio in RADIOS


def test_a_core_without_an_fpu_pays_for_it() -> None:
    for board in BOARDS.values():
        assert (board.cycles_per_mac_f32 > 50) is not board.fpu
        assert board.cycles_per_mac_s8 < board.cycles_per_mac_f32


def test_there_is_a_board_of_each_class() -> None:
    cores = {board.core for board in BOARDS.values()}
    assert cores >= {"Cortex-M0+", "Cortex-M3", "Cortex-M4F", "Cortex-M7", "Cortex-M33", "Cortex-M55", "Cortex-A72"}
    assert len(BOARDS) >= 8


def test_the_figures_of_the_default_board() -> None:
    board = get("stm32l4")
    assert (board.flash_bytes, board.sram_bytes) == (262_144, 65_536)
    assert board.active_w == pytest.approx(22.176e-3)  # 84 uA/MHz x 80 MHz x 3.3 V


def test_seconds_and_joules_of_a_million_macs_by_hand() -> None:
    board = get("stm32l4")
    assert board.seconds(10**6) == pytest.approx(5.87e6 / 80e6)
    assert board.joules(10**6) == pytest.approx(0.073375 * 22.176e-3)
    assert board.seconds(0) == 0.0


def test_an_unknown_board_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no board 'stm32l5'; did you mean 'stm32l\d'\?"):
        get("stm32l5")


def watts(power_w: float) -> str:
    """Gives a power with three digits."""
    for size, unit in ((1.0, "W"), (1e-3, "mW"), (1e-6, "uW")):
        if power_w >= size:
            return f"{power_w / size:.3g} {unit}"
    return "0"


def board_row(board: Board) -> str:
    """Gives the board's row of the table in docs/boards.md."""
    cells = [
        f"`{board.name}`",
        board.title,
        board.core,
        f"{board.clock_hz / 1e6:g} MHz",
        f"{board.flash_bytes // 1024:,} KiB",
        f"{board.sram_bytes // 1024:,} KiB",
        watts(board.active_w),
        watts(board.sleep_w),
        f"{board.cycles_per_mac_f32:g}",
        f"{board.cycles_per_mac_s8:g}",
        f"`{board.radio}`",
    ]
    return f"| {' | '.join(cells)} |"


def radio_row(radio: Radio) -> str:
    """Gives the radio's row of the table in docs/boards.md."""
    rates = [f"{rate:,.0f}" if math.isfinite(rate) else "unlimited" for rate in (radio.up_bps, radio.down_bps)]
    powers = [watts(power) for power in (radio.tx_w, radio.rx_w)]
    cells = [f"`{radio.name}`", *rates, f"{radio.delay_s:g} s", f"{radio.loss:g}", *powers]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("row", [*map(board_row, BOARDS.values()), *map(radio_row, RADIOS.values())])
def test_the_documented_figures_are_those_of_the_code(row: str) -> None:
    assert row in DOCS.read_text(encoding="utf-8").splitlines()
