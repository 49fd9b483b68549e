"""Runs over Flower itself, as an operator starts them: `make test-flower`, as Flower has an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import midhaul
from midhaul import config as settings
from midhaul import train
from midhaul.config import Config
from midhaul.federation import certs, children, gate

pytest.importorskip("flwr", reason="Flower isn't installed (midhaul[flower]); `make test-flower` installs it")
pytestmark = pytest.mark.xdist_group("flower")
SMALL = Config().replace(
    data_partition="dirichlet", data_num_devices=4, data_max_rows=60, data_public=0.2, data_test="device",
    tiny_options={"hidden": [16]}, scheme_name="fedavg", scheme_lr=0.1, run_rounds=2,
)  # fmt: skip


class Terminal:
    """A command of midhaul under way."""

    def __init__(self, folder: Path, number: int, words: list[str]) -> None:
        self.words, self.path = words, folder / f"{number}.log"
        own = {**os.environ, "PYTHONPATH": str(Path(midhaul.__file__).parents[1]), "TMPDIR": str(folder)}
        with self.path.open("w") as log:
            command = [sys.executable, "-m", "midhaul", *words]
            self.process = subprocess.Popen(command, env=own, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self.path.read_text()

    def until(self, word: str, seconds: float = 240.0) -> None:
        """Waits for something that it says."""
        end = time.monotonic() + seconds
        while word not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, "\n".join(path.read_text() for path in self.path.parent.glob("*.log"))
            time.sleep(0.1)

    def end(self, code: int = 0, seconds: float = 300.0) -> str:
        """Waits for its end; gives what it said."""
        assert self.process.wait(seconds) == code, self.said
        return self.said


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    opened: list[Terminal] = []

    def start(*words: object) -> Terminal:
        opened.append(Terminal(tmp_path, len(opened), list(map(str, words))))
        return opened[-1]

    yield start
    for terminal in opened:
        if terminal.process.poll() is None:
            terminal.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(30.0)
        terminal.process.kill()
        terminal.process.wait()
    assert strays(tmp_path) == []


def strays(folder: Path) -> list[str]:
    """Gives the commands that run with a home in a folder: what a command of midhaul started and left behind."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (place / "environ").read_bytes() and children.is_running(int(place.name)):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def serve(start: Start, tmp_path: Path, config: Config, *more: object) -> tuple[Terminal, str]:
    """Starts a server; gives it, and where its SuperLink is."""
    path, port = tmp_path / "config.toml", children.free_port()
    path.write_text(settings.to_toml(config))
    listen = ("--listen", f"127.0.0.1:{children.free_port()}", "--flower-port", port)
    terminal = start("serve", path, "--flower", "--out", tmp_path / "run", *listen, *more)
    terminal.until("start `midhaul join")
    return terminal, f"127.0.0.1:{port}"


def summary(tmp_path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return told


def test_registered_keys_are_let_in_and_a_forged_one_is_refused(start: Start, tmp_path: Path) -> None:
    own, other, forged = tmp_path / "keys", tmp_path / "other", tmp_path / "forged"
    certs.make(own, gateways=["north", "south"])
    certs.make(other, gateways=["north"])
    (forged / "gateways").mkdir(parents=True)
    (forged / "ca.crt").write_bytes((own / "ca.crt").read_bytes())
    for path in (other / "gateways").iterdir():
        (forged / "gateways" / path.name).write_bytes(path.read_bytes())
    serves, address = serve(start, tmp_path, SMALL, "--tls", own)
    strangers = [
        (start("join", address, "--flower", *more), said)
        for more, said in (
            ((), "speaks TLS; give --tls FOLDER"),
            (("--tls", other), "is not signed by the authority in ca.crt"),
            (("--tls", forged), "refused this SuperNode"),
        )
    ]
    for terminal, said in strangers:
        assert said in terminal.end(2)
        assert "Traceback" not in terminal.said
    joins = [
        start("join", address, "--flower", "--tls", own, "--name", name, "--share", share)
        for name, share in (("north", "1/2"), ("south", "2/2"))
    ]
    told = serves.end()
    assert "keys of 2 gateways are registered" in told
    assert "accuracy" in told
    for terminal in joins:
        assert "the run has ended" in terminal.end()
    assert summary(tmp_path)["model_sha256"] == train.run(SMALL).summary["model_sha256"]


def test_messages_alone_with_firmware_behind_one_supernode(start: Start, tmp_path: Path) -> None:
    config = SMALL.replace(run_rounds=1, fleet_deadline_s=300.0)
    wanted = train.run(config).summary
    train.run(config.replace(run_engine="firmware", run_devices="host:"))  # builds the C library, where it isn't
    serves, address = serve(start, tmp_path, config, "--transport", "messages")
    first = start("join", address, "--flower", "--share", "1/2", "--devices", "host:*2")
    second = start("join", address, "--flower", "--share", "2/2")
    serves.end()
    for terminal in (first, second):
        assert "round 1: 2 FIT" in terminal.end()
    assert summary(tmp_path)["accuracy"] == pytest.approx(wanted["accuracy"], abs=1e-6)


def test_nothing_is_left_behind(start: Start, tmp_path: Path) -> None:
    serves, address = serve(start, tmp_path, SMALL)
    joins = start("join", address, "--flower", "--share", "1/2")
    joins.until("joined the run")
    wrong = start("join", address, "--flower", "--data", "har:subjects=1")
    assert "--data names 'har', and the run is on 'digits'" in wrong.end(2)
    serves.process.send_signal(signal.SIGTERM)
    serves.end(128 + signal.SIGTERM)
    joins.process.send_signal(signal.SIGINT)
    joins.end(130)
    end = time.monotonic() + 20.0
    while strays(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert strays(tmp_path) == []


def test_flower_lets_the_gate_in_first(monkeypatch: pytest.MonkeyPatch) -> None:
    extensions, link = (import_module(f"flwr.superlink.{name}") for name in ("extensions", "cli.flower_superlink"))
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(link, "flower_superlink", lambda: None)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    gate.main()
    assert import_module("uvicorn").Config(lambda: None).forwarded_allow_ips == "127.0.0.1"
    assert import_module("flwr.superlink.main")._get_middleware()[0].cls is gate.Gate
