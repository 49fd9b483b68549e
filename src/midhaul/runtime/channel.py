"""What both ends of a stream need of gRPC: the library itself, the method's name, and the settings of a channel."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from midhaul.errors import DependencyError
from midhaul.runtime.envelope import HEADER_BYTES, PART_BYTES

SERVICE, METHOD = "midhaul.Stream", "Open"
KEEPALIVE_S = 10.0


def options(keepalive_s: float = KEEPALIVE_S) -> tuple[tuple[str, int], ...]:
    """Gives a channel's settings.

    A peer that says nothing for `keepalive_s` is asked whether it is there, and given as long to answer; then the
    stream has ended.
    """
    keepalive_ms = max(1, int(1000 * keepalive_s))
    return (
        ("grpc.max_receive_message_length", HEADER_BYTES + PART_BYTES),
        ("grpc.max_send_message_length", HEADER_BYTES + PART_BYTES),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", max(1, keepalive_ms // 2)),
        ("grpc.so_reuseport", 0),
    )


OPTIONS = options()


def load() -> Any:
    """Gives the library. Raises: DependencyError without it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong reaches us as an error, in a sentence
    try:
        return import_module("grpc")
    except ImportError:
        raise DependencyError("gateways speak gRPC, which isn't installed; install midhaul[federation]") from None
