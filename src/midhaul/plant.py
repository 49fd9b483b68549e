"""Everything of a run that is built before its first round: data, models, engine, board, and whether they fit.

Here schemes and engines meet.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from midhaul import budget, hardware, rng, schedule, variants
from midhaul import config as settings
from midhaul.config import Config
from midhaul.data import Dataset, Federation, episodes, federate, load
from midhaul.devices import profiles
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, SliceError, nearest
from midhaul.fleet import Group, Held
from midhaul.hardware import Hardware
from midhaul.kit import Kit, Scheme, Work
from midhaul.link.conditions import Surroundings
from midhaul.link.radio import Radio
from midhaul.message import Op
from midhaul.models import large, slices, tiny, trace
from midhaul.models.adapters import add_lora
from midhaul.models.augment import Rotation
from midhaul.models.emulator import emulate
from midhaul.models.entry import Entry
from midhaul.models.int8 import Int8Front
from midhaul.models.prepare import Prepared, prepare
from midhaul.models.rates import WithRates
from midhaul.program import Examples, Population, Program
from midhaul.runtime import band, choosing, drift, firmware, memory, participation
from midhaul.runtime.blobs import DeviceBlobs
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.coding import Coding, plan_coding
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.native import cohort
from midhaul.runtime.native.half import Half
from midhaul.runtime.places import places
from midhaul.runtime.stacked import Stacked
from midhaul.runtime.workers import Workers
from midhaul.schemes import SCHEMES
from midhaul.server import Progress, Server
from midhaul.variants import Variant

Engine = Loop | Stacked | Cluster | Firmware | Groups
Members = Callable[[Federation], tuple[int, ...]]
Redeal = Callable[[Sequence[Variant], bool], "Plant"]
Reach = Callable[[Kit, Engine], Held]  # gives the fleet of the kit's groups elsewhere; the engine simulates the same


@dataclass(frozen=True)
class Plant:
    """Everything of a run that is built before its first round.

    `needs` are those of each of the kit's groups that train; `need` on `board` is the one that leaves the least SRAM
    free.
    """

    config: Config
    scheme: Scheme
    dataset: Dataset
    federation: Federation
    kit: Kit
    engine: Held | Firmware
    board: Board
    radio: Radio
    need: budget.Budget
    needs: tuple[budget.Budget, ...]
    notes: tuple[str, ...]
    tiny_name: str
    large_name: str
    coding: Coding
    after: Population | None = None  # the devices' rows once they have drifted, where they do
    around: Surroundings | None = None  # the cell or the traces that vary the devices' radios, where there are any
    workers: Workers | None = None  # of the engine cluster; they start when they are opened
    hardware: Hardware = dataclasses.field(default_factory=Hardware)  # on which the server and `stacked` compute
    dealt: tuple[Variant, ...] = ()  # what of the model lies on each device
    redeal: Redeal | None = None  # gives the plant with other parts dealt out, where the scheme can go on


def settle(plant: Plant, server: Server) -> Plant:
    """Gives the plant with the budgets of the slice that its scheme chose in `init`, where it does so."""
    if (trains := plant.scheme.trains) is None:
        return plant
    work = (Work(Op.FIT, trains(server, plant.kit)), *plant.scheme.work(plant.kit.cfg))
    scheme = dataclasses.replace(plant.scheme, work=lambda cfg: work)
    training = [group for group in plant.kit.groups if group.devices]
    needs = tuple(variants.need_of(g, plant.kit, scheme, g.program.module, plant.federation) for g in training)
    place = variants.tightest(needs)
    return dataclasses.replace(plant, board=needs[place].board, need=needs[place], needs=needs)


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
    federation: Federation | None = None,
    progress: Progress | None = None,
    reach: Reach | None = None,
    members: Members | None = None,
) -> Plant:
    """Loads the data, builds the models and the engine, and refuses what can't work.

    `scheme`, `module` (the tiny model), `large_module` and `dataset` may be a person's own, and so may who holds which
    of its rows, `federation`. `reach` gives the engine `gateways` its fleet. `members` gives the devices that the
    engine has, if not all.
    Raises: MidhaulError, in one sentence, before anything is trained.
    """
    chosen = scheme or find_scheme(config.scheme.name)
    if config.run.engine not in chosen.engines:
        raise ConfigError(
            f"the scheme {chosen.name} can't run on the engine {config.run.engine}; use {' or '.join(chosen.engines)}"
        )
    found = _hardware(config)
    participation.check(chosen, config)
    choosing.check(chosen, config)
    band.check(config)
    schedule.check(config)
    variants.names(config.fleet.board)
    if (config.run.engine == "gateways") != (reach is not None):
        raise ConfigError(
            "the engine gateways waits for devices on other machines; start it with `midhaul serve`, which needs no "
            "run.engine, or choose another engine"
        )
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    data = dataset or load(config.data.name, **config.data.options)
    config = _resolved(config, chosen, data)
    federation = federation or _federate(config, data)
    data = federation.dataset
    wants = chosen.needs_public or (chosen.part != "whole" and config.scheme.pretrain)
    if wants and not len(federation.public):
        raise ConfigError(f"the scheme {chosen.name} needs public data on the server; set data.public, for example 0.3")
    _check_nopeek(config, chosen, data)
    if config.scheme.server_step == "cohort" and not chosen.one_half:
        able = ", ".join(name for name, scheme in SCHEMES.items() if scheme.one_half)
        raise ConfigError(
            f"scheme.server_step = 'cohort' is for schemes with one server half behind all devices ({able}), not "
            f"{chosen.name}; leave it out"
        )
    drift.check(config, chosen, own_test=federation.own_test)
    if config.scheme.distill == "features" and variants.takes_body(config, chosen):
        raise ConfigError(
            "with scheme.body = 'cut' the tiny model's layers are the large one's, so there is nothing to be guided; "
            "set scheme.distill = 'logits'"
        )
    start = rng.key(config.run.seed, 0, rng.SERVER, rng.Use.INIT)
    models = _tiny_models(config, chosen, data, module, start)
    prepared = next(iter(models.values()))
    if prepared.personal and chosen.family == "FML":
        raise ConfigError(
            f"the scheme {chosen.name} can't keep norms on the devices: a new one that adapts has none; "
            "set tiny.norm to group"
        )
    held = variants.boards(config.fleet.board, len(federation.train))
    dealt = variants.of_devices(config, chosen, prepared, held, data, federation, start)
    if chosen.differs == "rank":
        most = max(variant.rank for variant in dealt)
        prepared = prepared._replace(module=variants.with_lora(prepared.module, most, config, start))
    if chosen.adapters and not any(name.endswith(".lora_a") for name, _ in prepared.module.named_parameters()):
        raise ConfigError(f"the scheme {chosen.name} trains low-rank adapters; set tiny.lora_rank, for example 8")
    deepest = variants.deepest(dealt, prepared, data)
    config, program, rear = _parts(config, chosen, prepared, data, large_module, start, deepest)
    x, y = (torch.from_numpy(np.require(values, requirements=["C", "W"])) for values in (data.x, data.y))
    parts = (federation.train, federation.test, federation.adapt)
    levels = None if data.levels is None else torch.from_numpy(data.levels)
    population = Population(x, y, *parts, federation.own_test, classes=federation.classes, levels=levels)
    given = torch.from_numpy(federation.public)
    public = Examples(population.inputs(given), y[given])
    after: Population | None = None
    if config.data.drift_round:
        population, after = drift.drifted(population, config, data.num_classes)
    if members is not None:
        own = members(federation)
        population = dataclasses.replace(population, members=own)
        after = None if after is None else dataclasses.replace(after, members=own)
    degrees = config.large.rotate_deg
    augment = Rotation(degrees, data.centre, data.spread) if degrees else None
    can_adapt = any(len(rows) for rows in federation.adapt)
    kit = Kit(
        config,
        program,
        rear,
        public,
        data.num_classes,
        can_adapt,
        progress,
        variants.takes_body(config, chosen),
        augment,
    )
    if config.tiny.precision == "int8":
        kit = _in_int8(kit, chosen, data.input_shape)
    if chosen.check is not None:
        chosen.check(kit)
    by_kernels = rear is not None and config.run.engine != "loop" and found.is_host
    half = Half(rear, config.run.kernels) if rear is not None and by_kernels else None
    kit = dataclasses.replace(kit, most_rows=variants.most_rows(federation.train), half=half)
    if config.run.engine != "loop" and config.run.kernels != "torch":
        kit = dataclasses.replace(kit, first=cohort.first_of_permutation, mean=cohort.weighted_mean)
    run = config.run
    workers = Workers(run.workers, run.address, max(1, run.threads)) if run.engine == "cluster" else None
    names = (
        _tiny_name(config, chosen, module),
        type(large_module).__name__ if large_module is not None else config.large.model,
    )
    at_first = tuple(dealt)

    def plant_of(dealt: Sequence[Variant], enforce: bool) -> Plant:
        """Gives the plant in which this lies on each device; with `enforce` it must fit, where the config says so."""
        groups = variants.groups(kit, chosen, models, list(dealt), deepest, held, population, start, at_first)
        whole = dataclasses.replace(kit, groups=groups)
        loose = dataclasses.replace(whole, config=config.replace(fleet_check=config.fleet.check and enforce))
        needs = _needs(loose, chosen, prepared, federation)
        training = [group for group in groups if group.devices]
        tightest = variants.tightest(needs)
        with hardware.room(found):
            simulated = _engine(whole, chosen, population, workers, found)
            engine: Held | Firmware = simulated if reach is None else reach(whole, simulated)
        board, radio, need = training[tightest].board, training[tightest].radio, needs[tightest]
        notes = list(prepared.notes)
        if len(training) > 1:
            notes += [variants.about(group, need) for group, need in zip(training, needs, strict=True)]
        coding = plan_coding(config, chosen, [group.program for group in groups], len(federation.train))
        around, told = _around(config, groups)
        own = (whole, engine, board, radio, need, needs, (*notes, *told), *names, coding, after, around, workers, found)
        return Plant(config, chosen, data, federation, *own, dealt=tuple(dealt), redeal=redeal)

    redeal = plant_of if chosen.redeals and reach is None else None
    return plant_of(dealt, True)


def _needs(kit: Kit, scheme: Scheme, prepared: Prepared, federation: Federation) -> tuple[budget.Budget, ...]:
    """Gives the need of each group that trains. Raises: BudgetError where a board has less."""
    training = [group for group in kit.groups if group.devices]
    return tuple(variants.need_of(g, kit, scheme, _module(g, scheme, prepared), federation) for g in training)


def _around(config: Config, groups: tuple[Group, ...]) -> tuple[Surroundings | None, list[str]]:
    """Gives what varies the devices' radios, and what a person is told of it. Raises: ConfigError for no coverage."""
    radios = {device: group.radio for group in groups for device in group.devices}
    around = Surroundings.from_config(config.link, radios, config.run.seed)
    if around is None or around.cell is None:
        return around, []
    num, served = around.coverage()
    if not served:
        apart_m, then = around.nearest_m()
        known = f" ({then} would be with {apart_m:,.0f})" if then else ""
        raise ConfigError(
            f"none of the {num} devices in the cell is in coverage, so none could answer; bring the base stations "
            f"nearer (link.inter_site_m{known}), raise link.tx_dbm, or choose a radio that repeats more "
            "(link.radio = 'nb_iot')"
        )
    told = f"{config.link.cell} cell: {num} devices"
    return around, [told + (f", {num - served} of them out of coverage, which won't answer" if num > served else "")]


def _check_nopeek(config: Config, scheme: Scheme, data: Dataset) -> None:
    if not config.scheme.nopeek:
        return
    if all(work.op != Op.BACKWARD for work in scheme.work(config.scheme)):
        raise ConfigError(
            f"scheme.nopeek is for schemes that step by a gradient at a cut, not {scheme.name}; leave it out"
        )
    if config.run.engine == "firmware":
        raise ConfigError(
            "devices with firmware take one example at a time, and scheme.nopeek wants a batch's distances; "
            "leave it out, or take another run.engine"
        )
    if data.vocabulary:
        raise ConfigError(f"the rows of {data.name} are tokens, which have no distances; leave out scheme.nopeek")


def _resolved(config: Config, scheme: Scheme, data: Dataset) -> Config:
    """Gives the config with what was left to us filled in, so that what is written says what was done."""
    radio, partition, num = config.link.radio, config.data.partition, config.data.num_devices
    own = {profiles.get(name).radio for name in variants.names(config.fleet.board)}
    if partition == "auto":
        partition = "natural" if data.key and len(data.device_names) > 1 else "iid"
        partition = "vertical" if scheme.large == "joint" else partition
    if (partition == "vertical") != (scheme.large == "joint"):
        raise ConfigError(
            f"the scheme {scheme.name} can't learn from data.partition = {partition!r}: vertical is for schemes that "
            "join features, and these take no other"
        )
    return config.replace(
        link_radio=own.pop() if radio == "auto" and len(own) == 1 else radio,
        data_partition=partition,
        data_num_devices=num or (0 if partition == "natural" else 10),
    )


def _federate(config: Config, data: Dataset) -> Federation:
    part = config.data
    if part.partition == "episodes":
        if part.public or part.adapt or part.test not in ("auto", "held_out") or part.max_rows or part.min_rows > 1:
            raise ConfigError(
                "episodes have new classes to test on, data.shots rows to adapt on and no public rows; "
                "leave data.public, test, adapt, max_rows and min_rows as they are"
            )
        return episodes(
            data,
            ways=part.classes_per_device,
            shots=part.shots,
            queries=part.queries,
            num_devices=part.num_devices,
            new_devices=part.new_devices,
            test_fraction=part.test_fraction,
            seed=config.run.seed,
        )
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


def _tiny_models(
    config: Config, scheme: Scheme, data: Dataset, given: nn.Module | None, start: rng.Key
) -> dict[str, Prepared]:
    """Gives the tiny models by name: one, or where devices may hold unlike models, all that tiny.model names."""
    names = [name.strip() for name in config.tiny.model.split(",")]
    if len(names) > 1 and scheme.differs != "model":
        raise ConfigError(
            f"tiny.model names {len(names)} models, and the scheme {scheme.name} wants the same one on every device; "
            "name one"
        )
    given_options = config.tiny.options
    if len(names) > 1 and (
        odd := [n for n in given_options if n not in names or not isinstance(given_options[n], dict)]
    ):
        raise ConfigError(
            f"tiny.options has {odd[0]!r}; of several models it holds a table for each, as {names[0]} = {{ ... }}"
        )
    models = {}
    for name in names:
        options = given_options if len(names) == 1 else given_options.get(name, {})
        with rng.torch_seed(start):
            own = given or tiny.build(
                name, data.input_shape, data.num_classes, **_options(tiny.TINY, name, options, data)
            )
        prepared = prepare(own, data.input_shape, config.tiny.norm)
        if prepared.personal and scheme.differs != "none":
            raise ConfigError(
                f"devices of the scheme {scheme.name} differ, so none can keep batch norm as its own; "
                "set tiny.norm = 'group'"
            )
        if config.tiny.lora_rank and scheme.differs != "rank":
            prepared = prepared._replace(
                module=variants.with_lora(prepared.module, config.tiny.lora_rank, config, start)
            )
        models[name] = prepared
    return models


def _hardware(config: Config) -> Hardware:
    """Gives what the run computes on. Raises: ConfigError where it isn't there, or the kernels are to do it all."""
    found = hardware.find(config.run.device, config.run.precision)
    if config.run.kernels == "native" and config.run.engine != "loop" and not found.is_host:
        raise ConfigError(
            f"run.kernels = 'native' computes on the processor, and run.device is {found.device}; "
            "set run.device = 'cpu', or leave out run.kernels"
        )
    return found


def _engine(kit: Kit, scheme: Scheme, population: Population, workers: Workers | None, found: Hardware) -> Engine:
    """Gives the engine that the config asks for; where devices hold unlike models, one for each of these."""
    run, groups = kit.config.run, kit.groups
    programs = {id(group.program) for group in groups}
    if run.engine == "firmware":
        if len(groups) > 1:
            raise ConfigError(
                f"the engine firmware runs devices that are alike, and these are of {len(groups)} kinds; "
                "name one board and let the scheme give all the same model, or set run.engine = 'stacked'"
            )
        return _firmware(kit, scheme, groups[0].program, population, groups[0].board, found)

    memory_bytes = _chunk_bytes(kit, scheme, population)

    def build(program: Program, population: Population) -> Loop | Stacked | Cluster:
        if run.engine == "loop":
            return Loop(program, population)
        if workers is not None:
            return Cluster(program, population, workers, memory_bytes, run.kernels)
        return Stacked(program, population, memory_bytes, run.kernels, found.device)

    return build(groups[0].program, population) if len(programs) == 1 else Groups(groups, population, build)


def _options(catalogue: dict[str, Entry], model: str, given: settings.Options, data: Dataset) -> settings.Options:
    """Gives a builder's options, with the vocabulary of data that are tokens where it asks for one."""
    wants = data.vocabulary and model in catalogue and "vocabulary" in catalogue[model].options
    return {**({"vocabulary": data.vocabulary} if wants else {}), **given}


def _parts(
    config: Config,
    scheme: Scheme,
    prepared: Prepared,
    data: Dataset,
    given: nn.Module | None,
    start: rng.Key,
    deepest: str,
) -> tuple[Config, Program, nn.Module | None]:
    """Gives the device's program and the server's model, cut where the scheme wants it, or behind the deepest cut."""
    whole, shape, classes = prepared.module, data.input_shape, data.num_classes
    options = _options(large.LARGE, config.large.model, config.large.options, data)
    if scheme.part == "whole":
        rear = (given or _large(config, shape, classes, options, start)) if scheme.large != "none" else None
        if rear is not None and variants.takes_body(config, scheme):
            layer = config.scheme.body_cut or _first_cut(rear, shape)
            config = config.replace(scheme_body_cut=layer)
            whole = _behind_body(slices.cut(rear, layer, shape)[0], shape, classes, start)
            return config, Program(whole, shape), rear
        if scheme.rates:
            whole = WithRates(whole, config.scheme.inner_lr)
        return config, Program(whole, shape, personal=prepared.personal), rear
    if scheme.part == "emulator":
        rear = given or _large(config, shape, classes, options, start)
        device = emulate(rear, shape, config.scheme.adapter_blocks, config.scheme.emulator)
        return config, Program(device, shape), rear
    layer = deepest or config.scheme.cut or _first_cut(whole, shape)
    if not deepest:
        config = config.replace(scheme_cut=layer)
    front, _ = slices.cut(whole, layer, shape)
    with torch.no_grad():
        front.eval()
        example = torch.zeros((1, *shape), dtype=torch.int64 if data.vocabulary else torch.float32)
        smashed = tuple(front(example).shape[1:])
    held = {name for name, _ in [*front.named_parameters(), *front.named_buffers()]}
    personal = tuple(name for name in prepared.personal if name in held)
    if scheme.large == "joint":
        smashed = (smashed[0] * config.data.num_devices, *smashed[1:])
    if scheme.part == "front":
        rear = given or _large(config, smashed, classes, config.large.options, start)
        if scheme.adapters:
            rear = _adapted_rear(front, rear, layer, config, start)
        return config, Program(front, shape, personal=personal), rear
    if scheme.part == "local":
        rear = given or _large(config, smashed, classes, config.large.options, start)
        return config, Program(whole, shape, personal=prepared.personal, front=front), rear
    features = config.scheme.features
    rear = given or _large(config, smashed, features, config.large.options, start)
    with rng.torch_seed(start.at(2)):
        tail = nn.Sequential(nn.ReLU(), nn.Linear(features, classes))
    return config, Program(front, shape, personal=personal, tail=tail), rear


def _adapted_rear(front: nn.Module, rear: nn.Module, layer: str, config: Config, start: rng.Key) -> nn.Module:
    """Gives the server's half with adapters of the rank of the device's. Raises: SliceError if that half has none."""
    ranks = [len(value) for name, value in front.named_parameters() if name.endswith(".lora_a")]
    if not ranks:
        raise SliceError(
            f"no layer up to the cut {layer!r} has a low-rank adapter (dense layers and 1x1 convolutions can); "
            "set scheme.cut to a later layer, or choose another model"
        )
    return add_lora(rear, max(ranks), config.tiny.lora_scale * max(ranks), "all", start.at(5))


def _firmware(
    kit: Kit, scheme: Scheme, program: Program, population: Population, board: Board, found: Hardware
) -> Firmware:
    """Gives the engine whose first devices are where run.devices says."""
    config = kit.config
    run = config.run
    addresses = places(run.devices, board, seed=run.seed, keys=run.keys)
    keeps_start = variants.keeps_start(config, scheme)
    firmware.check(program, population, len(addresses))
    work = [(work.op, work.train) for work in scheme.work(kit.cfg)]
    blobs = DeviceBlobs(program, work, momentum=kit.cfg.momentum > 0.0, keeps_start=keeps_start)
    return Firmware(
        program,
        population,
        blobs,
        addresses,
        seed=run.seed,
        deadline_s=config.fleet.deadline_s,
        memory_bytes=_chunk_bytes(kit, scheme, population),
        kernels=run.kernels,
        device=found.device,
    )


def _chunk_bytes(kit: Kit, scheme: Scheme, population: Population) -> int:
    """Gives what the engine may take for devices at work, of what the whole run may."""
    modules = [kit.program.module, *([kit.large] if kit.large is not None else [])]
    models = sum(value.numel() * value.element_size() for module in modules for value in module.parameters())
    replies = 0 if kit.config.run.memory == memory.AUTO else memory.replies_bytes(kit, scheme, population)
    return memory.chunk_bytes(kit.config.run.memory, population, models, replies)


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


def _tiny_name(config: Config, scheme: Scheme, given: nn.Module | None) -> str:
    if scheme.part == "emulator":
        return f"emulator of {config.large.model}"
    return type(given).__name__ if given is not None else config.tiny.model


def _module(group: Group, scheme: Scheme, prepared: Prepared) -> nn.Module:
    return group.program.module if scheme.part in ("whole", "emulator") else prepared.module
