"""The radio of a cell beside sionna-no-rt's: path loss, geometry, throughput, and the time of 10,000 devices.

    python -m benchmarks.link large          path loss link by link, and medians of drops of their own, UMi and UMa
    python -m benchmarks.link throughput     quantiles beside a simulation slot by slot with sionna's parts
    python -m benchmarks.link speed          seconds and memory of a round's radio for 10,000 devices

The first two need sionna-no-rt (extra `radio`). Every seed is a drop of its own on either side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import tempfile
import time
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul.config import LinkConfig
from midhaul.link import channel as channels
from midhaul.link import modulation, numerology, propagation
from midhaul.link.access import ACCESS
from midhaul.link.cell import Cell
from midhaul.link.channel import Channel

Doubles = npt.NDArray[np.float64]
CARRIER_HZ = 3.5e9
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
DEVICE_NOISE_DB = 9.0
PER_SECTOR, NUM_CELLS = 300, 100


def sionna_drop(scenario: str, seed: int, per_sector: int, rings: int) -> dict[str, Any]:
    """Gives a drop of sionna's, the devices of its centre: losses [C, D], geometry, and its scenario.

    Those further out aren't used: sionna-no-rt 2.2.0 folds its grid back on itself so that a fifth of the devices at
    every other outer site is nearer to another site than to their own.
    """
    import torch
    from sionna.phy import config
    from sionna.phy.channel import tr38901
    from sionna.sys import gen_tr38901_multicell_topology

    config.seed = seed
    one: dict[str, Any] = {
        "num_rows_per_panel": 1, "num_cols_per_panel": 1, "polarization": "single", "polarization_type": "V",
        "carrier_frequency": CARRIER_HZ,
    }  # fmt: skip
    far = tr38901.PanelArray(antenna_pattern="38.901", **one)
    near = tr38901.PanelArray(antenna_pattern="omni", **one)
    kind = tr38901.UMiScenario if scenario == "umi" else tr38901.UMaScenario
    topology = list(
        gen_tr38901_multicell_topology(scenario, 1, per_sector, CARRIER_HZ, rings, apply_tr36873_indoor_heights=False)
    )
    for place in (0, 2, 4, 5):  # what has a row a device
        topology[place] = topology[place][:, : 3 * per_sector]
    topology[7] = topology[7][:, :, : 3 * per_sector]
    topology[10] = topology[10][..., : 3 * per_sector]
    topology[4] = torch.ones_like(topology[4]) * (3.0 / 3.6 / 3.0**0.5)
    made = kind(CARRIER_HZ, "low", near, far, "downlink")
    made.set_topology(*topology)
    loss = made.basic_pathloss[0] + torch.where(made.indoor[0], 20.0, 0.0) + 0.5 * made.distance_2d_in[0]
    sigma = 10.0 * made.lsp_log_std[0, ..., 3]
    normal = made.share_by_bs_site(torch.randn((1, *loss.shape)))[0]
    yaw = topology[3][0, :, 0]
    zenith, azimuth = torch.deg2rad(made.los_zod[0]), torch.deg2rad(made.los_aod[0]) - yaw[:, None]
    azimuth = torch.atan2(torch.sin(azimuth), torch.cos(azimuth))
    theta, phi = far.ant_pol1.field(zenith, azimuth)
    gain_db = 10.0 * torch.log10(theta**2 + phi**2)
    return {
        "scenario": made,
        "topology": topology,
        "arrays": (near, far),
        "loss": (loss + sigma * normal).numpy(),
        "basic": made.basic_pathloss[0].numpy(),
        "coupling": (loss + sigma * normal - gain_db).T,
        "distance": made.distance_2d[0].numpy(),
        "height": made.h_ut[0].numpy(),
        "in_sight": made.outdoor_los[0].numpy(),
    }


def large(cells: list[str], seeds: range) -> None:
    """Prints how far path loss is from sionna's link by link, and medians of path loss and geometry over drops."""
    from sionna.sys import geometry_sinr_db

    for name in cells:
        scenario = propagation.get(name)
        worst, ours, theirs = 0.0, [], []
        for seed in seeds:
            drop = sionna_drop(name, seed, PER_SECTOR, 2)
            height = np.broadcast_to(drop["height"], drop["distance"].shape)
            mine = propagation.path_loss_db(
                name, drop["distance"], scenario.site_height_m, height, CARRIER_HZ, drop["in_sight"]
            )
            valid = drop["distance"] >= propagation.MIN_M
            worst = max(worst, float(np.abs(mine - drop["basic"])[valid].max()))
            serving = drop["coupling"].argmin(dim=1)
            width = numerology.grid(20.0, 30, "fdd").width_hz
            sinr = geometry_sinr_db(drop["coupling"], scenario.tx_dbm, width, DEVICE_NOISE_DB)
            place = np.arange(len(serving))
            coupling = drop["coupling"].min(dim=1).values.numpy()
            theirs.append((drop["loss"][serving.numpy(), place], coupling, sinr.numpy()))
            ours.append(own_drop(name, seed))
        print(f"{name}: largest difference of basic path loss, link by link: {worst:.4f} dB")
        for place, what in enumerate(("path loss and shadowing", "coupling loss", "geometry SINR")):
            mine, other = ([float(np.median(drop[place])) for drop in side] for side in (ours, theirs))
            spread = " ".join(f"{a - b:+.2f}" for a, b in zip(mine, other, strict=True))
            difference = statistics.mean(mine) - statistics.mean(other)
            told = f"median {statistics.mean(mine):8.2f} here, {statistics.mean(other):8.2f} sionna"
            print(f"{name}: {what:24s} {told}, {difference:+.2f} dB (by seed {spread})")


def own_drop(name: str, seed: int) -> tuple[Doubles, Doubles, Doubles]:
    """Gives loss, coupling loss and geometry of as many devices of ours.

    Devices near each other see the same sites here, and not in sionna's drop, so ours are of a hundred cells.
    """
    link, num = LinkConfig(cell=name, rings=2, load=1.0, duplex="fdd"), 3 * PER_SECTOR // NUM_CELLS
    found = []
    for part in range(NUM_CELLS):
        cell = Cell.from_config(link, ["redcap"] * num, 1000 * seed + part)
        channel, still = cell.channel(0), cell._still
        loss = cell._antennas_db(still.places, np.full(num, 1.5)) - still.gain_db
        found.append((loss[channel.cell, np.arange(num)], -channel.gain_db, channel.down_ratio_db()))
    losses, coupling, geometry = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return losses, coupling, geometry


def slot_by_slot(scenario: str, seed: int, num_slots: int, step_s: float) -> tuple[Doubles, Channel]:
    """Gives each device's downlink in bits a slot, simulated with sionna's channel, EESM, OLLA and block errors.

    Every sector sends all the time; its devices have ten blocks each, side by side. Only one slot in eight is
    simulated, and link adaptation hears of it before the next. The channel given has the mean gains of that drop.
    """
    import torch
    from sionna.phy.channel import cir_to_ofdm_channel, tr38901
    from sionna.sys import OuterLoopLinkAdaptation

    drop = sionna_drop(scenario, seed, 15, 1)
    kind = tr38901.UMi if scenario == "umi" else tr38901.UMa
    model = kind(CARRIER_HZ, "low", *drop["arrays"], "downlink")
    model.set_topology(*drop["topology"])
    grid = numerology.grid(20.0, 30, "fdd")
    with torch.no_grad():
        paths, delays = model(num_slots, 1.0 / step_s)
        tones = (torch.arange(grid.num_blocks) - grid.num_blocks / 2) * grid.block_hz
        power = cir_to_ofdm_channel(tones, paths, delays)[0, :, 0, :, 0].abs() ** 2  # [D, C, slots, blocks]
    mean = power.mean(dim=(2, 3))
    num = len(mean)
    serving = mean.argmax(dim=1)
    density_dbm = propagation.get(scenario).tx_dbm - 10 * np.log10(grid.width_hz)
    noise = 10 ** ((channels.THERMAL_DBM_HZ + DEVICE_NOISE_DB - density_dbm) / 10)
    place = torch.arange(num)
    wanted = power[place, serving]
    ratio = wanted / (power.sum(dim=1) - wanted + noise)  # [D, slots, blocks]
    blocks = 10
    turn = torch.zeros(num, dtype=torch.int64)
    for cell in serving.unique():
        own = torch.nonzero(serving == cell)[:, 0]
        turn[own] = torch.arange(len(own)) % (grid.num_blocks // blocks)
    pick = (turn * blocks)[:, None] + torch.arange(blocks)
    ratio = torch.take_along_dim(ratio, pick[:, None, :].expand(-1, num_slots, -1), 2)
    elements = grid.elements(up=False)
    abstraction = _abstraction()
    outer = OuterLoopLinkAdaptation(abstraction, num, bler_target=0.1, delta_up=0.1)
    heard, back = ratio[:, 0].mean(dim=1), torch.full((num,), -1, dtype=torch.int32)
    count = torch.full((num,), blocks * elements, dtype=torch.int32)
    bits = []
    for slot in range(num_slots):
        scheme = outer(num_allocated_re=count, harq_feedback=back, sinr_eff=heard, mcs_table_index=1, mcs_category=1)
        # As many columns as the slot has elements of a block, so that the block's size is the real one.
        grown = ratio[:, slot].T[None, :, :, None].expand(elements, -1, -1, 1)
        decoded, back, heard, _, _ = abstraction(scheme, sinr=grown, mcs_table_index=1, mcs_category=1)
        bits.append(decoded)
    measured = torch.stack(bits[num_slots // 4 :]).double().mean(dim=0).numpy()
    return measured, given_channel(
        scenario, seed, mean.numpy().astype(np.float64), noise, density_dbm, drop["scenario"]
    )


@cache
def _abstraction() -> Any:
    """Gives sionna's PHYAbstraction, with the curves of schemes 0 to 2 that it lacks, as we have them."""
    from sionna.sys import PHYAbstraction

    known, at = modulation.schemes(1), modulation.LOW_DB + modulation.FINE_DB * np.arange(0, 201, 10)
    schemes = {
        number: {
            "SNR_db": at.tolist(),
            "CBS": {
                int(size): {"BLER": known.lost[number, place, 0:201:10].astype(float).tolist()}
                for place, size in enumerate(modulation.FINE_SIZES)
            },
        }
        for number in (0, 1, 2)
    }
    table = {"category": {1: {"index": {1: {"MCS": schemes}}}}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(table, file)
        file.flush()
        names = PHYAbstraction().bler_table_filenames
        return PHYAbstraction(
            load_bler_tables_from=[*names, file.name], snr_db_interp_min_max_delta=(-14.0, 30.01, 0.1)
        )


def given_channel(name: str, seed: int, mean_DC: Doubles, noise: float, sent_dbm: float, state: Any) -> Channel:
    """Gives our channel of devices with these mean gains to each cell, and noise over what a cell sends."""
    num, scenario, place = len(mean_DC), propagation.get(name), np.arange(len(mean_DC))
    order = np.argsort(-mean_DC, axis=1)
    serving, loudest = order[:, 0], order[:, 1 : 1 + channels.LOUDEST]
    own, each = mean_DC[place, serving], np.take_along_axis(mean_DC, loudest, 1)
    others = mean_DC.sum(axis=1) - own + noise
    indoors, sight = state.indoor[0].numpy(), state.outdoor_los[0].numpy()
    kind = np.where(indoors, 2, np.where(sight[serving, place], 0, 1))

    drawn = np.random.default_rng(seed).standard_normal(num)
    direct = 10.0 ** ((scenario.rice_db[0] + scenario.rice_db[1] * drawn) / 10.0)

    def rice(cells: npt.NDArray[Any]) -> Doubles:
        clear = sight[cells, place] & ~indoors
        return np.where(clear, direct, 0.0)

    # Sionna's slots have no hybrid ARQ and no repetitions, so neither has this channel.
    modem = dataclasses.replace(ACCESS["redcap"], up_repeats=1, down_repeats=1)
    doppler = CARRIER_HZ * 3.0 / 3.6 / propagation.LIGHT_M_S
    fades, known = channels.draw_fades(seed, 0, place, rice(serving), doppler, 1)
    loud = np.stack([rice(cells) for cells in loudest.T], axis=1)
    jam, known_jam = channels.draw_noise(seed, 0, place, each / others[:, None], loud, doppler)
    heard_dbm = 10.0 * np.log10(others) + sent_dbm
    return Channel(
        place, np.zeros((num, 2)), np.zeros(num, np.int64), 10.0 * np.log10(own), sight[serving, place], indoors,
        heard_dbm, heard_dbm, sent_dbm, np.asarray(scenario.delay_spread_s)[kind], fades, known,
        fades / jam, known / known_jam, (modem,) * num, numerology.grid(20.0, 30, "fdd"), -80.0, 0.8, 1,
    )  # fmt: skip


def throughput(cells: list[str], seeds: range, slots: int) -> None:
    """Prints quantiles of the devices' downlink over ten blocks beside sionna's slots, and where each device lies."""
    for name in cells:
        ours, theirs = [], []
        for seed in seeds:
            measured, channel = slot_by_slot(name, seed, slots, 4e-3)
            flow = channel.down(np.full(len(measured), 10.0))
            theirs.append(measured / channel.grid.slot_s)
            ours.append(flow.rate_bps)
        mine, other = np.concatenate(ours), np.concatenate(theirs)
        for quantile in QUANTILES:
            a, b = np.quantile(mine, quantile), np.quantile(other, quantile)
            print(
                f"{name}: {quantile:4.0%} quantile {a / 1e6:7.3f} Mbit/s here, {b / 1e6:7.3f} sionna, {a / b - 1:+.1%}"
            )
        each = np.abs(mine - other) / np.maximum(other, 1e3)
        means = [float(a.mean() / b.mean() - 1) for a, b in zip(ours, theirs, strict=True)]
        spread = " ".join(f"{value:+.1%}" for value in means)
        print(f"{name}: {len(mine)} devices, median difference of one {np.median(each):.1%}, means by seed {spread}")


def speed(num: int) -> None:
    """Prints what a round's radio of many devices takes on one thread: channels, shares, and rates of both ways."""
    for name, settings in (("standing", {}), ("moving", {"mobility": "line", "speed_kmh": 30.0})):
        cell = Cell.from_config(LinkConfig(cell="umi", **settings), ["redcap"] * num, 0)
        took = []
        for round in range(4):
            began = time.process_time()
            channel = cell.channel(round, 10.0 * round)
            blocks, share = channel.fair_blocks(np.ones(num, np.bool_))
            channel.up(blocks, time=share)
            channel.down(blocks, time=share)
            took.append(time.process_time() - began)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{num:,} devices {name}: first round {took[0]:.2f} s, later {min(took[1:]):.2f} s; {most:,.0f} MiB in all"
        )


def main() -> None:
    """Runs what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["large", "throughput", "speed"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed; link adaptation was set on 0 to 4")
    parser.add_argument("--cells", default="umi,uma")
    parser.add_argument("--slots", type=int, default=320, help="slots that are simulated of each drop")
    parser.add_argument("--devices", type=int, default=10_000)
    chosen = parser.parse_args()
    cells, seeds = chosen.cells.split(","), range(chosen.first, chosen.first + chosen.seeds)
    for what in chosen.what:
        if what == "large":
            large(cells, seeds)
        elif what == "throughput":
            throughput(cells, seeds, chosen.slots)
        else:
            speed(chosen.devices)


if __name__ == "__main__":
    main()
