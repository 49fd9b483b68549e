"""Errors that a person can act on: each message says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MidhaulError(Exception):
    """Anything that midhaul refuses to do; the command line prints it as one sentence and exits with 2."""


class ConfigError(MidhaulError):
    """A setting that is unknown, of the wrong type or out of range."""


class DataError(MidhaulError):
    """Data that are missing, damaged or not what was said of them."""


class ModelError(MidhaulError):
    """A model that can't be built, or that can't be federated as it is."""


class SliceError(ModelError):
    """A slice or a cut that the model doesn't have."""


class BudgetError(MidhaulError):
    """Something that doesn't fit its board."""


class FrameError(MidhaulError):
    """Bytes that are not a whole, sound frame."""


class CheckpointError(MidhaulError):
    """A checkpoint that is missing, damaged or of another run."""


class EngineError(MidhaulError):
    """An engine that was asked for what it can't do."""


class QuorumError(EngineError):
    """A round in which fewer devices answered than it needs; it can be repeated, the model unchanged."""


class DependencyError(MidhaulError):
    """An optional library that isn't installed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Gives `; did you mean 'x'?` for the known word most like `word`, or the list of them all.

    >>> nearest("fedavgg", ["fedavg", "local"])
    "; did you mean 'fedavg'?"
    >>> nearest("zzz", ["fedavg", "local"])
    '; known: fedavg, local'
    """
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(words)}"
