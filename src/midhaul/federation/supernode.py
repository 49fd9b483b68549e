"""A gateway's side of a run over Flower: what `midhaul join --flower` starts.

It starts a SuperNode with the node's configuration, and tells what its ClientApp tells, until the run has ended. Where
the SuperLink was started anew, it joins again.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from midhaul.errors import ConfigError, EngineError
from midhaul.federation import certs, children, desk, messages, superlink
from midhaul.federation.children import Child
from midhaul.federation.events import Event, Listener, sentence
from midhaul.federation.join import Served, Share, build, close
from midhaul.federation.resident import Content, Resident
from midhaul.federation.superlink import program
from midhaul.plant import Plant
from midhaul.train import Tell

LOOK_S = 0.1
SENT_S = 15.0  # for the SuperNode to hand over the last answer
TAKEN_S = 2.0  # for the ServerApp to take it: a SuperLink forgets the answers of a SuperNode that has left
_ID = re.compile(r"SuperNode ID: (\d+)")
_SENT = re.compile(r"Sent successfully|Ignoring reply message|Failed to send message")
_REFUSED = re.compile(r"\[code: (\w+)\] (.*)")


class _Ended(Exception):
    """A SuperNode that ended by itself. `is_final`: another try would end so too."""

    def __init__(self, why: str, *, is_final: bool) -> None:
        super().__init__(why)
        self.why, self.is_final = why, is_final


class _Heard:
    """What is to be known of what a SuperNode says: its number, the messages that it took and those it gave back.

    `turns` are the messages that its ClientApp did by themselves, without a stream.
    """

    def __init__(self) -> None:
        self.id, self.taken, self.given, self.turns = 0, 0, 0, 0

    def __call__(self, line: str) -> None:
        if (found := _ID.search(line)) is not None:
            self.id = int(found.group(1))
        self.taken += "Receiving:" in line
        self.given += _SENT.search(line) is not None


def node_config(share: Share, name: str, patience_s: float, events: Path, resident: Path) -> str:
    """Gives a SuperNode's configuration, in TOML: what its ClientApp is to hold."""
    told: dict[str, object] = {
        "data": share.data,
        "share": share.share,
        "devices": share.devices,
        "engine": share.engine,
        "gives_rows": share.gives_rows,
        "set": json.dumps(list(share.changes)),
        "name": name,
        "patience": patience_s,
        "events": str(events),
        "resident": str(resident),
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())


def supernode_words(address: str, own: Path, tls: Path | None, name: str, port: int) -> list[str | Path]:
    """Gives the command that starts a SuperNode. `own` is its configuration, `port` one of its own on the loopback."""
    words: list[str | Path] = [program("flower-supernode"), "--superlink", address, "--node-config", own]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    if tls is None:
        return [*words, "--insecure"]
    beside = tls if (tls / f"{name}.ssh").exists() else tls / "gateways"
    return [*words, "--root-certificates", tls / "ca.crt", "--auth-supernode-private-key", beside / f"{name}.ssh"]


def join(
    address: str,
    share: Share,
    *,
    tls: Path | None = None,
    name: str = "",
    patience_s: float = 600.0,
    tell: Tell = lambda line: None,
) -> Served:
    """Serves a run as a SuperNode until it ends. Raises: MidhaulError, in one sentence."""
    host, port = desk.parse(address, superlink.PORT)
    own = _who(host, address, tls, name)
    superlink.need()
    began, served, failed = time.monotonic(), Served(own, (), 0, 0, 0.0), dict[str, str]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(children.ended_by_sigterm())
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="midhaul-node-", ignore_cleanup_errors=True))
        )
        listener = Listener(home / "events.jsonl")
        stack.callback(lambda: children.end_others(listener.pids))
        answering = _Answering(share, tell)
        stack.callback(answering.close)
        resident = Resident(home / "socket", answering)
        resident.start()
        stack.callback(resident.close)
        told_node = node_config(share, own, patience_s, listener.path, resident.path)
        (home / "node.toml").write_text(told_node, encoding="utf-8")
        env, target = superlink.environment(home), desk.joined(host, port)
        last = time.monotonic()
        while True:
            if (why := _reach(target, tls, own, last + patience_s, tell)) is not None:
                raise EngineError(next(iter(failed.values()), why))
            words = supernode_words(target, home / "node.toml", tls, own, children.free_port())
            heard = _Heard()
            child = Child(words, env, hears=heard)
            try:
                told = _follow(child, heard, listener, target, failed, tell)
            except _Ended as error:
                if heard.taken:
                    last = time.monotonic()  # until now it was with a SuperLink that had a run
                if error.is_final or time.monotonic() - last > patience_s:
                    raise EngineError(next(iter(failed.values()), error.why)) from None
                tell(f"{error.why}; starting another")
                time.sleep(1.0)
                continue
            finally:
                child.stop()
                children.end_others(listener.pids)
                listener.pids.clear()
            last = time.monotonic()
            turns = served.turns + int(told["turns"]) + heard.turns
            times = served.connections + int(told["connections"])
            served = Served(own, tuple(told["devices"]), turns, times, time.monotonic() - began)
            if "error" not in told:
                return served
            failed[str(told["run"])] = str(told["error"])
            if not told["has_joined"]:
                raise EngineError(str(told["error"]))
            tell(f"{told['error']}; looking for another run of the server for up to {patience_s:g} s")


class _Answering:
    """Answers single messages with a plant that is built once for a run's config."""

    def __init__(self, share: Share, tell: Tell) -> None:
        self.share, self.tell = share, tell
        self._config, self._built = "", cast(Plant | None, None)

    def __call__(self, said: Content) -> Content:
        config = str(said["config"])
        if self._built is None or config != self._config:
            self.close()
            self._built, self._config = build(config, self.share), config
        return messages.answer(self._built, said, gives_rows=self.share.gives_rows, tell=self.tell)

    def close(self) -> None:
        """Lets go of the devices with firmware."""
        close(self._built)
        self._built = None


def _who(host: str, address: str, tls: Path | None, name: str) -> str:
    """Gives the gateway's name. Raises: ConfigError where it has no key to show."""
    if tls is None:
        if not desk.is_loopback(host):
            raise ConfigError(
                f"{address} is another machine, so it wants --tls FOLDER with ca.crt and this gateway's key"
            )
        return name or "supernode"
    own = desk.bearer(address, tls, name).name
    if not any((place / f"{own}.ssh").exists() for place in (tls, tls / "gateways")):
        raise ConfigError(
            f"{tls} has no {own}.ssh, the gateway's key as Flower takes it; copy it from the server's folder"
        )
    return own


def _reach(address: str, tls: Path | None, name: str, end: float, tell: Tell) -> str | None:
    """Waits until something listens; says why nothing does in the end, or why it isn't to be trusted."""
    host, port = desk.parse(address, superlink.PORT)
    material, has_told = None if tls is None else certs.read(tls, name), False
    while not desk.listens(host, port):
        if time.monotonic() > end:
            return f"there is no SuperLink at {address}; start `midhaul serve CONFIG --flower` there"
        if not has_told:
            tell(f"there is no SuperLink at {address} yet; looking for it")
            has_told = True
        time.sleep(0.5)
    return desk.distrust(address, material)


def _follow(
    child: Child, heard: _Heard, listener: Listener, address: str, failed: Mapping[str, str], tell: Tell
) -> Event:
    """Tells what the ClientApp tells until a run has ended, and gives how. Raises: _Ended where the SuperNode did."""
    has_told = False
    while True:
        for event in listener.news():
            if event["event"] == "line":
                tell(sentence(event))
            elif event["event"] == "turn":
                heard.turns += 1
            elif event["event"] == "session" and event["run"] in failed:
                raise _Ended(failed[str(event["run"])], is_final=True)
            elif event["event"] == "ended":
                _until_given(child, heard)
                return event
        if heard.id and not has_told:
            has_told = True
            tell(f"SuperNode {heard.id} is with the SuperLink at {address}; waiting for a run")
        if child.wait(LOOK_S) is not None:
            refused = next(filter(None, map(_REFUSED.search, list(child.lines))), None)
            if refused is not None and not heard.id:
                key = "is its key registered there? `midhaul serve --flower --tls` registers those of its folder"
                raise _Ended(
                    f"the SuperLink at {address} refused this SuperNode ({refused.group(2)}); {key}", is_final=True
                )
            if heard.id:
                raise _Ended(f"SuperNode {heard.id} has lost its SuperLink ({child.said(1)})", is_final=False)
            raise _Ended(f"Flower's SuperNode ended with {child.code}: {child.said(2)}", is_final=True)


def _until_given(child: Child, heard: _Heard) -> None:
    """Waits until the SuperNode has handed over its last answer."""
    end = time.monotonic() + SENT_S
    while heard.given < heard.taken and time.monotonic() < end and child.code is None:
        time.sleep(LOOK_S)
    child.wait(TAKEN_S)
