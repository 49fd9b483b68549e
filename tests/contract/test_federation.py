"""Devices behind gateways: what `stacked` gives, whatever happens to the streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from midhaul import train, tree
from midhaul.config import Config
from midhaul.federation import claims
from midhaul.kit import Kit
from midhaul.plant import Engine, Plant, build
from midhaul.runtime.gateway import Gateway
from midhaul.runtime.parcel import Models
from midhaul.runtime.stream import Gateways

pytest.importorskip("grpc", reason="gRPC isn't installed; `pip install midhaul[federation]` brings it")

TOKEN = "a token of this run alone"
SMALL: dict[str, Any] = {
    "data_num_devices": 5, "data_max_rows": 20, "data_test": "shared", "data_public": 0.1,
    "tiny_options": {"hidden": [8]}, "large_model": "mlp_large", "large_options": {"hidden": 16, "depth": 1},
    "large_epochs": 1, "scheme_distill_epochs": 1, "scheme_lr": 0.1, "scheme_momentum": 0.5, "run_rounds": 3,
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
        self.address: Callable[[Gateways], str] = lambda server: server.address
        self.made: Callable[[Gateway, Plant], None] = lambda gateway, plant: None

    def opened(self, server: Gateways) -> None:
        self.server = server
        for place in range(1, self.num + 1):
            self.join(f"gateway {place}", f"{place}/{self.num}")

    def reach(self, kit: Kit, simulated: Engine) -> Gateways:
        fleet = kit.config.fleet
        self.server = Gateways(
            kit.groups,
            simulated.population,
            token=TOKEN,
            deadline_s=fleet.deadline_s,
            quorum=fleet.quorum,
            wait_s=20.0,
            simulated=simulated,
        )
        self.server.opened = self.opened
        return self.server

    def join(self, name: str, share: str) -> Gateway:
        assert self.server is not None
        plant = build(self.config, members=lambda federation: claims.members(federation, share=share))
        models = Models.of(plant.kit.groups)
        gateway = Gateway(plant.engine, models, address=self.address(self.server), token=TOKEN, name=name)
        self.made(gateway, plant)
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
