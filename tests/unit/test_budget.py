"""Budgets: bytes and MACs worked out by hand, the refusals, and arenas of real models."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from midhaul import budget, size
from midhaul.devices import arena, blob, footprint
from midhaul.devices.profiles import get
from midhaul.errors import BudgetError, SliceError
from midhaul.message import Op
from midhaul.models import count, tiny
from midhaul.models.translate import translate

BOARD = get("stm32l4")
RUNTIME = budget.runtime_sram_bytes(BOARD)


class Layer(NamedTuple):
    name: str
    macs: int


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


def names(module: nn.Module, *layers: str) -> list[str]:
    return [name for name, _ in module.named_parameters() if not layers or name.rpartition(".")[0] in layers]


def needs(module: nn.Module, shape: tuple[int, ...], op: Op, train: list[str], **how: Any) -> tuple[int, int]:
    """Gives the bytes of the arena and the MACs of one example."""
    found = budget.plan(module, shape, BOARD, op, train=train, **how)
    assert found.estimate == ""
    assert found.sram_bytes == arena.peak(found.buffers) + RUNTIME
    return found.sram_bytes - RUNTIME, found.macs


def test_training_a_two_layer_network_by_hand() -> None:
    # Every buffer takes whole pieces of 16 bytes. Weights 48 + 16 + 32 + 16 and as many sums. Most lives at the loss:
    # x, hidden, logits, their gradient, and scratch for it, 16 each; and 16 for the order of the rows.
    assert needs(mlp(), (4,), Op.FIT, names(mlp()), batch=5) == (2 * 112 + 5 * 16 + 16, 18 + 12 + 6 + 6)
    assert needs(mlp(), (4,), Op.FIT, names(mlp()), momentum=True)[0] == 3 * 112 + 5 * 16 + 16
    assert needs(mlp(), (4,), Op.FIT, names(mlp()), momentum=True, keeps_start=True)[0] == 4 * 112 + 5 * 16 + 16


def test_the_order_of_the_rows_takes_two_bytes_a_row() -> None:
    one, many = (needs(mlp(), (4,), Op.FIT, names(mlp()), num_rows=num)[0] for num in (8, 400))
    assert many - one == 800 - 16


def test_training_the_head_and_the_biases_by_hand() -> None:
    # Head: 32 + 16 twice. A row is kept as its hidden numbers, so x isn't there; else as above.
    assert needs(mlp(), (4,), Op.FIT, names(mlp(), "2")) == (2 * 48 + 4 * 16 + 16, 18 + 6)
    # Biases: 16 + 16 twice; hidden, logits, gradient and scratch at the loss; x is gone by then.
    assert needs(mlp(), (4,), Op.FIT, ["0.bias", "2.bias"]) == (2 * 32 + 4 * 16 + 16, 18 + 6)


def test_inference_by_hand() -> None:
    assert needs(mlp(), (4,), Op.EVALUATE, []) == (16 + 16, 18)
    assert needs(mlp(), (4,), Op.PREDICT, names(mlp())) == (112 + 32, 18)  # weights that change live in SRAM
    assert needs(mlp(), (4,), Op.LOAD, names(mlp())) == (112, 0)


def test_training_a_small_convolutional_network_by_hand() -> None:
    # Weights 80 + 16 + 96 + 16, twice. Most lives at the backward of the pooling: x 64, convolution 128, gradient of
    # the pooling 32, gradient of the convolution 128.
    assert needs(conv(), (1, 4, 4), Op.FIT, names(conv())) == (2 * 208 + 352 + 16, 312 + 288 + 24 + 24)
    assert needs(conv(), (1, 4, 4), Op.EVALUATE, []) == (64 + 128, 2 * 9 * 16 + 8 * 3)


def test_split_learning_by_hand() -> None:
    front = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    # Rows of h go out, and rows of g come in, one at a time: the batch takes nothing.
    assert needs(front, (4,), Op.FORWARD, names(front), batch=10) == (64 + 16 + 16 + 16, 12)
    # BACKWARD runs the forward pass again: x, hidden, g, the sums, and the order of the rows.
    assert needs(front, (4,), Op.BACKWARD, names(front), batch=10) == (2 * 64 + 4 * 16, 12 + 12)
    assert needs(mlp(), (4,), Op.BACKWARD, [], batch=10, cut="1") == (2 * 64 + 4 * 16, 24)


def test_what_the_device_runtime_can_not_run_is_estimated_and_the_budget_says_why() -> None:
    module = nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), act=nn.GELU(), head=nn.Linear(3, 2)))
    found = budget.plan(module, (4,), BOARD, Op.PREDICT)
    assert "'act' (GELU)" in found.estimate
    assert found.sram_bytes == 16 + 12 + RUNTIME


def test_the_tail_of_a_u_shape_by_hand() -> None:
    tail = nn.Linear(3, 2)
    z_bytes = 10 * 3 * 4
    found = budget.plan(tail, (3,), BOARD, Op.BACKWARD, batch=10, is_tail=True, resident_bytes=100)
    assert found.sram_bytes == RUNTIME + 2 * 32 + z_bytes + 2 * 8 + 100
    assert found.macs == 6 + 6 + 6


def test_batch_norm_in_training_holds_the_whole_batch() -> None:
    # Nodes: x, batch norm, linear. In training the norm's output is a buffer of its own, as its input is kept.
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    one, batch = (
        budget.plan(module, (4,), BOARD, Op.FIT, train=names(module), batch=size).sram_bytes - RUNTIME
        for size in (1, 8)
    )
    persistent = 2 * 4 * (8 + 10)
    assert batch - persistent == 8 * (one - persistent)
    inference = {needs(module, (4,), Op.EVALUATE, [], batch=size)[0] for size in (1, 8)}
    assert len(inference) == 1


def test_flash_holds_the_code_and_two_slots_for_the_blob() -> None:
    found = budget.plan(mlp(), (4,), BOARD, Op.FIT, train=names(mlp(), "2"))
    made = blob.compile(translate(mlp(), (4,)), {"slice": names(mlp(), "2")}, fits=("slice",))
    assert len(made.data) < 4096 - footprint.COMMIT_BYTES
    assert found.flash_bytes == 2 * 4096 + footprint.of(BOARD.core).code_bytes
    assert footprint.slots_bytes(4096) == 2 * 8192


def test_seconds_and_joules_by_hand() -> None:
    layers = count.layers(mlp(), (4,))
    done = budget.workload(BOARD, layers, Op.FIT, names(mlp()), 1000)
    assert done.macs == 42_000
    assert done.seconds == pytest.approx(42_000 * 5.87 / 80e6)
    assert done.joules == pytest.approx(done.seconds * 84e-6 * 80 * 3.3)
    module = nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), act=nn.GELU(), head=nn.Linear(3, 2)))
    found = budget.plan(module, (4,), BOARD, Op.FIT, train=names(module), num_examples=1000)
    assert (found.instructions, found.macs, found.seconds) == (None, *done[:2])


def test_seconds_are_those_of_the_instructions_where_these_are_predicted() -> None:
    found = budget.plan(mlp(), (4,), BOARD, Op.FIT, train=names(mlp()), num_examples=1000)
    assert found.macs == 42_000
    assert found.instructions is not None
    assert found.seconds == pytest.approx(found.instructions * 5.87 / 3.87 / 80e6)
    assert found.joules == pytest.approx(found.seconds * 84e-6 * 80 * 3.3)
    four = budget.plan(mlp(), (4,), BOARD, Op.FIT, train=names(mlp()), num_examples=1000, batch=4)
    head = budget.plan(mlp(), (4,), BOARD, Op.FIT, train=names(mlp(), "2"), num_examples=1000, batch=4)
    predict = budget.plan(mlp(), (4,), BOARD, Op.PREDICT, num_examples=1000)
    assert found.instructions > (four.instructions or 0) > (head.instructions or 0) > 1000
    assert (four.instructions or 0) > 2 * (predict.instructions or 0) > 2000
    assert budget.plan(mlp(), (4,), BOARD, Op.READ).instructions == 0
    assert budget.plan(mlp(), (4,), get("rpi4"), Op.PREDICT).instructions is None


LAYERS = (Layer("a", 100), Layer("act", 0), Layer("block.b", 20), Layer("head", 3))


@pytest.mark.parametrize(
    ("op", "train", "macs"),
    [
        (Op.LOAD, ("a.weight",), 0),
        (Op.READ, (), 0),
        (Op.EVALUATE, ("a.weight",), 123),
        (Op.FORWARD, (), 123),
        (Op.FIT, (), 123),
        (Op.FIT, ("head.weight", "head.bias"), 123 + 3),
        (Op.FIT, ("head.bias",), 123),
        (Op.ADAPT, ("block.b.weight",), 123 + 20 + 3),
        (Op.FIT, ("a.bias", "block.b.bias", "head.bias"), 123 + 20 + 3),
        (Op.FIT, ("a.weight", "block.b.weight", "head.weight"), 123 + 100 + 2 * 23),
        (Op.FIT, ("block.scale",), 123 + 20 + 3),  # of a block: trained where the block begins
        (Op.FIT, ("token",), 123 + 100 + 23),  # of the model itself: from the first layer on
        (Op.BACKWARD, (), 123 + 100 + 2 * 23),
    ],
)
def test_macs_of_an_example_by_hand(op: Op, train: tuple[str, ...], macs: int) -> None:
    assert budget.macs_per_example(LAYERS, op, train) == macs


def test_a_layer_called_twice_is_trained_twice() -> None:
    assert budget.macs_per_example((Layer("a", 10), Layer("a", 10)), Op.FIT, ("a.weight",)) == 20 + 10 + 10 + 10


def test_what_is_too_large_is_refused_with_what_would_fit() -> None:
    module = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    whole = budget.plan(module, (100,), BOARD, Op.FIT, train=names(module))
    head = budget.plan(module, (100,), BOARD, Op.FIT, train=names(module, "2"))
    assert (whole.fits, head.fits) == (False, True)
    assert whole.over_sram_bytes == whole.sram_bytes - 65_536 > 0
    with pytest.raises(BudgetError) as caught:
        budget.require(module, (100,), BOARD, Op.FIT, model="toy")
    assert str(caught.value) == (
        f"training 'whole' of toy needs {whole.sram_bytes:,} B of SRAM on stm32l4 (65,536 B): "
        f"{whole.over_sram_bytes:,} B over; the largest slice that fits is 'head' ({head.sram_bytes:,} B)"
    )
    assert budget.require(module, (100,), BOARD, Op.FIT, model="toy", spec="head") == head


def test_a_cut_that_is_too_late_is_refused_with_one_that_fits() -> None:
    module = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 2))
    early = budget.plan(module, (40,), BOARD, Op.BACKWARD, cut="1", batch=16)
    late = budget.plan(module, (40,), BOARD, Op.BACKWARD, cut="3", batch=16)
    words = f"BACKWARD of toy up to '3' needs {late.sram_bytes:,} B .* cut that fits is '1' .{early.sram_bytes:,} B"
    with pytest.raises(BudgetError, match=words):
        budget.require(module, (40,), BOARD, Op.BACKWARD, model="toy", cut="3", batch=16)


def test_too_much_flash_and_nothing_that_fits_are_refused() -> None:
    module = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    need = budget.plan(module, (300,), BOARD, Op.EVALUATE).flash_bytes
    over = need - 262_144
    assert over > 0
    with pytest.raises(BudgetError, match=rf"toy needs {need:,} B of flash on stm32l4 \(262,144 B\): {over:,} B over"):
        budget.require(module, (300,), BOARD, Op.EVALUATE, model="toy")
    large = nn.Conv2d(1, 4, 3, padding=1)
    module = nn.Sequential(large, nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(4 * 64, 2))
    with pytest.raises(BudgetError, match="no slice of it fits: choose a smaller model or a larger board"):
        budget.require(module, (1, 64, 64), BOARD, Op.FIT, model="toy")
    with pytest.raises(BudgetError, match=r"EVALUATE of toy needs .* over; choose a smaller model"):
        budget.require(module, (1, 64, 64), BOARD, Op.EVALUATE, model="toy")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SliceError, match=r"no parameter '0.weights'; did you mean '0.weight'\?"):
        budget.plan(mlp(), (4,), BOARD, Op.FIT, train=["0.weights"])
    with pytest.raises(BudgetError, match="batch of 0 rows"):
        budget.plan(mlp(), (4,), BOARD, Op.FIT, batch=0)


def test_slices_come_smallest_first_and_a_model_without_some_has_the_others() -> None:
    assert list(budget.of_slices(mlp(), (4,), BOARD)) == ["bias", "head", "body", "whole"]
    assert "body" not in budget.of_slices(nn.Sequential(nn.Linear(4, 2, bias=False)), (4,), BOARD)
    assert budget.largest_that_fits({}) is None


def test_cuts_come_in_order_and_keep_more_the_later_they_are() -> None:
    found = budget.of_cuts(conv(), (1, 4, 4), BOARD, batch=4)
    assert list(found) == ["0", "1", "2", "3"]
    assert all(later.macs >= earlier.macs for earlier, later in itertools.pairwise(found.values()))


MODELS = [("dscnn", (1, 49, 10), 12), ("resnet8", (3, 32, 32), 10), ("cnn1d", (6, 128), 6), ("eegnet", (9, 640), 2)]


@pytest.mark.parametrize(("name", "shape", "num_classes"), MODELS)
def test_arenas_of_tiny_models_hold_what_lives_and_overlap_nowhere(
    name: str, shape: tuple[int, ...], num_classes: int
) -> None:
    module = tiny.build(name, shape, num_classes)
    for op in (Op.EVALUATE, Op.FIT):
        found = budget.plan(module, shape, BOARD, op, train=names(module) if op is Op.FIT else [], batch=2)
        assert arena.peak(found.buffers) >= arena.live_peak(found.buffers)
        for left, right in itertools.combinations(found.buffers, 2):
            assert not left.meets(right) or left.end <= right.offset or right.end <= left.offset


def test_the_arena_of_resnet8_is_near_the_published_one() -> None:
    # MLPerf Tiny's ResNet8 takes an arena of 56.0 KB in int8; three maps of 32 x 32 x 16 live at its first addition.
    found = budget.plan(tiny.build("resnet8", (3, 32, 32), 10), (3, 32, 32), BOARD, Op.EVALUATE)
    assert arena.peak(found.buffers) == 4 * 3 * 32 * 32 * 16
    assert 0.8 * 56_000 < arena.peak(found.buffers) / 4 < 56_000


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.data())
@settings(max_examples=25, deadline=None)
def test_any_slice_of_any_chain_fits_in_its_arena(widths: list[int], draws: st.DataObject) -> None:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), draws.draw(st.sampled_from([nn.ReLU, nn.GELU, nn.Identity]))()]
    module = nn.Sequential(*layers)
    train = draws.draw(st.lists(st.sampled_from(names(module)), unique=True))
    found = budget.plan(module, (widths[0],), BOARD, Op.FIT, train=train, momentum=True)
    for left, right in itertools.combinations(found.buffers, 2):
        assert not left.meets(right) or left.end <= right.offset or right.end <= left.offset
    sizes = {name: value.numel() for name, value in module.named_parameters()}
    assert arena.live_peak(found.buffers) <= arena.peak(found.buffers)
    assert arena.peak(found.buffers) >= 12 * sum(sizes[name] for name in train)


class Shared(nn.Module):
    """One layer used twice, and a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.relu(self.mix(x))) + x
        return out


def test_a_layer_used_twice_has_its_weights_once() -> None:
    found = budget.plan(Shared(), (4,), BOARD, Op.FIT, train=["mix.weight", "mix.bias"])
    assert found.macs == 2 * 16 + 2 * 16 + 16
    assert sum(buffer.bytes for buffer in found.buffers if "mix." in buffer.name) == 2 * 80


def test_a_sheet_shows_instructions_where_they_are_predicted() -> None:
    sheets = {board: size.sheet("mlp", get(board), shape=(8,), classes=3) for board in ("stm32l4", "alif_e3")}
    known, unknown = sheets["stm32l4"], sheets["alif_e3"]
    assert "instr" in known.columns
    assert "MACs" not in known.columns
    assert all(op["instructions"] > op["macs"] for op in known.to_table()["ops"] if op["op"] != "fit head")
    assert "instructions are predicted" in known.basis
    assert "MACs" in unknown.columns
    assert {op["instructions"] for op in unknown.to_table()["ops"]} == {None}
    assert {len(row) for sheet in sheets.values() for row in sheet.rows} == {len(known.columns)}


def test_what_coding_an_update_keeps_by_hand() -> None:
    """23 numbers: 92 bytes that are owed, up to the next 16; places lie where the order of the rows will."""
    all_of = names(mlp())

    def sram(**how: Any) -> int:
        return needs(mlp(), (4,), Op.FIT, all_of, num_rows=50, **how)[0]

    assert sram(owes=True) - sram() == 96
    assert sram(places=0.5) == sram()
    assert sram(places=1.0) == sram()  # 92 bytes up to 96, and the order of 50 rows is 112
    assert needs(mlp(), (4,), Op.FIT, all_of, num_rows=1, places=1.0)[0] - needs(mlp(), (4,), Op.FIT, all_of)[0] == 80
    assert needs(mlp(), (4,), Op.PREDICT, [], owes=True) == needs(mlp(), (4,), Op.PREDICT, [])
