"""Where the devices of a run are, and the keys that seal what they are told."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from functools import partial
from pathlib import Path

from midhaul.devices import machines
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError
from midhaul.link.packet import KEY_BYTES
from midhaul.runtime.remote import Place
from midhaul.runtime.wire import PacketWire


def places(addresses: str, board: Board, *, seed: int, keys: str = "") -> list[Place]:
    """Gives the place of each device in a list of addresses.

    An emulated device's key is derived from the run's seed; a board has its own, in the file `keys`.
    Raises: ConfigError for an address that isn't one, and for a board without a key.
    """
    known = read_keys(Path(keys)) if keys else {}
    locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
    found: list[Place] = []
    for number, address in enumerate(machines.parse_addresses(addresses)):
        if address in known:
            key = known[address]
        elif machines.is_emulated(address):
            key = derived_key(seed, number)
        else:
            raise ConfigError(
                f"there is no key for {address}; name in run.keys a file with a line `{address} HEX`, "
                f"HEX being the {2 * KEY_BYTES} hexadecimal digits of the key in its flash"
            )
        opened = partial(_open, locks[address], address, board, key, _word(b"midhaul device seed", seed, number))
        found.append(Place(address, partial(PacketWire, opened, key)))
    return found


def _open(lock: threading.Lock, address: str, board: Board, key: bytes, seed: int) -> machines.Machine:
    with lock:  # the first of a kind compiles its firmware; the others find it
        return machines.open_machine(address, board=board, key=key, seed=seed)


def _digest(label: bytes, seed: int, number: int) -> bytes:
    return hashlib.sha256(label + seed.to_bytes(8, "little") + number.to_bytes(4, "little")).digest()


def _word(label: bytes, seed: int, number: int) -> int:
    return int.from_bytes(_digest(label, seed, number)[:4], "little")


def derived_key(seed: int, number: int) -> bytes:
    """Gives the key of the number-th device of a run: SHA-256 of a label, the seed and the number. Shapes: 32 bytes.

    Limits: whoever knows the seed knows the key; it is for devices that live as long as the run.
    """
    return _digest(b"midhaul device key", seed, number)


def read_keys(path: Path) -> dict[str, bytes]:
    """Gives the keys of a file of lines `ADDRESS HEX`, by address; a line may be empty or begin with #.

    Raises: ConfigError that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of keys {path} can't be read ({error}); check run.keys") from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        address, _, digits = line.strip().rpartition(" ")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if not address.strip() or len(key) != KEY_BYTES:
            raise ConfigError(f"{path} line {number} is not of the form `ADDRESS HEX` with {2 * KEY_BYTES} digits")
        if address.strip() in keys:
            raise ConfigError(f"{path} line {number} gives {address.strip()} a second key; keep one")
        keys[address.strip()] = key
    return keys
