"""A million mutated frames against the device, under AddressSanitizer and UBSan. `python -m repro.fuzz [FRAMES]`

device/tests/fuzz.c makes them, from a script of sound frames and a sound blob for each of three small models that
together use every kind of layer and every op. No frame, packet or blob may crash or hang a device, or get from it
anything but a whole reply or silence; and after all of it the device must still serve its server.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from midhaul.devices import blob
from midhaul.devices.blob import Blob
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.message import Op, Settings
from midhaul.models import quantise
from midhaul.net import Kind, Layer, Net, Value
from midhaul.tree import Tree
from repro import Row

DEVICE = Path(__file__).parents[1] / "device"
LINK = ("aead", "cobs", "crc32", "frame", "link")  # what the target `link` is made of
CFLAGS = ["-std=c99", "-g", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FRAMES = 1_000_000
_ROWS = 6


@dataclass(frozen=True)
class Target:
    """What is fuzzed: the script that makes a fresh device ready and uses its ops, and its model; none: the link."""

    name: str
    script: tuple[Frame, ...]
    blob: Blob | None = None


class Counts(NamedTuple):
    """What a run of the fuzzer counted. `reopened`: how often the server had to open a new session."""

    frames: int
    seconds: float
    replies: int
    refusals: int
    blobs: int
    blobs_taken: int
    reopened: int


def targets() -> list[Target]:
    """Gives the link alone, and a device with each of the models."""
    return [_link(), _float(), _split(), _int8()]


def build(folder: Path, sources: Path = DEVICE / "src", kinds: Sequence[bool] = (False, True)) -> dict[bool, Path]:
    """Compiles the fuzzer for the link alone (False), the whole device (True), or both.

    Raises: subprocess.CalledProcessError where the compiler refuses.
    """
    made = {}
    for whole in kinds:
        out = folder / ("fuzz_device" if whole else "fuzz_link")
        names = sorted(sources.glob("*.c")) if whole else [sources / f"mh_{name}.c" for name in LINK]
        tests = [DEVICE / "tests" / "fuzz.c", DEVICE / "tests" / f"{out.name}.c"]
        paths = [f"-I{DEVICE / 'include'}", f"-I{sources}", f"-I{DEVICE / 'tests'}"]
        subprocess.run(["cc", *CFLAGS, *paths, "-o", str(out), *map(str, [*tests, *names])], check=True)
        made[whole] = out
    return made


def run(programs: dict[bool, Path], target: Target, seed: int, frames: int, seconds: float, folder: Path) -> Counts:
    """Fuzzes a target until either bound is reached.

    Raises: AssertionError, with what the sanitizer said, for anything but a clean end.
    """
    corpus = folder / f"{target.name}.frames"
    packed = [frame.pack(one) for one in target.script]
    corpus.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in packed))
    command = [str(programs[target.blob is not None]), str(seed), str(frames), str(seconds)]
    if target.blob is None:
        command += ["4096", str(corpus)]
    else:
        model = folder / f"{target.name}.blob"
        model.write_bytes(target.blob.data)
        # Behind a plan come soft labels and an order of the rows: see mh_fit.c.
        command += [str(target.blob.arena_bytes + 4 * 3 * _ROWS + 2 * _ROWS + 32), str(corpus), str(model)]
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, env=environment, check=False)
    assert ran.returncode == 0, f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stderr[-4000:]}"
    words = ran.stdout.split()
    found = dict(zip(words[::2], words[1::2], strict=True))
    return Counts(*(type_(found[name]) for name, type_ in _FIELDS))


_FIELDS = [(name, float if name == "seconds" else int) for name in Counts._fields]


def _frame(op: Op, settings: Settings | None = None, tree: Tree | None = None) -> Frame:
    return Frame(op, False, 3, 7, settings or {}, tree or {})


_HELLO = _frame(Op.HELLO, {"seed_low": -5, "seed_high": 9})


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _link() -> Target:
    tree = {"f": _noise(3, 4), "h": _noise(5).half(), "b": _noise(5).bfloat16(), "i": torch.arange(300) - 9}
    more = {"s": torch.tensor([-70_000, 2]), "l": torch.tensor([1 << 40]), "long": _noise(900), "none": _noise(0, 4)}
    return Target(
        "link",
        (
            _frame(Op.LOAD, {"lr": 0.1, "what": "momentum", "epochs": 2}, tree),
            _frame(Op.FIT, {"loss": "mse", "steps": 1, "clip": 1e-30}, more),
            Frame(Op.READ, False, 1, 2, {"send": "whole"}, {}, 0.0, {"loss": 1.0, "accuracy": 0.5}),
            _HELLO,
        ),
    )


def _rows(shape: tuple[int, ...]) -> list[Frame]:
    script = []
    for place, name in enumerate(("train", "test", "adapt")):
        num = _ROWS - place
        for first in (0, 2):
            part = 2 if first == 0 else num - 2
            tree = {"x": _noise(part, *shape), "y": torch.arange(part) % 3}
            script.append(_frame(Op.PUSH, {"rows": name, "step": first}, tree))
    return script


def _ops(net: Net, names: Sequence[str], slice_: str, shape: tuple[int, ...]) -> list[Frame]:
    tree = {name: torch.from_numpy(net.tensors[name]) for name in names}
    some = {names[-1]: tree[names[-1]].half()}
    train: Settings = {"train": slice_, "lr": 0.01, "batch": 4, "epochs": 1}
    soft = _noise(_ROWS, 3)
    return [
        _frame(Op.LOAD, {}, tree),
        _frame(Op.LOAD, {"what": "momentum"}, tree),
        _frame(Op.READ, {"what": "momentum"}),
        _frame(Op.FIT, {**train, "momentum": 0.9, "weight_decay": 1e-3}, some),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.FIT, {**train, "send": slice_, "loss": "mse", "proximal_mu": 0.1, "clip": 0.5}, tree),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.FIT, {**train, "steps": 2, "temperature": 3.0, "soft_weight": 0.5}, {"logits": soft}),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.ADAPT, {**train, "lr": 0.1}, some),
        _frame(Op.EVALUATE, {"loss": "mse"}, tree),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.EVALUATE, {}),
        _frame(Op.PREDICT, {"rows": "train"}),
        _frame(Op.PREDICT, {}, {**tree, "x": _noise(1, *shape)}),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.READ, {"send": slice_}),
        _frame(Op.LOAD, {}, tree),
    ]


def _weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name.replace("_", "."): 0.5 * _noise(*shape).numpy() for name, shape in shapes.items()}


def _map_layers() -> list[Layer]:
    """A residual network over a map of 2 x 4 x 4, up to a vector of 4 features."""
    window = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
    pool = {"kernel": (2, 2), "stride": (2, 2)}
    return [
        Layer(Kind.CONV, "c", (0,), 1, low=0.0, weights={"weight": "c.weight", "bias": "c.bias"}, **window),
        Layer(Kind.DEPTHWISE, "d", (1,), 2, groups=4, weights={"weight": "d.weight", "bias": "d.bias"}, **window),
        Layer(Kind.ADD, "a", (1, 2), 3, low=0.0, high=6.0),
        Layer(Kind.MAX_POOL, "m", (3,), 4, **pool),
        Layer(Kind.CONV, "p", (4,), 5, weights={"weight": "p.weight"}),
        Layer(Kind.AVERAGE_POOL, "g", (5,), 6, **pool),
        Layer(Kind.RESHAPE, "r", (6,), 7),
    ]


_MAPS = [(2, 4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4), (4, 2, 2), (4, 2, 2), (4, 1, 1), (4, 1, 1)]
_MAP_TENSORS = {
    "c_weight": (4, 2, 3, 3),
    "c_bias": (4,),
    "d_weight": (4, 1, 3, 3),
    "d_bias": (4,),
    "p_weight": (4, 4, 1, 1),
}


def _float() -> Target:
    lora = {"weight": "h.weight", "bias": "h.bias", "lora_a": "h.lora.a", "lora_b": "h.lora.b"}
    layers = (
        *_map_layers(),
        Layer(Kind.GROUP_NORM, "n", (7,), 8, groups=2, eps=1e-5, weights={"weight": "n.weight", "bias": "n.bias"}),
        Layer(Kind.CLAMP, "k", (8,), 9, low=-1.0, high=1.0),
        Layer(Kind.DENSE, "h", (9,), 10, lora_scale=2.0, weights=lora),
    )
    head = {"h_weight": (3, 4), "h_bias": (3,), "h_lora_a": (2, 4), "h_lora_b": (3, 2)}
    tensors = _weights(**_MAP_TENSORS, n_weight=(4,), n_bias=(4,), **head)
    values = (*(Value(shape) for shape in _MAPS), Value((4, 1, 1)), Value((4, 1, 1)), Value((3, 1, 1)))
    net = Net(values, layers, tensors)
    slices = {"whole": tuple(tensors), "head": ("h.weight", "h.bias")}
    made = blob.compile(net, slices, fits=("whole", "head"), momentum=True, keeps_start=True)
    cut = [_frame(Op.READ, {"what": "examples"}), _frame(Op.READ, {"what": "test"})]
    script = (_HELLO, *_rows((2, 4, 4)), *cut, *_ops(net, made.trained, "whole", (2, 4, 4)), _frame(Op.STATS), _HELLO)
    return Target("float", script, made)


def _split() -> Target:
    layers = (
        Layer(Kind.DENSE, "a", (0,), 1, low=0.0, weights={"weight": "a.weight", "bias": "a.bias"}),
        Layer(Kind.DENSE, "b", (1,), 2, weights={"weight": "b.weight", "bias": "b.bias"}),
    )
    tensors = _weights(a_weight=(5, 8), a_bias=(5,), b_weight=(4, 5), b_bias=(4,))
    net = Net((Value((8, 1, 1)), Value((5, 1, 1)), Value((4, 1, 1))), layers, tensors)
    made = blob.compile(net, {"front": tuple(tensors)}, splits=("front",), momentum=True, keeps_start=True)
    tree = {name: torch.from_numpy(value) for name, value in tensors.items()}
    batch: Settings = {"batch": 4, "step": 0, "epoch": 0}
    back: Settings = {"train": "front", "lr": 0.01, "momentum": 0.9}
    g8 = torch.arange(16).reshape(4, 4) - 7
    script = (
        _HELLO,
        *_rows((8,)),
        _frame(Op.LOAD, {}, tree),
        _frame(Op.FORWARD, {**batch, "what": "hy"}),
        _frame(Op.BACKWARD, back, {"g": _noise(4, 4)}),
        _frame(Op.FORWARD, {**batch, "step": 1}),
        _frame(Op.BACKWARD, {**back, "scale": 0.01, "weight_decay": 0.1}, {"g": g8[:2]}),
        _frame(Op.FORWARD, {"rows": "test", "what": "h"}),
        _frame(Op.PREDICT, {}),
        _frame(Op.READ, {"send": "front"}),
        _frame(Op.READ, {"what": "momentum"}),
        _frame(Op.STATS),
        _HELLO,
    )
    return Target("split", script, made)


def _int8() -> Target:
    layers = (
        *_map_layers(),
        Layer(Kind.DENSE, "f", (7,), 8, low=0.0, weights={"weight": "f.weight", "bias": "f.bias"}),
        Layer(Kind.DENSE, "h", (8,), 9, weights={"weight": "h.weight", "bias": "h.bias"}),
    )
    tensors = _weights(**_MAP_TENSORS, f_weight=(6, 4), f_bias=(6,), h_weight=(3, 6), h_bias=(3,))
    values = (*(Value(shape) for shape in _MAPS), Value((6, 1, 1)), Value((3, 1, 1)))
    net = quantise.quantise(Net(values, layers, tensors), _noise(64, 2, 4, 4).numpy(), "f")
    names = ("h.weight", "h.bias")
    made = blob.compile(net, {"head": names}, fits=("head",), momentum=True, keeps_start=True)
    script = (_HELLO, *_rows((2, 4, 4)), *_ops(net, names, "head", (2, 4, 4)), _frame(Op.STATS), _HELLO)
    return Target("int8", script, made)


def main(arguments: Sequence[str]) -> list[Row]:
    """Runs it; `arguments` may hold the number of frames."""
    frames = int(arguments[0]) if arguments else FRAMES
    counts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = build(folder)
        found = targets()
        for seed, target in enumerate(found, 1):
            one = run(programs, target, seed, -(-frames // len(found)), 3600.0, folder)
            rate = one.frames / one.seconds
            print(f"{target.name}: {one} ({rate:,.0f} frames a second)", flush=True)
            counts.append(one)
    sums = {name: sum(getattr(one, name) for one in counts) for name, _ in _FIELDS}
    said = f"{sums['frames']:,} frames, {sums['replies']:,} replies, {sums['blobs']:,} hostile blobs: no crash, no hang"
    return [Row("mutated frames under sanitizers", f"{frames:,}, no crash", said, sums["frames"] >= frames, must=True)]


if __name__ == "__main__":
    print(main(sys.argv[1:])[0])
