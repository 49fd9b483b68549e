"""The same device on every machine: echoes, flash, faults, resets, and a training run with the same bits everywhere."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import tty
from pathlib import Path

import pytest
import torch

from midhaul import rng
from midhaul.devices import blob, machines, profiles, toolchain
from midhaul.devices.machines import Machine, open_machine
from midhaul.errors import BudgetError, ConfigError, EngineError
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import Op, Settings
from midhaul.models import tiny
from midhaul.models.translate import translate
from midhaul.program import Program
from midhaul.rng import Use
from midhaul.runtime.wire import PacketWire

KEY = bytes(range(1, 33))
ECHO, INFO, READ, WRITE, ERASE, POKE, SINK = range(7)
SLOT0, SLOT1, STORE, ARENA = range(4)
UNICORN = [f"unicorn:cortex-{core}" for core in ("m0", "m3", "m4", "m7", "m33")]
QEMU = [f"qemu:cortex-{core}" for core in ("m3", "m4", "m7", "m33", "m55")]
QUICK = ["host:", "process:", *UNICORN, *QEMU]


def started(address: str, **given: object) -> Machine:
    if address.startswith("qemu") and shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm isn't installed")
    return open_machine(address, **given)  # type: ignore[arg-type]


def take(machine: Machine, num: int, limit_s: float = 20.0) -> bytes:
    data, end = b"", time.monotonic() + limit_s
    while len(data) < num:
        left = end - time.monotonic()
        assert left > 0, f"{machine.name} gave {len(data)} of {num} bytes"
        data += machine.read(left)
    return data


def ask(machine: Machine, op: int, place: int = 0, offset: int = 0, num: int = 0, data: bytes = b"") -> bytes:
    machine.write(struct.pack("<4I", op, place, offset, num) + data)
    return take(machine, {ECHO: num, READ: num, INFO: 36}.get(op, 4))


def status(*what: object) -> int:
    return int(struct.unpack("<i", ask(*what))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("address", [*QUICK, "qemu-uart:cortex-m3", "qemu-uart:cortex-m33"])
def test_bytes_come_back_and_flash_is_flash(address: str) -> None:
    machine = started(address, firmware="echo", key=KEY)
    num = 2000 if "uart" in address else 200_000
    for size in (1, 255, 1024, num):
        data = os.urandom(size)
        assert ask(machine, ECHO, num=size, data=data) == data
    arena, slot, store, stack, ticks, random, key, messages, odd = struct.unpack("<9I", ask(machine, INFO))
    assert (key, messages, odd) == (KEY[0] + 256 * KEY[31], 5, 0)
    for place, size in ((SLOT0, slot), (SLOT1, slot), (STORE, store)):
        assert size % 4096 == 0
        for at in (0, size - 4096):
            assert ask(machine, READ, place, at, 256) == b"\xff" * 256
            assert status(machine, WRITE, place, at, 8, b"abcdefgh") == 0
            assert status(machine, WRITE, place, at, 4, b"\xf0\xff\x00\xff") == 0
            assert ask(machine, READ, place, at, 8) == b"`b\x00defgh"
            assert status(machine, ERASE, place, at, 4096) == 0
            assert ask(machine, READ, place, at, 8) == b"\xff" * 8
    assert struct.unpack("<9I", ask(machine, INFO))[5] != random
    if address.startswith(("qemu", "unicorn")):
        image = machines.image_of(machines.core_of(address), machines.Setting(firmware="echo"))
        board = profiles.get(image.board)
        assert 200 < stack < 1000
        assert (slot, store) == (image.slot_bytes, image.store_bytes)
        assert arena + image.ram["stack"] < board.sram_bytes
        assert slot * 2 + (0 if board.external_bytes else store) < board.flash_bytes
    assert (ticks > 10_000) == address.startswith("unicorn")
    assert machine.read(0.01) == b""
    machine.close()
    machine.close()
    assert machine.is_closed
    with pytest.raises(EngineError, match="is closed"):
        machine.write(b"x")
    with pytest.raises(EngineError, match="is closed"):
        machine.read(1.0)


@pytest.mark.parametrize("address", ["host:", "process:", "unicorn:cortex-m4"])
def test_flash_outlives_a_reset(address: str) -> None:
    machine = started(address, firmware="echo", board=profiles.get("stm32l4"))
    assert status(machine, WRITE, STORE, 4096, 4, b"kept") == 0
    machine.write(struct.pack("<4I", ECHO, 0, 0, 1000) + b"cut short")
    machine.read(0.01)
    machine.reset()
    assert ask(machine, READ, STORE, 4096, 4) == b"kept"
    assert struct.unpack("<9I", ask(machine, INFO))[7] == 2
    machine.close()


def test_a_reset_qemu_begins_anew() -> None:
    machine = started("qemu:cortex-m3", firmware="echo")
    assert status(machine, WRITE, SLOT0, 0, 4, b"lost") == 0
    machine.reset()
    assert ask(machine, READ, SLOT0, 0, 4) == b"\xff" * 4
    machine.close()


def test_power_may_go_at_any_word_of_flash(tmp_path: Path) -> None:
    flash = tmp_path / "flash.bin"
    machine = started(f"process:{flash}", firmware="echo", environment={"MH_CUT": "3"})
    with pytest.raises(EngineError, match="ended with status -9"):
        ask(machine, WRITE, SLOT1, 0, 32, b"0123456789abcdef" * 2)
    assert machine.is_closed
    machine.close()
    again = started(f"process:{flash}", firmware="echo")
    assert ask(again, READ, SLOT1, 0, 16) == b"0123456789ab\xff\xff\xff\xff"
    again.close()
    with pytest.raises(EngineError, match="with these sizes"):
        take(started(f"process:{flash}", firmware="echo", slot_bytes=8192), 1)


@pytest.mark.parametrize("core", ["m0", "m3", "m4", "m7", "m33"])
@pytest.mark.parametrize("where", [-1, 0])
def test_a_write_outside_the_memory_of_the_board_ends_it(core: str, where: int) -> None:
    """The byte behind the arena is behind the RAM; the byte before slot 0's page is code."""
    machine = started(f"unicorn:cortex-{core}", firmware="echo")
    arena = struct.unpack("<9I", ask(machine, INFO))[0]
    place, offset = (ARENA, arena) if where == 0 else (SLOT0, 0xFFFFFFFF)
    with pytest.raises(EngineError, match="left its memory"):
        ask(machine, POKE, place, offset, 1)
    assert machine.is_closed
    machine.reset()
    assert ask(machine, ECHO, num=2, data=b"ok") == b"ok"
    assert status(machine, POKE, ARENA, arena - 1, 1) == 0


def test_a_fault_in_qemu_ends_it_with_a_reason() -> None:
    machine = started("qemu:cortex-m4", firmware="echo")
    with pytest.raises(EngineError, match="ended with status 2"):
        ask(machine, POKE, ARENA, 0x7000_0000, 1)
    machine.reset()
    assert ask(machine, ECHO, num=2, data=b"ok") == b"ok"
    machine.close()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("address", ["process:", "qemu:cortex-m3", "qemu-uart:cortex-m3"])
def test_no_process_is_left(address: str) -> None:
    machine = started(address, firmware="echo")
    pid: int = machine.pid  # type: ignore[attr-defined]
    ask(machine, INFO)
    machine.reset()
    second: int = machine.pid  # type: ignore[attr-defined]
    assert not is_alive(pid)
    assert is_alive(second)
    del machine
    gc.collect()
    assert not is_alive(second)


def test_devices_in_threads() -> None:
    fleet = [started("host:", firmware="echo", board=profiles.get("stm32l4")) for _ in range(6)]
    data = [os.urandom(50_000) for _ in fleet]
    wrong: list[int] = []

    def talk(number: int) -> None:
        for _ in range(20):
            if ask(fleet[number], ECHO, num=len(data[number]), data=data[number]) != data[number]:
                wrong.append(number)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(len(fleet))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_device_behind_a_socket() -> None:
    program = toolchain.host_program(firmware="echo")
    with socket.create_server(("127.0.0.1", 0)) as front, socket.create_server(("127.0.0.1", 0)) as back:
        port = back.getsockname()[1]
        process = subprocess.Popen([program, "65536", "4096", "4096", "/dev/shm/none", f"127.0.0.1:{port}"])
        try:
            line, _ = back.accept()
            machine = open_machine(f"socket://127.0.0.1:{front.getsockname()[1]}")
            other, _ = front.accept()
            for one, two in ((line, other), (other, line)):
                threading.Thread(target=_pump, args=(one, two), daemon=True).start()
            assert ask(machine, ECHO, num=5, data=b"hello") == b"hello"
            with pytest.raises(EngineError, match="button"):
                machine.reset()
            process.kill()
            with pytest.raises(EngineError, match="closed its stream"):
                take(machine, 1)
            machine.close()
        finally:
            process.kill()
            process.wait()
            Path("/dev/shm/none").unlink(missing_ok=True)
            line.close()
            other.close()


def _pump(one: socket.socket, two: socket.socket) -> None:
    try:
        while data := one.recv(4096):
            two.sendall(data)
        two.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_a_board_on_a_serial_line() -> None:
    """A pseudo-terminal in the board's place, with the process's device behind it."""
    board, line = os.openpty()
    tty.setraw(line)
    device = started("process:", firmware="echo")
    machine = open_machine(f"serial:{os.ttyname(line)}@115200")
    try:
        machine.write(struct.pack("<4I", ECHO, 0, 0, 5) + b"hello")
        asked = b""
        while len(asked) < 21:
            asked += os.read(board, 100)
        device.write(asked)
        os.write(board, take(device, 5))
        assert take(machine, 5) == b"hello"
        assert machine.read(0.01) == b""
        with pytest.raises(EngineError, match="button"):
            machine.reset()
        machine.close()
        with pytest.raises(EngineError, match="is closed"):
            machine.read(1.0)
    finally:
        device.close()
        os.close(board)
        os.close(line)
    with pytest.raises(EngineError, match="can't be opened"):
        open_machine("serial:/dev/there-is-no-such-line")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match="can't be reached"):
        open_machine(f"socket://127.0.0.1:{port}")


def test_addresses() -> None:
    assert machines.parse_addresses("qemu:cortex-m4*2,host:*1, serial:/dev/ttyACM0@115200") == [
        "qemu:cortex-m4",
        "qemu:cortex-m4",
        "host:",
        "serial:/dev/ttyACM0@115200",
    ]
    for bad in (
        "",
        "host",
        "hosts:",
        "qemu:cortex-m0",
        "unicorn:cortex-m55",
        "host:*0",
        "host:*x",
        "socket://a",
        "serial:",
    ):
        with pytest.raises(ConfigError):
            machines.parse_addresses(bad)
    with pytest.raises(ConfigError, match="did you mean 'cortex-m4'"):
        machines.parse_addresses("qemu:cortex-m4f")
    assert [machines.is_emulated(a) for a in ("host:", "qemu:cortex-m3", "socket://a:1")] == [True, True, False]
    with pytest.raises(ConfigError, match="32 bytes"):
        open_machine("host:", key=b"short")
    with pytest.raises(BudgetError, match="bytes over"):
        open_machine("unicorn:cortex-m4", board=profiles.get("stm32l4"), slot_bytes=1 << 20)


class Trained:
    """A small convolutional model, its blob and its rows, and what every device must answer about them."""

    def __init__(self) -> None:
        with rng.torch_seed(rng.key(3, 0, 0, Use.INIT)):
            module = tiny.build("cnn", (1, 8, 8), 5, channels=[3, 4], hidden=[10], kernel=3)
        self.program = Program(module.eval(), (1, 8, 8))
        own = torch.Generator().manual_seed(5)
        self.y = torch.randint(5, (12,), generator=own)
        self.x = torch.randn((12, 1, 8, 8), generator=own) + 0.5 * self.y.reshape(-1, 1, 1, 1)
        whole = {"whole": self.program.names("whole")}
        graph = translate(self.program.module, (1, 8, 8), self.program.initial, trained=set(whole["whole"]))
        self.blob = blob.compile(graph, whole, fits=("whole",), splits=(), momentum=True, num_classes=5)

    def run(self, address: str, **given: object) -> tuple[str, dict[str, float]]:
        """Gives a hash of all that a device answers but its own figures, and those."""
        machine = started(address, key=KEY, **given)
        wire = PacketWire(lambda: machine, KEY)
        metrics = ("rows", "loss", "correct", "error", "packing", "arena_bytes", "stack_peak", "arena_peak", "ticks")
        more = ("protocol", "model_id", "slot_bytes", "store_bytes", "rows_train", "rows_test", "rows_adapt")
        last = ("num_params", "boots", "store_used", "frames_refused")

        def do(op: Op, settings: Settings, values: dict[str, torch.Tensor], round: int = 1) -> tuple[bytes, Frame]:
            raw = wire.ask(frame.pack(Frame(op, False, round, 3, settings, values)), 60.0)
            found = frame.unpack(raw, tuple(self.program.initial), (*metrics, *more, *last))
            assert "error" not in found.metrics, (address, op, found.metrics)
            return raw, found

        do(Op.HELLO, {"seed_low": 11, "seed_high": 0}, {})
        for at in range(0, len(self.blob.data), 1000):
            part = torch.frombuffer(bytearray(self.blob.data[at : at + 1000]), dtype=torch.uint8)
            do(Op.LOAD, {"what": "blob", "step": at, "rows": len(self.blob.data)}, {"blob": part})
        do(Op.PUSH, {"rows": "train", "step": 0}, {"x": self.x, "y": self.y})
        do(Op.PUSH, {"rows": "test", "step": 0}, {"x": self.x[:4], "y": self.y[:4]})
        state = hashlib.sha256()
        fit: Settings = {"lr": 0.05, "batch": 4, "epochs": 1, "momentum": 0.9, "train": "whole", "send": "whole"}
        for round in range(2):
            raw, found = do(Op.FIT, fit, dict(self.program.initial), round)
            state.update(raw)
            raw, _ = do(Op.LOAD, {}, dict(found.tree), round)
            for op in (Op.EVALUATE, Op.PREDICT):
                raw, _ = do(op, {"rows": "test"}, {}, round)
                state.update(raw)
        _, found = do(Op.STATS, {}, {})
        wire.close()
        return state.hexdigest(), dict(found.metrics)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def wanted(trained: Trained) -> str:
    return trained.run("host:")[0]


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
@pytest.mark.parametrize("address", [*UNICORN, *QEMU])
def test_training_gives_the_same_bits_on_every_core(trained: Trained, wanted: str, address: str, compiler: str) -> None:
    if compiler == "gcc" and shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc isn't installed")
    got, stats = trained.run(address, compiler=compiler)
    assert got == wanted
    assert 500 < stats["stack_peak"] < 0.75 * toolchain.STACK_BYTES


def test_training_in_a_process_gives_the_same_bits(trained: Trained, wanted: str) -> None:
    assert trained.run("process:")[0] == wanted


def test_training_over_a_serial_line_gives_the_same_bits(trained: Trained, wanted: str) -> None:
    assert trained.run("qemu-uart:cortex-m3")[0] == wanted


def test_instructions_are_counted(trained: Trained) -> None:
    """Unicorn counts each one, without QEMU's waits for input; QEMU's counter has 8 ticks for 5 of them."""
    emulated = trained.run("unicorn:cortex-m4")[1]["ticks"]
    assert emulated == trained.run("unicorn:cortex-m4")[1]["ticks"]
    assert trained.run("qemu:cortex-m4")[1]["ticks"] == 0
    assert trained.run("qemu:cortex-m4", count=True)[1]["ticks"] * 5 / 8 == pytest.approx(emulated, rel=0.02)
