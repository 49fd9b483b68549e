"""Every frame of a run on disk, to be counted: a file for each round and direction, its frames one behind the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from midhaul.errors import ConfigError

Log = Callable[[int, bool, bytes], None]  # is given the bytes of a frame, its round, and whether it goes up


class FrameLog:
    """Writes frames to `folder`/ROUND-up.bin and ROUND-down.bin; `link.frame.sequence` takes such a file apart.

    A round that is done again, by a run that was resumed, writes its files anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begun: set[Path] = set()

    def __call__(self, round: int, up: bool, data: bytes) -> None:
        """Adds the bytes of a frame, as often as it was sent. Raises: ConfigError where they can't be written."""
        path = self.folder / f"{round:05d}-{'up' if up else 'down'}.bin"
        try:
            self.folder.mkdir(exist_ok=True)
            with path.open("ab" if path in self._begun else "wb") as file:
                file.write(data)
        except OSError as error:
            raise ConfigError(f"{path} can't be written ({error.strerror}); set link.keep_frames = false") from None
        self._begun.add(path)
