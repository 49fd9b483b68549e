"""Synthetic(alpha, beta): devices whose models and inputs differ by as much as one asks for.

Shape letters: N rows, F features (60), C classes (10).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from midhaul import rng
from midhaul.data.dataset import Bools, Dataset, Floats, Ints
from midhaul.data.sources import Description
from midhaul.errors import ConfigError
from midhaul.rng import Use

NUM_FEATURES, NUM_CLASSES = 60, 10
_TEST_SHARE = 0.2
_MAX_ROWS = 2_000_000

DESCRIPTION = Description(
    name="synthetic",
    what="Synthetic(alpha, beta): alpha is how much the devices' models differ, beta how much their inputs do",
    shape="x [N, 60] float32, 10 classes; 30 devices of 50 and more rows",
    key="device",
    licence="none needed: the numbers are drawn here",
    source="https://arxiv.org/abs/1812.06127",
    citation="Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, Federated Optimization in Heterogeneous Networks, "
    "MLSys 2020",
)


def load(
    folder: Path | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    num_devices: int = 30,
    iid: bool = False,
    seed: int = 0,
    rows: str = "",
) -> Dataset:
    """Gives Synthetic(alpha, beta), each device's rows split 80/20 at random; held-out rows are the 20.

    Device k draws n_k = 50 + floor(lognormal(4, 2)) rows, u_k ~ N(0, alpha), B_k ~ N(0, beta), v_k ~ N(B_k, 1)^60,
    W_k ~ N(u_k, 1)^(10x60), b_k ~ N(u_k, 1)^10, then x ~ N(v_k, diag(j^-1.2)) and y = argmax softmax(W_k x + b_k).
    With `iid` all devices share W, b ~ N(0, 1) and v = 0. `rows`, for example "80,75,60", gives n_k of each device.

    Source: Li et al. 2020, section 5.1 and appendix C.1. N(0, alpha) has *standard deviation* alpha, as in the authors'
    released generator, from which the published curves come (0 and 1 mean the same either way).
    Raises: ConfigError if a number is out of range.
    """
    if not (0.0 <= alpha < 1e6 and 0.0 <= beta < 1e6):
        raise ConfigError(f"synthetic: alpha {alpha} and beta {beta} must be 0 or above and finite")
    if not 1 <= num_devices <= 10_000:
        raise ConfigError(f"synthetic: num_devices is {num_devices}; it must lie in 1..10000")
    sizes = _given_rows(rows, num_devices) if rows else [num_rows(device, seed) for device in range(num_devices)]
    parts = [_device(device, num, alpha, beta, iid, seed) for device, num in enumerate(sizes)]
    counts = [len(y) for _, y, _ in parts]
    if sum(counts) > _MAX_ROWS:
        raise ConfigError(f"synthetic: seed {seed} draws {sum(counts)} rows, over {_MAX_ROWS}; take fewer devices")
    return Dataset(
        name="synthetic",
        x=np.concatenate([x for x, _, _ in parts]),
        y=np.concatenate([y for _, y, _ in parts]),
        device=np.repeat(np.arange(num_devices, dtype=np.int64), counts),
        device_names=tuple(f"device {device}" for device in range(num_devices)),
        held_out=np.concatenate([held_out for _, _, held_out in parts]),
        class_names=tuple(str(label) for label in range(NUM_CLASSES)),
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=sum(counts),
    )


def num_rows(device: int, seed: int) -> int:
    """Gives n_k = 50 + floor(lognormal(4, 2)): mean 4 and standard deviation 2 of the logarithm."""
    log_count = 4.0 + 2.0 * float(rng.normal(rng.key(seed, 0, device, Use.SYNTHETIC), 1)[0])
    return 50 + min(int(math.exp(log_count)), _MAX_ROWS)


def _given_rows(text: str, num_devices: int) -> list[int]:
    parts = text.split(",")
    if len(parts) != num_devices or not all(part.strip().isdecimal() and 0 < int(part) <= _MAX_ROWS for part in parts):
        raise ConfigError(
            f"synthetic: the option rows must be {num_devices} numbers from 1 to {_MAX_ROWS} with commas between them, "
            "one for each device"
        )
    return [int(part) for part in parts]


def _device(device: int, num: int, alpha: float, beta: float, iid: bool, seed: int) -> tuple[Floats, Ints, Bools]:
    num_model = NUM_CLASSES * NUM_FEATURES + NUM_CLASSES
    # The stream of a device: count, u, B, v [F], W and b [C*F + C], then its rows.
    head = 3 + NUM_FEATURES + num_model
    drawn = rng.normal(rng.key(seed, 0, device, Use.SYNTHETIC), head + num * NUM_FEATURES)
    u, centre = alpha * drawn[1], beta * drawn[2]
    v = centre + drawn[3 : 3 + NUM_FEATURES]
    model = u + drawn[3 + NUM_FEATURES : head]
    if iid:
        v, model = np.zeros(NUM_FEATURES), rng.normal(rng.key(seed, 0, rng.SERVER, Use.SYNTHETIC), num_model)
    w_CF, b_C = model[:-NUM_CLASSES].reshape(NUM_CLASSES, NUM_FEATURES), model[-NUM_CLASSES:]
    deviation_F = np.arange(1, NUM_FEATURES + 1) ** -0.6
    x_NF = v + drawn[head:].reshape(num, NUM_FEATURES) * deviation_F
    # The softmax keeps the order of its inputs, so its argmax is theirs.
    y_N = np.argmax(x_NF @ w_CF.T + b_C, axis=1).astype(np.int64)
    held_out = np.zeros(num, np.bool_)
    held_out[rng.permutation(rng.key(seed, 0, device, Use.SPLIT), num)[: round(_TEST_SHARE * num)]] = True
    return x_NF.astype(np.float32), y_N, held_out
