"""midhaul over Flower's own messages, beside bare Flower and beside the stream. `python -m benchmarks.over_flower`

Two questions. How many exchanges of 16 KiB each way come through Flower's messages in a second, and how many through
the stream? And how long is a round of federated averaging (100 k parameters, 8 SuperNodes, a row or two of work) over
Flower's messages, beside a bare Flower round whose ClientApp gives back the arrays that it was sent?

All is on this machine: a SuperLink, SuperNodes as `midhaul join --flower` starts them, one run whose ServerApp lets
what is compared take turns. It needs Flower: build/flower-venv, which `make build/flower-venv/.ready` makes, or another
environment with midhaul[flower] that --python names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "build" / "flower-venv" / "bin" / "python"
NODES = 8
CONFIG = """
[data]
name = "digits"
num_devices = 8
max_rows = 16
[fleet]
board = "rpi4"
deadline_s = 600.0
[tiny]
model = "mlp"
options = { hidden = [1333] }
[scheme]
name = "fedavg"
epochs = 1
"""
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "midhaul-beside-flower"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0,<1.42"]
[tool.hatch.build.targets.wheel]
packages = ["beside"]
[tool.flwr.app]
publisher = "midhaul"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "beside.server:app"
clientapp = "beside.client:app"
[tool.flwr.app.config]
out = ""
turns = 3
exchanges = 300
"""
SERVER = """from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    from benchmarks import over_flower
    over_flower.compare(grid, dict(context.run_config))
"""
CLIENT = """from flwr.app import Message
from midhaul.federation.clientapp import client_app
app = client_app()

@app.query()
def echo(message, context):
    return Message(message.content, reply_to=message)
"""


def compare(grid: Any, told: dict[str, Any]) -> None:
    """Is the ServerApp: measures, and writes the seconds of each turn to the file `out`."""
    import tomllib

    import numpy as np

    from benchmarks import federation
    from midhaul import config as settings
    from midhaul import plant, rng, tree
    from midhaul.federation.clientapp import load
    from midhaul.federation.flower import GridCourier
    from midhaul.federation.messages import Messages
    from midhaul.message import Message, Op

    flower = load("flwr.app")
    courier = GridCourier(grid, 600.0)
    while len(nodes := courier.nodes()) < NODES:
        time.sleep(0.5)
    config = settings.from_table(tomllib.loads(CONFIG), where="the benchmark")
    built = plant.build(config)
    fleet = Messages(built.kit.groups, built.engine.population, courier, settings.to_toml(config), tell=sys.exit)
    fleet.meet()
    assert not fleet.missing()
    model = built.kit.program.initial
    arrays = {name: value.numpy() for name, value in model.items()}
    found: dict[str, Any] = {"parameters": tree.num_parameters(model), "bare": [], "midhaul": [], "message": []}

    def bare(content: Any, to: list[int]) -> list[Any]:
        sent = [flower.Message(content, dst_node_id=node, message_type="query") for node in to]
        replies = list(grid.send_and_receive(sent, timeout=600.0))
        assert len(replies) == len(to)
        assert not any(reply.has_error() for reply in replies)
        return replies

    def bare_round() -> None:
        record = flower.ArrayRecord({name: flower.Array(value) for name, value in arrays.items()})
        replies = bare(flower.RecordDict({"model": record}), nodes)
        for name, value in arrays.items():
            mean = np.mean([reply.content["model"][name].numpy() for reply in replies], axis=0)
            assert np.allclose(mean, value)

    def midhaul_round() -> None:
        number = len(found["midhaul"]) + 1
        key = rng.Key(0, number, rng.SERVER, 0)
        up = fleet.exchange(built.kit.fit(model, train="whole", send="whole"), key=key)
        assert len(up) == NODES
        tree.weighted_mean(up.tree, up.weight)

    def one_message() -> None:
        raw = np.ones(4096, dtype=np.float32)  # 16 KiB
        bare(flower.RecordDict({"h": flower.ArrayRecord({"h": flower.Array(raw)})}), nodes[:1])

    h = federation._activations(1)
    there = Message(Op.BACKWARD, each={"g": h}, rows=federation.torch.tensor([federation.ROWS]))
    num = int(told["exchanges"])
    found["stream"] = []
    with federation.served(1, 6400, 1) as (server, *_):

        def exchanges() -> None:
            for _ in range(num):
                server.exchange(there, key=federation.KEY)

        acts: dict[str, Callable[[], None]] = {
            "bare": bare_round, "midhaul": midhaul_round, "message": one_message, "stream": exchanges,
        }  # fmt: skip
        for turn in range(-1, int(told["turns"])):
            for name, act in acts.items():
                began = time.perf_counter()
                act()
                if turn >= 0:  # the first turn warms up
                    found[name].append((time.perf_counter() - began) / (num if name == "stream" else 1))
            Path(str(told["out"])).write_text(json.dumps(found), encoding="utf-8")


def run(turns: int, exchanges: int) -> dict[str, Any]:
    """Starts SuperLink, SuperNodes and the run; gives the seconds of each turn. Needs Flower in this environment."""
    from midhaul.federation import children, superlink
    from midhaul.federation.children import Child

    superlink.need()
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        env = superlink.environment(home)
        env["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "src")))
        port, out, project = children.free_port(), home / "found.json", home / "project"
        (project / "beside").mkdir(parents=True)
        files = {"pyproject.toml": PROJECT, "LICENSE": "Apache License 2.0\n", "README.md": "A benchmark.\n"}
        files |= {"beside/__init__.py": "", "beside/server.py": SERVER, "beside/client.py": CLIENT}
        for name, text in files.items():
            (project / name).write_text(text, encoding="utf-8")
        (home / "config.toml").write_text(superlink.connection("127.0.0.1", port, None), encoding="utf-8")
        link = stack.enter_context(superlink.started("127.0.0.1", port, None, env))
        for k in range(1, NODES + 1):
            words = [
                sys.executable,
                "-m",
                "midhaul",
                "join",
                f"127.0.0.1:{port}",
                "--flower",
                "--share",
                f"{k}/{NODES}",
            ]
            node = Child(words, env)
            stack.callback(node.stop)
        told = home / "run.toml"
        told.write_text(f"out = {json.dumps(str(out))}\nturns = {turns}\nexchanges = {exchanges}\n", encoding="utf-8")
        words = [str(superlink.program("flwr")), "run", str(project), "midhaul", "--stream", "--run-config", str(told)]
        submitted = Child(words, env)
        stack.callback(submitted.stop)
        while submitted.wait(1.0) is None and link.code is None:
            pass
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        if len(found.get("stream", [])) < turns:
            raise SystemExit(f"the run ended early; it said: {submitted.said(12)}")
        return found


def show(found: dict[str, Any], turns: int) -> None:
    """Prints the medians and the ratios of each turn's pair."""
    median = {name: statistics.median(values) for name, values in found.items() if isinstance(values, list)}
    ratio = statistics.median(a / b for a, b in zip(found["midhaul"], found["bare"], strict=True))
    faster = statistics.median(a / b for a, b in zip(found["message"], found["stream"], strict=True))
    print(f"Flower 1.41.0, one machine, {turns} turns, medians")
    print(f"  a message of 16 KiB each way, one SuperNode      {median['message']:9.2f} s")
    print(f"  the same through the stream                      {1e3 * median['stream']:9.2f} ms")
    print(f"  stream / messages, exchanges a second            {faster:9,.0f} x")
    print(f"  a bare round, {found['parameters']:,} parameters, {NODES} SuperNodes {median['bare']:9.2f} s")
    print(f"  a round of midhaul over messages                 {median['midhaul']:9.2f} s")
    print(f"  midhaul / bare                                   {ratio:9.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", type=Path, default=PYTHON, help="an environment with midhaul[flower]")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--exchanges", type=int, default=300, help="through the stream in a turn")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        show(run(given.turns, given.exchanges), given.turns)
        return
    if not given.python.exists():
        if given.python != PYTHON:
            parser.error(f"there is no {given.python}")
        subprocess.run(["make", "-C", str(ROOT), "build/flower-venv/.ready", f"PYTHON={sys.executable}"], check=True)
    words = [str(given.python), "-m", "benchmarks.over_flower", "--here", "--turns", str(given.turns)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run([*words, "--exchanges", str(given.exchanges)], cwd=ROOT, env=env, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
