"""Run folders as a report reads them: every value checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midhaul import config
from midhaul.changes import Change
from midhaul.errors import CheckpointError
from midhaul.goals import COSTS, Limit, read_limits
from midhaul.message import Kind
from midhaul.report import cells, gateways, replans, spent
from midhaul.report.cells import CellMap
from midhaul.report.gateways import Gateway
from midhaul.report.spent import Spent, Target

KINDS: tuple[str, ...] = (*(kind.value for kind in Kind), "header")
GATES = ("probability", "entropy", "margin", "learned")
EVENTS = ("connected", "lost", "reset", "refused", "rejoined")
MAX_FILE_BYTES = 512 * 2**20  # a run of a million rounds writes about as much
_COUNTERS = ("uplink_bytes", "downlink_bytes", "air_seconds", "compute_seconds", "device_joules", "absent")
_ADVICE = "finish or repeat that run, or leave its folder out"


@dataclass(frozen=True)
class Round:
    """A line of metrics.jsonl: a round's accuracy, and what the run had cost by the end of it."""

    round: int
    accuracy: float | None
    uplink_bytes: int
    downlink_bytes: int
    device_joules: float
    large_accuracy: float | None = None
    simulated_seconds: float | None = None  # None in runs from before there was a clock
    forecast: Mapping[str, float] = field(default_factory=dict)  # what the run was to come to, where it was looked at

    def costs(self) -> Mapping[str, float]:
        """Gives what the run had cost by then, of all that can be limited; nothing where that isn't known."""
        up, down = float(self.uplink_bytes), float(self.downlink_bytes)
        if self.simulated_seconds is None:
            return {}
        return dict(zip(COSTS, (self.device_joules, self.simulated_seconds, up + down, up, down), strict=True))

    @property
    def link_bytes(self) -> int:
        """Bytes in both directions."""
        return self.uplink_bytes + self.downlink_bytes


@dataclass(frozen=True)
class Buffer:
    """Bytes of a device's arena that live from step `first` to step `last`, both included."""

    name: str
    bytes: int
    offset: int
    first: int
    last: int


@dataclass(frozen=True)
class DeviceEvent:
    """Something that happened to a device behind an address: connected, lost, reset, refused, rejoined."""

    round: int
    device: int
    address: str
    what: str
    reason: str


@dataclass(frozen=True)
class DeviceStats:
    """What a device behind an address measured of itself. Units: bytes; a stack of 0 couldn't be measured."""

    device: int
    address: str
    arena_peak_bytes: int
    arena_bytes: int
    stack_peak_bytes: int
    store_used_bytes: int


@dataclass(frozen=True)
class DeviceGroup:
    """Devices of a run that are alike: how many, their board, what they hold, what it needs and what there is."""

    num_devices: int
    board: str
    radio: str
    holds: str  # what sets their model apart; nothing where nothing does
    parameters: int
    flash_bytes: int
    sram_bytes: int
    flash_limit_bytes: int
    sram_limit_bytes: int


@dataclass(frozen=True)
class Spot:
    """A way in which a tiny and a large model answer together, and what it came to on the test rows, a query.

    `gate` is empty where there is no threshold; `stays` is the share of queries that never leave the device.
    """

    name: str
    gate: str
    chosen: bool
    thresholds: tuple[float, ...]
    accuracy: float
    stays: float
    bytes: float
    joules: float
    seconds: float
    p95_s: float


@dataclass(frozen=True)
class Cascade:
    """What `midhaul cascade` wrote beside a run: ways to answer, and the trade-off of each gate."""

    goal: str
    send: str
    answer: str
    exit: str
    server_gmacs: float
    calibration_rows: int
    test_rows: int
    apart: str
    spots: tuple[Spot, ...]
    curves: Mapping[str, tuple[Spot, ...]]  # by gate


@dataclass(frozen=True)
class Run:
    """A finished run: its settings, what it came to and how it went."""

    path: Path
    settings: Mapping[str, Any]  # flat: section.key
    config_text: str
    scheme: str
    title: str
    engine: str
    data: str
    board: str
    version: str
    model_sha256: str
    num_devices: int
    num_rounds: int
    seed: int
    accuracy: float | None
    large_accuracy: float | None  # the large model by itself; None where the scheme doesn't test it
    start: tuple[float | None, float | None]  # the accuracies of tiny and large model before the first round
    device_names: tuple[str, ...]
    device_accuracy: tuple[float | None, ...]
    uplink_bytes: int
    downlink_bytes: int
    air_seconds: float
    compute_seconds: float
    device_joules: float
    flash_bytes: int
    sram_bytes: int
    flash_limit_bytes: int
    sram_limit_bytes: int
    wall_seconds: float
    refused_rows: int
    tiny: tuple[str, int, int]  # model, parameters, MACs
    large: tuple[str, int] | None
    kinds: Mapping[str, Mapping[str, int]]  # direction ("up", "down") -> kind -> bytes
    buffers: tuple[Buffer, ...]
    device_events: tuple[DeviceEvent, ...]
    device_stats: tuple[DeviceStats, ...]
    device_groups: tuple[DeviceGroup, ...]  # one where all devices are alike; none in runs from before there were any
    rounds: tuple[Round, ...]
    cascade: Cascade | None = None  # None where the two weren't asked to answer together
    cell: CellMap | None = None  # None where the devices were in none
    spent: Spent | None = None  # None in runs from before it was kept
    target: Target | None = None  # None where the run had none
    simulated_seconds: float | None = None  # None in runs from before there was a clock
    workers: tuple[int, int, int] | None = None  # of a cluster: workers, machines, chunks that were done again
    limits: tuple[Limit, ...] = ()  # that the run was to keep
    replans: tuple[Change, ...] | None = None  # None where nobody looked whether it keeps them
    gateways: tuple[Gateway, ...] = ()  # none of a run on one machine


def read_run(path: Path) -> Run:
    """Reads and checks one run folder. Raises: CheckpointError, or ConfigError for its config.toml."""
    if not path.is_dir():
        raise CheckpointError(f"there is no run folder {path}; give the folder that a run was written to")
    config_text = _text(path / "config.toml")
    settings = dict(_flat(config.read_table(path / "config.toml")))
    summary = _Fields(_json(_text(path / "summary.json"), str(path / "summary.json")), str(path / "summary.json"))
    tiny, large = summary.inner("tiny"), summary.inner("large") if summary.of("large") is not None else None
    names, accuracy = _devices(summary)
    start = summary.inner("start") if summary.table.get("start") is not None else None
    run = Run(
        path=path,
        settings=settings,
        config_text=config_text,
        scheme=summary.text("scheme"),
        title=summary.text("title"),
        engine=summary.text("engine"),
        data=summary.text("data"),
        board=summary.text("board"),
        version=summary.text("version"),
        model_sha256=summary.text("model_sha256"),
        num_devices=summary.whole("num_devices"),
        num_rounds=summary.whole("rounds"),
        seed=summary.whole("seed"),
        accuracy=summary.share("accuracy"),
        large_accuracy=_known(summary, "large_accuracy"),
        start=(start.share("accuracy"), start.share("large_accuracy")) if start else (None, None),
        device_names=names,
        device_accuracy=accuracy,
        uplink_bytes=summary.whole("uplink_bytes"),
        downlink_bytes=summary.whole("downlink_bytes"),
        air_seconds=summary.real("air_seconds"),
        compute_seconds=summary.real("compute_seconds"),
        device_joules=summary.real("device_joules"),
        flash_bytes=summary.whole("device_flash_bytes"),
        sram_bytes=summary.whole("device_sram_bytes"),
        flash_limit_bytes=summary.whole("device_flash_limit_bytes"),
        sram_limit_bytes=summary.whole("device_sram_limit_bytes"),
        wall_seconds=summary.real("wall_seconds"),
        refused_rows=summary.whole("refused_rows"),
        tiny=(tiny.text("model"), tiny.whole("parameters"), tiny.whole("macs")),
        large=(large.text("model"), large.whole("parameters")) if large else None,
        kinds=_kinds(summary),
        buffers=tuple(_buffer(item) for item in summary.items("buffers")),
        device_events=tuple(_event(item) for item in _listed(summary, "device_events")),
        device_stats=tuple(_stats(item) for item in _listed(summary, "device_stats")),
        device_groups=tuple(_device_group(item) for item in _listed(summary, "groups")),
        rounds=_rounds(path / "metrics.jsonl"),
        cascade=_cascade(path / "cascade.json") if (path / "cascade.json").exists() else None,
        cell=_cell(path / "cell.json") if (path / "cell.json").exists() else None,
        spent=spent.read(summary.table["spent"], summary.where) if "spent" in summary.table else None,
        target=spent.read_target(summary.table.get("target"), summary.where),
        simulated_seconds=summary.real("simulated_seconds") if "simulated_seconds" in summary.table else None,
        limits=read_limits(str(settings.get("run.within", "")), "run.within"),
        replans=_replans(summary),
        gateways=gateways.read(summary.table.get("gateways"), summary.where),
        workers=_workers(summary.inner("cluster")) if summary.table.get("cluster") is not None else None,
    )
    last = run.rounds[-1]
    if (last.round, last.uplink_bytes, last.downlink_bytes) != (run.num_rounds, run.uplink_bytes, run.downlink_bytes):
        raise CheckpointError(f"{path}: metrics.jsonl and summary.json don't end alike, as of two runs; {_ADVICE}")
    for direction, total in (("up", run.uplink_bytes), ("down", run.downlink_bytes)):
        added = sum(run.kinds[direction].values())
        if added != total:
            raise CheckpointError(
                f"{summary.where}: the kinds of bytes sent {direction} add up to {added}, not to {total}; {_ADVICE}"
            )
    return run


class _Fields:
    """A JSON object whose values are checked as they are taken out."""

    def __init__(self, table: Any, where: str) -> None:
        if not isinstance(table, dict):
            raise CheckpointError(f"{where} does not hold a JSON object; {_ADVICE}")
        self.table, self.where = table, where

    def of(self, name: str) -> Any:
        if name not in self.table:
            raise CheckpointError(f"{self.where} has no {name!r}; {_ADVICE}")
        return self.table[name]

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        shown = repr(self.table[name])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"{self.where}: {name!r} is {shown}, not {wanted}; {_ADVICE}")

    def text(self, name: str) -> str:
        value = self.of(name)
        if not isinstance(value, str) or not value.isprintable():
            raise self.wrong(name, "a line of text")
        return value

    def whole(self, name: str) -> int:
        value = self.of(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise self.wrong(name, "a whole number of at least 0")
        return value

    def real(self, name: str) -> float:
        value = self.of(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < 1e300:
            raise self.wrong(name, "a finite number of at least 0")
        return float(value)

    def share(self, name: str) -> float | None:
        if self.of(name) is None:
            return None
        if not isinstance(self.table[name], int | float) or isinstance(self.table[name], bool):
            raise self.wrong(name, "a number from 0 to 1, or null")
        if not 0.0 <= self.table[name] <= 1.0:
            raise self.wrong(name, "a number from 0 to 1, or null")
        return float(self.table[name])

    def finite_or_null(self, name: str) -> None:
        value = self.of(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and -1e300 < value < 1e300):
            raise self.wrong(name, "a finite number, or null")

    def inner(self, name: str) -> _Fields:
        return _Fields(self.of(name), f"{self.where}, {name!r}")

    def items(self, name: str) -> list[_Fields]:
        values = self.of(name)
        if not isinstance(values, list):
            raise self.wrong(name, "a list")
        return [_Fields(value, f"{self.where}, {name!r} number {i}") for i, value in enumerate(values)]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_FILE_BYTES} bytes, which no run writes; {_ADVICE}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it holds no finished run; {_ADVICE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); {_ADVICE}") from None


def _json(text: str, where: str) -> Any:
    def refuse(word: str) -> float:
        raise ValueError(f"{word} is not a number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}); {_ADVICE}") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in table.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return flat


def _known(fields: _Fields, name: str) -> float | None:
    """Gives a share that runs from before it was measured don't have."""
    return fields.share(name) if name in fields.table else None


def _devices(summary: _Fields) -> tuple[tuple[str, ...], tuple[float | None, ...]]:
    if summary.of("accuracy_per_device") is None:
        return (), ()
    table = summary.inner("accuracy_per_device")
    names, values = table.of("names"), table.of("values")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise table.wrong("names", "a list of names")
    if not isinstance(values, list) or len(values) != len(names):
        raise table.wrong("values", "a list with one accuracy a name")
    each = (_Fields({name: value}, table.where).share(name) for name, value in zip(names, values, strict=True))
    return tuple(names), tuple(each)


def _kinds(summary: _Fields) -> dict[str, dict[str, int]]:
    kinds = summary.inner("kinds")
    out = {}
    for direction in ("up", "down"):
        table = kinds.inner(direction)
        unknown = sorted(set(table.table) - set(KINDS))
        if unknown:
            raise CheckpointError(
                f"{table.where} has the unknown kind {unknown[0]!r}; read it with the midhaul that wrote it"
            )
        out[direction] = {kind: table.whole(kind) if kind in table.table else 0 for kind in KINDS}
    return out


def _buffer(item: _Fields) -> Buffer:
    buffer = Buffer(item.text("name"), *(item.whole(name) for name in ("bytes", "offset", "first", "last")))
    if buffer.last < buffer.first:
        raise item.wrong("last", f"a step from its first, {buffer.first}, on")
    return buffer


def _replans(summary: _Fields) -> tuple[Change, ...] | None:
    """Gives a run's new plans; None where it never looked, or didn't keep why."""
    if "replans" not in summary.table:
        return None
    found = [replans.read(item.table, item.where) for item in summary.items("replans")]
    return tuple(one for one in found if one is not None) if None not in found else None


def _listed(summary: _Fields, name: str) -> list[_Fields]:
    """Gives a list of a summary that older runs don't have."""
    return summary.items(name) if name in summary.table else []


def _stats(item: _Fields) -> DeviceStats:
    sizes = ("arena_peak_bytes", "arena_bytes", "stack_peak_bytes", "store_used_bytes")
    return DeviceStats(item.whole("device"), item.text("address"), *(item.whole(name) for name in sizes))


def _device_group(item: _Fields) -> DeviceGroup:
    width, rank = item.real("width"), item.whole("rank")
    told = [item.text("model")] if item.text("model") else []
    told += [f"width {width:g}"] if width != 1.0 else []
    told += [f"up to {item.text('cut')}"] if item.text("cut") else []
    told += [f"rank {rank}"] if rank else []
    sizes = ("parameters", "flash_bytes", "sram_bytes", "flash_limit_bytes", "sram_limit_bytes")
    return DeviceGroup(
        item.whole("num_devices"),
        item.text("board"),
        item.text("radio"),
        ", ".join(told),
        *(item.whole(name) for name in sizes),
    )


def _event(item: _Fields) -> DeviceEvent:
    what = item.text("what")
    if what not in EVENTS:
        raise item.wrong("what", f"one of {', '.join(EVENTS)}")
    return DeviceEvent(item.whole("round"), item.whole("device"), item.text("address"), what, item.text("reason"))


def _workers(item: _Fields) -> tuple[int, int, int]:
    machines = item.of("machines")
    if not isinstance(machines, list):
        raise item.wrong("machines", "a list of names")
    return item.whole("workers"), len(machines), item.whole("repeated_chunks")


def _cascade(path: Path) -> Cascade:
    table = _Fields(_json(_text(path), str(path)), str(path))
    curves = table.inner("curves")
    if odd := sorted(set(curves.table) - set(GATES)):
        raise CheckpointError(f"{curves.where} has the unknown gate {odd[0]!r}; run `midhaul cascade` again")
    return Cascade(
        goal=table.text("goal"),
        send=table.text("send"),
        answer=table.text("answer"),
        exit=table.text("exit"),
        server_gmacs=table.real("server_gmacs"),
        calibration_rows=table.whole("calibration_rows"),
        test_rows=table.whole("test_rows"),
        apart=table.text("apart"),
        spots=tuple(_spot(item, item.text("name"), item.text("gate")) for item in table.items("rows")),
        curves={gate: tuple(_spot(item, gate, gate) for item in curves.items(gate)) for gate in curves.table},
    )


def _cell(path: Path) -> CellMap:
    return cells.read(_json(_text(path), str(path)), str(path))


def _spot(item: _Fields, name: str, gate: str) -> Spot:
    thresholds = item.of("thresholds")
    if not isinstance(thresholds, list) or not all(
        isinstance(value, float) and 0 <= value <= 1 for value in thresholds
    ):
        raise item.wrong("thresholds", "a list of numbers from 0 to 1")
    accuracy, stays = item.share("accuracy"), item.share("stays")
    if accuracy is None or stays is None:
        raise item.wrong("accuracy", "a number from 0 to 1")
    return Spot(
        name,
        gate,
        chosen=item.table.get("chosen") is True,
        thresholds=tuple(thresholds),
        accuracy=accuracy,
        stays=stays,
        bytes=item.real("bytes"),
        joules=item.real("joules"),
        seconds=item.real("seconds"),
        p95_s=item.real("p95_s"),
    )


def _rounds(path: Path) -> tuple[Round, ...]:
    rounds: list[Round] = []
    before: dict[str, float] = dict.fromkeys(("round", *_COUNTERS), -1.0)
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = _Fields(_json(line, f"{path} line {number}"), f"{path} line {number}")
        now = {name: fields.real(name) for name in before}
        fallen = next((name for name in _COUNTERS if now[name] < before[name]), None)
        if fallen or now["round"] <= before["round"]:
            raise fields.wrong(fallen or "round", f"beyond the line before, {before[fallen or 'round']:g}")
        fields.finite_or_null("loss")
        fields.finite_or_null("train_loss")
        up, down = fields.whole("uplink_bytes"), fields.whole("downlink_bytes")
        large = _known(fields, "large_accuracy")
        clock = fields.real("simulated_seconds") if "simulated_seconds" in fields.table else None
        ahead = replans.read_forecast(fields.table.get("forecast"), fields.where)
        scores = (fields.share("accuracy"), up, down, now["device_joules"], large)
        rounds.append(Round(fields.whole("round"), *scores, clock, ahead))
        before = now
    if not rounds:
        raise CheckpointError(f"{path} has no rounds in it; {_ADVICE}")
    return tuple(rounds)
