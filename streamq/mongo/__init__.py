"""Everything that is said to MongoDB. Nobody else imports pymongo."""

from streamq.mongo.access import Audit, Operations, Tokens
from streamq.mongo.client import Mongo
from streamq.mongo.ledger import Ledger, LedgerEntry
from streamq.mongo.schema import Schema
from streamq.mongo.statuses import SEEN_STATES, Statuses, StatusWrite, Written

__all__ = [
    "SEEN_STATES", "Audit", "Ledger", "LedgerEntry", "Mongo", "Operations", "Schema", "StatusWrite", "Statuses", "Tokens",
    "Written",
]  # fmt: skip
