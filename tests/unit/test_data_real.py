"""The real files, where MIDHAUL_DATA names a folder that has them: the shapes and counts that their manifest tells."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from midhaul.data import Dataset, check, describe, federate, load

FOLDER = os.environ.get("MIDHAUL_DATA", "")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips where a file of the data set isn't in the folder."""
    missing = [file.name for file in describe(name).files if not FOLDER or not (Path(FOLDER) / file.name).is_file()]
    reason = f"MIDHAUL_DATA is {FOLDER!r}, where {missing[0]} is not" if missing else ""
    return pytest.mark.skipif(bool(missing), reason=reason)


def read(name: str, **options: object) -> Dataset:
    """Loads and checks what holds of every set: torch takes x as it is, and rows are accounted for."""
    data = load(name, **options)
    assert data.x.flags.c_contiguous
    assert data.x.flags.writeable
    assert len(data) == data.num_read - len(data.refused)
    return data


@needs("har")
def test_har():
    start = time.process_time()
    data = load("har")
    assert time.process_time() - start < 2.0
    assert data.x.shape == (10411, 6, 128)
    assert int((~data.held_out).sum()) == 7415
    train = data.x[~data.held_out]
    assert np.abs(train.mean(axis=(0, 2))).max() < 0.05
    assert np.abs(train.std(axis=(0, 2)) - 1.0).max() < 0.05
    fed = federate(data)
    assert (fed.num_devices, len(fed.test), fed.own_test) == (21, 9, False)
    assert sum(map(len, fed.test)) == 2996
    twelve = read("har", classes=12)
    assert (int((~twelve.held_out).sum()), int(twelve.held_out.sum())) == (7767, 3162)


@needs("mnist")
def test_mnist():
    start = time.process_time()
    data = read("mnist")
    assert time.process_time() - start < 2.0
    assert data.x.shape == (70_000, 1, 28, 28)
    fed = federate(data)
    assert (fed.num_devices, len(fed.test), fed.own_test) == (539, 297, False)
    assert sum(map(len, fed.train)) == 60_000
    sizes = [len(rows) for rows in fed.train]
    assert (min(sizes), max(sizes)) == (19, 131)
    assert np.bincount(data.y[:60_000])[:3].tolist() == [5923, 6742, 5958]


@needs("clinc150")
def test_check_finds_the_files_sound():
    assert [(status.name, status.state) for status in check("clinc150")] == [
        ("intents_clinc150_data_full.json.gz", "sound"),
        ("intents_clinc150_domains.json", "sound"),
    ]


@needs("fashion_mnist")
def test_fashion_mnist():
    data = read("fashion_mnist")
    assert np.bincount(data.y[~data.held_out]).tolist() == [6000] * 10
    assert float(data.x.max()) == pytest.approx(1.0)


@needs("fsdd")
def test_fsdd():
    data = read("fsdd")
    assert data.x.shape == (3000, 1, 49, 40)
    assert int(data.held_out.sum()) == 300
    assert np.bincount(data.device).tolist() == [500] * 6
    assert abs(float(data.x.mean())) < 0.05
    assert abs(float(data.x.std()) - 1.0) < 0.05


@needs("nslkdd")
def test_nslkdd():
    data = read("nslkdd", classes=5)
    assert data.x.shape == (148_517, 122)
    assert np.bincount(data.y[~data.held_out]).tolist() == [67343, 45927, 11656, 995, 52]
    assert np.bincount(data.y[data.held_out]).tolist() == [9711, 7458, 2421, 2754, 200]
    assert 0.0 <= float(data.x.min()) <= float(data.x.max()) < 3.0
    assert int(load("nslkdd", hard=True).held_out.sum()) == 11_850


@needs("eeg")
def test_eeg():
    data = read("eeg")
    assert data.x.shape == (2700, 9, 640)
    assert np.bincount(data.y).tolist() == [1367, 1333]
    assert np.bincount(data.device).tolist() == [45] * 60


@needs("ecg")
def test_ecg():
    data = read("ecg")
    assert data.x.shape == (100_680, 1, 180)
    assert len(data.device_names) == 43
    assert len(data.refused) == 53
    assert np.bincount(data.y).tolist() == [90075, 2780, 7008, 802, 15]
    assert "patient 201/202" in data.device_names
    assert len(load("ecg", paced=True).device_names) == 47
    fed = federate(data)
    assert (fed.num_devices, len(fed.test), fed.own_test) == (22, 22, False)


@needs("omniglot")
def test_omniglot():
    data = read("omniglot", device="alphabet")
    assert data.x.shape == (32_460, 1, 28, 28)
    assert np.bincount(data.y).tolist() == [20] * 1623
    assert int(data.held_out.sum()) == 13_180
    fed = federate(data)
    assert (fed.num_devices, len(fed.test), fed.own_test) == (30, 20, False)
    assert np.bincount(read("omniglot").device).tolist() == [1623] * 20


@needs("clinc150")
def test_clinc150():
    data = read("clinc150")
    assert data.x.shape == (19_500, 1024)
    assert np.bincount(data.y[~data.held_out]).tolist() == [100] * 150
    assert np.bincount(data.device[data.held_out]).tolist() == [450] * 10
    wide = read("clinc150", features="tokens", validation=True, out_of_scope=True)
    assert len(wide) == 15_000 + 3_000 + 4_500 + 100 + 100 + 1_000
    assert wide.num_classes == 151


@needs("shakespeare")
def test_shakespeare():
    data = read("shakespeare", max_rows=50)
    assert len(data.device_names) == 1154
    assert len(data.refused) == 1347 - 1154
    assert data.vocabulary == data.num_classes == 77
    fed = federate(data)
    assert fed.own_test
    assert min(map(len, fed.test)) >= 1


@needs("irish5g")
def test_irish5g():
    data = read("irish5g")
    assert data.num_read == 188_711 - 83 * 10
    assert len(data.device_names) == 83
    shares = np.bincount(data.y) / len(data)
    assert np.abs(shares - [0.517, 0.161, 0.153, 0.170]).max() < 0.002
    assert np.abs(data.x).max() < 12.0
