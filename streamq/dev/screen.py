"""What `streamq dev` shows: bars while it works, where everything is, and the figures at the end."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from streamq.logs import is_colourful, masked
from streamq.parent import Output

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from typing import BinaryIO, TextIO

    from rich.console import Console

    from streamq.dev.ground import Servers
    from streamq.dev.report import Report
    from streamq.settings import Settings

__all__ = ["Progress", "Screen", "banner", "document", "table"]


class Progress(Protocol):
    """Takes how far something has come."""

    def __call__(self, done: int, total: int, /) -> None:
        """Show it."""
        ...


class Screen:
    """The person in front of it. Bars and remarks go to standard error, and are drawn on a terminal only."""

    def __init__(self, *, as_json: bool = False, err: TextIO | None = None) -> None:
        """Look where we are.

        Args:
            as_json: Whether standard output is for one JSON document, so that all else goes to standard error.
            err: In place of standard error.
        """
        self._as_json = as_json
        self._err = err or sys.stderr
        self._console: Console | None = None
        if self._err.isatty():
            from rich.console import Console

            self._console = Console(file=self._err, no_color=not is_colourful(self._err), highlight=False)

    def say(self, text: str) -> None:
        """Make a remark."""
        self._err.write(text + "\n")
        self._err.flush()

    def banner(self, settings: Settings, servers: Servers) -> None:
        """Say where everything is."""
        text = banner(settings, servers)
        self.say(text) if self._as_json else _print(text)

    def report(self, report: Report, check: Mapping[str, int] | None) -> None:
        """Print the figures of a round."""
        _print(json.dumps(document(report, check), indent=2) if self._as_json else table(report, check))

    @contextmanager
    def bar(self, what: str) -> Generator[Progress]:
        """Show how far something has come, for as long as the block runs; off a terminal only that it has begun."""
        if self._console is None:
            self.say(what)
            yield lambda _done, _total: None
            return
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=self._console, redirect_stdout=False, redirect_stderr=False) as drawn:
            task = drawn.add_task(what, total=1)
            yield lambda done, total: drawn.update(task, completed=done, total=max(total, 1))

    def output(self) -> Output:
        """Return where the lines of the processes go: above the bar, or to standard error under a JSON document."""
        if self._console is not None:
            above = cast("BinaryIO", io.BufferedWriter(_AboveBar(self._console)))
            return Output(above, above)
        return Output(sys.stderr.buffer if self._as_json else None)


class _AboveBar(io.RawIOBase):
    """Prints the lines that are written to it so that a bar stays below them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        from rich.text import Text

        lines = bytes(data)
        self._console.print(Text.from_ansi(lines.decode(errors="replace").rstrip("\n")), soft_wrap=True)
        return len(lines)


def banner(settings: Settings, servers: Servers) -> str:
    """Say where everything is, with lines to copy."""
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    address = f"http://{host}:{settings.api_port}"
    urls = {"redis": ("Redis", settings.redis_url), "mongodb": ("MongoDB", settings.mongodb_url)}
    told = [f"{label} {'embedded' if name in servers.embedded else masked(url)}" for name, (label, url) in urls.items()]
    lines = [f"streamq dev  {settings.app}", f"  servers    {', '.join(told)}"]
    if servers.embedded:
        lines.append(f"             data in {servers.shell.parent}")
    if "mongodb" in servers.embedded:
        lines.append("             the embedded mongod is for development only: its version is past its end of life")
    lines += [
        f"  API        {address}",
        f"  token      {settings.api_token}",
        f"  try        curl -H 'Authorization: Bearer {settings.api_token}' {address}/app/job-status/queue/stats",
        f"  shells     . {servers.shell}   # for streamq and your programs in other terminals",
        "  stop       Ctrl-C",
    ]
    return "\n".join(lines)


def document(report: Report, check: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the figures of a round as JSON values."""
    told: dict[str, Any] = {
        "summary": report.summary(),
        "took_s": round(report.took_s, 3),
        "users": report.groups(),
        "repeated_clicks": report.clicks,
        "survived_worker_deaths": report.survived(),
        "not_completed": report.unfinished(),
    }
    return told | ({"check": dict(check)} if check is not None else {})


def table(report: Report, check: Mapping[str, int] | None) -> str:
    """Write the figures of a round for a person."""
    summary = report.summary()
    lines = [
        f"{len(report.users):,} users in {report.took_s:.1f} s: {summary['completed']:,} completed,"
        f" {summary['failed']:,} failed, {summary['lost']:,} lost",
        f"  retried             {summary['retried']:,}",
        *(f"                      {count:,} x {reason}" for reason, count in report.reasons()),
        f"  duplicates refused  {summary['duplicates_refused']:,}, of {report.clicks:,} users who asked again",
    ]
    if survived := report.survived():
        lines.append(f"  outlived a worker   {survived:,}")
    if check is not None:
        lines.append(
            f"  data                {check['summaries']:,} summaries of"
            f" {check['events_summarised']:,} events; {check['events_stored']:,} are stored"
        )
    lines += ["", *_times(report, summary)]
    if not report.is_good:
        lines += ["", "  not completed: " + ", ".join(report.unfinished())]
    return "\n".join(lines)


def _times(report: Report, summary: Mapping[str, Any]) -> list[str]:
    lines = [f"  {'':<8}{'users':>9}   {'wait p50':>9}{'p95':>9}{'p99':>9}   {'run p50':>9}{'p95':>9}{'p99':>9}"]
    for group, count in report.groups().items():
        waits, runs = ("".join(map(_seconds, summary[name][group].values())) for name in ("wait_s", "run_s"))
        lines.append(f"  {group:<8}{count:>9,}   {waits}   {runs}")
    return lines


def _seconds(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f} s':>9}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
