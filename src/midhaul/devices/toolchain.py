"""Builds the device runtime: firmware for a board, a shared library for this machine, a program of one device.

Firmware is compiled by arm-none-eabi-gcc where there is one, else by zig from the package `ziglang`; both give the same
bits. Builds are cached by the content of all sources and flags under XDG_CACHE_HOME/midhaul (or ~/.cache/midhaul).
The sources are found beside an editable install, or in the folder that the variable MIDHAUL_DEVICE names.

Limits: firmware for Cortex-M only; an image is linked for where QEMU's boards have their memory, with the lengths of
the board (port "nrf52840": for where the chip has it).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from midhaul.devices import elf, profiles
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError, ConfigError, DependencyError, EngineError, nearest

PAGE_BYTES = 4096
STACK_BYTES = 3072  # no op was seen to take more than 2184
PORTS = ("semihosting", "uart", "nrf52840")
FIRMWARE = ("device", "echo")
_COMPILE_S = 300.0
_C = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-ffp-contract=off", "-fno-math-errno", "-g0")
_BARE = ("-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-common")
_KERNELS = re.compile(r"mh_\w+_f32\.c|mh_s8\w*\.c|mh_math\.c|mh_cobs\.c|mh_crc32\.c")
_ZIG_BARE = (
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-fno-sanitize=all",
    "-fno-stack-protector",
)
_CONFIG = struct.Struct("<IIII32s")
_CONFIG_MAGIC, _HAS_KEY, _FRESH, _ELAPSED = 0x3143484D, 1, 2, 4


@dataclass(frozen=True)
class Core:
    """A core that firmware is built for, and where QEMU's board for it has memory and devices.

    `packing` is what mh_blob.h calls the layout of int8 weights; `ticks_at` a 25 MHz counter that counts up, 0 if none.
    """

    name: str
    gcc: tuple[str, ...]
    zig: tuple[str, ...]
    packing: int
    board: str
    machine: str = ""
    flash_at: int = 0
    ram_at: int = 0x20000000
    uart_at: int = 0x40004000
    ticks_at: int = 0x40028018
    external_at: int = 0x21000000
    boot_at: int = -1


def _gcc(cpu: str, fpu: str = "") -> tuple[str, ...]:
    floats = (f"-mfpu={fpu}", "-mfloat-abi=hard") if fpu else ("-mfloat-abi=soft",)
    return (f"-mcpu={cpu}", "-mthumb", *floats)


def _zig(cpu: str, hard: bool) -> tuple[str, ...]:
    return (f"--target=thumb-freestanding-eabi{'hf' if hard else ''}", f"-mcpu={cpu}")


CORES: dict[str, Core] = {
    core.name: core
    for core in (
        Core("cortex-m0", _gcc("cortex-m0plus"), _zig("cortex_m0plus", False), 0, "rp2040", ticks_at=0),
        Core("cortex-m3", _gcc("cortex-m3"), _zig("cortex_m3", False), 0, "stm32l1", "mps2-an385"),
        Core(
            "cortex-m4",
            _gcc("cortex-m4", "fpv4-sp-d16"),
            _zig("cortex_m4+vfp4d16sp", True),
            1,
            "stm32f4",
            "mps2-an386",
        ),
        Core(
            "cortex-m7",
            _gcc("cortex-m7", "fpv5-sp-d16"),
            _zig("cortex_m7+fp_armv8d16sp", True),
            1,
            "stm32h7",
            "mps2-an500",
        ),
        Core(
            "cortex-m33",
            _gcc("cortex-m33", "fpv5-sp-d16"),
            _zig("cortex_m33+dsp+fp_armv8d16sp", True),
            1,
            "nrf5340",
            "mps2-an505",
            flash_at=0x10000000,
            ram_at=0x38000000,
            uart_at=0x50200000,
            ticks_at=0x50302018,
            external_at=0x80000000,
        ),
        Core(
            "cortex-m55",
            ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
            _zig("cortex_m55+mve_fp+fp_armv8d16", True),
            2,
            "alif_e3",
            "mps3-an547",
            flash_at=0x70000000,
            ram_at=0x71000000,
            uart_at=0x59303000,
            ticks_at=0x59302018,
            external_at=0x60000000,
            boot_at=0,
        ),
    )
}
_CORE_OF = {
    "Cortex-M0+": "cortex-m0",
    "Cortex-M3": "cortex-m3",
    "Cortex-M4F": "cortex-m4",
    "Cortex-M7": "cortex-m7",
    "Cortex-M33": "cortex-m33",
    "Cortex-M55": "cortex-m55",
}


@dataclass(frozen=True)
class Compiler:
    """A C compiler: `kind` is gcc (or what takes its options) or zig; `version` tells builds of two of them apart."""

    kind: str
    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Image:
    """Firmware for one board.

    Units: all sizes are bytes. `flash` has code (text and constants), data (what .data is filled from), slots (both)
    and store; `ram` has stack, data, bss and arena; `parts` has the code and constants of each source file, and
    `(compiler)` for what comes from the compiler or has no symbol. `packing` is that of the int8 weights it wants.
    """

    board: str
    core: str
    port: str
    compiler: str
    path: Path
    map_path: Path
    flash: dict[str, int]
    ram: dict[str, int]
    parts: dict[str, int]
    slot_bytes: int
    packing: int

    @property
    def arena_bytes(self) -> int:
        """What is left of RAM for a model."""
        return self.ram["arena"] // 16 * 16

    @property
    def store_bytes(self) -> int:
        """What is left of flash for the device's own rows."""
        return self.flash["store"]

    @property
    def code_bytes(self) -> int:
        """Code and constants, without what .data is filled from."""
        return self.flash["code"]

    @property
    def elf(self) -> elf.Elf:
        """The sections, segments and symbols of it."""
        return elf.read(self.path.read_bytes())

    @property
    def symbols(self) -> dict[str, int]:
        """The address of each symbol."""
        return {symbol.name: symbol.address for symbol in self.elf.symbols if symbol.section and symbol.name}

    def provisioned(
        self,
        key: bytes | None,
        *,
        seed: int = 1,
        ticks_at: int = 0,
        fresh: bool = True,
        elapsed: bool = False,
    ) -> bytes:
        """Gives the ELF file with a device's key and settings in it, for one device alone.

        `key` is 32 bytes, or None for a device that speaks unsealed; `fresh` has an emulated device erase its flash at
        the start; ticks are read at the address `ticks_at`, or asked of the emulator where `elapsed`.

        Raises: ConfigError for a key of another length.
        """
        if key is not None and len(key) != 32:
            raise ConfigError(f"a device's key is 32 bytes; this one has {len(key)}")
        data = bytearray(self.path.read_bytes())
        image = elf.read(bytes(data))
        at = image.offset_of(image.address("mh_image_config"))
        if struct.unpack_from("<I", data, at)[0] != _CONFIG_MAGIC:
            raise EngineError(f"{self.path} has no settings of a device where they should be; build it again")
        flags = (0 if key is None else _HAS_KEY) | (_FRESH if fresh else 0) | (_ELAPSED if elapsed else 0)
        _CONFIG.pack_into(data, at, _CONFIG_MAGIC, flags, ticks_at, seed & 0xFFFFFFFF, key or bytes(32))
        return bytes(data)


def core_of(board: Board) -> Core:
    """Gives the core that a board's firmware is built for. Raises: ConfigError if it is no Cortex-M."""
    if board.core not in _CORE_OF:
        raise ConfigError(f"board {board.name} has a {board.core}; firmware is built for Cortex-M boards only")
    return CORES[_CORE_OF[board.core]]


def core_named(name: str) -> Core:
    """Gives the core of that name. Raises: ConfigError naming the nearest known one."""
    if name not in CORES:
        raise ConfigError(f"there is no core {name!r}{nearest(name, CORES)}")
    return CORES[name]


def board_of(board: Board | str) -> Board:
    """Gives a board, by its name or by that of a core: then the core's own default board."""
    if isinstance(board, Board):
        return board
    return profiles.get(core_named(board).board if board.startswith("cortex-") else board)


def default_slot_bytes(board: Board) -> int:
    """Gives the size of a slot where none is asked for: a quarter of the flash that 64 KiB of code leave."""
    return max((board.flash_bytes - 65536) // 4, 0) // PAGE_BYTES * PAGE_BYTES


@cache
def sources() -> Path:
    """Gives the folder of the device's C sources.

    Raises: ConfigError if there is none: an install that isn't editable doesn't carry them.
    """
    named = os.environ.get("MIDHAUL_DEVICE")
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "device"
    if not (root / "include" / "mh_port.h").is_file():
        where = "the variable MIDHAUL_DEVICE" if named else "MIDHAUL_DEVICE, which isn't set,"
        raise ConfigError(f"there are no device sources in {root}; let {where} name the folder `device` of a checkout")
    return root


def _version(command: Sequence[str]) -> str:
    try:
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.splitlines()[0] if asked.returncode == 0 and asked.stdout else ""


def _zig_compiler() -> Compiler | None:
    if importlib.util.find_spec("ziglang") is None:
        return None
    from importlib.metadata import version

    return Compiler("zig", (sys.executable, "-m", "ziglang", "cc"), f"zig {version('ziglang')}")


@cache
def firmware_compiler(kind: str = "") -> Compiler:
    """Gives a compiler for Cortex-M: `kind` is gcc, zig, or "" for the first of these that is there.

    Raises: DependencyError if there is none.
    """
    if kind in ("", "gcc"):
        found = shutil.which("arm-none-eabi-gcc")
        version = _version([found]) if found else ""
        if found and version:
            return Compiler("gcc", (found,), version)
    if kind in ("", "zig"):
        zig = _zig_compiler()
        if zig:
            return zig
    missing = "arm-none-eabi-gcc" if kind == "gcc" else "compiler for Cortex-M"
    raise DependencyError(f"there is no {missing} here; install one with: pip install ziglang")


@cache
def host_compiler() -> Compiler:
    """Gives a compiler for this machine: the one in the variable CC, cc, gcc, clang or zig.

    Raises: DependencyError if there is none.
    """
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        command = name.split()
        if command and shutil.which(command[0]):
            version = _version(command)
            if version:
                return Compiler("gcc", tuple(command), version)
    zig = _zig_compiler()
    if zig:
        return zig
    raise DependencyError("there is no C compiler here; install one with: pip install ziglang")


def cache_folder() -> Path:
    """Gives the folder of builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midhaul" / "builds"


def _run(command: Sequence[str], what: str) -> str:
    """Gives what a compiler wrote. Raises: EngineError with the first of its errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{what} couldn't be built: {error}") from error
    said = done.stderr + done.stdout
    if done.returncode != 0:
        over = re.findall(r"region [`'](\w+)'[:;]? overflowed by (\d+) bytes", said)
        if over:
            raise _Overflow({region: max(int(n) for r, n in over if r == region) for region, _ in over})
        wrong = re.compile(r"error: (?!ld returned)|undefined|multiple definition")
        lines = [line for line in said.splitlines() if wrong.search(line)] or said.splitlines() or ["no message"]
        raise EngineError(f"{what} couldn't be built: {lines[0].strip()}")
    return said


class _Overflow(Exception):
    """A region of memory and by how many bytes it overflows."""

    def __init__(self, over: dict[str, int]) -> None:
        super().__init__(str(over))
        self.over = over


def _digest(*parts: str | bytes) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:32]


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """Gives the folder of a build, made in a folder of its own and renamed when it is whole."""
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        make(working)
        try:
            working.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return folder


def _headers(folders: Sequence[Path]) -> str:
    files = [file for folder in folders for file in sorted(folder.glob("*.h"))]
    return _digest(*(part for file in files for part in (str(file.parent.name), file.name, file.read_bytes())))


def _objects(compiler: Compiler, flags: Sequence[str], files: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """Gives the object file of each source, compiled where it isn't in the cache, several at a time."""
    headers = _headers(folders)
    include = [f"-I{folder}" for folder in folders]

    def one(file: Path) -> Path:
        name = _digest("object", compiler.version, *flags, file.name, file.read_bytes(), headers)

        def make(folder: Path) -> None:
            command = [*compiler.command, *flags, *include, "-c", str(file), "-o", str(folder / f"{file.stem}.o")]
            said = _run(command, file.name)
            (folder / "said.txt").write_text(said)

        return _cached(name, make) / f"{file.stem}.o"

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(one, files))


def _runtime(firmware: str) -> tuple[list[Path], list[Path]]:
    """Gives the sources and the folders of headers of the device, or of the one that echoes."""
    root = sources()
    if firmware not in FIRMWARE:
        raise ConfigError(f"there is no firmware {firmware!r}{nearest(firmware, FIRMWARE)}")
    if firmware == "echo":
        return [root / "tests" / "echo.c"], [root / "tests" / "echo", root / "include"]
    return sorted((root / "src").glob("*.c")), [root / "include", root / "src"]


def build(
    board: Board | str,
    *,
    core: str = "",
    port: str = "semihosting",
    slot_bytes: int | None = None,
    stack_bytes: int = STACK_BYTES,
    firmware: str = "device",
    optimise: str = "",
    compiler: Compiler | None = None,
    strict: bool = False,
    defines: Sequence[str] = (),
    out: Path | None = None,
) -> Image:
    """Gives the firmware of a board (or of a core's default board), from the cache if it was built before.

    `optimise` is one option for all files; without it kernels are built for speed and all else for size.
    `core` is another core than the board's, which then gives the memory alone.
    `port` is "semihosting" (QEMU and Unicorn), "uart" (QEMU's serial line) or "nrf52840" (the board itself);
    `slot_bytes` the size of each of the two places for a blob; `strict` makes warnings errors; `out` a path to copy the
    ELF file to.

    Raises: BudgetError if it doesn't fit the board, with the bytes over; DependencyError without a compiler.
    """
    board = board_of(board)
    made_for = core_named(core) if core else core_of(board)
    if port not in PORTS:
        raise ConfigError(f"there is no port {port!r}{nearest(port, PORTS)}")
    if port == "nrf52840" and board.name != "nrf52840":
        raise ConfigError(f"port nrf52840 is for the board nrf52840, not for {board.name}")
    slot = default_slot_bytes(board) if slot_bytes is None else -(-slot_bytes // PAGE_BYTES) * PAGE_BYTES
    compiler = compiler or firmware_compiler()
    real = port == "nrf52840"
    external = 0 if real else board.external_bytes  # that port has no driver for it
    root = sources()
    bare = root / "port" / "cortexm"

    flags = [*(made_for.gcc if compiler.kind == "gcc" else (*made_for.zig, *_ZIG_BARE)), *_C, *_BARE]
    flags += [f"-D{define}" for define in defines]
    flags += ["-Werror"] if strict else []
    boots = made_for.boot_at >= 0 and not real
    own = [f"-DMH_UART_AT={made_for.uart_at:#x}u", *(["-DMH_BOOT_VECTORS"] if boots else [])]
    files, folders = _runtime(firmware)
    folders.append(bare / "libc")
    ports = [bare / f"{name}.c" for name in ("start", "config", "memory", "main", port)]
    ports += [] if real else [bare / "flash.c"]
    fast = [file for file in files if not optimise and _KERNELS.match(file.name)]
    rest = [file for file in files if file not in fast]
    small = [*flags, optimise or "-Os"]
    # Beyond these, kernels grow and need no fewer instructions; with zig they even need more.
    fast_flags = [*flags, "-O2" if compiler.kind == "gcc" else "-Os"]
    objects = _objects(compiler, fast_flags, fast, folders) + _objects(compiler, small, rest, folders)
    objects += _objects(compiler, [*small, *own], ports, [*folders, bare])

    values = {
        "FLASH_ORIGIN": hex(0 if real else made_for.flash_at),
        "FLASH_BYTES": str(board.flash_bytes),
        "RAM_ORIGIN": hex(0x20000000 if real else made_for.ram_at),
        "RAM_BYTES": str(board.sram_bytes),
        "STACK_BYTES": str(-(-stack_bytes // 16) * 16),
        "SLOT_BYTES": str(slot),
        "PAGE_BYTES": str(PAGE_BYTES),
        "STORE_LOW": hex(made_for.external_at) if external else "mh_slots_high",
        "STORE_HIGH": hex(made_for.external_at + external) if external else "mh_flash_high",
        "BOOT_REGION": f"    BOOT (rx) : ORIGIN = {made_for.boot_at:#x}, LENGTH = 64" if boots else "",
        "BOOT_SECTION": "    .boot_vectors : { KEEP(*(.boot_vectors)) } > BOOT" if boots else "",
    }
    script = re.sub(r"@(\w+)@", lambda found: values[found[1]], (bare / "link.ld.in").read_text())
    name = _digest("image", compiler.version, *small, script, *(str(path) for path in objects))

    def make(folder: Path) -> None:
        (folder / "link.ld").write_text(script)
        # zig takes the options for its own library; with -Os alone it would leave the symbols out.
        link = [*compiler.command, *small, "-g", "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,mh_reset"]
        link += ["-T", str(folder / "link.ld"), *map(str, objects), "-o", str(folder / "firmware.elf")]
        link += ["-lgcc"] if compiler.kind == "gcc" else ["-rtlib=compiler-rt"]
        _run(link, f"firmware for {board.name}")
        image = elf.read((folder / "firmware.elf").read_bytes())
        over = image.address("mh_slots_high") - image.address("mh_flash_high")
        if over > 0:
            raise _Overflow({"FLASH": over})
        (folder / "firmware.map").write_text(_map(image))
        (folder / "parts.json").write_text(json.dumps(_parts(image, objects), indent=1))

    try:
        folder = _cached(name, make)
    except _Overflow as error:
        over = " and ".join(
            f"{'flash' if region == 'FLASH' else 'RAM'} is {num} bytes over" for region, num in error.over.items()
        )
        raise BudgetError(
            f"firmware with slots of {slot} bytes doesn't fit board {board.name}: {over}; "
            "take smaller slots, a smaller stack or a larger board"
        ) from error
    path = folder / "firmware.elf"
    if out is not None:
        shutil.copyfile(path, out)
        path = out
    image = elf.read(path.read_bytes())
    at = image.address
    code = sum(s.bytes for s in image.sections if s.allocated and s.stored and not s.writable and s.name != ".data")
    flash = {
        "code": code,
        "data": at("mh_data_high") - at("mh_data_low"),
        "slots": at("mh_slots_high") - at("mh_slot0"),
        "store": at("mh_store_high") - at("mh_store_low"),
    }
    ram = {
        "stack": at("mh_stack_high") - at("mh_stack_low"),
        "data": at("mh_data_high") - at("mh_data_low"),
        "bss": at("mh_bss_high") - at("mh_bss_low"),
        "arena": at("mh_arena_high") - at("mh_arena_low"),
    }
    parts = json.loads((folder / "parts.json").read_text())
    return Image(
        board.name,
        made_for.name,
        port,
        compiler.version,
        path,
        folder / "firmware.map",
        flash,
        ram,
        parts,
        slot,
        made_for.packing,
    )


def _map(image: elf.Elf) -> str:
    """Gives the map file: sections, then symbols by address. Written here, since zig's linker writes none."""
    lines = [f"{s.address:08x} {s.bytes:8d} {s.name}" for s in image.sections if s.allocated]
    symbols = sorted((s for s in image.symbols if s.section and s.bytes), key=lambda s: s.address)
    return "\n".join([*lines, "", *(f"{s.address:08x} {s.bytes:8d} {s.name}" for s in symbols), ""])


def _parts(image: elf.Elf, objects: Sequence[Path]) -> dict[str, int]:
    """Gives the bytes of code and constants of each source: each symbol's, under the object that defines it."""
    homes: dict[str, str] = {}
    for path in objects:
        for symbol in elf.read(path.read_bytes()).symbols:
            if symbol.section and symbol.bytes and symbol.name:
                homes.setdefault(symbol.name, f"{path.stem}.c")
    flash = [s for s in image.sections if s.allocated and s.stored and not s.writable]
    parts: dict[str, int] = dict.fromkeys((f"{path.stem}.c" for path in objects), 0)
    seen: set[int] = set()
    for symbol in image.symbols:
        at = symbol.address & ~1
        if symbol.bytes and at not in seen and any(s.address <= at < s.address + s.bytes for s in flash):
            seen.add(at)
            home = homes.get(symbol.name, "(compiler)")
            parts[home] = parts.get(home, 0) + symbol.bytes
    parts["(compiler)"] = sum(s.bytes for s in flash) - sum(n for name, n in parts.items() if name != "(compiler)")
    return parts


def _processor() -> str:
    """Gives what tells apart processors that -march=native builds differently for."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return " ".join(line for line in text.splitlines()[:40] if line.startswith(("model name", "flags", "Features")))


def _host_flags(compiler: Compiler, sanitize: str) -> list[str]:
    # Vector instructions change no bits: nothing is contracted and no sum is reordered.
    native = ["-march=native"] if compiler.kind == "gcc" and platform.machine() in ("x86_64", "AMD64") else []
    return [*_C, "-O1" if sanitize else "-O3", *native, *_checks(compiler, sanitize)]


def _checks(compiler: Compiler, sanitize: str) -> list[str]:
    if sanitize:
        return [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    return ["-fno-sanitize=all"] if compiler.kind == "zig" else []


def _host_build(firmware: str, main: Path, sanitize: str, shared: bool, strict: bool, compiler: Compiler) -> Path:
    files, folders = _runtime(firmware)
    flags = [*_host_flags(compiler, sanitize), *(["-fPIC"] if shared else []), *(["-Werror"] if strict else [])]
    objects = _objects(compiler, [*flags, f"-DMH_HOST_{_digest(_processor())[:8]}"], [*files, main], folders)
    name = "mh_device.so" if shared else "mh_device"

    def make(folder: Path) -> None:
        link = [*compiler.command, *flags, *(["-shared"] if shared else []), *map(str, objects)]
        _run([*link, "-o", str(folder / name)], name)

    key = _digest("host", name, compiler.version, *flags, *(str(path) for path in objects))
    return _cached(key, make) / name


def host_library(
    sanitize: bool = False, *, firmware: str = "device", strict: bool = False, compiler: Compiler | None = None
) -> Path:
    """Gives a shared library with every function of the runtime and port/host.c, for ctypes.

    `sanitize` builds in checks of undefined behaviour, which end the process; those of addresses can't be loaded into
    Python, so `host_program` has them. Raises: DependencyError without a compiler.
    """
    main = sources() / "port" / "host.c"
    return _host_build(firmware, main, "undefined" if sanitize else "", True, strict, compiler or host_compiler())


def host_program(
    sanitize: bool = False, *, firmware: str = "device", strict: bool = False, compiler: Compiler | None = None
) -> Path:
    """Gives the program of port/posix.c: a device as a process of its own.

    `sanitize` builds in checks of addresses and of undefined behaviour. Raises: DependencyError without a compiler.
    """
    main = sources() / "port" / "posix.c"
    checks = "address,undefined" if sanitize else ""
    return _host_build(firmware, main, checks, False, strict, compiler or host_compiler())


def counter_library() -> Path:
    """Gives the shared library of port/count.c, which counts the instructions of an emulated core."""
    compiler = host_compiler()
    flags = [*_host_flags(compiler, ""), "-fPIC"]
    objects = _objects(compiler, flags, [sources() / "port" / "count.c"], [sources() / "include"])

    def make(folder: Path) -> None:
        _run([*compiler.command, *flags, "-shared", *map(str, objects), "-o", str(folder / "mh_count.so")], "mh_count")

    return _cached(_digest("count", compiler.version, *flags, *(str(path) for path in objects)), make) / "mh_count.so"


def kernel_library(folder: Path, *, sanitize: str = "") -> Path:
    """Gives a shared library of all C files of a folder, built for speed on this very processor.

    `sanitize` is what -fsanitize takes. Raises: DependencyError without a compiler, EngineError if it can't be built.
    """
    compiler = host_compiler()
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-fno-math-errno", "-fPIC", "-pthread", "-g0"]
    flags += ["-march=native"] if compiler.kind == "zig" or platform.machine() in ("x86_64", "AMD64") else []
    flags += ["-O1" if sanitize else "-O2", *_checks(compiler, sanitize)]
    files = sorted(folder.glob("*.c"))
    objects = _objects(compiler, [*flags, f"-DMK_HOST_{_digest(_processor())[:8]}"], files, [folder])

    def make(working: Path) -> None:
        link = [*compiler.command, *flags, "-shared", *map(str, objects), "-lm", "-o", str(working / "kernels.so")]
        _run(link, "the compiled kernels")

    return _cached(_digest("kernels", compiler.version, *flags, *(str(path) for path in objects)), make) / "kernels.so"
