"""streamq: a job queue on Redis Streams, with per-user status in MongoDB."""

__version__ = "0.1.0"
