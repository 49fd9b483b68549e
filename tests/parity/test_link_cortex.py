"""The link's arithmetic as Cortex-M code: the library's seals, zlib's sums, Python's orders, and no long multiplication
on a core where it takes as long as its operands are wide."""

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

sys.path.insert(0, str(Path(__file__).parent))
import cortex

from midhaul import rng
from midhaul.link import packet
from midhaul.rng import Use

SOURCES = [cortex.DEVICE / "src" / f"mh_{name}.c" for name in ("aead", "cobs", "crc32", "rng")]
BYTES = np.random.default_rng(3).integers(0, 256, 1200).astype(np.uint8)
KEY, NONCE, HEAD = BYTES[:32], BYTES[32:44], BYTES[44:56]
# Instructions a byte of a full packet: what was measured at -O2, and a tenth more.
MOST = {"m3": 1.1 * 74.5, "m4": 1.1 * 45.9}


@pytest.fixture(scope="module", params=["m3", "m4"])
def core(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["gcc", "zig"])
def program(request: pytest.FixtureRequest, core: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "gcc" and not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("arm-none-eabi-gcc isn't installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPATH", str(cortex.DEVICE / "port" / "cortexm" / "libc"))  # zig brings no string.h for bare cores
        return cortex.build(request.param, core, SOURCES, tmp_path_factory.mktemp("link") / "link.elf", "-O2")


@pytest.mark.parametrize("num", [0, 1, 15, 16, 17, 63, 64, 65, 1024])
def test_seals_are_the_librarys(program: Path, core: str, num: int) -> None:
    machine = cortex.Machine(program, core)
    data, tag = BYTES[:num].copy(), np.zeros(16, np.uint8)
    sealed = ChaCha20Poly1305(KEY.tobytes()).encrypt(NONCE.tobytes(), data.tobytes(), HEAD.tobytes())
    machine.call("mh_aead_seal", KEY, NONCE, HEAD, 12, data, num, tag)
    assert data.tobytes() + tag.tobytes() == sealed
    tag[3] ^= 1
    assert machine.call("mh_aead_open", KEY, NONCE, HEAD, 12, data, num, tag) == 0xFFFFFFFF
    tag[3] ^= 1
    assert machine.call("mh_aead_open", KEY, NONCE, HEAD, 12, data, num, tag) == 0
    assert np.array_equal(data, BYTES[:num])


def test_sums_stuffing_and_orders_are_pythons(program: Path, core: str) -> None:
    machine = cortex.Machine(program, core)
    data, stuffed = BYTES[:1056] % 5, np.zeros(1100, np.uint8)
    assert machine.call("mh_crc32", 0, data, len(data)) == zlib.crc32(data.tobytes())
    num = machine.call("mh_cobs_encode", data, len(data), stuffed)
    assert stuffed[:num].tobytes() == packet.stuff(data.tobytes())
    order = np.zeros(700, np.uint16)
    machine.call("mh_permutation_u16", 0x89ABCDEF, 0x01234567, 9, 4, int(Use.BATCH), order, len(order))
    assert np.array_equal(order, rng.permutation(rng.key(0x0123456789ABCDEF, 9, 4, Use.BATCH), len(order)))


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="the figures are of arm-none-eabi-gcc")
def test_what_a_seal_costs(core: str, tmp_path: Path) -> None:
    machine = cortex.Machine(cortex.build("gcc", core, SOURCES, tmp_path / "link.elf", "-O2"), core, counts=True)
    machine.call("mh_aead_seal", KEY, NONCE, HEAD, 12, BYTES[:1024].copy(), 1024, np.zeros(16, np.uint8))
    assert MOST[core] / 1.5 < sum(machine.counts.values()) / 1024 < MOST[core]


@pytest.mark.parametrize("level", ["-Os", "-O2", "-O3"])
def test_an_m3_seals_without_long_multiplications(tmp_path: Path, level: str) -> None:
    if not shutil.which("arm-none-eabi-objdump"):
        pytest.skip("arm-none-eabi-objdump isn't installed")
    found = {}
    for core in ("m3", "m4"):
        program = cortex.build("gcc", core, SOURCES[:1], tmp_path / f"{core}.elf", level)
        said = subprocess.run(["arm-none-eabi-objdump", "-d", program], check=True, capture_output=True, text=True)
        found[core] = said.stdout.count("\tumull") + said.stdout.count("\tumlal") + said.stdout.count("__aeabi_lmul")
    assert found["m3"] == 0
    assert found["m4"] > 0
