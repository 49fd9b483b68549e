"""What is written for TensorBoard, read back by hand: TFRecords with their checksums, and protocol buffers in them."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from power_cut import PowerCut, cut_after

from midhaul import train
from midhaul.cli import main
from midhaul.config import Config
from midhaul.errors import DependencyError
from midhaul.scalars import TAGS

BASE = Config().replace(
    data_partition="dirichlet", data_num_devices=4, data_max_rows=60, data_public=0.2, tiny_options={"hidden": [16]},
    scheme_lr=0.1, run_rounds=5, run_checkpoint_every=2, run_tensorboard=True,
)  # fmt: skip
installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None,
    reason="tensorboardX isn't installed (midhaul[tensorboard])",
)


def crc32c(data: bytes) -> int:
    """The checksum of Castagnoli, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    """Gives the payloads of TFRecords: length, its checksum, payload, its checksum."""
    while data:
        (size,), (of_size,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        payload, (of_payload,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
        assert (of_size, of_payload) == (masked(data[:8]), masked(payload))
        yield payload
        data = data[16 + size :]


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Gives the fields of a protocol buffer by number."""

    def varint() -> int:
        nonlocal data
        value = shift = 0
        while True:
            byte, data = data[0], data[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while data:
        head = varint()
        number, kind = head >> 3, head & 7
        if kind == 0:
            yield number, varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            yield number, data[:size]
            data = data[size:]


def points(folder: Path) -> list[tuple[int, str, float]]:
    """Gives every scalar of a folder: its step, tag and value, file by file."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: int(path.suffix[1:])):
        first, *events = records(path.read_bytes())
        assert dict(fields(first))[3] == b"brain.Event:2"
        for event in events:
            step = next((value for number, value in fields(event) if number == 2), 0)
            for value in fields(next(part for number, part in fields(event) if number == 5)):  # type: ignore[arg-type]
                each = dict(fields(value[1]))  # type: ignore[arg-type]
                found.append((int(step), each[1].decode(), *struct.unpack("<f", each[2])))  # type: ignore[union-attr,arg-type]
    return found


def of_metrics(folder: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    single = struct.Struct("<f")
    return [
        (line["round"], tag, single.unpack(single.pack(line[name]))[0])
        for line in lines
        for name, tag in TAGS.items()
        if line.get(name) is not None
    ]


def test_the_checksum_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@installed
@pytest.mark.parametrize("scheme", ["fedavg", "federated_transfer"])
def test_the_scalars_are_the_figures_of_the_rounds(scheme: str, tmp_path: Path) -> None:
    config = BASE.replace(scheme_name=scheme, large_epochs=1, scheme_distill_epochs=1)
    result = train.run(config, tmp_path / "run")
    found = points(tmp_path / "run" / "tensorboard")
    took = [point for point in found if point[1] == "seconds/round"]
    assert [step for step, _, _ in took] == [1, 2, 3, 4, 5]
    assert all(seconds > 0.0 for _, _, seconds in took)
    assert [point for point in found if point[1] != "seconds/round"] == of_metrics(tmp_path / "run")
    assert {step for step, _, _ in found} == ({0, 1, 2, 3, 4, 5} if scheme != "fedavg" else {1, 2, 3, 4, 5})
    plain = train.run(config.replace(run_tensorboard=False), tmp_path / "plain")
    assert plain.summary["model_sha256"] == result.summary["model_sha256"]
    assert not (tmp_path / "plain" / "tensorboard").exists()


@installed
def test_a_resumed_run_has_each_round_once(tmp_path: Path) -> None:
    for last in (1, 3):  # the first before any checkpoint but that of round 0
        with pytest.raises(PowerCut):
            train.run(BASE, tmp_path, resume=last > 1, progress=cut_after(last))
    assert sorted({step for step, _, _ in points(tmp_path / "tensorboard")}) == [1, 2, 3]
    with pytest.raises(PowerCut):  # round 3 again, and written nowhere: TensorBoard isn't asked for
        train.run(BASE.replace(run_tensorboard=False), tmp_path, resume=True, progress=cut_after(3))
    assert sorted({step for step, _, _ in points(tmp_path / "tensorboard")}) == [1, 2]
    train.run(BASE, tmp_path, resume=True)
    found = [point for point in points(tmp_path / "tensorboard") if point[1] != "seconds/round"]
    assert found == of_metrics(tmp_path)


@installed
def test_what_was_deleted_is_told(tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        train.run(BASE, tmp_path, progress=cut_after(3))
    for path in (tmp_path / "tensorboard").iterdir():
        path.unlink()
    told: list[str] = []
    train.run(BASE, tmp_path, resume=True, tell=told.append)
    assert any("lacks rounds" in line for line in told)
    assert sorted({step for step, _, _ in points(tmp_path / "tensorboard")}) == [3, 4, 5]


def test_without_the_library_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(DependencyError, match=r"install midhaul\[tensorboard\]"):
        train.run(BASE, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    path = tmp_path / "config.toml"
    path.write_text("[run]\nrounds = 1\n")
    assert main(["run", str(path), "--out", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert "midhaul[tensorboard]" in capsys.readouterr().err
