"""The contest of simulators: what it counts, what it hands out, and what it writes."""

import importlib.util
import json
import subprocess

import numpy as np
import pytest
from benchmarks import __main__ as every
from benchmarks import scaling
from benchmarks.simulation import __main__ as command
from benchmarks.simulation import contest, install, profile, table
from benchmarks.simulation.sides import SCRIPTS, Side
from benchmarks.simulation.works import WORKS, Work, build, flops, layers, write
from torch import nn

SMALL = Work(
    "W1", "tiny", (6,), 3, 8, 10, 4, 4, 0.05, {"tiny_model": "mlp", "tiny_options": {"hidden": [5]}}
)  # a folder is found by its name


def score(name, seconds, **more):
    whole = contest.Score(name, name, seconds=seconds, **more)
    return {**contest.asdict(whole), "median_s": whole.median_s}


def found():
    scores = [
        score("midhaul", [0.1, 0.3, 0.2], first_s=2.0, gap=0.0),
        score("other", [0.4], first_s=1.0, gap=1e-7),
        score("gone", [], why_not="it ended: Error"),
        score("sgemm", [0.5], facts={"flops": 1e9}),
    ]
    spec = {"name": "W1", "title": "tiny", "clients_a_round": 4, "flops_a_client": 1e7}
    return {"spec": spec, "threads": 2, "scores": scores}


def test_a_row_has_rate_ratio_and_share_of_the_machine():
    ours, other, gone = table.rows(found())
    # 4 clients in 0.2 s (the median) are 20 a second, 2e8 operations a second, a tenth of sgemm's 2e9
    assert ours == ("midhaul", "20", "1.00x", "10.0", "2.0", "0e+00")
    assert other == ("other", "10", "2.00x", "5.0", "1.0", "1e-07")
    assert gone == ("gone", "-", "-", "-", "-", "it ended: Error")


def test_a_side_with_other_weights_does_other_work():
    told = found()
    told["scores"][1]["gap"] = 0.1
    assert table.rows(told)[1][-1] == "1e-01; NOT THE SAME WORK"


def test_the_section_is_put_in_the_place_of_the_one_before(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nbefore\n", encoding="utf-8")
    table.write(page, table.markdown({"W1": found()}, "a machine", "a command"))
    once = page.read_text(encoding="utf-8")
    table.write(page, table.markdown({"W1": found()}, "a machine", "a command"))
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("# Results\n\nbefore\n\n" + table.BEGIN)
    assert once.count(table.HEADING) == 1


def test_the_operations_of_w1_are_those_counted_by_hand():
    work = WORKS["W1"]
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    macs = 3 * (64 * 32 + 32 * 10) - 64 * 32

    class Plant:
        class kit:
            large = None

            class program:
                pass

    Plant.kit.program.module, Plant.kit.program.input_shape = module, work.shape
    assert flops(Plant) == 2.0 * macs


def test_what_is_handed_out_is_what_midhaul_does(tmp_path):
    folder = tmp_path / "W1"
    write(SMALL, folder, 1)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    plant = build(SMALL, folder, 1)
    rows, orders, cohorts = (np.load(folder / f"{name}.npy") for name in ("rows", "orders", "cohorts"))
    assert rows.shape == (8, 10)
    assert all(np.array_equal(rows[d], plant.engine.population.rows(d, "train")) for d in range(8))
    assert cohorts.shape[1] == 4
    assert np.array_equal(np.sort(orders, 2), np.broadcast_to(np.arange(10), orders.shape))
    assert spec["layers"] == layers(plant.kit.program.module, 0)
    assert [kind for kind, *_ in spec["layers"]] == ["flatten", "linear", "relu", "linear"]


FAKE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
from protocol import Line, Task, serve

class Fake:
    loss = 1.5

    def __init__(self):
        self.task, self.done = Task(Path(sys.argv[1])), 0

    def facts(self):
        return {{"batch": self.task.batch}}

    def arrays(self):
        return {{name: value + float(sys.argv[2]) * self.done for name, value in self.task.weights.items()}}

    def round(self, number):
        print("chatter that is no answer")
        rows, labels = self.task.cohort(number)
        assert rows.shape == labels.shape == (4, 10)
        self.done += 1

serve(Line(), Fake)
"""


def test_sides_take_turns_and_are_held_to_the_first(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    taking = [Side(name, name, str(tmp_path / "fake.py"), (moved,)) for name, moved in (("midhaul", "0"), ("odd", "2"))]
    told = contest.measure(SMALL, taking, tmp_path / "W1", threads=1, turns=2, budget_s=60.0)
    first, odd = told["scores"]
    assert (first["loss"], first["facts"], first["gap"], first["why_not"]) == (1.5, {"batch": 4}, 0.0, "")
    assert odd["gap"] == pytest.approx(2.0, abs=1e-6)
    assert len(first["seconds"]) > 2


def test_a_side_that_ends_is_told_with_its_last_error(tmp_path):
    broken = Side("broken", "broken", "no_such_script.py", checked=False)
    (one,) = contest.measure(SMALL, [broken], tmp_path / "W1", threads=1, turns=1, budget_s=1.0)["scores"]
    assert one["why_not"].startswith("it ended: ")
    assert not one["seconds"]


def test_a_side_that_cannot_do_a_workload_says_why(tmp_path):
    odd = Side("odd", "odd", "plain.py", kinds=("other",), why_not="has no such thing")
    (one,) = contest.measure(SMALL, [odd], tmp_path / "W1", threads=1, turns=1, budget_s=1.0)["scores"]
    assert one["why_not"] == "has no such thing"


@pytest.mark.parametrize("arguments", [["--workloads", "W9"], ["--peers", "nobody"]])
def test_an_unknown_name_is_refused(arguments, capsys):
    assert command.main(arguments) == 2
    assert "there is no" in capsys.readouterr().err


def two():
    other = found()
    other["spec"] = {**other["spec"], "name": "W2"}
    other["scores"] = [other["scores"][0], score("slow", [2.0]), other["scores"][3]]
    return {"W1": found(), "W2": other}


def test_the_overview_has_each_ratio_once():
    assert table.overview(two()) == [
        ("midhaul is as fast as", "W1", "W2"),
        ("midhaul", "1.00x", "1.00x"),
        ("other", "2.00x", "-"),
        ("slow", "-", "10.00x"),
    ]
    lines = table.aligned(table.overview(two())).splitlines()
    assert lines[2] == "other                  2.00x       -"
    assert table.aligned(table.overview(two())) in table.markdown(two(), "a machine", "a command")


def test_the_plot_has_a_bar_for_what_was_measured(tmp_path):
    table.plot(two(), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert all(f">{text}</text>" in drawn for text in ("other", "slow", "2.0", "10", "midhaul 20 updates/s"))
    assert ">gone</text>" not in drawn


def test_a_workload_that_midhaul_did_not_end_has_no_ratio(tmp_path):
    told = {"W1": found()}
    told["W1"]["scores"][0] = score("midhaul", [], why_not="it ended: Error")
    assert table.overview(told) == [("midhaul is as fast as", "W1"), ("other", "-")]
    table.plot(told, tmp_path / "plot.svg")
    assert "midhaul wasn&apos;t measured" in (tmp_path / "plot.svg").read_text(encoding="utf-8").replace("'", "&apos;")


def test_what_few_turns_gave_is_not_written(capsys):
    assert command.main(["--quick", "--write"]) == 2
    assert "leave out --quick or --write" in capsys.readouterr().err


def test_a_benchmark_that_fails_is_told_and_the_others_go_on(capfd):
    parts = [every.Part("no_such_benchmark"), every.Part("timeit", ("-n", "1", "-r", "1", "pass"), full_s=120.0)]
    assert every.main(["--quick"], parts) == 1
    told = capfd.readouterr()
    assert "[1 of 2] python -m no_such_benchmark (about 60 s; 2 min to the end)" in told.out
    assert "[2 of 2] took" in told.out
    assert "python -m no_such_benchmark ended with 1" in told.err.splitlines()
    assert every.main([], parts[1:]) == 0
    assert "(about 2 min; 2 min to the end)" in capfd.readouterr().out


def test_a_benchmark_that_does_not_end_is_ended(capfd):
    waits = every.Part("timeit", ("-n", "1", "-r", "1", "import time; time.sleep(600)"), full_s=0.5)
    assert every.main([], [waits]) == 1
    assert "was ended after 2 s, 4 times what it should take" in capfd.readouterr().err


def test_all_parts_take_thirty_five_minutes_at_most():
    assert sum(part.full_s for part in every.PARTS) <= 35 * 60
    assert sum(part.quick_s for part in every.PARTS) <= 15 * 60


def test_a_peer_that_cannot_be_installed_is_a_sentence_in_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(install, "PEERS", {"gone": (("no-such-package==1",),)})
    side = Side("gone", "gone", "plain.py", peer="gone")
    wanted = "not installed; run `python -m benchmarks.simulation --install --peers gone`"
    assert contest._refused(side, "fedavg", tmp_path, 1) == wanted
    said = "Looking\nERROR: No matching distribution found for no-such-package==1\n"
    ends = iter([subprocess.CompletedProcess([], 0, "", ""), subprocess.CompletedProcess([], 1, "", said)])
    with monkeypatch.context() as patched:
        patched.setattr(install.subprocess, "run", lambda step, **_: next(ends))  # the environment, then pip
        error = install.install("gone")
    assert error == "ERROR: No matching distribution found for no-such-package==1"
    (one,) = contest.measure(SMALL, [side], tmp_path / "W1", threads=1, turns=1, budget_s=1.0)["scores"]
    assert one["why_not"] == f"can't be installed here: {error}"
    kept = tmp_path / "peers" / "gone" / "installed.json"
    kept.write_text(json.dumps({"wanted": [["other==1"]], "error": ""}), encoding="utf-8")
    assert install.missing("gone").startswith("other versions are installed; run ")
    with monkeypatch.context() as patched:
        patched.setattr(install.subprocess, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            install.install("gone")  # ended in the middle
    assert install.missing("gone") == wanted


def test_the_table_of_a_profile_has_each_part_of_each_workload():
    found = {
        "W1": [
            {"compiled kernels": 1e-3, "the mean": 1e-3, profile.REST: 2e-3},
            {"compiled kernels": 3e-3, "the mean": 1e-3, profile.REST: 4e-3},
        ],
        "W4": [{"compiled kernels": 0.2}],
    }
    lines = profile.section(found, 2, "a machine").splitlines()
    assert lines[1:3] == ["| part, ms | W1, 100 devices | W4, 50 devices |", "|---|---|---|"]
    assert "| compiled kernels | 2.0 | 200 |" in lines
    assert "| the scheme itself | 3.0 | - |" in lines
    assert lines.count("| the mean | 1.0 | - |") == 1
    assert "| in all | 6.0 | 200 |" in lines
    assert "Medians of 2 rounds, on a machine." in lines


def test_the_tables_that_are_written_have_their_places_in_the_docs():
    results = (every.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    performance = (every.ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for page, begin, end in (
        (results, table.BEGIN, table.END),
        (results, scaling.BEGIN, scaling.END),
        (performance, profile.BEGIN, profile.END),
    ):
        assert page.count(f"\n{begin}\n") == page.count(f"\n{end}\n") == 1, begin


def test_a_part_of_a_table_is_not_written(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--write", "--quick"])
    assert "leave out --quick and --only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        profile.main(["--write", "--workloads", "W1"])
    assert "leave out --workloads" in capsys.readouterr().err


def test_make_bench_has_benchmarks_that_are_there():
    for part in every.PARTS:
        assert importlib.util.find_spec(part.module), part.module
