"""Everything of a run that is built before its first round: data, models, engine, board, and whether they fit.

Here schemes and engines meet.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from midhaul import budget, rng
from midhaul import config as settings
from midhaul.config import Config
from midhaul.data import Dataset, Federation, federate, load
from midhaul.devices import profiles
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, SliceError, nearest
from midhaul.kit import Kit, Scheme
from midhaul.link import radio as radios
from midhaul.link.radio import Radio
from midhaul.message import Op
from midhaul.models import large, slices, tiny, trace
from midhaul.models.adapters import add_lora
from midhaul.models.augment import Rotation
from midhaul.models.entry import Entry
from midhaul.models.int8 import Int8Front
from midhaul.models.prepare import Prepared, prepare
from midhaul.program import Examples, Population, Program
from midhaul.runtime import firmware
from midhaul.runtime.blobs import DeviceBlobs
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.loop import Loop
from midhaul.runtime.places import places
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Progress

Engine = Loop | Stacked | Firmware


@dataclass(frozen=True)
class Plant:
    """Everything of a run that is built before its first round."""

    config: Config
    scheme: Scheme
    dataset: Dataset
    federation: Federation
    kit: Kit
    engine: Engine
    board: Board
    radio: Radio
    need: budget.Budget
    notes: tuple[str, ...]
    tiny_name: str
    large_name: str


def find_scheme(name: str) -> Scheme:
    """Gives a scheme by name. Raises: ConfigError with the nearest known name."""
    if name not in SCHEMES:
        raise ConfigError(f"there is no scheme {name!r}{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def build(
    config: Config,
    *,
    scheme: Scheme | None = None,
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> Plant:
    """Loads the data, builds the models and the engine, and refuses what can't work.

    `scheme`, `module` (the tiny model), `large_module` and `dataset` may be a person's own.
    Raises: MidhaulError, in one sentence, before anything is trained.
    """
    chosen = scheme or find_scheme(config.scheme.name)
    if config.run.engine not in chosen.engines:
        raise ConfigError(
            f"the scheme {chosen.name} can't run on the engine {config.run.engine}; use {' or '.join(chosen.engines)}"
        )
    board = profiles.get(config.fleet.board)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    data = dataset or load(config.data.name, **config.data.options)
    config = _resolved(config, board, data)
    federation = _federate(config, data)
    wants = chosen.needs_public or (chosen.part != "whole" and config.scheme.pretrain)
    if wants and not len(federation.public):
        raise ConfigError(f"the scheme {chosen.name} needs public data on the server; set data.public, for example 0.3")
    if config.fleet.stragglers and config.scheme.epochs < 2:
        raise ConfigError("a straggler does 1 to scheme.epochs - 1 epochs; set scheme.epochs to at least 2")
    start = rng.key(config.run.seed, 0, rng.SERVER, rng.Use.INIT)
    with rng.torch_seed(start):
        own = module or tiny.build(
            config.tiny.model,
            data.input_shape,
            data.num_classes,
            **_options(tiny.TINY, config.tiny.model, config.tiny.options, data),
        )
    prepared = prepare(own, data.input_shape, config.tiny.norm)
    if config.tiny.lora_rank:
        rank = config.tiny.lora_rank
        prepared = prepared._replace(module=add_lora(prepared.module, rank, float(rank), "all", start.at(3)))
    config, program, rear = _parts(config, chosen, prepared, data, large_module, start)
    x, y = (torch.from_numpy(np.require(values, requirements=["C", "W"])) for values in (data.x, data.y))
    population = Population(x, y, federation.train, federation.test, federation.adapt, federation.own_test)
    public = Examples(x, y).at(federation.public)
    degrees = config.large.rotate_deg
    augment = Rotation(degrees, data.centre, data.spread) if degrees else None
    can_adapt = any(len(rows) for rows in federation.adapt)
    kit = Kit(
        config, program, rear, public, data.num_classes, can_adapt, progress, _takes_body(config, chosen), augment
    )
    if config.tiny.precision == "int8":
        kit = _in_int8(kit, chosen, data.input_shape)
        program = kit.program
    engine: Engine
    if config.run.engine == "loop":
        engine = Loop(program, population)
    elif config.run.engine == "firmware":
        engine = _firmware(kit, chosen, program, population, board)
    else:
        engine = Stacked(program, population, settings.parse_bytes(config.run.memory))
    radio = radios.get(config.link.radio)
    device = program.module if chosen.part == "whole" else prepared.module
    need = _need(kit, chosen, device, board, data, max((len(rows) for rows in federation.train), default=1))
    names = (
        type(module).__name__ if module is not None else config.tiny.model,
        type(large_module).__name__ if large_module is not None else config.large.model,
    )
    notes = list(prepared.notes)
    if config.fleet.stragglers and chosen.family != "FL":
        notes.append(f"fleet.stragglers has no effect on {chosen.name}: all its devices do all epochs")
    return Plant(config, chosen, data, federation, kit, engine, board, radio, need, tuple(notes), *names)


def _resolved(config: Config, board: Board, data: Dataset) -> Config:
    """Gives the config with what was left to us filled in, so that what is written says what was done."""
    radio, partition, num = config.link.radio, config.data.partition, config.data.num_devices
    if partition == "auto":
        partition = "natural" if data.key and len(data.device_names) > 1 else "iid"
    return config.replace(
        link_radio=board.radio if radio == "auto" else radio,
        data_partition=partition,
        data_num_devices=num or (0 if partition == "natural" else 10),
    )


def _federate(config: Config, data: Dataset) -> Federation:
    part = config.data
    return federate(
        data,
        partition=part.partition,
        num_devices=part.num_devices,
        alpha=part.alpha,
        classes_per_device=part.classes_per_device,
        public=part.public,
        test=part.test,
        test_fraction=part.test_fraction,
        adapt=part.adapt,
        max_rows=part.max_rows,
        min_rows=part.min_rows,
        seed=config.run.seed,
    )


def _options(catalogue: dict[str, Entry], model: str, given: settings.Options, data: Dataset) -> settings.Options:
    """Gives a builder's options, with the vocabulary of data that are tokens where it asks for one."""
    wants = data.vocabulary and model in catalogue and "vocabulary" in catalogue[model].options
    return {**({"vocabulary": data.vocabulary} if wants else {}), **given}


def _parts(
    config: Config, scheme: Scheme, prepared: Prepared, data: Dataset, given: nn.Module | None, start: rng.Key
) -> tuple[Config, Program, nn.Module | None]:
    """Gives the device's program and the server's model, cut where the scheme wants it."""
    whole, shape, classes = prepared.module, data.input_shape, data.num_classes
    options = _options(large.LARGE, config.large.model, config.large.options, data)
    if scheme.part == "whole":
        rear = (given or _large(config, shape, classes, options, start)) if scheme.large != "none" else None
        if rear is not None and _takes_body(config, scheme):
            layer = config.scheme.body_cut or _first_cut(rear, shape)
            config = config.replace(scheme_body_cut=layer)
            whole = _behind_body(slices.cut(rear, layer, shape)[0], shape, classes, start)
            return config, Program(whole, shape), rear
        return config, Program(whole, shape, personal=prepared.personal), rear
    layer = config.scheme.cut or _first_cut(whole, shape)
    config = config.replace(scheme_cut=layer)
    front, _ = slices.cut(whole, layer, shape)
    with torch.no_grad():
        front.eval()
        example = torch.zeros((1, *shape), dtype=torch.int64 if data.vocabulary else torch.float32)
        smashed = tuple(front(example).shape[1:])
    held = {name for name, _ in [*front.named_parameters(), *front.named_buffers()]}
    personal = tuple(name for name in prepared.personal if name in held)
    if scheme.part == "front":
        rear = given or _large(config, smashed, classes, config.large.options, start)
        return config, Program(front, shape, personal=personal), rear
    features = config.scheme.features
    rear = given or _large(config, smashed, features, config.large.options, start)
    with rng.torch_seed(start.at(2)):
        tail = nn.Sequential(nn.ReLU(), nn.Linear(features, classes))
    return config, Program(front, shape, personal=personal, tail=tail), rear


def _firmware(kit: Kit, scheme: Scheme, program: Program, population: Population, board: Board) -> Firmware:
    """Gives the engine whose first devices are where run.devices says."""
    config = kit.config
    run = config.run
    found = places(run.devices, board, seed=run.seed, keys=run.keys)
    keeps_start = config.privacy.clip > 0.0 or (scheme.name == "fedprox" and kit.cfg.proximal_mu > 0.0)
    firmware.check(program, population, len(found))
    work = [(work.op, work.train) for work in scheme.work(kit.cfg)]
    blobs = DeviceBlobs(program, work, momentum=kit.cfg.momentum > 0.0, keeps_start=keeps_start)
    return Firmware(
        program,
        population,
        blobs,
        found,
        seed=run.seed,
        deadline_s=config.fleet.deadline_s,
        memory_bytes=settings.parse_bytes(run.memory),
    )


def _in_int8(kit: Kit, scheme: Scheme, shape: tuple[int, ...]) -> Kit:
    """Gives the kit whose devices hold the model's int8 form: all before the head in int8, the head in float."""
    trained = {work.train for work in scheme.work(kit.cfg)} - {"none", "head"}
    if scheme.part != "whole" or scheme.large != "teacher" or trained:
        raise ConfigError(
            f"in int8 all before the head is frozen, but the scheme {scheme.name} trains it on the devices; use "
            "federated_transfer, transfer with scheme.tune = head or none, or tiny.precision = float32"
        )
    module = kit.program.module
    front = Int8Front(module, shape, kit.public.x)
    program = Program(front, shape, frozen=front.frozen)
    return dataclasses.replace(
        kit, program=program, taught=module, lower=lambda whole: front.lowered(module, whole, kit.public.x)
    )


def _takes_body(config: Config, scheme: Scheme) -> bool:
    return scheme.family == "FTL" and config.scheme.body == "cut"


def _behind_body(body: nn.Module, shape: tuple[int, ...], classes: int, start: rng.Key) -> nn.Module:
    """Gives a body with a head behind it: the mean over time or space where there is one, then a linear layer."""
    body.eval()
    with torch.no_grad():
        out = tuple(body(trace.example(body, shape, 1)).shape[1:])
    pool: nn.Module = nn.Identity()
    if len(out) > 1:
        pool = nn.AdaptiveAvgPool1d(1) if len(out) == 2 else nn.AdaptiveAvgPool2d(1)
    with rng.torch_seed(start.at(4)):
        head = nn.Linear(out[0], classes)
    return nn.Sequential(OrderedDict(body=body, pool=pool, flatten=nn.Flatten(), head=head))


def _first_cut(whole: nn.Module, shape: tuple[int, ...]) -> str:
    points = slices.cut_points(whole, shape)
    if not points:
        raise SliceError(
            f"{type(whole).__name__} has no layer to cut behind, so it can't be split; choose another model"
        )
    return points[0].name


def _large(
    config: Config, shape: tuple[int, ...], classes: int, options: settings.Options, start: rng.Key
) -> nn.Module:
    with rng.torch_seed(start.at(1)):
        return large.build(config.large.model, shape, classes, **options)


def _need(kit: Kit, scheme: Scheme, whole: nn.Module, board: Board, data: Dataset, num_rows: int) -> budget.Budget:
    """Gives the largest need of the scheme's work on a device. Raises: BudgetError if the board has less."""
    cfg, program, shape = kit.cfg, kit.program, data.input_shape
    # A device that only hands over its examples holds no model.
    needs = [
        budget.require(
            nn.Identity() if work.op == Op.READ else whole,
            shape,
            board,
            work.op,
            model=f"{kit.config.large.model} cut behind {cfg.body_cut}" if kit.body_is_cut else kit.config.tiny.model,
            spec=work.train if work.op == Op.FIT else "none",
            cut=cfg.cut if work.op in (Op.FORWARD, Op.BACKWARD) else "",
            batch=cfg.batch or 1,
            num_rows=num_rows,
            momentum=cfg.momentum > 0.0,
            keeps_start=kit.config.privacy.clip > 0.0 or (scheme.name == "fedprox" and cfg.proximal_mu > 0.0),
            enforce=kit.config.fleet.check,
        )
        for work in scheme.work(cfg)
    ]
    if program.tail is not None:
        names = [name for name, _ in program.tail.named_parameters()]
        needs.append(
            budget.plan(
                program.tail,
                (cfg.features,),
                board,
                Op.BACKWARD,
                train=names,
                batch=cfg.batch or 1,
                is_tail=True,
                momentum=cfg.momentum > 0.0,
                resident_bytes=max(need.sram_bytes for need in needs) - budget.runtime_sram_bytes(board),
            )
        )
    flash = max(need.flash_bytes for need in needs)
    most = max(needs, key=lambda need: need.sram_bytes)
    return dataclasses.replace(most, flash_bytes=flash)
