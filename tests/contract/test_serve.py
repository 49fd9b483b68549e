"""A run on many machines as its operator meets it: three terminals, a server that is killed, strangers at the door."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from terminals import Terminals, free_port, listening, wait_for

from midhaul import config as settings
from midhaul import train, tree
from midhaul.config import Config
from midhaul.errors import ConfigError, MidhaulError
from midhaul.federation import certs, desk
from midhaul.federation.serve import Place
from midhaul.train import Result

pytest.importorskip("grpc", reason="gateways speak gRPC (midhaul[federation])")
pytestmark = pytest.mark.xdist_group("terminals")
SMALL = Config().replace(
    data_partition="dirichlet", data_num_devices=4, data_max_rows=60, data_public=0.2, data_test="device",
    tiny_options={"hidden": [16]}, large_model="mlp_large", large_epochs=2, large_options={"hidden": 16, "depth": 4},
    scheme_lr=0.1, scheme_distill_epochs=2, run_rounds=3,
)  # fmt: skip
PEOPLE = Config().replace(
    data_name="har", data_public=0.5, data_max_rows=40, fleet_board="nrf5340", tiny_model="cnn1d",
    large_model="resnet1d",
    large_options={"channels": [8, 8]}, large_epochs=1, scheme_distill_epochs=1, scheme_cut="relu1", scheme_batch=32,
    run_rounds=2,
)  # fmt: skip


def agree(folder: Path, wanted: Result, within: float = 1e-6) -> dict[str, Any]:
    """Compares a run's folder with a run on one computer; gives its summary."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    for name, whole in (("tiny", wanted.server.tree), ("large", wanted.server.large)):
        if whole:
            found = safetensors.torch.load((folder / "model" / f"{name}.safetensors").read_bytes())
            assert tree.largest_difference({n: found[n] for n in whole}, whole) <= within
    for name in ("accuracy", "large_accuracy", "uplink_bytes", "downlink_bytes", "device_joules"):
        assert summary[name] == pytest.approx(wanted.summary[name], abs=within), name
    return summary


@pytest.mark.parametrize("scheme", ["federated_transfer", "heterofl"])
def test_three_terminals(scheme: str, terminals: Terminals, server: Any, tmp_path: Path) -> None:
    config = SMALL.replace(scheme_name=scheme, scheme_width_mix="1,0.5" if scheme == "heterofl" else "")
    port = free_port()
    serves = server(config, port, "--log-file", tmp_path / "log")
    joins = [terminals("join", f"127.0.0.1:{port}", "--share", f"{k}/2", "--name", f"g{k}") for k in (1, 2)]
    serves.end()
    for gateway in joins:
        assert "the run has ended" in gateway.end()
        assert "digits: 2 devices that train on" in gateway.err
        assert "round 3: 2 " in gateway.err
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["gateway"] for line in told if line["event"] == "gateway_here"} == {"g1", "g2"}
    rounds = [line for line in told if line["event"] == "round"]
    assert [line["round"] for line in rounds] == [1, 2, 3]
    for line in rounds:
        assert set(line["gateways"].pop("here")) == {"g1", "g2"}
        assert line["gateways"] == {"late": [], "away": []}
        assert line["absent"] == 0
    assert [line["event"] for line in told if line["event"] in ("listening", "everybody", "start", "end")] == [
        *("listening", "everybody", "start", "end")
    ]
    assert agree(tmp_path / "run", train.run(config))["engine"] == "gateways"


@pytest.mark.parametrize("scheme", ["federated_transfer", "federated_split"])
def test_people_of_har_behind_two_gateways(scheme: str, terminals: Terminals, server: Any, tmp_path: Path) -> None:
    try:
        wanted = train.run(config := PEOPLE.replace(scheme_name=scheme))
    except MidhaulError as error:
        pytest.skip(f"the data set har isn't here: {error}")
    port = free_port()
    serves = server(config, port)
    joins = [terminals("join", f"127.0.0.1:{port}", "--data", f"har:subjects={s}") for s in ("1-15", "16-30")]
    serves.end()
    assert "that only test" in joins[0].err
    for gateway in joins:
        gateway.end()
    agree(tmp_path / "run", wanted)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("scheme", "core", "coded"),
    [
        ("federated_split", "unicorn:cortex-m4", {}),
        ("fedavg", "unicorn:cortex-m4", {"link_up": "delta,quantise:8", "link_down": "delta,quantise:8"}),
        ("fedavg", "qemu:cortex-m4", {}),
    ],
    ids=["split", "coded", "qemu"],
)
def test_four_cortex_m4_behind_one_gateway_and_simulated_devices_behind_another(
    scheme: str, core: str, coded: dict[str, str], terminals: Terminals, server: Any, tmp_path: Path
) -> None:
    if core.startswith("qemu") and shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm isn't installed")
    boards = f"{core}*4"
    config = SMALL.replace(scheme_name=scheme, data_num_devices=6, run_rounds=2, **coded)
    firmware = train.run(config.replace(run_engine="firmware", run_devices=boards))
    port = free_port()
    serves = server(config, port)
    first = terminals("join", f"127.0.0.1:{port}", "--data", "digits:devices=0-3", "--devices", boards, "--name", "m4")
    second = terminals("join", f"127.0.0.1:{port}", "--data", "digits:devices=4-5", "--name", "rest")
    serves.end()
    for gateway in (first, second):
        gateway.end()
        assert "round 2: " in gateway.err
    agree(tmp_path / "run", train.run(config), 1e-5)
    summary = agree(tmp_path / "run", firmware, 0.0)
    # Each device's bytes, joules and seconds are those of the run on one machine, and what the boards tell is there.
    for name in ("spent", "kinds", "device_joules", "uplink_bytes", "downlink_bytes", "device_stats"):
        assert summary[name] == firmware.summary[name], name
    assert [row["device"] for row in summary["device_stats"]] == [0, 1, 2, 3]
    assert all(joules > 0.0 for joules in summary["spent"]["joules"]["compute"])
    held = {row["name"]: row["holds"] for row in summary["gateways"]}
    assert held == {"m4": f"4 devices run the C runtime (4 of {core})", "rest": "2 simulated devices"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(text in page for text in (*held, *held.values(), "Devices on firmware", "<h2>Gateways</h2>"))


def test_firmware_that_owes_is_not_behind_a_gateway_of_a_quorum(terminals: Terminals, server: Any) -> None:
    port = free_port()
    config = SMALL.replace(scheme_name="fedavg", fleet_quorum=0.5, link_up="delta,topk:0.1")
    server(config, port).until("listening")
    gateway = terminals("join", f"127.0.0.1:{port}", "--devices", "host:*4")
    assert "what devices with firmware owe lies on them alone" in gateway.end(2)


def test_a_run_begins_without_gateways_that_do_not_come(terminals: Terminals, server: Any, tmp_path: Path) -> None:
    port = free_port()
    serves = server(SMALL.replace(scheme_name="fedavg"), port, "--gateways", 1)
    terminals("join", f"127.0.0.1:{port}", "--share", "1/2").end()
    serves.end()
    assert "beginning with 1 gateway; nobody holds the devices 1, 3" in serves.err
    none = terminals(
        "serve", tmp_path / "config.toml", "--listen", "127.0.0.1:0", "--patience", "0.3", "--out", tmp_path / "x"
    )
    assert "no gateway holds the devices 0-3" in none.end(2)
    assert not (tmp_path / "x").exists()


def test_a_device_is_with_one_gateway(terminals: Terminals, server: Any) -> None:
    port = free_port()
    serves = server(SMALL, port)
    first = terminals("join", f"127.0.0.1:{port}", "--share", "1/2", "--name", "first")
    first.until("joined the run")
    second = terminals("join", f"127.0.0.1:{port}", "--data", "digits:devices=0-1", "--name", "second")
    assert "device 0 is with gateway first, which is there; gateway second can't have it too" in second.end(2)
    third = terminals("join", f"127.0.0.1:{port}", "--share", "2/2", "--name", "third")
    serves.end()
    for gateway in (first, third):
        gateway.end()


def test_a_federation_over_tls_and_strangers_at_its_door(terminals: Terminals, server: Any, tmp_path: Path) -> None:
    own, other, mixed, port = tmp_path / "tls", tmp_path / "other", tmp_path / "mixed", free_port()
    certs.make(own, gateways=["a", "b"])
    for folder in (other, mixed):
        certs.make(folder, gateways=["b"])
    (mixed / "ca.crt").write_bytes((own / "ca.crt").read_bytes())  # trusts this server; its key is another authority's
    serves = server(SMALL, port, "--listen", f"localhost:{port}", "--tls", own, "--metrics", at := free_port())
    where = f"localhost:{port}"
    first = terminals("join", where, "--share", "1/2", "--tls", own, "--name", "a")
    first.until("joined the run")
    said = [
        terminals("join", where, "--share", "2/2", *more).end(2)
        for more in (("--tls", other), ("--tls", mixed), (), ("--tls", own))
    ]
    assert "is not signed by the authority in ca.crt" in said[0]
    assert "the certificate that b shows is not signed by this federation's authority" in said[1]
    assert "speaks TLS; give --tls FOLDER" in said[2]
    assert "has the keys of 2 gateways (a, b); say by --name" in said[3]

    told = json.loads(terminals("status", where, "--tls", own, "--json").end())
    assert (told["phase"], told["missing"], told["refused"]) == ("waiting", [1, 3], {"pass": 1})
    shown = terminals("status", where, "--tls", own, "--name", "a").end()
    assert "fedavg on digits: waiting, for " in shown
    assert "\nround 0 of 3 [---" in shown
    assert "nobody holds the devices 1, 3" in shown
    assert "refused: 1 pass" in shown
    with urllib.request.urlopen(f"http://127.0.0.1:{at}/metrics") as page:
        text = page.read().decode()
    assert 'midhaul_gateway_up{gateway="a"} 1.0' in text
    assert 'midhaul_refused_total{kind="pass"} 1.0' in text
    assert "midhaul_missing_devices 2.0" in text

    watch = terminals("status", where, "--tls", own, "--name", "a", "--watch", "0.1", "--json")
    wait_for(lambda: bool(watch.out), watch)
    second = terminals("join", where, "--share", "2/2", "--tls", own, "--name", "b")
    serves.end()
    for gateway in (first, second):
        gateway.end()
    seen = [json.loads(line) for line in watch.end().splitlines()]
    assert (seen[0]["phase"], seen[0]["round"]) == ("waiting", 0)
    assert (seen[-1]["phase"], seen[-1]["round"], seen[-1]["is_reachable"]) == ("done", 3, True)
    assert "is away" not in serves.err  # they left since the run had ended


def test_what_can_not_be_is_refused(terminals: Terminals, server: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(settings.to_toml(SMALL))
    certs.make(tmp_path / "tls")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        commands = (
            (["serve", config, "--listen", "0.0.0.0:9470"], "wants --tls FOLDER"),
            (["serve", config, "--listen", busy, "--out", tmp_path / "x"], "another program may have the port"),
            (["serve", config, "--metrics", busy, "--out", tmp_path / "x"], "can't be listened at"),
            (["serve", config, "--listen", "nowhere:x"], "is no address"),
            (["serve", config, "--gateways", "-1"], "0 or more"),
            (["serve", config, "--tls", tmp_path / "none"], "make it with `midhaul certs`"),
            (["join", f"127.0.0.1:{free_port()}", "--patience", "0.2"], "there was none for 0.2 s"),
            (["join", "127.0.0.1", "--patience", "0"], "no time to wait"),
            (["join", "127.0.0.1:99999"], "is no address"),
            (["join", "10.0.0.1"], "is another machine, so it wants --tls"),
            (["join", "127.0.0.1:9470", "--tls", tmp_path / "none"], "keys of 0 gateways"),
            (["status", f"127.0.0.1:{free_port()}"], "there is no server at"),
            (["run", config, "--engine", "gateways", "--out", tmp_path / "y"], "midhaul serve"),
        )
        started = [(terminals(*words), said) for words, said in commands]
        for terminal, said in started:
            told = terminal.end(2)
            assert told.startswith("midhaul: ")
            assert said in told
            assert "Traceback" not in terminal.err
    assert not (tmp_path / "x").exists()


def test_a_certificate_for_another_host_or_of_last_week_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for name in ("wrong", "old"):
        with monkeypatch.context() as patched:
            if name == "wrong":
                patched.setattr(certs, "LOOPBACK", ("hub.example",))
            else:
                patched.setattr(certs, "now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9))
            certs.make(tmp_path / name, days=3)
            shown[name] = certs.read(tmp_path / name, "server")
    with pytest.raises(ConfigError, match="expired on"):
        Place.of("127.0.0.1:0", tmp_path / "old")
    for name, word in (("wrong", "is not for localhost"), ("old", "has expired")):
        with listening(tmp_path / name) as port:
            assert word in str(desk.distrust(f"localhost:{port}", shown[name]))
