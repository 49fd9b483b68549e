"""The sentences of a report: what was run, what came out and what left the devices, for someone who is new to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from midhaul.devices.profiles import BOARDS
from midhaul.link.radio import RADIOS
from midhaul.report.groups import Group, Row, Study
from midhaul.report.runs import Run
from midhaul.units import format_bytes, format_joules

_PARTITIONS = {
    "auto": "Each holds the rows that are its own by nature, of one person for example, or a random share where the "
    "data set doesn't tell.",
    "natural": "Each holds the rows that are its own by nature, of one person for example.",
    "iid": "Rows were dealt out at random, so the devices are alike.",
    "dirichlet": "Rows were dealt out unevenly by class (Dirichlet), so the devices differ.",
    "classes": "Each holds rows of a few classes only.",
    "quantity": "Some hold many rows and others few.",
    "vertical": "Each holds some of the features of all rows.",
}
_ENGINES = {
    "loop": "The devices are simulated on one computer, one after another (engine loop).",
    "stacked": "The devices are simulated on one computer, side by side (engine stacked).",
    "gateways": "The devices lie behind gateways, on other machines or in other processes (engine gateways).",
}
_RADIOS = {
    "ble": "Bluetooth Low Energy (ble)",
    "nb_iot": "NB-IoT cellular (nb_iot)",
    "cat_m1": "LTE-M cellular (cat_m1)",
    "redcap": "5G RedCap cellular (redcap)",
    "nr_embb": "5G broadband cellular (nr_embb)",
    "wifi_esp32": "Wi-Fi (wifi_esp32)",
    "ethernet": "wired Ethernet (ethernet)",
    "uart": "a serial wire (uart)",
}
_FIGURES = (
    "Bytes are those of frames that were really made, with their headers and with what was sent again. Time on the "
    "air, joules and memory are worked out from these and from the data sheets of radio and board; nothing was "
    "measured on hardware. Testing costs nothing here, since a deployment doesn't do it."
)


def what_was_run(study: Study) -> dict[str, str]:
    """Gives a paragraph each on the data, the devices, the runs and the figures, by its heading."""
    runs = [run for group in study.groups for run in group.runs]
    return {"Data": _data(study, runs), "Devices": _devices(runs), "Runs": _course(study, runs), "Figures": _FIGURES}


def findings(rows: Sequence[Row], groups: Sequence[Group]) -> str:
    """Gives the outcome in a sentence or two."""
    if len(rows) == 1:
        row, devices = rows[0], groups[0].runs[0].num_devices
        reached = "It was not tested" if row.accuracy is None else f"It gets {_percent(row)} of the test rows right"
        return (
            f"{reached}, after {_total(row)} on the link; {devices:,} devices spent {format_joules(row.device_joules)}."
        )
    tested = [row for row in rows if row.accuracy is not None]
    fewest, least = min(rows, key=_bytes), min(rows, key=lambda row: row.device_joules)
    told = []
    if tested:
        best = max(tested, key=lambda row: row.accuracy or 0.0)
        cost = f"{_total(best)} and {format_joules(best.device_joules)}"
        told.append(f"Most accurate is {best.label} with {_percent(best)}, for {cost}.")
    told.append(f"Fewest bytes crossed the link with {fewest.label} ({_total(fewest)}{_reached(fewest)}).")
    told.append(f"The devices spent least with {least.label} ({format_joules(least.device_joules)}{_reached(least)}).")
    return " ".join(told)


def crossing(groups: Sequence[Group]) -> str:
    """Gives what left the devices that a person could read, and that the rest is no secret either."""
    if not any(sum(g.kind_bytes(way).values()) for g in groups for way in ("up", "down")):
        return "Nothing crossed the link."
    sent = {kind: [g.label for g in groups if g.kind_bytes("up")[kind]] for kind in ("examples", "labels")}
    told = []
    if sent["examples"]:
        told.append(f"Raw examples left the devices with {_and(sent['examples'])}.")
    if sent["labels"]:
        told.append(f"Labels left the devices with {_and(sent['labels'])}.")
    clean = [g.label for g in groups if g.label not in sent["labels"] + sent["examples"]]
    if clean:
        told.append(f"With {_and(clean)} neither did." if told else "Neither raw examples nor labels left a device.")
    told.append(
        "What else was sent, weights, gradients or activations, can still give away some of the data behind it."
    )
    return " ".join(told)


def _data(study: Study, runs: Sequence[Run]) -> str:
    told = [
        f"{study.data}, on {_span(run.num_devices for run in runs)} devices; it stays there unless a scheme sends it."
    ]
    told += [_PARTITIONS[name] for name in _each(runs, _partition) if name in _PARTITIONS]
    refused = max(run.refused_rows for run in runs)
    if refused:
        told.append(f"{refused:,} damaged rows were set aside.")
    return " ".join(told)


def _devices(runs: Sequence[Run]) -> str:
    told = []
    for name in _each(runs, lambda run: run.board):
        run = next(run for run in runs if run.board == name)
        if len({group.board for group in run.device_groups}) > 1:
            told.append(f"The boards are {_and(_counted(run))}; a table below has what each holds and needs.")
            continue
        board = BOARDS.get(name)
        what = f"{board.title}, {board.core} at {board.clock_hz / 1e6:g} MHz" if board else name
        flash, sram = format_bytes(run.flash_limit_bytes), format_bytes(run.sram_limit_bytes)
        told.append(f"The board is {what}, with {flash} of flash for the program and {sram} of SRAM to work in.")
    for model in _each(runs, lambda run: run.tiny[0]):
        parameters = _span(run.tiny[1] for run in runs if run.tiny[0] == model)
        macs = _span(run.tiny[2] for run in runs if run.tiny[0] == model)
        told.append(f"It holds the tiny model {model}: {parameters} parameters, {macs} multiplications an example.")
    large = [run.large for run in runs if run.large]
    for model in dict.fromkeys(name for name, _ in large):
        parameters = _span(number for name, number in large if name == model)
        told.append(f"Where a scheme has a large model, the server holds it: {model}, {parameters} parameters.")
    for name, where in dict.fromkeys(map(_link, runs)):
        radio = RADIOS.get(name)
        if radio and where:
            told.append(f"The link is {_RADIOS.get(name, name)}; {where}.")
        elif radio and math.isfinite(radio.up_bps):
            title = _RADIOS.get(name, name)
            told.append(f"The link is {title}, {_rate(radio.up_bps)} up and {_rate(radio.down_bps)} down.")
        elif radio:
            told.append(f"The link is {name}: it takes no time and no energy.")
    return " ".join(told)


def _link(run: Run) -> tuple[str, str]:
    """Gives a run's radio, and what sets its rates where they aren't its own figures."""
    where = {
        "umi": "its rates are those of a cell in street canyons",
        "uma": "its rates are those of a cell above roofs",
    }
    told = where.get(str(run.settings.get("link.cell", "none")), "")
    told = "its rates follow measured traces" if run.settings.get("link.trace") else told
    return str(run.settings.get("link.radio", "")), told


def _counted(run: Run) -> list[str]:
    """Gives the boards of a run, each with its title and its devices."""
    counts: dict[str, int] = {}
    for group in run.device_groups:
        counts[group.board] = counts.get(group.board, 0) + group.num_devices
    return [f"{BOARDS[name].title if name in BOARDS else name} ({num:,} devices)" for name, num in counts.items()]


def _course(study: Study, runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    rounds = _span(run.num_rounds for run in runs)
    told = ["1 round." if rounds == "1" else f"{rounds} rounds."]
    if len(study.groups) > 1:
        told.insert(0, "A scheme is a way of training; the table below says in a line what each does.")
    if len(seeds) > 1:
        told.append(f"Repeated with the seeds {_and(map(str, seeds))}, each of which draws everything random anew.")
    else:
        told.append(f"Everything random is drawn from the seed {seeds[0]}.")
    told += [line for line in _each(runs, _rates) if line]
    told += _each(runs, _engine)
    return " ".join(told)


def _engine(run: Run) -> str:
    """Says who did the devices' work."""
    if run.workers is None:
        return _ENGINES.get(run.engine, f"The engine is {run.engine}.")
    num, machines, again = run.workers
    where = "one machine" if machines == 1 else f"{machines} machines"
    workers = "one worker" if num == 1 else f"{num:,} workers"
    lost = f"; {again:,} of their chunks of devices had to be done again" if again else ""
    return f"The devices are simulated side by side by {workers} on {where} (engine cluster){lost}."


def _rates(run: Run) -> str:
    """Gives how the learning rate of a run's devices goes over its rounds; nothing if it stays as it is."""
    named = ("lr", "lr_schedule", "lr_milestones", "lr_gamma", "lr_final", "lr_warmup")
    lr, kind, at, gamma, final, warmup = (run.settings.get(f"scheme.{name}") for name in named)
    end = f"{final} times that" if final else "nothing"
    course = {
        "step": f"is multiplied by {gamma} after rounds {_and(str(at).split(','))}",
        "exponential": f"is multiplied by {gamma} after each round",
        "cosine": f"falls along a cosine to {end}",
        "linear": f"falls along a line to {end}",
    }.get(str(kind), "")
    rises = f"rises to it in the first {warmup} rounds" if warmup else ""
    way = " and then ".join(part for part in (rises, course) if part)
    return f"The devices' learning rate of {lr} {way}." if way else ""


def _partition(run: Run) -> str:
    return str(run.settings.get("data.partition", ""))


def _each(runs: Iterable[Run], value: Callable[[Run], str]) -> list[str]:
    return list(dict.fromkeys(map(value, runs)))


def _span(values: Iterable[int]) -> str:
    known = sorted(set(values))
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def _and(words: Iterable[str]) -> str:
    known = list(words)
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}"


def _bytes(row: Row) -> float:
    return row.uplink_bytes + row.downlink_bytes


def _total(row: Row) -> str:
    return format_bytes(_bytes(row))


def _percent(row: Row) -> str:
    spread = f" ± {100 * row.spread:.1f}" if row.spread is not None else ""
    return f"{100 * (row.accuracy or 0.0):.1f}{spread} %"


def _reached(row: Row) -> str:
    return "" if row.accuracy is None else f", {_percent(row)}"


def _rate(rate_bps: float) -> str:
    return f"{rate_bps / 1e6:g} Mbit/s" if rate_bps >= 1e6 else f"{rate_bps / 1e3:g} kbit/s"
