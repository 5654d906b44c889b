"""Time in whole milliseconds: what waits is never early, and a moment is no later than it was."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from streamq.clock import due_ms, from_ms, to_ms

MOMENT = datetime(2026, 11, 26, 4, 32, 24, 123_000, UTC)


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        (timedelta(), 0),
        (timedelta(microseconds=1), 1),
        (timedelta(milliseconds=7), 7),
        (timedelta(milliseconds=7, microseconds=1), 8),
        (timedelta(microseconds=-1), 0),
        (timedelta(milliseconds=-7), -7),
        (timedelta.max, 86_400_000 * 10**9),
        (timedelta.min, -86_400_000 * 999_999_999),
    ],
)
def test_a_duration_is_rounded_up(duration, ms):
    """What waits for it would be early else, and a limit of half a millisecond would be none."""
    assert to_ms(duration) == ms


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45))])
def test_a_moment_is_rounded_down_and_one_that_something_is_due_at_up(zone):
    """Without a float between, whose last digits would decide."""
    whole_ms = to_ms(MOMENT.astimezone(zone))
    assert from_ms(whole_ms) == MOMENT
    assert due_ms(MOMENT.astimezone(zone)) == whole_ms
    later = (MOMENT + timedelta(microseconds=1)).astimezone(zone)
    assert (to_ms(later), due_ms(later)) == (whole_ms, whole_ms + 1)
    before = datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)
    assert (to_ms(before), due_ms(before)) == (-1, 0)


@pytest.mark.parametrize("turned", [to_ms, due_ms])
def test_a_moment_without_zone_is_refused(turned):
    """It names a moment in each zone."""
    with pytest.raises(ValueError, match="2026-11-26T04:32:24.123000 has no time zone: pass an aware datetime"):
        turned(MOMENT.replace(tzinfo=None))
