"""What answers a SuperNode's messages for as long as it lives.

Flower starts a process for each message. With tensor libraries to import and a plant to build, that would be most of a
message's time; so the process hands the message to this one over a socket of Unix, which has all of it ready, and
devices with firmware stay on their lines. The socket lies in a folder of the user alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Listener
from pathlib import Path

from midhaul.errors import ConfigError, EngineError, MidhaulError

Content = Mapping[str, str | bytes]


def pack(content: Content) -> bytes:
    """Gives texts and bytes as one: a line of JSON with the names, kinds and sizes, then the values.

    >>> unpack(pack({"kind": "hello", "ask": b"0"}))
    {'kind': 'hello', 'ask': b'0'}
    """
    values = {name: value.encode() if isinstance(value, str) else value for name, value in content.items()}
    heads = [[name, isinstance(content[name], str), len(value)] for name, value in values.items()]
    return json.dumps(heads).encode() + b"\n" + b"".join(values.values())


def unpack(data: bytes) -> dict[str, str | bytes]:
    """Gives what `pack` was given. Raises: EngineError for what it never made."""
    head, _, rest = data.partition(b"\n")
    found: dict[str, str | bytes] = {}
    try:
        for name, is_text, size in json.loads(head):
            value, rest = rest[:size], rest[size:]
            if len(value) != size:
                raise ValueError
            found[str(name)] = value.decode() if is_text else value
        if rest:
            raise ValueError
    except (ValueError, TypeError):
        raise EngineError("what came over the gateway's socket is damaged; start `midhaul join` again") from None
    return found


def ask(path: str, content: Content) -> dict[str, str | bytes]:
    """Gives the answer of the process behind a socket. Raises: EngineError where it is gone."""
    try:
        with Client(path, "AF_UNIX") as there:
            there.send_bytes(pack(content))
            return unpack(there.recv_bytes())
    except (OSError, EOFError):
        raise EngineError(
            "the process that holds this SuperNode's devices is gone; start `midhaul join` again"
        ) from None


class Resident(threading.Thread):
    """Answers, one at a time, what is asked at a socket; what can't be answered has an `error`."""

    def __init__(self, path: Path, answer: Callable[[Content], Content]) -> None:
        super().__init__(name="resident", daemon=True)
        self.path, self.answer, self._is_over = path, answer, False
        try:
            self._listener = Listener(str(path), "AF_UNIX")
        except OSError as error:  # such a path has 107 bytes at most
            raise ConfigError(f"{path} can't be listened at ({error}); set TMPDIR to another folder") from None

    def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError), self._listener.accept() as there:
                if self._is_over:
                    return
                there.send_bytes(self._answered(there.recv_bytes()))

    def close(self) -> None:
        """Ends it, after what it is at."""
        self._is_over = True
        with contextlib.suppress(OSError):
            Client(str(self.path), "AF_UNIX").close()
        self.join(10.0)
        self._listener.close()

    def _answered(self, data: bytes) -> bytes:
        try:
            return pack(self.answer(unpack(data)))
        except MidhaulError as error:
            return pack({"error": str(error)})
        except Exception as error:  # it must answer the next message, whatever befell it in this one
            return pack({"error": f"the gateway failed with {type(error).__name__}: {error}"})
