"""The instructions that the device runtime takes for an op of a blob, before any device has run it.

Each kernel is described by how often its loops and blocks are entered for a geometry (`Tally`), and each such part by
what it takes of a core's instructions (`devices.costs`). The costs are fitted to counts of single layers;
a test compares whole models with the count of the device itself.

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
from midhaul.devices.arithmetic import Geometry
from midhaul.devices.blob import Blob
from midhaul.devices.costs import COSTS
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
