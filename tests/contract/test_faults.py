"""What may go wrong with a federation, in real processes: it ends with the bits of the run that nothing happened to, or
in one sentence. `python -m repro.faults` does the scenes in a longer form."""

from __future__ import annotations

import dataclasses
import datetime
import json
import queue
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import NoHosts, hosts
from terminals import Terminal, Terminals, free_port, listening

from midhaul import checkpoint
from midhaul import config as settings
from midhaul.federation import certs, desk
from midhaul.federation.certs import Material
from midhaul.federation.passes import Bearer
from midhaul.runtime import channel
from midhaul.runtime.envelope import Envelope, Opener, Sign, seal
from midhaul.runtime.hello import Hello

sys.path.insert(0, str(Path(__file__).parents[2]))
from repro import faults
from repro.faults import SMALL, Site

grpc = pytest.importorskip("grpc", reason="gateways speak gRPC (midhaul[federation])")
pytestmark = pytest.mark.xdist_group("terminals")


def test_a_server_killed_at_random_moments_ends_with_the_same_bits(terminals: Terminals, tmp_path: Path) -> None:
    site = Site(terminals, tmp_path / "site", SMALL.replace(scheme_name="fedrep"))
    faults.killed(site, 3, 0.1)
    assert not [path for path in site.run.rglob(".*")]
    assert not desk.secret_path(site.port).exists()
    assert site.is_as_undisturbed()


@pytest.mark.parametrize("quorum", [0.0, 1.0])
def test_a_gateway_killed_in_mid_round_and_started_again(quorum: float, terminals: Terminals, tmp_path: Path) -> None:
    """Its devices were in the middle of a batch, which is gone: they miss a round, or with a quorum of all the round is
    repeated, and no bit is another."""
    config = SMALL.replace(scheme_name="federated_split", fleet_quorum=quorum, run_rounds=20)
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
    summary = site.summary
    assert summary["rounds"] == 20
    assert summary["accuracy"] > 0.1
    if quorum:
        assert site.is_as_undisturbed()
    else:
        assert summary["absent"] <= 4  # a FORWARD and a BACKWARD of two devices at most


def test_a_link_that_is_cut_and_one_that_is_slow_change_no_bit(terminals: Terminals, tmp_path: Path) -> None:
    config = SMALL.replace(scheme_name="federated_split", run_rounds=10, fleet_keepalive_s=0.4)
    with ExitStack() as held:
        try:
            links = held.enter_context(hosts("north", "south"))
            links[1].limit("2mbit")
        except NoHosts as error:
            pytest.skip(str(error))
        site = Site(terminals, tmp_path / "site", config, tuple(links))
        far = faults.cut(site, 2.0)
        assert far.err.count("joined the run") == 2
        assert "lost the server" in far.err
        assert [row["reconnections"] for row in site.summary["gateways"] if row["name"] == "g2"] == [1]
        assert sum(int(row["overlimits"]) for row in links[1].told()) > 0  # packets that had to wait
    assert site.is_as_undisturbed()


def test_a_disk_that_is_full_at_a_checkpoint(terminals: Terminals, tmp_path: Path) -> None:
    with ExitStack() as held:
        try:
            disk = held.enter_context(faults.small_disk(tmp_path / "disk"))
        except OSError as error:
            pytest.skip(str(error))
        site = Site(terminals, disk / "site", SMALL.replace(scheme_name="fedrep", run_rounds=30))
        _no_room(site, lambda _: faults.fill(disk / "ballast"), "No space left on device")
        (disk / "ballast").unlink()
        _goes_on(site)


def test_a_file_that_may_not_grow_at_a_checkpoint(terminals: Terminals, tmp_path: Path) -> None:
    """What a quota does, without the rights that a full disk takes."""
    site = Site(terminals, tmp_path / "site", SMALL.replace(scheme_name="fedrep", run_rounds=30))

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


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys of an authority, of gateways a and b, of one whose certificate has expired, and of a server's that has."""
    own, stale = tmp_path / "keys", tmp_path / "stale"
    with monkeypatch.context() as patched:
        patched.setattr(certs, "now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9))
        certs.make(own, gateways=[])
        certs.make(own, gateways=["old"], days=3)
        stale.mkdir()
        for name in ("ca.crt", "ca.key"):
            shutil.copy(own / name, stale / name)
        certs.make(stale, gateways=[], days=3)
    certs.make(own, gateways=["a", "b"])
    return own


def test_strangers_are_refused_with_a_sentence_in_the_log(terminals: Terminals, keys: Path, tmp_path: Path) -> None:
    other, mixed, forged = (tmp_path / name for name in ("other", "mixed", "forged"))
    for folder in (other, mixed):
        certs.make(folder, gateways=["b"])
    shutil.copy(keys / "ca.crt", mixed / "ca.crt")  # trusts this server, and its key is another authority's
    forged.mkdir()
    for path in (keys / "ca.crt", keys / "gateways" / "b.crt"):
        shutil.copy(path, forged / path.name)
    shutil.copy(keys / "gateways" / "a.key", forged / "b.key")
    config, port = tmp_path / "config.toml", free_port()
    config.write_text(settings.to_toml(SMALL))
    where = f"localhost:{port}"
    serves = terminals("serve", config, "--listen", where, "--tls", keys, "--out", tmp_path / "run")
    serves.until("listening")

    def joins(*words: object) -> str:
        return terminals("join", where, "--share", "1/2", *words).end(2)

    # A wrong authority, at either end.
    assert "is not signed by the authority in ca.crt" in joins("--tls", other)
    assert "refused b: the certificate that b shows is not signed by this federation's" in joins("--tls", mixed)
    serves.until("was refused: the certificate that b shows is not signed by this federation's authority")

    # A certificate that has expired: whose own it is, who is shown it, and a server's.
    assert "old.crt expired on" in joins("--tls", keys, "--name", "old")
    shown = {name: _material(keys, name) for name in ("a", "b", "old")}
    assert "certificate that old shows is valid from" in _asked(where, shown["a"], Bearer("old", shown["old"]))
    serves.until("was refused: the certificate that old shows is valid from")
    stale = terminals("serve", config, "--tls", tmp_path / "stale", "--out", tmp_path / "x")
    assert "server.crt expired on" in stale.end(2)
    with listening(tmp_path / "stale") as at:
        gateway = terminals("join", f"localhost:{at}", "--tls", keys, "--name", "a")
        assert "has expired; make a new one there with `midhaul certs`" in gateway.end(2)

    # A key that isn't that of the certificate.
    assert "b.key is not the key of b.crt" in joins("--tls", forged)
    forger = Bearer("b", dataclasses.replace(shown["b"], key=shown["a"].key))
    assert "it is forged" in _asked(where, shown["a"], forger)
    serves.until("was refused: b doesn't hold the key of the certificate that it shows: it is forged")

    # A message that somebody recorded: a pass, and what opens a stream.
    recorded = Bearer("a", shown["a"]).show("Join")
    assert json.loads(_call(where, shown["a"], recorded))["token"]
    with pytest.raises(grpc.RpcError, match="a message was replayed"):
        _call(where, shown["a"], recorded)
    serves.until("was refused: a shows a pass that was shown before: a message was replayed")
    token = json.loads(_call(where, shown["a"], Bearer("a", shown["a"]).show("Join")))["token"]
    said: list[bytes] = []
    for why in ("another model than this run", "its HELLO was replayed"):
        assert why in _opened(where, shown["a"], token, said)
        serves.until(f"was refused: {'gateway a has' if 'model' in why else 'a gateway'}")
    assert "or its HELLO was replayed; give it the run's token" in serves.err

    told = json.loads(terminals("status", where, "--tls", keys, "--json").end())
    assert told["refused"] == {"pass": 4, "join": 2}
    assert told["gateways"] == []


def _material(folder: Path, name: str) -> Material:
    """Gives what a gateway has in hand, expired or not."""
    pair = [(folder / "gateways" / f"{name}.{kind}").read_bytes() for kind in ("crt", "key")]
    return Material((folder / "ca.crt").read_bytes(), *pair)


def _asked(where: str, trusts: Material, bearer: Bearer) -> str:
    """Gives what a server says that refuses a pass."""
    with pytest.raises(grpc.RpcError) as refused:
        _call(where, trusts, bearer.show("Join"))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    return str(refused.value.details())


def _call(where: str, trusts: Material, shown: bytes) -> bytes:
    with grpc.secure_channel(where, grpc.ssl_channel_credentials(trusts.root), channel.OPTIONS) as opened:
        answer: bytes = opened.unary_unary(f"/{desk.SERVICE}/Join")(shown, timeout=20.0)
    return answer


def _opened(where: str, trusts: Material, token: str, said: list[bytes]) -> str:
    """Opens a stream with what was said on the one before, or with something new; gives why it was refused."""
    with grpc.secure_channel(where, grpc.ssl_channel_credentials(trusts.root), channel.OPTIONS) as opened:
        out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = opened.stream_stream(f"/{channel.SERVICE}/{channel.METHOD}")(iter(out.get, None))
        challenge = Opener(0).open(next(call))
        assert challenge is not None
        if not said:
            hello = Hello("a", "1", "model", {0: (1, 2, 3, 4)}).pack(token, bytes(challenge.payload))
            said += seal(Envelope(Sign.HELLO, 0, 0, 0, hello))
        for data in said:
            out.put(data)
        with pytest.raises(grpc.RpcError) as refused:
            next(call)
        out.put(None)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    return str(refused.value.details())
