"""HAR: the official archive's layout on a made-up one, and the windows and scales by hand."""

from __future__ import annotations

import numpy as np
import pytest

from midhaul.data import archives, har, load
from midhaul.errors import ConfigError, DataError


def archive(**changes: bytes) -> bytes:
    """Two recordings of 300 samples: a ramp on the sensors' grid."""
    steps = np.arange(300)
    members = {}
    for exp, user in ((1, 1), (2, 2)):
        acc = np.stack([steps + exp, -steps, steps * 0], axis=1) / 720.0
        gyro = np.stack([steps, steps, -steps], axis=1) * 0.0175 * np.pi / 180.0
        for kind, values in (("acc", acc), ("gyro", gyro)):
            text = "\n".join(" ".join(f"{value:.17e}" for value in row) for row in values)
            members[f"HAPT/RawData/{kind}_exp{exp:02d}_user{user:02d}.txt"] = text.encode()
    # exp user label first last (1-based, inclusive)
    members["HAPT/RawData/labels.txt"] = b"1 1 5 1 128\n1 1 8 129 300\n2 2 1 11 202\n2 2 2 203 300\n"
    members["HAPT/Train/X_train.txt"] = b"not read"
    members.update({f"HAPT/RawData/{name}": data for name, data in changes.items()})
    return archives.write_zip(members)


def test_the_official_archive_becomes_windows():
    arrays = archives.read_npz(har.convert(iter([archive()])), "har")
    assert arrays["acc"].dtype == np.int16
    assert arrays["acc"][:3].tolist() == [[1, 0, 0], [2, -1, 0], [3, -2, 0]]
    assert arrays["gyro"][302].tolist() == [2, 2, -2]
    # 128 samples give one window, 172 one, 192 two (steps of 64), 98 none.
    assert arrays["win_start"].tolist() == [0, 128, 310, 374]
    assert arrays["win_label"].tolist() == [5, 8, 1, 1]
    assert arrays["win_subject"].tolist() == [1, 1, 2, 2]
    assert arrays["win_is_train"].tolist() == [True, True, False, False]


def test_windows_are_scaled_by_the_constants():
    arrays = archives.read_npz(har.convert(iter([archive()])), "har")
    data = har.build(arrays)
    assert data.x.shape == (3, 6, 128)
    assert data.device_names == ("subject 1", "subject 2")
    assert data.held_out.tolist() == [False, True, True]
    assert data.y.tolist() == [4, 0, 0]
    # Window 1 starts at sample 10 of recording 2, where x is 10 + 2 steps of 1/720 g.
    assert data.x[1, 0, 0] == pytest.approx((12 / 720 - har.CENTRE[0]) / har.SPREAD[0], rel=1e-6)
    assert data.x[1, 5, 3] == pytest.approx(-13 * 0.0175 * np.pi / 180 / har.SPREAD[5], rel=1e-6)
    assert len(har.build(arrays, 12)) == 4


def test_a_torn_archive_is_refused():
    whole = archives.read_zip(archive(), "z", lambda name: True)
    torn = archives.write_zip({name: data for name, data in whole.items() if "gyro_exp02" not in name})
    with pytest.raises(DataError, match="lacks"):
        har.convert(iter([torn]))
    with pytest.raises(DataError, match="5 columns of numbers"):
        har.convert(iter([archive(**{"labels.txt": b"1 1 5 x 128"})]))
    with pytest.raises(DataError, match="3 columns of numbers"):
        har.convert(iter([archive(**{"acc_exp01_user01.txt": b"1 2 3 4"})]))


def test_only_six_or_twelve_classes():
    with pytest.raises(ConfigError, match="classes is 7"):
        load("har", classes=7)
