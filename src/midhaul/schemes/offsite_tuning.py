"""Offsite tuning (TL): devices tune a large model that they never see, and never show their data.

Source: Xiao, Lin, Han, "Offsite-tuning: transfer learning without full model", 2023, section 3. The server gives out
its first and last blocks, the adapters, with a lossy emulator of what lies between: some of the blocks, distilled on
public data to give what all of them give. Devices train the adapters around the frozen emulator and send them back
(here the mean over devices, where the paper has one data owner); plugged in, they tune the whole large model.
"""

from __future__ import annotations

import torch
from torch import nn

from midhaul import rng, tree
from midhaul import server as site
from midhaul.config import SchemeConfig
from midhaul.fleet import Fleet
from midhaul.kit import (
    PROPERTIES,
    SIMULATED,
    Kit,
    Scheme,
    Work,
    evaluate_large,
    evaluate_shared,
    learned,
    load_all,
    mean_loss,
)
from midhaul.message import Op, Replies
from midhaul.models import emulator
from midhaul.server import Optimizer, Server
from midhaul.tree import Tree


def init(fleet: Fleet, kit: Kit, key: rng.Key) -> Server:
    """The server trains the large model on public data and distils the emulator; devices load both adapters and it."""
    start = rng.key(key.seed, key.round, rng.SERVER, rng.Use.PUBLIC)
    large = learned(kit, kit.server_model(), start, "the large model learns")
    whole = {name: large[name.partition(".")[2]] for name in kit.program.initial}
    whole |= distilled(kit, large, whole, start.at(5 << 16))
    load_all(fleet, whole, key)
    return Server(whole, large)


def distilled(kit: Kit, large: Tree, whole: Tree, key: rng.Key) -> Tree:
    """Gives the emulator's tensors after learning to give what all the blocks give, by the mean squared distance."""
    device = kit.program.module
    assert isinstance(device, nn.Sequential)
    middle = emulator.middle(kit.server_model(), device)
    h = site.predict(device.get_submodule("before"), _under("before", whole), kit.public.x)
    wanted = site.predict(middle, {name: large[name] for name in tree.of(middle)}, h).flatten(1)
    kept = nn.Sequential()
    kept.add_module("emulator", device.get_submodule("emulator"))
    kept.add_module("flatten", nn.Flatten())
    end, _, _ = site.train(
        kept,
        {name: whole[name] for name in tree.of(kept)},
        h,
        torch.full_like(kit.public.y, -1),
        Optimizer("adam", kit.cfg.distill_lr),
        epochs=kit.cfg.distill_epochs,
        batch=kit.config.large.batch,
        key=key,
        soft=wanted,
        soft_weight=1.0,
        loss="mse",
        progress=kit.progress,
        label="the emulator is distilled",
    )
    return end


def round(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> tuple[Server, dict[str, float]]:
    """A cohort trains the adapters around the emulator; their mean is plugged into the large model."""
    adapters = tree.select(server.tree, kit.program.sendable(emulator.ADAPTERS))
    message = kit.fit(adapters, train=emulator.ADAPTERS, send=emulator.ADAPTERS)
    up = fleet.exchange(message, devices=kit.cohort(fleet, key), key=key)
    if not len(up):
        return server, {}
    mean = kit.mean(up.tree, up.weight)
    plugged = tree.merge(server.large, emulator.of_large(mean))
    return Server(tree.merge(server.tree, mean), plugged), mean_loss(up)


def evaluate(server: Server, fleet: Fleet, kit: Kit, key: rng.Key) -> Replies:
    """Tests what lies on the devices, the adapters around the emulator. `evaluate_large` tests them plugged in."""
    return evaluate_shared(server, fleet, kit, key)


def work(cfg: SchemeConfig) -> tuple[Work, ...]:
    """A device trains the adapters through the emulator, and uses both."""
    return (Work(Op.FIT, emulator.ADAPTERS), Work(Op.PREDICT))


def _under(part: str, whole: Tree) -> Tree:
    return {name.removeprefix(f"{part}."): value for name, value in whole.items() if name.startswith(f"{part}.")}


OFFSITE_TUNING = Scheme(
    "offsite_tuning",
    "adapters tuned around a lossy emulator, plugged into the large model",
    "TL",
    "Xiao et al. 2023",
    init,
    round,
    evaluate,
    work,
    "both ways",
    part="emulator",
    large="teacher",
    needs_public=True,
    evaluate_large=evaluate_large,
    admits=PROPERTIES,
    engines=SIMULATED,
)
