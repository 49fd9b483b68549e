"""Options of each device in a plan: what is reckoned is what a run counts, and what is chosen is what a run does."""

from __future__ import annotations

import numpy as np
import pytest

from midhaul import config as settings
from midhaul import plan, plant, train
from midhaul.config import Config
from midhaul.data import load
from midhaul.goals import goal
from midhaul.offers import Offer, Offers, can_have_bits, changes_of, differ, of_fleet
from midhaul.plan import mixes, table
from midhaul.plan.mixes import Recipe
from midhaul.variants import Variant

MIXED = Config().replace(
    data_name="digits", data_partition="iid", data_num_devices=6, data_test="shared", data_max_rows=40,
    fleet_board="stm32l4,nrf52840,esp32s3", tiny_model="mlp", tiny_options={"hidden": [24]}, large_model="mlp_large",
    scheme_widths="1,0.5,0.25", scheme_batch=16, run_rounds=2,
)  # fmt: skip
SPLIT = {"tiny_options": {"hidden": [24, 12]}, "scheme_name": "federated_split_mixed", "data_max_rows": 20}
RANKS = {"scheme_name": "hetlora", "scheme_ranks": "4,1", "tiny_options": {"hidden": [24, 12]}}
CELL = {"link_radio": "redcap", "link_cell": "umi", "link_energy": "transfer", "fleet_board": "stm32l4"}


def offers(config: Config, *, with_bits: bool) -> tuple[plant.Plant, Offers]:
    data = load("digits")
    built = plant.build(config, dataset=data)
    return built, of_fleet(built, config, data, with_bits=with_bits)


@pytest.mark.parametrize(
    ("changes", "with_bits", "close"),
    [
        ({"scheme_name": "heterofl"}, False, 0.01),
        ({"scheme_name": "heterofl"}, True, 0.02),
        ({"scheme_name": "fedavg"}, True, 0.02),
        ({"scheme_name": "fedavg", "link_down": "delta,quantise:8", "link_energy": "states"}, True, 0.02),
        (SPLIT, False, 0.02),
        (RANKS, False, 0.01),
        ({"scheme_name": "heterofl", **CELL}, False, 0.02),
        ({"scheme_name": "fedavg", "fleet_speed_spread": 0.5}, True, 0.02),
    ],
)
def test_what_is_reckoned_is_what_a_round_counts(changes: dict[str, object], with_bits: bool, close: float) -> None:
    """Devices get options in turn; a round's joules, seconds and bytes are those of the reckoning."""
    config = MIXED.replace(**changes)
    built, found = offers(config, with_bits=with_bits)
    picks = np.arange(6) % len(found.offers)
    picked = [found.offers[place] for place in picks]
    mixed = config.replace(**dict(changes_of(picked, built)))
    # What is sent before the first round, or whole in it, is no round's; else the first round is like any other.
    before = 1.0 if config.scheme.name == "hetlora" or config.link.down != "none" else 0.0
    one = train.run(mixed.replace(run_rounds=1)).summary
    two = train.run(mixed).summary if before else one
    at = np.arange(6), picks
    for name in ("uplink_bytes", "downlink_bytes"):
        assert getattr(found, name)[at].sum() == pytest.approx(two[name] - before * one[name], rel=close), name
    spent = [
        sum(sum(end["spent"]["joules"][what]) for what in ("compute", "transmit", "receive")) for end in (one, two)
    ]
    assert found.joules[at].sum() == pytest.approx(spent[1] - before * spent[0], rel=2 * close)
    if config.scheme.name != "federated_split_mixed":  # whose devices wait for one another at every batch
        took_s = two["simulated_seconds"] - before * one["simulated_seconds"]
        assert found.seconds[at].max() == pytest.approx(took_s, rel=0.05)


def test_what_an_option_is_worth() -> None:
    """24 hidden units of 64 inputs and 10 outputs are 1,810 parameters, 12 are 910."""
    built, found = offers(MIXED.replace(scheme_name="heterofl"), with_bits=False)
    rows = np.array([len(own) for own in built.federation.train])
    assert [offer.variant.width for offer in found.offers] == [1.0, 0.5, 0.25]
    assert found.value[:, 0].tolist() == rows.tolist()
    assert found.value[:, 1].tolist() == pytest.approx((rows * 910 / 1810).tolist())
    assert found.now.tolist() == [0] * 6
    _, coded = offers(MIXED, with_bits=True)
    assert [offer.bits for offer in coded.offers] == [8, 6, 4, 3]
    assert (np.diff(coded.value, axis=1) < 0.0).all()
    assert (np.diff(coded.uplink_bytes, axis=1) < 0.0).all()
    assert coded.value[0, 0] == pytest.approx(rows[0], rel=0.01)


def test_a_board_without_room_for_the_wide_model_is_not_given_it() -> None:
    small = MIXED.replace(
        scheme_name="heterofl", tiny_options={"hidden": [300]}, fleet_board="stm32l4,rpi4", scheme_widths="1,0.1"
    )
    built, found = offers(small, with_bits=False)
    assert found.fits.tolist() == [[False, True], [True, True]] * 3
    made = mixes.mix(Recipe("joules", 1.0, (), with_bits=False), built, small, load("digits"))
    assert dict(made.changes) == {"scheme_width_mix": "0.1*1,1*1,0.1*1,1*1,0.1*1,1*1"}
    assert made.label == "width 0.1 on 3, 1 on 3"
    assert made.about.startswith("3 devices on rpi4: width 1 on all. 3 devices on stm32l4: width 0.1 on 3.")


def test_a_mix_keeps_to_its_limits_and_a_run_of_it_spends_no_more() -> None:
    config = MIXED.replace(scheme_name="heterofl", fleet_board="stm32l4,nrf52840,esp32s3,rp2040")
    built, found = offers(config, with_bits=True)
    full = found.joules[np.arange(6), found.now].sum()
    recipe = Recipe("joules", 1.0, (("joules", 0.5 * full),), with_bits=True)
    best, limits = mixes.chosen(recipe, found, built)
    assert not best.over
    assert best.taken["joules"] <= limits["joules"] <= 0.5 * full
    mixed = config.replace(**dict(mixes.mix(recipe, built, config, load("digits"), found).changes))
    one, two = (train.run(mixed.replace(run_rounds=rounds)).summary for rounds in (1, 2))
    assert two["device_joules"] - one["device_joules"] <= 0.52 * full


def test_a_round_that_no_mix_keeps_to_gives_the_nearest_and_says_so() -> None:
    config = MIXED.replace(scheme_name="heterofl")
    built, found = offers(config, with_bits=False)
    least = float(found.joules.min(axis=1).sum())
    recipe = Recipe("joules", 1.0, (("joules", least / 2.0),), with_bits=False)
    made = mixes.mix(recipe, built, config, load("digits"), found)
    assert "of joules, the nearest is 1e+02 % over" in made.nearest
    assert dict(made.changes) == {"scheme_width_mix": "0.25*6"}


def test_where_others_are_left_the_recipe_deals_to_them_anew() -> None:
    config = MIXED.replace(scheme_name="heterofl", fleet_board="stm32l4,rp2040")
    data = load("digits")
    built = plant.build(config, dataset=data)
    made = mixes.mix(Recipe("joules", 0.5, (), with_bits=False), built, config, data)
    mixed = config.replace(**dict(made.changes))
    assert mixes.for_others(made, mixed, 6, data) == ()
    fewer = dict(mixes.for_others(made, mixed.replace(data_num_devices=4), 6, data))
    counts = [int(part.partition("*")[2]) for part in fewer["scheme_width_mix"].split(",")]
    assert sum(counts) == 4
    plant.build(mixed.replace(data_num_devices=4, **fewer), dataset=data)


def test_the_cheapest_cut_is_another_on_another_board() -> None:
    """A core without floats is cut early and sends more; one that computes cheaply goes on to where little is sent."""
    config = MIXED.replace(
        **{**SPLIT, "tiny_options": {"hidden": [48, 4]}}, fleet_board="rp2040,rpi4", link_radio="redcap"
    )
    built, found = offers(config, with_bits=False)
    best, _ = mixes.chosen(Recipe("joules", 0.0, (), with_bits=False), found, built)
    assert best.picks.tolist() == found.joules.argmin(axis=1).tolist()
    assert (found.value == found.value[:, :1]).all()


def test_devices_that_are_alike_get_no_mix() -> None:
    alike = plant.build(MIXED.replace(fleet_board="stm32l4"))
    assert not differ(alike)
    assert mixes.recipes(alike, goal("accuracy=0.9"), 8) == []
    assert can_have_bits(alike)
    assert not can_have_bits(plant.build(MIXED.replace(link_up="delta,topk:0.1")))
    unlike = plant.build(MIXED.replace(scheme_name="heterofl"))
    made = mixes.recipes(unlike, goal("accuracy=0.9", "joules=8,hours=1"), 8)
    assert [one.with_bits for one in made] == [False, True, True]
    assert made[0].limits == (("joules", 1.0), ("seconds", 450.0))


def test_a_label_says_how_many_have_what() -> None:
    wide, narrow = Offer(Variant(), 8), Offer(Variant(width=0.5), 4)
    assert mixes.label([narrow, wide, narrow]) == "width 0.5 on 2, 1 on 1; bits 4 on 2, 8 on 1"
    assert mixes.label([Offer(Variant(cut="relu1"))]) == "cut relu1 on 1"


def test_a_plan_offers_mixes_and_a_run_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midhaul.plan.search.changes", lambda candidate, plant: [])
    given = MIXED.replace(link_radio="nb_iot", run_rounds=4, scheme_lr=0.1, scheme_epochs=2)
    found = plan.plan(given, goal("accuracy=0.6", "hours=2", "uplink_bytes"), schemes=["fedavg"])
    dealt = [(tried, forecast) for tried, forecast in found.tried if tried.candidate.mix is not None]
    assert dealt
    for tried, _ in dealt:
        again = settings.from_table(settings.to_table(tried.candidate.config(given)))
        assert again.link.up_bits.count("*") >= 1
    told = table.to_table(found)
    assert any("bits" in one["how"] for one in told["candidates"])
