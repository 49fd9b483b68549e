"""The server's side of a run over Flower: what `midhaul serve --flower` starts.

It starts a SuperLink on this machine, registers the gateways' keys at it, submits the run and tells how it goes, until
its end. The run itself is in a ServerApp (`flower.py`), which the SuperLink starts; its folder is that of any run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midhaul.config import Config
from midhaul.errors import ConfigError, DependencyError, EngineError
from midhaul.federation import certs, children, desk, project, serve
from midhaul.federation.children import Child
from midhaul.federation.events import Listener, sentence
from midhaul.server import Progress
from midhaul.train import Tell

PORT = 8000
START_S = 60.0
LOOK_S = 0.1
GRACE_S = 5.0  # for the last words of an app that has ended
_NAME = "midhaul"  # of the SuperLink, in the configuration of the command line of Flower
_STARTED = re.compile(r"started run (\d+)")


@dataclass(frozen=True)
class Settings:
    """What `midhaul serve --flower` is told beside the config. `port` is the SuperLink's, on the host of `listen`."""

    listen: str = "127.0.0.1"
    port: int = PORT
    tls: Path | None = None
    transport: str = "stream"
    num_gateways: int = 0
    patience_s: float = 0.0
    metrics: str = ""
    resume: bool = False


def need() -> None:
    """Raises: DependencyError where Flower isn't installed, or is another than this code speaks with."""
    if importlib.util.find_spec("flwr") is None:
        raise DependencyError(
            "Flower isn't installed here; install midhaul[flower], in an environment of its own as it takes an older "
            "protobuf, or leave out --flower"
        )
    if (there := importlib.metadata.version("flwr")) != project.FLOWER:
        raise DependencyError(f"Flower {there} is installed, and midhaul speaks with {project.FLOWER}; install that")


def environment(home: Path) -> dict[str, str]:
    """Gives the environment of Flower's programs: a home of their own, nothing asked of the network."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {
        **os.environ,
        "PATH": path,  # they start one another by name
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "COLUMNS": "400",
    }


def superlink_words(host: str, port: int, tls: Path | None) -> list[str | Path]:
    """Gives the command that starts a SuperLink; with TLS it lets in SuperNodes alone whose keys are registered."""
    words: list[str | Path] = [sys.executable, "-m", "midhaul.federation.gate", "--host", host, "--port", str(port)]
    words.append("--disable-runtime-dependency-installation")
    if tls is None:
        return [*words, "--insecure"]
    files = ("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key")
    return [*words, *(tls / one if "." in one else one for one in files), "--enable-supernode-auth"]


def connection(host: str, port: int, tls: Path | None) -> str:
    """Gives the configuration of Flower's command line that names the SuperLink."""
    trust = "insecure = true" if tls is None else f"root-certificates = {json.dumps(str((tls / 'ca.crt').absolute()))}"
    address = json.dumps(desk.joined(host, port))
    return f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\naddress = {address}\n{trust}\n'


def run_config(settings: Settings, out: Path, events: Path) -> str:
    """Gives what the ServerApp is told, in TOML."""
    told: dict[str, Any] = {
        "transport": settings.transport,
        "listen": settings.listen,
        "tls": "" if settings.tls is None else str(settings.tls.absolute()),
        "out": str(out.absolute()),
        "nodes": settings.num_gateways,
        "patience": settings.patience_s,
        "metrics": settings.metrics,
        "resume": settings.resume,
        "events": str(events),
    }
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items())


def run(
    config: Config, out: Path, settings: Settings, *, tell: Tell, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs a scheme with devices behind SuperNodes; gives the run's summary. Raises: MidhaulError, in one sentence."""
    host = _check(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(children.ended_by_sigterm())
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="midhaul-flower-", ignore_cleanup_errors=True))
        )
        project.write(config, home / "project")
        (home / "config.toml").write_text(connection(host, settings.port, settings.tls), encoding="utf-8")
        listener = Listener(home / "events.jsonl")
        (home / "run.toml").write_text(run_config(settings, out, listener.path), encoding="utf-8")
        stack.callback(lambda: children.end_others(listener.pids))
        env = environment(home)
        link = stack.enter_context(started(host, settings.port, settings.tls, env))
        if settings.tls is not None:
            _register(settings.tls, env, tell)
        address = desk.joined(host, settings.port)
        safety = "on this machine alone" if settings.tls is None else "over TLS, for SuperNodes with a registered key"
        tell(f"SuperLink at {address}, {safety}; start `midhaul join {address} --flower` where the devices are")
        words = (program("flwr"), "run", home / "project", _NAME, "--stream", "--run-config", home / "run.toml")
        submitted = Child(words, env)
        stack.callback(submitted.stop)
        _follow(listener, submitted, link, tell, progress)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def _check(settings: Settings) -> str:
    """Gives the host. Raises: ConfigError for what can't be, before anything is started."""
    if settings.transport not in ("stream", "messages"):
        raise ConfigError(f"--transport is {settings.transport!r}; it is stream or messages")
    if settings.transport == "messages" and settings.metrics:
        raise ConfigError("--metrics tells of the stream; leave it out with --transport messages")
    place = serve.Place.of(settings.listen, settings.tls)
    if place.host in ("0.0.0.0", "::"):
        raise ConfigError(
            f"--listen {settings.listen} is no address that SuperNodes could be told; give the one at which they reach "
            "this machine"
        )
    if settings.port == place.port and settings.transport == "stream":
        raise ConfigError(
            f"the SuperLink and the stream can't both have port {place.port}; choose another by --flower-port"
        )
    need()
    children.check_free(place.host, settings.port, "--flower-port")
    if settings.transport == "stream":
        children.check_free(place.host, place.port, "--listen")
    return place.host


@contextlib.contextmanager
def started(host: str, port: int, tls: Path | None, env: Mapping[str, str]) -> Iterator[Child]:
    """Gives a SuperLink that answers. Raises: EngineError where it ends, doesn't answer, or isn't to be trusted."""
    material = None if tls is None else certs.read(tls, "server")
    scheme, context = "http", None
    if material is not None:
        scheme, context = "https", ssl.create_default_context(cadata=material.root.decode())
    link = Child(superlink_words(host, port, tls), env)
    try:
        address, end = desk.joined(host, port), time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{scheme}://{address}/health", timeout=5.0, context=context):
                    break
            except OSError as error:
                if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                    raise EngineError(desk.distrust(address, material) or str(error)) from None
            if link.wait(LOOK_S) is not None:
                raise EngineError(f"Flower's SuperLink ended while it started; it said: {link.said()}")
            if time.monotonic() > end:
                raise EngineError(f"Flower's SuperLink didn't answer for {START_S:g} s; it said: {link.said()}")
        yield link
    finally:
        link.stop()


def _register(tls: Path, env: Mapping[str, str], tell: Tell) -> None:
    """Tells the SuperLink whose keys to let in. Raises: ConfigError, EngineError."""
    keys = sorted({path.stem: path for place in (tls, tls / "gateways") for path in place.glob("*.pub")}.items())
    if not keys:
        raise ConfigError(f"{tls} has no gateway's key (NAME.pub); make some with `midhaul certs {tls} --gateways A,B`")
    for name, path in keys:
        child = Child((program("flwr"), "supernode", "register", path, _NAME, "--name", name), env)
        try:
            if child.wait(START_S) != 0:
                raise EngineError(f"the SuperLink didn't take the key {path}; it said: {child.said()}")
        finally:
            child.stop()
    tell(f"keys of {len(keys)} gateways are registered at the SuperLink: {', '.join(name for name, _ in keys)}")


def _follow(listener: Listener, submitted: Child, link: Child, tell: Tell, progress: Progress | None) -> None:
    """Tells what the ServerApp tells until it has ended. Raises: EngineError where the run failed."""
    end = float("inf")
    while True:
        for event in listener.news():
            if event["event"] == "line":
                tell(sentence(event))
            elif event["event"] == "progress" and progress is not None:
                progress(str(event["label"]), int(event["done"]), int(event["total"]))
            elif event["event"] == "error":
                raise EngineError(str(event["error"]))
            elif event["event"] == "done":
                return
        if link.code is not None:
            link.wait(1.0)
            raise EngineError(
                f"Flower's SuperLink ended with {link.code}; start again with --resume. It said: {link.said()}"
            )
        if time.monotonic() > end:
            said = submitted.said()
            if not any(_STARTED.search(line) for line in submitted.lines):
                raise EngineError(f"Flower didn't take the run; it said: {said}")
            raise EngineError(f"the ServerApp ended without a result; start again with --resume. Its log ends: {said}")
        if submitted.wait(LOOK_S) is not None:
            end = min(end, time.monotonic() + GRACE_S)
            time.sleep(LOOK_S)


def program(name: str) -> Path:
    """Gives where a program of Flower lies: beside this Python."""
    return Path(sys.executable).parent / name
