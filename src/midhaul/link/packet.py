"""Messages in sealed packets over any byte stream: the server's end of the link, without input or output of its own.

The layout, the rules and what they protect from are in docs/link.md; the device's end is device/src/mh_link.c.

Limits: ChaCha20-Poly1305 with one key a device, known to both ends beforehand; how it gets there is another's business.
Without a key a link finds accidents only. An attacker who can write to the line can always keep messages from passing.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from midhaul.errors import FrameError
from midhaul.link.frame import MAX_BYTES

KEY_BYTES = 32
MAX_BODY = 1024  # bytes of a message in one packet; a device may take fewer and says so in its offer
HEAD = struct.Struct("<BBHII")  # kind flags length session counter
TAG_BYTES = 16
CRC_BYTES = 4
NONCE_BYTES = 8
FIRST, LAST, FROM_DEVICE = 1, 2, 4  # the flags
REQUEST, OFFER, DATA = 0x11, 0x12, 0x13  # the kinds: version 1 in the upper half

# Why a packet is refused, in the order of enum mh_refusal.
REFUSALS = {
    "coding": "its bytes aren't stuffed as they should be: some were lost or added",
    "size": "it is too long, too short, or not of the length that it says",
    "crc": "its CRC-32 is wrong: it was damaged",
    "kind": "it is of another version, direction or kind",
    "session": "it is of a session that isn't open",
    "replay": "its counter was there or was passed by",
    "tag": "it isn't sealed with this session's key",
    "broken": "a packet of its message is missing",
}

_OFFER = struct.Struct(f"<{NONCE_BYTES}s{NONCE_BYTES}sHH")  # the device's nonce, ours, its largest body, 0
_MAX_PACKET = HEAD.size + MAX_BODY + TAG_BYTES + CRC_BYTES
_MAX_STUFFED = _MAX_PACKET + _MAX_PACKET // 254 + 1
_COUNTER_MAX = 0xFFFFFFFF


class Refused(FrameError):
    """A packet that isn't taken; `why` is one of REFUSALS."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the packet is refused: {REFUSALS[why]}")
        self.why = why


class Packet(NamedTuple):
    """What one packet says, opened."""

    kind: int
    flags: int
    session: int
    counter: int
    body: bytes


class PacketLink:
    """One end of a link to one device, the server's: bytes in, messages out, and the other way.

    `open` gives a request for a session; feed what the device answers, and `is_open` turns true. Then `pack` gives the
    bytes of a message and `feed` the messages that came. `refused` counts the packets that were refused, by why
    (`REFUSALS`); none of them changes anything. A message of which a packet is missing never comes: whoever waits for
    it decides how long, and then opens a new session or sends again.

    Raises: FrameError for a key that hasn't 32 bytes.

    >>> link = PacketLink(key=None)
    >>> link.is_open, len(link.open())
    (False, 27)
    """

    def __init__(
        self,
        key: bytes | None,
        random: Callable[[int], bytes] = secrets.token_bytes,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise FrameError(f"a link's key has {KEY_BYTES} bytes; this one has {len(key)}")
        self.key, self.random, self.max_bytes = key, random, max_bytes
        self.refused: Counter[str] = Counter()
        self.max_body = MAX_BODY
        self.session = 0
        self._session_key: bytes | None = None
        self._nonce = b""  # of the request that has no answer yet
        self._sent = self._received = 0
        self._stuffed = bytearray()
        self._is_too_long = False
        self._message: bytearray | None = None  # what came of the message that is coming

    @property
    def is_open(self) -> bool:
        """Gives whether a session is open, so that `pack` can be called."""
        return self.session != 0

    def open(self) -> bytes:
        """Gives the bytes that ask the device for a new session. Until it answers, an open session goes on."""
        self._nonce = self.random(NONCE_BYTES)
        return _on_the_line(Packet(REQUEST, FIRST | LAST, 0, 0, self._nonce), None)

    def pack(self, message: bytes) -> bytes:
        """Gives the bytes of a message: its packets, each sealed, stuffed and ended by a zero.

        Raises: FrameError where no session is open or its counter is spent, and for an empty message.
        """
        if not self.is_open:
            raise FrameError("the link has no session: write open() to the device and feed() what it answers first")
        if not message:
            raise FrameError("an empty message can't be sent: it would have no last packet")
        places = range(0, len(message), self.max_body)
        if self._sent + len(places) > _COUNTER_MAX:
            raise FrameError("the session's counter is spent: open a new one")
        lines = []
        for place in places:
            self._sent += 1
            flags = (FIRST if place == 0 else 0) | (LAST if place == places[-1] else 0)
            packet = Packet(DATA, flags, self.session, self._sent, message[place : place + self.max_body])
            lines.append(_on_the_line(packet, self._session_key))
        return b"".join(lines)

    def feed(self, data: bytes) -> list[bytes]:
        """Gives the messages that these bytes complete, in the order in which they were sent."""
        messages = []
        *ended, rest = data.split(b"\0")
        for part in ended:
            self._keep(part)
            stuffed, is_too_long = bytes(self._stuffed), self._is_too_long
            self._stuffed, self._is_too_long = bytearray(), False
            if not stuffed:
                continue
            try:
                if is_too_long:
                    raise Refused("size")
                message = self._take(stuffed)
            except Refused as error:
                self.refused[error.why] += 1
                continue
            if message is not None:
                messages.append(message)
        self._keep(rest)
        return messages

    def _keep(self, part: bytes) -> None:
        room = _MAX_STUFFED - len(self._stuffed)
        self._is_too_long |= len(part) > room
        self._stuffed += part[:room]

    def _take(self, stuffed: bytes) -> bytes | None:
        head, sealed = _opened(unstuff(stuffed))
        kind, flags, length, session, counter = HEAD.unpack(head)
        if kind not in (OFFER, DATA) or flags & ~(FIRST | LAST) != FROM_DEVICE:
            raise Refused("kind")
        if length == 0 or length > MAX_BODY or len(sealed) != length + (TAG_BYTES if self.key else 0):
            raise Refused("size")
        if kind == OFFER:
            self._take_offer(head, sealed, session)
            return None
        if not self.is_open or session != self.session:
            raise Refused("session")
        if counter <= self._received:
            raise Refused("replay")
        body = unseal(self._session_key, head, sealed)
        has_gap = counter != self._received + 1
        self._received = counter
        return self._gather(flags, has_gap, body)

    def _gather(self, flags: int, has_gap: bool, body: bytes) -> bytes | None:
        if flags & FIRST:
            if self._message is not None:
                self.refused["broken"] += 1
            self._message = bytearray()
        elif self._message is None or has_gap:
            self._message = None
            raise Refused("broken")
        if len(self._message) + len(body) > self.max_bytes:
            self._message = None
            raise Refused("size")
        self._message += body
        if not flags & LAST:
            return None
        message, self._message = bytes(self._message), None
        return message

    def _take_offer(self, head: bytes, sealed: bytes, session: int) -> None:
        if len(sealed) != _OFFER.size + (TAG_BYTES if self.key else 0):
            raise Refused("size")
        offer, tag = sealed[: _OFFER.size], sealed[_OFFER.size :]
        theirs, ours, max_body, zero = _OFFER.unpack(offer)
        if ours != self._nonce or session == 0:
            raise Refused("session")
        if zero or not 0 < max_body <= MAX_BODY:
            raise Refused("size")
        key = None if self.key is None else derive(self.key, theirs + ours)
        unseal(key, head + offer, tag, nonce_of(head))
        self.session, self._session_key, self.max_body = session, key, max_body
        self._nonce, self._sent, self._received, self._message = b"", 0, 0, None


def derive(key: bytes, nonces: bytes) -> bytes:
    """Gives a session's key: half the ChaCha20 block of the device's key for the device's nonce and the server's."""
    return Cipher(algorithms.ChaCha20(key, nonces), mode=None).encryptor().update(bytes(KEY_BYTES))


def nonce_of(head: bytes) -> bytes:
    """Gives the nonce of a packet: its direction, session and counter."""
    return struct.pack("<I", 1 if head[1] & FROM_DEVICE else 0) + head[4:]


def seal(packet: Packet, key: bytes | None) -> bytes:
    """Gives the bytes of a packet before stuffing: head, body, the tag if there is a key, CRC-32."""
    head = HEAD.pack(packet.kind, packet.flags, len(packet.body), packet.session, packet.counter)
    if key is None or packet.kind == REQUEST:
        whole = head + packet.body
    elif packet.kind == OFFER:
        whole = head + packet.body + ChaCha20Poly1305(key).encrypt(nonce_of(head), b"", head + packet.body)
    else:
        whole = head + ChaCha20Poly1305(key).encrypt(nonce_of(head), packet.body, head)
    return whole + struct.pack("<I", zlib.crc32(whole))


def unseal(key: bytes | None, signed: bytes, sealed: bytes, nonce: bytes | None = None) -> bytes:
    """Gives what was sealed, if it and what was signed with it are genuine; without a key, `sealed` itself.

    Raises: Refused.
    """
    if key is None:
        return sealed
    try:
        return ChaCha20Poly1305(key).decrypt(nonce_of(signed) if nonce is None else nonce, sealed, signed)
    except InvalidTag:
        raise Refused("tag") from None


def stuff(data: bytes) -> bytes:
    """Gives the data without zero bytes, by consistent overhead byte stuffing, and without the zero that ends a packet.

    >>> stuff(bytes([1, 0, 2]))
    b'\\x02\\x01\\x02\\x02'
    """
    out = bytearray()
    runs = data.split(b"\0")
    for number, run in enumerate(runs):
        while len(run) > 254 or (len(run) == 254 and number + 1 < len(runs)):
            out += b"\xff" + run[:254]
            run = run[254:]
        out.append(len(run) + 1)
        out += run
    return bytes(out)


def unstuff(stuffed: bytes) -> bytes:
    """Gives the data that `stuff` was given. Raises: Refused."""
    out = bytearray()
    place = 0
    while place < len(stuffed):
        code = stuffed[place]
        if place + code > len(stuffed):
            raise Refused("coding")
        out += stuffed[place + 1 : place + code]
        place += code
        if code != 0xFF and place < len(stuffed):
            out.append(0)
    return bytes(out)


def _on_the_line(packet: Packet, key: bytes | None) -> bytes:
    """Gives a packet between two zeros: the first ends whatever garbage came before it."""
    return b"\0" + stuff(seal(packet, key)) + b"\0"


def _opened(packet: bytes) -> tuple[bytes, bytes]:
    if len(packet) > _MAX_PACKET or len(packet) < HEAD.size + CRC_BYTES + 1:
        raise Refused("size")
    whole, crc = packet[:-CRC_BYTES], packet[-CRC_BYTES:]
    if crc != struct.pack("<I", zlib.crc32(whole)):
        raise Refused("crc")
    return whole[: HEAD.size], whole[HEAD.size :]
