"""Devices behind gateways: what `stacked` gives, whatever happens to the streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from midhaul import train, tree
from midhaul.config import Config
from midhaul.federation import claims
from midhaul.kit import Kit
from midhaul.message import Op
from midhaul.plant import Engine, build
from midhaul.runtime.firmware import Firmware
from midhaul.runtime.gateway import Gateway
from midhaul.runtime.parcel import Models
from midhaul.runtime.stream import Gateways

pytest.importorskip("grpc", reason="gRPC isn't installed; `pip install midhaul[federation]` brings it")

TOKEN = "a token of this run alone"
SMALL: dict[str, Any] = {
    "data_num_devices": 4, "data_max_rows": 10, "data_test": "shared", "data_public": 0.1,
    "tiny_options": {"hidden": [8]}, "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1},
    "large_epochs": 1, "scheme_distill_epochs": 1, "scheme_lr": 0.1, "scheme_momentum": 0.5, "run_rounds": 2,
    "fleet_deadline_s": 20.0,
}  # fmt: skip


class Site:
    """Two gateways in threads of this process, that join when a run listens."""

    def __init__(self, config: Config, num: int = 2) -> None:
        self.config, self.num = config, num
        self.gateways: list[Gateway] = []
        self.threads: list[threading.Thread] = []
        self.errors: list[Exception] = []
        self.server: Gateways | None = None
        self.own: dict[str, dict[str, Any]] = {}  # a gateway's own settings, by its name

    def opened(self, server: Gateways) -> None:
        self.server = server
        for place in range(1, self.num + 1 if not self.gateways else 1):
            self.join(f"gateway {place}", f"{place}/{self.num}")

    def reach(self, kit: Kit, simulated: Engine) -> Gateways:
        fleet = kit.config.fleet
        self.server = Gateways(
            kit.groups,
            simulated.population,
            token=TOKEN,
            address=self.server.address if self.server is not None else "127.0.0.1:0",
            deadline_s=fleet.deadline_s,
            quorum=fleet.quorum,
            wait_s=20.0,
            simulated=simulated,
        )
        self.server.opened = self.opened
        return self.server

    def join(self, name: str, share: str) -> Gateway:
        assert self.server is not None
        config = self.config.replace(**self.own.get(name, {}))
        plant = build(config, members=lambda federation: claims.members(federation, share=share))
        models = Models.of(plant.kit.groups)
        own = {"address": self.server.address, "token": TOKEN, "name": name, "after": plant.after}
        gateway = Gateway(plant.engine, models, **own)
        self.gateways.append(gateway)
        self.threads.append(threading.Thread(target=self._serve, args=(gateway,), daemon=True))
        self.threads[-1].start()
        return gateway

    def _serve(self, gateway: Gateway) -> None:
        try:
            gateway.run()
        except Exception as error:
            self.errors.append(error)

    def end(self) -> None:
        for gateway in self.gateways:
            gateway.close()
        for thread in self.threads:
            thread.join(10.0)
            assert not thread.is_alive()
        for gateway in self.gateways:
            if isinstance(gateway.engine, Firmware):
                gateway.engine.close()


@contextmanager
def site(config: Config, num: int = 2) -> Iterator[Site]:
    made = Site(config, num)
    try:
        yield made
    finally:
        made.end()


def config(scheme: str, **changes: Any) -> Config:
    return Config().replace(**{**SMALL, "scheme_name": scheme, **changes})


def federated(made: Site, out: Path | None = None, **options: Any) -> train.Result:
    try:
        return train.run(made.config.replace(run_engine="gateways"), out, reach=made.reach, **options)
    finally:
        if made.errors:
            raise made.errors[0]


@pytest.mark.parametrize("scheme", ["fedavg", "federated_transfer", "federated_split"])
def test_a_federation_gives_what_stacked_gives(scheme: str) -> None:
    wanted = train.run(config(scheme))
    with site(config(scheme)) as made:
        found = federated(made)
    assert not made.errors
    for part in ("tree", "large"):
        assert tree.largest_difference(getattr(found.server, part), getattr(wanted.server, part)) <= 1e-6
    for name in ("accuracy", "uplink_bytes", "downlink_bytes", "absent"):
        assert found.summary[name] == wanted.summary[name]
    assert found.summary["loss"] == pytest.approx(wanted.summary["loss"], abs=1e-6)
    assert [row["refused"] for row in found.summary["gateways"]] == [{}, {}]


def test_a_killed_server_goes_on_to_the_same_bits_with_the_gateways_that_were_there(tmp_path: Path) -> None:
    class Killed(BaseException):
        """What no handler of a run catches."""

    settings = config("federated_transfer", scheme_lr=0.05, run_rounds=4)
    with site(settings) as made:
        wanted = federated(made, tmp_path / "whole").summary["model_sha256"]
    with site(settings) as made:
        exchange, asked = Gateways.exchange_parts, 0

        def dying(self: Gateways, parts: Any, *, key: Any) -> Any:
            nonlocal asked
            asked += key.round == 3
            if asked == 1:
                asked += 1
                self.door._server.stop(None).wait()  # gone without a word, as by a signal
                self.door._server = None
                raise Killed
            return exchange(self, parts, key=key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gateways, "exchange_parts", dying)
            with pytest.raises(Killed):
                federated(made, tmp_path / "cut")
            assert all(thread.is_alive() for thread in made.threads)
            found = federated(made, tmp_path / "cut", resume=True)
        assert len(made.threads) == 2
    assert [gateway.connections for gateway in made.gateways] == [2, 2]
    assert found.summary["model_sha256"] == wanted
    again = train.run(settings, tmp_path / "stacked")
    assert tree.largest_difference(found.server.tree, again.server.tree) <= 1e-6


def test_a_federation_is_resumed_as_a_simulation(tmp_path: Path) -> None:
    settings = config("federated_split", run_rounds=3)
    wanted = train.run(settings, tmp_path / "whole")
    with site(settings) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(train._Run, "_is_enough", lambda self: self.done == 2)
        federated(made, tmp_path / "run")
    found = train.run(settings, tmp_path / "run", resume=True)
    assert found.summary["rounds"] == 3
    assert tree.largest_difference(found.server.tree, wanted.server.tree) <= 1e-6


def test_a_round_below_its_quorum_leaves_the_runs_bits_as_they_are() -> None:
    settings = config("federated_split", fleet_quorum=0.9, fleet_deadline_s=1.5)
    wanted = train.run(settings)
    with site(settings) as made:
        lines: list[str] = []
        exchange, slept = Gateway._exchange, []

        def slow(self: Gateway, ask: Any) -> Any:
            if ask.message.op == Op.BACKWARD and ask.key.round == 2 and self.name == "gateway 1" and not slept:
                slept.append(time.sleep(2.0))
            return exchange(self, ask)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gateway, "_exchange", slow)
            found = federated(made, tell=lines.append)
    assert [line for line in lines if "it is repeated" in line]
    assert found.summary["refused_from_gateways"] == {"late": 1}
    assert found.summary["uplink_bytes"] > wanted.summary["uplink_bytes"]
    assert tree.largest_difference(found.server.tree, wanted.server.tree) <= 1e-6
    assert tree.largest_difference(found.server.large, wanted.server.large) <= 1e-6


@pytest.mark.parametrize("scheme", ["heterofl", "fedbabu", "split", "fedkseed", "fedavg"])
def test_other_messages_pass_too(scheme: str) -> None:
    changes = {
        "fedkseed": {"scheme_num_seeds": 64, "scheme_momentum": 0.0, "scheme_lr": 0.02},
        "fedavg": {"data_drift_round": 2, "data_drift_devices": 0.5},
    }.get(scheme, {})
    settings = config(scheme, data_test="device", run_rounds=2, **changes)
    wanted = train.run(settings)
    with site(settings) as made:
        found = federated(made)
    assert tree.largest_difference(found.server.tree, wanted.server.tree) <= 1e-6
    assert found.summary["accuracy"] == wanted.summary["accuracy"]
    assert not found.summary["refused_from_gateways"]


def test_devices_with_firmware_and_simulated_ones_are_one_federation() -> None:
    settings = config("fedavg", run_rounds=2)
    wanted = train.run(settings)
    with site(settings) as made:
        made.own = {"gateway 1": {"run_engine": "firmware", "run_devices": "host:*2"}}
        found = federated(made)
        assert isinstance(made.gateways[0].engine, Firmware)
    assert {event["device"] for event in found.summary["device_events"]} == {0, 2}
    assert [row["device"] for row in found.summary["device_stats"]] == [0, 2]
    assert set(found.summary["kernels"]) >= {"FIT", "EVALUATE"}
    assert tree.largest_difference(found.server.tree, wanted.server.tree) <= 1e-5
