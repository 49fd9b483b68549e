"""The command line: what each command does; nothing but this and `terminal` prints.

Each command imports what it needs, so that help, and the refusal of a bad setting, wait for no tensor library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midhaul import arguments, config, logs, terminal
from midhaul.config import Config
from midhaul.errors import ConfigError, MidhaulError
from midhaul.sentences import Sentence
from midhaul.units import format_bytes

REFUSED = 2
STOPPED = "stopped; --resume goes on from the last checkpoint"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; gives 0, or 2 where midhaul refused it in one sentence."""
    form = ""
    try:
        chosen = arguments.parser().parse_args(words)
        asked = getattr(chosen, "log", "")
        with logs.to(asked, getattr(chosen, "log_file", None), command=chosen.command):
            form = asked
            _act(chosen)
    except MidhaulError as error:
        if form != "json":
            print(f"midhaul: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        if form != "json":
            print(f"midhaul: {STOPPED}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`midhaul boards | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _act(chosen: argparse.Namespace) -> None:
    """Does what was asked; how it ends, where that isn't well, is in the log."""
    try:
        _ACTS[chosen.command](chosen)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        told = STOPPED if isinstance(error, KeyboardInterrupt) else str(error)
        logs.tell(Sentence(told, "error", level="error", kind=type(error).__name__))
        raise


def _progress(chosen: argparse.Namespace) -> terminal.Progress:
    return terminal.Progress(chosen.json or getattr(chosen, "log", "") == "json")


def _begin(settings: Config) -> None:
    """Has the compiled kernels built while torch is imported."""
    if settings.run.engine != "loop" and settings.run.kernels != "torch":
        from midhaul.runtime.native import library

        library.begin()


def _run(chosen: argparse.Namespace) -> None:
    settings = _config(chosen)
    _begin(settings)
    from midhaul import train

    out = chosen.out or Path("runs") / f"{chosen.config.stem}-{settings.scheme.name}-{settings.run.seed}"
    with _progress(chosen) as progress:
        result = train.run(settings, out, resume=chosen.resume, tell=progress.tell, progress=progress)
    _tell_run(chosen, out, result.summary)


def _tell_run(chosen: argparse.Namespace, out: Path, summary: dict[str, Any]) -> None:
    from midhaul import report  # with its plots, when they are wanted: the first round need not wait for it

    page = report.write([out], out / "report.html")
    if chosen.json:
        print(json.dumps(summary, indent=2))
        return
    print(report.table([out]))
    print(f"\nreport: {page}")


def _serve(chosen: argparse.Namespace) -> None:
    settings = _config(chosen)
    if chosen.gateways < 0 or chosen.patience < 0.0:
        raise ConfigError("--gateways and --patience are 0 or more")
    if chosen.flower_port is not None and not 0 < chosen.flower_port < 65536:
        raise ConfigError(f"--flower-port {chosen.flower_port} is no port; give one from 1 to 65535")
    if not chosen.flower and (chosen.transport != "stream" or chosen.flower_port is not None):
        raise ConfigError("--transport and --flower-port are for --flower; add it, or leave them out")
    from midhaul.federation import metrics, serve

    out = chosen.out or Path("runs") / f"{chosen.config.stem}-{settings.scheme.name}-{settings.run.seed}"
    if chosen.flower:
        _serve_flower(chosen, settings, out)
        return
    place = serve.Place.of(chosen.listen, chosen.tls)
    with _progress(chosen) as progress, contextlib.ExitStack() as stack:

        def watched(standing: serve.Standing) -> None:
            if chosen.metrics:
                stack.callback(metrics.start(chosen.metrics, standing.to_table))

        result = serve.serve(
            settings,
            out,
            place,
            resume=chosen.resume,
            num_gateways=chosen.gateways,
            patience_s=chosen.patience,
            tell=progress.tell,
            progress=progress,
            watched=watched,
        )
    _tell_run(chosen, out, result.summary)


def _serve_flower(chosen: argparse.Namespace, settings: Config, out: Path) -> None:
    from midhaul.federation import superlink

    told = superlink.Settings(
        listen=chosen.listen,
        port=superlink.PORT if chosen.flower_port is None else chosen.flower_port,
        tls=chosen.tls,
        transport=chosen.transport,
        num_gateways=chosen.gateways,
        patience_s=chosen.patience,
        metrics=chosen.metrics,
        resume=chosen.resume,
    )
    with _progress(chosen) as progress:
        summary = superlink.run(settings, out, told, tell=progress.tell, progress=progress)
    _tell_run(chosen, out, summary)


def _join(chosen: argparse.Namespace) -> None:
    if chosen.patience <= 0.0:
        raise ConfigError(f"--patience {chosen.patience:g} is no time to wait; give seconds above 0")
    from midhaul.federation import join, supernode

    act = supernode.join if chosen.flower else join.join
    share = join.Share(
        chosen.data, chosen.share, chosen.devices, chosen.engine, tuple(chosen.set), gives_rows=chosen.gives_rows
    )
    with _progress(chosen) as progress:
        served = act(
            chosen.address,
            share,
            tls=chosen.tls,
            name=chosen.name,
            patience_s=chosen.patience,
            tell=progress.tell,
        )
    if chosen.json:
        print(json.dumps(served.to_table()))
        return
    print(f"the run has ended; {served.name} did {served.turns} turns for it in {served.seconds:.1f} s")


def _status(chosen: argparse.Namespace) -> None:
    """Shows a run's standing, once or until it ends; a server that goes away meanwhile may come back (`--resume`)."""
    from midhaul.federation import status

    screen, told, gone_s = terminal.Screen(chosen.watch > 0.0), None, 0.0
    while True:
        try:
            told, gone_s = status.ask(chosen.address, chosen.tls, chosen.name, comes_again=chosen.watch > 0.0), 0.0
        except status.Unreachable:
            if told is None:
                raise
            if told["round"] == told["rounds"]:
                told["phase"] = "done"  # a server that has ended tells nobody more
            gone_s = gone_s or time.monotonic()
        if chosen.json:
            print(json.dumps({**told, "is_reachable": not gone_s}), flush=True)
        else:
            lines = [*status.heading(told), ""]
            lines += (
                terminal.table(status.COLUMNS, status.rows(told)).split("\n") if told["gateways"] else [status.NOBODY]
            )
            lines += [part for line in status.sentences(told) for part in textwrap.wrap(line, 80)]
            if gone_s and told["phase"] != "done":
                lines.append(f"the server is away since {time.monotonic() - gone_s:.0f} s; looking for it")
            screen.show(lines)
        if not chosen.watch or told["phase"] == "done":
            return
        time.sleep(chosen.watch)


def _compare(chosen: argparse.Namespace) -> None:
    settings = _config(chosen)
    names = [name.strip() for name in chosen.schemes.split(",") if name.strip()]
    seeds = _whole_numbers(chosen.seeds, "--seeds") or [settings.run.seed]
    if not names:
        raise ConfigError("--schemes names no scheme; see `midhaul schemes`")
    _begin(settings)
    from midhaul import plant, train

    out = chosen.out or Path("runs") / chosen.config.stem
    jobs = [
        (out / f"{name}-seed{seed}", settings.replace(scheme_name=name, run_seed=seed))
        for name in dict.fromkeys(names)
        for seed in dict.fromkeys(seeds)
    ]
    for _, job in jobs[:: max(len(seeds), 1)]:
        plant.build(job)  # what can't run is refused before anything does
    with _progress(chosen) as progress:
        for place, (folder, job) in enumerate(jobs):
            progress.title = f"[{place + 1}/{len(jobs)}] {job.scheme.name}, seed {job.run.seed}"
            if chosen.resume and (folder / "summary.json").exists():
                progress.tell(f"{folder} has ended; kept as it is")
                continue
            train.run(job, folder, resume=chosen.resume and folder.exists(), tell=progress.tell, progress=progress)
    folders = [folder for folder, _ in jobs]
    from midhaul import report

    page = report.write(folders, out / "report.html")
    if chosen.json:
        print(json.dumps([json.loads((f / "summary.json").read_text(encoding="utf-8")) for f in folders], indent=2))
        return
    print(report.table(folders))
    print(f"\nreport: {page}")


def _plan(chosen: argparse.Namespace) -> None:
    settings = _config(chosen)
    if chosen.rounds < 0:
        raise ConfigError(f"--rounds {chosen.rounds} is no number of rounds; give at least 1")
    if chosen.draws < 0:
        raise ConfigError(f"--draws {chosen.draws} is no number of draws; give 0 for none")
    from midhaul import checkpoint, plan
    from midhaul.plan import picture, table

    goal = plan.goal(chosen.target, chosen.within, chosen.least)
    names = [name.strip() for name in chosen.schemes.split(",") if name.strip()]
    with _progress(chosen) as progress:
        most, draws = chosen.rounds, chosen.draws
        found = plan.plan(settings, goal, schemes=names, most=most, draws=draws, progress=progress, tell=progress.tell)
    out = chosen.out or chosen.config.with_name(f"{chosen.config.stem}-plan.toml")
    page, command = out.with_suffix(".html"), f"midhaul run {out}"
    checkpoint.write(out, table.to_toml(found).encode())
    checkpoint.write(page, picture.page(found, command).encode())
    if chosen.json:
        print(json.dumps({**table.to_table(found), "page": str(page)}, indent=2))
        return
    print(terminal.table(table.COLUMNS, table.rows(found), 120))
    marks = "*: no other that reaches the target costs less of everything; x: tried on other rows, and not chosen"
    print("\n" + textwrap.fill(f">: chosen; {marks}; ~: by the curve, not simulated", 120) + "\n")
    for line in table.sentences(found):
        print(textwrap.fill(line, 80))
    for one in found.refused:
        print(textwrap.fill(f"not tried: {one.candidate.name}: {one.why}", 80, subsequent_indent="  "))
    print(f"\nwritten to {out}; run it with: {command}\npage: {page}")


def _size(chosen: argparse.Namespace) -> None:
    if chosen.list or not chosen.model:
        from midhaul.models import large, tiny

        rows = [
            (kind, name, entry.summary)
            for kind, known in (("tiny", tiny.TINY), ("large", large.LARGE))
            for name, entry in known.items()
        ]
        _show(chosen, ("kind", "model", "what it is"), rows)
        return
    shape = tuple(_whole_numbers(chosen.shape, "--shape"))
    from midhaul import size
    from midhaul.devices import profiles

    sheet = size.sheet(
        chosen.model,
        profiles.get(chosen.board),
        data=chosen.data,
        shape=shape,
        classes=chosen.classes,
        batch=chosen.batch,
        norm=chosen.norm,
    )
    if chosen.json:
        print(json.dumps(sheet.to_table(), indent=2))
        return
    print(sheet.heading)
    print(terminal.table(sheet.columns, sheet.rows))
    print(textwrap.fill(f"{sheet.verdict} {sheet.basis}", 80))


def _export_project(chosen: argparse.Namespace) -> None:
    from midhaul.federation import project

    subject = Path(chosen.subject)
    settings = config.from_table(config.override(config.read_table(subject), chosen.set), where=str(subject))
    made = project.write(settings, chosen.out, transport=chosen.transport)
    if chosen.json:
        print(json.dumps([str(path) for path in made]))
        return
    print(f"written to {chosen.out}; run it with: flwr run {chosen.out} FEDERATION --stream")


def _export(chosen: argparse.Namespace) -> None:
    if chosen.flower:
        _export_project(chosen)
        return
    if chosen.set or chosen.transport != "stream":
        raise ConfigError("--set and --transport are for --flower; add it, or leave them out")
    from midhaul import export
    from midhaul.devices import profiles

    made = export.export(
        chosen.subject,
        profiles.get(chosen.board),
        chosen.out,
        precision=chosen.precision,
        slice=chosen.slice,
        data=chosen.data,
        shape=tuple(_whole_numbers(chosen.shape, "--shape")),
        classes=chosen.classes,
        norm=chosen.norm,
        device=chosen.device,
    )
    if chosen.json:
        print(json.dumps(made.to_table(), indent=2))
        return
    print(textwrap.fill(made.heading, 80))
    print(terminal.table(made.columns, made.rows))
    for line in (*made.notes, made.verdict, f"written to {chosen.out}: {', '.join(path.name for path in made.files)}"):
        print(textwrap.fill(line, 80))


def _firmware(chosen: argparse.Namespace) -> None:
    from midhaul import provision
    from midhaul.devices import profiles

    made = provision.firmware(
        profiles.get(chosen.board), chosen.out, port=chosen.port, address=chosen.address, keys=chosen.keys
    )
    if chosen.json:
        print(json.dumps(made.to_table(), indent=2))
        return
    print(textwrap.fill(made.heading, 80))
    print(terminal.table(made.columns, made.rows))
    if made.key_is_new:
        print(f"a new key for {chosen.address} is in {chosen.keys}; name that file in run.keys")
    print(f"written to {made.path}")


def _certs(chosen: argparse.Namespace) -> None:
    from midhaul.federation import certs

    made = certs.make(chosen.folder, _words(chosen.hosts), _words(chosen.gateways), chosen.days)
    if chosen.json:
        print(json.dumps({"folder": str(chosen.folder), "expires": made.expires, "files": [r[0] for r in made.rows]}))
        return
    print(terminal.table(made.columns, made.rows) if made.rows else "all of it is there already; nothing was written")
    print(f"\nwritten to {chosen.folder}; valid until {made.expires}")
    print("for development: an authority whose key lies on a disk is no vault")


def _cascade(chosen: argparse.Namespace) -> None:
    from midhaul import report
    from midhaul.inference import cascade

    found = cascade.cascade(chosen.run, cascade.goal(chosen.target, chosen.budget), chosen.set)
    page = report.write([chosen.run], chosen.run / "report.html")
    if chosen.json:
        print(json.dumps(found.to_table(), indent=2))
        return
    print(textwrap.fill(found.heading, 80))
    print(terminal.table(found.columns, found.lines))
    for line in (found.verdict, *found.notes):
        print(textwrap.fill(line, 80))
    print(f"\nreport: {page}")


def _decode(chosen: argparse.Namespace) -> None:
    from midhaul.inference import text

    found = text.write(
        chosen.run,
        chosen.prompt,
        chosen.tokens,
        gamma=chosen.gamma,
        temperature=chosen.temperature,
        resample=chosen.resample,
        changes=chosen.set,
    )
    if chosen.json:
        print(json.dumps(found.to_table(), indent=2))
        return
    print(f"{chosen.prompt}{found.text}\n")
    print(terminal.table(found.columns, found.lines))
    print("Calls of the large model, bytes, energy of the device and time are of one token.")


def _data(chosen: argparse.Namespace) -> None:
    from midhaul import data as datasets

    if chosen.what == "list":
        about = [(name, datasets.describe(name)) for name in datasets.names()]
        if chosen.json:
            columns = ("name", "what", "shape", "device", "licence", "source")
            _show(chosen, columns, [(n, a.what, a.shape, a.key or "-", a.licence, a.source) for n, a in about])
        else:
            _show(chosen, ("name", "device", "what"), [(n, a.key or "-", a.what) for n, a in about])
        return
    rows, bad = [], 0
    for name in chosen.names or datasets.names():
        for status in datasets.check(name):
            bad += status.state != "sound"
            rows.append((name, status.name, status.state, str(status.path or "-")))
    _show(chosen, ("data set", "file", "state", "where"), rows)
    if bad and chosen.names:
        raise MidhaulError(
            f"{bad} files are not in place; set MIDHAUL_DATA to a folder that has them, or let a run fetch them"
        )


def _boards(chosen: argparse.Namespace) -> None:
    if chosen.radios:
        from midhaul.link import radio

        found = [
            (
                r.name,
                _rate(r.up_bps),
                _rate(r.down_bps),
                f"{1e3 * r.delay_s:g} ms",
                f"{r.tx_w:.3g} W",
                f"{r.rx_w:.3g} W",
            )
            for r in radio.RADIOS.values()
        ]
        _show(chosen, ("radio", "up", "down", "delay", "send", "receive"), found)
        return
    from midhaul.devices import profiles

    boards = profiles.BOARDS.values()
    if chosen.sources:
        _show(
            chosen,
            ("board", "figure", "source"),
            [(b.name, figure, source) for b in boards for figure, source in b.sources.items()],
        )
        return
    _show(
        chosen,
        ("board", "core", "clock", "flash", "SRAM", "active", "radio"),
        [
            (
                b.name,
                b.core,
                f"{b.clock_hz / 1e6:g} MHz",
                format_bytes(b.flash_bytes),
                format_bytes(b.sram_bytes),
                f"{1e3 * b.active_w:.3g} mW",
                b.radio,
            )
            for b in boards
        ],
    )


def _schemes(chosen: argparse.Namespace) -> None:
    from midhaul.kit import PROPERTIES
    from midhaul.schemes import SCHEMES

    if chosen.json:
        facts_of = ("direction", "up", "down", "needs", "differ", "admits", "engines", "source")
        heads = ("scheme", "family", "what it is", *facts_of)
        rows = [
            (
                *(s.name, s.family, s.title, s.direction, ", ".join(s.up), ", ".join(s.down), s.needs),
                *(s.differs, ", ".join(s.admits), ", ".join(s.engines), s.source),
            )
            for s in SCHEMES.values()
        ]
        _show(chosen, heads, rows)
        return
    width = max(map(len, SCHEMES)) + 2
    for family in dict.fromkeys(scheme.family for scheme in SCHEMES.values()):
        print(f"{family}")
        for s in (scheme for scheme in SCHEMES.values() if scheme.family == family):
            source = "" if s.source == "none" else f" ({s.source})"
            first = f"  {s.name:<{width}}"
            print(textwrap.fill(s.title + source, 80, initial_indent=first, subsequent_indent=" " * (width + 2)))
            facts = {"direction": s.direction, "up": ", ".join(s.up), "down": ", ".join(s.down), "needs": s.needs}
            facts["devices differ in"] = s.differs
            facts["admits"] = "all of a run's properties" if set(s.admits) == set(PROPERTIES) else ", ".join(s.admits)
            facts["engines"] = "" if "firmware" in s.engines else ", ".join(s.engines)
            told = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact not in ("", "-", "none"))
            if told:
                print(textwrap.fill(told, 80, initial_indent=" " * (width + 2), subsequent_indent=" " * (width + 2)))
        print()


def _report(chosen: argparse.Namespace) -> None:
    from midhaul import report

    page = report.write(chosen.runs, chosen.out)
    print(json.dumps({"report": str(page)}) if chosen.json else f"{report.table(chosen.runs)}\n\nreport: {page}")


def _config(chosen: argparse.Namespace) -> Config:
    table = config.override(config.read_table(chosen.config), chosen.set)
    named = ("engine", "devices", "memory", "workers", "address")
    options = {name: getattr(chosen, name, "") for name in named}  # a plan has none of them
    given = [f"run.{name}={json.dumps(value)}" for name, value in options.items() if value not in ("", None)]
    given += ["run.tensorboard=true"] if getattr(chosen, "tensorboard", False) else []
    settings = config.from_table(config.override(table, given), where=str(chosen.config))
    if options["devices"] and settings.run.engine != "firmware":
        raise ConfigError(f"--devices is for --engine firmware, and the engine is {settings.run.engine}; add --engine")
    for name in ("workers", "address"):
        if options[name] not in ("", None) and settings.run.engine != "cluster":
            raise ConfigError(
                f"--{name} is for --engine cluster, and the engine is {settings.run.engine}; add --engine"
            )
    return settings


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole_numbers(text: str, what: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{what} {text!r} is not a list of whole numbers such as 0,1,2") from None


def _rate(rate_bps: float) -> str:
    return "unlimited" if rate_bps == float("inf") else f"{rate_bps / 1e3:,.0f} kbit/s"


def _show(chosen: argparse.Namespace, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if chosen.json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        print(terminal.table(columns, rows))


_ACTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "compare": _compare,
    "plan": _plan,
    "size": _size,
    "export": _export,
    "firmware": _firmware,
    "cascade": _cascade,
    "decode": _decode,
    "serve": _serve,
    "join": _join,
    "status": _status,
    "certs": _certs,
    "data": _data,
    "boards": _boards,
    "schemes": _schemes,
    "report": _report,
}


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
