"""The server's half of a federated split step: on each device's batch in turn, or once on the batches of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from midhaul import plant, rng, tree
from midhaul.config import Config
from midhaul.errors import ConfigError
from midhaul.halves import server_steps
from midhaul.kit import Kit
from midhaul.message import Reply, gather
from midhaul.program import Examples, Program

KEY = rng.Key(0, 1, rng.SERVER, int(rng.Use.ORDER))


def behind(server_step: str) -> tuple[Kit, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gives a kit with a server half of one layer, that half's tree, and its optimiser's state."""
    torch.manual_seed(0)
    large = nn.Linear(4, 3)
    config = Config().replace(
        scheme_server_step=server_step, large_optimizer="sgd", large_lr=0.5, large_weight_decay=0.0
    )
    kit = Kit(config, Program(nn.Linear(2, 4), (2,)), large, Examples(torch.zeros(0, 2), torch.zeros(0).long()), 3)
    whole = tree.of(large)
    return kit, whole, kit.half_optimizer().init(whole)


def replies(*counts: int) -> tuple[dict[int, Reply], list[Reply]]:
    """Gives the activations and labels of devices with so many rows."""
    torch.manual_seed(1)
    each = [Reply({"h": torch.randn(n, 4), "y": torch.arange(n) % 3}, float(n)) for n in counts]
    return dict(enumerate(each)), each


def test_one_step_is_on_the_mean_of_all_rows_and_each_device_gets_the_slope_of_its_own() -> None:
    kit, whole, memory = behind("cohort")
    named, each = replies(2, 5, 3)
    halves = dict.fromkeys(named, (whole, memory))
    g, loss = server_steps(gather(named), halves, kit, KEY, copies=False)
    leaves = {name: value.clone().requires_grad_(True) for name, value in whole.items()}

    def logits(h: torch.Tensor) -> torch.Tensor:
        return h @ leaves["weight"].T + leaves["bias"]

    h, y = torch.cat([r.tree["h"] for r in each]), torch.cat([r.tree["y"] for r in each])
    mean = nn.functional.cross_entropy(logits(h), y)
    slopes = torch.autograd.grad(mean, list(leaves.values()))
    for (name, value), slope in zip(whole.items(), slopes, strict=True):
        for large, _ in halves.values():
            assert torch.allclose(large[name], value - 0.5 * slope, atol=1e-6)
    assert loss == pytest.approx(10 * float(mean.detach()), rel=1e-6)
    for place, reply in enumerate(each):
        cut = reply.tree["h"].clone().requires_grad_(True)
        (own,) = torch.autograd.grad(nn.functional.cross_entropy(logits(cut), reply.tree["y"]), [cut])
        assert torch.allclose(g[place, : len(own)], own, atol=1e-6)
        assert not g[place, len(own) :].any()


def test_with_one_device_both_ways_are_one() -> None:
    ends = []
    for how in ("device", "cohort"):
        kit, whole, memory = behind(how)
        halves = {0: (whole, memory)}
        g, loss = server_steps(gather(replies(6)[0]), halves, kit, KEY, copies=False)
        ends.append({**halves[0][0], **halves[0][1], "g": g, "loss": torch.tensor(loss)})
    assert tree.largest_difference(*ends) == 0.0


@pytest.mark.parametrize("name", ["federated_split_v1", "split", "fedavg"])
def test_halves_of_their_own_can_t_step_together(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"one server half behind all devices \(.*federated_split.*\), not {name};"):
        plant.build(Config().replace(scheme_name=name, scheme_server_step="cohort"))
