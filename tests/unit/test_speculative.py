"""Speculative decoding: its text is the large model's, exactly on a toy vocabulary and by a test on many draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from midhaul import rng, tree
from midhaul.data.shakespeare import ALPHABET, encode
from midhaul.devices import profiles
from midhaul.errors import ConfigError, ModelError
from midhaul.inference import speculative
from midhaul.inference.gate import Floats
from midhaul.inference.speculative import Decoded, NextToken, What, acceptance, chances, decode, keyed, residual, spent
from midhaul.link import radio
from midhaul.models import attention, tiny

VOCABULARY, PROMPT = 3, (1, 0)


def toy(seed: int) -> NextToken:
    """A model whose next token hangs on the last two: a table of logits."""
    table = torch.from_numpy(rng.normal(rng.key(seed, 0, 0, rng.Use.SYNTHETIC), 27).reshape(3, 3, 3) * 1.5).float()

    def model(tokens: Tensor, num: int) -> Tensor:
        ends = range(len(tokens) - num + 1, len(tokens) + 1)
        return torch.stack([table[int(tokens[end - 2]), int(tokens[end - 1])] for end in ends])

    return model


TINY, LARGE = toy(0), toy(1)


def own(model: NextToken, text: tuple[int, ...], temperature: float) -> float:
    """The chance of a text after PROMPT under a model by itself."""
    whole, chance = [*PROMPT, *text], 1.0
    for place in range(len(PROMPT), len(whole)):
        chance *= chances(model(torch.tensor(whole[:place]), 1)[0], temperature)[whole[place]]
    return chance


def every_way(run: Callable[[speculative.Choose], Decoded]) -> dict[tuple[int, ...], float]:
    """Runs the decoder with every possible outcome of each of its draws; gives the chance of each text."""
    found: dict[tuple[int, ...], float] = {}
    waiting: list[list[int]] = [[]]
    while waiting:
        script = waiting.pop()
        weight, place = 1.0, 0

        def choose(each: Floats, position: int, what: What, script: list[int] = script) -> int:
            nonlocal weight, place
            possible = np.flatnonzero(each > 0).tolist()
            if place == len(script):
                waiting.extend([*script, other] for other in possible[1:])
                script.append(possible[0])
            taken = script[place]
            weight *= float(each[taken] / each.sum())
            place += 1
            return taken

        text = run(choose).tokens
        found[text] = found.get(text, 0.0) + weight
    return found


@pytest.mark.parametrize("resample", ["server", "device"])
@pytest.mark.parametrize(("gamma", "num"), [(0, 2), (1, 3), (2, 3), (3, 3)])
def test_every_text_has_the_large_models_chance(gamma: int, num: int, resample: str) -> None:
    """All the decoder's draws are enumerated, so this is an identity and no statistic."""
    found = every_way(
        lambda choose: decode(TINY, LARGE, PROMPT, num, choose, gamma=gamma, temperature=0.8, resample=resample)
    )
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    texts = list(itertools.product(range(VOCABULARY), repeat=num))
    # Where the device resamples, chances travel as float32.
    tolerance = 1e-12 if resample == "server" else 1e-6
    assert [found.get(text, 0.0) for text in texts] == pytest.approx(
        [own(LARGE, text, 0.8) for text in texts], abs=tolerance
    )
    assert any(abs(own(TINY, text, 0.8) - own(LARGE, text, 0.8)) > 0.01 for text in texts), "the models differ"


def test_without_the_residual_the_distribution_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The enumeration sees what it is there to see."""
    monkeypatch.setattr(speculative, "residual", lambda large, tiny: large)
    found = every_way(lambda choose: decode(TINY, LARGE, PROMPT, 2, choose, gamma=2))
    assert max(abs(chance - own(LARGE, text, 1.0)) for text, chance in found.items()) > 0.01


def test_many_texts_are_spread_as_the_large_models() -> None:
    texts = list(itertools.product(range(VOCABULARY), repeat=2))
    num = 1000
    seen = [decode(TINY, LARGE, PROMPT, 2, keyed(seed), gamma=2).tokens for seed in range(num)]
    counts = [seen.count(text) for text in texts]
    expected = [num * own(LARGE, text, 1.0) for text in texts]
    assert stats.chisquare(counts, expected).pvalue > 0.01
    tiny_expected = [num * own(TINY, text, 1.0) for text in texts]
    assert stats.chisquare(counts, tiny_expected).pvalue < 1e-6, "they would not pass for the tiny model's"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_who_resamples_changes_no_token(temperature: float) -> None:
    for seed in range(20):
        texts = [
            decode(TINY, LARGE, PROMPT, 12, keyed(seed), gamma=3, temperature=temperature, resample=who)
            for who in ("server", "device")
        ]
        assert texts[0].tokens == texts[1].tokens
        assert [turn.accepted for turn in texts[0].turns] == [turn.accepted for turn in texts[1].turns]


def test_the_large_model_alone_streams_the_same_text() -> None:
    for seed in range(10):
        streamed = speculative.alone(LARGE, PROMPT, 8, keyed(seed))
        assert streamed.tokens == decode(TINY, LARGE, PROMPT, 8, keyed(seed), gamma=0).tokens
        assert [turn.up_bytes for turn in streamed.turns] == [36 + 10 + 2, *[0] * 7]
        assert {turn.down_bytes for turn in streamed.turns} == {36 + 10 + 1}
    board, ble = profiles.get("stm32l4"), radio.get("ble")
    each = spent(streamed, board, ble, tiny_macs=1, large_macs=5000, server_macs_per_s=1e6)
    bits = 8 * (48 + 8 * 47)
    assert each.seconds == pytest.approx((2 * ble.delay_s + bits / ble.up_bps) / 8 + 5000 / 1e6)


def greedy(model: NextToken, prompt: tuple[int, ...], num: int) -> tuple[int, ...]:
    text = list(prompt)
    for _ in range(num):
        text.append(int(model(torch.tensor(text), 1)[0].argmax()))
    return tuple(text[len(prompt) :])


@pytest.mark.parametrize("gamma", [0, 1, 4, 30])
def test_greedy_text_is_the_large_models_token_for_token(gamma: int) -> None:
    for seed in range(5):
        first, second = toy(seed), toy(seed + 50)
        found = decode(first, second, PROMPT, 25, keyed(0), gamma=gamma, temperature=0.0)
        assert found.tokens == greedy(second, PROMPT, 25)
    same = decode(LARGE, LARGE, PROMPT, 25, keyed(0), gamma=4, temperature=0.0)
    assert same.accepted == 1.0
    assert len(same.turns) == 5, "each turn gives the four drafts and one token more"


def test_no_draft_of_the_large_model_itself_is_rejected() -> None:
    for who in ("server", "device"):
        found = decode(LARGE, LARGE, PROMPT, 40, keyed(3), gamma=4, resample=who)
        assert found.accepted == 1.0
        assert found.calls_saved == 40 - 8


def test_tokens_of_a_call_are_as_many_as_the_paper_says() -> None:
    """Leviathan et al. 2023, equation 1, with drafts that are independent of the text."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    fixed = [lambda tokens, num, v=v: torch.log(torch.from_numpy(v)).float().expand(num, 3) for v in (q, p)]
    alpha, gamma = float(np.minimum(p, q).sum()), 3
    assert alpha == pytest.approx(sum(q[i] * acceptance(p[i], q[i]) for i in range(3)))
    found = decode(fixed[0], fixed[1], PROMPT, 800, keyed(1), gamma=gamma)
    assert 800 / len(found.turns) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha), rel=0.08)


def test_residuals_by_hand() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    assert residual(p, q) == pytest.approx([0.3, 0.1, 0.0])
    assert residual(p, p).tolist() == p.tolist()
    assert acceptance(0.2, 0.6) == pytest.approx(1 / 3)
    assert acceptance(0.0, 0.0) == 1.0


def test_frames_by_hand() -> None:
    """A frame is 36 bytes and 6 + 4 ndim a tensor beside its data; tokens travel as bytes, logits as float32."""
    logits = decode(TINY, LARGE, PROMPT, 5, keyed(0), gamma=4).turns[0]
    assert logits.up_bytes == 36 + (10 + 2 + 4) + (14 + 4 * 4 * VOCABULARY)
    assert logits.down_bytes == 36 + 10 + 2
    chance = decode(TINY, LARGE, PROMPT, 5, keyed(0), gamma=4, resample="device").turns[0]
    assert chance.up_bytes == 36 + (10 + 2 + 4) + (10 + 4 * 4)
    assert chance.down_bytes == (36 + 10 + 1) + (14 + 4 * VOCABULARY) * (chance.accepted < 4) + (chance.accepted == 4)
    tokens = decode(TINY, LARGE, PROMPT, 5, keyed(0), gamma=4, temperature=0.0).turns[0]
    assert tokens.up_bytes == 36 + (10 + 2 + 4)


def test_costs_by_hand() -> None:
    found = decode(TINY, LARGE, PROMPT, 2, keyed(0), gamma=1, temperature=0.0)
    assert [(turn.drafted, turn.accepted) for turn in found.turns] in ([(1, 1)], [(1, 0), (0, 0)])
    board, ble = profiles.get("stm32l4"), radio.get("ble")
    each = spent(found, board, ble, tiny_macs=1000, large_macs=5000, server_macs_per_s=1e6)
    up, down = (sum(getattr(t, name) for t in found.turns) for name in ("up_bytes", "down_bytes"))
    turns = len(found.turns)
    checked = sum(turn.drafted + 1 for turn in found.turns)
    assert each.joules == pytest.approx((board.joules(1000) + ble.joules_up(up) + ble.joules_down(down)) / 2)
    air_s = 2 * turns * ble.delay_s + 8 * (up + down) / ble.up_bps
    assert each.seconds == pytest.approx((board.seconds(1000) + air_s + checked * 5000 / 1e6) / 2)


class Causal(nn.Module):
    """A small causal transformer: [B, L] -> [B, L, V]."""

    def __init__(self, vocabulary: int, length: int, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.randn(length, dim) * 0.1)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        hidden = torch.full(scores.shape[1:], -torch.inf).triu(1)
        out: Tensor = self.head(x + torch.softmax(scores + hidden, -1) @ self.value(x))
        return out


def test_character_models_as_they_are_built() -> None:
    """A causal transformer checks what a mean of embeddings drafted; an encoder of windows does as well."""
    with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
        causal = Causal(len(ALPHABET), 60)
        encoder = attention.encoder(nn.Embedding(len(ALPHABET), 16), 8, 16, 1, 2, len(ALPHABET))
        small = tiny.build("embed", (8,), len(ALPHABET), vocabulary=len(ALPHABET))
    draft = speculative.windows(small, tree.of(small), 8)
    prompt = tuple(encode("To be, or not").tolist())
    for model in (
        speculative.causal(causal, tree.of(causal), 60),
        speculative.windows(encoder, tree.of(encoder), 8),
    ):
        found = decode(draft, model, prompt, 20, keyed(0), gamma=3, temperature=0.0)
        assert found.tokens == greedy(model, prompt, 20)
        assert len(decode(draft, model, prompt, 20, keyed(0), gamma=3).tokens) == 20
    with pytest.raises(ModelError, match="takes texts of 1 to 60 tokens; this one has 6"):
        decode(draft, speculative.causal(causal, tree.of(causal), 60), prompt, 60, keyed(0))


def test_windows_see_the_last_tokens_padded_in_front() -> None:
    class Echo(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.float()

    model = speculative.windows(Echo(), {}, 3, padding=9)
    assert model(torch.tensor([1, 2]), 2).tolist() == [[9, 9, 1], [9, 1, 2]]
    assert model(torch.tensor([1, 2, 3, 4]), 2).tolist() == [[1, 2, 3], [2, 3, 4]]


@pytest.mark.parametrize(
    "wrong", [{"gamma": -1}, {"temperature": -1.0}, {"temperature": float("nan")}, {"num": 0}, {"prompt": ()}]
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    given = {"prompt": PROMPT, "num": 3, **wrong}
    prompt, num = given.pop("prompt"), given.pop("num")
    with pytest.raises(ConfigError, match="give at least 1, 1 and 0"):
        decode(TINY, LARGE, prompt, num, keyed(0), **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be server or device"):
        decode(TINY, LARGE, PROMPT, 3, keyed(0), resample="nobody")


def test_draws_follow_the_chances() -> None:
    counts = np.zeros(4)
    for position in range(2000):
        counts[keyed(5)(np.array([0.0, 1.0, 0.0, 3.0]), position, What.DRAFT)] += 1
    assert counts[[0, 2]].sum() == 0
    assert counts[3] / 2000 == pytest.approx(0.75, abs=0.03)
