"""A contest: all sides on one workload, each a process, taking turns round by round."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulation import install
from benchmarks.simulation.sides import Side
from benchmarks.simulation.works import Work, write

ROOT = Path(__file__).parents[2]
TURN_S = 0.4  # a turn of a fast side is as many rounds as take about so long
MOST_ROUNDS = 40
START_S = 300.0  # that a side has for its start and first round, or to find its best way


@dataclass
class Score:
    """What a side came to. `gap` is the largest difference of a weight from midhaul's after a round.

    Units: seconds; `busy` are CPU seconds of the side's first process, which say more on a machine that isn't quiet.
    """

    name: str
    group: str
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    first_s: float = float("nan")
    loss: float = float("nan")
    gap: float = float("nan")
    why_not: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> float:
        """Seconds of a round."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


class Gone(Exception):
    """A side that ended or doesn't answer."""


class Running:
    """A side's process."""

    def __init__(self, side: Side, folder: Path, log: Path, threads: int) -> None:
        self.side, self.log, self.pace_s = side, log, 1.0
        self.began = time.perf_counter()
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        if side.peer:
            env.pop("PYTHONPATH")
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                side.command(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env,
                start_new_session=True,
            )

    def hear(self, limit_s: float) -> dict[str, Any]:
        """Gives the next line. Raises: Gone."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise Gone(f"gave no answer within {limit_s:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Gone(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, numbers: Sequence[int], limit_s: float, save: Path | None = None) -> dict[str, Any]:
        """Lets it do rounds; gives what it says. Raises: Gone."""
        assert self.process.stdin is not None
        command = {"rounds": list(numbers), **({"save": str(save)} if save else {})}
        try:
            self.process.stdin.write((json.dumps(command) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Gone(self._last_words()) from None
        return self.hear(limit_s)

    def end(self) -> None:
        """Lets it go, and whatever it has started."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
                time.sleep(0.2)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _last_words(self) -> str:
        return f"it ended: {_last_error(self.log)}"


def measure(
    work: Work, sides: Sequence[Side], folder: Path, *, threads: int, turns: int, budget_s: float
) -> dict[str, Any]:
    """Gives the scores of a workload's contest as plain values.

    Each side starts and does its first round alone. Then all take turns, `turns` times or until `budget_s` is over, but
    at least once. A side that can't be had, ends or is late is told with the reason.
    """
    tell(f"{work.name}: {work.title}")
    write(work, folder, threads)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    scores = [Score(side.name, side.group) for side in sides]
    running: dict[str, Running] = {}
    try:
        for side, score in zip(sides, scores, strict=True):
            score.why_not = _refused(side, spec["kind"], folder, threads)
            if not score.why_not:
                _begin(side, score, folder, threads, running)
        began = time.perf_counter()
        for turn in range(turns):
            if turn and time.perf_counter() - began > budget_s:
                tell(f"  {turn} of {turns} turns; the time of {budget_s:.0f} s is over")
                break
            for score in scores:
                if score.name in running:
                    _take_turn(score, running)
    finally:
        for process in running.values():
            process.end()
    reference = next((s for s in scores if s.name == "midhaul"), None)
    for side, score in zip(sides, scores, strict=True):
        if reference is not None and side.checked and score.seconds:
            score.gap = _gap(folder / f"{_file(reference.name)}.npz", folder / f"{_file(score.name)}.npz")
    return {"spec": spec, "threads": threads, "scores": [{**asdict(s), "median_s": s.median_s} for s in scores]}


def _refused(side: Side, kind: str, folder: Path, threads: int) -> str:
    """Says why a side can't take part; lets it find its best way if it wants to."""
    if kind not in side.kinds:
        return side.why_not
    if side.peer and (reason := install.missing(side.peer)):
        return reason
    if side.tunes and not (folder / f"{side.group}.tuned.json").exists():
        tell(f"  {side.name} looks for its best way")
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        log = folder / f"{_file(side.name)}.log"
        try:
            with log.open("wb") as errors:
                command = side.command(folder, "--tune")
                subprocess.run(command, stderr=errors, stdout=errors, env=env, check=True, timeout=START_S)
        except subprocess.TimeoutExpired:
            return f"found no best way within {START_S:.0f} s"
        except subprocess.CalledProcessError:
            return f"it ended: {_last_error(log)}"
    return ""


def _begin(side: Side, score: Score, folder: Path, threads: int, running: dict[str, Running]) -> None:
    process = Running(side, folder, folder / f"{_file(side.name)}.log", threads)
    running[side.name] = process
    try:
        score.facts = process.hear(START_S)["ready"]
        answer = process.ask([1], START_S, folder / f"{_file(side.name)}.npz")
        score.first_s, score.loss = time.perf_counter() - process.began, answer["loss"]
        tell(f"  {side.name}: {score.first_s:.1f} s to the end of its first round")
        answer = process.ask([2], START_S)  # warm from here on
        score.seconds = []
        process.pace_s = answer["seconds"][-1]
    except Gone as reason:
        score.why_not = str(reason)
        tell(f"  {side.name}: {reason}")
        running.pop(side.name).end()


def _take_turn(score: Score, running: dict[str, Running]) -> None:
    process = running[score.name]
    num = min(max(1, round(TURN_S / process.pace_s)), MOST_ROUNDS)
    try:
        answer = process.ask(range(3, 3 + num), START_S)
        score.seconds += answer["seconds"]
        score.busy += answer["busy"]
        process.pace_s = statistics.median(answer["seconds"])
    except Gone as reason:
        score.why_not = str(reason)
        tell(f"  {score.name}: {reason}")
        running.pop(score.name).end()


def _last_error(log: Path) -> str:
    """Gives the line of a log that tells the error, or its last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:160]


def _gap(left: Path, right: Path) -> float:
    with np.load(left) as one, np.load(right) as other:
        if set(one.files) != set(other.files):
            return float("inf")
        gaps = [float(np.abs(one[n].astype(np.float64) - other[n].reshape(one[n].shape)).max()) for n in one.files]
    return max(float("inf") if np.isnan(gap) else gap for gap in gaps)


def _file(name: str) -> str:
    return name.replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")


def tell(line: str) -> None:
    """Says how far it is."""
    print(line, file=sys.stderr, flush=True)
