"""`midhaul decode`: a finished run's models of the next token write a text together, by speculative decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from midhaul import budget
from midhaul.data import Dataset
from midhaul.errors import ConfigError, DataError
from midhaul.inference import exits
from midhaul.inference.held import opened
from midhaul.inference.speculative import Decoded, Spent, alone, decode, keyed, spent, windows
from midhaul.models import count
from midhaul.plant import Plant
from midhaul.server import Server
from midhaul.units import format_joules, format_seconds


@dataclass(frozen=True)
class Written:
    """A text, and what a token of it cost beside a text of the tiny model alone and one of the large model alone."""

    text: str
    gamma: int
    decoded: Decoded
    alone: Decoded
    costs: dict[str, Spent]

    columns = ("who writes", "calls", "kept %", "B up", "B down", "energy", "time")

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """A line for each way to write; calls of the large model, bytes, energy and time are of one token."""
        num = len(self.decoded.tokens)
        calls = {
            "tiny alone": 0.0,
            "large alone": len(self.alone.turns) / num,
            "together": len(self.decoded.turns) / num,
        }
        return [
            (
                name,
                f"{calls[name]:.2f}",
                f"{100 * self.decoded.accepted:.1f}" if name == "together" and self.gamma else "-",
                f"{cost.up_bytes:.1f}",
                f"{cost.down_bytes:.1f}",
                format_joules(cost.joules),
                format_seconds(cost.seconds),
            )
            for name, cost in self.costs.items()
        ]

    def to_table(self) -> dict[str, Any]:
        """Gives all of it as plain values."""
        return {
            "text": self.text,
            "gamma": self.gamma,
            "tokens": list(self.decoded.tokens),
            "calls": len(self.decoded.turns),
            "calls_saved": self.decoded.calls_saved,
            "accepted": self.decoded.accepted,
            "turns": [asdict(turn) for turn in self.decoded.turns],
            "cost_per_token": {name: asdict(cost) for name, cost in self.costs.items()},
        }


def write(
    folder: Path,
    prompt: str,
    num: int = 200,
    *,
    gamma: int = 4,
    temperature: float = 1.0,
    resample: str = "server",
    changes: Sequence[str] = (),
    module: nn.Module | None = None,
    large_module: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Written:
    """Writes `num` tokens after a prompt with the models of a run's folder.

    The run's data must be tokens whose class is the next token, as `shakespeare` has them. Where every class has a name
    of one character the prompt is text, else names of classes with blanks between.

    Raises: MidhaulError in one sentence.
    """
    plant, server = opened(folder, changes, module=module, large_module=large_module, dataset=dataset)
    names = plant.dataset.class_names
    if not plant.dataset.vocabulary or plant.dataset.vocabulary != len(names):
        raise DataError(
            f"{plant.dataset.name} isn't tokens with the next one as their class; decode a run on shakespeare"
        )
    _check(plant, server)
    gap = "" if all(len(name) == 1 for name in names) else " "
    words = list(prompt) if gap == "" else prompt.split()
    if odd := [word for word in words if word not in names]:
        raise DataError(f"the prompt has {odd[0]!r}, which the run's data don't know; leave it out")
    program, large = plant.kit.program, plant.kit.server_model()
    length = program.input_shape[0]
    tiny = windows(program.module, exits.own(program.module, server.tree), length)
    theirs = windows(large, server.large, length)
    start, choose = [names.index(word) for word in words], keyed(plant.config.run.seed)
    together = decode(tiny, theirs, start, num, choose, gamma=gamma, temperature=temperature, resample=resample)
    by_itself = alone(theirs, start, num, choose, temperature=temperature)
    macs = [sum(layer.macs for layer in count.layers(each, program.input_shape)) for each in (program.module, large)]
    work, speed = budget.work(plant.board, macs[0]), 1e9 * plant.config.inference.server_gmacs
    costs = {"tiny alone": Spent(0.0, 0.0, work.joules, work.seconds)}
    for name, found in (("large alone", by_itself), ("together", together)):
        costs[name] = spent(
            found, plant.board, plant.radio, tiny_macs=macs[0], large_macs=macs[1], server_macs_per_s=speed
        )
    return Written(gap.join(names[token] for token in together.tokens), gamma, together, by_itself, costs)


def _check(plant: Plant, server: Server) -> None:
    name, program = plant.scheme.name, plant.kit.program
    if plant.scheme.part != "whole" or plant.kit.large is None or not server.large:
        raise ConfigError(f"the run of {name} has no tiny and large model that know the next token; run transfer")
    if missing := [each for each in program.initial if each not in server.tree]:
        raise ConfigError(f"the run of {name} shares no {missing[0]}, so there is no tiny model of all; run transfer")
