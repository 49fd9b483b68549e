"""CLINC150: what people ask an assistant, 150 intents in 10 domains, and questions that are none of them.

Shape letters: N sentences, F hashed words, L words.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul import hub
from midhaul.data import sources
from midhaul.data.dataset import Dataset, Refused
from midhaul.data.sources import Description, File, Part
from midhaul.errors import ConfigError, DataError

LENGTH = 24  # words kept of a sentence; 99 in 100 have at most 17
OUT = "out_of_scope"
_COMMIT = "https://raw.githubusercontent.com/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de/data/"
FILE = File(
    name="intents_clinc150_data_full.json.gz",
    num_bytes=283_591,
    sha256="59969ccdb9192885f0ca3d475172ca845aa4a41ca0e2881782ba4c3bd37e7dbf",
    content_bytes=2_495_390,
    content_sha256="36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    parts=(Part("data_full.json", _COMMIT + "data_full.json", 2_495_390),),
    fetch="as it is",
    also=("data_full.json",),
)
DOMAINS = File(
    name="intents_clinc150_domains.json",
    num_bytes=3_818,
    sha256="b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
    content_bytes=3_818,
    content_sha256="b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
    parts=(Part("domains.json", _COMMIT + "domains.json", 3_818),),
    fetch="as it is",
    also=("domains.json",),
)
DESCRIPTION = Description(
    name="clinc150",
    what="requests to an assistant in English, 150 intents in 10 domains",
    shape="x [19500, 1024] float32 hashed words (or [19500, 24] int64 tokens), 150 classes",
    key="domain",
    licence="CC BY 3.0",
    source="https://github.com/clinc/oos-eval",
    citation="Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction, EMNLP 2019",
    files=(FILE, DOMAINS),
)


def load(
    folder: Path | None = None,
    *,
    features: str = "bag",
    dimension: int = 1024,
    validation: bool = False,
    out_of_scope: bool = False,
) -> Dataset:
    """Gives the sentences by domain; held out: the publisher's test set.

    Shapes: features "bag": x [N, dimension] float32, the counts of hashed words, each sentence of norm 1; "tokens":
    x [N, 24] int64, hashed words 1..dimension-1 and 0 behind the last word; "hf:NAME": x [N, 24] int64, the tokens of
    that model's own tokenizer and its padding. `validation` adds the 3,000 validation sentences to the training rows;
    `out_of_scope` adds the sentences of no intent as a 151st class and a domain.
    Raises: ConfigError for other features or a dimension below 2.
    """
    if features not in ("bag", "tokens") and not features.startswith("hf:"):
        raise ConfigError(f"clinc150: features is {features!r}; it must be 'bag' or 'tokens', or 'hf:' and a model")
    if not 2 <= dimension <= 1_000_000:
        raise ConfigError(f"clinc150: dimension is {dimension}; it must lie in 2..1000000")
    sentences = json.loads(sources.read(FILE, folder))
    domains = json.loads(sources.read(DOMAINS, folder))
    return build(sentences, domains, features, dimension, validation, out_of_scope)


def build(
    sentences: Any,
    domains: Any,
    features: str = "bag",
    dimension: int = 1024,
    validation: bool = False,
    out_of_scope: bool = False,
) -> Dataset:
    """Gives the data set from the publisher's two JSON objects. Raises: DataError if they have another form."""
    if not isinstance(domains, dict) or not isinstance(sentences, dict) or not {"train", "test"} <= sentences.keys():
        raise DataError("clinc150: the JSON files lack train, test or the domains; fetch them again")
    domain_of = {intent: name for name, intents in sorted(domains.items()) for intent in intents}
    device_names, class_names = tuple(sorted(domains)), tuple(sorted(domain_of))
    parts = [("train", False), *([("val", False)] if validation else []), ("test", True)]
    if out_of_scope:
        domain_of["oos"] = OUT
        device_names, class_names = (*device_names, OUT), (*class_names, "oos")
        parts += [("oos_train", False), *([("oos_val", False)] if validation else []), ("oos_test", True)]
    rows = [(text, intent, held) for part, held in parts for text, intent in sentences.get(part, [])]
    sound = [place for place, (text, intent, _) in enumerate(rows) if intent in domain_of and words(text)]
    refused = [
        Refused(
            place,
            "it has no word" if rows[place - 1][1] in domain_of else f"intent {rows[place - 1][1]!r} is unknown",
        )
        for place in sorted(set(range(1, len(rows) + 1)) - {place + 1 for place in sound})
    ]
    texts = [rows[place][0] for place in sound]
    x, vocabulary = _features(texts, features, dimension)
    return Dataset(
        name="clinc150",
        x=x,
        y=np.array([class_names.index(rows[place][1]) for place in sound], np.int64),
        device=np.array([device_names.index(domain_of[rows[place][1]]) for place in sound], np.int64),
        device_names=device_names,
        held_out=np.array([rows[place][2] for place in sound], np.bool_),
        class_names=class_names,
        licence=DESCRIPTION.licence,
        source=DESCRIPTION.source,
        citation=DESCRIPTION.citation,
        key=DESCRIPTION.key,
        num_read=len(rows),
        refused=tuple(refused),
        vocabulary=vocabulary,
    )


def _features(texts: list[str], features: str, dimension: int) -> tuple[npt.NDArray[Any], int]:
    """Gives the rows, and how many tokens there are; 0 where they are no tokens."""
    if features.startswith("hf:"):
        return tokenised(texts, features[3:])
    tokens = [hashed(text, dimension if features == "bag" else dimension - 1) for text in texts]
    return (_bag(tokens, dimension), 0) if features == "bag" else (_padded(tokens), dimension)


def tokenised(texts: list[str], name: str) -> tuple[npt.NDArray[np.int64], int]:
    """Gives the tokens of a Hugging Face model's own tokenizer, and how many it knows. Shapes: [N, 24].

    Raises: DependencyError without transformers; DataError for a tokenizer that can't be had or that has no padding.
    """
    auto, place = hub.transformers(f"the tokenizer hf:{name}").AutoTokenizer, hub.place(name)
    try:
        tokenizer = auto.from_pretrained(place, trust_remote_code=False)
        found = tokenizer(texts, max_length=LENGTH, truncation=True, padding="max_length")["input_ids"]
    except (OSError, ValueError) as error:
        raise DataError(
            f"the tokenizer hf:{name} can't be used ({' '.join(str(error).split())}); check its name"
        ) from None
    return np.array(found, np.int64), len(tokenizer)


def words(text: str) -> list[str]:
    """Gives the words of a sentence: lower-case runs of letters, digits and apostrophes.

    >>> words("What's my balance?")
    ["what's", 'my', 'balance']
    """
    return re.findall(r"[a-z0-9']+", text.lower())


def hashed(text: str, num: int) -> list[int]:
    """Gives a number in 0..num-1 for each word: CRC-32, the same on every machine, no vocabulary to keep."""
    return [zlib.crc32(word.encode()) % num for word in words(text)]


def _bag(tokens: list[list[int]], dimension: int) -> npt.NDArray[np.float32]:
    x_NF = np.zeros((len(tokens), dimension), np.float32)
    for row, sentence in zip(x_NF, tokens, strict=True):
        np.add.at(row, sentence, 1.0)
    x_NF /= np.linalg.norm(x_NF, axis=1, keepdims=True)
    return x_NF


def _padded(tokens: list[list[int]]) -> npt.NDArray[np.int64]:
    x_NL = np.zeros((len(tokens), LENGTH), np.int64)
    for row, sentence in zip(x_NL, tokens, strict=True):
        kept = sentence[:LENGTH]
        row[: len(kept)] = np.array(kept) + 1
    return x_NL
