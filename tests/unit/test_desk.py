"""The secret of a loopback: there for as long as its server lives, and not a moment longer, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import midhaul
from midhaul.federation import desk
from midhaul.federation.passes import Bearer, Guard

SERVER = """
import sys, time
from midhaul.federation import desk
with desk.shared_secret(int(sys.argv[1]), "whispered"):
    print("here", flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_secret_lives_as_long_as_its_server(tmp_path: Path) -> None:
    assert desk.read_secret(7000) == ""
    with desk.shared_secret(7000, "whispered"):
        path = desk.secret_path(7000)
        assert path.stat().st_mode & 0o777 == 0o600
        assert desk.read_secret(7000) == "whispered"
        assert [each.name for each in path.parent.iterdir()] == ["7000.secret"]
    assert desk.read_secret(7000) == ""
    assert not path.exists()


def test_what_a_killed_server_leaves_is_nobodys_and_is_swept(tmp_path: Path) -> None:
    own = {**os.environ, "PYTHONPATH": str(Path(midhaul.__file__).parents[1])}
    server = subprocess.Popen([sys.executable, "-c", SERVER, "7001"], env=own, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        assert server.stdout.readline() == "here\n"
        assert desk.read_secret(7001) == "whispered"
        with desk.shared_secret(7002, "another"):
            assert desk.read_secret(7001) == "whispered"  # one that lives isn't swept
        server.send_signal(signal.SIGKILL)
        server.wait()
    left = desk.secret_path(7001)
    assert left.read_text() == "whispered"
    assert desk.read_secret(7001) == ""
    with desk.shared_secret(7002, "another"):
        assert not left.exists()
    with desk.shared_secret(7001, "anew"):
        assert desk.read_secret(7001) == "anew"


def test_who_comes_before_the_server_is_ready_comes_again() -> None:
    grpc = pytest.importorskip("grpc", reason="gateways speak gRPC (midhaul[federation])")
    from concurrent.futures import ThreadPoolExecutor

    told: list[str] = []
    version = {"version": midhaul.__version__}
    made = desk.Desk(Guard(b"", "whispered"), *[lambda: version] * 3, told.append)
    server = grpc.server(ThreadPoolExecutor(1), (made.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    server.start()
    try:
        with pytest.raises(desk.Unreachable):
            desk.ask(address, "Join", Bearer("early", None, ""))
        with desk.shared_secret(port, "whispered"):
            made.opened.set()
            with pytest.raises(desk.Unreachable, match="another one than a moment ago"):
                desk.ask(address, "Join", Bearer("early", None, ""))
            assert desk.ask(address, "Join", desk.bearer(address, None, "later")) == version
    finally:
        server.stop(None).wait()
