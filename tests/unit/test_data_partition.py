"""Partitions on small sets whose right answer can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midhaul.data import Dataset, federate
from midhaul.data.partition import PARTITIONS, Federation, _apportion, _split
from midhaul.errors import ConfigError, DataError
from midhaul.rng import Use, key


def make(y: list[int], device: list[int], held_out: list[int] | None = None, kind: str = "person") -> Dataset:
    num = len(y)
    return Dataset(
        name="toy",
        x=np.arange(num, dtype=np.float32)[:, None],
        y=np.array(y),
        device=np.array(device),
        device_names=tuple(f"p{i}" for i in range(max(device) + 1)),
        held_out=np.array(held_out if held_out is not None else [0] * num, np.bool_),
        class_names=tuple("abcdefghij"[: max(y) + 1]),
        licence="",
        source="",
        citation="",
        key=kind,
        num_read=num,
    )


def all_rows(federation: Federation) -> list[int]:
    parts = [*federation.train, *federation.test, *federation.adapt, federation.public]
    return sorted(int(row) for part in parts for row in part)


# 3 people: p0 rows 0..9, p1 rows 10..14, p2 row 15; classes alternate.
THREE = make([0, 1] * 8, [0] * 10 + [1] * 5 + [2])


def test_each_device_holds_out_a_fifth_and_keeps_at_least_one():
    fed = federate(THREE)
    assert fed.own_test
    assert fed.device_names == fed.test_names == ("p0", "p1", "p2")
    assert [len(rows) for rows in fed.train] == [8, 4, 1]
    assert [len(rows) for rows in fed.test] == [2, 1, 0]
    assert all_rows(fed) == list(range(16))
    # Two of ten rows, five of each class: one of each class.
    assert sorted(THREE.y[fed.test[0]].tolist()) == [0, 1]


def test_held_out_people_are_test_devices_and_adapt_on_a_share_of_their_rows():
    data = make([0, 1] * 10, [0] * 6 + [1] * 4 + [2] * 10, [0] * 10 + [1] * 10)
    fed = federate(data, adapt=0.4)
    assert not fed.own_test
    assert fed.device_names == ("p0", "p1")
    assert fed.test_names == ("p2",)
    assert [rows.tolist() for rows in fed.train] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert len(fed.adapt[0]) == 4
    assert sorted(data.y[fed.adapt[0]].tolist()) == [0, 0, 1, 1]
    assert sorted([*fed.adapt[0], *fed.test[0]]) == list(range(10, 20))


def test_held_out_rows_of_the_same_people_are_their_own_test():
    data = make([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0])
    fed = federate(data)
    assert fed.own_test
    assert [rows.tolist() for rows in fed.train] == [[0, 1], [3, 4, 5]]
    assert [rows.tolist() for rows in fed.test] == [[2], []]
    with pytest.raises(ConfigError, match=r"adapt is 0\.5"):
        federate(data, adapt=0.5)


def test_device_test_takes_the_publishers_held_out_rows_in():
    data = make([0, 1] * 10, [0] * 10 + [1] * 10, [0] * 10 + [1] * 10)
    fed = federate(data, test="device")
    assert fed.own_test
    assert [len(rows) for rows in fed.train] == [8, 8]


def test_natural_public_takes_whole_devices_and_their_test_rows_go_with_them():
    data = make([0, 1] * 20, [i // 10 for i in range(40)], [i % 10 == 9 for i in range(40)])
    fed = federate(data, public=0.25)
    assert fed.num_devices == 3
    assert len(fed.public) == 9
    assert len(set(data.device[fed.public].tolist())) == 1
    assert set(data.device[fed.public].tolist()).isdisjoint(data.device[np.concatenate(fed.train)].tolist())
    assert len(fed.test) == 3


def test_public_rows_of_dealt_partitions():
    fed = federate(THREE, partition="iid", num_devices=3, public=0.25)
    assert len(fed.public) == 4
    assert all_rows(fed) == list(range(16))


def test_public_must_leave_a_device():
    with pytest.raises(DataError, match="leave one to train"):
        federate(make([0, 1], [0, 1]), public=0.9)


def test_iid_shares_are_equal():
    fed = federate(THREE, partition="iid", num_devices=5, test_fraction=0.3)
    assert sorted(len(a) + len(b) for a, b in zip(fed.train, fed.test, strict=True)) == [3, 3, 3, 3, 4]
    assert fed.device_names[0] == "device 0"


def test_dirichlet_of_tiny_alpha_gives_one_class_a_device_and_of_huge_alpha_the_mix_of_all():
    data = make([i % 4 for i in range(4000)], [0] * 4000)
    sharp = federate(data, partition="dirichlet", num_devices=4, alpha=1e-3)
    assert len(set(data.y[sharp.train[0]].tolist())) == 1
    flat = federate(data, partition="dirichlet", num_devices=10, alpha=1e6)
    for train, test in zip(flat.train, flat.test, strict=True):
        counts = np.bincount(data.y[np.concatenate([train, test])], minlength=4)
        assert counts.sum() == 400
        assert counts.min() > 60


def test_dirichlet_concentration_is_alpha_times_the_prior():
    # Four classes alike, alpha p = 1 for each: q is uniform on the simplex, so E[q_c^2] = 2 / (4 * 5).
    data = make([i % 4 for i in range(40_000)], [0] * 40_000)
    fed = federate(data, partition="dirichlet", num_devices=400, alpha=4.0, test_fraction=0.01)
    # The first devices draw while no class runs out.
    shares = np.array([np.bincount(data.y[rows], minlength=4) / len(rows) for rows in fed.train[:200]])
    assert abs(float((shares**2).mean()) - 0.1) < 0.012


def test_dirichlet_by_class_shares_add_up_and_differ():
    data = make([i % 4 for i in range(4000)], [0] * 4000)
    fed = federate(data, partition="dirichlet_by_class", num_devices=5, alpha=0.3)
    sizes = [len(rows) for rows in fed.train]
    assert max(sizes) > 2 * min(sizes)
    assert all_rows(fed) == list(range(4000))


def test_classes_gives_each_device_its_shards():
    data = make([i // 100 for i in range(1000)], [0] * 1000)
    fed = federate(data, partition="classes", num_devices=50, classes_per_device=2)
    assert max(len(set(data.y[rows].tolist())) for rows in fed.train) == 2
    assert {len(a) + len(b) for a, b in zip(fed.train, fed.test, strict=True)} == {20}


def test_quantity_gives_every_device_min_rows_and_the_rest_unevenly():
    data = make([i % 4 for i in range(2000)], [0] * 2000)
    fed = federate(data, partition="quantity", num_devices=20, alpha=0.2, min_rows=5)
    sizes = [len(a) + len(b) for a, b in zip(fed.train, fed.test, strict=True)]
    assert sum(sizes) == 2000
    assert min(sizes) >= 5
    assert max(sizes) > 300


def test_min_rows_leaves_natural_devices_out_by_name():
    fed = federate(THREE, min_rows=5)
    assert fed.device_names == ("p0", "p1")
    assert fed.left_out == ("p2",)
    with pytest.raises(DataError, match="the largest has 10"):
        federate(THREE, min_rows=11)


def test_max_rows_caps_training_devices():
    fed = federate(THREE, max_rows=5)
    assert [len(a) + len(b) for a, b in zip(fed.train, fed.test, strict=True)] == [5, 5, 1]


def test_an_empty_device_is_named():
    with pytest.raises(DataError, match=r"device 16 of 20 gets 0 rows, under 1"):
        federate(THREE, partition="iid", num_devices=20)
    with pytest.raises(DataError, match=r"device 1 of 2 gets 1 rows, under 2"):
        federate(make([0, 0, 0], [0] * 3), partition="dirichlet", num_devices=2, min_rows=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partition": "natrual"}, "did you mean 'natural'"),
        ({"test": "helt_out"}, "did you mean 'held_out'"),
        ({"test": "held_out"}, "no held-out rows"),
        ({"num_devices": 4}, "leave it out"),
        ({"partition": "iid"}, "num_devices is 0"),
        ({"partition": "dirichlet", "num_devices": 2, "alpha": 0.0}, "alpha is 0.0"),
        ({"partition": "dirichlet", "num_devices": 2, "alpha": float("nan")}, "alpha is nan"),
        ({"partition": "classes", "num_devices": 2, "classes_per_device": 0}, "classes_per_device is 0"),
        ({"public": 1.0}, "public is 1.0"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"adapt": -0.1}, "adapt is -0.1"),
        ({"adapt": 0.5}, "its training devices"),
        ({"min_rows": 0}, "min_rows 0"),
        ({"max_rows": 2, "min_rows": 3}, "max_rows is 2"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], says: str):
    with pytest.raises(ConfigError, match=says):
        federate(THREE, **options)


def test_data_without_natural_devices_say_so():
    with pytest.raises(ConfigError, match="no natural devices"):
        federate(make([0, 1], [0, 0], kind=""))


def test_all_rows_held_out_is_refused():
    with pytest.raises(DataError, match="none is left to train on"):
        federate(make([0, 1], [0, 1], [1, 1]))


def test_the_seed_decides_everything():
    def rows(seed: int) -> list[list[int]]:
        return [part.tolist() for part in federate(THREE, partition="iid", num_devices=3, seed=seed).train]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_apportion_gives_the_largest_remainders_first():
    assert _apportion(np.array([0.5, 0.3, 0.2]), 4).tolist() == [2, 1, 1]
    assert _apportion(np.array([1.0, 0.0]), 3).tolist() == [3, 0]


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_a_split_takes_its_share_of_every_class(num: int, share: float, classes: int, seed: int):
    y = np.arange(num) % classes
    kept, taken = _split(np.arange(num), y, share, key(seed, 0, 0, Use.SPLIT))
    assert sorted([*kept, *taken]) == list(range(num))
    assert len(taken) == min(max(round(share * num), 1), num - 1)
    for label in range(classes):
        size = int((y == label).sum())
        assert abs(int((y[taken] == label).sum()) - size * len(taken) / num) < 2


@given(
    st.sampled_from([name for name in PARTITIONS if name not in ("natural", "dirichlet_by_class", "vertical")]),
    st.integers(1, 6),
    st.floats(0.01, 10.0),
    st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_every_row_is_dealt_once(partition: str, num: int, alpha: float, seed: int):
    data = make([(i * i) % 5 for i in range(97)], [0] * 97)
    fed = federate(data, partition=partition, num_devices=num, alpha=alpha, public=0.1, seed=seed)
    assert all_rows(fed) == list(range(97))
    assert len(fed.public) == 10


def test_shared_test_rows_are_taken_before_the_rest_is_dealt():
    fed = federate(THREE, partition="iid", num_devices=3, test="shared", test_fraction=0.25, adapt=0.5)
    assert not fed.own_test
    assert len(fed.test) == len(fed.adapt) == 1
    assert len(fed.test[0]) == len(fed.adapt[0]) == 2
    assert THREE.y[fed.test[0]].tolist() in ([0, 1], [1, 0])
    assert sum(len(rows) for rows in fed.train) == 12
    assert all_rows(fed) == list(range(16))
    natural = federate(THREE, test="shared", test_fraction=0.25)
    assert natural.device_names == ("p0", "p1", "p2")
    assert all_rows(natural) == list(range(16))
