"""What a device is given: a model as a blob, as C, and, where it is int8 throughout, as .tflite."""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from midhaul import checkpoint, config, plant, rng
from midhaul.data import Dataset, load
from midhaul.devices import blob, footprint, instructions, pack
from midhaul.devices.blob import Blob
from midhaul.devices.instructions import Instructions
from midhaul.devices.plan import Plan, PlanKind
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, DataError, ModelError, nearest
from midhaul.fleet import Group
from midhaul.kit import Kit
from midhaul.models import slices, tflite, tiny
from midhaul.models.adapters import merge_lora
from midhaul.models.int8 import Int8Front
from midhaul.models.prepare import prepare
from midhaul.models.quantise import quantise
from midhaul.models.translate import translate
from midhaul.models.window import blocks, take_window, window
from midhaul.net import Kind, Layer, Net, macs
from midhaul.runtime.own import owners
from midhaul.units import format_bytes

PRECISIONS = ("float32", "int8")
NORMS = ("fold", "group")
CALIBRATION_ROWS = 512
_USUAL = ((6, 128), 6)  # the inertial windows of `har`, for models without a published input of their own


@dataclass(frozen=True)
class Exported:
    """What `midhaul export` made: the files, a row a layer, and whether the board can hold it."""

    model: str
    board: Board
    precision: str
    slice: str
    net: Net = field(repr=False)
    blob: Blob = field(repr=False)
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    columns = ("layer", "kind", "output", "type", "MACs", "weights")

    @property
    def flash_bytes(self) -> int:
        """The flash that the board needs: the runtime and two slots for the blob."""
        return footprint.of(self.board.core).code_bytes + footprint.slots_bytes(len(self.blob.data))

    @property
    def sram_bytes(self) -> int:
        """The SRAM that the board needs: the arena, and the runtime's static memory and stack."""
        runtime = footprint.of(self.board.core)
        return self.blob.arena_bytes + runtime.static_bytes + runtime.stack_bytes

    @property
    def fits(self) -> bool:
        """Tells whether the board has the flash and the SRAM."""
        return self.flash_bytes <= self.board.flash_bytes and self.sram_bytes <= self.board.sram_bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example."""
        return sum(layer["macs"] for layer in self.layers)

    @property
    def instructions(self) -> int | None:
        """The instructions of one example from the input to the output; None where the board's aren't predicted."""
        plans = {one.kind: one for one in reversed(self.blob.plans)}  # of those to infer, the first; all are alike
        found = [self._instructions(plans[kind]) for kind in (PlanKind.STORE, PlanKind.INFER) if kind in plans]
        known = [one.of_rows(1, 0) for one in found if one is not None]
        return round(sum(known)) if known else None

    def _instructions(self, plan: Plan) -> Instructions | None:
        if not instructions.is_known(self.board.core):
            return None
        momentum = bool(self.blob.resident.velocities)
        return instructions.of(self.blob, plan, self.board.core, momentum=momentum)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Each layer's name, kind, output shape, type, multiply-accumulates and bytes of weights."""
        packing = footprint.packing(self.board.core)
        return [
            {
                "name": layer.name,
                "kind": layer.kind.name.lower(),
                "output": list(self.net.values[layer.out].shape),
                "type": "int8" if self.net.values[layer.out].int8 else "float32",
                "macs": macs(self.net, layer),
                "weight_bytes": _weight_bytes(self.net, layer, packing),
            }
            for layer in self.net.layers
        ]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The layers as text."""
        return [
            (
                layer["name"],
                layer["kind"],
                "x".join(map(str, layer["output"])),
                layer["type"],
                f"{layer['macs']:,}",
                format_bytes(layer["weight_bytes"]) if layer["weight_bytes"] else "-",
            )
            for layer in self.layers
        ]

    @property
    def heading(self) -> str:
        """One line of what was exported."""
        trains = f", training {self.slice!r}" if self.slice else ""
        shape = "x".join(map(str, self.net.values[0].shape))
        found = self.instructions
        count = "" if found is None else f", {found:,} instructions"
        return f"{self.model} on {shape} in {self.precision}{trains}: {self.macs:,} MACs{count} an example"

    @property
    def verdict(self) -> str:
        """One sentence: what it takes of the board, and whether it fits."""
        needs = (
            f"the blob has {format_bytes(len(self.blob.data))} and its arena {format_bytes(self.blob.arena_bytes)}; "
            f"with the runtime that is {format_bytes(self.flash_bytes)} of {format_bytes(self.board.flash_bytes)} "
            f"flash and {format_bytes(self.sram_bytes)} of {format_bytes(self.board.sram_bytes)} SRAM"
        )
        if self.fits:
            return f"It fits {self.board.name}: {needs}."
        short = max(self.flash_bytes - self.board.flash_bytes, 0), max(self.sram_bytes - self.board.sram_bytes, 0)
        over = " and ".join(f"{num:,} B of {what}" for num, what in zip(short, ("flash", "SRAM"), strict=True) if num)
        instead = "a smaller model or a larger board" if self.precision == "int8" else "int8, or a larger board"
        return f"It doesn't fit {self.board.name}, which lacks {over}: {needs}; choose {instead}."

    def to_table(self) -> dict[str, Any]:
        """Gives all of it as plain values."""
        return {
            "model": self.model,
            "board": self.board.name,
            "precision": self.precision,
            "slice": self.slice,
            "input": list(self.net.values[0].shape),
            "model_id": f"{self.blob.model_id:08x}",
            "blob_bytes": len(self.blob.data),
            "arena_bytes": self.blob.arena_bytes,
            "flash_bytes": self.flash_bytes,
            "sram_bytes": self.sram_bytes,
            "fits": self.fits,
            "trained": list(self.blob.trained),
            "plans": [self._plan(one) for one in self.blob.plans],
            "macs": self.macs,
            "instructions": self.instructions,
            "layers": self.layers,
            "files": [path.name for path in self.files],
            "notes": list(self.notes),
        }

    def _plan(self, one: Plan) -> dict[str, Any]:
        """Gives a plan's kind, slice, arena, and the instructions of a row and of a batch's step."""
        found = self._instructions(one)
        return {
            "kind": one.kind.name.lower(),
            "slice": one.slice,
            "arena_bytes": one.arena_bytes,
            "instructions": None if found is None else round(found.of_rows(1, 0)),
            "step_instructions": None if found is None else round(found.step),
        }


def export(
    subject: str,
    board: Board,
    out: Path,
    *,
    precision: str = "",
    slice: str = "",
    data: str = "",
    shape: tuple[int, ...] = (),
    classes: int = 0,
    norm: str = "fold",
    device: int | None = None,
) -> Exported:
    """Writes model.mhb, model.h, model.c, export.json and, if all of it is int8, model.tflite to a folder.

    `subject` is the folder of a run that has ended, the name of a tiny model, or `package.module:function` that gives a
    module. The input of a model is that of `data`, or `shape` with `classes`, or the one that it was published with;
    `precision` is float32 unless told, or the run's own; int8 is
    calibrated on rows of `data`, or of the run's public data. With `slice`, the blob can train it. `norm` says
    what becomes of batch norm: folded into other layers, or group norm instead. With `device`, what that device of the
    run keeps of its own takes the place of the shared tensors.
    Raises: MidhaulError for a subject that isn't there or a model that a device can't run; files that can't be written.
    """
    for what, value, known in (("precision", precision, PRECISIONS), ("norm", norm, NORMS)):
        if value and value not in known:
            raise ConfigError(f"there is no {what} {value!r}{nearest(value, known)}")
    is_run = Path(subject).is_dir()
    if device is not None and not is_run:
        raise ConfigError(f"{subject} is no run's folder, so it has no device {device}; leave out --device")
    found = _run(Path(subject), data, device) if is_run else _model(subject, data, shape, classes)
    precision = precision or ("int8" if isinstance(found.module, Int8Front) else "float32")
    net, names, notes = _net(found, precision, slice, norm)
    # A blob that only infers runs all of the layers on each row; one that trains keeps what its frozen ones give.
    quantised = net.layers[0].out if net.layers[0].kind == Kind.QUANTISE else 0
    made = blob.compile(
        net,
        {slice: names} if slice else {},
        fits=(slice,) if slice and not found.is_front else (),
        splits=(slice,) if slice and found.is_front else (),
        momentum=found.momentum,
        stored=None if slice else quantised,
        num_classes=0 if found.is_front else None,
        packing=footprint.packing(board.core),
    )
    files = {"model.mhb": made.data, "model.h": _header(found.name, made), "model.c": _source(made)}
    if precision == "int8" and not slice:
        try:
            files["model.tflite"] = tflite.to_bytes(net, found.name)
        except ModelError as error:
            notes.append(f"there is no model.tflite: {error}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.tflite").unlink(missing_ok=True)
    paths = tuple(out / name for name in (*files, "export.json"))
    result = Exported(found.name, board, precision, slice, net, made, paths, tuple(notes))
    files["export.json"] = json.dumps(result.to_table(), indent=2).encode() + b"\n"
    for path in paths:
        checkpoint.write(path, files[path.name])
    return result


@dataclass(frozen=True)
class _Subject:
    """A module with its own tensors, its input, and rows [N, ...] to calibrate on if there are any."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    rows: npt.NDArray[Any] | None
    notes: tuple[str, ...] = ()
    is_front: bool = False
    momentum: bool = False


def _run(folder: Path, data: str, device: int | None) -> _Subject:
    """Gives the device's model of a run, with what the run has trained."""
    if not (folder / "config.toml").exists():
        raise DataError(f"{folder} is not the folder of a run: it has no config.toml")
    settings = config.read(folder / "config.toml")
    # What is only read here needs no devices, and may be exported for another board than the run's.
    here = settings.replace(run_engine="stacked", run_device="cpu", run_precision="float32", fleet_check=False)
    built = plant.build(here)
    kit = built.kit
    shared, own = _saved(folder, "tiny"), _saved(folder, "devices")
    group, inside = _group(kit, device)
    module = copy.deepcopy(kit.program.module if group is None else group.program.module)
    notes = []
    if device is not None:
        shared = _part(shared, kit, group) if group is not None else shared
        kept = _kept(own, device, inside)
        if not kept and (group is None or not shared):
            raise DataError(f"in {folder} device {device} keeps nothing of its own; leave out --device")
        shared |= kept
    elif own:
        notes.append("its devices keep tensors of their own; this is what the server holds: choose one with --device")
    if missing := sorted(set(module.state_dict()) - set(shared)):
        raise DataError(
            f"{folder} holds no {missing[0]} that devices share: wait for its end, or choose one with --device"
        )
    module.load_state_dict(shared, strict=False)
    rows = _rows(load(data)) if data else kit.public.x.numpy() if len(kit.public) else None
    name, is_front = f"{built.tiny_name} of {folder.name}", built.scheme.part in ("front", "u")
    if is_front:
        tail = "; the tail behind the server isn't in it" if kit.program.tail is not None else ""
        cut = group.cut if group is not None and group.cut else kit.cfg.cut or "the deepest of its cuts"
        notes.append(f"the device's half, cut behind {cut}{tail}")
    return _Subject(name, module, kit.program.input_shape, rows, tuple(notes), is_front, kit.cfg.momentum > 0.0)


def _saved(folder: Path, name: str) -> dict[str, Tensor]:
    """Gives the tensors of a file of a run's model; none where it wasn't written."""
    path = folder / "model" / f"{name}.safetensors"
    try:
        found: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, safetensors.SafetensorError):
        raise DataError(f"{path} can't be read; run the config anew") from None
    return found


def _group(kit: Kit, device: int | None) -> tuple[Group | None, str]:
    """Gives the group of a device whose model may be another than the others', and the part of a path with its engine.

    Raises: ConfigError for a device that the run didn't have.
    """
    programs = list(dict.fromkeys(id(group.program) for group in kit.groups))
    if device is None or (len(programs) == 1 and kit.groups[0].program is kit.program):
        return None, ""
    group = next((group for group in kit.groups if device in group.devices), None)
    if group is None:
        raise ConfigError(f"the run has no device {device}; it has {sum(len(g.devices) for g in kit.groups)}")
    return group, f"{programs.index(id(group.program))}/" if len(programs) > 1 else ""


def _part(shared: dict[str, Tensor], kit: Kit, group: Group) -> dict[str, Tensor]:
    """Gives what of the server's tensors a group's model has; of a narrower one, the leading channels."""
    wanted = group.program.initial
    shared = {name: value for name, value in shared.items() if name in wanted}
    if group.width != 1.0 and shared:
        whole = kit.program
        places = window(whole.initial, wanted, blocks(whole.module, whole.input_shape), 0)
        shared = take_window(shared, {name: places[name] for name in shared})
    return {name: value for name, value in shared.items() if value.shape == wanted[name].shape}


def _kept(own: dict[str, Tensor], device: int, inside: str) -> dict[str, Tensor]:
    """Gives what one device keeps: the stacked engine saves own/NAME [K, ...], the loop tree/DEVICE/NAME.

    Where devices hold unlike models, the number of the engine, `inside`, is in front of NAME and of DEVICE.
    """
    prefix = f"tree/{inside}{device}/"
    found = {path.removeprefix(prefix): value for path, value in own.items() if path.startswith(prefix)}
    for path, value in own.items():
        if path.startswith(f"own/{inside}") and (place := torch.nonzero(owners(own, path) == device)).numel():
            found[path.removeprefix(f"own/{inside}")] = value[int(place)]
    return found


def _model(subject: str, data: str, shape: tuple[int, ...], classes: int) -> _Subject:
    """Gives a tiny model by its name, or a person's own, as it is when it is built."""
    if any(size < 1 for size in shape) or classes < 0:
        raise ConfigError("every size in --shape and --classes must be at least 1")
    held = load(data) if data else None
    rows = None if held is None else _rows(held)
    if held is not None:
        shape, classes = shape or held.input_shape, classes or held.num_classes
    if ":" in subject:
        if not shape:
            raise ConfigError(f"the input of {subject} isn't known; give --shape, for example 6,128, or --data")
        return _Subject(subject, _imported(subject), shape, rows)
    if subject not in tiny.TINY:
        raise ModelError(f"there is no run folder and no tiny model {subject!r}{nearest(subject, tiny.TINY)}")
    known = tiny.TINY[subject]
    shape = shape or known.published_shape or _USUAL[0]
    classes = classes or known.published_classes or _USUAL[1]
    with rng.torch_seed(rng.key(0, 0, rng.SERVER, rng.Use.INIT)):
        module = tiny.build(subject, shape, classes)
    return _Subject(
        subject, module, shape, rows, ("its weights are drawn, not trained: export a run's folder for those",)
    )


def _imported(subject: str) -> nn.Module:
    path, _, name = subject.partition(":")
    try:
        with _here():
            made = getattr(importlib.import_module(path), name)()
    except Exception as error:  # a person's own code may raise anything
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{subject} gave no module ({type(error).__name__}: {reason}); it is called without arguments"
        ) from None
    if not isinstance(made, nn.Module):
        raise ModelError(f"{subject} gave a {type(made).__name__}; it must give a torch module")
    return made


@contextmanager
def _here() -> Iterator[None]:
    """Runs a block in which modules of the current folder can be imported, as `python -m` has it."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def _rows(held: Dataset) -> npt.NDArray[Any]:
    """Gives rows from all over a data set, the same each time."""
    step = max(1, len(held.x) // CALIBRATION_ROWS)
    rows: npt.NDArray[Any] = np.asarray(held.inputs(slice(0, None, step))[:CALIBRATION_ROWS])
    return rows


def _net(found: _Subject, precision: str, slice: str, norm: str) -> tuple[Net, tuple[str, ...], list[str]]:
    """Gives the net of a subject, the names of the slice, and what there is to say."""
    module, notes = found.module.eval(), list(found.notes)
    if isinstance(module, Int8Front):
        return _of_front(module, precision, slice, notes)
    if norm == "group":
        module = prepare(module, found.input_shape, "group").module.eval()
    names = slices.names(module, slice, found.input_shape) if slice else ()
    if not slice and any(name.endswith("lora_a") for name, _ in module.named_parameters()):
        module = merge_lora(module)
        notes.append("adapters are merged into their layers, since nothing is trained on the device")
    net = translate(module, found.input_shape, trained=names)
    if precision == "float32":
        return net, names, notes
    if found.rows is None:
        raise DataError("int8 must be calibrated on rows, and there are none; name a data set with --data")
    first = next((i for i, layer in enumerate(net.layers) if set(names) & set(layer.weights.values())), None)
    if first == 0:
        raise ModelError(
            f"the slice {slice!r} begins with the first layer, which leaves none for int8; choose a later one: head"
        )
    upto = None if first is None else net.layers[first - 1].name
    return quantise(net, found.rows[:CALIBRATION_ROWS], upto), names, notes


def _of_front(
    module: Int8Front, precision: str, slice: str, notes: list[str]
) -> tuple[Net, tuple[str, ...], list[str]]:
    """Gives the net of a run that was in int8 itself."""
    if precision == "float32":
        raise ConfigError("the run was in int8 on its devices, so there is no float32 model; use --precision int8")
    if slice not in ("", "head"):
        raise ModelError(f"in int8 only the head is float and can be trained, not {slice!r}; use --slice head")
    names = tuple(name for name, _ in module.named_parameters()) if slice else ()
    whole: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return module.device_net(whole), names, notes


def _weight_bytes(net: Net, layer: Layer, packing: int) -> int:
    if layer.packed is not None:
        return sum(len(part) for part in pack.pack(layer, net, packing))
    return sum(net.tensors[name].nbytes for name in layer.weights.values())


def _header(name: str, made: Blob) -> bytes:
    return f"""/* {name.replace("*/", "")}, written by `midhaul export`: the bytes of model.mhb. */
#ifndef MH_EXPORTED_H
#define MH_EXPORTED_H

#include <stdint.h>

#define MH_EXPORTED_BYTES {len(made.data)}u
#define MH_EXPORTED_ARENA_BYTES {made.arena_bytes}u /* 16-byte aligned */
#define MH_EXPORTED_ID 0x{made.model_id:08x}u

extern const uint8_t mh_exported_u8[MH_EXPORTED_BYTES];

#endif
""".encode()


def _source(made: Blob) -> bytes:
    lines = [made.data[start : start + 20] for start in range(0, len(made.data), 20)]
    numbers = "\n".join("    " + ", ".join(f"0x{byte:02x}" for byte in line) + "," for line in lines)
    return f"""#include "model.h"

#if defined(__GNUC__)
__attribute__((aligned(16)))
#endif
const uint8_t mh_exported_u8[MH_EXPORTED_BYTES] = {{
{numbers}
}};
""".encode()
