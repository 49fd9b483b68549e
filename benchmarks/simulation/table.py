"""What was measured, as tables to read, as Markdown between markers, and as bars."""

from __future__ import annotations

import math
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

BEGIN = "<!-- simulation: written by `python -m benchmarks.simulation --write` -->"
END = "<!-- end of simulation -->"
HEADING = "## Simulation: against the peers"
OURS, OTHERS, LIMIT = "#1f5fa8", "#b9c4cf", "#e0a458"  # of bars: midhaul, the peers, the bound
BOUND = "centralised PyTorch (the bound)"
AGREE = 2e-4  # how far weights may lie apart after a round from the same start, for sums in another order
HEAD = ("side", "updates/s", "midhaul is", "% of sgemm", "first round s", "weights differ by")
ABOUT = """\
All sides train the same clients on the same batches from the same weights, take turns round by round, and each is a
process of its own. *midhaul is* so many times as fast: the ratio of the medians. `midhaul` is a whole round as
`midhaul run` makes it, with a frame of real bytes for each message and reply; no other side has a link, so `midhaul, no
link` stands beside it. *Weights differ by*: the largest difference from midhaul's after one round. *% of sgemm*: the
least floating-point operations of the work (three products for each one forward, but for the first layer's input
gradient) over what the machine's matrix product did in the same run. Other sides are given the cohort and the order of
the batches; midhaul draws both within its time. The first round counts from the start of the process."""
Found = dict[str, dict[str, Any]]  # of each workload


def peak(found: dict[str, Any]) -> float:
    """Gives the measured rate of sgemm. Units: floating-point operations a second."""
    score = next((s for s in found["scores"] if s["name"] == "sgemm"), None)
    return score["facts"]["flops"] / score["median_s"] if score and score["seconds"] else float("nan")


def rate(found: dict[str, Any], score: dict[str, Any]) -> float:
    """Gives the client updates a second of a side."""
    return float(found["spec"]["clients_a_round"] / score["median_s"])


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Gives a workload's rows of text; the side that midhaul is compared by is its whole round, over the link."""
    ours = next((rate(found, s) for s in found["scores"] if s["name"] == "midhaul" and s["seconds"]), float("nan"))
    told = []
    for score in found["scores"]:
        if score["name"] == "sgemm":
            continue
        if not score["seconds"]:
            told.append((score["name"], "-", "-", "-", "-", score["why_not"]))
            continue
        speed = rate(found, score)
        share = 100.0 * speed * found["spec"]["flops_a_client"] / peak(found)
        gap = f"{score['gap']:.0e}" if math.isfinite(score["gap"]) else "-"
        note = "; NOT THE SAME WORK" if math.isfinite(score["gap"]) and score["gap"] > AGREE else ""
        note += f"; {score['why_not']}" if score["why_not"] else ""
        ratio = f"{ours / speed:.2f}x" if math.isfinite(ours) else "-"
        told.append((score["name"], figure(speed), ratio, f"{share:.1f}", f"{score['first_s']:.1f}", gap + note))
    return told


def figure(value: float) -> str:
    """Gives a number with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def text(found: dict[str, Any]) -> str:
    """Gives a workload's table, aligned."""
    lines = [HEAD, *rows(found)]
    wide = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    made = []
    for line in lines:
        cells = [line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:-1], wide[1:-1], strict=True)), line[-1]]
        made.append("  ".join(cells).rstrip())
    spec, gflops = found["spec"], peak(found) / 1e9
    about = (
        f"{spec['name']}: {spec['title']}\n{spec['flops_a_client'] / 1e6:,.2f} MFLOP a client; "
        f"sgemm here {gflops:,.0f} GFLOP/s on {found['threads']} threads; medians of "
        f"{min((len(s['seconds']) for s in found['scores'] if s['seconds']), default=0)} rounds or more"
    )
    return "\n".join([about, *made])


def markdown(found: Found, facts: str, command: str) -> str:
    """Gives the section of docs/results.md."""
    parts = [
        BEGIN,
        HEADING,
        "",
        f"`{command}`, on {facts}.",
        "",
        *ABOUT.splitlines(),
        "",
    ]
    parts += ["```", aligned(overview(found)), "```", ""]
    for one in found.values():
        parts += ["```", text(one), "```", ""]
    return "\n".join([*parts, END])


def write(path: Path, section: str) -> None:
    """Puts a section in the place of the one between the same first and last lines, or at the end."""
    whole = path.read_text(encoding="utf-8")
    begin, *_, end = section.splitlines()
    if begin in whole:
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        whole = re.sub(pattern, lambda _: section, whole, flags=re.DOTALL)
    else:
        whole = whole.rstrip("\n") + "\n\n" + section + "\n"
    new = path.with_name(f".{path.name}.new")
    new.write_text(whole, encoding="utf-8")
    new.replace(path)  # whole, or as it was


def machine(threads: int) -> str:
    """Says what was measured on, but for its name."""
    model = platform.processor() or platform.machine()
    cores = 0
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model, cores = (named or [model])[0], len(named)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        model += " with AVX-512" if "avx512f" in flags else " with AVX2" if "avx2" in flags else ""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    used = "1 is" if threads == 1 else f"{threads} are"
    return f"{model}, {cores} cores of which {used} used, Python {platform.python_version()}, {versions}"


def overview(found: Found) -> list[tuple[str, ...]]:
    """Gives how many times as fast as each side midhaul is, workload by workload; the first row is the heading."""
    made: list[tuple[str, ...]] = [("midhaul is as fast as", *found)]
    ratios = {work: _slower(one) for work, one in found.items()}
    for name in _names(found):
        made.append((name, *(f"{own[name]:.2f}x" if name in own else "-" for own in ratios.values())))
    return made


def aligned(lines: list[tuple[str, ...]]) -> str:
    """Gives rows of text with their first column to the left and the others to the right."""
    wide = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    cells = [[line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:], strict=True))] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _names(found: Found) -> list[str]:
    """Gives the sides that something was measured of, in their order."""
    scores = [score for one in found.values() for score in one["scores"] if score["name"] != "sgemm"]
    return list(dict.fromkeys(score["name"] for score in scores if score["seconds"]))


def _slower(one: dict[str, Any]) -> dict[str, float]:
    """Gives how many times midhaul's time each side takes for a round; nothing where midhaul wasn't measured."""
    times = {s["name"]: float(s["median_s"]) for s in one["scores"] if s["name"] != "sgemm" and s["seconds"]}
    return {name: time / times["midhaul"] for name, time in times.items()} if "midhaul" in times else {}


def plot(found: Found, path: Path) -> None:
    """Draws what a round takes each side, midhaul's time being 1, workload by workload on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "midhaul", "font.size": 8.0})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    names = [name for name in _names(found) if name != "midhaul"]
    colours = {name: OURS if name.startswith("midhaul") else LIMIT if name == BOUND else OTHERS for name in names}
    figure_, axes = plt.subplots(
        1,
        len(found),
        figsize=(1.75 * len(found) + 2.1, 0.23 * len(names) + 1.3),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, (work, one) in zip(axes[0], found.items(), strict=True):
        slower = _slower(one)
        places = {name: place for place, name in enumerate(names) if name in slower}
        widths = [slower[name] - 1.0 for name in places]
        axis.barh([*places.values()], widths, left=1.0, color=[colours[n] for n in places], height=0.7)
        for name, place in places.items():
            ratio = slower[name]
            axis.text(max(ratio, 1.0) * 1.12, place, _short(ratio), va="center", fontsize=6.5)
        axis.axvline(1.0, color=OURS, lw=1.2)
        axis.set_xscale("log")
        axis.set_xlim(min([0.5, *(0.7 * r for r in slower.values())]), max([4.0, *slower.values()]) * 5.0)
        axis.xaxis.set_major_locator(LogLocator(numticks=5))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"{work}\n{_ours(one)}", fontsize=8)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure_.supxlabel("time of a round, midhaul's being 1 (logarithmic)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure_)


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"


def _ours(one: dict[str, Any]) -> str:
    ours = next((s for s in one["scores"] if s["name"] == "midhaul" and s["seconds"]), None)
    return f"midhaul {figure(rate(one, ours))} updates/s" if ours else "midhaul wasn't measured"
