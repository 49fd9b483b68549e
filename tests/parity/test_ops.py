"""The device runtime in C against midhaul.ops: the same messages, the same data, the same answers."""

from __future__ import annotations

import ctypes
import functools
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import CODES, DEVICE, FIT, KEY, METRICS, SEED, Device, Pair, close, net, opened, rows
from torch import nn

from midhaul import ops, rng, tree
from midhaul.devices import blob, toolchain
from midhaul.devices.blob import Blob
from midhaul.link import frame, refusal
from midhaul.link.frame import Frame
from midhaul.message import ROW_KINDS, UPDATE, Message, Op, Settings
from midhaul.models import mlperf
from midhaul.models.quantise import integers, quantise
from midhaul.models.translate import translate
from midhaul.net import Kind, Net
from midhaul.ops import State
from midhaul.program import Examples, Local, Program
from midhaul.rng import Use


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return opened(toolchain.host_library(strict=True))


MODELS = ("mlp", "cnn1d", "cnn1d-norm", "cnn", "dscnn", "resnet")


@pytest.mark.parametrize("name", MODELS)
def test_fit_learns_what_the_twin_learns(library: ctypes.CDLL, name: str) -> None:
    pair = Pair(library, name, 7)
    for round in range(3):
        want, _ = pair.both(Op.FIT, FIT, dict(pair.state.tree), round)
        pair.both(Op.LOAD, {}, dict(want.tree), round)
        pair.both(Op.EVALUATE, {"rows": "test"}, {}, round)
    pair.both(Op.PREDICT, {"rows": "test"})
    pair.both(Op.PREDICT, {}, {"x": pair.local.test.x})
    pair.device.close()


@pytest.mark.parametrize("num", [0, 1, 7, 200])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_any_number_of_rows(library: ctypes.CDLL, num: int, batch: int) -> None:
    pair = Pair(library, "mlp", num)
    pair.both(Op.FIT, {**FIT, "batch": batch}, dict(pair.state.tree))
    pair.both(Op.LOAD, {}, dict(pair.program.initial))
    pair.both(Op.EVALUATE, {"rows": "train"})
    pair.both(Op.FORWARD, {"rows": "train"})
    pair.both(Op.PREDICT, {"rows": "adapt"})
    pair.both(Op.READ, {"what": "examples"})
    pair.both(Op.READ, {"what": "test"})
    pair.device.close()


SETTINGS: dict[str, Settings] = {
    "all": {"batch": 0},
    "steps": {"steps": 5, "batch": 3},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.01},
    "proximal": {"proximal_mu": 0.3},
    "everything": {"proximal_mu": 0.3, "weight_decay": 0.01, "momentum": 0.5},
    "clip": {"clip": 0.05},
    "clip-far": {"clip": 50.0},
    "mse": {"loss": "mse", "lr": 0.2},
    "none": {"epochs": 0},
}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("name", ["mlp", "cnn1d"])
def test_every_setting_of_fit(library: ctypes.CDLL, name: str, what: str) -> None:
    pair = Pair(library, name, 7, unlabelled=what in ("decay", "mse"))
    pair.both(Op.FIT, {**FIT, **SETTINGS[what]}, dict(pair.state.tree))
    pair.both(Op.FIT, {**FIT, **SETTINGS[what], "send": "none"}, dict(pair.program.initial), 3)
    pair.weights()
    pair.device.close()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_distillation(library: ctypes.CDLL, loss: str) -> None:
    pair = Pair(library, "cnn", 7, unlabelled=True)
    soft = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    settings = {**FIT, "loss": loss, "temperature": 2.5, "soft_weight": 0.4}
    pair.both(Op.FIT, settings, {**pair.state.tree, "logits": soft})
    pair.device.close()


@pytest.mark.parametrize("part", ["whole", "head", "body", "bias"])
@pytest.mark.parametrize("name", ["cnn", "cnn1d-norm"])
def test_slices(library: ctypes.CDLL, name: str, part: str) -> None:
    pair = Pair(library, name, 6, fits=("head", "body", "bias", "whole"))
    pair.both(Op.FIT, {**FIT, "train": part, "send": part}, dict(pair.state.tree))
    pair.both(Op.LOAD, {}, dict(pair.program.initial))
    pair.both(Op.FIT, {**FIT, "train": part, "send": "none"})
    pair.both(Op.FIT, {**FIT, "train": "whole", "send": "none"})
    pair.weights()
    pair.device.close()


@pytest.mark.parametrize("name", ["mlp", "cnn", "dscnn"])
@pytest.mark.parametrize("part", ["head", "bias"])
def test_only_a_part_is_in_ram(library: ctypes.CDLL, name: str, part: str) -> None:
    pair = Pair(library, name, 7, fits=(part,))
    assert (pair.blob.stored > 0) == (part == "head")
    pair.both(Op.FIT, {**FIT, "train": part, "send": part})
    pair.both(Op.LOAD, {}, {n: v for n, v in pair.program.initial.items() if n in pair.blob.trained})
    pair.both(Op.EVALUATE, {"rows": "test", "loss": "mse"})
    pair.both(Op.PREDICT, {}, {"x": pair.local.test.x})
    if pair.blob.stored:
        assert pair.device.refused(Op.READ, {"what": "examples"}) == "ROWS"
    pair.device.close()


@pytest.mark.parametrize("name", ["lora", "lora-conv"])
def test_adapters(library: ctypes.CDLL, name: str) -> None:
    pair = Pair(library, name, 7, fits=("lora", "whole"))
    for round in range(2):
        pair.both(Op.FIT, {**FIT, "train": "lora", "send": "none"}, {}, round)
    pair.both(Op.FIT, {**FIT, "train": "whole", "send": "none"})
    pair.weights()
    pair.device.close()


def test_adapt_leaves_the_device_as_it_was(library: ctypes.CDLL) -> None:
    pair = Pair(library, "cnn1d", 8, fits=("whole", "head"))
    for part in ("head", "whole"):
        pair.both(Op.ADAPT, {"lr": 0.1, "epochs": 3, "batch": 4, "train": part, "momentum": 0.9})
    pair.both(Op.EVALUATE, {"rows": "test"})
    pair.weights()
    pair.device.close()


@pytest.mark.parametrize(("name", "cut"), [("cnn1d", "relu1"), ("cnn", "pool1"), ("cnn", "fc1"), ("mlp", "fc1")])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_split(library: ctypes.CDLL, name: str, cut: str, momentum: float) -> None:
    pair = Pair(library, name, 11, fits=(), splits=("front",), cut=cut)
    own = torch.Generator().manual_seed(1)
    for epoch in range(2):
        for step in range(4):
            want, _ = pair.both(Op.FORWARD, {"batch": 4, "step": step, "epoch": epoch, "what": "hy"})
            g = torch.randn(want.tree["h"].shape, generator=own) * 0.1
            settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01 if epoch else 0.0}
            pair.both(Op.BACKWARD, settings, {"g": g})
    assert pair.device.refused(Op.BACKWARD, {"lr": 0.1}, {"g": torch.zeros(1, 1)}) == "BATCH"
    pair.both(Op.FORWARD, {"rows": "test"})
    pair.weights()
    got = pair.device.ask(Op.READ, {"what": "momentum"})
    assert set(got.tree) == set(pair.state.momentum)
    for part, value in got.tree.items():
        close(value, pair.state.momentum[part], part)
    pair.device.close()


def test_momentum_can_be_put_back(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5, fits=("whole",), splits=("front",))
    settings = {"lr": 0.1, "momentum": 0.9}
    pair.both(Op.FORWARD, {})
    g = torch.full((5, 4), 0.25)
    pair.both(Op.BACKWARD, settings, {"g": g})
    kept = pair.device.ask(Op.READ, {"what": "momentum"}).tree
    pair.both(Op.FORWARD, {})
    pair.device.ask(Op.FIT, {**FIT, "momentum": 0.5, "epochs": 1, "send": "none", "lr": 0.0})
    assert pair.device.refused(Op.BACKWARD, settings, {"g": g}) == "MOMENTUM_LOST"
    assert pair.device.refused(Op.READ, {"what": "momentum"}) == "MOMENTUM_LOST"
    pair.device.ask(Op.LOAD, {"what": "momentum"}, kept)
    pair.both(Op.BACKWARD, settings, {"g": g})
    pair.weights()
    pair.device.close()


def test_a_gradient_in_whole_numbers(library: ctypes.CDLL) -> None:
    one, other = (Pair(library, "cnn1d", 6, fits=(), splits=("front",), cut="relu1") for _ in range(2))
    shape = one.both(Op.FORWARD, {})[0].tree["h"].shape
    other.both(Op.FORWARD, {})
    whole = torch.randint(-100, 101, shape, generator=torch.Generator().manual_seed(0))
    scale = float(np.float32(0.003))
    one.device.ask(Op.BACKWARD, {"lr": 0.1, "scale": scale}, {"g": whole})
    other.device.ask(Op.BACKWARD, {"lr": 0.1}, {"g": whole.to(torch.float32) * scale})
    left, right = (pair.device.ask(Op.READ, {"send": "whole"}).tree for pair in (one, other))
    assert tree.largest_difference(left, right) == 0.0
    one.device.close()
    other.device.close()


def built(folder: Path, source: str, *flags: str) -> Path:
    """Gives what a test in C and the runtime make together."""
    out = folder / source
    sources = [DEVICE / "tests" / f"{source}.c", *sorted((DEVICE / "src").glob("*.c"))]
    include = [f"-I{DEVICE / 'include'}", f"-I{DEVICE / 'src'}"]
    command = [*toolchain.host_compiler().command, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-g", *flags]
    subprocess.run([*command, *include, *map(str, sources), "-o", str(out)], check=True, timeout=300)
    return out


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if toolchain.host_compiler().kind != "gcc":
        pytest.skip("checks of addresses need gcc or clang")
    return built(tmp_path_factory.mktemp("c"), "hostile", "-fsanitize=address,alignment", "-fno-sanitize-recover")


INT8 = ("dscnn", "resnet")


@functools.cache
def blobs() -> dict[str, bytes]:
    """Gives small blobs that hold every kind of layer between them."""
    found = {}
    for name in ("mlp", "cnn", "cnn1d-norm", "resnet", "dscnn", "lora-conv"):
        module, shape, _ = net(name)
        program = Program(module.eval(), shape)
        parts = {"whole": program.names("whole"), "head": program.names("head")}
        graph = translate(program.module, shape, program.initial, trained=parts["whole"])
        found[name] = blob.compile(graph, parts, fits=("whole", "head"), momentum=True, keeps_start=True).data
    return {**found, **{f"int8-{name}": int8(name)[1].data for name in INT8}}


def int8(name: str) -> tuple[Program, Blob, Net]:
    """Gives a model, and its net with the frozen layers in int8 and a head in float."""
    module, shape, classes = (
        net("resnet") if name == "resnet" else (mlperf.dscnn((1, 12, 8), 4, channels=8), (1, 12, 8), 4)
    )
    program = Program(module.eval(), shape)
    parts = {"head": program.names("head")}
    graph = translate(program.module, shape, program.initial, trained=parts["head"])
    last = [layer.name for layer in graph.layers if layer.kind not in (Kind.DENSE, Kind.RESHAPE)][-1]
    graph = quantise(graph, rows(shape, classes, 64, 5).x.numpy(), last)
    return program, blob.compile(graph, parts, fits=("head",)), graph


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "cnn1d-norm", "resnet", "dscnn", "lora-conv", "int8-dscnn", "int8-resnet"]
)
def test_a_hostile_blob_is_refused_or_harmless(hostile: Path, name: str, tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(blobs()[name])
    done = subprocess.run([hostile, str(file), "4000", "77"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    refused, ran = map(int, done.stdout.split())
    assert refused > 1000
    assert ran > 100


@pytest.fixture(scope="session")
def power(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(built(tmp_path_factory.mktemp("c"), "power", "-shared", "-fPIC")))


def test_a_set_begins_anew_inside_a_page_of_flash(power: ctypes.CDLL) -> None:
    assert power.power_rows() == 0


def test_power_may_fail_at_any_write(power: ctypes.CDLL) -> None:
    lib, old, new = power, blobs()["mlp"], blobs()["cnn"]
    lib.power_fresh()
    assert lib.power_update(old, len(old), 10**6, 0) > 0
    things = lib.power_update(new, len(new), 10**6, 0)
    assert things > 10
    assert lib.power_found(new, len(new)) == 1
    for until in range(things):
        for quarters in range(4):
            lib.power_fresh()
            lib.power_update(old, len(old), 10**6, 0)
            assert lib.power_update(new, len(new), until, quarters) == -1
            assert lib.power_found(old, len(old)) == 1, (until, quarters)
            # It may fail again, and the one after that comes through.
            assert lib.power_update(new, len(new), until // 2, quarters) == -1
            assert lib.power_found(old, len(old)) == 1
            assert lib.power_update(new, len(new), 10**6, 0) > 0
            assert lib.power_found(new, len(new)) == 1


@pytest.mark.parametrize("name", INT8)
def test_int8_layers_give_the_features_of_their_twin(library: ctypes.CDLL, name: str) -> None:
    program, made, graph = int8(name)
    classes = graph.values[graph.output].elements
    data = rows(program.input_shape, classes, 12, 1)
    device = Device(library, names=tuple(program.initial))
    device.hello()
    device.upload(made.data)
    device.push(Local(data, rows(program.input_shape, classes, 5, 2), rows(program.input_shape, classes, 0, 3)))
    assert made.stored > 0
    assert device.ask(Op.STATS).metrics["store_used"] == 17 * made.row_bytes
    last = next(layer for layer in graph.layers if layer.kind == Kind.DEQUANTISE)
    source = graph.values[last.inputs[0]]
    found = integers(graph, data.x.numpy())[last.inputs[0]].astype(np.float32)
    features = torch.from_numpy((found - source.zero_point) * np.float32(source.scale)).permute(0, 3, 1, 2).flatten(1)
    head = {part.rpartition(".")[2]: value for part, value in program.initial.items() if part.startswith("head.")}
    want = features @ head["weight"].T + head["bias"]
    close(device.ask(Op.PREDICT, {"rows": "train"}).tree["logits"], want, "stored")
    close(device.ask(Op.PREDICT, {}, {"x": data.x}).tree["logits"], want, "sent")
    # The head learns on the stored features what torch's head learns on them.
    layer = nn.Linear(head["weight"].shape[1], head["weight"].shape[0])
    twin = Program(layer, (features.shape[1],))
    state = State(Local(Examples(features, data.y), *(Examples(features[:0], data.y[:0]),) * 2), tree=dict(head))
    settings: Settings = {"lr": 0.1, "batch": 5, "epochs": 3, "train": "whole", "send": "whole"}
    _, learnt = ops.run(twin, state, Message(Op.FIT, settings=settings), rng.key(SEED, 1, 0, Use.BATCH))
    got = device.ask(Op.FIT, {**settings, "train": "head", "send": "head"}, {}, 1)
    for part, value in learnt.tree.items():
        close(got.tree[f"head.{part}"], value, part)
    device.close()


def test_a_borrowed_tensor_is_refused(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5, fits=("whole", "head"))
    device, whole = pair.device, dict(pair.program.initial)
    device.ask(Op.EVALUATE, {}, whole)
    for op, settings in (
        (Op.EVALUATE, {}),
        (Op.PREDICT, {}),
        (Op.FORWARD, {}),
        (Op.READ, {"send": "whole"}),
        (Op.FIT, FIT),
        (Op.ADAPT, FIT),
    ):
        assert device.refused(op, settings) == "BORROWED", op
    assert "error" not in device.ask(Op.EVALUATE, {}, whole).metrics
    head = {name: value for name, value in whole.items() if name.startswith("head")}
    device.ask(Op.LOAD, {}, head)
    assert set(device.ask(Op.READ, {"send": "head"}).tree) == set(head)
    assert device.refused(Op.READ, {"send": "whole"}) == "BORROWED"
    device.ask(Op.LOAD, {}, {name: value for name, value in whole.items() if name not in head})
    # Trained and sent away: the device keeps no copy. Trained and kept: it has its own.
    device.ask(Op.FIT, {**FIT, "train": "head", "send": "head"})
    assert device.refused(Op.EVALUATE) == "BORROWED"
    device.ask(Op.LOAD, {}, head)
    device.ask(Op.FIT, {**FIT, "train": "head", "send": "none"}, head)
    assert "error" not in device.ask(Op.EVALUATE).metrics
    device.close()


def test_what_a_device_refuses(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5, fits=("whole",), splits=("front",))
    device, whole = pair.device, dict(pair.program.initial)
    name = pair.blob.trained[0]
    refused = [
        (Op.FIT, {**FIT, "train": "tail"}, {}, "SLICE"),
        (Op.FIT, {**FIT, "send": "tail"}, {}, "SLICE"),
        (Op.FIT, {**FIT, "train": "front"}, {}, "SLICE"),
        (Op.READ, {"send": "tail"}, {}, "SLICE"),
        (Op.FIT, {"train": "whole"}, {}, "SETTING"),
        (Op.FIT, {**FIT, "batch": -1}, {}, "SETTING"),
        (Op.FIT, {**FIT, "batch": 4.0}, {}, "SETTING"),
        (Op.FIT, {**FIT, "loss": "hinge"}, {}, "SETTING"),
        (Op.FIT, {**FIT, "lr": 1e39}, {}, "SETTING"),
        (Op.FIT, {**FIT, "lr": "much"}, {}, "SETTING"),
        (Op.FIT, {**FIT, "temperature": 0.0}, {}, "SETTING"),
        (Op.FIT, FIT, {"logits": torch.zeros(4, 4)}, "SHAPE"),
        (Op.FIT, FIT, {"logits": torch.zeros(5, 3)}, "SHAPE"),
        (Op.FIT, {**FIT, "lr": 1e30}, {}, "DIVERGED"),
        (Op.LOAD, {}, {name: torch.zeros(2, 2)}, "SHAPE"),
        (Op.LOAD, {}, {name: whole[name].to(torch.int8)}, "SHAPE"),
        (Op.LOAD, {}, {"nobody": torch.zeros(2)}, "TENSOR"),
        (Op.EVALUATE, {}, {"z": torch.zeros(2, 2)}, "TENSOR"),
        (Op.BACKWARD, {"lr": 0.1}, {"g": torch.zeros(5, 4)}, "BATCH"),
        (Op.PREDICT, {}, {"x": torch.zeros(2, 7)}, "SHAPE"),
        (Op.PUSH, {"rows": "train", "step": 0}, {"x": torch.zeros(2, 7), "y": torch.zeros(2).long()}, "SHAPE"),
        (Op.PUSH, {"rows": "train", "step": 0}, {"x": torch.zeros(2, 8), "y": torch.zeros(3).long()}, "SHAPE"),
        (Op.PUSH, {"rows": "train", "step": 0}, {"x": torch.zeros(2, 8), "y": torch.full((2,), 4)}, "LABEL"),
        (Op.PUSH, {"step": 0}, {"x": torch.zeros(2, 8), "y": torch.zeros(2).long()}, "SETTING"),
    ]
    for op, settings, values, why in refused:
        device.ask(Op.LOAD, {}, whole)
        device.names = (*whole, "nobody")
        assert device.refused(op, settings, values) == why, (op, settings)
    device.ask(Op.LOAD, {}, whole)
    device.push(pair.local)
    pair.both(Op.FORWARD, {"batch": 2})
    assert device.refused(Op.BACKWARD, {"lr": 0.1}, {"g": torch.zeros(3, 4)}) == "SHAPE"
    assert device.refused(Op.BACKWARD, {"lr": 0.1}, {"h": torch.zeros(2, 4)}) == "TENSOR"
    assert device.refused(Op.BACKWARD, {}, {"g": torch.zeros(2, 4)}) == "SETTING"
    pair.both(Op.BACKWARD, {"lr": 0.1}, {"g": torch.ones(2, 4)})
    pair.weights()
    pair.both(Op.FORWARD, {})
    device.ask(Op.BACKWARD, {"lr": 3e38}, {"g": torch.full((5, 4), 3e38)})
    assert device.refused(Op.READ, {"send": "whole"}) == "DIVERGED"
    assert device.refused(Op.EVALUATE) == "DIVERGED"
    assert device.ask(Op.STATS).metrics["frames_refused"] == len(refused) + 5
    device.close()


def test_without_velocities_and_starting_values(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5)
    device = Device(library, names=tuple(pair.program.initial))
    graph = translate(pair.program.module, (8,), pair.program.initial, trained=pair.program.names("whole"))
    parts = {"whole": pair.program.names("whole")}
    device.upload(blob.compile(graph, parts, fits=("whole",)).data)
    device.push(pair.local)
    assert device.refused(Op.FIT, {**FIT, "momentum": 0.5}) == "MOMENTUM"
    assert device.refused(Op.FIT, {**FIT, "clip": 0.5}) == "START"
    assert device.refused(Op.FIT, {**FIT, "proximal_mu": 0.5}) == "START"
    assert "error" not in device.ask(Op.ADAPT, FIT).metrics
    assert device.refused(Op.EVALUATE) == "BORROWED"  # nothing was kept that could be put back
    device.close()
    pair.device.close()


def test_an_empty_device_says_so(library: ctypes.CDLL) -> None:
    device = Device(library)
    found = device.hello()
    assert found["model_id"] == 0.0
    assert found["num_params"] == 0.0
    assert (found["arena_bytes"], found["slot_bytes"], found["store_bytes"]) == (1 << 20, 1 << 19, 1 << 21)
    for op in (Op.LOAD, Op.READ, Op.FIT, Op.ADAPT, Op.FORWARD, Op.BACKWARD, Op.EVALUATE, Op.PREDICT, Op.PUSH):
        assert device.refused(op) == "MODEL"
    device.close()


def test_a_frame_that_is_not_whole(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5)
    data = frame.pack(Frame(Op.EVALUATE, False, 0, 4, {"rows": "test"}, dict(pair.program.initial)))
    own = random.Random(3)
    for _ in range(60):
        bad = bytearray(data)
        if own.random() < 0.5:
            bad[own.randrange(len(bad))] ^= 1 << own.randrange(8)
        else:
            bad = bad[: own.randrange(1, len(bad))]
        (reply,) = pair.device.answers(bytes(bad))
        assert set(reply.metrics) == {"error"}
    pair.both(Op.EVALUATE, {"rows": "test"}, dict(pair.program.initial))
    pair.device.close()


@pytest.mark.parametrize("key", [KEY, None])
def test_a_blob_over_the_link(library: ctypes.CDLL, key: bytes | None) -> None:
    first, second = blobs()["mlp"], blobs()["cnn"]
    device = Device(library, key=key, slot=1 << 15, arena=1 << 15)
    device.upload(first)
    one = device.hello()
    assert one["model_id"] == blob.read(first).header.model_id
    half = len(second) // 8 * 4

    def part(at: int, until: int, data: bytes = second, total: int = len(second)) -> tuple[Any, Any]:
        settings = {"what": "blob", "step": at, "rows": total}
        return settings, {"blob": torch.frombuffer(bytearray(data[at:until]), dtype=torch.uint8)}

    assert device.ask(Op.LOAD, *part(0, half)).metrics == {"rows": float(half)}
    assert device.refused(Op.LOAD, *part(half + 4, len(second))) == "BLOB_ORDER"
    assert device.refused(Op.LOAD, *part(half, len(second), total=len(second) + 4)) == "BLOB_ORDER"
    assert device.ask(Op.LOAD, *part(0, half)).metrics == {"rows": float(half)}
    assert device.ask(Op.LOAD, *part(half // 8 * 4, half)).metrics == {"rows": float(half)}  # it came again
    assert device.hello()["model_id"] == one["model_id"]
    device.restart()
    assert device.hello()["model_id"] == one["model_id"]
    assert device.hello()["boots"] != one["boots"]
    spoilt = second[:-4] + bytes([second[-4] ^ 1]) + second[-3:]
    assert device.refused(Op.LOAD, *part(0, len(spoilt), spoilt)) == "BLOB_SUM"
    assert device.hello()["model_id"] == one["model_id"]
    device.upload(second, 1000)
    assert device.hello()["model_id"] == blob.read(second).header.model_id
    device.restart()
    assert device.hello()["model_id"] == blob.read(second).header.model_id
    for data in (first, second, first):
        device.upload(data)
    device.restart()
    assert device.hello()["model_id"] == one["model_id"]
    assert device.refused(Op.LOAD, *part(0, 400, total=1 << 15)) == "BLOB_SIZE"
    device.close()
    small = Device(library, key=key, arena=1024)
    assert small.refused(Op.LOAD, *part(0, len(second))) == "ARENA"
    small.close()


def test_a_blob_for_another_core_is_refused(library: ctypes.CDLL) -> None:
    program, made, graph = int8("dscnn")
    other = blob.compile(graph, {"head": program.names("head")}, fits=("head",), packing=1).data
    device = Device(library)
    values = {"blob": torch.frombuffer(bytearray(other), dtype=torch.uint8)}
    assert device.refused(Op.LOAD, {"what": "blob", "step": 0, "rows": len(other)}, values) == "PACKING"
    device.upload(made.data)
    device.close()


def test_rows_come_in_order_and_fit(library: ctypes.CDLL) -> None:
    pair = Pair(library, "mlp", 5, store=20 * 36 + 30)
    device = pair.device
    found = device.hello()
    assert [found[f"rows_{name}"] for name in ("train", "test", "adapt")] == [5, 9, 5]
    more = {"x": torch.zeros(1, 8), "y": torch.zeros(1).long()}
    assert device.refused(Op.PUSH, {"rows": "test", "step": 1}, more) == "STORE_ORDER"
    assert device.ask(Op.PUSH, {"rows": "adapt", "step": 1}, more).metrics == {"rows": 6.0}
    assert device.refused(Op.PUSH, {"rows": "adapt", "step": 2}, more) == "STORE_FULL"
    assert device.ask(Op.PUSH, {"rows": "test", "step": 0}, more).metrics == {"rows": 1.0}
    found = device.hello()
    assert [found[f"rows_{name}"] for name in ("train", "test", "adapt")] == [5, 1, 0]
    pair.both(Op.READ, {"what": "examples"})
    device.push(pair.local)
    pair.both(Op.READ, {"what": "test"})
    device.close()


def test_the_arena_that_an_op_takes(library: ctypes.CDLL) -> None:
    pair = Pair(library, "cnn", 8, fits=("whole",))
    device = pair.device
    device.ask(Op.STATS)
    device.ask(Op.EVALUATE)
    plans = {(p.kind, p.slice): p.arena_bytes for p in blob.read(pair.blob.data).plans}
    infer, train = plans[0, ""], plans[1, "whole"]
    peak = device.ask(Op.STATS).metrics["arena_peak"]
    assert infer - 16 < peak <= infer
    device.ask(Op.FIT, FIT)
    peak = device.ask(Op.STATS).metrics["arena_peak"]
    assert train - 16 < peak <= train + 2 * 8 + 16
    device.close()
    tight = Pair(library, "cnn", 8, fits=("whole",), arena=(train + 16))
    assert "error" not in tight.device.ask(Op.FIT, {**FIT, "send": "none"}).metrics
    soft = {"logits": torch.zeros(8, 5)}
    assert tight.device.refused(Op.FIT, {**FIT, "send": "none"}, soft) == "ARENA"
    tight.device.close()


def test_names_on_the_wire_are_those_of_python() -> None:
    text = (DEVICE / "src" / "mh_inner.h").read_text()
    found = {name.lower(): int(value, 16) for name, value in re.findall(r"MH_ID_(\w+) (0x\w+)u", text)}
    assert found == {name: zlib.crc32(name.encode()) for name in found}
    assert (set(METRICS) | set(ROW_KINDS) | {"blob", UPDATE}) - {"z"} == set(
        found
    )  # it has no half behind the server's
    assert sorted(CODES.values()) == list(range(1, len(refusal.SENTENCES)))


def device_of(folder: Path, command: tuple[str, ...], *flags: str) -> ctypes.CDLL:
    """Gives the device for this process, built in another way."""
    out = folder / f"device{len(list(folder.iterdir()))}.so"
    sources = map(str, (DEVICE / "port" / "host.c", *sorted((DEVICE / "src").glob("*.c"))))
    include = [f"-I{DEVICE / 'include'}", f"-I{DEVICE / 'src'}", "-ffunction-sections", "-Wl,--gc-sections"]
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
    subprocess.run([*command, *strict, *flags, *include, *sources, "-o", str(out)], check=True, timeout=300)
    return opened(out)


@pytest.fixture(scope="session")
def builds(library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> list[ctypes.CDLL]:
    folder, command = tmp_path_factory.mktemp("builds"), toolchain.host_compiler().command
    zig = (sys.executable, "-m", "ziglang", "cc")
    return [
        library,
        device_of(folder, command, "-O0", "-fsanitize=undefined", "-fno-sanitize-recover"),
        device_of(folder, command, "-O3", "-march=native"),
        device_of(folder, zig, "-O2", "-fno-sanitize=all"),
    ]


@pytest.mark.parametrize("name", [*MODELS, "lora-conv"])
def test_every_build_learns_the_same_to_the_bit(builds: list[ctypes.CDLL], name: str) -> None:
    found = []
    for library in builds:
        pair = Pair(library, name, 7)
        settings = {**FIT, "momentum": 0.9, "weight_decay": 0.01, "proximal_mu": 0.1, "epochs": 3}
        for loss in ("cross_entropy", "mse"):
            pair.device.ask(Op.FIT, {**settings, "loss": loss, "send": "none"})
        soft = torch.randn((7, net(name)[2]), generator=torch.Generator().manual_seed(2))
        learnt = pair.device.ask(Op.FIT, {**settings, "temperature": 3.0, "soft_weight": 0.5}, {"logits": soft})
        found.append((tree.sha256(learnt.tree), learnt.metrics))
        pair.device.close()
    assert all(other == found[0] for other in found[1:])


def test_a_build_that_only_infers_has_no_training(library: ctypes.CDLL, tmp_path: Path) -> None:
    small = device_of(tmp_path, toolchain.host_compiler().command, "-DMH_INFER_ONLY")
    pair = Pair(small, "cnn1d", 5)
    for op in (Op.FIT, Op.ADAPT, Op.BACKWARD):
        assert pair.device.refused(op, FIT) == "TRAINING"
    pair.both(Op.EVALUATE)
    pair.both(Op.FORWARD, {"batch": 2, "step": 1})
    assert hasattr(library, "mh_model_backward")
    assert not hasattr(small, "mh_model_backward")
    pair.device.close()
