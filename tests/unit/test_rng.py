"""The counter-based source of random numbers."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from midhaul import rng
from midhaul.rng import Use

# Known answers of Random123's kat_vectors for philox4x32-10: counter, key, block.
KNOWN = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

C_TWIN = r"""
#include <stdint.h>
void mh_philox_u32(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t hi0 = (uint32_t)(p0 >> 32), hi1 = (uint32_t)(p1 >> 32);
        uint32_t next[4] = {hi1 ^ c[1] ^ k0, (uint32_t)p1, hi0 ^ c[3] ^ k1, (uint32_t)p0};
        for (int j = 0; j < 4; j++) c[j] = next[j];
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
}
"""


@pytest.mark.parametrize(("counter", "seed", "block"), KNOWN)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], seed: int, block: str) -> None:
    words = rng.philox(np.array([counter], np.uint32), seed)[0]
    assert " ".join(f"{int(word):08x}" for word in words) == block


def test_a_c_twin_of_a_few_lines_gives_the_same_words(tmp_path: Path) -> None:
    source, library = tmp_path / "philox.c", tmp_path / "philox.so"
    source.write_text(C_TWIN)
    subprocess.run(["cc", "-std=c99", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    twin = ctypes.CDLL(str(library)).mh_philox_u32
    seed = 0x0123456789ABCDEF
    key = rng.key(seed, 12, 34, Use.BATCH)
    got = []
    for block in range(5):
        counter = (ctypes.c_uint32 * 4)(block, 12, 34, int(Use.BATCH))
        twin(counter, ctypes.c_uint32(seed & 0xFFFFFFFF), ctypes.c_uint32(seed >> 32))
        got += list(counter)
    assert got == [int(word) for word in key.words(20)]


def test_streams_differ_in_every_part_of_the_key() -> None:
    base = (1, 2, 3, Use.BATCH)
    streams = {rng.key(*base).words(4).tobytes()}
    for place, other in enumerate((9, 9, 9, Use.LOSS)):
        changed = list(base)
        changed[place] = other
        streams.add(rng.key(*changed).words(4).tobytes())
    streams.add(rng.key(*base).at(1).words(4).tobytes())
    assert len(streams) == 6


def test_a_longer_draw_begins_with_the_shorter() -> None:
    key = rng.key(5, 0, 0, Use.NOISE)
    assert np.array_equal(key.words(103)[:7], key.words(7))


def test_permutation_is_one_and_every_order_comes_up() -> None:
    seen = {tuple(rng.permutation(rng.key(seed, 0, 0, Use.BATCH), 3).tolist()) for seed in range(60)}
    assert len(seen) == 6
    assert sorted(rng.permutation(rng.key(3, 1, 4, Use.BATCH), 100).tolist()) == list(range(100))
    assert rng.permutation(rng.key(0, 0, 0, Use.BATCH), 0).tolist() == []
    assert rng.permutation(rng.key(0, 0, 0, Use.BATCH), 1).tolist() == [0]


@pytest.mark.parametrize("num", [0, 1, 2, 50])
def test_many_orders_at_once_are_those_that_one_by_one_gives(num: int) -> None:
    keys = [rng.key(3, number, device, Use.BATCH).at(device) for number in (0, 9) for device in (0, 5, 2**32 - 1)]
    orders = rng.permutations(keys, num)
    assert orders.shape == (6, num)
    assert [order.tolist() for order in orders] == [rng.permutation(key, num).tolist() for key in keys]


@pytest.mark.parametrize("size", [1, 511, 512, 513, 3000])
@pytest.mark.parametrize("num", [1, 2, 40, 256, 5000])
def test_the_first_places_of_an_order_are_found_without_the_rest(num: int, size: int) -> None:
    for number in range(3):
        key = rng.key(3, number, rng.SERVER, Use.COHORT)
        wanted = rng.permutation(key, size)[:num].tolist()
        assert rng.first_of_permutation(key, num, size).tolist() == wanted
        assert rng.choose(key, num, range(100, 100 + size)) == tuple(sorted(100 + place for place in wanted))


def test_uniform_and_normal_have_their_moments() -> None:
    key = rng.key(11, 0, 0, Use.NOISE)
    draws = rng.uniform(key, 40_000)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert abs(float(draws.mean()) - 0.5) < 0.01
    bell = rng.normal(key, 40_001)
    assert len(bell) == 40_001
    assert abs(float(bell.mean())) < 0.02
    assert abs(float(bell.std()) - 1.0) < 0.02


def test_integers_stay_below_their_bound_and_reach_it() -> None:
    draws = rng.integers(rng.key(2, 0, 0, Use.WORK), 2000, 7)
    assert set(draws.tolist()) == set(range(7))


def test_choose_draws_without_repetition_in_order() -> None:
    drawn = rng.choose(rng.key(1, 1, rng.SERVER, Use.COHORT), 4, (10, 20, 30, 40, 50))
    assert len(set(drawn)) == 4
    assert list(drawn) == sorted(drawn)


def test_torch_seed_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with rng.torch_seed(rng.key(1, 0, 0, Use.INIT)):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with rng.torch_seed(rng.key(1, 0, 0, Use.INIT)):
        assert torch.equal(torch.rand(3), first)
