"""What surrounds a handler: middleware, the lifespan, and parameters that the worker fills."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from datetime import timedelta

import pytest

from streamq import Depends, Retry, StreamQ, current_job
from streamq.errors import BadArguments, ConfigurationError, JobFailed, LifespanFailed, StreamQError
from streamq.worker import Worker

KEPT = timedelta(seconds=60)


async def test_middleware_runs_around_a_job_the_first_one_outermost(app, work):
    order: list[str] = []

    @app.middleware
    async def outer(job, call):
        order.append(f"outer {job.handler} {job.attempt}")
        try:
            return [await call()]
        finally:
            order.append("outer ends")

    @app.middleware
    async def inner(job, call):
        order.append("inner")
        return await call()

    @app.handler
    async def seven() -> int:
        order.append("handler")
        return 7

    job = await seven.options(keep_result=KEPT).enqueue()
    await work()
    assert await job.result() == [7]
    assert order == ["outer seven 1", "inner", "handler", "outer ends"]


async def test_what_middleware_raises_decides_the_outcome(app, work):
    @app.middleware
    async def doorman(job, call):
        raise PermissionError("not today")

    @app.handler(max_attempts=1)
    async def never() -> None:
        raise AssertionError("must not run")

    job = await never.options(keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(JobFailed, match=r"is dead: PermissionError: not today"):
        await job.result()


async def test_a_timeout_passes_through_middleware_and_a_plain_handler_sees_its_context(app, work):
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[type[BaseException]] = []

    @app.middleware
    async def scoped(job, call):
        token = tenant.set(job.key or "")
        try:
            return await call()
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            tenant.reset(token)

    @app.handler(key="user")
    def plain(user: str) -> str:
        return tenant.get()

    @app.handler(timeout=timedelta(milliseconds=50), max_attempts=1)
    async def endless() -> None:
        await asyncio.Event().wait()

    job, late = await plain.options(keep_result=KEPT).enqueue("u1"), await endless.options(keep_result=KEPT).enqueue()
    await work()
    assert await job.result() == "u1"
    with pytest.raises(JobFailed, match="JobTimeout"):
        await late.result()
    assert seen == [asyncio.CancelledError]


def test_middleware_that_is_not_async_is_refused(redis_url):
    with pytest.raises(ConfigurationError, match=r"middleware .*wrong.* is not async: write async def"):

        @StreamQ(redis_url=redis_url).middleware
        def wrong(job, call): ...


async def test_the_lifespan_opens_before_the_first_job_and_closes_after_the_last(app, redis_url):
    said: list[str] = []

    @app.lifespan
    async def shared() -> AsyncIterator[dict[str, str]]:
        said.append("open")
        yield {"db": "pool"}
        said.append("close")

    @app.handler
    async def reader() -> str:
        said.append("job")
        return app.state["db"]

    job = await reader.options(keep_result=KEPT).enqueue()
    worker = Worker(app, app.settings)
    running = asyncio.create_task(worker.run())
    assert await job.result() == "pool"
    worker.drain()
    assert await running == 0
    assert said == ["open", "job", "close"]
    with pytest.raises(StreamQError, match=r"there is no state here: this process runs no jobs"):
        _ = app.state


async def test_a_lifespan_that_fails_at_the_start_ends_the_worker_and_one_that_fails_at_the_end_does_not(app, caplog):
    @app.lifespan
    async def fragile() -> AsyncIterator[None]:
        if not said:
            said.append("first")
            raise OSError("no database")
        yield
        raise OSError("cannot close")

    said: list[str] = []
    with pytest.raises(LifespanFailed, match=r"the lifespan failed at the start: OSError: no database"):
        await Worker(app, app.settings).run()
    worker = Worker(app, app.settings)
    worker.drain()
    assert await worker.run() == 0
    failed = [record for record in caplog.records if record.message == "worker.lifespan_failed"]
    assert "cannot close" in failed[0].fields["traceback"]


def test_an_application_has_one_lifespan_at_most(redis_url):
    app = StreamQ(redis_url=redis_url)

    async def span() -> AsyncIterator[None]:
        yield

    app.lifespan(span)
    with pytest.raises(ConfigurationError, match=r"the application has a lifespan already"):
        app.lifespan(span)
    with pytest.raises(StreamQError, match=r"there is no state here: the application has no lifespan"):
        _ = StreamQ(redis_url=redis_url).state


class Client:
    """Something that could be opened and closed, and must not be for each job."""

    def __enter__(self):
        raise AssertionError("a provider's value is not entered")

    def __exit__(self, *_):
        raise AssertionError("nor left")


async def test_the_worker_fills_what_a_handler_depends_on_and_cleans_up(app, work):
    said: list[str] = []

    @app.lifespan
    async def shared() -> AsyncIterator[Client]:
        yield Client()

    def client(state: Client) -> Client:
        return state

    async def number() -> int:
        return 4

    def session() -> Iterator[str]:
        said.append("session opens")
        try:
            yield "session"
        finally:
            said.append("session closes")

    async def transaction() -> AsyncIterator[str]:
        yield "transaction"
        said.append("transaction ends")

    @app.handler(key="user")
    async def refresh(
        user: str,
        *,
        a: Client = Depends(client),
        b: int = Depends(number),
        c: str = Depends(session),
        d: str = Depends(transaction),
    ) -> list[object]:
        said.append("job")
        return [user, type(a).__name__, b, c, d]

    @app.handler
    def plain(x: int, b: int = Depends(number)) -> int:
        return x * b

    job = await refresh.options(keep_result=KEPT).enqueue("u1")
    other = await plain.options(keep_result=KEPT).enqueue(5)
    await work()
    assert await job.result() == ["u1", "Client", 4, "session", "transaction"]
    assert await other.result() == 20
    assert said == ["session opens", "job", "transaction ends", "session closes"]


async def test_what_a_provider_raises_counts_as_the_handlers_and_a_session_sees_the_handlers_error(app, work):
    seen: list[str] = []

    def broken() -> str:
        raise ConnectionError("no database")

    def session() -> Iterator[str]:
        try:
            yield "s"
        except ValueError as error:
            seen.append(str(error))
            raise

    @app.handler(max_attempts=1)
    async def needs(db: str = Depends(broken)) -> None:
        raise AssertionError("must not run")

    @app.handler(max_attempts=1)
    async def fails(db: str = Depends(session)) -> None:
        raise ValueError("bad row")

    first, second = await needs.options(keep_result=KEPT).enqueue(), await fails.options(keep_result=KEPT).enqueue()
    await work()
    with pytest.raises(JobFailed, match=r"is dead: ConnectionError: no database"):
        await first.result()
    with pytest.raises(JobFailed, match=r"is dead: ValueError: bad row"):
        await second.result()
    assert seen == ["bad row"]


async def test_a_retry_carries_only_what_the_caller_gave(app, work):
    @app.handler(max_attempts=2)
    async def flaky(x: int, db: object = Depends(object)) -> int:
        if current_job().attempt == 1:
            raise Retry(timedelta(milliseconds=1))
        return x

    job = await flaky.options(keep_result=KEPT).enqueue(3)
    await work()
    assert await job.result() == 3


async def test_a_caller_cannot_give_what_the_worker_fills(app):
    @app.handler
    async def needs(x: int, db: object = Depends(object)) -> None: ...

    with pytest.raises(BadArguments, match=r"needs\(x: int\) -> None: got an unexpected keyword argument 'db'"):
        needs.draft(1, db=2)
    with pytest.raises(BadArguments, match=r"too many positional arguments"):
        needs.draft(1, 2)


def two(a, b):
    return a, b


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (Depends(two), r"handler 'bad': 'db' depends on Depends\(two\), which takes 2 arguments"),
        (Depends("db"), r"handler 'bad': 'db' depends on 'db', which cannot be called"),  # type: ignore[arg-type]
    ],
)
def test_a_provider_that_cannot_be_used_is_refused_when_the_handler_is_registered(redis_url, marker, words):
    with pytest.raises(ConfigurationError, match=words):

        @StreamQ(redis_url=redis_url).handler
        async def bad(db=marker): ...


def test_what_the_worker_fills_stands_last(redis_url):
    with pytest.raises(ConfigurationError, match=r"'limit' stands behind 'db', which the worker fills"):

        @StreamQ(redis_url=redis_url).handler
        async def bad(user: str, db: object = Depends(object), limit: int = 3): ...

    with pytest.raises(ConfigurationError, match=r"the worker fills 'db' by its name, so it cannot stand before '/'"):

        @StreamQ(redis_url=redis_url).handler
        async def worse(db: object = Depends(object), /): ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"isolation": "cage"}, r"isolation is auto, thread or process, not 'cage'"),
        ({"isolation": "thread"}, r"is async, so it cannot run in a thread"),
        ({"memory_limit": 1}, r"memory_limit is a number of bytes, and only for isolation='process'"),
    ],
    ids=["unknown", "async in a thread", "limit without a process"],
)
def test_isolation_that_makes_no_sense_is_refused(redis_url, options, words):
    with pytest.raises(ConfigurationError, match=words):

        @StreamQ(redis_url=redis_url).handler(**options)
        async def bad(): ...
