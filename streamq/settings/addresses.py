"""Whether an address of a server can be one, told before anybody tries to reach it.

The client libraries are lenient where it hurts: redis-py takes database 0 when it cannot read the number.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

__all__ = ["fault_of_mongodb_url", "fault_of_redis_url", "hosts_apart", "redis_url", "with_credentials"]

_ESCAPE = "characters such as / ? # @ : in a password must be percent-encoded"
_MONGODB_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?")


def fault_of_redis_url(url: str) -> str:
    """Say what is wrong with an address of Redis; nothing if it can be one.

    It may name several nodes of a cluster, separated by commas.
    """
    faults = [_fault_of_one(each) for each in hosts_apart(url)]
    database = urlsplit(url).path.strip("/") if len(faults) > 1 and not any(faults) else ""
    if database not in ("", "0"):
        return "database 0, which is the only one of a cluster, after several hosts"
    return next((fault for fault in faults if fault), "")


def hosts_apart(url: str) -> list[str]:
    """Take an address that names several hosts apart: one address for each."""
    scheme, slashes, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, hosts = authority.rpartition("@")
    if scheme == "unix" or "," not in hosts:
        return [url]
    after = rest[len(authority) :]
    return [f"{scheme}{slashes}{credentials}{at}{host}{after}" for host in hosts.split(",")]


def _fault_of_one(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"a host, and after it a port from 1 to 65535; {_ESCAPE}"
    if parts.scheme == "unix":
        return "" if parts.path.strip("/") else "the path of a socket, as in unix:///run/redis.sock"
    if parts.scheme not in ("redis", "rediss") or "://" not in url:
        return "redis://, rediss:// (TLS) or unix://, as in redis://127.0.0.1:6379/0"
    if not parts.hostname or port == 0:
        return "the name of a host after ://, and a port from 1 to 65535 if any, as in redis://cache-1:6379/0"
    database = unquote(parts.path).strip("/")
    return "" if not database or database.isdecimal() else "the number of a database after the last /, as in /0"


def fault_of_mongodb_url(url: str) -> str:
    """Say what is wrong with an address of MongoDB; nothing if it can be one."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("mongodb", "mongodb+srv"):
        return "mongodb:// or mongodb+srv://, as in mongodb://127.0.0.1:27017"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    hosts = [_MONGODB_HOST.fullmatch(host) for host in authority.rpartition("@")[2].split(",")]
    if any(host is None or not _is_port(host["port"]) for host in hosts):
        return f"the names of hosts after ://, each with a port from 1 to 65535 if any; {_ESCAPE}"
    if scheme == "mongodb+srv" and (len(hosts) > 1 or ":" in authority.rpartition("@")[2]):
        return "one host without a port after mongodb+srv://"
    return ""


def _is_port(text: str | None) -> bool:
    return text is None or 1 <= int(text) <= 65_535


def redis_url(host: str, port: int, database: int) -> str:
    """Put an address of Redis together; an IPv6 host gets its brackets."""
    return f"redis://{f'[{host}]' if ':' in host else host}:{port}/{database}"


def with_credentials(url: str, username: str, password: str) -> str:
    """Add credentials to an address that has none; one that has some stays as it is."""
    parts = urlsplit(url)
    if "@" in parts.netloc or not (username or password):
        return url
    user = quote(username, safe="") + (f":{quote(password, safe='')}" if password else "")
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc}"))
