"""Checkpoints: everything that a run needs to go on, whole or not at all.

A checkpoint of round r is `round-r.safetensors` (the tensors) and `round-r.json` (scalars, and the SHA-256 of the
first). Both are written beside their names and renamed, the second last: a pair that is there is whole. The newest two
are kept, so that a damaged one costs one round. Tensors that never change lie once in `constant.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from midhaul import tree
from midhaul.errors import CheckpointError
from midhaul.server import Server
from midhaul.tree import Tree

_KEPT = 2
_CONSTANT = "constant.safetensors"
_BESIDE = re.compile(r"\..+\.(safetensors|json|jsonl|toml)\.\d+")  # what `write` calls a file until it is whole


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round: the server, what the devices and the link remember, and the run's scalars."""

    round: int
    server: Server
    devices: Tree
    scalars: dict[str, Any]
    link: Tree = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint and removes all but the newest two."""
    make(folder)
    server = checkpoint.server
    whole = {f"tree|{name}": value for name, value in server.tree.items()}
    whole |= {f"large|{name}": value for name, value in server.large.items()}
    whole |= {f"state|{part}|{name}": value for part, values in server.state.items() for name, value in values.items()}
    whole |= {f"devices|{name}": value for name, value in checkpoint.devices.items()}
    whole |= {f"link|{name}": value for name, value in checkpoint.link.items()}
    constant = folder / _CONSTANT
    if server.constant and not constant.exists():
        write(constant, to_bytes(server.constant))
    data = to_bytes(whole)
    head = {
        "round": checkpoint.round,
        "sha256": hashlib.sha256(data).hexdigest(),
        "order": list(whole),
        "constant": tree.sha256(dict(sorted(server.constant.items()))) if server.constant else "",
        "scalars": checkpoint.scalars,
    }
    write(folder / f"round-{checkpoint.round:06d}.safetensors", data)
    write(folder / f"round-{checkpoint.round:06d}.json", json.dumps(head).encode())
    for old in rounds(folder)[:-_KEPT]:
        (folder / f"round-{old:06d}.json").unlink(missing_ok=True)
        (folder / f"round-{old:06d}.safetensors").unlink(missing_ok=True)


def rounds(folder: Path) -> list[int]:
    """Gives the rounds that a folder has checkpoints of, oldest first."""
    found = []
    for path in folder.glob("round-*.json"):
        number = path.stem.removeprefix("round-")
        if number.isdigit():
            found.append(int(number))
    return sorted(found)


def load(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """Gives the newest sound checkpoint, or None if the folder has none yet; tells of those that were damaged.

    Raises: CheckpointError if there are checkpoints and none of them is sound.
    """
    reasons = []
    for number in reversed(rounds(folder)):
        try:
            checkpoint = _load(folder, number)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            tell(f"{'; '.join(reasons)}; going on from the one before it, round {number}")
        return checkpoint
    if reasons:
        raise CheckpointError(f"{'; '.join(reasons)}; none is left to resume from, so start the run anew")
    return None


def to_bytes(whole: Tree) -> bytes:
    """Gives a tree as safetensors; tensors that share memory are written one by one."""
    return safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in whole.items()})


def make(folder: Path) -> None:
    """Makes a folder, if it isn't there. Raises: CheckpointError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be made ({error.strerror}); free space or choose another --out"
        ) from None


def write(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} can't be written ({error.strerror}); free space or choose another --out"
        ) from None


def sweep(folder: Path) -> None:
    """Removes what a process that was killed left half written. It is for the one process that writes there."""
    for path in folder.glob(".*"):
        if _BESIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _load(folder: Path, number: int) -> Checkpoint:
    name = f"round-{number:06d}"
    try:
        head = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        data = (folder / f"{name}.safetensors").read_bytes()
        digest, order, scalars = str(head["sha256"]), list(head["order"]), dict(head["scalars"])
        constant_digest = str(head["constant"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"the checkpoint of round {number} is damaged or incomplete") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"the checkpoint of round {number} is damaged (its SHA-256 is not what was written)")
    whole = safetensors.torch.load(data)
    if sorted(whole) != sorted(order):
        raise CheckpointError(
            f"the checkpoint of round {number} is damaged (its list of tensors is not what was written)"
        )
    server, devices, link = Server({}), Tree(), Tree()
    for path in order:
        part, _, rest = path.partition("|")
        if part == "state":
            kind, _, rest = rest.partition("|")
            server.state.setdefault(kind, {})[rest] = whole[path]
        else:
            {"tree": server.tree, "large": server.large, "devices": devices, "link": link}[part][rest] = whole[path]
    if constant_digest:
        server.constant.update(_constant(folder, constant_digest))
    return Checkpoint(number, server, devices, scalars, link)


def _constant(folder: Path, digest: str) -> Tree:
    try:
        found = safetensors.torch.load((folder / _CONSTANT).read_bytes())
    except (OSError, safetensors.SafetensorError):
        raise CheckpointError(f"{_CONSTANT} is missing or damaged") from None
    whole: Tree = dict(sorted(found.items()))
    if tree.sha256(whole) != digest:
        raise CheckpointError(f"{_CONSTANT} is damaged (its SHA-256 is not what was written)")
    return whole
