"""The connection to MongoDB, and what each kind of failure means."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import pymongo
from bson.dbref import DBRef
from bson.errors import BSONError
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.errors import (
    ConfigurationError as MongoConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from streamq.errors import ConfigurationError, HistoryUnavailable, StreamQError

if TYPE_CHECKING:
    from collections.abc import Generator

    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.database import AsyncDatabase

__all__ = ["UNENCODABLE", "Document", "Mongo", "is_about_the_document", "is_passing", "plain"]

Document = dict[str, Any]

UNENCODABLE = (BSONError, DocumentTooLarge, OverflowError, RecursionError, TypeError, UnicodeError, ValueError)
"""Refusals that are about a document, raised before anything is sent."""

OLDEST_SERVER = (5, 0)
"""From 5.0 on a key inside a document may begin with `$`, so a result is stored as it is. 4.4 is past its end of life."""

SELECTION_TIMEOUT_MS = 2_000
OPERATION_TIMEOUT_MS = 10_000

_AUTHENTICATION_FAILED, _UNAUTHORIZED = 18, 13
_PASSING = frozenset(
    {
        6, 7, 64, 89, 91, 189, 262, 9001, 10107, 11600, 11602, 13388, 13435, 13436,  # server going, coming, or not primary
        24, 46, 50, 112,  # locks, time limits, conflicts
        14031,  # disk full: all writes wait until there is space
    }
)  # fmt: skip
"""Codes of refusals that say nothing about the document; the same write may work later."""


def is_passing(code: int | None) -> bool:
    """Tell whether a refusal is about the server's condition rather than about what was written."""
    return code in _PASSING


def is_about_the_document(code: int | None) -> bool:
    """Tell whether a refusal is about what was written, and neither about the server nor about who writes."""
    return not is_passing(code) and code not in (_AUTHENTICATION_FAILED, _UNAUTHORIZED)


class Mongo:
    """A client of one database. It connects with its first operation, and again by itself whenever it has to."""

    def __init__(self, url: str, database: str = "streamq") -> None:
        """Make a client; nothing is sent yet.

        Writes are acknowledged by the majority and journaled: `kill -9` of the server loses none of them.

        Raises:
            ConfigurationError: The URL is not one of MongoDB's.
        """
        self.where = _without_secrets(url)
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                url,
                appname="streamq",
                connectTimeoutMS=SELECTION_TIMEOUT_MS,
                journal=True,
                serverSelectionTimeoutMS=SELECTION_TIMEOUT_MS,
                socketTimeoutMS=OPERATION_TIMEOUT_MS,
                tz_aware=True,
                w="majority",
                wTimeoutMS=OPERATION_TIMEOUT_MS,
            )
        except (InvalidURI, MongoConfigurationError, ValueError) as error:
            raise ConfigurationError(
                f"the address of MongoDB cannot be used: {_first_line(error)}",
                hint="MONGODB_URL looks like mongodb://user:password@host:27017/?authSource=admin",
            ) from error
        self.database: AsyncDatabase[Document] = self._client[database]

    def collection(self, name: str) -> AsyncCollection[Document]:
        """Return a collection of the database."""
        return self.database[name]

    async def check(self) -> None:
        """Make sure that the server is there, lets us in, and is new enough.

        Raises:
            HistoryUnavailable: It does not answer.
            ConfigurationError: It refuses the user, or is older than streamq needs.
        """
        with self.translated():
            info = await self._client.admin.command("buildInfo")
            await self.database.command("ping")
        if tuple(info["versionArray"][:2]) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise ConfigurationError(
                f"MongoDB at {self.where} is {info['version']}, and streamq needs {oldest} or newer",
                hint="upgrade the server, or set STREAMQ_HISTORY=false to run without history",
            )

    @contextmanager
    def translated(self) -> Generator[None]:
        """Turn pymongo's errors into ours, and leave alone those that say what is wrong with a document."""
        try:
            yield
        except OperationFailure as error:
            if (translated := self._of_refusal(error)) is None:
                raise
            raise translated from error
        except ConnectionFailure as error:
            raise HistoryUnavailable(
                f"cannot reach MongoDB at {self.where}: {_first_line(error)}",
                hint="check that it runs, and MONGODB_URL",
            ) from error
        except PyMongoError as error:
            if not error.timeout:
                raise
            raise HistoryUnavailable(f"MongoDB at {self.where} did not answer in time") from error

    @contextmanager
    def patience(self, limit_s: float) -> Generator[None]:
        """Give the operations inside so much time altogether, which may be more than usual or less."""
        with pymongo.timeout(limit_s):
            yield

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _of_refusal(self, error: OperationFailure) -> StreamQError | None:
        said = _first_line(error)
        if error.code in (_AUTHENTICATION_FAILED, _UNAUTHORIZED):
            return ConfigurationError(
                f"MongoDB at {self.where} refused the user: {said}",
                hint="check user, password and authSource in MONGODB_URL; the user needs readWrite on the database",
            )
        if is_passing(error.code) or error.timeout or isinstance(error, ExecutionTimeout | WriteConcernError):
            return HistoryUnavailable(f"MongoDB at {self.where} cannot serve now: {said}")
        return None


def plain(value: Any) -> Any:
    """Undo what pymongo reads into a result that came from JSON: an object with `$ref` and `$id` is just an object."""
    if isinstance(value, DBRef):
        value = dict(value.as_doc())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in cast("Document", value).items()}
    return [plain(item) for item in cast("list[object]", value)] if isinstance(value, list) else value


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the given address"
    return unquote(parts.netloc.rpartition("@")[2]) or "the given address"


def _first_line(error: Exception) -> str:
    """Cut off the description of the whole topology that pymongo appends."""
    return str(error).partition(", Timeout:")[0].partition(", full error:")[0].partition(" (configured timeouts")[0]
