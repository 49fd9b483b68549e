"""How a run looks to its operator: lines that fit a terminal, whatever the run is at."""

from __future__ import annotations

from typing import Any

from midhaul import terminal
from midhaul.config import Config
from midhaul.federation import status
from midhaul.federation.serve import Standing
from midhaul.sentences import Sentence


def told(**changes: Any) -> dict[str, Any]:
    made = Standing(Config())
    made.hear(Sentence("all are here", "everybody"))
    made.hear(Sentence("it begins", "start", round=0, accuracy=None))
    figures = {"accuracy": 0.8125, "large_accuracy": 0.9, "train_loss": 0.5, "device_joules": 3.0}
    for number in range(1, 6):
        made.hear(
            Sentence(
                "a round",
                "round",
                round=number,
                seconds=float(number),
                uplink_bytes=2048,
                downlink_bytes=4096,
                **figures,
            )
        )
    made.hear(Sentence("kept", "checkpoint"))
    return {**made.to_table(), "seconds": 75.0, **changes}


def test_the_lines_above_the_table() -> None:
    first, second, third = status.heading(told())
    assert first == "fedavg on digits: training, for 1m15s"
    assert second == "round 5 of 20 [#######------------------------] 25 %, 3.0 s a round, 45.0 s left"
    assert len(second) == 80
    assert third.startswith("accuracy 81.2 %, large model 90.0 %, 2.0 KiB up, 4.0 KiB down, 3.0 J, checkpoint ")
    assert third.endswith(" ago")


def test_before_the_first_round_there_is_no_rate() -> None:
    made = Standing(Config())
    made.hear(Sentence("come", "listening"))
    first, second = status.heading(made.to_table())
    assert first.startswith("fedavg on digits: waiting, for ")
    assert second == f"round 0 of 20 [{'-' * 60}] 0 %"


def test_the_last_rounds_say_how_long_one_takes() -> None:
    made = Standing(Config())
    for number in range(1, 13):
        made.hear(Sentence("a round", "round", round=number, seconds=100.0 if number < 3 else 2.0))
    table = made.to_table()
    assert (table["round_seconds"], table["seconds_left"]) == (2.0, 16.0)
    made.hear(Sentence("it is over", "end"))
    assert made.to_table()["phase"] == "done"
    assert "left" not in status.heading(made.to_table())[1]


def test_a_table_of_gateways_fits() -> None:
    gateways = [
        {
            "name": name, "devices": list(range(15)), "is_connected": here, "is_busy": busy, "is_late": busy,
            "answers": 1234, "reconnections": 2, "bytes_up": 10**9, "bytes_down": 10**6,
            "refused": {"late": 1, "stale": 2},
            "address": "ipv4:10.0.0.17:51820" if here else "",
        }
        for name, here, busy in (("north", True, False), ("south", False, False), ("north-east", True, True))
    ]  # fmt: skip
    rows = status.rows(told(gateways=gateways))
    assert [row[2] for row in rows] == ["here", "away", "late"]
    assert [row[-1] for row in rows] == ["10.0.0.17", "-", "10.0.0.17"]
    assert all(len(line) <= 80 for line in terminal.table(status.COLUMNS, rows).splitlines())
    assert status.sentences(told(missing=[3, 4, 5], refused={"late": 2})) == [
        "nobody holds the devices 3-5",
        "refused: 2 late",
    ]
