"""The arena: no two buffers that live together share a byte, and it is never smaller than what lives."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from midhaul.devices.arena import Buffer, live_peak, peak, place


@st.composite
def buffers(draw: st.DrawFn) -> list[Buffer]:
    found = []
    for i in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 10))
        found.append(Buffer(f"b{i}", draw(st.integers(0, 64)), first, first + draw(st.integers(0, 6))))
    return found


def overlap(left: Buffer, right: Buffer) -> bool:
    return max(left.offset, right.offset) < min(left.end, right.end)


@given(buffers())
def test_no_two_buffers_that_live_together_share_a_byte(given_: list[Buffer]) -> None:
    placed = place(given_)
    assert [(b.name, b.bytes, b.first, b.last) for b in placed] == [(b.name, b.bytes, b.first, b.last) for b in given_]
    for left, right in itertools.combinations(placed, 2):
        lives_together = bool(set(range(left.first, left.last + 1)) & set(range(right.first, right.last + 1)))
        assert not (lives_together and overlap(left, right))


@given(buffers())
def test_the_arena_holds_what_lives_and_no_more_than_all(given_: list[Buffer]) -> None:
    every_step = [sum(b.bytes for b in given_ if b.first <= step <= b.last) for step in range(20)]
    assert live_peak(given_) == max(every_step)
    assert live_peak(given_) <= peak(place(given_)) <= sum(b.bytes for b in given_)


def test_buffers_that_never_meet_share_their_bytes() -> None:
    placed = place([Buffer("a", 10, 0, 0), Buffer("b", 20, 1, 1), Buffer("c", 5, 2, 9)])
    assert [b.offset for b in placed] == [0, 0, 0]
    assert peak(placed) == 20


def test_a_gap_is_filled_before_the_arena_grows() -> None:
    early, late, middle = Buffer("early", 20, 0, 3), Buffer("late", 8, 4, 9), Buffer("middle", 6, 4, 6)
    placed = place([Buffer("long", 30, 0, 9), early, late, middle])
    assert [b.offset for b in placed] == [0, 30, 30, 38]
    assert peak(placed) == 50 == live_peak(placed)


def test_an_arena_of_nothing_has_no_bytes() -> None:
    assert place([]) == ()
    assert peak([]) == live_peak([]) == 0
