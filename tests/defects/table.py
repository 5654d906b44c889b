"""The defects: one line each, where it goes, and the tests that must notice it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFECTS", "Defect"]


class Defect(NamedTuple):
    """One line that is replaced by a wrong one."""

    name: str
    """What the program then does wrong."""
    file: str
    """In `streamq/`."""
    old: str
    """What stands there, exactly once."""
    new: str
    tests: str
    """In `tests/`; at least one of them must fail."""


DEFECTS = (
    # The fence.
    Defect(
        "a late outcome is taken", "scripts/cycle.lua",
        "  if tokens[row] == token and not accepted[id] then\n    accepted[id] = true\n    ended",
        "  if not accepted[id] then\n    accepted[id] = true\n    ended",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a late retry is taken", "scripts/cycle.lua",
        "  if tokens[row] == token and not accepted[id] then\n    accepted[id] = true\n    append(left, id)",
        "  if not accepted[id] then\n    accepted[id] = true\n    append(left, id)",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a heartbeat steals a job back", "scripts/cycle.lua",
        "    if tokens[row] == ARGV[at] then", "    if tokens[row] then",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a worker that was given up goes on", "scripts/cycle.lua",
        "if not beat or tonumber(beat) <= 0 then return {'FENCED', now} end", "if not beat then return {'FENCED', now} end",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a worker that was given up beats itself alive", "scripts/beat.lua",
        "  if beat and tonumber(beat) > 0 then", "  if beat then",
        "scripts/test_beat.py",
    ),
    Defect(
        "a worker that was given up keeps its deliveries", "scripts/renew.lua",
        "if not beat or tonumber(beat) <= 0 then return 0 end", "if not beat then return 0 end",
        "scripts/test_renew.py",
    ),
    Defect(
        "a swept job keeps its old token", "scripts/sweep.lua",
        "((tonumber(delivery) or 1) + 1)", "(tonumber(delivery) or 1)",
        "scripts/test_sweep.py",
    ),
    Defect(
        "what is not its own is handed back", "scripts/release.lua",
        "  if tokens[i] == token then", "  if tokens[i] then",
        "scripts/test_release.py",
    ),
    Defect(
        "the fence does not rise with a retry", "worker/settle.py",
        "msgspec.structs.replace(envelope, starts=envelope.starts + 1)", "envelope",
        "properties/test_outcomes.py",
    ),
    # Delivery and recovery.
    Defect(
        "the group begins at the end of the stream", "scripts/register.lua",
        "'CREATE', stream, group, '0'", "'CREATE', stream, group, '$'",
        "scripts/test_register.py",
    ),
    Defect(
        "a sweep always starts at the beginning", "scripts/sweep.lua",
        "return {swept[1], handed,", "return {'0-0', handed,",
        "scripts/test_sweep.py",
    ),
    Defect(
        "more is taken over than can be run", "scripts/cycle.lua",
        "      if i > want or i > BATCH then", "      if i > BATCH then",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a crash is not counted", "scripts/cycle.lua",
        "if gone ~= HANDBACK then crashes = crashes + 1 end", "if gone ~= HANDBACK then crashes = crashes end",
        "scripts/test_cycle.py",
    ),
    Defect(
        "handing back counts as a crash", "scripts/cycle.lua",
        "if gone ~= HANDBACK then crashes", "if gone then crashes",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a worker that leaves keeps what it holds", "scripts/leave.lua",
        "    redis.call(unpack(claim))\n", "",
        "scripts/test_leave.py",
    ),
    Defect(
        "strays are taken from a worker that has them", "scripts/strays.lua",
        "    if not held[lane .. entry[1]] then claim", "    if true then claim",
        "scripts/test_strays.py",
    ),
    Defect(
        "nobody is woken for the jobs of the dead", "scripts/bury.lua",
        "if buried > 0 then", "if buried > 99 then",
        "scripts/test_bury.py",
    ),
    Defect(
        "a poison job has one life more", "worker/run.py",
        "if delivery.crashes >= CRASH_LIMIT:", "if delivery.crashes > CRASH_LIMIT:",
        "worker/test_worker.py",
    ),
    # Producing.
    Defect(
        "a repeated call adds again", "scripts/add.lua",
        "if number <= last then", "if number < last then",
        "scripts/test_add.py",
    ),
    Defect(
        "a known id is added again", "scripts/add.lua",
        "  if places[i] or seen[id] then", "  if seen[id] then",
        "scripts/test_add.py",
    ),
    Defect(
        "a known id is added again among plain jobs", "scripts/add.lua",
        "    if places[i] or seen[id] or whose", "    if whose",
        "scripts/test_add.py",
    ),
    Defect(
        "a known id is added again on the short way", "scripts/append.lua",
        "~= ARGV[2] or call('HEXISTS', KEYS[2], ARGV[5]) == 1", "~= ARGV[2]",
        "scripts/test_append.py",
    ),
    Defect(
        "a repeated call adds again on the short way", "scripts/append.lua",
        "if call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] or", "if",
        "scripts/test_append.py",
    ),
    Defect(
        "the partition may hold one more than it may", "scripts/add.lua",
        "  if depth + count > most then", "  if depth + count > most + 1 then",
        "scripts/test_add.py",
    ),
    Defect(
        "a dedup key is taken from whoever holds it", "scripts/cycle.lua",
        "    if accepted[id] and holder == id then", "    if accepted[id] then",
        "scripts/test_cycle.py",
    ),
    # Delayed jobs, pauses and blocks.
    Defect(
        "a promoted job stays delayed", "scripts/cycle.lua",
        "  call('ZREM', DELAYED, unpack(due))\n", "",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a paused queue gives out jobs", "scripts/cycle.lua",
        "if not paused then\n  for pass", "if true then\n  for pass",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a worker that was waiting starts a job after the pause", "worker/pump.py",
        'if deliveries and "queue" in self.stopped:', "if not deliveries:",
        "worker/test_stopped.py",
    ),
    Defect(
        "a block ends before its last job is back", "scripts/cycle.lua",
        "    if moved < BATCH then call('HDEL'", "    if moved <= BATCH then call('HDEL'",
        "scripts/test_block.py",
    ),
    Defect(
        "a job is parked under a block that was lifted", "scripts/cycle.lua",
        "string.match(known or '', '^%d+|(%d+)|')", "string.match(known or '0|1|', '^%d+|(%d+)|')",
        "scripts/test_block.py",
    ),
    Defect(
        "two blocks share a number", "scripts/block.lua",
        "    while taken[number] do number = number + 1 end\n", "",
        "scripts/test_block.py",
    ),
    Defect(
        "a blocked handler runs", "worker/slots.py",
        "if pump.stopped and not refusal:", "if not pump.stopped and not refusal:",
        "worker/test_stopped.py",
    ),
    Defect(
        "who missed a handler is forgotten", "scripts/cycle.lua",
        """local since = known and string.match(known, '"since":(%d+)') or""", "local since =",
        "scripts/test_block.py",
    ),
    # Ends.
    Defect(
        "a cancelled job lets its result() wait", "scripts/cancel.lua",
        "if keep_ms > 0 then", "if keep_ms > 9e15 then",
        "worker/test_stopped.py",
    ),
    Defect(
        "a purge takes jobs from their workers", "scripts/cancel.lua",
        "and 'CANCELLED' or ARGV[3]", "and 'CANCELLED' or ARGV[3] == '1' and 'CANCELLED' or ARGV[3]",
        "scripts/test_cancel.py",
    ),
    Defect(
        "a job that moved is cancelled where it was", "scripts/cancel.lua",
        "if token ~= ARGV[FIRST + (i - 1) * WIDTH + 1] then return 'MOVED' end", "",
        "scripts/test_cancel.py",
    ),
    Defect(
        "a letter is replayed twice", "scripts/replay.lua",
        "redis.call('XDEL', KEYS[8], ARGV[1])\n", "",
        "scripts/test_replay.py",
    ),
    Defect(
        "a letter replaces a job that lives", "scripts/replay.lua",
        "if redis.call('HEXISTS', KEYS[7], id) == 1 then return 'ALIVE' end", "",
        "scripts/test_replay.py",
    ),
    Defect(
        "letters that come while they are replayed are replayed, too", "broker/letters.py",
        "self._stream, start, newest[0][0],", 'self._stream, start, "+",',
        "scripts/test_letters.py",
    ),
    Defect(
        "letters are dropped unseen", "scripts/cycle.lua",
        "  if evicted > 0 then", "  if evicted > 999 then",
        "scripts/test_letters.py",
    ),
    Defect(
        "one attempt too many", "worker/run.py",
        "    if attempt >= job.max_attempts:", "    if attempt > job.max_attempts:",
        "properties/test_outcomes.py",
    ),
    Defect(
        "a retry after the deadline", "worker/run.py",
        "        if limit_ms and due_ms > limit_ms:", "        if limit_ms and due_ms > 2 * limit_ms:",
        "properties/test_outcomes.py",
    ),
    # Gates.
    Defect(
        "one more than the limit runs", "scripts/cycle.lua",
        "    if held >= limit.first then", "    if held > limit.first then",
        "scripts/test_gates.py",
    ),
    Defect(
        "nobody is let in when a place becomes free", "scripts/cycle.lua",
        "    if waits then append(opened, name) end\n", "",
        "scripts/test_gates.py",
    ),
    Defect(
        "a retried job keeps its place", "scripts/cycle.lua",
        "    append(left, id)\n", "",
        "scripts/test_gates.py",
    ),
    Defect(
        "a cancelled job keeps its place", "scripts/cancel.lua",
        "'\\0h' .. id)", "'\\0x' .. id)",
        "scripts/test_gates.py",
    ),
    Defect(
        "who joins the turns while lanes are read is left to the next beat", "scripts/cycle.lua",
        " or is_more or joined then", " or is_more then",
        "scripts/test_fair.py",
    ),
    Defect(
        "a key that comes late has saved up its time", "scripts/cycle.lua",
        "exact(math.max(own, fair_value('v', 0))), 'w' .. name)", "exact(own), 'w' .. name)",
        "scripts/test_fair.py",
    ),
    Defect(
        "a key does not pay what its jobs ran", "scripts/cycle.lua",
        "if byte(spec, 2) == 102 then charge(spec, records[id]) end", "",
        "scripts/test_fair.py",
    ),
    Defect(
        "slow jobs have nothing by right", "lanes.py",
        "return max(1, share // RIGHT_OF_SHARE)", "return 0",
        "properties/test_starvation.py",
    ),
    Defect(
        "the slow lane is read when all others are empty only", "lanes.py",
        "found += ((slow, due, 0), (fast, 128, 0)", "found += ((slow, 0, 0), (fast, 128, 0)",
        "properties/test_starvation.py",
    ),
    Defect(
        "a job by name gets past the limits of its handler", "worker/slots.py",
        "refusal = limited(delivery, spec)", "pass",
        "worker/test_gates.py",
    ),
    Defect(
        "what an idle worker reads passes no gate", "worker/pump.py",
        "if delivery.raw.startswith(GATED)]\n            if gated", "if not delivery.raw]\n            if gated",
        "worker/test_gates.py",
    ),
    Defect(
        "a time to live counts for ever", "job.py",
        "envelope.ttl_ms and enqueued_ms + envelope.ttl_ms", "0",
        "properties/test_outcomes.py worker/test_ends.py",
    ),
    Defect(
        "an early retry of a rate-limited job", "worker/run.py",
        "return asked_ms + int(", "return asked_ms - int(",
        "properties/test_outcomes.py",
    ),
    Defect(
        "no jitter", "retry.py",
        "round(random.random() * self.ceiling_ms(attempt))", "self.ceiling_ms(attempt)",
        "properties/test_backoff.py",
    ),
    Defect(
        "no cap", "retry.py",
        "min(to_ms(self.cap), to_ms(self.base) << doublings)", "to_ms(self.base) << doublings",
        "properties/test_backoff.py",
    ),
    Defect(
        "NaN becomes null", "codec.py",
        'if b"null" in encoded and', 'if b"nil" in encoded and',
        "properties/test_codec.py",
    ),
    # Delays and sizes.
    Defect(
        "a delay ends a part of a millisecond too soon", "scripts/add.lua",
        "time[2] % 1000 == 0 and now or now + 1", "now",
        "scripts/test_add.py",
    ),
    Defect(
        "a retry comes a part of a millisecond too soon", "scripts/cycle.lua",
        "due = math.ceil(now_us / 1000) + delay", "due = now + delay",
        "scripts/test_cycle.py",
    ),
    Defect(
        "a call brings as many jobs however large they are", "worker/pump.py",
        "min(self._most, self._slots.share(self))", "min(BATCH, self._slots.share(self))",
        "worker/test_reading.py",
    ),
)  # fmt: skip
