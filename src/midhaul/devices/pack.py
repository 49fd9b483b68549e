"""Packs the weights of int8 layers for a target."""

from __future__ import annotations

from midhaul.errors import ModelError
from midhaul.net import Layer, Net


def pack(layer: Layer, net: Net, packing: int) -> tuple[bytes, bytes]:
    """Gives the packed weights and the requantisation table of an int8 layer."""
    raise ModelError(f"layer {layer.name} is in int8, which can't be packed yet")


def scratch_bytes(layer: Layer, net: Net, packing: int) -> int:
    """Gives the bytes of scratch that a layer's kernel needs."""
    return 0
