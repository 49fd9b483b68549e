"""Runs a float net in plain numpy, in float64: slow, obvious, and the law for what a net means.

It is no test by itself. Shapes are those of one example.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from midhaul.net import Kind, Layer, Net


def run(net: Net, x: Any) -> Any:
    """Gives the last value of one example [C, H, W] or anything with as many numbers."""
    return values(net, x)[net.output]


def values(net: Net, x: Any) -> dict[int, Any]:
    """Gives every value of one example."""
    found = {0: np.asarray(x, np.float64).reshape(net.values[0].shape)}
    for layer in net.layers:
        sources = [found[value] for value in layer.inputs]
        tensors = {role: net.tensors[name].astype(np.float64) for role, name in layer.weights.items()}
        out = np.clip(_run(layer, sources, tensors, net.values[layer.out].shape), layer.low, layer.high)
        assert out.shape == net.values[layer.out].shape, layer
        found[layer.out] = out
    return found


def _run(layer: Layer, sources: list[Any], w: dict[str, Any], shape: tuple[int, int, int]) -> Any:
    x = sources[0]
    if layer.kind in (Kind.CLAMP, Kind.RESHAPE):
        return x.reshape(shape)
    if layer.kind == Kind.ADD:
        return x + sources[1]
    if layer.kind == Kind.DENSE:
        out = w["weight"] @ x.reshape(-1) + w.get("bias", 0.0)
        if "lora_a" in w:
            out = out + layer.lora_scale * (w["lora_b"] @ (w["lora_a"] @ x.reshape(-1)))
        return out.reshape(shape)
    if layer.kind == Kind.GROUP_NORM:
        groups = x.reshape(layer.groups, -1)
        scaled = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + layer.eps)
        return scaled.reshape(shape) * w.get("weight", np.ones(shape[0])).reshape(-1, 1, 1) + w.get(
            "bias", np.zeros(shape[0])
        ).reshape(-1, 1, 1)
    out = np.zeros(shape)
    for oh, ow in itertools.product(range(shape[1]), range(shape[2])):
        out[:, oh, ow] = _window(layer, x, w, oh, ow, shape[0])
    return out


def _window(layer: Layer, x: Any, w: dict[str, Any], oh: int, ow: int, num: int) -> Any:
    taps = [
        (kh, kw, oh * layer.stride[0] - layer.padding[0] + kh * layer.dilation[0],
         ow * layer.stride[1] - layer.padding[1] + kw * layer.dilation[1])
        for kh, kw in itertools.product(range(layer.kernel[0]), range(layer.kernel[1]))
    ]  # fmt: skip
    inside = [(kh, kw, h, v) for kh, kw, h, v in taps if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]]
    seen = np.stack([x[:, h, v] for _, _, h, v in inside]) if inside else np.zeros((0, x.shape[0]))
    if layer.kind == Kind.MAX_POOL:
        return seen.max(0)
    if layer.kind == Kind.AVERAGE_POOL:
        return seen.mean(0)
    weight = w["weight"].reshape(num, -1, *layer.kernel)
    kernel = np.stack([weight[:, :, kh, kw] for kh, kw, _, _ in inside]) if inside else np.zeros((0, num, 1))
    if layer.kind == Kind.DEPTHWISE:
        assert layer.groups == x.shape[0]
        out = np.einsum("to,to->o", kernel[:, :, 0], np.repeat(seen, num // x.shape[0], axis=1))
    else:
        assert layer.kind == Kind.CONV
        assert layer.groups == 1
        out = np.einsum("toi,ti->o", kernel, seen)
    if "lora_a" in w:
        out = out + layer.lora_scale * (w["lora_b"] @ (w["lora_a"] @ seen[0]))
    return out + w.get("bias", 0.0)
