"""The jobs of a fan-out are what an ordinary enqueue would make, only faster."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from streamq.clock import from_ms
from streamq.options import Options
from streamq.queue import draft
from streamq.schedules.jobs import JobMaker
from streamq.schedules.occurrence import Occurrence, checked
from tests.cron.conftest import NOON, Listing, entry_of, ms

noon = Occurrence("hourly", ms(NOON))
LIMIT = 10_000


def maker_of(**options):
    """Return a schedule and the maker of its jobs at noon."""
    schedule = checked(entry_of(Listing([]), **options))
    return schedule, JobMaker(schedule, noon, noon.fire_ms, max_payload_bytes=LIMIT)


users = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400),
    st.integers(-(2**63), 2**63 - 1),
    st.uuids().map(str),
)


GATES = {"concurrency_per_key": 2, "rate": "10/s"}


@given(
    users,
    st.sampled_from([(), "user_id", ("user_id", "depth"), ("depth",)]),
    st.one_of(st.none(), st.floats(0, 1e300)),
    st.sampled_from([{}, GATES]),
)
def test_a_job_is_byte_for_byte_what_enqueue_makes(user, dedup, cost, limits):
    """Whatever the id looks like, and whatever the handler says of duplicates."""
    schedule, maker = maker_of(dedup=dedup, limits=limits)
    (job,), refused = maker.make([user if cost is None else [user, cost]], noon.fire_ms)
    wanted = draft(
        schedule.entry.handler,
        (user,),
        {},
        Options(
            key=str(user),
            cost=cost,
            id=noon.job_id(str(user)),
            occurrence=noon.name,
            deadline=from_ms(schedule.deadline_ms(noon, noon.fire_ms)),
        ),
    )
    assert not refused
    assert (job.id, job.digit, job.envelope, job.delay_ms, job.dedup, job.whose) == (
        wanted.id, wanted.digit, wanted.envelope, wanted.delay_ms, wanted.dedup, wanted.whose,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("", "a user id has 1 to 512 characters, and one has 0"),
        ("u" * 513, "a user id has 1 to 512 characters, and one has 513"),
        ("u" * 510, "the dedup key of user 'u.*' has 518 characters; at most 512"),
        ({"refused": "3.5 is no user id"}, "3.5 is no user id"),
    ],
)
def test_a_user_that_cannot_have_a_job_is_told_and_the_others_have_theirs(user, reason):
    """One bad id must not cost the hour of a million users."""
    _, maker = maker_of()
    jobs, refused = maker.make(["a", user, "b"], noon.fire_ms)
    assert [job.id[-1] for job in jobs] == ["a", "b"]
    (told,) = refused
    assert re.search(reason, told)


def test_a_job_that_is_too_large_is_refused():
    """The limit is that of any other job."""
    schedule = checked(entry_of(Listing([])))
    _, refused = JobMaker(schedule, noon, noon.fire_ms, max_payload_bytes=20).make(["u1"], 0)
    assert "the job of user 'u1' is" in refused[0]
    assert "at most 20 are allowed" in refused[0]


def test_a_spread_counts_from_the_fire_time():
    """Who is enqueued late in the fan-out is not due later."""
    schedule, maker = maker_of(scatter=timedelta(minutes=10))
    user = str(uuid.UUID(int=7))
    (on_time,), _ = maker.make([user], noon.fire_ms)
    (later,), _ = maker.make([user], noon.fire_ms + 1000)
    assert on_time.delay_ms == schedule.spread_ms(user)
    assert later.delay_ms == max(0, on_time.delay_ms - 1000)
    (past,), _ = maker.make([user], noon.fire_ms + 600_000)
    assert past.delay_ms == 0


def digits(lanes):
    """Return the lanes of 80 users of about 10 records, 20 of about 1,000, and one of whom nothing is known."""
    schedule = checked(entry_of(Listing([])))
    maker = JobMaker(schedule, noon, noon.fire_ms, max_payload_bytes=LIMIT, lanes=lanes)
    hinted = [[f"u{number}", (10.0 if number < 80 else 1000.0) + number] for number in range(100)]
    jobs, _ = maker.make([*hinted, "new"], noon.fire_ms)
    return [job.digit for job in jobs]


def test_users_whose_cost_stands_out_go_into_the_slow_lane_of_their_priority():
    """Already in the first hour, when no job of theirs was ever measured."""
    assert digits(lanes=True) == [*[2] * 80, *[5] * 20, 2]


def test_costs_do_not_count_in_a_queue_without_lanes():
    """All jobs run in their order."""
    assert digits(lanes=False) == [2] * 101
