"""The cell's large scale from sionna-no-rt (extra `radio`), and ours beside it link by link."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from midhaul.config import LinkConfig
from midhaul.errors import ConfigError, DependencyError
from midhaul.link.cell import Cell


def cell(seed: int = 3, **settings: Any) -> Cell:
    link = LinkConfig(**{"cell": "umi", "large_scale": "sionna", **settings})
    return Cell.from_config(link, ["redcap"] * 300, seed)


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sionna", None)
    with pytest.raises(DependencyError, match=r"pip install 'midhaul\[radio\]'"):
        cell().channel(0)


def test_sionna_s_places_stand_still() -> None:
    with pytest.raises(ConfigError, match=r"set link\.mobility = 'static'"):
        cell(mobility="line")


@pytest.mark.parametrize(("kind", "ghz", "height_m"), [("umi", 3.5, 1.5), ("uma", 3.5, 1.5), ("uma", 28.0, 4.5)])
def test_our_path_loss_is_sionna_s_where_sight_and_depth_are_the_same(kind: str, ghz: float, height_m: float) -> None:
    pytest.importorskip("sionna", reason="needs sionna-no-rt; pip install 'midhaul[radio]'")
    from midhaul.link import propagation, sionna

    link = LinkConfig(cell=kind, carrier_ghz=ghz, indoors=0.0)
    other = cell(cell=kind, carrier_ghz=ghz, indoors=0.0)
    places, heights = other._places(other.devices, 0.0), np.full(300, height_m)
    outdoors, height = np.zeros(300, np.bool_), propagation.get(kind).site_height_m
    told, sight = sionna.losses(link, other.sites, height, places, heights, outdoors, np.zeros(300), 3)
    flat = np.hypot(*np.moveaxis(places[None] - other.sites[:, None], -1, 0))
    ours = propagation.path_loss_db(kind, flat, height, heights, ghz * 1e9, sight)
    shadow = told - ours
    for seen, sigma in ((True, propagation.get(kind).shadow_db[0]), (False, propagation.get(kind).shadow_db[1])):
        assert shadow[sight == seen].std() == pytest.approx(sigma, rel=0.15)
        assert shadow[sight == seen].mean() == pytest.approx(0.0, abs=0.15 * sigma)
    again, _ = sionna.losses(link, other.sites, height, places, heights, outdoors, np.zeros(300), 3)
    assert (again == told).all()
    chance = propagation.sight_probability(kind, flat, np.broadcast_to(heights, flat.shape))
    assert sight.mean() == pytest.approx(chance.mean(), abs=0.03)


def test_a_cell_of_sionna_s_is_close_to_ours_in_the_middle() -> None:
    pytest.importorskip("sionna", reason="needs sionna-no-rt; pip install 'midhaul[radio]'")
    theirs, ours = (
        np.concatenate([cell(seed, large_scale=name).channel(0).down_ratio_db() for seed in range(6)])
        for name in ("sionna", "builtin")
    )
    assert np.median(ours) == pytest.approx(np.median(theirs), abs=1.5)
    assert (cell().channel(0).gain_db == cell().channel(0).gain_db).all()
