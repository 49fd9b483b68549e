"""What a run computes on: what is refused, what torch is told, and what is drawn. Whole runs: tests/contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad_and_value, vmap

from midhaul import hardware, plant, rng, train, tree
from midhaul.config import Config
from midhaul.errors import ConfigError, EngineError
from midhaul.hardware import CPU, Hardware
from midhaul.models.norm import FedBatchNorm
from midhaul.program import Population, Program, call_module
from midhaul.server import Optimizer, predict, step_half

CUDA = torch.device("cuda", 1)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch sees two cards: one that is old, and one that isn't."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((7, 5), (9, 0))[device.index])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


def test_the_processor_is_the_default_and_what_auto_falls_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Config().run
    assert hardware.find(run.device, run.precision) == Hardware(CPU, "float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.find("auto", "float32").is_host


def test_auto_is_the_first_card_and_a_number_names_another(two_cards: None) -> None:
    assert hardware.find("auto", "float32").device == torch.device("cuda", 0)
    assert hardware.find("cuda", "float32").device == torch.device("cuda", 0)
    assert hardware.find("cuda:1", "bf16") == Hardware(CUDA, "bf16")
    assert hardware.find("cuda:1", "tf32").about == "cuda:1 (Card 1), tf32"
    assert hardware.find("cpu", "float32").about == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "auto:0", ""])
def test_what_is_no_device_is_refused_by_name(device: str) -> None:
    with pytest.raises(ConfigError, match=r"run[.]device is '.*'; it must be cpu, cuda, cuda:N"):
        hardware.find(device, "float32")


def test_a_card_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, two_cards: None) -> None:
    with pytest.raises(ConfigError, match=r"sees 2 GPUs here; set run[.]device = 'cuda:0'$"):
        hardware.find("cuda:2", "float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"sees no GPU here; set run[.]device = 'cpu', or install a build"):
        hardware.find("cuda", "float32")


def test_a_precision_that_is_not_to_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, two_cards: None) -> None:
    with pytest.raises(ConfigError, match=r"Card 0 has no bf16"):
        hardware.find("cuda", "bf16")
    with pytest.raises(ConfigError, match=r"'bf16' is for a GPU, and this run is on the processor; set"):
        hardware.find("cpu", "bf16")
    with pytest.raises(ConfigError, match=r"run[.]precision is 'fp8'"):
        hardware.find("cpu", "fp8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"since torch sees no GPU"):
        hardware.find("auto", "tf32")


def test_a_run_is_refused_before_anything_is_loaded(two_cards: None) -> None:
    with pytest.raises(
        ConfigError, match=r"run[.]kernels = 'native' computes on the processor, and run[.]device is cuda:0"
    ):
        plant.build(Config().replace(run_device="cuda", run_kernels="native", data_name="none such"))


@pytest.mark.parametrize("precision", hardware.PRECISIONS)
def test_torch_is_told_how_precisely_and_is_left_as_it_was(two_cards: None, precision: str) -> None:
    def told() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        kinds = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
        auto = torch.is_autocast_enabled("cuda"), torch.is_autocast_cache_enabled()
        return (*(kind.fp32_precision for kind in kinds), cudnn.deterministic, cudnn.benchmark, *auto)

    before = told()
    with hardware.at_work(Hardware(CUDA, precision)):
        assert hardware.now().device == CUDA
        products = ("tf32",) * 3 if precision == "tf32" else ("ieee",) * 3
        assert told() == (*products, True, False, precision == "bf16", False)
    assert told() == before
    assert hardware.now().is_host


def test_too_little_memory_is_told_in_a_sentence() -> None:
    told = pytest.raises(EngineError, match=r"cuda:1 has no memory left; lower run[.]memory")
    with told, hardware.at_work(Hardware(CUDA)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_dropout_draws_on_the_host_what_torch_draws_there() -> None:
    class Elsewhere(Hardware):
        @property
        def is_host(self) -> bool:
            return False

    layers = nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.5, inplace=True))
    x, key = torch.ones(7, 5), rng.key(1, 2, rng.SERVER, rng.Use.DROPOUT)
    with rng.torch_seed(key):
        wanted = layers(x)
    with hardware.at_work(Elsewhere()), rng.torch_seed(key), hardware.drawing():
        found = layers(x)
        layers.eval()
        assert torch.equal(layers(x), layers(x))
    assert (found == 0).any()
    assert torch.equal(found, wanted)


def test_a_count_stays_on_the_host_and_weights_do_not() -> None:
    meta = Hardware(torch.device("meta"))
    memory = Optimizer("adam", 0.1).init({"w": torch.zeros(2), "scale": torch.zeros(())})
    there = {name: value.device.type for name, value in meta.put_tree(memory).items()}
    assert there == {"m.w": "meta", "m.scale": "meta", "v.w": "meta", "v.scale": "meta", "count": "cpu"}


def test_in_bf16_products_are_coarse_and_all_else_stays_float32() -> None:
    """As on a GPU, but for the kind of device that autocast is told."""
    module = nn.Sequential(nn.Conv1d(2, 4, 3), FedBatchNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3))
    program = Program(module, (2, 8), personal=("1.running_mean", "1.running_var"))
    held = {name: torch.stack([value] * 3) for name, value in program.initial.items()}
    weights = tree.select(held, program.names("whole"))
    rest = tree.without(held, weights)
    x, y = torch.randn(3, 300, 2, 8), torch.randint(3, (3, 300))
    mask = torch.ones(3, 300)

    def loss(weights: tree.Tree, rest: tree.Tree, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> object:
        logits, renewed = program.call({**rest, **weights}, x, training=True, mask=mask)
        return nn.functional.cross_entropy(logits, y), (logits, renewed)

    learn = vmap(grad_and_value(loss, has_aux=True))
    slopes, (value, (_, renewed)) = learn(weights, rest, x, y, mask)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        coarse, (close, (logits, moved)) = learn(weights, rest, x, y, mask)
    assert logits.dtype == torch.bfloat16
    assert close.dtype == torch.float32
    assert {part.dtype for part in (*coarse.values(), *moved.values())} == {torch.float32}
    assert 0.0 < tree.largest_difference(coarse, slopes) < 0.05
    assert float((close - value).abs().max()) < 0.05
    assert tree.largest_difference(moved, renewed) < 0.01  # 300 rows are more than bfloat16 could count


def test_in_bf16_a_server_half_gives_float32() -> None:
    module = nn.Linear(4, 3)
    whole, optimizer = tree.of(module), Optimizer("adam", 0.01)
    h, y = torch.randn(9, 4), torch.randint(3, (9,))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        large, memory, g, loss, logits = step_half(module, whole, optimizer.init(whole), optimizer, h, y)
        answers = predict(module, whole, h)
    found = (*large.values(), g, loss, logits, answers, *(v for n, v in memory.items() if n != "count"))
    assert {value.dtype for value in found} == {torch.float32}


def test_a_buffer_that_no_tree_has_goes_along() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x * self.scale)
            return out

    program, meta = Program(Scaled(), (3,)), torch.device("meta")
    held = {name: value.to(meta) for name, value in program.initial.items()}
    out, _ = program.call(held, torch.ones(5, 3, device=meta), training=False)
    assert (out.shape, out.device) == ((5, 2), meta)
    with pytest.raises(RuntimeError, match=r"meta"):
        call_module(program.module, {}, held, torch.ones(5, 3, device=meta), training=False)


def test_rows_and_what_their_bytes_stand_for_go_together() -> None:
    places = (torch.arange(3).numpy(),)
    codes = Population(
        torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), places, places, (), True,
        levels=torch.zeros(256),
    )  # fmt: skip
    there = codes.on(torch.device("meta"))
    assert {value.device.type for value in (there.x, there.y, there.levels) if value is not None} == {"meta"}
    assert there.devices == codes.devices
    assert codes.on(CPU).x is codes.x


def test_a_run_says_what_computed_it() -> None:
    small = {"data_num_devices": 2, "data_max_rows": 10, "run_rounds": 1, "tiny_options": {"hidden": [4]}}
    assert train.run(Config().replace(**small)).summary["hardware"] == "cpu"
