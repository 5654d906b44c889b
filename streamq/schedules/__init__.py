"""Schedules: when they fire, and how one fire time becomes one job for each user, exactly once. `cron` runs them."""

from streamq.schedules.firing import Fired, fire_now
from streamq.schedules.manual import Enqueued, manual_enqueue
from streamq.schedules.pages import PageFailed
from streamq.schedules.timing import next_times

__all__ = ["Enqueued", "Fired", "PageFailed", "fire_now", "manual_enqueue", "next_times"]
