"""What the link does to the weights that it carries, in both directions: what both ends hold, what is still owed.

Down, with `delta`, a device is sent the difference to the model that it was last sent; what coding takes from it is
part of the next difference by itself. A device's first model travels whole. Up, with `delta`, a device sends the
difference to the model that it was sent, and keeps what a biased coder takes, to add it the next time (error feedback:
Seide et al., Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi, "Error feedback fixes SignSGD and other gradient
compression schemes", ICML 2019, algorithm 2). A frame that is lost for good leaves both as they were.

A scheme is given each reply as a step from the model that it meant to send, not from what coding made of it on the way
down; else what the devices are still owed would be lost from the average (Tang, Lian, Yu, Zhang, Liu, "DoubleSqueeze",
ICML 2019, where the server too keeps what coding took).

Shape letters: N numbers of a frame's weights, side by side in the order of the frame.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from midhaul import rng, tree
from midhaul.config import Config, dealt
from midhaul.errors import ConfigError
from midhaul.kit import Scheme
from midhaul.link import lowrank, update
from midhaul.link.bits import Floats
from midhaul.link.compress import Coded
from midhaul.link.update import Stages
from midhaul.message import UPDATE, CodedWeights, Kind, Message, Op, Reply, Settings, kind_of
from midhaul.tree import Tree

_STREAM = 1 << 22  # the streams of updates lie above those of rows
_MOVES = ("fedrolex", "flora")  # schemes whose tensors of one name aren't the same weights in the next round
_SELECT = ("", "topk", "randk", "powersgd")


@dataclass(frozen=True)
class Sent:
    """A frame's tensors: as they travel, the bytes of what is coded, and which weights these are."""

    tree: Tree
    coded: dict[str, Coded]
    names: tuple[str, ...] = ()
    base: Tree | None = None  # what the coded numbers are a difference to

    @property
    def as_coded(self) -> CodedWeights | None:
        """What an engine is told of weights that travelled coded."""
        if UPDATE not in self.coded:
            return None
        return CodedWeights(self.coded[UPDATE].data, self.names, self.base or {})


class Updates:
    """The coders of weights on a link, and what its two ends remember for them."""

    def __init__(
        self,
        up: Stages | None = None,
        down: Stages | None = None,
        *,
        error_feedback: bool = False,
        bits: Sequence[int] = (),
    ) -> None:
        """`bits` are what each device quantises to, where they differ."""
        self.up, self.down = up, down
        self.bits = tuple(bits)
        self.feeds_back = error_feedback and up is not None and up.is_biased
        self.held: dict[int, Tree] = {}  # what each device was last sent, as it got it; devices alike share one
        self.meant: dict[int, Tree] = {}  # and as it was meant
        self.residuals: dict[str, Floats] = {}  # by DEVICE/NAMES
        self.warm: dict[str, Floats] = {}
        self._round = -1

    @property
    def is_on(self) -> bool:
        """Tells whether there is anything to do."""
        return self.up is not None or self.down is not None

    def up_of(self, device: int) -> Stages | None:
        """Gives how a device codes what it sends."""
        if self.up is None or not self.bits or device >= len(self.bits):
            return self.up
        return replace(self.up, level=float(self.bits[device]))

    @property
    def votes(self) -> bool:
        """Tells whether the majority of the devices decides."""
        return self.up is not None and self.up.value == "vote"

    @property
    def tells_apart(self) -> bool:
        """Tells whether a message that is the same for all may be another frame to each device."""
        return self.down is not None or bool(self.bits)

    def begun(self, round: int) -> None:
        """Forgets what no frame of a new round can build on."""
        if self._round != round and not (self.down and self.down.delta):
            self.held, self.meant = {}, {}
        self._round = round

    def asked(self, message: Message, turn: int, device: int) -> Settings:
        """Gives the settings that tell a device how to code its reply; nothing where it sends no weights so."""
        up = self.up_of(device)
        if message.op != Op.FIT or up is None or message.settings.get("send", "none") == "none":
            return {}
        flags = up.delta | self.feeds_back << 1
        level = int(up.level) if up.value in ("quantise", "qsgd") else 0
        told: Settings = {"code": up.coder | _SELECT.index(up.select) << 4 | flags << 8 | level << 12}
        told |= {"share": float(up.much)} if up.select else {}
        return {**told, "stream": _index(turn, up=True)}

    def send_down(self, whole: Tree, device: int, key: rng.Key, turn: int) -> Sent:
        """Gives what goes down to a device, or to all that were last sent the same."""
        return self._coded(self.down, whole, self.held.get(device, {}), key._replace(device=rng.SERVER), turn, up=False)

    def came_down(self, sent: Sent, whole: Tree, got: Tree) -> Tree:
        """Gives a message's tensors as the device has them. `whole` is as the message was meant, `got` as it came."""
        return {name: value for name, value in self._apart(sent, whole, got).items() if name in whole}

    def like(self, device: int) -> tuple[int, int]:
        """Gives numbers that devices have in common to which the same message is the same frame."""
        held = id(self.held[device]) if self.down is not None and device in self.held else 0
        return held, self.bits[device] if device < len(self.bits) else 0

    def keep(self, devices: Iterable[int], sent: Sent, whole: Tree, got: Tree) -> None:
        """Notes what devices hold from now on that got the same message as the same tensors."""
        if not self.is_on:
            return
        held, meant = _weights(got), _weights(whole if UPDATE in sent.coded else got)
        made: dict[int, tuple[Tree, Tree]] = {}
        for device in devices:
            like = id(self.held[device]) if device in self.held else 0
            if like not in made:
                made[like] = {**self.held.get(device, {}), **held}, {**self.meant.get(device, {}), **meant}
            self.held[device], self.meant[device] = made[like]

    def send_up(self, reply: Tree, device: int, key: rng.Key, turn: int, own: bytes | None = None) -> Sent:
        """Gives what a device answers with; `own` are the bytes, if it coded them itself."""
        base = self.held.get(device, {})
        if own is not None and self.up is not None:
            names = tuple(_weights(reply))
            vector = _flat(reply, names)
            coded = {UPDATE: Coded((len(vector),), own, self.up.macs(len(vector)))}  # the same with any bits
            whole = {UPDATE: torch.from_numpy(vector), **_others(reply, names)}
            return Sent(whole, coded, names, base if self.up.delta else None)
        return self._coded(self.up_of(device), reply, base, key._replace(device=device), turn, up=True)

    def came_up(self, sent: Sent, reply: Tree, got: Tree, device: int, *, own: bool = False) -> Tree:
        """Keeps what is owed, and gives what a scheme is to have."""
        if UPDATE in sent.coded and not own and self.feeds_back:
            self.residuals[_path(device, sent.names)] = (sent.tree[UPDATE] - got[UPDATE]).numpy()
        out = self._apart(sent, reply, got)
        held, meant = self.held.get(device, {}), self.meant.get(device, {})
        if self.down is None:
            return out
        moved = {n: meant[n] + (v - held[n]) for n, v in out.items() if n in held and held[n] is not meant[n]}
        return {name: moved.get(name, value) for name, value in out.items()}

    def decided(self, answers: dict[int, Reply], steps: dict[int, tuple[tuple[str, ...], Floats]]) -> dict[int, Reply]:
        """Gives the replies after the vote: each a step from what its device was sent, the one that most are for."""
        if self.up is None:
            return answers
        out = dict(answers)
        for names in {names for names, _ in steps.values()}:
            voters = [device for device, (own, _) in steps.items() if own == names and device in answers]
            if not voters:
                continue
            won = torch.from_numpy(update.vote([steps[device][1] for device in voters], self.up.level))
            for device in voters:
                sent = tree.select(self.meant[device], names)
                stepped = {name: sent[name] + step for name, step in _shaped(won, sent).items()}
                answer = answers[device]
                out[device] = Reply({**answer.tree, **stepped}, answer.weight, answer.metrics)
        return out

    def forget(self, devices: Collection[int]) -> None:
        """Forgets what either end remembers of devices that hold another model from now on."""
        self.held, self.meant = (
            {d: w for d, w in held.items() if d not in devices} for held in (self.held, self.meant)
        )
        for kept in (self.residuals, self.warm):
            for path in [path for path in kept if int(path.partition("/")[0]) in devices]:
                del kept[path]

    def dump(self) -> Tree:
        """Gives what both ends remember between rounds, for a checkpoint."""
        out: Tree = {f"owed/{path}": torch.from_numpy(value) for path, value in self.residuals.items()}
        out |= {f"warm/{path}": torch.from_numpy(value) for path, value in self.warm.items()}
        if not (self.down and self.down.delta):
            return out
        for what, trees in (("held", self.held), ("meant", self.meant)):
            places: dict[int, int] = {}
            for device, whole in trees.items():
                place = places.setdefault(id(whole), len(places))
                out |= {f"{what}/{place}/{name}": value for name, value in whole.items()}
                out[f"{what}_of/{device}"] = torch.tensor(place)
        return out

    def restore(self, whole: Tree) -> None:
        """Puts both ends back to where `dump` found them."""

        def part(name: str) -> Tree:
            return {path.removeprefix(f"{name}/"): v for path, v in whole.items() if path.startswith(f"{name}/")}

        self.residuals = {path: value.numpy() for path, value in part("owed").items()}
        self.warm = {path: value.numpy() for path, value in part("warm").items()}
        for what, trees in (("held", self.held), ("meant", self.meant)):
            found: dict[int, Tree] = {}
            for path, value in part(what).items():
                place, _, name = path.partition("/")
                found.setdefault(int(place), {})[name] = value
            trees.clear()
            trees.update({int(device): found[int(place)] for device, place in part(f"{what}_of").items()})

    def _coded(self, how: Stages | None, whole: Tree, base: Tree, key: rng.Key, turn: int, *, up: bool) -> Sent:
        names = tuple(
            name
            for name, value in _weights(whole).items()
            if how is not None
            and value.dtype == torch.float32
            and (not how.delta or (name in base and base[name].shape == value.shape))
        )
        if how is None or not sum(whole[name].numel() for name in names):
            return Sent(whole, {})
        vector = _flat(whole, names)
        if how.delta:
            vector = vector - _flat(base, names)
        path = _path(key.device, names)
        if up and self.feeds_back and path in self.residuals:
            vector = vector + self.residuals[path]
        stream = rng.key(key.seed, key.round, key.device, rng.Use.CODE).at(_index(turn, up=up))
        if how.select == "powersgd":
            update.check(vector)
            shapes = [tuple(whole[name].shape) for name in names]
            factors, self.warm[path] = lowrank.pack(vector, shapes, int(how.much), self.warm.get(path), stream)
            data = update.factored(how, factors)
        else:
            data = update.encode(how, vector, stream, unbiased=not (up and self.feeds_back))
        coded = {UPDATE: Coded((len(vector),), data, how.macs(len(vector)))}
        return Sent(
            {UPDATE: torch.from_numpy(vector), **_others(whole, names)}, coded, names, base if how.delta else None
        )

    def _apart(self, sent: Sent, whole: Tree, got: Tree) -> Tree:
        """Gives the tensors that came, those that were coded under their names again."""
        if UPDATE not in sent.coded:
            return got
        like = tree.select(whole, sent.names)
        coded = _shaped(got[UPDATE], like)
        if sent.base is not None:
            coded = {name: sent.base[name] + value for name, value in coded.items()}
        return {name: coded[name] if name in coded else got[name] for name in whole}


def plan_updates(config: Config, scheme: Scheme, num_devices: int) -> Updates:
    """Gives what [link] makes of weights. Raises: ConfigError for what can't be coded so."""
    link, firmware = config.link, config.run.engine == "firmware"
    up, down = update.parse(link.up, "link.up"), update.parse(link.down, "link.down")
    for how, name, kinds in ((up, "up", scheme.up), (down, "down", scheme.down)):
        if how is None:
            continue
        if Kind.WEIGHTS not in kinds:
            raise ConfigError(f"the scheme {scheme.name} sends no weights {name} in a round; leave out link.{name}")
        if firmware and (how.select == "powersgd" or how.entropy):
            stage = how.select if how.select == "powersgd" else "entropy"
            raise ConfigError(
                f"devices with firmware can't do {stage} of link.{name}; leave it out or take another run.engine"
            )
        if firmware and name == "down" and not how.delta:
            raise ConfigError("devices with firmware take differences alone; put delta into link.down, before all else")
        if firmware and scheme.part != "whole":
            raise ConfigError(
                f"devices with firmware code what FIT sends, and {scheme.name} sends weights otherwise; leave out "
                f"link.{name} or take another run.engine"
            )
    if up is not None and up.is_biased and link.error_feedback and scheme.name in _MOVES:
        raise ConfigError(
            f"what {scheme.name} sends stands for other weights each round, so nothing can be owed over rounds; "
            "set link.error_feedback = false, or code link.up without topk, randk, powersgd and sign"
        )
    if down is not None and (down.value == "vote" or down.select == "powersgd"):
        stage = down.value if down.value == "vote" else down.select
        raise ConfigError(f"link.down can't have {stage}: it is for what devices send; leave it out")
    if up is not None and up.value == "vote" and config.fleet.mode != "synchronous":
        raise ConfigError(
            f"link.up votes among the devices of a round, and {config.fleet.mode} has none; leave out vote"
        )
    return Updates(up, down, error_feedback=link.error_feedback, bits=_bits(config, up, num_devices))


def _bits(config: Config, up: Stages | None, num_devices: int) -> tuple[int, ...]:
    """Gives what each device quantises to, nothing where all do as link.up says. Raises: ConfigError."""
    text = config.link.up_bits
    if not text:
        return ()
    if up is None or up.value != "quantise":
        raise ConfigError(
            f"link.up_bits are of quantise in link.up, which is {config.link.up!r}; set link.up = 'delta,quantise:8', "
            "or leave out link.up_bits"
        )
    if config.run.engine == "firmware":
        raise ConfigError(
            "devices with firmware are all told the same bits; leave out link.up_bits or take another run.engine"
        )
    each = dealt("link.up_bits", text, num_devices)
    if odd := [bits for bits in each if not bits.isdigit() or not 2 <= int(bits) <= 8]:
        raise ConfigError(f"link.up_bits is {text!r}, and {odd[0]!r} isn't a whole number of bits from 2 to 8")
    return tuple(int(bits) for bits in each)


def _index(turn: int, *, up: bool) -> int:
    return _STREAM | turn << 2 | up << 1


def _path(device: int, names: tuple[str, ...]) -> str:
    return f"{device}/{zlib.crc32('|'.join(names).encode()):08x}"


def _weights(whole: Tree) -> Tree:
    return {name: value for name, value in whole.items() if kind_of(name) == Kind.WEIGHTS}


def _others(whole: Tree, names: tuple[str, ...]) -> Tree:
    return {name: value for name, value in whole.items() if name not in names}


def _flat(whole: Tree, names: tuple[str, ...]) -> Floats:
    parts = [whole[name].detach().cpu().reshape(-1) for name in names]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def _shaped(vector: Tensor, like: Tree) -> Tree:
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
