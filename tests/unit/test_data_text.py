"""CLINC150 and Shakespeare on a few lines."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from midhaul.data import clinc150, federate, load, shakespeare
from midhaul.errors import ConfigError, DataError

DOMAINS = {"money": ["balance", "pay"], "home": ["lights"]}
SENTENCES = {
    "train": [["what's my balance", "balance"], ["lights on", "lights"], ["?!", "pay"], ["hm", "other"]],
    "val": [["pay it", "pay"]],
    "test": [["pay pay now", "pay"]],
    "oos_train": [["who won", "oos"]],
    "oos_test": [["is it art", "oos"]],
}


def test_a_bag_counts_hashed_words():
    data = clinc150.build(SENTENCES, DOMAINS, dimension=64)
    assert data.class_names == ("balance", "lights", "pay")
    assert data.device_names == ("home", "money")
    assert data.y.tolist() == [0, 1, 2]
    assert data.device.tolist() == [1, 0, 1]
    assert data.held_out.tolist() == [False, False, True]
    assert [(bad.line, bad.reason) for bad in data.refused] == [(3, "it has no word"), (4, "intent 'other' is unknown")]
    pay, now = zlib.crc32(b"pay") % 64, zlib.crc32(b"now") % 64
    assert data.x[2, pay] == pytest.approx(2 / np.sqrt(5))
    assert data.x[2, now] == pytest.approx(1 / np.sqrt(5))
    assert np.count_nonzero(data.x[2]) == 2


def test_tokens_leave_zero_for_padding():
    data = clinc150.build(SENTENCES, DOMAINS, features="tokens", dimension=64)
    assert data.vocabulary == 64
    assert data.x.shape == (3, 24)
    first = [zlib.crc32(word) % 63 + 1 for word in (b"what's", b"my", b"balance")]
    assert data.x[0].tolist() == first + [0] * 21


def test_validation_and_out_of_scope_are_asked_for():
    data = clinc150.build(SENTENCES, DOMAINS, validation=True, out_of_scope=True)
    assert data.class_names[-1] == "oos"
    assert data.device_names[-1] == clinc150.OUT
    assert len(data) == 6
    assert int(data.held_out.sum()) == 2


def test_other_json_is_refused():
    with pytest.raises(DataError, match="lack train, test or the domains"):
        clinc150.build({"train": []}, DOMAINS)
    with pytest.raises(ConfigError, match="'bag' or 'tokens'"):
        load("clinc150", features="words")
    with pytest.raises(ConfigError, match="dimension is 1"):
        load("clinc150", dimension=1)


def roles(*lengths: int) -> bytes:
    text = "".join(shakespeare.ALPHABET[2 + i % 60] for i in range(400))
    lines = [
        {"play": "P", "role": f"R{place}", "speeches": [["1.1", text[:length]]]} for place, length in enumerate(lengths)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def test_windows_predict_the_next_character():
    data = shakespeare.build(roles(90, 81, 82), max_rows=0)
    assert data.device_names == ("P / R0", "P / R2")
    assert len(data) == 10 + 2
    assert data.x.shape[1] == 80
    # Window 3 is characters 3..82 of the text, its answer character 83.
    assert data.x[3].tolist() == [2 + i % 60 for i in range(3, 83)]
    assert data.y[3] == 2 + 83 % 60
    assert data.held_out.tolist() == [False] * 8 + [True] * 2 + [False, True]
    assert data.refused[0].line == 2
    assert "81 characters, under 82" in data.refused[0].reason
    assert federate(data).own_test


def test_max_rows_takes_windows_evenly():
    data = shakespeare.build(roles(180), max_rows=4)
    # 100 windows: 0, 25, 50, 75.
    assert data.x[:, 0].tolist() == [2, 27, 52, 2 + 75 % 60]


def test_speeches_are_lines():
    assert shakespeare.encode("a\nb").tolist() == [
        shakespeare.ALPHABET.index("a"),
        1,
        shakespeare.ALPHABET.index("b"),
    ]


def test_other_texts_are_refused():
    with pytest.raises(DataError, match="'é' is not in the alphabet"):
        shakespeare.encode("café")
    with pytest.raises(DataError, match="no role speaks long enough"):
        shakespeare.build(roles(5))
    with pytest.raises(ConfigError, match="max_rows is 1"):
        load("shakespeare", max_rows=1)
