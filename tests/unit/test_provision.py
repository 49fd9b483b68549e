"""Firmware with a key of its own: drawn once, kept in a file that others can't read, and in the image."""

import stat
from pathlib import Path

import pytest

from midhaul.cli import main
from midhaul.devices import profiles
from midhaul.errors import ConfigError
from midhaul.provision import firmware
from midhaul.runtime.places import read_keys

ADDRESS = "serial:/dev/ttyACM0"


def test_a_key_is_drawn_once_and_lies_in_the_image(tmp_path: Path) -> None:
    keys, out = tmp_path / "keys", tmp_path / "new" / "firmware.elf"
    made = firmware(profiles.get("nrf52840"), out, address=ADDRESS, keys=keys)
    assert made.key_is_new
    assert made.image.port == "nrf52840"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    key = read_keys(keys)[ADDRESS]
    assert key in out.read_bytes()
    assert key not in made.image.path.read_bytes()  # the cached image has no device's key
    again = firmware(profiles.get("nrf52840"), out, address=ADDRESS, keys=keys)
    assert not again.key_is_new
    other = firmware(profiles.get("nrf52840"), out, address="serial:/dev/ttyACM1", keys=keys)
    assert other.key_is_new
    assert key not in out.read_bytes()
    assert len(read_keys(keys)) == 2


def test_the_sheet_adds_up_to_the_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", "stm32l4", "--out", str(tmp_path / "f.elf")]) == 0
    said = capsys.readouterr().out
    assert "port semihosting" in said.replace("\n", " ")
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith("written"))
    made = firmware(profiles.get("stm32l4"), tmp_path / "f.elf")
    assert sum(made.image.ram.values()) == pytest.approx(made.board.sram_bytes, abs=64)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["rpi4"], "Cortex-A72; firmware is built for Cortex-M"),
        (["stm32l4", "--keys", "k"], "--keys and --address go together"),
        (["stm32l4", "--port", "nrf52840"], "for the board nrf52840"),
        (["nrf52840", "--keys", "k", "--address", "usb"], "usb"),
    ],
)
def test_what_can_not_be_is_refused(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firmware", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1


def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        firmware(profiles.get("stm32l4"), tmp_path / "file" / "f.elf")
    with pytest.raises(ConfigError, match="can't be"):
        firmware(profiles.get("stm32l4"), tmp_path / "f.elf", address=ADDRESS, keys=tmp_path / "file" / "keys")
