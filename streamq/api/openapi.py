"""The OpenAPI document, made from the table of operations. See https://spec.openapis.org/oas/v3.1.0."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from streamq import __version__
from streamq.access import SCOPES, USER_SCOPE
from streamq.api.door import COOKIE
from streamq.api.shapes import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamq.api.parameters import Parameter
    from streamq.api.table import Operation

__all__ = ["document"]

_PLACE = re.compile(r"{(\w+)(?::\w+)?}")
_PROBLEMS = {
    400: "The request is not HTTP as it should be.",
    401: "There is no valid token.",
    403: "A scope is missing.",
    404: "There is no such thing, or it is not the caller's to see.",
    405: "The path has no such method.",
    408: "The body did not come in time.",
    409: "It is no longer as the order supposes.",
    412: "It was changed meanwhile: its ETag is another one.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A parameter or the body cannot be used; `errors` names it.",
    429: "Too many requests; `Retry-After` says how long to wait.",
    503: "A server is away, and the answer with it.",
    507: "The queue, or Redis, is full.",
}
_ALSO = {
    201: "Made.",
    204: "It has ended, and nothing has changed since.",
    202: "Accepted; it takes a while.",
    200: "Done.",
    304: "Nothing has changed.",
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Write the document."""
    named = [kind for each in operations for kind in (each.body, each.answer) if kind not in (None, dict)]
    _, schemas = msgspec.json.schema_components([*named, Problem], ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(_path(operation), {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamq",
            "version": __version__,
            "summary": "Jobs, queues and workers, and what happened to a user's job.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"session": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(each.tag for each in operations)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _refusal(status) for status in _PROBLEMS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": _scopes()},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


def _scopes() -> str:
    lines = [f"`{scope}`: {about}" for scope, about in SCOPES.items()]
    return "; ".join([*lines, f"`{USER_SCOPE}<id>`: read the jobs of that user"])


def _path(operation: Operation) -> str:
    return _PLACE.sub(r"{\1}", operation.path)


def _operation(operation: Operation) -> dict[str, Any]:
    needs = [operation.scope] if operation.scope else []
    described = " ".join([operation.description, *(f"Needs the scope `{scope}`." for scope in needs)]).strip()
    told: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": described,
        "parameters": [*_path_parameters(operation), *_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.is_open:
        told["security"] = []
    if operation.body is not None:
        is_required = any(field.required for field in msgspec.structs.fields(operation.body))
        content = {"application/json": {"schema": _reference(operation.body)}}
        told["requestBody"] = {"required": is_required, "content": content}
    return {name: value for name, value in told.items() if value != [] or name == "security"}


def _path_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for name in _PLACE.findall(operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for where, parameters in (("query", operation.parameters), ("header", operation.headers)):
        for parameter in parameters:
            yield _parameter(parameter, where)


def _parameter(parameter: Parameter, where: str) -> dict[str, Any]:
    required = {"required": True} if parameter.is_required else {}
    about = {"description": parameter.description, "schema": dict(parameter.schema)}
    return {"name": parameter.name, "in": where, **required, **about}


def _responses(operation: Operation) -> dict[str, Any]:
    about = operation.summary.rstrip(".") or "Done"
    told: dict[str, Any] = {str(operation.status): _response(operation, f"{about}.", operation.status)}
    told |= {str(status): _response(operation, _ALSO[status], status) for status in operation.also}
    refused = {400, 405, 413, 503, *operation.misses}
    refused |= set() if operation.is_open else {401, 429}
    refused |= {403} if operation.scope else set()
    refused |= set() if operation.takes_others and not operation.parameters else {422}
    refused |= {408, 415} if operation.body is not None else set()
    told |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(refused)}
    return told


def _refusal(status: int) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": _reference(Problem)}}
    # That is said before anything of ours is reached.
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {"description": _PROBLEMS[status], "content": text if status == 400 else problem}


def _response(operation: Operation, about: str, status: int) -> dict[str, Any]:
    if status in (204, 304):
        return {"description": about}
    # OpenAPI 3.1 has no words for a stream of events.
    text = {} if operation.media == "text/event-stream" else {"type": "string"}
    schema = text if operation.answer is None else _reference(operation.answer)
    return {"description": about, "content": {operation.media: {"schema": schema}}}


def _reference(kind: type) -> dict[str, str]:
    if kind is dict:
        return {"type": "object"}
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
