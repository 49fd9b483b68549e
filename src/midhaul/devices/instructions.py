"""The instructions that the device runtime takes for an op of a blob, before any device has run it.

Each kernel is described by how often its loops and blocks are entered for a geometry (`Tally`), and each such part by
what it takes of a core's instructions (`COSTS`). The costs are fitted to counts of single layers in an emulator by
`python -m benchmarks.instructions`; a test compares whole models with the count of the device itself.

Limits: without an FPU, kernels take less where numbers are zero, and the share of these is an assumption (`shares`);
maxima depend on the numbers on any core. Built by arm-none-eabi-gcc 12.2. What the device doesn't count isn't
predicted: taking rows and frames in, the seal, the order of rows, zeroing the sums of gradients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from midhaul.devices import footprint, pack
from midhaul.devices.blob import Blob
from midhaul.devices.plan import Plan, PlanKind, Step
from midhaul.net import Kind, Layer, Net

_LANES = 4  # MH_LANES of a Cortex-M
_DSP = 1  # MH_PACK_DSP
_MATRIX = (Kind.DENSE, Kind.CONV, Kind.DEPTHWISE)


class Instructions(NamedTuple):
    """What a plan takes: of a row in int8 layers, in the others, and backward with the loss; `step` is once a batch."""

    int8: float
    forward: float
    backward: float
    step: float

    def of_rows(self, num_rows: int = 1, num_steps: float = 1.0) -> float:
        """Gives the instructions of so many rows and steps."""
        return (self.int8 + self.forward + self.backward) * num_rows + self.step * num_steps


class Geometry(NamedTuple):
    """The fields of struct mh_geometry that the kernels loop over."""

    ic: int
    ih: int
    iw: int
    oc: int
    oh: int
    ow: int
    kh: int = 1
    kw: int = 1
    sh: int = 1
    sw: int = 1
    pt: int = 0
    pl: int = 0
    dh: int = 1
    dw: int = 1


class Tally(Counter[str]):
    """How often each part of the kernels is entered."""

    def add(self, name: str, num: int = 1) -> None:
        """Counts a part."""
        if num:
            self[name] += num


class _Walk(NamedTuple):
    num: int
    at: int
    step: int


class _Axis(NamedTuple):
    """One axis of a correlation, as mh_conv_f32.c has it."""

    places: int
    size: int
    kernel: int
    stride: int
    pad: int
    dilation: int
    backward: bool

    def walk(self, place: int) -> tuple[_Walk, int]:
        """Gives the taps that reach a place, and how many were tried to find them."""
        if not self.backward:
            return _Walk(self.kernel, place * self.stride - self.pad, self.dilation), 0
        total, tap, step, tries = place + self.pad, 0, 1, 0
        while tap < self.kernel and (total - tap * self.dilation) % self.stride:
            tap, tries = tap + 1, tries + 1
        while step * self.dilation % self.stride:
            step, tries = step + 1, tries + 1
        num = (self.kernel - tap + step - 1) // step
        at = (total - tap * self.dilation) // self.stride if num else 0
        return _Walk(num, at, -(step * self.dilation // self.stride)), tries

    def inside(self, walk: _Walk) -> tuple[int, int]:
        """Gives how many taps of a walk read inside of the map, and how many were dropped."""
        within = sum(0 <= walk.at + i * walk.step < self.size for i in range(walk.num))
        return within, walk.num - within


def _correlate(
    t: Tally, rows: _Axis, columns: _Axis, channels: int, num: int, *, apart: bool, adds: bool, times: int = 1
) -> None:
    """`correlate` of mh_conv_f32.c, `times` over; `num` are its outputs."""
    fours, ones = divmod(num, 4)
    if fours:
        names = ("apart_wide", "", "apart_single") if apart else ("four_wide", "four_spread", "four_single")
        _outputs(t, rows, columns, channels, names, adds, fours * times)
    if ones:
        _outputs(t, rows, columns, channels, ("one_spread", "one_spread", "one_single"), adds, ones * times)
    t.add("correlate", times)


def _outputs(
    t: Tally, rows: _Axis, columns: _Axis, channels: int, names: tuple[str, str, str], adds: bool, times: int
) -> None:
    t.add("outputs", times)
    heights: Counter[int] = Counter()
    for place in range(rows.places):
        walk, tries = rows.walk(place)
        left, dropped = rows.inside(walk)
        heights[left] += 1
        t.add("walk_tried", tries * times)
        t.add("inside_dropped", dropped * times)
    way = "walk_back" if rows.backward else "walk"
    t.add(f"{way}_row", rows.places * times)
    # A row of the output goes through its places alike, whichever row it is.
    phases, move = (columns.stride, 1) if columns.backward else (1, columns.stride)
    many = names[0] if move == 1 and phases == 1 else names[1]
    blocks: Counter[tuple[str, int]] = Counter()
    every = rows.places * times
    for phase in range(phases):
        (taps, at, step), tries = columns.walk(phase)
        t.add(f"{way}_column", every)
        t.add("walk_tried", tries * every)
        far = (taps - 1) * step
        low, high = min(far, 0), max(far, 0)
        last = (_LANES - 1) * move + high
        place = phase
        while place < columns.places:
            if many and place + (_LANES - 1) * phases < columns.places and at + low >= 0 and at + last < columns.size:
                blocks[many, taps] += 1
                place += _LANES * phases
                at += _LANES * move
                continue
            left = taps
            if at + low < 0 or at + high >= columns.size:
                left, dropped = columns.inside(_Walk(taps, at, step))
                t.add("inside", every)
                t.add("inside_dropped", dropped * every)
            blocks[names[2], left] += 1
            place += phases
            at += move
    for (name, wide), num in blocks.items():
        for high, of in heights.items():
            entered = num * of * times
            loops = (1, 1, channels) if high == wide == 1 else (channels, channels * high, channels * high * wide)
            t.add(name, entered)
            for what, count in zip(("channel", "row", "tap"), loops, strict=True):
                t.add(f"{name}.{what}", count * entered)
            if adds:
                t.add(f"{name}.adds", entered)


def _axes(s: Geometry, backward: bool) -> tuple[_Axis, _Axis]:
    rows, columns = (s.oh, s.ih), (s.ow, s.iw)
    if backward:
        rows, columns = rows[::-1], columns[::-1]
    if s.kh * s.kw == s.sh * s.sw == 1 and s.pt + s.pl == 0 and (s.ih, s.iw) == (s.oh, s.ow):
        rows, columns = (1, 1), (s.ih * s.iw, s.ih * s.iw)
    return (
        _Axis(*rows, s.kh, s.sh, s.pt, s.dh, backward),
        _Axis(*columns, s.kw, s.sw, s.pl, s.dw, backward),
    )


def _live(t: Tally, name: str, macs: int, live: float) -> None:
    """Counts the multiply-accumulates whose operands aren't zero: soft float is slower at those."""
    t.add(f"{name}.live", round(macs * live))


def macs(s: Geometry, depthwise: bool) -> int:
    """Gives the multiply-accumulates of a convolution, those with padding left out."""
    rows, columns = _both(s)
    return sum(n for _, n in rows) * sum(n for _, n in columns) * s.oc * (1 if depthwise else s.ic)


def conv_f32(t: Tally, s: Geometry, live: float = 1.0) -> None:
    """mh_conv_f32; `live` here and below is the share of products that aren't zero."""
    _live(t, "correlate", macs(s, False), live)
    _correlate(t, *_axes(s, False), s.ic, s.oc, apart=False, adds=False)


def conv_input_f32(t: Tally, s: Geometry, adds: bool = False, live: float = 1.0) -> None:
    """mh_conv_input_f32."""
    _live(t, "correlate", macs(s, False), live)
    _correlate(t, *_axes(s, True), s.oc, s.ic, apart=False, adds=adds)


def depthwise_f32(t: Tally, s: Geometry, live: float = 1.0) -> None:
    """mh_depthwise_f32."""
    _live(t, "correlate", macs(s, True), live)
    if s.oc == s.ic:
        _correlate(t, *_axes(s, False), 1, s.oc, apart=True, adds=False)
    else:
        _correlate(t, *_axes(s, False), 1, s.oc // s.ic, apart=False, adds=False, times=s.ic)


def depthwise_input_f32(t: Tally, s: Geometry, adds: bool = False, live: float = 1.0) -> None:
    """mh_depthwise_input_f32."""
    _live(t, "correlate", macs(s, True), live)
    _correlate(t, *_axes(s, True), s.oc // s.ic, s.ic, apart=True, adds=adds)


def _reach(out: int, size: int, stride: int, offset: int) -> int:
    """Gives how many outputs of an axis a tap reaches inside of the map."""
    first = (-offset + stride - 1) // stride if offset < 0 else 0
    last = (size - 1 - offset) // stride + 1 if size > offset else 0
    return max(min(last, out) - first, 0)


def _taps(t: Tally, s: Geometry, name: str, times: int) -> None:
    """`each_tap` of mh_conv_f32.c with one of its kernels."""
    if not times:
        return
    t.add(name, s.kh * s.kw * times)
    for kh in range(s.kh):
        rows = _reach(s.oh, s.ih, s.sh, kh * s.dh - s.pt)
        for kw in range(s.kw):
            high, wide = rows, _reach(s.ow, s.iw, s.sw, kw * s.dw - s.pl)
            if wide == s.ow == s.iw and s.sh == s.sw == 1 and high:
                high, wide = 1, high * wide
            t.add(f"{name}.row", high * times)
            t.add(f"{name}.column", high * wide * times)


def _params(t: Tally, s: Geometry, channels: int, num: int, times: int = 1) -> None:
    fours, ones = divmod(num, 4)
    t.add("params", (fours + ones) * times)
    _taps(t, s, "tap_four_by_four", channels // 4 * fours * times)
    _taps(t, s, "tap_four_by_one", channels % 4 * fours * times)
    _taps(t, s, "tap_one_by_one", channels * ones * times)


def _bias(t: Tally, s: Geometry) -> None:
    t.add("bias", s.oc)
    t.add("bias.place", s.oc * s.oh * s.ow)


def conv_params_f32(t: Tally, s: Geometry, weight: bool = True, bias: bool = True, live: float = 1.0) -> None:
    """mh_conv_params_f32."""
    _live(t, "params", macs(s, False) * weight, live)
    t.add("params_call")
    if bias:
        _bias(t, s)
    if weight:
        _params(t, s, s.ic, s.oc)


def depthwise_params_f32(t: Tally, s: Geometry, weight: bool = True, bias: bool = True, live: float = 1.0) -> None:
    """mh_depthwise_params_f32."""
    _live(t, "params", macs(s, True) * weight, live)
    t.add("params_call")
    if bias:
        _bias(t, s)
    if not weight:
        return
    fours = s.ic // 4 if s.ic == s.oc else 0
    _taps(t, s, "tap_four_apart", fours)
    _params(t, s, 1, s.oc // s.ic, s.ic - 4 * fours)


def _fours(t: Tally, name: str, num: int, times: int = 1) -> None:
    """A loop over numbers, four at a time and then the rest."""
    t.add(f"{name}.four", num // 4 * times)
    t.add(f"{name}.rest", num % 4 * times)


def dense_f32(t: Tally, num_in: int, num_out: int, live: float = 1.0) -> None:
    """mh_dense_f32."""
    _live(t, "dense", num_in * num_out, live)
    t.add("dense_call")
    for name, num in (("dense4", num_out // 4), ("dense2", num_out % 4 // 2), ("dense1", num_out % 2)):
        t.add(name, num)
        _fours(t, name, num_in, num)


def dense_input_f32(t: Tally, num_in: int, num_out: int, fpu: bool, live: float = 1.0) -> None:
    """mh_dense_input_f32."""
    _live(t, "dense_back", num_in * num_out, live)
    t.add("dense_back_call")
    eights = num_in // 8 if fpu else 0
    left = num_in - 8 * eights
    for name, num in (("dense_back8", eights), ("dense_back4", left // 4), ("dense_back1", left % 4)):
        t.add(name, num)
        t.add(f"{name}.out", num_out * num)


def dense_params_f32(
    t: Tally, num_in: int, num_out: int, weight: bool = True, bias: bool = True, live: float = 1.0
) -> None:
    """mh_dense_params_f32."""
    _live(t, "dense_grad", num_in * num_out * weight, live)
    t.add("dense_grad_call")
    if weight:
        t.add("dense_grad", num_out)
        _fours(t, "dense_grad", num_in, num_out)
    if bias:
        t.add("dense_grad.bias", num_out)


def _window(t: Tally, s: Geometry, name: str) -> None:
    """The windows of a pool, each with its taps inside of the map."""
    sides = []
    for out, stride, pad, step, kernel, size in (
        (s.oh, s.sh, s.pt, s.dh, s.kh, s.ih),
        (s.ow, s.sw, s.pl, s.dw, s.kw, s.iw),
    ):
        sides.append([sum(0 <= o * stride - pad + k * step < size for k in range(kernel)) for o in range(out)])
    rows, taps = sum(sides[0]), sum(sides[1])
    t.add(name)
    t.add(f"{name}.channel", s.ic)
    t.add(f"{name}.line", s.ic * s.oh)
    t.add(f"{name}.out", s.ic * s.oh * s.ow)
    t.add(f"{name}.row", s.ic * rows * s.ow)
    t.add(f"{name}.tap", s.ic * rows * taps)


def max_pool_f32(t: Tally, s: Geometry) -> None:
    """mh_max_pool_f32."""
    _window(t, s, "max_pool")


def max_pool_input_f32(t: Tally, s: Geometry) -> None:
    """mh_max_pool_input_f32."""
    t.add("max_pool_back.zero", s.ic * s.ih * s.iw)
    _window(t, s, "max_pool_back")


def average_pool_f32(t: Tally, s: Geometry) -> None:
    """mh_average_pool_f32."""
    _window(t, s, "average_pool")


def average_pool_input_f32(t: Tally, s: Geometry) -> None:
    """mh_average_pool_input_f32."""
    t.add("average_pool_back.zero", s.ic * s.ih * s.iw)
    _window(t, s, "average_pool_back")


def group_norm_f32(t: Tally, channels: int, positions: int, groups: int) -> None:
    """mh_group_norm_f32, with weight and bias."""
    t.add("group_norm")
    t.add("group_norm.group", groups)
    t.add("group_norm.channel", channels)
    t.add("group_norm.place", channels * positions)


def group_norm_grad_f32(t: Tally, channels: int, positions: int, groups: int, passes: bool) -> None:
    """mh_group_norm_grad_f32; `passes` where the input's gradient is wanted."""
    t.add("group_norm_back")
    for name in ("group_norm_back", *(("group_norm_pass",) if passes else ())):
        t.add(f"{name}.group", groups)
        t.add(f"{name}.channel", channels)
        t.add(f"{name}.place", channels * positions)


def _lora(t: Tally, name: str, outer: int, inner: int, length: int) -> None:
    t.add(f"lora_{name}", outer)
    t.add(f"lora_{name}.sum", outer * inner)
    t.add(f"lora_{name}.mac", outer * inner * length)


def lora_f32(t: Tally, s: Geometry, rank: int) -> None:
    """mh_lora_f32."""
    places = s.oh * s.ow
    t.add("lora_call")
    _lora(t, "down", places, rank, s.ic)
    _lora(t, "up", s.oc, places, rank)


def lora_grad_f32(t: Tally, s: Geometry, rank: int, down: bool, up: bool, passes: bool) -> None:
    """mh_lora_grad_f32; `down`, `up` where the gradients of a and b, `passes` where the input's is wanted."""
    places = s.oh * s.ow
    t.add("lora_call")
    if up:
        _lora(t, "down", places, rank, s.ic)
        _lora(t, "grad_b", s.oc, rank, places)
    if down or passes:
        _lora(t, "back", rank, places, s.oc)
    if down:
        _lora(t, "grad_a", rank, s.ic, places)
    if passes:
        _lora(t, "pass", s.ic, places, rank)


def cross_entropy_f32(t: Tally, classes: int) -> None:
    """mh_cross_entropy_f32 with its gradient."""
    t.add("cross_entropy")
    t.add("cross_entropy.class", classes)


def sgd_f32(t: Tally, num: int, momentum: bool, decay: bool, start: bool) -> None:
    """mh_sgd_f32 for one tensor."""
    t.add("sgd")
    if not (momentum or decay or start):
        _fours(t, "sgd", num)
        return
    t.add("sgd.number", num)
    for name, is_on in (("momentum", momentum), ("decay", decay), ("start", start)):
        t.add(f"sgd.{name}", num * is_on)


def clamp_s8(t: Tally, num: int) -> None:
    """The clamp behind a DSP kernel."""
    t.add("clamp_s8")
    _fours(t, "clamp_s8", num)


def dense_s8(t: Tally, num_in: int, num_out: int, packing: int, narrow: bool) -> None:
    """mh_dense_s8; `narrow` where its range is less than all of int8."""
    t.add("dense_s8_call")
    if packing != _DSP:
        t.add("dense_plain", -(-num_out // 2))
        _fours(t, "dense_plain", num_in, -(-num_out // 2))
        return
    blocks, left = -(-num_out // 4), num_in % 8
    t.add("dense_s8", blocks)
    t.add("dense_s8.eight", num_in // 8 * blocks)
    t.add("dense_s8.rest", -(-left // 4) * blocks)
    t.add("dense_s8.byte", left * blocks)
    if narrow:
        clamp_s8(t, num_out)


def _places(out: int, stride: int, pad: int, step: int, kernel: int, size: int) -> list[tuple[int, int]]:
    """Gives for each output of an axis the taps before the map and those inside of it."""
    found = []
    for o in range(out):
        at = [o * stride - pad + k * step for k in range(kernel)]
        found.append((sum(a < 0 for a in at), sum(0 <= a < size for a in at)))
    return found


def _both(s: Geometry) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return (
        _places(s.oh, s.sh, s.pt, s.dh, s.kh, s.ih),
        _places(s.ow, s.sw, s.pl, s.dw, s.kw, s.iw),
    )


def conv_s8(t: Tally, s: Geometry, packing: int, narrow: bool) -> None:
    """mh_conv_s8."""
    t.add("conv_s8_call")
    if packing != _DSP:
        _conv_plain(t, s)
        return
    fours, pixels = -(-s.kh * s.kw * s.ic // 4), s.oh * s.ow
    pairs = -(-pixels // 2)
    t.add("conv_s8.pixel", pixels)
    t.add("conv_s8.pair", pairs)
    rows, columns = _both(s)
    if s.ic % 4:
        inner = sum(n for _, n in rows) * sum(n for _, n in columns)
        t.add("gather_bytes.row", s.kh * pixels)
        t.add("gather_bytes.in", inner)
        t.add("gather_bytes.out", s.kh * s.kw * pixels - inner)
        t.add("gather_bytes.byte_in", inner * s.ic)
        t.add("gather_bytes.byte_out", (s.kh * s.kw * pixels - inner) * s.ic)
        _widen(t, fours, pixels)
    else:
        _gather(t, s, rows, columns)
    blocks = pairs * -(-s.oc // 2)
    t.add("conv_s8.block", blocks)
    t.add("conv_s8.one", (fours & 1) * blocks)
    t.add("conv_s8.two", (fours >> 1 & 1) * blocks)
    t.add("conv_s8.four", (fours >> 2) * blocks)
    t.add("conv_s8.any", (fours >= 4) * blocks)
    if narrow:
        clamp_s8(t, pixels * s.oc)


def _widen(t: Tally, fours: int, times: int) -> None:
    t.add("widen", times)
    _fours(t, "widen", fours, times)


def _gather(t: Tally, s: Geometry, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> None:
    fours, within = s.ic // 4, sum(n for _, n in rows)
    beyond = s.kh * len(rows) - within
    t.add("gather.row", s.kh * s.oh * s.ow)
    t.add("fill", beyond * s.ow)
    t.add("fill.four", beyond * s.ow * fours * s.kw)
    for o, (_, seen) in enumerate(columns):
        left = o * s.sw - s.pl
        if s.dw == 1 and left >= 0 and left + s.kw <= s.iw:
            _widen(t, fours * s.kw, within)
            continue
        t.add("gather.column", s.kw * within)
        t.add("fill", (s.kw - seen) * within)
        t.add("fill.four", (s.kw - seen) * within * fours)
        _widen(t, fours, seen * within)


def _conv_plain(t: Tally, s: Geometry) -> None:
    rows, columns = _both(s)
    pairs, k = -(-s.oc // 2), s.kh * s.kw * s.ic
    t.add("conv_plain.pixel", s.oh * s.ow)
    t.add("conv_plain.pair", s.oh * s.ow * pairs)
    within = sum(n for _, n in rows)
    t.add("conv_plain.row", within * s.ow * pairs)
    inner = 0
    for _, seen in columns:
        inner += within * seen * s.ic
        if s.dw == 1:
            _dots(t, seen * s.ic, within * pairs)
        else:
            _dots(t, s.ic, seen * within * pairs)
    t.add("conv_plain.padding", (s.oh * s.ow * k - inner) * pairs)


def _dots(t: Tally, num: int, times: int) -> None:
    t.add("dots", times)
    _fours(t, "dots", num, times)


def depthwise_s8(t: Tally, s: Geometry, packing: int, narrow: bool) -> None:
    """mh_depthwise_s8."""
    t.add("depthwise_s8_call")
    if packing != _DSP:
        _depthwise_plain(t, s)
        return
    line = 2 * (-(-((s.ow - 1) * s.sw + (s.kw - 1) * s.dw + 2) // 4) * 4)
    span, fit = (s.kh - 1) * s.dh + 1, pack.BAND_BYTES // line
    most = min((fit - span) // s.sh + 1 if fit > span else 1, s.oh)
    line //= 2
    wide = min(max(line - s.pl, 0), s.iw)
    small = s.kh == s.kw == 3 and s.dh == s.dw == 1 and s.sw in (1, 2)
    for first in range(0, s.oh, most):
        rows = min(most, s.oh - first)
        top = first * s.sh - s.pt
        end = top + (rows - 1) * s.sh + span
        height = max(min(end, s.ih) - max(top, 0), 0) if wide else 0
        t.add("band")
        t.add("band.number", (end - top) * line)
        t.add("read_plane", s.ic)
        t.add("read_plane.row", height * s.ic)
        _fours(t, "read_plane", wide, height * s.ic)
        if small:
            two = s.ow // 2 if s.sw == 1 else 0
            t.add("plane_3x3", s.oc)
            t.add("plane_3x3.row", rows * s.oc)
            t.add("plane_3x3.two", two * rows * s.oc)
            t.add("plane_3x3.one", (s.ow - 2 * two) * rows * s.oc)
        else:
            t.add("plane_any", s.oc)
            t.add("plane_any.row", rows * s.oc)
            t.add("plane_any.out", rows * s.ow * s.oc)
            t.add("plane_any.line", rows * s.ow * s.oc * s.kh)
            t.add("plane_any.tap", rows * s.ow * s.oc * s.kh * s.kw)
    if narrow:
        clamp_s8(t, s.oh * s.ow * s.oc)


def _depthwise_plain(t: Tally, s: Geometry) -> None:
    rows, columns = _both(s)
    within, inner = sum(n for _, n in rows), sum(n for _, n in columns)
    t.add("depthwise_plain.pixel", s.oh * s.ow)
    t.add("depthwise_plain.out", s.oh * s.ow * s.oc)
    t.add("depthwise_plain.row", within * s.ow * s.oc)
    t.add("depthwise_plain.tap", within * inner * s.oc)
    t.add("depthwise_plain.side", within * (s.ow * s.kw - inner) * s.oc)
    t.add("depthwise_plain.beyond", (s.oh * s.kh - within) * s.ow * s.kw * s.oc)


def pool_s8(t: Tally, s: Geometry, name: str) -> None:
    """mh_max_pool_s8 or mh_average_pool_s8; `name` says which."""
    rows, columns = _both(s)
    within, inner = sum(n for _, n in rows), sum(n for _, n in columns)
    t.add(f"{name}_s8")
    t.add(f"{name}_s8.place", s.oh * s.ow)
    t.add(f"{name}_s8.out", s.ic * s.oh * s.ow)
    t.add(f"{name}_s8.row", s.ic * within * s.ow)
    t.add(f"{name}_s8.tap", s.ic * within * inner)
    t.add(f"{name}_s8.beyond", s.ic * (within * (s.ow * s.kw - inner) + (s.oh * s.kh - within) * s.ow))


def numbers(t: Tally, name: str, num: int) -> None:
    """A kernel that goes through its numbers one by one: clamp, clamp_back, add, copy, add_s8."""
    t.add(f"{name}_call")
    t.add(name, num)


def turn(t: Tally, name: str, channels: int, places: int) -> None:
    """mh_quantise_f32_s8 or mh_dequantise_s8_f32, which go between CHW and HWC; `name` says which."""
    numbers(t, name, channels * places)
    t.add(f"{name}.channel", channels)


def geometry(net: Net, layer: Layer) -> Geometry:
    """Gives a layer's geometry."""
    source, out = net.values[layer.inputs[0]].shape, net.values[layer.out].shape
    return Geometry(*source, *out, *layer.kernel, *layer.stride, *layer.padding[:2], *layer.dilation)


class Shares(NamedTuple):
    """The shares of each value's numbers, and of its gradient's, that are taken not to be zero."""

    values: dict[int, float]
    gradients: dict[int, float]


def shares(net: Net) -> Shares:
    """Gives what ReLU, taken to stop half of its input, and max pools leave; all else is taken to have no zeros."""
    values, gradients = {0: 1.0}, {net.output: 1.0}
    for layer in net.layers:
        live, taps = values[layer.inputs[0]], math.prod(layer.kernel)
        if layer.clamps or (layer.packed is not None and layer.packed.low > -128):
            live = 0.5
        elif layer.kind == Kind.MAX_POOL:
            live = 1.0 - (1.0 - live) ** taps
        elif layer.kind not in (Kind.RESHAPE, Kind.QUANTISE, Kind.DEQUANTISE):
            live = 1.0
        values[layer.out] = live
    for layer in reversed(net.layers):
        live = gradients.get(layer.out, 1.0)
        if layer.clamps:  # behind a max pool only what wasn't stopped has any
            live = gradients[layer.out] = live if live < 0.5 else 0.5
        for value in layer.inputs:
            if layer.kind == Kind.MAX_POOL:
                gradients[value] = live / math.prod(layer.kernel)
            else:
                gradients[value] = live if layer.kind in (Kind.RESHAPE, Kind.CLAMP) else 1.0
    return Shares(values, gradients)


def _lora_geometry(net: Net, layer: Layer) -> Geometry:
    if layer.kind == Kind.DENSE:
        return Geometry(net.values[layer.inputs[0]].elements, 1, 1, net.values[layer.out].shape[0], 1, 1)
    return geometry(net, layer)


def _rank(net: Net, layer: Layer) -> int:
    return int(net.tensors[layer.weights["lora_a"]].shape[0]) if "lora_a" in layer.weights else 0


def _forward_s8(t: Tally, net: Net, layer: Layer, packing: int) -> None:
    s, num = geometry(net, layer), net.values[layer.out].elements
    narrow = layer.packed is not None and (layer.packed.low > -128 or layer.packed.high < 127)
    t.add("layer_s8")
    if layer.kind == Kind.DENSE:
        dense_s8(t, net.values[layer.inputs[0]].elements, s.oc, packing, narrow)
    elif layer.kind == Kind.CONV:
        conv_s8(t, s, packing, narrow)
    elif layer.kind == Kind.DEPTHWISE:
        depthwise_s8(t, s, packing, narrow)
    elif layer.kind == Kind.MAX_POOL:
        pool_s8(t, s, "max_pool")
    elif layer.kind == Kind.AVERAGE_POOL:
        pool_s8(t, s, "average_pool")
    else:
        numbers(t, "add_s8", num)


def forward(t: Tally, net: Net, layer: Layer, packing: int, share: Shares) -> None:
    """A layer's forward pass."""
    out, source = net.values[layer.out], net.values[layer.inputs[0]]
    if layer.kind in (Kind.QUANTISE, Kind.DEQUANTISE):
        t.add("layer_turn")
        turn(t, layer.kind.name.lower(), out.shape[0], math.prod(out.shape[1:]))
        return
    if out.int8:
        _forward_s8(t, net, layer, packing)
        return
    s, live = geometry(net, layer), share.values[layer.inputs[0]]
    t.add("layer_f32")
    if layer.kind == Kind.DENSE:
        dense_f32(t, source.elements, s.oc, live)
    elif layer.kind == Kind.CONV:
        conv_f32(t, s, live)
    elif layer.kind == Kind.DEPTHWISE:
        depthwise_f32(t, s, live)
    elif layer.kind == Kind.MAX_POOL:
        max_pool_f32(t, s)
    elif layer.kind == Kind.AVERAGE_POOL:
        average_pool_f32(t, s)
    elif layer.kind == Kind.CLAMP:
        numbers(t, "clamp", out.elements)
    elif layer.kind == Kind.ADD:
        numbers(t, "add", out.elements)
    elif layer.kind == Kind.GROUP_NORM:
        group_norm_f32(t, s.ic, s.ih * s.iw, layer.groups)
    if rank := _rank(net, layer):
        t.add("layer_lora")
        lora_f32(t, _lora_geometry(net, layer), rank)
    if layer.clamps and layer.kind != Kind.CLAMP:
        numbers(t, "clamp", out.elements)


def backward(t: Tally, net: Net, layer: Layer, step: Step, plan: Plan, fpu: bool, share: Shares) -> None:
    """A layer's backward pass, with the flags of a plan."""
    out, source = net.values[layer.out], net.values[layer.inputs[0]]
    roles = {role for role, name in layer.weights.items() if name in plan.trained}
    passes, adds = Step.GRAD_INPUT0 in step, Step.ADDS0 in step
    s = geometry(net, layer)
    live = share.gradients[layer.out]
    both = live * share.values[layer.inputs[0]]
    t.add("layer_back")
    if layer.clamps and layer.kind != Kind.CLAMP:
        numbers(t, "clamp_back", out.elements)
    weight, bias = "weight" in roles, "bias" in roles
    if layer.kind == Kind.DENSE:
        dense_params_f32(t, source.elements, s.oc, weight, bias, both)
        if passes:
            dense_input_f32(t, source.elements, s.oc, fpu, live)
    elif layer.kind == Kind.CONV:
        conv_params_f32(t, s, weight, bias, both)
        if passes:
            conv_input_f32(t, s, adds, live)
    elif layer.kind == Kind.DEPTHWISE:
        depthwise_params_f32(t, s, weight, bias, both)
        if passes:
            depthwise_input_f32(t, s, adds, live)
    elif layer.kind == Kind.GROUP_NORM:
        group_norm_grad_f32(t, s.ic, s.ih * s.iw, layer.groups, passes)
    elif layer.kind == Kind.MAX_POOL and passes:
        max_pool_input_f32(t, s)
    elif layer.kind == Kind.AVERAGE_POOL and passes:
        average_pool_input_f32(t, s)
    elif layer.kind == Kind.CLAMP and passes:
        numbers(t, "clamp_back", out.elements)
    elif layer.kind in (Kind.ADD, Kind.RESHAPE):
        for value, wanted in zip(layer.inputs, (Step.GRAD_INPUT0, Step.GRAD_INPUT1), strict=False):
            if wanted in step and plan.grads.get(value) != plan.grads.get(layer.out):
                numbers(t, "copy", out.elements)
    if (rank := _rank(net, layer)) and (passes or roles & {"lora_a", "lora_b"}):
        t.add("layer_lora_back")
        lora_grad_f32(t, _lora_geometry(net, layer), rank, "lora_a" in roles, "lora_b" in roles, passes)


def tallies(
    made: Blob, plan: Plan, packing: int, fpu: bool, *, momentum: bool, decay: bool, start: bool
) -> Iterator[Tally]:
    """Gives what a plan enters, by the fields of `Instructions`."""
    net = made.net
    int8, ahead, back, step = Tally(), Tally(), Tally(), Tally()
    share = shares(net)
    ahead.add("run")
    for layer, flags in zip(net.layers, plan.steps, strict=True):
        ahead.add("place")
        if Step.FORWARD in flags:
            forward(int8 if net.values[layer.out].int8 else ahead, net, layer, packing, share)
    yield int8
    yield ahead
    if plan.kind in (PlanKind.TRAIN, PlanKind.BACKWARD):
        back.add("run_back")
        if plan.kind == PlanKind.TRAIN:
            back.add("row")
            words, last = divmod(net.values[made.stored].bytes, 4)
            back.add("row.word", words)
            back.add("row.byte", last)
            cross_entropy_f32(back, net.values[net.output].elements)
        for layer, flags in zip(net.layers, plan.steps, strict=True):
            back.add("place_back")
            if flags & (Step.GRAD_INPUT0 | Step.GRAD_INPUT1 | Step.GRAD_PARAMS):
                backward(back, net, layer, flags, plan, fpu, share)
        step.add("step")
        for name in made.trained:
            step.add("step.tensor")
            if name in plan.trained:
                sgd_f32(step, net.tensors[name].size, momentum, decay, start)
    yield back
    yield step


def is_known(core: str) -> bool:
    """Tells whether the costs of a core were measured; its name is that of `profiles.Board.core`."""
    return core in _ALIKE


def of(
    made: Blob, plan: Plan, core: str, *, momentum: bool = False, decay: bool = False, start: bool = False
) -> Instructions:
    """Gives what a plan of a blob takes on a core, trained with cross entropy and SGD, by the terms that it has.

    `start` is of a proximal term. The blob must be packed for the core, and `is_known` be true of it.
    """
    group = _ALIKE[core]
    costs = COSTS[group]
    found = tallies(made, plan, footprint.packing(core), group in _FPU, momentum=momentum, decay=decay, start=start)
    return Instructions(*(sum(costs[name] * num for name, num in one.items()) for one in found))


_ALIKE = {
    "Cortex-M0+": "cortex-m0",
    "Cortex-M3": "cortex-m3",
    "Cortex-M4F": "cortex-m4",
    "Cortex-M7": "cortex-m7",
    "Cortex-M33": "cortex-m33",
}
_FPU = ("cortex-m4", "cortex-m7", "cortex-m33")

# measured: by python -m benchmarks.instructions, with arm-none-eabi-gcc 12.2.1
COSTS: dict[str, dict[str, float]] = {
    "cortex-m0": {
        "add": 58.9,
        "add_call": 200.14,
        "add_s8": 23.22,
        "add_s8_call": 27.17,
        "apart_single": 173.53,
        "apart_single.adds": 199.11,
        "apart_single.channel": 20.07,
        "apart_single.row": 18.29,
        "apart_single.tap": 487.73,
        "apart_wide": 159.05,
        "apart_wide.adds": 720.35,
        "apart_wide.channel": 0,
        "apart_wide.row": 0,
        "apart_wide.tap": 1868.34,
        "average_pool": 2156.59,
        "average_pool.channel": 0,
        "average_pool.line": 0,
        "average_pool.out": 555.92,
        "average_pool.row": 29,
        "average_pool.tap": 59.88,
        "average_pool_back": 40.24,
        "average_pool_back.channel": 0,
        "average_pool_back.line": 94.28,
        "average_pool_back.out": 601.07,
        "average_pool_back.row": 26.99,
        "average_pool_back.tap": 54.9,
        "average_pool_back.zero": 0,
        "average_pool_s8": 58.62,
        "average_pool_s8.beyond": 6,
        "average_pool_s8.out": 102.49,
        "average_pool_s8.place": 12.8,
        "average_pool_s8.row": 35.92,
        "average_pool_s8.tap": 17.62,
        "bias": 38.47,
        "bias.place": 59.43,
        "clamp": 82.93,
        "clamp_back": 49.14,
        "clamp_back_call": 3371.77,
        "clamp_call": 0,
        "conv_plain.padding": 12.48,
        "conv_plain.pair": 243.28,
        "conv_plain.pixel": 152.04,
        "conv_plain.row": 24.29,
        "conv_s8_call": 181.21,
        "copy": 9,
        "copy_call": 11,
        "correlate": 153.87,
        "correlate.live": 75.73,
        "cross_entropy": 2582.13,
        "cross_entropy.class": 2920.11,
        "dense.live": 74.48,
        "dense1": 0,
        "dense1.four": 467.67,
        "dense1.rest": 162.56,
        "dense2": 0,
        "dense2.four": 956.19,
        "dense2.rest": 142.95,
        "dense4": 116.15,
        "dense4.four": 1915.4,
        "dense4.rest": 457.8,
        "dense_back.live": 76.07,
        "dense_back1": 0,
        "dense_back1.out": 121.04,
        "dense_back4": 58.58,
        "dense_back4.out": 467.62,
        "dense_back_call": 0,
        "dense_call": 44.69,
        "dense_grad": 75.78,
        "dense_grad.bias": 59.74,
        "dense_grad.four": 476.47,
        "dense_grad.live": 79.58,
        "dense_grad.rest": 99.57,
        "dense_grad_call": 0,
        "dense_plain": 226.87,
        "dense_plain.four": 50.5,
        "dense_plain.rest": 16.54,
        "dense_s8_call": 28.82,
        "depthwise_plain.beyond": 7.59,
        "depthwise_plain.out": 138.72,
        "depthwise_plain.pixel": 158.51,
        "depthwise_plain.row": 50.39,
        "depthwise_plain.side": 8.98,
        "depthwise_plain.tap": 9.55,
        "depthwise_s8_call": 290.17,
        "dequantise": 172.04,
        "dequantise.channel": 20.91,
        "dequantise_call": 53.61,
        "dots": 98.17,
        "dots.four": 50.36,
        "dots.rest": 9.98,
        "four_single": 209.86,
        "four_single.adds": 198.25,
        "four_single.channel": 16.35,
        "four_single.row": 18.75,
        "four_single.tap": 486.42,
        "four_spread": 184.8,
        "four_spread.adds": 841.59,
        "four_spread.channel": 28.9,
        "four_spread.row": 31.63,
        "four_spread.tap": 1891.79,
        "four_wide": 88.44,
        "four_wide.adds": 999,
        "four_wide.channel": 0,
        "four_wide.row": 35.43,
        "four_wide.tap": 1898.98,
        "group_norm": 0,
        "group_norm.channel": 0,
        "group_norm.group": 1769.87,
        "group_norm.place": 729.9,
        "group_norm_back": 701.07,
        "group_norm_back.channel": 0,
        "group_norm_back.group": 0,
        "group_norm_back.place": 1148.59,
        "group_norm_pass.channel": 1641.27,
        "group_norm_pass.group": 1917.11,
        "group_norm_pass.place": 602.56,
        "inside": 42.16,
        "inside_dropped": 5.16,
        "layer_back": 0,
        "layer_f32": 263.52,
        "layer_lora": 0,
        "layer_lora_back": 0,
        "layer_s8": 163.77,
        "layer_turn": 216.89,
        "lora_back": 0,
        "lora_back.mac": 158.12,
        "lora_back.sum": 236.64,
        "lora_call": 0,
        "lora_down": 63.97,
        "lora_down.mac": 159.97,
        "lora_down.sum": 37.56,
        "lora_grad_a": 0,
        "lora_grad_a.mac": 193.42,
        "lora_grad_a.sum": 43.84,
        "lora_grad_b": 214.01,
        "lora_grad_b.mac": 180.13,
        "lora_grad_b.sum": 97.2,
        "lora_pass": 89.29,
        "lora_pass.mac": 184.01,
        "lora_pass.sum": 106.03,
        "lora_up": 34.93,
        "lora_up.mac": 198.43,
        "lora_up.sum": 196.44,
        "max_pool": 5.19,
        "max_pool.channel": 35.25,
        "max_pool.line": 87.24,
        "max_pool.out": 29.77,
        "max_pool.row": 11.31,
        "max_pool.tap": 47.65,
        "max_pool_back": 0,
        "max_pool_back.channel": 13.21,
        "max_pool_back.line": 121,
        "max_pool_back.out": 95.53,
        "max_pool_back.row": 2.65,
        "max_pool_back.tap": 50.02,
        "max_pool_back.zero": 0.64,
        "max_pool_s8": 40,
        "max_pool_s8.beyond": 7.53,
        "max_pool_s8.out": 39.65,
        "max_pool_s8.place": 13.68,
        "max_pool_s8.row": 27.17,
        "max_pool_s8.tap": 18.03,
        "one_single": 148.78,
        "one_single.adds": 55.1,
        "one_single.channel": 28.48,
        "one_single.row": 25.1,
        "one_single.tap": 119.65,
        "one_spread": 177.14,
        "one_spread.adds": 215.3,
        "one_spread.channel": 18.34,
        "one_spread.row": 19.45,
        "one_spread.tap": 477.51,
        "outputs": 77.25,
        "params": 79,
        "params.live": 79.17,
        "params_call": 196.65,
        "place": 0,
        "place_back": 0,
        "quantise": 257.72,
        "quantise.channel": 3.29,
        "quantise_call": 600.02,
        "row": 0,
        "row.byte": 419.42,
        "row.word": 0,
        "run": 88.8,
        "run_back": 0,
        "sgd": 50.11,
        "sgd.decay": 181.34,
        "sgd.four": 801.12,
        "sgd.momentum": 193.47,
        "sgd.number": 308.54,
        "sgd.rest": 221.55,
        "sgd.start": 265.65,
        "step": 0,
        "step.tensor": 0,
        "tap_four_apart": 448.53,
        "tap_four_apart.column": 475.45,
        "tap_four_apart.row": 16,
        "tap_four_by_four": 1027.39,
        "tap_four_by_four.column": 1859.29,
        "tap_four_by_four.row": 24.17,
        "tap_four_by_one": 475.51,
        "tap_four_by_one.column": 477.24,
        "tap_four_by_one.row": 12.08,
        "tap_one_by_one": 241.62,
        "tap_one_by_one.column": 117.37,
        "tap_one_by_one.row": 30.52,
        "walk_back_column": 139.71,
        "walk_back_row": 171.82,
        "walk_column": 104.33,
        "walk_row": 104.33,
        "walk_tried": 35.99,
    },
    "cortex-m3": {
        "add": 36.53,
        "add_call": 46.77,
        "add_s8": 19,
        "add_s8_call": 16,
        "apart_single": 111.37,
        "apart_single.adds": 112.58,
        "apart_single.channel": 2.4,
        "apart_single.row": 12.66,
        "apart_single.tap": 191.01,
        "apart_wide": 2.7,
        "apart_wide.adds": 252.44,
        "apart_wide.channel": 21.44,
        "apart_wide.row": 0,
        "apart_wide.tap": 768.37,
        "average_pool": 2614.15,
        "average_pool.channel": 0,
        "average_pool.line": 3.39,
        "average_pool.out": 152.32,
        "average_pool.row": 4.59,
        "average_pool.tap": 43.06,
        "average_pool_back": 0,
        "average_pool_back.channel": 0,
        "average_pool_back.line": 0,
        "average_pool_back.out": 210.79,
        "average_pool_back.row": 20.06,
        "average_pool_back.tap": 33.24,
        "average_pool_back.zero": 0,
        "average_pool_s8": 31.36,
        "average_pool_s8.beyond": 7.28,
        "average_pool_s8.out": 38.83,
        "average_pool_s8.place": 15.05,
        "average_pool_s8.row": 19.13,
        "average_pool_s8.tap": 13.99,
        "bias": 10.08,
        "bias.place": 42.46,
        "clamp": 84.34,
        "clamp_back": 51,
        "clamp_back_call": 2998.81,
        "clamp_call": 0.38,
        "conv_plain.padding": 8.41,
        "conv_plain.pair": 112.44,
        "conv_plain.pixel": 116.52,
        "conv_plain.row": 17.82,
        "conv_s8_call": 146.52,
        "copy": 8,
        "copy_call": 9,
        "correlate": 120.19,
        "correlate.live": 43.75,
        "cross_entropy": 975.88,
        "cross_entropy.class": 1347.97,
        "dense.live": 45.31,
        "dense1": 42.42,
        "dense1.four": 181.16,
        "dense1.rest": 68.98,
        "dense2": 0,
        "dense2.four": 372.4,
        "dense2.rest": 81.17,
        "dense4": 75.05,
        "dense4.four": 729.8,
        "dense4.rest": 183.95,
        "dense_back.live": 46.05,
        "dense_back1": 0,
        "dense_back1.out": 46.94,
        "dense_back4": 30.43,
        "dense_back4.out": 173.4,
        "dense_back_call": 0,
        "dense_call": 36.22,
        "dense_grad": 48.28,
        "dense_grad.bias": 38.11,
        "dense_grad.four": 179.78,
        "dense_grad.live": 46.92,
        "dense_grad.rest": 45.64,
        "dense_grad_call": 0,
        "dense_plain": 87.38,
        "dense_plain.four": 27.42,
        "dense_plain.rest": 11.08,
        "dense_s8_call": 15.54,
        "depthwise_plain.beyond": 5.4,
        "depthwise_plain.out": 66.71,
        "depthwise_plain.pixel": 129.9,
        "depthwise_plain.row": 23.72,
        "depthwise_plain.side": 3.74,
        "depthwise_plain.tap": 5.67,
        "depthwise_s8_call": 188.36,
        "dequantise": 65.4,
        "dequantise.channel": 8.99,
        "dequantise_call": 3.3,
        "dots": 57.5,
        "dots.four": 27.3,
        "dots.rest": 5.19,
        "four_single": 126.59,
        "four_single.adds": 100.11,
        "four_single.channel": 4.53,
        "four_single.row": 14.9,
        "four_single.tap": 192.09,
        "four_spread": 152.27,
        "four_spread.adds": 407.93,
        "four_spread.channel": 7.17,
        "four_spread.row": 10.52,
        "four_spread.tap": 757.05,
        "four_wide": 0,
        "four_wide.adds": 516.17,
        "four_wide.channel": 0,
        "four_wide.row": 0,
        "four_wide.tap": 765.5,
        "group_norm": 0,
        "group_norm.channel": 0,
        "group_norm.group": 900.84,
        "group_norm.place": 383.64,
        "group_norm_back": 0,
        "group_norm_back.channel": 0,
        "group_norm_back.group": 0,
        "group_norm_back.place": 590.08,
        "group_norm_pass.channel": 895.74,
        "group_norm_pass.group": 1332.32,
        "group_norm_pass.place": 238.1,
        "inside": 34.53,
        "inside_dropped": 1.35,
        "layer_back": 0,
        "layer_f32": 3.58,
        "layer_lora": 80.18,
        "layer_lora_back": 0,
        "layer_s8": 143.85,
        "layer_turn": 280.37,
        "lora_back": 0,
        "lora_back.mac": 72.47,
        "lora_back.sum": 94.64,
        "lora_call": 0,
        "lora_down": 54.34,
        "lora_down.mac": 72.04,
        "lora_down.sum": 0,
        "lora_grad_a": 0,
        "lora_grad_a.mac": 77.38,
        "lora_grad_a.sum": 33.37,
        "lora_grad_b": 121.21,
        "lora_grad_b.mac": 78.62,
        "lora_grad_b.sum": 25.94,
        "lora_pass": 59.04,
        "lora_pass.mac": 86.33,
        "lora_pass.sum": 44.19,
        "lora_up": 20.13,
        "lora_up.mac": 94.63,
        "lora_up.sum": 48.78,
        "max_pool": 19.04,
        "max_pool.channel": 41.65,
        "max_pool.line": 46.09,
        "max_pool.out": 14.65,
        "max_pool.row": 16.08,
        "max_pool.tap": 47.36,
        "max_pool_back": 0,
        "max_pool_back.channel": 0,
        "max_pool_back.line": 89.91,
        "max_pool_back.out": 58.66,
        "max_pool_back.row": 7.24,
        "max_pool_back.tap": 50.2,
        "max_pool_back.zero": 0.47,
        "max_pool_s8": 27.96,
        "max_pool_s8.beyond": 7.49,
        "max_pool_s8.out": 30.9,
        "max_pool_s8.place": 12.45,
        "max_pool_s8.row": 18.05,
        "max_pool_s8.tap": 15,
        "one_single": 76.99,
        "one_single.adds": 50.25,
        "one_single.channel": 14.42,
        "one_single.row": 15.55,
        "one_single.tap": 49.25,
        "one_spread": 86.43,
        "one_spread.adds": 75.28,
        "one_spread.channel": 0,
        "one_spread.row": 21.26,
        "one_spread.tap": 191.98,
        "outputs": 38.9,
        "params": 33.14,
        "params.live": 46.78,
        "params_call": 162.69,
        "place": 0,
        "place_back": 0,
        "quantise": 169.07,
        "quantise.channel": 4.42,
        "quantise_call": 251.08,
        "row": 0,
        "row.byte": 319.45,
        "row.word": 0,
        "run": 77.74,
        "run_back": 0,
        "sgd": 72.38,
        "sgd.decay": 88.2,
        "sgd.four": 378.92,
        "sgd.momentum": 91.69,
        "sgd.number": 208.14,
        "sgd.rest": 113.63,
        "sgd.start": 145.32,
        "step": 0,
        "step.tensor": 0,
        "tap_four_apart": 235.22,
        "tap_four_apart.column": 185.61,
        "tap_four_apart.row": 19.17,
        "tap_four_by_four": 527.42,
        "tap_four_by_four.column": 747.29,
        "tap_four_by_four.row": 22.53,
        "tap_four_by_one": 262.13,
        "tap_four_by_one.column": 187.09,
        "tap_four_by_one.row": 12.15,
        "tap_one_by_one": 129.1,
        "tap_one_by_one.column": 46.85,
        "tap_one_by_one.row": 13.72,
        "walk_back_column": 36.65,
        "walk_back_row": 0,
        "walk_column": 74.76,
        "walk_row": 74.76,
        "walk_tried": 20.22,
    },
    "cortex-m33": {
        "add": 7,
        "add_call": 4,
        "add_s8": 19,
        "add_s8_call": 16,
        "apart_single": 133.17,
        "apart_single.adds": 11.36,
        "apart_single.channel": 7.59,
        "apart_single.row": 11.62,
        "apart_single.tap": 26.9,
        "apart_wide": 136.1,
        "apart_wide.adds": 24.5,
        "apart_wide.channel": 46.59,
        "apart_wide.row": 9.96,
        "apart_wide.tap": 66.17,
        "average_pool": 0,
        "average_pool.channel": 45.04,
        "average_pool.line": 49.63,
        "average_pool.out": 45.03,
        "average_pool.row": 7.09,
        "average_pool.tap": 6.04,
        "average_pool_back": 25.37,
        "average_pool_back.channel": 28.59,
        "average_pool_back.line": 66.11,
        "average_pool_back.out": 44.49,
        "average_pool_back.row": 7.53,
        "average_pool_back.tap": 7.11,
        "average_pool_back.zero": 2.87,
        "average_pool_s8": 31.36,
        "average_pool_s8.beyond": 7.28,
        "average_pool_s8.out": 38.83,
        "average_pool_s8.place": 15.05,
        "average_pool_s8.row": 19.13,
        "average_pool_s8.tap": 13.99,
        "band": 96.49,
        "band.number": 3.29,
        "bias": 11,
        "bias.place": 4,
        "clamp": 12,
        "clamp_back": 12.06,
        "clamp_back_call": 181.58,
        "clamp_call": 4,
        "clamp_s8": 14.1,
        "clamp_s8.four": 9.98,
        "clamp_s8.rest": 4.92,
        "conv_s8.any": 0,
        "conv_s8.block": 55,
        "conv_s8.four": 62.03,
        "conv_s8.one": 15.11,
        "conv_s8.pair": 0,
        "conv_s8.pixel": 79.85,
        "conv_s8.two": 31.19,
        "conv_s8_call": 72.97,
        "copy": 6,
        "copy_call": 4,
        "correlate": 71.96,
        "correlate.live": 0,
        "cross_entropy": 109,
        "cross_entropy.class": 90,
        "dense.live": 0,
        "dense1": 21.01,
        "dense1.four": 22.47,
        "dense1.rest": 9.19,
        "dense2": 0,
        "dense2.four": 35.68,
        "dense2.rest": 12.43,
        "dense4": 45.71,
        "dense4.four": 39.53,
        "dense4.rest": 18.3,
        "dense_back.live": 0,
        "dense_back1": 13.14,
        "dense_back1.out": 6.82,
        "dense_back4": 21.12,
        "dense_back4.out": 16.11,
        "dense_back8": 127.34,
        "dense_back8.out": 21.02,
        "dense_back_call": 24.57,
        "dense_call": 65,
        "dense_grad": 18.97,
        "dense_grad.bias": 5.99,
        "dense_grad.four": 12.93,
        "dense_grad.live": 0,
        "dense_grad.rest": 8.28,
        "dense_grad_call": 14.08,
        "dense_s8": 66.2,
        "dense_s8.byte": 5.97,
        "dense_s8.eight": 43.08,
        "dense_s8.rest": 37.32,
        "dense_s8_call": 26.73,
        "depthwise_s8_call": 96.49,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 12.23,
        "fill.four": 3.86,
        "four_single": 117.84,
        "four_single.adds": 12.96,
        "four_single.channel": 8.79,
        "four_single.row": 11.62,
        "four_single.tap": 20.85,
        "four_spread": 172,
        "four_spread.adds": 33.34,
        "four_spread.channel": 13.17,
        "four_spread.row": 13.4,
        "four_spread.tap": 50.57,
        "four_wide": 142.86,
        "four_wide.adds": 26.54,
        "four_wide.channel": 23.64,
        "four_wide.row": 9.21,
        "four_wide.tap": 48.85,
        "gather.column": 7.06,
        "gather.row": 27.98,
        "gather_bytes.byte_in": 7.95,
        "gather_bytes.byte_out": 4.24,
        "gather_bytes.in": 18.09,
        "gather_bytes.out": 22.14,
        "gather_bytes.row": 9.24,
        "group_norm": 28,
        "group_norm.channel": 13,
        "group_norm.group": 48,
        "group_norm.place": 22,
        "group_norm_back": 29,
        "group_norm_back.channel": 25,
        "group_norm_back.group": 62,
        "group_norm_back.place": 27,
        "group_norm_pass.channel": 14,
        "group_norm_pass.group": 5,
        "group_norm_pass.place": 16,
        "inside": 16.56,
        "inside_dropped": 7.28,
        "layer_back": 128.2,
        "layer_f32": 143.23,
        "layer_lora": 114.84,
        "layer_lora_back": 156.39,
        "layer_s8": 123.63,
        "layer_turn": 48.05,
        "lora_back": 13.55,
        "lora_back.mac": 8.47,
        "lora_back.sum": 12.77,
        "lora_call": 51.4,
        "lora_down": 23.33,
        "lora_down.mac": 7,
        "lora_down.sum": 10.81,
        "lora_grad_a": 27.19,
        "lora_grad_a.mac": 11.96,
        "lora_grad_a.sum": 15.27,
        "lora_grad_b": 19.09,
        "lora_grad_b.mac": 6.32,
        "lora_grad_b.sum": 10.19,
        "lora_pass": 15.16,
        "lora_pass.mac": 8.99,
        "lora_pass.sum": 18.08,
        "lora_up": 11.96,
        "lora_up.mac": 7.02,
        "lora_up.sum": 10.95,
        "max_pool": 17.52,
        "max_pool.channel": 35.6,
        "max_pool.line": 51.98,
        "max_pool.out": 47.35,
        "max_pool.row": 8.11,
        "max_pool.tap": 13.26,
        "max_pool_back": 14.34,
        "max_pool_back.channel": 10.34,
        "max_pool_back.line": 91.73,
        "max_pool_back.out": 48.42,
        "max_pool_back.row": 3.48,
        "max_pool_back.tap": 14.71,
        "max_pool_back.zero": 1.61,
        "max_pool_s8": 27.96,
        "max_pool_s8.beyond": 7.49,
        "max_pool_s8.out": 30.9,
        "max_pool_s8.place": 12.45,
        "max_pool_s8.row": 18.05,
        "max_pool_s8.tap": 15,
        "one_single": 94.39,
        "one_single.adds": 2.36,
        "one_single.channel": 11.18,
        "one_single.row": 8.67,
        "one_single.tap": 8.16,
        "one_spread": 110.36,
        "one_spread.adds": 14.36,
        "one_spread.channel": 12.96,
        "one_spread.row": 10.75,
        "one_spread.tap": 20.08,
        "outputs": 78.82,
        "params": 114.89,
        "params.live": 0,
        "params_call": 24.2,
        "place": 14.4,
        "place_back": 9.6,
        "plane_3x3": 86.77,
        "plane_3x3.one": 18.19,
        "plane_3x3.row": 46.72,
        "plane_3x3.two": 38.31,
        "plane_any": 41.23,
        "plane_any.line": 11.21,
        "plane_any.out": 31.52,
        "plane_any.row": 22.44,
        "plane_any.tap": 5.98,
        "quantise": 28,
        "quantise.channel": 12,
        "quantise_call": 20,
        "read_plane": 53.45,
        "read_plane.four": 20.29,
        "read_plane.rest": 5.83,
        "read_plane.row": 16.56,
        "row": 166.82,
        "row.byte": 13.14,
        "row.word": 5.57,
        "run": 35.6,
        "run_back": 166.82,
        "sgd": 12.91,
        "sgd.decay": 0.01,
        "sgd.four": 13.04,
        "sgd.momentum": 0,
        "sgd.number": 27.93,
        "sgd.rest": 13.21,
        "sgd.start": 0.05,
        "step": 0,
        "step.tensor": 103.78,
        "tap_four_apart": 128.8,
        "tap_four_apart.column": 22.1,
        "tap_four_apart.row": 18.33,
        "tap_four_by_four": 204.03,
        "tap_four_by_four.column": 46.25,
        "tap_four_by_four.row": 19.88,
        "tap_four_by_one": 122.53,
        "tap_four_by_one.column": 15.93,
        "tap_four_by_one.row": 12.97,
        "tap_one_by_one": 88.09,
        "tap_one_by_one.column": 7.07,
        "tap_one_by_one.row": 8.33,
        "walk_back_column": 59.19,
        "walk_back_row": 53.1,
        "walk_column": 41.5,
        "walk_row": 41.5,
        "walk_tried": 7.42,
        "widen": 14.42,
        "widen.four": 25.93,
        "widen.rest": 8.61,
    },
    "cortex-m4": {
        "add": 7,
        "add_call": 4,
        "add_s8": 21,
        "add_s8_call": 21,
        "apart_single": 131.25,
        "apart_single.adds": 11.59,
        "apart_single.channel": 7.83,
        "apart_single.row": 11.55,
        "apart_single.tap": 26.88,
        "apart_wide": 134.15,
        "apart_wide.adds": 24.41,
        "apart_wide.channel": 46.09,
        "apart_wide.row": 10.17,
        "apart_wide.tap": 62.15,
        "average_pool": 0,
        "average_pool.channel": 45.04,
        "average_pool.line": 49.63,
        "average_pool.out": 45.03,
        "average_pool.row": 7.09,
        "average_pool.tap": 6.04,
        "average_pool_back": 24.4,
        "average_pool_back.channel": 25.61,
        "average_pool_back.line": 65.06,
        "average_pool_back.out": 44.51,
        "average_pool_back.row": 7.52,
        "average_pool_back.tap": 7.11,
        "average_pool_back.zero": 2.87,
        "average_pool_s8": 31.25,
        "average_pool_s8.beyond": 8.15,
        "average_pool_s8.out": 38.79,
        "average_pool_s8.place": 15.46,
        "average_pool_s8.row": 21.05,
        "average_pool_s8.tap": 13.99,
        "band": 97.88,
        "band.number": 3.32,
        "bias": 11,
        "bias.place": 4,
        "clamp": 13,
        "clamp_back": 12.06,
        "clamp_back_call": 181.58,
        "clamp_call": 4,
        "clamp_s8": 12.8,
        "clamp_s8.four": 10.03,
        "clamp_s8.rest": 5.31,
        "conv_s8.any": 0,
        "conv_s8.block": 54.97,
        "conv_s8.four": 62.02,
        "conv_s8.one": 15.2,
        "conv_s8.pair": 2.41,
        "conv_s8.pixel": 79.21,
        "conv_s8.two": 31.25,
        "conv_s8_call": 72.89,
        "copy": 6,
        "copy_call": 4,
        "correlate": 72.56,
        "correlate.live": 0,
        "cross_entropy": 106.7,
        "cross_entropy.class": 89.98,
        "dense.live": 0,
        "dense1": 20.99,
        "dense1.four": 22.48,
        "dense1.rest": 9.17,
        "dense2": 0,
        "dense2.four": 35.7,
        "dense2.rest": 12.32,
        "dense4": 45.72,
        "dense4.four": 39.52,
        "dense4.rest": 18.31,
        "dense_back.live": 0,
        "dense_back1": 13.14,
        "dense_back1.out": 6.82,
        "dense_back4": 20.12,
        "dense_back4.out": 16.11,
        "dense_back8": 127.34,
        "dense_back8.out": 21.02,
        "dense_back_call": 25.57,
        "dense_call": 64.01,
        "dense_grad": 19.08,
        "dense_grad.bias": 5.99,
        "dense_grad.four": 12.93,
        "dense_grad.live": 0,
        "dense_grad.rest": 8.27,
        "dense_grad_call": 15.08,
        "dense_s8": 66.14,
        "dense_s8.byte": 5.97,
        "dense_s8.eight": 43.08,
        "dense_s8.rest": 37.33,
        "dense_s8_call": 26.04,
        "depthwise_s8_call": 97.88,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 11.69,
        "fill.four": 3.84,
        "four_single": 115.77,
        "four_single.adds": 12.91,
        "four_single.channel": 8.78,
        "four_single.row": 11.63,
        "four_single.tap": 20.85,
        "four_spread": 174.83,
        "four_spread.adds": 33.38,
        "four_spread.channel": 13.17,
        "four_spread.row": 13.41,
        "four_spread.tap": 50.57,
        "four_wide": 140.85,
        "four_wide.adds": 26.55,
        "four_wide.channel": 23.6,
        "four_wide.row": 7.22,
        "four_wide.tap": 46.86,
        "gather.column": 7.67,
        "gather.row": 28.98,
        "gather_bytes.byte_in": 7.94,
        "gather_bytes.byte_out": 4.24,
        "gather_bytes.in": 18,
        "gather_bytes.out": 22.36,
        "gather_bytes.row": 8.98,
        "group_norm": 24,
        "group_norm.channel": 13,
        "group_norm.group": 48,
        "group_norm.place": 22,
        "group_norm_back": 27,
        "group_norm_back.channel": 25,
        "group_norm_back.group": 62,
        "group_norm_back.place": 27,
        "group_norm_pass.channel": 14,
        "group_norm_pass.group": 5,
        "group_norm_pass.place": 16,
        "inside": 16.62,
        "inside_dropped": 7.27,
        "layer_back": 129.6,
        "layer_f32": 144.97,
        "layer_lora": 116.31,
        "layer_lora_back": 154.24,
        "layer_s8": 123.33,
        "layer_turn": 47.47,
        "lora_back": 13.21,
        "lora_back.mac": 8.48,
        "lora_back.sum": 12.69,
        "lora_call": 50.38,
        "lora_down": 23.32,
        "lora_down.mac": 7,
        "lora_down.sum": 10.82,
        "lora_grad_a": 27.17,
        "lora_grad_a.mac": 11.96,
        "lora_grad_a.sum": 15.27,
        "lora_grad_b": 18.93,
        "lora_grad_b.mac": 6.32,
        "lora_grad_b.sum": 10.22,
        "lora_pass": 15.18,
        "lora_pass.mac": 9,
        "lora_pass.sum": 18.08,
        "lora_up": 11.96,
        "lora_up.mac": 7.02,
        "lora_up.sum": 10.96,
        "max_pool": 18.5,
        "max_pool.channel": 35.5,
        "max_pool.line": 50.1,
        "max_pool.out": 45.31,
        "max_pool.row": 8.11,
        "max_pool.tap": 13.26,
        "max_pool_back": 12.93,
        "max_pool_back.channel": 10.19,
        "max_pool_back.line": 90.13,
        "max_pool_back.out": 44.37,
        "max_pool_back.row": 3.42,
        "max_pool_back.tap": 14.74,
        "max_pool_back.zero": 1.59,
        "max_pool_s8": 27.73,
        "max_pool_s8.beyond": 8.4,
        "max_pool_s8.out": 32.92,
        "max_pool_s8.place": 13.27,
        "max_pool_s8.row": 21,
        "max_pool_s8.tap": 15,
        "one_single": 93.35,
        "one_single.adds": 2.35,
        "one_single.channel": 11.16,
        "one_single.row": 8.67,
        "one_single.tap": 8.16,
        "one_spread": 109.35,
        "one_spread.adds": 14.26,
        "one_spread.channel": 12.94,
        "one_spread.row": 10.75,
        "one_spread.tap": 20.08,
        "outputs": 78.49,
        "params": 115.3,
        "params.live": 0,
        "params_call": 25.19,
        "place": 14.39,
        "place_back": 9.57,
        "plane_3x3": 84.15,
        "plane_3x3.one": 17.68,
        "plane_3x3.row": 50.63,
        "plane_3x3.two": 37.82,
        "plane_any": 41.17,
        "plane_any.line": 11.26,
        "plane_any.out": 29.45,
        "plane_any.row": 22.51,
        "plane_any.tap": 5.98,
        "quantise": 29,
        "quantise.channel": 11,
        "quantise_call": 20,
        "read_plane": 60.23,
        "read_plane.four": 21.1,
        "read_plane.rest": 5.41,
        "read_plane.row": 17.12,
        "row": 166.87,
        "row.byte": 13.2,
        "row.word": 5.56,
        "run": 35.77,
        "run_back": 166.87,
        "sgd": 12.91,
        "sgd.decay": 0.01,
        "sgd.four": 13.04,
        "sgd.momentum": 0,
        "sgd.number": 27.93,
        "sgd.rest": 13.21,
        "sgd.start": 0.05,
        "step": 0,
        "step.tensor": 103.06,
        "tap_four_apart": 131.99,
        "tap_four_apart.column": 22.1,
        "tap_four_apart.row": 18.31,
        "tap_four_by_four": 200.96,
        "tap_four_by_four.column": 46.25,
        "tap_four_by_four.row": 19.88,
        "tap_four_by_one": 124.59,
        "tap_four_by_one.column": 15.93,
        "tap_four_by_one.row": 12.97,
        "tap_one_by_one": 89.09,
        "tap_one_by_one.column": 7.07,
        "tap_one_by_one.row": 8.34,
        "walk_back_column": 59.8,
        "walk_back_row": 52.63,
        "walk_column": 41.53,
        "walk_row": 41.53,
        "walk_tried": 6.71,
        "widen": 13.52,
        "widen.four": 25.96,
        "widen.rest": 8.61,
    },
    "cortex-m7": {
        "add": 7,
        "add_call": 4,
        "add_s8": 21,
        "add_s8_call": 21,
        "apart_single": 129.47,
        "apart_single.adds": 10.87,
        "apart_single.channel": 8.25,
        "apart_single.row": 11.69,
        "apart_single.tap": 26.76,
        "apart_wide": 131.46,
        "apart_wide.adds": 24.96,
        "apart_wide.channel": 45.51,
        "apart_wide.row": 10.55,
        "apart_wide.tap": 62.23,
        "average_pool": 0,
        "average_pool.channel": 45.04,
        "average_pool.line": 49.63,
        "average_pool.out": 45.03,
        "average_pool.row": 7.09,
        "average_pool.tap": 6.04,
        "average_pool_back": 26.3,
        "average_pool_back.channel": 25.61,
        "average_pool_back.line": 65.16,
        "average_pool_back.out": 44.51,
        "average_pool_back.row": 7.52,
        "average_pool_back.tap": 7.11,
        "average_pool_back.zero": 3.86,
        "average_pool_s8": 34.11,
        "average_pool_s8.beyond": 7.93,
        "average_pool_s8.out": 41.25,
        "average_pool_s8.place": 13.5,
        "average_pool_s8.row": 21.22,
        "average_pool_s8.tap": 13.96,
        "band": 93.18,
        "band.number": 3.26,
        "bias": 11,
        "bias.place": 4,
        "clamp": 12,
        "clamp_back": 12.06,
        "clamp_back_call": 181.58,
        "clamp_call": 4,
        "clamp_s8": 15.06,
        "clamp_s8.four": 9.93,
        "clamp_s8.rest": 4.53,
        "conv_s8.any": 0,
        "conv_s8.block": 55.04,
        "conv_s8.four": 62.04,
        "conv_s8.one": 14.98,
        "conv_s8.pair": 0,
        "conv_s8.pixel": 81.45,
        "conv_s8.two": 31.06,
        "conv_s8_call": 77.66,
        "copy": 6,
        "copy_call": 4,
        "correlate": 72.08,
        "correlate.live": 0,
        "cross_entropy": 106.7,
        "cross_entropy.class": 92.98,
        "dense.live": 0,
        "dense1": 21.02,
        "dense1.four": 22.47,
        "dense1.rest": 9.21,
        "dense2": 0,
        "dense2.four": 35.65,
        "dense2.rest": 12.54,
        "dense4": 45.69,
        "dense4.four": 39.53,
        "dense4.rest": 18.29,
        "dense_back.live": 0,
        "dense_back1": 13.16,
        "dense_back1.out": 6.82,
        "dense_back4": 27.14,
        "dense_back4.out": 16.1,
        "dense_back8": 127.34,
        "dense_back8.out": 21.02,
        "dense_back_call": 22.57,
        "dense_call": 65.02,
        "dense_grad": 19.61,
        "dense_grad.bias": 6.99,
        "dense_grad.four": 12.92,
        "dense_grad.live": 0,
        "dense_grad.rest": 8.23,
        "dense_grad_call": 17.13,
        "dense_s8": 66.23,
        "dense_s8.byte": 5.97,
        "dense_s8.eight": 43.08,
        "dense_s8.rest": 37.33,
        "dense_s8_call": 27.51,
        "depthwise_s8_call": 93.18,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 7.41,
        "fill.four": 3.89,
        "four_single": 114.44,
        "four_single.adds": 12.7,
        "four_single.channel": 9.06,
        "four_single.row": 11.6,
        "four_single.tap": 20.8,
        "four_spread": 170.98,
        "four_spread.adds": 33.56,
        "four_spread.channel": 13.18,
        "four_spread.row": 13.36,
        "four_spread.tap": 50.62,
        "four_wide": 140.36,
        "four_wide.adds": 25.71,
        "four_wide.channel": 23.92,
        "four_wide.row": 7.11,
        "four_wide.tap": 46.86,
        "gather.column": 12.16,
        "gather.row": 30.6,
        "gather_bytes.byte_in": 7.95,
        "gather_bytes.byte_out": 4.24,
        "gather_bytes.in": 18.27,
        "gather_bytes.out": 21.67,
        "gather_bytes.row": 9.66,
        "group_norm": 24,
        "group_norm.channel": 13,
        "group_norm.group": 48,
        "group_norm.place": 22,
        "group_norm_back": 28,
        "group_norm_back.channel": 25,
        "group_norm_back.group": 62,
        "group_norm_back.place": 27,
        "group_norm_pass.channel": 14,
        "group_norm_pass.group": 5,
        "group_norm_pass.place": 16,
        "inside": 26.53,
        "inside_dropped": 9.01,
        "layer_back": 129.17,
        "layer_f32": 141.93,
        "layer_lora": 114.86,
        "layer_lora_back": 146.09,
        "layer_s8": 123.79,
        "layer_turn": 48.03,
        "lora_back": 14.32,
        "lora_back.mac": 8.51,
        "lora_back.sum": 12.45,
        "lora_call": 51.34,
        "lora_down": 23.29,
        "lora_down.mac": 7,
        "lora_down.sum": 10.83,
        "lora_grad_a": 28.03,
        "lora_grad_a.mac": 11.96,
        "lora_grad_a.sum": 15.24,
        "lora_grad_b": 17.42,
        "lora_grad_b.mac": 6.31,
        "lora_grad_b.sum": 10.32,
        "lora_pass": 15.22,
        "lora_pass.mac": 9,
        "lora_pass.sum": 18.06,
        "lora_up": 11.97,
        "lora_up.mac": 7.01,
        "lora_up.sum": 10.96,
        "max_pool": 18.47,
        "max_pool.channel": 35.43,
        "max_pool.line": 50.21,
        "max_pool.out": 43.26,
        "max_pool.row": 8.11,
        "max_pool.tap": 13.26,
        "max_pool_back": 12.29,
        "max_pool_back.channel": 10.24,
        "max_pool_back.line": 90.49,
        "max_pool_back.out": 44.36,
        "max_pool_back.row": 3.36,
        "max_pool_back.tap": 14.76,
        "max_pool_back.zero": 2.56,
        "max_pool_s8": 27.6,
        "max_pool_s8.beyond": 8.39,
        "max_pool_s8.out": 32.94,
        "max_pool_s8.place": 11.19,
        "max_pool_s8.row": 20,
        "max_pool_s8.tap": 15,
        "one_single": 93.94,
        "one_single.adds": 1.67,
        "one_single.channel": 11.19,
        "one_single.row": 8.74,
        "one_single.tap": 8.16,
        "one_spread": 109.77,
        "one_spread.adds": 14.78,
        "one_spread.channel": 12.51,
        "one_spread.row": 11.02,
        "one_spread.tap": 20,
        "outputs": 78.98,
        "params": 114.03,
        "params.live": 0,
        "params_call": 24.17,
        "place": 14.39,
        "place_back": 9.57,
        "plane_3x3": 89.03,
        "plane_3x3.one": 18.58,
        "plane_3x3.row": 44.78,
        "plane_3x3.two": 38.68,
        "plane_any": 39.02,
        "plane_any.line": 11.17,
        "plane_any.out": 29.59,
        "plane_any.row": 22.46,
        "plane_any.tap": 5.98,
        "quantise": 27,
        "quantise.channel": 14,
        "quantise_call": 20,
        "read_plane": 58.96,
        "read_plane.four": 19.67,
        "read_plane.rest": 6.09,
        "read_plane.row": 14.47,
        "row": 166.23,
        "row.byte": 14.69,
        "row.word": 5.57,
        "run": 35.68,
        "run_back": 166.23,
        "sgd": 12.85,
        "sgd.decay": 0.01,
        "sgd.four": 13.04,
        "sgd.momentum": 0,
        "sgd.number": 25.94,
        "sgd.rest": 13.24,
        "sgd.start": 0.05,
        "step": 0,
        "step.tensor": 106.65,
        "tap_four_apart": 133.01,
        "tap_four_apart.column": 22.09,
        "tap_four_apart.row": 18.35,
        "tap_four_by_four": 200.68,
        "tap_four_by_four.column": 46.24,
        "tap_four_by_four.row": 19.81,
        "tap_four_by_one": 124.44,
        "tap_four_by_one.column": 15.93,
        "tap_four_by_one.row": 13.06,
        "tap_one_by_one": 89.8,
        "tap_one_by_one.column": 7.08,
        "tap_one_by_one.row": 8.31,
        "walk_back_column": 60.04,
        "walk_back_row": 57.71,
        "walk_column": 44.89,
        "walk_row": 44.89,
        "walk_tried": 6.87,
        "widen": 10.74,
        "widen.four": 25.87,
        "widen.rest": 8.61,
    },
}
# end
