"""The OpenAPI document as a page that a person can read: plain HTML, nothing that is fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["POLICY", "page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
code, .path { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
section { border-top: 1px solid #8888; padding: .5rem 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th code { white-space: nowrap; }
h3 { margin-bottom: .2rem; }
"""
_CODE = re.compile("`([^`]*)`")
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The page may have this one style and nothing else."""


def page(document: Mapping[str, Any]) -> str:
    """Write the page."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1><p>{escape(info['summary'])}</p>",
        "<p>The same for programs: <a href='/openapi.json'>openapi.json</a>.</p>",
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, methods in document["paths"].items():
            parts += [_operation(path, each, what) for each, what in methods.items() if tag["name"] in what["tags"]]
    parts += ["<h2>Refusals</h2>", _refusals(document["components"]["responses"]), "<h2>Types</h2>"]
    parts += [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return "".join([*parts, "</body></html>\n"])


def _operation(path: str, method: str, what: Mapping[str, Any]) -> str:
    rows = [
        _row(each["name"], each["in"], _kind(each["schema"]), each.get("description", ""))
        for each in what.get("parameters", ())
    ]
    for media, content in what.get("requestBody", {}).get("content", {}).items():
        rows.append(_row("body", media, _kind(content["schema"]), ""))
    rows += _answers(what["responses"])
    return (
        f"<section id='{escape(what['operationId'])}'><h3 class='path'>{method.upper()} {escape(path)}</h3>"
        f"<p>{_text(what['summary'])} {_text(what.get('description', ''))}</p><table>{''.join(rows)}</table></section>"
    )


def _answers(responses: Mapping[str, Any]) -> list[str]:
    """Write a row for each answer, and one for all refusals, whose meaning stands once at the end of the page."""
    rows = [
        _row(status, "answer", _content(told), told["description"])
        for status, told in responses.items()
        if "$ref" not in told
    ]
    refusals = ", ".join(status for status, told in responses.items() if "$ref" in told)
    return [*rows, _row("refused", "answer", "Problem", refusals)]


def _refusals(responses: Mapping[str, Any]) -> str:
    rows = [_row(status, _content(told), told["description"]) for status, told in responses.items()]
    return f"<section id='refusals'><table>{''.join(rows)}</table></section>"


def _content(told: Mapping[str, Any]) -> str:
    return ", ".join(_kind(content["schema"]) for content in told.get("content", {}).values())


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        _row(field, "" if field in required else "optional", _kind(kind), kind.get("description", ""))
        for field, kind in schema.get("properties", {}).items()
    ]
    about = _text(schema.get("description", ""))
    return f"<section id='{escape(name)}'><h3>{escape(name)}</h3><p>{about}</p><table>{''.join(rows)}</table></section>"


def _row(*cells: str) -> str:
    first, *others = cells
    told = "".join(f"<td>{_text(cell)}</td>" for cell in others)
    return f"<tr><th scope='row'><code>{escape(first)}</code></th>{told}</tr>"


def _text(text: str) -> str:
    """Escape a text, and show as code what stands between backticks in it."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _kind(schema: Mapping[str, Any]) -> str:
    """Say in a word what a schema wants."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return str(schema.get("format") or schema.get("type") or "anything") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    words: Iterable[str] = (f"{word} {schema[word]}" for word in ("minimum", "maximum", "default") if word in schema)
    told = ", ".join(words)
    return f" ({told})" if told else ""
