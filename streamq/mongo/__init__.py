"""Everything that is said to MongoDB. Nobody else imports pymongo."""

from streamq.mongo.access import Audit, Operations, Tokens
from streamq.mongo.client import Mongo
from streamq.mongo.flags import FlagStore
from streamq.mongo.ledger import Ledger, LedgerEntry
from streamq.mongo.schedules import ScheduleStore, Seen
from streamq.mongo.schema import Schema
from streamq.mongo.shadow import Legacy, ShadowStore
from streamq.mongo.statuses import SEEN_STATES, Refreshed, Statuses, StatusWrite, Written
from streamq.mongo.users import UserPages

__all__ = [
    "SEEN_STATES", "Audit", "FlagStore", "Ledger", "LedgerEntry", "Legacy", "Mongo", "Operations", "Refreshed",
    "ScheduleStore", "Schema", "Seen", "ShadowStore", "StatusWrite", "Statuses", "Tokens", "UserPages", "Written",
]  # fmt: skip
