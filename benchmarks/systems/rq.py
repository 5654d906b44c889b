"""RQ with its worker that does not fork: see https://python-rq.org."""

from datetime import timedelta

import redis
import rq

from benchmarks.systems.bodies import plain

noop, io, cpu, clock, long = (plain[name] for name in ("noop", "io", "cpu", "clock", "long"))


def open(url):
    """Connect."""
    return rq.Queue("bench", connection=redis.Redis.from_url(url))


def _name(job):
    return f"benchmarks.systems.rq.{job}"


def one(queue, job, argument):
    """Enqueue one job."""
    queue.enqueue(_name(job), argument)


def many(queue, job, arguments):
    """Enqueue in one pipeline."""
    queue.enqueue_many([rq.Queue.prepare_data(_name(job), (argument,)) for argument in arguments])


def later(queue, job, argument, delay_s):
    """Enqueue a delayed job; the worker must run its scheduler."""
    queue.enqueue_in(timedelta(seconds=delay_s), _name(job), argument)


def work(url, concurrency, setting="default"):
    """Run a worker; it runs one job at a time, whatever the concurrency."""
    fast = {"maintenance_interval": 5, "worker_ttl": 30} if setting == "fast" else {}
    queue = open(url)
    rq.SimpleWorker([queue], connection=queue.connection, **fast).work(with_scheduler=True, logging_level="ERROR")
