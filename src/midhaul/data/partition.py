"""Who holds which rows: a data set dealt to devices, with rows held out to test on, to adapt on, and public ones.

Every draw comes from `rng.key(seed, 0, device, use)`, so a partition is the same on every machine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.data.dataset import Dataset, Ints
from midhaul.errors import ConfigError, DataError, nearest
from midhaul.rng import Key, Use

PARTITIONS = ("natural", "iid", "dirichlet", "dirichlet_by_class", "classes", "quantity", "vertical")
TESTS = ("auto", "device", "held_out", "shared")
Parts = tuple[Ints, ...]
Floats64 = npt.NDArray[np.float64]
_EMPTY: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Federation:
    """A data set and the row numbers that each device holds, every array ascending.

    `train[d]` are the rows of training device d; `test[i]` and `adapt[i]` those of test device i, disjoint. With
    `own_test`, test device i is training device i, which held out part of its own rows (none, if it has only one row);
    otherwise test devices are others, and `adapt` are the rows on which a new device may adapt. `public` rows are the
    server's. `left_out` names the natural devices that hold fewer than `min_rows` training rows. `classes`, if there
    are any, are those that each device tells apart, by its own numbers: training devices first, then the others; the
    rows of such a device are in an order of its own (`episodes`).
    """

    dataset: Dataset
    train: Parts
    test: Parts
    adapt: Parts
    own_test: bool
    public: Ints
    device_names: tuple[str, ...]
    test_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    classes: Parts = ()

    @property
    def num_devices(self) -> int:
        """The number of training devices."""
        return len(self.train)


def federate(
    dataset: Dataset,
    *,
    partition: str = "natural",
    num_devices: int = 0,
    alpha: float = 0.5,
    classes_per_device: int = 2,
    public: float = 0.0,
    test: str = "auto",
    test_fraction: float = 0.2,
    adapt: float = 0.0,
    max_rows: int = 0,
    min_rows: int = 1,
    seed: int = 0,
) -> Federation:
    """Gives the rows of each device.

    `partition`: "natural" (the people, writers ... of the data); or over `num_devices`: "iid" (equal shares at random),
    "dirichlet" (equal shares, class mix q ~ Dir(alpha p) with p the mix of all rows), "dirichlet_by_class" (the rows of
    each class in shares ~ Dir(alpha)), "classes" (rows sorted by label, `classes_per_device` equal shards each),
    "quantity" (`min_rows` each, the others in shares ~ Dir(alpha)). Or "vertical": each device has a part of the
    features of all rows, in the same order, the first one the labels too, and the data set is cut up so.
    `test`: "held_out" (the publisher's test rows, by their natural device), "device" (each device holds out
    `test_fraction` of its rows, by class), "shared" (`test_fraction` of all rows, by class, before they are dealt: what
    every device is asked about, whatever it has seen), "auto" (held_out where there is one). `adapt` is the share of a
    held-out device's rows, by class, that it may adapt on. `public` is the share that the server gets: of whole natural
    devices, of rows otherwise. `max_rows` caps the rows of each training device, before it holds any out.

    Raises: ConfigError for a setting out of range, DataError if a device ends with too few rows.
    Source: dirichlet: Hsu, Qi, Brown 2019 (arXiv 1909.06335), section 3; dirichlet_by_class: Yurochkin
    et al. 2019 (arXiv 1905.12022), experiments; classes: McMahan et al. 2017, section 3; quantity: Li, Diao, Chen, He,
    ICDE 2022 (NIID-Bench), quantity skew.
    Limits: a shard of "classes" straddles two classes where the classes don't divide evenly.
    """
    _check(dataset, partition, num_devices, alpha, classes_per_device, test)
    _check_shares(public, test_fraction, adapt, max_rows, min_rows)
    by_publisher = test == "held_out" or (test == "auto" and bool(dataset.held_out.any()))
    usable = np.flatnonzero(~dataset.held_out) if by_publisher else np.arange(len(dataset))
    if partition == "vertical":
        if public or adapt:
            raise ConfigError("a row of vertical data lies on all devices; set data.public and data.adapt to 0")
        tested = np.flatnonzero(dataset.held_out) if by_publisher else _EMPTY
        if not by_publisher:
            usable, tested = _split(usable, dataset.y, test_fraction, rng.key(seed, 0, rng.SERVER, Use.SPLIT))
        return _vertical(dataset, _cap(usable, max_rows, _key(seed, 1, 0)), tested, num_devices)
    if len(usable) == 0:
        raise DataError(f'{dataset.name}: every row is held out, so none is left to train on; set test to "device"')
    shared = _EMPTY
    if test == "shared":
        usable, shared = _split(usable, dataset.y, test_fraction, rng.key(seed, 0, rng.SERVER, Use.SPLIT))
    left_out: tuple[str, ...] = ()
    if partition == "natural":
        holders, left_out = _enough(dataset, _natural(dataset, usable), min_rows)
        holders, given = _give_devices(dataset, holders, public, seed)
    else:
        usable, given = _give_rows(usable, public, seed)
        parts = _deal(dataset.y, usable, partition, num_devices, alpha, classes_per_device, min_rows, seed)
        holders = [Holder(-1, f"device {device}", rows) for device, rows in enumerate(parts)]
        _all_enough(dataset, holders, min_rows)
    train = tuple(_cap(holder.rows, max_rows, _key(seed, 1, device)) for device, holder in enumerate(holders))
    names = tuple(holder.name for holder in holders)
    if test == "shared":
        kept, adapting = _split(shared, dataset.y, adapt, rng.key(seed, 1, rng.SERVER, Use.SPLIT))
        return Federation(dataset, train, (kept,), (adapting,), False, given, names, ("shared test rows",), left_out)
    if not by_publisher:
        halves = [_split(rows, dataset.y, test_fraction, _key(seed, 0, device)) for device, rows in enumerate(train)]
        train, own = tuple(kept for kept, _ in halves), tuple(taken for _, taken in halves)
        return _finish(Federation(dataset, train, own, _none(own), True, given, names, names, left_out), adapt)
    testers = _natural(dataset, np.flatnonzero(dataset.held_out))
    if partition == "natural" and {t.id for t in testers} <= set(dataset.device[usable].tolist()):
        held = {tester.id: tester.rows for tester in testers}
        own = tuple(held.get(holder.id, _EMPTY) for holder in holders)
        return _finish(Federation(dataset, train, own, _none(own), True, given, names, names, left_out), adapt)
    halves = [_split(t.rows, dataset.y, adapt, _key(seed, 0, place)) for place, t in enumerate(testers)]
    tests, adapts = tuple(kept for kept, _ in halves), tuple(taken for _, taken in halves)
    test_names = tuple(tester.name for tester in testers)
    return Federation(dataset, train, tests, adapts, False, given, names, test_names, left_out)


def _vertical(dataset: Dataset, train: Ints, test: Ints, num: int) -> Federation:
    """Gives each device its part of the features: a stretch of a flat row, some channels of a signal [C, T], a strip of
    an image [C, H, W] from top to bottom. Parts that are one short have zeros there; labels that are another's are 0.
    """
    axis = 1 if dataset.x.ndim == 3 else -1
    size = dataset.x.shape[axis]
    if num > size:
        raise ConfigError(
            f"the rows of {dataset.name} have {dataset.input_shape} features, which gives {size} parts and not {num}; "
            f"set num_devices to {size} or fewer"
        )
    rows, names = np.concatenate([train, test]), tuple(f"part {place} of the features" for place in range(num))
    parts = np.array_split(dataset.inputs(rows), num, axis)
    widths = [
        [(0, -(-size // num) - part.shape[axis] if a == axis % part.ndim else 0) for a in range(part.ndim)]
        for part in parts
    ]
    cut = dataclasses.replace(
        dataset,
        x=np.concatenate([np.pad(part, width) for part, width in zip(parts, widths, strict=True)]),
        levels=None,
        y=np.concatenate([dataset.y[rows], np.zeros((num - 1) * len(rows), np.int64)]),
        device=np.repeat(np.arange(num), len(rows)),
        device_names=names,
        held_out=np.tile(dataset.held_out[rows], num),
    )
    places = [np.arange(len(rows)) + place * len(rows) for place in range(num)]
    trains, tests = tuple(p[: len(train)] for p in places), tuple(p[len(train) :] for p in places)
    return Federation(cut, trains, tests, _none(tests), True, _EMPTY, names, names)


@dataclass(frozen=True)
class Holder:
    """A device and its rows; `id` is its natural number, -1 if it has none."""

    id: int
    name: str
    rows: Ints


def _natural(dataset: Dataset, usable: Ints) -> list[Holder]:
    ids = dataset.device[usable]
    order = np.argsort(ids, kind="stable")
    distinct, first = np.unique(ids[order], return_index=True)
    parts = np.split(usable[order], first[1:])
    return [Holder(int(i), dataset.device_names[int(i)], rows) for i, rows in zip(distinct, parts, strict=True)]


def _enough(dataset: Dataset, holders: list[Holder], min_rows: int) -> tuple[list[Holder], tuple[str, ...]]:
    kept = [holder for holder in holders if len(holder.rows) >= min_rows]
    if not kept:
        most = max(len(holder.rows) for holder in holders)
        raise DataError(f"{dataset.name}: no device has {min_rows} rows (the largest has {most}); set min_rows lower")
    return kept, tuple(holder.name for holder in holders if len(holder.rows) < min_rows)


def _all_enough(dataset: Dataset, holders: list[Holder], min_rows: int) -> None:
    for holder in holders:
        if len(holder.rows) < min_rows:
            raise DataError(
                f"{dataset.name}: {holder.name} of {len(holders)} gets {len(holder.rows)} rows, under {min_rows}; take "
                "fewer devices, a larger alpha or another seed"
            )


def _give_devices(dataset: Dataset, holders: list[Holder], share: float, seed: int) -> tuple[list[Holder], Ints]:
    """Gives the devices that stay, and the rows of those that hand all of theirs to the server."""
    if share == 0.0:
        return holders, _EMPTY
    num = max(1, round(share * len(holders)))
    if num >= len(holders):
        raise DataError(f"{dataset.name}: public {share} takes {num} of {len(holders)} devices; leave one to train")
    chosen = set(rng.choose(rng.key(seed, 0, rng.SERVER, Use.PUBLIC), num, range(len(holders))))
    given = np.sort(np.concatenate([holders[place].rows for place in sorted(chosen)]))
    return [holder for place, holder in enumerate(holders) if place not in chosen], given


def _give_rows(usable: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """Gives the rows that stay, and those that the server gets."""
    if share == 0.0:
        return usable, _EMPTY
    mixed = usable[rng.permutation(rng.key(seed, 0, rng.SERVER, Use.PUBLIC), len(usable))]
    num = max(1, round(share * len(usable)))
    return np.sort(mixed[num:]), np.sort(mixed[:num])


def _deal(
    y: Ints, usable: Ints, partition: str, num: int, alpha: float, per_device: int, min_rows: int, seed: int
) -> list[Ints]:
    """Gives the rows of each of `num` devices."""
    mixed = usable[rng.permutation(rng.key(seed, 0, rng.SERVER, Use.PARTITION), len(usable))]
    if partition == "iid":
        parts = np.array_split(mixed, num)
    elif partition == "quantity":
        parts = _deal_quantity(mixed, num, alpha, min_rows, seed)
    elif partition == "classes":
        parts = _deal_shards(y, mixed, num, per_device, seed)
    elif partition == "dirichlet":
        parts = _deal_mixes(y, mixed, num, alpha, seed)
    else:
        parts = _deal_classes(y, mixed, num, alpha, seed)
    return [np.sort(part) for part in parts]


def _deal_quantity(mixed: Ints, num: int, alpha: float, min_rows: int, seed: int) -> list[Ints]:
    spare = len(mixed) - num * min_rows
    sizes = min_rows + _apportion(_dirichlet(_key(seed, 0, 0, Use.PARTITION), np.full(num, alpha)), max(spare, 0))
    return np.split(mixed, np.cumsum(sizes)[:-1])


def _deal_shards(y: Ints, mixed: Ints, num: int, per_device: int, seed: int) -> list[Ints]:
    shards = np.array_split(mixed[np.argsort(y[mixed], kind="stable")], num * per_device)
    order = rng.permutation(_key(seed, 0, 0, Use.PARTITION), len(shards)).reshape(num, per_device)
    return [np.concatenate([shards[place] for place in places]) for places in order.tolist()]


def _deal_mixes(y: Ints, mixed: Ints, num: int, alpha: float, seed: int) -> list[Ints]:
    """Deals equal shares; a device draws classes from its q until one runs out, then from the rest of its q."""
    pools = [mixed[y[mixed] == label] for label in range(int(y[mixed].max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    taken = np.zeros_like(left)
    parts = []
    for device, size in enumerate(_equal(len(mixed), num)):
        key = _key(seed, 0, device, Use.PARTITION)
        q = np.zeros(len(prior))
        q[prior > 0] = _dirichlet(key, alpha * prior[prior > 0])
        got = _draw_classes(_key(seed, 1, device, Use.PARTITION), q, left, size)
        parts.append(np.concatenate([pool[t : t + g] for pool, t, g in zip(pools, taken, got, strict=True)]))
        taken += got
        left -= got
    return parts


def _draw_classes(key: Key, q: Floats64, left: Ints, size: int) -> Ints:
    """Gives how many rows of each class to take, `size` in all, at most `left` of each."""
    got, used = np.zeros_like(left), 0
    while (need := size - int(got.sum())) > 0:
        mass = np.where(left > got, q, 0.0)
        if mass.sum() <= 0.0:  # all classes of this device have run out: it takes from what is left
            mass = (left - got).astype(np.float64)
        edges = np.cumsum(mass / mass.sum())
        draws = (key.words(used + need)[used:] + 0.5) * 2.0**-32
        drawn = np.bincount(np.minimum(np.searchsorted(edges, draws), len(q) - 1), minlength=len(q))
        got = np.minimum(got + np.where(mass > 0.0, drawn, 0), left)
        used += need
    return got


def _deal_classes(y: Ints, mixed: Ints, num: int, alpha: float, seed: int) -> list[Ints]:
    parts: list[list[Ints]] = [[] for _ in range(num)]
    for label in np.unique(y[mixed]).tolist():
        pool = mixed[y[mixed] == label]
        sizes = _apportion(_dirichlet(_key(seed, 0, label, Use.PARTITION), np.full(num, alpha)), len(pool))
        for part, rows in zip(parts, np.split(pool, np.cumsum(sizes)[:-1]), strict=True):
            part.append(rows)
    return [np.concatenate(part) for part in parts]


def _dirichlet(key: Key, concentration: Floats64) -> Floats64:
    """Gives one draw of a Dirichlet distribution: gamma numbers by the inverse of their distribution, normalised."""
    from scipy.special import gammaincinv  # here alone: its import takes longer than most data to read

    draws = (key.words(len(concentration)) + 0.5) * 2.0**-32
    gamma = gammaincinv(concentration, draws)
    if gamma.sum() <= 0.0:  # every gamma underflowed: the limit of a small alpha is one part that has all
        gamma = (draws == draws.max()).astype(np.float64)
    return np.asarray(gamma / gamma.sum(), np.float64)


def _apportion(shares: Floats64, total: int) -> Ints:
    """Gives whole numbers that add up to `total`, nearest to the shares (largest remainders first)."""
    exact = shares * total
    whole = np.floor(exact).astype(np.int64)
    first = np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]
    whole[first] += 1
    return whole


def _equal(total: int, num: int) -> list[int]:
    return [total // num + (place < total % num) for place in range(num)]


def _cap(rows: Ints, max_rows: int, key: Key) -> Ints:
    if max_rows == 0 or len(rows) <= max_rows:
        return rows
    return np.sort(rows[rng.permutation(key, len(rows))[:max_rows]])


def _split(rows: Ints, y: Ints, share: float, key: Key) -> tuple[Ints, Ints]:
    """Gives the rows that stay and a share of them taken evenly over the classes; at least one of each where it can.

    The rows lie in random order by class, and every (1 / share)-th is taken from a random start.
    """
    num = len(rows)
    take = 0 if share == 0.0 else min(max(round(share * num), 1), num - 1)
    if take <= 0:
        return rows, _EMPTY
    mixed = rows[rng.permutation(key, num)]
    ordered = mixed[np.argsort(y[mixed], kind="stable")]
    start = float(key.words(num)[-1]) * 2.0**-32
    taken = np.zeros(num, np.bool_)
    taken[np.floor((np.arange(take) + start) * (num / take)).astype(np.int64)] = True
    return np.sort(ordered[~taken]), np.sort(ordered[taken])


def _finish(federation: Federation, adapt: float) -> Federation:
    if adapt > 0.0:
        raise ConfigError(
            f"adapt is {adapt}, but the test devices of {federation.dataset.name} are its training devices, which have "
            "their own training rows to adapt on; set adapt to 0"
        )
    return federation


def _none(parts: Sequence[Ints]) -> Parts:
    return tuple(_EMPTY for _ in parts)


def _key(seed: int, draw: int, device: int, use: Use = Use.SPLIT) -> Key:
    """Gives the key of a device's draw; partitions are made before round 0, so the round numbers the draws."""
    return rng.key(seed, draw, device, use)


def _check(dataset: Dataset, partition: str, num: int, alpha: float, per_device: int, test: str) -> None:
    if partition not in PARTITIONS:
        raise ConfigError(f"there is no partition {partition!r}{nearest(partition, PARTITIONS)}")
    if test not in TESTS:
        raise ConfigError(f"there is no test {test!r}{nearest(test, TESTS)}")
    if test == "held_out" and not dataset.held_out.any():
        raise ConfigError(f'{dataset.name} has no held-out rows of its publisher; set test to "device"')
    if partition == "natural":
        if not dataset.key:
            raise ConfigError(f'{dataset.name} has no natural devices; set partition to "iid" or "dirichlet"')
        if num:
            raise ConfigError(
                f"num_devices is {num}, but a natural partition has the devices of the data; leave it out"
            )
        return
    if num < 1:
        raise ConfigError(f"num_devices is {num}; partition {partition!r} deals the rows to 1 or more devices")
    if not 0.0 < alpha <= 1e6:
        raise ConfigError(f"alpha is {alpha}; it must be above 0 and at most a million")
    if per_device < 1:
        raise ConfigError(f"classes_per_device is {per_device}; it must be 1 or more")


def _check_shares(public: float, test_fraction: float, adapt: float, max_rows: int, min_rows: int) -> None:
    for name, share, low in (
        ("public", public, 0.0),
        ("adapt", adapt, 0.0),
        ("test_fraction", test_fraction, 1e-9),
    ):
        if not low <= share < 1.0 or not math.isfinite(share):
            raise ConfigError(
                f"{name} is {share}; it is a share and must lie {'above' if low else 'from'} 0 and below 1"
            )
    if max_rows < 0 or min_rows < 1 or (max_rows and max_rows < min_rows):
        raise ConfigError(
            f"max_rows is {max_rows} and min_rows {min_rows}; min_rows is 1 or more, max_rows 0 or above it"
        )
