"""Speculative decoding: the device's tiny model drafts tokens, the server's large one checks them all in one call.

The text is distributed exactly as the large model's own; what is saved is calls of the large model, and a trip over the
link for each of them. At temperature 0 it is the large model's greedy text, token for token.

Shape letters: L tokens so far, G drafted tokens of a turn, V the vocabulary.
Source: Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", ICML 2023,
algorithm 1 and appendix A.1; Chen, Borgeaud, Irving, Lespiau, Sifre and Jumper, "Accelerating large language model
decoding with speculative sampling", 2023, algorithm 2.
Limits: one text at a time. Chances are taken in double precision from float32 logits; a draw has 24 random bits. Where
the device resamples, the chances of its drafts travel as float32, so the distribution holds to about 1e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from midhaul import budget, rng
from midhaul.devices.profiles import Board
from midhaul.errors import ConfigError, ModelError
from midhaul.inference.gate import Floats
from midhaul.link import frame
from midhaul.link.frame import Frame
from midhaul.link.radio import Radio
from midhaul.message import Op
from midhaul.server import predict
from midhaul.tree import Tree

# `model(tokens [L], num)` gives the logits [num, V] of the token after each of the last `num` beginnings of the text:
# after tokens[: L - num + 1], and so on to all L.
NextToken = Callable[[Tensor, int], Tensor]


class What(IntEnum):
    """What a draw is for; with the token's position it names the draw."""

    DRAFT = 0
    ACCEPT = 1
    RESAMPLE = 2


# `choose(chances, position, what)` draws one of some alternatives by their chances, which need not add up to 1.
Choose = Callable[[Floats, int, What], int]


def windows(module: nn.Module, whole: Tree, length: int, padding: int = 0) -> NextToken:
    """Makes a model of next tokens from a module [B, length] -> [B, V] that is given the last `length` tokens.

    Shorter texts are padded in front. All beginnings go through the module as one batch.
    """

    def model(tokens: Tensor, num: int) -> Tensor:
        padded = F.pad(tokens, (length, 0), value=padding)
        ends = range(len(padded) - num + 1, len(padded) + 1)
        return predict(module, whole, torch.stack([padded[end - length : end] for end in ends]))

    return model


def causal(module: nn.Module, whole: Tree, length: int) -> NextToken:
    """Makes a model of next tokens from a causal module [B, L] -> [B, L, V] for texts of 1 to `length` tokens.

    Raises: ModelError, when it is asked, about a longer or an empty text.
    """

    def model(tokens: Tensor, num: int) -> Tensor:
        if not num <= len(tokens) <= length:
            raise ModelError(
                f"the model takes texts of 1 to {length} tokens; this one has {len(tokens)}: ask for fewer"
            )
        return predict(module, whole, tokens[None])[0, len(tokens) - num :]

    return model


def keyed(seed: int, device: int = 0) -> Choose:
    """Gives draws from the run's one source of random numbers, the same for the same seed, position and purpose.

    A draft that is thrown away and drafted again uses the same number; nothing else has depended on it, so the text's
    distribution stays what it is.
    """

    def choose(chances: Floats, position: int, what: What) -> int:
        draw = float(rng.uniform(rng.key(seed, position, device, rng.Use.TOKEN).at(int(what)), 1)[0])
        edges = np.cumsum(chances)
        return int(min(np.searchsorted(edges, draw * edges[-1], side="right"), np.flatnonzero(chances)[-1]))

    return choose


def chances(logits: Tensor, temperature: float) -> Floats:
    """Gives the distribution of the next token; at temperature 0 all of it is on the largest logit. Shapes: [V] -> [V].

    >>> chances(torch.tensor([0.0, 1.0]), 0.0)
    array([0., 1.])
    """
    if temperature == 0.0:
        return _certain(int(logits.argmax()), len(logits))
    found: Floats = torch.softmax(logits.double() / temperature, dim=0).numpy()
    return found


def acceptance(large: float, tiny: float) -> float:
    """Gives the chance that a draft is accepted: min(1, p / q), from its chances under the large and the tiny model."""
    return 1.0 if large >= tiny else large / tiny


def residual(large: Floats, tiny: Floats) -> Floats:
    """Gives, up to a factor, the distribution of the token in place of a rejected draft: max(p - q, 0)."""
    left = np.maximum(large - tiny, 0.0)
    return left if left.any() else large  # alike: only a rounded chance can have rejected it


def _certain(token: int, vocabulary: int) -> Floats:
    whole = np.zeros(vocabulary)
    whole[token] = 1.0
    return whole


@dataclass(frozen=True)
class Turn:
    """One trip over the link: how many tokens were drafted and accepted, and the bytes of the two frames."""

    drafted: int
    accepted: int
    up_bytes: int
    down_bytes: int


@dataclass(frozen=True)
class Decoded:
    """A text, and the turns that it took; each turn is one call of the large model."""

    tokens: tuple[int, ...]
    turns: tuple[Turn, ...]

    @property
    def calls_saved(self) -> int:
        """Calls of the large model that were saved against one for each token."""
        return len(self.tokens) - len(self.turns)

    @property
    def accepted(self) -> float:
        """The share of drafted tokens that were accepted; 0 where none was drafted."""
        return sum(turn.accepted for turn in self.turns) / max(sum(turn.drafted for turn in self.turns), 1)

    @property
    def up_bytes(self) -> float:
        """Bytes up for each token."""
        return sum(turn.up_bytes for turn in self.turns) / len(self.tokens)

    @property
    def down_bytes(self) -> float:
        """Bytes down for each token."""
        return sum(turn.down_bytes for turn in self.turns) / len(self.tokens)


def decode(
    tiny: NextToken,
    large: NextToken,
    prompt: Sequence[int],
    num: int,
    choose: Choose,
    *,
    gamma: int = 4,
    temperature: float = 1.0,
    resample: str = "server",
) -> Decoded:
    """Gives `num` tokens after a prompt. The prompt goes up with the first turn's drafts.

    `gamma` tokens are drafted a turn; 0 is the large model by itself. A rejected draft is replaced by the `server`, for
    which all the drafts' logits go up, or by the `device`, for which only their chances go up and the large model's
    logits come down where a draft was rejected. Both give the same text from the same draws. At temperature 0 neither
    is needed, and only tokens travel.
    Raises: ConfigError for settings that can't be.
    """
    if gamma < 0 or num < 1 or not 0.0 <= temperature < float("inf") or not len(prompt):
        raise ConfigError(
            f"can't decode {num} tokens after {len(prompt)}, {gamma} drafted at temperature {temperature:g}; give at "
            "least 1, 1 and 0, and a temperature of 0 or more"
        )
    if resample not in ("server", "device"):
        raise ConfigError(f"resample is {resample!r}; it must be server or device")
    told = list(prompt)  # what goes up beside the drafts: first the prompt, later a token that only the device knows
    heard: list[int] = []  # all that the server knows of the text
    text, turns = list(prompt), list[Turn]()
    while len(text) < len(prompt) + num:
        size = min(gamma, len(prompt) + num - len(text) - 1)
        drafts, scores = _draft(tiny, text, size, choose, temperature)
        sent: Tree = {"x": torch.tensor([*told, *drafts], dtype=torch.int64)}
        if size and temperature:
            own = [chances(row, temperature)[token] for row, token in zip(scores, drafts, strict=True)]
            sent["logits"] = torch.stack(scores) if resample == "server" else torch.tensor(own, dtype=torch.float32)
        up = frame.pack(Frame(Op.PREDICT, True, len(turns), 0, {}, sent, 1.0))
        got = frame.unpack(up, ()).tree
        came = got["x"].tolist()
        heard, checked = [*heard, *came[: len(told)]], came[len(told) :]
        answer = _verify(large, heard, checked, got.get("logits"), choose, temperature, resample)
        down = frame.pack(Frame(Op.PREDICT, False, len(turns), 0, {}, answer))
        said = frame.unpack(down, ()).tree
        accepted, *token = said["y"].tolist()
        heard += [*checked[:accepted], *token]
        told = []
        if not token:  # the device replaces its draft, and the server is told of it with the next ones
            theirs, mine = chances(said["logits"][0], temperature), chances(scores[accepted], temperature)
            token = told = [choose(residual(theirs, mine), len(text) + accepted, What.RESAMPLE)]
        text += [*drafts[:accepted], *token]
        turns.append(Turn(size, accepted, len(up), len(down)))
    return Decoded(tuple(text[len(prompt) :]), tuple(turns))


def alone(large: NextToken, prompt: Sequence[int], num: int, choose: Choose, *, temperature: float = 1.0) -> Decoded:
    """Gives `num` tokens of the large model by itself: the prompt goes up once, each token comes down as it is made.

    The text is that of `decode` with gamma = 0 and the same draws.
    """
    text, turns = list(prompt), list[Turn]()
    for place in range(num):
        asked: Tree = {"x": torch.tensor(text, dtype=torch.int64)}
        up = frame.num_bytes(Frame(Op.PREDICT, True, 0, 0, {}, asked, 1.0)) if place == 0 else 0
        text.append(choose(chances(large(torch.tensor(text), 1)[0], temperature), len(text), What.RESAMPLE))
        turns.append(
            Turn(0, 0, up, frame.num_bytes(Frame(Op.PREDICT, False, place, 0, {}, {"y": torch.tensor(text[-1:])})))
        )
    return Decoded(tuple(text[len(prompt) :]), tuple(turns))


def _draft(
    tiny: NextToken, text: list[int], size: int, choose: Choose, temperature: float
) -> tuple[list[int], list[Tensor]]:
    """Gives the tiny model's next tokens, and the logits [V] that each was drawn from."""
    drafts: list[int] = []
    scores: list[Tensor] = []
    for _ in range(size):
        scores.append(tiny(torch.tensor([*text, *drafts]), 1)[0])
        drafts.append(choose(chances(scores[-1], temperature), len(text) + len(drafts), What.DRAFT))
    return drafts, scores


def _verify(
    large: NextToken,
    text: list[int],
    drafts: list[int],
    scores: Tensor | None,
    choose: Choose,
    temperature: float,
    resample: str,
) -> Tree:
    """Gives the server's answer: how many drafts stand, and the token behind them, or the logits to draw it from.

    `scores` are the drafts' logits [G, V] where the server resamples, their chances [G] where the device does.
    """
    after = large(torch.tensor([*text, *drafts]), len(drafts) + 1)
    for place, token in enumerate(drafts):
        theirs, position = chances(after[place], temperature), len(text) + place
        mine = _certain(token, len(theirs))  # at temperature 0 the tiny model gave its draft every chance
        chance = 1.0
        if scores is not None and resample == "server":
            mine = chances(scores[place], temperature)
            chance = float(mine[token])
        elif scores is not None:
            chance = float(scores[place])
        accept = acceptance(float(theirs[token]), chance)
        if choose(np.array([1.0 - accept, accept]), position, What.ACCEPT):
            continue
        if scores is not None and resample == "device":
            return {"y": torch.tensor([place]), "logits": after[place : place + 1]}
        return {"y": torch.tensor([place, choose(residual(theirs, mine), position, What.RESAMPLE)])}
    last = choose(chances(after[-1], temperature), len(text) + len(drafts), What.RESAMPLE)
    return {"y": torch.tensor([len(drafts), last])}


@dataclass(frozen=True)
class Spent:
    """What a token took: bytes up and down, the device's joules, seconds."""

    up_bytes: float
    down_bytes: float
    joules: float
    seconds: float


def spent(
    decoded: Decoded, board: Board, radio: Radio, *, tiny_macs: int, large_macs: int, server_macs_per_s: float
) -> Spent:
    """Gives the mean cost of a token: MACs of one token of each model, on the board and on the server.

    A turn waits for the one before, and a frame that comes down unasked behind another for no trip of its own.
    Limits: no frame is lost on the way; a call of the large model takes as long for each token that it checks.
    """
    joules, seconds = 0.0, 0.0
    for turn in decoded.turns:
        work = budget.work(board, turn.drafted * tiny_macs)
        joules += work.joules + radio.joules_up(turn.up_bytes) + radio.joules_down(turn.down_bytes)
        served = (turn.drafted + 1) * large_macs / server_macs_per_s
        down = radio.seconds_down(turn.down_bytes) - (0.0 if turn.up_bytes else radio.delay_s)
        seconds += work.seconds + radio.seconds_up(turn.up_bytes) + served + down
    num = len(decoded.tokens)
    return Spent(decoded.up_bytes, decoded.down_bytes, joules / num, seconds / num)
