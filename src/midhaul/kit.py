"""What a scheme is made of, and what it is given beside its fleet.

Shape letters: B rows, C classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from midhaul import hardware, hints, rng, rules, schedule, tree
from midhaul.config import Config, SchemeConfig
from midhaul.errors import EngineError, ModelError
from midhaul.fleet import Fleet, Group
from midhaul.message import Kind, Message, Op, Replies, Setting, Settings, join
from midhaul.models import losses
from midhaul.program import Examples, Program
from midhaul.server import Augment, HalfSteps, Optimizer, Progress, Server, parameter_names, predict, train
from midhaul.tree import Tree

_TRIES = 20

# What a run may do with any scheme that admits it: ask a part of the fleet, let some do less, let some be absent, count
# all alike, take replies as they come.
PROPERTIES = ("cohort", "stragglers", "dropout", "weighting", "asynchronous")

# The engines that need no C on the devices.
SIMULATED = ("loop", "stacked", "cluster", "gateways")


class Chooser(Protocol):
    """What a run's fleet may have: a rule that chooses a round's devices."""

    def cohort(self, num: int, key: rng.Key, devices: Sequence[int]) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Kit:
    """What a scheme is given beside its fleet: settings, modules and public data; nothing that a round changes."""

    config: Config
    program: Program
    large: nn.Module | None
    public: Examples
    num_classes: int
    can_adapt: bool = False
    progress: Progress | None = None
    body_is_cut: bool = False
    augment: Augment | None = None
    taught: nn.Module | None = None  # the float module that is taught, where devices hold its int8 form
    lower: Callable[[Tree], Tree] | None = None  # from that module's tree to the devices'
    most_rows: int = 1  # that a training device holds
    groups: tuple[Group, ...] = ()  # the devices by what lies on them; `program` is the largest of theirs
    lr_share: float = 1.0  # of the run's learning rates, which `cfg` has multiplied by it already
    half: HalfSteps | None = None  # what steps the server's half where it can; else autograd does
    first: rng.First = rng.first_of_permutation  # draws a cohort
    mean: Callable[[Tree, Tensor], Tree] = tree.weighted_mean  # of what a cohort sends

    @property
    def cfg(self) -> SchemeConfig:
        """The settings of the scheme."""
        return self.config.scheme

    def at_round(self, number: int) -> Kit:
        """Gives the kit of a round, whose `cfg` has the learning rates of that round (`midhaul.schedule`): the devices'
        in training and in fine-tuning, and the one behind the cut."""
        share, cfg = schedule.share(self.cfg, number, self.config.run.rounds), self.cfg
        if share == 1.0:
            return self
        half_lr = share * (cfg.half_lr or self.config.large.lr)
        cfg = replace(cfg, lr=share * cfg.lr, tune_lr=share * cfg.tune_lr, half_lr=half_lr)
        return replace(self, config=replace(self.config, scheme=cfg), lr_share=share)

    def optimizer(self) -> Optimizer:
        """Gives the server's optimiser for its large model, as [large] has it."""
        large = self.config.large
        return Optimizer(large.optimizer, large.lr, large.weight_decay)

    def half_optimizer(self) -> Optimizer:
        """Gives the optimiser of the server's half in a split scheme."""
        return replace(self.optimizer(), lr=self.cfg.half_lr or self.config.large.lr)

    def server_model(self) -> nn.Module:
        """Gives the large model. Raises: ModelError if the run has none."""
        if self.large is None:
            raise ModelError(f"the scheme {self.cfg.name} needs a large model; set large.model")
        return self.large

    def fit(self, parameters: Tree, *, train: str, send: str, **settings: Setting) -> Message:
        """Gives the FIT message of the scheme's settings: which slice is trained, and which is sent back."""
        cfg = self.cfg
        chosen: Settings = {
            "lr": cfg.lr,
            "momentum": cfg.momentum,
            "weight_decay": cfg.weight_decay,
            "batch": cfg.batch,
            "epochs": cfg.epochs,
            "loss": cfg.loss,
            "train": train,
            "send": send,
        }
        if self.config.privacy.clip:
            chosen["clip"] = self.config.privacy.clip
        return Message(Op.FIT, parameters, settings={**chosen, **settings})

    def step(self) -> Settings:
        """Gives the settings of BACKWARD: how a device steps by the gradient at the cut."""
        cfg = self.cfg
        chosen: Settings = {"lr": cfg.lr, "momentum": cfg.momentum, "weight_decay": cfg.weight_decay}
        return {**chosen, "nopeek": cfg.nopeek} if cfg.nopeek else chosen

    def cohort_size(self, num_devices: int) -> int:
        """Gives how many of so many devices are in a round, should none ask to be."""
        wanted = self.config.fleet.cohort
        return max(1, round(wanted * num_devices)) if wanted <= 1.0 else min(round(wanted), num_devices)

    def cohort(self, fleet: Fleet, key: rng.Key) -> tuple[int, ...]:
        """Gives the devices of a round: a share of the fleet, or a number, drawn without repetition or chosen by
        `fleet.selection`, and those that ask to be in it because their data drifted."""
        num = self.cohort_size(len(fleet.devices))
        choosing: Chooser | None = getattr(fleet, "choosing", None)
        drawn = (
            rng.choose(key._replace(use=int(rng.Use.COHORT)), num, fleet.devices, self.first)
            if choosing is None
            else choosing.cohort(num, key, fleet.devices)
        )
        asking: frozenset[int] = getattr(fleet, "asking", frozenset())  # an engine has none, the run's fleet may
        return drawn if choosing is None and not asking else tuple(sorted({*drawn, *asking}))

    @cached_property
    def _held(self) -> dict[int, int]:
        """Which program lies on each device."""
        return {d: id(group.program) for group in self.groups for d in (*group.devices, *group.tests)}

    def alike(self, devices: Sequence[int]) -> list[tuple[Group, tuple[int, ...]]]:
        """Gives devices by the model that they hold: for each model a group that has it, and its devices.

        Raises: ModelError if the run wasn't told what its devices hold.
        """
        kinds: dict[int, Group] = {}
        for group in self.groups:
            kinds.setdefault(id(group.program), group)
        held = self._held
        if lost := [device for device in devices if device not in held]:
            raise ModelError(f"device {lost[0]} is in no group of the kit; give Kit the groups of all devices")
        each = [(group, tuple(d for d in devices if held[d] == kind)) for kind, group in kinds.items()]
        return [(group, members) for group, members in each if members]


@dataclass(frozen=True)
class Work:
    """Something that a scheme asks of a device, for the budget: an op, the slice that it trains, and what the rule that
    it trains by takes beside plain SGD.
    """

    op: Op
    train: str = "none"
    learning: rules.Cost = rules.PLAIN


@dataclass(frozen=True)
class Scheme:
    """A way to train tiny and large models together: plain functions that speak only to a fleet.

    `direction` says who teaches whom: large to tiny, tiny to large, both ways, tiny to tiny, or none. `up` and `down`
    are the kinds of tensors that cross the link in rounds; the contract suite holds `up` to what the link counted.
    `part` is what of the tiny model lies on a device: whole, front (up to the cut), u (front and tail), or local (whole
    too, but FORWARD ends at the cut, and what lies behind it is an auxiliary head for a loss on the device); emulator
    is a lossy copy of the large model instead.
    `rates`: the device holds a learning rate beside each parameter (Meta-SGD).
    `large` says what the server's model is: none, a teacher that sees examples, the rear behind the cut, or a joint one
    behind all devices' cuts, which hold different features of the same rows.
    `evaluate_large` tests the large model by itself; a scheme that has it is tested before its first round too, so that
    a run tells what each of the two models gained. On firmware it speaks to the simulation, which has every device's
    rows but nothing that a board has learned. `check` refuses, in one sentence and before anything is trained, a run
    that the scheme can't do. `engines` are those that can run it.
    `adapters` says that the tiny model must have low-rank adapters.
    `trains` gives the slice that devices train, for a scheme that finds it in `init`; its budget is made then.
    `differs` says what of the tiny model may differ from device to device: none, width, cut, rank, or model.
    `redeals`: what differs may be dealt anew between rounds, since the server keeps the whole model and sends each
    device its part of it, so that nothing which a device alone holds is lost with its old part.
    `admits` are the properties of a run that it can have: cohort (it asks `Kit.cohort`), stragglers (its devices work
    in epochs or steps), dropout (its rounds close without the absent), weighting (its means count by the replies'
    weights), asynchronous (one FIT a round, whose replies are averaged into the tree that was sent). The run does the
    rest. `keeps_stragglers`: what they did is always taken. `one_half`: one server half is behind all devices of a
    round, so that it can step on the batches of all at once (scheme.server_step).
    """

    name: str
    title: str
    family: str
    source: str
    init: Callable[[Fleet, Kit, rng.Key], Server]
    round: Callable[[Server, Fleet, Kit, rng.Key], tuple[Server, dict[str, float]]]
    evaluate: Callable[[Server, Fleet, Kit, rng.Key], Replies]
    work: Callable[[SchemeConfig], tuple[Work, ...]]
    direction: str
    up: tuple[Kind, ...] = (Kind.WEIGHTS,)
    down: tuple[Kind, ...] = (Kind.WEIGHTS,)
    part: str = "whole"
    rates: bool = False
    large: str = "none"
    needs_public: bool = False
    evaluate_large: Callable[[Server, Fleet, Kit, rng.Key], Replies] | None = None
    check: Callable[[Kit], None] | None = None
    engines: tuple[str, ...] = (*SIMULATED, "firmware")
    adapters: bool = False
    differs: str = "none"
    redeals: bool = False
    admits: tuple[str, ...] = ("cohort", "dropout")
    keeps_stragglers: bool = False
    trains: Callable[[Server, Kit], str] | None = None
    one_half: bool = False

    @property
    def needs(self) -> str:
        """Says what a run must have for it, beside a tiny model and data on the devices."""
        behind = "a large model behind the cut"
        joint = f"{behind}s, vertical data"
        large = {"none": "", "teacher": "a large model", "rear": behind, "joint": joint}[self.large]
        public = "public data" if self.needs_public else ""
        lora = "low-rank adapters (tiny.lora_rank)" if self.adapters else ""
        return ", ".join(need for need in (large, public, lora) if need) or "-"


def ask_all(fleet: Fleet, message: Message, key: rng.Key, devices: tuple[int, ...] = ()) -> Replies:
    """Sends a message, the same to all, to every device that trains, or to those named, and asks again those that
    didn't answer.

    Raises: EngineError for a device that can't be reached.
    """
    parts: list[Replies] = []
    missing = devices or fleet.devices
    for _ in range(_TRIES):
        parts.append(fleet.exchange(message, key=key, devices=missing))
        missing = tuple(device for device in missing if device not in parts[-1].devices)
        if not missing:
            return join(parts)
    raise EngineError(f"device {missing[0]} didn't answer {_TRIES} times; raise link.retries or choose another radio")


def load_all(fleet: Fleet, whole: Tree, key: rng.Key) -> None:
    """Loads a tree on every device that trains. Raises: EngineError for a device that can't be reached."""
    ask_all(fleet, Message(Op.LOAD, whole), key)


def evaluate_shared(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests the shared model on every test device."""
    message = Message(Op.EVALUATE, server.tree, settings={"rows": "test", "loss": kit.cfg.loss})
    return fleet.exchange(message, key=key, devices=fleet.test_devices)


def evaluate_personal(server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, tune: str, lr: float) -> Replies:
    """Tests models that are a device's own.

    Where devices test on rows of their own, each tests its own model. Where the test devices are new ones, each adapts
    the shared model's slice `tune` on its few rows (`data.adapt`) and tests it on the rest; without such rows, the
    training devices' models are each tested on all the new devices' rows.
    """
    settings: Settings = {"rows": "test", "loss": kit.cfg.loss}
    if fleet.test_devices == fleet.devices or not kit.can_adapt:
        return fleet.exchange(Message(Op.EVALUATE, settings=settings), key=key)
    adapting = kit.fit({}, train=tune, send="none", epochs=kit.cfg.adapt_epochs, lr=lr).settings
    message = Message(Op.ADAPT, server.tree, settings=adapting)
    return fleet.exchange(message, key=key, devices=fleet.test_devices)


def evaluate_own(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests each device's own model; where the test devices are new ones, on the rows of all of these."""
    return fleet.exchange(Message(Op.EVALUATE, settings={"rows": "test", "loss": kit.cfg.loss}), key=key)


def evaluate_large(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests a large model that takes examples, on each test device's rows."""
    return tested(kit.server_model(), server.large, fleet, key)


def tested(module: nn.Module, whole: Tree, fleet: Fleet, key: rng.Key) -> Replies:
    """Tests a model of the server's on each test device's rows."""
    up = fleet.exchange(Message(Op.READ, settings={"what": "test"}), key=key, devices=fleet.test_devices)
    loss, correct = torch.zeros(len(up), dtype=torch.float64), torch.zeros(len(up), dtype=torch.float64)
    for place, (_, reply) in enumerate(up):
        if not len(reply.tree["y"]):
            continue
        logits, y = predict(module, whole, reply.tree["x"]), reply.tree["y"]
        loss[place] = losses.rows("cross_entropy", logits, y).double().mean()
        correct[place] = (logits.argmax(1) == y).sum()
    return Replies(up.devices, {}, up.rows, up.weight, {"rows": up.weight, "loss": loss, "correct": correct})


def init_halves(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """Begins a split scheme: both halves are drawn, or trained on public data, and the server keeps the large one."""
    large = kit.server_model()
    first, whole = kit.program.initial, tree.of(large)
    if kit.cfg.pretrain:
        first, whole = _pretrained(kit, key)
    memory = kit.half_optimizer().init(tree.select(whole, parameter_names(large)))
    if kit.program.personal:
        load_all(fleet, first, key)
    return Server(tree.without(first, kit.program.personal), whole, {"optimizer": memory})


def learned(kit: Kit, module: nn.Module, key: rng.Key, label: str) -> Tree:
    """Gives a module's tree after training on public data, as [large] has it."""
    public, large = kit.public, kit.config.large
    whole, _, _ = train(
        module,
        tree.of(module),
        public.x,
        public.y,
        kit.optimizer(),
        epochs=large.epochs,
        batch=large.batch,
        key=key,
        augment=kit.augment,
        progress=kit.progress,
        label=label,
    )
    return whole


def _pretrained(kit: Kit, key: rng.Key) -> tuple[Tree, Tree]:
    """Trains the device half and the server half as one model on public data; gives their trees."""
    parts = OrderedDict(front=kit.program.front, rear=kit.server_model())
    if kit.program.tail is not None:
        parts["tail"] = kit.program.tail
    joint = nn.Sequential(parts)
    whole = learned(kit, joint, rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC), "both halves learn")
    first = {n: whole.get(n if n.startswith("tail.") else f"front.{n}", v) for n, v in kit.program.initial.items()}
    return first, {name.removeprefix("rear."): value for name, value in whole.items() if name.startswith("rear.")}


def evaluate_halves(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests a model whose one half is on the device, its own where the server shares none, and whose other is here."""
    devices = fleet.devices if kit.program.personal or not server.tree else fleet.test_devices
    settings: Settings = {"rows": "test", "what": "h" if kit.program.tail is not None else "hy"}
    up = fleet.exchange(Message(Op.FORWARD, server.tree, settings=settings), key=key, devices=devices)
    valid = up.mask().bool()
    flat = answers_behind(kit, server.large, up.tree["h"][valid])
    if kit.program.tail is not None:
        out = flat.new_zeros((*valid.shape, *flat.shape[1:]))
        out[valid] = flat
        message = Message(Op.EVALUATE, server.tree, {"z": out}, up.rows, {"rows": "test"})
        return fleet.exchange(message, key=key, devices=up.devices)
    return score_halves(up, flat)


def answers_behind(kit: Kit, large: Tree, h: Tensor) -> Tensor:
    """Gives what the server's half makes of activations. Shapes: h [N, H] -> [N, C]."""
    if kit.half is not None and len(h) and kit.half.knows(h[None]):
        return kit.half.outputs(large, h[None])[0]
    return predict(kit.server_model(), large, h)


def score_halves(up: Replies, flat: Tensor) -> Replies:
    """Gives the score of each device that sent labels with its activations. Shapes: flat [rows of all, C], the logits
    of their valid rows in their order."""
    valid = up.mask().bool()
    out = flat.new_zeros((*valid.shape, *flat.shape[1:]))
    out[valid] = flat
    y, counts = up.tree["y"], up.rows.double()
    rows = losses.rows("cross_entropy", flat, y[valid], None, 1.0, 0.0)
    loss = torch.zeros(valid.shape, dtype=torch.float64)
    loss[valid] = rows.double()
    correct = ((out.argmax(-1) == y) & valid).sum(1).double()
    metrics = {"rows": counts, "loss": loss.sum(1) / counts.clamp(min=1.0), "correct": correct}
    return Replies(up.devices, {}, up.rows, counts, metrics)


def evaluate_adapted(
    server: Server, fleet: Fleet, kit: Kit, key: rng.Key, *, train: str, **settings: Setting
) -> Replies:
    """Tests the shared model as each test device adapts it, for `adapt_epochs` steps on all of its few rows at once.

    A new device adapts on what `data.adapt` gives it; one that tests on rows of its own adapts on its training rows.
    """
    rows = "train" if fleet.test_devices == fleet.devices else "adapt"
    plain: Settings = {"batch": 0, "epochs": kit.cfg.adapt_epochs, "momentum": 0.0, "weight_decay": 0.0, "rows": rows}
    adapting = kit.fit({}, train=train, send="none", **{**plain, **settings}).settings
    return fleet.exchange(Message(Op.ADAPT, server.tree, settings=adapting), key=key, devices=fleet.test_devices)


def step_towards(server: Server, up: Replies, kit: Kit, key: rng.Key) -> Server:
    """Gives the server after a step towards the mean of the devices' trees, in which each device counts alike.

    With `meta_optimizer` mean it goes the share `meta_lr` of the way; with adam the way there is Adam's gradient.
    """
    cfg, mean = kit.cfg, kit.mean(up.tree, torch.ones(len(up)))
    share = cfg.meta_lr * (1.0 - (key.round - 1) / kit.config.run.rounds if cfg.meta_anneal else 1.0)
    if cfg.meta_optimizer == "mean":
        return replace(server, tree=tree.zip_with(server.tree, mean, lambda now, there: now.lerp(there, share)))
    adam = Optimizer("adam", cfg.meta_lr)
    memory = server.state["adam"] if "adam" in server.state else adam.init(server.tree)
    moved, memory = adam.step(server.tree, tree.subtract(server.tree, mean), memory, share)
    return replace(server, tree=moved).keeping(adam=memory)


def mean_loss(*replies: Replies) -> dict[str, float]:
    """Gives the mean of the devices' losses, by the rows behind each."""
    several = [up.metrics for up in replies if len(up)]
    rows, loss = (
        several[0][name] if len(several) == 1 else torch.cat([each[name] for each in several])
        for name in ("rows", "loss")
    )
    return {"train_loss": float((loss * rows).sum() / rows.sum().clamp(min=1.0))}


def teach(kit: Kit, key: rng.Key) -> tuple[Tree, Tree]:
    """Trains the large model on the server's public data, then distils it into the tiny one, or into its head alone
    where the tiny model's body is the large model's own.

    Gives the trees of the tiny and of the large model.
    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    public, large_cfg, cfg = kit.public, kit.config.large, kit.cfg
    large = kit.server_model()
    start = rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC)
    teacher = learned(kit, large, start, "the large model learns")
    # What is changed from step to step must be shown to the teacher too; what isn't, once.
    soft = (
        partial(predict, large, hardware.now().put_tree(teacher))
        if kit.augment is not None
        else predict(large, teacher, public.x)
    )
    tiny = kit.taught or kit.program.module
    whole = tree.of(tiny) if kit.taught else {**tree.of(tiny), **kit.program.initial}
    only: tuple[str, ...] = ()
    if kit.body_is_cut:
        # The body is the large model's own first layers, as trained; only the head behind it is new.
        whole |= {name: teacher[name.removeprefix("body.")] for name in whole if name.startswith("body.")}
        only = kit.program.names("head")
    if cfg.distill == "features":
        whole, _ = hints.learn(
            tiny,
            whole,
            large,
            teacher,
            public,
            guided=cfg.guided_layer,
            hint=cfg.hint_layer,
            lr=cfg.distill_lr,
            epochs=cfg.hint_epochs,
            batch=large_cfg.batch,
            key=start.at(2 << 16),
            augment=kit.augment,
            progress=kit.progress,
        )
    student, _, _ = train(
        tiny,
        whole,
        public.x,
        public.y,
        Optimizer("adam", cfg.distill_lr),
        epochs=cfg.distill_epochs,
        batch=large_cfg.batch,
        key=start.at(1 << 16),
        soft=soft,
        temperature=cfg.temperature,
        soft_weight=cfg.soft_weight,
        only=only,
        augment=kit.augment,
        progress=kit.progress,
        label="the tiny model is taught",
    )
    if kit.lower is not None:
        return kit.lower(student), teacher
    return {name: student[name] for name in kit.program.initial}, teacher
