"""Every real data set, end to end: one round of a scheme that averages, one that teaches, one that is split."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from midhaul import train
from midhaul.config import Config

FOLDER = os.environ.get("MIDHAUL_DATA", "")
CASES = [
    ("mnist", "cnn", "group"),
    ("fashion_mnist", "cnn", "group"),
    ("fsdd", "dscnn", "group"),
    ("nslkdd", "mlp", "refuse"),
    ("eeg", "eegnet", "fedbn"),
    ("ecg", "cnn1d", "refuse"),
    ("omniglot", "cnn", "refuse"),
    ("clinc150", "mlp", "refuse"),
    ("shakespeare", "embed", "refuse"),
    ("irish5g", "cnn1d", "refuse"),
    ("har", "cnn1d", "refuse"),
]


@pytest.mark.skipif(not (FOLDER and Path(FOLDER).is_dir()), reason="MIDHAUL_DATA names no folder of data sets")
@pytest.mark.parametrize(("data", "model", "norm"), CASES, ids=[case[0] for case in CASES])
def test_one_round_of_each_kind(data: str, model: str, norm: str) -> None:
    for scheme in ("fedavg", "federated_transfer", "federated_split"):
        settings = Config().replace(
            data_name=data,
            data_test="device",
            data_max_rows=8,
            data_min_rows=4,
            data_public=0.02 if scheme == "federated_transfer" else 0.0,
            data_options={"max_rows": 20} if data == "shakespeare" else {},
            tiny_model=model,
            tiny_norm=norm,
            fleet_cohort=3,
            fleet_check=False,
            large_epochs=1,
            scheme_name=scheme,
            scheme_distill_epochs=1,
            run_rounds=1,
        )
        summary = train.run(settings).summary
        assert 0.0 <= summary["accuracy"] <= 1.0
        assert summary["uplink_bytes"] > 0
