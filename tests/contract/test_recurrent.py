"""Recurrent layers, which torch can't map over devices: computed one device after another, or refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from midhaul import train, tree
from midhaul.config import Config
from midhaul.errors import EngineError

sys.path.insert(0, str(Path(__file__).parent))
from on_hardware import DIGITS, Recurrent


@pytest.mark.parametrize(("kind", "scheme"), [("GRU", "fedavg"), ("LSTM", "fedper"), ("RNN", "fedprox")])
def test_a_recurrent_model_ends_where_loop_does(kind: str, scheme: str) -> None:
    config = Config().replace(**{**DIGITS, "run_kernels": "auto"}, scheme_name=scheme, scheme_lr=0.5)
    module = Recurrent(kind)
    found, wanted = (train.run(config.replace(run_engine=on), module=module) for on in ("stacked", "loop"))
    assert tree.largest_difference(found.server.tree, wanted.server.tree) < 1e-5
    assert found.summary["accuracy_per_device"] == wanted.summary["accuracy_per_device"]


def test_what_is_done_side_by_side_alone_is_refused_by_name() -> None:
    config = Config().replace(**DIGITS, scheme_name="fedkseed", scheme_lr=0.01, scheme_momentum=0.0)
    told = r"recurrent layer 'memory' of many devices side by side, and FIT has no other way here; set run.engine"
    with pytest.raises(EngineError, match=told):
        train.run(config, module=Recurrent("GRU"))
