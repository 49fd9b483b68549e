"""Activations and gradients coded on the link: identities, both engines, residuals, corrections, tests, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from midhaul import plant, rng, train, tree
from midhaul.config import Config
from midhaul.devices import profiles
from midhaul.errors import ConfigError, EngineError
from midhaul.link import compress, radio
from midhaul.message import Message, Op
from midhaul.runtime.coding import AsDelivered, Coding
from midhaul.runtime.over_link import Ledger, OverLink
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import HIDDEN, engine, setting
from power_cut import cut_and_resumed

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
SPLITS = ("split", "split_u", "federated_split", "federated_split_v1")
# Engines differ in the last bits of their sums, and a number within that of a border may be rounded either way: of n
# numbers in s levels about n s / 1e7. So few numbers in few levels show that the codes are the same.
CODED_RUNS = [
    ("split", "2bit"),
    ("split_u", "2bit"),
    ("federated_split", "fedlite:4,4,2"),
    ("federated_split", "qsgd:4"),
    ("federated_split_v1", "topk:0.25"),
]


def coding(activations: str = "none", gradients: str = "none", **how: object) -> Coding:
    coders = (compress.parse(activations, "activations"), compress.parse(gradients, "gradients"))
    return Coding(*coders, **how)  # type: ignore[arg-type]


def run(name: str, on: str, code: Coding | None, rounds: int = 2, **changes: object) -> tuple[Server, Ledger]:
    scheme, ledger = SCHEMES[name], Ledger()
    kit, program, population = setting(scheme, **changes)
    board, by = profiles.get("stm32l4"), radio.get("ble")
    inner = engine(on, program, population)
    fleet = OverLink(inner, program, board, by, loss=0.0, retries=0, ledger=ledger, coding=code)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    return server, ledger


def difference(one: Server, other: Server) -> float:
    return max(tree.largest_difference(one.tree, other.tree), tree.largest_difference(one.large, other.large))


@BOTH
@pytest.mark.parametrize("name", SPLITS)
def test_coding_in_32_bits_is_no_coding(name: str, on: str) -> None:
    plain, ledger = run(name, on, None, rounds=1)
    coded, with_heads = run(name, on, coding("32bit", "32bit", error_feedback=True, correction=2.0), rounds=1)
    assert difference(plain, coded) == 0.0
    assert (
        ledger.kinds_up["activations"] < with_heads.kinds_up["activations"]
    )  # the number of the coder, a byte a frame
    assert ledger.kinds_up["header"] < with_heads.kinds_up["header"]
    assert ledger.device_joules < with_heads.device_joules


@pytest.mark.parametrize(("name", "coder"), CODED_RUNS)
def test_both_engines_code_alike(name: str, coder: str) -> None:
    how = {"error_feedback": True, "correction": 0.1}
    (slow, slow_ledger), (fast, fast_ledger) = (
        run(name, on, coding(coder, coder, **how), rounds=1) for on in ("loop", "stacked")
    )
    assert difference(slow, fast) < 1e-5
    assert slow_ledger.kinds_up == fast_ledger.kinds_up
    assert slow_ledger.kinds_down == fast_ledger.kinds_down
    assert slow_ledger.device_joules == pytest.approx(fast_ledger.device_joules)
    assert difference(slow, run(name, "loop", None, rounds=1)[0]) > 1e-4


def test_what_is_counted_are_the_coded_bytes() -> None:
    """Two epochs of 1, 1 and 13 batches: a head of 2 bytes, ends of 8 bytes a row, HIDDEN numbers of two bits a row."""
    _, ledger = run("federated_split", "stacked", coding("2bit", "4bit"), rounds=1)
    rows, frames = 1 + 7 + 200, 1 + 1 + 13
    assert ledger.kinds_up["activations"] == 2 * (2 * frames + rows * (8 + HIDDEN // 4))
    assert ledger.kinds_down["gradients"] == 2 * (2 * frames + rows * (8 + HIDDEN // 2))
    assert ledger.kinds_up["labels"] == 2 * rows


def test_a_residual_is_carried_by_device_and_row() -> None:
    """What a row's gradients came to, all in all, is what they were less what is still owed to that row."""
    code = coding("none", "topk:0.25", error_feedback=True)
    kit, program, population = setting(SCHEMES["split"])
    ledger, by = Ledger(), radio.get("ble")
    inner = engine("loop", program, population)
    fleet = OverLink(inner, program, profiles.get("stm32l4"), by, loss=0.0, retries=0, ledger=ledger, coding=code)
    fleet.exchange(Message(Op.LOAD, program.initial), key=rng.Key(0, 1, 0, 0))
    sent, got = torch.zeros(7, HIDDEN), torch.zeros(7, HIDDEN)
    exchange = inner.exchange

    def heard(message: Message, **how: object) -> object:
        if message.op == Op.BACKWARD:
            got.index_add_(0, rows, message.each["g"][0])
        return exchange(message, **how)  # type: ignore[arg-type]

    inner.exchange = heard  # type: ignore[method-assign, assignment]
    for number in range(1, 4):
        key = rng.Key(0, number, 0, 0)
        for step in range(3):
            at = {"rows": "train", "batch": 3, "step": step}
            up = fleet.exchange(Message(Op.FORWARD, settings=at), devices=(1,), key=key)
            order = rng.permutation(rng.key(0, number, 1, rng.Use.BATCH), 7)
            rows = torch.from_numpy(order[3 * step : 3 * step + 3])
            g = torch.randn(1, len(rows), HIDDEN, generator=torch.Generator().manual_seed(10 * number + step))
            sent.index_add_(0, rows, g[0])
            down = Message(Op.BACKWARD, each={"g": g}, rows=up.rows, settings={"lr": 0.1})
            fleet.exchange(down, devices=(1,), key=key)
    assert list(code.residuals) == ["down/1"]
    assert torch.allclose(sent - got, code.residuals["down/1"], atol=1e-5)
    assert float((sent - got).abs().max()) > 0.1
    assert float((got != 0.0).float().mean()) > 0.3  # two of eight each time; what is owed comes in its turn
    assert kit.cfg.name == "split"


def test_a_gradient_of_no_batch_carries_nothing() -> None:
    code = coding("none", "2bit", error_feedback=True)
    with pytest.raises(EngineError, match="device 3 is in no batch"):
        code.wanted({"g": torch.zeros(2, 4)}, 3, up=False)


@BOTH
def test_the_correction_is_added_at_the_device(on: str) -> None:
    """FedLite: g + lambda (h - h as coded), of the mean over the rows of the batch."""
    code = coding("2bit", correction=0.5)
    kit, program, population = setting(SCHEMES["split"])
    inner = engine(on, program, population)
    by = radio.get("ble")
    fleet = OverLink(inner, program, profiles.get("stm32l4"), by, loss=0.0, retries=0, ledger=Ledger(), coding=code)
    bare = engine(on, program, population)
    key, at = rng.Key(0, 1, 0, 0), {"rows": "train", "batch": 7, "step": 0}
    for each in (fleet, bare):
        each.exchange(Message(Op.LOAD, program.initial), key=key)
    coded, h = (e.exchange(Message(Op.FORWARD, settings=at), devices=(1,), key=key).tree["h"] for e in (fleet, bare))
    assert float((coded - h).abs().max()) > 1e-3
    g = torch.randn(1, 7, HIDDEN, generator=torch.Generator().manual_seed(1))
    rows, settings = torch.tensor([7]), {"lr": 0.1}
    fleet.exchange(Message(Op.BACKWARD, each={"g": g}, rows=rows, settings=settings), devices=(1,), key=key)
    corrected = g + 0.5 * (h - coded) / 7
    bare.exchange(Message(Op.BACKWARD, each={"g": corrected}, rows=rows, settings=settings), devices=(1,), key=key)
    held = [e.exchange(Message(Op.READ), devices=(1,), key=key).reply(0).tree for e in (inner, bare)]
    assert tree.largest_difference(*held) < 1e-6
    assert kit.cfg.momentum == 0.5


@BOTH
@pytest.mark.parametrize("name", ["split", "split_u"])
def test_a_test_meets_activations_as_they_are_delivered(name: str, on: str) -> None:
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme)
    fleet = engine(on, program, population)
    server, key = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0)), rng.Key(0, 1, rng.SERVER, 0)
    plain = scheme.evaluate(server, fleet, kit, key)
    same, rough, one = (
        scheme.evaluate(server, AsDelivered(fleet, compress.parse(text, ""), batch), kit, key)  # type: ignore[arg-type]
        for text, batch in (("32bit", 4), ("topk:0.2", 4), ("fedlite:1,1,1", 1))
    )
    assert torch.equal(plain.metrics["loss"], same.metrics["loss"])
    assert float((plain.metrics["loss"] - rough.metrics["loss"]).abs().min()) > 1e-4
    # With a codebook for each row nothing is lost: rows are coded in frames of the batch, not all together.
    assert torch.allclose(plain.metrics["loss"], one.metrics["loss"], atol=1e-6)


CODED = {
    "data_num_devices": 3, "data_test": "shared", "data_max_rows": 40, "tiny_options": {"hidden": [16]},
    "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1}, "scheme_lr": 0.1, "run_rounds": 3,
    "link_loss": 0.1, "link_retries": 1, "link_activations": "4bit", "link_gradients": "topk:0.2",
    "link_correction": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["split_u", "federated_split"])
def test_a_resumed_run_has_its_residuals(name: str, tmp_path: Path) -> None:
    config = Config().replace(**CODED, scheme_name=name)
    whole = train.run(config).summary
    resumed = cut_and_resumed(config, tmp_path / "cut", after=2).summary
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["loss"] == whole["loss"]
    forgetful = train.run(config.replace(link_error_feedback=False)).summary
    assert forgetful["model_sha256"] != whole["model_sha256"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"link_activations": "3bit"}, r"link\.activations is '3bit'; write none"),
        ({"link_gradients": "zip"}, r"link\.gradients is 'zip'; write none"),
        ({"scheme_name": "fedavg", "link_activations": "8bit"}, "the scheme fedavg sends no activations"),
        ({"scheme_name": "fedavg", "link_gradients": "8bit"}, "the scheme fedavg sends no gradients"),
        ({"link_activations": "fedlite:5,2,1"}, "5 subvectors don't divide the 16 numbers at the cut"),
        ({"link_correction": 0.1}, r"set link\.activations too"),
        ({"run_engine": "firmware", "link_activations": "8bit"}, "devices with firmware can't code activations"),
    ],
)
def test_what_cannot_be_coded_is_refused(changes: dict[str, object], words: str) -> None:
    table = {n: v for n, v in CODED.items() if not n.startswith("link_")} | {"scheme_name": "split", **changes}
    with pytest.raises(ConfigError, match=words):
        plant.build(Config().replace(**table))
