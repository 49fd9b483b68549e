"""Logs for programs: a line of JSON for each thing that happens, by the standard library's `logging`.

The logger is `midhaul`; without a handler it says nothing. A line's fields are those of `sentences.record`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from midhaul.errors import ConfigError
from midhaul.sentences import Sentence, record

FORMS = ("text", "json")
_LOGGER = logging.getLogger("midhaul")
_LOGGER.addHandler(logging.NullHandler())
_LEVELS = {"detail": logging.INFO, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class JsonLines(logging.Formatter):
    """Makes a line of JSON; `about` is in each."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about

    def format(self, record_: logging.LogRecord) -> str:
        text = record_.msg if isinstance(record_.msg, Sentence) else record_.getMessage()
        return json.dumps(record(text, record_.created, self.about), ensure_ascii=False, allow_nan=False)


class _File(logging.handlers.WatchedFileHandler):
    """A log's file, opened anew when somebody has moved it away. A full disk ends no run: it is told once."""

    has_failed = False

    def emit(self, record_: logging.LogRecord) -> None:
        try:
            super().emit(record_)
        except OSError:
            self._tell()

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            self._tell()

    def handleError(self, record_: logging.LogRecord) -> None:
        self._tell()

    def _tell(self) -> None:
        if not self.has_failed:
            self.has_failed = True
            why = sys.exc_info()[1]
            sys.stderr.write(f"midhaul: the log {self.baseFilename} can't be written ({why}); the run goes on\n")


def tell(text: str) -> None:
    """Logs a sentence."""
    level = text.level if isinstance(text, Sentence) else "info"
    _LOGGER.log(_LEVELS[level], text)


@contextlib.contextmanager
def to(form: str, path: Path | None, **about: Any) -> Iterator[None]:
    """Has the log written in JSON to the error stream, where the form is that, and to a file, where there is one.

    `about` is in each line. Raises: ConfigError for a file that can't be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if form == "json" else []
    if path is not None:
        try:
            handlers.append(_File(path, encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"the log {path} can't be written ({error.strerror}); choose another --log-file"
            ) from None
    level = _LOGGER.level
    for handler in handlers:
        handler.setFormatter(JsonLines(about))
        _LOGGER.addHandler(handler)
    if handlers:
        _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
        for handler in handlers:
            _LOGGER.removeHandler(handler)
            handler.close()
