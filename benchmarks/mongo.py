"""A MongoDB of the benchmark's own, and what is asked of it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pymongo

from benchmarks.processes import CpuClock
from streamq import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

__all__ = ["Documents", "MongoServer"]


class MongoServer:
    """A `mongod` in a folder of its own, used as a context."""

    def __init__(self, *, replica_set: bool = False, cache_gb: float = embedded.MongoServer.CACHE_GB) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="streamq-bench-"))
        self._server = embedded.MongoServer(self.folder / "mongodb", replica_set=replica_set, cache_gb=cache_gb)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):
            self._server.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._server.url

    @property
    def cpu(self) -> CpuClock:
        """The processor time of the process that runs now."""
        pid = self._server.pid
        assert pid is not None, "the server is not running"
        return CpuClock(pid)

    def kill(self) -> None:
        """End it at once."""
        self._server.kill9()

    def restart(self) -> None:
        """Start it again with its data."""
        self._server.restart()

    def size_mb(self, database: str) -> dict[str, float]:
        """Tell what the statuses take on disk, and their indexes."""
        with self.client() as client:
            told = client[database].command("collStats", "job_status", scale=1_000_000)
        return {"documents_mb": told["storageSize"], "indexes_mb": told["totalIndexSize"]}

    def client(self) -> pymongo.MongoClient[dict[str, Any]]:
        """Return a new client."""
        return pymongo.MongoClient(self.url, serverSelectionTimeoutMS=20_000, tz_aware=True)

    @property
    def version(self) -> str:
        """As the server itself says."""
        with self.client() as client:
            return f"MongoDB {client.server_info()['version']}"


class Documents:
    """The statuses in one database."""

    def __init__(self, client: pymongo.MongoClient[dict[str, Any]], database: str) -> None:
        self._jobs = client[database]["job_status"]

    def completed(self) -> int:
        """Count the jobs that are said to be completed."""
        return self._jobs.count_documents({"queue": "bench", "state": "completed"})

    def ended(self, job_ids: Iterable[str]) -> dict[str, float]:
        """Return when those of these jobs ended that are said to be completed, in seconds since 1970."""
        found = self._jobs.find({"_id": {"$in": list(job_ids)}, "state": "completed"}, {"finished_at": 1})
        return {each["_id"]: each["finished_at"].timestamp() for each in found}

    def wrong(self, sent: int) -> int:
        """Count the jobs p0 to p(sent - 1) that are not said to have been completed in one attempt."""
        right = self._jobs.count_documents(
            {"queue": "bench", "state": "completed", "attempts.state": "completed", "attempts": {"$size": 1}}
        )
        return sent - right + self._jobs.count_documents({"_id": {"$not": {"$regex": r"^p\d+$"}}})
