"""Synthetic(alpha, beta) against the distributions in its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from midhaul import rng
from midhaul.data import federate, load
from midhaul.data.synthetic import num_rows
from midhaul.errors import ConfigError
from midhaul.rng import Use


def test_shapes_and_the_split():
    data = load("synthetic")
    assert data.input_shape == (60,)
    assert data.num_classes == 10
    assert len(data.device_names) == 30
    for device in range(30):
        mine = data.device == device
        assert int(mine.sum()) == num_rows(device, 0) >= 50
        assert int(data.held_out[mine].sum()) == round(0.2 * int(mine.sum()))
    fed = federate(data)
    assert fed.own_test
    assert fed.num_devices == 30


def test_row_counts_are_lognormal():
    logs = np.log([num_rows(device, 5) - 50 + 0.5 for device in range(3000)])
    assert abs(float(np.median(logs)) - 4.0) < 0.1
    assert abs(float(np.std(logs[logs > 1.0])) - 1.8) < 0.25


def test_one_row_follows_the_formula():
    # Device 2 by hand from its stream: count, u, B, v [60], W [10, 60] and b [10], rows.
    alpha, beta, seed, device = 0.5, 2.0, 3, 2
    data = load("synthetic", alpha=alpha, beta=beta, seed=seed, num_devices=4)
    drawn = rng.normal(rng.key(seed, 0, device, Use.SYNTHETIC), 3 + 60 + 610 + 60)
    assert num_rows(device, seed) == 50 + math.floor(math.exp(4 + 2 * drawn[0]))
    v = beta * drawn[2] + drawn[3:63]
    x = [v[j] + drawn[673 + j] * math.sqrt((j + 1) ** -1.2) for j in range(60)]
    w = alpha * drawn[1] + drawn[63:663].reshape(10, 60)
    b = alpha * drawn[1] + drawn[663:673]
    logits = [sum(w[c, j] * x[j] for j in range(60)) + b[c] for c in range(10)]
    softmax = np.exp(np.array(logits) - max(logits))
    first = int(np.flatnonzero(data.device == device)[0])
    np.testing.assert_allclose(data.x[first], x, rtol=1e-6, atol=1e-6)
    assert data.y[first] == int(np.argmax(softmax / softmax.sum()))


def test_given_row_counts_change_nothing_else():
    drawn, given = load("synthetic", num_devices=3), load("synthetic", num_devices=3, rows="50, 60,7")
    assert [int((given.device == device).sum()) for device in range(3)] == [50, 60, 7]
    for device, num in enumerate((50, 60, 7)):
        first = np.flatnonzero(drawn.device == device)[:num]
        np.testing.assert_array_equal(given.x[given.device == device][: len(first)], drawn.x[first])


def test_alpha_and_beta_spread_devices():
    def spread(beta: float) -> float:
        data = load("synthetic", alpha=0.0, beta=beta, num_devices=60)
        return float(np.std([data.x[data.device == d].mean() for d in range(60)]))

    # The mean of a device's inputs is about B_k plus noise of 1 / sqrt(60).
    assert spread(0.0) < 0.3
    assert abs(spread(3.0) - 3.0) < 0.9


def test_iid_devices_share_one_model():
    data = load("synthetic", iid=True, num_devices=10)
    assert abs(float(np.mean(data.x))) < 0.02
    # One linear model labels every row: refit the labels of all by the shared stream.
    model = rng.normal(rng.key(0, 0, rng.SERVER, Use.SYNTHETIC), 610)
    logits = data.x @ model[:600].reshape(10, 60).T + model[600:]
    assert float((np.argmax(logits, axis=1) == data.y).mean()) > 0.999


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1.0}, {"beta": float("nan")}, {"num_devices": 0}, {"rows": "50,50"}, {"rows": "-1," * 29 + "1"}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        load("synthetic", **options)


def test_blobs_are_bytes_that_a_linear_model_tells_apart():
    data = load("blobs", num_devices=20, rows=30, test_rows=400, shape="2,4")
    assert (data.x.dtype, data.x.shape) == (np.uint8, (1000, 2, 4))
    assert np.bincount(data.device).tolist() == [30] * 20 + [400]
    assert data.held_out.sum() == 400
    assert data.inputs(slice(0, 2)).tolist() == ((data.x[:2].astype(float) - 128) / 32).tolist()
    centres = np.stack([data.inputs(~data.held_out & (data.y == c)).reshape(-1, 8).mean(0) for c in range(10)])
    nearest = np.square(data.inputs(data.held_out).reshape(-1, 1, 8) - centres).sum(2).argmin(1)
    assert (nearest == data.y[data.held_out]).mean() > 0.9
    assert len({row.tobytes() for row in data.x}) == 1000, "no row stands twice"
    assert np.array_equal(load("blobs", num_devices=20, rows=30, test_rows=400, shape="2,4").x, data.x)


@pytest.mark.parametrize(
    "options", [{"shape": "a"}, {"shape": "1,2,3,4"}, {"num_devices": 0}, {"rows": 10**6, "num_devices": 10**7}]
)
def test_blobs_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError, match="blobs"):
        load("blobs", **options)
