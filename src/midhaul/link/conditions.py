"""What a device's radio is worth at a time: its rates in its cell or by its trace, and how often a frame is lost.

Where nothing varies, a radio's own figures stand (`radio`). Nothing is carried from one step to the next: what holds
depends on the seed, the round, the time and who takes part in the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from midhaul.config import LinkConfig
from midhaul.errors import ConfigError
from midhaul.link import layout, traces
from midhaul.link.cell import Cell
from midhaul.link.channel import Channel, Flow
from midhaul.link.radio import Radio
from midhaul.link.traces import Trace

REPEATS = 4  # of a block that hybrid ARQ gave up, by the layer above: acknowledged mode of TS 38.322
_NOTHING = 1e-12
_LEAST_APART_M = 20.0  # base stations nearer than this are looked at no more
MAX_SURVEYED = 2000  # devices on the map of a report


@dataclass(frozen=True)
class Conditions:
    """A device's radio in one step. Units: bits, dBm; duties are the share of the time in which it sends or receives.

    `served` is false where there is no coverage: then it can't be reached. `block_bits` and `lost` of each way are
    those of transport blocks, `transmissions` how often one is sent.
    """

    radio: Radio
    served: bool = True
    up_block_bits: float = 0.0
    down_block_bits: float = 0.0
    up_lost: float = 0.0
    down_lost: float = 0.0
    up_transmissions: float = 1.0
    down_transmissions: float = 1.0
    up_dbm: float | None = None  # radiated while sending, None where the radio doesn't control it
    up_duty: float = 1.0
    down_duty: float = 1.0
    trace: Trace | None = None
    at_s: float = 0.0

    def seconds(self, num_bytes: int, *, up: bool) -> float:
        """Gives the time from a message's first bit to its last; 0 for no bytes."""
        if self.trace is not None and num_bytes:
            taken = self.trace.seconds(num_bytes, self.at_s, up=up)
            if taken is not None:
                return self.radio.delay_s + taken
        return self.radio.seconds_up(num_bytes) if up else self.radio.seconds_down(num_bytes)

    def joules(self, num_bytes: int, *, up: bool) -> float:
        """Gives what the device's radio spends: its power while it sends or receives, and in the pauses of a trace."""
        radio = self.radio
        if self.trace is not None:
            power_w = radio.tx_w if up else radio.rx_w
            return max(self.seconds(num_bytes, up=up) - radio.delay_s, 0.0) * power_w
        return self.up_duty * radio.joules_up(num_bytes) if up else self.down_duty * radio.joules_down(num_bytes)

    def loss(self, num_bytes: int, *, up: bool) -> float:
        """Gives how likely a frame is lost: any of its blocks, in spite of hybrid ARQ and the layer above it."""
        bits, lost = (self.up_block_bits, self.up_lost) if up else (self.down_block_bits, self.down_lost)
        if not bits:
            return self.radio.loss
        gone = lost ** (1 + REPEATS)
        return 0.0 if gone < _NOTHING else float(1.0 - (1.0 - gone) ** np.ceil(8.0 * num_bytes / bits))


class Surroundings:
    """What varies around the devices of a run: a cell, traces, or both, each for some of the devices."""

    def __init__(
        self, radios: Mapping[int, Radio], cell: Cell | None, follows: Mapping[int, tuple[Trace, float]]
    ) -> None:
        self.radios = radios
        self.cell = cell
        self.follows = follows  # the trace of a device, and where in it it begins
        self._channel: tuple[int, Channel] | None = None
        self._kept: tuple[tuple[int, tuple[int, ...]], dict[int, Conditions]] | None = None

    @classmethod
    def from_config(cls, link: LinkConfig, radios: Mapping[int, Radio], seed: int) -> Surroundings | None:
        """Gives what [link] puts around devices with these radios, None if nothing. Raises: MidhaulError."""
        follows: dict[int, tuple[Trace, float]] = {}
        if link.trace:
            found = traces.read_all(link.trace)
            if link.cell != "none":
                raise ConfigError(
                    "rates follow measured traces or a cell's channels, not both; set link.cell = 'none' or leave out "
                    "link.trace"
                )
            for device in radios:
                trace = found[device % len(found)]
                follows[device] = trace, traces.offset_s(trace, seed, device)
        if link.cell == "none":
            return cls(radios, None, follows) if follows else None
        names = [radios[device].name if device in radios else "" for device in range(max(radios) + 1)]
        return cls(radios, Cell.from_config(link, names, seed), follows)

    def at(self, round: int, time_s: float, asked: Sequence[int]) -> dict[int, Conditions]:
        """Gives the conditions of devices that take part in one step together, so share the band of their cell.

        The channels of a round are those at the time of its first step.
        """
        if self._kept is not None and self._kept[0] == (round, tuple(asked)) and not self.follows:
            return self._kept[1]
        found = {
            device: Conditions(
                self.radios[device], trace=self.follows[device][0], at_s=time_s + self.follows[device][1]
            )
            if device in self.follows
            else Conditions(self.radios[device])
            for device in asked
        }
        if self.cell is not None:
            found |= self._in_cell(self.channel(round, time_s), asked)
        self._kept = (round, tuple(asked)), found
        return found

    def _in_cell(self, whole: Channel, asked: Sequence[int]) -> dict[int, Conditions]:
        wanted = np.asarray(sorted(set(asked) & set(whole.devices.tolist())), np.int64)
        if not len(wanted):
            return {}
        channel = whole.of(wanted)
        blocks, time = channel.fair_blocks(np.ones(len(wanted), np.bool_))
        up, down = channel.up(blocks, time=time), channel.down(blocks, time=time)
        grid = channel.grid
        return {
            int(device): _conditions(
                self.radios[int(device)], up, down, place, (grid.up_share * time[place], grid.down_share * time[place])
            )
            for place, device in enumerate(wanted)
        }

    def survey(self) -> dict[str, Any] | None:
        """Gives the cell as plain values, for a report: where devices are at first, and how fast each is alone."""
        if self.cell is None:
            return None
        channel = self.cell.channel(0, devices=self.cell.devices[:MAX_SURVEYED])
        alone = channel.most_blocks()
        up, down = channel.up(alone), channel.down(alone)
        columns = {
            "site_x": self.cell.sites[:, 0], "site_y": self.cell.sites[:, 1],
            "x": channel.places[:, 0], "y": channel.places[:, 1], "indoors": channel.indoors,
            "served": up.served & down.served, "ratio_db": channel.down_ratio_db(),
            "up_bps": up.rate_bps, "down_bps": down.rate_bps,
        }  # fmt: skip
        plain = {name: column.tolist() for name, column in columns.items()}
        told = {"kind": self.cell.scenario.name, "inter_site_m": self.cell.inter_site_m}
        return {**told, "num_devices": len(self.cell.devices), **plain}

    def alone(self, round: int, time_s: float) -> dict[int, Radio]:
        """Gives the radios of the devices in the cell as they are now, each with the band to itself.

        One without coverage keeps its name and has next to no rate.
        """
        if self.cell is None:
            return {}
        channel = self.channel(round, time_s)
        blocks = channel.most_blocks()
        up, down = channel.up(blocks), channel.down(blocks)
        rates = zip(np.maximum(up.rate_bps, _NOTHING), np.maximum(down.rate_bps, _NOTHING), strict=True)
        return {
            int(device): dataclasses.replace(self.radios[int(device)], up_bps=float(sent), down_bps=float(got))
            for device, (sent, got) in zip(channel.devices, rates, strict=True)
        }

    def channel(self, round: int, time_s: float) -> Channel:
        """Gives the channels of a round, those at the time of its first step. Raises: ConfigError without a cell."""
        if self.cell is None:
            raise ConfigError("without a cell there are no channels; set link.cell")
        if self._channel is None or self._channel[0] != round:
            self._channel = round, self.cell.channel(round, time_s)
        return self._channel[1]

    def coverage(self) -> tuple[int, int]:
        """Gives how many devices a cell has, and how many of them are in coverage, each with the cell to itself."""
        if self.cell is None:
            return len(self.radios), len(self.radios)
        return _coverage(self.cell)

    def nearest_m(self) -> tuple[float, int]:
        """Gives how far apart base stations may be for a device to be in coverage, about, and how many then are.

        Units: metres; 0 where none is at any distance. The distance is halved until one is, then searched between.
        """
        if self.cell is None:
            return 0.0, 0
        cell, far = self.cell, self.cell.inter_site_m

        def served(apart_m: float) -> int:
            link = dataclasses.replace(cell.link, inter_site_m=apart_m)
            try:
                return _coverage(dataclasses.replace(cell, link=link, sites=layout.sites(link.rings, apart_m)))[1]
            except ConfigError:  # link.min_distance_m leaves no room in so small a cell
                return 0

        near = far / 2.0
        while near > _LEAST_APART_M and not served(near):
            far, near = near, near / 2.0
        if near <= _LEAST_APART_M:
            return 0.0, 0
        for _ in range(6):
            middle = math.sqrt(near * far)
            near, far = (middle, far) if served(middle) else (near, middle)
        return near, served(near)


def _coverage(cell: Cell) -> tuple[int, int]:
    channel = cell.channel(0)
    alone = channel.most_blocks()
    served = channel.up(alone).served & channel.down(alone).served
    return len(served), int(served.sum())


def _conditions(radio: Radio, up: Flow, down: Flow, place: int, duties: tuple[float, float]) -> Conditions:
    served = bool(up.served[place] and down.served[place])
    rates: dict[str, Any] = (
        {"up_bps": float(up.rate_bps[place]), "down_bps": float(down.rate_bps[place])} if served else {}
    )
    return Conditions(
        dataclasses.replace(radio, **rates),
        served,
        float(up.block_bits[place]),
        float(down.block_bits[place]),
        float(up.lost[place]),
        float(down.lost[place]),
        float(up.transmissions[place]),
        float(down.transmissions[place]),
        float(up.power_dbm[place]),
        float(duties[0]),
        float(duties[1]),
    )
