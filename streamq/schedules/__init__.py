"""Schedules: when they fire, and how one fire time becomes one job for each user, exactly once. `cron` runs them."""

from streamq.schedules.book import Book, Listed, book
from streamq.schedules.firing import Fired, fire_now
from streamq.schedules.manual import Enqueued, manual_enqueue
from streamq.schedules.pages import PageFailed
from streamq.schedules.stored import Definition, definition_of
from streamq.schedules.timing import next_times

__all__ = [
    "Book", "Definition", "Enqueued", "Fired", "Listed", "PageFailed", "book", "definition_of", "fire_now",
    "manual_enqueue", "next_times",
]  # fmt: skip
