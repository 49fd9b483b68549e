"""Boards: what a device has of flash, SRAM, clock and power, each figure with its source.

A source that begins with "estimate" is one; docs/boards.md says how the estimates were made. Cycles of a MAC are
instruction counts measured on real layer code (multiply, loads, loop and bias; 3.2 instructions forward and 4.2 for
each of the two backward products in float on a Cortex-M4) times the cycles that the core needs for an instruction.

Limits: one core, code and weights from flash without wait states, no accelerator, the figures of one temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from midhaul.errors import ConfigError, nearest


@dataclass(frozen=True)
class Board:
    """What a device can hold and what a MAC costs it.

    Units: `sram_bytes` is the largest stretch of RAM in one piece that a program can have; `active_w` the whole chip
    while it computes with the radio off; `sleep_w` the deepest sleep that keeps the RAM; cycles are of one core.
    `sources` says for each figure where it comes from.
    """

    name: str
    title: str
    core: str
    fpu: bool
    dsp: bool
    clock_hz: float
    flash_bytes: int
    sram_bytes: int
    active_w: float
    sleep_w: float
    cycles_per_mac_f32: float
    cycles_per_mac_s8: float
    radio: str
    sources: dict[str, str]
    external_bytes: int = 0  # flash of another chip on the board, for the rows that the device collects
    battery_j: float = math.inf  # of the cell that such a device usually has; without end where it has a supply

    def seconds(self, macs: int) -> float:
        """Gives the time of so many float MACs."""
        return macs * self.cycles_per_mac_f32 / self.clock_hz

    def joules(self, macs: int) -> float:
        """Gives the energy of so many float MACs: their time at `active_w`."""
        return self.seconds(macs) * self.active_w

    @property
    def cycles_per_instruction_f32(self) -> float:
        """Cycles of an instruction of float code, for a Cortex-M without MVE: those of a MAC over its instructions."""
        return self.cycles_per_mac_f32 / (_INSTRUCTIONS_F32 if self.fpu else _INSTRUCTIONS_SOFT)

    @property
    def cycles_per_instruction_s8(self) -> float:
        """Cycles of an instruction of int8 code, for a Cortex-M without MVE."""
        return self.cycles_per_mac_s8 / (_INSTRUCTIONS_DSP if self.dsp else _INSTRUCTIONS_S8)


FIGURES = (
    "clock_hz",
    "flash_bytes",
    "sram_bytes",
    "active_w",
    "sleep_w",
    "cycles_per_mac_f32",
    "cycles_per_mac_s8",
)

# Instructions of a MAC in the code that the cycles of a MAC were reckoned for; their sources are the boards' own.
_INSTRUCTIONS_F32, _INSTRUCTIONS_SOFT = 3.87, 90.0
_INSTRUCTIONS_DSP, _INSTRUCTIONS_S8 = 2.3, 8.2

_KIB = 1024
_MIB = 1024 * 1024

# Mean of forward (3.2), input gradient (4.2) and weight gradient with SGD (4.2): 3.87 instructions a float MAC, one of
# them a fused multiply-add of 3 cycles on the M4 (its reference manual), the others of one: 3.87 + 2 = 5.87.
_F32_M4 = "estimate: 3.87 instructions a MAC (mean of forward and both backward products), VFMA 3 cycles, others 1"
_F32_SOFT = "estimate: about 90 instructions a MAC in soft float"
_S8_M4 = "estimate: CMSIS-NN's 2.3 instructions a MAC (3x3 convolution, M4) at 1.2 cycles an instruction"


def _sources(clock: str, memory: str, active: str, sleep: str, f32: str, s8: str) -> dict[str, str]:
    return dict(zip(FIGURES, (clock, memory, memory, active, sleep, f32, s8), strict=True))


_ALL = (
    Board(
        "rp2040",
        "Raspberry Pi Pico (RP2040)",
        "Cortex-M0+",
        fpu=False,
        dsp=False,
        clock_hz=133e6,
        flash_bytes=2 * _MIB,
        sram_bytes=264 * _KIB,
        active_w=24e-3 * 3.3,
        sleep_w=180e-6 * 3.3,
        cycles_per_mac_f32=117.0,
        cycles_per_mac_s8=12.3,
        radio="uart",
        sources=_sources(
            "RP2040 datasheet, chapter 1",
            "RP2040 datasheet, chapter 1 (264 KiB SRAM); Raspberry Pi Pico datasheet (2 MiB QSPI flash)",
            "estimate: 24 mA at 3.3 V, as published work quotes the RP2040 datasheet",
            "estimate: 180 uA at 3.3 V, DORMANT (RP2040 datasheet, power consumption)",
            _F32_SOFT + ", 1.3 cycles an instruction (loads and taken branches are 2)",
            "estimate: 8.2 instructions a MAC in simple C at 1.5 cycles an instruction (no DSP instructions)",
        ),
    ),
    Board(
        "stm32l1",
        "ST Nucleo-L152RE (STM32L152RE)",
        "Cortex-M3",
        fpu=False,
        dsp=False,
        clock_hz=32e6,
        flash_bytes=512 * _KIB,
        sram_bytes=80 * _KIB,
        active_w=195e-6 * 32 * 3.3,
        sleep_w=0.56e-6 * 3.3,
        cycles_per_mac_f32=108.0,
        cycles_per_mac_s8=9.8,
        radio="uart",
        sources=_sources(
            "STM32L151xE/152xE datasheet, features",
            "STM32L151xE/152xE datasheet, features",
            "estimate: 195 uA/MHz at 32 MHz, 3.3 V (STM32L151xE/152xE datasheet, features)",
            "estimate: 0.56 uA at 3.3 V, Stop (STM32L151xE/152xE datasheet, features)",
            _F32_SOFT + ", 1.2 cycles an instruction",
            "estimate: 8.2 instructions a MAC in simple C at 1.2 cycles an instruction (no DSP instructions)",
        ),
    ),
    Board(
        "stm32l4",
        "ST Nucleo-L432KC (STM32L432KC)",
        "Cortex-M4F",
        fpu=True,
        dsp=True,
        clock_hz=80e6,
        flash_bytes=256 * _KIB,
        sram_bytes=64 * _KIB,
        active_w=84e-6 * 80 * 3.3,
        sleep_w=1.0e-6 * 3.3,
        cycles_per_mac_f32=5.87,
        cycles_per_mac_s8=2.8,
        radio="ble",
        sources=_sources(
            "STM32L43x datasheet (DS11453 rev 3), features",
            "STM32L43x datasheet (DS11453 rev 3), features",
            "STM32L43x datasheet (DS11453 rev 3), features: 84 uA/MHz in Run, at 80 MHz and 3.3 V",
            "STM32L43x datasheet (DS11453 rev 3), features: Stop 2, 1.0 uA, at 3.3 V",
            _F32_M4,
            _S8_M4,
        ),
    ),
    Board(
        "stm32f4",
        "ST Nucleo-F411RE (STM32F411RE)",
        "Cortex-M4F",
        fpu=True,
        dsp=True,
        clock_hz=100e6,
        flash_bytes=512 * _KIB,
        sram_bytes=128 * _KIB,
        active_w=100e-6 * 100 * 3.3,
        sleep_w=9e-6 * 3.3,
        cycles_per_mac_f32=5.87,
        cycles_per_mac_s8=2.8,
        radio="uart",
        sources=_sources(
            "STM32F411xC/xE datasheet (DS10314), features",
            "STM32F411xC/xE datasheet (DS10314), features",
            "STM32F411xC/xE datasheet (DS10314), features: 100 uA/MHz in Run, peripherals off, at 100 MHz and 3.3 V",
            "STM32F411xC/xE datasheet (DS10314), features: Stop, flash in deep power down, 9 uA, at 3.3 V",
            _F32_M4,
            _S8_M4,
        ),
    ),
    Board(
        "nrf52840",
        "Nordic nRF52840 DK",
        "Cortex-M4F",
        fpu=True,
        dsp=True,
        clock_hz=64e6,
        flash_bytes=1 * _MIB,
        sram_bytes=256 * _KIB,
        active_w=3.3e-3 * 3.0,
        sleep_w=2.35e-6 * 3.0,
        cycles_per_mac_f32=5.87,
        cycles_per_mac_s8=2.8,
        radio="ble",
        sources=_sources(
            "nRF52840 product specification, CPU",
            "nRF52840 product specification, memory",
            "as others quote the nRF52840 product specification, CPU: 52 uA/MHz, DC/DC, 3 V: 3.3 mA at 64 MHz",
            "as others quote the nRF52840 product specification, System ON with the whole RAM retained: 2.35 uA at 3 V",
            _F32_M4,
            _S8_M4,
        )
        | {"external_bytes": "nRF52840 DK: 64 Mbit of external flash (MX25R6435F)"},
        external_bytes=8 * _MIB,
    ),
    Board(
        "stm32h7",
        "ST Nucleo-H743ZI (STM32H743ZI)",
        "Cortex-M7",
        fpu=True,
        dsp=True,
        clock_hz=480e6,
        flash_bytes=2 * _MIB,
        sram_bytes=512 * _KIB,
        active_w=275e-6 * 480 * 3.3,
        sleep_w=0.4e-3 * 3.3,
        cycles_per_mac_f32=2.4,
        cycles_per_mac_s8=1.4,
        radio="ethernet",
        sources=_sources(
            "STM32H743xI datasheet (DS12110), features",
            "STM32H743xI datasheet (DS12110), memories: 1 MiB RAM, of which 512 KiB AXI SRAM are in one piece",
            "estimate: 275 uA/MHz (DS12110, features) at 480 MHz and 3.3 V",
            "estimate: 0.4 mA at 3.3 V in Stop",
            "estimate: the M4's 3.87 instructions a MAC at 0.62 cycles (two a cycle where they pair)",
            "estimate: CMSIS-NN's 2.3 instructions a MAC at 0.62 cycles",
        ),
    ),
    Board(
        "nrf5340",
        "Nordic nRF5340 DK, application core",
        "Cortex-M33",
        fpu=True,
        dsp=True,
        clock_hz=128e6,
        flash_bytes=1 * _MIB,
        sram_bytes=512 * _KIB,
        active_w=7.8e-3 * 3.0,
        sleep_w=3e-6 * 3.0,
        cycles_per_mac_f32=5.87,
        cycles_per_mac_s8=2.8,
        radio="ble",
        sources=_sources(
            "nRF5340 product specification, application core",
            "nRF5340 product specification, application core",
            "estimate: 7.8 mA at 3 V, from 514 CoreMark and 66 CoreMark/mA (nRF5340 product brief)",
            "estimate: 3 uA at 3 V",
            _F32_M4 + "; the M33's pipeline taken as the M4's",
            _S8_M4 + "; the M33's pipeline taken as the M4's",
        )
        | {"external_bytes": "nRF5340 DK: 64 Mbit of external flash (MX25R6435F)"},
        external_bytes=8 * _MIB,
    ),
    Board(
        "nrf9160",
        "Nordic nRF9160 DK",
        "Cortex-M33",
        fpu=True,
        dsp=True,
        clock_hz=64e6,
        flash_bytes=1 * _MIB,
        sram_bytes=256 * _KIB,
        active_w=3.0e-3 * 3.7,
        sleep_w=2.7e-6 * 3.7,
        cycles_per_mac_f32=5.87,
        cycles_per_mac_s8=2.8,
        radio="cat_m1",
        sources=_sources(
            "nRF9160 product specification, CPU",
            "nRF9160 product specification, memory; the modem library takes some of it",
            "estimate: 3 mA at 3.7 V",
            "nRF9160 product specification, modem current consumption: PSM floor 2.7 uA, at 3.7 V",
            _F32_M4 + "; the M33's pipeline taken as the M4's",
            _S8_M4 + "; the M33's pipeline taken as the M4's",
        ),
    ),
    Board(
        "alif_e3",
        "Alif Ensemble E3, high-performance core (OpenMV AE3)",
        "Cortex-M55",
        fpu=True,
        dsp=True,
        clock_hz=400e6,
        flash_bytes=5632 * _KIB,
        sram_bytes=4 * _MIB,
        active_w=60e-3 * 5.0,
        sleep_w=0.5e-3 * 5.0,
        cycles_per_mac_f32=1.0,
        cycles_per_mac_s8=0.8,
        radio="wifi_esp32",
        sources=_sources(
            "Alif Ensemble E3 datasheet, features",
            "Alif Ensemble E3 datasheet: 5.5 MiB MRAM; 13.5 MiB SRAM, of which SRAM0, 4 MiB, is in one piece",
            "estimate: OpenMV AE3, the whole board at full load, 60 mA at 5 V: an upper bound",
            "estimate: OpenMV AE3, the whole board, 0.5 mA at 5 V",
            "estimate: 4 lanes of MVE in 2 cycles, half of the time spent on loads",
            "estimate: CMSIS-NN's 0.4 MVE instructions a MAC (M55) at 2 cycles each; the Ethos-U55 isn't used",
        ),
    ),
    Board(
        "esp32s3",
        "Espressif ESP32-S3-DevKitC-1 (8 MB flash)",
        "Xtensa LX7",
        fpu=True,
        dsp=True,
        clock_hz=240e6,
        flash_bytes=8 * _MIB,
        sram_bytes=320 * _KIB,
        active_w=51.2e-3 * 3.3,
        sleep_w=240e-6 * 3.3,
        cycles_per_mac_f32=4.0,
        cycles_per_mac_s8=1.0,
        radio="wifi_esp32",
        sources=_sources(
            "ESP32-S3 series datasheet v2.2, features",
            "ESP32-S3-WROOM-1 datasheet (8 MB flash); estimate: 320 KiB of the 512 KiB SRAM left by caches and Wi-Fi",
            "ESP32-S3 series datasheet v2.2, Modem-sleep, 240 MHz, one core on 32-bit data: 51.2 mA, at 3.3 V",
            "estimate: 240 uA at 3.3 V, Light-sleep (ESP32-S3 series datasheet)",
            "estimate: the M4's 3.87 instructions a MAC at one cycle (the FPU's MADD.S is pipelined)",
            "estimate: 16 lanes of the vector extension, most of the time spent on loads",
        ),
    ),
    Board(
        "rpi4",
        "Raspberry Pi 4 Model B (2 GB), a gateway",
        "Cortex-A72",
        fpu=True,
        dsp=True,
        clock_hz=1.5e9,
        flash_bytes=16_000_000_000,
        sram_bytes=1024 * _MIB,
        active_w=3.6,
        sleep_w=2.7,
        cycles_per_mac_f32=0.5,
        cycles_per_mac_s8=0.25,
        radio="ethernet",
        sources=_sources(
            "Raspberry Pi 4 Model B product brief",
            "estimate: half of the 2 GB of LPDDR4 for the program; a 16 GB card",
            "estimate: one busy core, from measured 2.7 W idle and 6.4 W with four busy: 2.7 + 3.7 / 4",
            "measured by others: 540 mA at 5 V, idle (it has no sleep that keeps the RAM)",
            "estimate: NEON, a quarter of two 4-lane multiply-adds a cycle, one core",
            "estimate: NEON, twice the float rate, one core",
        ),
    ),
)

_COIN_J = 0.225 * 3600 * 3.0
_COIN = "CR2032 data sheets: 225 mAh at 3 V, drawn slowly"
_ALKALINE_J = 2.5 * 3600 * 3.0
_LIPO_J = 2.0 * 3600 * 3.7
# What such a device usually runs on; the boards with a wired radio have a supply.
_BATTERIES: dict[str, tuple[float, str]] = {
    "stm32l4": (_COIN_J, f"estimate: a coin cell; {_COIN}"),
    "nrf52840": (_COIN_J, f"nRF52840 DK: a holder for a coin cell; {_COIN}"),
    "nrf5340": (_COIN_J, f"nRF5340 DK: a holder for a coin cell; {_COIN}"),
    "nrf9160": (_ALKALINE_J, "estimate: two alkaline AA cells, 2.5 Ah at 3 V"),
    "alif_e3": (_LIPO_J, "estimate: a lithium polymer cell, 2 Ah at 3.7 V"),
    "esp32s3": (_LIPO_J, "estimate: a lithium polymer cell, 2 Ah at 3.7 V"),
}


def _powered(board: Board) -> Board:
    if board.name not in _BATTERIES:
        return board
    battery_j, source = _BATTERIES[board.name]
    return replace(board, battery_j=battery_j, sources=board.sources | {"battery_j": source})


BOARDS: dict[str, Board] = {board.name: _powered(board) for board in _ALL}


def get(name: str) -> Board:
    """Gives the board of that name. Raises: ConfigError naming the nearest known one.

    >>> get("stm32l4").sram_bytes
    65536
    """
    if name not in BOARDS:
        raise ConfigError(f"there is no board {name!r}{nearest(name, BOARDS)}")
    return BOARDS[name]
