"""What the command line takes: every command with its options and their help.

What a command does is `cli`'s.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from midhaul import __version__
from midhaul.errors import ConfigError
from midhaul.logs import FORMS


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Gives the parser of the whole command line; what it gives has the command's name as `command`."""
    top = Parser(prog="midhaul", description="Train tiny models on devices and large models on servers together.")
    top.add_argument("--version", action="version", version=f"midhaul {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("--json", action="store_true", help="print JSON for programs instead of text")
        return added

    run = command("run", "Run one scheme from a config file.")
    _add_config(run)
    _add_log(run)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    compare = command("compare", "Run several schemes on the same data, seeds and budget.")
    _add_config(compare)
    _add_log(compare)
    compare.add_argument("--schemes", required=True, metavar="A,B,C", help="names from `midhaul schemes`")
    compare.add_argument("--seeds", default="", metavar="0,1,2", help="seeds; the config's own if not given")
    compare.add_argument(
        "--resume", action="store_true", help="go on with runs that were stopped, keep those that ended"
    )
    plans = command("plan", "Choose a scheme and its settings for a target within a budget; write the config.")
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
    plans.add_argument("--draws", type=int, default=4, metavar="N", help="times the choice is tried on other rows")
    plans.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one key; may be repeated")
    plans.add_argument("--out", type=Path, default=None, help="the config to write; CONFIG-plan.toml if not given")
    fits = command("size", "Say whether a model fits a board, and what each op costs there.")
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
    gives = command("export", "Write a model for a board: a blob, C, and .tflite where it is int8.")
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
    flash = command("firmware", "Build the firmware of a board, with the device's key in it.")
    flash.add_argument("board", help="a name from `midhaul boards` with a Cortex-M core")
    flash.add_argument("--out", type=Path, default=Path("firmware.elf"), help="the ELF file to write")
    flash.add_argument("--port", default="", help="semihosting, uart or nrf52840; the board's own if not given")
    flash.add_argument("--keys", type=Path, default=None, help="a file of keys; a new key is added to it")
    flash.add_argument("--address", default="", metavar="serial:DEVICE", help="where the device will be reached")
    together = command("cascade", "Let a run's tiny model answer when it is sure, else its large one.")
    together.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has ended")
    together.add_argument("--target", default="", metavar="accuracy=0.95", help="or accuracy=large-0.005, the default")
    together.add_argument("--budget", default="", metavar="bytes=200", help="or joules=, seconds=: means a query")
    together.add_argument(
        "--set", action="append", default=[], metavar="inference.A=B", help="a setting of [inference] (docs/config.md)"
    )
    writes = command("decode", "Let a run's tiny model draft a text and its large one check it.")
    writes.add_argument("run", type=Path, metavar="RUN", help="the folder of a run on tokens, such as shakespeare")
    writes.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    writes.add_argument("--tokens", type=int, default=200, help="how many tokens to write")
    writes.add_argument("--gamma", type=int, default=4, help="tokens that are drafted a turn")
    writes.add_argument("--temperature", type=float, default=1.0, help="0: the most likely token each time")
    writes.add_argument("--resample", default="server", help="who replaces a rejected draft: server or device")
    writes.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one key of the run")
    serves = command("serve", "Run a scheme with devices behind gateways on other machines, which `join`.")
    _add_config(serves, engine=False)
    _add_log(serves)
    serves.add_argument("--listen", default="127.0.0.1", metavar="HOST:PORT", help="where gateways come to; port 9470")
    serves.add_argument("--tls", type=Path, default=None, metavar="FOLDER", help="what `midhaul certs` made")
    serves.add_argument("--gateways", type=int, default=0, metavar="N", help="begin with so many; 0: with every device")
    serves.add_argument("--patience", type=float, default=0.0, metavar="S", help="wait for them so long; 0: for ever")
    serves.add_argument("--metrics", default="", metavar="[HOST:]PORT", help="tell Prometheus at /metrics")
    serves.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    serves.add_argument(
        "--flower", action="store_true", help="over Flower: start a SuperLink, and run as its ServerApp"
    )
    serves.add_argument(
        "--flower-port", type=int, default=None, metavar="N", help="with --flower: the SuperLink's port; else 8000"
    )
    serves.add_argument(
        "--transport", default="stream", help="with --flower: stream, or messages for Flower's own alone"
    )
    joins = command("join", "Hold some of a run's devices on this machine, until `midhaul serve` has ended.")
    _add_log(joins)
    joins.add_argument(
        "address", metavar="ADDRESS", help="where the server listens, HOST:PORT; the SuperLink's with --flower"
    )
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
    joins.add_argument(
        "--flower", action="store_true", help="over Flower: start a SuperNode; the port is 8000 if not given"
    )
    tells = command("status", "Show how a run that `midhaul serve` does is doing.")
    tells.add_argument("address", metavar="ADDRESS", help="where the server listens, HOST:PORT")
    tells.add_argument("--tls", type=Path, default=None, metavar="FOLDER", help="with ca.crt and a key")
    tells.add_argument("--name", default="", help="which key of the folder")
    tells.add_argument("--watch", type=float, default=0.0, metavar="S", help="show it anew so often, until it ends")
    keys = command("certs", "Make an authority, a server's certificate and gateways' keys for `serve` and `join`.")
    keys.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder to write to; one that is there is added to"
    )
    keys.add_argument("--hosts", default="", metavar="A,B", help="names and addresses of the server beside loopback")
    keys.add_argument("--gateways", default="gateway", metavar="A,B", help="a name for each gateway")
    keys.add_argument("--days", type=int, default=90, help="how long all of it is valid")
    files = command("data", "List the data sets, or check their files.")
    files.add_argument("what", choices=("list", "check"))
    files.add_argument("names", nargs="*", help="data sets to check; all if none is named")
    boards = command("boards", "List the boards.")
    boards.add_argument("--radios", action="store_true", help="list the radios instead")
    boards.add_argument("--sources", action="store_true", help="with the source of each figure")
    command("schemes", "List the schemes.")
    again = command("report", "Write a report of runs that have ended.")
    again.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    again.add_argument("--out", type=Path, default=Path("report.html"), help="the HTML file to write")
    return top


def _add_log(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log", default=FORMS[0], choices=FORMS, help="how the error stream tells what happens")
    command.add_argument("--log-file", type=Path, default=None, metavar="FILE", help="append it in JSON to a file, too")


def _add_config(command: argparse.ArgumentParser, *, engine: bool = True) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file (docs/config.md has the keys)")
    command.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one key; may be repeated"
    )
    command.add_argument("--out", type=Path, default=None, help="the output folder")
    command.add_argument("--tensorboard", action="store_true", help="write for TensorBoard, too: run.tensorboard")
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
