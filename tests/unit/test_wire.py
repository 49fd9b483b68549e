"""Frames over a line that loses, repeats and damages bytes, to machines that restart and go away: C devices here."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from midhaul import report, rng, train, tree
from midhaul.config import Config
from midhaul.devices import machines, profiles
from midhaul.errors import ConfigError
from midhaul.runtime.blobs import DeviceBlobs
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.loop import Loop
from midhaul.runtime.places import derived_key, places, read_keys
from midhaul.runtime.remote import Place
from midhaul.runtime.wire import PacketWire
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from fleet_of_three import setting

ORIGINAL = machines.open_machine
BOARD = profiles.get("stm32l4")


class Faulty:
    """A machine whose line does something wrong at the n-th message that is written to it."""

    def __init__(self, inner: machines.Machine, faults: dict[int, str]) -> None:
        self.inner, self.faults = inner, faults
        self.written, self.now, self.gone, self.name = 0, "", False, inner.name

    @property
    def is_closed(self) -> bool:
        return self.inner.is_closed

    def write(self, data: bytes) -> None:
        self.written += 1
        self.now = self.faults.get(self.written, "")
        if self.now == "unplug":
            self.gone = True
        if self.gone:
            raise OSError("the line is dead")
        if self.now == "reset":
            self.inner.reset()
        if self.now == "noise":
            data = b"\x07\x00\xff\xff" + data[: len(data) // 2] + b"\x00" + data
        if self.now != "swallow":
            self.inner.write(data)

    def read(self, deadline_s: float, max_bytes: int = 1 << 16) -> bytes:
        if self.gone:
            raise OSError("the line is dead")
        data = self.inner.read(deadline_s, max_bytes)
        if self.now == "flip" and data:
            return data[:20] + bytes([data[20] ^ 4]) + data[21:]
        return 2 * data if self.now == "twice" else data

    def reset(self) -> None:
        if self.gone:
            raise OSError("the line is dead")
        self.inner.reset()

    def close(self) -> None:
        self.inner.close()


def fleet(faults: dict[int, str], deadline_s: float = 2.0) -> tuple[Firmware, Loop, object]:
    """A federation of three, the last of them behind a faulty line."""
    scheme = SCHEMES["fedavg"]
    kit, program, population = setting(scheme, own_test=True)
    blobs = DeviceBlobs(program, [(work.op, work.train) for work in scheme.work(kit.cfg)], momentum=True)

    def place(number: int) -> Place:
        key, opened = derived_key(0, number), []

        def open_once() -> Faulty:
            if opened:
                raise OSError("nothing is there")
            opened.append(machines.open_machine("host:", board=BOARD, key=key))
            return Faulty(opened[0], faults if number == 2 else {})

        return Place("host:", partial(PacketWire, open_once, key))

    engine = Firmware(program, population, blobs, [place(number) for number in range(3)], seed=0, deadline_s=deadline_s)
    return engine, Loop(program, population), kit


FIRST = 5  # the first FIT is the fifth that is written: before it a request for a session, HELLO, the blob, the rows


@pytest.mark.parametrize(
    ("fault", "happens"),
    [
        ("noise", []),
        ("twice", []),
        ("swallow", [(2, "lost"), (3, "rejoined")]),
        ("flip", [(2, "lost"), (3, "rejoined")]),
        ("reset", [(2, "lost"), (3, "reset"), (3, "rejoined")]),
        ("unplug", [(2, "lost")]),
    ],
)
def test_a_line_that_fails_costs_one_round_at_most(fault: str, happens: list[tuple[int, str]]) -> None:
    """What is damaged, repeated or unasked for is never taken; what is lost is made up for in the next round."""
    engine, slow, kit = fleet({FIRST + 1: fault})
    replies = []
    for number in (1, 2, 3, 4):
        message = kit.fit(engine.program.initial, train="whole", send="whole")  # type: ignore[attr-defined]
        key = rng.Key(0, number, rng.SERVER, 0)
        replies.append(engine.exchange(message, key=key))
        expected = slow.exchange(message, key=key, devices=replies[-1].devices)
        assert tree.largest_difference(replies[-1].tree, expected.tree) < 1e-5
    engine.close()
    found = [(event["round"], event["what"]) for event in engine.events if event["what"] != "connected"]
    assert found == happens
    others = (0, 1, 2) if fault != "unplug" else (0, 1)
    assert [reply.devices for reply in replies] == [(0, 1, 2), (0, 1) if happens else (0, 1, 2), others, others]


TWENTY = {
    "data_num_devices": 20, "data_partition": "iid", "data_test": "device", "data_max_rows": 20, "data_public": 0.2,
    "tiny_options": {"hidden": [8]}, "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1},
    "large_epochs": 1, "scheme_distill_epochs": 1, "scheme_name": "federated_transfer", "run_rounds": 4,
    "run_engine": "firmware", "run_devices": "host:*20", "fleet_deadline_s": 10.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["host:", "unicorn:cortex-m4"])
def test_a_run_of_twenty_says_what_happened_to_each(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are unplugged and one is reset in mid-round: the run ends, and the summary and the report say so."""
    # Written before the first round: a request for a session, HELLO, blob, rows, LOAD, rows, EVALUATE; then
    # FIT and EVALUATE in each round.
    faults = {5: {10: "unplug"}, 14: {13: "unplug"}, 9: {12: "reset"}}
    opened: list[Faulty] = []

    def open_machine(address: str, **options: object) -> Faulty:
        number = len(opened)
        opened.append(Faulty(ORIGINAL(address, **options), {}))  # type: ignore[arg-type]
        if number >= 20:
            opened[-1].gone = True
        return opened[-1]

    monkeypatch.setattr(machines, "open_machine", open_machine)
    plant_of = train.build

    def build(*arguments: object, **options: object) -> object:
        """As ever, but the devices are opened in their order, so that each has its own line."""
        built = plant_of(*arguments, **options)  # type: ignore[arg-type]
        for device, remote in built.engine.remotes.items():  # type: ignore[union-attr]
            remote.wire = remote.place.open()
            opened[device].faults = faults.get(device, {})
        return built

    monkeypatch.setattr(train, "build", build)
    told: list[str] = []
    summary = train.run(
        Config().replace(**{**TWENTY, "run_devices": f"{kind}*20"}), tmp_path / "run", tell=told.append
    ).summary
    happened: dict[int, list[tuple[int, str]]] = {}
    for event in summary["device_events"]:
        if event["what"] != "connected":
            happened.setdefault(event["device"], []).append((event["round"], event["what"]))
    assert happened == {5: [(2, "lost")], 9: [(3, "lost"), (3, "reset"), (3, "rejoined")], 14: [(3, "lost")]}
    assert sum(f"device 5 ({kind}) was lost: the line is dead" in line for line in told) == 1
    assert sorted(stats["device"] for stats in summary["device_stats"]) == [d for d in range(20) if d not in (5, 14)]
    assert all(0 < stats["arena_peak_bytes"] <= stats["arena_bytes"] for stats in summary["device_stats"])
    page = report.write([tmp_path / "run"], tmp_path / "report.html").read_text()
    table = page.partition("<h2>Devices on firmware</h2>")[2].partition("</table>")[0]
    assert table.count("<tr>") == 21
    assert table.count("the line is dead") == 2
    assert table.count("what lay in its RAM is gone") == 1


def test_keys_are_read_and_wrong_lines_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the lab\n\nserial:/dev/ttyACM0 {bytes(range(32)).hex()}\n")
    assert read_keys(path) == {"serial:/dev/ttyACM0": bytes(range(32))}
    for line in ("serial:a 00ff", f"serial:a {'zz' * 32}", "00" * 32):
        path.write_text(f"{line}\n")
        with pytest.raises(ConfigError, match=r"keys line 1 is not of the form `ADDRESS HEX` with 64 digits"):
            read_keys(path)
    path.write_text(f"a {'00' * 32}\na {'11' * 32}\n")
    with pytest.raises(ConfigError, match="line 2 gives a a second key"):
        read_keys(path)
    with pytest.raises(ConfigError, match=r"can't be read .* check run\.keys"):
        read_keys(tmp_path / "none")


def test_each_device_of_a_run_has_its_own_key() -> None:
    keys = {derived_key(seed, number) for seed in (0, 1) for number in (0, 1)}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


def test_a_list_of_addresses_is_places_in_order() -> None:
    found = places("host:*2,unicorn:cortex-m4", BOARD, seed=0)
    assert [place.address for place in found] == ["host:", "host:", "unicorn:cortex-m4"]
    with pytest.raises(ConfigError, match=r"there is no key for serial:/dev/ttyACM0; name in run\.keys"):
        places("serial:/dev/ttyACM0", BOARD, seed=0)
