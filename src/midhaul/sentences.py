"""What happens in a run, in sentences that people read and programs too: each has a name and facts.

Whoever is told sentences (`tell`) may take these for the plain text that they are. `record` gives what a log's line
holds. Units are in the names of facts: _s _j _bytes.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

# Every event, and what it says; docs/federation.md has them all.
EVENTS = {
    "start": "a run begins, or goes on from a checkpoint",
    "listening": "the server can be joined",
    "waiting": "who is missing before the run can begin",
    "everybody": "those are there that the run begins with",
    "gateway_here": "a gateway came, or its process began anew",
    "gateway_back": "a gateway's stream was cut, and it is back",
    "gateway_away": "a gateway's stream was cut",
    "refused": "something wasn't taken: `kind` says what it was",
    "round": "a round has ended: who was late or away, the seconds, the figures of metrics.jsonl",
    "round_repeated": "a round that was below its quorum begins again",
    "device": "something befell a device with firmware",
    "workers": "something befell the workers of a cluster",
    "target": "the accuracy is there that was to be told of",
    "replan": "the run was looked at, and perhaps planned anew",
    "checkpoint": "the run can go on from here",
    "joined": "this gateway is in the run",
    "lost": "this gateway has lost its server, and looks for it",
    "served": "this gateway has done its part of a round",
    "failed": "this gateway can't do what it was asked",
    "note": "anything else that a person is told",
    "end": "the run has ended",
    "error": "it ended with an error",
}
LEVELS = ("detail", "info", "warning", "error")


class Sentence(str):
    """A sentence, the name of what happened, and its facts. A person isn't shown what is only a `detail`.

    >>> told = Sentence("gateway north is away", "gateway_away", level="warning", gateway="north")
    >>> told == "gateway north is away", told.event, told.facts
    (True, 'gateway_away', {'gateway': 'north'})
    """

    event: str
    level: str
    facts: Mapping[str, Any]

    def __new__(cls, text: str, event: str, *, level: str = "info", **facts: Any) -> Sentence:
        assert event in EVENTS, f"{event} isn't among sentences.EVENTS"
        assert level in LEVELS, level
        made = super().__new__(cls, text)
        made.event, made.level, made.facts = event, level, facts
        return made


def record(text: str, time_s: float, about: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a log's line: time in UTC, level, event, message, what is known of who tells it, and the event's facts.

    Units: seconds since 1970. Numbers that are not finite are null, as JSON has none.

    >>> record("all is well", 0.0, {"command": "serve"})
    {'time': '1970-01-01T00:00:00.000Z', 'level': 'info', 'event': 'note', 'message': 'all is well', 'command': 'serve'}
    """
    at = datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="milliseconds")
    said = text if isinstance(text, Sentence) else Sentence(text, "note")
    level = "info" if said.level == "detail" else said.level
    first = {"time": at.replace("+00:00", "Z"), "level": level, "event": said.event, "message": str(text)}
    return {**first, **{name: _plain(value) for name, value in {**about, **said.facts}.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
