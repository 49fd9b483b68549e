"""The float kernels as Cortex-M code: a head trained for 200 steps has the same bits on every core; what it costs."""

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cortex

from midhaul.devices import arithmetic as twin
from midhaul.devices import toolchain
from midhaul.errors import DependencyError
from midhaul.net import Array

HEAD = cortex.DEVICE / "tests" / "head" / "head.c"
SOURCES = [HEAD, cortex.DEVICE / "src" / "mh_math.c", *sorted((cortex.DEVICE / "src").glob("*f32.c"))]
NUM_IN, NUM_OUT, STEPS = 19, 7, 200
Built = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder, made = tmp_path_factory.mktemp("cortex"), {}

    def one(compiler: str, core: str) -> Path:
        try:
            toolchain.firmware_compiler(compiler)
        except DependencyError as error:
            pytest.skip(str(error))
        if (compiler, core) not in made:
            made[compiler, core] = cortex.build(compiler, core, SOURCES, folder / f"{compiler}-{core}.elf")
        return made[compiler, core]

    return one


def next_number(state: int) -> tuple[int, np.float32]:
    """Gives head.c's next number in [-1, 1)."""
    state ^= state << 13 & 0xFFFFFFFF
    state ^= state >> 17
    state ^= state << 5 & 0xFFFFFFFF
    return state, np.float32(state >> 8) * np.float32(2.0**-23) - np.float32(1)


def twin_head(full: bool) -> Array:
    """Gives the weights and biases after head.c's training, by the twin in numpy."""
    state, n = 2463534242, (NUM_IN + 1) * NUM_OUT

    def draw(num: int) -> Array:
        nonlocal state
        numbers = []
        for _ in range(num):
            state, number = next_number(state)
            numbers.append(number)
        return np.array(numbers, np.float32)

    w = draw(n) * np.float32(0.25)
    velocity = np.zeros(n, np.float32)
    for step in range(STEPS):
        x = draw(NUM_IN)
        logits = twin.dense(x, w[: NUM_IN * NUM_OUT].reshape(NUM_OUT, NUM_IN), w[NUM_IN * NUM_OUT :])
        _, g = twin.cross_entropy(logits, step % NUM_OUT, 1.0)
        dw, db = twin.dense_params(g, x)
        slope = np.concatenate([dw.reshape(-1), db]) + np.float32(0)
        if full:
            # As head.c has it, the weights are pulled to where the velocities are.
            w, moved = twin.sgd(w, slope, velocity, velocity, 0.05, 0.9, 0.01, 0.1)
            assert moved is not None
            velocity = moved
        else:
            w, _ = twin.sgd(w, slope, None, None, 0.05)
    return w


@pytest.fixture(scope="module", params=[0, 1], ids=["plain", "full"])
def head(request: pytest.FixtureRequest) -> tuple[int, Array]:
    return request.param, twin_head(bool(request.param))


def test_the_twin_trains_the_head_as_the_host(head: tuple[int, Array], tmp_path: Path) -> None:
    full, want = head
    compiler = toolchain.host_compiler()
    path = tmp_path / "head.so"
    flags = [*cortex.STRICT, "-O3", "-fPIC", "-shared", "-I", cortex.DEVICE / "include", "-o", path]
    subprocess.run([*compiler.command, *flags, *SOURCES], check=True)
    library = ctypes.CDLL(str(path))
    arena = np.zeros(library.mh_head_floats(NUM_IN, NUM_OUT), np.float32)
    library.mh_head_train(arena.ctypes.data_as(ctypes.c_void_p), NUM_IN, NUM_OUT, STEPS, full)
    np.testing.assert_array_equal(arena[: want.size].view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("core", ["m3", "m4", "m7"])
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_every_core_trains_the_head_to_the_same_bits(
    built: Built, head: tuple[int, Array], compiler: str, core: str
) -> None:
    full, want = head
    machine = cortex.Machine(built(compiler, core), core)
    arena = np.zeros(machine.call("mh_head_floats", NUM_IN, NUM_OUT), np.float32)
    machine.call("mh_head_train", arena, NUM_IN, NUM_OUT, STEPS, full)
    np.testing.assert_array_equal(arena[: want.size].view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("core", ["m3", "m4"])
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_convolutions_and_losses_have_the_host_s_bits(built: Built, compiler: str, core: str) -> None:
    machine = cortex.Machine(built(compiler, core), core)
    stream = np.random.default_rng(0)
    draw = lambda *shape: stream.standard_normal(shape).astype(np.float32)  # noqa: E731
    for depth in (False, True):
        s = twin.Geometry(6, 9, 11, 6, 5, 11, 3, 3, 2, 1, 1, 1)
        geometry = np.frombuffer(struct.pack("<6H8BH2x", *s, 1), np.uint32).copy()
        x, g = draw(6, 9, 11), draw(6, 5, 11)
        w, b = draw(6, 1 if depth else 6, 3, 3), draw(6)
        kind = "depthwise" if depth else "conv"
        y, dx, dw, db = np.zeros_like(g), np.zeros_like(x), np.zeros_like(w), np.zeros_like(b)
        machine.call(f"mh_{kind}_f32", geometry, x, w, b, y)
        machine.call(f"mh_{kind}_input_f32", geometry, g, w, dx, 0)
        machine.call(f"mh_{kind}_params_f32", geometry, g, x, dw, db)
        wants = [getattr(twin, kind)(s, x, w, b), getattr(twin, f"{kind}_input")(s, g, w)]
        wants += [v + np.float32(0) for v in getattr(twin, f"{kind}_params")(s, g, x)]
        for got, want in zip((y, dx, dw, db), wants, strict=True):
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


# Instructions a multiply-accumulate of a dense layer, and a weight of a whole step (forward, loss, gradient, SGD).
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_what_a_head_costs_on_a_cortex_m4(built: Built, compiler: str) -> None:
    machine = cortex.Machine(built(compiler, "m4"), "m4", counts=True)
    num_in, num_out = 128, 32
    x, w, b, y = (np.zeros(shape, np.float32) for shape in (num_in, (num_out, num_in), num_out, num_out))
    calls: dict[str, tuple[Any, ...]] = {
        "mh_dense_f32": (x, w, b, y, num_in, num_out),
        "mh_dense_input_f32": (y, w, x, num_in, num_out, 0),
        "mh_dense_params_f32": (y, x, w, b, num_in, num_out),
    }
    for (name, values), most in zip(calls.items(), (3.2, 4.2, 4.2), strict=True):
        machine.counts.clear()
        machine.call(name, *values)
        assert 1.0 < machine.counts.total() / (num_in * num_out) < most, name
    arena, steps = np.zeros(machine.call("mh_head_floats", 64, 10), np.float32), 10
    machine.counts.clear()
    machine.call("mh_head_train", arena, 64, 10, steps, 0)
    del machine.counts["mh_head_train"]  # makes the examples
    assert 5.0 < machine.counts.total() / (64 * 10 * steps) < 13.0
