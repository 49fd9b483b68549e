"""The learning rate of a round: by hand, and against the shapes of torch.optim.lr_scheduler."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.optim import lr_scheduler

from midhaul import schedule
from midhaul.config import Config
from midhaul.errors import ConfigError

ROUNDS = 12


def rates(**changes: object) -> list[float]:
    """Gives the shares of the rate of all rounds."""
    config = Config().replace(**{"run_rounds": ROUNDS, **changes})
    schedule.check(config)
    return [schedule.share(config.scheme, number, config.run.rounds) for number in range(1, config.run.rounds + 1)]


def by_torch(make: object) -> list[float]:
    """Gives what torch's scheduler makes of a rate of 1 in as many epochs."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(ROUNDS):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


TORCH = {
    "step": (
        {"scheme_lr_schedule": "step", "scheme_lr_milestones": "4,9", "scheme_lr_gamma": 0.3},
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [4, 9], 0.3),
    ),
    "exponential": (
        {"scheme_lr_schedule": "exponential", "scheme_lr_gamma": 0.9},
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    ),
    "cosine": (
        {"scheme_lr_schedule": "cosine", "scheme_lr_final": 0.25},
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, ROUNDS, eta_min=0.25),
    ),
    "linear": (
        {"scheme_lr_schedule": "linear", "scheme_lr_final": 0.1},
        lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=ROUNDS),
    ),
}


@pytest.mark.parametrize("kind", TORCH)
def test_the_shapes_are_those_of_torch(kind: str) -> None:
    changes, make = TORCH[kind]
    assert rates(**changes) == pytest.approx(by_torch(make), abs=1e-12)


def test_by_hand() -> None:
    assert rates() == [1.0] * ROUNDS
    assert rates(run_rounds=4, scheme_lr_schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(run_rounds=4, scheme_lr_schedule="step", scheme_lr_milestones="1,3", scheme_lr_gamma=0.5) == [
        *(1.0, 0.5, 0.5, 0.25)
    ]
    assert rates(run_rounds=5, scheme_lr_warmup=3) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(run_rounds=5, scheme_lr_warmup=1, scheme_lr_schedule="linear") == [0.5, 1.0, 0.75, 0.5, 0.25]
    assert schedule.share(Config().replace(scheme_lr_warmup=3).scheme, 0, 5) == 1.0


def test_a_curve_never_rises_and_ends_above_nothing() -> None:
    for kind in ("exponential", "cosine", "linear"):
        found = rates(scheme_lr_schedule=kind)
        assert all(later < before for before, later in pairwise(found))
        assert found[-1] > 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheme_lr_gamma": 0.0}, "scheme.lr_gamma is 0.0; it must be above 0"),
        ({"scheme_lr_gamma": -1.0}, "scheme.lr_gamma is -1.0; it must be above 0"),
        ({"scheme_lr_gamma": 1.5}, "at most 1"),
        ({"scheme_lr_schedule": "sine"}, "did you mean 'cosine'|not one of its choices"),
        ({"scheme_lr_schedule": "step"}, "needs to know when; set scheme.lr_milestones"),
        ({"scheme_lr_milestones": "3"}, "belong to scheme.lr_schedule = 'step', not to 'constant'"),
        ({"scheme_lr_schedule": "step", "scheme_lr_milestones": "3,x"}, "write rising numbers"),
        ({"scheme_lr_schedule": "step", "scheme_lr_milestones": "5,3"}, "write rising numbers"),
        ({"scheme_lr_schedule": "step", "scheme_lr_milestones": "3,3"}, "write rising numbers"),
        ({"scheme_lr_schedule": "step", "scheme_lr_milestones": "0,3"}, "write rising numbers"),
        (
            {"scheme_lr_schedule": "step", "scheme_lr_milestones": "3,12"},
            "12 of scheme.lr_milestones is beyond the run",
        ),
        (
            {"scheme_lr_schedule": "step", "scheme_lr_milestones": "3", "scheme_lr_warmup": 3},
            "milestone 3 of scheme.lr_milestones lies in the 3 rounds",
        ),
        ({"scheme_lr_warmup": 12}, "leaves none of the 12 rounds"),
        ({"scheme_lr_schedule": "exponential", "scheme_lr_gamma": 1e-5}, "nothing in single precision"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rates(**changes)
