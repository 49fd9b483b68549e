"""The run: rounds, evaluation, checkpoints, and what is written of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from midhaul import __version__, checkpoint, hardware, replan, rng, schedule, tree
from midhaul import config as settings
from midhaul.budget import Budget
from midhaul.changes import Setting
from midhaul.checkpoint import Checkpoint
from midhaul.config import Config
from midhaul.data import Dataset, Federation
from midhaul.errors import CheckpointError, ConfigError, DataError, MidhaulError, QuorumError
from midhaul.fleet import Group
from midhaul.kit import Scheme
from midhaul.link import energy
from midhaul.link.radio import Radio
from midhaul.message import Kind, Replies
from midhaul.models import count
from midhaul.plant import Plant, Reach, build, settle
from midhaul.replan import Replan
from midhaul.runtime import moving
from midhaul.runtime.asynchronous import Asynchronous
from midhaul.runtime.band import Band
from midhaul.runtime.choosing import Choosing
from midhaul.runtime.coding import AsDelivered
from midhaul.runtime.drift import Watch
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.frame_log import FrameLog
from midhaul.runtime.groups import kernels_of
from midhaul.runtime.ledger import WHATS, Ledger
from midhaul.runtime.native.half import Half
from midhaul.runtime.over_link import OverLink
from midhaul.runtime.participation import Participation
from midhaul.runtime.spending import Spending, batteries
from midhaul.runtime.stream import Gateways
from midhaul.scalars import Scalars, keep
from midhaul.scalars import check as check_scalars
from midhaul.sentences import Sentence
from midhaul.server import Progress, Server
from midhaul.tree import Tree
from midhaul.units import format_joules, format_seconds
from midhaul.variants import Variant

Tell = Callable[[str], None]
Summary = dict[str, Any]
_EVENTS = "tensorboard"  # the folder of its files
_FLIGHT, _CHOICE = "flight/", "choice/"
_HALVES = (1 << 24) - 1  # of the streams of dropout; those of trainings on the server are below it
_FIGURES = (
    *("round", "accuracy", "large_accuracy", "loss", "train_loss", "uplink_bytes", "downlink_bytes"),
    *("simulated_seconds", "device_joules", "gone", "drifted"),
)  # what is told of a round
_TARGET = ("round", "seconds", "joules", "uplink_bytes", "downlink_bytes")


@dataclass(frozen=True)
class Result:
    """What a run ends with: its summary, the server's last state, and the folder if there is one."""

    summary: Summary
    server: Server
    folder: Path | None


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
    federation: Federation | None = None,
    reach: Reach | None = None,
) -> Result:
    """Runs a scheme from the first round, or from its last checkpoint, to the end.

    With `out`, writes config.toml, metrics.jsonl, summary.json, checkpoint/ and model/ there. A resumed run ends with
    the same bits as one that was never stopped. `tell` is given sentences for a person, `progress` what is done;
    `dataset` and `federation` are as in `plant.build`; `reach` gives the engine `gateways` its fleet.
    Raises: MidhaulError, in one sentence.
    """
    if config.link.keep_frames and out is None:
        raise ConfigError("link.keep_frames wants a folder to keep them in; give one with --out")
    if config.run.stop_at_target and not config.run.target_accuracy:
        raise ConfigError("run.stop_at_target has no target to stop at; set run.target_accuracy, for example 0.9")
    replan.check(config)
    if config.run.tensorboard:
        check_scalars()
    is_new = out is not None and not out.exists()
    if out is not None:
        _open_folder(out, resume)
    try:
        plant = build(
            config,
            scheme=scheme,
            module=module,
            large_module=large_module,
            dataset=dataset,
            federation=federation,
            progress=progress,
            reach=reach,
        )
        if plant.workers is not None:
            plant.workers.tell = tell
            plant.workers.open()
    except MidhaulError:
        if is_new and out is not None:
            out.rmdir()  # a run that is refused leaves nothing, nor one that nobody joins
        raise
    for line in _opening(plant):
        tell(line)
    try:
        if isinstance(plant.engine, Gateways):
            _await(plant.engine, tell)
        with hardware.at_work(plant.hardware), contextlib.closing(_Run(plant, out, tell, progress)) as under_way:
            return under_way.go(resume)
    except BaseException:
        if isinstance(plant.engine, Gateways):
            plant.engine.close(says_goodbye=False)  # they look for the server that goes on with --resume
        if is_new and out is not None and not any(out.iterdir()):
            out.rmdir()
        raise
    finally:
        if isinstance(plant.engine, Firmware | Gateways):
            plant.engine.close()
        if plant.workers is not None:
            plant.workers.close()


def _await(gateways: Gateways, tell: Tell) -> None:
    """Listens, and waits until gateways hold all devices."""
    gateways.tell = tell
    gateways.open()
    gateways.wait(gateways.wait_s)


def behind_link(plant: Plant, ledger: Ledger, out: Path | None = None) -> Participation:
    """Gives the fleet that a run's scheme speaks to: who takes part, over the link, of the plant's engine."""
    config, groups = plant.config, plant.kit.groups
    link, held_j = config.link, batteries(config, groups)
    spending = Spending(ledger, groups, states=link.energy == "states", battery_j=held_j)
    powers = {device: energy.get(group.radio.name) for group in groups for device in group.devices}
    is_own = link.allocation == link.allocation_down == "own"
    made = Band(link.allocation, link.slack, plant.around, powers, down=link.allocation_down)
    shared = None if is_own else made
    over_link = OverLink(
        plant.engine,
        plant.kit.program,
        plant.board,
        plant.radio,
        loss=link.loss,
        retries=link.retries,
        ledger=ledger,
        groups=plant.kit.groups,
        coding=plant.coding,
        around=plant.around,
        spending=spending,
        band=shared,
        log=FrameLog(out / "frames") if out is not None and link.keep_frames else None,
    )
    return Participation(
        over_link, plant.kit, keeps_stragglers=plant.scheme.keeps_stragglers, choosing=_choosing(plant)
    )


class _Run:
    """A run under way."""

    def __init__(self, plant: Plant, out: Path | None, tell: Tell, progress: Progress | None) -> None:
        self.plant, self.out, self.tell, self.progress = plant, out, tell, progress
        config = plant.config
        self.ledger = Ledger()
        there = behind_link(plant, self.ledger, out)
        self.choosing = there.choosing
        if there.band is not None:
            there.band.tell = tell
        self.flying = None if config.fleet.mode == "synchronous" else Asynchronous(there, plant.kit)
        self.fleet = self.flying or there
        self.there = there
        self.watch = None if config.fleet.detector == "none" else Watch(config.fleet)
        coder = plant.coding.coders[Kind.ACTIVATIONS]
        self.tested = AsDelivered(plant.engine, coder, config.scheme.batch) if coder else plant.engine
        self.wall_s, self.train_s = 0.0, 0.0
        self.has_drifted = False
        self.kernels: dict[str, str] = {}  # what computed each op before the run was resumed
        self.scores: Summary = {}
        self.done = 0
        self.target: Summary = {"accuracy": config.run.target_accuracy} | dict.fromkeys(_TARGET)
        self.start: Summary = {}  # the accuracies before the first round, where the scheme tests its large model
        self.again = Replan(plant) if config.run.replan_every else None
        self.scalars: Scalars | None = None
        self.scalars_bytes: dict[str, int] = {}  # of what was written before the run was resumed, if it isn't any more
        self.firmware = plant.engine if isinstance(plant.engine, Firmware) else None
        if self.firmware is not None:
            self.firmware.tell = tell

    def close(self) -> None:
        if self.scalars is not None:
            self.scalars.close()

    def go(self, resume: bool) -> Result:
        config, scheme = self.plant.config, self.plant.scheme
        began = time.perf_counter()
        found = self._resume() if resume else None
        if self.out is not None and found is None:
            keep(self.out / _EVENTS, {})
        if self.out is not None and config.run.tensorboard:
            self.scalars = Scalars(self.out / _EVENTS)
        self._tell_start(found.round if found is not None else 0)
        if found is None:
            self._write("config.toml", settings.to_toml(config).encode())
            self._write("metrics.jsonl", b"")
            survey = self.plant.around.survey() if self.plant.around is not None else None
            if survey is not None:
                self._write("cell.json", json.dumps(survey).encode())
            server, done = scheme.init(self.fleet, self.plant.kit, self._key(0)).on_host(), 0
            self.plant = settle(self.plant, server)
            if scheme.evaluate_large is not None:
                self.start = _accuracies(self._evaluate(server, 0))
                self._line(0, self.scores, {}, None)
            self.wall_s += time.perf_counter() - began
            if self.again is not None:
                self.again.begin(self.ledger)
            self._save(0, server)
        else:
            server, done = found.server, found.round
            self.plant = settle(self.plant, server)
            if self.progress is not None:
                self.progress("rounds", done, self._end())
        self.done = done
        for number in range(done + 1, done + 1 if self._is_enough() else config.run.rounds + 1):
            began, absent = time.perf_counter(), self.ledger.absent
            if number == config.data.drift_round:
                self._drift()
            if self.watch is not None:
                self.there.asking = self.watch.asking(number)
            server, metrics = self._round(server, number)
            server = server.on_host()
            self.there.settle()
            _check_finite(server, number)
            self.train_s += time.perf_counter() - began
            last = number == self._end()
            due = last or number % config.run.evaluate_every == 0
            scores = self._evaluate(server, number) if due else None
            took_s = time.perf_counter() - began
            self.wall_s += took_s
            self._reach(number, scores)
            self._plan_again(number, scores)
            self.done, last = number, last or self._is_enough()
            if last and scores is None:  # it ends before its time, and is tested all the same
                scores = self._evaluate(server, number)
                self._reach(number, scores)
            self._tell_round(self._line(number, scores, metrics, took_s), took_s, self.ledger.absent - absent)
            if number == done + 1:
                self._tell_kernels()
            if last or number % config.run.checkpoint_every == 0:
                self._save(number, server)
            if self.progress is not None:
                self.progress("rounds", number, number if last else self._end())
            if last:
                break
        return Result(self._finish(server), server, self.out)

    def _round(self, server: Server, number: int) -> tuple[Server, dict[str, float]]:
        """Does a round; one below its quorum is repeated, with the model, the devices and the link as they were."""
        kit, engine, coding = self.plant.kit.at_round(number), self.plant.engine, self.plant.coding
        before = coding.dump() if isinstance(engine, Gateways) and engine.quorum else {}
        # A server's half may have dropout, and what steps it doesn't seed torch's generator.
        drawn = rng.key(self.plant.config.run.seed, number, rng.SERVER, rng.Use.DROPOUT).at(_HALVES)
        while True:
            try:
                with rng.torch_seed(drawn), hardware.drawing():
                    return self.plant.scheme.round(server, self.fleet, kit, self._key(number))
            except QuorumError as error:
                if not isinstance(engine, Gateways) or not engine.quorum:
                    raise
                self.tell(Sentence(f"{error}; it is repeated", "round_repeated", level="warning", round=number))
            engine.again()
            self.there.again()
            coding.restore(before)

    def _kernels(self) -> dict[str, str]:
        """Says what computed each op in simulation: the compiled kernels, or torch and why."""
        engine = self.plant.engine.simulated if isinstance(self.plant.engine, Firmware) else self.plant.engine
        found: dict[str, str] = {}
        half = self.plant.kit.half
        behind = [half.told()] if isinstance(half, Half) else []
        for told in (self.kernels, *(kernels.told() for kernels in kernels_of(engine)), *behind):
            # Of devices with unlike models, and of a run before it was resumed, what torch had to do is what is told.
            found |= {op: by for op, by in told.items() if found.get(op, "native") == "native"}
        return dict(sorted(found.items()))

    def _tell_kernels(self) -> None:
        if self.plant.config.run.kernels == "auto" and self.plant.hardware.is_host:
            for op, by in self._kernels().items():
                if by != "native":
                    self.tell(f"{op} is computed by {by}")

    def _key(self, number: int) -> rng.Key:
        return rng.Key(self.plant.config.run.seed, number, rng.SERVER, 0)

    def _evaluate(self, server: Server, number: int) -> Summary:
        """Tests, over no link: measuring is not part of what a deployment sends. Coded activations are tested coded."""
        plant, key = self.plant, self._key(number)
        tested = plant.scheme.evaluate(server, self.tested, plant.kit, key)
        self.scores = _scores(tested, plant)
        if self.watch is not None and number:
            self.watch.see(tested, number)
        self.scores["large_accuracy"] = None
        if plant.scheme.evaluate_large is not None:
            # A board is not asked for its test rows: the simulation has them.
            fleet = getattr(plant.engine, "simulated", None) or self.tested
            large = plant.scheme.evaluate_large(server, fleet, plant.kit, key)
            self.scores["large_accuracy"] = float(large.metrics["correct"].sum() / large.metrics["rows"].sum())
        return self.scores

    def _reach(self, number: int, scores: Summary | None) -> None:
        """Notes what the run had cost when it first was as accurate as it was to become."""
        wanted = self.target["accuracy"]
        if scores is None or not wanted or self.target["round"] is not None or scores["accuracy"] < wanted:
            return
        spent = self.ledger
        each = (number, spent.simulated_seconds, spent.device_joules, spent.uplink_bytes, spent.downlink_bytes)
        self.target |= dict(zip(_TARGET, each, strict=True))
        told = f"{100 * wanted:g} % reached in round {number}: {format_joules(spent.device_joules)} of all devices, "
        told += f"{format_seconds(spent.simulated_seconds)} of simulated time"
        self.tell(Sentence(told, "target", **self.target))

    def _plan_again(self, number: int, scores: Summary | None) -> None:
        """Looks whether the run will keep its limits, and changes what can be changed if not."""
        if self.again is None or self._is_enough():
            return
        change, told = self.again.after(number, self.ledger, scores["accuracy"] if scores is not None else None)
        if told:
            now: Summary = {} if change is None else {"change": dataclasses.asdict(change.setting), "last": self._end()}
            self.tell(Sentence(told, "replan", round=number, **now))
        if change is not None:
            self._change(change.setting)

    def _change(self, setting: Setting) -> None:
        """Goes on with other cohorts, another deadline, other bits and other parts of the model on the devices."""
        if self.again is not None and (dealt := self.again.dealt(setting)) != self.plant.dealt:
            self._redeal(dealt)
        share = setting.cohort / len(self.plant.engine.devices)
        config = self.plant.kit.config.replace(fleet_cohort=share, fleet_round_deadline_s=setting.deadline_s)
        self.plant = dataclasses.replace(self.plant, kit=dataclasses.replace(self.plant.kit, config=config))
        self.there.kit = self.plant.kit
        if self.choosing is not None:
            self.choosing.fleet = config.fleet
        self.plant.coding.updates.bits = setting.bits
        if self.again is not None:
            self.again.plant = self.plant

    def _redeal(self, dealt: tuple[Variant, ...]) -> None:
        """Gives devices another part of the model; what they and the link remember goes with them where it fits."""
        old = self.plant
        assert old.redeal is not None
        self.kernels = self._kernels()
        new = old.redeal(dealt, True)
        assert not isinstance(old.engine, Firmware)
        assert not isinstance(new.engine, Firmware)
        if old.after is not None and self.has_drifted:
            new.engine.shift(old.after)
        moving.move(old.engine, new.engine)
        old.coding.forget({d for d, (a, b) in enumerate(zip(old.dealt, dealt, strict=True)) if a != b})
        kit = dataclasses.replace(new.kit, config=old.kit.config)
        self.plant = dataclasses.replace(new, kit=kit, coding=old.coding, around=old.around)
        self.there.redeal(self.plant.engine, kit, _choosing(self.plant))
        self.choosing = self.there.choosing
        coder = old.coding.coders[Kind.ACTIVATIONS]
        self.tested = AsDelivered(new.engine, coder, old.config.scheme.batch) if coder else new.engine

    def _end(self) -> int:
        """Gives the round that the run ends with, as far as is known."""
        return self.plant.config.run.rounds if self.again is None else self.again.last

    def _is_enough(self) -> bool:
        """Tells whether the run was to end at its target and is there, or at its limits and would go beyond them."""
        is_over = self.again is not None and (self.again.is_over or self.done >= self.again.last)
        return is_over or (self.plant.config.run.stop_at_target and self.target["round"] is not None)

    def _drift(self) -> None:
        """Gives the devices the rows that they have from now on."""
        assert self.plant.after is not None
        assert not isinstance(self.plant.engine, Firmware)
        self.has_drifted = True
        self.plant.engine.shift(self.plant.after)

    def _resume(self) -> Checkpoint | None:
        assert self.out is not None
        folder = self.out / "checkpoint"
        kept = self.out / "config.toml"
        for place in (self.out, folder, self.out / "model"):
            checkpoint.sweep(place)
        if kept.exists():
            _check_same(settings.read(kept), self.plant.config)
        found = checkpoint.load(folder, self.tell)
        if found is None:
            self.tell("there is no checkpoint yet; the run starts from the beginning")
            return None
        scalars = found.scalars
        try:
            self.ledger.restore(scalars["ledger"])
            self.wall_s, self.train_s = float(scalars["wall_s"]), float(scalars["train_s"])
            self.scores, self.start = dict(scalars["scores"]), dict(scalars["start"])
            self.target = dict(scalars["target"])
            self.kernels = dict(scalars.get("kernels", {}))
            size = int(scalars["metrics_bytes"])
            self.scalars_bytes = {str(name): int(most) for name, most in scalars.get("scalars_bytes", {}).items()}
            if self.firmware is not None:
                self.firmware.events = [dict(event) for event in scalars["device_events"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError("the checkpoint lacks a part that this version needs; start the run anew") from None
        if self.again is not None:
            self.again.restore(scalars.get("again", {}))
            if self.again.changes:
                self._change(self.again.setting)
        if self.watch is not None:
            self.watch.restore(scalars.get("watch", {}))
        if 0 < self.plant.config.data.drift_round <= found.round:
            self._drift()
        self.plant.engine.restore(found.devices)
        self.plant.coding.restore({n: v for n, v in found.link.items() if not n.startswith((_FLIGHT, _CHOICE))})
        if self.choosing is not None:
            held = {n.removeprefix(_CHOICE): v for n, v in found.link.items() if n.startswith(_CHOICE)}
            self.choosing.restore(held, scalars.get("choice", {}))
        if self.flying is not None:
            held = {n.removeprefix(_FLIGHT): v for n, v in found.link.items() if n.startswith(_FLIGHT)}
            self.flying.restore(held, scalars.get("flights", {}))
        metrics = self.out / "metrics.jsonl"
        kept_lines = metrics.read_bytes()[:size] if metrics.exists() else b""
        if len(kept_lines) != size:
            raise CheckpointError(f"{metrics} is shorter than the checkpoint knows it; start the run anew")
        checkpoint.write(metrics, kept_lines)
        if not keep(self.out / _EVENTS, self.scalars_bytes):
            self.tell(f"{self.out / _EVENTS} lacks rounds that were written there; TensorBoard won't show them")
        self.tell(f"resuming after round {found.round}")
        return found

    def _save(self, number: int, server: Server) -> None:
        if self.out is None:
            return
        began = time.perf_counter()
        scalars = {
            "ledger": self.ledger.to_table(),
            "wall_s": self.wall_s,
            "train_s": self.train_s,
            "scores": self.scores,
            "start": self.start,
            "target": self.target,
            "kernels": self._kernels(),
            "metrics_bytes": (self.out / "metrics.jsonl").stat().st_size,
            "scalars_bytes": self.scalars.sizes() if self.scalars is not None else self.scalars_bytes,
        }
        devices = self.plant.engine.dump()
        if self.watch is not None:
            scalars["watch"] = self.watch.dump()
        if self.again is not None:
            scalars["again"] = self.again.dump()
        if self.firmware is not None:
            scalars["device_events"] = self.firmware.events
        link = self.plant.coding.dump()
        if self.flying is not None:
            held, scalars["flights"] = self.flying.dump()
            link |= {f"{_FLIGHT}{name}": value for name, value in held.items()}
        if self.choosing is not None:
            learned, scalars["choice"] = self.choosing.dump()
            link |= {f"{_CHOICE}{name}": value for name, value in learned.items()}
        checkpoint.save(self.out / "checkpoint", Checkpoint(number, server, devices, scalars, link))
        facts = {"round": number, "seconds": time.perf_counter() - began, "folder": str(self.out / "checkpoint")}
        self.tell(Sentence(f"checkpoint of round {number}", "checkpoint", level="detail", **facts))

    def _line(self, number: int, scores: Summary | None, metrics: dict[str, float], took_s: float | None) -> Summary:
        """Writes the figures of a round to metrics.jsonl, and for TensorBoard; gives them."""
        ledger, config = self.ledger, self.plant.config
        line = {
            "round": number,
            **(_accuracies(scores) if scores else {"accuracy": None, "large_accuracy": None}),
            "loss": scores["loss"] if scores else None,
            "train_loss": metrics.get("train_loss"),
            "uplink_bytes": ledger.uplink_bytes,
            "downlink_bytes": ledger.downlink_bytes,
            "air_seconds": ledger.air_seconds,
            "compute_seconds": ledger.compute_seconds,
            "simulated_seconds": ledger.simulated_seconds,
            "device_joules": ledger.device_joules,
            "absent": ledger.absent,
            "gone": [int(device) for device, at in ledger.gone.items() if at == number],
            "drifted": [alarm["device"] for alarm in self._alarms() if alarm["round"] == number],
            **({} if schedule.is_constant(config.scheme) else {"lr": self.plant.kit.at_round(number).cfg.lr}),
            **self._replanned(number),
            "kinds": {"up": ledger.kinds_up, "down": ledger.kinds_down},
        }
        if self.out is not None:
            try:
                with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise ConfigError(
                    f"{self.out} can't be written ({error.strerror}); free space or choose another --out"
                ) from None
        if self.scalars is not None:
            self.scalars.write({**line, "seconds": took_s})
        return line

    def _tell_start(self, done: int) -> None:
        config, ledger = self.plant.config, self.ledger
        facts: Summary = {
            "version": __version__,
            "scheme": config.scheme.name,
            "data": self.plant.dataset.name,
            "engine": config.run.engine,
            "seed": config.run.seed,
            "devices": len(self.plant.engine.devices),
            "out": str(self.out) if self.out is not None else None,
            "round": done,
            "rounds": self._end(),
            **{name: self.scores.get(name) for name in ("accuracy", "large_accuracy", "loss")},
            **{name: getattr(ledger, name) for name in ("uplink_bytes", "downlink_bytes", "device_joules")},
        }
        told = f"{config.scheme.name} on {facts['data']} begins" if not done else f"going on after round {done}"
        self.tell(Sentence(told, "start", level="detail", **facts))

    def _tell_round(self, line: Summary, took_s: float, absent: int) -> None:
        rounds = self._end()
        facts = {name: line[name] for name in _FIGURES} | {"rounds": rounds, "seconds": took_s, "absent": absent}
        if isinstance(self.plant.engine, Gateways):
            facts["gateways"] = self.plant.engine.attendance()
        told = f"round {line['round']} of {rounds} in {format_seconds(took_s)}"
        told += f": accuracy {100 * line['accuracy']:.1f} %" if line["accuracy"] is not None else ""
        self.tell(Sentence(told, "round", level="detail", **facts))

    def _replanned(self, number: int) -> Summary:
        """Gives why the run was planned again after a round, None where it wasn't, and what it is to come to, None
        where nobody looked; nothing where nobody ever does."""
        if self.again is None:
            return {}
        why = next((change.why for change in self.again.changes if change.round == number), None)
        return {"replanned": why, "forecast": self.again.forecast or None}

    def _alarms(self) -> list[dict[str, int]]:
        """Gives when each device's detector fired."""
        return self.watch.alarms if self.watch is not None else []

    def _finish(self, server: Server) -> Summary:
        kept = self.plant.engine.dump()
        devices = {name: value for name, value in kept.items() if not name.startswith(("momentum/", "of_momentum/"))}
        trees: dict[str, Tree] = {"tiny": server.tree, "large": server.large, "devices": _own(devices, server.tree)}
        summary = self._summary(server, devices)
        if self.out is not None:
            checkpoint.make(self.out / "model")
            for name, values in trees.items():
                if values:
                    checkpoint.write(self.out / "model" / f"{name}.safetensors", checkpoint.to_bytes(values))
            self._write("summary.json", json.dumps(summary, indent=2).encode())
        names = (
            "rounds",
            "accuracy",
            "large_accuracy",
            "uplink_bytes",
            "downlink_bytes",
            "device_joules",
            "wall_seconds",
        )
        facts = {name: summary[name] for name in (*names, "model_sha256")}
        self.tell(Sentence(f"the run has ended after {self.done} rounds", "end", level="detail", **facts))
        return summary

    def _summary(self, server: Server, devices: Tree) -> Summary:
        plant, ledger = self.plant, self.ledger
        groups = [group for group in plant.kit.groups if group.devices]
        module = plant.kit.program.module
        everything = {
            **{f"tiny/{name}": value for name, value in server.tree.items()},
            **{f"large/{name}": value for name, value in server.large.items()},
            **{f"devices/{name}": value for name, value in devices.items()},
        }
        rear = plant.kit.large if plant.scheme.large != "none" else None
        stats = self.firmware.stats() if self.firmware is not None else []
        events = self.firmware.events if self.firmware is not None else []
        kernels = self._kernels()
        if isinstance(plant.engine, Gateways):
            told = plant.engine.told()
            stats, events, kernels = told.stats, told.events, told.kernels
        return {
            "scheme": plant.scheme.name,
            "title": plant.scheme.title,
            "engine": plant.config.run.engine,
            "hardware": plant.hardware.about,
            "kernels": kernels,
            "data": plant.dataset.name,
            "board": ", ".join(dict.fromkeys(group.board.name for group in groups)),
            "radio": ", ".join(dict.fromkeys(group.radio.name for group in groups)),
            "groups": [_group(group, need) for group, need in zip(groups, plant.needs, strict=True)],
            "num_devices": len(plant.engine.devices),
            "rounds": self.done,
            "seed": plant.config.run.seed,
            **self.scores,
            "start": self.start or None,
            "uplink_bytes": ledger.uplink_bytes,
            "downlink_bytes": ledger.downlink_bytes,
            "air_seconds": ledger.air_seconds,
            "compute_seconds": ledger.compute_seconds,
            "simulated_seconds": ledger.simulated_seconds,
            "target": self.target if self.target["accuracy"] else None,
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
            "spent": _spent(plant, ledger),
            "absent": ledger.absent,
            "uncovered": ledger.uncovered,
            "refused_replies": ledger.refused + sum(event["what"] == "refused" for event in events),
            "device_events": events,
            "drift_alarms": self._alarms(),
            **({} if self.again is None else {"replans": [change.to_table() for change in self.again.changes]}),
            "device_stats": stats,
            "gateways": plant.engine.about() if isinstance(plant.engine, Gateways) else None,
            "refused_from_gateways": dict(plant.engine.refused) if isinstance(plant.engine, Gateways) else None,
            "cluster": plant.workers.to_table() if plant.workers is not None else None,
            "refused_rows": len(plant.dataset.refused),
            "num_train_rows": sum(len(rows) for rows in plant.federation.train),
            "num_test_rows": sum(len(rows) for rows in plant.federation.test),
            "num_public_rows": len(plant.federation.public),
            "tiny": {
                "model": plant.tiny_name,
                "parameters": tree.num_parameters(plant.kit.program.initial),
                "macs": sum(layer.macs for layer in count.layers(module, plant.kit.program.input_shape)),
            },
            "large": None
            if rear is None
            else {"model": plant.large_name, "parameters": sum(p.numel() for p in rear.parameters())},
            "version": __version__,
        }

    def _write(self, name: str, data: bytes) -> None:
        if self.out is not None:
            checkpoint.write(self.out / name, data)


def _spent(plant: Plant, ledger: Ledger) -> Summary:
    """Gives where the joules and seconds of each training device went, and the round in which its battery was empty."""
    devices = plant.engine.devices
    parts: Summary = {"names": [_device_name(device, plant) for device in devices]}
    for name, each in (("joules", ledger.joules_of), ("seconds", ledger.seconds_of)):
        parts[name] = {what: [each[what].get(str(device), 0.0) for device in devices] for what in WHATS}
    return {**parts, "gone": [ledger.gone.get(str(device)) for device in devices]}


def _choosing(plant: Plant) -> Choosing | None:
    """Gives the rule by which cohorts are chosen, None where they are drawn."""
    config, groups = plant.config, plant.kit.groups
    if config.fleet.selection == "random":
        return None
    still = {device: group.radio for group in groups for device in group.devices}
    around = plant.around

    def radios(number: int, time_s: float) -> dict[int, Radio]:
        return still if around is None else {**still, **around.alone(number, time_s)}

    rows = [len(rows) for rows in plant.federation.train]
    return Choosing(plant.kit, plant.scheme, rows, radios, config.run.seed)


def _group(group: Group, need: Budget) -> Summary:
    """Gives what the devices of a group are, and what they need, as plain values."""
    return {
        "num_devices": len(group.devices),
        "board": group.board.name,
        "radio": group.radio.name,
        "width": group.width,
        "cut": group.cut,
        "rank": group.rank,
        "model": group.model,
        "parameters": tree.num_parameters(group.program.initial),
        "flash_bytes": need.flash_bytes,
        "sram_bytes": need.sram_bytes,
        "flash_limit_bytes": group.board.flash_bytes,
        "sram_limit_bytes": group.board.sram_bytes,
    }


def _scores(replies: Replies, plant: Plant) -> Summary:
    rows, correct, loss = (replies.metrics[name] for name in ("rows", "correct", "loss"))
    total = float(rows.sum())
    if total == 0.0:
        raise DataError("no test device holds a row; raise data.test_fraction or give held-out rows")
    each = [float(c / n) if n else None for c, n in zip(correct, rows, strict=True)]
    names = [_device_name(device, plant) for device in replies.devices]
    ordered = sorted(share for share in each if share is not None)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
    return {
        "accuracy": float(correct.sum()) / total,
        "accuracy_per_device": {
            "min": ordered[0],
            "median": median,
            "max": ordered[-1],
            "names": names,
            "values": each,
        },
        "loss": float((loss * rows).sum()) / total,
    }


def _accuracies(scores: Summary) -> Summary:
    return {name: scores[name] for name in ("accuracy", "large_accuracy")}


def _device_name(device: int, plant: Plant) -> str:
    names = plant.federation.device_names
    return names[device] if device < len(names) else plant.federation.test_names[device - len(names)]


def _own(devices: Tree, shared: Tree) -> Tree:
    """Gives what the devices hold that is their own."""
    return {name: value for name, value in devices.items() if name.startswith(("own/", "of_own/", "tree/"))}


def _check_finite(server: Server, number: int) -> None:
    if not (tree.is_finite(server.tree) and tree.is_finite(server.large)):
        raise ConfigError(
            f"round {number}: the model is no longer finite, so training diverged; "
            "lower scheme.lr, large.lr or scheme.server_lr"
        )


def _check_same(kept: Config, now: Config) -> None:
    old, new = settings.to_table(kept), settings.to_table(now)
    for section, values in old.items():
        for key, value in values.items():
            if new[section][key] != value and not _is_same_run(f"{section}.{key}", value, new[section][key]):
                raise CheckpointError(
                    f"the run to resume has {section}.{key} = {value!r} and this config has {new[section][key]!r}; "
                    "resume with the same config, or choose another --out"
                )


def _is_same_run(key: str, old: Any, new: Any) -> bool:
    """Says whether a setting only says where the work is done; these three have the same checkpoints."""
    return key in ("run.threads", "run.workers", "run.address", "run.device", "run.tensorboard") or (
        key == "run.engine" and {old, new} <= {"stacked", "cluster", "gateways"}
    )


def _open_folder(out: Path, resume: bool) -> None:
    metrics = out / "metrics.jsonl"
    # One that was refused before its first checkpoint holds nothing that could be lost.
    begun = metrics.exists() and (metrics.stat().st_size > 0 or (out / "checkpoint").exists())
    if not resume and begun:
        raise ConfigError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the output folder {out} can't be written ({error.strerror}); choose another --out"
        ) from None


def _opening(plant: Plant) -> list[str]:
    data, federation = plant.dataset, plant.federation
    lines = list(plant.notes)
    if data.refused:
        first = data.refused[0]
        lines.append(
            f"{len(data.refused)} of {data.num_read} rows were set aside; "
            f"the first is line {first.line}: {first.reason}"
        )
    if federation.left_out:
        lines.append(f"{len(federation.left_out)} devices with fewer than data.min_rows rows are left out")
    if isinstance(plant.engine, Firmware):
        lines.append(plant.engine.about)
    if plant.workers is not None:
        lines.append(plant.workers.about)
    if not plant.hardware.is_host:
        engine = plant.config.run.engine
        devices = " and the simulated devices" if engine in ("stacked", "firmware") else ""
        rest = "" if devices else f"; the devices of the engine {engine} are not"
        lines.append(f"the server's models{devices} are computed on {plant.hardware.about}{rest}")
    if plant.dataset.source != plant.dataset.name:
        lines.append(f"licence of {data.name}: {data.licence}")
    rows = [len(r) for r in federation.train]
    lines.append(
        f"{data.name}: {len(rows)} devices with {min(rows)} to {max(rows)} rows, "
        f"{sum(len(r) for r in federation.test)} test rows, {len(federation.public)} public rows"
    )
    return lines
