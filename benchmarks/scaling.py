"""Time and memory of a run against the number of devices, its cohort and its model. `python -m benchmarks.scaling`

Each point is a whole run of federated averaging as a person starts one (data, link, engine, test, checkpoint), on one
thread and in a process of its own, so that its peak of resident memory is its own: what the operating system says of
the process when it ends. A round's time is the median over the rounds but the first, which stands by itself, from the
start of Python on. The devices' rows are those of the data set `blobs`, a byte a number. W1 is an MLP 64-32-10 on
devices of 50 rows, in batches of 10; W2 a CNN of 3x3x16, 3x3x32 on devices of 100 rows of 28x28, in batches of 20.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, dict[str, Any]] = {
    "W1": {"shape": "64", "rows": 50, "model": "mlp", "options": {"hidden": [32]}, "batch": 10},
    "W2": {"shape": "1,28,28", "rows": 100, "model": "cnn", "options": {"channels": [16, 32]}, "batch": 20},
}
BEGIN = "<!-- scaling: written by `python -m benchmarks.scaling --write` -->"
END = "<!-- end of scaling -->"
COLUMNS = ("work", "devices", "cohort", "parameters", "CPU to the first", "CPU a round", "a round", "peak memory")


@dataclass(frozen=True)
class Point:
    """One run: what is trained, on how many devices, and how many take part in a round."""

    work: str
    devices: int
    cohort: int
    hidden: int = 0  # of W1's MLP, where it isn't 32
    memory: str = "auto"
    rounds: int = 8


@dataclass(frozen=True)
class Found:
    """What a run came to: processor time and time on the clock. Units: seconds, bytes."""

    parameters: int
    first_cpu_s: float
    cpu_s: float
    round_s: float
    peak_bytes: int


def points(quick: bool) -> dict[str, list[Point]]:
    """Gives the series of points by what varies."""
    most = 10_000 if quick else 100_000
    counts = [num for num in (10, 100, 1_000, 10_000, 100_000) if num <= most]
    return {
        "devices": [Point("W1", num, min(num, 100), memory="4GB") for num in counts]
        + [
            Point("W2", num, min(num, 100), memory="2GB", rounds=4)
            for num in counts
            if num <= (1_000 if quick else 10_000)
        ],
        "cohort": [Point("W1", most, num, rounds=5) for num in (10, 100, 1_000, *(() if quick else (10_000,)))],
        "model": [Point("W1", 1_000, 100, hidden) for hidden in (32, 128, 512, *(() if quick else (2_048,)))],
    }


def measure(point: Point) -> Found:
    """Runs one point in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(dataclasses.asdict(point))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{point} ended with {ran.returncode}:\n{ran.stderr[-2000:]}")
    return Found(**json.loads(ran.stdout.splitlines()[-1]))


def one(point: Point) -> Found:
    """Does one point in this process."""
    from midhaul import train
    from midhaul.config import Config

    chosen = SETTINGS[point.work]
    config = Config().replace(
        data_name="blobs",
        data_options={"shape": chosen["shape"], "rows": chosen["rows"], "num_devices": point.devices},
        fleet_cohort=float(point.cohort) if point.cohort > 1 else 1.0,
        fleet_check=False,
        tiny_model=chosen["model"],
        tiny_options={"hidden": [point.hidden]} if point.hidden else chosen["options"],
        scheme_batch=chosen["batch"],
        run_rounds=point.rounds,
        run_threads=1,
        run_memory=point.memory,
    )
    ends: list[tuple[float, float]] = []

    def note(label: str, done: int, total: int) -> None:
        if label == "rounds":
            ends.append((time.time(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        summary = train.run(config, Path(folder) / "run", progress=note).summary
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]
    return Found(
        summary["tiny"]["parameters"],
        ends[0][1],
        statistics.median(cpu for _, cpu in gaps),
        statistics.median(wall for wall, _ in gaps),
        peak_bytes(),
    )


def peak_bytes() -> int:
    """Gives the most memory that this process ever had resident."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def row(point: Point, found: Found) -> tuple[str, ...]:
    """Gives a line of the table."""
    return (
        point.work,
        f"{point.devices:,}",
        f"{point.cohort:,}",
        f"{found.parameters:,}",
        f"{found.first_cpu_s:.1f} s",
        f"{1e3 * found.cpu_s:,.0f} ms",
        f"{1e3 * found.round_s:,.0f} ms",
        f"{found.peak_bytes / 1e9:.2f} GB",
    )


def main(arguments: Sequence[str] = ()) -> None:
    """Prints the table, and writes the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 devices at most")
    parser.add_argument("--only", default="", metavar="A,B", help="of the series devices, cohort and model")
    parser.add_argument("--plot", type=Path, default=Path("runs/bench/scaling.svg"), help="the plot to write")
    parser.add_argument("--write", action="store_true", help="write the table into docs/results.md")
    parser.add_argument("--point", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.point:
        print(json.dumps(dataclasses.asdict(one(Point(**json.loads(chosen.point))))))
        return
    wanted = chosen.only.split(",") if chosen.only else list(points(chosen.quick))
    if unknown := set(wanted) - points(chosen.quick).keys():
        parser.error(f"there is no series {', '.join(sorted(unknown))}; take devices, cohort or model")
    if chosen.write and (chosen.quick or chosen.only):
        parser.error("a part of the table isn't written; leave out --quick and --only, or --write")
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    print("\n".join(lines), flush=True)
    found: dict[str, list[tuple[Point, Found]]] = {}
    for series, held in points(chosen.quick).items():
        if series not in wanted:
            continue
        for point in held:
            measured = measure(point)
            found.setdefault(series, []).append((point, measured))
            lines.append(f"| {' | '.join(row(point, measured))} |")
            print(lines[-1], flush=True)
    chosen.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(found, chosen.plot)
    chosen.plot.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nplot: {chosen.plot}; table: {chosen.plot.with_suffix('.md')}")
    if chosen.write:
        from benchmarks.simulation import table

        facts = f"Measured on {table.machine(1)}."
        table.write(ROOT / "docs" / "results.md", "\n".join([BEGIN, *lines, "", facts, END]))


def plot(found: dict[str, list[tuple[Point, Found]]], path: Path) -> None:
    """Writes the time of a round, and the peak of memory, against what varies."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "midhaul", "font.size": 9.0})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    along = {"devices": "devices in the fleet", "cohort": "devices in a round", "model": "parameters of the model"}
    looks = {"W1": ("#1f6f8b", "o"), "W2": ("#b3541e", "s")}
    figure, axes = plt.subplots(
        2, len(found), figsize=(3.1 * len(found), 4.4), sharex="col", sharey="row", layout="constrained", squeeze=False
    )
    for column, (series, held) in enumerate(found.items()):
        for work in dict.fromkeys(point.work for point, _ in held):
            own = [(p, f) for p, f in held if p.work == work]
            x = [{"devices": p.devices, "cohort": p.cohort, "model": f.parameters}[series] for p, f in own]
            colour, marker = looks[work]
            for line, y in enumerate(([f.cpu_s for _, f in own], [f.peak_bytes / 1e9 for _, f in own])):
                axes[line][column].plot(x, y, color=colour, marker=marker, ms=4, lw=1.5, label=work)
        for line, label in enumerate(("CPU seconds a round", "peak memory, GB")):
            here = axes[line][column]
            here.set_xscale("log")
            here.xaxis.set_minor_formatter(NullFormatter())  # a short axis would have a number at each tick
            if line:
                here.set_ylim(bottom=0)
            else:
                here.set_yscale("log")
                here.yaxis.set_major_formatter("{x:g}")
                here.yaxis.set_minor_formatter(NullFormatter())
            here.grid(color="#e4e4e4")
            here.spines[["top", "right"]].set_visible(False)
            if not column:
                here.set_ylabel(label)
        axes[1][column].set_xlabel(along[series])
    axes[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
