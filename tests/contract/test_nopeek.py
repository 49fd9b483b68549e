"""NoPeek: a device's activations come to tell less of its examples, on both engines alike."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.data import Dataset
from midhaul.errors import ConfigError
from midhaul.message import Message, Op, Replies
from midhaul.models import losses
from midhaul.runtime.groups import Groups
from midhaul.runtime.stacked import Stacked
from midhaul.schemes import SCHEMES
from midhaul.server import Server

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import engine, setting

BOTH = pytest.mark.parametrize("on", ["loop", "stacked"])
NONE = {"scheme_nopeek": 0.0}
SPLITS = pytest.mark.parametrize("name", ["split", "split_u", "federated_split"])


def run(name: str, on: str, rounds: int, **changes: object) -> tuple[Server, float]:
    """Gives the server at the end, and the distance correlation of the longest device's examples and activations."""
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme, scheme_epochs=1, **changes)
    fleet = engine(on, program, population)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    at = {"rows": "train"}
    up = fleet.exchange(Message(Op.FORWARD, server.tree, settings=at), devices=(2,), key=rng.Key(0, rounds, 0, 0))
    x, h = population.x[population.train[2]], up.reply(0).tree["h"]
    return server, float(losses.distance_correlation(x, h, torch.ones(len(x))))


@SPLITS
def test_both_engines_learn_alike(name: str) -> None:
    (slow, _), (fast, _) = (run(name, on, 2, scheme_nopeek=0.5) for on in ("loop", "stacked"))
    assert tree.largest_difference(slow.tree, fast.tree) < 1e-5
    assert tree.largest_difference(slow.large, fast.large) < 1e-5


@pytest.mark.parametrize(
    "name",
    [name for name, scheme in SCHEMES.items() if any(w.op == Op.BACKWARD for w in scheme.work(Config().scheme))],
)
def test_every_scheme_that_steps_by_a_gradient_at_the_cut_heeds_it(name: str) -> None:
    kit, program, population = setting(SCHEMES[name], scheme_epochs=1, scheme_nopeek=0.5)
    seen = []

    class Watching(Stacked):
        def exchange(self, message: Message, **how: object) -> Replies:  # type: ignore[override]
            seen.extend([message.settings.get("nopeek")] if message.op == Op.BACKWARD else [])
            return super().exchange(message, **how)  # type: ignore[arg-type]

    if len({id(group.program) for group in kit.groups}) > 1:
        fleet = Groups(kit.groups, population, Watching)
    else:
        fleet = Watching(program, population)
    server = SCHEMES[name].init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    SCHEMES[name].round(server, fleet, kit, rng.Key(0, 1, rng.SERVER, 0))
    assert seen
    assert set(seen) == {0.5}


@BOTH
def test_with_weight_activations_tell_less_of_examples(on: str) -> None:
    plain, some, much = (run("federated_split", on, 4, scheme_nopeek=weight)[1] for weight in (0.0, 0.2, 2.0))
    assert plain > some + 0.002
    assert some > much + 0.02


@BOTH
def test_without_weight_nothing_is_sent_and_nothing_changes(on: str) -> None:
    assert "nopeek" not in setting(SCHEMES["split"])[0].step()
    (plain, _), (none, _), (little, _) = (
        run("federated_split", on, 1, **how) for how in ({}, NONE, {"scheme_nopeek": 1e-4})
    )
    assert tree.largest_difference(plain.tree, none.tree) == 0.0
    assert 0.0 < tree.largest_difference(plain.tree, little.tree) < 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheme_name": "fedavg"}, "not fedavg"),
        ({"scheme_name": "split", "run_engine": "firmware"}, "one example at a time"),
    ],
)
def test_where_it_cannot_be_it_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plant.build(Config().replace(**{"scheme_nopeek": 0.1, **changes}))


def test_of_tokens_it_is_refused() -> None:
    held = np.zeros(9, np.bool_)
    rows = Dataset(
        "words", np.arange(36).reshape(9, 4) % 5, np.arange(9) % 2, np.zeros(9, np.int64), ("all",), held, ("a", "b"),
        "", "", "", "", 9, vocabulary=5,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the rows of words are tokens"):
        plant.build(Config().replace(scheme_nopeek=0.1, scheme_name="split", data_num_devices=2), dataset=rows)
