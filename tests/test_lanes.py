"""What counts as slow, told by the run times themselves; and who may read how much."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, strategies as st

from streamq.lanes import (
    BINS,
    ENOUGH,
    LEAST_SLOW_MS,
    RUN_BINS,
    HintJudge,
    Learned,
    hint_bin,
    hint_cut,
    limit_of,
    measured_cut,
    reads,
    run_bin,
    slow_right,
    slow_room,
    slow_share,
    whose,
)


def counted(values, bin_of=run_bin) -> list[int]:
    """Count values by their bins."""
    counts = [0] * (RUN_BINS if bin_of is run_bin else BINS)
    for value in values:
        counts[bin_of(value)] += 1
    return counts


def test_the_limit_lies_in_the_valley_between_two_kinds_of_users():
    """In its middle, as far from one as from the other."""
    assert limit_of(counted([10] * 800 + [1000] * 200)) == pytest.approx(107.6, abs=0.1)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_the_valley_is_found_whatever_the_share_of_the_slow(share):
    """A fan-out shows the fast ones first, and the slow ones when they end."""
    dice = random.Random(1)
    times = [(200 if place < share * 1000 else 2) * dice.uniform(0.7, 1.5) for place in range(1000)]
    limit = limit_of(counted(times))
    assert limit is not None
    assert 4 <= limit <= 140


def test_of_a_heavy_tail_the_slowest_fifth_is_slow():
    """A Pareto 1.2 has no valley; the cut is where both parts are most alike in themselves."""
    times = sorted(10 * ((place + 0.5) / 10_000) ** (-1 / 1.2) for place in range(10_000))
    limit = limit_of(counted(times))
    assert limit is not None
    assert 0.2 < sum(time >= limit for time in times) / len(times) < 0.205


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_users_who_are_much_alike_have_no_limit(spread):
    """Half of them in another lane would help nobody."""
    dice = random.Random(1)
    assert limit_of(counted([500 * math.exp(dice.gauss(0, spread)) for _ in range(1000)])) is None


def test_a_few_runs_tell_nothing():
    assert limit_of(counted([2] * (ENOUGH - 2) + [200])) is None
    assert limit_of([0] * RUN_BINS) is None


def test_what_is_over_in_a_moment_is_not_slow():
    """Between no-ops and those that met the garbage collector lies a valley, too."""
    assert limit_of(counted([0.02] * 900 + [8] * 100)) == LEAST_SLOW_MS


@given(st.lists(st.floats(0.01, 1e9), min_size=ENOUGH, max_size=200))
def test_a_limit_has_runs_on_both_sides(times):
    """Slow is always some, never all."""
    limit = limit_of(counted(times))
    if limit is not None and limit > LEAST_SLOW_MS:
        assert min(times) < limit <= max(times)


@given(st.floats(0, 1e300), st.floats(0, 1e300))
def test_bins_rise_with_what_they_count(one, other):
    low, high = sorted((one, other))
    assert 0 <= run_bin(low) <= run_bin(high) < RUN_BINS
    assert 0 <= hint_bin(low) <= hint_bin(high) < BINS


def test_hints_alone_separate_users_as_long_as_nothing_was_measured():
    """With errors of half and double, on any scale."""
    dice = random.Random(1)
    for scale in (0.001, 1, 1e6):
        hints = [scale * (100 if place < 200 else 1) * dice.uniform(0.5, 1.5) for place in range(1000)]
        cut = hint_cut(counted(hints, hint_bin))
        assert cut is not None
        assert hint_bin(1.5 * scale) < cut <= hint_bin(50 * scale)


def test_hints_that_are_much_alike_say_nothing():
    assert hint_cut(counted([random.Random(1).uniform(0.5, 1.5) for _ in range(1000)], hint_bin)) is None


def test_the_measured_cut_puts_the_fewest_jobs_into_the_wrong_lane():
    """Of several as good, it is the middle one; a few outliers move it nowhere."""
    fast, slow = counted([1] * 90 + [4000], hint_bin), counted([100] * 20 + [0.1], hint_bin)
    assert measured_cut(fast, slow) == (hint_bin(1) + 1 + hint_bin(100) + 1) // 2


def test_there_is_no_measured_cut_before_fast_and_slow_jobs_were_seen():
    """At first only the fast ones have ended."""
    assert measured_cut(counted([1] * 900, hint_bin), counted([100] * 4, hint_bin)) is None


def test_a_producer_judges_its_hints_by_all_that_it_has_given():
    judge = HintJudge()
    signs = [whose("h", str(place), 100 if place % 5 == 0 else 1) for place in range(100)]
    assert judge.judge(signs[:10]) == [False] * 10  # too few to say
    assert judge.judge(signs[10:30]) == [place % 5 == 0 for place in range(20)]
    assert judge.judge([whose("h", "x", 130), whose("h", "y", None), ""]) == [True, False, False]


def test_what_a_partition_knows_becomes_a_limit_and_a_cut():
    times = {"t4": "800", "t30": "200", "f20": "800", "s26": "200", "limit": "1", "since": "5"}
    learned = Learned(times)
    assert learned.limit_ms == pytest.approx(2**4.5)
    assert learned.cut == 24


@pytest.mark.parametrize(
    ("capacity", "share", "slots"), [(6, 0.5, 3), (3, 0.5, 1), (1, 0.5, 1), (4, 0.0, 1), (4, 1.0, 4), (5, 0.5, 2)]
)
def test_slow_jobs_have_their_share_of_the_slots_and_at_least_one(capacity, share, slots):
    assert slow_share(capacity, share) == slots


def test_each_priority_comes_whole_before_the_next_and_in_it_what_is_due_to_slow_jobs_before_the_fast_ones():
    """A lane's second number counts when the others have left room: slow jobs then get every free slot."""
    assert reads(2, 1, 5, reverse=False) == [
        (4, 1, 0), (1, 128, 0), (4, 2, 5), (5, 1, 0), (2, 128, 0), (5, 2, 5), (6, 1, 0), (3, 128, 0), (6, 2, 5),
    ]  # fmt: skip
    assert [digit for digit, _, _ in reads(2, 0, 5, reverse=True)] == [6, 3, 6, 5, 2, 5, 4, 1, 4]


@pytest.mark.parametrize(("share", "right"), [(1, 1), (3, 1), (8, 2), (32, 8)])
def test_a_quarter_of_their_share_is_a_right_of_slow_jobs(share, right):
    assert slow_right(share) == right


def test_jobs_that_overran_take_of_the_share_but_not_what_is_a_right():
    assert slow_room(8, 1, 0) == 7
    assert slow_room(8, 1, 5) == 2
    assert slow_room(8, 1, 20) == 1
    assert slow_room(8, 9, 0) == 0
