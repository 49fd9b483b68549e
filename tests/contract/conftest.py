"""Terminals, and a server in one of them, for the tests of whole federations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from terminals import Terminal, Terminals

from midhaul import config as settings
from midhaul.config import Config


@pytest.fixture(scope="session")
def all_terminals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminals]:
    opened = Terminals(tmp_path_factory.mktemp("terminals"))
    yield opened
    opened.close()


@pytest.fixture
def terminals(all_terminals: Terminals) -> Iterator[Terminals]:
    yield all_terminals
    all_terminals.clear()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch have one thread here, as it has in terminals: with more it adds in another order."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num)


@pytest.fixture
def server(terminals: Terminals, tmp_path: Path) -> Any:
    """Gives what starts a server: of a config, at a port, with more words."""

    def start(config: Config, port: int, *more: object) -> Terminal:
        path = tmp_path / "config.toml"
        path.write_text(settings.to_toml(config))
        listen = () if "--listen" in more else ("--listen", f"127.0.0.1:{port}")
        return terminals("serve", path, *listen, "--out", tmp_path / "run", *more)

    return start
