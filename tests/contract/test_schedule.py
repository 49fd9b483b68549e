"""The learning rate's schedule is a property of the run: every scheme has it, the same on every engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from midhaul import rng, schedule, train, tree
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.fleet import Around, Fleet, Part
from midhaul.message import Message, Op, Replies
from midhaul.runtime.firmware import Firmware
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, firmware, setting
from power_cut import cut_and_resumed

FALLING: dict[str, object] = {"scheme_lr_schedule": "step", "scheme_lr_milestones": "2", "scheme_lr_gamma": 0.25}
QUICK: dict[str, object] = {"scheme_batch": 50, "large_epochs": 1, "scheme_distill_epochs": 1, "scheme_half_lr": 0.02}
RATES = {1: 1.0, 2: 1.0, 3: 0.25}
OWN = ("reptile",)  # whose devices train at the rate of the inner loop


class Witness(Around):
    """A fleet that keeps the learning rates that it was sent, by round."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.rates: dict[int, set[float]] = {}

    def exchange(self, message: Message, *, key: rng.Key, devices: Sequence[int] | None = None) -> Replies:
        if message.op in (Op.FIT, Op.BACKWARD) and key.round:
            self.rates.setdefault(key.round, set()).add(float(message.settings["lr"]))
        return self.fleet.exchange(message, key=key, devices=devices)

    def exchange_parts(self, parts: Sequence[Part], *, key: rng.Key) -> list[Replies]:
        return [self.exchange(message, key=key, devices=devices) for message, devices in parts]


def run(name: str, on: str, **changes: object) -> tuple[Server, Witness]:
    """Runs three rounds of a scheme on an engine, as the run does; gives the server and what was sent."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, **{**QUICK, "run_rounds": 3, **changes})
    inner: Fleet = (
        firmware(on, scheme, kit, program, population) if ":" in on else engine(on, program, population, kit.groups)
    )
    fleet = Witness(inner)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in (1, 2, 3):
        server, _ = scheme.round(server, fleet, kit.at_round(number), rng.Key(0, number, rng.SERVER, 0))
    if isinstance(inner, Firmware):
        inner.close()
    return server, fleet


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in OWN])
def test_every_message_of_a_round_has_the_rate_of_that_round(name: str) -> None:
    _, saw = run(name, "stacked", **FALLING)
    kit, _, _ = setting(SCHEMES[name], **{**QUICK, "run_rounds": 3, **FALLING})
    base = kit.cfg.tune_lr if name in ("transfer", "sparse_transfer") else kit.cfg.lr
    assert saw.rates == ({} if name == "pooled" else {number: {base * by} for number, by in RATES.items()})
    assert kit.at_round(3).half_optimizer().lr == 0.25 * 0.02
    assert kit.at_round(2) is kit


@pytest.mark.parametrize("name", ["fedavg", "split", "federated_split_v1", "heterofl", "pfedme", "fedkseed", "fedgkt"])
def test_loop_and_stacked_agree(name: str) -> None:
    (slow, _), (fast, _) = (run(name, on, **FALLING) for on in ("loop", "stacked"))
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-5
    assert tree.largest_difference(slow.large, fast.large) < 1e-5
    constant, _ = run(name, "stacked")
    assert tree.largest_difference({**constant.tree, **constant.large}, {**fast.tree, **fast.large}) > 1e-4


@pytest.mark.parametrize("name", ["fedavg", "federated_split"])
def test_the_c_runtime_heeds_the_rate_of_the_round(name: str) -> None:
    (slow, _), (fast, _) = (run(name, on, **FALLING) for on in ("loop", "host:*3"))
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-5
    assert tree.largest_difference(slow.large, fast.large) < 1e-5


def test_a_step_is_the_run_that_goes_on_at_another_rate() -> None:
    """Two rounds at 0.1 and one at 0.025, told by hand; nothing else may change."""
    scheme = SCHEMES["fedavg"]
    kit, program, population = setting(scheme, **{**QUICK, "run_rounds": 3})
    fleet = engine("loop", program, population)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    slower = setting(scheme, **{**QUICK, "run_rounds": 3, "scheme_lr": 0.025})[0]
    for number, at in ((1, kit), (2, kit), (3, slower)):
        server, _ = scheme.round(server, fleet, at, rng.Key(0, number, rng.SERVER, 0))
    assert tree.largest_difference(server.tree, run("fedavg", "loop", **FALLING)[0].tree) == 0.0


def test_seeds_walk_to_where_the_steps_led() -> None:
    """FedKSeed's devices walk from the first model by the sum of all slopes, though these were steps at two rates."""
    one, _ = run("fedkseed", "loop", **{**FALLING, "scheme_lr_gamma": 1.0})
    plain, _ = run("fedkseed", "loop")
    assert tree.largest_difference(one.tree, plain.tree) == 0.0
    still, _ = run("fedkseed", "loop", **{**FALLING, "scheme_lr_gamma": 1e-9})
    scheme = SCHEMES["fedkseed"]
    kit, program, population = setting(scheme, **{**QUICK, "run_rounds": 3})
    fleet = engine("loop", program, population)
    two = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in (1, 2):
        two, _ = scheme.round(two, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    assert tree.largest_difference(two.tree, still.tree) < 1e-6  # a third round that makes next to no step
    assert tree.largest_difference(two.tree, plain.tree) > 1e-4


def quick(**changes: object) -> Config:
    base = {
        "data_num_devices": 3, "data_partition": "iid", "data_test": "shared", "data_max_rows": 30, "link_loss": 0.0,
        "tiny_options": {"hidden": [8]}, "scheme_momentum": 0.5, "run_rounds": 4,
    }  # fmt: skip
    return Config().replace(**{**base, **changes})


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    settings = quick(scheme_lr_schedule=kind, scheme_lr_milestones="3" if kind == "step" else "", scheme_lr_warmup=1)
    whole = train.run(settings, tmp_path / "whole").summary
    resumed = cut_and_resumed(settings, tmp_path / "cut", after=2).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == lines
    told = [json.loads(line)["lr"] for line in lines.splitlines()]
    assert told == [0.05 * schedule.share(settings.scheme, number, 4) for number in (1, 2, 3, 4)]
    assert whole["model_sha256"] != train.run(quick()).summary["model_sha256"]


def test_a_constant_rate_is_not_told(tmp_path: Path) -> None:
    train.run(quick(), tmp_path / "run")
    assert all("lr" not in json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_schedule_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beyond the run"):
        train.run(quick(scheme_lr_schedule="step", scheme_lr_milestones="4"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"reptile's devices train at scheme\.inner_lr"):
        train.run(quick(scheme_name="reptile", scheme_lr_schedule="cosine"))
