"""Weights coded on the link: identities, both engines, residuals, the way down, the vote, checkpoints, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midhaul import plant, rng, train, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError, ModelError
from midhaul.link import frame, radio, update
from midhaul.message import Message, Op
from midhaul.runtime.coding import Coding
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.runtime.remote import Remote
from midhaul.runtime.updates import Updates
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import FEATURES, engine, firmware, setting
from power_cut import cut_and_resumed

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
# Of each family, those that send unlike slices by unlike ops.
SENDS = (
    "fedavg",
    "fedadam",
    "federated_transfer",
    "fedbabu",
    "fedrep",
    "meta_sgd",
    "reptile",
    "split_u",
    "federated_split",
)
CODED_RUNS = [
    ("fedavg", "delta,topk:0.2,quantise:4", "none"),
    ("fedadam", "delta,qsgd:4", "delta,topk:0.5"),
    ("fedrep", "delta,topk:0.3,sign,entropy", "delta,quantise:6"),
    ("reptile", "delta,randk:0.3", "quantise:8"),
    ("federated_split", "delta,powersgd:1", "none"),
    ("fedbabu", "delta,vote:0.01", "delta,sign"),
]


def updates(up: str = "none", down: str = "none", *, error_feedback: bool = True) -> Updates:
    return Updates(update.parse(up, "up"), update.parse(down, "down"), error_feedback=error_feedback)


def run(
    name: str, on: str, how: Updates, rounds: int = 2, *, small: bool = True, **changes: object
) -> tuple[Server, Ledger]:
    scheme, ledger = SCHEMES[name], Ledger()
    kit, program, population = setting(scheme, **changes)
    if small:
        population = replace(population, train=(*population.train[:2], population.train[2][:20]))
    inner = firmware(on, scheme, kit, program, population) if ":" in on else engine(on, program, population)
    board, by = profiles.get("stm32l4"), radio.get("ble")
    coding = Coding(updates=how)
    fleet = OverLink(inner, program, board, by, loss=0.0, retries=0, ledger=ledger, coding=coding)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    if isinstance(inner, Firmware):
        inner.close()
    return server, ledger


@pytest.mark.parametrize("name", SENDS)
def test_differences_in_full_are_the_scheme_itself(name: str) -> None:
    """Each scheme whose slice travels, with differences in both directions: the same but for a rounding each way."""
    plain, before = run(name, "stacked", updates())
    coded, after = run(name, "stacked", updates("delta", "delta"))
    assert tree.largest_difference(plain.tree, coded.tree) < 1e-5
    assert 0 < after.kinds_up["weights"] - before.kinds_up["weights"] <= 7 * 60  # the head of a code, a frame


@pytest.mark.parametrize(("name", "up", "down"), CODED_RUNS)
def test_both_engines_code_alike(name: str, up: str, down: str) -> None:
    (slow, slow_ledger), (fast, fast_ledger) = (run(name, on, updates(up, down), 1) for on in ("loop", "stacked"))
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-5
    assert slow_ledger.kinds_up == pytest.approx(fast_ledger.kinds_up, abs=2 * ("entropy" in up))
    assert slow_ledger.kinds_down == fast_ledger.kinds_down
    assert slow_ledger.device_joules == pytest.approx(fast_ledger.device_joules, rel=1e-4)
    plain, ledger = run(name, "loop", updates(), 1)
    assert tree.largest_difference(slow.tree, plain.tree) > 1e-4
    assert slow_ledger.kinds_up["weights"] < 0.6 * ledger.kinds_up["weights"]


def test_devices_may_quantise_to_bits_of_their_own() -> None:
    def of(bits: tuple[int, ...]) -> tuple[Server, Ledger]:
        return run("fedavg", "stacked", Updates(update.parse("delta,quantise:8", "up"), bits=bits), 1)

    (alike, all_bytes), (named, same_bytes) = of(()), of((8, 8, 8))
    assert tree.largest_difference(alike.tree, named.tree) == 0.0
    assert all_bytes.kinds_up == same_bytes.kinds_up
    assert all_bytes.kinds_down == same_bytes.kinds_down
    num = sum(value.numel() for value in alike.tree.values())
    (mixed, fewer_bytes), (low, fewest_bytes) = of((8, 4, 4)), of((4, 4, 4))
    assert all_bytes.kinds_up["weights"] - fewer_bytes.kinds_up["weights"] == pytest.approx(
        num, abs=2
    )  # 2 x half a byte
    assert all_bytes.kinds_up["weights"] - fewest_bytes.kinds_up["weights"] == pytest.approx(1.5 * num, abs=2)
    assert fewer_bytes.kinds_down["weights"] == all_bytes.kinds_down["weights"]
    assert tree.largest_difference(mixed.tree, alike.tree) > 1e-5
    assert tree.largest_difference(mixed.tree, low.tree) > 1e-5


def fleet_of(how: Updates, loss: float = 0.0) -> tuple[OverLink, tree.Tree]:
    """Gives a fleet whose devices all send what they were sent and 0.01 more of it, and its first tree."""
    _, program, population = setting(SCHEMES["fedavg"])
    inner = engine("loop", program, population)
    fleet = OverLink(
        inner, program, profiles.get("stm32l4"), radio.get("ble"), loss=loss, retries=0, ledger=Ledger(),
        coding=Coding(updates=how),
    )  # fmt: skip
    exchange = inner.exchange

    def trained(message: Message, **about: object) -> object:
        up = exchange(message, **about)  # type: ignore[arg-type]
        for value in up.tree.values():
            value.copy_(value * 1.01)
        return up

    inner.exchange = trained  # type: ignore[method-assign, assignment]
    return fleet, program.initial


FIT = {"lr": 1e-30, "epochs": 1, "batch": 0, "train": "whole", "send": "whole"}


def flat(whole: tree.Tree) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in whole.values()])


def test_what_is_owed_is_what_did_not_come() -> None:
    """All that a device learned, over five rounds, is what came of it and what it still owes."""
    how = updates("delta,topk:0.1,quantise:3")
    fleet, first = fleet_of(how)
    learned = torch.zeros(len(flat(first)))
    came = torch.zeros(len(flat(first)))
    for number in range(1, 6):
        whole = {name: value + 0.1 * number for name, value in first.items()}
        up = fleet.exchange(Message(Op.FIT, whole, settings=FIT), key=rng.Key(0, number, 0, 0), devices=(1,))
        learned += flat({name: value * 1.01 - value for name, value in whole.items()})
        came += flat(up.reply(0).tree) - flat(whole)
    (path,) = how.residuals
    assert path.startswith("1/")
    assert torch.allclose(learned - came, torch.from_numpy(how.residuals[path]), atol=1e-5)
    assert float(came.count_nonzero()) > 0.2 * len(came)
    assert float((learned - came).abs().max()) > 1e-3
    assert not updates("delta,qsgd:4").feeds_back
    assert not updates("delta,topk:0.1", error_feedback=False).feeds_back


def test_a_frame_that_is_lost_for_good_changes_nothing_that_is_owed() -> None:
    how = updates("delta,topk:0.1")
    fleet, first = fleet_of(how)
    fleet.exchange(Message(Op.FIT, first, settings=FIT), key=rng.Key(0, 1, 0, 0), devices=(1,))
    owed = {path: value.copy() for path, value in how.residuals.items()}
    fleet.carrier.loss = 0.999999
    assert not len(fleet.exchange(Message(Op.FIT, first, settings=FIT), key=rng.Key(0, 2, 0, 0), devices=(1,)))
    assert all((how.residuals[path] == value).all() for path, value in owed.items())


def test_devices_that_lag_are_sent_what_they_lack() -> None:
    """A lossy way down: what a device holds comes nearer to a model that stays, whoever was asked when; and what a
    scheme is given are steps from the model that it sent, not from what a device made of it."""
    how = updates("none", "delta,topk:0.3")
    fleet, first = fleet_of(how)
    there = {
        name: value + torch.linspace(0.1, 1.0, value.numel()).reshape(value.shape) for name, value in first.items()
    }
    fleet.exchange(Message(Op.LOAD, first), key=rng.Key(0, 0, 0, 0))
    distances = []
    for number in range(1, 6):
        asked = (1, 2) if number % 2 else (2,)
        up = fleet.exchange(Message(Op.FIT, there, settings=FIT), key=rng.Key(0, number, 0, 0), devices=asked)
        distances.append([float((flat(how.held[device]) - flat(there)).norm()) for device in (0, 1, 2)])
        for device, reply in up:
            step = flat(reply.tree) - flat(there)
            assert torch.allclose(step, 0.01 * flat(how.held[device]), atol=1e-5)
    assert [d[0] for d in distances] == [distances[0][0]] * 5  # was never asked
    assert distances[0][1] == distances[0][2]
    assert distances[3][1] == distances[2][1] > distances[3][2] == 0.0
    assert distances[4][1] < distances[2][1]
    assert tree.largest_difference(how.meant[1], there) == 0.0


def test_devices_that_hold_the_same_are_sent_the_same_frame() -> None:
    how = updates("none", "delta,qsgd:2")
    fleet, first = fleet_of(how)
    fleet.exchange(Message(Op.LOAD, first), key=rng.Key(0, 0, 0, 0))
    there = {name: value + 1.0 for name, value in first.items()}
    fleet.exchange(Message(Op.FIT, there, settings=FIT), key=rng.Key(0, 1, 0, 0), devices=(0, 1))
    assert how.held[0] is how.held[1]
    assert how.held[2] is not how.held[0]
    fleet.exchange(Message(Op.FIT, there, settings=FIT), key=rng.Key(0, 2, 0, 0))
    assert how.held[0] is how.held[1]
    assert tree.largest_difference(how.held[0], how.held[2]) > 0.0


def test_the_majority_of_the_devices_decides_every_number() -> None:
    """Three devices, one step of 0.5 for all: its sign is that of most of their differences."""
    how = updates("delta,vote:0.5")
    fleet, first = fleet_of(how)
    inner, exchange = fleet.fleet, fleet.fleet.exchange
    steps = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, -1.0], [-9.0, -1.0, -1.0]])

    def trained(message: Message, **about: object) -> object:
        up = exchange(message, **about)  # type: ignore[arg-type]
        for value in up.tree.values():
            value.zero_()
        up.tree["last.bias"] += steps + first["last.bias"]
        return up

    inner.exchange = trained  # type: ignore[method-assign]
    sent = {name: torch.zeros_like(value) for name, value in first.items()} | {"last.bias": first["last.bias"]}
    up = fleet.exchange(Message(Op.FIT, sent, settings=FIT), key=rng.Key(0, 1, 0, 0))
    for _, reply in up:
        assert torch.equal(reply.tree["last.bias"], first["last.bias"] + torch.tensor([0.5, -0.5, -0.5]))
    assert up.weight.tolist() == [1, 7, 200]


@BOTH
def test_signs_by_majority_learn(on: str) -> None:
    """signSGD: each device takes one step of its whole data, and all move by a fixed step along the majority."""
    plain, _ = run("fedavg", on, updates(), 1, small=False, scheme_batch=0, scheme_epochs=1)
    server, ledger = run("fedavg", on, updates("delta,vote:0.02"), 25, small=False, scheme_batch=0, scheme_epochs=1)
    kit, program, population = setting(SCHEMES["fedavg"])
    test = SCHEMES["fedavg"].evaluate
    losses = [
        float(test(s, engine(on, program, population), kit, rng.Key(0, 1, 0, 0)).metrics["loss"].mean())
        for s in (plain, server)
    ]
    assert losses[1] < 0.7 * losses[0]
    assert ledger.kinds_up["weights"] == 25 * 3 * (7 + 4 + -(-tree.num_parameters(program.initial) // 8))


CODED = {
    "data_num_devices": 4, "data_max_rows": 40, "tiny_options": {"hidden": [16]}, "scheme_lr": 0.1, "run_rounds": 3,
    "fleet_cohort": 0.75, "link_loss": 0.1, "link_retries": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("up", "down"),
    [("delta,topk:0.1,quantise:4", "delta,topk:0.2"), ("delta,powersgd:2", "none"), ("delta,vote:0.01", "delta,sign")],
)
def test_a_resumed_run_has_what_both_ends_held_and_the_frames_are_kept(up: str, down: str, tmp_path: Path) -> None:
    config = Config().replace(**CODED, link_up=up, link_down=down, link_keep_frames=True)
    whole = train.run(config, tmp_path / "whole").summary
    resumed = cut_and_resumed(config, tmp_path / "cut", after=2).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["kinds"] == whole["kinds"]
    for direction in ("up", "down"):
        files = sorted((tmp_path / "whole" / "frames").glob(f"*-{direction}.bin"))
        again = [tmp_path / "cut" / "frames" / file.name for file in files]
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
        frames = [one for file in files for one in frame.sequence(file.read_bytes())]
        assert sum(map(len, frames)) == whole[f"{direction}link_bytes"]
        initial = plant.build(config).kit.program.initial
        assert {frame.unpack(one, initial, ("rows", "loss")).is_reply for one in frames} == {direction == "up"}


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("delta,topk:0.1,quantise:4", "delta,topk:0.3,sign"),
        ("delta,randk:0.2", "none"),
        ("delta,vote:0.01", "delta,qsgd:8"),
    ],
)
def test_devices_in_c_send_the_same_codes(up: str, down: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run with devices of the C runtime: what they code themselves and what they are sent coded, no less."""
    coded: list[bool] = []
    asked = Remote._ask

    def heard(self: Remote, op: Op, *about: object, **how: object) -> object:
        got = asked(self, op, *about, **how)  # type: ignore[arg-type]
        if op == Op.FIT:
            coded.append(bool(how.get("coded")))
            assert list(got.coded) == ["update"]
        return got

    monkeypatch.setattr(Remote, "_ask", heard)
    config = Config().replace(**{**CODED, "fleet_cohort": 1.0, "link_loss": 0.0}, link_up=up, link_down=down)
    slow = train.run(config.replace(run_engine="loop"))
    fast = train.run(config.replace(run_engine="firmware", run_devices="host:*4"))
    assert tree.largest_difference(slow.server.tree, fast.server.tree) < 1e-6
    assert slow.summary["kinds"] == fast.summary["kinds"]
    assert coded == [False] * 4 + [down != "none"] * 8  # in the first round the model travels whole


@pytest.mark.parametrize("name", ["fedrep", "fedbabu", "fedper"])
def test_devices_in_c_code_the_part_that_they_send(name: str) -> None:
    """A head that stays on the device has no code, and a body that came by LOAD is what its difference is to."""
    up, down = "delta,topk:0.3,sign", "delta,topk:0.5"
    slow, charged = run(name, "loop", updates(up, down))
    fast, ledger = run(name, "host:*3", updates(up, down), link_up=up, link_down=down)
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-6
    assert (ledger.kinds_up, ledger.kinds_down, ledger.absent) == (charged.kinds_up, charged.kinds_down, 0)


def test_codes_are_the_same_bits_on_every_core() -> None:
    """Doubles in software or not, fused or not: emulated cores send what this machine's processor does."""
    pytest.importorskip("unicorn")
    coded = {"link_up": "delta,topk:0.3,qsgd:3", "link_down": "delta,quantise:5", "run_engine": "firmware"}
    small = {"data_num_devices": 2, "data_max_rows": 12, "tiny_options": {"hidden": [8]}, "run_rounds": 2}
    config = Config().replace(**{**CODED, **small, **coded, "fleet_cohort": 1.0, "link_loss": 0.0})
    here, there = (
        train.run(config.replace(run_devices=devices)).summary
        for devices in ("host:*2", "unicorn:cortex-m3,unicorn:cortex-m4")
    )
    assert here["model_sha256"] == there["model_sha256"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"link_up": "zip"}, r"link\.up is 'zip'; write none, or these"),
        ({"link_down": "topk:0.1"}, r"link\.down: topk of a whole model would leave little of it"),
        ({"link_down": "delta,vote:1"}, r"link\.down can't have vote"),
        ({"link_down": "delta,powersgd:1"}, r"link\.down can't have powersgd"),
        ({"scheme_name": "local", "link_up": "delta"}, "the scheme local sends no weights up in a round"),
        ({"scheme_name": "fedkseed", "link_up": "delta"}, "the scheme fedkseed sends no weights up"),
        (
            {"scheme_name": "fedrolex", "link_up": "delta,sign"},
            "stands for other weights each round, so nothing can",
        ),
        ({"link_up": "delta,vote:1", "fleet_mode": "fedbuff"}, "votes among the devices of a round, and fedbuff has"),
        ({"run_engine": "firmware", "link_up": "delta,powersgd:1"}, r"firmware can't do powersgd of link\.up"),
        ({"run_engine": "firmware", "link_up": "delta,entropy"}, r"firmware can't do entropy of link\.up"),
        ({"run_engine": "firmware", "link_down": "quantise:8"}, r"take differences alone; put delta into link\.down"),
        ({"run_engine": "firmware", "scheme_name": "federated_split", "link_up": "delta"}, "code what FIT sends"),
        ({"link_up_bits": "8,4"}, r"link\.up_bits are of quantise in link\.up"),
        ({"link_up": "delta,quantise:8", "link_up_bits": "8,9"}, "'9' isn't a whole number of bits from 2 to 8"),
        ({"link_up": "delta,quantise:8", "link_up_bits": "8*1,4*1000"}, r"link\.up_bits names 1001 devices"),
        ({"link_up": "delta,quantise:8", "link_up_bits": "8,4", "run_engine": "firmware"}, "all told the same bits"),
    ],
)
def test_what_cannot_be_coded_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plant.build(Config().replace(**{**CODED, **changes}))


def test_frames_are_kept_in_a_folder_alone() -> None:
    with pytest.raises(ConfigError, match="wants a folder"):
        train.run(Config().replace(link_keep_frames=True))


def test_no_parameter_may_be_called_update() -> None:
    module = torch.nn.Linear(FEATURES, 3)
    module.register_parameter("update", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(ModelError, match="'update', which messages use"):
        plant.build(Config(), module=module)
