"""The recorder: brings what the outbox says, and what can be seen in Redis, into MongoDB's `job_status`.

It is the only way from the queue to the history, and nothing waits for it. Any number of recorders may run; each entry
goes to one of them, and an entry that two of them write is written once.
"""

from streamq.recorder.reconciler import KINDS, Finding, Mode, Reconciler
from streamq.recorder.role import Recorder, beside, main, run

__all__ = ["KINDS", "Finding", "Mode", "Reconciler", "Recorder", "beside", "main", "run"]
