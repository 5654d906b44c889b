"""From a plan to its exit code: servers, data, roles, a round, and everything stopped again in the end."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Self

import msgspec

from streamq import logs
from streamq.broker.server import Broker
from streamq.dev import ground
from streamq.dev.roles import roles
from streamq.dev.round import Round
from streamq.dev.screen import Screen
from streamq.errors import ConfigurationError
from streamq.leases import guardian
from streamq.loading import load_with_settings
from streamq.mongo import Mongo
from streamq.parent import Hooks, Pace, Parent

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from streamq.app import CronEntry, StreamQ
    from streamq.dev.ground import Servers
    from streamq.dev.plan import Plan
    from streamq.dev.report import Report
    from streamq.settings import Settings

__all__ = ["run"]

_FORCED = 130
_READY_EVERY_S = 0.05


async def run(plan: Plan) -> int:
    """Do what was planned. Returns the exit code; see `streamq.dev.main` for that, and for what it raises."""
    screen = Screen(as_json=plan.as_json)
    app, settings = load_with_settings(msgspec.structs.replace(plan.settings, app=plan.app_path))
    entry = _entry(plan, app) if plan.fires else None
    with ground.alone(plan.directory):
        port = ground.free_port(settings.api_host, settings.api_port if plan.port is None else plan.port)
        try:
            with _Signals() as signals, ground.servers(settings, plan.directory) as servers:
                app.settings = _completed(settings, plan.directory, servers, port)
                return await _Stage(plan, app, servers, screen, signals).run(entry)
        except asyncio.CancelledError:
            screen.say("stopped before anything ran")
            return 1 if plan.once else 0


def _entry(plan: Plan, app: StreamQ) -> CronEntry:
    """Return the schedule to fire."""
    entries = app.cron_entries
    if len(entries) != 1:
        has = f"{len(entries)} schedules: {', '.join(entries)}" if entries else "no schedule"
        raise ConfigurationError(
            f"--once fires the schedule of an application, and {plan.app_path} has {has}",
            hint="fire one of several with: streamq cron --now --schedule NAME",
        )
    if not app.settings.history:
        raise ConfigurationError(
            f"a round reads its figures from the history, which is off ({app.settings.sources['history']})",
            hint="leave that out",
        )
    return next(iter(entries.values()))


def _completed(settings: Settings, directory: Path, servers: Servers, port: int) -> Settings:
    """Return the settings with what was found or made: addresses, port, token."""
    return msgspec.structs.replace(
        settings,
        redis_url=servers.redis_url,
        mongodb_url=servers.mongodb_url,
        api_port=port,
        api_token=settings.api_token or ground.token(directory),
    )


class _Signals:
    """What Ctrl-C and SIGTERM do before the parent takes them over, and after it."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Self:
        """Let them cancel this task; everything that was started is then stopped."""
        self._before = {number: signal.getsignal(number) for number in self._NUMBERS}
        task = asyncio.current_task()
        if task is not None:
            for number in self._NUMBERS:
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return self

    def ignore(self) -> None:
        """Let the servers stop in peace."""
        for number in self._NUMBERS:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)


class _Stage:
    """A run of `streamq dev` on its servers."""

    def __init__(self, plan: Plan, app: StreamQ, servers: Servers, screen: Screen, signals: _Signals) -> None:
        self._plan = plan
        self._app = app
        self._settings = app.settings
        self._servers = servers
        self._screen = screen
        self._signals = signals
        self._round: Round | None = None
        self._report: Report | None = None

    async def run(self, entry: CronEntry | None) -> int:
        """Check the servers, make the data, and keep the roles running until told to stop or the round is done."""
        await self._check_servers()
        if entry is not None:
            groups = await self._create_users()
            self._round = Round(self._app, entry, self._screen, groups)
        parent = self._parent()
        driver = asyncio.create_task(self._drive(parent))
        keeper = asyncio.create_task(ground.keep(self._plan.directory, self._servers.started))
        driver.add_done_callback(lambda _: parent.stop() if _error_of(driver) else None)
        try:
            code = await parent.run()
        finally:
            self._signals.ignore()
            logs.configure(self._settings.log_level, self._settings.log_format)
            driver.cancel()
            keeper.cancel()
            await asyncio.wait([driver, keeper])
            if self._round is not None:
                await self._round.close()
        if error := _error_of(driver):
            raise error
        return self._exit_code(code)

    async def _check_servers(self) -> None:
        """Find out now, rather than from one role after another, whether the servers are there and fit."""
        broker = Broker(self._settings.redis_url, allow_eviction=self._settings.allow_eviction)
        mongo = Mongo(self._settings.mongodb_url, self._settings.mongodb_database)
        try:
            await broker.check()
            if self._settings.history:
                await mongo.check()
        finally:
            await broker.close()
            await mongo.close()

    async def _create_users(self) -> dict[str, str] | None:
        """Make the demo's users. Returns each, and whether fast or slow; None for another application."""
        if self._plan.users is None:
            return None
        from streamq.demo.store import Store  # the demo is not for those who run their own

        store = Store(self._settings.mongodb_url)
        try:
            with self._screen.bar(f"creating {len(self._plan.users):,} users with activity") as show:
                await store.create(self._plan.users, show)
            return {user: "slow" if is_slow else "fast" for user, is_slow in (await store.slow_users()).items()}
        finally:
            await store.close()

    def _parent(self) -> Parent:
        output = self._screen.output()
        logs.configure(self._settings.log_level, self._settings.log_format, stream=output.stream_of("parent"))
        return Parent(
            roles(self._plan, self._app, self._servers),
            directory=self._plan.directory,
            hooks=Hooks(guardian=guardian(self._settings)),
            pace=Pace(beat_ms=self._settings.beat_ms),
            output=output,
        )

    async def _drive(self, parent: Parent) -> None:
        """Say where everything is as soon as it is there; then do the round, if there is one to do."""
        while not _is_up(parent):  # noqa: ASYNC110 - what the parent shows of itself has no event
            await asyncio.sleep(_READY_EVERY_S)
        self._screen.banner(self._settings, self._servers)
        if self._round is None:
            return
        self._report = await self._round.run(clicks=self._plan.users is not None)
        self._screen.report(self._report, await self._check())
        if self._plan.once:
            parent.stop()

    async def _check(self) -> dict[str, int] | None:
        """Compare the demo's summaries with its activity; None for another application."""
        if self._plan.users is None:
            return None
        from streamq.demo.store import Store

        store = Store(self._settings.mongodb_url)
        try:
            return (await store.check())._asdict()
        finally:
            await store.close()

    def _exit_code(self, code: int) -> int:
        """Return the parent's code, or with `once` the answer of the round."""
        if not self._plan.once or code == _FORCED:
            return code
        if self._report is not None:
            return 0 if self._report.is_good else 1
        done = self._round.done if self._round is not None else 0
        self._screen.say(f"stopped when {done:,} jobs had ended; the others are kept, and go on at the next start")
        return code or 1


def _is_up(parent: Parent) -> bool:
    """Whether every process is ready."""
    children = parent.ps()["children"]
    return bool(children) and all(child["state"] == "ready" for child in children)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
