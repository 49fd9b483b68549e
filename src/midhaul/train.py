"""The run: rounds, evaluation, checkpoints, and what is written of them. Here schemes and engines meet."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from midhaul import __version__, budget, checkpoint, rng, tree
from midhaul import config as settings
from midhaul.checkpoint import Checkpoint
from midhaul.config import Config
from midhaul.data import Dataset, Federation, federate, load
from midhaul.devices import profiles
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError, CheckpointError, ConfigError, DataError, nearest
from midhaul.link import radio as radios
from midhaul.link.radio import Radio
from midhaul.message import Op, Replies
from midhaul.models import count, large, slices, tiny
from midhaul.models.prepare import Prepared, prepare
from midhaul.ops import Examples, Population, Program
from midhaul.runtime.loop import Loop
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Kit, Progress, Scheme, Server
from midhaul.tree import Tree

Tell = Callable[[str], None]
Summary = dict[str, Any]
Engine = Loop | Stacked


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


@dataclass(frozen=True)
class Result:
    """What a run ends with: its summary, the server's last state, and the folder if there is one."""

    summary: Summary
    server: Server
    folder: Path | None


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
    board = profiles.get(config.fleet.board)
    config = _resolved(config, board)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    radio = radios.get(config.link.radio)
    data = dataset or load(config.data.name, **config.data.options)
    federation = _federate(config, data)
    if chosen.needs_public and not len(federation.public):
        raise ConfigError(f"the scheme {chosen.name} needs public data on the server; set data.public, for example 0.3")
    start = rng.key(config.run.seed, 0, rng.SERVER, rng.Use.INIT)
    with rng.torch_seed(start):
        own = module or tiny.build(
            config.tiny.model, data.input_shape, data.num_classes, **_tiny_options(config, data)
        )
    prepared = prepare(own, data.input_shape, config.tiny.norm)
    config, program, rear = _parts(config, chosen, prepared, data, large_module, start)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    population = Population(x, y, federation.train, federation.test, federation.adapt, federation.own_test)
    public = Examples(x, y).at(federation.public)
    can_adapt = any(len(rows) for rows in federation.adapt)
    kit = Kit(config, program, rear, public, data.num_classes, can_adapt, progress)
    engine: Engine
    if config.run.engine == "loop":
        engine = Loop(program, population)
    else:
        engine = Stacked(program, population, settings.parse_bytes(config.run.memory))
    need = _need(kit, chosen, prepared.module, board, data)
    return Plant(config, chosen, data, federation, kit, engine, board, radio, need, prepared.notes)


def run(
    config: Config,
    out: Path | None = None,
    *,
    resume: bool = False,
    tell: Tell = lambda line: None,
    progress: Progress | None = None,
    scheme: Scheme | None = None,
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Result:
    """Runs a scheme from the first round, or from its last checkpoint, to the end.

    With `out`, writes config.toml, metrics.jsonl, summary.json, checkpoint/ and model/ there. A resumed run ends with
    the same bits as one that was never stopped. `tell` is given sentences for a person, `progress` what is done.
    Raises: MidhaulError, in one sentence.
    """
    if out is not None:
        _open_folder(out, resume)
    plant = build(
        config, scheme=scheme, module=module, large_module=large_module, dataset=dataset, progress=progress
    )
    for line in _opening(plant):
        tell(line)
    return _Run(plant, out, tell, progress).go(resume)


class _Run:
    """A run under way."""

    def __init__(self, plant: Plant, out: Path | None, tell: Tell, progress: Progress | None) -> None:
        self.plant, self.out, self.tell, self.progress = plant, out, tell, progress
        config = plant.config
        self.ledger = Ledger()
        loss = plant.radio.loss if config.link.loss < 0 else config.link.loss
        self.fleet = OverLink(
            plant.engine, plant.kit.program, plant.board, plant.radio,
            loss=loss, retries=config.link.retries, ledger=self.ledger,
        )
        self.wall_s, self.train_s = 0.0, 0.0
        self.scores: Summary = {}

    def go(self, resume: bool) -> Result:
        config, scheme = self.plant.config, self.plant.scheme
        began = time.perf_counter()
        found = self._resume() if resume else None
        if found is None:
            self._write("config.toml", settings.to_toml(config).encode())
            self._write("metrics.jsonl", b"")
            server, done = scheme.init(self.fleet, self.plant.kit, self._key(0)), 0
            self.wall_s += time.perf_counter() - began
            self._line(0, None, {})
            self._save(0, server)
        else:
            server, done = found.server, found.round
            if self.progress is not None:
                self.progress("rounds", done, config.run.rounds)
        for number in range(done + 1, config.run.rounds + 1):
            began = time.perf_counter()
            server, metrics = scheme.round(server, self.fleet, self.plant.kit, self._key(number))
            _check_finite(server, number)
            self.train_s += time.perf_counter() - began
            last = number == config.run.rounds
            due = last or number % config.run.evaluate_every == 0
            scores = self._evaluate(server, number) if due else None
            self.wall_s += time.perf_counter() - began
            self._line(number, scores, metrics)
            if last or number % config.run.checkpoint_every == 0:
                self._save(number, server)
            if self.progress is not None:
                self.progress("rounds", number, config.run.rounds)
        return Result(self._finish(server), server, self.out)

    def _key(self, number: int) -> rng.Key:
        return rng.Key(self.plant.config.run.seed, number, rng.SERVER, 0)

    def _evaluate(self, server: Server, number: int) -> Summary:
        """Tests, over no link: measuring is not part of what a deployment sends."""
        replies = self.plant.scheme.evaluate(server, self.plant.engine, self.plant.kit, self._key(number))
        self.scores = _scores(replies, self.plant)
        return self.scores

    def _resume(self) -> Checkpoint | None:
        assert self.out is not None
        folder = self.out / "checkpoint"
        kept = self.out / "config.toml"
        if kept.exists():
            _check_same(settings.read(kept), self.plant.config)
        found = checkpoint.load(folder, self.tell)
        if found is None:
            self.tell("there is no checkpoint yet; the run starts from the beginning")
            return None
        scalars = found.scalars
        try:
            for field in dataclasses.fields(Ledger):
                setattr(self.ledger, field.name, scalars["ledger"][field.name])
            self.wall_s, self.train_s = float(scalars["wall_s"]), float(scalars["train_s"])
            self.scores = dict(scalars["scores"])
            size = int(scalars["metrics_bytes"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("the checkpoint lacks a part that this version needs; start the run anew") from None
        self.plant.engine.restore(found.devices)
        metrics = self.out / "metrics.jsonl"
        kept_lines = metrics.read_bytes()[:size] if metrics.exists() else b""
        if len(kept_lines) != size:
            raise CheckpointError(f"{metrics} is shorter than the checkpoint knows it; start the run anew")
        checkpoint.write(metrics, kept_lines)
        self.tell(f"resuming after round {found.round}")
        return found

    def _save(self, number: int, server: Server) -> None:
        if self.out is None:
            return
        scalars = {
            "ledger": self.ledger.to_table(),
            "wall_s": self.wall_s,
            "train_s": self.train_s,
            "scores": self.scores,
            "metrics_bytes": (self.out / "metrics.jsonl").stat().st_size,
        }
        checkpoint.save(self.out / "checkpoint", Checkpoint(number, server, self.plant.engine.dump(), scalars))

    def _line(self, number: int, scores: Summary | None, metrics: dict[str, float]) -> None:
        ledger = self.ledger
        line = {
            "round": number,
            "accuracy": scores["accuracy"] if scores else None,
            "loss": scores["loss"] if scores else None,
            "train_loss": metrics.get("train_loss"),
            "uplink_bytes": ledger.uplink_bytes,
            "downlink_bytes": ledger.downlink_bytes,
            "air_seconds": ledger.air_seconds,
            "compute_seconds": ledger.compute_seconds,
            "device_joules": ledger.device_joules,
            "absent": ledger.absent,
            "kinds": {"up": ledger.kinds_up, "down": ledger.kinds_down},
        }
        if self.out is not None:
            try:
                with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise ConfigError(f"{self.out} can't be written ({error.strerror}); free space or choose another --out") from None

    def _finish(self, server: Server) -> Summary:
        devices = {name: value for name, value in self.plant.engine.dump().items() if not name.startswith("momentum/")}
        trees: dict[str, Tree] = {"tiny": server.tree, "large": server.large, "devices": _own(devices, server.tree)}
        summary = self._summary(server, devices)
        if self.out is not None:
            (self.out / "model").mkdir(exist_ok=True)
            for name, values in trees.items():
                if values:
                    whole = {key: value.contiguous() for key, value in values.items()}
                    checkpoint.write(self.out / "model" / f"{name}.safetensors", safetensors.torch.save(whole))
            self._write("summary.json", json.dumps(summary, indent=2).encode())
        return summary

    def _summary(self, server: Server, devices: Tree) -> Summary:
        plant, ledger = self.plant, self.ledger
        module = plant.kit.program.module
        everything = {
            **{f"tiny/{name}": value for name, value in server.tree.items()},
            **{f"large/{name}": value for name, value in server.large.items()},
            **{f"devices/{name}": value for name, value in devices.items()},
        }
        rear = plant.kit.large if plant.scheme.large != "none" else None
        return {
            "scheme": plant.scheme.name,
            "title": plant.scheme.title,
            "engine": plant.config.run.engine,
            "data": plant.config.data.name,
            "board": plant.board.name,
            "radio": plant.radio.name,
            "num_devices": len(plant.engine.devices),
            "rounds": plant.config.run.rounds,
            "seed": plant.config.run.seed,
            **self.scores,
            "uplink_bytes": ledger.uplink_bytes,
            "downlink_bytes": ledger.downlink_bytes,
            "air_seconds": ledger.air_seconds,
            "compute_seconds": ledger.compute_seconds,
            "device_joules": ledger.device_joules,
            "device_flash_bytes": plant.need.flash_bytes,
            "device_sram_bytes": plant.need.sram_bytes,
            "device_flash_limit_bytes": plant.board.flash_bytes,
            "device_sram_limit_bytes": plant.board.sram_bytes,
            "buffers": [dataclasses.asdict(buffer) for buffer in plant.need.buffers],
            "wall_seconds": self.wall_s,
            "device_updates_per_s": ledger.updates / self.train_s if self.train_s > 0 else 0.0,
            "model_sha256": tree.sha256(everything),
            "kinds": {"up": ledger.kinds_up, "down": ledger.kinds_down},
            "absent": ledger.absent,
            "refused_replies": ledger.refused,
            "refused_rows": len(plant.dataset.refused),
            "num_train_rows": sum(len(rows) for rows in plant.federation.train),
            "num_test_rows": sum(len(rows) for rows in plant.federation.test),
            "num_public_rows": len(plant.federation.public),
            "tiny": {
                "model": plant.config.tiny.model,
                "parameters": tree.num_parameters(plant.kit.program.initial),
                "macs": sum(layer.macs for layer in count.layers(module, plant.kit.program.input_shape)),
            },
            "large": None
            if rear is None
            else {"model": plant.config.large.model, "parameters": sum(p.numel() for p in rear.parameters())},
            "version": __version__,
        }

    def _write(self, name: str, data: bytes) -> None:
        if self.out is not None:
            checkpoint.write(self.out / name, data)


def _resolved(config: Config, board: Board) -> Config:
    radio = board.radio if config.link.radio == "auto" else config.link.radio
    return config.replace(link_radio=radio)


def _federate(config: Config, data: Dataset) -> Federation:
    part = config.data
    kind = part.partition
    if kind == "auto":
        kind = "natural" if data.key and len(data.device_names) > 1 else "iid"
    return federate(
        data,
        partition=kind,
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


def _tiny_options(config: Config, data: Dataset) -> settings.Options:
    return {**({"vocabulary": data.vocabulary} if data.vocabulary else {}), **config.tiny.options}


def _parts(
    config: Config, scheme: Scheme, prepared: Prepared, data: Dataset, given: nn.Module | None, start: rng.Key
) -> tuple[Config, Program, nn.Module | None]:
    """Gives the device's program and the server's model, cut where the scheme wants it."""
    whole, shape, classes = prepared.module, data.input_shape, data.num_classes
    options = {**({"vocabulary": data.vocabulary} if data.vocabulary else {}), **config.large.options}
    if scheme.part == "whole":
        program = Program(whole, shape, personal=prepared.personal)
        wanted = scheme.large != "none"
        return config, program, (given or _large(config, shape, classes, options, start)) if wanted else None
    layer = config.scheme.cut or slices.cut_points(whole, shape)[0].name
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


def _large(config: Config, shape: tuple[int, ...], classes: int, options: settings.Options, start: rng.Key) -> nn.Module:
    with rng.torch_seed(start.at(1)):
        return large.build(config.large.model, shape, classes, **options)


def _need(kit: Kit, scheme: Scheme, whole: nn.Module, board: Board, data: Dataset) -> budget.Budget:
    """Gives the largest need of the scheme's work on a device. Raises: BudgetError if the board has less."""
    cfg, program, shape = kit.cfg, kit.program, data.input_shape
    # A device that only hands over its examples holds no model.
    needs = [
        budget.require(
            nn.Identity() if work.op == Op.READ else whole,
            shape,
            board,
            work.op,
            model=kit.config.tiny.model,
            spec=work.train if work.op == Op.FIT else "none",
            cut=cfg.cut if work.op in (Op.FORWARD, Op.BACKWARD) else "",
            batch=cfg.batch or 1,
            momentum=cfg.momentum > 0.0,
            keeps_start=kit.config.privacy.clip > 0.0 or (scheme.name == "fedprox" and cfg.proximal_mu > 0.0),
            enforce=kit.config.fleet.check,
        )
        for work in scheme.work(cfg)
    ]
    if program.tail is not None:
        names = [name for name, _ in program.tail.named_parameters()]
        needs.append(
            budget.plan(program.tail, (cfg.features,), board, Op.FIT, train=names, batch=cfg.batch or 1, is_tail=True)
        )
    flash = max(need.flash_bytes for need in needs)
    most = max(needs, key=lambda need: need.sram_bytes)
    return dataclasses.replace(most, flash_bytes=flash)


def _scores(replies: Replies, plant: Plant) -> Summary:
    rows, correct, loss = (replies.metrics[name] for name in ("rows", "correct", "loss"))
    total = float(rows.sum())
    if total == 0.0:
        raise DataError("no test device holds a row; raise data.test_fraction or give held-out rows")
    each = (correct / rows.clamp(min=1.0)).tolist()
    names = [_device_name(device, plant) for device in replies.devices]
    ordered = sorted(each)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
    return {
        "accuracy": float(correct.sum()) / total,
        "accuracy_per_device": {
            "min": ordered[0], "median": median, "max": ordered[-1], "names": names, "values": each,
        },
        "loss": float((loss * rows).sum()) / total,
    }


def _device_name(device: int, plant: Plant) -> str:
    names = plant.federation.device_names
    return names[device] if device < len(names) else plant.federation.test_names[device - len(names)]


def _own(devices: Tree, shared: Tree) -> Tree:
    """Gives what the devices hold that is their own."""
    return {name: value for name, value in devices.items() if name.startswith(("own/", "tree/"))}


def _check_finite(server: Server, number: int) -> None:
    if not (tree.is_finite(server.tree) and tree.is_finite(server.large)):
        raise ConfigError(
            f"round {number}: the model is no longer finite, so training diverged; lower scheme.lr, large.lr or scheme.server_lr"
        )


def _check_same(kept: Config, now: Config) -> None:
    old, new = settings.to_table(kept), settings.to_table(now)
    for section, values in old.items():
        for key, value in values.items():
            if new[section][key] != value and (section, key) != ("run", "threads"):
                raise CheckpointError(
                    f"the run to resume has {section}.{key} = {value!r} and this config has {new[section][key]!r}; "
                    "resume with the same config, or choose another --out"
                )


def _open_folder(out: Path, resume: bool) -> None:
    if not resume and (out / "metrics.jsonl").exists():
        raise ConfigError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"the output folder {out} can't be written ({error.strerror}); choose another --out") from None


def _opening(plant: Plant) -> list[str]:
    data, federation = plant.dataset, plant.federation
    lines = list(plant.notes)
    if data.refused:
        first = data.refused[0]
        lines.append(
            f"{len(data.refused)} of {data.num_read} rows were set aside; the first is line {first.line}: {first.reason}"
        )
    rows = [len(r) for r in federation.train]
    lines.append(
        f"{data.name}: {len(rows)} devices with {min(rows)} to {max(rows)} rows, "
        f"{sum(len(r) for r in federation.test)} test rows, {len(federation.public)} public rows"
    )
    return lines


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
