"""Losses by row against numbers worked out by hand and against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from midhaul.errors import ModelError
from midhaul.models import losses


def test_cross_entropy_of_even_logits_is_the_log_of_the_classes() -> None:
    rows = losses.rows("cross_entropy", torch.zeros(2, 4), torch.tensor([0, 3]))
    assert rows.tolist() == pytest.approx([math.log(4)] * 2)


def test_cross_entropy_agrees_with_torch() -> None:
    logits, y = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 5
    torch.testing.assert_close(losses.cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none"))


def test_cross_entropy_stays_finite_for_huge_logits() -> None:
    rows = losses.cross_entropy(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 0]))
    assert rows.tolist() == [0.0, 1e4]


def test_mse_by_hand() -> None:
    # (0.5 - 1)^2 and (0.5 - 0)^2 over 2; then (2 - 0)^2 and (0 - 1)^2 over 2.
    rows = losses.rows("mse", torch.tensor([[0.5, 0.5], [2.0, 0.0]]), torch.tensor([0, 1]))
    assert rows.tolist() == [0.25, 2.5]


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_row_without_label_has_no_loss_and_no_gradient(name: str) -> None:
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    rows = losses.rows(name, logits, torch.tensor([-1, 0]))
    rows.sum().backward()
    assert rows[0] == 0.0
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0.0, 0.0]
    assert logits.grad[1].abs().sum() > 0


def test_distillation_by_hand() -> None:
    # At T = 2 the teacher's odds are e^(2 ln 3 / 2) = 3, so it says (3/4, 1/4); the student says (1/2, 1/2).
    soft = torch.tensor([[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    mixed = losses.rows("cross_entropy", torch.zeros(1, 2), torch.tensor([0]), soft, 2.0, 0.3)
    assert mixed.item() == pytest.approx(0.7 * math.log(2) + 0.3 * 4 * divergence)
    unlabelled = losses.rows("cross_entropy", torch.zeros(1, 2), torch.tensor([-1]), soft, 2.0, 0.3)
    assert unlabelled.item() == pytest.approx(0.3 * 4 * divergence)


def test_distillation_of_no_weight_is_the_plain_loss() -> None:
    logits, soft, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for name in losses.LOSSES:
        torch.testing.assert_close(losses.rows(name, logits, y, soft, 3.0, 0.0), losses.rows(name, logits, y))


def test_distillation_at_a_high_temperature_matches_logits() -> None:
    # Hinton et al., equation 4: for logits of mean zero, the gradient goes to (z - v) / C.
    z = torch.tensor([[1.0, -3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[0.5, -1.5, 1.0]], dtype=torch.float64)
    losses.distillation(z, torch.tensor([-1]), v, 1e4, 1.0).sum().backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 3, rtol=1e-3, atol=1e-4)


def test_mse_distils_by_the_distance_of_logits() -> None:
    logits, soft = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    rows = losses.rows("mse", logits, torch.tensor([0]), soft, 1.0, 0.5)
    assert rows.item() == 0.5 * 0.0 + 0.5 * (4 + 16) / 2


def test_rows_under_vmap_agree_with_a_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, soft = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)
    y = torch.tensor([[0, 1, -1, 4]] * 3)
    for name in losses.LOSSES:
        stacked = torch.vmap(lambda a, b, c, name=name: losses.rows(name, a, b, c, 2.0, 0.7))(logits, y, soft)
        loop = torch.stack([losses.rows(name, logits[d], y[d], soft[d], 2.0, 0.7) for d in range(3)])
        torch.testing.assert_close(stacked, loop)


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'cross_entropy'"):
        losses.rows("crossentropy", torch.zeros(1, 2), torch.tensor([0]))


def test_distance_correlation_by_hand() -> None:
    """x = 0, 1, 2 and h = 0, 0, 3: the centred distances give 20/3, 40/9 and 16, so the square is 20 / sqrt(640)."""
    x, h, ones = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [0.0], [3.0]]), torch.ones(3)
    expected = (20 / 640**0.5) ** 0.5
    assert float(losses.distance_correlation(x, h, ones)) == pytest.approx(expected, abs=1e-5)
    assert float(losses.distance_correlation(x, 7.0 - 2.0 * x, ones)) == pytest.approx(1.0, abs=1e-5)
    # Padding counts for nothing, nor does a shape other than a row of numbers.
    padded = [torch.cat([value, torch.full((2, 1), 9.0)]) for value in (x, h)]
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert float(losses.distance_correlation(*padded, mask)) == pytest.approx(expected, abs=1e-5)
    assert float(losses.distance_correlation(x.reshape(3, 1, 1), h, ones)) == pytest.approx(expected, abs=1e-5)


def test_distance_correlation_of_one_row_or_of_equal_rows_is_nothing_and_has_a_gradient() -> None:
    for x in (torch.ones(1, 4), torch.ones(5, 4)):
        h = torch.ones(len(x), 2, requires_grad=True)
        value = losses.distance_correlation(x, h, torch.ones(len(x)))
        assert value.item() < 1e-5
        value.backward()
        assert bool(torch.isfinite(h.grad).all())


def test_distance_correlation_of_independent_rows_falls_with_their_number() -> None:
    source = torch.Generator().manual_seed(0)
    few, many = (
        float(
            losses.distance_correlation(
                torch.randn(n, 2, generator=source), torch.randn(n, 2, generator=source), torch.ones(n)
            )
        )
        for n in (10, 1000)
    )
    assert many < 0.15 < few
