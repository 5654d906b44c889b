"""dramatiq: see https://dramatiq.io."""

import threading

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.systems.bodies import plain


def open(url, **settings):
    """Make the broker and its actors."""
    broker = RedisBroker(url=url, **settings)
    dramatiq.set_broker(broker)
    return {name: dramatiq.actor(body, actor_name=name, broker=broker) for name, body in plain.items()}


def one(actors, job, argument):
    """Send one message."""
    actors[job].send(argument)


def later(actors, job, argument, delay_s):
    """Send a delayed message."""
    actors[job].send_with_options(args=(argument,), delay=int(delay_s * 1000))


def work(url, concurrency, setting="default"):
    """Run a worker with so many threads."""
    fast = {"heartbeat_timeout": 5_000, "maintenance_chance": 1_000_000} if setting == "fast" else {}
    open(url, **fast)
    worker = dramatiq.Worker(dramatiq.get_broker(), worker_threads=concurrency)
    worker.start()
    threading.Event().wait()
