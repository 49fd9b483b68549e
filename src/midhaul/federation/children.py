"""Programs of others that a command of midhaul runs: what they say is kept, and none outlives the command."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from midhaul.errors import ConfigError, EngineError

LAST_LINES = 400
STOP_S = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The kernel ends the program with its parent, however that ends (Linux, prctl(2)): 1 is PR_SET_PDEATHSIG, 15 SIGTERM.
_TIED = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
try:
    os.execvpe(sys.argv[2], sys.argv[2:], os.environ)
except OSError as error:
    sys.exit(f"{sys.argv[2]} can't be started ({error.strerror}); install midhaul[flower] anew")
"""


class Child:
    """A program under way, in a session of its own: Ctrl-C at a terminal reaches midhaul, which then ends it in order.

    `hears` is given each line that it says, in a thread.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        hears: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = Path(words[0]).name
        self.lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        command = [sys.executable, "-c", _TIED, str(os.getpid()), *map(str, words)]
        try:
            self.process = subprocess.Popen(
                command,
                env=dict(os.environ if env is None else env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"{self.name} can't be started ({error.strerror})") from None
        self._reader = threading.Thread(target=self._read, args=(hears,), name=self.name, daemon=True)
        self._reader.start()

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    def said(self, num: int = 3) -> str:
        """Gives the last lines that say something, as one."""
        told = [" ".join(_COLOUR.sub("", line).split()) for line in list(self.lines)]
        return " / ".join([line for line in told if any(letter.isalnum() for letter in line)][-num:])[-600:]

    def wait(self, seconds: float) -> int | None:
        """Waits for its end, and for its last words. Gives the code, None where it is still at it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(1.0)
        return self.process.returncode

    def stop(self, seconds: float = STOP_S) -> None:
        """Asks it to end, and ends it and what it left of its group where it doesn't."""
        if self.code is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(OSError):  # nobody of the group is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(1.0)

    def _read(self, hears: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                self.lines.append(line.rstrip())
                hears(line.rstrip())


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as an exception would, so that what it opened is closed. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_others(pids: set[int], seconds: float = 3.0) -> None:
    """Ends processes that should have ended by themselves, such as children of a child that is gone."""
    for _ in range(int(seconds / 0.1)):
        if not (pids := {pid for pid in pids if is_running(pid)}):
            return
        time.sleep(0.1)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Tells whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()


def free_port() -> int:
    """Gives a port of the loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def check_free(host: str, port: int, option: str) -> None:
    """Raises: ConfigError where nothing can listen at a port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} can't be listened at ({error.strerror}): another program may have the port; choose "
                f"another by {option}"
            ) from None
