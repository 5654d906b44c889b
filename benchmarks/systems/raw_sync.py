"""The limit without asyncio: redis-py's plain client by hand; it promises nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import redis
from redis.exceptions import ResponseError

from benchmarks import raw
from benchmarks.systems.bodies import plain

if TYPE_CHECKING:
    from collections.abc import Sequence


def open(url: str) -> redis.Redis:
    """Connect."""
    client = redis.Redis.from_url(url)
    try:
        client.xgroup_create(raw.STREAM, raw.GROUP, "0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
    return client


def one(client: redis.Redis, job: str, argument: str) -> None:
    """Add one entry."""
    client.xadd(raw.STREAM, {"j": job, "d": argument})


def many(client: redis.Redis, job: str, arguments: Sequence[str]) -> None:
    """Add entries in pipelines of 100."""
    for start in range(0, len(arguments), 100):
        with client.pipeline(transaction=False) as pipeline:
            for argument in arguments[start : start + 100]:
                pipeline.xadd(raw.STREAM, {"j": job, "d": argument})
            pipeline.execute()


def work(url: str, concurrency: int, setting: str = "default") -> None:
    """Read up to 100 entries, and call the body of each in place; on threads where jobs wait for something."""
    client, most = open(url), min(concurrency, 100)
    with ThreadPoolExecutor(most) as threads:
        while True:
            reply = raw.entries_of(client.xreadgroup(raw.GROUP, raw.CONSUMER, {raw.STREAM: ">"}, most, block=1000))
            if not reply:
                continue
            if reply[0][1][b"j"] in (b"io", b"long"):
                list(threads.map(_call, reply))
            elif reply[0][1][b"j"] == b"noop":
                for _, fields in reply:
                    plain["noop"](fields[b"d"])
            else:
                for entry in reply:
                    _call(entry)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.xack(raw.STREAM, raw.GROUP, *[name for name, _ in reply])
                pipeline.xdel(raw.STREAM, *[name for name, _ in reply])
                pipeline.execute()


def _call(entry: tuple[bytes, dict[bytes, bytes]]) -> None:
    _, fields = entry
    plain[fields[b"j"].decode()](fields[b"d"].decode())
