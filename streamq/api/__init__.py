"""The status API: what happened to a user's job, and how the queues are. See docs/api.md."""

from streamq.access import Principal
from streamq.api.application import create_app
from streamq.api.role import main

__all__ = ["Principal", "create_app", "main"]
