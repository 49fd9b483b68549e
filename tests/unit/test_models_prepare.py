"""What becomes of a user's module before it is federated, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul.errors import ModelError
from midhaul.models import tiny
from midhaul.models.norm import FedBatchNorm
from midhaul.models.slices import prepare


class Written(nn.Module):
    """A layer and whatever is done with its output."""

    def __init__(self, after: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.after = after
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, self.fc(x))


def count_up(module: nn.Module, x: Tensor) -> Tensor:
    if module.training:
        module.seen = module.seen + 1
    return x


def batch_norm() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16 * 16, 3)
    )


def test_a_plain_model_comes_back_as_a_copy_without_notes() -> None:
    module = tiny.build("mlp", (4,), 2)
    prepared = prepare(module, (4,))
    assert (prepared.notes, prepared.personal) == ((), ())
    assert prepared.module is not module
    assert torch.equal(prepared.module(torch.ones(1, 4)), module(torch.ones(1, 4)))


def test_batch_norm_is_refused_with_the_choices() -> None:
    with pytest.raises(ModelError, match=r"statistics of 1 depend .* norm = 'group' .* norm = 'fedbn'"):
        prepare(batch_norm(), (1, 6, 6))
    with pytest.raises(ModelError, match="did you mean 'group'"):
        prepare(batch_norm(), (1, 6, 6), "groups")


def test_group_norm_takes_the_place_of_batch_norm() -> None:
    module = batch_norm()
    prepared = prepare(module, (1, 6, 6), "group")
    assert isinstance(prepared.module[1], nn.GroupNorm)
    assert prepared.module[1].num_groups == 8
    assert prepared.personal == ()
    assert prepared.notes[0].startswith("dropout is off on devices")
    assert prepared.notes[1] == "batch norm became group norm: 1"
    assert prepared.module[3].p == 0.0
    assert module[3].p == 0.5
    assert isinstance(module[1], nn.BatchNorm2d)
    assert [n for n, _ in prepared.module.named_parameters()] == [n for n, _ in module.named_parameters()]


def test_fedbn_keeps_batch_norm_on_the_device() -> None:
    module = batch_norm()
    prepared = prepare(module, (1, 6, 6), "fedbn")
    assert isinstance(prepared.module[1], FedBatchNorm)
    assert prepared.personal == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    x = torch.randn(5, 1, 6, 6)
    torch.testing.assert_close(prepared.module.eval()(x), module.eval()(x))


def test_long_lists_of_layers_are_cut_short() -> None:
    prepared = prepare(tiny.build("dscnn", (1, 21, 10), 3, channels=8), (1, 21, 10), "group")
    assert prepared.notes == ("batch norm became group norm: conv_norm, depthwise1_norm, pointwise1_norm and 6 more",)


def test_instance_norm_loses_running_statistics() -> None:
    module = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(24, 2)
    )
    with pytest.raises(ModelError, match="statistics of 1"):
        prepare(module, (2, 8))
    prepared = prepare(module, (2, 8), "group")
    assert not prepared.module[1].track_running_stats
    assert "instance norm lost" in prepared.notes[0]
    plain = nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(24, 2))
    assert prepare(plain, (2, 8)).notes == ()


def test_dropout_inside_of_other_layers_is_off_too() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    prepared = prepare(Attends(), (3, 4))
    assert prepared.module.attention.dropout == 0.0
    assert prepared.notes[0].endswith("attention")


def test_other_hidden_state_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="a training pass changes seen"):
        prepare(Written(count_up), (4,))
    normalised = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 2)))
    with pytest.raises(ModelError, match=r"a training pass changes 0\.weight_u"):
        prepare(normalised, (4,))


def test_random_numbers_of_its_own_are_refused() -> None:
    with pytest.raises(ModelError, match="draws random numbers"):
        prepare(Written(lambda module, x: F.dropout(x, 0.5, module.training)), (4,))


def test_rows_that_mix_are_refused() -> None:
    with pytest.raises(ModelError, match="depends on the other rows"):
        prepare(Written(lambda module, x: x - x.mean(0, keepdim=True)), (4,))


def test_a_parameter_may_not_be_named_as_messages_name_their_rows() -> None:
    module = nn.Module()
    module.h = nn.Parameter(torch.zeros(2))
    with pytest.raises(ModelError, match="named 'h', which messages use for activations"):
        prepare(module, (4,))


@pytest.mark.parametrize(
    ("after", "got"),
    [
        (lambda m, x: x.mean(), r"shape \(\)"),
        (lambda m, x: x[:, None], r"shape \(2, 1, 3\)"),
        (lambda m, x: (x, x), "type tuple"),
        (lambda m, x: x.argmax(1), r"shape \(2,\)"),
    ],
)
def test_an_output_that_is_not_one_row_a_row_is_refused(after: Callable[..., Tensor], got: str) -> None:
    with pytest.raises(ModelError, match=f"gives an output of {got}"):
        prepare(Written(after), (4,))


def test_an_input_of_another_shape_is_told_with_what_torch_said() -> None:
    with pytest.raises(ModelError, match=r"can't be run on an input of shape \(2, 5\) .*shapes cannot be multiplied"):
        prepare(nn.Linear(4, 2), (5,))


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="has no shape yet"):
        prepare(nn.Sequential(nn.LazyLinear(2)), (4,))


def test_preparing_leaves_modes_and_statistics_as_they_were() -> None:
    module = batch_norm().train()
    prepared = prepare(module, (1, 6, 6), "fedbn").module
    assert prepared.training
    assert prepared[1].updated == {}
    assert prepared[1].get_buffer("running_mean").abs().sum() == 0
    assert module[1].running_mean.abs().sum() == 0
