"""Passes: what is signed by its own key and fresh is taken, once; everything else is refused in a sentence."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from midhaul.errors import EngineError
from midhaul.federation import certs, desk, join, passes
from midhaul.federation.passes import Bearer, Guard, PassError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("passes")
    certs.make(made, gateways=["a", "b"])
    return made


def bearer(folder: Path, name: str) -> Bearer:
    return Bearer(name, certs.read(folder, name))


def test_a_gateway_with_its_key_is_let_in_once(folder: Path) -> None:
    guard, shown = Guard((folder / "ca.crt").read_bytes()), bearer(folder, "a").show("Join")
    assert guard.check(shown, "Join") == "a"
    with pytest.raises(PassError, match="a message was replayed"):
        guard.check(shown, "Join")
    assert guard.check(bearer(folder, "a").show("Join"), "Join") == "a"
    with pytest.raises(PassError, match="'Status' and wants Join"):
        guard.check(bearer(folder, "a").show("Status"), "Join")


def test_a_pass_is_good_for_a_minute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, shown, now = Guard((folder / "ca.crt").read_bytes()), bearer(folder, "a").show("Join"), passes.time.time()
    monkeypatch.setattr(passes.time, "time", lambda: now + 61.0)
    with pytest.raises(PassError, match="61 s ago: it was replayed, or the clocks differ"):
        guard.check(shown, "Join")
    monkeypatch.setattr(passes.time, "time", lambda: now - 70.0)
    with pytest.raises(PassError, match="70 s ahead"):
        guard.check(shown, "Join")
    monkeypatch.setattr(passes.time, "time", lambda: float("nan"))
    never = bearer(folder, "a").show("Join")
    monkeypatch.setattr(passes.time, "time", lambda: now)
    with pytest.raises(PassError, match="it was replayed, or the clocks differ"):
        guard.check(never, "Join")


def test_a_forged_key_and_a_borrowed_certificate_are_refused(folder: Path, tmp_path: Path) -> None:
    guard = Guard((folder / "ca.crt").read_bytes())
    own, others = certs.read(folder, "a"), certs.read(folder, "b")
    with pytest.raises(PassError, match="doesn't hold the key of the certificate that it shows: it is forged"):
        guard.check(Bearer("a", dataclasses.replace(own, key=others.key)).show("Join"), "Join")
    with pytest.raises(PassError, match="a shows a certificate of b"):
        guard.check(Bearer("a", others).show("Join"), "Join")
    certs.make(tmp_path, gateways=["a"])
    with pytest.raises(PassError, match="not signed by this federation's authority"):
        guard.check(bearer(tmp_path, "a").show("Join"), "Join")


def test_an_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(certs, "now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9))
        certs.make(tmp_path, gateways=["a"], days=3)
        expired = bearer(tmp_path, "a")
    with pytest.raises(PassError, match=r"is valid from .* not today; make a new one"):
        Guard((tmp_path / "ca.crt").read_bytes()).check(expired.show("Join"), "Join")


def test_what_was_changed_on_the_way_is_refused(folder: Path) -> None:
    guard = Guard((folder / "ca.crt").read_bytes())
    table = json.loads(bearer(folder, "a").show("Join"))
    body = json.loads(base64.b64decode(table["body"]))
    for changed in ({**body, "nonce": "x"}, {**body, "time": body["time"] + 1.0}):
        table["body"] = base64.b64encode(json.dumps(changed).encode()).decode()
        with pytest.raises(PassError, match="it is forged"):
            guard.check(json.dumps(table).encode(), "Join")
    large = json.dumps(json.loads(bearer(folder, "a").show("Join")) | {"more": passes.MAX_BYTES * "x"}).encode()
    for bad in (large, b"", b"{}", b"[1]", b'{"body": 1, "proof": 2, "certificate": 3}', b"\xff", b"[" * 100_000):
        with pytest.raises(PassError, match="isn't one"):
            guard.check(bad, "Join")


def test_a_secret_lies_there_as_long_as_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with desk.shared_secret(7, "seven"):
        assert desk.read_secret(7) == "seven"
        assert stat.S_IMODE(desk.secret_path(7).stat().st_mode) == 0o600
        killed = desk.secret_path(5)
        killed.write_text("of a server that was killed")
        with desk.shared_secret(8, "eight"):
            assert not killed.exists()
            assert (desk.read_secret(7), desk.read_secret(8)) == ("seven", "eight")
        assert [path.name for path in desk.secret_path(7).parent.iterdir()] == ["7.secret"]
    assert not list(desk.secret_path(7).parent.iterdir())


def test_who_read_a_secret_too_early_reads_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown: list[str] = []

    def ask(address: str, what: str, bearer: Bearer) -> dict[str, Any]:
        shown.append(bearer.secret)
        if shown == [""]:
            server.enter_context(desk.shared_secret(7, "seven"))  # it opens while this pass is on its way
        if bearer.secret != "seven" or len(shown) > 2:
            raise EngineError(f"refused {bearer.name}")
        return {"token": "t"}

    monkeypatch.setattr(desk, "ask", ask)
    with contextlib.ExitStack() as server:
        found = join._enrol("127.0.0.1:7", None, "a", 5.0, lambda line: None)
        assert (found, shown) == ({"token": "t"}, ["", "seven"])
        with pytest.raises(EngineError, match="refused a"):
            join._enrol("127.0.0.1:7", None, "a", 5.0, lambda line: None)


def test_on_a_loopback_a_secret_is_enough() -> None:
    guard = Guard(secret="s" * 64)
    shown = Bearer("a", secret="s" * 64).show("Join")
    assert guard.check(shown, "Join") == "a"
    with pytest.raises(PassError, match="replayed"):
        guard.check(shown, "Join")
    with pytest.raises(PassError, match="join as the user that runs"):
        guard.check(Bearer("a", secret="").show("Join"), "Join")
