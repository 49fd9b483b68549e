"""What a server tells Prometheus: the figures of `midhaul status` in the text format that monitors read.

Source: the Prometheus exposition format, version 0.0.4, which `prometheus_client` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from midhaul.errors import ConfigError, DependencyError
from midhaul.federation import desk

Status = Callable[[], dict[str, Any]]


class _Collector:
    """Gives the figures of the moment, each time that a monitor asks."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def collect(self) -> Iterator[Any]:
        core = import_module("prometheus_client.core")
        told = self.status()
        for name, what in (
            ("round", "Rounds that have ended"),
            ("rounds", "Rounds of the run"),
            ("accuracy", "Accuracy on the test rows at the last evaluation"),
            ("train_loss", "Mean loss of the last round's training"),
            ("round_seconds", "Seconds that the last round took"),
        ):
            if told[name] is not None:
                yield core.GaugeMetricFamily(f"midhaul_{name}", what, value=float(told[name]))
        yield core.GaugeMetricFamily("midhaul_missing_devices", "Devices that no gateway holds", len(told["missing"]))
        for name, what in (("uplink_bytes", "from devices"), ("downlink_bytes", "to devices")):
            yield core.CounterMetricFamily(f"midhaul_{name}", f"Bytes of the run's frames {what}", told[name])
        refused = core.CounterMetricFamily("midhaul_refused", "What was refused, by kind", labels=["kind"])
        for kind, num in told["refused"].items():
            refused.add_metric([kind], num)
        yield refused
        each = [
            ("connected", "Whether the gateway is there", core.GaugeMetricFamily, "is_connected"),
            ("answers", "Answers of the gateway", core.CounterMetricFamily, "answers"),
            ("reconnections", "Times that the gateway came back", core.CounterMetricFamily, "reconnections"),
            ("bytes_up", "Bytes from the gateway", core.CounterMetricFamily, "bytes_up"),
            ("bytes_down", "Bytes to the gateway", core.CounterMetricFamily, "bytes_down"),
        ]
        for name, what, family, key in each:
            found = family(f"midhaul_gateway_{name}", what, labels=["gateway"])
            for gateway in told["gateways"]:
                found.add_metric([gateway["name"]], float(gateway[key]))
            yield found


def start(address: str, status: Status) -> Callable[[], None]:
    """Serves the figures at http://ADDRESS/metrics, PORT alone being on loopback; gives what ends it.

    Raises: DependencyError without the library; ConfigError for an address that can't be listened at.
    """
    try:
        library = import_module("prometheus_client")
        registry = import_module("prometheus_client.registry").CollectorRegistry(auto_describe=False)
    except ImportError:
        raise DependencyError("--metrics wants prometheus-client; install midhaul[federation]") from None
    host, port = desk.parse(f"127.0.0.1:{address}" if address.isdigit() else address)
    registry.register(_Collector(status))
    try:
        server, thread = library.start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"--metrics {address} can't be listened at ({error.strerror}); choose another port") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
