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
PHASES = ("starting", "waiting", "training", "done")
# Names by Prometheus' conventions: base units, and the library adds _total to counters.
GAUGES = {
    "midhaul_round": "round",
    "midhaul_rounds": "rounds",
    "midhaul_accuracy_ratio": "accuracy",
    "midhaul_large_accuracy_ratio": "large_accuracy",
    "midhaul_train_loss": "train_loss",
    "midhaul_round_duration_seconds": "round_seconds",
    "midhaul_remaining_seconds": "seconds_left",
    "midhaul_start_time_seconds": "began_s",
    "midhaul_checkpoint_time_seconds": "checkpoint_s",
    "midhaul_missing_devices": "missing",
}
COUNTERS = {
    "midhaul_uplink_bytes": "uplink_bytes",
    "midhaul_downlink_bytes": "downlink_bytes",
    "midhaul_device_joules": "device_joules",
}
GATEWAY_GAUGES = {
    "midhaul_gateway_up": "is_connected",
    "midhaul_gateway_late": "is_late",
    "midhaul_gateway_devices": "devices",
}
GATEWAY_COUNTERS = {
    "midhaul_gateway_answers": "answers",
    "midhaul_gateway_reconnections": "reconnections",
    "midhaul_gateway_received_bytes": "bytes_up",
    "midhaul_gateway_sent_bytes": "bytes_down",
}
HELP = {
    "midhaul_run": "What is run",
    "midhaul_run_phase": "How far the run is",
    "midhaul_round": "Rounds that have ended",
    "midhaul_rounds": "Rounds of the run",
    "midhaul_accuracy_ratio": "Accuracy on the test rows at the last evaluation, from 0 to 1",
    "midhaul_large_accuracy_ratio": "That of the large model by itself",
    "midhaul_train_loss": "Mean loss of the last round's training",
    "midhaul_round_duration_seconds": "What a round took, mean of the last ten",
    "midhaul_remaining_seconds": "What the other rounds then take",
    "midhaul_start_time_seconds": "When the server started, since 1970",
    "midhaul_checkpoint_time_seconds": "When the last checkpoint was written, since 1970",
    "midhaul_missing_devices": "Devices that no gateway holds",
    "midhaul_uplink_bytes": "Bytes of the run's frames from devices",
    "midhaul_downlink_bytes": "Bytes of the run's frames to devices",
    "midhaul_device_joules": "Energy that all devices spent",
    "midhaul_refused": "What was refused, by kind",
    "midhaul_gateway_up": "Whether the gateway is there",
    "midhaul_gateway_late": "Whether it is still at work on what nobody waits for any more",
    "midhaul_gateway_devices": "Devices that it holds",
    "midhaul_gateway_answers": "Answers of the gateway",
    "midhaul_gateway_reconnections": "Times that its stream was cut and came back",
    "midhaul_gateway_received_bytes": "Bytes from the gateway",
    "midhaul_gateway_sent_bytes": "Bytes to the gateway",
}


class _Collector:
    """Gives the figures of the moment, each time that a monitor asks."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def collect(self) -> Iterator[Any]:
        core, told = import_module("prometheus_client.core"), self.status()
        run = {name: told[name] for name in ("scheme", "data", "version")}
        yield _family(core.InfoMetricFamily, "midhaul_run", run)
        phases = {phase: phase == told["phase"] for phase in PHASES}
        yield _family(core.StateSetMetricFamily, "midhaul_run_phase", phases)
        for name, key in (*GAUGES.items(), *COUNTERS.items()):
            if told[key] is not None:
                kind = core.GaugeMetricFamily if name in GAUGES else core.CounterMetricFamily
                value = len(told[key]) if key == "missing" else told[key]
                yield _family(kind, name, float(value))
        refused = core.CounterMetricFamily("midhaul_refused", HELP["midhaul_refused"], labels=["kind"])
        for what, num in told["refused"].items():
            refused.add_metric([what], num)
        yield refused
        for name, key in (*GATEWAY_GAUGES.items(), *GATEWAY_COUNTERS.items()):
            kind = core.GaugeMetricFamily if name in GATEWAY_GAUGES else core.CounterMetricFamily
            found = kind(name, HELP[name], labels=["gateway"])
            for gateway in told["gateways"]:
                value = len(gateway[key]) if key == "devices" else gateway[key]
                found.add_metric([gateway["name"]], float(value))
            yield found


def _family(kind: Any, name: str, value: Any) -> Any:
    return kind(name, HELP[name], value=value)


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
