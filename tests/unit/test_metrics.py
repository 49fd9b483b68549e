"""What Prometheus is told: names and types as its conventions have them, each documented."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from midhaul.config import Config
from midhaul.federation import metrics
from midhaul.federation.serve import Standing
from midhaul.sentences import Sentence

pytest.importorskip("prometheus_client", reason="--metrics wants prometheus-client (midhaul[federation])")
UNITS = ("seconds", "bytes", "joules", "ratio", "total", "info")
PLAIN = (
    "round",
    "rounds",
    "train_loss",
    "missing_devices",
    "gateway_up",
    "gateway_late",
    "gateway_devices",
    "run_phase",
)


def standing() -> dict[str, Any]:
    made = Standing(Config())
    facts = {"accuracy": 0.5, "large_accuracy": None, "train_loss": 1.25, "uplink_bytes": 3, "downlink_bytes": 4}
    made.hear(Sentence("a round", "round", round=7, seconds=2.0, device_joules=0.5, **facts))
    made.hear(Sentence("kept", "checkpoint", round=7))
    gateway = {
        "name": 'no"rth', "devices": [0, 1], "is_connected": True, "is_late": False, "answers": 9, "reconnections": 1,
        "bytes_up": 10, "bytes_down": 20, "address": "", "refused": {},
    }  # fmt: skip
    return {**made.to_table(), "gateways": [gateway], "refused": {"late": 2}, "missing": [5]}


@pytest.fixture
def page() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    stop = metrics.start(str(port), standing)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())
    finally:
        stop()


def test_every_name_has_help_type_and_unit_and_is_documented(page: str) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", page, re.M))
    names = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if not line.startswith("#")}
    assert types.keys() == helps.keys() == names
    assert {name.removesuffix("_total").removesuffix("_info") for name in names} == metrics.HELP.keys() - {
        "midhaul_large_accuracy_ratio"  # what isn't known isn't told
    }
    for name in names:
        assert (types[name] == "counter") == name.endswith("_total"), name
        assert name.endswith(UNITS) or name.removeprefix("midhaul_") in PLAIN, name
        assert f"`{name}`" in docs, name
    assert "`midhaul_large_accuracy_ratio`" in docs


def test_the_figures_are_those_of_the_run(page: str) -> None:
    for line in (
        "midhaul_round 7.0",
        "midhaul_accuracy_ratio 0.5",
        "midhaul_round_duration_seconds 2.0",
        "midhaul_remaining_seconds 26.0",
        "midhaul_uplink_bytes_total 3.0",
        "midhaul_device_joules_total 0.5",
        "midhaul_missing_devices 1.0",
        'midhaul_refused_total{kind="late"} 2.0',
        'midhaul_run_phase{midhaul_run_phase="training"} 1.0',
        'midhaul_run_phase{midhaul_run_phase="done"} 0.0',
        'midhaul_gateway_up{gateway="no\\"rth"} 1.0',
        'midhaul_gateway_devices{gateway="no\\"rth"} 2.0',
        'midhaul_gateway_received_bytes_total{gateway="no\\"rth"} 10.0',
    ):
        assert f"{line}\n" in page, line
