"""The table of operations: what the API can be asked, by whom, with what, and what it answers.

Routes, the check of scopes, the check of parameters and the OpenAPI document are all made from it, so that none of
them can forget an operation.
"""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from streamq.api.answers import Problem
from streamq.api.parameters import BODY_WITHIN_S, Parameter, check_parameters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from streamq.access import Principal

__all__ = ["LIMIT_S", "Operation", "principal_of", "routes_of", "users_seen"]

LIMIT_S = 10.0
"""The most time that a request may take, unless its operation says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    run: Callable[[Request], Awaitable[Response]]
    tag: str
    scope: str | None = None
    """What the caller must be allowed to do; None: whoever is known may."""
    by_user: bool = False
    """Whether somebody with `user:<id>` may call it, and is told of that user only."""
    is_open: bool = False
    """Whether anybody may call it."""
    parameters: Sequence[Parameter] = ()
    takes_others: bool = False
    """Whether query parameters that are not listed are let pass, as the original routes always did."""
    body: Any = None
    """Type of the JSON body; None: there is none."""
    answer: Any = None
    """Type of the JSON answer; None: it is not JSON."""
    media: str = "application/json"
    status: int = 200
    misses: Sequence[int] = ()
    """Errors of its own: 404, 409, ..."""
    also: Sequence[int] = ()
    """Other statuses that are no errors."""
    limit_s: float = LIMIT_S
    """How long it may take once its body is there."""
    headers: Sequence[Parameter] = field(default=())

    @property
    def whole_limit_s(self) -> float:
        """How long it may take with its body, which has a limit of its own."""
        return self.limit_s + (BODY_WITHIN_S if self.body is not None else 0)

    @property
    def summary(self) -> str:
        """The first line of what the code says of itself."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """All that the code says of itself beyond the first line."""
        return " ".join((inspect.getdoc(self.run) or "").partition("\n")[2].split())

    @property
    def name(self) -> str:
        """The operation's name in the OpenAPI document."""
        return self.run.__name__.strip("_")


def routes_of(operations: Iterable[Operation]) -> list[Route]:
    """Make the routes, in the order of the operations; one for each path, so that `Allow` names all its methods."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [Route(path, _endpoint(methods), methods=list(methods)) for path, methods in by_path.items()]


def _endpoint(methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        operation = methods["GET" if request.method == "HEAD" else request.method]
        check_scope(request, operation)
        if not operation.takes_others:
            check_parameters(request, operation.parameters)
        try:
            async with asyncio.timeout(operation.whole_limit_s):
                return await operation.run(request)
        except TimeoutError:
            detail = f"no answer within {operation.whole_limit_s:g} s"
            raise Problem(503, detail, kind="too-slow", headers={"retry-after": "5"}) from None

    return answer


def check_scope(request: Request, operation: Operation) -> None:
    """Let nobody do what was not granted.

    Raises:
        Problem: 403, with the scope that is missing.
    """
    if operation.is_open or operation.scope is None:
        return
    principal = principal_of(request)
    if principal.may(operation.scope) or (operation.by_user and principal.users):
        return
    raise Problem(
        403,
        f"this needs the scope {operation.scope}",
        kind="scope-missing",
        headers={"www-authenticate": f'Bearer realm="streamq", error="insufficient_scope", scope="{operation.scope}"'},
    )


def principal_of(request: Request) -> Principal:
    """Return who asks; the gate has seen to it that there is somebody."""
    principal: Principal = request.state.principal
    return principal


def users_seen(request: Request) -> frozenset[str] | None:
    """Return the users whose jobs the caller may see; None: of all."""
    principal = principal_of(request)
    return None if principal.may("jobs:read") else principal.users
