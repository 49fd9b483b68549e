"""What a gateway says of itself when it opens a stream, and the proof that it knows the run's token.

The server sends random bytes first; the proof is HMAC-SHA256 under the token of these and of all that the gateway says.
So the token never travels, nothing that was said can be changed, and a HELLO that somebody recorded is worth nothing.

Source: RFC 2104 (HMAC), from memory.
Limits: what comes behind the handshake is protected by TLS alone; without TLS, only a loopback is safe.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from midhaul import __version__
from midhaul.program import Indices, Population
from midhaul.runtime.envelope import Refusal, Refused

NONCE_BYTES = 32
MAX_BYTES = 1 << 24  # of a HELLO
MAX_NAME = 64
MAX_HOLDS = 400
Rows = tuple[int, int, int, int]
_PROOF_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Hello:
    """Who a gateway is. `incarnation` is drawn anew by each process; `rows` is what `rows_of` gives; `model` is
    `parcel.Models.digest`; `holds` says what its devices are, for a person."""

    name: str
    incarnation: str
    model: str
    rows: dict[int, Rows]
    version: str = __version__
    holds: str = ""

    def pack(self, token: str, nonce: bytes) -> bytes:
        """Gives the HELLO's bytes in answer to a challenge."""
        table = {
            "name": self.name,
            "incarnation": self.incarnation,
            "model": self.model,
            "version": self.version,
            "holds": self.holds,
            "rows": [[device, *counts] for device, counts in self.rows.items()],
        }
        body = json.dumps(table).encode()
        return _proof(token, nonce, body) + body

    @staticmethod
    def unpack(data: bytes, token: str, nonce: bytes) -> Hello:
        """Gives it again. Raises: Refused for a wrong proof, before anything else is looked at."""
        proof, body = bytes(data[:_PROOF_BYTES]), bytes(data[_PROOF_BYTES:])
        if not hmac.compare_digest(proof, _proof(token, nonce, body)):
            raise Refused(
                Refusal.JOIN, "a gateway's token is not this run's, or its HELLO was replayed; give it the run's token"
            )
        try:
            return _checked(json.loads(body))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refused(Refusal.JOIN, "a gateway's HELLO isn't one; install the same midhaul on both sides") from None


def rows_of(population: Population, devices: tuple[int, ...]) -> dict[int, Rows]:
    """Gives how many rows to train on, to test on and to adapt on each of some devices has, and a digest of which these
    are and of their labels: another partition of the same data is rarely told by the counts alone."""
    known: dict[int, tuple[Indices, bytes]] = {}  # by the array's id: many devices may be tested on the same one

    def digest(places: Indices) -> bytes:
        if id(places) not in known:
            labels = population.y[torch.as_tensor(places)].cpu().numpy()
            data = np.asarray(places, "<i8").tobytes() + labels.astype("<f8").tobytes()
            known[id(places)] = places, hashlib.sha256(data).digest()
        return known[id(places)][1]

    found = {}
    for device in devices:
        train, test, adapt = parts = [population.rows(device, name) for name in ("train", "test", "adapt")]
        number = int.from_bytes(hashlib.sha256(b"".join(map(digest, parts))).digest()[:8], "little") >> 1
        found[device] = (len(train), len(test), len(adapt), number)
    return found


def _proof(token: str, nonce: bytes, body: bytes) -> bytes:
    return hmac.digest(token.encode(), b"midhaul hello" + nonce + body, "sha256")


def _checked(table: Any) -> Hello:
    texts = [table[name] for name in ("name", "incarnation", "model", "version")]
    name = texts[0]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= 2 * MAX_NAME for text in texts):
        raise ValueError
    if not 0 < len(name) <= MAX_NAME or not isinstance(table["rows"], list):
        raise ValueError
    rows: dict[int, Rows] = {}
    for entry in table["rows"]:
        device, train, test, adapt, digest = entry
        if device in rows or any(type(number) is not int or number < 0 for number in entry):
            raise ValueError
        rows[device] = (train, test, adapt, digest)
    if not isinstance(holds := table["holds"], str) or not holds.isprintable() or len(holds) > MAX_HOLDS:
        raise ValueError
    return Hello(name, texts[1], texts[2], rows, texts[3], holds)
