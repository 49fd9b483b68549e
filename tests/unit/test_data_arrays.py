"""A person's own npz and csv files: what is read, what is set aside, what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from midhaul.data import Refused, federate, load
from midhaul.errors import ConfigError, DataError


def npz(folder: Path, **arrays: object) -> str:
    path = folder / "own.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    return f"npz:{path}"


def table(folder: Path, text: str) -> str:
    path = folder / "own.csv"
    path.write_text(text)
    return f"csv:{path}"


def test_npz_with_devices_and_held_out_rows(tmp_path: Path):
    data = load(
        npz(tmp_path, x=np.ones((4, 2, 3)), y=["b", "a", "b", "a"], device=[10, 9, 10, 9], held_out=[0, 0, 1, 1])
    )
    assert data.name == "npz:own.npz"
    assert data.x.dtype == np.float32
    assert data.input_shape == (2, 3)
    assert data.class_names == ("a", "b")
    assert data.y.tolist() == [1, 0, 1, 0]
    assert data.device_names == ("9", "10")
    assert data.device.tolist() == [1, 0, 1, 0]
    assert data.held_out.tolist() == [False, False, True, True]
    assert federate(data).own_test


def test_npz_labels_are_numbered_in_order_of_number(tmp_path: Path):
    data = load(npz(tmp_path, x=np.ones((3, 1)), y=[10.0, 9.0, 2.0]))
    assert data.class_names == ("2", "9", "10")
    assert data.y.tolist() == [2, 1, 0]
    assert data.key == ""


def test_npz_sets_bad_rows_aside_with_their_row(tmp_path: Path):
    x = np.ones((7, 2))
    x[1, 0] = np.nan
    x[2, 1] = np.inf
    x[6, 0] = 1e300
    data = load(npz(tmp_path, x=x, y=[0, 0, 0, -1, 7, 1, 1]), classes="0,1")
    assert len(data) == 2
    assert data.num_read == 7
    assert data.refused == (
        Refused(2, "x holds a number that is not finite"),
        Refused(3, "x holds a number that is not finite"),
        Refused(4, "label -1 is negative"),
        Refused(5, "label '7' is not a known class"),
        Refused(7, "x holds a number that is not finite"),
    )


def test_labels_out_of_the_range_that_was_said_are_refused(tmp_path: Path):
    own = npz(tmp_path, x=np.ones((3, 1)), y=[0, 1, 2])
    with pytest.raises(DataError, match=r"label 2 of row 3 is out of range 0\.\.1"):
        load(own, num_classes=2)
    assert load(own, num_classes=9).num_classes == 9
    assert load(npz(tmp_path, x=np.ones((3, 1)), y=[1, 2, 3])).class_names == ("1", "2", "3")


def test_npz_tokens(tmp_path: Path):
    name = npz(tmp_path, x=np.array([[1, 2], [3, 9], [0, -1]]), y=[0, 1, 0])
    data = load(name, vocabulary=4)
    assert data.x.dtype == np.int64
    assert len(data) == 1
    assert [bad.reason for bad in data.refused] == ["a token lies outside 0..3"] * 2
    with pytest.raises(DataError, match="tokens are whole numbers"):
        load(npz(tmp_path, x=np.ones((2, 2)), y=[0, 1]), vocabulary=4)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((2, 1))}, "has no array y"),
        ({"x": np.ones((2, 1)), "y": [0]}, "y has shape"),
        ({"x": np.ones(2), "y": [0, 1]}, "must be numbers"),
        ({"x": np.ones((0, 3)), "y": []}, "must be numbers"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, "must be numbers"),
        ({"x": np.ones((2, 1)), "y": [0, 1], "held_out": [0, 3]}, "only False and True"),
        ({"x": np.ones((2, 1)), "y": [0, 1], "user": [0, 3]}, "array user isn't read"),
        ({"x": [[1.0, np.nan], [2.0, np.nan]], "y": [0, 1]}, r"x\[1\] is not a number in any row"),
        ({"x": np.ones((2, 1)), "y": [-1, -2]}, "label -2 of row 2 is out of range"),
        ({"x": np.ones((4, 1)), "y": [0, 1, 2, 9]}, r"label 9 of row 4 is out of range 0\.\.2"),
        ({"x": [[1.0], [np.nan]], "y": [0, 1], "device": ["a", "b"]}, "device 'b' has no sound row left of 1"),
        ({"x": np.ones((2, 1)), "y": [np.nan, np.nan]}, "label nan is not a number"),
    ],
)
def test_npz_that_can_not_be_right_is_refused(tmp_path: Path, arrays: dict[str, object], says: str):
    with pytest.raises(DataError, match=says):
        load(npz(tmp_path, **arrays))


def test_a_pickle_is_never_opened(tmp_path: Path):
    path = tmp_path / "p.npz"
    np.savez(path, x=np.ones((1, 1)), y=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="only a pickle can carry"):
        load(f"npz:{path}")


def test_an_npz_bomb_is_refused_by_its_directory(tmp_path: Path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 3_000_000)
    with pytest.raises(DataError, match="says that it unpacks to 3000000 bytes"):
        load(f"npz:{path}", max_bytes=1_000_000)


def test_an_npy_header_that_lies_about_its_shape_is_refused(tmp_path: Path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**6)})
    path = tmp_path / "lie.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 16)
        archive.writestr("y.npy", b"nonsense")
    with pytest.raises(DataError, match="but 16 bytes follow"):
        load(f"npz:{path}")


def test_csv_reads_features_labels_and_devices(tmp_path: Path):
    data = load(table(tmp_path, "a,label,b,device\n1,cat,2.5,u1\n3,dog,-1e-1,u2\n"))
    assert data.x.tolist() == [[1.0, 2.5], [3.0, np.float32(-0.1)]]
    assert data.class_names == ("cat", "dog")
    assert data.device_names == ("u1", "u2")
    assert data.key == "device"


def test_csv_sets_bad_lines_aside_with_their_line(tmp_path: Path):
    text = "a,b,label,device,held_out\n1,2,0,u,0\n1,2,0,u\n1,?,0,u,0\n\n1,nan,0,u,0\n1,2,,u,0\n1,2,0,,0\n1,2,3,u,1\n"
    text += "1,2,1,u,maybe\n1,1_0,1,u,0\n1,1e99,1,u,0\n"
    data = load(table(tmp_path, text), classes="0, 1")
    assert data.num_read == 10
    assert len(data) == 1
    assert [(bad.line, bad.reason) for bad in data.refused] == [
        (3, "it has 4 cells, but the header has 5"),
        (4, "b is '?', not a number"),
        (6, "b is 'nan', which is not finite"),
        (7, "the label is empty"),
        (8, "the device is empty"),
        (9, "label '3' is not a known class"),
        (10, "held_out is 'maybe', not 0 or 1"),
        (11, "b is '1_0', not a number"),
        (12, "b is '1e99', which is not finite"),
    ]


def test_csv_names_its_own_columns(tmp_path: Path):
    name = table(tmp_path, "who,f,kind\na,1,x\nb,2,y\n")
    data = load(name, label="kind", device="who")
    assert data.device_names == ("a", "b")
    with pytest.raises(DataError, match="no column 'kinf' for the label; did you mean 'kind'"):
        load(name, label="kinf")
    with pytest.raises(DataError, match="no column 'whom' for the device"):
        load(name, label="kind", device="whom")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("a,label\n", "no row below its header"),
        ("a,a,label\n1,2,0\n", "column 'a' stands in the header twice"),
        ("label\n1\n", "has no feature column"),
        ("a,b\n1,2\n", "no column 'label'"),
        ("a,b,label\n1,red,0\n2,blue,1\n", "column b holds no number in any row"),
        ("a,b,label\n1,,0\n2,,1\n", "column b holds no number in any row"),
        ("a,label\n1,-1\n2,-3\n", "label -3 of row 3 is out of range"),
    ],
)
def test_csv_that_can_not_be_right_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(DataError, match=says):
        load(table(tmp_path, text))


def test_files_are_bounded_and_must_exist(tmp_path: Path):
    with pytest.raises(DataError, match="there is no file"):
        load(f"csv:{tmp_path / 'none.csv'}")
    with pytest.raises(DataError, match="more than the 10 allowed"):
        load(table(tmp_path, "a,label\n1,0\n2,1\n"), max_bytes=10)
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="not a sound zip"):
        load(f"npz:{path}")


def test_options_are_checked(tmp_path: Path):
    name = table(tmp_path, "a,label\n1,0\n")
    with pytest.raises(ConfigError, match="did you mean 'label'"):
        load(name, lable="x")
    with pytest.raises(ConfigError, match="must be a whole number"):
        load(name, num_classes="x")
    with pytest.raises(ConfigError, match="not both"):
        load(name, num_classes=2, classes="a,b")
    with pytest.raises(ConfigError, match="different names"):
        load(name, classes="a,a")
