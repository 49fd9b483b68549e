"""What may go wrong with a federation, in real processes: it ends with the bits of the run that nothing happened to, or
in one sentence. `python -m repro.faults` does the scenes in a longer form."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import NoHosts, hosts
from terminals import Terminal, Terminals

from midhaul import checkpoint

sys.path.insert(0, str(Path(__file__).parents[2]))
from repro import faults
from repro.faults import SMALL, Site

pytest.importorskip("grpc", reason="gateways speak gRPC (midhaul[federation])")
pytestmark = pytest.mark.xdist_group("terminals")


def test_a_server_killed_at_random_moments_ends_with_the_same_bits(terminals: Terminals, tmp_path: Path) -> None:
    site = Site(terminals, tmp_path / "site", SMALL.replace(scheme_name="fedrep"))
    faults.killed(site, 3, 0.1)
    assert site.is_as_undisturbed()


def test_a_gateway_killed_in_mid_round_and_started_again_changes_no_bit(terminals: Terminals, tmp_path: Path) -> None:
    """Its devices were in the middle of a batch, which is gone: with a quorum of all, the round is repeated."""
    config = SMALL.replace(scheme_name="federated_split", fleet_quorum=1.0, run_rounds=20)
    site = Site(terminals, tmp_path / "site", config)
    serves, first, second = site.serve(), site.join(1), site.join(2)
    site.until(3, serves)
    second.stop()
    time.sleep(0.3)  # several rounds' time: by now it has a turn that it won't answer
    second.kill()
    again = site.join(2)
    serves.end()
    for gateway in (first, again):
        gateway.end()
    assert "gateway g2 is away" in serves.err
    assert site.is_as_undisturbed()


def test_a_link_that_is_cut_and_one_that_is_slow_change_no_bit(terminals: Terminals, tmp_path: Path) -> None:
    config = SMALL.replace(scheme_name="federated_split", run_rounds=10, fleet_keepalive_s=0.4)
    try:
        with hosts("north", "south") as links:
            site = Site(terminals, tmp_path / "site", config, tuple(links))
            links[1].limit("2mbit")
            far = faults.cut(site, 2.0)
            assert far.err.count("joined the run") == 2
            assert "lost the server" in far.err
            assert [row["reconnections"] for row in site.summary["gateways"] if row["name"] == "g2"] == [1]
            assert sum(int(row["overlimits"]) for row in links[1].told()) > 0  # packets that had to wait
    except NoHosts as error:
        pytest.skip(str(error))
    assert site.is_as_undisturbed()


def test_a_disk_that_is_full_at_a_checkpoint(terminals: Terminals, tmp_path: Path) -> None:
    try:
        with faults.small_disk(tmp_path / "disk") as disk:
            site = Site(terminals, disk / "site", SMALL.replace(scheme_name="fedrep"))
            _no_room(site, lambda _: faults.fill(disk / "ballast"), "No space left on device")
            (disk / "ballast").unlink()
            _goes_on(site)
    except OSError as error:
        pytest.skip(str(error))


def test_a_file_that_may_not_grow_at_a_checkpoint(terminals: Terminals, tmp_path: Path) -> None:
    """What a quota does, without the rights that a full disk takes."""
    site = Site(terminals, tmp_path / "site", SMALL.replace(scheme_name="fedrep"))

    def limit(serves: Terminal) -> None:
        resource.prlimit(serves.pid, resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))

    _no_room(site, limit, "File too large")
    _goes_on(site)


def _no_room(site: Site, act: Callable[[Terminal], None], why: str) -> None:
    """Lets the server run out of room in the middle of a run: one sentence, 2, and what was saved is whole."""
    serves = site.serve()
    joins = [site.join(number) for number in (1, 2)]
    site.until(3, serves)
    act(serves)
    said = serves.end(2)
    assert said.startswith("midhaul: ")
    assert f"can't be written ({why}); free space or choose another --out" in said
    assert "Traceback" not in serves.err
    told: list[str] = []
    kept = checkpoint.load(site.run / "checkpoint", told.append)
    assert kept is not None
    assert kept.round == site.newest >= 3
    assert not told
    assert not list((site.run / "checkpoint").glob(".*"))
    assert [gateway.code for gateway in joins] == [None, None]  # they look for the server that goes on


def _goes_on(site: Site) -> None:
    serves = site.serve("--resume")
    serves.end()
    assert "resuming after round" in serves.err
    assert site.is_as_undisturbed()
