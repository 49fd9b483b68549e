"""Builds for every core by every compiler that is here, their sizes, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from midhaul.devices import elf, profiles, toolchain
from midhaul.errors import BudgetError, ConfigError, DataError, DependencyError


def compiler(kind: str) -> toolchain.Compiler:
    try:
        return toolchain.firmware_compiler(kind)
    except DependencyError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["zig", "gcc"])
@pytest.mark.parametrize("core", list(toolchain.CORES))
def test_every_core_is_built_without_warnings_and_fits_its_board(kind: str, core: str) -> None:
    image = toolchain.build(core, compiler=compiler(kind), strict=True)
    board = profiles.get(image.board)
    assert toolchain.core_of(board).name == core == image.core
    before_slots = image.symbols["mh_slot0"] - toolchain.CORES[core].flash_at
    padding = before_slots - image.flash["code"] - image.flash["data"]
    assert before_slots % toolchain.PAGE_BYTES == 0
    assert 0 <= padding < toolchain.PAGE_BYTES + 64  # up to the page, and between sections
    inside = board.flash_bytes - before_slots - image.flash["slots"]
    assert image.store_bytes == (board.external_bytes or inside)
    assert inside >= 0
    assert image.flash["slots"] == 2 * image.slot_bytes
    assert board.sram_bytes - 64 <= sum(image.ram.values()) <= board.sram_bytes
    assert sum(image.parts.values()) == image.code_bytes
    assert image.parts["mh_device.c"] > 500
    assert "mh_device_run" in image.map_path.read_text()


@pytest.mark.parametrize("kind", ["zig", "gcc"])
@pytest.mark.parametrize("port", ["uart", "nrf52840"])
def test_ports(kind: str, port: str) -> None:
    board = "nrf52840" if port == "nrf52840" else "cortex-m33"
    image = toolchain.build(board, port=port, compiler=compiler(kind), strict=True)
    base = 0 if port == "nrf52840" else 0x10000000
    vectors = next(s for s in image.elf.segments if s.address == base)
    stack, reset = struct.unpack_from("<II", vectors.data)
    assert stack == image.symbols["mh_stack_high"]
    assert reset == image.symbols["mh_reset"]
    assert reset % 2 == 1


@pytest.mark.parametrize("kind", ["zig", "gcc"])
def test_what_does_not_fit_is_refused_with_the_bytes_over(kind: str) -> None:
    cc = compiler(kind)
    small = toolchain.build("stm32l4", firmware="echo", slot_bytes=4096, compiler=cc)
    code = -(-(small.flash["code"] + small.flash["data"]) // 4096) * 4096
    over = code + 2 * 131072 - profiles.get("stm32l4").flash_bytes
    with pytest.raises(BudgetError, match=f"board stm32l4: flash is {over} bytes over"):
        toolchain.build("stm32l4", firmware="echo", slot_bytes=131072, compiler=cc)
    with pytest.raises(BudgetError, match=f"RAM is {65536 + small.ram['bss']} bytes over"):
        toolchain.build("stm32l4", firmware="echo", stack_bytes=131072, compiler=cc)
    tiny = replace(profiles.get("stm32l4"), flash_bytes=1024)
    with pytest.raises(BudgetError, match="flash is"):
        toolchain.build(tiny, firmware="echo", slot_bytes=4096, compiler=cc)


def test_a_build_comes_from_the_cache_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = toolchain.build("cortex-m4", firmware="echo")
    when = first.path.stat().st_mtime_ns
    assert toolchain.build("stm32f4", firmware="echo").path == first.path
    assert first.path.stat().st_mtime_ns == when
    assert toolchain.build("cortex-m4", firmware="echo", optimise="-O2").path != first.path
    assert toolchain.build("cortex-m4", firmware="echo", slot_bytes=8192).path != first.path
    out = tmp_path / "copy.elf"
    assert toolchain.build("cortex-m4", firmware="echo", out=out).path == out
    assert out.read_bytes() == first.path.read_bytes()
    assert not list((tmp_path / "midhaul" / "builds").glob(".new-*"))


def test_a_key_is_written_into_the_image() -> None:
    image = toolchain.build("cortex-m4", firmware="echo")
    key = bytes(range(100, 132))
    data = image.provisioned(key, seed=7, ticks_at=0x40028018)
    at = elf.read(data).offset_of(image.symbols["mh_image_config"])
    assert struct.unpack_from("<IIII32s", data, at) == (0x3143484D, 3, 0x40028018, 7, key)
    assert key not in image.path.read_bytes()
    with pytest.raises(ConfigError, match="31"):
        image.provisioned(bytes(31))


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Xtensa"):
        toolchain.build("esp32s3")
    with pytest.raises(ConfigError, match="did you mean 'cortex-m4'"):
        toolchain.build("cortex-m4f")
    with pytest.raises(ConfigError, match="did you mean 'uart'"):
        toolchain.build("cortex-m4", port="usart")
    with pytest.raises(ConfigError, match="nrf52840"):
        toolchain.build("stm32f4", port="nrf52840")
    monkeypatch.setenv("MIDHAUL_DEVICE", str(tmp_path))
    toolchain.sources.cache_clear()
    with pytest.raises(ConfigError, match="MIDHAUL_DEVICE"):
        toolchain.build("cortex-m4")
    toolchain.sources.cache_clear()


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for find in (toolchain.firmware_compiler, toolchain.host_compiler):
        find.cache_clear()
        with pytest.raises(DependencyError, match="pip install ziglang"):
            find()
        find.cache_clear()


def test_host_builds_have_no_warnings_and_the_same_functions() -> None:
    path = toolchain.host_library(strict=True)
    assert path == toolchain.host_library(strict=True)
    assert toolchain.host_program(strict=True).stat().st_mode & 0o111
    assert toolchain.host_library(firmware="echo", strict=True) != path


def test_what_is_no_elf_file_is_refused() -> None:
    data = toolchain.build("cortex-m4", firmware="echo").path.read_bytes()
    for bad in (b"", data[:40], data[:-4000], b"MZ" + data):
        with pytest.raises(DataError):
            elf.read(bad)
