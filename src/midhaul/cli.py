"""The command line: the only module that prints.

Each command imports what it needs, so that help, and the refusal of a bad setting, wait for no tensor library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from midhaul import __version__, config
from midhaul.config import Config
from midhaul.errors import ConfigError, MidhaulError
from midhaul.units import format_bytes

REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives 0, or 2 where midhaul refused it in one sentence."""
    parser = _parser()
    try:
        chosen = parser.parse_args(arguments)
        act: Callable[[argparse.Namespace], None] = chosen.act
        act(chosen)
    except MidhaulError as error:
        print(f"midhaul: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("midhaul: stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`midhaul boards | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog="midhaul", description="Train tiny models on devices and large models on servers together.")
    top.add_argument("--version", action="version", version=f"midhaul {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, act: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="print JSON for programs instead of text")
        added.set_defaults(act=act)
        return added

    run = command("run", _run, "Run one scheme from a config file.")
    _add_config(run)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    compare = command("compare", _compare, "Run several schemes on the same data, seeds and budget.")
    _add_config(compare)
    compare.add_argument("--schemes", required=True, metavar="A,B,C", help="names from `midhaul schemes`")
    compare.add_argument("--seeds", default="", metavar="0,1,2", help="seeds; the config's own if not given")
    compare.add_argument(
        "--resume", action="store_true", help="go on with runs that were stopped, keep those that ended"
    )
    plans = command("plan", _plan, "Choose a scheme and its settings for a target within a budget; write the config.")
    plans.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file (docs/config.md has the keys)")
    plans.add_argument("--target", required=True, metavar="accuracy=0.9", help="what the run is to reach")
    plans.add_argument(
        "--within", default="", metavar="joules=20,hours=6", help="the most it may cost: joules, time, bytes"
    )
    plans.add_argument("--least", default="", metavar="COST", help="what to have least of; the first of --within")
    plans.add_argument(
        "--schemes", default="", metavar="A,B,C", help="names from `midhaul schemes`; else one or two a way"
    )
    plans.add_argument("--rounds", type=int, default=0, metavar="N", help="rounds at most; the config's if not given")
    plans.add_argument("--draws", type=int, default=2, metavar="N", help="times the choice is tried on other rows")
    plans.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one key; may be repeated")
    plans.add_argument("--out", type=Path, default=None, help="the config to write; CONFIG-plan.toml if not given")
    fits = command("size", _size, "Say whether a model fits a board, and what each op costs there.")
    fits.add_argument("model", nargs="?", help="a tiny model")
    fits.add_argument("--board", default="stm32l4", help="a name from `midhaul boards`")
    fits.add_argument("--data", default="", help="take the input shape and classes from this data set")
    fits.add_argument("--shape", default="", metavar="6,128", help="shape of one example")
    fits.add_argument("--classes", type=int, default=0, help="number of classes")
    fits.add_argument("--batch", type=int, default=16, help="rows in a step")
    fits.add_argument(
        "--norm", default="group", choices=("group", "fedbn", "refuse"), help="what becomes of batch norm"
    )
    fits.add_argument("--list", action="store_true", help="list the models")
    gives = command("export", _export, "Write a model for a board: a blob, C, and .tflite where it is int8.")
    gives.add_argument(
        "subject",
        metavar="RUN|MODEL",
        help="a run's folder, a tiny model, package.module:function; a config with --flower",
    )
    gives.add_argument("--board", default="stm32l4", help="a name from `midhaul boards`")
    gives.add_argument("--out", type=Path, default=Path("exported"), help="the folder to write to")
    gives.add_argument("--precision", default="", help="float32 or int8; the run's own, or float32, if not given")
    gives.add_argument("--slice", default="", help="parameters that the device can train, such as head; else none")
    gives.add_argument("--data", default="", help="take shape, classes and rows to calibrate on from this data set")
    gives.add_argument("--shape", default="", metavar="6,128", help="shape of one example")
    gives.add_argument("--classes", type=int, default=0, help="number of classes")
    gives.add_argument("--norm", default="fold", help="batch norm: fold it into other layers, or group norm instead")
    gives.add_argument("--device", type=int, default=None, help="a run's device, whose own tensors to take")
    gives.add_argument(
        "--flower", action="store_true", help="write a project that `flwr run` accepts, of a run's CONFIG"
    )
    gives.add_argument(
        "--transport", default="stream", help="with --flower: stream, or messages for Flower's own alone"
    )
    gives.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="with --flower: override one key of the config"
    )
    flash = command("firmware", _firmware, "Build the firmware of a board, with the device's key in it.")
    flash.add_argument("board", help="a name from `midhaul boards` with a Cortex-M core")
    flash.add_argument("--out", type=Path, default=Path("firmware.elf"), help="the ELF file to write")
    flash.add_argument("--port", default="", help="semihosting, uart or nrf52840; the board's own if not given")
    flash.add_argument("--keys", type=Path, default=None, help="a file of keys; a new key is added to it")
    flash.add_argument("--address", default="", metavar="serial:DEVICE", help="where the device will be reached")
    together = command("cascade", _cascade, "Let a run's tiny model answer when it is sure, else its large one.")
    together.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has ended")
    together.add_argument("--target", default="", metavar="accuracy=0.95", help="or accuracy=large-0.005, the default")
    together.add_argument("--budget", default="", metavar="bytes=200", help="or joules=, seconds=: means a query")
    together.add_argument(
        "--set", action="append", default=[], metavar="inference.A=B", help="a setting of [inference] (docs/config.md)"
    )
    writes = command("decode", _decode, "Let a run's tiny model draft a text and its large one check it.")
    writes.add_argument("run", type=Path, metavar="RUN", help="the folder of a run on tokens, such as shakespeare")
    writes.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    writes.add_argument("--tokens", type=int, default=200, help="how many tokens to write")
    writes.add_argument("--gamma", type=int, default=4, help="tokens that are drafted a turn")
    writes.add_argument("--temperature", type=float, default=1.0, help="0: the most likely token each time")
    writes.add_argument("--resample", default="server", help="who replaces a rejected draft: server or device")
    writes.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one key of the run")
    serves = command("serve", _serve, "Run a scheme with devices behind gateways on other machines, which `join`.")
    _add_config(serves, engine=False)
    serves.add_argument("--listen", default="127.0.0.1", metavar="HOST:PORT", help="where gateways come to; port 9470")
    serves.add_argument("--tls", type=Path, default=None, metavar="FOLDER", help="what `midhaul certs` made")
    serves.add_argument("--gateways", type=int, default=0, metavar="N", help="begin with so many; 0: with every device")
    serves.add_argument("--patience", type=float, default=0.0, metavar="S", help="wait for them so long; 0: for ever")
    serves.add_argument("--metrics", default="", metavar="[HOST:]PORT", help="tell Prometheus at /metrics")
    serves.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    joins = command("join", _join, "Hold some of a run's devices on this machine, until `midhaul serve` has ended.")
    joins.add_argument("address", metavar="ADDRESS", help="where the server listens, HOST:PORT")
    joins.add_argument("--data", default="", metavar="SPEC", help="which devices: har:subjects=1-10 or har:devices=0-4")
    joins.add_argument("--share", default="", metavar="K/N", help="or every N-th device from the K-th on")
    joins.add_argument("--devices", default="", metavar="LIST", help="where they are: qemu:cortex-m4*4,serial:/dev/...")
    joins.add_argument("--engine", default="", help="stacked, loop or firmware; what fits if not given")
    joins.add_argument("--tls", type=Path, default=None, metavar="FOLDER", help="with ca.crt and this gateway's key")
    joins.add_argument("--name", default="", help="which key of the folder; a name where there is no TLS")
    joins.add_argument("--patience", type=float, default=600.0, metavar="S", help="look for a lost server so long")
    joins.add_argument("--gives-rows", action="store_true", help="let a scheme read examples of these devices")
    joins.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="a setting of this machine, such as data.options"
    )
    tells = command("status", _status, "Show how a run that `midhaul serve` does is doing.")
    tells.add_argument("address", metavar="ADDRESS", help="where the server listens, HOST:PORT")
    tells.add_argument("--tls", type=Path, default=None, metavar="FOLDER", help="with ca.crt and a key")
    tells.add_argument("--name", default="", help="which key of the folder")
    tells.add_argument("--watch", type=float, default=0.0, metavar="S", help="show it anew so often, until it ends")
    keys = command(
        "certs", _certs, "Make an authority, a server's certificate and gateways' keys for `serve` and `join`."
    )
    keys.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder to write to; one that is there is added to"
    )
    keys.add_argument("--hosts", default="", metavar="A,B", help="names and addresses of the server beside loopback")
    keys.add_argument("--gateways", default="gateway", metavar="A,B", help="a name for each gateway")
    keys.add_argument("--days", type=int, default=90, help="how long all of it is valid")
    files = command("data", _data, "List the data sets, or check their files.")
    files.add_argument("what", choices=("list", "check"))
    files.add_argument("names", nargs="*", help="data sets to check; all if none is named")
    boards = command("boards", _boards, "List the boards.")
    boards.add_argument("--radios", action="store_true", help="list the radios instead")
    boards.add_argument("--sources", action="store_true", help="with the source of each figure")
    command("schemes", _schemes, "List the schemes.")
    again = command("report", _report, "Write a report of runs that have ended.")
    again.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    again.add_argument("--out", type=Path, default=Path("report.html"), help="the HTML file to write")
    return top


def _add_config(command: argparse.ArgumentParser, *, engine: bool = True) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file (docs/config.md has the keys)")
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one key; may be repeated"
    )
    command.add_argument("--out", type=Path, default=None, help="the output folder")
    if not engine:
        return
    command.add_argument("--engine", default="", help="the engine, for run.engine: loop, stacked, cluster, firmware")
    command.add_argument(
        "--devices", default="", metavar="LIST", help="where devices are, for run.devices: qemu:cortex-m4*4,host:*3"
    )
    command.add_argument("--memory", default="", metavar="4GB", help="what the whole run may take, for run.memory")
    command.add_argument("--workers", type=int, default=None, metavar="N", help="engine cluster: for run.workers")
    command.add_argument(
        "--address", default="", metavar="auto|HOST:PORT|ray://...", help="engine cluster: where, for run.address"
    )


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
    with _Progress(chosen.json) as progress:
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
    from midhaul.federation import metrics, serve

    out = chosen.out or Path("runs") / f"{chosen.config.stem}-{settings.scheme.name}-{settings.run.seed}"
    place = serve.Place.of(chosen.listen, chosen.tls)
    with _Progress(chosen.json) as progress, contextlib.ExitStack() as stack:

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


def _join(chosen: argparse.Namespace) -> None:
    if chosen.patience <= 0.0:
        raise ConfigError(f"--patience {chosen.patience:g} is no time to wait; give seconds above 0")
    from midhaul.federation import join

    share = join.Share(
        chosen.data, chosen.share, chosen.devices, chosen.engine, tuple(chosen.set), gives_rows=chosen.gives_rows
    )
    with _Progress(chosen.json) as progress:
        served = join.join(
            chosen.address,
            share,
            tls=chosen.tls,
            name=chosen.name,
            patience_s=chosen.patience,
            tell=lambda line: progress.tell(line, again=True),
        )
    if chosen.json:
        print(json.dumps(served.to_table()))
        return
    print(f"the run has ended; {served.name} did {served.turns} turns for it in {served.seconds:.1f} s")


def _status(chosen: argparse.Namespace) -> None:
    from midhaul.federation import status

    while True:
        told = status.ask(chosen.address, chosen.tls, chosen.name)
        if chosen.json:
            print(json.dumps(told))
        else:
            if chosen.watch and sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            print(status.heading(told))
            print(_table(status.COLUMNS, status.rows(told)) if told["gateways"] else "no gateway is here yet")
            for line in status.sentences(told):
                print(textwrap.fill(line, 80))
        sys.stdout.flush()
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
    with _Progress(chosen.json) as progress:
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
    with _Progress(chosen.json) as progress:
        most, draws = chosen.rounds, chosen.draws
        found = plan.plan(settings, goal, schemes=names, most=most, draws=draws, progress=progress, tell=progress.tell)
    out = chosen.out or chosen.config.with_name(f"{chosen.config.stem}-plan.toml")
    page, command = out.with_suffix(".html"), f"midhaul run {out}"
    checkpoint.write(out, table.to_toml(found).encode())
    checkpoint.write(page, picture.page(found, command).encode())
    if chosen.json:
        print(json.dumps({**table.to_table(found), "page": str(page)}, indent=2))
        return
    print(_table(table.COLUMNS, table.rows(found), 120))
    print("\n>: chosen; *: no other that reaches the target costs less of everything; ~: by the curve, not simulated\n")
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
    print(_table(sheet.columns, sheet.rows))
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
    print(_table(made.columns, made.rows))
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
    print(_table(made.columns, made.rows))
    if made.key_is_new:
        print(f"a new key for {chosen.address} is in {chosen.keys}; name that file in run.keys")
    print(f"written to {made.path}")


def _certs(chosen: argparse.Namespace) -> None:
    from midhaul.federation import certs

    made = certs.make(chosen.folder, _words(chosen.hosts), _words(chosen.gateways), chosen.days)
    if chosen.json:
        print(json.dumps({"folder": str(chosen.folder), "expires": made.expires, "files": [r[0] for r in made.rows]}))
        return
    print(_table(made.columns, made.rows) if made.rows else "all of it is there already; nothing was written")
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
    print(_table(found.columns, found.lines))
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
    print(_table(found.columns, found.lines))
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
        print(_table(columns, rows))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 80) -> str:
    """Gives aligned text of at most `width` columns; the last column is folded under itself, figures lean right."""
    cells = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    right = [
        all(row[place].lstrip("~")[:1].isdigit() or row[place] in ("-", "") for row in cells[1:])
        for place in range(len(columns))
    ]
    used = sum(widths[:-1]) + 2 * (len(widths) - 1)
    widths[-1] = max(8, min(widths[-1], width - used))
    lines = []
    for number, row in enumerate(cells):
        folded = _fold(row[-1], widths[-1])
        first = [cell.rjust(w) if lean else cell.ljust(w) for cell, w, lean in zip(row, widths, right, strict=True)][
            :-1
        ]
        last = folded[0].rjust(widths[-1]) if right[-1] else folded[0]
        lines.append("  ".join([*first, last]).rstrip())
        lines += [" " * (used) + part for part in folded[1:]]
        if number == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _fold(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


class _Progress:
    """Shows what is done, its rate and the time left, on the error stream."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.title = ""
        self.bar: Any = None
        self.label = ""
        self.told: set[str] = set()
        self.lock = threading.RLock()  # what happens to gateways is told from other threads

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, label: str, done: int, total: int) -> None:
        if not self.quiet:
            with self.lock:
                self._show(label, done, total)

    def _show(self, label: str, done: int, total: int) -> None:
        if self.bar is None or label != self.label or done < self.bar.n:
            self._close()
            if self.title:
                print(self.title, file=sys.stderr)
                self.title = ""
            from tqdm import tqdm

            live = sys.stderr.isatty()
            self.bar = tqdm(
                total=total,
                desc=f"  {label}",
                file=sys.stderr,
                mininterval=0.2 if live else 15.0,
                ncols=80,
                leave=True,
                initial=0,
            )
            self.label = label
        self.bar.update(done - self.bar.n)
        if done == total:
            self._close()

    def tell(self, line: str, *, again: bool = False) -> None:
        """Shows a sentence; one that was shown before (a licence, say) isn't shown again, unless it is to be."""
        with self.lock:
            if self.quiet or (line in self.told and not again):
                return
            self.told.add(line)
            self._close()
            if self.title:
                print(self.title, file=sys.stderr)
                self.title = ""
            print(f"  {line}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
