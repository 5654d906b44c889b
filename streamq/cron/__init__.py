"""The role that fires schedules: each occurrence becomes one job for each user, exactly once."""

from streamq.cron.expression import next_times
from streamq.cron.manual import Enqueued, manual_enqueue
from streamq.cron.pages import PageFailed
from streamq.cron.program import Fired, fire_now, main
from streamq.cron.service import run

__all__ = ["Enqueued", "Fired", "PageFailed", "fire_now", "main", "manual_enqueue", "next_times", "run"]
