"""The server's end of the link, against a device's end of a few lines."""

import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midhaul.errors import FrameError
from midhaul.link import packet
from midhaul.link.packet import DATA, FIRST, FROM_DEVICE, HEAD, LAST, OFFER, REFUSALS, Packet, PacketLink

KEY = bytes(range(32))
SESSION = 77


def line(one: Packet, key: bytes | None) -> bytes:
    return b"\0" + packet.stuff(packet.seal(one, key)) + b"\0"


def packets(lines: bytes) -> list[bytes]:
    return [packet.unstuff(part) for part in lines.split(b"\0") if part]


class Device:
    """A device that says what it is told to."""

    def __init__(self, server: PacketLink, key: bytes | None, max_body: int = 1024) -> None:
        (request,) = packets(server.open())
        kind, flags, length, session, counter = HEAD.unpack(request[: HEAD.size])
        assert (kind, flags, length, session, counter) == (packet.REQUEST, FIRST | LAST, 8, 0, 0)
        ours = request[HEAD.size : HEAD.size + 8]
        self.key = None if key is None else packet.derive(key, b"device's" + ours)
        body = b"device's" + ours + struct.pack("<HH", max_body, 0)
        self.offer = line(Packet(OFFER, FROM_DEVICE | FIRST | LAST, SESSION, 0, body), self.key)
        self.counter = 0

    def say(self, body: bytes, flags: int = FIRST | LAST, session: int = SESSION, counter: int | None = None) -> bytes:
        self.counter = self.counter + 1 if counter is None else counter
        return line(Packet(DATA, FROM_DEVICE | flags, session, self.counter, body), self.key)


@pytest.fixture(params=[KEY, None], ids=["sealed", "unsealed"])
def ends(request: pytest.FixtureRequest) -> tuple[PacketLink, Device]:
    server = PacketLink(request.param)
    device = Device(server, request.param)
    assert server.feed(device.offer) == []
    assert server.is_open
    return server, device


def test_the_worked_packet() -> None:
    """A packet by hand: unsealed, session 0x01020304, counter 5, `hi` from the server, first and last."""
    one = Packet(DATA, FIRST | LAST, 0x01020304, 5, b"hi")
    whole = bytes.fromhex("13 03 0200 04030201 05000000") + b"hi"
    assert packet.seal(one, None) == whole + struct.pack("<I", zlib.crc32(whole))
    assert packet.stuff(packet.seal(one, None)).startswith(bytes.fromhex("04 130302 06 0403020105 01 01 07"))


def test_stuffing_gives_the_known_answers() -> None:
    ones = bytes(range(1, 255))
    known = [
        (b"\0", "01 01"),
        (b"\0\0", "01 01 01"),
        (b"\x11\x22\0\x33", "03 11 22 02 33"),
        (b"\x11\0\0\0", "02 11 01 01 01"),
        (ones, "ff" + ones.hex()),
        (b"\0" + ones, "01 ff" + ones.hex()),
        (ones + b"\xff", "ff" + ones.hex() + "02 ff"),
        (ones[1:] + b"\xff\0", "ff" + ones[1:].hex() + "ff 01 01"),
    ]
    for data, stuffed in known:
        assert packet.stuff(data) == bytes.fromhex(stuffed)
        assert packet.unstuff(packet.stuff(data)) == data


@given(
    st.lists(st.sampled_from([b"\0", b"a", bytes(254), b"b" * 253, b"c" * 254, b"d" * 255]), max_size=8).map(b"".join)
)
def test_stuffing_leaves_no_zero_and_loses_nothing(data: bytes) -> None:
    stuffed = packet.stuff(data)
    assert 0 not in stuffed
    assert len(stuffed) <= len(data) + len(data) // 254 + 1
    assert packet.unstuff(stuffed) == data


def test_a_key_is_used_for_nothing_but_keys() -> None:
    """The derived key is half of RFC 8439's block (section 2.3.2) for the counter and nonce given."""
    nonces = bytes.fromhex("01000000 000000090000004a00000000")
    assert packet.derive(KEY, nonces).hex() == "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=4), st.integers(1, 2000))
def test_messages_come_however_the_stream_is_cut(messages: list[bytes], step: int) -> None:
    server = PacketLink(KEY)
    device = Device(server, KEY)
    stream = device.offer
    for message in messages:
        for place in range(0, len(message), 700):
            flags = (FIRST if place == 0 else 0) | (LAST if place + 700 >= len(message) else 0)
            stream += device.say(message[place : place + 700], flags)
    got = []
    for place in range(0, len(stream), step):
        got += server.feed(stream[place : place + step])
    assert got == messages
    assert not server.refused


def test_what_is_packed_is_sealed_counted_and_within_the_devices_largest_body() -> None:
    server = PacketLink(KEY)
    device = Device(server, KEY, max_body=100)
    server.feed(device.offer)
    lines = packets(server.pack(b"a" * 250) + server.pack(b"b"))
    heads = [HEAD.unpack(one[: HEAD.size]) for one in lines]
    assert [(flags, length, counter) for _, flags, length, _, counter in heads] == [
        (FIRST, 100, 1),
        (0, 100, 2),
        (LAST, 50, 3),
        (FIRST | LAST, 1, 4),
    ]
    assert b"aaaa" not in b"".join(lines)
    assert packet.unseal(device.key, lines[3][: HEAD.size], lines[3][HEAD.size : -4]) == b"b"
    with pytest.raises(FrameError, match="sealed"):
        packet.unseal(device.key, lines[3][: HEAD.size], lines[2][HEAD.size : -4])


def test_nothing_is_packed_without_a_session_a_byte_or_a_counter(ends: tuple[PacketLink, Device]) -> None:
    with pytest.raises(FrameError, match="no session"):
        PacketLink(KEY).pack(b"x")
    with pytest.raises(FrameError, match="32 bytes"):
        PacketLink(b"short")
    server, _ = ends
    with pytest.raises(FrameError, match="empty"):
        server.pack(b"")
    server._sent = 0xFFFFFFFE
    server.pack(b"the last one")
    with pytest.raises(FrameError, match="spent"):
        server.pack(b"x")


WRONG: dict[str, tuple[str, Callable[[Device], bytes]]] = {
    "stuffing": ("coding", lambda device: b"\x09abc\0"),
    "too long": ("size", lambda device: b"\x01" * 5000 + b"\0"),
    "too short": ("size", lambda device: b"\x04abc\0"),
    "a body too long": ("size", lambda device: device.say(b"a" * 1025)),
    "no body": ("size", lambda device: device.say(b"")),
    "another version": ("kind", lambda device: line(Packet(0x23, FROM_DEVICE, SESSION, 1, b"a"), device.key)),
    "a request": ("kind", lambda device: PacketLink(None).open()),
    "from the server": ("kind", lambda device: line(Packet(DATA, FIRST | LAST, SESSION, 1, b"a"), device.key)),
    "an unknown flag": ("kind", lambda device: device.say(b"a", 8)),
    "another session": ("session", lambda device: device.say(b"a", session=SESSION + 1)),
    "an old offer": ("session", lambda device: device.offer),
    "counter 0": ("replay", lambda device: device.say(b"a", counter=0)),
    "no first": ("broken", lambda device: device.say(b"a", LAST)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_packet_is_counted_and_changes_nothing(ends: tuple[PacketLink, Device], what: str) -> None:
    server, device = ends
    why, wrong = WRONG[what]
    counter = device.counter
    assert server.feed(wrong(device)) == []
    assert server.refused == {why: 1}
    device.counter = counter + (why == "broken")
    assert server.feed(device.say(b"sound")) == [b"sound"]


def test_damage_is_seen_by_the_crc_and_forgery_by_the_tag() -> None:
    server = PacketLink(KEY)
    device = Device(server, KEY)
    server.feed(device.offer)
    (whole,) = packets(device.say(b"secret"))
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        assert server.feed(packet.stuff(bytes(damaged)) + b"\0") == []
    assert server.refused == {"crc": len(whole)}
    for place in range(HEAD.size, len(whole) - 4):
        forged = bytearray(whole[:-4])
        forged[place] ^= 0x10
        assert server.feed(packet.stuff(bytes(forged) + struct.pack("<I", zlib.crc32(forged))) + b"\0") == []
    assert server.refused == {"crc": len(whole), "tag": len(whole) - 4 - HEAD.size}
    assert server.feed(packet.stuff(whole) + b"\0") == [b"secret"]


def test_messages_broken_off_or_with_a_hole_are_dropped(ends: tuple[PacketLink, Device]) -> None:
    server, device = ends
    assert server.feed(device.say(b"one ", FIRST) + device.say(b"two", FIRST | LAST)) == [b"two"]
    lost = device.say(b"a", FIRST), device.say(b"b", 0), device.say(b"c", 0), device.say(b"d", LAST)
    assert server.feed(lost[0] + lost[2] + lost[3]) == []
    assert server.refused == {"broken": 3}
    assert server.feed(device.say(b"three")) == [b"three"]
    device.counter += 5  # packets of whole messages may be missing
    assert server.feed(device.say(b"four")) == [b"four"]


def test_a_message_has_a_largest_size() -> None:
    server = PacketLink(KEY, max_bytes=1500)
    device = Device(server, KEY)
    server.feed(device.offer)
    assert server.feed(device.say(b"a" * 1000, FIRST) + device.say(b"a" * 501, LAST)) == []
    assert server.refused == {"size": 1}
    assert server.feed(device.say(b"a" * 1000, FIRST) + device.say(b"a" * 500, LAST)) == [b"a" * 1500]


def test_a_stream_without_zeros_takes_no_memory() -> None:
    server = PacketLink(KEY)
    for _ in range(100):
        server.feed(b"\xff" * 1000)
    assert len(server._stuffed) < 1100
    server.feed(b"\0")
    assert server.refused == {"size": 1}


def test_only_the_offer_for_the_last_request_is_taken() -> None:
    server = PacketLink(KEY)
    first, second = Device(server, KEY), Device(server, KEY)
    assert server.feed(first.offer) == []
    assert server.refused == {"session": 1}
    server.feed(second.offer)
    assert server.is_open
    server.feed(second.offer)
    assert server.refused == {"session": 2}
    forged = PacketLink(KEY)
    forged.feed(Device(forged, bytes(32)).offer)
    assert not forged.is_open
    assert forged.refused == {"tag": 1}


@pytest.mark.parametrize(("max_body", "zero"), [(0, 0), (1025, 0), (1024, 1)])
def test_an_offer_of_an_impossible_body_is_refused(max_body: int, zero: int) -> None:
    server = PacketLink(None)
    (request,) = packets(server.open())
    body = b"device's" + request[HEAD.size : HEAD.size + 8] + struct.pack("<HH", max_body, zero)
    server.feed(line(Packet(OFFER, FROM_DEVICE | FIRST | LAST, SESSION, 0, body), None))
    server.feed(line(Packet(OFFER, FROM_DEVICE | FIRST | LAST, SESSION, 0, body + b"\0"), None))
    assert not server.is_open
    assert server.refused == {"size": 2}


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_noise_is_a_message(noise: bytes) -> None:
    server = PacketLink(KEY)
    device = Device(server, KEY)
    server.feed(device.offer)
    assert server.feed(noise + b"\0") == []
    assert server.feed(device.say(b"sound")) == [b"sound"]


def test_requests_differ_and_every_reason_has_its_sentence() -> None:
    server = PacketLink(KEY)
    assert len({server.open() for _ in range(50)}) == 50
    for why in REFUSALS:
        assert str(packet.Refused(why)).startswith("the packet is refused: ")
