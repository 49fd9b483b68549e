"""Units: decibels to ratios, and bytes, joules, seconds and lists of numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable


def db_to_ratio(value_db: float) -> float:
    """Gives the power ratio of a value in decibels.

    >>> db_to_ratio(20.0)
    100.0
    """
    return float(10.0 ** (value_db / 10.0))


def ratio_to_db(ratio: float) -> float:
    """Gives a power ratio in decibels.

    >>> ratio_to_db(100.0)
    20.0
    """
    return 10.0 * math.log10(ratio)


def dbm_to_w(power_dbm: float) -> float:
    """Gives watts from dBm.

    >>> dbm_to_w(30.0)
    1.0
    """
    return db_to_ratio(power_dbm - 30.0)


def format_bytes(num_bytes: float) -> str:
    """Gives a byte count in at most 8 characters, in powers of 1024 above 1 KiB.

    >>> format_bytes(512), format_bytes(1536), format_bytes(3 * 1024**3)
    ('512 B', '1.5 KiB', '3.0 GiB')
    """
    return _scaled(num_bytes, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_joules(energy_j: float) -> str:
    """Gives an energy with the SI prefix that suits it.

    >>> format_joules(0.0031), format_joules(12.0), format_joules(0.0)
    ('3.1 mJ', '12.0 J', '0 J')
    """
    return _small(energy_j, "J")


def format_seconds(time_s: float) -> str:
    """Gives a time as people say it.

    >>> format_seconds(0.0021), format_seconds(75.0), format_seconds(7300.0)
    ('2.1 ms', '1m15s', '2h01m')
    """
    if time_s < 60.0:
        return _small(time_s, "s")
    if time_s < 3600.0:
        return f"{int(time_s // 60)}m{int(time_s % 60):02d}s"
    return f"{int(time_s // 3600)}h{int(time_s % 3600 // 60):02d}m"


def format_numbers(numbers: Iterable[int]) -> str:
    """Gives whole numbers as a person lists them.

    >>> format_numbers((0, 1, 2, 5, 7, 8))
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _scaled(value: float, step: float, names: tuple[str, ...]) -> str:
    if value < step:
        return f"{value:.0f} {names[0]}"
    power = min(int(math.log(value, step)), len(names) - 1)
    scaled = value / step**power
    return f"{scaled:.0f} {names[power]}" if scaled >= 99.95 else f"{scaled:.1f} {names[power]}"


def _small(value: float, unit: str) -> str:
    if value == 0.0:
        return f"0 {unit}"
    for size, prefix in ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if abs(value) >= size:
            return f"{value / size:.1f} {prefix}{unit}"
    return f"{value / 1e-9:.1f} n{unit}"
