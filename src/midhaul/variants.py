"""What each device of a fleet gets: its board, the largest variant of the tiny model that fits it, and what it needs.

A variant is the model at a width, up to a cut, with adapters of a rank, or another model. A scheme says which of these
may differ (`Scheme.differs`); the config names the candidates, or deals them out itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from midhaul import budget, rng, tree
from midhaul.budget import Budget
from midhaul.config import Config, dealt
from midhaul.data import Dataset, Federation
from midhaul.devices import profiles
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError, ConfigError, SliceError, nearest
from midhaul.fleet import Group
from midhaul.kit import Kit, Scheme
from midhaul.link import radio as radios
from midhaul.link import update
from midhaul.message import Op
from midhaul.models import slices
from midhaul.models.adapters import add_lora
from midhaul.models.prepare import Prepared
from midhaul.models.slices import CutPoint
from midhaul.program import Indices, Population, Program
from midhaul.units import format_bytes

Needs = Callable[["Variant", Board], Budget]


@dataclass(frozen=True)
class Variant:
    """What of the model lies on a device."""

    width: float = 1.0
    cut: str = ""
    rank: int = 0
    model: str = ""

    @property
    def about(self) -> str:
        """What sets it apart, in a few words; nothing where nothing does."""
        told = [f"width {self.width:g}"] if self.width != 1.0 else []
        told += [f"cut {self.cut}"] if self.cut else []
        told += [f"rank {self.rank}"] if self.rank else []
        return ", ".join([self.model, *told] if self.model else told)


def names(text: str) -> list[str]:
    """Gives the boards that fleet.board names. Raises: ConfigError for one that isn't known."""
    return [profiles.get(part.partition("*")[0].strip()).name for part in text.split(",")]


def boards(text: str, num_devices: int) -> list[Board]:
    """Gives the board of each device. `a,b` cycles over the devices; `a*3,b*7` are the first three and the other seven.

    Raises: ConfigError for an unknown board, a count that is no number, or counts that don't add up.

    >>> [board.name for board in boards("stm32l4*2,nrf52840*1", 3)]
    ['stm32l4', 'stm32l4', 'nrf52840']
    """
    names(text)
    return [profiles.get(name) for name in dealt("fleet.board", text, num_devices)]


def candidates(
    config: Config, differs: str, cuts: Sequence[CutPoint] = (), num_devices: int = 0
) -> tuple[list[Variant], bool]:
    """Gives the variants that the config names, the largest first, and whether it deals them out itself, in turn.

    Raises: ConfigError for what can't be dealt, or not to so many devices.
    """
    cfg = config.scheme

    def each(name: str, text: str) -> str:
        return ",".join(dealt(name, text, num_devices)) if "*" in text else text

    if differs == "width":
        mix = each("scheme.width_mix", cfg.width_mix)
        widths = _numbers("scheme.width_mix" if mix else "scheme.widths", mix or cfg.widths, 1.0)
        found = [Variant(width=value) for value in widths]
        return (found, True) if cfg.width_mix else (sorted(found, key=lambda v: -v.width), False)
    if differs == "rank":
        # one rank for all, if it is named
        in_turn = each("scheme.rank_mix", cfg.rank_mix) or str(config.tiny.lora_rank or "")
        ranks = _numbers("scheme.rank_mix" if cfg.rank_mix else "scheme.ranks", in_turn or cfg.ranks, 1e6)
        if any(value != int(value) for value in ranks):
            raise ConfigError(f"a rank is a whole number, and one of {in_turn or cfg.ranks!r} isn't")
        found = [Variant(rank=int(value)) for value in ranks]
        return (found, True) if in_turn else (sorted(found, key=lambda v: -v.rank), False)
    if differs == "cut":
        named = [name.strip() for name in each("scheme.cut", cfg.cut).split(",") if name.strip()]
        return [Variant(cut=name) for name in named or [point.name for point in reversed(cuts)]], bool(named)
    if differs == "model":
        return [Variant(model=name.strip()) for name in config.tiny.model.split(",")], True
    return [Variant()], True


def deal(found: list[Variant], dealt: bool, held: Sequence[Board], needs: Needs, *, enforce: bool) -> list[Variant]:
    """Gives the variant of each device: in turn where they are dealt, else the largest that its board has room for.

    Raises: BudgetError if not even the smallest fits.
    """
    if dealt:
        return [found[device % len(found)] for device in range(len(held))]
    chosen: dict[str, Variant] = {}
    for board in held:
        if board.name in chosen:
            continue
        fits = partial(_fits, needs, board)
        best = next(filter(fits, found), None)
        if best is None and enforce:
            need = needs(found[-1], board)
            short = "SRAM" if need.over_sram_bytes else "flash"
            over = need.over_sram_bytes or need.over_flash_bytes
            raise BudgetError(
                f"not even the smallest variant ({found[-1].about}) fits {board.name}: {over:,} B of {short} over; "
                "choose a smaller model or a larger board"
            )
        chosen[board.name] = best or found[-1]
    return [chosen[board.name] for board in held]


def _fits(needs: Needs, board: Board, variant: Variant) -> bool:
    return needs(variant, board).fits


def _numbers(name: str, text: str, most: float) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0.0 < value <= most for value in values):
        raise ConfigError(f"{name} is {text!r}; write numbers above 0 and at most {most:g} with commas between them")
    return values


def of_devices(
    config: Config,
    scheme: Scheme,
    prepared: Prepared,
    held: list[Board],
    data: Dataset,
    federation: Federation,
    start: rng.Key,
) -> list[Variant]:
    """Gives the variant of the model that each device gets."""
    if scheme.differs != "none" and config.tiny.precision == "int8":
        raise ConfigError(
            f"devices of the scheme {scheme.name} differ, which int8 models can't; set tiny.precision = 'float32'"
        )
    shape, num_rows = data.input_shape, most_rows(federation.train)
    points = slices.cut_points(prepared.module, shape) if scheme.differs == "cut" else ()
    found, in_turn = candidates(config, scheme.differs, points, len(held))

    def needs(variant: Variant, board: Board) -> Budget:
        module = prepared.module
        if variant.width != 1.0:
            module = slices.width(module, variant.width, shape)[0]
        if variant.rank:
            module = with_lora(module, variant.rank, config, start)
        return _need(config, scheme, module, board, shape, num_rows, variant, enforce=False)

    return deal(found, in_turn, held, needs, enforce=config.fleet.check)


def deepest(dealt: list[Variant], prepared: Prepared, data: Dataset) -> str:
    """Gives the last of the layers that devices are cut behind, where they are cut apart."""
    cuts = {variant.cut for variant in dealt}
    if cuts == {""}:
        return ""
    order = [point.name for point in slices.cut_points(prepared.module, data.input_shape)]
    if odd := sorted(cuts - set(order)):
        raise SliceError(f"{odd[0]!r} in scheme.cut is no layer to cut behind{nearest(odd[0], order)}")
    return max(cuts, key=order.index)


def groups(
    kit: Kit,
    scheme: Scheme,
    models: dict[str, Prepared],
    dealt: list[Variant],
    deepest: str,
    held: list[Board],
    population: Population,
    start: rng.Key,
    first: Sequence[Variant],
) -> tuple[Group, ...]:
    """Gives the devices by what lies on them; new test devices have the largest of the models, or scheme.test_width.

    `first` is what was dealt at first: what is tested stays as it was, where it was dealt anew since.
    """
    kinds, at_first = ([(v, board.name) for v, board in zip(each, held, strict=True)] for each in (dealt, first))
    programs: dict[Variant, Program] = {}
    for variant in (*dealt, *first):
        if variant not in programs:
            programs[variant] = _program(kit, models, variant, deepest, max(first, key=lambda v: v.rank).rank, start)
    tested = max(dict.fromkeys(at_first), key=lambda kind: tree.num_parameters(programs[kind[0]].initial))
    if scheme.differs == "width" and kit.cfg.test_width:
        wanted = Variant(width=kit.cfg.test_width)
        tested = next((kind for kind in at_first if kind[0] == wanted), (wanted, tested[1]))
        programs.setdefault(wanted, _program(kit, models, wanted, deepest, 0, start))
    radio = kit.config.link.radio
    found = []
    for kind in dict.fromkeys([*kinds, tested]):
        devices = tuple(device for device, own in enumerate(kinds) if own == kind)
        tests = devices if population.own_test else population.test_devices if kind == tested else ()
        if not devices and not tests:
            continue
        variant, board = kind[0], profiles.get(kind[1])
        on = radios.get(board.radio if radio == "auto" else radio)
        told = (variant.width, variant.cut, variant.rank, variant.model)
        found.append(Group(devices, tests, programs[variant], board, on, *told))
    return tuple(found)


def _program(
    kit: Kit, models: dict[str, Prepared], variant: Variant, deepest: str, largest: int, start: rng.Key
) -> Program:
    """Gives the program of a variant of the model; the kit's own where the variant is all of it."""
    base, (first, prepared) = kit.program, next(iter(models.items()))
    if variant.width != 1.0:
        return Program(slices.width(base.module, variant.width, base.input_shape)[0], base.input_shape)
    if variant.cut != deepest:
        return Program(slices.cut(base.module, variant.cut, base.input_shape, bare=True)[0], base.input_shape)
    if variant.rank < largest:
        return Program(with_lora(prepared.module, variant.rank, kit.config, start), base.input_shape)
    if variant.model not in ("", first):
        return Program(models[variant.model].module, base.input_shape)
    return base


def with_lora(module: nn.Module, rank: int, config: Config, start: rng.Key) -> nn.Module:
    """Gives the module with adapters of a rank, drawn from the run's key."""
    return add_lora(module, rank, config.tiny.lora_scale * rank, config.tiny.lora_targets, start.at(3))


def about(group: Group, need: Budget) -> str:
    """Says of a group what its devices are, as a line for a person."""
    what = Variant(group.width, group.cut, group.rank, group.model).about or "the same model"
    return (
        f"{len(group.devices)} devices on {group.board.name}: {what}, "
        f"{tree.num_parameters(group.program.initial):,} parameters, {format_bytes(need.sram_bytes)} SRAM"
    )


def need_of(group: Group, kit: Kit, scheme: Scheme, module: nn.Module, federation: Federation) -> Budget:
    """Gives the need of a group's devices. Raises: BudgetError if their board has less."""
    variant = Variant(group.width, group.cut or kit.cfg.cut, group.rank, group.model)
    return _need(
        kit.config,
        scheme,
        module,
        group.board,
        group.program.input_shape,
        most_rows(federation.train[device] for device in group.devices),
        variant,
        tail=group.program.tail,
        enforce=kit.config.fleet.check,
    )


def _need(
    config: Config,
    scheme: Scheme,
    whole: nn.Module,
    board: Board,
    shape: tuple[int, ...],
    num_rows: int,
    variant: Variant,
    *,
    tail: nn.Module | None = None,
    enforce: bool,
) -> Budget:
    """Gives the largest need of the scheme's work on a device. Raises: BudgetError if the board has less."""
    cfg = config.scheme
    taken = takes_body(config, scheme)
    model = f"{config.large.model} cut behind {cfg.body_cut}" if taken else variant.model or config.tiny.model
    if scheme.part == "emulator":
        model = f"the emulator of {config.large.model}"
    if variant.width != 1.0 or variant.rank:
        model = f"{model} ({Variant(variant.width, rank=variant.rank).about})"
    # A device that only hands over its examples holds no model.
    needs = [
        budget.require(
            nn.Identity() if work.op == Op.READ else whole,
            shape,
            board,
            work.op,
            model=model,
            spec=work.train if work.op == Op.FIT or work.train == "lora" else "none",
            cut=variant.cut if work.op in (Op.FORWARD, Op.BACKWARD) else "",
            batch=cfg.batch or 1,
            num_rows=num_rows + config.fleet.replay,
            momentum=cfg.momentum > 0.0,
            keeps_start=keeps_start(config, scheme),
            learning=work.learning,
            owes=owes(config),
            places=places(config),
            enforce=enforce,
        )
        for work in scheme.work(cfg)
    ]
    if tail is not None:
        needs.append(
            budget.plan(
                tail,
                (cfg.features,),
                board,
                Op.BACKWARD,
                train=[name for name, _ in tail.named_parameters()],
                batch=cfg.batch or 1,
                is_tail=True,
                momentum=cfg.momentum > 0.0,
                resident_bytes=max(need.sram_bytes for need in needs) - budget.runtime_sram_bytes(board),
            )
        )
    memory = budget.replay_bytes(shape, config.fleet.replay)
    flash = max(need.flash_bytes for need in needs) + memory
    if memory and enforce and flash > board.flash_bytes:
        raise BudgetError(
            f"{model} and a replay memory of {config.fleet.replay} rows ({memory:,} B) need {flash:,} B of flash on "
            f"{board.name} ({board.flash_bytes:,} B); lower fleet.replay or choose a larger board"
        )
    most = max(needs, key=lambda need: need.sram_bytes)
    return dataclasses.replace(most, flash_bytes=flash)


def keeps_start(config: Config, scheme: Scheme) -> bool:
    """Tells whether a device keeps the values that it began an op with."""
    is_prox = scheme.name == "fedprox" and config.scheme.proximal_mu > 0.0
    return config.privacy.clip > 0.0 or is_prox or update.differs(config.link.up, config.link.down)


def owes(config: Config) -> bool:
    """Tells whether a device keeps what coding takes from its updates."""
    up = update.parse(config.link.up, "link.up")
    return up is not None and up.is_biased and config.link.error_feedback


def places(config: Config) -> float:
    """Gives the share of an update's numbers whose places a device keeps while it takes a coded message in."""
    down = update.parse(config.link.down, "link.down")
    if down is None or not (down.select or down.value == "qsgd"):
        return 0.0
    return down.much if down.select else 1.0


def tightest(needs: Sequence[Budget]) -> int:
    """Gives the place of the budget that leaves the least SRAM free."""
    return max(range(len(needs)), key=lambda place: needs[place].sram_bytes / needs[place].board.sram_bytes)


def takes_body(config: Config, scheme: Scheme) -> bool:
    """Tells whether the tiny model's body is the large model's own first layers."""
    return scheme.family == "FTL" and scheme.large == "teacher" and config.scheme.body == "cut"


def most_rows(rows: Iterable[Indices]) -> int:
    """Gives the largest number of rows of any device, 1 where there is none."""
    return max((len(own) for own in rows), default=1)
