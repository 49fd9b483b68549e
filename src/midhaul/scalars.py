"""The figures of a run's rounds, written as TensorBoard reads them: a scalar a figure and round.

Each process of a run writes a file of its own. What was written after the checkpoint that a run goes on from is cut
off, so that no round is there twice.
Source: TensorBoard's event files are TFRecords of the protocol buffer Event; `tensorboardX` writes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from midhaul.errors import ConfigError, DependencyError

TAGS = {
    "accuracy": "test/accuracy",
    "large_accuracy": "test/large_accuracy",
    "loss": "test/loss",
    "train_loss": "train/loss",
    "lr": "train/lr",
    "uplink_bytes": "bytes/up",
    "downlink_bytes": "bytes/down",
    "device_joules": "joules/devices",
    "simulated_seconds": "seconds/simulated",
    "seconds": "seconds/round",
    "absent": "devices/absent",
}
_PATTERN = "events.out.tfevents.*"


def check() -> None:
    """Raises: DependencyError where TensorBoard's files can't be written."""
    try:
        import_module("tensorboardX")
    except ImportError:
        raise DependencyError("run.tensorboard wants tensorboardX; install midhaul[tensorboard]") from None


def keep(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Cuts what a run's processes wrote back to these sizes, by file; tells whether all of it was still there."""
    found = {path.name: path for path in folder.glob(_PATTERN)}
    for name, path in found.items():
        if name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[name]:
            with path.open("r+b") as file:
                file.truncate(sizes[name])
    return all(name in found and found[name].stat().st_size == size for name, size in sizes.items())


class Scalars:
    """A new file of scalars in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check()
        writer = import_module("tensorboardX.event_file_writer")
        self._event = import_module("tensorboardX.proto.event_pb2").Event
        self._summary = import_module("tensorboardX.proto.summary_pb2").Summary
        try:
            folder.mkdir(exist_ok=True)
            # Not the library's queue and thread: what was written by a checkpoint must be known at it.
            number = len(list(folder.glob(_PATTERN)))  # two files of one second are two
            self._writer: Any = writer.EventsWriter(str(folder / "events"), f".{number}")
            self._writer.flush()
        except OSError as error:
            raise _unwritable(folder, error) from None

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes a line of metrics.jsonl; what is null in it has no point. Raises: ConfigError."""
        found = {tag: line.get(name) for name, tag in TAGS.items()}
        values = [
            self._summary.Value(tag=tag, simple_value=float(value)) for tag, value in found.items() if value is not None
        ]
        event = self._event(wall_time=time.time(), step=line["round"], summary=self._summary(value=values))
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def sizes(self) -> dict[str, int]:
        """Gives how long each file of the run is, by name, for `keep`. Units: bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob(_PATTERN))}

    def close(self) -> None:
        self._writer.close()


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} can't be written ({error.strerror}); free space or set run.tensorboard = false")
