"""What a plan chooses among: schemes, and one change at a time to how a scheme is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from midhaul.config import Config
from midhaul.message import Kind, Op
from midhaul.models import slices, tiny
from midhaul.plan.mixes import Mix
from midhaul.plant import Plant, find_scheme

# One or two of each way: what a plan looks at if it is told no names. Those that a run can't do are refused by name.
SCHEMES = (
    "fedavg", "federated_transfer", "transfer", "fedper", "heterofl", "federated_split", "federated_split_mixed",
    "cse_fsl", "split",
)  # fmt: skip
_MOST_CUTS = 3


@dataclass(frozen=True)
class Candidate:
    """A way to run: a scheme, and settings beside the person's own; or a mix, which has settings for each device."""

    scheme: str
    changes: tuple[tuple[str, Any], ...] = ()
    label: str = "as given"
    mix: Mix | None = None

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.scheme}: {self.label}"

    def config(self, given: Config) -> Config:
        """Gives the config of a run. Raises: ConfigError where the settings can't stand together."""
        return given.replace(scheme_name=self.scheme, **dict(self.changes))

    def with_change(self, label: str, *changes: tuple[str, Any]) -> Candidate:
        """Gives the candidate with settings of its own beside those it has."""
        whole = tuple({**dict(self.changes), **dict(changes)}.items())
        return Candidate(self.scheme, whole, label if self.label == "as given" else f"{self.label}, {label}", self.mix)

    def with_mix(self, mix: Mix) -> Candidate:
        """Gives the candidate with what a mix deals to each device."""
        return replace(self.with_change(mix.label, *mix.changes), mix=mix)


def first(names: Sequence[str], given: Config) -> list[Candidate]:
    """Gives the schemes as the config has them. Raises: ConfigError for an unknown name."""
    wanted = names or tuple(dict.fromkeys((given.scheme.name, *SCHEMES)))
    return [Candidate(find_scheme(name).name) for name in dict.fromkeys(wanted)]


def changes(candidate: Candidate, plant: Plant) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Gives single changes to a candidate whose plant was built, each with its label: how frames are coded, who takes
    part, how long devices train in a round, at what rate (a lower one is steadier), and where the model is cut, as far
    as it fits the board.
    """
    scheme, config = plant.scheme, plant.config
    found: list[tuple[str, tuple[tuple[str, Any], ...]]] = []
    if Kind.ACTIVATIONS in scheme.up and config.link.activations == "none":
        for bits in (8, 4):
            both: tuple[tuple[str, Any], ...] = (("link_activations", f"{bits}bit"),)
            both += (("link_gradients", f"{bits}bit"),) if Kind.GRADIENTS in scheme.down else ()
            found.append((f"activations in {bits} bits", both))
    elif Kind.WEIGHTS in scheme.up and config.link.up == "none":
        found.append(("updates in 8 bits", (("link_up", "delta,quantise:8"),)))
        sparse = (("link_up", "delta,topk:0.05,quantise:4,entropy"), ("link_down", "delta,quantise:8"))
        found.append(("updates sparse, 4 bits", sparse))
    if "cohort" in scheme.admits and len(plant.engine.devices) >= 4:
        half = config.fleet.cohort / 2.0 if config.fleet.cohort <= 1.0 else max(1.0, config.fleet.cohort // 2)
        found.append(("half the cohort", (("fleet_cohort", half),)))
        frugal = (("fleet_cohort", half), ("fleet_selection", "frugal"))
        found.append(("half the cohort, frugal", frugal))
    if "stragglers" in scheme.admits:
        found.append(("4 x the epochs", (("scheme_epochs", 4 * config.scheme.epochs),)))
    if scheme.family != "FML" and any(work.op in (Op.FIT, Op.BACKWARD) for work in scheme.work(config.scheme)):
        third = (("scheme_lr", config.scheme.lr / 3.0), ("scheme_tune_lr", config.scheme.tune_lr / 3.0))
        found.append(("a third of the rate", third))
    if scheme.part == "front" and scheme.differs == "none" and not config.tiny.model.startswith("hf:"):
        found += [(f"cut at {name}", (("scheme_cut", name),)) for name in _cuts(plant)]
    return found


def _cuts(plant: Plant) -> list[str]:
    """Gives the other cuts of the tiny model, the smallest first; whether they fit is seen when they are tried."""
    config, data = plant.config, plant.dataset
    module = tiny.build(config.tiny.model, data.input_shape, data.num_classes, **config.tiny.options)
    points = {point.name: math.prod(point.shape) for point in slices.cut_points(module, data.input_shape)}
    return sorted((name for name in points if name != config.scheme.cut), key=points.__getitem__)[:_MOST_CUTS]
