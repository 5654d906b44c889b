"""Parents in the test's own event loop, with real children."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from streamq.errors import BadInput
from streamq.parent import Pace
from streamq.process import READY
from tests.conftest import is_running

# Starting and killing a dozen interpreters on a busy machine takes its time.
CRASH = "import sys; print('no such table: jobs', file=sys.stderr); sys.exit(3)"


async def ready(eventually, running, count: int) -> list[int]:
    """Wait for so many ready children and no others; return their pids."""
    await eventually(
        lambda: len(running.pids()) == count == len(running.children()), f"{count} ready children", timeout=30
    )
    return running.pids()


async def test_every_instance_of_a_role_is_started_and_becomes_ready(start, children, eventually):
    """That is what a parent is for."""
    running = start(children.speaker(3))
    await ready(eventually, running, 3)
    await eventually(lambda: all(child["slots"] == 3 for child in running.children()), "their load is known")
    assert [child["name"] for child in running.children()] == ["worker.1", "worker.2", "worker.3"]
    assert all(child["rss_bytes"] > 1_000_000 and child["busy"] == 1 for child in running.children())


async def test_a_stop_drains_all_children_at_once_and_ends_with_zero(start, children, eventually):
    """Drains one after another would outlast every grace period."""
    hold = children.hold()
    running = start(children.speaker(3))
    await ready(eventually, running, 3)
    running.parent.stop()
    await eventually(lambda: len(running.pids("draining")) == 3, "all three drain together")
    hold.unlink()
    assert await running.task == 0
    assert [death[4] for death in running.record.deaths] == [0, 0, 0]
    assert running.record.buried == []  # who said bye has handed everything back


async def test_a_killed_child_is_noticed_and_buried(start, children, eventually):
    """Its jobs wait until somebody knows that it is dead."""
    running = start(children.speaker(2))
    victim = (await ready(eventually, running, 2))[0]
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: running.record.buried)
    assert running.record.deaths == [("worker", "worker.1", victim, (f"worker.1:{victim}",), -signal.SIGKILL)]
    assert running.record.buried == [f"worker.1:{victim}"]


async def test_a_child_that_crashes_while_another_drains_is_restarted_at_once(start, children, eventually):
    """A drain may take minutes, and the work of the others must not wait for it."""
    hold = children.hold()
    running = start(children.speaker(2))
    first, second = await ready(eventually, running, 2)
    running.parent.scale("worker", 1)
    await eventually(lambda: running.pids("draining") == [second])
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: running.pids() not in ([], [first]), "a new worker.1")
    assert running.pids("draining") == [second]
    hold.unlink()
    await ready(eventually, running, 1)


async def test_a_role_scales_up_and_down_and_keeps_the_lowest_numbers(start, children, eventually):
    """The trio of PM2: scale, status, logs."""
    running = start(children.speaker(2))
    before = await ready(eventually, running, 2)
    assert running.parent.scale("worker", 5) == 2
    assert (await ready(eventually, running, 5))[:2] == before
    assert running.parent.scale("worker", 2) == 5
    assert await ready(eventually, running, 2) == before
    assert {death[4] for death in running.record.deaths} == {0}


async def test_a_role_can_be_scaled_to_nothing_and_back(start, children, eventually):
    """No workers is a state to be in, not the end of the parent."""
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    running.parent.scale("worker", 0)
    await eventually(lambda: running.children() == [])
    running.parent.scale("worker", 1)
    await ready(eventually, running, 1)


@pytest.mark.parametrize("n", [-1, 1001])
async def test_a_number_of_instances_out_of_range_is_refused(start, children, eventually, n):
    """A slip of the finger must not start ten thousand processes."""
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    with pytest.raises(BadInput, match=f"cannot scale worker to {n}: expected 0 to 1000"):
        running.parent.scale("worker", n)


async def test_an_unknown_role_is_refused_by_name(start, children, eventually):
    """The message says what there is."""
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    with pytest.raises(BadInput, match="there is no role 'wroker' here: expected one of worker"):
        running.parent.scale("wroker", 2)


async def test_nothing_is_scaled_while_everything_stops(start, children, eventually):
    """A child started now would outlive the parent."""
    hold = children.hold()
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    running.parent.stop()
    with pytest.raises(BadInput, match="the parent is stopping"):
        running.parent.scale("worker", 2)
    hold.unlink()
    assert await running.task == 0


async def test_a_crash_loop_is_given_up_with_its_reason_and_its_exit_code(start, children, caplog):
    """Five starts that fail alike will not be helped by a sixth."""
    running = start(children.role(CRASH))
    assert await running.task == 3
    assert len(running.record.deaths) == 5
    assert "worker.1 died 5 times in 60 s, giving up: exit 3; its last lines:\n    no such table: jobs" in [
        getattr(record, "text", "") for record in caplog.records
    ]


async def test_a_signal_that_ends_every_start_is_told_by_name(start, children, caplog):
    """A person reads `killed by SIGSEGV`, a shell 139."""
    running = start(children.role("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert await running.task == 128 + signal.SIGSEGV
    assert any("giving up: killed by SIGSEGV" in getattr(record, "text", "") for record in caplog.records)


@pytest.mark.parametrize("code", [64, 78])
async def test_a_start_failure_stops_the_parent_with_the_same_code(start, children, code):
    """A bad configuration does not get better by trying, and systemd must see 78 to stop trying, too."""
    running = start(children.role(f"import sys; sys.exit({code})", instances=3))
    assert await running.task == code
    assert len(running.record.deaths) <= 3


async def test_a_program_that_does_not_exist_stops_the_parent(start, children, caplog):
    """With the code and the words of a shell."""
    role = children.speaker()
    object.__setattr__(role, "argv", ["/no/such/program"])
    assert await start(role).task == 127
    told = [getattr(record, "text", "") for record in caplog.records]
    assert any("exit 127, the program was not found" in text and "/no/such/program" in text for text in told)


async def test_one_role_that_cannot_start_takes_the_others_down_in_their_grace(start, children, eventually):
    """A system without its cron must not look as if it were well."""
    running = start(children.speaker(1), children.role("import sys; sys.exit(78)", "cron"))
    assert await running.task == 78


async def test_a_new_child_that_cannot_start_leaves_the_working_ones_alone(start, children, eventually):
    """Whoever breaks the configuration and then scales up must not lose what runs."""
    running = start(children.speaker(1))
    pids = await ready(eventually, running, 1)
    children.role("import sys; sys.exit(78)")
    running.parent.scale("worker", 2)
    await eventually(lambda: [child["state"] for child in running.children()] == ["ready", "failed"])
    assert running.pids() == pids
    assert running.children("worker.2")[0]["last_death"] == "exit 78, bad configuration"
    children.speaker()
    running.parent.restart("worker")
    await eventually(lambda: len(running.pids()) == 2, "the failed one is tried again")


async def test_a_child_that_was_ready_is_restarted_however_often_it_is_killed(start, children, eventually):
    """Poison jobs are limited at the job; giving up on the worker would stop the innocent ones, too."""
    running = start(children.speaker(1))
    seen: set[int] = set()
    for _ in range(6):
        await eventually(lambda: not seen.issuperset(running.pids()), "a new child")
        seen.update(running.pids())
        os.kill(running.pids()[0], signal.SIGKILL)
    await eventually(lambda: not seen.issuperset(running.pids()), "a new child")
    assert running.children("worker.1")[0]["restarts"] == 6


async def test_a_child_that_drains_by_itself_is_replaced_without_delay(start, children, eventually):
    """That is how a worker recycles itself after so many jobs."""
    running = start(children.speaker(1), pace=Pace(first_delay_s=30))
    (pid,) = await ready(eventually, running, 1)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: running.pids() not in ([], [pid]), "another one")


async def test_a_role_that_runs_once_is_not_restarted_after_exit_zero(start, children):
    """`--burst` ends when the queue is empty."""
    running = start(children.role("print('done')", instances=2, once=True))
    assert await running.task == 0
    assert len(running.record.deaths) == 2


async def test_a_child_that_ignores_term_is_killed_after_its_grace(start, children, eventually):
    """And the exit code says that it was not clean."""
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)"
    running = start(children.role(stubborn, grace_ms=50), pace=Pace(margin_s=0.05))
    await eventually(lambda: "up" in running.said)
    running.parent.stop()
    assert await running.task == 1
    assert running.record.deaths[0][4] == -signal.SIGKILL


async def test_what_a_crashed_child_started_is_killed_with_it(start, children, eventually):
    """The process of an isolated job must not go on while the job runs again elsewhere."""
    source = (
        "import subprocess, sys, time\n"
        "print('grandchild', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)\n"
        "time.sleep(60)"
    )
    running = start(children.role(source))
    await eventually(lambda: "grandchild" in running.said)
    grandchild = int(running.said.split("grandchild ")[1].split()[0])
    os.kill(running.children()[0]["pid"], signal.SIGKILL)
    await eventually(lambda: not is_running(grandchild), "the grandchild is gone")


# ---- rolling restarts


async def test_a_rolling_restart_replaces_one_at_a_time_and_the_new_one_first(start, children, eventually):
    """There are never fewer ready workers than there should be."""
    running = start(children.speaker(2))
    before = await ready(eventually, running, 2)
    fewest = []
    running.parent.restart("worker")
    while set(before) & {child["pid"] for child in running.children()}:
        fewest.append(len(running.pids()))
        assert len(running.children()) <= 3
        await asyncio.sleep(0.005)
    after = await ready(eventually, running, 2)
    assert min(fewest) >= 2
    assert not set(before) & set(after)
    assert [child["name"] for child in running.children()] == ["worker.1", "worker.2"]
    assert running.record.buried == []


async def test_a_rolling_restart_ends_at_the_first_new_child_that_does_not_come_up(start, children, eventually, caplog):
    """A broken release must not replace a working one."""
    running = start(children.speaker(2))
    before = await ready(eventually, running, 2)
    children.role("import sys; sys.exit(78)")
    running.parent.restart("worker")
    await eventually(
        lambda: any("rolling restart of worker ends here" in getattr(r, "text", "") for r in caplog.records)
    )
    assert await ready(eventually, running, 2) == before


async def test_a_new_child_that_never_gets_ready_is_stopped_in_a_rolling_restart(start, children, eventually, caplog):
    """It would otherwise be waited for, for ever."""
    running = start(children.speaker(1), pace=Pace(beat_ms=20, ready_limit_s=0.3))
    before = await ready(eventually, running, 1)
    children.role("import time; time.sleep(60)")
    running.parent.restart("worker")
    await eventually(
        lambda: any("rolling restart of worker ends here" in getattr(r, "text", "") for r in caplog.records)
    )
    assert await ready(eventually, running, 1) == before


async def test_a_second_rolling_restart_has_to_wait(start, children, eventually):
    """Two at once would have one replace what the other has just started."""
    hold = children.hold()
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    running.parent.restart("worker")
    with pytest.raises(BadInput, match="a rolling restart of worker is under way"):
        running.parent.restart("worker")
    hold.unlink()


async def test_a_role_that_cannot_overlap_is_stopped_before_it_is_started_again(start, children, eventually):
    """Two APIs cannot listen on one port."""
    running = start(children.speaker(1, overlap=False))
    before = await ready(eventually, running, 1)
    running.parent.restart("worker")
    most = 0
    while running.pids() in ([], before):
        most = max(most, len(running.children()))
        await asyncio.sleep(0.005)
    assert most == 1


async def test_a_restart_that_does_not_roll_replaces_all_at_once(start, children, eventually):
    """Quicker, for whoever does not mind the gap."""
    running = start(children.speaker(2))
    before = await ready(eventually, running, 2)
    running.parent.restart("worker", is_rolling=False)
    await eventually(lambda: len(set(running.pids()) - set(before)) == 2, "two new ones")
    assert [child["restarts"] for child in running.children()] == [1, 1]


async def test_a_child_that_does_not_speak_counts_as_ready_when_it_has_lived_a_while(start, children, eventually):
    """So that any program can be a role."""
    running = start(children.role("import time; time.sleep(60)", "other", speaks=False))
    await ready(eventually, running, 1)


# ---- beats, burials and hanging


async def test_beats_go_out_for_every_child_that_lives(start, children, eventually):
    """A handler that holds the GIL must not cost its worker the lease."""
    running = start(children.speaker(2))
    pids = await ready(eventually, running, 2)
    await eventually(lambda: set(running.record.beats) == {f"worker.{n}:{pid}" for n, pid in enumerate(pids, 1)})


async def test_a_frozen_child_gets_no_beats_until_it_wakes(start, children, eventually):
    """What it holds has to be taken over, though its parent lives."""
    running = start(children.speaker(1))
    (pid,) = await ready(eventually, running, 1)
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: running.children()[0]["silent_s"] > 3.2)
    running.record.beats.clear()
    await eventually(lambda: running.children()[0]["silent_s"] > 3.5)
    assert running.record.beats == []
    os.kill(pid, signal.SIGCONT)
    await eventually(lambda: running.record.beats, "it beats again")


async def test_a_burial_that_fails_is_repeated_until_it_works(start, children, eventually, caplog):
    """Redis may be away just then; the deliveries must not be forgotten."""
    running = start(children.speaker(1))
    (pid,) = await ready(eventually, running, 1)
    running.record.fault = ConnectionError("redis is away")
    os.kill(pid, signal.SIGKILL)
    texts = lambda: [getattr(record, "text", "") for record in caplog.records]  # noqa: E731
    await eventually(lambda: "cannot beat for the workers: redis is away" in texts())
    running.record.fault = None
    await eventually(lambda: running.record.buried == [f"worker.1:{pid}"])
    await eventually(lambda: "beating for the workers again" in texts())
    assert texts().count("cannot beat for the workers: redis is away") == 1


async def test_a_child_that_hangs_is_dumped_killed_and_replaced(start, children, eventually):
    """A blocked event loop keeps its jobs for as long as its parent beats, so that has to end."""
    running = start(children.speaker(1, hang_limit_ms=2_000))
    (pid,) = await ready(eventually, running, 1)
    (children.folder / f"block-{pid}").touch()
    await eventually(lambda: running.pids() not in ([], [pid]), "a new child")
    assert running.record.hangs == ["worker.1"]
    assert running.record.deaths[0][3:] == ((f"worker.1:{pid}",), -signal.SIGKILL)
    await eventually(lambda: "time.sleep" in running.said or "in main" in running.said, "its stack was printed")


async def test_the_leases_of_a_blocked_child_are_renewed_for_it(start, children, eventually):
    """A handler may block the event loop for longer than a lease, and keeps its job."""
    running = start(children.speaker(2), pace=Pace(beat_ms=20, renew_after_ms=2_000))
    pid, _ = await ready(eventually, running, 2)
    (children.folder / f"block-{pid}").touch()
    await eventually(lambda: running.record.renewed)
    assert set(running.record.renewed) == {f"worker.1:{pid}"}
    assert running.children("worker.1")[0]["pid"] == pid


async def test_the_guardian_is_closed_at_the_end(start, children, eventually):
    """It holds a connection."""
    running = start(children.speaker(1))
    await ready(eventually, running, 1)
    running.parent.stop()
    await running.task
    assert running.record.is_closed


async def test_a_callback_that_fails_harms_nobody(start, children, eventually, caplog):
    """It is somebody else's code."""
    running = start(children.speaker(1))
    (pid,) = await ready(eventually, running, 1)

    async def fail(*_args):
        raise RuntimeError("boom")

    running.record.on_death = fail  # too late for this parent, which took the hooks already
    running.parent._guard._hooks = running.record.hooks
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: running.pids() not in ([], [pid]), "a new child")
    assert "a callback about a child failed" in caplog.text


async def test_systemd_hears_that_all_is_ready_and_that_it_stops(start, children, eventually, notifications):
    """With Type=notify, a unit is up when its workers are."""
    running = start(children.speaker(2))
    await ready(eventually, running, 2)
    await eventually(lambda: "READY=1" in notifications())
    await eventually(lambda: "STATUS=2/2 ready, 2/6 busy" in notifications())
    running.parent.stop()
    await running.task
    assert "STOPPING=1" in notifications()


async def test_deaths_are_seen_where_there_is_no_pidfd(start, children, eventually, monkeypatch):
    """Such as on macOS."""
    monkeypatch.delattr("os.pidfd_open", raising=False)
    running = start(children.speaker(1))
    (pid,) = await ready(eventually, running, 1)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: running.pids() not in ([], [pid]), "a new child")
    assert running.record.deaths[0][4] == -signal.SIGKILL


async def test_a_grandchild_that_holds_the_output_does_not_hide_a_death(start, children, eventually):
    """A daemon that a job has started may live for ever."""
    source = (
        "import subprocess, sys\n"
        "daemon = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print('daemon', daemon.pid)"
    )
    running = start(children.role(source, once=True))
    assert await asyncio.wait_for(running.task, 30) == 0
    os.kill(int(running.said.split("daemon ")[1].split()[0]), signal.SIGKILL)


async def test_a_child_that_talks_nonsense_is_not_listened_to(start, children, eventually):
    """It may be of a version to come."""
    source = (
        "import os, time\n"
        "fd = int(os.environ['STREAMQ_PARENT_FD'])\n"
        "for line in ('{', '[]', '{}', '{\"type\": \"new\"}', '{\"type\": \"tick\"}', '{\"type\": \"ready\"}'):\n"
        "    os.write(fd, line.encode() + b'\\n')\n"
        "time.sleep(60)"
    )
    running = start(children.role(source))
    await ready(eventually, running, 1)
    assert running.children()[0]["slots"] == 0


async def test_each_child_gets_a_number_of_its_own_for_its_port(start, children, eventually):
    """Two children cannot listen on one port."""
    source = "import os, time; print('port', os.environ['PORT'], flush=True); time.sleep(60)"
    running = start(children.role(source, instances=3, speaks=False, numbered={"PORT": 9191}))
    await ready(eventually, running, 3)
    await eventually(
        lambda: all(f"worker.{n} | port {9190 + n}\n" in running.said for n in (1, 2, 3)), "they tell their ports"
    )


async def test_a_server_that_is_away_is_no_crash_loop_for_a_child_that_has_worked(start, children, eventually, caplog):
    """An outage of minutes must not end the parent: nobody would start it again."""
    source = (
        "import json, os, sys, time\nfrom pathlib import Path\n"
        "outage = Path(sys.argv[1]) / 'outage'\n"
        "if outage.exists(): sys.exit(69)\n"
        "os.write(int(os.environ['STREAMQ_PARENT_FD']), b'{\"type\": \"ready\"}\\n')\n"
        "while not outage.exists(): time.sleep(0.01)\n"
        "sys.exit(69)"
    )
    running = start(children.role(source))
    await ready(eventually, running, 1)
    outage = children.folder / "outage"
    outage.touch()
    await eventually(lambda: running.children()[0]["restarts"] > 6, "it is tried again and again")
    outage.unlink()
    await ready(eventually, running, 1)
    assert "giving up" not in caplog.text


async def test_a_server_that_was_never_there_is_given_up(start, children):
    """Then it is the address that is wrong, and somebody has to read why."""
    running = start(children.role("import sys; sys.exit(69)"))
    assert await running.task == 69


async def test_the_heartbeat_file_tells_what_keeps_the_parent_from_being_ready(start, children, eventually, tmp_path):
    """It speaks for all children: a container has one file."""
    path = tmp_path / "heartbeat"
    source = (
        "import os, time\nfd = int(os.environ['STREAMQ_PARENT_FD'])\n"
        'os.write(fd, b\'{"type": "ready"}\\n\')\n'
        'os.write(fd, b\'{"type": "tick", "busy": 0, "slots": 1, "problem": "no Redis"}\\n\')\n'
        "time.sleep(60)"
    )
    running = start(children.role(source, name="sad"), children.speaker(1), heartbeat_file=path)
    await eventually(lambda: path.read_text() == "sad.1: no Redis\n", "the heartbeat tells")
    running.parent.scale("sad", 0)
    await eventually(lambda: path.read_text() == f"{READY}\n", "all that is left is ready")
    running.parent.set_quiet(is_quiet=True)
    await eventually(lambda: path.read_text() == "quiet\n", "it is quiet")
