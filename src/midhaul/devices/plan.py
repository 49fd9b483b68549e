"""Where everything lies in a device's arena while it does an op: the plan that the blob carries and the budget reads.

A device works through one example at a time. The forward of layer i of N is step i; the loss, or the arrival of the
gradient at the cut, is step N; the backward of layer i is step 2N - i. What stays between ops (trained weights, then
velocities, then starting values) lies at the bottom of the arena, at the same place in every plan of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from midhaul.devices import arena
from midhaul.devices.arena import Buffer
from midhaul.net import Kind, Layer, Net

ALIGN_BYTES = 16
_AT_ONCE = 4  # positions that an int8 convolution may write at once
_MATRIX = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)

Scratch = Callable[[Layer, Net], int]


class PlanKind(IntEnum):
    """What a plan is for. The numbers are in the blob and in C."""

    INFER = 0
    TRAIN = 1
    BACKWARD = 2
    STORE = 3


class Step(IntFlag):
    """What a plan does at a layer. The bits are in the blob and in C."""

    FORWARD = 1
    GRAD_INPUT0 = 2
    GRAD_INPUT1 = 4
    GRAD_PARAMS = 8
    ADDS0 = 16
    ADDS1 = 32


@dataclass(frozen=True)
class Resident:
    """What stays between ops. Offsets in bytes from the start of the arena; empty where nothing is kept of the kind."""

    weights: Mapping[str, int]
    velocities: Mapping[str, int]
    starts: Mapping[str, int]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """An op's steps and the offsets of its buffers; a value that isn't made has none.

    `arena_bytes` is the end of the highest buffer, what stays between ops included.
    """

    kind: PlanKind
    slice: str
    trained: frozenset[str]
    sent: frozenset[str]
    steps: tuple[Step, ...]
    values: Mapping[int, int]
    grads: Mapping[int, int]
    sums: Mapping[str, int]
    scratch_offset: int
    scratch_bytes: int
    arena_bytes: int
    buffers: tuple[Buffer, ...] = field(repr=False)


def rounded(num: int) -> int:
    """Gives the bytes that a buffer takes: up to the next multiple of 16."""
    return -(-num // ALIGN_BYTES) * ALIGN_BYTES


def resident(net: Net, trained: Collection[str], *, momentum: bool, keeps_start: bool) -> Resident:
    """Gives the places of what stays between ops for the tensors that any op trains, in the net's order."""
    names = [name for name in net.tensors if name in trained]
    at = 0
    tables: list[dict[str, int]] = []
    for wanted in (True, momentum, keeps_start):
        tables.append({})
        for name in names if wanted else ():
            tables[-1][name] = at
            at += rounded(4 * net.tensors[name].size)
    weights, velocities, starts = tables
    return Resident(weights, velocities, starts, at)


def stored_value(net: Net, trained: Collection[str]) -> int:
    """Gives the value that a device keeps of a row: the last one that all of what is trained lies behind.

    That is the input unless the first layers are frozen and meet the rest at a single value; then each row goes through
    them once, when it comes. Where nothing is trained it is the input, in int8 if the network begins with that.
    """
    starts = bool(net.layers) and net.layers[0].kind == Kind.QUANTISE and net.users(0) == [0]
    best = net.layers[0].out if starts else 0
    first = next((i for i, layer in enumerate(net.layers) if _trained(layer, trained)), 0)
    for place, layer in enumerate(net.layers[:first]):
        ahead = {layer.out for layer in net.layers[place + 1 :]} | {layer.out}
        if place + 1 < len(net.layers) and all(v in ahead for later in net.layers[place + 1 :] for v in later.inputs):
            best = layer.out
    # Dequantising and another shape cost nothing to do again, so the narrower form is kept.
    makers = {layer.out: layer for layer in net.layers}
    while best in makers and makers[best].kind in (Kind.DEQUANTISE, Kind.RESHAPE):
        best = makers[best].inputs[0]
    return best


def infer(
    net: Net, kept: Resident, stored: int, scratch: Scratch, *, slice: str = "", sent: Collection[str] = ()
) -> Plan:
    """Gives the plan of a forward pass from the stored value to the output."""
    return _plan(net, PlanKind.INFER, kept, slice, (), sent, _after(net, stored), scratch)


def store(net: Net, kept: Resident, stored: int, scratch: Scratch) -> Plan:
    """Gives the plan of the forward pass from the input to the stored value."""
    after = set(_after(net, stored))
    return _plan(net, PlanKind.STORE, kept, "", (), (), [i for i in range(len(net.layers)) if i not in after], scratch)


def train(
    net: Net,
    kept: Resident,
    stored: int,
    scratch: Scratch,
    *,
    slice: str,
    trained: Collection[str],
    split: bool = False,
) -> Plan:
    """Gives the plan of a training pass; with `split`, the gradient at the output comes over the link."""
    kind = PlanKind.BACKWARD if split else PlanKind.TRAIN
    return _plan(net, kind, kept, slice, trained, trained, _after(net, stored), scratch)


def _plan(
    net: Net,
    kind: PlanKind,
    kept: Resident,
    slice: str,
    trained: Collection[str],
    sent: Collection[str],
    places: Sequence[int],
    scratch: Scratch,
) -> Plan:
    flow = _Flow(
        net, frozenset(trained), list(places), ends_in_loss=kind == PlanKind.TRAIN, streams=kind == PlanKind.STORE
    )

    def laid(over: frozenset[int]) -> Plan:
        return _laid(net, kind, kept, slice, trained, sent, flow, scratch, over)

    # One convolution's output over its input may be in the way of another's: from none of them and from all, each is
    # put in or taken out where that pays.
    largest_first = sorted(flow.leads, key=lambda i: -net.values[net.layers[i].out].bytes)
    ends = []
    for over in (frozenset[int](), frozenset(flow.leads)):
        best = laid(over)
        for place in largest_first:
            tried = laid(over ^ {place})
            if tried.arena_bytes < best.arena_bytes:
                best, over = tried, over ^ {place}
        ends.append(best)
    return min(ends, key=lambda one: one.arena_bytes)


def _laid(
    net: Net,
    kind: PlanKind,
    kept: Resident,
    slice: str,
    trained: Collection[str],
    sent: Collection[str],
    flow: _Flow,
    scratch: Scratch,
    over: frozenset[int],
) -> Plan:
    found: list[Buffer] = []
    keys: list[tuple[str, object]] = []
    for root, shifts in flow.groups(over).items():
        found.append(Buffer(f"value {root}", *flow.span(shifts)))
        keys += [("value", shifts)]
    for root, members in flow.grad_groups().items():
        found.append(Buffer(f"gradient {root}", *flow.grad_span(members)))
        keys += [("grad", members)]
    for name in net.tensors:
        if name in trained:
            found.append(Buffer(f"gradient sum {name}", rounded(4 * net.tensors[name].size), 0, 2 * flow.num))
            keys.append(("sum", name))
    needs = [(at, num) for at, num in flow.scratch(scratch) if num]
    if needs:
        steps = [at for at, _ in needs]
        found.append(Buffer("scratch", rounded(max(num for _, num in needs)), min(steps), max(steps)))
        keys.append(("scratch", ""))
    values: dict[int, int] = {}
    grads: dict[int, int] = {}
    sums: dict[str, int] = {}
    at, size = 0, 0
    placed = [Buffer(b.name, b.bytes, b.first, b.last, b.offset + kept.bytes) for b in arena.place(found)]
    for buffer, (what, key) in zip(placed, keys, strict=True):
        if what == "value":
            values.update({v: buffer.offset + shift for v, shift in key.items()})  # type: ignore[attr-defined]
        elif what == "grad":
            grads.update(dict.fromkeys(key, buffer.offset))  # type: ignore[call-overload]
        elif what == "sum":
            sums[str(key)] = buffer.offset
        else:
            at, size = buffer.offset, buffer.bytes
    end = max(arena.peak(placed), kept.bytes)
    return Plan(
        kind,
        slice,
        frozenset(trained),
        frozenset(sent),
        flow.steps(),
        values,
        grads,
        sums,
        at,
        size,
        end,
        tuple(placed),
    )


class _Flow:
    """Who makes what, who needs it, and when."""

    def __init__(
        self, net: Net, trained: frozenset[str], places: list[int], *, ends_in_loss: bool, streams: bool
    ) -> None:
        self.net, self.trained, self.places = net, trained, places
        self.num = len(net.layers)
        # Rows are quantised number by number as they come, so the input is never there as a whole.
        self.streams = streams
        self.loss = ends_in_loss
        self.made = {net.layers[i].out: i for i in places}
        self.needs: dict[int, bool] = {}
        for i in places:
            layer = net.layers[i]
            self.needs[i] = bool(_trained(layer, trained)) or any(self._wants(v) for v in layer.inputs)
        self.leads = {i: lead for i in places if (lead := self._lead(i)) is not None}

    def _wants(self, value: int) -> bool:
        """Tells whether the gradient of a value is needed."""
        return value in self.made and self.needs[self.made[value]]

    def steps(self) -> tuple[Step, ...]:
        flags = [Step(0)] * self.num
        seen: set[int] = set()
        for i in reversed(self.places):
            layer, flag = self.net.layers[i], Step.FORWARD
            if layer.kind == Kind.QUANTISE and self.streams:
                continue
            if self.needs[i]:
                flag |= Step.GRAD_PARAMS if _trained(layer, self.trained) else Step(0)
                for wanted, adds, value in zip(
                    (Step.GRAD_INPUT0, Step.GRAD_INPUT1), (Step.ADDS0, Step.ADDS1), layer.inputs, strict=False
                ):
                    if self._wants(value):
                        flag |= wanted | (adds if value in seen else Step(0))
                        seen.add(value)
            flags[i] = flag
        return tuple(flags)

    def _last(self, value: int) -> int:
        """Gives the last step at which a value is read."""
        steps = [self.made.get(value, 0)]
        for i in self.places:
            layer = self.net.layers[i]
            if value in layer.inputs:
                steps.append(i)
            if self.needs[i] and value in self._kept(layer):
                steps.append(2 * self.num - i)
        if self.places and value == self.net.layers[self.places[-1]].out:
            steps.append(self.num)
        return max(steps)

    def _kept(self, layer: Layer) -> set[int]:
        """Gives the values that the backward of a layer reads."""
        kept: set[int] = set()
        roles = _trained(layer, self.trained)
        wants_input = any(self._wants(v) for v in layer.inputs)
        if layer.kind in _MATRIX and roles - {"bias"}:
            kept.add(layer.inputs[0])
        if layer.kind == Kind.GROUP_NORM or (layer.kind == Kind.MAX_POOL and wants_input):
            kept.add(layer.inputs[0])
        if layer.clamps:
            kept.add(layer.out)
        return kept

    def groups(self, over: Collection[int]) -> dict[int, dict[int, int]]:
        """Gives the values that share a buffer, by the first of them, each with its offset in it.

        `over` are the int8 convolutions whose output begins so little before their dying input that what they write
        never reaches what they have still to read.
        """
        root: dict[int, int] = {}
        shift: dict[int, int] = {}
        for i in self.places:
            layer = self.net.layers[i]
            for value in layer.inputs:
                if not (layer.kind == Kind.QUANTISE and self.streams):
                    root.setdefault(value, value)
                    shift.setdefault(value, 0)
            root[layer.out], shift[layer.out] = layer.out, 0
            source = next((v for v in layer.inputs if self._in_place(i, v)), None)
            if source is not None:
                root[layer.out], shift[layer.out] = root[source], shift[source]
            elif i in over:
                source = layer.inputs[0]
                root[layer.out], shift[layer.out] = root[source], shift[source] - self.leads[i]
        found: dict[int, dict[int, int]] = {}
        for value, first in root.items():
            found.setdefault(first, {})[value] = shift[value]
        return {first: {v: at - min(each.values()) for v, at in each.items()} for first, each in found.items()}

    def _lead(self, place: int) -> int | None:
        """Gives how many bytes an int8 convolution's output must begin before its input to be written over it, or None.

        The kernels go through the output's positions in order, at most 4 at a time, and read all that these need first.
        """
        layer = self.net.layers[place]
        source, out = self.net.values[layer.inputs[0]], self.net.values[layer.out]
        if layer.kind != Kind.CONV or not source.int8 or self._last(layer.inputs[0]) != place:
            return None
        (channels, _, width), (made, rows, columns) = source.shape, out.shape
        (down, across), (top, left, _, _) = layer.stride, layer.padding
        lead = 0
        for row in range(rows):
            for column in range(columns):
                needed = (max(0, row * down - top) * width + max(0, column * across - left)) * channels
                lead = max(lead, (row * columns + column + _AT_ONCE) * made - needed)
        lead = rounded(lead)
        saved = rounded(source.bytes) + rounded(out.bytes) - max(lead + rounded(source.bytes), rounded(out.bytes))
        return lead if saved > 0 else None

    def _in_place(self, place: int, value: int) -> bool:
        """Tells whether a layer may write its output over this input of it."""
        layer = self.net.layers[place]
        if layer.kind == Kind.RESHAPE:
            return True
        if layer.kind not in (Kind.CLAMP, Kind.ADD) or self._last(value) != place:
            return False
        # A frozen producer's output may be written over; one that is read through another shape may not.
        users = [i for i in self.places if value in self.net.layers[i].inputs]
        maker = self.made.get(value)
        aliased = maker is not None and self.net.layers[maker].kind == Kind.RESHAPE
        same = self.net.values[value].bytes == self.net.values[layer.out].bytes
        return same and users == [place] and not aliased and len(set(layer.inputs)) == len(layer.inputs)

    def span(self, shifts: Mapping[int, int]) -> tuple[int, int, int]:
        """Gives the bytes, the first and the last step of a buffer of values."""
        size = max(shift + self.net.values[v].bytes for v, shift in shifts.items())
        first = min(self.made.get(v, self.places[0] if self.places else 0) for v in shifts)
        return rounded(size), first, max(self._last(v) for v in shifts)

    def grad_groups(self) -> dict[int, list[int]]:
        """Gives the values whose gradients share a buffer, by the last of them."""
        root: dict[int, int] = {}
        for i in reversed(self.places):
            layer = self.net.layers[i]
            if not self.needs[i]:
                continue
            root.setdefault(layer.out, layer.out)
            for position, value in enumerate(layer.inputs):
                if not self._wants(value):
                    continue
                users = [j for j in self.places if value in self.net.layers[j].inputs]
                passes = layer.kind in (Kind.RESHAPE, Kind.CLAMP) or (layer.kind == Kind.ADD and position == 0)
                if passes and users == [i] and layer.inputs.count(value) == 1:
                    root.setdefault(value, root[layer.out])
                else:
                    root.setdefault(value, value)
        found: dict[int, list[int]] = {}
        for value, last in root.items():
            found.setdefault(last, []).append(value)
        return found

    def grad_span(self, members: list[int]) -> tuple[int, int, int]:
        """Gives the bytes, the first and the last step of a buffer of gradients."""
        size = max(4 * self.net.values[v].elements for v in members)
        begins, ends = [], []
        for value in members:
            users = [i for i in self.places if value in self.net.layers[i].inputs and self.needs[i]]
            begins.append(min((2 * self.num - i for i in users), default=self.num))
            if self.places and value == self.net.layers[self.places[-1]].out:
                begins.append(self.num)
            ends.append(2 * self.num - self.made[value])
        return rounded(size), min(begins), max(ends)

    def scratch(self, of_layer: Scratch) -> list[tuple[int, int]]:
        """Gives the steps that need scratch, and the bytes."""
        found = []
        for i in self.places:
            layer = self.net.layers[i]
            found.append((i, of_layer(layer, self.net)))
            if "lora_a" in layer.weights:
                rank = self.net.tensors[layer.weights["lora_a"]].shape[0]
                inner = 4 * rank * math.prod(self.net.values[layer.out].shape[1:])
                found.append((i, inner))
                if self.needs[i]:
                    found.append((2 * self.num - i, 2 * inner))
        if self.loss:
            found.append((self.num, 8 * self.net.values[self.net.output].elements))
        return found


def _trained(layer: Layer, trained: Collection[str]) -> set[str]:
    return {role for role, name in layer.weights.items() if name in trained}


def _after(net: Net, stored: int) -> list[int]:
    """Gives the layers behind the stored value, in the order they run."""
    first = next((i for i, layer in enumerate(net.layers) if layer.out == stored), -1)
    return list(range(first + 1, len(net.layers)))
