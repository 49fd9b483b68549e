"""Allocations of a shared band beside cvxpy and beside equal parts, and who takes part by joules to an accuracy.

`python -m benchmarks.allocation band` needs cvxpy (extra `test`). Devices are dropped in a UMi cell of 3GPP TR 38.901
(link/cell.py) with RedCap modems and send 0.2 to 2 Mbit each, ready after up to 0.3 s; P0 and eta are RedCap's by
TR 38.840, and 0 to show what they do. The deadline is the soonest that equal bandwidth can keep.

`python -m benchmarks.allocation power` tells what power, and bandwidth with it, save of equal parts at full power.

`python -m benchmarks.allocation selection --data fashion_mnist --seeds 0,1,2` trains by federated averaging and tells
joules, simulated seconds and rounds until an accuracy, a line a rule. The rule `joint` is midhaul's own with the band
shared for the least energy and updates in 8 bits both ways: `--rules random,oort,fedcs,joint`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from midhaul import train
from midhaul.config import Config
from midhaul.link import energy, schedule
from midhaul.link.cell import Cell
from midhaul.link.schedule import Allocation, Uplinks

RULES = ("random", "round_robin", "best_channel", "fedcs", "oort", "frugal")
# What a plan may choose beside who takes part: the band's parts, and the bits of what crosses it.
JOINT: dict[str, object] = {
    "link_allocation": "min_energy", "link_up": "delta,quantise:8", "link_down": "delta,quantise:8",
}  # fmt: skip
SETTINGS: dict[str, dict[str, object]] = {
    "fashion_mnist": {"tiny_model": "mlp", "data_partition": "dirichlet", "data_alpha": 0.5, "data_max_rows": 100},
    "digits": {"tiny_model": "mlp", "data_partition": "dirichlet", "data_alpha": 0.5},
    "har": {"tiny_model": "mlp", "data_partition": "dirichlet", "data_alpha": 0.5, "data_max_rows": 100},
}
TARGETS = {"fashion_mnist": 0.68, "digits": 0.85, "har": 0.80}


def cell(num: int, seed: int, *, circuits: bool) -> tuple[Uplinks, float]:
    """Gives what devices dropped in a cell, and in coverage, have to send, and the cell's band. Units: hertz."""
    link = Config().replace(link_cell="umi", link_sectors=1).link
    dropped = Cell.from_config(link, ["redcap"] * (2 * num), seed)
    whole = dropped.channel(1)
    channel = whole.of(whole.devices[whole.up(whole.most_blocks()).served][:num])
    assert len(channel.devices) == num, "fewer than half of the devices are in coverage"
    model, draw = energy.get("redcap"), np.random.default_rng(seed)
    gain = 10.0 ** ((channel.gain_db - channel.up_density_dbm_hz + 30.0) / 10.0)
    circuit_w = np.full(num, model.circuit_w if circuits else 0.0)
    bits, ready_s = draw.uniform(2e5, 2e6, num), draw.uniform(0.0, 0.3, num)
    most = np.full(num, model.max_w)
    return Uplinks(bits, ready_s, gain, most, circuit_w, np.full(num, model.efficiency)), dropped.grid.width_hz


def optimum(links: Uplinks, band_hz: float, deadline_s: float) -> float:
    """Gives cvxpy's least energy where circuits draw nothing: the exponential cone, by Clarabel. Units: joules."""
    import warnings

    import cvxpy as cp

    unit = links.bits * math.log(2.0) / (deadline_s - links.ready_s)  # the Hz that carry a nat a second and Hz
    b, z = cp.Variable(len(links)), cp.Variable(len(links))  # z = b e^(1 / b)
    weights = (deadline_s - links.ready_s) / (links.efficiency * links.gain_hz_w) * unit
    most = links.max_w * links.gain_hz_w / unit
    near = np.flatnonzero(most < 1e4)  # the power of the others has no limit that they could meet
    limits = [cp.ExpCone(cp.Constant(np.ones(len(links))), b, z), unit / band_hz @ b <= 1, (z - b)[near] <= most[near]]
    problem = cp.Problem(cp.Minimize((weights / weights.sum()) @ (z - b)), limits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return float(problem.value * weights.sum())


def timed(what: Callable[[], Allocation], times: int = 3) -> tuple[Allocation, float]:
    """Gives what it gives, and the least of its times. Units: CPU-seconds of the process."""
    took = []
    for _ in range(times):
        began = time.process_time()
        given = what()
        took.append(time.process_time() - began)
    return given, min(took)


def band(seeds: Sequence[int]) -> None:
    """Prints energies against equal bandwidth, differences from cvxpy, and times."""
    print("100 devices, deadline: the soonest of equal bandwidth, or five times that; joules of all, mean over seeds")
    heads = f"{'circuits':>9} {'band':>9} {'deadline':>9} {'equal J':>9} {'parts J':>9} {'saved %':>18}"
    print(f"{heads} {'turns J':>9} {'saved %':>18} {'in time':>8}  over cvxpy")
    for circuits in (False, True):
        for share, slack in ((1.0, 1.0), (1.0, 5.0), (0.1, 1.0), (0.1, 5.0)):
            found = [one(seed, share, slack, circuits=circuits) for seed in seeds]
            kept = [row for row in found if row[2] is not None]
            equal, parts = (statistics.fmean(row[place] for row in found) for place in (0, 1))  # type: ignore[misc]
            saved = spread([1.0 - row[1] / row[0] for row in found])
            turns = f"{statistics.fmean(row[2] for row in kept if row[2]):9.2f}" if kept else f"{'-':>9}"
            less = spread([1.0 - row[2] / row[0] for row in kept if row[2]]) if kept else "-"
            apart = f"{min(row[3] for row in found):.0e} to {max(row[3] for row in found):.0e}" if not circuits else ""
            told = f"{slack:9.0f} {equal:9.2f} {parts:9.2f} {saved:>18} {turns} {less:>18} {len(kept):>6}/{len(found)}"
            print(f"{'RedCap' if circuits else 'none':>9} {share * 20:6.0f}MHz {told}  {apart}", flush=True)
    for num in (100, 1_000, 10_000):
        links, band_hz = cell(num, 0, circuits=True)
        wide = band_hz * max(num / 100, 1)  # as many devices a hertz
        deadline_s = 1.2 * schedule.soonest(links, wide)
        _, parts_s = timed(lambda links=links, wide=wide, late=deadline_s: schedule.min_energy(links, wide, late))  # type: ignore[misc]
        _, least_s = timed(lambda links=links, wide=wide: schedule.min_time(links, wide))  # type: ignore[misc]
        print(f"{num:6} devices: least energy {parts_s:.3f} CPU-s, least time {least_s:.3f} CPU-s")


def power(seeds: Sequence[int]) -> None:
    """Prints what power, bandwidth, and both of them save of equal parts of the band at full power."""
    print("100 devices, deadline: the soonest of equal parts at full power, or five times that; saved of those, %")
    print(f"{'circuits':>9} {'band':>8} {'deadline':>9} {'power alone':>22} {'both':>22} {'both, or in turns':>22}")
    for circuits in (False, True):
        for share, slack in ((1.0, 1.0), (1.0, 5.0), (0.1, 1.0), (0.1, 5.0)):
            saved: list[list[float]] = []
            for seed in seeds:
                links, band_hz = cell(100, seed, circuits=circuits)
                full = schedule.equal(links, share * band_hz, 0.0)  # nobody can keep it, so all hurry
                limits = (links, share * band_hz, slack * full.last_s)
                each = (schedule.equal(*limits), schedule.min_energy(*limits), schedule.cheapest(*limits))
                saved.append([1.0 - float(way.joules.sum() / full.joules.sum()) for way in each])
            told = " ".join(f"{spread(list(column)):>22}" for column in zip(*saved, strict=True))
            print(f"{'RedCap' if circuits else 'none':>9} {share * 20:5.0f}MHz {slack:9.0f} {told}", flush=True)


def one(seed: int, share: float, slack: float, *, circuits: bool) -> tuple[float, float, float | None, float]:
    """Gives joules with equal bandwidth, with the best parts, and in turns, and how far the second is over cvxpy's.

    The third is None where turns can't keep the deadline.
    """
    links, band_hz = cell(100, seed, circuits=circuits)
    band_hz *= share
    deadline_s = slack * schedule.equal(links, band_hz, 0.0).last_s
    equal, parts = schedule.equal(links, band_hz, deadline_s), schedule.min_energy(links, band_hz, deadline_s)
    turns = schedule.in_turns(links, band_hz, deadline_s)
    in_time = turns.last_s <= deadline_s * (1.0 + 1e-9)
    spent = float(parts.joules.sum())
    apart = 0.0 if circuits else spent / optimum(links, band_hz, deadline_s) - 1.0
    return float(equal.joules.sum()), spent, float(turns.joules.sum()) if in_time else None, apart


def selection(
    data: str, seeds: Sequence[int], rules: Sequence[str], rounds: int, changes: dict[str, object], stop: bool
) -> None:
    """Prints joules, seconds and rounds to an accuracy of each rule, mean over seeds."""
    target = TARGETS[data]
    told = f"band: {changes['link_allocation']}"
    print(f"{data}, 100 devices of five boards, a tenth a round, {rounds} rounds, UMi, RedCap by its states, {told}")
    print(
        f"{'rule':>13} {'last %':>12} {'to ' + f'{100 * target:.0f} %: J':>20} {'s':>18} {'rounds':>14} {'reached':>8}"
    )
    for rule in rules:
        rows = [to_target(data, seed, rule, rounds, target, changes, stop) for seed in seeds]
        hit = [row for row in rows if row[1] is not None]
        cells = [spread([row[place] for row in hit], 1.0) if hit else "-" for place in (1, 2, 3)]  # type: ignore[misc]
        last = spread([row[0] for row in rows])
        print(
            f"{rule:>13} {last:>12} {cells[0]:>20} {cells[1]:>18} {cells[2]:>14} {len(hit):>4}/{len(rows)}", flush=True
        )


def to_target(
    data: str, seed: int, rule: str, rounds: int, target: float, changes: dict[str, object], stop: bool = False
) -> tuple[float, float | None, float | None, float | None]:
    """Gives the last accuracy, and joules, seconds and rounds to the target, None if it wasn't reached.

    The rule `joint` is frugal with all of JOINT; the others have fixed settings.
    """
    if rule == "joint":
        rule, changes = "frugal", {**changes, **JOINT}
    config = Config().replace(
        data_name=data,
        data_num_devices=100,
        scheme_name="fedavg",
        scheme_epochs=2,
        scheme_batch=20,
        fleet_board="nrf52840,stm32l4,stm32h7,esp32s3,rp2040",
        fleet_check=False,
        fleet_cohort=10,
        fleet_selection=rule,
        fleet_round_deadline_s=60.0 if rule == "fedcs" else 0.0,
        link_radio="redcap",
        link_cell="umi",
        link_energy="states",
        run_rounds=rounds,
        run_seed=seed,
        run_target_accuracy=target,
        run_stop_at_target=stop,
        **{**SETTINGS[data], **changes},
    )
    summary = train.run(config).summary
    found = summary["target"]
    if found["round"] is None:
        return summary["accuracy"], None, None, None
    return summary["accuracy"], found["joules"], found["seconds"], float(found["round"])


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Gives a mean with the least and the most, in percent unless told."""
    digits = 1 if scale == 100.0 or max(values) < 100 else 0
    told = [f"{scale * value:.{digits}f}" for value in (statistics.fmean(values), min(values), max(values))]
    return f"{told[0]} ({told[1]}-{told[2]})" if len(values) > 1 else told[0]


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=("band", "power", "selection"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--data", default="fashion_mnist", choices=sorted(SETTINGS))
    parser.add_argument("--rules", default=",".join(RULES), help="and joint")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument(
        "--stop", action="store_true", help="end each run at the accuracy, which costs the same by then"
    )
    parser.add_argument("--thrift", type=float, default=1.0)
    parser.add_argument("--allocation", default="own", help="link.allocation")
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    if chosen.part == "band":
        band(seeds)
    elif chosen.part == "power":
        power(seeds)
    else:
        changes: dict[str, object] = {"fleet_thrift": chosen.thrift, "link_allocation": chosen.allocation}
        selection(chosen.data, seeds, chosen.rules.split(","), chosen.rounds, changes, chosen.stop)


if __name__ == "__main__":
    main()
