"""Frames that are made side by side charge, lose and deliver as frames made one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from midhaul import plant, rng
from midhaul.config import Config
from midhaul.link import frames
from midhaul.message import Replies
from midhaul.runtime.ledger import Ledger
from midhaul.train import behind_link
from midhaul.tree import Tree

CONFIG = Config().replace(
    data_num_devices=6, data_max_rows=20, tiny_options={"hidden": [4]}, link_loss=0.4, link_retries=1, run_rounds=3
)


class Spoiled:
    """An engine of whose devices one answers with numbers that aren't finite."""

    def __init__(self, engine: plant.Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def exchange(self, *given: object, **named: object) -> Replies:
        up = self.engine.exchange(*given, **named)  # type: ignore[arg-type]
        tree = {name: value.clone() for name, value in up.tree.items()}
        if 2 in up.devices:
            tree["head.bias"][up.devices.index(2), 0] = float("nan")
        return replace(up, tree=tree)


def run() -> tuple[Tree, Ledger]:
    built, ledger = plant.build(CONFIG), Ledger()
    built = replace(built, engine=Spoiled(built.engine))  # type: ignore[arg-type]
    fleet = behind_link(built, ledger)
    server = built.scheme.init(fleet, built.kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, 4):
        server, _ = built.scheme.round(server, fleet, built.kit, rng.Key(0, number, rng.SERVER, 0))
    return server.tree, ledger


def test_replies_side_by_side_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ledger = run()
    monkeypatch.setattr(frames, "pack", lambda *_: None)
    wanted, slow = run()
    assert ledger == slow
    assert ledger.refused
    assert ledger.absent > ledger.refused
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
