"""Firmware for a board, with a key of its own in it: the sheet behind `midhaul firmware`."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midhaul.devices import machines, toolchain
from midhaul.devices.profiles import Board
from midhaul.devices.toolchain import Image
from midhaul.errors import ConfigError
from midhaul.link.packet import KEY_BYTES
from midhaul.runtime.places import read_keys
from midhaul.units import format_bytes


@dataclass(frozen=True)
class Firmware:
    """What `midhaul firmware` made: the image, the file with the key in it, and whether the key is new."""

    image: Image
    board: Board
    path: Path
    key_is_new: bool

    columns = ("memory", "part", "bytes", "")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row a part of flash and of SRAM."""
        parts = [("flash", name, size) for name, size in self.image.flash.items()]
        parts += [("SRAM", name, size) for name, size in self.image.ram.items()]
        return [(memory, name, f"{size:,}", _WHAT[memory, name]) for memory, name, size in parts]

    @property
    def heading(self) -> str:
        """One line of what was built for what."""
        return (
            f"{self.board.name} ({format_bytes(self.board.flash_bytes)} flash, {format_bytes(self.board.sram_bytes)} "
            f"SRAM), port {self.image.port}, by {self.image.compiler}"
        )

    def to_table(self) -> dict[str, Any]:
        """Gives the sheet as plain values."""
        return {
            "board": self.board.name,
            "port": self.image.port,
            "compiler": self.image.compiler,
            "flash": self.image.flash,
            "sram": self.image.ram,
            "slot_bytes": self.image.slot_bytes,
            "file": str(self.path),
            "key_is_new": self.key_is_new,
        }


_WHAT = {
    ("flash", "code"): "the runtime and its constants",
    ("flash", "data"): "what .data is filled from",
    ("flash", "slots"): "two places for a model",
    ("flash", "store"): "the device's own rows",
    ("SRAM", "stack"): "",
    ("SRAM", "data"): "static",
    ("SRAM", "bss"): "static",
    ("SRAM", "arena"): "for a model: weights, values, gradients",
}


def firmware(board: Board, out: Path, *, port: str = "", address: str = "", keys: Path | None = None) -> Firmware:
    """Builds the firmware of a board and writes it to `out` with the key that `keys` has for `address`.

    Where the file has none for it, a key is drawn and a line added. Without `keys` the device speaks unsealed. `port`
    is the board's own where there is one, else that of emulators.
    Raises: ConfigError for a file of keys that can't be used or an address that isn't one; BudgetError where the
    firmware doesn't fit; DependencyError without a compiler.
    """
    if bool(address) != (keys is not None):
        raise ConfigError("--keys and --address go together: a file of keys, and whose key this device gets")
    own = port or (board.name if board.name in toolchain.PORTS else "semihosting")
    image = toolchain.build(board, port=own)
    key, is_new = None, False
    if keys is not None:
        machines.check_address(address)
        known = read_keys(keys) if keys.exists() else {}
        is_new = address not in known
        key = known[address] if not is_new else secrets.token_bytes(KEY_BYTES)
        if is_new:
            _add(keys, f"{address} {key.hex()}\n")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(image.provisioned(key, fresh=own != board.name))
    except OSError as error:
        raise ConfigError(f"{out} can't be written ({error.strerror}); choose another --out") from None
    return Firmware(image, board, out, is_new)


def _add(keys: Path, line: str) -> None:
    try:
        # Nobody else may read it from the moment that it is there.
        with os.fdopen(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise ConfigError(f"the file of keys {keys} can't be written ({error.strerror}); choose another") from None
