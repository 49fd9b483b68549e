"""The instructions that the device runtime takes for an op of a blob, before any device has run it.

Each kernel is described by how often its loops and blocks are entered for a geometry (`Tally`), and each such part by
what it takes of a core's instructions (`COSTS`). The costs are fitted to counts of single layers in an emulator by
`python -m benchmarks.instructions`; a test compares whole models with the count of the device itself.

Limits: float kernels of cores without an FPU depend on the numbers, as maxima do on any core; the costs are of their
mean. Built by arm-none-eabi-gcc 12.2. What isn't counted by the device isn't predicted: taking rows and frames in,
the seal, the order of rows, zeroing the sums of gradients.
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


def conv_f32(t: Tally, s: Geometry) -> None:
    """mh_conv_f32."""
    _correlate(t, *_axes(s, False), s.ic, s.oc, apart=False, adds=False)


def conv_input_f32(t: Tally, s: Geometry, adds: bool = False) -> None:
    """mh_conv_input_f32."""
    _correlate(t, *_axes(s, True), s.oc, s.ic, apart=False, adds=adds)


def depthwise_f32(t: Tally, s: Geometry) -> None:
    """mh_depthwise_f32."""
    if s.oc == s.ic:
        _correlate(t, *_axes(s, False), 1, s.oc, apart=True, adds=False)
    else:
        _correlate(t, *_axes(s, False), 1, s.oc // s.ic, apart=False, adds=False, times=s.ic)


def depthwise_input_f32(t: Tally, s: Geometry, adds: bool = False) -> None:
    """mh_depthwise_input_f32."""
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


def conv_params_f32(t: Tally, s: Geometry, weight: bool = True, bias: bool = True) -> None:
    """mh_conv_params_f32."""
    t.add("params_call")
    if bias:
        _bias(t, s)
    if weight:
        _params(t, s, s.ic, s.oc)


def depthwise_params_f32(t: Tally, s: Geometry, weight: bool = True, bias: bool = True) -> None:
    """mh_depthwise_params_f32."""
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


def dense_f32(t: Tally, num_in: int, num_out: int) -> None:
    """mh_dense_f32."""
    t.add("dense_call")
    for name, num in (("dense4", num_out // 4), ("dense2", num_out % 4 // 2), ("dense1", num_out % 2)):
        t.add(name, num)
        _fours(t, name, num_in, num)


def dense_input_f32(t: Tally, num_in: int, num_out: int, fpu: bool) -> None:
    """mh_dense_input_f32."""
    t.add("dense_back_call")
    eights = num_in // 8 if fpu else 0
    left = num_in - 8 * eights
    for name, num in (("dense_back8", eights), ("dense_back4", left // 4), ("dense_back1", left % 4)):
        t.add(name, num)
        t.add(f"{name}.out", num_out * num)


def dense_params_f32(t: Tally, num_in: int, num_out: int, weight: bool = True, bias: bool = True) -> None:
    """mh_dense_params_f32."""
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


def forward(t: Tally, net: Net, layer: Layer, packing: int) -> None:
    """A layer's forward pass."""
    out, source = net.values[layer.out], net.values[layer.inputs[0]]
    if layer.kind in (Kind.QUANTISE, Kind.DEQUANTISE):
        t.add("layer_turn")
        turn(t, layer.kind.name.lower(), out.shape[0], math.prod(out.shape[1:]))
        return
    if out.int8:
        _forward_s8(t, net, layer, packing)
        return
    s = geometry(net, layer)
    t.add("layer_f32")
    if layer.kind == Kind.DENSE:
        dense_f32(t, source.elements, s.oc)
    elif layer.kind == Kind.CONV:
        conv_f32(t, s)
    elif layer.kind == Kind.DEPTHWISE:
        depthwise_f32(t, s)
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


def backward(t: Tally, net: Net, layer: Layer, step: Step, plan: Plan, fpu: bool) -> None:
    """A layer's backward pass, with the flags of a plan."""
    out, source = net.values[layer.out], net.values[layer.inputs[0]]
    roles = {role for role, name in layer.weights.items() if name in plan.trained}
    passes, adds = Step.GRAD_INPUT0 in step, Step.ADDS0 in step
    s = geometry(net, layer)
    t.add("layer_back")
    if layer.clamps and layer.kind != Kind.CLAMP:
        numbers(t, "clamp_back", out.elements)
    weight, bias = "weight" in roles, "bias" in roles
    if layer.kind == Kind.DENSE:
        dense_params_f32(t, source.elements, s.oc, weight, bias)
        if passes:
            dense_input_f32(t, source.elements, s.oc, fpu)
    elif layer.kind == Kind.CONV:
        conv_params_f32(t, s, weight, bias)
        if passes:
            conv_input_f32(t, s, adds)
    elif layer.kind == Kind.DEPTHWISE:
        depthwise_params_f32(t, s, weight, bias)
        if passes:
            depthwise_input_f32(t, s, adds)
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
    ahead.add("run")
    for layer, flags in zip(net.layers, plan.steps, strict=True):
        ahead.add("place")
        if Step.FORWARD in flags:
            forward(int8 if net.values[layer.out].int8 else ahead, net, layer, packing)
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
                backward(back, net, layer, flags, plan, fpu)
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
        "add": 63.45,
        "add_call": 494.21,
        "add_s8": 23.21,
        "add_s8_call": 35.31,
        "apart_single": 177.1,
        "apart_single.adds": 212.06,
        "apart_single.channel": 20.27,
        "apart_single.row": 9.38,
        "apart_single.tap": 703.96,
        "apart_wide": 124.96,
        "apart_wide.adds": 739.88,
        "apart_wide.channel": 0,
        "apart_wide.row": 0,
        "apart_wide.tap": 2738.78,
        "average_pool": 36.58,
        "average_pool.channel": 13.15,
        "average_pool.line": 146.06,
        "average_pool.out": 591.29,
        "average_pool.row": 14.24,
        "average_pool.tap": 64.06,
        "average_pool_back": 111.85,
        "average_pool_back.channel": 11.26,
        "average_pool_back.line": 89.27,
        "average_pool_back.out": 628.83,
        "average_pool_back.row": 20.39,
        "average_pool_back.tap": 54.54,
        "average_pool_back.zero": 0,
        "average_pool_s8": 43.46,
        "average_pool_s8.beyond": 7.25,
        "average_pool_s8.out": 103.27,
        "average_pool_s8.place": 16.08,
        "average_pool_s8.row": 34.29,
        "average_pool_s8.tap": 17.83,
        "bias": 80.75,
        "bias.place": 62.29,
        "clamp": 83.1,
        "clamp_back": 61.91,
        "clamp_back_call": 70.49,
        "clamp_call": 0,
        "conv_plain.padding": 12.7,
        "conv_plain.pair": 236.78,
        "conv_plain.pixel": 158.21,
        "conv_plain.row": 49.85,
        "conv_s8_call": 40.73,
        "copy": 9,
        "copy_call": 11,
        "correlate": 131.73,
        "cross_entropy": 2567.99,
        "cross_entropy.class": 2926.85,
        "dense1": 915.76,
        "dense1.four": 621.46,
        "dense1.rest": 0,
        "dense2": 0,
        "dense2.four": 1366.79,
        "dense2.rest": 291.64,
        "dense4": 0,
        "dense4.four": 2734.33,
        "dense4.rest": 700.88,
        "dense_back1": 0,
        "dense_back1.out": 171.2,
        "dense_back4": 0,
        "dense_back4.out": 684,
        "dense_back_call": 0,
        "dense_call": 417.27,
        "dense_grad": 0,
        "dense_grad.bias": 69.68,
        "dense_grad.four": 639.51,
        "dense_grad.rest": 177.31,
        "dense_grad_call": 3.14,
        "dense_plain": 241.18,
        "dense_plain.four": 50.29,
        "dense_plain.rest": 9.46,
        "dense_s8_call": 35.27,
        "depthwise_plain.beyond": 7.03,
        "depthwise_plain.out": 136.77,
        "depthwise_plain.pixel": 213.83,
        "depthwise_plain.row": 47.72,
        "depthwise_plain.side": 13.11,
        "depthwise_plain.tap": 10.06,
        "depthwise_s8_call": 74.96,
        "dequantise": 172.1,
        "dequantise.channel": 20.06,
        "dequantise_call": 30.64,
        "dots": 83.7,
        "dots.four": 50.18,
        "dots.rest": 9.03,
        "four_single": 226.04,
        "four_single.adds": 224.21,
        "four_single.channel": 11.01,
        "four_single.row": 26.61,
        "four_single.tap": 689.81,
        "four_spread": 109.46,
        "four_spread.adds": 568.4,
        "four_spread.channel": 25.29,
        "four_spread.row": 31.5,
        "four_spread.tap": 2759.39,
        "four_wide": 152.58,
        "four_wide.adds": 457.38,
        "four_wide.channel": 44.68,
        "four_wide.row": 0,
        "four_wide.tap": 2738.29,
        "group_norm": 338.79,
        "group_norm.channel": 0,
        "group_norm.group": 1652.47,
        "group_norm.place": 729.93,
        "group_norm_back": 2.55,
        "group_norm_back.channel": 36.11,
        "group_norm_back.group": 1862.72,
        "group_norm_back.place": 1115.15,
        "group_norm_pass.channel": 142.22,
        "group_norm_pass.group": 794.18,
        "group_norm_pass.place": 697.47,
        "inside": 36.07,
        "inside_dropped": 3.68,
        "layer_back": 265.17,
        "layer_f32": 0,
        "layer_lora": 0,
        "layer_lora_back": 0,
        "layer_s8": 195.97,
        "layer_turn": 0,
        "lora_back": 412.21,
        "lora_back.mac": 175.18,
        "lora_back.sum": 51.09,
        "lora_call": 0,
        "lora_down": 0,
        "lora_down.mac": 172.26,
        "lora_down.sum": 0,
        "lora_grad_a": 0,
        "lora_grad_a.mac": 207.25,
        "lora_grad_a.sum": 54.41,
        "lora_grad_b": 0,
        "lora_grad_b.mac": 177.94,
        "lora_grad_b.sum": 161.9,
        "lora_pass": 9.52,
        "lora_pass.mac": 188.18,
        "lora_pass.sum": 111.26,
        "lora_up": 18.18,
        "lora_up.mac": 196.45,
        "lora_up.sum": 194.01,
        "max_pool": 45.68,
        "max_pool.channel": 8.31,
        "max_pool.line": 105.25,
        "max_pool.out": 27.87,
        "max_pool.row": 11.67,
        "max_pool.tap": 47.54,
        "max_pool_back": 47.23,
        "max_pool_back.channel": 43.45,
        "max_pool_back.line": 95.57,
        "max_pool_back.out": 83.5,
        "max_pool_back.row": 12.58,
        "max_pool_back.tap": 48.02,
        "max_pool_back.zero": 2.41,
        "max_pool_s8": 37.88,
        "max_pool_s8.beyond": 7.57,
        "max_pool_s8.out": 39.81,
        "max_pool_s8.place": 14.57,
        "max_pool_s8.row": 26.98,
        "max_pool_s8.tap": 18.05,
        "one_single": 162.87,
        "one_single.adds": 58.17,
        "one_single.channel": 32.8,
        "one_single.row": 13.89,
        "one_single.tap": 175.86,
        "one_spread": 172.17,
        "one_spread.adds": 265.12,
        "one_spread.channel": 36.74,
        "one_spread.row": 16.7,
        "one_spread.tap": 687.73,
        "outputs": 16.47,
        "params": 241.8,
        "params_call": 0,
        "place": 0,
        "place_back": 7.94,
        "quantise": 264.29,
        "quantise.channel": 42.25,
        "quantise_call": 0,
        "row": 0,
        "row.byte": 5.8,
        "row.word": 82.86,
        "run": 0,
        "run_back": 0,
        "sgd": 67.54,
        "sgd.decay": 181.39,
        "sgd.four": 803.63,
        "sgd.momentum": 193.09,
        "sgd.number": 307.92,
        "sgd.rest": 225.85,
        "sgd.start": 266.27,
        "step": 0,
        "step.tensor": 0,
        "tap_four_apart": 372.73,
        "tap_four_apart.column": 624.61,
        "tap_four_apart.row": 49.42,
        "tap_four_by_four": 1087.95,
        "tap_four_by_four.column": 2458.29,
        "tap_four_by_four.row": 30.13,
        "tap_four_by_one": 427.41,
        "tap_four_by_one.column": 620.5,
        "tap_four_by_one.row": 51.16,
        "tap_one_by_one": 225.01,
        "tap_one_by_one.column": 158.71,
        "tap_one_by_one.row": 15.36,
        "walk_back_column": 126.35,
        "walk_back_row": 191.36,
        "walk_column": 121.28,
        "walk_row": 121.28,
        "walk_tried": 19.99,
    },
    "cortex-m3": {
        "add": 42.32,
        "add_call": 362.71,
        "add_s8": 19,
        "add_s8_call": 16,
        "apart_single": 97.91,
        "apart_single.adds": 135.03,
        "apart_single.channel": 13.71,
        "apart_single.row": 4.44,
        "apart_single.tap": 317.67,
        "apart_wide": 0,
        "apart_wide.adds": 390.54,
        "apart_wide.channel": 0,
        "apart_wide.row": 0,
        "apart_wide.tap": 1268.01,
        "average_pool": 0,
        "average_pool.channel": 201.88,
        "average_pool.line": 39.67,
        "average_pool.out": 147.41,
        "average_pool.row": 25.52,
        "average_pool.tap": 46.55,
        "average_pool_back": 0,
        "average_pool_back.channel": 25.58,
        "average_pool_back.line": 41.45,
        "average_pool_back.out": 269.88,
        "average_pool_back.row": 8.11,
        "average_pool_back.tap": 31.07,
        "average_pool_back.zero": 0,
        "average_pool_s8": 31.95,
        "average_pool_s8.beyond": 7.42,
        "average_pool_s8.out": 38.82,
        "average_pool_s8.place": 14.49,
        "average_pool_s8.row": 19.13,
        "average_pool_s8.tap": 13.99,
        "bias": 37.52,
        "bias.place": 47.04,
        "clamp": 84.36,
        "clamp_back": 62.22,
        "clamp_back_call": 63.11,
        "clamp_call": 4.36,
        "conv_plain.padding": 8.59,
        "conv_plain.pair": 110.91,
        "conv_plain.pixel": 125.48,
        "conv_plain.row": 33.85,
        "conv_s8_call": 21.67,
        "copy": 8,
        "copy_call": 9,
        "correlate": 160.95,
        "cross_entropy": 964.77,
        "cross_entropy.class": 1348.43,
        "dense1": 559.47,
        "dense1.four": 272.27,
        "dense1.rest": 0,
        "dense2": 0,
        "dense2.four": 616.59,
        "dense2.rest": 121.09,
        "dense4": 0,
        "dense4.four": 1228.62,
        "dense4.rest": 329.99,
        "dense_back1": 0,
        "dense_back1.out": 73.6,
        "dense_back4": 0,
        "dense_back4.out": 299.84,
        "dense_back_call": 0,
        "dense_call": 236.07,
        "dense_grad": 0,
        "dense_grad.bias": 48,
        "dense_grad.four": 276.83,
        "dense_grad.rest": 81.39,
        "dense_grad_call": 0,
        "dense_plain": 101.11,
        "dense_plain.four": 27.24,
        "dense_plain.rest": 4.76,
        "dense_s8_call": 19.85,
        "depthwise_plain.beyond": 4.83,
        "depthwise_plain.out": 65.04,
        "depthwise_plain.pixel": 171.51,
        "depthwise_plain.row": 21.85,
        "depthwise_plain.side": 4.26,
        "depthwise_plain.tap": 6.2,
        "depthwise_s8_call": 13.44,
        "dequantise": 65.38,
        "dequantise.channel": 8.73,
        "dequantise_call": 5.92,
        "dots": 48.09,
        "dots.four": 27.07,
        "dots.rest": 4.39,
        "four_single": 112.27,
        "four_single.adds": 128.67,
        "four_single.channel": 7.58,
        "four_single.row": 14.63,
        "four_single.tap": 312.11,
        "four_spread": 0,
        "four_spread.adds": 288.44,
        "four_spread.channel": 0,
        "four_spread.row": 22.99,
        "four_spread.tap": 1269.87,
        "four_wide": 60.32,
        "four_wide.adds": 126.16,
        "four_wide.channel": 30.37,
        "four_wide.row": 0,
        "four_wide.tap": 1252.83,
        "group_norm": 56.13,
        "group_norm.channel": 0,
        "group_norm.group": 831.11,
        "group_norm.place": 383.99,
        "group_norm_back": 0,
        "group_norm_back.channel": 0,
        "group_norm_back.group": 854.42,
        "group_norm_back.place": 575.5,
        "group_norm_pass.channel": 0,
        "group_norm_pass.group": 0,
        "group_norm_pass.place": 303.04,
        "inside": 10.86,
        "inside_dropped": 4.38,
        "layer_back": 345.31,
        "layer_f32": 0,
        "layer_lora": 49.39,
        "layer_lora_back": 88.73,
        "layer_s8": 171.3,
        "layer_turn": 0,
        "lora_back": 190.88,
        "lora_back.mac": 78.8,
        "lora_back.sum": 0,
        "lora_call": 0,
        "lora_down": 0,
        "lora_down.mac": 79.07,
        "lora_down.sum": 0,
        "lora_grad_a": 0,
        "lora_grad_a.mac": 86.11,
        "lora_grad_a.sum": 37.52,
        "lora_grad_b": 0,
        "lora_grad_b.mac": 79.53,
        "lora_grad_b.sum": 59.86,
        "lora_pass": 28.25,
        "lora_pass.mac": 89.23,
        "lora_pass.sum": 44.56,
        "lora_up": 13.15,
        "lora_up.mac": 90.47,
        "lora_up.sum": 54.82,
        "max_pool": 31.79,
        "max_pool.channel": 10.49,
        "max_pool.line": 69.48,
        "max_pool.out": 13.35,
        "max_pool.row": 15.83,
        "max_pool.tap": 47.37,
        "max_pool_back": 33.14,
        "max_pool_back.channel": 23.33,
        "max_pool_back.line": 64.32,
        "max_pool_back.out": 48.97,
        "max_pool_back.row": 15.8,
        "max_pool_back.tap": 48.22,
        "max_pool_back.zero": 2.13,
        "max_pool_s8": 27.66,
        "max_pool_s8.beyond": 7.51,
        "max_pool_s8.out": 31.03,
        "max_pool_s8.place": 13.07,
        "max_pool_s8.row": 17.98,
        "max_pool_s8.tap": 15,
        "one_single": 97.52,
        "one_single.adds": 49.64,
        "one_single.channel": 17.6,
        "one_single.row": 10.62,
        "one_single.tap": 80.98,
        "one_spread": 98.75,
        "one_spread.adds": 125.22,
        "one_spread.channel": 29.04,
        "one_spread.row": 2.36,
        "one_spread.tap": 313.83,
        "outputs": 0.45,
        "params": 159.92,
        "params_call": 39.69,
        "place": 0,
        "place_back": 14.7,
        "quantise": 171.84,
        "quantise.channel": 25.76,
        "quantise_call": 0,
        "row": 0,
        "row.byte": 36.06,
        "row.word": 51.93,
        "run": 0,
        "run_back": 0,
        "sgd": 78.9,
        "sgd.decay": 87.77,
        "sgd.four": 380.86,
        "sgd.momentum": 91.28,
        "sgd.number": 208.53,
        "sgd.rest": 109.69,
        "sgd.start": 145.18,
        "step": 0,
        "step.tensor": 0,
        "tap_four_apart": 194.12,
        "tap_four_apart.column": 274.03,
        "tap_four_apart.row": 32.91,
        "tap_four_by_four": 549.88,
        "tap_four_by_four.column": 1098.86,
        "tap_four_by_four.row": 20.41,
        "tap_four_by_one": 206.9,
        "tap_four_by_one.column": 271.79,
        "tap_four_by_one.row": 36.34,
        "tap_one_by_one": 116.55,
        "tap_one_by_one.column": 70.49,
        "tap_one_by_one.row": 6.94,
        "walk_back_column": 0,
        "walk_back_row": 14.68,
        "walk_column": 81.71,
        "walk_row": 81.71,
        "walk_tried": 5.97,
    },
    "cortex-m33": {
        "add": 7,
        "add_call": 4,
        "add_s8": 19,
        "add_s8_call": 16,
        "apart_single": 129.57,
        "apart_single.adds": 8.2,
        "apart_single.channel": 13.19,
        "apart_single.row": 11.78,
        "apart_single.tap": 26.53,
        "apart_wide": 142.48,
        "apart_wide.adds": 29.42,
        "apart_wide.channel": 27.92,
        "apart_wide.row": 13.31,
        "apart_wide.tap": 66.25,
        "average_pool": 5.22,
        "average_pool.channel": 14.71,
        "average_pool.line": 74.05,
        "average_pool.out": 46.18,
        "average_pool.row": 6.1,
        "average_pool.tap": 6.08,
        "average_pool_back": 35.45,
        "average_pool_back.channel": 19.01,
        "average_pool_back.line": 67.09,
        "average_pool_back.out": 44.82,
        "average_pool_back.row": 7.06,
        "average_pool_back.tap": 7.4,
        "average_pool_back.zero": 2.69,
        "average_pool_s8": 31.95,
        "average_pool_s8.beyond": 7.42,
        "average_pool_s8.out": 38.82,
        "average_pool_s8.place": 14.49,
        "average_pool_s8.row": 19.13,
        "average_pool_s8.tap": 13.99,
        "band": 65.01,
        "band.number": 3.79,
        "bias": 10.83,
        "bias.place": 3.99,
        "clamp": 12,
        "clamp_back": 12.68,
        "clamp_back_call": 8.85,
        "clamp_call": 4,
        "clamp_s8": 20.91,
        "clamp_s8.four": 8.75,
        "clamp_s8.rest": 4.2,
        "conv_s8.any": 0.81,
        "conv_s8.block": 53.17,
        "conv_s8.four": 62.04,
        "conv_s8.one": 15.05,
        "conv_s8.pair": 46.17,
        "conv_s8.pixel": 58.53,
        "conv_s8.two": 31.31,
        "conv_s8_call": 70.39,
        "copy": 6,
        "copy_call": 4,
        "correlate": 72.13,
        "cross_entropy": 109,
        "cross_entropy.class": 90,
        "dense1": 40.66,
        "dense1.four": 22.95,
        "dense1.rest": 0,
        "dense2": 30.95,
        "dense2.four": 36.09,
        "dense2.rest": 8.25,
        "dense4": 55.16,
        "dense4.four": 39.06,
        "dense4.rest": 18.4,
        "dense_back1": 7.68,
        "dense_back1.out": 7.15,
        "dense_back4": 21.69,
        "dense_back4.out": 15.93,
        "dense_back8": 128.03,
        "dense_back8.out": 20.97,
        "dense_back_call": 27.36,
        "dense_call": 32.01,
        "dense_grad": 16.52,
        "dense_grad.bias": 6,
        "dense_grad.four": 13.09,
        "dense_grad.rest": 8.47,
        "dense_grad_call": 13.97,
        "dense_s8": 67.55,
        "dense_s8.byte": 5.97,
        "dense_s8.eight": 43.11,
        "dense_s8.rest": 39.2,
        "dense_s8_call": 9,
        "depthwise_s8_call": 65.01,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 2.36,
        "fill.four": 4.44,
        "four_single": 114.24,
        "four_single.adds": 0,
        "four_single.channel": 11.3,
        "four_single.row": 9.85,
        "four_single.tap": 21.21,
        "four_spread": 185.98,
        "four_spread.adds": 25.6,
        "four_spread.channel": 9.52,
        "four_spread.row": 14.34,
        "four_spread.tap": 50.24,
        "four_wide": 144.46,
        "four_wide.adds": 36.21,
        "four_wide.channel": 22.6,
        "four_wide.row": 11.08,
        "four_wide.tap": 48.02,
        "gather.column": 9.86,
        "gather.row": 31.9,
        "gather_bytes.byte_in": 7.82,
        "gather_bytes.byte_out": 4.72,
        "gather_bytes.in": 20.51,
        "gather_bytes.out": 17.58,
        "gather_bytes.row": 7.34,
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
        "inside": 21.2,
        "inside_dropped": 6.36,
        "layer_back": 308.6,
        "layer_f32": 156.58,
        "layer_lora": 111.65,
        "layer_lora_back": 145.64,
        "layer_s8": 141.27,
        "layer_turn": 50.85,
        "lora_back": 16.5,
        "lora_back.mac": 8.69,
        "lora_back.sum": 11.65,
        "lora_call": 57.2,
        "lora_down": 25.49,
        "lora_down.mac": 6.99,
        "lora_down.sum": 10.22,
        "lora_grad_a": 26.78,
        "lora_grad_a.mac": 12.03,
        "lora_grad_a.sum": 14.84,
        "lora_grad_b": 19.41,
        "lora_grad_b.mac": 6.19,
        "lora_grad_b.sum": 10.28,
        "lora_pass": 15.37,
        "lora_pass.mac": 8.97,
        "lora_pass.sum": 18.03,
        "lora_up": 11.45,
        "lora_up.mac": 7.09,
        "lora_up.sum": 10.74,
        "max_pool": 27.33,
        "max_pool.channel": 4.58,
        "max_pool.line": 75.8,
        "max_pool.out": 45.42,
        "max_pool.row": 8.15,
        "max_pool.tap": 13.29,
        "max_pool_back": 29.01,
        "max_pool_back.channel": 29,
        "max_pool_back.line": 63.38,
        "max_pool_back.out": 48.69,
        "max_pool_back.row": 7.45,
        "max_pool_back.tap": 13.31,
        "max_pool_back.zero": 2.93,
        "max_pool_s8": 27.66,
        "max_pool_s8.beyond": 7.51,
        "max_pool_s8.out": 31.03,
        "max_pool_s8.place": 13.07,
        "max_pool_s8.row": 17.98,
        "max_pool_s8.tap": 15,
        "one_single": 92.32,
        "one_single.adds": 0.53,
        "one_single.channel": 9.52,
        "one_single.row": 9.12,
        "one_single.tap": 8.25,
        "one_spread": 111.75,
        "one_spread.adds": 13.9,
        "one_spread.channel": 15.88,
        "one_spread.row": 8.66,
        "one_spread.tap": 20.24,
        "outputs": 77.8,
        "params": 102.44,
        "params_call": 27.68,
        "place": 15.11,
        "place_back": 8.89,
        "plane_3x3": 112.58,
        "plane_3x3.one": 20.09,
        "plane_3x3.row": 29.36,
        "plane_3x3.two": 40.45,
        "plane_any": 39.67,
        "plane_any.line": 11.15,
        "plane_any.out": 31.48,
        "plane_any.row": 25.26,
        "plane_any.tap": 5.98,
        "quantise": 28,
        "quantise.channel": 12,
        "quantise_call": 20,
        "read_plane": 60.33,
        "read_plane.four": 19.68,
        "read_plane.rest": 3.85,
        "read_plane.row": 20.73,
        "row": 76.34,
        "row.byte": 18.39,
        "row.word": 5.16,
        "run": 23.46,
        "run_back": 76.34,
        "sgd": 14.03,
        "sgd.decay": 0,
        "sgd.four": 13.41,
        "sgd.momentum": 0,
        "sgd.number": 27.91,
        "sgd.rest": 10.96,
        "sgd.start": 0.07,
        "step": 0,
        "step.tensor": 110.4,
        "tap_four_apart": 126.96,
        "tap_four_apart.column": 22.26,
        "tap_four_apart.row": 18.02,
        "tap_four_by_four": 218,
        "tap_four_by_four.column": 46.56,
        "tap_four_by_four.row": 13.61,
        "tap_four_by_one": 116.8,
        "tap_four_by_one.column": 15.96,
        "tap_four_by_one.row": 14.25,
        "tap_one_by_one": 88.54,
        "tap_one_by_one.column": 7,
        "tap_one_by_one.row": 9.07,
        "walk_back_column": 49.1,
        "walk_back_row": 67.7,
        "walk_column": 43.14,
        "walk_row": 43.14,
        "walk_tried": 9.19,
        "widen": 11.08,
        "widen.four": 26.71,
        "widen.rest": 8.64,
    },
    "cortex-m4": {
        "add": 7,
        "add_call": 4,
        "add_s8": 21,
        "add_s8_call": 21,
        "apart_single": 127.83,
        "apart_single.adds": 8.41,
        "apart_single.channel": 13.3,
        "apart_single.row": 11.73,
        "apart_single.tap": 26.49,
        "apart_wide": 140.49,
        "apart_wide.adds": 28.84,
        "apart_wide.channel": 28.34,
        "apart_wide.row": 13.22,
        "apart_wide.tap": 62.21,
        "average_pool": 5.22,
        "average_pool.channel": 14.71,
        "average_pool.line": 74.05,
        "average_pool.out": 46.18,
        "average_pool.row": 6.1,
        "average_pool.tap": 6.08,
        "average_pool_back": 34.49,
        "average_pool_back.channel": 16.09,
        "average_pool_back.line": 66.01,
        "average_pool_back.out": 44.82,
        "average_pool_back.row": 7.06,
        "average_pool_back.tap": 7.4,
        "average_pool_back.zero": 2.69,
        "average_pool_s8": 33.4,
        "average_pool_s8.beyond": 8.08,
        "average_pool_s8.out": 38.48,
        "average_pool_s8.place": 14.47,
        "average_pool_s8.row": 21.27,
        "average_pool_s8.tap": 13.98,
        "band": 59.14,
        "band.number": 3.99,
        "bias": 10.83,
        "bias.place": 3.99,
        "clamp": 13,
        "clamp_back": 12.68,
        "clamp_back_call": 8.85,
        "clamp_call": 4,
        "clamp_s8": 20.12,
        "clamp_s8.four": 8.74,
        "clamp_s8.rest": 4.61,
        "conv_s8.any": 0.82,
        "conv_s8.block": 53.12,
        "conv_s8.four": 62.04,
        "conv_s8.one": 15.06,
        "conv_s8.pair": 44.5,
        "conv_s8.pixel": 59.83,
        "conv_s8.two": 31.37,
        "conv_s8_call": 72.1,
        "copy": 6,
        "copy_call": 4,
        "correlate": 72.25,
        "cross_entropy": 106.95,
        "cross_entropy.class": 89.98,
        "dense1": 40.9,
        "dense1.four": 22.98,
        "dense1.rest": 0,
        "dense2": 31.32,
        "dense2.four": 36.08,
        "dense2.rest": 8.16,
        "dense4": 55.03,
        "dense4.four": 39.06,
        "dense4.rest": 18.42,
        "dense_back1": 7.68,
        "dense_back1.out": 7.15,
        "dense_back4": 20.69,
        "dense_back4.out": 15.93,
        "dense_back8": 128.03,
        "dense_back8.out": 20.97,
        "dense_back_call": 28.35,
        "dense_call": 31.09,
        "dense_grad": 16.58,
        "dense_grad.bias": 6,
        "dense_grad.four": 13.09,
        "dense_grad.rest": 8.51,
        "dense_grad_call": 14.97,
        "dense_s8": 67.51,
        "dense_s8.byte": 5.94,
        "dense_s8.eight": 43.11,
        "dense_s8.rest": 39.32,
        "dense_s8_call": 8.05,
        "depthwise_s8_call": 59.14,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 1.88,
        "fill.four": 4.38,
        "four_single": 112.15,
        "four_single.adds": 0,
        "four_single.channel": 11.3,
        "four_single.row": 9.86,
        "four_single.tap": 21.2,
        "four_spread": 188.79,
        "four_spread.adds": 25.69,
        "four_spread.channel": 9.5,
        "four_spread.row": 14.34,
        "four_spread.tap": 50.24,
        "four_wide": 142.48,
        "four_wide.adds": 35.94,
        "four_wide.channel": 22.52,
        "four_wide.row": 9.08,
        "four_wide.tap": 46.03,
        "gather.column": 10.38,
        "gather.row": 32.75,
        "gather_bytes.byte_in": 7.81,
        "gather_bytes.byte_out": 4.69,
        "gather_bytes.in": 20.46,
        "gather_bytes.out": 17.8,
        "gather_bytes.row": 7.11,
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
        "inside": 21.22,
        "inside_dropped": 6.36,
        "layer_back": 310.09,
        "layer_f32": 157.74,
        "layer_lora": 113.34,
        "layer_lora_back": 143.91,
        "layer_s8": 141.18,
        "layer_turn": 50.08,
        "lora_back": 16.19,
        "lora_back.mac": 8.69,
        "lora_back.sum": 11.64,
        "lora_call": 56,
        "lora_down": 25.41,
        "lora_down.mac": 6.99,
        "lora_down.sum": 10.24,
        "lora_grad_a": 26.69,
        "lora_grad_a.mac": 12.03,
        "lora_grad_a.sum": 14.84,
        "lora_grad_b": 19.24,
        "lora_grad_b.mac": 6.18,
        "lora_grad_b.sum": 10.31,
        "lora_pass": 15.37,
        "lora_pass.mac": 8.97,
        "lora_pass.sum": 18.03,
        "lora_up": 11.47,
        "lora_up.mac": 7.08,
        "lora_up.sum": 10.75,
        "max_pool": 28.38,
        "max_pool.channel": 4.53,
        "max_pool.line": 73.83,
        "max_pool.out": 43.42,
        "max_pool.row": 8.13,
        "max_pool.tap": 13.29,
        "max_pool_back": 27.95,
        "max_pool_back.channel": 29,
        "max_pool_back.line": 61.39,
        "max_pool_back.out": 44.67,
        "max_pool_back.row": 7.44,
        "max_pool_back.tap": 13.31,
        "max_pool_back.zero": 2.93,
        "max_pool_s8": 27.72,
        "max_pool_s8.beyond": 8.49,
        "max_pool_s8.out": 32.91,
        "max_pool_s8.place": 14.26,
        "max_pool_s8.row": 20.96,
        "max_pool_s8.tap": 15.01,
        "one_single": 91.32,
        "one_single.adds": 0.55,
        "one_single.channel": 9.5,
        "one_single.row": 9.13,
        "one_single.tap": 8.25,
        "one_spread": 110.69,
        "one_spread.adds": 13.85,
        "one_spread.channel": 15.84,
        "one_spread.row": 8.68,
        "one_spread.tap": 20.25,
        "outputs": 78.02,
        "params": 102.76,
        "params_call": 28.65,
        "place": 15.11,
        "place_back": 8.84,
        "plane_3x3": 113.49,
        "plane_3x3.one": 20.11,
        "plane_3x3.row": 28.6,
        "plane_3x3.two": 40.48,
        "plane_any": 40.07,
        "plane_any.line": 11.17,
        "plane_any.out": 29.37,
        "plane_any.row": 25.5,
        "plane_any.tap": 5.98,
        "quantise": 29,
        "quantise.channel": 11,
        "quantise_call": 20,
        "read_plane": 68.08,
        "read_plane.four": 20.33,
        "read_plane.rest": 3.06,
        "read_plane.row": 22.49,
        "row": 76.13,
        "row.byte": 18.54,
        "row.word": 5.16,
        "run": 23.52,
        "run_back": 76.13,
        "sgd": 14.03,
        "sgd.decay": 0,
        "sgd.four": 13.41,
        "sgd.momentum": 0,
        "sgd.number": 27.91,
        "sgd.rest": 10.96,
        "sgd.start": 0.07,
        "step": 0,
        "step.tensor": 109.58,
        "tap_four_apart": 130.1,
        "tap_four_apart.column": 22.26,
        "tap_four_apart.row": 18.02,
        "tap_four_by_four": 214.82,
        "tap_four_by_four.column": 46.56,
        "tap_four_by_four.row": 13.61,
        "tap_four_by_one": 118.84,
        "tap_four_by_one.column": 15.96,
        "tap_four_by_one.row": 14.25,
        "tap_one_by_one": 89.58,
        "tap_one_by_one.column": 7,
        "tap_one_by_one.row": 9.06,
        "walk_back_column": 49.02,
        "walk_back_row": 67.87,
        "walk_column": 43.11,
        "walk_row": 43.11,
        "walk_tried": 8.62,
        "widen": 10.36,
        "widen.four": 26.82,
        "widen.rest": 8.65,
    },
    "cortex-m7": {
        "add": 7,
        "add_call": 4,
        "add_s8": 21,
        "add_s8_call": 21,
        "apart_single": 125.94,
        "apart_single.adds": 8.23,
        "apart_single.channel": 13.12,
        "apart_single.row": 11.93,
        "apart_single.tap": 26.51,
        "apart_wide": 139.53,
        "apart_wide.adds": 30.55,
        "apart_wide.channel": 28.3,
        "apart_wide.row": 13.53,
        "apart_wide.tap": 62.07,
        "average_pool": 5.22,
        "average_pool.channel": 14.71,
        "average_pool.line": 74.05,
        "average_pool.out": 46.18,
        "average_pool.row": 6.1,
        "average_pool.tap": 6.08,
        "average_pool_back": 37.03,
        "average_pool_back.channel": 15.51,
        "average_pool_back.line": 66.35,
        "average_pool_back.out": 44.83,
        "average_pool_back.row": 7.01,
        "average_pool_back.tap": 7.41,
        "average_pool_back.zero": 3.69,
        "average_pool_s8": 36.25,
        "average_pool_s8.beyond": 8.08,
        "average_pool_s8.out": 41.13,
        "average_pool_s8.place": 13.24,
        "average_pool_s8.row": 21.22,
        "average_pool_s8.tap": 13.98,
        "band": 68.23,
        "band.number": 3.62,
        "bias": 10.81,
        "bias.place": 3.99,
        "clamp": 12,
        "clamp_back": 12.68,
        "clamp_back_call": 8.85,
        "clamp_call": 4,
        "clamp_s8": 21.37,
        "clamp_s8.four": 8.75,
        "clamp_s8.rest": 3.99,
        "conv_s8.any": 0.57,
        "conv_s8.block": 53.58,
        "conv_s8.four": 62.02,
        "conv_s8.one": 14.83,
        "conv_s8.pair": 45.94,
        "conv_s8.pixel": 60.1,
        "conv_s8.two": 31.12,
        "conv_s8_call": 73.39,
        "copy": 6,
        "copy_call": 4,
        "correlate": 73.34,
        "cross_entropy": 106.95,
        "cross_entropy.class": 92.98,
        "dense1": 40.41,
        "dense1.four": 22.91,
        "dense1.rest": 0,
        "dense2": 30.56,
        "dense2.four": 36.1,
        "dense2.rest": 8.33,
        "dense4": 55.3,
        "dense4.four": 39.06,
        "dense4.rest": 18.38,
        "dense_back1": 7.67,
        "dense_back1.out": 7.15,
        "dense_back4": 27.69,
        "dense_back4.out": 15.93,
        "dense_back8": 128.03,
        "dense_back8.out": 20.97,
        "dense_back_call": 25.38,
        "dense_call": 31.92,
        "dense_grad": 16.69,
        "dense_grad.bias": 7,
        "dense_grad.four": 13.1,
        "dense_grad.rest": 8.58,
        "dense_grad_call": 16.98,
        "dense_s8": 67.58,
        "dense_s8.byte": 5.98,
        "dense_s8.eight": 43.11,
        "dense_s8.rest": 39.14,
        "dense_s8_call": 9.91,
        "depthwise_s8_call": 68.23,
        "dequantise": 9,
        "dequantise.channel": 7,
        "dequantise_call": 9,
        "fill": 0,
        "fill.four": 4.27,
        "four_single": 111.97,
        "four_single.adds": 0,
        "four_single.channel": 11.37,
        "four_single.row": 9.89,
        "four_single.tap": 21.15,
        "four_spread": 184.78,
        "four_spread.adds": 25.73,
        "four_spread.channel": 9.88,
        "four_spread.row": 14.11,
        "four_spread.tap": 50.29,
        "four_wide": 142.16,
        "four_wide.adds": 36.74,
        "four_wide.channel": 22.54,
        "four_wide.row": 8.94,
        "four_wide.tap": 46.08,
        "gather.column": 14.41,
        "gather.row": 34.03,
        "gather_bytes.byte_in": 7.81,
        "gather_bytes.byte_out": 4.73,
        "gather_bytes.in": 20.58,
        "gather_bytes.out": 17.36,
        "gather_bytes.row": 7.6,
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
        "inside": 29.77,
        "inside_dropped": 8.5,
        "layer_back": 309.66,
        "layer_f32": 155.94,
        "layer_lora": 112.43,
        "layer_lora_back": 136.2,
        "layer_s8": 141.33,
        "layer_turn": 51.01,
        "lora_back": 17.3,
        "lora_back.mac": 8.7,
        "lora_back.sum": 11.57,
        "lora_call": 56.4,
        "lora_down": 25.15,
        "lora_down.mac": 6.99,
        "lora_down.sum": 10.33,
        "lora_grad_a": 27.43,
        "lora_grad_a.mac": 12.03,
        "lora_grad_a.sum": 14.85,
        "lora_grad_b": 17.71,
        "lora_grad_b.mac": 6.18,
        "lora_grad_b.sum": 10.41,
        "lora_pass": 15.37,
        "lora_pass.mac": 8.97,
        "lora_pass.sum": 18.03,
        "lora_up": 11.52,
        "lora_up.mac": 7.07,
        "lora_up.sum": 10.78,
        "max_pool": 28.4,
        "max_pool.channel": 4.45,
        "max_pool.line": 73.91,
        "max_pool.out": 41.41,
        "max_pool.row": 8.13,
        "max_pool.tap": 13.29,
        "max_pool_back": 27.81,
        "max_pool_back.channel": 29,
        "max_pool_back.line": 61.44,
        "max_pool_back.out": 44.65,
        "max_pool_back.row": 7.42,
        "max_pool_back.tap": 13.32,
        "max_pool_back.zero": 3.93,
        "max_pool_s8": 27.86,
        "max_pool_s8.beyond": 8.49,
        "max_pool_s8.out": 32.89,
        "max_pool_s8.place": 12.16,
        "max_pool_s8.row": 19.97,
        "max_pool_s8.tap": 15.01,
        "one_single": 92.68,
        "one_single.adds": 0,
        "one_single.channel": 9.43,
        "one_single.row": 9.18,
        "one_single.tap": 8.25,
        "one_spread": 110.37,
        "one_spread.adds": 15.09,
        "one_spread.channel": 15.66,
        "one_spread.row": 9.05,
        "one_spread.tap": 20.16,
        "outputs": 78.38,
        "params": 102.59,
        "params_call": 27.91,
        "place": 15.09,
        "place_back": 8.87,
        "plane_3x3": 112.47,
        "plane_3x3.one": 20.09,
        "plane_3x3.row": 30.69,
        "plane_3x3.two": 40.46,
        "plane_any": 37.53,
        "plane_any.line": 11.12,
        "plane_any.out": 29.57,
        "plane_any.row": 24.99,
        "plane_any.tap": 5.99,
        "quantise": 27,
        "quantise.channel": 14,
        "quantise_call": 20,
        "read_plane": 64.54,
        "read_plane.four": 19.18,
        "read_plane.rest": 4.42,
        "read_plane.row": 17.8,
        "row": 75.6,
        "row.byte": 20.07,
        "row.word": 5.16,
        "run": 23.65,
        "run_back": 75.6,
        "sgd": 13.89,
        "sgd.decay": 0,
        "sgd.four": 13.42,
        "sgd.momentum": 0,
        "sgd.number": 25.91,
        "sgd.rest": 11,
        "sgd.start": 0.06,
        "step": 0,
        "step.tensor": 113.47,
        "tap_four_apart": 130.73,
        "tap_four_apart.column": 22.26,
        "tap_four_apart.row": 18.02,
        "tap_four_by_four": 213.46,
        "tap_four_by_four.column": 46.55,
        "tap_four_by_four.row": 13.92,
        "tap_four_by_one": 118.34,
        "tap_four_by_one.column": 15.96,
        "tap_four_by_one.row": 14.24,
        "tap_one_by_one": 90.32,
        "tap_one_by_one.column": 7,
        "tap_one_by_one.row": 9.01,
        "walk_back_column": 56.25,
        "walk_back_row": 62.63,
        "walk_column": 46.23,
        "walk_row": 46.23,
        "walk_tried": 7.92,
        "widen": 7.46,
        "widen.four": 26.91,
        "widen.rest": 8.79,
    },
}
# end
