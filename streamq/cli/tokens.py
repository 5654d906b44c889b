"""`streamq token`: who may ask the API, and what."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, setting_options
from streamq.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from streamq.access import Issued, TokenBook, TokenStatus
    from streamq.cli.output import Output
    from streamq.settings import Settings

__all__ = ["token"]

_COLUMNS = ["id", "name", "state", "scopes", "expires_at", "last_used_at", "created_at"]
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of the API. They are in MongoDB, which keeps only their digests."""


def lasting(text: str) -> timedelta:
    """Read a duration such as 90d, 12h or 30m."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) < 7 and unit in _UNITS:
        return timedelta(seconds=int(number) * _UNITS[unit])
    raise click.BadParameter(f"{text!r} is no duration; write 90d, 12h or 30m")


@token.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, help="What it may do; repeat for several. See docs/api.md.")
@click.option(
    "--expires", type=lasting, metavar="DURATION", help="How long it is good.  [default: until it is revoked]"
)
@setting_options("app", "mongodb_database", short=False)
@output_options
def create(settings: Settings, name: str, scopes: tuple[str, ...], expires: timedelta | None, out: Output) -> None:
    """Make a token for NAME, and print it. It is shown this once."""

    async def make() -> Issued:
        async with _book(settings) as book:
            return await book.issue(name, scopes, by=getpass.getuser(), lasts=expires)

    _show(out, asyncio.run(make()), name)


@token.command()
@click.argument("token_id")
@click.option("--overlap", type=lasting, default="24h", show_default=True, help="How long the old one stays good.")
@click.option("--expires", type=lasting, metavar="DURATION", help="How long the new one is good.")
@setting_options("app", "mongodb_database", short=False)
@output_options
def rotate(settings: Settings, token_id: str, overlap: timedelta, expires: timedelta | None, out: Output) -> None:
    """Make a token like the one with this id, which then ends, and print it."""

    async def make() -> Issued:
        async with _book(settings) as book:
            return await book.replace(token_id, by=getpass.getuser(), overlap=overlap, lasts=expires)

    _show(out, asyncio.run(make()), token_id)


@token.command("ls")
@setting_options("app", "mongodb_database", short=False)
@output_options
def list_tokens(settings: Settings, out: Output) -> None:
    """List all tokens: whose, what they may, when they end, and when they were last used."""

    async def look() -> list[TokenStatus]:
        async with _book(settings) as book:
            return await book.list()

    out.rows([_described(each) for each in asyncio.run(look())], _COLUMNS, id_of="id")


@token.command()
@click.argument("token_id")
@setting_options("app", "mongodb_database", short=False)
@output_options
def revoke(settings: Settings, token_id: str, out: Output) -> None:
    """Make a token good for nothing, within five seconds."""

    async def end() -> TokenStatus:
        async with _book(settings) as book:
            return await book.revoke(token_id)

    ended = asyncio.run(end())
    if out.as_json:
        out.document(_described(ended))
    else:
        out.note(f"{ended.id} ({ended.name}): revoked")


@contextlib.asynccontextmanager
async def _book(settings: Settings) -> AsyncGenerator[TokenBook]:
    from streamq.access import TokenBook
    from streamq.mongo import Mongo

    if settings.app:
        from streamq.loading import load_with_settings

        settings = load_with_settings(settings)[1]
    if not settings.history:
        raise ConfigurationError("tokens are in MongoDB, and history is off", hint="use the one of STREAMQ_API_TOKEN")
    mongo = Mongo(settings.mongodb_url, settings.mongodb_database)
    try:
        yield TokenBook(mongo)
    finally:
        await mongo.close()


def _show(out: Output, issued: Issued, name: str) -> None:
    if out.as_json:
        out.document({"id": issued.id, "token": issued.text})
        return
    out.note(f"token {issued.id} for {name}; this is the only time that it is shown:")
    click.echo(issued.text)


def _described(status: TokenStatus) -> dict[str, Any]:
    return {**status._asdict(), "scopes": list(status.scopes), "state": status.state}
