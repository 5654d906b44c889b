"""The role that fires schedules: each occurrence becomes one job for each user, exactly once."""

from streamq.cron.program import main
from streamq.cron.service import run
from streamq.schedules import Enqueued, Fired, PageFailed, fire_now, manual_enqueue, next_times

__all__ = ["Enqueued", "Fired", "PageFailed", "fire_now", "main", "manual_enqueue", "next_times", "run"]
