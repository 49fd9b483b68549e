"""Which devices of a run a gateway has: by the people, writers ... of the data, by number, or a share of all."""

from __future__ import annotations

import re

from midhaul.data import Federation
from midhaul.errors import ConfigError
from midhaul.units import format_numbers

_RANGE = re.compile(r"(\d+)-(\d+)")
_SHARE = re.compile(r"(\d+)/(\d+)")
MOST = 1_000_000


def members(federation: Federation, data: str = "", share: str = "") -> tuple[int, ...]:
    """Gives the numbers of the devices that a gateway has, those that train and those that only test.

    `data` is NAME, all of the run's data, or NAME:WHAT=LIST with WHAT `devices`, whose numbers follow, or the plural of
    what a natural device of the data is (`har:subjects=1-10,14`). `share` is K/N: every N-th device from the K-th on.
    Raises: ConfigError for what isn't of that form, for another data set, and where no device is left.
    """
    if data and share:
        raise ConfigError("--data names devices and --share counts them; give one of the two")
    train, test = len(federation.train), 0 if federation.own_test else len(federation.test)
    if share:
        first, every = _share(share)
        parts = (range(train), range(train, train + test))
        return _some(tuple(d for part in parts for d in part[first - 1 :: every]), f"--share {share}", train + test)
    name, sign, rest = data.partition(":")
    if data and name != federation.dataset.name:
        raise ConfigError(f"--data names {name!r}, and the run is on {federation.dataset.name!r}; name that one")
    if not sign:
        return tuple(range(train + test))
    what, sign, listed = rest.partition("=")
    key = federation.dataset.key
    plurals = ("devices", f"{key}s") if key else ("devices",)
    if not sign or what not in plurals:
        ways = " or ".join(f"{name}:{plural}=1-10,14" for plural in plurals)
        raise ConfigError(f"--data {data!r} is not of the form {ways}")
    known = _people(federation) if what != "devices" else {str(device): device for device in range(train + test)}
    there = {_short(person) for person in federation.dataset.device_names} if what != "devices" else set(known)
    named, ranged = _listed(listed, data)
    if strange := [one for one in named if one not in there]:
        raise ConfigError(f"--data names {what[:-1]} {strange[0]}, and the run has {_told(there)}")
    # Of those that the data have, the server was given some, and some have too few rows.
    chosen = tuple(sorted({known[one] for one in (*named, *ranged) if one in known}))
    return _some(chosen, f"--data {data}", train + test)


def _people(federation: Federation) -> dict[str, int]:
    """Gives the device of each natural device's short name. Raises: ConfigError where rows are dealt otherwise."""
    name, key = federation.dataset.name, federation.dataset.key
    if not {*federation.device_names} <= {*federation.dataset.device_names}:
        raise ConfigError(
            f"the run deals its rows to devices without regard to the {key}s of {name}; say {name}:devices=0-4"
        )
    known = {_short(person): device for device, person in enumerate(federation.device_names)}
    if not federation.own_test:
        known |= {_short(person): len(known) + place for place, person in enumerate(federation.test_names)}
    return known


def _share(share: str) -> tuple[int, int]:
    found = _SHARE.fullmatch(share)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--share {share!r} is not of the form K/N with K from 1 to N, such as 1/2")
    return int(found[1]), int(found[2])


def _listed(text: str, data: str) -> tuple[list[str], list[str]]:
    """Gives what a list names one by one, and what lies in its ranges, which may have gaps."""
    named: list[str] = []
    ranged: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if match := _RANGE.fullmatch(part):
            low, high = int(match[1]), int(match[2])
            if low > high or high - low >= MOST:
                raise ConfigError(f"--data {data!r}: {part} is no range; write the smaller number first")
            ranged += [str(number) for number in range(low, high + 1)]
        elif part:
            named.append(part)
    if not named and not ranged:
        raise ConfigError(f"--data {data!r} lists nothing; write for example 1-10,14")
    return named, ranged


def _some(devices: tuple[int, ...], what: str, num: int) -> tuple[int, ...]:
    if not devices:
        raise ConfigError(f"{what} leaves no device of the {num} that the run has; name others")
    return devices


def _short(name: str) -> str:
    return name.rpartition(" ")[2]


def _told(names: set[str]) -> str:
    if all(name.isdigit() for name in names):
        return format_numbers(tuple(int(name) for name in names))
    few = sorted(names)
    return ", ".join(few[:5]) + (" ..." if len(few) > 5 else "")
