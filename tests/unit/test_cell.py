"""The radio of a cell by hand: TR 38.901, transport blocks, fading, repetitions; and that it is deterministic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import j0

from midhaul import rng
from midhaul.config import LinkConfig
from midhaul.errors import ConfigError
from midhaul.link import channel as channels
from midhaul.link import fading, layout, modulation, numerology, propagation
from midhaul.link.cell import Cell

ONE = np.asarray([1.5])


def cell(radio: str = "redcap", num: int = 200, seed: int = 3, **settings: Any) -> Cell:
    return Cell.from_config(LinkConfig(**{"cell": "umi", **settings}), [radio] * num, seed)


@pytest.mark.parametrize(
    ("scenario", "flat_m", "in_sight", "by_hand"),
    [
        # 3.5 GHz, 1.5 m, sites of 10 and 25 m; break points 4 x 9 x 0.5 x 3.5e9 / c = 210.1 m and 560.4 m
        ("umi", 100.0, True, 32.4 + 21.0 * math.log10(math.hypot(100.0, 8.5)) + 20.0 * math.log10(3.5)),
        ("umi", 400.0, True, 103.2331),
        ("umi", 100.0, False, 22.4 + 35.3 * math.log10(math.hypot(100.0, 8.5)) + 21.3 * math.log10(3.5)),
        ("uma", 100.0, True, 28.0 + 22.0 * math.log10(math.hypot(100.0, 23.5)) + 20.0 * math.log10(3.5)),
        ("uma", 500.0, False, 13.54 + 39.08 * math.log10(math.hypot(500.0, 23.5)) + 20.0 * math.log10(3.5)),
    ],
)
def test_path_loss_is_that_of_table_7_4_1_1(scenario: str, flat_m: float, in_sight: bool, by_hand: float) -> None:
    site_m = propagation.get(scenario).site_height_m
    loss = propagation.path_loss_db(scenario, np.asarray([flat_m]), site_m, ONE, 3.5e9, np.asarray([in_sight]))
    assert loss[0] == pytest.approx(by_hand, abs=0.01)


def test_path_loss_beyond_the_break_point_falls_with_the_fourth_power() -> None:
    near, far = (
        propagation.path_loss_db("umi", np.asarray([d]), 10.0, ONE, 3.5e9, np.asarray([True]))[0] for d in (500.0, 1e3)
    )
    assert far - near == pytest.approx(40.0 * math.log10(2.0), abs=0.01)


def test_sight_is_certain_to_18_m_and_as_table_7_4_2_1_says_behind() -> None:
    away = np.asarray([5.0, 18.0, 50.0, 200.0])
    low = propagation.sight_probability("umi", away, np.full(4, 1.5))
    assert low[:2].tolist() == [1.0, 1.0]
    assert low[2] == pytest.approx(0.36 + math.exp(-50 / 36) * 0.64, abs=1e-12)
    macro = propagation.sight_probability("uma", away, np.full(4, 1.5))
    assert macro[3] == pytest.approx(0.09 + math.exp(-200 / 63) * 0.91, abs=1e-12)
    tall = propagation.sight_probability("uma", away, np.full(4, 22.5))
    assert (tall[2:] > macro[2:]).all()


def test_walls_cost_what_clause_7_4_3_says() -> None:
    assert propagation.wall_loss_db(3.5e9, "high", np.asarray([10.0]), np.asarray([3.0]))[0] == 25.0
    through = 0.3 * 10 ** -(2.0 + 0.2 * 30.0) * 0 + 0.3 * 10**-0.8 + 0.7 * 10**-12.5
    assert propagation.wall_loss_db(30e9, "low", np.zeros(1), np.zeros(1))[0] == pytest.approx(
        5.0 - 10.0 * math.log10(through), abs=1e-9
    )
    assert propagation.wall_loss_db(30e9, "low", np.zeros(1), np.ones(1))[0] - 4.4 == pytest.approx(
        propagation.wall_loss_db(30e9, "low", np.zeros(1), np.zeros(1))[0], abs=1e-9
    )


def test_a_field_is_normal_and_forgets_with_distance() -> None:
    places = np.random.default_rng(0).uniform(-150.0, 150.0, (400, 2))
    fields = [propagation.Field(seed, rng.Use.SHADOW, 8, 13.0) for seed in range(20)]
    here = np.concatenate([field.at(places) for field in fields])
    assert here.mean() == pytest.approx(0.0, abs=0.1)
    assert here.std() == pytest.approx(1.0, abs=0.05)
    for away in (5.0, 13.0, 40.0):
        there = np.concatenate([field.at(places + np.asarray((away, 0.0))) for field in fields])
        assert (here * there).mean() == pytest.approx(math.exp(-away / 13.0), abs=0.06)


def test_devices_are_dropped_in_the_hexagon_and_not_too_near() -> None:
    devices = np.arange(4000)
    places = layout.drop(7, devices, "hexagon", 200.0, np.full(4000, 10.0))
    away = np.hypot(*places.T)
    assert layout.in_hexagon(places, 200.0).all()
    assert away.min() >= 10.0
    # A uniform place is within r of the centre with probability pi r^2 / area, as long as the disc lies inside.
    area = math.sqrt(3.0) / 2.0 * 200.0**2 - math.pi * 10.0**2
    assert (away < 80.0).mean() == pytest.approx(math.pi * (80.0**2 - 10.0**2) / area, abs=0.025)
    assert (layout.drop(7, devices[100:105], "hexagon", 200.0, np.full(5, 10.0)) == places[100:105]).all()
    disc = np.hypot(*layout.drop(7, devices, "disc", 200.0, np.full(4000, 10.0)).T)
    assert math.pi * disc.max() ** 2 == pytest.approx(math.sqrt(3.0) / 2.0 * 200.0**2, rel=0.01)


def test_an_antenna_loses_half_its_power_at_half_its_beam() -> None:
    turn = np.radians([[30.0, 30.0 + 65.0 / 2.0, 150.0, 210.0]])
    gain = layout.sector_gain_db(
        np.full((1, 4), 100.0), turn, np.full((1, 4), 100.0 * math.tan(0.1)), 3, math.degrees(0.1)
    )
    assert gain[0, 0, 0] == pytest.approx(8.0)
    assert gain[0, 0, 1] == pytest.approx(5.0)
    assert gain[0, 1, 2] == pytest.approx(8.0)
    assert gain[0, 0, 3] == pytest.approx(8.0 - 30.0)


def test_grids_are_those_of_ts_38_101_1() -> None:
    grid = numerology.grid(100.0, 30, "DDDSU")
    assert (grid.num_blocks, grid.slot_s, grid.up_share) == (273, 0.5e-3, 0.2)
    assert grid.down_share == pytest.approx((3 + 10 / 14) / 5)
    assert numerology.grid(20.0, 15, "fdd").num_blocks == 106


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ((0.0, 30, "DDDSU"), "bandwidth of 0"),
        ((7.0, 30, "DDDSU"), "doesn't exist"),
        ((20.0, 45, "fdd"), "NR has"),
        ((20.0, 30, "DDDD"), "at least one D and one U"),
    ],
)
def test_what_is_no_grid_is_refused(told: tuple[float, int, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        numerology.grid(*told)


def test_transport_blocks_are_those_of_ts_38_214() -> None:
    def size(elements: int, bits: int, rate: float) -> int:
        return int(numerology.block_bits(np.asarray([elements]), np.asarray([bits]), np.asarray([rate]))[0])

    # N_info = 132 x 2 x 120 / 1024 = 30.9: n = 3, 8 floor(30.9 / 8) = 24, the least of the table.
    assert size(132, 2, 120 / 1024) == 24
    # N_info = 1320 x 4 x 378 / 1024 = 1949.06: n = 4, 16 x 121 = 1936, and the next size of the table is 2024.
    assert size(1320, 4, 378 / 1024) == 2024
    # N_info = 6732 x 6 x 719 / 1024 = 28361.2: n = 9, 512 round(28337.2 / 512) = 28160; C = ceil(28184 / 8424) = 4;
    # 32 ceil(28184 / 32) - 24 = 28168.
    assert size(6732, 6, 719 / 1024) == 28168
    num, bits = numerology.code_blocks(np.asarray([28168]), np.asarray([719 / 1024]))
    assert (int(num[0]), int(bits[0])) == (4, (28168 + 24) // 4 + 24)


def test_blocks_are_lost_less_as_the_ratio_grows_and_more_at_higher_schemes() -> None:
    for table in (1, 2):
        known = modulation.schemes(table)
        assert (np.diff(known.lost, axis=2) <= 1e-6).all()
        assert known.lost[:, :, 0].min() == 1.0
        limits = modulation.limits_db(table, np.asarray([1320]))[0]
        limits = limits[np.isfinite(limits)]  # the last scheme of table 2 needs more than was simulated
        assert len(limits) >= len(known.bits) - 1
        # Two schemes of one efficiency, 9 and 10 or 16 and 17, may change places by a little.
        assert (np.diff(limits) > -0.3).all()
        assert limits[-1] - limits[0] > 20.0


def test_the_chosen_scheme_is_the_last_whose_blocks_arrive() -> None:
    limits = np.asarray([[0.0, 2.0, 4.0, 6.0]] * 5)
    scheme, repeats = modulation.choose(limits, np.asarray([-7.0, -1.0, 0.0, 5.0, 99.0]), 2, np.full(5, 4))
    assert scheme.tolist() == [0, 0, 0, 2, 2]
    assert repeats.tolist() == [4, 2, 1, 1, 1]


def test_hybrid_arq_sends_as_often_as_blocks_are_lost() -> None:
    scheme, elements = np.asarray([10, 10, 10]), np.asarray([1320] * 3)
    limit = modulation.limits_db(1, elements)[0, 10]
    at = np.asarray([limit, limit + 5.0, limit - 30.0])
    sent = modulation.transfer(1, scheme, elements, at, np.ones(3, np.int64), 4)
    size = numerology.block_bits(elements, np.full(3, 4), np.full(3, 340 / 1024))
    num, bits = numerology.code_blocks(size, np.full(3, 340 / 1024))
    once = 1.0 - (1.0 - modulation.block_loss(modulation.schemes(1), scheme, bits, at)) ** num
    twice = 1.0 - (1.0 - modulation.block_loss(modulation.schemes(1), scheme, bits, at + 10 * math.log10(2))) ** num
    assert 0.0 < once[0] <= 0.1
    assert twice[0] < 1e-3  # 3 dB more from the second copy
    assert sent.transmissions[0] == pytest.approx(1.0 + once[0] + twice[0], abs=1e-3)
    assert sent.transmissions[1:].tolist() == [1.0, 4.0]
    assert sent.lost.tolist() == [pytest.approx(0.0, abs=1e-6), 0.0, 1.0]


def test_a_flat_channel_is_worth_its_ratio_and_a_fading_one_less() -> None:
    flat, fading_N = np.full((2, 4), 10.0), np.asarray([[1.0, 5.0, 14.0, 20.0]] * 2)
    scheme = np.asarray([5, 20])
    for chosen in (None, scheme):
        assert modulation.effective_db(1, flat, chosen) == pytest.approx(10.0)
        assert (modulation.effective_db(1, fading_N, chosen) < 10.0).all()
    by_hand = -1.7 * math.log(np.exp(-fading_N[0] / 1.7).mean())
    assert modulation.effective_db(1, fading_N, scheme)[0] == pytest.approx(10.0 * math.log10(by_hand))


def test_fading_remembers_as_jakes_says_and_has_mean_power_one() -> None:
    doppler, step_s = fading.doppler_hz(3.0 / 3.6, 3.5e9), 5e-3
    memory = fading.memory(doppler, step_s)
    assert memory == pytest.approx(j0(2.0 * math.pi * 9.7285 * step_s), abs=1e-4)
    states = fading.states(5, 2, np.arange(4000), 6, 2, memory)
    assert (np.abs(states) ** 2).mean() == pytest.approx(1.0, abs=0.02)
    for lag in (1, 3):
        found = (states[:, lag:] * states[:, :-lag].conj()).mean()
        assert found.real == pytest.approx(memory**lag, abs=0.02)
        assert found.imag == pytest.approx(0.0, abs=0.02)
    power = fading.power(states, np.full(4000, 10.0**0.9))
    assert power.mean() == pytest.approx(1.0, abs=0.02)
    assert power.std() < 0.6 < (np.abs(states) ** 2).std()


def test_a_wide_band_has_many_parts_that_fade_by_themselves() -> None:
    parts = channels.num_parts(np.asarray([180e3, 3.6e6, 18e6]), np.asarray([1e-7, 10.0**-6.62, 10.0**-6.62]))
    # 2 pi 0.24 us 3.6 MHz = 5.43: 1 / (2 (atan(5.43) / 5.43 - ln(30.4) / 58.9)) = 2.55, and 2 is the nearest power.
    assert parts.tolist() == [1, 2, 8]


def test_interference_that_fades_has_its_mean_and_does_less_harm() -> None:
    shares, rice = np.asarray([[0.6, 0.3]] * 3000), np.zeros((3000, 2))
    real, known = channels.draw_noise(1, 1, np.arange(3000), shares, rice, 9.7)
    for fades in (real, known):
        assert fades.mean() == pytest.approx(1.0, abs=0.02)
        assert fades.min() >= 0.1
    assert np.corrcoef(real.ravel(), known.ravel())[0, 1] > 0.9
    assert (10.0 * np.log10(1.0 / real)).mean() > 0.7


def test_the_words_of_many_are_those_of_each() -> None:
    many = rng.words_of(9, 4, np.asarray([2, 7]), rng.Use.FADING, 6, index=3)
    for row, device in zip(many, (2, 7), strict=True):
        key = rng.key(9, 4, device, rng.Use.FADING).at(3)
        assert (row == key.words(6)).all()
        assert rng.normal_of(row).tolist() == rng.normal(key, 6).tolist()
        assert rng.uniform_of(row).tolist() == rng.uniform(key, 6).tolist()


@pytest.mark.parametrize("settings", [{}, {"mobility": "wander", "speed_kmh": 30.0}, {"cell": "uma", "height_m": 0.0}])
def test_a_device_has_the_same_channel_alone_and_among_others(settings: dict[str, Any]) -> None:
    some = np.asarray([17, 3, 160])
    whole = cell(**settings).channel(5, 120.0)
    part = cell(**settings).channel(5, 120.0, devices=some)
    for name in ("places", "cell", "gain_db", "fades", "down_density_dbm_hz", "delay_spread_s"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name)[some], rel=1e-9), name
    flows = whole.up(np.full(200, 5.0)), part.up(np.full(3, 5.0))
    assert flows[1].rate_bps == pytest.approx(flows[0].rate_bps[some])


def test_another_seed_or_round_is_another_channel() -> None:
    one, other, later = cell().channel(1), cell(seed=4).channel(1), cell().channel(2)
    assert (one.gain_db != other.gain_db).all()
    assert (one.gain_db == later.gain_db).all()
    assert (one.fades != later.fades).any(axis=(1, 2)).all()


def test_devices_that_move_keep_their_speed_and_stay() -> None:
    devices = np.arange(50)
    start = layout.drop(1, devices, "hexagon", 200.0, np.full(50, 10.0))
    for how in ("line", "wander"):
        before, after = (layout.moved(1, devices, start, 2.0, time, how, 1e6) for time in (50.0, 51.0))
        assert np.hypot(*(after - before).T) == pytest.approx(np.full(50, 2.0), rel=1e-6)
        late = layout.moved(1, devices, start, 2.0, 5000.0, how, 100.0)
        assert np.abs(late).max() <= 100.0
    assert (layout.moved(1, devices, start, 2.0, 50.0, "static", 100.0) == start).all()
    # A walk of 128 legs of 20 s, and back by the same way.
    there, back = (layout.moved(1, devices, start, 2.0, time, "wander", 1e6) for time in (900.0, 2 * 2560.0 - 900.0))
    assert there == pytest.approx(back)
    assert layout.moved(1, devices, start, 2.0, 1e9, "wander", 100.0).shape == (50, 2)


def test_power_control_makes_up_for_a_share_of_the_loss() -> None:
    channel = cell(alpha=0.8, p0_dbm=-90.0).channel(0)
    one, four = (channel.controlled_power_dbm(np.full(200, blocks)) for blocks in (1.0, 4.0))
    free = four < 23.0
    assert free.any()
    assert one[free] == pytest.approx(-90.0 + 10 * math.log10(2.0) - 0.8 * channel.gain_db[free])
    assert four[free] - one[free] == pytest.approx(10 * math.log10(4.0))
    assert one.max() <= 23.0


def test_shares_use_the_band_up_and_no_more() -> None:
    link = LinkConfig(cell="umi", sectors=1, rings=0)
    mixed = Cell.from_config(link, ["nb_iot", "redcap", "ble", "nr_embb", "cat_m1"] * 3, 1)
    channel = mixed.channel(0)
    assert channel.devices.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14]
    blocks, time = channel.fair_blocks(np.ones(12, np.bool_))
    assert (time == 1.0).all()
    assert blocks[0] == 0.5
    assert blocks[3] == 3.0
    assert 47.0 < blocks.sum() <= 51.0
    crowd = cell("redcap", 400, sectors=1, rings=0).channel(0)
    blocks, time = crowd.fair_blocks(np.ones(400, np.bool_))
    assert (blocks == 1.0).all()
    assert (blocks * time).sum() == pytest.approx(51.0)


def test_nearer_devices_are_faster_and_more_band_is_too() -> None:
    channel = cell(num=400, indoors=0.0).channel(0)
    flow, wide = channel.down(np.full(400, 5.0)), channel.down(np.full(400, 20.0))
    assert (wide.rate_bps >= 2.0 * flow.rate_bps)[flow.served].all()
    order = np.argsort(channel.down_ratio_db())
    assert flow.rate_bps[order[-100:]].mean() > 2.0 * flow.rate_bps[order[:100]].mean()


def test_narrow_modems_reach_farther_by_repetition() -> None:
    told: dict[str, Any] = {"cell": "uma", "inter_site_m": 3000.0, "rings": 0, "indoors": 1.0, "p0_dbm": -110.0}
    served = {}
    for radio in ("nb_iot", "redcap"):
        channel = cell(radio, 300, **told).channel(0)
        flow = channel.up(np.full(300, 0.5 if radio == "nb_iot" else 10.0))
        served[radio] = flow.served.mean()
        assert (flow.rate_bps[~flow.served] == 0.0).all()
        assert flow.rate_bps.max() <= channel.access[0].up_peak_bps
    assert served["redcap"] < served["nb_iot"]


def test_load_of_the_neighbours_is_heard_in_both_directions() -> None:
    quiet, loud = cell(load=0.0).channel(0), cell(load=1.0).channel(0)
    assert quiet.up_density_dbm_hz[0] == pytest.approx(-169.0)
    assert loud.up_density_dbm_hz[0] > -169.0
    assert (loud.down_density_dbm_hz > quiet.down_density_dbm_hz).all()


def test_a_cell_without_cellular_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nobody in it; set link\.radio to one of nr_embb"):
        cell("ble")
