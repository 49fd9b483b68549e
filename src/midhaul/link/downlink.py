"""Who gets a cell's band, and when, on the way down: all at once, one after another, or one broadcast for all.

A base station spreads its power evenly over its band, so n resource blocks carry n times what one does: a device's rate
is its rate a block times its blocks, at most as many as its modem takes. The problem is then linear, and the optimum is
known without a search. A device spends its receiving power while it is sent to, and its idle power while it waits.

- `at_once`: the last one is done soonest. At time T a device needs bits / (T rate) blocks; T is the least at which all
  have them, so that all end together but for those whose modem alone sets T. Nobody waits, everybody receives for long.
- `in_turns`: the devices spend least. Each has all the blocks that its modem takes, and listens to nothing else; those
  go first that take least time for the idle power that they wait with. Where every modem takes the whole band that is
  the optimum (Smith, "Various optimizers for single-stage production", Naval Research Logistics Quarterly 1956; from
  memory), else near it; and the last one is done as soon as with `at_once`.
- `broadcast`: one transmission that all hear, in blocks that every modem takes, at the rate of the worst channel. As 5G
  multicast and broadcast services do it (3GPP TS 23.247, TS 38.331; from memory), without feedback that would repeat
  a part for one device alone.

Shape letters: K devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midhaul.errors import ConfigError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Downlinks:
    """What devices are to get, and how. Shapes: [K] each.

    Units: bits; `rate_bps` bits a second in one block; `most_blocks` that a modem takes; watts waiting.
    """

    bits: Array
    rate_bps: Array
    most_blocks: Array
    idle_w: Array

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            strict = name in ("rate_bps", "most_blocks")
            if value.shape != np.shape(self.bits) or not np.isfinite(value).all() or (value < 0.0).any():
                raise ConfigError(f"a way down takes one finite {name} a device, not below 0")
            if strict and not (value > 0.0).all():
                raise ConfigError(f"a way down takes one {name} a device, above 0")


@dataclass(frozen=True)
class Served:
    """How each device is sent to: in so many blocks, after waiting, for how long. Shapes: [K]. Units: seconds."""

    blocks: Array
    wait_s: Array
    receive_s: Array


def at_once(links: Downlinks, num_blocks: float) -> Served:
    """Gives the blocks with which the last one is done soonest."""
    work = links.bits / links.rate_bps  # seconds times blocks
    last_s = max(float(work.sum()) / num_blocks, float((work / links.most_blocks).max(initial=0.0)))
    blocks = work / last_s if last_s > 0.0 else work
    return Served(blocks, np.zeros(len(work)), np.where(links.bits > 0.0, last_s, 0.0))


def in_turns(links: Downlinks, num_blocks: float) -> Served:
    """Gives each all the blocks that its modem takes, as soon as they are free; who waits dearest goes first."""
    blocks = np.minimum(links.most_blocks, num_blocks)
    receive_s = links.bits / (links.rate_bps * blocks)
    takes = receive_s * blocks / num_blocks  # of the whole band
    order = np.argsort(takes / np.maximum(links.idle_w, 1e-12), kind="stable")
    wait_s = np.zeros(len(blocks))
    busy: list[tuple[float, float]] = []  # when blocks become free, and how many
    now_s, free = 0.0, num_blocks
    for place in order:
        if not receive_s[place]:
            continue
        while free < blocks[place] * (1.0 - 1e-9):
            busy.sort()
            ends_s, back = busy.pop(0)
            now_s, free = max(now_s, ends_s), free + back
        wait_s[place] = now_s
        free -= blocks[place]
        busy.append((now_s + float(receive_s[place]), float(blocks[place])))
    return Served(np.where(links.bits > 0.0, blocks, 0.0), wait_s, receive_s)


def broadcast(links: Downlinks, num_blocks: float) -> Served:
    """Gives the blocks that every modem takes, at the rate of the worst channel. What differs in bits is sent again: a
    device listens until it has its own."""
    blocks = np.full(len(links.bits), min(float(links.most_blocks.min(initial=num_blocks)), num_blocks))
    slowest = float(links.rate_bps.min(initial=np.inf))
    return Served(blocks, np.zeros(len(blocks)), links.bits / (slowest * blocks))
