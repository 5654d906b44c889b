"""huey: see https://huey.readthedocs.io."""

import huey

from benchmarks.systems.bodies import plain


def open(url):
    """Make the queue and its tasks."""
    queue = huey.RedisHuey("bench", url=url)
    tasks = {name: queue.task(name=name)(body) for name, body in plain.items()}
    return queue, tasks


def one(opened, job, argument):
    """Enqueue one task."""
    opened[1][job](argument)


def later(opened, job, argument, delay_s):
    """Schedule a task; it is looked for each second."""
    opened[1][job].schedule((argument,), delay=delay_s)


def work(url, concurrency, setting="default"):
    """Run a consumer with so many threads."""
    queue, _ = open(url)
    queue.create_consumer(workers=concurrency, worker_type="thread").run()
