"""Which devices a gateway has, by hand on three people and on dealt rows; and a plant of these devices alone."""

from __future__ import annotations

import numpy as np
import pytest

from midhaul import plant, rng
from midhaul.config import Config
from midhaul.data import Dataset, Federation, federate
from midhaul.errors import ConfigError
from midhaul.federation.claims import members


def people() -> Dataset:
    """Four people with four rows each; the publisher holds out persons 3 and 9."""
    return Dataset(
        name="walks",
        x=np.zeros((16, 2), np.float32),
        y=np.tile(np.arange(2), 8),
        device=np.repeat(np.arange(4), 4),
        device_names=("person 1", "person 3", "person 7", "person 9"),
        held_out=np.repeat([False, True, False, True], 4),
        class_names=("a", "b"),
        licence="",
        source="",
        citation="",
        key="person",
        num_read=16,
    )


def natural() -> Federation:
    return federate(people())


def test_people_are_found_by_their_names_whether_they_train_or_test() -> None:
    assert natural().device_names == ("person 1", "person 7")
    assert members(natural(), "walks:persons=1-3") == (0, 2)
    assert members(natural(), "walks:persons=9,7") == (1, 3)
    assert members(natural(), "walks") == members(natural()) == (0, 1, 2, 3)
    assert members(natural(), "walks:devices=1-2") == (1, 2)


def test_shares_have_everybody_once() -> None:
    parts = [members(natural(), share=f"{k}/2") for k in (1, 2)]
    assert parts == [(0, 2), (1, 3)]
    dealt = federate(people(), partition="iid", num_devices=5, test="device")
    assert [members(dealt, share=f"{k}/3") for k in (1, 2, 3)] == [(0, 3), (1, 4), (2,)]


@pytest.mark.parametrize(
    ("data", "share", "word"),
    [
        ("hops:persons=1", "", "the run is on 'walks'"),
        ("walks:people=1", "", "not of the form walks:devices=1-10,14 or walks:persons=1-10,14"),
        ("walks:persons=4", "", "names person 4, and the run has 1, 3, 7, 9"),
        ("walks:persons=", "", "lists nothing"),
        ("walks:devices=3-1", "", "3-1 is no range"),
        ("walks:persons=4-6", "", "leaves no device of the 4"),
        ("walks:devices=4", "", "names device 4, and the run has 0-3"),
        ("walks", "1/2", "one of the two"),
        ("", "3/2", "K/N with K from 1 to N"),
        ("", "half", "K/N"),
        ("", "4/4", "leaves no device of the 4"),
    ],
)
def test_what_names_nobody_is_refused(data: str, share: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        members(natural(), data, share)


def test_dealt_rows_have_no_people() -> None:
    dealt = federate(people(), partition="iid", num_devices=3, test="device")
    with pytest.raises(ConfigError, match="say walks:devices=0-4"):
        members(dealt, "walks:persons=1")
    assert members(dealt, "walks:devices=2") == (2,)


def test_a_plant_has_its_members_alone() -> None:
    config = Config().replace(
        data_partition="iid", data_num_devices=4, data_max_rows=20, data_test="device", scheme_name="fedavg"
    )
    built = plant.build(config, members=lambda federation: members(federation, share="2/2"))
    assert built.engine.devices == built.engine.test_devices == (1, 3)
    whole = plant.build(config)
    message = whole.kit.fit(whole.kit.program.initial, train="whole", send="whole")
    key = rng.Key(0, 1, rng.SERVER, 0)
    ours = built.engine.exchange(message, key=key)
    assert ours.devices == (1, 3)
    theirs = whole.engine.exchange(message, key=key).of_places([1, 3])
    for name, value in ours.tree.items():
        np.testing.assert_allclose(value, theirs.tree[name], atol=1e-6)


def test_gateways_are_no_engine_of_a_run() -> None:
    with pytest.raises(ConfigError, match="start it with `midhaul serve`"):
        plant.build(Config().replace(run_engine="gateways"))
