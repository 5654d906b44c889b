"""Watches over all schedules: raises an alarm when one does not do its work, and posts it to a webhook, once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
import urllib.request
from datetime import timedelta
from typing import TYPE_CHECKING

from streamq.clock import from_ms, utc_now
from streamq.errors import StreamQError
from streamq.logs import event
from streamq.schedules.condition import MOST_STALE, Alarm, Condition, look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamq.cron.roster import Roster
    from streamq.mongo import Statuses
    from streamq.schedules.desks import Bureau
    from streamq.schedules.occurrence import Schedule
    from streamq.settings import Settings

__all__ = ["Watch"]

_log = logging.getLogger("streamq.cron")

LOOK_EVERY_S = 5.0
STALE_EVERY_S = 60.0
STALE_LIMIT_S = 30.0
_SILENT_AFTER_S = 30.0
_POST_TIMEOUT_S = 10
_KEPT_MS = 86_400_000


class Watch:
    """What this process knows of all schedules, looked at every few seconds."""

    def __init__(self, settings: Settings, roster: Roster, bureau: Bureau, statuses: Statuses | None) -> None:
        self._roster = roster
        self._bureau = bureau
        self._statuses = statuses
        self._webhook = settings.alarm_webhook
        self._owner = secrets.token_hex(8)
        self._raised: dict[tuple[str, str, str], Alarm] = {}
        self._posted: set[tuple[str, str, str]] = set()
        self._stale: dict[str, tuple[float, int]] = {}
        self._looked_at = time.monotonic()
        self.conditions: Mapping[str, Condition] = {}
        """How each schedule is, by name."""

    @property
    def alarms(self) -> Sequence[Alarm]:
        """The alarms that are raised now."""
        return [alarm for condition in self.conditions.values() for alarm in condition.alarms]

    @property
    def is_blind(self) -> bool:
        """Whether Redis has not answered for so long that nothing is known."""
        return time.monotonic() - self._looked_at > _SILENT_AFTER_S

    async def keep(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.check()
            except StreamQError:
                pass  # Redis is away; the minders say so
            except Exception as error:  # noqa: BLE001 - who watches must not end unseen
                event(_log, logging.ERROR, "cron.failed", f"the watch over schedules: {type(error).__name__}: {error}")
            await asyncio.sleep(LOOK_EVERY_S)

    async def check(self) -> None:
        """Look at every schedule, and tell what is new.

        Raises:
            StreamQError: Redis does not answer.
        """
        found: dict[str, Condition] = {}
        for listed in self._roster.listed:
            if listed.schedule is None:
                continue
            stale = await self._stale_users(listed.schedule)
            fanouts = self._bureau.desk(listed.schedule.entry.handler.queue).fanouts
            condition = await look(listed, fanouts, stale_users=stale)
            if condition is not None:
                found[listed.name] = condition
        self.conditions = found if self._bureau.phase.is_enabled and not self._bureau.phase.is_shadow else {}
        self._looked_at = time.monotonic()
        await self._tell()

    async def _stale_users(self, schedule: Schedule) -> int:
        """Count users without a completed job for too long, now and then."""
        known = self._stale.get(schedule.name)
        if self._statuses is None or (known is not None and time.monotonic() - known[0] < STALE_EVERY_S):
            return known[1] if known else 0
        from streamq.mongo import Refreshed  # who has statuses has loaded it

        fanouts = self._bureau.desk(schedule.entry.handler.queue).fanouts
        now_ms = await fanouts.server_ms()
        occurrences = schedule.latest(now_ms, schedule.entry.stale_after)
        count = known[1] if known else 0
        if len(occurrences) == schedule.entry.stale_after:
            wanted = Refreshed(
                schedule.name, schedule.entry.handler.queue, from_ms(now_ms),
                timedelta(milliseconds=schedule.period_ms(occurrences[0])), schedule.entry.stale_after,
            )  # fmt: skip
            with contextlib.suppress(StreamQError):  # MongoDB is away, or slow: what was known holds
                count = await self._statuses.stale_users(wanted, most=MOST_STALE, limit_s=STALE_LIMIT_S)
        self._stale[schedule.name] = (time.monotonic(), count)
        return count

    async def _tell(self) -> None:
        now = {(alarm.schedule, str(alarm.kind), alarm.occurrence): alarm for alarm in self.alarms}
        for key, alarm in now.items():
            if key not in self._raised:
                event(_log, logging.ERROR, "cron.alarm", alarm.text, schedule=alarm.schedule, kind=alarm.kind)
        for key, alarm in self._raised.items():
            if key not in now:
                event(_log, logging.INFO, "cron.calm", schedule=alarm.schedule, kind=alarm.kind)
        self._raised = now
        self._posted &= set(now)
        for key, alarm in now.items():
            if self._webhook and key not in self._posted and await self._post(alarm):
                self._posted.add(key)

    async def _post(self, alarm: Alarm) -> bool:
        """Post an alarm, unless another process has. Returns whether that is done; if not, it is tried again."""
        name = f"alarm:{alarm.schedule}:{alarm.kind}:{alarm.occurrence}"
        desk = self._bureau.desk(self._queue_of(alarm.schedule))
        if not await desk.fanouts.lead(name, self._owner, _KEPT_MS):
            return True
        document = {
            "alarm": alarm.kind, "schedule": alarm.schedule, "occurrence": alarm.occurrence, "text": alarm.text,
            "at": utc_now().isoformat(timespec="seconds"),
        }  # fmt: skip
        try:
            await asyncio.to_thread(_send, self._webhook, document)
        except OSError as error:
            event(
                _log, logging.WARNING, "cron.webhook", f"the webhook of alarms did not take one: {error}; trying again"
            )
            await desk.fanouts.lead(name, self._owner, 0)
            return False
        return True

    def _queue_of(self, name: str) -> str:
        return next(
            listed.schedule.entry.handler.queue
            for listed in self._roster.listed
            if listed.name == name and listed.schedule is not None
        )


def _send(url: str, document: Mapping[str, str]) -> None:
    """Post a document; an answer that is not 2xx is an OSError."""
    request = urllib.request.Request(  # noqa: S310 - the setting allows http and https alone
        url, json.dumps(document).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_POST_TIMEOUT_S):  # noqa: S310
        return
