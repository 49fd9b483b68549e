"""What surrounds the bytes of a stream between a server and a gateway: who says what, in which turn, in how many parts.

An envelope is a header of 40 bytes and a part of a payload. A payload longer than a part travels in several envelopes,
in order. Nothing of one is read before its length, its header and its CRC-32 are checked; a payload's length is known,
and bounded, with its first part. The layout is in docs/wire.md.

Limits: CRC-32 finds accidents, not forgers; authentication is the handshake's, secrecy the transport's (TLS).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from midhaul.errors import FrameError

MAGIC = b"MG"
VERSION = 1
PART_BYTES = 1 << 20  # of a payload in one envelope
MAX_BYTES = 1 << 28  # of a payload, unless told otherwise: 256 MiB
_HEAD = struct.Struct("<2sBBQQIHHII")  # magic version kind run seq round part parts total 0
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size
Buffer = bytes | memoryview


class Sign(IntEnum):
    """What an envelope is. The numbers are on the wire: append, never renumber."""

    CHALLENGE = 1  # server: random bytes that a HELLO must answer
    HELLO = 2  # gateway: who it is, what it holds, and the proof that it knows the run's token
    WELCOME = 3  # server: the gateway is part of the run
    EXCHANGE = 4  # server: a message for some devices
    DUMP = 5  # server: give all that the devices remember
    RESTORE = 6  # server: let the devices remember this
    SHIFT = 7  # server: the devices have other rows from now on
    REPLIES = 8  # gateway: answers an EXCHANGE
    STATE = 9  # gateway: answers a DUMP
    DONE = 10  # gateway: answers a RESTORE or a SHIFT
    FAILED = 11  # gateway: a sentence that says why it can't do what it was asked
    GOODBYE = 12  # server: the run has ended
    ABOUT = 13  # server: tell what your firmware devices measured and what happened to them
    TOLD = 14  # gateway: answers an ABOUT


_SIGNS = frozenset(map(int, Sign))


class Refusal(StrEnum):
    """Why something that came over a stream was not taken; each is counted."""

    MALFORMED = "malformed"  # not what the wire allows, or of the wrong shape or type
    NON_FINITE = "non_finite"
    STALE = "stale"  # of an earlier turn or round
    LATE = "late"  # of this turn, after its deadline
    DUPLICATE = "duplicate"
    TOO_LARGE = "too_large"
    FAILED = "failed"  # the gateway says that it can't
    JOIN = "join"  # a wrong token, another model, a device that another gateway holds


class Refused(FrameError):
    """Bytes of a stream that are not taken, and of which kind their fault is."""

    def __init__(self, kind: Refusal, sentence: str, seq: int = 0) -> None:
        """`seq` is the turn that the bytes are of, where they were sound enough to say."""
        super().__init__(sentence)
        self.kind, self.seq = kind, seq


@dataclass(frozen=True)
class Envelope:
    """A whole payload, and what its envelopes said of it. `round` is that of the message inside, or 0."""

    sign: Sign
    run: int
    seq: int
    round: int
    payload: Buffer


def seal(envelope: Envelope, part_bytes: int = PART_BYTES) -> Iterator[bytes]:
    """Gives the bytes of a payload's envelopes, one after another: only one is in memory at a time.

    >>> [len(data) - HEADER_BYTES for data in seal(Envelope(Sign.DONE, 1, 1, 0, b"12345"), part_bytes=2)]
    [2, 2, 1]
    """
    whole = memoryview(envelope.payload)
    parts = max(1, -(-len(whole) // part_bytes))
    for part in range(parts):
        body = whole[part * part_bytes : (part + 1) * part_bytes]
        names = (MAGIC, VERSION, int(envelope.sign), envelope.run, envelope.seq, envelope.round)
        head = _HEAD.pack(*names, part, parts, len(whole), 0)
        yield b"".join((head, _CRC.pack(zlib.crc32(body, zlib.crc32(head))), body))


class Opener:
    """Puts the parts of payloads together as they come, one payload after another, and takes no more than `max_bytes`
    of one.
    """

    def __init__(self, run: int, max_bytes: int = MAX_BYTES) -> None:
        """`run` 0 takes envelopes of whichever run: before the first WELCOME nobody knows it."""
        self.run, self.max_bytes = run, max_bytes
        self._whole: bytearray | None = None
        self._names: tuple[int, ...] = ()
        self._next = 0
        self._dropped = (0, 0)  # the payload that was refused, whose other parts are passed over

    @property
    def has_part(self) -> bool:
        """Tells whether parts of a payload are here, and others are to come."""
        return self._next > 0

    def open(self, data: bytes) -> Envelope | None:
        """Gives the payload that this envelope completes, None while parts of it are missing.

        Raises: Refused, in one sentence; what was there of the payload is dropped.
        """
        try:
            return self._open(data)
        except Refused:
            self._whole, self._next = None, 0
            raise

    def _open(self, data: bytes) -> Envelope | None:
        if len(data) < HEADER_BYTES:
            raise Refused(Refusal.MALFORMED, f"an envelope has at least {HEADER_BYTES} bytes; this one has {len(data)}")
        magic, version, sign, run, seq, round, part, parts, total, zero = _HEAD.unpack_from(data)
        body = memoryview(data)[HEADER_BYTES:]
        if magic != MAGIC or version != VERSION:
            raise Refused(
                Refusal.MALFORMED,
                f"an envelope begins with {MAGIC!r} and version {VERSION}; this one with {magic!r} and {version}",
            )
        if _CRC.unpack_from(data, _HEAD.size)[0] != zlib.crc32(body, zlib.crc32(data[: _HEAD.size])):
            raise Refused(Refusal.MALFORMED, "an envelope's CRC-32 is wrong: its bytes changed on the way")
        if sign not in _SIGNS or zero:
            raise Refused(Refusal.MALFORMED, f"an envelope of kind {sign} (reserved {zero}) isn't known here")
        if self.run and run != self.run:
            raise Refused(Refusal.STALE, f"an envelope is of run {run:016x}; this is run {self.run:016x}")
        if part and (sign, seq) == self._dropped:
            return None
        self._dropped = (sign, seq)
        if total > self.max_bytes:
            why = f"a payload of {total} bytes; at most {self.max_bytes} are taken here"
            raise Refused(Refusal.TOO_LARGE, why, seq)
        names = (sign, run, seq, round, parts, total)
        if part != self._next or part >= parts or (part and names != self._names):
            raise Refused(Refusal.MALFORMED, f"part {part} of {parts} came where part {self._next} was due", seq)
        have = len(self._whole) if self._whole is not None else 0
        if have + len(body) > total or (part == parts - 1 and have + len(body) != total):
            raise Refused(Refusal.MALFORMED, f"a payload of {total} bytes came with {have + len(body)}", seq)
        self._dropped = (0, 0)
        if parts == 1:
            return Envelope(Sign(sign), run, seq, round, bytes(body))
        if not part:
            self._whole, self._names = bytearray(), names
        assert self._whole is not None
        self._whole += body
        self._next = part + 1
        if self._next < parts:
            return None
        whole, self._whole, self._next = bytes(self._whole), None, 0
        return Envelope(Sign(sign), run, seq, round, whole)
