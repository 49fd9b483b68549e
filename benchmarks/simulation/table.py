"""What was measured, as a table to read, as Markdown between markers, and as bars."""

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
    for one in found.values():
        parts += ["```", text(one), "```", ""]
    return "\n".join([*parts, END])


def write(path: Path, section: str) -> None:
    """Puts the section in the place of the one that is there, or at the end."""
    whole = path.read_text(encoding="utf-8")
    if BEGIN in whole:
        pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
        whole = re.sub(pattern, lambda _: section, whole, flags=re.DOTALL)
    else:
        whole = whole.rstrip("\n") + "\n\n" + section + "\n"
    path.write_text(whole, encoding="utf-8")


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
    return f"{model}, {cores} cores of which {threads} are used, Python {platform.python_version()}, {versions}"


def plot(found: Found, path: Path) -> None:
    """Draws client updates a second of every side, workload by workload, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(s["name"] for one in found.values() for s in one["scores"] if s["name"] != "sgemm"))
    colours = {name: OURS if name.startswith("midhaul") else LIMIT if name == BOUND else OTHERS for name in names}
    figure_, axes = plt.subplots(
        1, len(found), figsize=(1.9 * len(found) + 2.2, 0.24 * len(names) + 1.1), squeeze=False
    )
    for axis, (work, one) in zip(axes[0], found.items(), strict=True):
        speeds = {s["name"]: rate(one, s) for s in one["scores"] if s["name"] != "sgemm" and s["seconds"]}
        places = {name: place for place, name in enumerate(names) if name in speeds}
        axis.barh([*places.values()], [speeds[n] for n in places], color=[colours[n] for n in places], height=0.72)
        for name, place in places.items():
            axis.text(speeds[name] * 1.12, place, figure(speeds[name]), va="center", fontsize=6.5)
        axis.set_xscale("log")
        axis.set_xlim(min(speeds.values(), default=1.0) / 2.0, max(speeds.values(), default=1.0) * 9.0)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] else [], fontsize=7.5)
        axis.set_title(work, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure_.supxlabel("client updates a second, logarithmic", fontsize=8)
    figure_.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.savefig(path, dpi=160)
    plt.close(figure_)
