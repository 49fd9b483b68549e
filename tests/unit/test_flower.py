"""Serving and joining over Flower, as far as it goes without Flower: words, files, refusals, and programs that end."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from midhaul.cli import main
from midhaul.config import Config
from midhaul.errors import ConfigError, DependencyError, EngineError
from midhaul.federation import certs, children, gate, project, resident, superlink, supernode
from midhaul.federation.children import Child
from midhaul.federation.events import Listener, Teller
from midhaul.federation.join import Share
from midhaul.federation.superlink import Settings


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def quiet(line: str) -> None: ...


def test_a_superlink_with_certificates_wants_registered_keys(tmp_path: Path) -> None:
    words = list(map(str, superlink.superlink_words("10.0.0.5", 8000, tmp_path)))
    assert words[1:3] == ["-m", "midhaul.federation.gate"]
    assert "--enable-supernode-auth" in words
    assert "--insecure" not in words
    assert words[words.index("--ssl-ca-certfile") + 1] == str(tmp_path / "ca.crt")
    assert words[words.index("--ssl-keyfile") + 1] == str(tmp_path / "server.key")
    alone = superlink.superlink_words("127.0.0.1", 8000, None)
    assert "--insecure" in alone
    assert "--enable-supernode-auth" not in alone


def test_a_supernode_shows_its_own_key(tmp_path: Path) -> None:
    certs.make(tmp_path, gateways=["north"])
    words = list(map(str, supernode.supernode_words("h:8000", tmp_path / "node.toml", tmp_path, "north", 9)))
    assert words[words.index("--auth-supernode-private-key") + 1] == str(tmp_path / "gateways" / "north.ssh")
    assert words[words.index("--root-certificates") + 1] == str(tmp_path / "ca.crt")
    assert "--insecure" not in words
    assert "--insecure" in supernode.supernode_words("h:8000", tmp_path / "node.toml", None, "a", 9)


def test_what_the_apps_are_told_is_what_they_know(tmp_path: Path) -> None:
    told = tomllib.loads(superlink.run_config(Settings(metrics="9471", resume=True), tmp_path, tmp_path / "e"))
    project.write(Config(), tmp_path / "project")
    made = tomllib.loads((tmp_path / "project" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert told.keys() == made.keys()  # `flwr run` refuses others
    assert all(type(told[name]) is type(made[name]) for name in told)
    share = Share(data='har:subjects="1"', changes=("data.seed=1", 'run.keys="a"'), gives_rows=True)
    node = tomllib.loads(supernode.node_config(share, "north", 5.0, tmp_path, tmp_path / "socket"))
    assert (node["data"], node["gives_rows"], node["patience"]) == ('har:subjects="1"', True, 5.0)
    assert json.loads(node["set"]) == list(share.changes)


def test_flower_is_told_where_its_superlink_is(tmp_path: Path) -> None:
    there = tomllib.loads(superlink.connection("::1", 8000, tmp_path))["superlink"]
    assert there[there["default"]] == {"address": "[::1]:8000", "root-certificates": str(tmp_path / "ca.crt")}
    there = tomllib.loads(superlink.connection("127.0.0.1", 8000, None))["superlink"]
    assert there[there["default"]]["insecure"] is True


def test_without_flower_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"install midhaul\[flower\]"):
        superlink.need()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.43.0")
    with pytest.raises(DependencyError, match=r"Flower 1\.43\.0 is installed, and midhaul speaks with 1\.41\.0"):
        superlink.need()


def test_what_can_not_be_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(superlink, "need", lambda: None)
    monkeypatch.setattr(superlink, "Child", None)
    config = tmp_path / "c.toml"
    config.write_text("[run]\nrounds = 1\n")
    certs.make(tmp_path / "tls")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, free = str(taken.getsockname()[1]), str(children.free_port())
        serve, join = ["serve", str(config), "--out", str(tmp_path / "out"), "--flower"], ["join", "--flower"]
        for words, said in (
            ([*serve, "--flower-port", port, "--listen", f"127.0.0.1:{free}"], "choose another by --flower-port"),
            ([*serve, "--flower-port", free, "--listen", f"127.0.0.1:{port}"], "choose another by --listen"),
            ([*serve, "--flower-port", "9470"], "can't both have port 9470"),
            ([*serve, "--flower-port", "0"], "is no port"),
            ([*serve, "--transport", "pigeon"], "it is stream or messages"),
            ([*serve, "--transport", "messages", "--metrics", "1"], "--metrics tells of the stream"),
            ([*serve, "--listen", "10.0.0.5"], "wants --tls FOLDER"),
            ([*serve, "--listen", "0.0.0.0", "--tls", str(tmp_path / "tls")], "no address that SuperNodes"),
            ([*serve[:-1], "--transport", "messages"], "are for --flower"),
            ([*join, "10.0.0.5"], "wants --tls FOLDER"),
            ([*join, f"127.0.0.1:{free}", "--patience", "0.1"], "there is no SuperLink at"),
        ):
            assert main(words) == 2, words
            assert said in capsys.readouterr().err, words
    assert not (tmp_path / "out").exists()


def test_strangers_reach_the_fleet_alone() -> None:
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    def ask(path: str, client: str, server: str = "10.0.0.5") -> int | None:
        said: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        scope = {"type": "http", "path": path, "client": (client, 1), "server": (server, 8000)}
        asyncio.run(gate.Gate(app)(scope, None, send))
        return said[0]["status"] if said else None

    assert ask("/v1/fleet/pull-messages", "10.0.0.6") is None
    for path in (
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/v1/fleet",
    ):
        assert ask(path, "10.0.0.6") == 403
        assert ask(path, "not an address") == 403
        assert ask(path, "127.0.0.1") is None
        assert ask(path, "10.0.0.5") is None
    assert passed.count("/v1/control/start-run") == 2
    closed: list[dict[str, Any]] = []

    async def close(message: dict[str, Any]) -> None:
        closed.append(message)

    asyncio.run(gate.Gate(app)({"type": "websocket", "path": "/x", "client": ("10.0.0.6", 1)}, None, close))
    assert closed[0]["type"] == "websocket.close"


def test_apps_tell_in_whole_lines(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "events")
    teller = Teller(str(listener.path))
    teller.line("hello")
    teller.progress("rounds", 1, 2)
    assert [event["event"] for event in listener.news()] == ["line", "progress"]
    assert listener.pids == {os.getpid()}
    code = "import sys; from midhaul.federation.events import Teller; Teller(sys.argv[1]).line('hello')"
    subprocess.run([sys.executable, "-c", code, str(listener.path)], check=True)
    assert [event["line"] for event in listener.news()] == ["hello"]
    assert listener.pids == {os.getpid()}  # another may have the number of an app that has ended
    with listener.path.open("a") as file:
        file.write('{"event": "done"')
    assert listener.news() == []
    with listener.path.open("a") as file:
        file.write("}\n")
    assert listener.news() == [{"event": "done"}]
    Teller("").line("nobody listens")
    Teller(str(tmp_path / "gone" / "events")).line("nobody listens any more")


def test_a_resident_answers_process_after_process(tmp_path: Path) -> None:
    def answer(said: resident.Content) -> resident.Content:
        if said["kind"] == "odd":
            raise ConfigError("that is odd")
        if said["kind"] == "broken":
            raise ValueError("seven")
        return {"kind": said["kind"], "twice": said["data"] * 2}

    made = resident.Resident(tmp_path / "socket", answer)
    made.start()
    path = str(made.path)
    assert resident.ask(path, {"kind": "é", "data": b"\n0"}) == {"kind": "é", "twice": b"\n0\n0"}
    assert resident.ask(path, {"kind": "odd"}) == {"error": "that is odd"}
    assert resident.ask(path, {"kind": "broken"}) == {"error": "the gateway failed with ValueError: seven"}
    with Client(path, "AF_UNIX") as odd:
        odd.send_bytes(b"no\n")
        assert "is damaged" in str(resident.unpack(odd.recv_bytes())["error"])
    code = "import sys; from midhaul.federation import resident, clientapp; "
    code += "print(resident.ask(sys.argv[1], {'kind': 'b', 'data': 'a'})['twice'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["aa", "False"]  # the process that Flower starts imports next to nothing
    made.close()
    assert not made.is_alive()
    with pytest.raises(EngineError, match="is gone"):
        resident.ask(path, {"kind": "c", "data": "a"})
    for data in (b"no\n", b'[["a", true, 2]]\nb', b'[["a", true, 1]]\nbc', b'[["a", true, -1]]\nbc'):
        with pytest.raises(EngineError, match="is damaged"):
            resident.unpack(data)


def test_a_child_is_heard_and_ends_when_told() -> None:
    heard: list[str] = []
    code = "import time; print('\\x1b[93mone\\x1b[0m'); print('two', flush=True); time.sleep(60)"
    child = Child([sys.executable, "-c", code], hears=heard.append)
    until(lambda: len(heard) == 2)
    assert child.code is None
    child.stop()
    assert child.code == -signal.SIGTERM
    assert heard == ["\x1b[93mone\x1b[0m", "two"]
    assert child.said() == "one / two"


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    child = Child([tmp_path / "flower-supernode"])
    assert child.wait(20.0) == 1
    assert child.said() == f"{tmp_path / 'flower-supernode'} can't be started (No such file or directory); " + (
        "install midhaul[flower] anew"
    )


def test_a_child_that_does_not_listen_is_ended_with_all_of_its_group() -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True); time.sleep(60)"
    )
    child = Child([sys.executable, "-c", code])
    until(lambda: len(child.lines) == 1)
    child.stop(0.2)
    assert child.code == -signal.SIGKILL
    until(lambda: not children.is_running(int(child.lines[0])))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends a child with its parent")
def test_no_child_outlives_its_parent(end: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom midhaul.federation import children\n"
        "with children.ended_by_sigterm():\n"
        "    child = children.Child([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    try:\n        print(child.process.pid, flush=True)\n        time.sleep(60)\n"
        "    finally:\n        child.stop()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert children.is_running(pid)
        parent.send_signal(end)
        parent.wait(20.0)
    until(lambda: not children.is_running(pid))


def test_what_flower_did_not_end_is_ended() -> None:
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    children.end_others({stray.pid}, 0.2)
    assert stray.wait(20.0) == -signal.SIGKILL


def fake(folder: Path, name: str, code: str) -> Path:
    """Puts a program of Flower's name there that does something else."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which programs of Flower are looked for, and none is yet."""
    monkeypatch.setattr(superlink, "need", lambda: None)
    monkeypatch.setattr(superlink, "program", lambda name: tmp_path / name)
    return tmp_path


ANSWERS = """
import http.server, ssl, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words): pass
server = http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Answers)
"""
LINK = ANSWERS + "server.serve_forever()"
TLS_LINK = f"""{ANSWERS}
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3] + "/server.crt", sys.argv[3] + "/server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
RUNS = """
import json, sys, tomllib, pathlib
told = tomllib.loads(pathlib.Path(sys.argv[-1]).read_text())
print("Successfully started run 7", flush=True)
say = lambda **what: open(told["events"], "a").write(json.dumps(what) + "\\n")
"""


def serve(
    flower: Path, monkeypatch: pytest.MonkeyPatch, then: str, link: str = LINK
) -> tuple[Callable[[], dict[str, Any]], list[str]]:
    fake(flower, "flwr", RUNS + then)
    fake(flower, "link", link)
    monkeypatch.setattr(superlink, "superlink_words", lambda host, port, tls: [flower / "link", host, str(port)])
    settings = Settings(listen=f"127.0.0.1:{children.free_port()}", port=children.free_port())
    told: list[str] = []
    return lambda: superlink.run(Config(), flower / "out", settings, tell=told.append), told


def test_a_run_is_followed_to_its_summary(flower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    then = (
        "say(event='line', line='round 1')\nout = pathlib.Path(told['out'])\nout.mkdir()\n"
        "(out / 'summary.json').write_text('{\"accuracy\": 1}')\nsay(event='done')\n"
    )
    run, told = serve(flower, monkeypatch, then)
    assert run() == {"accuracy": 1}
    assert told[-1] == "round 1"
    assert "midhaul join 127.0.0.1:" in told[0]


@pytest.mark.parametrize(
    ("then", "link", "said"),
    [
        ("say(event='error', error='the data set har is not here')", LINK, "^the data set har is not here$"),
        ("print('Traceback'); print('ValueError: 7')", LINK, "ended without a result.*ValueError: 7"),
        ("", "print('the port is taken'); raise SystemExit(1)", "ended while it started; it said: the port is taken"),
    ],
)
def test_how_a_run_fails_is_a_sentence(
    then: str, link: str, said: str, flower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "GRACE_S", 0.2)
    run, _ = serve(flower, monkeypatch, then, link)
    with pytest.raises(EngineError, match=said):
        run()


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine on Linux alone")
def test_a_certificate_for_another_host_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certs.make(tmp_path / "keys")  # for 127.0.0.1
    link = fake(tmp_path, "link", TLS_LINK)
    monkeypatch.setattr(superlink, "superlink_words", lambda host, port, tls: [link, host, str(port), tls])
    with pytest.raises(EngineError, match=r"is not for 127\.0\.0\.2; make one there with"):
        superlink.started("127.0.0.2", children.free_port(), tmp_path / "keys", os.environ).__enter__()


NODE = """
import json, sys, tomllib, pathlib, time
told = tomllib.loads(pathlib.Path(sys.argv[sys.argv.index("--node-config") + 1]).read_text())
say = lambda **what: open(told["events"], "a").write(json.dumps(what) + "\\n")
def hello():
    print("SuperNode ID: 5", flush=True)
    time.sleep(0.5)
end = dict(event="ended", run="a", devices=[1], turns=3, connections=1, has_joined=True)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("hello(); say(**end); time.sleep(60)", ""),
        ("hello(); say(**(end | dict(error='no data', has_joined=False))); time.sleep(60)", "^no data$"),
        ("hello(); say(event='session', run='a'); say(**(end | dict(error='lost'))); time.sleep(60)", "^lost$"),
        ("print('[code: 12] Unauthorized'); raise SystemExit(1)", r"SuperNode \(Unauthorized\); is its key registered"),
        ("print('ValueError: 7'); raise SystemExit(1)", "SuperNode ended with 1: ValueError: 7"),
    ],
)
def test_a_supernode_is_followed_to_its_end(
    code: str, said: str, flower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode, "TAKEN_S", 0.0)
    monkeypatch.setattr(supernode, "program", lambda name: flower / name)
    fake(flower, "flower-supernode", NODE + code)
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as link:
        address = f"127.0.0.1:{link.getsockname()[1]}"

        def joins() -> Any:
            return supernode.join(address, Share(), tell=told.append)

        if said:
            with pytest.raises((EngineError, ConfigError), match=said):
                joins()
        else:
            assert (joins().turns, joins().devices) == (3, (1,))
            assert told[0] == f"SuperNode 5 is with the SuperLink at {address}; waiting for a run"


def test_a_supernode_that_lost_its_superlink_is_patient_anew(flower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "TAKEN_S", 0.0)
    monkeypatch.setattr(supernode, "program", lambda name: flower / name)
    code = "print('Receiving: train message', flush=True); hello()\nfirst = pathlib.Path(__file__ + '.first')\n"
    code += "if not first.exists(): first.touch(); raise SystemExit(1)\n"
    code += "print('Sent successfully', flush=True); say(**end); time.sleep(60)"
    fake(flower, "flower-supernode", NODE + code)
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as link:
        address = f"127.0.0.1:{link.getsockname()[1]}"
        assert supernode.join(address, Share(), patience_s=0.3, tell=told.append).turns == 3  # it was with it for 0.5 s
    assert "SuperNode 5 has lost its SuperLink" in told[1]
