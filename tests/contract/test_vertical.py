"""Vertical split learning: what it is the same as, how its data are cut, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from midhaul import plant, rng, train, tree
from midhaul.config import Config
from midhaul.data import Dataset, federate
from midhaul.errors import ConfigError, EngineError
from midhaul.message import Message, Op
from midhaul.program import Population
from midhaul.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import FEATURES, HIDDEN, SIZES, engine, setting
from power_cut import cut_and_resumed

SGD = {
    "large_optimizer": "sgd", "large_lr": 0.05, "large_weight_decay": 0.0, "scheme_lr": 0.05, "scheme_momentum": 0.9,
}  # fmt: skip


def ends(name: str, of: str, on: str, population: Population | None = None) -> tuple[tree.Tree, list[tree.Tree]]:
    """Gives the server's half and every device's after three rounds, in the setting that is another scheme's."""
    scheme = SCHEMES[name]
    kit, program, everyone = setting(SCHEMES[of], **SGD)
    fleet = engine(on, program, population or everyone)
    server = scheme.init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, 4):
        server, _ = scheme.round(server, fleet, kit, rng.Key(0, number, rng.SERVER, 0))
    held = fleet.exchange(Message(Op.READ), key=rng.Key(0, 3, 0, 0))
    return server.large, [reply.tree for _, reply in held]


@pytest.mark.parametrize(
    ("other", "on", "most"),
    [
        ("split", "loop", 0.0),
        ("split", "stacked", 1e-5),  # it hands the front back and on, so that a round begins with a kernel of many rows
        ("federated_split_v3", "loop", 0.0),  # a device keeps its front here too
        ("federated_split_v3", "stacked", 0.0),
    ],
)
def test_one_device_with_all_features_is_split_learning(other: str, on: str, most: float) -> None:
    _, _, everyone = setting(SCHEMES["split"])
    alone = replace(everyone, train=(everyone.train[2],))
    (large, held), (whole, others) = (ends(name, "split", on, alone) for name in ("vertical", other))
    assert tree.largest_difference(large, whole) <= most
    assert tree.largest_difference(held[0], others[0]) <= most


def test_three_devices_are_one_model_whose_first_layer_has_blocks() -> None:
    large, held = ends("vertical", "vertical", "loop")
    kit, program, population = setting(SCHEMES["vertical"])
    fronts = [nn.Linear(FEATURES // len(SIZES), HIDDEN) for _ in SIZES]
    for front in fronts:
        front.load_state_dict({name.removeprefix("first."): value for name, value in program.initial.items()})
    blocks, rear = nn.ModuleList(fronts), kit.server_model()
    optimizer = torch.optim.SGD([*blocks.parameters(), *rear.parameters()], lr=0.05, momentum=0.9)
    rows, total = population.train[0], len(population.y) // len(SIZES)
    x = torch.stack([population.x[d * total : (d + 1) * total] for d in range(len(SIZES))])
    for number in range(1, 4):
        for epoch in range(2):
            order = rows[rng.permutation(rng.key(0, number, 0, rng.Use.BATCH).at(epoch), len(rows))]
            for first in range(0, len(rows), 16):
                picked = torch.from_numpy(order[first : first + 16])
                optimizer.zero_grad()
                h = torch.cat([front(x[d, picked]) for d, front in enumerate(fronts)], 1)
                F.cross_entropy(rear(h), population.y[picked]).backward()
                optimizer.step()
    expected = {name: value.detach() for name, value in rear.state_dict().items()}
    assert tree.largest_difference(large, expected) < 1e-6
    for front, own in zip(fronts, held, strict=True):
        expected = {f"first.{name}": value.detach() for name, value in front.state_dict().items()}
        assert tree.largest_difference(own, expected) < 1e-6
    assert tree.largest_difference(held[0], held[1]) > 1e-3


def test_only_the_first_device_is_asked_for_labels() -> None:
    kit, program, population = setting(SCHEMES["vertical"])
    fleet = engine("loop", program, population)
    asked = []
    exchange = fleet.exchange

    def heard(message: Message, **how: object) -> object:
        if message.op == Op.FORWARD:
            asked.append((message.settings["what"], how["devices"]))
        return exchange(message, **how)  # type: ignore[arg-type]

    fleet.exchange = heard  # type: ignore[method-assign, assignment]
    server = SCHEMES["vertical"].init(fleet, kit, rng.Key(0, 0, rng.SERVER, 0))
    SCHEMES["vertical"].round(server, fleet, kit, rng.Key(0, 1, rng.SERVER, 0))
    assert set(asked) == {("hy", (0,)), ("h", (1, 2))}
    assert population.y[len(population.y) // 3 :].sum() == 0


def test_devices_of_unlike_rows_are_refused() -> None:
    kit, program, population = setting(SCHEMES["split"])
    with pytest.raises(EngineError, match="hold 1 to 200 rows"):
        SCHEMES["vertical"].init(engine("loop", program, population), kit, rng.Key(0, 0, rng.SERVER, 0))


def rows_of(shape: tuple[int, ...], held_out: int = 0) -> Dataset:
    num = 20
    x = np.arange(num * int(np.prod(shape)), dtype=np.float32).reshape(num, *shape)
    held = np.arange(num) >= num - held_out
    zeros = np.zeros(num, np.int64)
    return Dataset("numbers", x, np.arange(num) % 2, zeros, ("all",), held, ("a", "b"), "", "", "", "", num)


@pytest.mark.parametrize(("shape", "axis"), [((7,), 1), ((7, 4), 1), ((2, 3, 7), 3)])
def test_features_are_cut_evenly_and_rows_keep_their_places(shape: tuple[int, ...], axis: int) -> None:
    data = rows_of(shape)
    federation = federate(data, partition="vertical", num_devices=3, seed=1)
    cut = federation.dataset
    assert cut.x.shape[axis] == 3
    assert federation.own_test
    for rows in zip(*federation.train, strict=True):
        parts = np.split(np.concatenate([cut.x[row] for row in rows], axis - 1), [3, 5, 6, 8], axis - 1)
        # 7 features are 3, 2 and 2, and a part that is one short ends with zeros.
        whole = np.concatenate([parts[0], parts[1], parts[3]], axis - 1)
        place = int(whole.reshape(-1)[0]) // int(np.prod(shape))
        assert np.array_equal(whole, data.x[place])
        assert not parts[2].any()
        assert not parts[4].any()
        assert cut.y[rows[0]] == data.y[place]
        assert cut.y[list(rows[1:])].sum() == 0
    assert len(federation.train[0]) == 16
    assert [len(part) for part in federation.test] == [4, 4, 4]
    assert len({tuple(part % 20) for part in federation.test}) == 1


def test_a_publishers_test_rows_are_those_of_vertical_data() -> None:
    federation = federate(rows_of((6,), held_out=5), partition="vertical", num_devices=2, max_rows=9)
    assert [len(part) for part in (*federation.train, *federation.test)] == [9, 9, 5, 5]
    assert federation.dataset.held_out[np.concatenate(federation.test)].all()


QUICK = {
    "scheme_name": "vertical", "data_num_devices": 4, "data_max_rows": 200, "tiny_options": {"hidden": [8]},
    "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1}, "scheme_lr": 0.1, "run_rounds": 3,
    "link_loss": 0.1, "link_retries": 1,
}  # fmt: skip


def test_a_run_finds_its_partition_codes_and_resumes(tmp_path: Path) -> None:
    config = Config().replace(**QUICK, link_activations="8bit", link_gradients="4bit", scheme_nopeek=0.01)
    whole = train.run(config).summary
    assert whole["accuracy"] > 0.25
    assert len(whole["accuracy_per_device"]["values"]) == 1

    class Stopped(Exception):
        """Raised by the test in place of a power cut."""

    assert cut_and_resumed(config, tmp_path / "cut", after=2).summary["model_sha256"] == whole["model_sha256"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_partition": "iid"}, r"vertical can't learn from data\.partition = 'iid'"),
        ({"scheme_name": "fedavg", "data_partition": "vertical"}, "fedavg can't learn from data"),
        ({"data_public": 0.2}, r"set data\.public and data\.adapt to 0"),
        ({"data_num_devices": 9}, "gives 8 parts and not 9"),
        ({"fleet_cohort": 0.5}, "vertical"),
        ({"run_engine": "firmware"}, "can't run on the engine firmware"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plant.build(Config().replace(**{**QUICK, **changes}))
