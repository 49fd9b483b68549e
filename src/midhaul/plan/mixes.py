"""A candidate in which every device has an option of its own: the best choice within what a round may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from midhaul.choices import Choice, Options, choose
from midhaul.config import Config, counted, dealt
from midhaul.data import Dataset, Federation
from midhaul.goals import Goal, shown
from midhaul.offers import Offer, Offers, can_have_bits, changes_of, differ, of_fleet
from midhaul.plant import Plant, build

# What may be dealt with a count for each device.
_DEALT = ("fleet.board", "scheme.width_mix", "scheme.rank_mix", "scheme.cut", "link.up_bits")
SHARES = (0.5, 0.15)  # of the way from the leanest round to one in which each has the most that fits it


@dataclass(frozen=True)
class Recipe:
    """How a mix is chosen, for whichever devices there are: all but the worth of a round follows from it.

    `cost` is what is to be saved, of goals.COSTS, and `share` how far from the leanest round it may come; `limits` are
    what a round may take besides.
    """

    cost: str
    share: float
    limits: tuple[tuple[str, float], ...]
    with_bits: bool


@dataclass(frozen=True)
class Mix:
    """The settings that deal each device its option, what they come to in words, and whether anything is over."""

    recipe: Recipe
    changes: tuple[tuple[str, Any], ...]
    label: str
    about: str
    num_devices: int
    nearest: str = ""


def recipes(plant: Plant, goal: Goal, rounds: int) -> list[Recipe]:
    """Gives the mixes that are worth a try for a plant that is expected to run so many rounds; none where all devices
    are alike, or can't be given unlike things."""
    if not differ(plant):
        return []
    limits = tuple((cost, most / rounds) for cost, most in goal.limits)
    if plant.config.fleet.round_deadline_s:
        limits += (("seconds", plant.config.fleet.round_deadline_s),)
    dealt = plant.scheme.differs in ("cut", "width", "rank")
    found = [Recipe(goal.least, SHARES[0], limits, with_bits=False)] if dealt else []
    if can_have_bits(plant):
        found += [Recipe(goal.least, share, limits, with_bits=True) for share in SHARES]
    return found


def mix(recipe: Recipe, plant: Plant, config: Config, data: Dataset, offers: Offers | None = None) -> Mix:
    """Gives the best mix by a recipe for a plant that was built of this config and data.

    Raises: MidhaulError where an option can't be built, or a device has room for none.
    """
    found = offers or of_fleet(plant, config, data, with_bits=recipe.with_bits)
    best, limits = chosen(recipe, found, plant)
    picked = [found.offers[place] for place in best.picks]
    told = label(picked), _about(picked, plant, best), len(picked), _nearest(best, limits)
    return Mix(recipe, changes_of(picked, plant), *told)


def for_others(
    made: Mix | None, config: Config, num_devices: int, data: Dataset, held: Federation | None = None
) -> tuple[tuple[str, Any], ...]:
    """Gives what the devices of other data, or of a federation, are dealt in place of what a config has for
    `num_devices`; nothing where they are as many, or nothing is dealt with counts.

    A mix's recipe deals anew. What a person dealt goes to as large a part of them: of 3 + 3 boards, 2 + 2 to four.
    Raises: MidhaulError as `mix`.
    """
    named = {name: attrgetter(name)(config) for name in _DEALT}
    each = {name.replace(".", "_"): dealt(name, text, num_devices) for name, text in named.items() if "*" in text}
    if not each:
        return ()
    plain = config.replace(**{name: values[0] for name, values in each.items()}, fleet_check=False)
    held = held or build(plain, dataset=data).federation
    num = held.num_devices
    if num == num_devices:
        return ()
    like = [(2 * device + 1) * num_devices // (2 * num) for device in range(num)]
    changes: dict[str, Any] = {name: counted(values[place] for place in like) for name, values in each.items()}
    if made is not None:
        own = {name: "" for name, _ in made.changes if name != "link_up"}
        bare = config.replace(**{**changes, **own})
        changes.update(mix(made.recipe, build(bare, dataset=data, federation=held), bare, data).changes)
    return tuple(changes.items())


def chosen(recipe: Recipe, found: Offers, plant: Plant) -> tuple[Choice, dict[str, float]]:
    """Gives the choice by a recipe, and the limits of a round in which every device takes part that it was made in.

    With a cohort a device is in a round as often as chance has it, so that sums are a cohort's share of all devices';
    seconds are those of the slowest, whoever takes part.
    """
    num = len(plant.engine.devices)
    times = num / plant.kit.cohort_size(num)
    sums = {name: getattr(found, name) for name in ("joules", "bytes", "uplink_bytes", "downlink_bytes")}
    options = Options(
        found.value, sums, {"seconds": found.seconds}, found.fits, "" if recipe.cost == "seconds" else recipe.cost
    )
    limits: dict[str, float] = {}
    for cost, most in recipe.limits:
        limits[cost] = min(limits.get(cost, most), most) * (1.0 if cost == "seconds" else times)
    least = choose(Options(-getattr(found, recipe.cost), sums, {"seconds": found.seconds}, found.fits), {})
    most = choose(options, {}).taken[recipe.cost]
    between = least.taken[recipe.cost] + recipe.share * (most - least.taken[recipe.cost])
    if between > 0.0:
        limits[recipe.cost] = min(limits.get(recipe.cost, between), between)
    return choose(options, limits), {
        cost: most / (1.0 if cost == "seconds" else times) for cost, most in limits.items()
    }


def label(picked: Sequence[Offer]) -> str:
    """Gives who has what, in a few words.

    >>> from midhaul.variants import Variant
    >>> label([Offer(Variant(width=0.5)), Offer(Variant()), Offer(Variant(width=0.5))])
    'width 0.5 on 2, 1 on 1'
    """
    told = []
    for name, values in (
        ("cut", [offer.variant.cut for offer in picked]),
        ("width", [f"{offer.variant.width:g}" for offer in picked]),
        ("rank", [offer.variant.rank for offer in picked]),
        ("bits", [offer.bits for offer in picked]),
    ):
        counts = Counter(values)
        if len(counts) > 1 or next(iter(counts)) not in ("", "1", 0):
            told.append(f"{name} " + ", ".join(f"{value} on {num}" for value, num in counts.most_common()))
    return "; ".join(told) or "width 1 on all"


def _about(picked: Sequence[Offer], plant: Plant, best: Choice) -> str:
    """Says which boards have what, and how near to the best of all mixes that is."""
    boards = {device: group.board.name for group in plant.kit.groups for device in group.devices}
    each: dict[str, list[Offer]] = {}
    for device, offer in enumerate(picked):
        each.setdefault(boards[device], []).append(offer)
    told = ". ".join(f"{len(own)} devices on {board}: {label(own)}" for board, own in sorted(each.items()))
    return f"{told}. By the reckoning of docs/plan.md no other mix is worth {100.0 * best.gap:.2g} % more."


def _nearest(best: Choice, limits: dict[str, float]) -> str:
    """Says by how much even the nearest mix is over a round's limits; nothing where it isn't."""
    return " and ".join(
        f"no mix keeps a round within {shown(cost, limits[cost])} of {cost}, the nearest is {100.0 * over:.2g} % over"
        for cost, over in best.over.items()
    )
