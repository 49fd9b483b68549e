"""The compiled steps of a transformer behind a cut, against autograd in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.errors import EngineError
from midhaul.models import large
from midhaul.models.adapters import add_lora
from midhaul.runtime.native import library
from midhaul.runtime.native.half import Half, layout_of
from midhaul.server import Optimizer, predict, step_half

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())

Steps = tuple[tree.Tree, tree.Tree, Tensor, Tensor]
MODELS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "transformer": ((32, 64), {"dim": 64, "depth": 2, "heads": 4}),  # each place a token
    "transformer with padding": ((3, 70), {"dim": 32, "depth": 1, "heads": 2}),  # 35 patches of two places, 6 numbers
    "vit": ((2, 9, 7), {"dim": 48, "depth": 2, "heads": 4, "patch": 2}),  # heads of 12, maps of odd sides
}
OPTIMIZERS = (Optimizer("sgd", 0.1, 0.0, 0.0), Optimizer("sgd", 0.1, 0.01), Optimizer("adam", 1e-3, 0.01))
ROWS, ORDER = [7, 9, 1], [2, 0, 1]


def a_half(name: str, optimizer: Optimizer) -> tuple[nn.Module, tree.Tree, tree.Tree, Tensor, Tensor]:
    """Gives a model, a tree in which no parameter is where it starts, the optimiser's state, and batches."""
    shape, options = MODELS[name]
    torch.manual_seed(0)
    module = large.build(name.split()[0], shape, 5, **options)
    whole = {name: value + 0.1 * torch.randn_like(value) for name, value in tree.of(module).items()}
    h, y = torch.randn(len(ROWS), max(ROWS), *shape), torch.randint(0, 5, (len(ROWS), max(ROWS)))
    y[0, 1] = -1  # a row without a label
    return module, whole, optimizer.init(whole), h, y


def autograd(
    module: nn.Module, whole: tree.Tree, memory: tree.Tree, optimizer: Optimizer, h: Tensor, y: Tensor
) -> Steps:
    """Gives the same steps in double precision."""

    def double(values: tree.Tree) -> tree.Tree:
        return {n: v.double() if v.is_floating_point() else v for n, v in values.items()}

    whole, memory, g, loss = double(whole), double(memory), torch.zeros_like(h).double(), torch.zeros(len(h)).double()
    for place in ORDER:
        own = slice(0, ROWS[place])
        batch = h[place, own].double(), y[place, own]
        whole, memory, g[place, own], loss[place], _ = step_half(module.double(), whole, memory, optimizer, *batch)
    return whole, memory, g, loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name} {o.weight_decay} {o.momentum}")
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_autograd(name: str, optimizer: Optimizer) -> None:
    module, whole, memory, h, y = a_half(name, optimizer)
    half = Half(module)
    assert half.knows(h, optimizer)
    fast = half.steps(whole, memory, optimizer, h, y, ROWS, ORDER)
    slow = autograd(module, whole, memory, optimizer, h, y)
    assert torch.allclose(fast[2].double(), slow[2], atol=2e-6 * float(slow[2].abs().max()), rtol=0)
    assert torch.allclose(fast[3], slow[3], atol=2e-6, rtol=0)
    for place, num in enumerate(ROWS):
        assert not fast[2][place, num:].any()
    for left, right, start in ((fast[0], slow[0], whole), (fast[1], slow[1], memory)):
        assert left.keys() == right.keys() == start.keys()
        for key, value in right.items():
            if "key.bias" in key:
                continue  # softmax doesn't see it, so its slope is 0; Adam makes steps of what rounding leaves of that
            assert left[key].shape == start[key].shape
            assert left[key].dtype == start[key].dtype
            apart, most = (left[key].double() - value.double()).abs(), 1e-6 + 3e-6 * float(value.double().abs().max())
            if right is slow[0] and optimizer.name == "adam":  # a slope of next to nothing is a whole step to Adam
                assert float(apart.mean()) < 1e-7, key
                most = 0.05 * optimizer.lr
            assert float(apart.max()) < most, key
            assert not torch.equal(left[key], start[key]), key


def test_neither_threads_nor_what_is_stepped_in_one_call_change_a_bit() -> None:
    optimizer = OPTIMIZERS[2]
    module, whole, memory, h, y = a_half("transformer", optimizer)
    half, num = Half(module), torch.get_num_threads()
    assert half.knows(h, optimizer)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(half.steps(whole, memory, optimizer, h, y, ROWS, ORDER))
    finally:
        torch.set_num_threads(num)
    g, loss = torch.zeros_like(h), torch.zeros(len(h), dtype=torch.float64)
    for place in ORDER:
        own = slice(place, place + 1)
        whole, memory, g[own], loss[own] = half.steps(whole, memory, optimizer, h[own], y[own], [ROWS[place]], [0])
    for other in (*found[1:], (whole, memory, g, loss)):
        assert tree.largest_difference(found[0][0], other[0]) == 0.0
        assert tree.largest_difference(found[0][1], other[1]) == 0.0
        assert torch.equal(found[0][2], other[2])
        assert torch.equal(found[0][3], other[3])


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_torch_s(name: str) -> None:
    module, whole, _, h, _ = a_half(name, OPTIMIZERS[0])
    half = Half(module)
    assert half.knows(h)
    out = half.outputs(whole, h)
    double = {name: value.double() for name, value in whole.items()}
    assert torch.allclose(
        out.flatten(0, 1).double(), predict(module.double(), double, h.double().flatten(0, 1)), atol=1e-5
    )


def test_what_is_no_number_is_none_afterwards() -> None:
    optimizer = OPTIMIZERS[0]
    module, whole, memory, h, y = a_half("transformer", optimizer)
    h[1, 0, 0, 0] = float("nan")
    half = Half(module)
    assert half.knows(h, optimizer)
    moved, _, g, loss = half.steps(whole, memory, optimizer, h, y, ROWS, [0, 1])
    assert torch.isfinite(loss[0])
    assert torch.isnan(loss[1])
    assert torch.isnan(g[1, 0]).all()
    assert all(torch.isnan(value).any() for value in moved.values())


def test_large_slopes_and_far_scores_are_as_torch_has_them() -> None:
    optimizer = OPTIMIZERS[0]
    module, whole, memory, h, y = a_half("vit", optimizer)
    whole = {name: 20.0 * value if "query" in name or "fc1" in name else value for name, value in whole.items()}
    half = Half(module)
    assert half.knows(h, optimizer)
    _, _, g, loss = half.steps(whole, memory, optimizer, h, y, ROWS, ORDER[:1])
    _, _, slope, mean, _ = step_half(module, whole, memory, optimizer, h[2, :1], y[2, :1])
    assert torch.allclose(g[2, :1], slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()))
    assert float(loss[2]) == pytest.approx(float(mean), rel=1e-5)


def test_a_label_beyond_the_outputs_is_refused() -> None:
    module, whole, memory, h, y = a_half("vit", OPTIMIZERS[0])
    half = Half(module)
    assert half.knows(h, OPTIMIZERS[0])
    y[1, 8] = 5
    with pytest.raises(EngineError, match="the label 5 and the server's half tells 5 classes apart"):
        half.steps(whole, memory, OPTIMIZERS[0], h, y, ROWS, ORDER)


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (large.build("resnet1d", (9, 32), 3), (9, 32), "behind a cut the kernels know transformers alone"),
        (large.build("transformer", (9, 32), 3, dim=24), (9, 32), "width is 24, and the kernels take multiples of 16"),
        (large.build("transformer", (8,), 3, vocabulary=4), (8,), "takes no patches"),
        (large.build("transformer", (9, 32), 3, dim=16), (9, 31), "doesn't take rows of shape"),
        (
            add_lora(large.build("transformer", (9, 32), 3, dim=16), 2, 1.0, "all", rng.Key(0, 0, 0, 0)),
            (9, 32),
            "takes no patches, or none that the kernels know",
        ),
    ],
)
def test_what_they_don_t_know_is_said(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    assert why in str(layout_of(module, shape))
    half = Half(module)
    assert not half.knows(torch.zeros(1, 1, *shape), OPTIMIZERS[0])
    assert half.told() == {"the server's half": f"torch: {half.refused}"}
    assert not Half(module, "torch").knows(torch.zeros(1, 1, *shape), OPTIMIZERS[0])


@pytest.mark.parametrize(
    ("scheme", "step"), [("federated_split", "device"), ("federated_split", "cohort"), ("split", "device")]
)
def test_a_round_is_that_of_the_loop(scheme: str, step: str) -> None:
    ends = []
    for engine in ("loop", "stacked"):
        config = Config().replace(
            run_engine=engine,
            data_name="digits",
            data_num_devices=3,
            scheme_batch=200,
            scheme_name=scheme,
            scheme_server_step=step,
            tiny_model="cnn",
            large_model="vit",
            large_options={"dim": 16, "depth": 1, "heads": 2, "patch": 2},
            large_optimizer="sgd",
            fleet_check=False,
        )
        built = plant.build(config)
        server = built.scheme.init(built.engine, built.kit, rng.Key(0, 0, rng.SERVER, 0))
        for number in (1, 2):
            server, told = built.scheme.round(server, built.engine, built.kit, rng.Key(0, number, rng.SERVER, 0))
        scores = built.scheme.evaluate(server, built.engine, built.kit, rng.Key(0, 2, rng.SERVER, 0))
        told |= {"test_loss": float(scores.metrics["loss"].mean())}
        ends.append(
            {
                **server.tree,
                **server.large,
                **server.state["optimizer"],
                **{name: torch.tensor(value) for name, value in told.items()},
            }
        )
        half = built.kit.half
        assert (
            half is None
            if engine == "loop"
            else isinstance(half, Half) and half.told() == {"the server's half": "native"}
        )
    assert tree.largest_difference(*ends) < 1e-5
