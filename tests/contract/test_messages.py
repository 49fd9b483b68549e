"""A fleet over single messages: what `stacked` gives, by a courier in this process; and Flower's own, where it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from midhaul import config as settings
from midhaul import rng, train, tree
from midhaul.cli import main
from midhaul.config import Config
from midhaul.errors import EngineError, MidhaulError
from midhaul.federation import flower, join, messages, project
from midhaul.federation.join import Share
from midhaul.federation.messages import Content, Messages
from midhaul.plant import Plant, build

pytest.importorskip("grpc", reason="gateways speak gRPC (midhaul[federation])")
SMALL = Config().replace(
    data_partition="dirichlet", data_num_devices=4, data_max_rows=60, data_public=0.2, data_test="device",
    tiny_options={"hidden": [16]}, large_model="mlp_large", large_epochs=2, large_options={"hidden": 16, "depth": 4},
    scheme_lr=0.1, scheme_momentum=0.5, scheme_distill_epochs=2, run_rounds=3,
)  # fmt: skip


class Post:
    """Carries messages to nodes that forget everything between two of them; some don't come through."""

    def __init__(self, shares: Mapping[int, Share], lost: tuple[int, ...] = ()) -> None:
        self.shares, self.lost, self.num = shares, lost, 0
        self.built: dict[int, Plant] = {}

    def nodes(self) -> list[int]:
        return list(self.shares)

    def carry(self, contents: Mapping[int, Content]) -> dict[int, Content]:
        found: dict[int, Content] = {}
        for node, content in contents.items():
            self.num += 1
            if self.num in self.lost:
                continue
            if node not in self.built:
                self.built[node] = join.build(str(content["config"]), self.shares[node])
            self.built[node].engine.restore({})
            try:
                found[node] = messages.answer(self.built[node], content)
            except MidhaulError as error:
                found[node] = {"error": str(error)}
        return found


def over(post: Post, config: Config, told: list[str] | None = None) -> train.Result:
    text = settings.to_toml(config)

    def reach(kit: Any, simulated: Any) -> Messages:
        tell = (told if told is not None else []).append
        fleet = Messages(kit.groups, simulated.population, post, text, simulated=simulated, tell=tell)
        fleet.meet()
        return fleet

    return train.run(config.replace(run_engine="gateways"), reach=reach)


HALVES = {7: Share(share="1/2"), 9: Share(share="2/2")}


@pytest.mark.parametrize("scheme", ["fedavg", "federated_transfer", "fedrep", "heterofl"])
def test_messages_alone_come_to_the_numbers_of_one_computer(scheme: str) -> None:
    config = SMALL.replace(scheme_name=scheme, scheme_width_mix="1,0.5" if scheme == "heterofl" else "")
    found, wanted = over(Post(HALVES), config), train.run(config)
    assert tree.largest_difference(found.server.tree, wanted.server.tree) < 1e-6
    for name in ("accuracy", "uplink_bytes", "device_joules"):
        assert found.summary[name] == pytest.approx(wanted.summary[name], abs=1e-6)


def test_a_lost_message_is_a_round_without_these_devices() -> None:
    config = SMALL.replace(scheme_name="fedavg", run_rounds=1)
    found = over(Post(HALVES, lost=(3,)), config)  # two hellos, then the first FIT
    built = build(config)
    key, whole = rng.Key(config.run.seed, 1, rng.SERVER, 0), built.kit.program.initial
    up = built.engine.exchange(built.kit.fit(whole, train="whole", send="whole"), key=key, devices=[1, 3])
    assert tree.largest_difference(found.server.tree, tree.weighted_mean(up.tree, up.weight)) < 1e-6


@pytest.mark.parametrize(
    ("scheme", "shares", "word"),
    [
        ("split", HALVES, "would take a process for each batch"),
        ("pooled", HALVES, "no node answered READ"),
        ("fedavg", {1: Share(), 2: Share(share="1/4")}, "both claim device 0"),
        ("fedavg", {1: Share(changes=("data.max_rows=50",))}, "has other data"),
        ("fedavg", {1: Share(changes=("tiny.options={hidden=[8]}",))}, "another model"),
    ],
)
def test_what_can_not_be_is_refused(scheme: str, shares: dict[int, Share], word: str) -> None:
    with pytest.raises(EngineError, match=word):
        over(Post(shares), SMALL.replace(scheme_name=scheme))


@pytest.mark.parametrize(
    "said", ["no", "[]", '{"rows": {}, "version": "1"}', '{"rows": [1], "version": "1", "model": ""}']
)
def test_a_hello_that_can_not_be_read_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "answer", lambda *given, **more: {"hello": said})
    with pytest.raises(EngineError, match="node 7 says what can't be read"):
        over(Post(HALVES), SMALL.replace(scheme_name="fedavg"))


def test_who_comes_back_to_a_run_over_messages_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "POLL_S", 0.0)
    post, away = Post(HALVES, lost=(2,)), list[int]()

    def nodes() -> list[int]:
        if post.num == 2 and not away:  # 9 was asked, and hasn't answered: it is started anew
            away.append(9)
            return [7]
        return [7, 9]

    monkeypatch.setattr(post, "nodes", nodes)
    built, told = build(SMALL.replace(scheme_name="fedavg")), list[str]()
    fleet = Messages(built.kit.groups, built.engine.population, post, settings.to_toml(SMALL), tell=told.append)
    flower._meet(fleet, post, 0, 10.0, told.append)
    assert away == [9]
    assert not fleet.missing()


def test_a_project_for_flower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "project"
    config.write_text(settings.to_toml(SMALL))
    words = ["export", "--flower", str(config), "--out", str(out), "--set", "scheme.name=fedrep"]
    assert main([*words, "--transport", "messages"]) == 0
    assert "flwr run" in capsys.readouterr().out
    made = tomllib.loads((out / "pyproject.toml").read_text())
    assert made["tool"]["flwr"]["app"]["components"]["serverapp"] == "midhaul_run.server:app"
    assert made["tool"]["flwr"]["app"]["config"]["transport"] == "messages"
    assert not any(name.startswith("torch") for name in made["project"]["dependencies"])
    assert settings.read(out / "midhaul_run" / "run.toml").scheme.name == "fedrep"
    assert main(words) == 0  # again, over the same
    assert main([*words, "--transport", "pigeon"]) == 2
    assert main(["export", "cnn1d", "--transport", "messages"]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert main([*words[:3], "--out", str(tmp_path / "full")]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_flower_builds_the_project(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="Flower isn't installed (midhaul[flower])")
    project.write(SMALL, tmp_path / "project")
    code = "from flwr.cli.app import app; app()"
    command = [sys.executable, "-c", code, "build", "--app", str(tmp_path / "project")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ".fab" in built.stdout
    assert list(tmp_path.rglob("*.fab"))
