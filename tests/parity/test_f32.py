"""The float kernels in C against their twin in numpy, bit for bit, and the twin against torch."""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from midhaul.devices import arithmetic as twin
from midhaul.models import losses
from midhaul.net import Array

DEVICE = Path(__file__).parents[2] / "device"
FIELDS = ("ic", "ih", "iw", "oc", "oh", "ow", "kh", "kw", "sh", "sw", "pt", "pl", "dh", "dw")
PLAIN = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Geometry(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint16) for name in FIELDS[:6]),
        *((name, ctypes.c_uint8) for name in FIELDS[6:]),
        ("groups", ctypes.c_uint16),
    )


class Kernels:
    """The C kernels over numpy arrays: `kernels.dense_f32(x, w, None, y, 3, 2)`; floats are given as np.float32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, f"mh_{name}")
        function.restype = ctypes.c_uint32 if name.startswith("argmax") else ctypes.c_float
        return lambda *values: function(*(self._value(v) for v in values))

    @staticmethod
    def _value(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            assert value.dtype == np.float32
            assert value.flags.c_contiguous
            return value.ctypes.data_as(ctypes.c_void_p)
        if isinstance(value, twin.Geometry):
            return ctypes.byref(Geometry(*(getattr(value, name) for name in FIELDS), 1))
        if isinstance(value, np.float32):
            return ctypes.c_float(float(value))
        return ctypes.c_void_p(None) if value is None else ctypes.c_int32(value)


@pytest.fixture(scope="module", params=["-O2", "-O3 -march=native", "-O0"])
def c(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    compiler = shutil.which("cc")
    assert compiler, "the parity tests need a C compiler `cc`"
    path = tmp_path_factory.mktemp("f32") / "f32.so"
    sources = [DEVICE / "src" / "mh_math.c", *sorted((DEVICE / "src").glob("*f32.c"))]
    flags = "-std=c99 -Wall -Wextra -Wconversion -Werror -pedantic -ffp-contract=off -fno-math-errno -fPIC -shared"
    command = [compiler, *flags.split(), *request.param.split(), "-I", DEVICE / "include", "-o", path, *sources]
    subprocess.run(command, check=True)
    return Kernels(ctypes.CDLL(str(path)))


def draw(seed: int, *shape: int) -> Array:
    """Gives numbers of mixed size and sign, a few of them 0 and -0."""
    stream = np.random.default_rng(seed)
    x = stream.standard_normal(shape) * 2.0 ** stream.integers(-4, 4, shape)
    return np.where(stream.random(shape) < 0.05, stream.choice([0.0, -0.0], shape), x).astype(np.float32)


def same(a: Array | float, b: Array | float) -> None:
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def close(ours: Array | float, theirs: Tensor, *factors: Array | float) -> None:
    """Holds to 1e-5 of the largest result, or of the largest product of factors, since a sum of those may cancel."""
    assert np.isfinite(ours).all()
    want = theirs.detach().double().numpy()
    size = math.prod(float(np.abs(f).max()) for f in factors) if factors else 0.0
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5 * max(size, float(np.abs(want).max(initial=0.0))))


@st.composite
def windows(draw_one: st.DrawFn) -> twin.Geometry:
    """Gives windows of odd shapes: stride, padding, dilation, 1x1, signals of one row."""
    pick = lambda low, high: draw_one(st.integers(low, high))  # noqa: E731
    axes = []
    for flat in (draw_one(st.booleans()), False):
        kernel, stride, dilation = (1, 1, 1) if flat else (pick(1, 5), pick(1, 3), pick(1, 2))
        reach = (kernel - 1) * dilation + 1
        pad = 0 if flat else pick(0, min(kernel - 1, 3))
        size = 1 if flat else pick(max(1, reach - 2 * pad), 23)
        axes.append((size, (size + 2 * pad - reach) // stride + 1, kernel, stride, pad, dilation))
    (ih, oh, kh, sh, pt, dh), (iw, ow, kw, sw, pl, dw) = axes
    return twin.Geometry(pick(1, 6), ih, iw, pick(1, 9), oh, ow, kh, kw, sh, sw, pt, pl, dh, dw)


def torch_conv(s: twin.Geometry, x: Array, w: Array, b: Array | None, g: Array, groups: int) -> tuple[Tensor, ...]:
    leaves = [torch.from_numpy(v).double().requires_grad_() for v in (x, w, *([] if b is None else [b]))]
    y = F.conv2d(
        leaves[0], leaves[1], leaves[2] if b is not None else None, (s.sh, s.sw), (s.pt, s.pl), (s.dh, s.dw), groups
    )
    y = y[:, : s.oh, : s.ow]
    return (y, *torch.autograd.grad(y, leaves, torch.from_numpy(g).double()))


@pytest.mark.parametrize("num_in", [1, 3, 4, 7, 16, 37, 129])
@pytest.mark.parametrize("num_out", [1, 2, 5, 8, 10, 19])
def test_dense(c: Kernels, num_in: int, num_out: int) -> None:
    x, w, b, g = draw(1, num_in), draw(2, num_out, num_in), draw(3, num_out), draw(4, num_out)
    for bias in (b, None):
        y = np.empty(num_out, np.float32)
        c.dense_f32(x, w, bias, y, num_in, num_out)
        same(y, twin.dense(x, w, bias))
    close(twin.dense(x, w, b), F.linear(*(torch.from_numpy(v).double() for v in (x, w, b))))
    dx = draw(5, num_in)
    added = dx + twin.dense_input(g, w)
    c.dense_input_f32(g, w, dx, num_in, num_out, 1)
    same(dx, added)
    c.dense_input_f32(g, w, dx, num_in, num_out, 0)
    same(dx, twin.dense_input(g, w))
    close(dx, torch.from_numpy(g).double() @ torch.from_numpy(w).double())
    dw, db = draw(6, num_out, num_in), draw(7, num_out)
    more_w, more_b = twin.dense_params(g, x)
    want_w, want_b = dw + more_w, db + more_b
    c.dense_params_f32(g, x, dw, None, num_in, num_out)
    c.dense_params_f32(g, x, None, db, num_in, num_out)
    same(dw, want_w)
    same(db, want_b)


@PLAIN
@given(windows(), st.integers(0, 1000), st.booleans())
def test_conv(c: Kernels, s: twin.Geometry, seed: int, biased: bool) -> None:
    check_windowed(c, s, seed, biased, "conv", (s.oc, s.ic, s.kh, s.kw), 1)


@PLAIN
@given(windows(), st.integers(0, 1000), st.booleans(), st.integers(1, 3))
def test_depthwise(c: Kernels, s: twin.Geometry, seed: int, biased: bool, times: int) -> None:
    s = twin.Geometry(**{**s._asdict(), "oc": s.ic * times})
    check_windowed(c, s, seed, biased, "depthwise", (s.oc, 1, s.kh, s.kw), s.ic)


def check_windowed(
    c: Kernels, s: twin.Geometry, seed: int, biased: bool, kind: str, shape: tuple[int, ...], groups: int
) -> None:
    x, w, g = draw(seed, s.ic, s.ih, s.iw), draw(seed + 1, *shape), draw(seed + 2, s.oc, s.oh, s.ow)
    b = draw(seed + 3, s.oc) if biased else None
    y_want, dx_want = getattr(twin, kind)(s, x, w, b), getattr(twin, f"{kind}_input")(s, g, w)
    dw_more, db_more = getattr(twin, f"{kind}_params")(s, g, x)
    y, dx = np.empty_like(y_want), draw(seed + 4, *x.shape)
    added = dx + dx_want
    getattr(c, f"{kind}_f32")(s, x, w, b, y)
    same(y, y_want)
    getattr(c, f"{kind}_input_f32")(s, g, w, dx, 1)
    same(dx, added)
    getattr(c, f"{kind}_input_f32")(s, g, w, dx, 0)
    same(dx, dx_want)
    dw, db = draw(seed + 5, *shape), draw(seed + 6, s.oc)
    dw_want, db_want = dw + dw_more, db + db_more
    getattr(c, f"{kind}_params_f32")(s, g, x, dw, None)
    getattr(c, f"{kind}_params_f32")(s, g, x, None, db)
    same(dw, dw_want)
    same(db, db_want)
    ours = [(y, x, w), (dx, g, w), (dw_more, g, x), *([(db_more, g)] if biased else [])]
    for (mine, *factors), theirs in zip(ours, torch_conv(s, x, w, b, g, groups), strict=True):
        close(mine, theirs, *factors)


@PLAIN
@given(windows(), st.integers(0, 1000), st.booleans())
def test_pools(c: Kernels, s: twin.Geometry, seed: int, adds: bool) -> None:
    pads = (min(s.pt, s.kh // 2), min(s.pl, s.kw // 2))  # as torch wants it: every window has a tap inside
    oh = (s.ih + 2 * pads[0] - (s.kh - 1) * s.dh - 1) // s.sh + 1
    ow = (s.iw + 2 * pads[1] - (s.kw - 1) * s.dw - 1) // s.sw + 1
    assume(oh > 0 and ow > 0)
    s = twin.Geometry(**{**s._asdict(), "oc": s.ic, "oh": oh, "ow": ow, "pt": pads[0], "pl": pads[1]})
    seen = np.zeros((oh, ow))
    for kh, kw in np.ndindex(s.kh, s.kw):
        seen[s.rows(kh)[0], s.columns(kw)[0]] += 1
    assume(seen.all())
    # Few different numbers, so that some windows have several largest ones.
    x = np.round(draw(seed, s.ic, s.ih, s.iw))
    g = draw(seed + 1, s.ic, oh, ow)
    before = draw(seed + 2, *x.shape)
    into = before if adds else None
    y, dx = np.empty((s.ic, oh, ow), np.float32), before.copy()
    c.max_pool_f32(s, x, y)
    same(y, twin.max_pool(s, x))
    c.max_pool_input_f32(s, g, x, dx, int(adds))
    same(dx, twin.max_pool_input(s, g, x, into))
    leaf = torch.from_numpy(x).double().requires_grad_()
    theirs = F.max_pool2d(leaf, (s.kh, s.kw), (s.sh, s.sw), pads, (s.dh, s.dw))
    close(y, theirs)
    close(twin.max_pool_input(s, g, x), torch.autograd.grad(theirs, leaf, torch.from_numpy(g).double())[0])
    if (s.dh, s.dw) == (1, 1):
        dx = before.copy()
        c.average_pool_f32(s, x, y)
        same(y, twin.average_pool(s, x))
        c.average_pool_input_f32(s, g, dx, int(adds))
        same(dx, twin.average_pool_input(s, g, into))
        theirs = F.avg_pool2d(leaf, (s.kh, s.kw), (s.sh, s.sw), pads, count_include_pad=False)
        close(y, theirs)
        close(twin.average_pool_input(s, g), torch.autograd.grad(theirs, leaf, torch.from_numpy(g).double())[0])


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_clamp_add_copy_argmax(c: Kernels, low: float, high: float) -> None:
    x, g, before = draw(1, 37), draw(2, 37), draw(3, 37)
    y, dx = x.copy(), before.copy()
    c.clamp_f32(y, y, 37, np.float32(low), np.float32(high))
    same(y, twin.clamp(x, low, high))
    close(y, torch.from_numpy(x).clamp(low, high))
    c.clamp_grad_f32(y, g, dx, 37, np.float32(low), np.float32(high), 1)
    same(dx, before + twin.clamp_grad(y, g, low, high))
    dx = g.copy()
    c.clamp_grad_f32(y, dx, dx, 37, np.float32(low), np.float32(high), 0)
    same(dx, twin.clamp_grad(y, g, low, high))
    same(dx, np.where((y > low) & (y < high), g, np.float32(0)))
    c.add_f32(x, g, dx, 37)
    same(dx, x + g)
    c.copy_f32(g, dx, 37, 1)
    same(dx, (x + g) + g)
    c.copy_f32(g, dx, 37, 0)
    same(dx, g)
    assert c.argmax_f32(np.float32([1, 3, 2, 3]), 4) == 1


@pytest.mark.parametrize(("groups", "positions"), [(1, 1), (2, 5), (3, 16), (6, 31)])
@pytest.mark.parametrize("weighed", [True, False])
def test_group_norm(c: Kernels, groups: int, positions: int, weighed: bool) -> None:
    num, eps = 6, 1e-5
    x, g = draw(1, num, positions), draw(2, num, positions)
    weight, bias = (draw(3, num), draw(4, num)) if weighed else (None, None)
    y = x.copy()
    c.group_norm_f32(y, weight, bias, y, num, positions, groups, np.float32(eps))
    same(y, twin.group_norm(x, weight, bias, groups, eps))
    more, more_w, more_b = twin.group_norm_grad(x, weight, g, groups, eps)
    before, dw, db = draw(5, num, positions), draw(6, num), draw(7, num)
    dx, dw_want, db_want = before.copy(), dw + more_w, db + more_b
    c.group_norm_grad_f32(x, weight, g, dx, dw, db, num, positions, groups, np.float32(eps), 1)
    same(dx, before + more)
    same(dw, dw_want)
    same(db, db_want)
    dx = g.copy()
    c.group_norm_grad_f32(x, weight, dx, dx, None, None, num, positions, groups, np.float32(eps), 0)
    same(dx, more)
    leaves = [torch.from_numpy(v).double().requires_grad_() for v in (x, weight, bias) if v is not None]
    theirs = F.group_norm(leaves[0][None], groups, *leaves[1:], eps=eps)[0]
    close(y, theirs)
    for mine, want in zip(
        (more, more_w, more_b), torch.autograd.grad(theirs, leaves, torch.from_numpy(g).double()), strict=False
    ):
        close(mine, want)


@PLAIN
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99)
)
def test_lora(c: Kernels, num_in: int, num_out: int, rank: int, size: int, stride: int, seed: int) -> None:
    out = (size - 1) // stride + 1
    s = twin.Geometry(num_in, size, size, num_out, out, out, sh=stride, sw=stride)
    x, a, b = draw(seed, num_in, size, size), draw(seed + 1, rank, num_in), draw(seed + 2, num_out, rank)
    g, y, scale = draw(seed + 3, num_out, out, out), draw(seed + 4, num_out, out, out), 0.3
    want = y + twin.lora(s, x, a, b, scale)
    scratch = np.empty(rank * out * out, np.float32)
    c.lora_f32(s, x, a, b, y, rank, np.float32(scale), scratch)
    same(y, want)
    # The layer's own gradient, a sum from 0, is never -0; an adapter with a stride leaves some of it untouched.
    before = [draw(seed + 5, *x.shape) + np.float32(0), draw(seed + 6, *a.shape), draw(seed + 7, *b.shape)]
    after, more = [v.copy() for v in before], twin.lora_grad(s, g, x, a, b, scale)
    c.lora_grad_f32(s, g, x, a, b, *after, rank, np.float32(scale), scratch)
    leaves = [torch.from_numpy(v).double().requires_grad_() for v in (x, a, b)]
    weight = (leaves[2] @ leaves[1])[:, :, None, None] * scale
    theirs = F.conv2d(leaves[0], weight, stride=stride)
    close(twin.lora(s, x, a, b, scale), theirs, x, a, b)
    slopes = torch.autograd.grad(theirs, leaves, torch.from_numpy(g).double())
    factors = ((g, a, b), (g, x, b), (g, x, a))
    for old, new, added, slope, sizes in zip(before, after, more, slopes, factors, strict=True):
        same(new, old + added)
        close(added, slope, *sizes)


@PLAIN
@given(st.integers(1, 23), st.integers(0, 999), st.integers(-1, 22), st.sampled_from([1.0, 3.0, 0.7]))
def test_losses(c: Kernels, n: int, seed: int, y: int, temperature: float) -> None:
    y = min(y, n - 1)
    logits, soft, scratch = 3 * draw(seed, n), 3 * draw(seed + 1, n), np.empty(2 * n, np.float32)
    scale, part = np.float32(1 / 3), np.float32(0.4)
    cases: list[tuple[str, tuple[Any, ...], tuple[Any, ...], tuple[float, Array]]] = [
        ("cross_entropy", (), (), twin.cross_entropy(logits, y, scale)),
        ("mse", (), (), twin.mse(logits, y, scale)),
        (
            "distillation",
            (np.float32(temperature), part),
            (scratch,),
            twin.distillation(logits, soft, y, temperature, 0.4, scale),
        ),
        ("mse_distillation", (part,), (), twin.mse_distillation(logits, soft, y, 0.4, scale)),
    ]
    for name, settings_, rest, (loss, g_want) in cases:
        g = np.empty(n, np.float32)
        second = (soft,) if "distillation" in name else ()
        same(getattr(c, f"{name}_f32")(logits, *second, n, y, *settings_, scale, g, *rest), loss)
        same(g, g_want)
        same(getattr(c, f"{name}_f32")(logits, *second, n, y, *settings_, scale, None, *rest), loss)
        leaf = torch.from_numpy(logits).double()[None].requires_grad_()
        theirs = losses.rows(
            "mse" if name.startswith("mse") else "cross_entropy",
            leaf,
            torch.tensor([y]),
            torch.from_numpy(soft).double()[None] if second else None,
            temperature,
            0.4,
        )[0]
        assert loss == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-5)
        close(g, torch.autograd.grad(theirs, leaf)[0][0] * float(scale), scale)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_sgd(c: Kernels, momentum: float, decay: float, mu: float) -> None:
    w, slope, velocity, start = (draw(seed, 29) for seed in range(4))
    new, moved = twin.sgd(w, slope, velocity, start, 0.1, momentum, decay, mu)
    given_velocity = velocity if momentum else None
    rates = (np.float32(v) for v in (0.1, momentum, decay, mu))
    leaf = torch.from_numpy(w.copy()).double().requires_grad_()
    theirs = torch.optim.SGD([leaf], lr=0.1, momentum=momentum, weight_decay=decay)
    if momentum:
        theirs.state[leaf]["momentum_buffer"] = torch.from_numpy(velocity.copy()).double()
    leaf.grad = torch.from_numpy(slope).double() + mu * (leaf.detach() - torch.from_numpy(start).double())
    theirs.step()
    c.sgd_f32(w, slope, given_velocity, start if mu else None, 29, *rates)
    same(w, new)
    close(new, leaf)
    if momentum:
        same(velocity, moved if moved is not None else velocity)


def test_exp_log_sqrt(c: Kernels) -> None:
    stream = np.random.default_rng(0)
    x = np.concatenate(
        [
            stream.uniform(-110, 95, 1500),
            stream.uniform(-1, 1, 500),
            [0.0, -0.0, math.inf, -math.inf, -104.0, -103.97, 88.72, 88.73, 89.0, 1e-30],
        ]
    ).astype(np.float32)
    same(twin.exp(x), np.array([c.exp_f32(v) for v in x], np.float32))
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(x.astype(np.float64))
        finite = np.isfinite(exact.astype(np.float32))
        step = np.abs(np.spacing(exact[finite].astype(np.float32))).astype(np.float64)
    assert np.max(np.abs(twin.exp(x)[finite] - exact[finite]) / step) < 1.0
    positive = np.concatenate([np.exp(stream.uniform(-103, 88, 1500)), stream.uniform(0.5, 2, 500)]).astype(np.float32)
    same(twin.log(positive), np.array([c.log_f32(v) for v in positive], np.float32))
    true = np.log(positive.astype(np.float64))
    assert np.max(np.abs(twin.log(positive) - true) / np.abs(np.spacing(true.astype(np.float32)))) < 1.0
    same(np.sqrt(positive), np.array([c.sqrt_f32(v) for v in positive], np.float32))
    assert c.log_f32(np.float32(0)) == -math.inf
    for name, odd in (("exp", math.nan), ("log", -1.0), ("sqrt", -1.0)):
        assert math.isnan(getattr(c, f"{name}_f32")(np.float32(odd)))
