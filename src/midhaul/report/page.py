"""The HTML page of a report: one file that fetches nothing, with what was run, what came out and how to repeat it."""

from __future__ import annotations

import html
import itertools
import shlex
import statistics
from collections.abc import Callable, Sequence

from midhaul.report import bars, cells, charts, forecasts, gateways, maps, markup, pareto, replans, spent
from midhaul.report.cells import CellMap
from midhaul.report.groups import Group, Row, Study, differing
from midhaul.report.looks import GATE_STYLES, KIND_COLOURS, KIND_HATCHES, Style, styles
from midhaul.report.prose import crossing, findings, what_was_run
from midhaul.report.runs import EVENTS, KINDS, Cascade, Run
from midhaul.runtime.ledger import WHATS
from midhaul.units import format_bytes, format_joules, format_seconds


def page(studies: Sequence[Study]) -> str:
    """Gives the whole page."""
    groups = [group for study in studies for group in study.groups]
    first = groups[0].runs[0]
    if len(groups) == 1:
        title = f"{first.title[:1].upper()}{first.title[1:]} on {first.data}"
    else:
        title = f"{len({group.scheme for group in groups})} schemes on {' and '.join(study.data for study in studies)}"
    parts = [_study(study, f"s{number}", len(studies) > 1) for number, study in enumerate(studies, start=1)]
    parts += [_settings(groups), _again([run for group in groups for run in group.runs])]
    versions = sorted({run.version for group in groups for run in group.runs})
    return markup.whole(title, parts, f"Written by midhaul from runs of version {', '.join(versions)}.")


def _study(study: Study, name: str, with_heading: bool) -> str:
    looks, rows = styles(study.groups), study.rows()
    several = len(study.groups) > 1
    legend = (
        markup.legend((group.label, markup.swatch(looks[group.label])) for group in study.groups) if several else ""
    )
    parts = [f"<h2>Data set: {_e(study.data)}</h2>"] if with_heading else []
    parts.append('<div class="about">')
    parts += [f"<p><b>{_e(head)}.</b> {_e(text)}</p>" for head, text in what_was_run(study).items()]
    parts.append("</div>")
    parts += ["<h2>Results</h2>", f'<p class="lead">{_e(findings(rows, study.groups))}</p>']
    parts += [
        _summary(study, rows, looks),
        _aimed(rows, looks),
        _gains(rows, looks),
        "<h2>Accuracy, and what it costs</h2>",
        legend,
    ]
    parts += [_accuracy(study, looks, name), _each_device(study, looks), _fronts(study, looks, name)]
    parts += ["<h2>Memory of a device</h2>", _memory(study, looks, name)]
    parts += ["<h2>What crossed the link</h2>", _crossed(study, name)]
    parts.append(_went(study, looks, name))
    parts.append(_again_planned(study, looks, name))
    parts.append(_in_cells(study, looks, name))
    parts.append(_together(study, looks, name))
    if not several:
        parts.append(_arena(study.groups[0].runs[0], name))
    parts.append(_happened(study, looks))
    parts.append(_gateways(study, looks))
    return "\n".join(parts)


def _accuracy(study: Study, looks: dict[str, Style], name: str) -> str:
    groups, several = study.groups, max(len(group.runs) for group in study.groups) > 1
    over_rounds = charts.accuracy(groups, looks, "rounds", f"{name}-rounds")
    if not over_rounds:
        return "<p>No round of these runs was tested.</p>"
    seeds = " Lines are means over seeds, shades reach from the lowest to the highest seed." if several else ""
    figures = [markup.figure(over_rounds, f"Test accuracy after each round.{seeds}")]
    for over, what in (("bytes", "had crossed the link"), ("joules", "the devices had spent")):
        svg = charts.accuracy(groups, looks, over, f"{name}-{over}")
        free = (
            " A level line is a scheme that spent nothing: a log axis has no zero." if charts.free(groups, over) else ""
        )
        none = f"<p>Accuracy over {over} is not drawn: none {what}.</p>"
        figures.append(
            markup.figure(svg, f"The same against what {what} by then; left is cheap.{free}") if svg else none
        )
    svg = charts.spread(groups, looks, f"{name}-spread")
    if svg:
        dot = "one device in one seed" if several else "one device"
        many = any(len(run.device_accuracy) * len(g.runs) > charts.STRIP_DEVICES for g in groups for run in g.runs)
        thin = f" Of many dots only {charts.STRIP_DEVICES} are drawn, evenly by rank." if many else ""
        note = f"Accuracy of each device. A dot is {dot}, a box the middle half, the thick line the median.{thin}"
        figures.append(markup.figure(svg, note))
    return f'<div class="grid">{"".join(figures)}</div>'


def _fronts(study: Study, looks: dict[str, Style], name: str) -> str:
    """Gives the Pareto plots, where there is something to choose among."""
    spots = pareto.measured(study.groups, looks)
    if len(spots) < 2:
        return ""
    aims = {row.to_target.accuracy for row in study.rows() if row.to_target is not None}
    target = aims.pop() if len(aims) == 1 else 0.0
    seeds = (
        ", the mean over seeds; its line reaches from the lowest to the highest seed"
        if any(len(group.runs) > 1 for group in study.groups)
        else ""
    )
    end = "Where it reached its target or ended" if target else "Where it ended"
    told = (
        f"A mark is a scheme at the end of its run{seeds}. The grey stairs are the front: none on it is beaten in "
        "accuracy by one that costs less. What cost nothing is at the left edge of a log axis."
    )
    told += " Hollow marks did not reach the target with every seed." if target else ""
    said = {
        "joules": f"{end}: accuracy against the energy of all devices.",
        "seconds": "Against simulated time: computing, waiting for the band, time on the air.",
        "bytes": "Against what crossed the link, up and down.",
        "sram_bytes": "Against the SRAM of one device.",
    }
    drawn = pareto.figures(spots, f"{name}-pareto", said, target=target)
    return f'<h2>Accuracy against cost: the fronts</h2><p class="note">{_e(told)}</p>{drawn}' if drawn else ""


def _each_device(study: Study, looks: dict[str, Style]) -> str:
    lines = []
    for group in study.groups:
        named = [pair for run in group.runs for pair in zip(run.device_accuracy, run.device_names, strict=True)]
        known = sorted((value, device) for value, device in named if value is not None)
        if known:
            middle = statistics.median(value for value, _ in known)
            told = (f"{100 * known[0][0]:.1f}", f"{100 * middle:.1f}", f"{100 * known[-1][0]:.1f}", _e(known[0][1]))
            lines.append([markup.label(group.label, looks), *told])
    heads = ["scheme", "worst (%)", "median (%)", "best (%)", "the worst device"]
    return (
        f"<details><summary>The worst and the best device</summary>{markup.table(heads, lines, (0, 4))}</details>"
        if lines
        else ""
    )


def _memory(study: Study, looks: dict[str, Style], name: str) -> str:
    figures = [charts.memory(study.groups, looks, what, f"{name}-{what}") for what in ("flash", "SRAM")]
    told = (
        "Flash holds the program and the weights that stay as they are.",
        "SRAM holds what changes: trained weights, activations, gradients, the stack.",
    )
    return f'<div class="grid">{"".join(map(markup.figure, figures, told))}</div>{_kinds_of_devices(study, looks)}'


def _kinds_of_devices(study: Study, looks: dict[str, Style]) -> str:
    """Gives a line a group of alike devices, where those of a run differ."""
    lines = []
    for group in study.groups:
        held = group.runs[0].device_groups
        for kind in held if len(held) > 1 else ():
            sram, flash = _of(kind.sram_bytes, kind.sram_limit_bytes), _of(kind.flash_bytes, kind.flash_limit_bytes)
            cells = [f"{kind.num_devices:,}", _e(kind.board), _e(kind.radio), _e(kind.holds or "the same model")]
            lines.append([markup.label(group.label, looks), *cells, f"{kind.parameters:,}", sram, flash])
    if not lines:
        return ""
    heads = ["scheme", "devices", "board", "radio", "each holds", "parameters", "SRAM", "flash"]
    note = "Devices that differ. The figures above are of the group that leaves the least of its board's SRAM free."
    return f'{markup.table(heads, lines, (0, 2, 3, 4))}<p class="note">{note}</p>'


def _crossed(study: Study, name: str) -> str:
    present = [kind for kind in KINDS if any(g.kind_bytes(way)[kind] for g in study.groups for way in ("up", "down"))]
    legend = markup.legend((kind, _patch(kind)) for kind in present)
    ways = {"up": "From the devices to the server: what left the device.", "down": "From the server to the devices."}
    figures = [markup.figure(charts.crossed(study.groups, way, f"{name}-{way}"), told) for way, told in ways.items()]
    lines = []
    for group in study.groups:
        for way in ways:
            each = group.kind_bytes(way)
            lines.append([_e(group.label), way, *[format_bytes(each[kind]) if each[kind] else "" for kind in present]])
    table = markup.table(["scheme", "way", *present], lines, (0, 1))
    return (
        f'<p>{_e(crossing(study.groups))}</p>{legend}<div class="grid">{"".join(figures)}</div>'
        f"<details><summary>Bytes of each kind</summary>{table}</details>"
    )


def _aimed(rows: Sequence[Row], looks: dict[str, Style]) -> str:
    """Gives what it cost to become as accurate as the runs were to become."""
    lines = []
    for row in rows:
        if (cost := row.to_target) is None:
            continue
        known = cost.round is not None and cost.seconds is not None and cost.joules is not None
        told = ["not reached", "", "", ""]
        if known and cost.bytes is not None:
            told = [
                f"{cost.round:.0f}",
                format_seconds(cost.seconds or 0.0),
                format_joules(cost.joules or 0.0),
                format_bytes(cost.bytes),
            ]
        reached = f"{cost.num_reached} of {cost.num_seeds}"
        lines.append([markup.label(row.label, looks), f"{100 * cost.accuracy:g}", reached, *told])
    if not lines:
        return ""
    heads = ["scheme", "accuracy (%)", "seeds that reached it", "round", "simulated time", "energy", "bytes"]
    note = (
        "When a test first was as accurate, and what the run had cost by then, means over the seeds that got there. "
        "Simulated time is that of the run's clock: computing, waiting for the band, time on the air, up to the "
        "slowest device or the deadline of each round. Energy and bytes: all devices together."
    )
    return f'<h2>What the accuracy cost</h2>{markup.table(heads, lines, (0,))}<p class="note">{note}</p>'


def _went(study: Study, looks: dict[str, Style], name: str) -> str:
    """Gives where joules and seconds went, a line a group, and a bar a device of each group's first run."""
    lines, figures = [], []
    for number, group in enumerate(study.groups):
        run = group.runs[0]
        if run.spent is None:
            continue
        joules, seconds = ({w: sum(part[w]) for w in WHATS} for part in (run.spent.joules, run.spent.seconds))
        both = [f"{format_joules(joules[w])}<br><small>{format_seconds(seconds[w])}</small>" for w in WHATS]
        lines.append([markup.label(group.label, looks), *both, f"{run.spent.num_gone:,}"])
        drawn = [(of, bars.devices(run.spent, of, f"{name}-{of}{number}")) for of in ("joules", "seconds")]
        captions = {
            "joules": f"{spent.about(run.spent)} Red marks: the battery is empty.",
            "seconds": "What each device did, in simulated seconds, the busiest first.",
        }
        shown = "".join(markup.figure(svg, captions[of]) for of, svg in drawn if svg)
        of_run, grid = f"{markup.label(group.label, looks)}, seed {run.seed}", f'<div class="grid">{shown}</div>'
        if len(study.groups) > 1:
            grid = f"<details><summary>{of_run}</summary>{grid}</details>"
        elif len(group.runs) > 1:
            grid = f"<p>{of_run}</p>{grid}"
        figures.append(grid)
    if not lines:
        return ""
    heads = ["scheme", *(bars.WORDS[what] for what in WHATS), "gone"]
    note = (
        "Energy and simulated seconds of all devices together, of the first seed; resting is counted where radios have "
        "states (link.energy). Gone: devices whose battery is empty."
    )
    legend = markup.legend((bars.WORDS[what], markup.block(bars.COLOURS[what], bars.HATCHES[what])) for what in WHATS)
    return (
        f'<h2>Where joules and seconds went</h2>{markup.table(heads, lines, (0,))}<p class="note">{note}</p>{legend}'
        f"{''.join(figures)}"
    )


def _again_planned(study: Study, looks: dict[str, Style], name: str) -> str:
    """Gives how runs that were held to limits kept them, and when, why and how they were planned again."""
    parts = []
    watched = [(group, run) for group in study.groups for run in group.runs if run.replans is not None and run.limits]
    for number, (group, run) in enumerate(watched):
        lines = []
        for place, one in enumerate(run.replans or (), start=1):
            texts = (
                one.because,
                replans.changes(one),
                [*replans.forecasts(one, run.limits), *([] if one.kept else ["not kept even so"])],
            )
            cells = [f'<span class="long">{"<br>".join(map(_e, text))}</span>' for text in texts]
            lines.append([str(place), str(one.round), *cells])
        heads = ["", "after round", "why", "from then on", "the run comes to"]
        told = markup.table(heads, lines, (2, 3, 4)) if lines else "<p>It was never planned again.</p>"
        svg = forecasts.picture(run.rounds, run.limits, run.replans or (), f"{name}-left{number}")
        note = (
            "Solid: what was left of each limit after a round. Dashed: what was to be left at the end, as of then; "
            "below the red line the run would have gone over. Upright lines: new plans, by their numbers below."
        )
        drawn = markup.figure(svg, note) if svg else ""
        parts.append(f"<h2>Held to its limits{_whose(study, group, run, looks)}</h2>{drawn}{told}")
    return "\n".join(parts)


def _in_cells(study: Study, looks: dict[str, Style], name: str) -> str:
    """Gives the cell of the first run that had one, of each group whose cell is another."""
    parts: list[str] = []
    told: list[CellMap] = []
    for number, group in enumerate(study.groups):
        run = next((run for run in group.runs if run.cell is not None), None)
        if run is None or run.cell is None or run.cell in told:
            continue
        told.append(run.cell)
        of = _whose(study, group, run, looks)
        where = "Triangles are base stations, circles devices indoors, squares outdoors, red crosses have no coverage."
        figures = [markup.figure(maps.places(run.cell, f"{name}-map{number}"), where)]
        if svg := maps.rates(run.cell, f"{name}-rates{number}"):
            figures.append(
                markup.figure(svg, "Each device with the whole band of its cell; those that share it are slower.")
            )
        table = markup.table(
            ["devices up to", "ratio (dB)", "up (Mbit/s)", "down (Mbit/s)"], cells.rows(run.cell), (0,)
        )
        parts.append(
            f'<h2>The cell{of}</h2><p>{_e(cells.about(run.cell))}</p><div class="grid">{"".join(figures)}</div>'
            f"<details><summary>Quantiles over the devices</summary>{table}</details>"
        )
    return "\n".join(parts)


def _whose(study: Study, group: Group, run: Run, looks: dict[str, Style]) -> str:
    """Names the run behind a heading, where there are several."""
    alone = len(study.groups) == 1 and len(group.runs) == 1
    return "" if alone else f" ({markup.label(group.label, looks)}, seed {run.seed})"


def _together(study: Study, looks: dict[str, Style], name: str) -> str:
    """Gives how tiny and large model answer together, of the first run of each group that was asked to."""
    found = [(group, next((run for run in group.runs if run.cascade is not None), None)) for group in study.groups]
    parts = []
    for number, (group, run) in enumerate(found):
        if run is None or run.cascade is None:
            continue
        of = _whose(study, group, run, looks)
        parts += [f"<h2>Answering together{of}</h2>", _answers(run.cascade, f"{name}-c{number}")]
    return "\n".join(parts)


def _answers(cascade: Cascade, name: str) -> str:
    chosen = next((spot for spot in cascade.spots if spot.chosen), None)
    sent = {"x": "its raw input goes up", "h": "its features at the cut go up", "none": "the rest of the model answers"}
    told = f"The device answers where it is sure of it; where it isn't, {sent.get(cascade.send, cascade.send)}"
    told += (
        "."
        if cascade.send == "none"
        else f", and {'a label comes' if cascade.answer == 'label' else 'logits come'} back."
    )
    if cascade.exit:
        told += f" An early exit behind {cascade.exit} may answer first."
    told += (
        f" Thresholds were chosen on {cascade.calibration_rows:,} held-out rows for {cascade.goal}, and measured on "
        f"{cascade.test_rows:,} others, {cascade.apart}."
    )
    if chosen is not None:
        told += (
            f" Chosen was {chosen.gate}: {100 * chosen.accuracy:.1f} % are right, and {100 * chosen.stays:.1f} % of "
            "the queries never leave the device."
        )
    lines = []
    for spot in cascade.spots:
        label = _e(spot.name) if not spot.gate else f"{markup.swatch(GATE_STYLES[spot.gate])}{_e(spot.name)}"
        accuracy = f"{100 * spot.accuracy:.1f}"
        lines.append([
            label,
            ", ".join(f"{value:.3f}" for value in spot.thresholds) or "-",
            f'<strong class="best">{accuracy} <small>chosen</small></strong>' if spot.chosen else accuracy,
            f"{100 * spot.stays:.1f}",
            f"{spot.bytes:,.1f}",
            format_joules(spot.joules),
            format_seconds(spot.seconds),
            format_seconds(spot.p95_s),
        ])  # fmt: skip
    heads = ["who answers", "sure at", "accuracy (%)", "stays (%)", "bytes", "energy", "mean time", "95 % within"]
    note = (
        "Of a query, on the test rows. Bytes are those of real frames up and down; energy is the device's, for "
        f"computing and radio. The server is taken to do {cascade.server_gmacs:g} billion MACs a second. A model alone "
        "is asked about every query, and the other never runs."
    )
    legend = markup.legend((gate, markup.swatch(GATE_STYLES[gate])) for gate in cascade.curves)
    captions = {
        "bytes": "A line for each gate, from a threshold of 0 to one of 1. Diamonds: one model alone. Ring: chosen.",
        "joules": "The same against the device's energy; left is cheap.",
        "seconds": "The same against the mean time until the device has an answer.",
    }
    figures = [markup.figure(charts.tradeoff(cascade, over, f"{name}-{over}"), said) for over, said in captions.items()]
    table = markup.table(heads, lines, (0,))
    return (
        f'<p class="lead">{_e(told)}</p>{table}<p class="note">{_e(note)}</p>{legend}'
        f'<div class="grid">{"".join(figures)}</div>'
    )


def _gateways(study: Study, looks: dict[str, Style]) -> str:
    """Gives a line a gateway, where devices lay behind any."""
    behind = [(group, gateway) for group in study.groups for run in group.runs for gateway in run.gateways]
    lines = [[markup.label(group.label, looks), *gateways.cells(gateway)] for group, gateway in behind]
    note = (
        "Bytes are payloads between a gateway and the server's last process; what the devices' own radios carried is "
        "above."
    )
    table = markup.table(("scheme", *gateways.HEADS), lines, (0, 1, 3, 8))
    return f'<h2>Gateways</h2>{table}<p class="note">{note}</p>' if lines else ""


def _happened(study: Study, looks: dict[str, Style]) -> str:
    """Gives a line a device behind an address: what it measured, how often each thing happened, its last trouble."""
    lines = []
    for group in study.groups:
        for run in group.runs:
            measured = {stats.device: stats for stats in run.device_stats}
            for device in sorted({event.device for event in run.device_events}):
                own = [event for event in run.device_events if event.device == device]
                counts = [str(sum(event.what == what for event in own)) for what in EVENTS[1:]]
                troubles = [event for event in own if event.reason]
                last = f"round {troubles[-1].round}: {troubles[-1].reason}" if troubles else ""
                stats = measured.get(device)
                arena = _of(stats.arena_peak_bytes, stats.arena_bytes) if stats else ""
                stack = format_bytes(stats.stack_peak_bytes) if stats and stats.stack_peak_bytes else ""
                cells = [
                    str(run.seed),
                    str(device),
                    f"<code>{_e(own[-1].address)}</code>",
                    arena,
                    stack,
                    *counts,
                    _e(last),
                ]
                lines.append([markup.label(group.label, looks), *cells])
    if not lines:
        return ""
    heads = ["scheme", "seed", "device", "address", "arena", "stack", *EVENTS[1:], "the last that went wrong"]
    note = (
        "Devices behind an address run the C runtime; the others were simulated. Arena and stack are the most that the "
        "device measured, the arena with its share of what there is; the other numbers are how often it happened."
    )
    return f'<h2>Devices on firmware</h2>{markup.table(heads, lines, (0, 3, 10))}<p class="note">{note}</p>'


def _arena(run: Run, name: str) -> str:
    svg = charts.arena(run, f"{name}-arena")
    if not svg:
        return ""
    note = (
        "Each box is a buffer: its width is the steps it lives for, its height the bytes it holds. Blue buffers live "
        "throughout, the others share space. The op shown is the one that needs most; the stack is not in the arena."
    )
    lines = [[_e(b.name), format_bytes(b.bytes), f"{b.offset:,}", str(b.first), str(b.last)] for b in run.buffers]
    table = markup.table(["buffer", "size", "offset (B)", "first step", "last step"], lines, (0,))
    return (
        f"<h2>The arena of the device</h2>{markup.figure(svg, note)}"
        f"<details><summary>The {len(lines)} buffers</summary>{table}</details>"
    )


def _summary(study: Study, rows: Sequence[Row], looks: dict[str, Style]) -> str:
    known = [row.accuracy for row in rows if row.accuracy is not None]
    best = max(known) if len(known) > 1 else None
    lines = []
    for row, group in zip(rows, study.groups, strict=True):
        run = group.runs[0]
        accuracy = "not tested" if row.accuracy is None else f"{100 * row.accuracy:.1f}"
        accuracy += f" ± {100 * row.spread:.1f}" if row.spread is not None else ""
        if best is not None and row.accuracy == best:
            accuracy = f'<strong class="best">{accuracy} <small>best</small></strong>'
        lines.append([
            f'{markup.label(row.label, looks)}<br><small>{_e(run.title)}</small>',
            accuracy,
            format_bytes(row.uplink_bytes),
            format_bytes(row.downlink_bytes),
            format_joules(row.device_joules),
            _of(row.device_sram_bytes, run.sram_limit_bytes),
            _of(row.device_flash_bytes, run.flash_limit_bytes),
            format_seconds(row.air_seconds),
            format_seconds(row.wall_seconds),
        ])  # fmt: skip
    heads = ["scheme", "accuracy (%)", "up", "down", "energy", "SRAM", "flash", "air time", "wall time"]
    spread = " ± is the sample standard deviation over seeds." if any(row.spread is not None for row in rows) else ""
    note = (
        "Up, down and energy: all devices together. SRAM and flash: one device, with the share of its board. Air time: "
        "the slowest device of each exchange, one exchange after another. Wall time: of the computer that ran it."
        f"{spread}"
    )
    return f'{markup.table(heads, lines, (0,))}<p class="note">{note}</p>'


def _gains(rows: Sequence[Row], looks: dict[str, Style]) -> str:
    """Gives what the tiny and the large model gained, for the schemes that test both."""
    lines = []
    for row in rows:
        if row.gains is not None:
            gains = row.gains
            ends = (gains.tiny_first, gains.tiny_last, gains.large_first, gains.large_last)
            first, last, large_first, large_last = (f"{100 * share:.1f}" for share in ends)
            told = (first, last, f"{100 * gains.tiny:+.1f}", large_first, large_last, f"{100 * gains.large:+.1f}")
            lines.append([markup.label(row.label, looks), *told])
    if not lines:
        return ""
    heads = ["scheme", "tiny, first (%)", "last (%)", "gain", "large, first (%)", "last (%)", "gain"]
    note = (
        "First is before the first round, after whatever the server did by itself. The gain is in points of accuracy "
        "on the test rows; the large model's rows are the same."
    )
    return f'<h2>What each model gained</h2>{markup.table(heads, lines, (0,))}<p class="note">{note}</p>'


def _settings(groups: Sequence[Group]) -> str:
    first = [group.runs[0] for group in groups]
    parts = ["<h2>Settings</h2>"]
    keys = [key for key in differing(first) if key != "scheme.name"] if len(first) > 1 else []
    if keys:
        lines = [
            [_e(run_label), *[_e(str(run.settings.get(key, ""))) for key in keys]]
            for run_label, run in zip((group.label for group in groups), first, strict=True)
        ]
        parts.append("<p>The runs differ in these settings, beside the scheme and the seed:</p>")
        parts.append(markup.table(["scheme", *map(_e, keys)], lines, tuple(range(len(keys) + 1))))
    for group in groups:
        run = group.runs[0]
        other = ", the other seeds likewise" if len(group.runs) > 1 else ""
        head = f"{_e(group.label)} on {_e(run.data)}: config.toml of seed {run.seed}{other}"
        parts.append(f"<details><summary>{head}</summary><pre>{_e(run.config_text)}</pre></details>")
    return "\n".join(parts)


def _again(runs: Sequence[Run]) -> str:
    names = _folders(runs)
    again = {name: shlex.quote(f"again/{name}") for name in names}
    commands = [f"midhaul run {shlex.quote(f'{name}/config.toml')} --out {again[name]}" for name in names]
    commands.append(f"midhaul report {' '.join(again.values())} --out again.html")
    lines = [
        [_e(name), _e(run.scheme), str(run.seed), _e(run.version), f"<code>{_e(run.model_sha256[:16])}</code>"]
        for name, run in zip(names, runs, strict=True)
    ]
    table = markup.table(["folder", "scheme", "seed", "version", "model (SHA-256)"], lines, (0, 1, 3, 4))
    return (
        "<h2>How to reproduce</h2><p>Each folder keeps its settings in config.toml. Everything random is drawn from "
        "the seed, so with the same version on the same kind of machine each command ends with the same model, whose "
        f"fingerprint is below.</p><pre>{_e(chr(10).join(commands))}</pre>"
        f"<details><summary>The runs and the fingerprints of their models</summary>{table}</details>"
    )


def _folders(runs: Sequence[Run]) -> list[str]:
    """Gives the folders' names without the path that all have in common, which is nobody's business."""
    parts = [run.path.absolute().parts for run in runs]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    common = min(len(list(shared)), min(map(len, parts)) - 1)
    return ["/".join(each[common:]) for each in parts]


def _patch(kind: str) -> str:
    return markup.block(KIND_COLOURS[kind], KIND_HATCHES.get(kind, ""))


def _of(value: float, limit: int) -> str:
    """Gives bytes with their share of the board's, marked where that is too much."""
    if not limit:
        return format_bytes(value)
    share = f"{100 * value / limit:,.0f} %"
    told = f'<small class="over">{share}, too big</small>' if value > limit else f"<small>{share}</small>"
    return f"{format_bytes(value)}<br>{told}"


_e: Callable[[str], str] = html.escape
