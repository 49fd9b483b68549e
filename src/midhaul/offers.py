"""What each device's options take and are worth in a round: a cut, a width or a rank of the model, and bits sent.

Flash and SRAM are the exact budget of each option on each board (`plant.build`). Joules, seconds and bytes are reckoned
without simulating anything: multiplications by the board, frames packed once with random numbers in place of weights,
carried by each device's own radio as its cell, its trace or its own figures have it.

What an option is worth is a proxy, for lack of anything better that costs nothing: the rows that a device has, times
the share of the largest option's trained parameters that it trains, over 1 + w, where w is what coding to so many bits
adds to an update's variance, measured on normal numbers. A cut is worth the same wherever it is, as the server trains
what a device doesn't. A plan doesn't believe it: it simulates what comes of it.

Limits: frames aren't lost, nobody waits for the air, radios at rest cost nothing, activations count uncoded.

Shape letters: D devices that train, O options.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from midhaul import rng, tree, variants
from midhaul.choices import Array, Flags, Ints
from midhaul.config import Config, counted
from midhaul.data import Dataset
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, SliceError
from midhaul.fleet import Group
from midhaul.link import air, frame, update
from midhaul.link.conditions import Conditions
from midhaul.link.frame import Frame
from midhaul.message import UPDATE, Kind, Op
from midhaul.models import slices, tiny
from midhaul.models.slices import CutPoint
from midhaul.plant import Plant, build
from midhaul.runtime.choosing import works
from midhaul.runtime.ledger import Ledger
from midhaul.runtime.participation import speed
from midhaul.runtime.spending import Spending
from midhaul.runtime.updates import Updates
from midhaul.tree import Tree
from midhaul.variants import Variant

BITS = (8, 6, 4, 3)
CODED = "delta,quantise:8"  # how updates travel that have bits of their own
Built = tuple[Variant, Plant]  # what of the model lies on every device, and the plant in which it does
DIFFERS = ("cut", "width", "rank")
MOST = 6  # cuts, widths or ranks that are looked at


class Offer(NamedTuple):
    """An option: what of the model lies on a device, and the bits of an update, 0 where it isn't coded."""

    variant: Variant
    bits: int = 0


@dataclass(frozen=True)
class Offers:
    """Options of devices. Shapes: [D, O] each, `now` [D] the options as the config deals them, -1 for none of these.

    Units: joules, seconds and bytes of a round in which the device takes part.
    """

    offers: tuple[Offer, ...]
    value: Array
    joules: Array
    seconds: Array
    uplink_bytes: Array
    downlink_bytes: Array
    fits: Flags
    now: Ints

    @property
    def bytes(self) -> Array:
        """All bytes, up and down."""
        return self.uplink_bytes + self.downlink_bytes


class _Round(NamedTuple):
    """What a round asks of a device: once, and for each example; whether it speaks with each batch or once."""

    macs_row: float
    macs: float
    up_row: float
    up: float
    down_row: float
    down: float
    in_batches: bool


class _Way(NamedTuple):
    """What messages one way take a device: each, and for each byte. Units: seconds, joules."""

    each_s: float
    byte_s: float
    each_j: float
    byte_j: float


def of_fleet(plant: Plant, config: Config, data: Dataset, *, with_bits: bool) -> Offers:
    """Gives the options of the devices of a plant that was built of this config and data.

    Raises: MidhaulError where an option can't be built.
    """
    built = [(variant, _built(variant, plant, config, data)) for variant in _variants(plant)]
    return reckoned(plant, built, BITS if with_bits else (0,), 1, 0.0)


def as_dealt(plant: Plant, bits: Sequence[int], round: int, time_s: float) -> Offers:
    """Gives the options of devices that keep what of the model they hold, and may send it in so many bits (0: as
    link.up says), with their radios as they are in a round. Nothing is built."""
    return reckoned(plant, [(Variant(), plant)], tuple(bits), round, time_s)


def anew(plant: Plant, first: Sequence[Variant]) -> list[Built]:
    """Gives the cuts, widths or ranks that may be dealt out while a run is under way, the largest first: those that it
    began with (`first`), and those that the config knows and none of which is larger."""
    assert plant.redeal is not None
    differs = plant.scheme.differs
    found: list[Built] = []
    for variant in dict.fromkeys([*first, *_variants(plant)]):
        if variant in first or _is_within(variant, first, plant):
            with contextlib.suppress(SliceError, ConfigError):  # activations at this cut can't be coded as [link] asks
                own = plant.redeal([variant] * len(first), False)
                found.append((variant, replace(own, engine=plant.engine)))
    size = {variant: _held(own) for variant, own in found}
    return sorted(found, key=lambda built: (-size[built[0]], getattr(built[0], differs)))


def _is_within(variant: Variant, first: Sequence[Variant], plant: Plant) -> bool:
    """Tells whether a variant is a part of the largest of those that a run began with."""
    differs = plant.scheme.differs
    if differs != "cut":
        return bool(getattr(variant, differs) <= max(getattr(one, differs) for one in first))
    program = plant.kit.program
    return variant.cut in [point.name for point in slices.cut_points(program.module, program.input_shape)]


def _held(plant: Plant) -> int:
    """Gives the parameters that a device of a plant holds whose devices are alike."""
    return tree.num_parameters(next(group for group in plant.kit.groups if group.devices).program.initial)


def reckoned(
    plant: Plant, built: Sequence[tuple[Variant, Plant]], all_bits: Sequence[int], round: int, time_s: float
) -> Offers:
    """Gives what devices take with each variant of the model, in each number of bits."""
    config, num = plant.config, len(plant.federation.train)
    offers = [Offer(variant, bits) for variant, _ in built for bits in all_bits]
    rows = np.asarray([len(own) for own in plant.federation.train], np.float64)
    parts = {name: np.zeros((num, len(offers))) for name in ("joules", "seconds", "uplink_bytes", "downlink_bytes")}
    share, fits = np.zeros((num, len(offers))), np.zeros((num, len(offers)), np.bool_)
    ways = _ways(plant, round, time_s)
    places = [(own, bits) for _, own in built for bits in all_bits]
    for place, (own, bits) in enumerate(places):
        groups = [group for group in own.kit.groups if group.devices]
        for group, need in zip(groups, own.needs, strict=True):
            asked, noise = _round(own, group, bits)
            devices = np.asarray(group.devices, np.int64)
            costs = _costs(asked, group.board, rows[devices], [ways[device] for device in group.devices], config)
            for name, each in zip(parts, costs, strict=True):
                parts[name][devices, place] = each
            trained = 1.0 if plant.scheme.differs == "cut" else _trained(own, group)
            share[devices, place] = trained / (1.0 + noise)
            fits[devices, place] = need.fits or not config.fleet.check
    spread, seed = config.fleet.speed_spread, config.run.seed
    parts["seconds"] *= np.asarray([speed(spread, device, seed) for device in range(num)])[:, None]
    served = np.asarray([ways[device] is not None for device in range(num)])
    largest = 1.0 if plant.scheme.differs == "cut" else _largest(built)
    value = np.where(served, rows, 0.0)[:, None] * share / largest
    return Offers(tuple(offers), value, **parts, fits=fits, now=_now(plant, offers))


def _largest(built: Sequence[tuple[Variant, Plant]]) -> float:
    """Gives the most parameters that any device trains with any variant."""
    return max(1.0, *(_trained(own, group) for _, own in built for group in own.kit.groups if group.devices))


def _variants(plant: Plant) -> list[Variant]:
    """Gives the cuts, widths or ranks that a scheme's devices may have, the largest first."""
    config, differs = plant.config, plant.scheme.differs
    if differs not in DIFFERS:
        return [Variant()]
    points: tuple[CutPoint, ...] = ()
    if differs == "cut":
        shape = plant.dataset.input_shape
        module = tiny.build(config.tiny.model, shape, plant.dataset.num_classes, **config.tiny.options)
        points = _apart(module, shape, slices.cut_points(module, shape))
    plain = config.replace(scheme_width_mix="", scheme_rank_mix="", **({"scheme_cut": ""} if differs == "cut" else {}))
    found, _ = variants.candidates(plain, differs, points)
    if len(found) > MOST:
        found = [found[round(place)] for place in np.linspace(0, len(found) - 1, MOST)]
    return found


def _apart(module: nn.Module, shape: tuple[int, ...], points: Sequence[CutPoint]) -> tuple[CutPoint, ...]:
    """Gives of the cuts with the same parameters in front of them the one that sends least, the last of these."""
    best: dict[int, CutPoint] = {}
    for point in points:
        held = sum(value.numel() for value in slices.cut(module, point.name, shape)[0].parameters())
        if held not in best or math.prod(point.shape) <= math.prod(best[held].shape):
            best[held] = point
    return tuple(best.values())


def dealing(found: Sequence[Variant], differs: str) -> dict[str, str]:
    """Gives the settings that deal these to devices, by what of them differs; nothing where nothing does."""
    if differs == "cut":
        return {"scheme_cut": counted([one.cut for one in found])}
    if differs == "width":
        return {"scheme_width_mix": counted([f"{one.width:g}" for one in found])}
    return {"scheme_rank_mix": counted([str(one.rank) for one in found])} if differs == "rank" else {}


def _built(variant: Variant, plant: Plant, config: Config, data: Dataset) -> Plant:
    """Gives the plant whose devices all have a variant, whether it fits their boards or not."""
    if plant.scheme.differs not in DIFFERS:
        return plant
    alone = dealing([variant] * len(plant.federation.train), plant.scheme.differs)
    return build(config.replace(**alone, fleet_check=False), dataset=data, federation=plant.federation)


def _now(plant: Plant, offers: Sequence[Offer]) -> Ints:
    held = {d: (g.width, g.cut, g.rank) for g in plant.kit.groups for d in g.devices}
    alike = plant.scheme.differs not in DIFFERS or len({variant for variant, _ in offers}) == 1
    places = {}
    for place, (variant, bits) in reversed(list(enumerate(offers))):
        if bits in (0, BITS[0]):
            places[() if alike else (variant.width, variant.cut, variant.rank)] = place
    return np.asarray([places.get(() if alike else held[d], -1) for d in range(len(plant.federation.train))], np.int64)


def _trained(plant: Plant, group: Group) -> float:
    """Gives how many parameters a device of a group trains in a round."""
    names = {n for work in plant.scheme.work(plant.kit.cfg) for n in _names(group, work.op, work.train)}
    return float(tree.num_parameters(tree.select(group.program.initial, names)))


def _names(group: Group, op: Op, train: str) -> tuple[str, ...]:
    return group.program.names(train) if op in (Op.FIT, Op.BACKWARD) else ()


def _round(plant: Plant, group: Group, bits: int) -> tuple[_Round, float]:
    """Gives what a round asks of a device of a group, and the variance that coding to so many bits adds."""
    asked = list(works(plant.kit, plant.scheme, group))
    macs_row, up_row, down_row = (sum(each[place] for each in asked) for place in (0, 1, 2))
    up, down = sum(each[3] for each in asked), sum(each[4] for each in asked)
    split = any(work.op == Op.FORWARD for work in plant.scheme.work(plant.kit.cfg))
    sent: Tree = {}
    for work in plant.scheme.work(plant.kit.cfg):
        if work.op == Op.FIT:
            sent = tree.select(group.program.initial, group.program.sendable(work.train))
    if split and Kind.WEIGHTS in plant.scheme.up:
        sent = group.program.initial
        up += air.of(Op.LOAD, sent).up_bytes + air.of(Op.READ, sent).up_bytes
        down += air.of(Op.LOAD, sent).down_bytes + air.of(Op.READ, sent).down_bytes
    link, macs, noise = plant.config.link, 0.0, 0.0
    how_up = update.parse(CODED if bits and link.up == "none" else link.up, "link.up")
    if how_up is not None and bits:
        how_up = replace(how_up, level=float(bits))
    if how_up is not None and sent and Kind.WEIGHTS in plant.scheme.up:
        saved, noise, macs = _saved(sent, Updates(up=how_up), up=True)
        up -= saved
    how_down = update.parse(link.down, "link.down")
    if how_down is not None and sent and Kind.WEIGHTS in plant.scheme.down:
        down -= _saved(sent, Updates(down=how_down), up=False)[0]
    return _Round(macs_row, macs, up_row, up, down_row, down, split), noise if bits else 0.0


def _saved(like: Tree, updates: Updates, *, up: bool) -> tuple[float, float, float]:
    """Gives the bytes that coding saves of weights, the variance that it adds to them, as a share of their square, and
    its multiplications; on numbers drawn normally, around what both ends hold."""
    key = rng.key(0, 1, 0, rng.Use.CODE)
    drawn = rng.normal(key, tree.num_parameters(like)).astype(np.float32)
    parts = torch.split(torch.from_numpy(drawn), [value.numel() for value in like.values()])
    whole = {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
    updates.held[0] = updates.meant[0] = {name: torch.zeros_like(value) for name, value in whole.items()}
    sent = updates.send_up(whole, 0, key, 1) if up else updates.send_down(whole, 0, key, 1)
    if UPDATE not in sent.coded:
        return 0.0, 0.0, 0.0
    plain = frame.num_bytes(Frame(Op.FIT, up, 1, 0, {}, whole))
    code = sent.coded[UPDATE]
    got = update.decode(len(drawn), code.data)
    wanted = sent.tree[UPDATE].numpy().astype(np.float64)
    noise = float(np.square(got - wanted).sum() / np.square(wanted).sum())
    return plain - frame.num_bytes(Frame(Op.FIT, up, 1, 0, {}, sent.tree, coded=sent.coded)), noise, float(code.macs)


def _costs(
    asked: _Round, board: Board, rows: Array, ways: Sequence[tuple[_Way, _Way] | None], config: Config
) -> tuple[Array, Array, Array, Array]:
    """Gives joules, seconds, bytes up and bytes down of devices with one board. Shapes: rows [K] -> [K] each."""
    epochs = config.scheme.epochs
    examples = epochs * rows
    batches = epochs * np.ceil(rows / (config.scheme.batch or np.maximum(rows, 1.0)))
    trips = 2.0 * batches + 2.0 * (asked.up > 0.0) if asked.in_batches else np.ones(len(rows))
    busy_s = (examples * asked.macs_row + asked.macs) * board.cycles_per_mac_f32 / board.clock_hz
    up, down = examples * asked.up_row + asked.up, examples * asked.down_row + asked.down
    none = _Way(0.0, 0.0, 0.0, 0.0)
    out, back = (np.asarray([(way or (none, none))[place] for way in ways]).reshape(-1, 4) for place in (0, 1))
    there = np.asarray([way is not None for way in ways])
    seconds = busy_s + trips * (out[:, 0] + back[:, 0]) + up * out[:, 1] + down * back[:, 1]
    joules = busy_s * board.active_w + trips * (out[:, 2] + back[:, 2]) + up * out[:, 3] + down * back[:, 3]
    return joules * there, seconds * there, up * there, down * there


def _ways(plant: Plant, round: int, time_s: float) -> dict[int, tuple[_Way, _Way] | None]:
    """Gives what each device's radio takes, up and down; None where there is no coverage."""
    config, devices = plant.config, plant.engine.devices
    radios = {device: group.radio for group in plant.kit.groups for device in group.devices}
    now = {device: Conditions(radio) for device, radio in radios.items()}
    if plant.around is not None:
        for cohort in _cohorts(devices, plant.kit.cohort_size(len(devices))):
            now |= plant.around.at(round, time_s, cohort)
    spending = Spending(Ledger(), plant.kit.groups, states=config.link.energy == "states")
    known: dict[Conditions | int, tuple[_Way, _Way] | None] = {}
    found: dict[int, tuple[_Way, _Way] | None] = {}
    for device in devices:
        like = id(radios[device]) if plant.around is None else device
        if like not in known:
            own = now[device]
            known[like] = (_way(spending, device, own, up=True), _way(spending, device, own, up=False))
            known[like] = known[like] if own.served else None
        found[device] = known[like]
    return found


def _cohorts(devices: Sequence[int], num: int) -> Iterator[Sequence[int]]:
    """Gives the devices in cohorts that could share their cell's band in a round."""
    parts = max(1, math.ceil(len(devices) / num))
    for first in range(parts):
        yield devices[first::parts]


def _way(spending: Spending, device: int, own: Conditions, *, up: bool) -> _Way:
    """Gives the line through what two messages take."""
    points = [spending.price(device, own, num_bytes, 1, up=up) for num_bytes in (1_000, 101_000)]
    byte_s, byte_j = ((points[1][place] - points[0][place]) / 100_000 for place in (0, 1))
    return _Way(points[0][0] - 1_000 * byte_s, byte_s, points[0][1] - 1_000 * byte_j, byte_j)


def changes_of(offers: Sequence[Offer], plant: Plant) -> tuple[tuple[str, Any], ...]:
    """Gives the settings with which each device has its option."""
    found: dict[str, Any] = dealing([offer.variant for offer in offers], plant.scheme.differs)
    if any(offer.bits for offer in offers):
        coded = plant.config.link.up
        found |= {"link_up": CODED if coded == "none" else coded}
        found |= {"link_up_bits": counted([str(offer.bits) for offer in offers])}
    return tuple(found.items())


def can_have_bits(plant: Plant) -> bool:
    """Tells whether devices may have bits of their own."""
    how = plant.config.link.up
    stages = update.parse(how, "link.up")
    plain = how == "none" or (stages is not None and stages.value == "quantise" and not stages.select)
    return plain and Kind.WEIGHTS in plant.scheme.up and not plant.config.link.up_bits


def differ(plant: Plant) -> bool:
    """Tells whether a plant's devices are unlike enough to be given unlike things: boards, or channels."""
    return len({group.board.name for group in plant.kit.groups if group.devices}) > 1 or plant.around is not None
