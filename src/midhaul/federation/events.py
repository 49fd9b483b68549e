"""How Flower's apps tell the command that started their SuperLink or SuperNode how it goes: lines of JSON in a file."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from midhaul.federation import children
from midhaul.sentences import Sentence

Event = dict[str, Any]


class Teller:
    """The app's end. Without a path nobody listens."""

    def __init__(self, path: str) -> None:
        self.path = Path(path) if path else None
        self("app", pid=os.getpid())

    def __call__(self, kind: str, **told: Any) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:  # it may have ended
                file.write(json.dumps({"event": kind, **told}) + "\n")

    def line(self, line: str) -> None:
        """Tells a sentence for a person, and what of it is for programs."""
        if isinstance(line, Sentence):
            self("line", line=str(line), name=line.event, level=line.level, facts=dict(line.facts))
        else:
            self("line", line=line)

    def progress(self, label: str, done: int, total: int) -> None:
        """Tells how much of something is done."""
        self("progress", label=label, done=done, total=total)


def sentence(event: Event) -> str:
    """Gives the sentence of a line, as it was told."""
    line = str(event["line"])
    return Sentence(line, event["name"], level=event["level"], **event["facts"]) if "name" in event else line


class Listener:
    """The command's end. `pids` are the apps that run; one that has ended is left out, as others may get its number."""

    def __init__(self, path: Path) -> None:
        self.path, self.pids = path, set[int]()
        self._at = 0
        path.touch(mode=0o600)

    def news(self) -> list[Event]:
        """Gives what was told since it was last asked; a line that isn't whole waits."""
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        found: list[Event] = [json.loads(line) for line in whole.splitlines()]
        apps = self.pids | {int(event["pid"]) for event in found if event["event"] == "app"}
        self.pids = {pid for pid in apps if children.is_running(pid)}
        return [event for event in found if event["event"] != "app"]
