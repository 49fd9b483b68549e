"""The one thing that a scheme speaks to: a fleet, and its `exchange`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from midhaul import rng
from midhaul.message import Message, Replies


class Fleet(Protocol):
    """Devices that answer messages: an engine, a link around an engine, a gateway of fleets.

    `devices` are those that train; `test_devices` those that the model is tested on, which may be the same.
    """

    @property
    def devices(self) -> tuple[int, ...]: ...

    @property
    def test_devices(self) -> tuple[int, ...]: ...

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        """Sends one message to some devices (all that train, if none are named) and gives the replies that came back.

        The key gives the seed and the round; each device draws from `rng.key(seed, round, device, use)`. A device that
        didn't answer is not in the replies.
        """
        ...
