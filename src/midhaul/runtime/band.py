"""A band that the devices of a step share on their way up: who sends when, in how many Hz, with what power.

Once all of a step's replies are made, and their bytes and the times at which each is ready are known, the band is
parted by `link.allocation`; each device then takes the time that its channel really needs for what it was given, by the
tables of its modem (`link/channel.py`), and spends what its radio draws.

In a cell, what an allocation knows of a channel is Shannon's rate at the gain at which that is the channel's own rate,
found again for what was allocated last; a few turns suffice. Limits: the band of a device's own cell is shared, and
what a narrow modem can't take of its part is left empty.

On the way down `link.allocation_down` does likewise, by `link/downlink.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.link import downlink, schedule
from midhaul.link.channel import Channel
from midhaul.link.conditions import Conditions, Surroundings
from midhaul.link.downlink import Downlinks
from midhaul.link.energy import PowerModel
from midhaul.link.schedule import Allocation, Array, Mask, ScheduleError, Uplinks

_WAYS_DOWN = {"at_once": downlink.at_once, "turns": downlink.in_turns, "broadcast": downlink.broadcast}
_TURNS = 4  # of finding the gain again
_MARGIN = 0.98  # of the time until a deadline that is planned for, as the last gain is an estimate
_NARROWEST = 0.05  # of a resource block: who gets less is given as much for less of the time


class Upload(NamedTuple):
    """What a device has to send, and when it is ready to. Units: bytes; seconds since the round began."""

    num_bytes: int
    ready_s: float


class Sent(NamedTuple):
    """How a device sent it: after waiting so long, for so long, for so much. Units: seconds, joules."""

    wait_s: float
    send_s: float
    energy_j: float


@dataclass
class Download:
    """A frame on its way down: how many bytes, how often each device is sent it, and, while it travels, its `data`."""

    num_bytes: int
    data: bytes = b""
    tries: dict[int, int] = field(default_factory=dict)


@dataclass
class Band:
    """The shared band of a run. `tell` is given a sentence the first time that a deadline can't be kept by all."""

    allocation: str
    slack: float
    around: Surroundings | None
    powers: Mapping[int, PowerModel]
    tell: Callable[[str], None] = lambda line: None
    has_told: bool = False
    down: str = "own"

    def share(
        self,
        uploads: Mapping[int, Upload],
        conditions: Mapping[int, Conditions],
        *,
        round: int,
        now_s: float,
        deadline_s: float,
    ) -> dict[int, Sent]:
        """Gives how each device sent; one that isn't there was told not to, as it couldn't have been in time."""
        inside: tuple[int, ...] = ()
        if self.around is not None and self.around.cell is not None:
            channel = self.around.channel(round, now_s)
            inside = tuple(sorted(set(uploads) & set(channel.devices.tolist())))
        given: dict[int, Sent] = {}
        if inside:
            given |= self._in_cells(channel.of(np.asarray(inside, np.int64)), uploads, deadline_s)
        wired: dict[str, list[int]] = {}
        for device in uploads.keys() - set(inside):
            wired.setdefault(conditions[device].radio.name, []).append(device)
        for own in wired.values():
            given |= self._in_turns(own, uploads, conditions)
        return given

    def share_down(
        self,
        frames: Collection[Download],
        conditions: Mapping[int, Conditions],
        *,
        round: int,
        now_s: float,
    ) -> dict[int, Sent]:
        """Gives how each device was sent its frames, each as often as it took; who is in no cell by its own radio."""
        told: dict[int, int] = {}
        for each in frames:
            for device, tries in each.tries.items():
                told[device] = told.get(device, 0) + tries * each.num_bytes
        heard = {device: self._heard(num, device, conditions[device]) for device, num in told.items()}
        if self.around is None or self.around.cell is None:
            return heard
        channel = self.around.channel(round, now_s)
        channel = channel.of(np.asarray(sorted({*told} & {*channel.devices.tolist()}), np.int64))
        blocks = channel.most_blocks()
        flow = channel.down(blocks)
        for cell in np.unique(channel.cell):
            own = np.flatnonzero((channel.cell == cell) & flow.served)
            if not len(own):
                continue
            devices = channel.devices[own].tolist()
            carried = (flow.rate_bps[own] / blocks[own], blocks[own])
            idle_w = np.asarray([self.powers[device].idle_w for device in devices])
            wait_s, receive_s = np.zeros(len(own)), np.zeros(len(own))
            for part in frames if self.down == "broadcast" else [Download(1, tries=told)]:
                num = np.asarray([part.tries.get(device, 0) * part.num_bytes for device in devices], np.float64)
                hears = num > 0.0
                links = Downlinks(8.0 * num[hears], *(each[hears] for each in (*carried, idle_w)))
                served = _WAYS_DOWN[self.down](links, float(channel.grid.num_blocks))
                done_s = wait_s + receive_s
                wait_s[hears] += served.wait_s + (done_s.max() - done_s[hears])
                receive_s[hears] += served.receive_s
            for place, device in enumerate(devices):
                model, delay_s = self.powers[device], conditions[device].radio.delay_s
                energy_j = float(model.receive_j(receive_s[place])) + model.idle_w * delay_s
                heard[device] = Sent(float(wait_s[place]), float(receive_s[place]) + delay_s, energy_j)
        return heard

    def _heard(self, num_bytes: int, device: int, own: Conditions) -> Sent:
        seconds = own.seconds(num_bytes, up=False)
        on_air_s = max(seconds - own.radio.delay_s, 0.0)
        model = self.powers[device]
        return Sent(0.0, seconds, float(model.receive_j(on_air_s)) + model.idle_w * (seconds - on_air_s))

    def _in_turns(
        self, devices: list[int], uploads: Mapping[int, Upload], conditions: Mapping[int, Conditions]
    ) -> dict[int, Sent]:
        """Gives devices of one kind of radio the air one after another, each at its own rate."""
        given, free_s = {}, 0.0
        for device in sorted(devices, key=lambda one: (uploads[one].ready_s, one)):
            upload, now = uploads[device], conditions[device]
            send_s = now.seconds(upload.num_bytes, up=True)
            on_air_s = max(send_s - now.radio.delay_s, 0.0)
            wait_s = max(free_s - upload.ready_s, 0.0)
            free_s = upload.ready_s + wait_s + on_air_s
            model = self.powers[device]
            energy_j = float(model.transmit_j(on_air_s, model.power_of(now.radio.tx_w)))
            given[device] = Sent(wait_s, send_s, energy_j)
        return given

    def _in_cells(self, channel: Channel, uploads: Mapping[int, Upload], deadline_s: float) -> dict[int, Sent]:
        """Gives the devices of each cell their parts of its band."""
        band_hz = channel.grid.width_hz * channel.grid.up_share
        gain = 10.0 ** ((channel.gain_db - channel.up_density_dbm_hz + 30.0) / 10.0) * channel.grid.up_share
        links = self._links(channel, uploads, gain)
        there = channel.up(channel.most_blocks(), channel.most_power_dbm()).served
        ways = {int(cell): self.allocation for cell in channel.cell}
        for _ in range(_TURNS):
            found, admitted = _nothing(links), there.copy()
            for cell, way in ways.items():
                own = np.flatnonzero(there & (channel.cell == cell))
                if len(own):
                    ways[cell], part, admitted[own] = self._allocated(way, links.of(own), band_hz, deadline_s)
                    for name, value in vars(part).items():
                        getattr(found, name)[own] = value
            rate = _rates(channel, found)
            there = admitted & (rate > 0.0)
            part_hz, power_w = np.where(there, found.bandwidth_hz, 1.0), np.where(there, found.power_w, 1.0)
            nats = np.minimum(math.log(2.0) * rate / part_hz, 500.0)
            links = replace(links, gain_hz_w=np.where(there, np.expm1(nats) * part_hz / power_w, links.gain_hz_w))
        send_s = np.where(there, links.bits / np.maximum(rate, 1e-300), 0.0)
        joules = send_s * (links.circuit_w + found.power_w / links.efficiency)
        wait_s = np.zeros(len(links))
        for cell, way in ways.items():
            if way == "turns":
                own = np.flatnonzero(there & (channel.cell == cell))
                wait_s[own] = _waits(links.ready_s[own], send_s[own])
        columns = (channel.devices.tolist(), wait_s.tolist(), send_s.tolist(), joules.tolist(), there.tolist())
        return {
            device: Sent(wait, send, spent)
            for device, wait, send, spent, is_there in zip(*columns, strict=True)
            if is_there
        }

    def _links(self, channel: Channel, uploads: Mapping[int, Upload], gain: Array) -> Uplinks:
        """Gives the uplinks with what their radios draw over the share of the time that is the way up's."""
        share, own = channel.grid.up_share, [int(device) for device in channel.devices]
        models = [self.powers[device] for device in own]
        return Uplinks(
            np.asarray([8.0 * uploads[device].num_bytes for device in own]),
            np.asarray([uploads[device].ready_s for device in own]),
            gain,
            np.asarray([model.max_w for model in models]),
            np.asarray([share * model.circuit_w + (1.0 - share) * model.idle_w for model in models]),
            np.asarray([model.efficiency / share for model in models]),
        )

    def _allocated(self, way: str, links: Uplinks, band_hz: float, deadline_s: float) -> tuple[str, Allocation, Mask]:
        """Gives the way of sharing, its allocation, and which devices are in it.

        That is all of them, unless a deadline can't be kept by all. The least energy may be that of sending one after
        another; then that is the way from here on.
        """
        everyone, late_s = np.ones(len(links), np.bool_), _MARGIN * deadline_s
        if way == "equal":
            return way, schedule.equal(links, band_hz, late_s), everyone
        if way == "turns":
            return way, schedule.in_turns(links, band_hz, late_s), everyone
        if way == "min_time":
            return way, schedule.min_time(links, band_hz), everyone
        if math.isinf(late_s):
            late_s = self.slack * schedule.soonest(links, band_hz)
        try:
            best = schedule.cheapest(links, band_hz, late_s)
            alone = float(best.bandwidth_hz.sum()) > 1.001 * band_hz
            return "turns" if alone else way, best, everyone
        except ScheduleError as error:
            if not self.has_told:
                self.has_told = True
                self.tell(f"{error}; in such rounds those that need most of the band don't send")
        chosen = schedule.admitted(links, band_hz, late_s)
        whole = _nothing(links)
        if chosen.any():
            part = schedule.min_energy(links.of(chosen), band_hz, late_s)
            for name, value in vars(part).items():
                getattr(whole, name)[chosen] = value
        return way, whole, chosen


def check(config: Config) -> None:
    """Refuses an allocation without anything to go by. Raises: ConfigError."""
    link = config.link
    if link.allocation_down != "own" and (link.energy != "states" or link.cell == "none"):
        raise ConfigError(
            f"link.allocation_down = {link.allocation_down!r} parts a cell's band by what radios draw; set "
            "link.cell and link.energy = 'states', or link.allocation_down = 'own'"
        )
    if link.allocation_down != "own" and config.fleet.mode != "synchronous":
        raise ConfigError(
            f"with fleet.mode = {config.fleet.mode!r} devices come and go, and link.allocation_down parts the band "
            "among those that are sent to together; set link.allocation_down = 'own'"
        )
    if link.allocation == "own":
        return
    if link.energy != "states":
        raise ConfigError(
            f"link.allocation = {link.allocation!r} goes by what radios draw at each power; set link.energy = 'states'"
        )
    if config.fleet.mode != "synchronous":
        raise ConfigError(
            f"with fleet.mode = {config.fleet.mode!r} devices come and go, and link.allocation = {link.allocation!r} "
            "parts the band among those that send together; set link.allocation = 'own'"
        )
    if link.allocation != "turns" and link.cell == "none":
        raise ConfigError(
            f"link.allocation = {link.allocation!r} parts a band by the devices' channels, and a radio's own figures "
            "have none; set link.cell, or link.allocation = 'turns'"
        )


def _rates(channel: Channel, found: Allocation) -> Array:
    """Gives what devices really send with what they were given. Units: bits a second."""
    blocks = found.bandwidth_hz / (channel.grid.block_hz * channel.grid.up_share)
    time = np.minimum(blocks / _NARROWEST, 1.0)
    blocks = np.minimum(np.maximum(blocks, _NARROWEST), channel.most_blocks())
    power_dbm = 10.0 * np.log10(np.maximum(found.power_w, 1e-15)) + 30.0
    return np.where(found.bandwidth_hz > 0.0, channel.up(blocks, power_dbm, time).rate_bps, 0.0)


def _nothing(links: Uplinks) -> Allocation:
    """Gives the allocation in which nobody sends."""
    bandwidth_hz, power_w, send_s, joules = (np.zeros(len(links)) for _ in range(4))
    return Allocation(bandwidth_hz, power_w, send_s, links.ready_s.copy(), joules)


def _waits(ready_s: Array, send_s: Array) -> Array:
    """Gives how long each waits that sends alone, in the order in which they become ready."""
    wait_s, free_s = np.zeros(len(ready_s)), 0.0
    for place in np.argsort(ready_s, kind="stable"):
        wait_s[place] = max(free_s - ready_s[place], 0.0)
        free_s = ready_s[place] + wait_s[place] + send_s[place]
    return wait_s
