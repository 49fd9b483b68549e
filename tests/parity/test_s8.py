"""int8 kernels in C against the numpy reference, bit for bit: plain on the host, DSP on a Cortex-M4, MVE in QEMU."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import s8_cases
from cortex import DEVICE, STRICT, Machine, build
from helium import Helium, missing
from s8_cases import Case

from midhaul.devices.pack import Packing
from midhaul.models import quantise as q
from midhaul.net import Value, macs

SOURCES = [DEVICE / "src" / name for name in ("mh_s8.c", "mh_s8_plain.c", "mh_s8_dsp.c", "mh_s8_mve.c")]
CASES = s8_cases.cases()


def made(place: int) -> Case:
    return CASES[place](np.random.default_rng(place))


class Host:
    """The kernels on this machine, called with numpy arrays and integers."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def call(self, name: str, *values: Any) -> int:
        pointers = [v.ctypes.data_as(ctypes.c_void_p) if isinstance(v, np.ndarray) else v for v in values]
        return int(getattr(self.library, name)(*pointers))


def compiled(folder: Path, *flags: str) -> Path:
    out = folder / "kernels.so"
    command = [
        "gcc",
        *flags,
        *STRICT,
        "-Wconversion",
        "-shared",
        "-fPIC",
        "-I",
        str(DEVICE / "include"),
        "-o",
        str(out),
    ]
    subprocess.run([*command, *map(str, SOURCES)], check=True)
    return out


@pytest.fixture(
    scope="module", params=["-O0 -fsanitize=undefined -fsanitize-undefined-trap-on-error", "-O3 -march=native"]
)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    if not shutil.which("gcc"):
        pytest.skip("no gcc on this machine")
    return Host(compiled(tmp_path_factory.mktemp("host"), *request.param.split(" ")))


@pytest.fixture(scope="module", params=["gcc", "zig"])
def m4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if request.param == "gcc" and not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("no arm-none-eabi-gcc on this machine")
    program = build(request.param, "m4", SOURCES, tmp_path_factory.mktemp("m4") / "kernels.elf")
    return Machine(program, "m4", counts=True)


def held(machine: Any, case: Case, packing: Packing) -> None:
    """Runs a layer's kernel and holds it to the reference; its sizes to what Python packs."""
    one = s8_cases.call(case, packing)
    machine.call(one.name, *one.arguments)
    got, want = one.result(), case.wanted().ravel()
    wrong = np.flatnonzero(got != want)
    assert not len(wrong), (
        f"{len(wrong)} of {len(want)} differ, the first at {wrong[0]}: {got[wrong[0]]}, {want[wrong[0]]}"
    )
    if case.layer.kind.name in ("DENSE", "CONV", "DEPTHWISE"):
        name, arguments, wanted = s8_cases.sizes(case, packing)
        machine.call(name, *arguments)
        assert arguments[-1].tolist() == wanted


def test_the_cases_reach_both_ends_and_the_middle() -> None:
    for place in range(len(CASES)):
        numbers = made(place).wanted()
        assert numbers.size < 9 or len(np.unique(numbers)) > 2
    shifts = [made(place).layer.packed.shift for place in range(len(CASES))]  # type: ignore[union-attr]
    assert max(int(shift.max()) for shift in shifts if len(shift)) >= 2


@pytest.mark.parametrize("place", range(len(CASES)))
def test_plain_kernels_give_the_reference(host: Host, place: int) -> None:
    held(host, made(place), Packing.PLAIN)


def test_plain_builds_say_so(host: Host) -> None:
    assert host.call("mh_packing") == Packing.PLAIN


def test_dsp_builds_say_so(m4: Machine) -> None:
    assert m4.call("mh_packing") == Packing.DSP


@pytest.mark.parametrize("place", range(len(CASES)))
def test_dsp_kernels_give_the_reference(m4: Machine, place: int) -> None:
    held(m4, made(place), Packing.DSP)


def test_dsp_kernels_stay_below_their_instructions_per_mac(m4: Machine) -> None:
    layers = s8_cases.table_layers(np.random.default_rng(0))
    for (name, case), most in zip(layers.items(), (1.5, 1.5, 1.4, 5.0), strict=True):
        m4.counts.clear()
        held(m4, case, Packing.DSP)
        assert m4.counts.total() < most * macs(case.net, case.layer), name


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_mve_kernels_give_the_reference(compiler: str, tmp_path: Path) -> None:
    if lacks := missing(compiler):
        pytest.skip(f"this machine has no {lacks}")
    helium = Helium(compiler, SOURCES, tmp_path)
    layers = s8_cases.table_layers(np.random.default_rng(0))
    cases = [*layers.values(), *(made(place) for place in range(len(CASES)))]
    calls = [s8_cases.call(case, Packing.MVE) for case in cases]
    matrices = [case for case in cases if case.layer.kind.name in ("DENSE", "CONV", "DEPTHWISE")]
    told = [s8_cases.sizes(case, Packing.MVE) for case in matrices]
    asked = [("mh_packing", []), *((one.name, one.arguments) for one in calls), *(one[:2] for one in told)]
    found = helium.run(asked)
    assert found[0][0] == Packing.MVE
    for case, one in zip(cases, calls, strict=True):
        assert np.array_equal(one.result(), case.wanted().ravel()), case.layer
    assert [one[1][-1].tolist() for one in told] == [one[2] for one in told]
    for case, (_, num), most in zip(layers.values(), found[1:5], (0.25, 0.4, 0.35, 2.3), strict=True):
        assert num < most * macs(case.net, case.layer), case.layer.name


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of every size, with halves and with what no quantiser should trip over."""
    x = (rng.normal(0, 20, shape) * 10.0 ** rng.integers(-3, 2, shape)).astype(np.float32)
    x.flat[:8] = [0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 3e38]
    return x


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0123])
def test_quantise_and_back(host: Host, scale: float) -> None:
    x = floats(np.random.default_rng(5), 3, 4, 5)
    value = Value((3, 4, 5), True, float(np.float32(scale)), -7)
    want = q._to_int8(x[None], value)
    got, real = np.zeros(60, np.int8), np.zeros((3, 4, 5), np.float32)
    host.call("mh_quantise_f32_s8", x, got, 3, 20, ctypes.c_float(value.scale), -7, -128, 127)
    assert np.array_equal(got, want.ravel())
    host.call("mh_dequantise_s8_f32", got, real, 3, 20, ctypes.c_float(value.scale), -7)
    assert np.array_equal(real, q.dequantised(want, value)[0])
