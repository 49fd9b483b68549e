"""The stream between a server and its gateways, message by message: cuts, lies, deadlines, quorum, restarts."""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from midhaul import rng, tree
from midhaul.errors import EngineError, QuorumError
from midhaul.link import frame
from midhaul.message import Message, Op, Replies
from midhaul.program import Population, Program
from midhaul.runtime import channel, door, hello, parcel
from midhaul.runtime.envelope import HEADER_BYTES, PART_BYTES, Envelope, Opener, Refused, Sign, seal
from midhaul.runtime.gateway import Gateway
from midhaul.runtime.hello import Hello
from midhaul.runtime.loop import Loop
from midhaul.runtime.parcel import Answer, Ask, Models
from midhaul.runtime.stacked import Stacked
from midhaul.runtime.stream import Gateways
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import setting

grpc = pytest.importorskip("grpc", reason="gRPC isn't installed; `pip install midhaul[federation]` brings it")

TOKEN = "a token of this run alone"
KEY = rng.Key(5, 1, rng.SERVER, 0)
DEVICES, TESTS = (0, 1, 2), (3, 4)  # those of `fleet_of_three`


class Slow(Stacked):
    """Devices whose ops begin when `go` is set; it counts them."""

    def __init__(self, program: Program, population: Population) -> None:
        super().__init__(program, population)
        self.go, self.begun, self.ops = threading.Event(), threading.Event(), list[Op]()
        self.go.set()

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        self.begun.set()
        assert self.go.wait(10.0)
        self.ops.append(message.op)
        return super().exchange(message, key=key, devices=devices)


class Town:
    """A server of the fleet of three, and who comes to it."""

    def __init__(self, **options: Any) -> None:
        self.kit, self.program, self.population = setting(SCHEMES["fedavg"])
        self.models = Models.of(self.kit.groups)
        self.server = Gateways(self.kit.groups, self.population, token=TOKEN, **{"deadline_s": 10.0, **options})
        self.told: list[str] = []
        self.server.tell = self.told.append
        self.server.open()
        self.stacked = Stacked(self.program, self.population)
        self.gateways: list[tuple[Gateway, threading.Thread]] = []
        self.errors: list[Exception] = []

    def members(self, *members: int) -> Population:
        return replace(self.population, members=members)

    def gateway(
        self,
        name: str,
        *members: int,
        engine: Stacked | Loop | None = None,
        address: str = "",
        token: str = TOKEN,
        **options: Any,
    ) -> Gateway:
        engine = engine or Slow(self.program, self.members(*members))
        made = Gateway(engine, self.models, address=address or self.server.address, token=token, name=name, **options)
        thread = threading.Thread(target=self._serve, args=(made,), daemon=True)
        self.gateways.append((made, thread))
        thread.start()
        return made

    def _serve(self, gateway: Gateway) -> None:
        try:
            gateway.run()
        except Exception as error:
            self.errors.append(error)

    def fit(self, start: tree.Tree | None = None, **settings: Any) -> Message:
        message = self.kit.fit(start or self.program.initial, train="whole", send="whole")
        return replace(message, settings={**message.settings, **settings})

    def leave(self, gateway: Gateway) -> None:
        gateway.close()
        next(thread for made, thread in self.gateways if made is gateway).join(5.0)
        until(lambda: not any(p.name == gateway.name and p.connection for p in self.server.peers.values()))

    def end(self) -> None:
        self.server.close()
        for gateway, thread in self.gateways:
            gateway.close()
            thread.join(5.0)
            assert not thread.is_alive()


@contextmanager
def town(**options: Any) -> Iterator[Town]:
    made = Town(**options)
    try:
        yield made
    finally:
        made.end()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def same(found: Replies, wanted: Replies) -> None:
    assert found.devices == wanted.devices
    assert found.tree.keys() == wanted.tree.keys()
    for name, value in wanted.tree.items():
        assert torch.equal(found.tree[name], value), name
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.weight, wanted.weight)
    for name, value in wanted.metrics.items():
        assert torch.equal(found.metrics[name], value), name


class Wire:
    """A relay between a gateway and its server that can be cut and mended."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.to = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.is_cut, self.ends = False, list[socket.socket]()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection(self.to)
            self.ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        self.is_cut = True
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends = []

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self.listener.close()


class Liar:
    """A gateway by hand: it says what a test wants it to say."""

    def __init__(self, made: Town, name: str, *devices: int) -> None:
        self.made, self.out = made, queue.SimpleQueue[Any]()
        self.channel = grpc.insecure_channel(made.server.address, channel.OPTIONS)
        sent = chain.from_iterable(iter(self.out.get, None))
        self.call = self.channel.stream_stream(f"/{channel.SERVICE}/{channel.METHOD}")(sent)
        self.opener = Opener(0)
        nonce = bytes(self.next().payload)
        rows = hello.rows_of(made.population, devices)
        said = Hello(name, "1", made.models.digest, rows)
        self.say(Envelope(Sign.HELLO, 0, 0, 0, said.pack(TOKEN, nonce)))
        self.run = self.next().run

    def next(self) -> Envelope:
        for data in self.call:
            if (envelope := self.opener.open(data)) is not None:
                return envelope
        raise AssertionError("the stream ended")

    def say(self, envelope: Envelope) -> None:
        self.out.put(list(seal(envelope)))

    def answer(self, asked: Envelope, *, devices: Population | None = None, lie: Any = None) -> Envelope:
        """Gives the honest answer, or that of replies that `lie` made of it."""
        ask = parcel.unpack_ask(bytes(asked.payload), self.made.models)
        replies = self.made.stacked.exchange(ask.message, key=ask.key, devices=list(ask.devices))
        replies = replies if lie is None else lie(replies)
        payload = parcel.pack_answer(Answer(replies), ask.message.op, ask.key.round)
        return Envelope(Sign.REPLIES, self.run, asked.seq, asked.round, payload)

    def remember(self) -> None:
        """Answers the RESTORE that comes first."""
        asked = self.next()
        assert asked.sign == Sign.RESTORE
        self.say(Envelope(Sign.DONE, self.run, asked.seq, 0, b""))

    def close(self) -> None:
        self.out.put(None)
        self.call.cancel()
        self.channel.close()


def ask_beside(made: Town, message: Message, key: rng.Key = KEY) -> tuple[threading.Thread, list[Any]]:
    """Does an exchange in another thread; its result, or its error, comes into the list."""
    found: list[Any] = []

    def act() -> None:
        try:
            found.append(made.server.exchange(message, key=key))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread, found


def test_every_op_gives_what_stacked_gives_whoever_answers_first() -> None:
    with town() as made:
        slow = Slow(made.program, made.members(0, 3))
        made.gateway("slow", engine=slow)
        made.gateway("loop", 1, 2, 4)
        made.server.wait(10.0)
        start = made.program.initial
        messages = [
            (Message(Op.LOAD, start), DEVICES),
            (made.fit(), DEVICES),
            (made.fit(send="none"), (0, 2)),
            (Message(Op.EVALUATE), DEVICES),
            (Message(Op.EVALUATE, start), TESTS),
            (Message(Op.PREDICT, start, settings={"rows": "train"}), DEVICES),
            (Message(Op.FORWARD, settings={"rows": "train", "batch": 4, "what": "hy"}), DEVICES),
            (Message(Op.FIT, start, each_settings={"epochs": (1, 2, 3)}, settings=made.fit().settings), DEVICES),
        ]
        for message, devices in messages:
            wanted = made.stacked.exchange(message, key=KEY, devices=devices)
            threading.Timer(0.02, slow.go.set).start()
            slow.go.clear()
            same(made.server.exchange(message, key=KEY, devices=devices), wanted)
        whole, kept = made.server.dump(), made.stacked.dump()
        assert whole.keys() == kept.keys()
        assert all(torch.equal(whole[path], kept[path]) for path in kept)
        assert not made.server.refused


def test_a_stream_that_is_cut_while_a_gateway_works_changes_no_bit_and_trains_once() -> None:
    with town() as made:
        wire = Wire(made.server.address)
        slow = Slow(made.program, made.members(0, 1, 3))
        gateway = made.gateway("far", engine=slow, address=wire.address)
        made.gateway("near", 2, 4)
        made.server.wait(10.0)
        slow.go.clear()
        thread, found = ask_beside(made, made.fit(send="none"))
        assert slow.begun.wait(5.0)
        wire.cut()
        until(lambda: made.server.missing())
        slow.go.set()
        until(lambda: slow.ops)
        wire.mend()
        thread.join(8.0)
        wanted = made.stacked.exchange(made.fit(send="none"), key=KEY)
        same(found[0], wanted)
        assert slow.ops == [Op.FIT]
        assert gateway.connections == 2
        after = Message(Op.EVALUATE)
        made.stacked.exchange(Message(Op.LOAD, made.program.initial), key=KEY, devices=TESTS)
        same(made.server.exchange(after, key=KEY), made.stacked.exchange(after, key=KEY))
        wire.close()


def test_lies_are_refused_and_counted_by_kind() -> None:
    def wrong_shape(replies: Replies) -> Replies:
        return replace(replies, tree={name: value[..., :1] for name, value in replies.tree.items()})

    def not_finite(replies: Replies) -> Replies:
        return replace(replies, tree={name: value / 0.0 for name, value in replies.tree.items()})

    def strange(replies: Replies) -> Replies:
        return replace(replies, devices=(2,))

    with town() as made:
        made.gateway("honest", 1, 2, 3, 4)
        liar = Liar(made, "liar", 0)
        made.server.wait(10.0)
        wanted = made.stacked.exchange(made.fit(), key=KEY)
        known = False
        for lie, kind in ((wrong_shape, "malformed"), (not_finite, "non_finite"), (strange, "malformed")):
            before = made.server.refused[kind]
            thread, found = ask_beside(made, made.fit())
            if not known:
                liar.remember()
                known = True
            liar.say(liar.answer(liar.next(), lie=lie))
            thread.join(5.0)
            assert found[0].devices == (1, 2)
            assert made.server.refused[kind] == before + 1

        thread, found = ask_beside(made, made.fit(), replace_round(2))
        asked = liar.next()
        good = liar.answer(asked)
        liar.say(replace(good, round=1))  # of an earlier round
        thread.join(5.0)
        assert found[0].devices == (1, 2)
        assert made.server.refused["stale"] == 1

        thread, found = ask_beside(made, made.fit())
        first = liar.answer(liar.next())
        liar.say(first)
        liar.say(first)
        thread.join(5.0)
        same(found[0], wanted)
        until(lambda: made.server.refused["duplicate"] == 1)

        thread, found = ask_beside(made, made.fit())
        good = liar.answer(liar.next())
        liar.say(first)  # of an earlier turn
        data = bytearray(next(iter(seal(good))))
        data[-1] ^= 1
        liar.out.put([bytes(data)])
        liar.out.put([b"no envelope"])
        liar.say(good)
        thread.join(5.0)
        same(found[0], wanted)
        assert made.server.refused == {"malformed": 4, "non_finite": 1, "stale": 2, "duplicate": 1}
        assert made.server.peers["liar"].refused == made.server.refused
        liar.close()


def test_what_a_gateway_can_not_do_or_is_too_large_is_counted() -> None:
    with town(max_bytes=5000) as made:
        made.gateway("honest", 1, 2, 3, 4)
        liar = Liar(made, "liar", 0)
        made.server.wait(10.0)
        thread, found = ask_beside(made, made.fit())
        liar.remember()
        asked = liar.next()
        liar.say(Envelope(Sign.REPLIES, liar.run, asked.seq, asked.round, bytes(5001)))
        thread.join(5.0)
        assert found[0].devices == (1, 2)
        thread, found = ask_beside(made, made.fit())
        asked = liar.next()
        liar.say(Envelope(Sign.FAILED, liar.run, asked.seq, asked.round, b"a board\nburned"))
        thread.join(5.0)
        assert found[0].devices == (1, 2)
        assert made.server.refused == {"too_large": 1, "failed": 1}
        assert "gateway liar: failed refused: a board burned" in made.told
        assert "gateway liar: too_large refused: a payload of 5001 bytes; at most 5000 are taken here" in made.told
        liar.close()


@contextmanager
def odd_server(*streams: list[bytes]) -> Iterator[str]:
    """A server that says these bytes to whoever was welcome, stream by stream, and goodbye where there are no more."""
    left = list(streams)

    def serve(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from seal(Envelope(Sign.CHALLENGE, 7, 0, 0, bytes(hello.NONCE_BYTES)))
        next(requests)
        yield from seal(Envelope(Sign.WELCOME, 7, 0, 0, b"\0"))
        yield from left.pop(0) if left else seal(Envelope(Sign.GOODBYE, 7, 0, 0, b""))
        threading.Event().wait(0.2)

    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(channel.SERVICE, {channel.METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0.0).wait()


def test_a_gateway_refuses_what_its_server_can_not_have_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midhaul.runtime.gateway.FIRST_WAIT_S", 0.01)
    _, program, population = setting(SCHEMES["fedavg"])
    changed = bytearray(next(iter(seal(Envelope(Sign.DUMP, 7, 1, 0, b"x")))))
    changed[-1] ^= 1
    large = next(iter(seal(Envelope(Sign.RESTORE, 7, 1, 0, bytes(2000)))))
    of_another = next(iter(seal(Envelope(Sign.DUMP, 8, 1, 0, b""))))
    unreadable = list(seal(Envelope(Sign.EXCHANGE, 7, 1, 1, b"no ask")))
    lines: list[str] = []

    def come(address: str) -> Gateway:
        engine = Stacked(program, population)
        made = Gateway(engine, Models({}), address=address, token=TOKEN, name="one", max_bytes=1000)
        made.tell = lines.append
        return made

    with odd_server([b"?"], [bytes(changed)], [large], [of_another], unreadable) as address:
        made = come(address)
        made.run()
        assert made.refused == {"malformed": 2, "too_large": 1, "stale": 1}
        assert made.connections == 6
        assert made.done == 1  # it answered that it can't do what it couldn't read
        assert [line for line in lines if "its bytes changed on the way" in line]
        assert [line for line in lines if line.startswith("EXCHANGE of round 1 can't be done")]
    with odd_server(*[[b"?"]] * 9, unreadable, *[[b"?"]] * 9) as address:
        made = come(address)
        made.run()  # a turn was done between
        assert (made.done, made.refused) == (1, {"malformed": 18})
    why = "can't be understood, 10 times without anything sound between"
    with odd_server(*[[b"?"]] * 20) as address, pytest.raises(EngineError, match=why):
        come(address).run()


def replace_round(round: int) -> rng.Key:
    return KEY._replace(round=round)


def test_devices_whose_numbers_are_not_finite_are_left_out_one_by_one() -> None:
    class Diverged(Slow):
        def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
            found = super().exchange(message, key=key, devices=devices)
            broken = {name: value.clone() for name, value in found.tree.items()}
            for value in broken.values():
                value[0] = float("nan")
            return replace(found, tree=broken)

    with town() as made:
        made.gateway("odd", engine=Diverged(made.program, made.members(0, 1, 3)))
        made.gateway("sound", 2, 4)
        made.server.wait(10.0)
        found = made.server.exchange(made.fit(), key=KEY)
        assert found.devices == (1, 2)
        assert made.server.refused == {"non_finite": 1}
        with pytest.raises(EngineError, match="not finite, so training diverged"):
            made.server.exchange(made.fit(), key=KEY, devices=[0])


def test_what_is_larger_than_the_bound_is_refused_at_both_ends() -> None:
    opener = Opener(7, max_bytes=100)
    parts = list(seal(Envelope(Sign.STATE, 7, 1, 0, bytes(101)), part_bytes=60))
    with pytest.raises(Refused, match="101 bytes; at most 100") as refused:
        opener.open(parts[0])
    assert refused.value.kind == "too_large"
    assert opener.open(parts[1]) is None  # the rest of it is passed over
    assert opener.open(next(iter(seal(Envelope(Sign.DONE, 7, 2, 0, b"x"))))) is not None
    with town(max_bytes=2000) as made:
        made.gateway("one", *DEVICES, *TESTS)
        made.server.wait(10.0)
        assert len(made.server.exchange(made.fit(), key=KEY)) == 3
        with pytest.raises(EngineError, match="at most 2000 are sent"):
            made.server.exchange(Message(Op.PREDICT, {"x": torch.zeros(100, 6)}), key=KEY)
    with town() as made:
        made.gateway("one", *DEVICES, *TESTS, max_bytes=1000)
        made.server.wait(10.0)
        with pytest.raises(EngineError, match=r"an answer of .* bytes, and at most 1000 are sent"):
            made.server.exchange(made.fit(), key=KEY)


def test_who_may_not_join_is_told_why() -> None:
    with town() as made:
        made.gateway("good", 0, 3)
        until(lambda: made.server.peers)
        made.gateway("stranger", 1, token="a token of another run")
        until(lambda: len(made.errors) == 1)
        made.gateway("rival", 0, 1)
        until(lambda: len(made.errors) == 2)
        made.gateway("good", 1)
        until(lambda: len(made.errors) == 3)
        fewer = replace(made.population, train=(made.population.train[0], *made.population.train[:2]))
        made.gateway("liar", engine=Stacked(made.program, replace(fewer, members=(1,))))
        until(lambda: len(made.errors) == 4)
        first, second, *rest = made.population.train
        other = replace(made.population, train=(first, second[::-1].copy(), *rest), members=(1,))
        made.gateway("other", engine=Stacked(made.program, other))
        until(lambda: len(made.errors) == 5)
        words = (
            "refused gateway stranger: a gateway's token is not this run's",
            "device 0 is with gateway good, which is there; gateway rival can't have it too",
            "that name is with gateway good",
            "gateway liar has 1 rows to train on for device 1, and this run 7",
            "gateway other has other rows for device 1 than this run",
        )
        for error, word in zip(made.errors, words, strict=True):
            assert isinstance(error, EngineError)
            assert word in str(error)
        assert made.server.refused == {"join": 5}
        assert len([line for line in made.told if "was refused" in line]) == 5


def test_a_recorded_hello_is_worth_nothing() -> None:
    said = Hello("north", "1", "model", {0: (1, 2, 3, 4)})
    data = said.pack(TOKEN, b"a" * hello.NONCE_BYTES)
    assert Hello.unpack(data, TOKEN, b"a" * hello.NONCE_BYTES) == said
    assert TOKEN.encode() not in data
    with pytest.raises(Refused, match="token is not this run's, or its HELLO was replayed"):
        Hello.unpack(data, TOKEN, b"b" * hello.NONCE_BYTES)
    with pytest.raises(Refused, match="replayed"):
        Hello.unpack(data[:-2] + b"5]", TOKEN, b"a" * hello.NONCE_BYTES)


def test_an_exchange_ends_at_its_deadline_and_who_was_late_is_told_what_it_missed() -> None:
    with town(deadline_s=0.4) as made:
        slow = Slow(made.program, made.members(0, 3))
        made.gateway("slow", engine=slow)
        made.gateway("quick", 1, 2, 4)
        made.server.wait(10.0)
        made.server.exchange(Message(Op.LOAD, made.program.initial), key=KEY, devices=[*DEVICES, *TESTS])
        slow.go.clear()
        assert made.server.exchange(made.fit(), key=KEY).devices == (1, 2)
        other = tree.scale(made.program.initial, 0.5)
        assert made.server.exchange(Message(Op.LOAD, other), key=KEY).devices == (1, 2)  # the slow one isn't asked
        slow.go.set()
        until(lambda: made.server.refused["late"] == 1)
        message = Message(Op.READ, settings={"send": "whole"})
        found = made.server.exchange(message, key=KEY)
        assert found.devices == DEVICES
        assert all(torch.equal(found.tree[name][0], value) for name, value in other.items())


def test_a_round_below_its_quorum_is_repeated_from_where_it_began() -> None:
    with town(deadline_s=0.5, quorum=0.6) as made:
        slow = Slow(made.program, made.members(0, 1, 3))
        made.gateway("slow", engine=slow)
        made.gateway("quick", 2, 4)
        made.server.wait(10.0)
        load = Message(Op.LOAD, made.program.initial)
        made.server.exchange(load, key=KEY._replace(round=0), devices=[*DEVICES, *TESTS])
        made.server.exchange(made.fit(send="none"), key=KEY, devices=[2, 0])
        slow.go.clear()
        with pytest.raises(QuorumError, match=r"1 of 3 devices answered within 0\.5 s"):
            made.server.exchange(made.fit(send="none"), key=KEY)
        slow.go.set()
        until(lambda: made.server.refused["late"] == 1)
        made.server.again()
        for fleet in (made.server, made.stacked):
            if fleet is made.stacked:
                fleet.exchange(load, key=KEY, devices=[*DEVICES, *TESTS])
            fleet.exchange(made.fit(send="none"), key=KEY, devices=[2, 0])
            fleet.exchange(made.fit(send="none"), key=KEY)
        message = Message(Op.READ, settings={"send": "whole"})
        same(made.server.exchange(message, key=KEY), made.stacked.exchange(message, key=KEY))


def test_a_gateway_that_starts_again_in_mid_turn_knows_what_its_devices_held() -> None:
    with town() as made:
        slow = Slow(made.program, made.members(0, 3))
        first = made.gateway("one", engine=slow)
        made.gateway("two", 1, 2, 4)
        made.server.wait(10.0)
        for fleet in (made.server, made.stacked):
            fleet.exchange(Message(Op.LOAD, made.program.initial), key=KEY, devices=[*DEVICES, *TESTS])
            fleet.exchange(made.fit(send="none"), key=KEY)
        kept = made.server.dump()
        slow.go.clear()
        slow.begun.clear()
        message = Message(Op.FIT, settings=made.fit().settings)
        thread, found = ask_beside(made, message)
        assert slow.begun.wait(5.0)
        first.close()
        until(lambda: made.server.missing())
        made.gateway("one", engine=Loop(made.program, made.members(0, 3)))
        thread.join(8.0)
        slow.go.set()
        wanted = made.stacked.exchange(message, key=KEY)
        assert found[0].devices == wanted.devices
        assert tree.largest_difference(found[0].tree, wanted.tree) < 1e-6
        assert all(torch.equal(made.server.dump()[path], kept[path]) for path in kept)


def test_nobody_there_ends_the_run_in_a_sentence() -> None:
    with town(deadline_s=0.2) as made:
        with pytest.raises(EngineError, match=r"after 0\.05 s no gateway holds the devices 0-4; start those"):
            made.server.wait(0.05)
        gateway = made.gateway("one", *DEVICES, *TESTS)
        made.server.wait(10.0)
        made.leave(gateway)
        with pytest.raises(QuorumError, match="0 of 3 devices answered"):
            made.server.exchange(made.fit(), key=KEY)
        with pytest.raises(EngineError, match=r"no gateway was there for 0\.2 s"):
            made.server.exchange(made.fit(), key=KEY)


def test_no_example_leaves_a_gateway_unless_it_gives_rows() -> None:
    message = Message(Op.READ, settings={"what": "examples"})
    with town() as made:
        gateway = made.gateway("one", *DEVICES, *TESTS)
        made.server.wait(10.0)
        with pytest.raises(EngineError, match="gateway one can't do READ: no example leaves this gateway"):
            made.server.exchange(message, key=KEY)
        gateway.gives_rows = True
        same(made.server.exchange(message, key=KEY), made.stacked.exchange(message, key=KEY))


def test_the_envelope_around_a_megabyte_is_below_a_percent() -> None:
    value = torch.zeros(1, 1 << 18)
    models = Models({})
    message = Message(Op.FIT, each={"h": value}, rows=torch.ones(1, dtype=torch.int64))
    payload = parcel.pack_ask(Ask(message, (0,), KEY), parcel.pack_shared(message, 1))
    total = sum(len(data) for data in seal(Envelope(Sign.EXCHANGE, 1, 1, 1, payload)))
    assert HEADER_BYTES == 40
    assert total - 4 * value.numel() < 300
    assert models.names == frozenset()


def test_what_does_not_fit_an_envelope_travels_in_several() -> None:
    x = torch.linspace(-1.0, 1.0, 100_000 * 6).reshape(-1, 6)
    message = Message(Op.PREDICT, {"x": x})
    with town() as made:
        made.gateway("one", *DEVICES, *TESTS)
        made.server.wait(10.0)
        load = Message(Op.LOAD, made.program.initial)
        for fleet in (made.server, made.stacked):
            fleet.exchange(load, key=KEY)
        found = made.server.exchange(message, key=KEY)
        same(found, made.stacked.exchange(message, key=KEY))
        assert sum(value.nbytes for value in found.tree.values()) > 3 << 20


def test_a_large_answer_is_read_in_its_streams_own_thread_however_small_its_last_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, sizes, threads = parcel.unpack_answer, list[int](), list[str]()

    def noted(data: bytes, *about: Any) -> Answer:
        sizes.append(len(data))
        threads.append(threading.current_thread().name)
        return read(data, *about)

    monkeypatch.setattr(parcel, "unpack_answer", noted)
    with town() as made:
        made.gateway("one", *DEVICES, *TESTS)
        made.server.wait(10.0)
        made.server.exchange(Message(Op.LOAD, made.program.initial), key=KEY)
        made.server.exchange(Message(Op.PREDICT, {"x": torch.zeros(30_000, 6)}), key=KEY)
    assert 0 < sizes[1] % PART_BYTES < door.QUICK_BYTES < sizes[1]
    assert threads[0] != threads[1] == "gateway one"


def test_whatever_bytes_come_are_an_answer_or_refused() -> None:
    """Every byte of an ask and of an answer is changed in turn, and the CRCs of its frames made good again."""
    kit, program, population = setting(SCHEMES["fedavg"])
    models, stacked = Models.of(kit.groups), Stacked(program, population)
    message = Message(Op.FORWARD, program.initial, settings={"rows": "train", "batch": 2, "what": "hy"})
    message = replace(message, each_settings={"step": (0, 0, 1)})
    ask = Ask(message, DEVICES, KEY)
    replies = stacked.exchange(message, key=KEY, devices=DEVICES)
    asked = parcel.pack_ask(ask, parcel.pack_shared(message, 1))
    answered = parcel.pack_answer(Answer(replies), Op.FORWARD, 1)
    remembered = parcel.pack_tree({"own/first.weight": torch.ones(2, 3), "of_own/first.weight": torch.arange(2)})
    readers: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (asked, lambda data: parcel.unpack_ask(data, models)),
        (answered, lambda data: parcel.unpack_answer(data, ask, models)),
        (remembered, parcel.unpack_tree),
        (next(iter(seal(Envelope(Sign.DONE, 7, 1, 0, b"12345")))), lambda data: Opener(7, 100).open(data)),
    ]
    draws = rng.integers(rng.key(1, 0, 0, rng.Use.SYNTHETIC), 4000, 256).tolist()
    num_refused = 0
    for whole, read in readers:
        read(whole)
        for place in range(len(whole)):
            odd = bytearray(whole)
            odd[place] ^= 1 + draws[place] % 255
            for data in (bytes(odd), _mended(bytes(odd)), whole[:place]):
                try:
                    read(data)
                except Refused:
                    num_refused += 1
    assert num_refused > 2000


def _mended(data: bytes) -> bytes:
    """Gives bytes with the CRC of each frame in them made good."""
    made, first = bytearray(data), data.find(frame.MAGIC)
    while first >= 0 and len(data) - first >= frame.HEADER_BYTES:
        total = frame.HEADER.unpack_from(data, first)[6]
        if not frame.HEADER_BYTES + frame.CRC_BYTES <= total <= len(data) - first:
            break
        end = first + total - frame.CRC_BYTES
        frame.CRC.pack_into(made, end, zlib.crc32(made[first:end]))
        first = data.find(frame.MAGIC, first + total)
    return bytes(made)
