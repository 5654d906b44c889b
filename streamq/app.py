"""StreamQ: what an application says to streamq. Handlers, schedules, enqueue.

app = StreamQ()

@app.handler(key="user_id", dedup="user_id")
async def refresh(user_id: str) -> dict[str, int]: ...

job = await refresh.enqueue("u42")
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from streamq import tracing
from streamq.dedup import Dedup
from streamq.errors import BadArguments, ConfigurationError, JobRejected, UnknownHandler
from streamq.operator import Operator
from streamq.options import NO_OPTIONS, Options
from streamq.queue import BATCH, Client, Draft, Items, Job, SyncBridge, draft
from streamq.registry import HandlerSpec, Isolation, Priority, Registry
from streamq.settings import Settings, load

if TYPE_CHECKING:
    from concurrent.futures import Future

    from streamq.broker.inspection import Explanation
    from streamq.context import JobContext
    from streamq.retry import RetryPolicy

__all__ = ["CronEntry", "Handler", "Lifespan", "Middleware", "PageFunction", "StreamQ"]

P = ParamSpec("P")
R = TypeVar("R")

PageFunction = Callable[[str | None], Any]
"""Given a cursor (None at first), returns the users of one page and the cursor of the next: `(ids, cursor | None)`."""

Middleware = Callable[["JobContext", Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Given the job and the rest of the run; what it returns is the job's result, what it raises decides the outcome."""

Lifespan = Callable[[], AbstractAsyncContextManager[Any] | AsyncIterator[Any]]

M = TypeVar("M", bound=Middleware)
L = TypeVar("L", bound=Lifespan)
A = TypeVar("A", bound=Callable[[Any], Any])

_OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(Options))


@dataclass(frozen=True)
class CronEntry:
    """A schedule that is written in code."""

    name: str
    expression: str
    handler: HandlerSpec
    page: PageFunction
    timezone: str = "UTC"
    misfire: str = "once"
    """What happens to fire times that were missed: skip, once, or all."""
    scatter: timedelta | None = None
    """Spread the jobs of one occurrence evenly over this time."""
    deadline: timedelta | None = None
    """How long after its fire time a job may still start; None: until the next fire time."""
    misfire_limit: int = 24
    """With misfire="all": at most so many, the newest ones."""
    grace: timedelta = timedelta(minutes=5)
    """How late a fire time may be begun without counting as missed."""
    page_timeout: timedelta = timedelta(minutes=5)
    """How long the page function may take for one page."""
    overlap: str = "queue"
    """When jobs of the occurrence before still wait or run: queue behind them, skip this one, or cancel them."""
    start: datetime | None = None
    """No fire time is earlier."""
    end: datetime | None = None
    """No fire time is later."""
    limit: int | None = None
    """After so many fire times, counted from the start, it is over."""
    jitter: timedelta | None = None
    """Begin each occurrence by up to so much later, by how much is the same for every process."""
    alarm_share: float = 0.5
    """A fan-out that is unfinished after this share of its period raises an alarm."""
    stale_after: int = 3
    """A user whose jobs have not been completed for so many periods raises an alarm."""
    made_at: datetime | None = None
    """When it was stored; None: it is written in code."""


_CRON_OPTIONS = {field.name for field in dataclasses.fields(CronEntry)} - {
    "name", "expression", "handler", "page", "made_at",
}  # fmt: skip


def _as_dedup(given: str | Sequence[str] | Dedup | None) -> Dedup | None:
    """Read the names of arguments as a rule, the plain one."""
    if isinstance(given, Dedup):
        return given
    if not given:
        return None
    return Dedup.until_done(*((given,) if isinstance(given, str) else given))


def _elsewhere(*_args: Any, **_kwargs: Any) -> None:
    """Stand for the function of a handler whose code is not here."""
    raise UnknownHandler("the code of this handler is not here: it can be enqueued, not called")


class Handler(Generic[P, R]):
    """A function that runs as a job. Called directly, it is still the function."""

    def __init__(self, app: StreamQ, spec: HandlerSpec, options: Options | None = None) -> None:
        self._app = app
        self.spec = spec
        self._options = options
        self.__doc__ = spec.function.__doc__
        self.__name__ = spec.name
        # An argument of the handler's own wins over an option of the same name.
        self._inline = _OPTION_NAMES - set(spec.signature.parameters)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, here and now."""
        return self.spec.function(*args, **kwargs)  # type: ignore[no-any-return]

    def options(self, **options: Any) -> Handler[P, R]:
        """Return this handler with options for the jobs enqueued through it; see `Options`."""
        unknown = set(options) - _OPTION_NAMES
        if unknown:
            raise TypeError(
                f"{sorted(unknown)[0]!r} is not an option of a job (known: {', '.join(sorted(_OPTION_NAMES))})"
            )
        merged = dataclasses.replace(self._options or Options(), **options)
        return Handler(self._app, self.spec, merged)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job.

        Besides the handler's own arguments, any of `Options` may be given by name (`delay=`, `key=`, ...), unless
        the handler has an argument of that name; `options(...)` says the same to a type checker's satisfaction.

        Raises:
            JobRejected: The job cannot be enqueued as it is; nothing was written.
            BrokerUnavailable: Redis did not answer in time; whether the job is enqueued is unknown.
        """
        if not tracing.is_asked_for():  # as below, without asking for a span
            item = self.draft(*args, **kwargs) if kwargs else self._draft(args, kwargs, self._options)
            return await self._app.client.send(item)
        with tracing.sending(self.spec.queue, self.spec.name) as span:
            job: Job = span.one(await self._app.client.send(self.draft(*args, **kwargs)))
            return job

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Enqueue a job from code without an event loop, as in Django and Flask."""
        with tracing.sending(self.spec.queue, self.spec.name) as span:
            item = self.draft(*args, **kwargs)
            job: Job = span.one(self._app.run_sync(lambda: self._app.client.send(item)))
            return job

    async def enqueue_many(self, calls: Iterable[Any] | AsyncIterable[Any]) -> list[Job]:
        """Enqueue any number of jobs, streamed in batches; one result per job, in order.

        A job that cannot be enqueued has the status "refused" and says why in `error`; the others go on. With
        `replicas=`, a job that too few of them have is enqueued and carries `NotConfirmed` as its `error`.

        Args:
            calls: Each the arguments of one job: a tuple of positional ones, a dict of named ones, or one value that
                is the only argument.

        Raises:
            BrokerUnavailable: Redis did not answer in time. Earlier batches are enqueued, and of the last one it is
                unknown; `enqueue_stream` tells how far it came.
        """
        with tracing.sending(self.spec.queue, self.spec.name) as span:
            jobs: list[Job] = span.many(await self._app.client.send_many(self._drafts(calls)))
            return jobs

    def enqueue_stream(self, calls: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Job]:
        """Do as `enqueue_many`, and give each result as it comes: for more jobs than one wants to hold in memory.

        `async for job in handler.enqueue_stream(calls): ...`; jobs are sent as results are asked for.
        """
        return self._app.client.stream(self._drafts(calls))

    def enqueue_many_sync(self, calls: Iterable[Any]) -> list[Job]:
        """Do as `enqueue_many`, in code without an event loop."""
        return list(self.enqueue_stream_sync(calls))

    def enqueue_stream_sync(self, calls: Iterable[Any]) -> Iterator[Job]:
        """Do as `enqueue_stream`, in code without an event loop. `calls` is read in the thread that asks."""
        under_way: Future[list[Job]] | None = None
        drafts = map(self._draft_or_refusal, calls)
        while chunk := list(itertools.islice(drafts, BATCH)):
            done = under_way.result() if under_way is not None else []
            under_way = self._app.send_in_background(chunk)
            yield from done
        if under_way is not None:
            yield from under_way.result()

    def _drafts(self, calls: Iterable[Any] | AsyncIterable[Any]) -> Items:
        if isinstance(calls, AsyncIterable):
            return (self._draft_or_refusal(call) async for call in calls)
        return map(self._draft_or_refusal, calls)

    def _draft_or_refusal(self, call: Any) -> Draft | Job:
        try:
            if isinstance(call, tuple):
                return self._draft(call, {}, self._options)
            if isinstance(call, dict):
                return self._draft((), call, self._options)
            return self._draft((call,), {}, self._options)
        except JobRejected as error:
            return Job("", self.spec.name, self.spec.queue, "refused", None, error)

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Say who holds the dedup key that a call with these arguments has, and so what it would come to.

        Raises:
            BadArguments: The call is wrong, or its jobs are not deduplicated.
        """
        item = self.draft(*args, **kwargs)
        if item.dedup is None:
            raise BadArguments(
                f"jobs of {self.spec.name!r} have no dedup key", hint="say dedup= on the handler or here"
            )
        return await self._app.client.explain(item.queue, item.dedup)

    def _draft(self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options | None) -> Draft:
        settings, spec = self._app.settings, self.spec
        lanes = settings.lanes and spec.queue not in settings.fifo_queues
        return draft(
            spec, args, kwargs, options or NO_OPTIONS, max_payload_bytes=settings.max_payload_bytes, lanes=lanes,
            partitions=settings.partitions_of(spec.queue),
        )  # fmt: skip

    def draft(self, *args: Any, **kwargs: Any) -> Draft:
        """Check and encode a call without sending it."""
        options = self._options
        if kwargs and not self._inline.isdisjoint(kwargs):
            inline = {name: kwargs.pop(name) for name in self._inline & kwargs.keys()}
            options = dataclasses.replace(options or Options(), **inline)
        return self._draft(args, kwargs, options)


class StreamQ:
    """An application: its handlers, its schedules, and a way to enqueue."""

    def __init__(self, settings: Settings | None = None, **flags: Any) -> None:
        """Take settings, or read them: flags here > environment > `.env` > pyproject.toml.

        Raises:
            ConfigurationError: A setting is wrong; the message says which and where it came from.
        """
        self.settings = settings if settings is not None else load(flags)
        self.registry = Registry()
        self.cron_entries: dict[str, CronEntry] = {}
        self.pages: dict[str, PageFunction] = {}
        """Page functions by name, for schedules that are stored: those of schedules in code, and of `users`."""
        self.authenticator: Callable[[Any], Any] | None = None
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = weakref.WeakKeyDictionary()
        self._latest: Client | None = None
        """The client that was asked for last: looking into a table of weak references takes longer."""
        self._bridge = SyncBridge()

    @property
    def client(self) -> Client:
        """The client of the running event loop; connections belong to the loop that made them."""
        loop = asyncio.get_running_loop()
        latest = self._latest
        if latest is not None and latest.loop is loop:
            return latest
        client = self._clients.get(loop)
        if client is None:
            settings = self.settings
            client = Client(
                settings.redis_url,
                max_depth=settings.max_depth,
                max_payload_bytes=settings.max_payload_bytes,
                allow_eviction=settings.allow_eviction,
                mongodb=(settings.mongodb_url, settings.mongodb_database) if settings.history else ("", ""),
                partitions_of=settings.partitions_of,
            )
            self._clients[loop] = client
        self._latest = client
        return client

    @property
    def operator(self) -> Operator:
        """Cancel jobs, pause queues, block handlers and users: in all queues of this application."""
        queues = sorted({spec.queue for spec in self.registry}) or self.settings.queues
        outbox_max = self.settings.outbox_max if self.settings.history else 0
        return Operator(self.client.broker, queues, outbox_max=outbox_max, partitions_of=self.settings.partitions_of)

    def send_in_background(self, chunk: Sequence[Draft | Job]) -> Future[list[Job]]:
        """Send up to a batch on the background loop; the future gives its results."""

        async def send() -> list[Job]:
            return await self.client.send_chunk(chunk)

        return self._bridge.start(send())

    def run_sync(self, work: Callable[[], Any]) -> Any:
        """Run what `work` returns on the background loop, and wait for it."""

        async def call() -> Any:
            return await work()

        return self._bridge.run(call())

    async def close(self) -> None:
        """Send what waits and close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            self._latest = None
            await client.close()

    def close_sync(self) -> None:
        """Do the same for what the `..._sync` methods opened, in code without an event loop."""
        self._bridge.stop(self.close)

    @overload
    def handler(self, function: Callable[P, R], /) -> Handler[P, R]: ...

    @overload
    def handler(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        max_attempts: int = 5,
        timeout: timedelta | None = ...,
        priority: Priority = "normal",
        key: str | None = None,
        cost: str | None = None,
        dedup: str | Sequence[str] | Dedup = (),
        retry: RetryPolicy | None = None,
        isolation: Isolation = "auto",
        memory_limit: int = 0,
        concurrency_per_key: int = 0,
        rate_per_key: str | None = None,
        concurrency: int = 0,
        rate: str | None = None,
        fair: bool = False,
    ) -> Callable[[Callable[P, R]], Handler[P, R]]: ...

    def handler(  # type: ignore[misc]  # mypy cannot see that **options takes the keywords above  # pyright: ignore[reportInconsistentOverload]
        self, function: Callable[..., Any] | None = None, /, **options: Any
    ) -> Any:
        """Register a function as a handler.

        Args:
            function: Given when the decorator is used bare.
            options: `name`, `queue`, `max_attempts`, `timeout` (None: for ever), `priority`; `key`, the name of the
                argument that is the user key; `cost`, that of the argument that hints how long a job runs; `dedup`, the name or names of the arguments that make the dedup key, or a
                `Dedup`;
                `retry`; `isolation`, "process" for a child process that can be killed; `memory_limit`, how many bytes
                a run there may take; `concurrency_per_key` and `concurrency`, how many jobs of one user key or of this
                handler run at once on all workers; `rate_per_key` and `rate`, how often they start, as "10/s"; `fair`,
                whether user keys take turns by what their jobs run.

        Raises:
            ConfigurationError: The function or an option cannot be used.
        """
        if function is None:
            return lambda fn: self._register(fn, options)
        return self._register(function, options)

    def _register(self, function: Callable[..., Any], options: dict[str, Any]) -> Handler[..., Any]:
        if not inspect.isroutine(function):
            raise ConfigurationError(f"{function!r} is not a function, so it cannot be a handler")
        options = {name: value for name, value in options.items() if value is not None or name == "timeout"}
        options.setdefault("name", function.__name__)
        options["dedup"] = _as_dedup(options.get("dedup", ()))
        try:
            spec = HandlerSpec(function=function, **options)
        except TypeError as error:
            raise ConfigurationError(f"handler {options['name']!r}: {error}") from None
        self.registry.add(spec)
        return Handler(self, spec)

    def middleware(self, function: M) -> M:
        """Run a function around each job: async, given the job and the rest of the run to await.

        The one that is registered first is the outermost. It runs where the handler runs, with `isolation="process"`
        in the child.

        Raises:
            ConfigurationError: It is not async.
        """
        is_async: bool = inspect.iscoroutinefunction(function)
        if not is_async:
            raise ConfigurationError(f"middleware {function!r} is not async: write async def")
        self.registry.middleware.append(function)
        return function

    def lifespan(self, function: L) -> L:
        """Open what all jobs of a worker process share, before the first job, and close it after the last.

        Args:
            function: An async generator function that yields once, or one that returns an async context manager. What
                it yields is `state`.

        Raises:
            ConfigurationError: The application has one already.
        """
        if self.registry.lifespan is not None:
            raise ConfigurationError("the application has a lifespan already; call the other one from there")
        made: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        self.registry.lifespan = made
        return function

    @property
    def state(self) -> Any:
        """What the lifespan yielded in this worker process.

        Raises:
            StreamQError: There is no lifespan, or no worker runs here.
        """
        return self.registry.state()

    def authenticate(self, function: A) -> A:
        """Have the status API ask a function of yours who is asking, when a request shows no token of streamq's.

        Args:
            function: Plain or async; given the request (Starlette's `HTTPConnection`), it returns a
                `streamq.api.Principal`, or None for somebody that it does not know.

        Raises:
            ConfigurationError: The application has one already.
        """
        if self.authenticator is not None:
            raise ConfigurationError("the application has a login already; call the other one from there")
        self.authenticator = function
        return function

    def cron(
        self, expression: str, *, handler: Handler[..., Any], name: str | None = None, **options: Any
    ) -> Callable[[PageFunction], PageFunction]:
        """Fire on a schedule: each time, one job of `handler` for every user that the decorated function returns.

        Args:
            expression: Five crontab fields, weekdays by name; UTC unless `timezone=` is given. Or `every 15m`.
            handler: What runs for each user; it takes the user's id as its only required argument.
            name: The schedule's name; the function's, unless given.
            options: `timezone`, `start`, `end`, `limit`, `jitter`, `misfire`, `misfire_limit`, `overlap`, `scatter`,
                `deadline`, `grace`, `page_timeout`, `alarm_share`, `stale_after`; see `CronEntry`. The expression is
                read, and checked, when schedules are started or listed.

        Raises:
            ConfigurationError: Another schedule has the name, or an option is not one.
        """
        for option in options:
            if option not in _CRON_OPTIONS:
                raise ConfigurationError(
                    f"{option!r} is not an option of a schedule (known: {', '.join(sorted(_CRON_OPTIONS))})"
                )

        def register(page: PageFunction) -> PageFunction:
            label = name or str(getattr(page, "__name__", "cron"))
            if label in self.cron_entries:
                raise ConfigurationError(f"two schedules are named {label!r}; give one a name=")
            self.cron_entries[label] = CronEntry(label, expression, handler.spec, page, **options)
            self.pages.setdefault(label, page)
            return page

        return register

    def users(self, page: PageFunction) -> PageFunction:
        """Register a page function under its name, for schedules that are stored and not written in code."""
        self.pages[str(getattr(page, "__name__", "users"))] = page
        return page

    async def enqueue(self, handler: str, *args: Any, **kwargs: Any) -> Job:
        """Enqueue by a handler's name.

        Raises:
            UnknownHandler: The application has none of that name.
        """
        spec = self.registry.get(handler)
        return await Handler[..., Any](self, spec).enqueue(*args, **kwargs)

    def producer(
        self,
        handler: str,
        *,
        queue: str = "default",
        priority: Priority = "normal",
        key: str | None = None,
        dedup: str | Sequence[str] | Dedup = (),
    ) -> Handler[..., Any]:
        """Return a way to enqueue jobs of a handler whose code is not here, by its name.

        It enqueues as a handler does, with all options. Only workers know the handler's signature: a call that does not
        fit it fails there. `max_attempts` and the like are as the handler says.

        Args:
            handler: Its name.
            queue: The handler's queue.
            priority: As the handler's; a producer cannot know.
            key: The name of the argument that is the user key. It must then be given by name.
            dedup: The names of the arguments that make the dedup key, or a `Dedup`. They must then be given by name.

        Raises:
            ConfigurationError: It cannot be a handler's name, or a queue's.
        """
        spec = HandlerSpec(
            handler, _elsewhere, queue=queue, priority=priority, key=key, dedup=_as_dedup(dedup), is_elsewhere=True
        )
        return Handler(self, spec)

    async def explain(self, key: str, *, queue: str = "default") -> Explanation:
        """Say who holds a dedup key: why a call with it made a new job, or did not."""
        return await self.client.explain(queue, key)

    def handler_named(self, name: str) -> Handler[..., Any]:
        """Return the handler of that name."""
        return Handler(self, self.registry.get(name))
