"""Frames to and from one machine, in packets over its byte stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from midhaul.devices.machines import Machine
from midhaul.errors import BudgetError, ConfigError, DependencyError, EngineError, FrameError, MidhaulError
from midhaul.link.packet import PacketLink
from midhaul.runtime.remote import MAX_REPLY_BYTES, Lost

ASK_AGAIN_S = 2.0  # a request for a session is lost where the machine isn't up yet


class PacketWire:
    """The way to one device: `open` opens its machine, `key` seals the packets (None: unsealed).

    Raises: Lost where the machine can't be opened now; BudgetError, ConfigError and DependencyError where it never can.
    """

    def __init__(self, open: Callable[[], Machine], key: bytes | None) -> None:
        self._open, self._key = open, key
        self._machine: Machine | None = None
        self._link = self._new_link()
        self._begin()

    def ask(self, data: bytes, deadline_s: float) -> bytes:
        """Sends one message and gives its reply. Raises: Lost."""
        end = time.monotonic() + deadline_s
        try:
            self._open_session(end, deadline_s)
            self._machine_now().write(self._link.pack(data))
            while True:
                for message in self._read(end, deadline_s):
                    return message
        except (OSError, FrameError, EngineError) as error:
            raise Lost(str(error)) from None

    def renew(self) -> None:
        """Opens a new session, over a new stream where the old one is closed. Raises: Lost."""
        self._link = self._new_link()
        if self._machine is None or self._machine.is_closed:
            self._begin()

    def restart(self) -> None:
        """Resets the machine; where that can't be done, opens it anew. Raises: Lost."""
        self._link = self._new_link()
        try:
            self._machine_now().reset()
        except (OSError, MidhaulError):
            self._begin()

    def close(self) -> None:
        """Closes the machine."""
        if self._machine is not None:
            self._machine.close()
        self._machine = None

    def _new_link(self) -> PacketLink:
        return PacketLink(self._key, max_bytes=MAX_REPLY_BYTES)

    def _begin(self) -> None:
        self.close()
        try:
            self._machine = self._open()
        except (BudgetError, ConfigError, DependencyError):
            raise
        except (OSError, MidhaulError) as error:
            raise Lost(str(error)) from None

    def _machine_now(self) -> Machine:
        if self._machine is None:
            raise Lost("its machine is closed")
        return self._machine

    def _open_session(self, end: float, deadline_s: float) -> None:
        while not self._link.is_open:
            self._machine_now().write(self._link.open())
            again = min(end, time.monotonic() + ASK_AGAIN_S)
            while not self._link.is_open and time.monotonic() < again:
                self._link.feed(self._machine_now().read(max(again - time.monotonic(), 0.0)))
            if time.monotonic() >= end and not self._link.is_open:
                raise Lost(f"it opened no session in {deadline_s:g} s{self._why()}")

    def _read(self, end: float, deadline_s: float) -> list[bytes]:
        left = end - time.monotonic()
        if left <= 0.0:
            raise Lost(f"no answer in {deadline_s:g} s{self._why()}")
        return self._link.feed(self._machine_now().read(left))

    def _why(self) -> str:
        refused = ", ".join(f"{num} for {why}" for why, num in sorted(self._link.refused.items()))
        return f" (packets refused: {refused})" if refused else ""
