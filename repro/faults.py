"""What may go wrong with a federation in real processes: servers killed, links cut and slowed, a full disk.

`python -m repro.faults` does the long form: twenty kills, a link that is cut for ten seconds. The suite does the same
scenes in a short form (tests/contract/test_faults.py). Each ends with the bits of the run that nothing happened to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midhaul import checkpoint, rng
from midhaul import config as settings
from midhaul.config import Config
from midhaul.federation import certs
from repro import Row, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "contract"))
from hosts import Link, NoHosts, hosts
from terminals import Terminal, Terminals, free_port, wait_for

KILLS, CUT_S, RATE = 20, 10.0, "2mbit"
LONG_S = 600.0  # that no run takes
SMALL = Config().replace(
    data_partition="dirichlet", data_num_devices=4, data_max_rows=60, data_public=0.2, data_test="device",
    tiny_options={"hidden": [16]}, large_model="mlp_large", large_epochs=1, large_options={"hidden": 16, "depth": 1},
    scheme_lr=0.1, scheme_distill_epochs=1, run_rounds=60, run_evaluate_every=50,
)  # fmt: skip


@dataclass
class Site:
    """A federation of two gateways in processes: on this machine's loopback, or on hosts, over TLS."""

    terminals: Terminals
    folder: Path
    config: Config
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.path, self.run, self.keys = (self.folder / name for name in ("config.toml", "run", "keys"))
        self.path.write_text(settings.to_toml(self.config))
        if self.links:
            certs.make(self.keys, hosts=[link.server for link in self.links], gateways=["g1", "g2"])

    def serve(self, *more: object) -> Terminal:
        host = "0.0.0.0" if self.links else "127.0.0.1"
        words = ("--listen", f"{host}:{self.port}", *(("--tls", self.keys) if self.links else ()))
        net = self.links[0].hub if self.links else ""
        return self.terminals("serve", self.path, *words, "--out", self.run, *more, net=net)

    def join(self, number: int, *more: object) -> Terminal:
        """Starts gateway 1 or 2."""
        link = self.links[number - 1] if self.links else None
        words: tuple[object, ...] = (f"{link.server if link else '127.0.0.1'}:{self.port}", "--share", f"{number}/2")
        words += ("--name", f"g{number}", *(("--tls", self.keys) if link else ()))
        return self.terminals("join", *words, *more, net=link.net if link else "")

    @property
    def newest(self) -> int:
        """The round of the newest checkpoint, -1 if there is none."""
        return max(checkpoint.rounds(self.run / "checkpoint"), default=-1)

    def until(self, round: int, serves: Terminal) -> None:
        """Waits for a round's checkpoint."""
        wait_for(lambda: self.newest >= round or serves.code is not None, serves)
        assert serves.code is None, serves.err

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return found

    def is_as_undisturbed(self) -> bool:
        """Tells whether the run ended with the bits of the run on one computer."""
        alone = self.folder / "alone"
        if not alone.exists():
            self.terminals("run", self.path, "--out", alone).end(seconds=LONG_S)
        wanted = json.loads((alone / "summary.json").read_text())["model_sha256"]
        return bool(self.summary["model_sha256"] == wanted)


def killed(site: Site, kills: int, within_s: float, tell: Callable[[str], None] = lambda line: None) -> None:
    """Kills the server at random moments of its work, with SIGKILL, and starts it again, until the run ends.

    A moment is up to `within_s` after a new checkpoint, so that the run gets on between two kills; the first one is as
    much after the server began to listen.
    """
    moments = rng.uniform(rng.key(site.config.run.seed, 0, rng.SERVER, rng.Use.SYNTHETIC), kills) * within_s
    serves = site.serve()
    joins = [site.join(number) for number in (1, 2)]
    for number, moment in enumerate(moments.tolist()):
        if number:
            site.until(site.newest + 1, serves)
        else:
            serves.until("listening")
        time.sleep(moment)
        assert serves.code is None, f"the run is too short for {kills} kills: {serves.err}"
        serves.kill()
        since = "a checkpoint" if number else "it listened"
        tell(f"killed {1000 * moment:.0f} ms after {since}, the newest is round {site.newest}")
        assert not (site.run / "summary.json").exists()
        serves = site.serve("--resume")
    serves.end(seconds=LONG_S)
    assert "resuming after round" in serves.err
    for gateway in joins:
        gateway.end()
        assert "lost the server" in gateway.err


def cut(site: Site, cut_s: float) -> Terminal:
    """Cuts the second gateway's link in the middle of the run, for a while; gives that gateway's terminal."""
    serves, joins = site.serve(), [site.join(number) for number in (1, 2)]
    site.until(2, serves)
    site.links[1].cut()
    time.sleep(cut_s)
    assert serves.code is None, serves.err
    site.links[1].mend()
    serves.end(seconds=LONG_S)
    for gateway in joins:
        gateway.end()
    return joins[1]


def slowed(site: Site, rate: str) -> int:
    """Runs with the second gateway's link held to a rate; gives how many packets had to wait."""
    site.links[1].limit(rate)
    serves, joins = site.serve(), [site.join(number) for number in (1, 2)]
    serves.end(seconds=LONG_S)
    for gateway in joins:
        gateway.end()
    return sum(int(row["overlimits"]) for row in site.links[1].told())


@contextmanager
def small_disk(folder: Path, size: str = "4m") -> Iterator[Path]:
    """Gives a folder on a file system of its own. Raises: OSError where that can't be had."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        raise OSError("a file system can't be mounted here; that takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes a file as large as there is room."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def main(arguments: Sequence[str]) -> list[Row]:
    """Runs the scenes in their long form."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        terminals = Terminals(folder)
        try:
            rows.append(_killed(terminals, folder))
            rows += _on_hosts(terminals, folder)
        finally:
            terminals.close()
    return rows


def _killed(terminals: Terminals, folder: Path) -> Row:
    rounds = {"fedrep": 400, "federated_split": 150}
    sound = []
    for scheme, num in rounds.items():
        site = Site(terminals, folder / scheme, SMALL.replace(scheme_name=scheme, run_rounds=num))
        killed(site, KILLS // len(rounds), 0.5, lambda line, scheme=scheme: print(f"{scheme}: {line}", flush=True))  # type: ignore[misc]
        sound.append(site.is_as_undisturbed())
        print(f"{scheme}: {'the same bits' if sound[-1] else 'OTHER BITS'}", flush=True)
    target = f"{KILLS} kills of the server, same model_sha256"
    said = f"{sum(sound)} of {len(sound)} schemes, {KILLS // len(rounds)} kills each"
    return Row("server killed at random moments", target, said, all(sound), must=True)


def _on_hosts(terminals: Terminals, folder: Path) -> list[Row]:
    rows = []
    what = (f"link cut for {CUT_S:g} s", f"link held to {RATE}")
    try:
        with hosts("north", "south") as links:
            config = SMALL.replace(scheme_name="federated_split", fleet_keepalive_s=2.0)
            site = Site(terminals, folder / "cut", config, tuple(links))
            gateway = cut(site, CUT_S)
            times = gateway.err.count("joined the run")
            said = f"{'same' if site.is_as_undisturbed() else 'other'} bits, joined {times} times"
            rows.append(Row(what[0], "same bits", said, said.startswith("same") and times > 1, must=True))
        with hosts("north", "south") as links:
            site = Site(terminals, folder / "slow", config, tuple(links))
            waited = slowed(site, RATE)
            said = f"{'same' if site.is_as_undisturbed() else 'other'} bits, {waited:,} packets waited"
            rows.append(Row(what[1], "same bits", said, said.startswith("same") and waited > 0, must=True))
    except NoHosts as error:
        rows += [Row(one, "same bits", f"not run: {error}", False) for one in what[len(rows) :]]
    return rows


if __name__ == "__main__":
    found = main(sys.argv[1:])
    print(table(found))
    sys.exit(0 if all(row.passed or not row.must for row in found) else 1)
