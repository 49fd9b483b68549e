"""A project folder that `flwr run` accepts: a run of midhaul for a Flower federation that is there already.

It holds no code of midhaul: two lines that ask the installed package for its apps, and the run's config. It wants
midhaul on the machines of the SuperLink and of the SuperNodes; torch stays out of what Flower would install by itself.
"""

from __future__ import annotations

from pathlib import Path

from midhaul import __version__
from midhaul import config as settings
from midhaul.config import Config
from midhaul.errors import ConfigError

FLOWER = "1.41.0"
_PACKAGE = "midhaul_run"
_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "midhaul-run"
version = "1.0.0"
description = "{title}"
license = {{ file = "LICENSE" }}
# midhaul {version} itself is to be installed on every machine of the federation.
dependencies = ["flwr>={flower},<1.42"]

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "midhaul"
fab-format-version = 1
flwr-version-target = "{flower}"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
transport = "{transport}"  # stream: a stream to the ServerApp; messages: federated schemes on Flower's messages alone
listen = "127.0.0.1:9470"  # where the ServerApp listens, and what the SuperNodes' machines reach it at
tls = ""  # stream: a folder that `midhaul certs` made, on the ServerApp's machine
out = "{out}"  # the run's folder, on the ServerApp's machine
nodes = 0  # begin with so many SuperNodes; 0: when every device is with one
patience = 0.0  # wait for them so many seconds; 0: for ever
metrics = ""  # stream: [HOST:]PORT at which Prometheus is told
resume = false  # go on from the last checkpoint in `out`
events = ""  # a file on the ServerApp's machine that is told how it goes, in lines of JSON
"""
_SERVER = '''"""A run of midhaul: its app comes from the installed package, its config lies beside."""

from pathlib import Path

from midhaul.federation.flower import server_app

app = server_app(Path(__file__).with_name("run.toml").read_text(encoding="utf-8"))
'''
_CLIENT = '''"""A gateway of midhaul: its app comes from the installed package."""

from midhaul.federation.clientapp import client_app

app = client_app()
'''
_README = """# {title}

    flwr run . FEDERATION --stream

SuperNodes say by `--node-config` which devices they have: `data="har:subjects=1-15"`, or `share="1/2"`; and where these
are, if they aren't simulated: `devices="serial:/dev/ttyACM0"`. midhaul {version} is to be installed where they run.
"""


def write(config: Config, folder: Path, *, transport: str = "stream") -> tuple[Path, ...]:
    """Writes the project of a run. Raises: ConfigError where that can't be, or the folder holds something else."""
    if transport not in ("stream", "messages"):
        raise ConfigError(f"--transport is {transport!r}; it is stream or messages")
    if folder.exists() and any(folder.iterdir()) and not (folder / _PACKAGE).exists():
        raise ConfigError(f"{folder} holds something else; choose another --out")
    title = f"{config.scheme.name} on {config.data.name}"
    names = {"title": title, "version": __version__, "flower": FLOWER, "package": _PACKAGE, "transport": transport}
    files = {
        "pyproject.toml": _PROJECT.format(**names, out=f"runs/{config.scheme.name}-{config.run.seed}"),
        "README.md": _README.format(**names),
        "LICENSE": "This run's config is its owner's. midhaul itself is licensed under the Apache License 2.0.\n",
        f"{_PACKAGE}/__init__.py": "",
        f"{_PACKAGE}/server.py": _SERVER,
        f"{_PACKAGE}/client.py": _CLIENT,
        f"{_PACKAGE}/run.toml": settings.to_toml(config.replace(run_engine="stacked", run_devices="host:")),
    }
    try:
        (folder / _PACKAGE).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} can't be written ({error.strerror}); choose another --out") from None
    return tuple(folder / name for name in files)
