"""What an op costs a board: flash, SRAM, MACs, instructions, seconds and joules of (model, slice, op), and the refusal.

The device that is budgeted works as docs/boards.md says: float32; frozen weights read from flash, trained weights and
what belongs to them in SRAM; one example at a time, its gradients added up over the batch; a frame is read straight
into the buffers that it is for. Where the device runtime can run the model, memory is what it takes to the byte: the
blob's own plan, and the runtime's footprint on the core. Elsewhere it is an estimate, and the budget says why.

Limits: seconds and joules are estimates. On a Cortex-M whose instructions are predicted (devices/instructions.py) they
are those instructions' times the cycles of one; elsewhere MACs times the cycles of one, which leaves out the step of
SGD (about 12 instructions a weight) and element-wise layers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import nn

from midhaul.devices import arena, blob, dataflow, footprint, instructions
from midhaul.devices import plan as plans
from midhaul.devices.arena import Buffer
from midhaul.devices.blob import Blob
from midhaul.devices.dataflow import ELEMENT_BYTES
from midhaul.devices.plan import Plan, PlanKind
from midhaul.devices.profiles import Board
from midhaul.errors import BudgetError, ModelError, SliceError, nearest
from midhaul.link import air
from midhaul.link.air import Air
from midhaul.message import Op
from midhaul.models import count, slices, trace
from midhaul.models.translate import translate
from midhaul.rules import PLAIN, Cost

SPECS = ("whole", "body", "head", "bias")
_SLICE = "slice"

_TRAINING = (Op.FIT, Op.ADAPT, Op.BACKWARD)
_IDLE = (Op.LOAD, Op.READ)


class Work(NamedTuple):
    """Multiply-accumulates of an op on a device, and what they take."""

    macs: int
    seconds: float
    joules: float


@dataclass(frozen=True)
class Budget:
    """What one op of one model needs on one board."""

    board: Board
    op: Op
    flash_bytes: int
    sram_bytes: int
    macs: int
    seconds: float
    joules: float
    air: Air
    buffers: tuple[Buffer, ...] = field(repr=False)
    instructions: int | None = None  # that the device runtime takes, taking rows and frames in aside; None: not known
    estimate: str = ""  # why the memory is an estimate; nothing where it is what the device runtime takes, to the byte

    @property
    def over_flash_bytes(self) -> int:
        """The bytes of flash that the board lacks."""
        return max(0, self.flash_bytes - self.board.flash_bytes)

    @property
    def over_sram_bytes(self) -> int:
        """The bytes of SRAM that the board lacks."""
        return max(0, self.sram_bytes - self.board.sram_bytes)

    @property
    def fits(self) -> bool:
        """Tells whether the board has the flash and the SRAM."""
        return not (self.over_flash_bytes or self.over_sram_bytes)


class Layer(Protocol):
    """What the arithmetic needs of `models.count.LayerCost`."""

    @property
    def name(self) -> str: ...

    @property
    def macs(self) -> int: ...


def macs_per_example(layers: Iterable[Layer], op: Op, train: Iterable[str] = (), *, is_tail: bool = False) -> int:
    """Gives the multiply-accumulates that an op does for one example.

    A forward pass is the layers' own MACs. Training adds, for each layer, as many again for the gradient of its weight
    if that is trained (a bias costs none) and as many for the gradient of its input if a layer before it is trained
    (with `is_tail`, always: the input's gradient goes back to the server). BACKWARD repeats the forward pass, and with
    nothing named trains every layer. ADAPT counts an example trained on; the test that follows is EVALUATE's.
    Limits: layers are taken as a chain in execution order, so a frozen branch beside a trained one counts as trained.
    """
    if op in _IDLE:
        return 0
    each = list(layers)
    forward = sum(layer.macs for layer in each)
    if op not in _TRAINING:
        return forward
    backward, passes_on = 0, is_tail
    names = tuple(train)
    if op is Op.BACKWARD and not names:
        names = tuple(f"{layer.name}.weight" for layer in each if layer.macs)
    trained = _trained_layers([layer.name for layer in each], names)
    for place, layer in enumerate(each):
        touched = trained.get(place, set())
        backward += layer.macs * (passes_on + any(not _is_bias(name) for name in touched))
        passes_on = passes_on or bool(touched)
    return forward + backward


def workload(board: Board, layers: Iterable[Layer], op: Op, train: Iterable[str] = (), num_examples: int = 1) -> Work:
    """Gives the MACs, seconds and joules of an op over so many examples. Cheap: nothing is traced or planned."""
    return work(board, macs_per_example(layers, op, train) * num_examples)


def runtime_sram_bytes(board: Board) -> int:
    """Gives the SRAM that the device runtime takes beside the arena: its static memory and its stack."""
    runtime = footprint.of(board.core)
    return runtime.static_bytes + runtime.stack_bytes


def work(board: Board, macs: int) -> Work:
    """Gives so many float MACs with the board's seconds and joules."""
    return Work(macs, board.seconds(macs), board.joules(macs))


def air_of(module: nn.Module, input_shape: tuple[int, ...], op: Op, train: Iterable[str] = (), batch: int = 1) -> Air:
    """Gives the bytes of the frames of one op: of the slice `train`, or of a batch at the cut."""
    wanted = set(train)
    weights = {name: value.detach() for name, value in module.named_parameters() if name in wanted}
    smashed = None
    if op in (Op.FORWARD, Op.BACKWARD):
        with torch.no_grad(), trace.at_rest(module):
            smashed = module(trace.example(module, input_shape, batch))
    return air.of(op, weights, smashed)


def plan(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    op: Op,
    *,
    train: Iterable[str] = (),
    batch: int = 1,
    num_examples: int = 1,
    num_rows: int = 1,
    momentum: bool = False,
    keeps_start: bool = False,
    owes: bool = False,
    places: float = 0.0,
    cut: str = "",
    is_tail: bool = False,
    resident_bytes: int = 0,
    learning: Cost = PLAIN,
    untraced: bool = False,
    compiler: str = footprint.DEFAULT,
) -> Budget:
    """Gives what an op needs.

    `train` names the parameters that change on the device and so live in SRAM, whatever the op. `batch` is the rows of
    a step, `num_examples` what MACs, instructions (with a share of the step), seconds and joules are for, `num_rows`
    the rows that the device holds, whose order takes 2 bytes each. `momentum` keeps a velocity of each trained
    parameter; `keeps_start` their values before the op, which a proximal term or clipping needs, or an update that
    travels as a difference. `owes` keeps what coding takes from an update, `places` the share of its numbers whose
    places a coded message tells. FORWARD and BACKWARD are of the device's half of a split model: `module` is that half,
    or the whole model with its `cut`; BACKWARD with nothing named trains all of it. `is_tail` is for BACKWARD of the
    last part of a U-shaped split, whose input [batch, ...] comes from the server and whose input's gradient goes back
    in its place. `resident_bytes` is SRAM that something else keeps all the while, such as the other part of a U shape.
    `learning` is what the rule that a device trains by takes beside plain SGD (`midhaul.rules`); the device runtime has
    no such rule yet. `untraced` leaves activations out. `compiler`, gcc or zig, is what the firmware is built by;
    instructions are gcc's.
    Raises: BudgetError for a model that can't be traced, SliceError for a cut or a name that the model lacks.
    """
    if batch < 1 or num_examples < 0 or num_rows < 0:
        raise BudgetError(f"can't budget a batch of {batch} rows and {num_examples} examples; give at least 1 and 0")
    uncut = module
    if cut:
        module = slices.cut(module, cut, input_shape)[0]
    names = _in_order(module, train)
    if op is Op.BACKWARD and not names:
        names = tuple(name for name, _ in module.named_parameters())
    done = work(board, macs_per_example(count.layers(module, input_shape), op, names, is_tail=is_tail) * num_examples)
    runtime = footprint.of(board.core, compiler)
    compiled, why = None, "the tail of a U shape isn't run by the device runtime yet"
    if not is_tail:
        compiled, why = _compiled(uncut, input_shape, board, op, names, momentum, keeps_start, cut)
    if compiled is None:
        steps = [] if untraced else _steps(module, input_shape, op, names, batch, is_tail)
        why = "its forward can't be traced, so the activations aren't counted" if untraced else why
        steps += _persistent(module, names, op, momentum, keeps_start, _end(steps), owes=owes)
        placed, blob_bytes = arena.place(steps), _weights_bytes(module)
    else:
        placed, blob_bytes = _planned(compiled, op, num_rows, owes=owes, places=places), len(compiled.data)
    counted = None
    if learning != PLAIN:
        placed += _for_rule(module, names, learning, placed)
        done, why = work(board, round(done.macs * learning.passes)), "the rule isn't run by the device runtime yet"
    elif compiled is not None and instructions.is_known(board.core):
        counted, seconds = _counted(compiled, board, op, batch, num_examples, momentum, keeps_start)
        done = Work(done.macs, seconds, seconds * board.active_w)
    return Budget(
        board,
        op,
        flash_bytes=runtime.code_bytes + footprint.slots_bytes(blob_bytes),
        sram_bytes=arena.peak(placed) + resident_bytes + runtime.static_bytes + runtime.stack_bytes,
        macs=done.macs,
        seconds=done.seconds,
        joules=done.joules,
        air=air_of(module, input_shape, op, names, batch),
        buffers=placed,
        instructions=counted,
        estimate=why,
    )


def of_slices(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    op: Op = Op.FIT,
    *,
    batch: int = 1,
    num_rows: int = 1,
    momentum: bool = False,
    keeps_start: bool = False,
    owes: bool = False,
    places: float = 0.0,
    learning: Cost = PLAIN,
) -> dict[str, Budget]:
    """Gives the budget of each slice in `SPECS`, the one with the fewest trained parameters first."""
    sizes = {name: value.numel() for name, value in module.named_parameters()}
    names: dict[str, tuple[str, ...]] = {}
    for spec in SPECS:
        with contextlib.suppress(SliceError):  # a model of one layer has no body, one without biases no bias
            names[spec] = slices.names(module, spec, input_shape)
    order = sorted(names, key=lambda spec: sum(sizes[name] for name in names[spec]))

    def of(spec: str) -> Budget:
        train = names[spec]
        return plan(
            module,
            input_shape,
            board,
            op,
            train=train,
            batch=batch,
            num_rows=num_rows,
            momentum=momentum,
            keeps_start=keeps_start,
            owes=owes,
            places=places,
            learning=learning,
        )

    return {spec: of(spec) for spec in order}


def of_cuts(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    *,
    batch: int = 1,
    num_rows: int = 1,
    momentum: bool = False,
) -> dict[str, Budget]:
    """Gives the budget of BACKWARD on the device's half for each cut of a model, the earliest cut first."""
    return {
        point.name: plan(
            module,
            input_shape,
            board,
            Op.BACKWARD,
            batch=batch,
            num_rows=num_rows,
            momentum=momentum,
            cut=point.name,
        )
        for point in slices.cut_points(module, input_shape)
    }


def largest_that_fits(budgets: Mapping[str, Budget]) -> str | None:
    """Gives the last name whose budget fits its board, or None. `of_slices` and `of_cuts` give them in order."""
    return next((name for name in reversed(list(budgets)) if budgets[name].fits), None)


def require(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    op: Op,
    *,
    model: str,
    spec: str = "whole",
    cut: str = "",
    batch: int = 1,
    num_rows: int = 1,
    momentum: bool = False,
    keeps_start: bool = False,
    owes: bool = False,
    places: float = 0.0,
    learning: Cost = PLAIN,
    enforce: bool = True,
) -> Budget:
    """Gives the budget of an op that fits its board, or with `enforce` off that of one that may not.

    `spec` is what FIT or ADAPT trains, or BACKWARD if that is adapters only; `cut` where FORWARD or BACKWARD end on the
    device.
    Raises: BudgetError that says how many bytes are missing and what would fit.
    """
    names = slices.names(module, spec, input_shape) if op in (Op.FIT, Op.ADAPT) and spec != "none" else ()
    if op is Op.BACKWARD and spec == "lora":
        half = slices.cut(module, cut, input_shape)[0] if cut else module
        names = slices.names(half, spec, input_shape)
    planned = partial(
        plan,
        module,
        input_shape,
        board,
        op,
        train=names,
        batch=batch,
        num_rows=num_rows,
        momentum=momentum,
        keeps_start=keeps_start,
        owes=owes,
        places=places,
        learning=learning,
        cut=cut,
    )
    try:
        found = planned()
    except BudgetError:
        if enforce:
            raise
        found = planned(untraced=True)
    if found.fits or not enforce:
        return found
    subject = _subject(op, model, spec, cut)
    if over := found.over_flash_bytes:
        raise BudgetError(
            f"{subject} needs {found.flash_bytes:,} B of flash on {board.name} ({board.flash_bytes:,} B): "
            f"{over:,} B over; {'cut it earlier, or ' if cut else ''}choose a smaller model or a larger board"
        )
    advice = _advice(
        module, input_shape, board, op, cut, batch, num_rows, momentum, keeps_start, owes, places, learning
    )
    raise BudgetError(
        f"{subject} needs {found.sram_bytes:,} B of SRAM on {board.name} ({board.sram_bytes:,} B): "
        f"{found.over_sram_bytes:,} B over; {advice}"
    )


def replay_bytes(shape: tuple[int, ...], num_rows: int) -> int:
    """Gives what so many past rows take in a device's flash: values of 4 bytes and a label of 2, up to a multiple of 4.

    >>> replay_bytes((64,), 100)
    26000
    """
    row = ELEMENT_BYTES * math.prod(shape) + 2
    return num_rows * (-(-row // ELEMENT_BYTES) * ELEMENT_BYTES)


def _subject(op: Op, model: str, spec: str, cut: str) -> str:
    if cut:
        return f"{op.name} of {model} up to '{cut}'"
    if op in _TRAINING:
        return f"training '{spec}' of {model}"
    return f"{op.name} of {model}"


def _advice(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    op: Op,
    cut: str,
    batch: int,
    num_rows: int,
    momentum: bool,
    keeps_start: bool,
    owes: bool,
    places: float,
    learning: Cost,
) -> str:
    if cut:
        what, budgets = "cut", of_cuts(module, input_shape, board, batch=batch, num_rows=num_rows, momentum=momentum)
    elif op in _TRAINING:
        what = "slice"
        budgets = of_slices(
            module,
            input_shape,
            board,
            op,
            batch=batch,
            num_rows=num_rows,
            momentum=momentum,
            keeps_start=keeps_start,
            owes=owes,
            places=places,
            learning=learning,
        )
    else:
        return "choose a smaller model or a larger board"
    name = largest_that_fits(budgets)
    if name is None:
        return f"no {what} of it fits: choose a smaller model or a larger board"
    return f"the largest {what} that fits is '{name}' ({budgets[name].sram_bytes:,} B)"


def _compiled(
    module: nn.Module,
    input_shape: tuple[int, ...],
    board: Board,
    op: Op,
    names: tuple[str, ...],
    momentum: bool,
    keeps_start: bool,
    cut: str,
) -> tuple[Blob | None, str]:
    """Gives the blob that a device would be given for an op, or none and the reason."""
    try:
        net = translate(module, input_shape, trained=names, upto=cut)
        splits = (_SLICE,) if op in (Op.FORWARD, Op.BACKWARD) else ()
        made = blob.compile(
            net,
            {_SLICE: names},
            fits=() if splits or not names else (_SLICE,),
            splits=splits if names else (),
            momentum=momentum,
            keeps_start=keeps_start,
            packing=footprint.packing(board.core),
            num_classes=0 if splits else None,
        )
    except ModelError as error:
        return None, str(error)
    return made, ""


def _counted(
    made: Blob, board: Board, op: Op, batch: int, num_examples: int, momentum: bool, start: bool
) -> tuple[int, float]:
    """Gives the instructions and the seconds of an op over so many examples, each with its share of a step."""
    if op in _IDLE:
        return 0, 0.0
    kind = {Op.FIT: PlanKind.TRAIN, Op.ADAPT: PlanKind.TRAIN, Op.BACKWARD: PlanKind.BACKWARD}.get(op, PlanKind.INFER)
    # A blob that trains nothing has no plan for it; what is left of the op is its forward pass.
    plan = next((one for one in made.plans if one.kind == kind), made.plans[0])
    each = instructions.of(made, plan, board.core, momentum=momentum, start=start)
    real = each._replace(int8=0.0).of_rows(num_examples, num_examples / batch)
    whole = each.int8 * num_examples
    cycles = real * board.cycles_per_instruction_f32 + whole * board.cycles_per_instruction_s8
    return round(real + whole), cycles / board.clock_hz


def _planned(made: Blob, op: Op, num_rows: int, *, owes: bool, places: float) -> tuple[Buffer, ...]:
    """Gives the buffers of the most demanding plan; a device that trains takes rows in and tests as well."""
    always = _resident(made)
    if op in _IDLE:
        return always
    wanted = {PlanKind.INFER, PlanKind.STORE} | ({PlanKind.TRAIN, PlanKind.BACKWARD} if op in _TRAINING else set())
    kinds = {Op.FORWARD: PlanKind.INFER, Op.BACKWARD: PlanKind.BACKWARD}
    shuffles = kinds.get(op, PlanKind.TRAIN)
    num = sum(made.net.tensors[name].size for name in made.resident.weights)
    owed = plans.rounded(ELEMENT_BYTES * num) if owes and op is Op.FIT else 0

    def of(one: Plan) -> tuple[Buffer, ...]:
        end = max((b.last for b in one.buffers), default=0)
        order = plans.rounded(2 * num_rows) if one.kind == shuffles else 0
        at = plans.rounded(made.arena_bytes) if owed else one.arena_bytes
        behind = [Buffer("what the update owes", owed, 0, end, at)] if owed else []
        told = math.ceil(places * num) if places and one.kind == PlanKind.TRAIN else 0
        behind += [Buffer("places of the update", plans.rounded(4 * told), 0, 0, at + owed)] if told else []
        behind += [Buffer("order of the rows", order, 0, end, at + owed)] if order else []
        return (*(replace(b, last=end) for b in always), *one.buffers, *behind)

    return max((of(one) for one in made.plans if one.kind in wanted), key=arena.peak)


def _resident(made: Blob) -> tuple[Buffer, ...]:
    kept, sizes = made.resident, {name: value.nbytes for name, value in made.net.tensors.items()}
    tables = (("weight", kept.weights), ("momentum", kept.velocities), ("start", kept.starts))
    return tuple(
        Buffer(f"{role} {name}", plans.rounded(sizes[name]), 0, 0, at)
        for role, table in tables
        for name, at in table.items()
    )


def _steps(
    module: nn.Module, input_shape: tuple[int, ...], op: Op, names: tuple[str, ...], batch: int, is_tail: bool
) -> list[Buffer]:
    if op in _IDLE:
        return []
    nodes = dataflow.trace(module, trace.example(module, input_shape), names)
    trains, splits = op in _TRAINING, op in (Op.FORWARD, Op.BACKWARD) and not is_tail
    copies = batch if trains and dataflow.averages_over_batch(nodes) else 1
    found = dataflow.lifetimes(nodes, copies=copies, trains=trains, holds_input=is_tail, holds_output=splits)
    end = _end(found)
    if splits:
        name = "g of the batch" if trains else "h of the batch"
        found.append(Buffer(name, ELEMENT_BYTES * batch * nodes[-1].elements, 0, end))
    if is_tail:
        found.append(Buffer("z of the batch", ELEMENT_BYTES * batch * nodes[0].elements, 0, end))
    return found


def _persistent(
    module: nn.Module, names: tuple[str, ...], op: Op, momentum: bool, keeps_start: bool, end: int, *, owes: bool
) -> list[Buffer]:
    sizes = {name: ELEMENT_BYTES * value.numel() for name, value in module.named_parameters()}
    roles = ["weight"]
    roles += ["momentum"] if momentum else []
    roles += ["start"] if keeps_start else []
    roles += ["owed of"] if owes and op is Op.FIT else []
    roles += ["gradient sum"] if op in _TRAINING else []
    return [Buffer(f"{role} {name}", sizes[name], 0, end) for role in roles for name in names]


def _for_rule(
    module: nn.Module, names: tuple[str, ...], learning: Cost, placed: tuple[Buffer, ...]
) -> tuple[Buffer, ...]:
    """Gives what a rule keeps behind all else: copies of the trained weights, and activations once more."""
    at, end, sizes = arena.peak(placed), _end(placed), dict(module.named_parameters())
    copy = plans.rounded(ELEMENT_BYTES * sum(sizes[name].numel() for name in names))
    found = [Buffer(f"copy {number} of the weights", copy, 0, end) for number in range(1, learning.copies + 1)]
    if learning.tangents:
        lasting = sum(buffer.bytes for buffer in placed if (buffer.first, buffer.last) == (0, end))
        found.append(Buffer("activations of the second derivative", at - lasting, 0, end))
    return tuple(replace(b, offset=at + sum(other.bytes for other in found[:place])) for place, b in enumerate(found))


def _end(buffers: Iterable[Buffer]) -> int:
    return max((buffer.last for buffer in buffers), default=0)


def _weights_bytes(module: nn.Module) -> int:
    held = [*module.parameters(), *(value for value in module.buffers() if value.is_floating_point())]
    return ELEMENT_BYTES * sum(value.numel() for value in held)


def _in_order(module: nn.Module, train: Iterable[str]) -> tuple[str, ...]:
    wanted, known = set(train), [name for name, _ in module.named_parameters()]
    if unknown := sorted(wanted - set(known)):
        raise SliceError(f"the model has no parameter {unknown[0]!r}{nearest(unknown[0], known)}")
    return tuple(name for name in known if name in wanted)


def _trained_layers(layers: list[str], train: Iterable[str]) -> dict[int, set[str]]:
    """Gives the trained parameters by the place of their layer: each call of it, or the first layer of its block."""
    found: dict[int, set[str]] = {}
    for name in train:
        owner = name.rpartition(".")[0]
        places = [i for i, layer in enumerate(layers) if layer == owner]
        while owner and not places:
            places = [i for i, layer in enumerate(layers) if layer.startswith(f"{owner}.")][:1]
            owner = owner.rpartition(".")[0]
        for place in places or [0]:
            found.setdefault(place, set()).add(name)
    return found


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]
