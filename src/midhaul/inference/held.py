"""What the models of a finished run say about rows that neither has seen, and which of these rows are to calibrate on.

The scheme's own `evaluate` says which model a device answers with, its own or the shared one: its messages are listened
to, and the same devices are asked for their logits. Rows are put aside for calibration whole devices at a time where
the run is tested on new ones, so that what is chosen on some people is measured on others.

Shape letters: N queries, C classes, H features at the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from midhaul import checkpoint, rng
from midhaul import config as settings
from midhaul import plant as plants
from midhaul.config import Config
from midhaul.data import Dataset
from midhaul.errors import CheckpointError, ConfigError, DataError
from midhaul.fleet import Around, Fleet, Part
from midhaul.inference.gate import Bools
from midhaul.inference.stages import Ints
from midhaul.message import Message, Op, Replies
from midhaul.plant import Plant
from midhaul.runtime.own import owners
from midhaul.server import Server
from midhaul.tree import Tree

# What lies on the devices and on the server, of the schemes whose answers can be listened to.
_ASKED = (("whole", "none"), ("whole", "teacher"), ("front", "rear"))
_FEW = 4  # with fewer test devices than this, rows are put aside and not devices


@dataclass(frozen=True)
class Heard:
    """A finished run's held-out rows, and what its devices said of them.

    Shapes: device, y, calibrates [N]; x [N, ...]; said [N, C] logits of the devices' model, or [N, ...] features where
    the devices hold the part up to a cut. `trees` are the parameters of each device that answered, if they were wanted.
    """

    plant: Plant
    server: Server
    device: Ints
    x: Tensor
    y: Ints
    said: Tensor
    calibrates: Bools
    trees: dict[int, Tree]


def hear(
    folder: Path,
    changes: Sequence[str] = (),
    *,
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Heard:
    """Asks the models of a run's folder about its test rows. `changes` are `section.key=value` on its config.

    Raises: MidhaulError in one sentence for a folder that holds no such run, or a run whose devices can't be asked.
    """
    plant, server = opened(folder, changes, module=module, large_module=large_module, dataset=dataset)
    config = plant.config
    ear = _Ear(plant.engine, wants_trees=bool(config.inference.exit) and plant.scheme.part == "whole")
    try:
        plant.scheme.evaluate(server, ear, plant.kit, _key(config))
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {error} of its checkpoint, which {plant.scheme.name} is tested with; run it anew"
        ) from None
    kinds = len({id(group.program) for group in plant.kit.groups})
    if kinds > 1 and (plant.scheme.part == "front" or config.inference.exit):
        raise ConfigError(f"devices of this run hold {kinds} unlike models, for which cuts and exits aren't built here")
    if not ear.heard:
        raise ConfigError(f"in {plant.scheme.name} devices hold no model that answers; run another scheme")
    parts = [(device, reply.tree) for said in ear.heard for device, reply in said]
    asked = Message(Op.READ, settings={"what": "test"})
    rows = dict(plant.engine.exchange(asked, key=_key(config), devices=sorted({device for device, _ in parts})))
    parts = [(device, said) for device, said in parts if len(rows[device].tree["y"])]
    if not parts:
        raise DataError("no test device holds a row; raise data.test_fraction or give held-out rows")
    kind = "h" if plant.scheme.part == "front" else "logits"
    device = np.concatenate([np.full(len(said[kind]), number, np.int64) for number, said in parts])
    x, y = (torch.cat([rows[number].tree[name] for number, _ in parts]) for name in ("x", "y"))
    said = torch.cat([said[kind] for _, said in parts])
    return Heard(plant, server, device, x, y.numpy(), said, _calibrates(device, plant), ear.trees)


def opened(
    folder: Path,
    changes: Sequence[str] = (),
    *,
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> tuple[Plant, Server]:
    """Gives what a finished run was built from, its devices holding what they held at the end, and its server.

    Raises: CheckpointError in one sentence for a folder that holds no such run, ConfigError for what it can't be told.
    """
    kept = folder / "config.toml"
    if not kept.exists() or not (folder / "model").is_dir():
        raise CheckpointError(f"{folder} is not the folder of a run that has ended; give one that `midhaul run` wrote")
    config = settings.from_table(settings.override(settings.read_table(kept), changes), where=str(kept))
    plant = plants.build(_simulated(config), module=module, large_module=large_module, dataset=dataset)
    part, large = plant.scheme.part, plant.scheme.large
    if (part, large) not in _ASKED:
        raise ConfigError(
            f"answering together isn't built for what {plant.scheme.name} has on its devices ({part}) and its server "
            f"({large}); run a scheme with a whole tiny model, or a plain split one"
        )
    server = Server(_saved(folder, "tiny"), _saved(folder, "large"))
    found = checkpoint.load(folder / "checkpoint", lambda line: None)
    if found is not None:  # what else a scheme's own test of its models looks at
        server = replace(server, state=found.server.state, constant=found.server.constant)
    _restore(plant, server, _saved(folder, "devices"), folder)
    return plant, server


def _simulated(config: Config) -> Config:
    """Gives the config with devices that are simulated, on the processor: devices that are elsewhere, and a run on a
    GPU, are listened to without them."""
    engine = "stacked" if config.run.engine in ("firmware", "gateways") else config.run.engine
    return config.replace(run_engine=engine, run_device="cpu", run_precision="float32")


def _key(config: Config) -> rng.Key:
    return rng.Key(config.run.seed, config.run.rounds, rng.SERVER, 0)


class _Ear(Around):
    """A fleet that passes messages on and asks those who are tested what they would answer."""

    def __init__(self, fleet: Fleet, *, wants_trees: bool) -> None:
        self.fleet = fleet
        self.wants_trees = wants_trees
        self.heard: list[Replies] = []
        self.trees: dict[int, Tree] = {}

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        if message.op == Op.ADAPT:
            raise ConfigError(
                "the new devices of this run adapt before they answer, which a cascade can't follow; run it with "
                "data.adapt = 0"
            )
        if message.op == Op.EVALUATE:
            asked = replace(message, op=Op.PREDICT, settings={"rows": "test"})
            self.heard.append(self.fleet.exchange(asked, key=key, devices=devices))
            if self.wants_trees:
                asked = replace(message, op=Op.READ, settings={"send": "whole"})
                found = self.fleet.exchange(asked, key=key, devices=devices)
                self.trees.update({device: reply.tree for device, reply in found})
        replies = self.fleet.exchange(message, key=key, devices=devices)
        if message.op == Op.FORWARD:
            self.heard.append(replies)
        return replies

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]


def _saved(folder: Path, name: str) -> Tree:
    """Gives the tensors of a file of a run's model; none where it wasn't written."""
    path = folder / "model" / f"{name}.safetensors"
    try:
        found: Tree = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, safetensors.SafetensorError):
        raise CheckpointError(f"{path} can't be read; run the config anew") from None
    return found


def _restore(plant: Plant, server: Server, kept: Tree, folder: Path) -> None:
    """Gives the devices what they held at the end: the shared tensors, and what was each one's own."""
    initial, fleet = plant.kit.program.initial, plant.engine
    if len({id(group.program) for group in plant.kit.groups}) > 1:
        found = checkpoint.load(folder / "checkpoint", lambda line: None)
        if found is None:
            raise CheckpointError(f"{folder} has no checkpoint, which tells what its unlike devices hold; run it anew")
        plant.engine.restore(found.devices)
        return
    wrong = [n for n, v in server.tree.items() if n not in initial or initial[n].shape != v.shape]
    own: dict[int, Tree] = {}
    training = set(fleet.devices)
    for path, value in sorted(kept.items()):  # own/NAME, of some devices; then tree/DEVICE/NAME, which is that one's
        part, _, rest = path.partition("/")
        if part == "own":
            places = {d: place for place, d in enumerate(owners(kept, path).tolist()) if d in training}
            own.update({d: {**own.get(d, {}), rest: value[place]} for d, place in places.items()})
        elif part == "tree":
            number, _, name = rest.partition("/")
            own.setdefault(int(number), {})[name] = value
    wrong += [
        n for tensors in own.values() for n, v in tensors.items() if n not in initial or initial[n].shape != v.shape
    ]
    known = {*server.tree, *(name for tensors in own.values() for name in tensors)}
    wrong += [name for name in initial if known and name not in known]
    if wrong:
        raise CheckpointError(
            f"what {folder} holds of {wrong[0]} isn't what the model of its config.toml has; a run of a module of "
            "one's own is to be given that module again"
        )
    if server.tree:
        everyone = tuple(sorted({*fleet.devices, *fleet.test_devices}))
        fleet.exchange(Message(Op.LOAD, server.tree), key=_key(plant.config), devices=everyone)
    for names in {tuple(tensors) for tensors in own.values()}:
        devices = sorted(device for device, tensors in own.items() if tuple(tensors) == names)
        each = {name: torch.stack([own[device][name] for device in devices]) for name in names}
        fleet.exchange(Message(Op.LOAD, each=each), key=_key(plant.config), devices=devices)


def _calibrates(device: Ints, plant: Plant) -> Bools:
    """Gives the queries to calibrate on: of whole devices if there are enough new ones, else of each device's rows.

    Training devices that are all tested on the same new rows put the same rows aside. Shapes: [N] -> [N].
    """
    share, seed = plant.config.inference.calibrate, plant.config.run.seed
    each = np.unique(device)
    new = set(each.tolist()).isdisjoint(plant.engine.devices)
    start = rng.key(seed, 0, rng.SERVER, rng.Use.SPLIT).at(1)
    if new and len(each) >= _FEW:
        order = each[rng.permutation(start, len(each))]
        return np.isin(device, order[: min(max(round(share * len(each)), 1), len(each) - 1)])
    out = np.zeros(len(device), np.bool_)
    for number in each:
        rows = np.flatnonzero(device == number)
        own = start if not plant.federation.own_test else start._replace(device=int(number))
        out[rows[rng.permutation(own, len(rows))[: round(share * len(rows))]]] = True
    if not out.any() or out.all():
        raise DataError(
            f"the {len(device)} held-out rows can't be shared between calibrating and testing at "
            f"inference.calibrate = {share}; hold out more of them"
        )
    return out
