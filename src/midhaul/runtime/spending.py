"""What devices are charged, for what, and until when: batteries that empty, radios that wait and sleep.

By default a radio is charged a fixed power while it sends or receives, and nothing else costs (`link.energy =
"transfer"`). By its states (`link.energy = "states"`) it is charged for circuits and amplifier, for receiving, for
waiting its turn, and for what it rests in between, with the board asleep beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from midhaul import rng
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.fleet import Group
from midhaul.link import energy
from midhaul.link.conditions import Conditions
from midhaul.link.energy import PowerModel
from midhaul.runtime.ledger import Doubles, Ints, Ledger
from midhaul.units import dbm_to_w


def batteries(config: Config, groups: Sequence[Group]) -> dict[int, float]:
    """Gives what each training device's battery holds, nothing where none ends. Units: joules.

    Raises: ConfigError for a board of which no battery is known.
    """
    fleet, held = config.fleet, dict[int, float]()
    if not fleet.battery_j:
        return held
    if -1.0 < fleet.battery_j < 0.0:
        raise ConfigError(
            f"fleet.battery_j is {fleet.battery_j}; write joules, 0 for no end, or -1 for the board's own"
        )
    for group in groups:
        full_j = fleet.battery_j if fleet.battery_j > 0.0 else group.board.battery_j
        for device in group.devices if full_j < math.inf else ():
            stream = rng.key(config.run.seed, 0, device, rng.Use.BATTERY)
            share = math.exp(fleet.battery_spread * float(rng.normal(stream, 1)[0])) if fleet.battery_spread else 1.0
            held[device] = full_j * share
    return held


class Spending:
    """Charges devices to a ledger. `battery_j` is what there is of it at first, without end for those not named."""

    def __init__(
        self,
        ledger: Ledger,
        groups: Sequence[Group] = (),
        *,
        states: bool = False,
        battery_j: Mapping[int, float] | None = None,
    ) -> None:
        self.ledger = ledger
        self.states = states
        self.battery_j = dict(battery_j or {})
        self.round = 0
        self._sleep_w = {device: group.board.sleep_w for group in groups for device in group.devices}
        self._power: dict[int, PowerModel] = {}
        if states:
            self._power = {d: energy.get(g.radio.name) for g in groups for d in (*g.devices, *g.tests)}

    def charge(self, device: int, what: str, energy_j: float, seconds: float) -> None:
        """Charges a device, for no more than its battery has left."""
        ledger = self.ledger
        if device in self.battery_j:
            left = max(self.battery_j[device] - ledger.joules.get(str(device), 0.0), 0.0)
            if energy_j >= left:
                energy_j = left
                ledger.gone.setdefault(str(device), self.round)
        ledger.joules.add_one(device, energy_j)
        ledger.joules_of[what].add_one(device, energy_j)
        ledger.seconds_of[what].add_one(device, seconds)

    def charge_all(self, devices: Ints, what: str, energy_j: Doubles, seconds: Doubles) -> None:
        """Does so with many devices, none of which is named twice. Shapes: [D] each."""
        if self.battery_j:
            for device, own_j, own_s in zip(devices.tolist(), energy_j.tolist(), seconds.tolist(), strict=True):
                self.charge(device, what, own_j, own_s)
            return
        self.ledger.joules.add(devices, energy_j)
        self.ledger.joules_of[what].add(devices, energy_j)
        self.ledger.seconds_of[what].add(devices, seconds)

    def is_empty(self, device: int) -> bool:
        """Tells whether a device's battery is."""
        return bool(self.ledger.gone) and str(device) in self.ledger.gone

    def price(
        self, device: int, conditions: Conditions, num_bytes: int, tries: int, *, up: bool
    ) -> tuple[float, float]:
        """Gives the seconds and joules that a device takes to send or be sent a frame so often."""
        seconds = tries * conditions.seconds(num_bytes, up=up)
        energy_j = tries * conditions.joules(num_bytes, up=up)
        if self.states and num_bytes:
            model, duty = self._power[device], conditions.up_duty if up else conditions.down_duty
            on_air_s = duty * max(seconds - tries * conditions.radio.delay_s, 0.0)
            uncontrolled = conditions.up_dbm is None
            power_w = model.power_of(conditions.radio.tx_w) if uncontrolled else dbm_to_w(conditions.up_dbm or 0.0)
            active_j = float(model.transmit_j(on_air_s, power_w) if up else model.receive_j(on_air_s))
            energy_j = active_j + model.idle_w * (seconds - on_air_s)
        return seconds, energy_j

    def wait(self, device: int, seconds: float) -> None:
        """Charges a device for waiting its turn on the air, where its states are."""
        if self.states and seconds > 0.0:
            self.charge(device, "idle", float(self._power[device].rest_j(seconds)), seconds)

    def rest_from(self, device: int, since_s: float) -> None:
        """Says from when a device has nothing to do."""
        if self.states:
            self.ledger.rests[str(device)] = [since_s, 0.0, 0.0]

    def rest_until(self, devices: Iterable[int], now_s: float) -> None:
        """Charges devices for having had nothing to do until now: the radio's cheapest rest, and the board asleep.

        Limits: a gap that is charged in parts is charged as the whole of it once it ended, unless a part cost more.
        """
        if not self.states:
            return
        for device in devices:
            if device not in self._sleep_w or self.is_empty(device):
                continue
            since_s, charged_j, charged_s = self.ledger.rests.setdefault(str(device), [0.0, 0.0, 0.0])
            gap_s = now_s - since_s
            if gap_s <= charged_s:
                continue
            whole_j = float(self._power[device].rest_j(gap_s)) + gap_s * self._sleep_w[device]
            more_j = max(whole_j - charged_j, 0.0)
            self.charge(device, "idle", more_j, gap_s - charged_s)
            self.ledger.rests[str(device)] = [since_s, charged_j + more_j, gap_s]
