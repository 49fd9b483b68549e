"""The learning rate of a round as a share of the run's: constant, falling by steps or along a curve, after a warm-up.

A pure function of the round's number, so that a resumed run has the rates of one that was never stopped. The shapes are
those of torch.optim.lr_scheduler (MultiStepLR, ExponentialLR, CosineAnnealingLR, LinearLR) with a round for its epoch.
"""

from __future__ import annotations

import math

from midhaul.config import Config, SchemeConfig
from midhaul.errors import ConfigError

_SMALLEST = 2.0**-126  # the smallest normal number in single precision, in which devices compute


def is_constant(cfg: SchemeConfig) -> bool:
    """Says whether every round has the rate `scheme.lr` itself."""
    return cfg.lr_schedule == "constant" and not cfg.lr_warmup


def share(cfg: SchemeConfig, number: int, rounds: int) -> float:
    """Gives what the learning rate of a round is multiplied by; round 0, before the first, has the rate as it is.

    With W rounds of warm-up and R in all, round r <= W has r / (W + 1) of what follows. Then t = r - 1 - W rounds have
    gone by. step: gamma for each milestone below r. exponential: gamma^t. cosine: f + (1 - f) (1 + cos(pi p)) / 2 and
    linear: 1 - (1 - f) p, with p = t / (R - W) and f = lr_final.
    Source: cosine is Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts; the warm-up is Goyal et
    al., "Accurate, large minibatch SGD", 2017, section 2.2.
    """
    if not number or is_constant(cfg):
        return 1.0
    gone = number - 1 - cfg.lr_warmup
    if gone < 0:
        return number / (cfg.lr_warmup + 1)
    progress = gone / (rounds - cfg.lr_warmup)
    match cfg.lr_schedule:
        case "step":
            passed = sum(milestone < number for milestone in milestones(cfg))
            return math.prod([cfg.lr_gamma] * passed)
        case "exponential":
            return float(cfg.lr_gamma**gone)
        case "cosine":
            return cfg.lr_final + (1.0 - cfg.lr_final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return 1.0 - (1.0 - cfg.lr_final) * progress
    return 1.0


def milestones(cfg: SchemeConfig) -> tuple[int, ...]:
    """Gives the rounds after which the rate falls by a step. Raises: ConfigError if they aren't rising numbers."""
    try:
        found = tuple(int(part) for part in cfg.lr_milestones.split(",")) if cfg.lr_milestones else ()
    except ValueError:
        found = (0,)
    if found != tuple(sorted(set(found))) or (found and found[0] < 1):
        raise ConfigError(
            f"scheme.lr_milestones is {cfg.lr_milestones!r}; write rising numbers of rounds with commas between them, "
            "for example '50,75'"
        )
    return found


def check(config: Config) -> None:
    """Refuses a schedule that its run can't have. Raises: ConfigError."""
    cfg, rounds = config.scheme, config.run.rounds
    found = milestones(cfg)
    if found and cfg.lr_schedule != "step":
        raise ConfigError(
            f"scheme.lr_milestones belong to scheme.lr_schedule = 'step', not to '{cfg.lr_schedule}'; change one of "
            "them"
        )
    if cfg.lr_schedule == "step" and not found:
        raise ConfigError("scheme.lr_schedule = 'step' needs to know when; set scheme.lr_milestones, '50,75' say")
    if cfg.lr_warmup >= rounds:
        raise ConfigError(
            f"scheme.lr_warmup = {cfg.lr_warmup} leaves none of the {rounds} rounds at the full rate; make it smaller, "
            "or run.rounds larger"
        )
    if found and found[-1] >= rounds:
        raise ConfigError(
            f"the milestone {found[-1]} of scheme.lr_milestones is beyond the run, whose {rounds} rounds end first; "
            "choose one below run.rounds"
        )
    if found and found[0] <= cfg.lr_warmup:
        raise ConfigError(
            f"the milestone {found[0]} of scheme.lr_milestones lies in the {cfg.lr_warmup} rounds of scheme.lr_warmup; "
            "let the rate fall after it has risen"
        )
    last = cfg.lr * share(cfg, rounds, rounds)
    if last < _SMALLEST:
        raise ConfigError(
            f"the learning rate of round {rounds} would be {last:g}, which is nothing in single precision; raise "
            "scheme.lr_gamma, or let it fall less often"
        )
