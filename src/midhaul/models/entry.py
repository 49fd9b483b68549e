"""What the catalogues of models hold, and how one is built from its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from midhaul.errors import ModelError, nearest

Shape = tuple[int, ...]
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Entry:
    """A model that can be built by name.

    `ranks` are the lengths of an input shape that it takes; `parameters` and `macs` are what its authors published for
    `published_shape` and `published_classes`, 0 where they published none; `options` are its builder's.
    """

    builder: Builder
    summary: str
    source: str
    ranks: tuple[int, ...]
    parameters: int = 0
    macs: int = 0
    published_shape: Shape = ()
    published_classes: int = 0
    published_options: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options with their defaults."""
        given = list(inspect.signature(self.builder).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in given}


def build(
    catalogue: Mapping[str, Entry],
    kind: str,
    name: str,
    input_shape: Shape,
    num_classes: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """Builds a model of a catalogue. Raises: ModelError for a wrong name, rank, option or size, in one sentence."""
    if name not in catalogue:
        raise ModelError(f"there is no {kind} model {name!r}{nearest(name, catalogue)}")
    entry, shape = catalogue[name], tuple(int(size) for size in input_shape)
    if len(shape) not in entry.ranks or min(shape, default=0) < 1:
        layouts = " or ".join(LAYOUTS[rank] for rank in entry.ranks)
        raise ModelError(f"the model {name} takes an input of shape {layouts}, not {shape}; choose another model")
    if num_classes < 1:
        raise ModelError(f"the model {name} can't have {num_classes} outputs; give it at least 1")
    for option in options:
        if option not in entry.options:
            raise ModelError(f"the model {name} has no option {option!r}{nearest(option, entry.options)}")
    try:
        return entry.builder(shape, num_classes, **options)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"the model {name} can't be built with {dict(options)} ({error}); mend the option") from None


LAYOUTS = {1: "(features,)", 2: "(channels, length)", 3: "(channels, height, width)"}


def sizes(option: str, value: Any) -> tuple[int, ...]:
    """Gives an option's positive whole numbers, one or many. Raises: ModelError.

    >>> sizes("hidden", 64), sizes("hidden", [128, 64])
    ((64,), (128, 64))
    """
    many = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in many):
        raise ModelError(f"the option {option} is {value!r}; it must be whole numbers above 0")
    return tuple(many)


def size(option: str, value: Any) -> int:
    """Gives an option's positive whole number. Raises: ModelError."""
    many = sizes(option, value)
    if len(many) != 1:
        raise ModelError(f"the option {option} is {value!r}; it must be one whole number above 0")
    return many[0]
