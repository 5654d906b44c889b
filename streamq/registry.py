"""What an application has: its handlers, looked up by name, and what surrounds their jobs."""

from __future__ import annotations

import inspect
import logging
import traceback
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from streamq.clock import to_ms
from streamq.depends import Dependency, split_signature
from streamq.errors import BadArguments, ConfigurationError, LifespanFailed, StreamQError, UnknownHandler
from streamq.gates import Gates
from streamq.keys import LANES, check_queue_name, lane_digit
from streamq.logs import event
from streamq.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from streamq.dedup import Dedup

__all__ = ["HandlerSpec", "Isolation", "Priority", "Registry"]

Isolation = Literal["auto", "thread", "process"]
Priority = Literal["high", "normal", "low"]

log = logging.getLogger("streamq.worker")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class HandlerSpec:
    """Everything that is known of a handler before a job of it runs."""

    name: str
    function: Callable[..., Any]
    queue: str = "default"
    max_attempts: int = 5
    timeout: timedelta | None = timedelta(minutes=15)
    """How long one run may take; None: for ever."""
    priority: Priority = "normal"
    key: str | None = None
    """The name of the argument that is the user key."""
    cost: str | None = None
    """The name of the argument that hints how long a job runs: any number that rises with it."""
    dedup: Dedup | None = None
    """When another job stands in for a new one; None: jobs are not deduplicated."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    isolation: Isolation = "auto"
    is_elsewhere: bool = False
    """Only its name is known here: arguments are taken as they come, and the worker knows the rest."""
    concurrency_per_key: int = 0
    """How many jobs of one user key run at once, on all workers; 0: any number."""
    rate_per_key: str | None = None
    """How often jobs of one user key start, as `10/s`; None: whenever."""
    concurrency: int = 0
    """How many jobs of this handler run at once, on all workers; 0: any number."""
    rate: str | None = None
    """How often jobs of this handler start."""
    fair: bool = False
    """Whether user keys take turns by what their jobs run, whatever number of them waits."""
    memory_limit: int = 0
    """With isolation="process": how many bytes one run may take; 0: any number."""
    gates: Gates | None = field(init=False)
    """What its jobs have to pass before they start; None: nothing."""
    signature: inspect.Signature = field(init=False)
    """Without the parameters that the worker fills."""
    dependencies: tuple[Dependency, ...] = field(init=False)
    """The parameters that the worker fills."""
    is_async: bool = field(init=False)
    head: bytes = field(init=False)
    """The constant first part of each envelope."""
    places: Mapping[str, int] = field(init=False)
    """Where each parameter stands in the signature."""
    digit: int = field(init=False)
    """Of the lane of its priority."""
    is_bare: bool = field(init=False)
    """Whether a job of it has arguments and nothing else, unless options say more."""
    required: int = field(init=False)
    positional: int = field(init=False)

    def __post_init__(self) -> None:
        signature, dependencies = split_signature(f"handler {self.name!r}", inspect.signature(self.function))
        parameters = list(signature.parameters.values())
        _check_spec(self, signature)
        needed = [p for p in parameters if p.default is p.empty]
        by_position = [p for p in parameters if p.kind in _POSITIONAL]
        keyword_needed = any(p.kind is p.KEYWORD_ONLY for p in needed)
        values: dict[str, Any] = {
            "gates": Gates.of(
                self.name, self.concurrency_per_key, self.rate_per_key, self.concurrency, self.rate, fair=self.fair
            ),
            "signature": signature,
            "dependencies": dependencies,
            "is_async": inspect.iscoroutinefunction(self.function),
            "head": b'{"v":1,"h":"%s"' % self.name.encode(),
            "digit": lane_digit(self.priority),
            "is_bare": self.key is None and self.cost is None,
            "required": len(needed) if not keyword_needed else len(by_position) + 1,
            "positional": len(by_position),
            "places": {parameter.name: place for place, parameter in enumerate(parameters)},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def timeout_ms(self) -> int:
        """The timeout in ms; 0: none."""
        return to_ms(self.timeout) if self.timeout is not None else 0

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See that a call with these arguments would work.

        Raises:
            BadArguments: It would not; the message shows the handler's signature.
        """
        if self.is_elsewhere or (not kwargs and self.required <= len(args) <= self.positional):
            return  # Nearly every call; `bind` costs ten times as much.
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [name for name in kwargs if name not in self.places]
            # `bind` complains of what is missing first, and a wrong name is why it is missing. What is no name it knows, too.
            is_name = unknown and type(unknown[0]) is str
            why = f"got an unexpected keyword argument {unknown[0]!r}" if is_name else error
            raise BadArguments(f"{self.name}{self.signature}: {why}") from None

    def argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the value that a parameter would have in a call with these arguments."""
        if name in kwargs:
            return kwargs[name]
        if self.is_elsewhere:
            raise BadArguments(
                f"{self.name!r} is known by name only: {name!r} makes its key, so it must be given by name",
                hint=f"write {name}=...",
            )
        position = self.places[name]
        if position < len(args):
            return args[position]
        return self.signature.parameters[name].default


def _check_spec(spec: HandlerSpec, signature: inspect.Signature) -> None:
    check_queue_name(spec.queue)
    where = f"handler {spec.name!r}"
    if not spec.name.isidentifier() and not all(part.isidentifier() for part in spec.name.replace("-", "_").split(".")):
        raise ConfigurationError(f"{where}: a name is letters, digits and '_', with '.' or '-' between")
    if spec.max_attempts < 1:
        raise ConfigurationError(f"{where}: max_attempts counts from 1, and {spec.max_attempts} came")
    if spec.timeout is not None and spec.timeout <= timedelta(0):
        raise ConfigurationError(f"{where}: timeout must be longer than nothing, and {spec.timeout} came")
    if spec.priority not in LANES[:3]:
        raise ConfigurationError(f"{where}: priority is high, normal or low, not {spec.priority!r}")
    _check_isolation(spec, where)
    rule = spec.dedup
    if rule is not None and not rule.by and rule.key is None:
        raise ConfigurationError(f"{where}: dedup needs the names of the arguments that make jobs the same, or key=")
    _check_names(spec, signature)


def _check_names(spec: HandlerSpec, signature: inspect.Signature) -> None:
    if spec.is_elsewhere:
        return
    where = f"handler {spec.name!r}"
    variadic = [p.name for p in signature.parameters.values() if p.kind in _VARIADIC]
    if variadic:
        raise ConfigurationError(
            f"{where} takes *{variadic[0]}: name each argument, so that a wrong call is refused when it is enqueued"
        )
    for name in (*(spec.dedup.by if spec.dedup is not None else ()), *filter(None, (spec.key, spec.cost))):
        if name not in signature.parameters:
            raise ConfigurationError(f"{where} has no argument {name!r}: it is {signature}")


def _check_isolation(spec: HandlerSpec, where: str) -> None:
    if spec.isolation not in get_args(Isolation):
        raise ConfigurationError(f"{where}: isolation is auto, thread or process, not {spec.isolation!r}")
    if spec.isolation == "thread" and inspect.iscoroutinefunction(spec.function):
        raise ConfigurationError(
            f"{where} is async, so it cannot run in a thread", hint="leave isolation= out, or say process"
        )
    if spec.memory_limit < 0 or (spec.memory_limit and spec.isolation != "process"):
        raise ConfigurationError(
            f"{where}: memory_limit is a number of bytes, and only for isolation='process'; {spec.memory_limit} came "
            f"with isolation={spec.isolation!r}"
        )


class Registry:
    """Handlers by name, the middleware around them, and the lifespan around all."""

    def __init__(self) -> None:
        self._specs: dict[str, HandlerSpec] = {}
        self._states: list[Any] = []
        self.middleware: list[Callable[..., Awaitable[Any]]] = []
        """The first one is the outermost."""
        self.lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None

    def add(self, spec: HandlerSpec) -> None:
        """Register a handler.

        Raises:
            ConfigurationError: Another one has the name.
        """
        known = self._specs.get(spec.name)
        if known is not None and known.function.__module__ != spec.function.__module__:
            raise ConfigurationError(
                f"two handlers are named {spec.name!r}: {known.function.__module__} and "
                f"{spec.function.__module__}; give one a name="
            )
        self._specs[spec.name] = spec

    def find(self, name: str) -> HandlerSpec | None:
        """Return the handler of that name, or None."""
        return self._specs.get(name)

    def get(self, name: str) -> HandlerSpec:
        """Return the handler of that name.

        Raises:
            UnknownHandler: There is none; the message lists those that there are.
        """
        spec = self._specs.get(name)
        if spec is None:
            known = ", ".join(sorted(self._specs)) or "none is registered"
            raise UnknownHandler(f"no handler is named {name!r} (known: {known})")
        return spec

    def state(self) -> Any:
        """Return what the lifespan gave to this process.

        Raises:
            StreamQError: There is no lifespan, or no worker runs in this process.
        """
        if not self._states:
            why = "this process runs no jobs" if self.lifespan else "the application has no lifespan"
            raise StreamQError(f"there is no state here: {why}")
        return self._states[-1]

    @asynccontextmanager
    async def alive(self) -> AsyncGenerator[None, None]:
        """Go through the lifespan, around everything that this process runs.

        Raises:
            LifespanFailed: It raised before its `yield`. What it raises afterwards is only logged: all work is done.
        """
        if self.lifespan is None:
            yield
            return
        span = self.lifespan()
        try:
            self._states.append(await span.__aenter__())
        except Exception as error:
            raise LifespanFailed(f"the lifespan failed at the start: {type(error).__name__}: {error}") from error
        try:
            yield
        finally:
            self._states.pop()
            try:
                await span.__aexit__(None, None, None)
            except Exception:  # noqa: BLE001 - the user's code; whatever it raises, this process ends in order
                event(log, logging.ERROR, "worker.lifespan_failed", traceback=traceback.format_exc())

    def __iter__(self) -> Iterator[HandlerSpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)
