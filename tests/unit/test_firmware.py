"""The firmware engine against devices that go away, restart, lie and stay silent: here, twins in Python."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from midhaul import rng, tree
from midhaul.errors import EngineError
from midhaul.kit import Kit
from midhaul.link.frame import Frame
from midhaul.message import Message, Op, Replies
from midhaul.program import Population, Program
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.loop import Loop
from midhaul.schemes import SCHEMES
from midhaul.server import Server
from midhaul.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from fleet_of_three import FEATURES, SIZES, setting
from twin_device import Fault, Twin, TwinBlobs

SUPPORTED = [name for name, scheme in SCHEMES.items() if "firmware" in scheme.engines]


def fleet(
    name: str, kit: Kit, program: Program, population: Population, num: int = len(SIZES), **changes: object
) -> tuple[Firmware, list[Twin]]:
    fits = tuple(dict.fromkeys(work.train for work in SCHEMES[name].work(kit.cfg) if work.train != "none"))
    blobs = TwinBlobs(program, fits)
    twins = [Twin(program, blobs, **changes) for _ in range(num)]  # type: ignore[arg-type]
    return Firmware(program, population, blobs, [t.place(i) for i, t in enumerate(twins)], seed=0), twins


def key(number: int) -> rng.Key:
    return rng.Key(0, number, rng.SERVER, 0)


def rounds(name: str, engine: Firmware | Loop, kit: Kit, numbers: range, server: Server | None = None) -> Server:
    scheme = SCHEMES[name]
    server = server or scheme.init(engine, kit, key(0))
    for number in numbers:
        server, _ = scheme.round(server, engine, kit, key(number))
        scheme.evaluate(server, engine, kit, key(number))
    return server


def held(dump: Tree, devices: tuple[int, ...]) -> Tree:
    """Gives what some devices hold, out of a dump."""
    wanted = {f"{part}/{device}" for part in ("tree", "momentum") for device in devices}
    return dict(sorted((path, value) for path, value in dump.items() if path.rpartition("/")[0] in wanted))


@pytest.mark.parametrize("own_test", [False, True], ids=["new devices", "own rows"])
@pytest.mark.parametrize("num", [1, 3], ids=["one behind an address", "all"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_devices_that_keep_less_do_as_the_ops_say(name: str, num: int, own_test: bool) -> None:
    """A device holds only what is trained, and is lent the rest; seen from a scheme that makes no difference."""
    kit, program, population = setting(SCHEMES[name], own_test=own_test)
    slow = Loop(program, population)
    expected = rounds(name, slow, kit, range(1, 4))
    fast, _ = fleet(name, kit, program, population, num)
    found = rounds(name, fast, kit, range(1, 4))
    bound = 0.0 if num == 3 else 1e-6
    assert tree.largest_difference(expected.tree, found.tree) <= bound
    assert tree.largest_difference(expected.large, found.large) <= bound
    own = held(fast.dump(), tuple(range(num)))
    assert list(own) == list(held(slow.dump(), tuple(range(num))))
    assert tree.largest_difference(own, held(slow.dump(), tuple(range(num)))) <= bound
    assert {event["what"] for event in fast.events} == {"connected"}


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_restored_fleet_goes_on_to_the_same_bits(name: str) -> None:
    results = []
    for cut in (False, True):
        kit, program, population = setting(SCHEMES[name], own_test=True)
        engine, _ = fleet(name, kit, program, population, 2)
        server = rounds(name, engine, kit, range(1, 3))
        dump = engine.dump()
        if cut:  # other devices, which know nothing
            engine, _ = fleet(name, kit, program, population, 2)
            engine.restore(dump)
        server = rounds(name, engine, kit, range(3, 6), server)
        results.append((tree.sha256(server.tree), tree.sha256(server.large), tree.sha256(engine.dump())))
    assert results[0] == results[1]


def test_a_checkpoint_of_another_fleet_is_refused() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, _ = fleet("fedavg", kit, program, population)
    for path in ("tree/7/first.weight", "tree/0/nothing", "odd/0/first.weight", "own/nothing"):
        with pytest.raises(EngineError, match="of another run"):
            engine.restore({path: torch.zeros(1)})


def twenty() -> Population:
    """Twenty devices with five rows to train on and three to test on, each."""
    x = torch.from_numpy(rng.normal(rng.key(5, 0, 0, rng.Use.SYNTHETIC), 160 * FEATURES).reshape(160, FEATURES)).float()
    y = (x[:, 0] > 0.3).long() + (x[:, 1] + x[:, 2] > 0).long()
    parts = [np.arange(a, b) for a, b in pairwise(range(0, 161, 8))]
    return Population(x, y, tuple(p[:5] for p in parts), tuple(p[5:] for p in parts), (), True)


def at(op: Op, number: int, what: str, *, lasts: bool = False) -> Fault:
    """A fault at the first message of an op in a round, or at all of them from then on."""
    seen: list[int] = []

    def fault(got: Frame) -> str:
        if got.op != op or got.round < number or (seen and not lasts):
            return ""
        seen.append(got.round)
        return what

    return fault


def happened(engine: Firmware) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = {}
    for event in engine.events:
        if event["what"] != "connected":
            found.setdefault(event["device"], []).append((event["round"], event["what"]))
    return found


@pytest.mark.parametrize("name", ["fedavg", "federated_transfer", "federated_split", "local", "fedrep"])
def test_twenty_devices_two_unplugged_one_reset(name: str) -> None:
    """The run ends, with all others in each round, and says what happened to each."""
    kit, program, _ = setting(SCHEMES[name], own_test=True)
    engine, twins = fleet(name, kit, program, twenty(), 20)
    told: list[str] = []
    engine.tell = told.append
    op = Op.BACKWARD if name == "federated_split" else Op.FIT
    twins[4].fault = at(op, 2, "unplug")
    twins[11].fault = at(op, 3, "unplug")
    twins[17].fault = at(op, 2, "reset")
    server = rounds(name, engine, kit, range(1, 6))
    assert tree.is_finite(server.tree)
    assert tree.is_finite(server.large)
    assert happened(engine) == {4: [(2, "lost")], 11: [(3, "lost")], 17: [(2, "lost"), (2, "reset"), (2, "rejoined")]}
    assert [line for line in told if "device 17 (twin:17) was reset" in line]
    assert [line for line in told if line.startswith("round 3: device 11 (twin:11) was lost: the stream closed")]
    last = SCHEMES[name].evaluate(server, engine, kit, key(5))
    assert last.devices == tuple(device for device in range(20) if device not in (4, 11))


def test_a_reset_device_is_given_what_it_was_last_given() -> None:
    """It trained on its own since, which is lost; it goes on from what it was loaded with."""
    kit, program, population = setting(SCHEMES["local"], own_test=True, scheme_momentum=0.0)
    engine, twins = fleet("local", kit, program, population)
    twins[2].fault = at(Op.FIT, 3, "reset")
    SCHEMES["local"].init(engine, kit, key(0))
    for number in (1, 2, 3):
        SCHEMES["local"].round(Server({}), engine, kit, key(number))
    assert happened(engine) == {2: [(3, "lost")]}
    slow = Loop(program, population)
    SCHEMES["local"].init(slow, kit, key(0))
    for number in (1, 2, 3):
        slow.exchange(kit.fit({}, train="whole", send="none"), key=key(number), devices=(0, 1))
    slow.exchange(kit.fit({}, train="whole", send="none"), key=key(4))
    engine.exchange(kit.fit({}, train="whole", send="none"), key=key(4))
    assert happened(engine) == {2: [(3, "lost"), (4, "reset"), (4, "rejoined")]}
    assert tree.largest_difference(held(engine.dump(), (0, 1, 2)), held(slow.dump(), (0, 1, 2))) == 0.0


def test_a_reset_device_that_was_given_nothing_waits_for_parameters() -> None:
    kit, program, population = setting(SCHEMES["fedavg"], own_test=True)
    engine, twins = fleet("fedavg", kit, program, population)
    first = kit.fit(program.initial, train="whole", send="none")
    assert engine.exchange(first, key=key(1)).devices == (0, 1, 2)
    twins[1].reset()
    twins[1].fault = at(Op.FIT, 2, "hang")
    again = kit.fit({}, train="whole", send="none")
    assert engine.exchange(again, key=key(2)).devices == (0, 2)
    assert engine.exchange(again, key=key(3)).devices == (0, 2)
    assert engine.exchange(kit.fit(program.initial, train="whole", send="whole"), key=key(4)).devices == (0, 1, 2)
    assert happened(engine) == {1: [(2, "lost"), (3, "reset"), (3, "rejoined")]}


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("shape", "where (8, 6) is due"),
        ("more", "has the tensor h"),
        ("less", "lacks the tensor first.weight"),
        ("weight", "speaks of 1e+06 rows where 200 are due"),
        ("rows", "trained on 1e+06 rows and has 200"),
        ("round", "of round 3 for device 2"),
        ("nan", "aren't finite"),
        ("garbage", "is unsound"),
    ],
)
def test_a_device_that_lies_is_refused_and_counted(lie: str, words: str) -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, twins = fleet("fedavg", kit, program, population)
    twins[2].fault = at(Op.FIT, 2, lie)
    message = kit.fit(program.initial, train="whole", send="whole")
    devices = [engine.exchange(message, key=key(number)).devices for number in (1, 2, 3)]
    assert devices == [(0, 1, 2), (0, 1), (0, 1, 2)]
    assert engine.refused == 1
    assert happened(engine) == {2: [(2, "refused")]}
    assert words in engine.events[-1]["reason"]


def test_a_device_that_comes_back_as_another_is_not_taken_back() -> None:
    """One that says it has another memory than before would end the run, or have it write where nothing is."""
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, twins = fleet("fedavg", kit, program, population)
    message = kit.fit(program.initial, train="whole", send="whole")
    assert len(engine.exchange(message, key=key(1))) == 3
    twins[1].arena_bytes = 10
    twins[1].fault = at(Op.FIT, 2, "hang")
    assert [engine.exchange(message, key=key(number)).devices for number in (2, 3, 4)] == [(0, 2)] * 3
    assert "its arena_bytes is 10 and was" in engine.remotes[1].why_lost
    assert happened(engine) == {1: [(2, "lost")]}


def test_a_fleet_of_liars_ends_the_run_in_one_sentence() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, twins = fleet("fedavg", kit, program, population)
    for twin in twins:
        twin.fault = at(Op.FIT, 2, "nan", lasts=True)
    with pytest.raises(EngineError, match=r"nothing but refusals .* aren't finite.* lower scheme\.lr"):
        rounds("fedavg", engine, kit, range(1, 6))


def test_a_silent_device_is_asked_again_less_and_less_often() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, twins = fleet("fedavg", kit, program, population)
    message = kit.fit(program.initial, train="whole", send="whole")
    assert len(engine.exchange(message, key=key(0))) == 3
    twins[0].fault = lambda got: "hang" if got.round < 30 else ""
    asked = []
    for number in range(1, 40):
        before = len(twins[0].served)
        engine.exchange(message, key=key(number))
        asked += [number] if len(twins[0].served) > before else []
    assert asked == [1, 2, 4, 8, 16, 32, 33, 34, 35, 36, 37, 38, 39]
    assert happened(engine)[0] == [(1, "lost"), (32, "reset"), (32, "rejoined")]


def test_an_address_where_nothing_is_ends_the_run_at_once() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    engine, twins = fleet("fedavg", kit, program, population)
    twins[1].plugged = False
    with pytest.raises(EngineError, match=r"device 1 can't be reached at twin:1: nothing is there; check"):
        engine.exchange(kit.fit(program.initial, train="whole", send="whole"), key=key(1))


def test_rows_and_blob_are_sent_once() -> None:
    """What lies in a device's flash isn't sent again, not even after a reset."""
    kit, program, population = setting(SCHEMES["federated_transfer"], own_test=True)
    engine, twins = fleet("federated_transfer", kit, program, population)
    twins[2].fault = at(Op.FIT, 2, "reset")
    rounds("federated_transfer", engine, kit, range(1, 5))
    pushes = [Counter(twin.served)[Op.PUSH] for twin in twins]
    assert pushes == [1, 2, 2]
    assert [twin.boots for twin in twins] == [1, 1, 2]


def test_a_frozen_part_that_changes_is_baked_anew() -> None:
    kit, program, population = setting(SCHEMES["federated_transfer"], own_test=True)
    fast, twins = fleet("federated_transfer", kit, program, population)
    slow = Loop(program, population)
    moved = {**program.initial, "first.weight": program.initial["first.weight"] * 2.0}
    messages = (
        Message(Op.LOAD, program.initial),
        kit.fit({}, train="head", send="none"),
        Message(Op.EVALUATE, moved, settings={"rows": "test"}),  # for this op alone
        Message(Op.EVALUATE, settings={"rows": "test"}),
        Message(Op.LOAD, tree.select(moved, ("first.weight",))),
        Message(Op.EVALUATE, settings={"rows": "test"}),
        Message(Op.READ, settings={"send": "whole"}),
    )
    for number, message in enumerate(messages):
        found, expected = (engine.exchange(message, key=key(number)) for engine in (fast, slow))
        same(found, expected)
    assert happened(fast) == {}
    assert Counter(twins[0].served)[Op.LOAD] > 4


def same(found: Replies, expected: Replies) -> None:
    assert found.devices == expected.devices
    assert torch.equal(found.weight, expected.weight)
    assert list(found.tree) == list(expected.tree)
    assert tree.largest_difference(found.tree, expected.tree) == 0.0
    assert all(torch.equal(found.metrics[name], value) for name, value in expected.metrics.items())


def test_more_rows_to_test_on_than_the_store_holds_are_tested_in_parts() -> None:
    kit, program, population = setting(SCHEMES["local"])
    fast, _ = fleet("local", kit, program, population, store_bytes=32 * (200 + 10))
    slow = Loop(program, population)
    for number, message in enumerate((Message(Op.LOAD, program.initial), Message(Op.EVALUATE))):
        found, expected = (engine.exchange(message, key=key(number)) for engine in (fast, slow))
        assert found.devices == expected.devices
        assert torch.equal(found.weight, expected.weight)
        assert all(torch.allclose(found.metrics[name], value) for name, value in expected.metrics.items())
    halves = SCHEMES["split"]
    kit, program, population = setting(halves, own_test=True)
    fast, _ = fleet("split", kit, program, population, store_bytes=32 * 203)
    message = Message(Op.FORWARD, program.initial, settings={"rows": "test", "what": "hy"})
    found, expected = fast.exchange(message, key=key(1)), Loop(program, population).exchange(message, key=key(1))
    assert torch.equal(found.rows, expected.rows)
    assert torch.allclose(found.tree["h"], expected.tree["h"], atol=1e-6)


def too_small(program: Program, population: Population, kit: Kit) -> Iterator[tuple[str, Callable[[], object]]]:
    message = kit.fit(program.initial, train="whole", send="whole")
    arena, _ = fleet("fedavg", kit, program, population, arena_bytes=1001)
    yield r"needs 1,002 bytes of RAM for its arena and there are 1,001", lambda: arena.exchange(message, key=key(1))
    store, _ = fleet("fedavg", kit, program, population, store_bytes=32 * 199)
    yield r"no room for its 200 rows: .* hold 199; set data\.max_rows", lambda: store.exchange(message, key=key(1))


def test_what_can_never_work_is_one_sentence() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    for words, act in too_small(program, population, kit):
        with pytest.raises(EngineError, match=words):
            act()
    engine, _ = fleet("fedavg", kit, program, population)
    with pytest.raises(EngineError, match=r"has no first\.weight yet; send LOAD before EVALUATE"):
        engine.exchange(Message(Op.EVALUATE), key=key(1))
    with pytest.raises(EngineError, match="which its model doesn't have"):
        engine.exchange(Message(Op.LOAD, {"first.weight": torch.zeros(3)}), key=key(1))
    with pytest.raises(EngineError, match=r"names 4 addresses and the data make 3 devices"):
        fleet("fedavg", kit, program, population, 4)
    u_kit, u_program, _ = setting(SCHEMES["split_u"])
    with pytest.raises(EngineError, match="U shape can't run on it"):
        fleet("split", u_kit, u_program, population)
    with pytest.raises(EngineError, match=r"can't keep first\.bias as its own \(FedBN\)"):
        fleet("fedavg", kit, Program(program.module, (FEATURES,), personal=("first.bias",)), population)
