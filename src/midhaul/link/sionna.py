"""The large scale of a cell by sionna-no-rt (extra `radio`) instead of our own `propagation`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from midhaul import rng
from midhaul.config import LinkConfig
from midhaul.errors import DependencyError
from midhaul.link import propagation

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_MISSING = "link.large_scale = 'sionna' needs sionna-no-rt; run: pip install 'midhaul[radio]', or set it to 'builtin'"


def losses(
    link: LinkConfig,
    sites: Doubles,
    site_height_m: float,
    places: Doubles,
    heights: Doubles,
    indoors: Flags,
    wall: Doubles,
    seed: int,
) -> tuple[Doubles, Flags]:
    """Gives path loss, walls and shadowing between sites and devices, and who sees whom outdoors.

    Shapes: sites [S, 2], places [D, 2], wall [D] standard normal -> [S, D] twice. Units: decibels. From sionna are path
    loss, sight, depth indoors and the deviation of shadowing, which is drawn for each link by itself: its correlation
    over distance takes a matrix of all devices, which thousands of them have no room for.
    Raises: DependencyError where sionna-no-rt isn't installed.
    """
    try:
        import torch
        from sionna.phy import config
        from sionna.phy.channel import tr38901
    except ImportError:
        raise DependencyError(_MISSING) from None
    hertz = link.carrier_ghz * 1e9
    key = rng.key(seed, 0, rng.SERVER, rng.Use.SIGHT)
    with rng.torch_seed(key):
        config.seed = int(key.words(1)[0] >> 1)
        single: dict[str, Any] = {"polarization": "single", "polarization_type": "V", "carrier_frequency": hertz}
        array = tr38901.PanelArray(num_rows_per_panel=1, num_cols_per_panel=1, antenna_pattern="omni", **single)
        kind = tr38901.UMiScenario if link.cell == "umi" else tr38901.UMaScenario
        scenario = kind(hertz, link.building, array, array, "downlink")

        def batch(values: Any, dtype: Any = torch.float32) -> Any:
            return torch.as_tensor(np.asarray(values)[None], dtype=dtype)

        ground = batch(np.concatenate([places, heights[:, None]], axis=1))
        towers = batch(np.concatenate([sites, np.full((len(sites), 1), site_height_m)], axis=1))
        still = batch(np.zeros((len(places), 3)))
        turned = batch(np.zeros((len(sites), 3)))
        scenario.set_topology(ground, towers, still, turned, still, batch(indoors, torch.bool))
    inside = scenario.distance_2d_in[0].numpy().astype(np.float64)
    walls = np.where(indoors, propagation.wall_loss_db(hertz, link.building, inside, wall), 0.0)
    number = np.arange(len(places), dtype=np.int64)
    normal = rng.normal_of(rng.words_of(seed, 0, number, rng.Use.SHADOW, 2 * len(sites), 255))[:, : len(sites)].T
    shadow = 10.0 * scenario.lsp_log_std[0, ..., 3].numpy() * normal
    return scenario.basic_pathloss[0].numpy() + walls + shadow, scenario.outdoor_los[0].numpy()
