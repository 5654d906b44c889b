"""Celery with its Redis transport and backend: see https://docs.celeryq.dev."""

import celery

from benchmarks.systems.bodies import plain


def _app(url):
    app = celery.Celery("bench", broker=url, backend=url)
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, worker_log_color=False)
    tasks = {name: app.task(name=name)(body) for name, body in plain.items()}
    return app, tasks


def open(url):
    """Make the application."""
    return _app(url)[1]


def one(tasks, job, argument):
    """Enqueue one task."""
    tasks[job].delay(argument)


def later(tasks, job, argument, delay_s):
    """Enqueue a task with a countdown."""
    tasks[job].apply_async((argument,), countdown=delay_s)


def work(url, concurrency, setting="default"):
    """Run a worker with so many threads: at this concurrency its processes cost far more."""
    app, _ = _app(url)
    if setting == "fast":
        app.conf.update(task_acks_late=True, broker_transport_options={"visibility_timeout": 25})
    app.worker_main(["worker", "--pool=threads", f"--concurrency={concurrency}", "--loglevel=ERROR"])
