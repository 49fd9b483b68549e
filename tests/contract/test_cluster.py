"""The engine over Ray: what `stacked` gives, whoever did the work and whoever died of it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midhaul import cli, rng, train, tree
from midhaul.config import Config
from midhaul.errors import ConfigError, DependencyError, EngineError
from midhaul.kit import Kit
from midhaul.message import Message, Op, Replies
from midhaul.program import Population, Program
from midhaul.report import prose
from midhaul.report.runs import read_run
from midhaul.runtime import cluster, lent
from midhaul.runtime import workers as processes
from midhaul.runtime.cluster import Cluster
from midhaul.runtime.groups import Groups
from midhaul.runtime.lent import Arrays, Done
from midhaul.runtime.native import library
from midhaul.runtime.stacked import Job, Stacked
from midhaul.runtime.workers import Workers
from midhaul.schemes import SCHEMES
from midhaul.server import Server
from midhaul.tree import Tree

sys.path.insert(0, str(Path(__file__).parent))
from fleet_of_three import FEATURES, Tiny, setting

ray = pytest.importorskip("ray", reason="Ray isn't installed; `pip install midhaul[cluster]` brings it")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SMALL: dict[str, Any] = {
    "data_num_devices": 4, "data_max_rows": 20, "data_test": "shared", "tiny_options": {"hidden": [8]},
    "scheme_lr": 0.1, "run_rounds": 2, "run_engine": "cluster", "run_workers": 2,
}  # fmt: skip


class Cut(Stacked):
    """`Stacked` with the chunks that two workers are given, which may be padded otherwise than all at once."""

    def jobs(self, message: Message, asked: list[int], key: rng.Key, num: int = 1) -> list[Job]:
        return super().jobs(message, asked, key, 2 * cluster.CHUNKS_A_WORKER)


class Here(Workers):
    """Workers that are this process: the order and what comes back, without Ray between."""

    def __init__(self) -> None:
        self.num, self.repeated, self.ray = 2, 0, Store()
        self._refs = {}

    def open(self) -> None:
        pass

    def do(self, orders: Any, tree: Arrays) -> list[Done]:
        done = []
        for order in reversed(orders):  # the last is the first to be done
            home, x, y = (ref.thing for ref in (order.home[0], *order.rows))
            done.append(lent.work(*home.open(x, y), order.base[0].thing, order, tree))
        return done


class Leaving(Here):
    """Two workers on two machines, one of which goes away when the first chunk is done."""

    def __init__(self) -> None:
        super().__init__()
        self.retries, self.told, self.asked = 1, list[str](), list[int]()
        self.tell = self.told.append
        self.actors = []

    def do(self, orders: Any, tree: Arrays) -> list[Done]:
        return Workers.do(self, orders, tree)

    def _deal(self, orders: Any, shared: Any, done: list[Done]) -> None:
        self.asked.append(len(orders))
        first = len(self.asked) == 1
        done += Here.do(self, orders[:1] if first else orders, shared.thing)
        if first:
            raise processes._Gone

    def _room(self) -> int:
        return 1

    def _start(self) -> None:
        pass


class Store:
    def put(self, thing: Any) -> Any:
        return type("Reference", (), {"thing": thing})()


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two workers on a Ray that takes itself to have eight cores, for all tests of this file."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ.update(processes.QUIET)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    made = Workers(2, retries=1)
    made.open()
    yield made
    made.close()
    ray.shutdown()


def fleet(workers: Workers | None, kit: Kit, program: Program, population: Population) -> Stacked | Cluster | Groups:
    def build(program: Program, population: Population) -> Stacked | Cluster:
        return Cut(program, population) if workers is None else Cluster(program, population, workers)

    if len({id(group.program) for group in kit.groups}) > 1:
        return Groups(kit.groups, population, build)
    return build(kit.groups[0].program, population)


def trained(name: str, workers: Workers | None, rounds: int = 2) -> tuple[Server, Tree, Replies]:
    scheme = SCHEMES[name]
    kit, program, population = setting(scheme)
    on = fleet(workers, kit, program, population)
    server = scheme.init(on, kit, rng.Key(0, 0, rng.SERVER, 0))
    for number in range(1, rounds + 1):
        server, _ = scheme.round(server, on, kit, rng.Key(0, number, rng.SERVER, 0))
    return server, on.dump(), scheme.evaluate(server, on, kit, rng.Key(0, rounds, rng.SERVER, 0))


def same(one: tuple[Server, Tree, Replies], other: tuple[Server, Tree, Replies]) -> None:
    """To the bit: what travels changes nothing."""
    for part in ("tree", "large", "state"):
        assert tree.sha256(flat(getattr(one[0], part))) == tree.sha256(flat(getattr(other[0], part)))
    assert tree.sha256(one[1]) == tree.sha256(other[1])
    assert one[2].devices == other[2].devices
    assert tree.sha256(one[2].metrics) == tree.sha256(other[2].metrics)


def flat(whole: dict[str, Any]) -> Tree:
    return {
        f"{n}/{m}": v for n, part in whole.items() for m, v in (part if isinstance(part, dict) else {"": part}).items()
    }


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if "cluster" in scheme.engines])
def test_a_chunk_takes_along_what_it_needs_and_brings_back_what_is_kept(name: str) -> None:
    same(trained(name, None), trained(name, Here()))


def test_what_computed_an_op_in_a_worker_is_known_where_the_run_is_told_of() -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    told = []
    for kernels in ("auto", "torch"):
        for on in (Stacked(program, population, 10**9, kernels), Cluster(program, population, Here(), 10**9, kernels)):
            on.exchange(kit.fit(program.initial, train="whole", send="whole"), key=rng.Key(0, 1, rng.SERVER, 0))
            told.append(on.kernels.told())
    assert told[:2] == [{"FIT": "torch: " + missing if (missing := library.missing()) else "native"}] * 2
    assert told[2:] == [{"FIT": "torch: run.kernels is torch"}] * 2


def test_every_scheme_that_runs_stacked_runs_on_a_cluster() -> None:
    assert [s.name for s in SCHEMES.values() if ("stacked" in s.engines) != ("cluster" in s.engines)] == []


# FIT; momentum and a batch in flight; a tail; unlike models; an inner loop and ADAPT; seeds; logits; own tensors;
# products that are absorbed.
SAMPLE = ("fedavg", "federated_split", "split_u", "heterofl", "maml", "fedkseed", "feddf", "fedrep", "flexlora")


@pytest.mark.parametrize("name", SAMPLE)
def test_two_workers_give_the_bits_of_one_process(name: str, workers: Workers) -> None:
    same(trained(name, None), trained(name, workers))


def test_devices_that_are_tested_on_the_same_rows_are_sent_them_once() -> None:
    _, program, population = setting(SCHEMES["local"])
    on = Cut(program, population)
    on.exchange(Message(Op.LOAD, program.initial), key=rng.Key(0, 0, rng.SERVER, 0))
    (job,) = Stacked.jobs(on, Message(Op.EVALUATE, settings={"rows": "test"}), [0, 1, 2], rng.Key(0, 1, rng.SERVER, 0))
    order = lent.Order.of(job, on, [], [], [])
    assert (len(order.places), order.whose) == (33, [0, 0, 0])  # 20 and 13 rows of the two new devices
    again = order.job({})
    assert again.rows[0] is again.rows[2]
    assert again.rows[0].tolist() == job.rows[0].tolist()


def test_rows_that_are_bytes_travel_as_bytes() -> None:
    """Two levels, 0 and 1 standing for -1.5 and 2.0."""
    _, program, population = setting(SCHEMES["fedavg"])
    coded = replace(population, x=(population.x > 0).byte(), levels=torch.tensor([-1.5, 2.0]))
    home = lent.Home.of(Stacked(program, coded))
    kernels, there = home.open(lent.array(coded.x), lent.array(coded.y))
    assert there.x.dtype == torch.uint8
    assert torch.equal(there.inputs(torch.arange(9)), coded.inputs(torch.arange(9)))
    assert [rows.tolist() for rows in there.train] == [rows.tolist() for rows in population.train]
    assert kernels.program.initial.keys() == program.initial.keys()


class Mortal(Tiny):
    """A model that kills any process but its first, once for each mark that isn't there yet."""

    def __init__(self, marks: list[str]) -> None:
        super().__init__()
        self.marks, self.home = marks, os.getpid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for mark in self.marks:
            if os.getpid() != self.home and first(mark):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def first(mark: str) -> bool:
    """Makes a file; tells whether it is this process that made it, for two may be at it at once."""
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def mortal(marks: list[str]) -> Program:
    with rng.torch_seed(rng.key(0, 0, 0, rng.Use.INIT)):
        return Program(Mortal(marks), (FEATURES,))


def test_a_worker_that_is_killed_in_mid_round_costs_its_chunk_again_and_no_more(
    workers: Workers, tmp_path: Path
) -> None:
    scheme, told = SCHEMES["local"], list[str]()  # its devices keep all that they learn
    kit, _, population = setting(scheme)
    program, ends, before = mortal([str(tmp_path / "killed")]), [], workers.repeated
    workers.tell = told.append
    for on in (Cut(program, population), Cluster(program, population, workers)):
        server = scheme.init(on, kit, rng.Key(0, 0, rng.SERVER, 0))
        for number in (1, 2):
            server, _ = scheme.round(server, on, kit, rng.Key(0, number, rng.SERVER, 0))
        ends.append(on.dump())
    assert (tmp_path / "killed").exists()
    assert tree.sha256(ends[0]) == tree.sha256(ends[1])
    assert workers.repeated == before + 1
    assert told == ["round 1: a worker died; a chunk of devices was done again"]


class Fatal(dict[str, Any]):
    """Arrays that kill the first process that takes them in, which happens before it begins the chunk."""

    def __init__(self, mark: str, arrays: Arrays) -> None:
        super().__init__(arrays)
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return taken_in, (self.mark, dict(self))


def taken_in(mark: str, arrays: Arrays) -> Arrays:
    if first(mark):
        os.kill(os.getpid(), signal.SIGKILL)
    return arrays


def test_a_chunk_that_no_process_had_begun_is_not_done_again(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, program, population = setting(SCHEMES["fedavg"])
    on, before, told, deal = Cluster(program, population, workers), workers.repeated, list[str](), workers.do
    monkeypatch.setattr(workers, "tell", told.append)
    monkeypatch.setattr(workers, "do", lambda orders, tree: deal(orders, Fatal(str(tmp_path / "killed"), tree)))
    message = kit.fit(program.initial, train="whole", send="whole")
    found = on.exchange(message, key=rng.Key(0, 1, rng.SERVER, 0))
    wanted = Cut(program, population)
    assert tree.sha256(found.tree) == tree.sha256(wanted.exchange(message, key=rng.Key(0, 1, rng.SERVER, 0)).tree)
    assert (tmp_path / "killed").exists()
    assert (workers.repeated, told) == (before, [])


def test_what_devices_remember_outlives_every_worker(workers: Workers) -> None:
    """Between FORWARD and BACKWARD of a split step with momentum, all workers are killed."""
    kit, program, population = setting(SCHEMES["federated_split"])
    ends = []
    for on in (Cut(program, population), Cluster(program, population, workers)):
        on.exchange(Message(Op.LOAD, program.initial), key=rng.Key(0, 0, rng.SERVER, 0))
        for number in (1, 2):
            key = rng.Key(0, number, rng.SERVER, 0)
            up = on.exchange(Message(Op.FORWARD, settings={"rows": "train", "batch": 4, "what": "hy"}), key=key)
            if isinstance(on, Cluster) and number == 2:
                for actor in workers.actors:
                    ray.kill(actor, no_restart=False)
            down = Message(Op.BACKWARD, each={"g": up.tree["h"]}, rows=up.rows, settings=kit.step())
            on.exchange(down, key=key, devices=up.devices)
        ends.append(on.dump())
    assert any(name.startswith("momentum/") for name in ends[1])
    assert tree.sha256(ends[0]) == tree.sha256(ends[1])


def test_a_machine_that_goes_away_costs_what_it_had_in_hand() -> None:
    workers = Leaving()
    same(trained("local", None, rounds=1), trained("local", workers, rounds=1))
    assert workers.asked[:2] == [2, 1]  # the largest device, which was done, and the others
    assert workers.told == ["round 1: a machine went away; going on with 1 of 2 workers"]
    assert (workers.num, workers.repeated) == (1, 1)


def test_a_chunk_that_kills_every_worker_is_given_up(workers: Workers, tmp_path: Path) -> None:
    kit, _, population = setting(SCHEMES["fedavg"])
    program = mortal([str(tmp_path / str(number)) for number in range(8)])
    on = Cluster(program, population, workers)
    with pytest.raises(EngineError, match="a worker died 2 times at the same chunk"):
        on.exchange(
            kit.fit(program.initial, train="whole", send="whole"), key=rng.Key(0, 1, rng.SERVER, 0), devices=[2]
        )


def test_a_run_ends_with_the_same_numbers_and_tells_who_did_it(workers: Workers, tmp_path: Path) -> None:
    """The cluster goes on where another engine was stopped: who does the work is no part of the run."""
    told: list[str] = []
    config = Config().replace(**SMALL)
    stacked = config.replace(run_engine="stacked", run_workers=0)
    whole = train.run(stacked).summary

    def stop(label: str, done: int, total: int) -> None:
        if label == "rounds" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(stacked, tmp_path / "moved", progress=stop)
    moved = train.run(config, tmp_path / "moved", resume=True, tell=told.append).summary
    assert moved["model_sha256"] == whole["model_sha256"]
    assert moved["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert moved["cluster"] == {"workers": 2, "threads": 1, "machines": [socket.gethostname()], "repeated_chunks": 0}
    assert whole["cluster"] is None
    run = read_run(tmp_path / "moved")
    assert prose._engine(run) == "The devices are simulated side by side by 2 workers on one machine (engine cluster)."
    lost = prose._engine(replace(run, workers=(7, 2, 3)))
    assert lost.endswith("7 workers on 2 machines (engine cluster); 3 of their chunks of devices had to be done again.")
    assert "cluster: 2 workers with one core each on this machine" in told


def test_more_workers_than_cores_are_refused(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"room for 8 workers and run\.workers = 9 asks for 9 cores"):
        train.run(Config().replace(**{**SMALL, "run_workers": 9}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ConfigError, match="no machine of the cluster has 64 cores"):
        Workers(0, threads=64).open()


def test_an_address_where_nothing_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Workers(2, "ray://127.0.0.1:1")
    monkeypatch.setattr(lost.ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"can't be reached at ray://127\.0\.0\.1:1 .*refused.*; check run\.address"):
        lost.open()


def test_another_midhaul_on_a_machine_is_refused(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "fingerprint", lambda: "another")
    with pytest.raises(EngineError, match="has another midhaul, torch or Python"):
        Workers(1).open()


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"install midhaul\[cluster\]"):
        Workers(2)


def test_options_of_a_cluster_are_for_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    assert cli.main(["run", str(path), "--workers", "2", "--out", str(tmp_path / "out")]) == cli.REFUSED
    assert "--workers is for --engine cluster" in capsys.readouterr().err
