"""A gateway as its server knows it: who it is, whether it is there, and the one thing that it was asked last.

A gateway is asked one thing at a time. A turn has a number; the gateway does each number once, keeps its last answer,
and sends that again when it is asked again: so a turn may be repeated after a cut and has its effect exactly once.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from midhaul.runtime.envelope import Envelope, Refusal, Refused, Sign

RESTARTED = "it started again"


@dataclass(frozen=True)
class Job:
    """Something to be asked. `read` makes of the payload that answers with `wanted` what the asker wants of it; it may
    raise Refused."""

    sign: Sign
    payload: bytes
    round: int
    wanted: Sign
    read: Callable[[bytes], Any]


@dataclass(eq=False)
class Turn:
    """A job under way. `why` says in a sentence what went wrong, `answer` is what `read` made of the payload."""

    peer: Peer
    job: Job
    seq: int
    done: queue.SimpleQueue[Turn]
    answer: Any = None
    why: str = ""
    kind: Refusal | None = None
    is_answered: bool = False  # something came from the gateway that answers it
    is_closed: bool = False  # nobody waits for it any more

    def envelope(self, run: int) -> Envelope:
        return Envelope(self.job.sign, run, self.seq, self.job.round, self.job.payload)

    def end(self, answer: Any = None, kind: Refusal | None = None, why: str = "") -> None:
        """Ends it for who waits for it."""
        self.answer, self.kind, self.why, self.is_closed = answer, kind, why, True
        self.done.put(self)


@dataclass(eq=False)
class Connection:
    """A stream that a gateway opened: what is to be sent over it. None ends it."""

    address: str
    out: queue.SimpleQueue[Envelope | None] = field(default_factory=queue.SimpleQueue)


@dataclass(eq=False)
class Peer:
    """A gateway. `knows`: its devices remember what they should. `is_gone`: it was away at a deadline, and isn't waited
    for until it is back."""

    name: str
    devices: frozenset[int]
    incarnation: str
    holds: str  # what its devices are, as a sentence
    connection: Connection | None = None
    turn: Turn | None = None
    seq: int = 0
    knows: bool = False
    is_gone: bool = False
    has_shifted: bool = False  # its devices have the rows that they drift to
    joined_s: float = field(default_factory=time.time)
    answers: int = 0
    reconnections: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def is_busy(self) -> bool:
        """Tells whether it is at work on something."""
        return self.turn is not None and not self.turn.is_answered

    @property
    def is_late(self) -> bool:
        """Tells whether nobody waits any more for what it is at work on."""
        return self.turn is not None and self.turn.is_closed and not self.turn.is_answered

    def post(self, job: Job, run: int, done: queue.SimpleQueue[Turn]) -> Turn:
        """Asks it for something; what can't be sent now is sent when it is back."""
        self.seq += 1
        self.turn = Turn(self, job, self.seq, done)
        self.send(run)
        return self.turn

    def send(self, run: int) -> None:
        """Sends, or sends again, what it hasn't answered."""
        if self.connection is not None and self.turn is not None and not self.turn.is_answered:
            self.bytes_down += len(self.turn.job.payload)
            self.connection.out.put(self.turn.envelope(run))

    def place(self, envelope: Envelope) -> Turn:
        """Gives the turn that an envelope answers, which then is answered. Raises: Refused."""
        turn, seq = self.turn, envelope.seq
        if turn is None or seq > turn.seq:
            raise Refused(Refusal.MALFORMED, f"an answer to turn {seq}, which wasn't asked")
        if seq < turn.seq:
            raise Refused(Refusal.STALE, f"an answer to turn {seq}; the last one asked is {turn.seq}")
        if turn.is_answered:
            raise Refused(Refusal.DUPLICATE, f"a second answer to turn {seq}")
        if envelope.round != turn.job.round:
            kind = Refusal.STALE if envelope.round < turn.job.round else Refusal.MALFORMED
            raise Refused(kind, f"an answer of round {envelope.round} in round {turn.job.round}", seq)
        turn.is_answered = True
        if turn.is_closed:
            raise Refused(Refusal.LATE, f"an answer to turn {seq} after its deadline")
        return turn

    def to_table(self) -> dict[str, Any]:
        """Gives what an operator wants to know of it, as plain values. Units: seconds since 1970, bytes."""
        return {
            "name": self.name,
            "devices": sorted(self.devices),
            "holds": self.holds,
            "address": self.connection.address if self.connection is not None else "",
            "is_connected": self.connection is not None,
            "is_busy": self.is_busy,
            "is_late": self.is_late,
            "joined_s": self.joined_s,
            "answers": self.answers,
            "reconnections": self.reconnections,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "refused": dict(self.refused),
        }
