"""The sides of a contest: what each is called, how it is started, and what it can't do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulation import install

SCRIPTS = Path(__file__).parent / "peers"
FIT = ("fedavg", "reptile")


@dataclass(frozen=True)
class Side:
    """One side: its name in the table, its script and what that is told. `peer` is the environment that it runs in.

    `group` is what `--peers` calls it by. `kinds` are the schemes that it can do, `why_not` why it can't do the others.
    `tunes`: it finds its best way first, in a run of its own. `checked`: after a round it must hold midhaul's weights.
    """

    name: str
    group: str
    script: str
    told: tuple[str, ...] = ()
    peer: str = ""
    kinds: tuple[str, ...] = FIT
    why_not: str = ""
    tunes: bool = False
    checked: bool = True

    def command(self, folder: Path, *more: str) -> list[str]:
        """Gives the command line."""
        python = str(install.python_of(self.peer)) if self.peer else sys.executable
        return [python, str(SCRIPTS / self.script), str(folder), *self.told, *more]


def sides(threads: int) -> list[Side]:
    """Gives all sides, for a machine of which so many cores are used."""
    every, all_kinds = str(threads), (*FIT, "federated_split")
    one_half = "the server's half takes the clients in turn, so a second process has nothing to do"
    no_split, many = "has no split learning", threads > 1
    found = [
        Side("midhaul", "midhaul", "ours.py", (every, "link"), kinds=all_kinds),
        Side("midhaul, no link", "midhaul", "ours.py", (every, "bare"), kinds=all_kinds),
        Side("plain PyTorch, 1 thread", "plain", "plain.py", ("1", "1"), kinds=all_kinds),
    ]
    if threads > 1:
        found += [
            Side(f"plain PyTorch, {threads} threads", "plain", "plain.py", (every, "1"), kinds=all_kinds),
            Side(f"plain PyTorch, {threads} processes", "plain", "plain.py", ("1", every), why_not=one_half),
        ]
    return [
        *found,
        Side("Flower simulation", "flower", "flower.py", (every,), "flower", why_not=no_split),
        Side("pfl-research, 1 process", "pfl", "pfl_research.py", ("1",), "pfl", why_not=no_split),
        *(
            [Side(f"pfl-research, {every} processes", "pfl", "pfl_research.py", (every,), "pfl", why_not=no_split)]
            * many
        ),
        Side("JAX by hand", "jax", "jax_by_hand.py", (every,), "jax", why_not="not written for the split", tunes=True),
        Side("FedJAX", "fedjax", "fed_jax.py", (every,), "fedjax", why_not=no_split),
        Side(
            "centralised PyTorch (the bound)",
            "central",
            "central.py",
            (every,),
            why_not="the tiny model's rows alone",
            tunes=True,
            checked=False,
        ),
        Side("sgemm", "sgemm", "sgemm.py", (every,), kinds=all_kinds, checked=False),
    ]
