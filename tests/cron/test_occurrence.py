"""What follows from a schedule: the names of its jobs, their deadlines, and what is refused before anything runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from streamq.app import StreamQ
from streamq.errors import ConfigurationError
from streamq.schedules.occurrence import Occurrence, checked, schedules_of, user_word
from streamq.settings import Settings
from tests.cron.conftest import NOON, Listing, entry_of, ms

noon = Occurrence("hourly", ms(NOON))


def test_names_are_made_of_schedule_fire_time_and_user_alone():
    """Every process makes the same ones."""
    assert noon.producer == "cron:hourly:20261123T1200Z"
    assert noon.name == "hourly:20261123T1200Z"
    assert noon.job_id("u42") == "hourly:20261123T1200Z:u42"
    assert str(noon) == "hourly of 2026-11-23 12:00 UTC"


@pytest.mark.parametrize(
    ("user", "word"),
    [
        ("u42", "u42"),
        ("a:b c/d", "a%3Ab%20c%2Fd"),
        ("Zoë", "Zo%C3%AB"),
        ("100%", "100%25"),
        ("\n", "%0A"),
    ],
)
def test_a_user_in_an_id_is_percent_encoded(user, word):
    """No user can look like another part of the id."""
    assert user_word(user) == word


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512), min_size=2, unique=True))
def test_different_users_have_different_words_that_fit_an_id(users):
    """Also where the encoding would be too long."""
    words = [user_word(user) for user in users]
    assert len(set(words)) == len(users)
    assert all(len(f"{'s' * 64}:20261123T1200Z:{word}") <= 512 and word.isascii() for word in words)


class TestDeadlines:
    """A job of an hour may be started until the next one, whatever an operator does."""

    def test_on_time_it_is_the_next_fire_time(self):
        """A few seconds late is on time."""
        schedule = checked(entry_of(Listing([])))
        assert schedule.deadline_ms(noon, noon.fire_ms + 3000) == ms(NOON + timedelta(hours=1))

    def test_made_up_for_late_it_has_the_same_time_from_then_on(self):
        """At 12:59:50, a deadline at 13:00 would end nearly every job unrun."""
        schedule = checked(entry_of(Listing([])))
        begun = ms(NOON + timedelta(minutes=59, seconds=50))
        assert schedule.deadline_ms(noon, begun) == begun + 3_600_000

    def test_the_schedule_may_say_another(self):
        """Counted from the fire time."""
        schedule = checked(entry_of(Listing([]), deadline=timedelta(minutes=10)))
        assert schedule.deadline_ms(noon, noon.fire_ms) == ms(NOON + timedelta(minutes=10))

    def test_the_period_of_an_uneven_schedule_is_that_of_the_occurrence(self):
        """After Friday comes Monday."""
        schedule = checked(entry_of(Listing([]), "0 9 * * mon-fri"))
        friday = schedule.occurrence(datetime(2026, 11, 27, 9, tzinfo=UTC))
        assert schedule.deadline_ms(friday, friday.fire_ms) - friday.fire_ms == 3 * 86_400_000


def test_the_record_of_a_fanout_outlives_the_next_occurrence():
    """Else a monthly occurrence could be fired twice by hand."""
    assert checked(entry_of(Listing([]))).keep_ms(noon) == 48 * 3_600_000
    monthly = checked(entry_of(Listing([]), "0 0 1 * *"))
    assert monthly.keep_ms(monthly.latest(noon.fire_ms)[-1]) == 60 * 86_400_000


def test_users_are_spread_evenly_and_always_the_same():
    """A thousand over ten minutes: about a hundred a minute."""
    schedule = checked(entry_of(Listing([]), scatter=timedelta(minutes=10)))
    places = [schedule.spread_ms(f"user-{number}") for number in range(1000)]
    assert places == [schedule.spread_ms(f"user-{number}") for number in range(1000)]
    minutes = [sum(1 for place in places if place // 60_000 == minute) for minute in range(10)]
    assert min(minutes) > 60
    assert sum(minutes) == 1000


async def pages_that_yield(cursor):
    """Give no page: it is a generator."""
    yield [], None


@pytest.mark.parametrize(
    ("page", "options", "message"),
    [
        (Listing([]), {"expression": "0 0 * * 1"}, "'hourly': '0 0 .* gives weekdays by number"),
        (Listing([]), {"timezone": "Nowhere"}, "'hourly': 'Nowhere' is not a time zone"),
        (Listing([]), {"name": "a:b"}, "'a:b': a name is 1 to 64 letters"),
        (Listing([]), {"misfire": "never"}, "misfire is skip, once or all, not 'never'"),
        (Listing([]), {"misfire_limit": 0}, "misfire_limit counts from 1, and 0 came"),
        (Listing([]), {"scatter": 5}, "scatter is a timedelta that is not negative, and 5 came"),
        (Listing([]), {"grace": timedelta(-1)}, "grace is a timedelta that is not negative"),
        (Listing([]), {"scatter": timedelta(hours=1)}, "spread over 1:00:00 would outlive their deadline, 1:00:00"),
        (
            Listing([]),
            {"scatter": timedelta(minutes=9), "deadline": timedelta(minutes=5)},
            "would outlive their deadline, 0:05:00",
        ),
        (pages_that_yield, {}, "its page function yields; it must return"),
        (lambda: ([], None), {}, "its page function must take the cursor alone"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_by_name(page, options, message):
    """Before anything runs, not at three in the morning."""
    with pytest.raises(ConfigurationError, match=message):
        checked(entry_of(page, **options))


def test_a_handler_that_needs_more_than_a_user_is_refused():
    """Each of its jobs would fail."""
    app = StreamQ(Settings())

    @app.handler
    async def refresh(user_id: str, since: str) -> None: ...

    app.cron("0 * * * *", handler=refresh, name="hourly")(Listing([]))
    with pytest.raises(ConfigurationError, match="cannot be called with a user alone") as refused:
        schedules_of(app)
    assert "default" in refused.value.hint


def test_an_option_that_is_none_is_refused_where_it_is_written():
    """A misspelled one would be ignored for ever."""
    with pytest.raises(ConfigurationError, match=r"'scater' is not an option of a schedule .*scatter"):
        entry_of(Listing([]), scater=timedelta(minutes=1))
