"""Fits what the parts of the kernels cost, and writes it into devices/instructions.py.

Run: python -m benchmarks.instructions [cortex-m4 ...]
Calls the kernels of the firmware itself, as arm-none-eabi-gcc builds it, on single layers of many geometries in
Unicorn; fits by least squares of relative errors; prints each group's parts and errors. Needs the test extra.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import unicorn.arm_const as arm
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))

from ticks import Counted

from midhaul import rng
from midhaul.devices import blob, costs, footprint, instructions, profiles, toolchain
from midhaul.devices.arithmetic import Geometry
from midhaul.devices.blob import Blob
from midhaul.devices.costs import COSTS
from midhaul.devices.instructions import Tally
from midhaul.devices.machines import UnicornMachine, open_machine
from midhaul.models import tiny
from midhaul.models.adapters import add_lora
from midhaul.models.int8 import Int8Front
from midhaul.models.prepare import prepare
from midhaul.models.translate import translate
from midhaul.net import Kind
from midhaul.rng import Use

CORES = ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
_AT, _BYTES = 0x90000000, 16 << 20
_INTEGERS = (arm.UC_ARM_REG_R0, arm.UC_ARM_REG_R1, arm.UC_ARM_REG_R2, arm.UC_ARM_REG_R3)
_ZEROS = (0.0, 0.25, 0.5, 0.75)  # of the numbers that a kernel reads, since most come out of a ReLU
Floats = npt.NDArray[np.float32]
Sample = tuple[Tally, float, float]  # what was entered, what it took, and the count that errors are relative to


def sample(tally: Tally, num: float) -> Sample:
    """Gives the sample of a kernel that was run alone."""
    return tally, num, num


def live(*values: Floats) -> float:
    """Gives the share of products of numbers of these arrays that aren't zero."""
    return float(np.prod([np.count_nonzero(value) / value.size for value in values]))


class Kernels:
    """The functions of a core's firmware, called one by one; counts their instructions."""

    def __init__(self, core: str) -> None:
        made = open_machine(f"unicorn:{core}", compiler="gcc")
        assert isinstance(made, UnicornMachine)
        self.machine, self.uc = made, made._uc
        self.uc.mem_map(_AT, _BYTES)
        self.symbols = {s.name: s.address for s in made._elf.symbols if s.section and s.name}
        self.fpu = core in instructions._FPU
        self.packing = toolchain.CORES[core].packing
        self.draws = np.random.default_rng(7)

    def call(self, name: str, *values: int | float | npt.NDArray[Any] | None) -> int:
        """Calls a function with integers, floats and arrays. Gives its instructions."""
        place, words, floats = _AT + 64, list[int](), list[int]()
        for value in values:
            if isinstance(value, float):
                bits = struct.unpack("<I", struct.pack("<f", value))[0]
                (floats if self.fpu else words).append(bits)
            elif isinstance(value, np.ndarray):
                self.uc.mem_write(place, value.tobytes())
                words.append(place)
                place += -(-value.nbytes // 16) * 16
            else:
                words.append(value or 0)
        for register, word in zip(_INTEGERS, words, strict=False):
            self.uc.reg_write(register, word)
        for i, bits in enumerate(floats):
            self.uc.reg_write(arm.UC_ARM_REG_S0 + i, bits)
        rest = words[4:] + [0] * (len(words[4:]) % 2)
        stack = _AT + _BYTES - 4 * len(rest) - 64
        self.uc.mem_write(stack, struct.pack(f"<{len(rest)}I", *(word & 0xFFFFFFFF for word in rest)))
        self.uc.reg_write(arm.UC_ARM_REG_SP, stack)
        self.uc.reg_write(arm.UC_ARM_REG_LR, self.symbols["mh_reset"] | 1)
        before = self.machine.instructions
        self.uc.emu_start(self.symbols[name] | 1, self.symbols["mh_reset"] & ~1)
        return self.machine.instructions - before

    def numbers(self, num: int) -> Floats:
        """Gives numbers as a layer's input or output has them, or their gradients."""
        zeros = _ZEROS[int(self.draws.integers(len(_ZEROS)))]
        return self.weights(num) * np.asarray(self.draws.random(num) >= zeros, np.float32)

    def weights(self, num: int) -> Floats:
        """Gives numbers as weights are, none of them zero."""
        return np.asarray(self.draws.normal(size=num), np.float32)

    def pool(self) -> Geometry:
        """Draws a pool's geometry, now and then over the whole map."""
        s = self.geometry(depthwise=True, times=1)
        if self.draws.random() < 0.4:
            s = s._replace(kh=s.ih, kw=s.iw, oh=1, ow=1, pt=0, pl=0, sh=1, sw=1, dh=1, dw=1)
        return s

    def geometry(self, depthwise: bool = False, times: int = 0, ic: int = 0) -> Geometry:
        """Draws a layer's geometry."""
        d = self.draws
        kernels = ((1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (1, 5), (1, 9), (2, 2), (3, 1), (4, 3))
        while True:
            kh, kw = kernels[int(d.integers(depthwise, len(kernels)))]
            sh, sw = ((1, 1), (1, 1), (1, 1), (2, 2), (1, 2), (3, 3))[int(d.integers(6))]
            dh, dw = ((1, 1), (1, 1), (1, 1), (2, 2))[int(d.integers(4))]
            pt, pl = int(d.integers(0, kh // 2 * dh + 1)), int(d.integers(0, kw // 2 * dw + 1))
            ih, iw = (1 if kh == 1 and d.random() < 0.5 else int(d.integers(3, 16))), int(d.integers(3, 25))
            if kh == 1:
                sh, dh, pt = (1 if ih == 1 else sh), 1, 0
            oh, ow = (ih + 2 * pt - (kh - 1) * dh - 1) // sh + 1, (iw + 2 * pl - (kw - 1) * dw - 1) // sw + 1
            if oh < 1 or ow < 1:
                continue
            channels = ic or int(d.integers(1, 18))
            oc = channels * (times or (1 if d.random() < 0.7 else int(d.integers(2, 6)))) if depthwise else 0
            return Geometry(channels, ih, iw, oc or int(d.integers(1, 18)), oh, ow, kh, kw, sh, sw, pt, pl, dh, dw)


def packed(s: Geometry) -> npt.NDArray[np.uint8]:
    """Gives struct mh_geometry."""
    small = (s.kh, s.kw, s.sh, s.sw, s.pt, s.pl, s.dh, s.dw)
    return np.frombuffer(struct.pack("<6H8BH", *s[:6], *small, 1), np.uint8)


def _correlations(k: Kernels) -> list[Sample]:
    found = []
    for i in range(360):
        t, which = Tally(), i % 4
        s = k.geometry(depthwise=which > 1)
        x, g = k.numbers(s.ic * s.ih * s.iw), k.numbers(s.oc * s.oh * s.ow)
        w = k.weights((s.ic if which < 2 else 1) * s.oc * s.kh * s.kw)
        b, adds = k.weights(s.oc), int(k.draws.random() < 0.3)
        if which == 0:
            instructions.conv_f32(t, s, live(x))
            num = k.call("mh_conv_f32", packed(s), x, w, b, g)
        elif which == 1:
            instructions.conv_input_f32(t, s, bool(adds), live(g))
            num = k.call("mh_conv_input_f32", packed(s), g, w, x, adds)
        elif which == 2:
            instructions.depthwise_f32(t, s, live(x))
            num = k.call("mh_depthwise_f32", packed(s), x, w, b, g)
        else:
            instructions.depthwise_input_f32(t, s, bool(adds), live(g))
            num = k.call("mh_depthwise_input_f32", packed(s), g, w, x, adds)
        found.append(sample(t, num))
    return found


def _params(k: Kernels) -> list[Sample]:
    found = []
    for i in range(240):
        t, which = Tally(), i % 2
        s = k.geometry(depthwise=which == 1)
        x, g = k.numbers(s.ic * s.ih * s.iw), k.numbers(s.oc * s.oh * s.ow)
        dw, db = k.weights((1 if which else s.ic) * s.oc * s.kh * s.kw), k.weights(s.oc)
        weight, bias = i % 8 != 0, i % 3 != 0 or i % 8 == 0
        (instructions.depthwise_params_f32 if which else instructions.conv_params_f32)(t, s, weight, bias, live(x, g))
        name = "mh_depthwise_params_f32" if which else "mh_conv_params_f32"
        found.append(sample(t, k.call(name, packed(s), g, x, dw if weight else None, db if bias else None)))
    return found


def _sizes(k: Kernels, num: int) -> list[tuple[int, int]]:
    return [(int(k.draws.integers(1, 150)), int(k.draws.integers(1, 40))) for _ in range(num)]


def _dense(k: Kernels) -> list[Sample]:
    found = []
    for i, (num_in, num_out) in enumerate(_sizes(k, 50)):
        t, x, g, w = Tally(), k.numbers(num_in), k.numbers(num_out), k.weights(num_in * num_out)
        instructions.dense_f32(t, num_in, num_out, live(x))
        found.append(sample(t, k.call("mh_dense_f32", x, w, k.weights(num_out), g, num_in, num_out)))
        t = Tally()
        instructions.dense_input_f32(t, num_in, num_out, k.fpu, live(g))
        found.append(sample(t, k.call("mh_dense_input_f32", g, w, x, num_in, num_out, 0)))
        t, weight, bias = Tally(), i % 4 != 0, i % 3 != 0 or i % 4 == 0
        instructions.dense_params_f32(t, num_in, num_out, weight, bias, live(x, g))
        db = k.weights(num_out) if bias else None
        found.append(sample(t, k.call("mh_dense_params_f32", g, x, w if weight else None, db, num_in, num_out)))
    return found


def _pools(name: str) -> Callable[[Kernels], list[Sample]]:
    def samples(k: Kernels) -> list[Sample]:
        found = []
        for _ in range(40):
            s = k.pool()
            t, x, g = Tally(), k.numbers(s.ic * s.ih * s.iw), k.numbers(s.ic * s.oh * s.ow)
            getattr(instructions, f"{name}_f32")(t, s)
            if name == "max_pool_input":
                num = k.call("mh_max_pool_input_f32", packed(s), g, x, x.copy(), 0)
            elif name == "average_pool_input":
                num = k.call("mh_average_pool_input_f32", packed(s), g, x, 0)
            else:
                num = k.call(f"mh_{name}_f32", packed(s), x, g)
            found.append(sample(t, num))
        return found

    return samples


def _each(name: str, function: str) -> Callable[[Kernels], list[Sample]]:
    def samples(k: Kernels) -> list[Sample]:
        found = []
        for _ in range(12):
            n, t = int(k.draws.integers(200, 900)), Tally()
            x, g = k.numbers(n), k.numbers(n)
            y, table = np.zeros(n, np.int8), np.array([5, 3, 4, 2], "<i4")
            ints = k.draws.integers(-128, 128, n).astype(np.int8)
            limits = np.array([-3, 4, -128, 127], "<i4")
            calls: dict[str, tuple[int | float | npt.NDArray[Any], ...]] = {
                "clamp_f32": (x, g, n, 0.0, 3e38),
                "clamp_grad_f32": (np.maximum(x, 0), g, x, n, 0.0, 3e38, 0),
                "add_f32": (x, g, x, n),
                "copy_f32": (x, g, n, 0),
                "add_s8": (ints, ints, table, y, n, limits),
            }
            num = k.call(f"mh_{function}", *calls[function])
            instructions.numbers(t, name, n)
            found.append(sample(t, num))
        return found

    return samples


def _turns(name: str) -> Callable[[Kernels], list[Sample]]:
    def samples(k: Kernels) -> list[Sample]:
        found = []
        for _ in range(20):
            c, places = int(k.draws.integers(1, 80)), int(k.draws.integers(1, 30))
            t, x = Tally(), k.numbers(c * places)
            ints = k.draws.integers(-128, 128, c * places).astype(np.int8)
            if name == "quantise":
                num = k.call("mh_quantise_f32_s8", x, ints, c, places, 0.02, 3, -128, 127)
            else:
                num = k.call("mh_dequantise_s8_f32", ints, x, c, places, 0.02, 3)
            instructions.turn(t, name, c, places)
            found.append(sample(t, num))
        return found

    return samples


def _norms(k: Kernels) -> list[Sample]:
    found = []
    for i in range(60):
        groups, each, places = (int(v) for v in k.draws.integers((1, 1, 2), (5, 5, 70)))
        c, t = groups * each, Tally()
        x, g, dx = k.weights(c * places), k.numbers(c * places), k.numbers(c * places)
        w, b = k.weights(c), k.weights(c)
        if i % 3 == 0:
            instructions.group_norm_f32(t, c, places, groups)
            num = k.call("mh_group_norm_f32", x, w, b, g, c, places, groups, 1e-5)
        else:
            passes = i % 3 == 1
            instructions.group_norm_grad_f32(t, c, places, groups, passes)
            last = (c, places, groups, 1e-5, 0)
            num = k.call("mh_group_norm_grad_f32", x, w, g, dx if passes else None, w.copy(), b, *last)
        found.append(sample(t, num))
    return found


def _losses(k: Kernels) -> list[Sample]:
    found = []
    for _ in range(30):
        t, n = Tally(), int(k.draws.integers(2, 40))
        instructions.cross_entropy_f32(t, n)
        logits = np.asarray(k.draws.normal(size=n), np.float32)
        found.append(sample(t, k.call("mh_cross_entropy_f32", logits, n, 1, 0.25, logits.copy())))
    return found


def _steps(k: Kernels) -> list[Sample]:
    found = []
    for i in range(64):
        t, n = Tally(), int(k.draws.integers(1, 200))
        momentum, decay, start = bool(i & 1), bool(i & 2), bool(i & 4)
        instructions.sgd_f32(t, n, momentum, decay, start)
        values = [k.weights(n) for _ in range(4)]
        how = (0.05, 0.9 * momentum, 0.01 * decay, 0.1 * start)
        found.append(sample(t, k.call("mh_sgd_f32", *values, n, *how)))
    return found


def _loras(k: Kernels) -> list[Sample]:
    found = []
    for i in range(120):
        ic, oc, side, rank = (int(v) for v in k.draws.integers((2, 2, 1, 1), (40, 20, 6, 9)))
        side = 1 if i % 3 == 0 else side
        s, t = Geometry(ic, side, side, oc, side, side), Tally()
        x, g = k.numbers(ic * side * side), k.numbers(oc * side * side)
        a, b, scratch = k.weights(rank * ic), k.weights(oc * rank), k.numbers(2 * rank * side * side)
        if i % 2:
            instructions.lora_f32(t, s, rank)
            num = k.call("mh_lora_f32", packed(s), x, a, b, g, rank, 0.5, scratch)
        else:
            down, up, passes = i % 5 != 0, i % 7 != 0, i % 4 == 0 or i % 5 == 0
            instructions.lora_grad_f32(t, s, rank, down, up, passes)
            into = (x.copy() if passes else None, a.copy() if down else None, b.copy() if up else None)
            num = k.call("mh_lora_grad_f32", packed(s), g, x, a, b, *into, rank, 0.5, scratch)
        found.append(sample(t, num))
    return found


def _int8(k: Kernels, kind: Kind) -> list[Sample]:
    found = []
    for i in range(40 if kind == Kind.DENSE else 110):
        t = Tally()
        low, high = (-128, 127) if i % 3 else (0, 100)
        if kind == Kind.DENSE:
            s = Geometry(int(k.draws.integers(1, 200)), 1, 1, int(k.draws.integers(1, 40)), 1, 1)
        else:
            fours = 4 * int(k.draws.integers(1, 6)) if k.draws.random() < 0.6 else 0
            s = k.geometry(depthwise=kind == Kind.DEPTHWISE, ic=fours)
        taps = s.kh * s.kw * (1 if kind == Kind.DEPTHWISE else s.ic)
        x = k.draws.integers(-128, 128, s.ic * s.ih * s.iw).astype(np.int8)
        w = k.draws.integers(-127, 128, (s.oc + 4) * (taps + 16)).astype(np.int8)
        table = np.tile(np.array([100, 1 << 30, 2], "<i4"), s.oc + 4)
        limits, y = np.array([-5, 7, low, high], "<i4"), np.zeros(s.oc * s.oh * s.ow + 16, np.int8)
        scratch = np.zeros(8192 + 40 * taps, np.uint8)
        narrow = low > -128
        if kind == Kind.DENSE:
            instructions.dense_s8(t, s.ic, s.oc, k.packing, narrow)
            num = k.call("mh_dense_s8", x, w, table, y, s.ic, s.oc, limits, scratch)
        elif kind == Kind.CONV:
            instructions.conv_s8(t, s, k.packing, narrow)
            num = k.call("mh_conv_s8", packed(s), x, w, table, y, limits, scratch)
        else:
            instructions.depthwise_s8(t, s, k.packing, narrow)
            num = k.call("mh_depthwise_s8", packed(s), x, w, table, y, limits, scratch)
        found.append(sample(t, num))
    return found


def _int8_matrices(k: Kernels) -> list[Sample]:
    return [*_int8(k, Kind.DENSE), *_int8(k, Kind.CONV), *_int8(k, Kind.DEPTHWISE)]


def _int8_pools(name: str) -> Callable[[Kernels], list[Sample]]:
    def samples(k: Kernels) -> list[Sample]:
        found = []
        for _ in range(40):
            s = k.pool()
            t = Tally()
            x = k.draws.integers(-128, 128, s.ic * s.ih * s.iw).astype(np.int8)
            y = np.zeros(s.oc * s.oh * s.ow, np.int8)
            instructions.pool_s8(t, s, name)
            found.append(sample(t, k.call(f"mh_{name}_s8", packed(s), x, y, -128, 127)))
        return found

    return samples


GROUPS: dict[str, Callable[[Kernels], list[Sample]]] = {
    "convolutions": _correlations,
    "their gradients": _params,
    "dense": _dense,
    **{name: _pools(name) for name in ("max_pool", "max_pool_input", "average_pool", "average_pool_input")},
    "clamp": _each("clamp", "clamp_f32"),
    "clamp_back": _each("clamp_back", "clamp_grad_f32"),
    "add": _each("add", "add_f32"),
    "copy": _each("copy", "copy_f32"),
    "add_s8": _each("add_s8", "add_s8"),
    **{name: _turns(name) for name in ("quantise", "dequantise")},
    "group norm": _norms,
    "loss": _losses,
    "step": _steps,
    "lora": _loras,
    "int8": _int8_matrices,
    **{f"int8 {name}": _int8_pools(name) for name in ("max_pool", "average_pool")},
}


def fit(samples: list[Sample], fpu: bool) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Gives the costs of the parts in the samples, none below zero, and the relative error of each sample."""
    names = sorted({name for tally, *_ in samples for name in tally})
    counts = np.array([[tally[name] for name in names] for tally, *_ in samples], np.float64)
    whole = np.array([num for *_, num in samples], np.float64)
    rows, wanted = counts / whole[:, None], np.array([num for _, num, _ in samples]) / whole
    scale = np.linalg.norm(rows, axis=0)
    # An FPU takes as long for a zero.
    used = [place for place, name in enumerate(names) if not (fpu and name.endswith(".live"))]
    costs = np.zeros(len(names))
    while used:
        found = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=1e-9)[0] / scale[used]
        if found.min() >= -1e-9:
            costs[used] = found
            break
        used.pop(int(np.argmin(found * scale[used])))
    return dict(zip(names, np.maximum(costs, 0.0).round(2).tolist(), strict=True)), rows @ costs - wanted


def _models(core: str) -> list[tuple[Blob, tuple[int, ...], int]]:
    """Gives models whose kernels do so little that what surrounds them shows."""
    torch.manual_seed(3)
    found = []

    def add(module: nn.Module, shape: tuple[int, ...], int8: bool, wanted: Callable[[str], bool]) -> None:
        if int8:
            module = Int8Front(module, shape, torch.randn(32, *shape))
        names = [name for name, _ in module.named_parameters() if wanted(name)]
        net = module.device_net() if isinstance(module, Int8Front) else translate(module, shape, trained=names)
        packing = footprint.packing(profiles.get(toolchain.CORES[core].board).core)
        found.append((blob.compile(net, {"s": names}, fits=("s",), packing=packing), shape, 3))

    for hidden in ([2], [3, 2], [2] * 5, [2] * 9):
        module = tiny.build("mlp", (3,), 3, hidden=hidden)
        add(module, (3,), False, lambda _: True)
        add(module, (3,), False, lambda name: "bias" in name)
        add(module, (3,), True, lambda _: True)
    for channels in ([2], [2, 2], [2, 3, 2]):
        module = prepare(tiny.build("cnn", (1, 8, 8), 3, channels=channels, hidden=[2], kernel=3), (1, 8, 8)).module
        add(module, (1, 8, 8), False, lambda _: True)
        add(module, (1, 8, 8), True, lambda _: True)
    for hidden in ([2], [2, 2]):
        module = add_lora(tiny.build("mlp", (3,), 3, hidden=hidden), 1, 2.0, "linear", rng.key(5, 0, 0, Use.INIT))
        add(module, (3,), False, lambda name: "lora" in name)
    for num in (16, 64, 256):
        module = nn.Sequential(nn.Linear(num, 3))
        add(module, (num,), False, lambda name: "bias" in name)
    return found


def _around(core: str, costs: dict[str, float]) -> list[Sample]:
    """Gives what is left of whole models' counts when the kernels' own are taken away."""
    samples: list[Sample] = []
    board = profiles.get(toolchain.CORES[core].board).core
    own = {
        "run",
        "place",
        "layer_f32",
        "layer_s8",
        "layer_turn",
        "run_back",
        "place_back",
        "row",
        "row.word",
        "row.byte",
    }
    own |= {"layer_lora", "layer_lora_back", "layer_back", "step", "step.tensor"}
    for made, shape, classes in _models(core):
        draws = torch.Generator().manual_seed(1)
        y = torch.randint(classes, (6,), generator=draws)
        device = Counted(core, made, torch.randn((6, *shape), generator=draws), y)
        packing, fpu = footprint.packing(board), core in instructions._FPU
        counts = {"predict": device.predict(), "one": device.fit(6), "three": device.fit(2), "push": device.pushed}
        device.close()
        for plan in made.plans:
            parts = instructions.tallies(made, plan, packing, fpu, momentum=False, decay=False, start=False)
            int8, ahead, back, step = parts
            ahead.update(int8)
            uses = {0: (("predict", 0, 0),), 1: (("one", 1, 1), ("three", 1, 3)), 3: (("push", 0, 0),)}
            for name, backs, steps in uses.get(int(plan.kind), ()):
                whole = Tally({part: 6 * num for part, num in ahead.items()})
                for part, num in back.items():
                    whole[part] += 6 * backs * num
                for part, num in step.items():
                    whole[part] += steps * num
                kernels = sum(costs[part] * num for part, num in whole.items() if part not in own)
                around = Tally({part: num for part, num in whole.items() if part in own})
                # Soft float is less sure than what is around it, so that what has none of it says more.
                weight = 10 if name == "push" and not fpu else 1
                samples.append((around, counts[name] - kernels, counts[name] / weight))
    return samples


def measured(core: str) -> dict[str, float]:
    """Gives the costs of a core's parts, and prints how well they fit."""
    kernels, costs = Kernels(core), dict[str, float]()
    for name, samples_of in GROUPS.items():
        found, errors = fit(samples_of(kernels), kernels.fpu)
        costs |= found
        worst, mean = 100 * np.abs(errors).max(), 100 * np.abs(errors).mean()
        print(
            f"{core}  {name:<20} {len(errors):>4} layers  error {mean:5.2f} % mean, {worst:5.2f} % at most", flush=True
        )
    found, errors = fit(_around(core, costs), kernels.fpu)
    worst, mean = 100 * np.abs(errors).max(), 100 * np.abs(errors).mean()
    print(f"{core}  {'around them':<20} {len(errors):>4} models  error {mean:5.2f} % mean, {worst:5.2f} % at most")
    return costs | found


def main() -> None:
    """Measures, prints and writes."""
    table = {core: dict(each) for core, each in COSTS.items()}
    for core in sys.argv[1:] or CORES:
        table[core] = measured(core)
    lines = []
    for core, each in sorted(table.items()):
        lines.append(f'    "{core}": {{\n')
        lines += [f'        "{part}": {cost:g},\n' for part, cost in sorted(each.items())]
        lines.append("    },\n")
    path = Path(costs.__file__)
    pattern = r"(?s)(COSTS: [^{]*\{\n).*?(\}\n# end)"
    path.write_text(re.sub(pattern, lambda m: m[1] + "".join(lines) + m[2], path.read_text()))


if __name__ == "__main__":
    main()
