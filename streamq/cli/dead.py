"""`streamq dead`: the jobs that will not be tried again by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from streamq.cli.options import output_options, seconds, setting_options
from streamq.errors import BadInput, JobNotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from streamq.broker.letters import Edits, Letter, Letters, Progress, Wanted
    from streamq.cli.output import Output
    from streamq.cli.servers import Queue
    from streamq.settings import Settings

__all__ = ["dead"]

MOST_LETTERS = 10_000

_COLUMNS = ["id", "queue", "handler", "user", "attempt", "finished_at", "error"]
_GROUP_COLUMNS = ["jobs", "queue", "handler", "error", "newest"]


@click.group()
def dead() -> None:
    """See the jobs that will not be tried again; try them again, or delete them."""


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which letters are meant, as the argument `wanted`."""

    @functools.wraps(command)
    def with_wanted(*args: Any, **given: Any) -> Any:
        said = {name: given.pop(name) for name in ("handler", "user", "error", "older_ms", "newer_ms")}
        return command(*args, wanted=said, **given)

    options = (
        click.option("--handler", help="Jobs of this handler."),
        click.option("--user", metavar="KEY", help="Jobs of this user key."),
        click.option("--error", help="With this error: a class, or a mark that ls --by-error -q prints."),
        click.option("--older-than", "older_ms", type=seconds, metavar="AGE", help="Dead for longer: 90, 15m, 2h, 7d."),
        click.option("--newer-than", "newer_ms", type=seconds, metavar="AGE", help="Dead for less long."),
    )
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), with_wanted)


@dead.command("ls")
@_which
@click.option(
    "--limit", type=click.IntRange(1, MOST_LETTERS), default=50, show_default=True, help="The most per queue."
)
@click.option("--by-error", is_flag=True, help="One line for each kind of error, with how many there are.")
@setting_options("app", "queues", short=False)
@output_options
def list_dead(settings: Settings, wanted: dict[str, Any], limit: int, out: Output, *, by_error: bool) -> None:
    """List dead letters, newest first."""

    async def look(queue: Queue, letters: Letters) -> list[dict[str, Any]]:
        return [_told(queue.name, letter) for letter in await _first(letters, await _wanted(queue, wanted), limit)]

    found = [letter for listed in asyncio.run(_each(settings, look)) for letter in listed]
    if by_error:
        out.rows(_grouped(found), _GROUP_COLUMNS, id_of="fingerprint")
    else:
        out.rows(found, _COLUMNS, id_of="id")


@dead.command()
@click.argument("job_id")
@setting_options("app", "queues", short=False)
@output_options
def show(settings: Settings, job_id: str, out: Output) -> None:
    """Show a dead letter with its arguments and its traceback. Exit 1 if there is none."""

    async def look(queue: Queue, letter: Letter) -> dict[str, Any]:
        return _told(queue.name, letter) | _contents(letter)

    out.one(asyncio.run(_with_letter(settings, job_id, look)), id_of="id")


@dead.command()
@click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")
@_which
@click.option("--all", "all_of_them", is_flag=True, help="Every dead letter of these queues.")
@click.option("--rate", type=float, metavar="N", help="The most in a second; as fast as it goes unless given.")
@setting_options("app", "queues", "history", "outbox_max", short=False)
@output_options
def retry(
    settings: Settings,
    job_ids: tuple[str, ...],
    wanted: dict[str, Any],
    rate: float | None,
    out: Output,
    *,
    all_of_them: bool,
) -> int:
    """Make jobs of dead letters again, with all their attempts, oldest first.

    They run with the code that the workers have now. Ctrl-C stops after the letter at hand; what is left can be
    retried later. Exit 1 if a letter could not be retried, or not all were.
    """
    _check_choice(job_ids, wanted, all_of_them=all_of_them)
    results: list[dict[str, Any]] = []

    async def go(queue: Queue, letters: Letters) -> Progress:
        def note(letter: Letter, became: str, holder: str) -> None:
            results.append({"id": letter.job_id, "queue": queue.name, "became": became, "held_by": holder or None})

        with _watched(f"retrying {queue.name}", out) as (on_progress, should_stop):
            return await letters.replay(
                await _wanted(queue, wanted, job_ids),
                rate=rate,
                on_progress=on_progress,
                on_each=note,
                should_stop=should_stop,
            )

    done = asyncio.run(_each(settings, go))
    results += [_missing(job_id) for job_id in sorted(set(job_ids) - {result["id"] for result in results})]
    out.rows(results, ["id", "queue", "became", "held_by"], id_of="id")
    return _summed_up(done, out) or int(any(result["became"] != "replayed" for result in results))


@dead.command()
@click.argument("job_id")
@click.argument("values", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--args", metavar="JSON", help="All positional arguments, as a list.")
@click.option("--handler", help="Another handler.")
@click.option("--user", metavar="KEY", help="Another user key.")
@click.option("--max-attempts", type=click.IntRange(1), help="How often it may be tried.")
@setting_options("app", "queues", "history", "outbox_max", short=False)
@output_options
def edit(settings: Settings, job_id: str, values: tuple[str, ...], out: Output, **changes: Any) -> int:
    """Change a dead job and make it a job again.

    NAME=VALUE sets a named argument; VALUE is JSON, or else text. With --app the call is checked against the
    handler's signature. A job with other arguments gives up its dedup key. Exit 1 if it was not replayed.
    """

    async def go(queue: Queue, letter: Letter) -> dict[str, Any]:
        from streamq.broker.letters import Letters

        edits = _edits(letter, values, changes)
        _check_call(settings, letter, edits)
        became, holder = await Letters(queue.wire, queue.orders).replay_one(letter, edits)
        return {"id": job_id, "queue": queue.name, "became": became, "held_by": holder or None}

    result = asyncio.run(_with_letter(settings, job_id, go))
    out.rows([result], ["id", "queue", "became", "held_by"], id_of="id")
    return int(result["became"] != "replayed")


@dead.command()
@click.argument("job_ids", nargs=-1, metavar="[JOB_ID]...")
@_which
@click.option("--all", "all_of_them", is_flag=True, help="Every dead letter of these queues.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@setting_options("app", "queues", short=False)
@output_options
def delete(
    settings: Settings, job_ids: tuple[str, ...], wanted: dict[str, Any], out: Output, *, all_of_them: bool, yes: bool
) -> int:
    """Delete dead letters for good. Their status stays in the history. Exit 1 if not all could be."""
    _check_choice(job_ids, wanted, all_of_them=all_of_them)
    if not yes and not (sys.stdin.isatty() and click.confirm("Delete these dead letters for good?", err=True)):
        raise click.UsageError("deleting is for good: say --yes")

    async def go(queue: Queue, letters: Letters) -> Progress:
        with _watched(f"deleting {queue.name}", out) as (on_progress, should_stop):
            return await letters.delete(
                await _wanted(queue, wanted, job_ids), on_progress=on_progress, should_stop=should_stop
            )

    done = asyncio.run(_each(settings, go))
    if out.as_json:
        out.document({"deleted": sum(progress.became["deleted"] for progress in done)})
    return _summed_up(done, out)


# ---- which letters


def _check_choice(job_ids: tuple[str, ...], wanted: dict[str, Any], *, all_of_them: bool) -> None:
    """Nobody means everything by saying nothing."""
    is_filtered = any(value is not None for value in wanted.values())
    if all_of_them and (job_ids or is_filtered):
        raise click.UsageError("--all and a choice contradict each other")
    if not (job_ids or is_filtered or all_of_them):
        raise click.UsageError(
            "name jobs, or say which: --handler, --user, --error, --older-than, --newer-than, or --all"
        )


async def _wanted(queue: Queue, said: dict[str, Any], job_ids: tuple[str, ...] = ()) -> Wanted:
    """Turn what was said into a value; ages count back from the server's time."""
    from streamq.broker.letters import Wanted

    ages = said["older_ms"], said["newer_ms"]
    now_ms = (await queue.view.counts()).now_ms if ages != (None, None) else 0
    older_ms, newer_ms = ages
    return Wanted(
        frozenset(job_ids), said["handler"], said["user"], said["error"],
        0 if newer_ms is None else max(0, now_ms - newer_ms), 0 if older_ms is None else max(1, now_ms - older_ms),
    )  # fmt: skip


async def _each(settings: Settings, work: Callable[[Queue, Letters], Awaitable[Any]]) -> list[Any]:
    """Do something with the letters of each queue, and return what came of it."""
    from streamq.broker.letters import Letters
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        return [await work(queue, Letters(queue.wire, queue.orders)) for queue in server.queues]


async def _with_letter(settings: Settings, job_id: str, work: Callable[[Queue, Letter], Awaitable[Any]]) -> Any:
    """Find the letter of a job in one of the queues, and do something with it."""
    from streamq.broker.letters import Letters
    from streamq.cli.servers import redis

    async with redis(settings) as server:
        for queue in server.queues:
            try:
                letter = await Letters(queue.wire, queue.orders).find(job_id)
            except JobNotFound:
                continue
            return await work(queue, letter)
        names = ", ".join(queue.name for queue in server.queues)
    raise JobNotFound(f"no dead letter of job {job_id!r} lies in {names}", hint="--queue names another queue")


async def _first(letters: Letters, wanted: Wanted, limit: int) -> list[Letter]:
    found: list[Letter] = []
    cursor: str | None = None
    while len(found) < limit:
        page = await letters.page(wanted, limit=limit - len(found), cursor=cursor)
        found += page.letters
        cursor = page.cursor
        if cursor is None:
            break
    return found


# ---- how they are told


def _told(queue: str, letter: Letter) -> dict[str, Any]:
    from streamq.clock import from_ms

    return {
        "id": letter.job_id,
        "queue": queue,
        "handler": letter.handler,
        "user": letter.key,
        "lane": letter.lane,
        "attempt": letter.attempt,
        "finished_at": from_ms(letter.died_ms),
        "error": f"{letter.error_type}: {letter.error}" if letter.error_type else None,
        "fingerprint": letter.fingerprint or None,
    }


def _contents(letter: Letter) -> dict[str, Any]:
    from streamq.clock import from_ms
    from streamq.codec import decode_envelope

    told: dict[str, Any] = {
        "crashes": letter.crashes,
        "enqueued_at": from_ms(letter.enqueued_ms) if letter.enqueued_ms else None,
        "traceback": letter.traceback or None,
    }
    try:
        envelope = decode_envelope(letter.envelope)
    except ValueError:
        return told | {"unreadable": letter.envelope[:200].decode("utf-8", "replace")}
    return told | {"args": envelope.args, "kwargs": envelope.kwargs, "headers": envelope.headers}


def _missing(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "queue": None, "became": "gone", "held_by": None}


def _grouped(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the letters of each kind of error; each kind shows its newest one."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for letter in letters:
        kind = (letter["queue"], letter["handler"], letter["fingerprint"] or letter["error"] or "")
        group = groups.setdefault(kind, {**letter, "fingerprint": kind[2], "jobs": 0, "newest": letter["finished_at"]})
        group["jobs"] += 1
    return sorted(groups.values(), key=lambda group: group["jobs"], reverse=True)


def _summed_up(done: list[Progress], out: Output) -> int:
    """Say what became of how many. Returns 1 if it was stopped before its end."""
    became = sum((progress.became for progress in done), start=type(done[0].became)())
    out.note(", ".join(f"{number} {what}" for what, number in sorted(became.items())) or "no letter fits")
    if any(progress.is_stopped for progress in done):
        out.note("stopped: the rest is as it was")
        return 1
    return 0


@contextlib.contextmanager
def _watched(what: str, out: Output) -> Generator[tuple[Callable[[Progress], None], Callable[[], bool]]]:
    """Show a bar on a terminal, and let Ctrl-C stop in order."""
    stops: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stops.append, signal.SIGINT)
    try:
        with _bar(what, is_shown=sys.stderr.isatty() and not out.quiet) as on_progress:
            yield on_progress, lambda: bool(stops)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def _bar(what: str, *, is_shown: bool) -> Generator[Callable[[Progress], None]]:
    if not is_shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)

        def show(progress: Progress) -> None:
            bars.update(
                task, total=progress.total, completed=progress.looked_at, description=f"{what}: {progress.matched}"
            )

        yield show


# ---- edits


def _edits(letter: Letter, values: tuple[str, ...], changes: dict[str, Any]) -> Edits:
    from streamq.broker.letters import Edits
    from streamq.codec import decode_envelope

    named = dict(map(_named_value, values))
    return Edits(
        handler=changes["handler"],
        args=_list(changes["args"]),
        kwargs={**decode_envelope(letter.envelope).kwargs, **named} if named else None,
        key=changes["user"],
        max_attempts=changes["max_attempts"],
    )


def _named_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise BadInput(f"{text!r} is not NAME=VALUE")
    return name, _json(value, value)


def _list(text: str | None) -> list[Any] | None:
    if text is None:
        return None
    value = _json(text, None)
    if not isinstance(value, list):
        raise BadInput(f"--args is a JSON list, and {text!r} came")
    return value


def _json(text: str, otherwise: Any) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except ValueError:
        return otherwise


def _check_call(settings: Settings, letter: Letter, edits: Edits) -> None:
    """See that the changed call would work, if the application is known."""
    if not settings.app:
        return
    from streamq.codec import decode_envelope
    from streamq.loading import load_with_settings

    envelope = edits.applied_to(decode_envelope(letter.envelope))
    spec = load_with_settings(settings)[0].registry.get(envelope.handler)
    spec.check_arguments(tuple(envelope.args), envelope.kwargs)
