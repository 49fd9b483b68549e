"""NSL-KDD: lines in the official form."""

from __future__ import annotations

import numpy as np
import pytest

from midhaul.data import load, nslkdd
from midhaul.errors import ConfigError, DataError


def line(
    protocol: str = "tcp", service: str = "http", flag: str = "SF", label: str = "normal", **numbers: float
) -> str:
    cells = ["0"] * 43
    cells[1:4] = protocol, service, flag
    for name, value in numbers.items():
        cells[int(name[1:])] = str(value)
    cells[41] = label
    return ",".join(cells)


TRAIN = "\n".join([line(), line("udp", "domain_u", label="smurf", c4=np.e - 1), line("icmp", "eco_i", label="nmap")])
TEST = "\n".join([line(label="xterm", c22=511, c31=51, c24=0.25), line(service="IRC", flag="REJ", label="worm")])


def build(**options: object) -> nslkdd.Dataset:
    return nslkdd.build(TRAIN.encode(), TEST.encode(), **options)


def test_labels_and_devices():
    data = build()
    assert data.x.shape == (5, 122)
    assert data.y.tolist() == [0, 1, 1, 1, 1]
    assert data.class_names == ("normal", "attack")
    assert data.held_out.tolist() == [False, False, False, True, True]
    assert [data.device_names[place] for place in data.device] == ["http", "domain_u", "eco_i", "http", "IRC"]
    five = build(classes=5, device="protocol")
    assert five.y.tolist() == [0, 1, 2, 4, 3]
    assert [five.device_names[place] for place in five.device] == ["tcp", "udp", "icmp", "tcp", "tcp"]


def test_numbers_are_scaled_and_words_one_hot():
    x = build().x
    numeric = [column for column in range(41) if column not in (1, 2, 3)]
    assert x[1, numeric.index(4)] == pytest.approx(1 / 21)
    assert x[3, numeric.index(22)] == 1.0
    assert x[3, numeric.index(31)] == pytest.approx(0.2)
    assert x[3, numeric.index(24)] == 0.25
    # Protocol tcp is the second of three, flag SF the tenth of eleven at the end.
    assert x[0, 38:41].tolist() == [0, 1, 0]
    assert x[0, 38 + 3 + 70 :].tolist() == [0] * 9 + [1, 0]
    assert x[:, 38:].sum(axis=1).tolist() == [3] * 5


def test_every_attack_has_one_class():
    attacks = [attack for group in nslkdd.ATTACKS.values() for attack in group]
    assert len(attacks) == len(set(attacks)) == 39


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (line(label="new"), "named 'new'"),
        (line(service="gopher2"), "named 'gopher2'"),
        (line(c5=0).replace("0", "x", 1), "is not a file of NSL-KDD"),
        ("1,2,3", "is not a file of NSL-KDD"),
    ],
)
def test_other_files_are_refused(text: str, says: str):
    with pytest.raises(DataError, match=says):
        nslkdd.build(text.encode(), TEST.encode())


def test_options_are_bounded():
    with pytest.raises(ConfigError, match="classes is 3"):
        load("nslkdd", classes=3)
    with pytest.raises(ConfigError, match="'service' or 'protocol'"):
        load("nslkdd", device="host")
