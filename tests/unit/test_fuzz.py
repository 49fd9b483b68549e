"""Mutated frames, packets, bytes and blobs against the device under AddressSanitizer and UBSan.

MIDHAUL_FUZZ_SECONDS (60 unless set) is divided among the targets; `python -m repro.fuzz` does a million frames.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from repro import fuzz

SECONDS = float(os.environ.get("MIDHAUL_FUZZ_SECONDS", "60"))
TARGETS = {target.name: target for target in fuzz.targets()}
# A second gives several thousand frames; a machine that is much slower than that has something wrong with it.
FEWEST_A_SECOND = 500


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return fuzz.build(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutated_frame_harms_a_device(programs: dict[bool, Path], tmp_path: Path, name: str) -> None:
    seconds = SECONDS / len(TARGETS)
    found = fuzz.run(programs, TARGETS[name], 7, 1 << 62, seconds, tmp_path)
    assert found.frames >= FEWEST_A_SECOND * seconds
    # Deep code is reached: many frames are taken and answered, many understood and refused, some hostile blobs run.
    assert found.frames / 4 < found.replies
    assert found.replies / 5 < found.refusals < found.replies
    if name != "link":
        assert found.blobs_taken > 0
        assert found.blobs > 2 * found.blobs_taken


def test_the_same_seed_makes_the_same_frames(programs: dict[bool, Path], tmp_path: Path) -> None:
    one, other = (fuzz.run(programs, TARGETS["link"], 3, 2000, 60.0, tmp_path) for _ in range(2))
    assert one[:1] + one[2:] == other[:1] + other[2:]
    assert fuzz.run(programs, TARGETS["link"], 4, 2000, 60.0, tmp_path)[2:] != one[2:]


# Each takes one check away; the fuzzer must see what comes of it.
BUGS = {
    "a text of any length": ("mh_frame.c", "load_u16(part) > MH_FRAME_TEXT", "0", "link"),
    "a packet of any length": ("mh_cobs.c", "c->num == c->max", "0", "link"),
    "a packet that counts twice": ("mh_link.c", "if (counter <= session->received)", "if (0)", "link"),
    "a blob's buffer anywhere": ("mh_check.c", "bytes <= p->arena_bytes - offset", "1", "split"),
}


@pytest.mark.parametrize("what", BUGS)
def test_the_fuzzer_finds_a_bug_that_was_put_there(tmp_path: Path, what: str) -> None:
    source, right, wrong, name = BUGS[what]
    copy = tmp_path / "src"
    shutil.copytree(fuzz.DEVICE / "src", copy)
    text = (copy / source).read_text()
    assert text.count(right) == 1
    (copy / source).write_text(text.replace(right, wrong))
    programs = fuzz.build(tmp_path, copy, [TARGETS[name].blob is not None])
    with pytest.raises(AssertionError, match="ended with"):
        fuzz.run(programs, TARGETS[name], 1, 200_000, 30.0, tmp_path)
