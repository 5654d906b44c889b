"""Parameters of a handler that its worker fills: `async def refresh(user_id: str, db: Database = Depends(open_db))`.

What a parameter needs is found out when the handler is registered; a job only calls what was found.
"""

from __future__ import annotations

import inspect
import itertools
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

__all__ = ["Dependency", "Depends", "split_signature"]


class _Marker:
    """The default value of a parameter that the worker fills."""

    def __init__(self, provider: Callable[..., Any]) -> None:
        self.provider = provider

    def __repr__(self) -> str:
        return f"Depends({getattr(self.provider, '__qualname__', self.provider)})"


def Depends(provider: Callable[..., Any]) -> Any:  # noqa: N802 - reads as the type that it stands for
    """Have the worker fill a parameter of a handler, for each job.

    Args:
        provider: A function, plain or async, that returns the value; or a generator, plain or async, that yields it and
            cleans up when the job has ended. It takes nothing, or the value of the application's lifespan. A plain one
            runs on the event loop, so it must not wait.

    What a provider raises counts as raised by the handler.
    """
    return _Marker(provider)


class _Kind(StrEnum):
    VALUE = "value"
    AWAITABLE = "awaitable"
    CONTEXT = "context"
    ASYNC_CONTEXT = "async context"


@dataclass(frozen=True, slots=True)
class Dependency:
    """A parameter that the worker fills, and how."""

    name: str
    kind: _Kind
    make: Callable[..., Any]
    takes_state: bool

    async def enter(self, stack: AsyncExitStack, state: Callable[[], Any]) -> Any:
        """Return the value for one job; what there is to clean up is left to the stack."""
        made = self.make(state()) if self.takes_state else self.make()
        match self.kind:
            case _Kind.VALUE:
                return made
            case _Kind.AWAITABLE:
                return await made
            case _Kind.CONTEXT:
                return stack.enter_context(made)
            case _Kind.ASYNC_CONTEXT:
                return await stack.enter_async_context(made)


def split_signature(where: str, signature: inspect.Signature) -> tuple[inspect.Signature, tuple[Dependency, ...]]:
    """Divide the parameters of a handler into those of its caller and those of its worker.

    Raises:
        ConfigurationError: A provider cannot be used, or an argument of the caller stands behind it.
    """
    parameters = list(signature.parameters.values())
    filled = [parameter for parameter in parameters if isinstance(parameter.default, _Marker)]
    if not filled:
        return signature, ()
    for parameter, following in itertools.pairwise(parameters):
        is_behind = following.kind is not following.KEYWORD_ONLY and following not in filled
        if parameter in filled and is_behind:
            raise ConfigurationError(
                f"{where}: {following.name!r} stands behind {parameter.name!r}, which the worker fills",
                hint="put what the worker fills last",
            )
    rest = [parameter for parameter in parameters if parameter not in filled]
    return signature.replace(parameters=rest), tuple(_dependency(where, parameter) for parameter in filled)


def _dependency(where: str, parameter: inspect.Parameter) -> Dependency:
    provider = parameter.default.provider
    if not callable(provider):
        raise ConfigurationError(f"{where}: {parameter.name!r} depends on {provider!r}, which cannot be called")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ConfigurationError(
            f"{where}: the worker fills {parameter.name!r} by its name, so it cannot stand before '/'"
        )
    needed = [each for each in inspect.signature(provider).parameters.values() if each.default is each.empty]
    if len(needed) > 1:
        raise ConfigurationError(
            f"{where}: {parameter.name!r} depends on {parameter.default!r}, which takes {len(needed)} arguments",
            hint="it may take one: the value of the lifespan",
        )
    return Dependency(parameter.name, *_maker(provider), bool(needed))


def _maker(provider: Callable[..., Any]) -> tuple[_Kind, Callable[..., Any]]:
    """Tell by the function, not by what it returns: a client that can be closed is not this job's to close."""
    if inspect.isasyncgenfunction(provider):
        return _Kind.ASYNC_CONTEXT, asynccontextmanager(provider)
    if inspect.isgeneratorfunction(provider):
        return _Kind.CONTEXT, contextmanager(provider)
    return _Kind.AWAITABLE if inspect.iscoroutinefunction(provider) else _Kind.VALUE, provider
