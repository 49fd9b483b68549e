"""Who takes part in a round is a property of the run: each scheme has those that it admits, and refuses the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError
from midhaul.fleet import Around, Part
from midhaul.kit import PROPERTIES
from midhaul.link import radio
from midhaul.message import Message, Op, Replies
from midhaul.runtime.groups import Groups
from midhaul.runtime.loop import Loop
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.runtime.participation import Participation
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
QUICK: dict[str, object] = {"scheme_batch": 50, "large_epochs": 1, "scheme_distill_epochs": 1}
HARD: dict[str, dict[str, object]] = {
    "cohort": {"fleet_cohort": 0.67},
    "stragglers": {"fleet_stragglers": 0.67, "scheme_drop_stragglers": False, "scheme_epochs": 4},
    "dropout": {"fleet_dropout": 0.3},
    "weighting": {"fleet_weighting": "uniform"},
}


class Witness(Around):
    """A fleet that keeps what it was asked."""

    def __init__(self, fleet: Loop | Stacked | Groups) -> None:
        self.fleet = fleet
        self.asked: list[tuple[int, Message, tuple[int, ...]]] = []

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        self.asked.append((key.round, message, tuple(self.devices if devices is None else devices)))
        return self.fleet.exchange(message, key=key, devices=devices)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]


def run(name: str, on: str, rounds: int = 2, **changes: object) -> tuple[Server, Witness, Participation]:
    """Runs a scheme whose fleet is as `changes` say; gives the server, what the engine was asked, and the fleet."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **{**QUICK, **changes})
    witness = Witness(engine(on, program, population, kit.groups))
    board, air = profiles.get("stm32l4"), radio.get("ble")
    link = OverLink(witness, program, board, air, loss=0.0, retries=0, ledger=Ledger(), groups=kit.groups)
    fleet = Participation(link, kit, keeps_stragglers=scheme.keeps_stragglers)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, metrics = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    return server, witness, fleet


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.admits])
def test_a_scheme_has_what_it_admits_on_both_engines(name: str) -> None:
    changes = {key: value for one in SCHEMES[name].admits for key, value in HARD.get(one, {}).items()}
    slow, saw, _ = run(name, "loop", **changes)
    fast, _, _ = run(name, "stacked", **changes)
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-5
    assert tree.largest_difference(slow.large, fast.large) < 1e-5
    kit, _, _ = setting(SCHEMES[name], **changes)
    for number, _, devices in saw.asked:
        cohort = kit.cohort(saw, rng.Key(0, number, rng.SERVER, 0))
        assert number == 0 or set(devices) <= set(cohort)


@pytest.mark.parametrize("name", [name for name, s in SCHEMES.items() if "stragglers" in s.admits])
def test_stragglers_do_less_and_a_fleet_of_them_still_learns(name: str) -> None:
    """With nobody but stragglers the engine is asked for less work than with none."""
    work = []
    for share in (0.0, 1.0):
        saw = run(name, "loop", 1, scheme_epochs=4, scheme_drop_stragglers=False, fleet_stragglers=share)[1]
        work.append(sum(asked(message, devices) for number, message, devices in saw.asked if number))
    assert 0 < work[1] < work[0]
    if not SCHEMES[name].keeps_stragglers:
        saw = run(name, "loop", 1, scheme_epochs=4, fleet_stragglers=1.0)[1]
        assert not [devices for number, _, devices in saw.asked if number]


def asked(message: Message, devices: tuple[int, ...]) -> int:
    """Gives the epochs, steps or batches that a message asks of all its devices."""
    if message.op == Op.FORWARD:
        return len(devices)
    if message.op != Op.FIT:
        return 0
    every = [message.for_device(place).settings for place in range(len(devices))]
    return sum(int(settings.get("steps", 0)) or int(settings["epochs"]) for settings in every)


@pytest.mark.parametrize("name", [name for name, s in SCHEMES.items() if "weighting" in s.admits])
def test_weighting_counts(name: str) -> None:
    """Devices of 1, 7 and 200 rows: all alike is not by their rows."""
    by_rows, alike = (run(name, "stacked", 1, fleet_weighting=how)[0] for how in ("examples", "uniform"))
    assert tree.largest_difference(by_rows.tree, alike.tree) > 1e-4


def test_all_alike_is_the_plain_mean() -> None:
    kit, program, population = setting(SCHEMES["fedavg"], **QUICK)
    up = engine("loop", program, population).exchange(
        kit.fit(program.initial, train="whole", send="whole"), key=rng.Key(0, 1, rng.SERVER, 0)
    )
    server, _, _ = run("fedavg", "loop", 1, fleet_weighting="uniform")
    assert tree.largest_difference(server.tree, tree.map(up.tree, lambda value: value.mean(0))) < 1e-6


@pytest.mark.parametrize("name", SCHEMES)
def test_what_a_scheme_does_not_admit_is_refused_by_name(name: str) -> None:
    wanted = {**HARD, "asynchronous": {"fleet_mode": "fedbuff"}}
    assert set(wanted) == set(PROPERTIES)
    for one in set(PROPERTIES) - set(SCHEMES[name].admits):
        with pytest.raises(ConfigError, match=rf"the scheme {name} doesn't admit {one}"):
            plant.build(Config().replace(scheme_name=name, **wanted[one]))


@BOTH
def test_absent_devices_are_not_asked_and_each_round_draws_anew(on: str) -> None:
    _, saw, fleet = run("fedavg", on, 30, fleet_dropout=0.5, scheme_epochs=1)
    share = sum(len(devices) for _, _, devices in saw.asked) / 90
    assert 0.35 < share < 0.65
    assert len({devices for _, _, devices in saw.asked}) > 3
    assert fleet.ledger.absent == 90 - sum(len(devices) for _, _, devices in saw.asked)


@BOTH
def test_a_round_waits_for_nobody_beyond_its_deadline(on: str) -> None:
    """The device of 200 rows is the slowest; with a deadline just below its time, only the others count."""
    _, _, fleet = run("fedavg", on, 1)
    slowest = sum(fleet.seconds[2])
    assert fleet.ledger.simulated_seconds == pytest.approx(slowest)
    server, _, short = run("fedavg", on, 1, fleet_round_deadline_s=0.99 * slowest)
    assert short.ledger.simulated_seconds == pytest.approx(0.99 * slowest)
    assert short.ledger.absent == 1
    kit, program, population = setting(SCHEMES["fedavg"], **QUICK)
    message = kit.fit(program.initial, train="whole", send="whole")
    up = engine(on, program, population).exchange(message, key=rng.Key(0, 1, rng.SERVER, 0), devices=(0, 1))
    assert tree.largest_difference(server.tree, tree.weighted_mean(up.tree, up.weight)) < 1e-6


def test_a_slow_device_is_slow_all_along() -> None:
    _, _, fleet = run("fedavg", "loop", 1, fleet_speed_spread=1.0)
    _, _, plain = run("fedavg", "loop", 1)
    factors = [sum(fleet.seconds[device]) / sum(plain.seconds[device]) for device in (0, 1, 2)]
    assert factors == pytest.approx([fleet.speed(device, 0) for device in (0, 1, 2)])
    assert len(set(factors)) == 3
    assert fleet.ledger.joules == plain.ledger.joules


def test_stragglers_do_fewer_epochs_and_only_so_many_of_them() -> None:
    _, saw, _ = run("fedprox", "loop", 1, fleet_stragglers=0.67, scheme_epochs=20)
    _, message, devices = saw.asked[-1]
    epochs = [int(message.for_device(place).settings["epochs"]) for place in range(len(devices))]
    assert sum(num < 20 for num in epochs) == 2
    assert all(1 <= num <= 20 for num in epochs)


def test_stragglers_of_a_single_epoch_are_refused_where_what_they_did_is_taken() -> None:
    """With one epoch a straggler can't do fewer."""
    with pytest.raises(ConfigError, match=r"scheme\.epochs"):
        plant.build(Config().replace(scheme_name="fedprox", fleet_stragglers=0.5, scheme_epochs=1))
