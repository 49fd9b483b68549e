"""Terminals for the tests: commands of midhaul in processes of their own, which needn't each import torch.

One process imports everything and forks a child for each command; it starts no threads, so forking it is safe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import midhaul

_PARENT = """
import json, os, sys
import midhaul.cli, midhaul.report, midhaul.train, midhaul.federation.join, midhaul.federation.serve, sklearn.datasets
from midhaul.runtime.native import library
library.load()
midhaul.plant.build(midhaul.config.Config().replace(scheme_name="federated_split", data_max_rows=20))  # warm

def enter(net):
    import ctypes
    there = os.open(f"/run/netns/{net}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(there, 0x40000000):  # CLONE_NEWNET
        os._exit(77)
    os.close(there)

codes = {}
for line in sys.stdin:
    asked = json.loads(line)
    if "words" in asked:
        pid = os.fork()
        if not pid:
            if asked["net"]:
                enter(asked["net"])
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            for fd, path in ((1, asked["out"]), (2, asked["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), fd)
            code = 1
            try:
                code = midhaul.cli.main(asked["words"])
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    else:
        pid = asked["pid"]
        if pid not in codes:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps(codes.get(pid)), flush=True)
"""


class Terminal:
    """A command under way."""

    def __init__(self, terminals: Terminals, words: list[str], number: int, net: str) -> None:
        self.terminals = terminals
        self.words = words
        self._out, self._err = (terminals.folder / f"{number}.{name}" for name in ("out", "err"))
        asked = {"words": words, "out": str(self._out), "err": str(self._err), "net": net}
        self.pid = int(terminals.ask(asked))

    @property
    def out(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        found: int | None = self.terminals.ask({"pid": self.pid})
        return found

    def until(self, word: str) -> None:
        """Waits for something that it says."""
        wait_for(lambda: word in self.err or self.code is not None, self)
        assert word in self.err, self.err

    def end(self, code: int = 0, seconds: float = 100.0) -> str:
        """Waits for its end; gives what it printed, or what it refused with where the code isn't 0."""
        wait_for(lambda: self.code is not None, self, seconds)
        assert self.code == code, f"{self.words}: {self.code}\n{self.err}"
        return self.out if code == 0 else self.err.splitlines()[-1]

    def stop(self) -> None:
        """Lets it do nothing more, without an end."""
        os.kill(self.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Ends it as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: self.code is not None, self)


class Terminals:
    """As many as a test wants; those that still run at its end are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # With threads of its own, the parent couldn't be forked.
        own = {**os.environ, "PYTHONPATH": str(Path(midhaul.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT], env=own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.opened: list[Terminal] = []

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(json.dumps(question), file=self._parent.stdin, flush=True)
        return json.loads(self._parent.stdout.readline())

    def __call__(self, *words: object, net: str = "") -> Terminal:
        """Starts a command, in a network namespace where one is named."""
        self.opened.append(Terminal(self, [str(word) for word in words], len(self.opened), net))
        return self.opened[-1]

    def clear(self) -> None:
        """Kills what still runs."""
        for terminal in self.opened:
            if terminal.code is None:
                terminal.kill()

    def close(self) -> None:
        self.clear()
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait()
        assert self._parent.stdout is not None
        self._parent.stdout.close()


def free_port() -> int:
    """Gives a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(what: Callable[[], bool], terminal: Terminal, seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"{terminal.words} is still at it:\n{terminal.err}"
        time.sleep(0.02)


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[int]:
    """Something that shows a certificate to whoever comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as door:

        def shake() -> None:
            while True:
                try:
                    near, _ = door.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(near, server_side=True):
                    pass
                near.close()

        thread = threading.Thread(target=shake, daemon=True)
        thread.start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
        thread.join(5.0)
