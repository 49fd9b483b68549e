"""Machines that a device runs on, as byte streams: in this process, as a process, emulated, or on a board.

| address | what | flash after `reset` |
|---|---|---|
| `host:` | in this process, over ctypes; any number, each call releases the interpreter's lock | stays |
| `process:` or `process:FLASH` | a process; its flash is a file, its own unless it is named | stays |
| `unicorn:cortex-m4` (m0 m3 m7 m33) | firmware in Unicorn; memory is exactly the board's | stays |
| `qemu:cortex-m4` (m3 m7 m33 m55) | firmware in QEMU, over semihosting | is new |
| `qemu-uart:cortex-m4` | the same over an emulated serial line | is new |
| `serial:/dev/ttyACM0` | a board on a serial line, 1 Mbaud (`serial:/dev/ttyACM0@115200`) | |
| `socket://HOST:PORT` | a board, or a gateway to one, behind TCP | |

A machine that ended, or whose stream closed, raises EngineError; one that merely has nothing to say gives no bytes.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from midhaul.devices import elf, footprint, toolchain
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, DependencyError, EngineError, nearest

KINDS = ("host", "process", "unicorn", "qemu", "qemu-uart", "serial", "socket")
EMULATED = ("host", "process", "unicorn", "qemu", "qemu-uart")
WRITE_S = 60.0
START_S = 60.0
_CHUNK = 65536
_MIB = 1 << 20
_MOST_BYTES = 64 * _MIB
_UNICORN_CORES = ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
_QEMU_CORES = ("cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")


class Machine(Protocol):
    """A byte stream to a device.

    `read` waits until bytes are there and gives them, or none if there were none by the deadline; both it and `write`
    raise EngineError once the machine has ended or its stream has closed. `reset` starts the device again, as after a
    loss of power. `name` is the address.
    """

    name: str

    @property
    def is_closed(self) -> bool:
        """Whether the machine has ended or was closed."""
        ...

    def write(self, data: bytes) -> None: ...

    def read(self, deadline_s: float, max_bytes: int = _CHUNK) -> bytes: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Memory:
    """What a device that runs on this machine has. Units: bytes."""

    arena_bytes: int
    slot_bytes: int
    store_bytes: int


@dataclass(frozen=True)
class Setting:
    """How a machine's device is built and what it is given; the same for every kind of machine."""

    board: Board | None = None
    key: bytes | None = None
    seed: int | None = None
    slot_bytes: int | None = None
    stack_bytes: int = toolchain.STACK_BYTES
    firmware: str = "device"
    count: bool = False
    compiler: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def parse_addresses(text: str) -> list[str]:
    """Gives the addresses of a comma list, each as often as its `*N` says. Raises: ConfigError for one that isn't one.

    >>> parse_addresses("qemu:cortex-m4*2, host:")
    ['qemu:cortex-m4', 'qemu:cortex-m4', 'host:']
    """
    found: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        address, star, times = word.partition("*")
        if star and not (times.isdecimal() and 0 < int(times) <= 100_000):
            raise ConfigError(f"{word!r} isn't an address and a count; write it as qemu:cortex-m4*4")
        check_address(address)
        found += [address] * (int(times) if star else 1)
    return found


def check_address(address: str) -> tuple[str, str]:
    """Gives the kind and the rest of an address. Raises: ConfigError if it is of no known kind or core."""
    kind, colon, rest = address.partition(":")
    if not colon or kind not in KINDS:
        raise ConfigError(f"{address!r} isn't the address of a device{nearest(kind, KINDS)}; write it as host:")
    cores = _UNICORN_CORES if kind == "unicorn" else _QEMU_CORES
    if kind in ("unicorn", "qemu", "qemu-uart") and rest not in cores:
        raise ConfigError(f"{address!r} names a core that {kind} doesn't have{nearest(rest, cores)}")
    if kind == "host" and rest:
        raise ConfigError(f"{address!r} has something behind the colon; write it as host:")
    if kind == "serial" and not rest.split("@")[0]:
        raise ConfigError(f"{address!r} names no line; write it as serial:/dev/ttyACM0")
    if kind == "socket" and not re.fullmatch(r"//(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}", rest):
        raise ConfigError(f"{address!r} has no host and port; write it as socket://HOST:PORT")
    return kind, rest


def is_emulated(address: str) -> bool:
    """Tells whether the device is one that this program starts, and so gives its key."""
    return check_address(address)[0] in EMULATED


def core_of(address: str) -> str:
    """Gives the core that an emulator's address names, or "" where it names none."""
    kind, rest = check_address(address)
    return rest if kind in ("unicorn", "qemu", "qemu-uart") else ""


def memory_of(board: Board | None, slot_bytes: int | None = None, stack_bytes: int = toolchain.STACK_BYTES) -> Memory:
    """Gives what the runtime leaves of a board, for a device that runs on this machine; at most 64 MiB of each.

    Without a board it is 1 MiB for the arena and for each slot, and 16 MiB for the store.
    """
    if board is None:
        return Memory(_MIB, slot_bytes or _MIB, 16 * _MIB)
    own = footprint.of(board.core)
    slot = min(toolchain.default_slot_bytes(board), _MOST_BYTES) if slot_bytes is None else slot_bytes
    pages = toolchain.PAGE_BYTES
    slot = -(-slot // pages) * pages
    store = board.external_bytes or (board.flash_bytes - own.code_bytes) // pages * pages - 2 * slot
    arena = (board.sram_bytes - own.static_bytes - stack_bytes) // 16 * 16
    return Memory(min(arena, _MOST_BYTES), slot, min(max(store, 0), _MOST_BYTES))


def open_machine(
    address: str,
    *,
    board: Board | None = None,
    key: bytes | None = None,
    seed: int | None = None,
    slot_bytes: int | None = None,
    stack_bytes: int = toolchain.STACK_BYTES,
    firmware: str = "device",
    count: bool = False,
    compiler: str = "",
    environment: dict[str, str] | None = None,
) -> Machine:
    """Gives the machine at an address, started and ready to be written to.

    `board` gives the memory: an emulated core has exactly its flash and RAM (without one, the core's default board's).
    `key` is 32 bytes that are written into the device, or None for one that speaks unsealed; a board keeps its own.
    `seed` is of the random numbers that a device draws for its sessions, in this process or behind a serial line of
    QEMU (None: new ones at each start). `count` has QEMU count instructions, which is slower: 8 ticks are 5 of them.
    `compiler` is gcc or zig, "" the first that is there. `environment` is added to that of a process.

    Raises: ConfigError for no address, DependencyError where an emulator or compiler is missing, BudgetError where the
    firmware doesn't fit the board, EngineError where the machine doesn't start.
    """
    kind, rest = check_address(address)
    if key is not None and len(key) != 32:
        raise ConfigError(f"a device's key is 32 bytes; that of {address} has {len(key)}")
    setting = Setting(board, key, seed, slot_bytes, stack_bytes, firmware, count, compiler, environment or {})
    if kind == "host":
        return HostMachine(address, setting)
    if kind == "process":
        return ProcessMachine(address, rest, setting)
    if kind == "unicorn":
        return UnicornMachine(address, rest, setting)
    if kind in ("qemu", "qemu-uart"):
        return QemuMachine(address, rest, setting)
    if kind == "serial":
        return SerialMachine(address, rest)
    return SocketMachine(address, rest)


_IMAGES: dict[tuple[object, ...], toolchain.Image] = {}


def image_of(core: str, setting: Setting, port: str = "semihosting") -> toolchain.Image:
    """Gives the firmware that an emulated core is given under a setting; built once in the life of this program."""
    board = setting.board or toolchain.board_of(core)
    sizes = (board.flash_bytes, board.sram_bytes, setting.slot_bytes, setting.stack_bytes)
    key = (board.name, core, port, setting.firmware, setting.compiler, *sizes)
    if key not in _IMAGES:
        _IMAGES[key] = toolchain.build(
            board,
            core=core,
            port=port,
            slot_bytes=setting.slot_bytes,
            stack_bytes=setting.stack_bytes,
            firmware=setting.firmware,
            compiler=toolchain.firmware_compiler(setting.compiler),
        )
    return _IMAGES[key]


class _Counter(ctypes.Structure):
    """The twin of mh_counter in device/port/count.c."""

    _fields_ = (
        ("code", ctypes.c_char_p),
        ("start", ctypes.c_uint64),
        ("num", ctypes.c_uint64),
        ("instructions", ctypes.c_uint64),
    )


@cache
def _library(firmware: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(toolchain.host_library(firmware=firmware)))
    u32, pointer = ctypes.c_uint32, ctypes.c_void_p
    library.mh_host_open.argtypes = [u32, u32, u32, ctypes.c_char_p, ctypes.c_uint64]
    library.mh_host_open.restype = pointer
    library.mh_host_exchange.argtypes = [pointer, ctypes.c_char_p, u32, ctypes.c_char_p, u32]
    library.mh_host_exchange.restype = ctypes.c_int32
    library.mh_host_waiting.argtypes = [pointer]
    library.mh_host_waiting.restype = u32
    library.mh_host_restart.argtypes = [pointer]
    library.mh_host_restart.restype = None
    library.mh_host_close.argtypes = [pointer]
    library.mh_host_close.restype = None
    return library


def _seed(setting: Setting, start: int) -> int:
    return int.from_bytes(os.urandom(8), "little") if setting.seed is None else setting.seed + start


class HostMachine:
    """A device in this process. What is written is taken when something is read, so write whole messages first."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self._library = _library(setting.firmware)
        memory = memory_of(setting.board, setting.slot_bytes, setting.stack_bytes)
        self._device = self._library.mh_host_open(
            memory.arena_bytes, memory.slot_bytes, memory.store_bytes, setting.key, _seed(setting, 0)
        )
        if not self._device:
            raise EngineError(f"{name} has no memory for {memory}; give it a smaller board")
        self._in = bytearray()
        self._out = ctypes.create_string_buffer(_CHUNK)
        self._reap = weakref.finalize(self, self._library.mh_host_close, self._device)

    @property
    def is_closed(self) -> bool:
        return not self._reap.alive

    def write(self, data: bytes) -> None:
        _check_open(self)
        self._in += data

    def read(self, deadline_s: float, max_bytes: int = _CHUNK) -> bytes:
        _check_open(self)
        data, self._in = bytes(self._in), bytearray()
        num = self._library.mh_host_exchange(self._device, data, len(data), self._out, min(max_bytes, _CHUNK))
        if num < 0:
            self.close()
            raise EngineError(f"{self.name} couldn't go on (status {num}); open it again")
        if num == 0 and deadline_s > 0:
            time.sleep(deadline_s)
        return self._out.raw[:num]

    def reset(self) -> None:
        _check_open(self)
        self._in.clear()
        self._library.mh_host_restart(self._device)

    def close(self) -> None:
        self._reap()


class UnicornMachine:
    """Firmware in Unicorn, with exactly the board's flash and RAM; code can't be written to. It runs while it is read.

    Ticks are exact counts of instructions.
    """

    def __init__(self, name: str, core: str, setting: Setting) -> None:
        self.name = name
        try:
            self._unicorn: Any = importlib.import_module("unicorn")
            self._arm: Any = importlib.import_module("unicorn.arm_const")
        except ImportError:
            raise DependencyError(f"{name} needs Unicorn; install it with: pip install 'midhaul[firmware]'") from None
        image = image_of(core, setting)
        place = toolchain.CORES[core]
        board = setting.board or toolchain.board_of(core)
        data = image.provisioned(setting.key, fresh=False, elapsed=True)
        self._elf = elf.read(data)
        self._flash_at, self._ram_at, self._ram_bytes = place.flash_at, place.ram_at, board.sram_bytes
        slots = self._elf.address("mh_slot0")
        u, a = self._unicorn, self._arm
        self._uc = u.Uc(u.UC_ARCH_ARM, u.UC_MODE_THUMB | u.UC_MODE_MCLASS)
        self._uc.ctl_set_cpu_model(getattr(a, "UC_CPU_ARM_" + core.upper().replace("-", "_")))
        # 64 KiB of the private peripherals, as memory: what start-up writes there has no effect.
        self._uc.mem_map(0xE0000000, 0x10000)
        self._uc.mem_map(place.flash_at, slots - place.flash_at, u.UC_PROT_READ | u.UC_PROT_EXEC)
        rest = place.flash_at + board.flash_bytes - slots
        self._uc.mem_map(slots, rest, u.UC_PROT_READ | u.UC_PROT_WRITE)
        self._uc.mem_map(place.ram_at, board.sram_bytes, u.UC_PROT_READ | u.UC_PROT_WRITE)
        if board.external_bytes:
            self._uc.mem_map(place.external_at, board.external_bytes, u.UC_PROT_READ | u.UC_PROT_WRITE)
            self._uc.mem_write(place.external_at, b"\xff" * board.external_bytes)
        self._uc.mem_write(slots, b"\xff" * rest)
        for segment in self._elf.segments:
            self._uc.mem_write(segment.address, segment.data)
        self._asked = False
        self._uc.hook_add(u.UC_HOOK_INTR, _stopper(weakref.ref(self)))
        self._counter = self._count(slots)
        self._in, self._out = bytearray(), bytearray()
        self._why = ""
        self._boot()

    def _count(self, end: int) -> _Counter:
        """Has a C function count instructions: one in Python would be called for every block of code."""
        code = bytes(self._uc.mem_read(self._flash_at, end - self._flash_at))
        counter = _Counter(code, self._flash_at, len(code), 0)
        hook = ctypes.cast(_counting(), ctypes.c_void_p)
        binding: Any = importlib.import_module("unicorn.unicorn_py3.unicorn")
        handle = ctypes.c_size_t()
        status = binding.uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            ctypes.c_int(self._unicorn.UC_HOOK_BLOCK),
            hook,
            ctypes.cast(ctypes.byref(counter), ctypes.c_void_p),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if status != self._unicorn.UC_ERR_OK:
            raise EngineError(f"{self.name} can't count instructions: {binding.UcError(status)}")
        return counter

    @property
    def is_closed(self) -> bool:
        return bool(self._why)

    @property
    def instructions(self) -> int:
        """How many instructions it has run."""
        return int(self._counter.instructions)

    def write(self, data: bytes) -> None:
        _check_open(self)
        self._in += data

    def read(self, deadline_s: float, max_bytes: int = _CHUNK) -> bytes:
        _check_open(self)
        end = time.monotonic() + deadline_s
        while not self._why and not (self._waits and not self._in):
            left = end - time.monotonic()
            if left <= 0 and deadline_s > 0:
                break
            self._run(max(left, 0.001))
            if len(self._out) >= max_bytes:
                break
        if self._why and not self._out:
            raise EngineError(self._why)
        if not self._out and deadline_s > 0:
            time.sleep(max(end - time.monotonic(), 0.0))
        data = bytes(self._out[:max_bytes])
        del self._out[:max_bytes]
        return data

    def reset(self) -> None:
        if self._why == f"{self.name} is closed":
            raise EngineError(self._why)
        self._why = ""
        self._in.clear()
        self._out.clear()
        self._boot()

    def close(self) -> None:
        self._why = f"{self.name} is closed"

    def _boot(self) -> None:
        """Sets stack and start from the vectors. RAM holds what no program should rely on."""
        self._uc.mem_write(self._ram_at, b"\xa7" * self._ram_bytes)
        stack, start = struct.unpack("<II", self._uc.mem_read(self._flash_at, 8))
        self._uc.reg_write(self._arm.UC_ARM_REG_SP, stack)
        self._pc = start & ~1
        self._waits = False

    def _run(self, limit_s: float) -> None:
        """Runs until the firmware asks for something or the time is up."""
        self._asked = False
        try:
            self._uc.emu_start(self._pc | 1, 0xFFFFFFFE, timeout=max(int(limit_s * 1e6), 1))
        except self._unicorn.UcError as error:
            where = self._uc.reg_read(self._arm.UC_ARM_REG_PC)
            self._why = f"{self.name} stopped at {where:#x} ({error}); its firmware left its memory"
            return
        self._pc = self._uc.reg_read(self._arm.UC_ARM_REG_PC)
        if self._asked:
            self._answer()

    def _answer(self) -> None:
        """Does what BKPT 0xAB asks for; r1 has the address of the words that say what."""
        operation = self._uc.reg_read(self._arm.UC_ARM_REG_R0)
        block = self._uc.reg_read(self._arm.UC_ARM_REG_R1)
        one, two, three = struct.unpack("<III", bytes(self._uc.mem_read(block, 12)))
        result = 0
        if operation == 0x01:
            files = {b"/dev/stdin": 1, b"/dev/stdout": 2, b"/dev/urandom": 3}
            result = files.get(bytes(self._uc.mem_read(one, three)), 0xFFFFFFFF)
        elif operation == 0x05:
            self._out += self._uc.mem_read(two, three)
        elif operation == 0x06 and one == 3:
            self._uc.mem_write(two, os.urandom(three))
        elif operation == 0x06:
            self._waits = not self._in
            if self._waits:
                return
            data = bytes(self._in[:three])
            del self._in[:three]
            self._uc.mem_write(two, data)
            result = three - len(data)
        elif operation == 0x30:
            self._uc.mem_write(block, struct.pack("<Q", self.instructions))
        elif operation == 0x20:
            self._why = f"{self.name} ended with status {two}; reset it"
            return
        else:
            self._why = f"{self.name} asked for semihosting operation {operation:#x}, which it hasn't"
            return
        self._uc.reg_write(self._arm.UC_ARM_REG_R0, result)
        self._pc += 2


def _stopper(machine: weakref.ref[UnicornMachine]) -> Any:
    """Gives a hook that holds no reference to the machine, so that it can be collected."""

    def stop(uc: Any, number: int, _: object) -> None:
        found = machine()
        if found is not None:
            found._asked = number == 7  # a breakpoint; any other exception is a fault and runs no further
            if number != 7:
                found._why = f"{found.name} took exception {number}; its firmware faulted"
        uc.emu_stop()

    return stop


@cache
def _counting() -> Any:
    return ctypes.CDLL(str(toolchain.counter_library())).mh_count_block


def _wait(source: int, to: int, limit_s: float) -> tuple[bool, bool]:
    """Tells whether bytes can be read and whether some can be written, once either is so or the time is up."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if to >= 0:
        poll.register(to, select.POLLOUT | (select.POLLIN if to == source else 0))
    events = dict(poll.poll(limit_s * 1000))
    ended = select.POLLHUP | select.POLLERR | select.POLLNVAL
    return bool(events.get(source, 0) & (select.POLLIN | ended)), bool(events.get(to, 0) & (select.POLLOUT | ended))


class _Stream:
    """Bytes over a pair of descriptors; what comes while it writes is kept, so that neither side waits for ever."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._to = self._from = -1
        self._kept = bytearray()
        self._why = f"{name} is closed"

    def _attach(self, to: int, source: int) -> None:
        self._to, self._from, self._why = to, source, ""
        self._kept.clear()
        os.set_blocking(to, False)
        os.set_blocking(source, False)

    @property
    def is_closed(self) -> bool:
        return bool(self._why)

    def write(self, data: bytes) -> None:
        _check_open(self)
        end = time.monotonic() + WRITE_S
        rest = memoryview(data)
        while rest:
            left = end - time.monotonic()
            if left <= 0:
                raise EngineError(f"{self.name} took no bytes for {WRITE_S:g} s; reset it")
            ready, able = _wait(self._from, self._to, left)
            if ready and not self._take():
                self._fail()
            if able:
                try:
                    rest = rest[os.write(self._to, rest[:_CHUNK]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self._fail()

    def read(self, deadline_s: float, max_bytes: int = _CHUNK) -> bytes:
        _check_open(self)
        if not self._kept:
            ready, _ = _wait(self._from, -1, max(deadline_s, 0.0))
            if ready and not self._take():
                self._fail()
        data = bytes(self._kept[:max_bytes])
        del self._kept[:max_bytes]
        return data

    def _take(self) -> bool:
        """Keeps what is there; False at the end of the stream."""
        try:
            data = os.read(self._from, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._kept += data
        return bool(data)

    def _fail(self) -> None:
        self._why = self._reason()
        raise EngineError(self._why)

    def _reason(self) -> str:
        return f"{self.name} closed its stream"


class _Child(_Stream):
    """A process that this program starts, and always ends and reaps."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.mkdtemp(prefix="midhaul-")
        self._reap = weakref.finalize(self, _end, [], self._folder)

    def _start(
        self, command: Sequence[str], environment: dict[str, str], listener: socket.socket | None = None
    ) -> None:
        said = open(Path(self._folder) / "said.txt", "wb")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if listener else subprocess.PIPE,
                stdout=subprocess.DEVNULL if listener else subprocess.PIPE,
                stderr=said,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for this program, which then ends its children
                bufsize=0,
            )
        except OSError as error:
            raise EngineError(f"{self.name} couldn't be started: {error}") from error
        finally:
            said.close()
        things: list[Any] = [self._process]
        if listener is not None:
            self._reap.detach()
            self._reap = weakref.finalize(self, _end, things, self._folder)
            listener.settimeout(START_S)
            try:
                line, _ = listener.accept()
            except OSError as error:
                self.close()
                raise EngineError(f"{self.name} didn't open its serial line in {START_S:g} s") from error
            things.append(line)
            self._attach(line.fileno(), line.fileno())
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reap.detach()
        self._reap = weakref.finalize(self, _end, things, self._folder)
        self._attach(self._process.stdin.fileno(), self._process.stdout.fileno())

    def _stop(self) -> None:
        """Ends the process as a loss of power would, and keeps its folder."""
        found = self._reap.detach()
        if found is not None:
            _end(found[2][0], "")
        self._reap = weakref.finalize(self, _end, [], self._folder)
        self._why = f"{self.name} is closed"

    def _reason(self) -> str:
        status: int | None = None
        if self._process is not None:
            try:
                status = self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                return f"{self.name} closed its stream; reset it"
        said = (Path(self._folder) / "said.txt").read_text(errors="replace").strip().splitlines()
        why = f" ({said[-1]})" if said else " (its firmware faulted)" if status == 2 else ""
        return f"{self.name} ended with status {status}{why}; reset it"

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid if self._process else 0

    def close(self) -> None:
        self._reap()
        self._why = f"{self.name} is closed"


def _end(things: list[Any], folder: str) -> None:
    """Ends processes, waits for them, and closes and removes what was theirs."""
    for thing in things:
        if isinstance(thing, subprocess.Popen):
            thing.kill()
            thing.wait()
            for pipe in (thing.stdin, thing.stdout):
                if pipe is not None:
                    pipe.close()
        else:
            thing.close()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


class ProcessMachine(_Child):
    """A device as a process; `reset` kills it and starts it again on the flash that it left."""

    def __init__(self, name: str, flash: str, setting: Setting) -> None:
        program = toolchain.host_program(firmware=setting.firmware)
        super().__init__(name)
        memory = memory_of(setting.board, setting.slot_bytes, setting.stack_bytes)
        sizes = [str(size) for size in (memory.arena_bytes, memory.slot_bytes, memory.store_bytes)]
        self._command = [str(program), *sizes, flash or str(Path(self._folder) / "flash.bin")]
        self._environment = dict(setting.environment)
        if setting.key is not None:
            self._environment["MH_KEY"] = setting.key.hex()
        self._start(self._command, self._environment)

    def reset(self) -> None:
        if not self._reap.alive:
            raise EngineError(f"{self.name} is closed")
        self._stop()
        self._start(self._command, self._environment)


class QemuMachine(_Child):
    """Firmware in QEMU, over semihosting on pipes or over an emulated serial line."""

    def __init__(self, name: str, core: str, setting: Setting) -> None:
        program = shutil.which("qemu-system-arm")
        if program is None:
            raise DependencyError(
                f"{name} needs qemu-system-arm; install your system's package, such as qemu-system-arm"
            )
        self._is_uart = name.startswith("qemu-uart:")
        image = image_of(core, setting, "uart" if self._is_uart else "semihosting")
        super().__init__(name)
        self._image, self._setting, self._starts = image, setting, 0
        self._ticks_at = toolchain.CORES[core].ticks_at if setting.count else 0
        self._command = [program, "-M", toolchain.CORES[core].machine, "-display", "none", "-monitor", "none"]
        self._command += ["-nic", "none", "-accel", "tcg,tb-size=32"]
        self._command += ["-icount", "shift=6"] if setting.count else []
        self._begin()

    def _kernel(self) -> list[str]:
        """Gives the option that names this device's own image, with its key and a seed for this start."""
        path, own = self._image.path, Path(self._folder) / "firmware.elf"
        if self._setting.key is not None or self._ticks_at or self._is_uart:
            seed = _seed(self._setting, self._starts)
            own.touch(mode=0o600)
            own.write_bytes(self._image.provisioned(self._setting.key, seed=seed, ticks_at=self._ticks_at))
            path = own
        self._starts += 1
        return ["-kernel", str(path)]

    def _begin(self) -> None:
        if not self._is_uart:
            more = ["-serial", "null", "-semihosting-config", "enable=on,target=native"]
            self._start([*self._command, *self._kernel(), *more], self._setting.environment)
            return
        # It must listen before QEMU starts, and QEMU must keep its default devices, or some starts hang.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            more = ["-serial", f"tcp:127.0.0.1:{listener.getsockname()[1]}"]
            self._start([*self._command, *self._kernel(), *more], self._setting.environment, listener)

    def reset(self) -> None:
        if not self._reap.alive:
            raise EngineError(f"{self.name} is closed")
        self._stop()
        self._begin()


class SocketMachine(_Stream):
    """A device behind TCP."""

    def __init__(self, name: str, rest: str) -> None:
        super().__init__(name)
        host, _, port = rest[2:].rpartition(":")
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=START_S)
        except (OSError, OverflowError) as error:
            raise EngineError(f"{name} can't be reached: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._attach(self._socket.fileno(), self._socket.fileno())

    def reset(self) -> None:
        raise EngineError(f"{self.name} can't be reset from here; press its button")

    def close(self) -> None:
        self._socket.close()
        self._why = f"{self.name} is closed"


class SerialMachine:
    """A board on a serial line, with hardware flow control."""

    def __init__(self, name: str, rest: str) -> None:
        self.name = name
        try:
            serial: Any = importlib.import_module("serial")
        except ImportError:
            raise DependencyError(f"{name} needs pyserial; install it with: pip install 'midhaul[firmware]'") from None
        line, _, baud = rest.partition("@")
        try:
            self._line = serial.Serial(line, int(baud or 1_000_000), rtscts=True, write_timeout=WRITE_S)
        except (serial.SerialException, ValueError) as error:
            raise EngineError(f"{name} can't be opened: {error}") from error
        self._error = serial.SerialException
        self._why = ""

    @property
    def is_closed(self) -> bool:
        return bool(self._why)

    def write(self, data: bytes) -> None:
        _check_open(self)
        try:
            self._line.write(data)
        except self._error as error:
            self._fail(error)

    def read(self, deadline_s: float, max_bytes: int = _CHUNK) -> bytes:
        _check_open(self)
        try:
            self._line.timeout = max(deadline_s, 0.0)
            first: bytes = self._line.read(1)
            more: bytes = self._line.read(min(self._line.in_waiting, max_bytes - 1)) if first else b""
        except (self._error, OSError) as error:
            self._fail(error)
        return first + more

    def _fail(self, error: Exception) -> None:
        self._why = f"{self.name} failed: {error}"
        raise EngineError(self._why) from error

    def reset(self) -> None:
        raise EngineError(f"{self.name} can't be reset from here; press its button")

    def close(self) -> None:
        self._line.close()
        self._why = f"{self.name} is closed"


def _check_open(machine: HostMachine | UnicornMachine | _Stream | SerialMachine) -> None:
    if machine.is_closed:
        why = getattr(machine, "_why", "") or f"{machine.name} is closed"
        raise EngineError(why)
